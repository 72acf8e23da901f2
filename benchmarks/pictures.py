"""The pictures of results/README.md."""

import statistics

from matplotlib.figure import Figure

from benchmarks.rows import SECTIONS, epochs_before

MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p")
COLOURS = [*(f"tab:{name}" for name in ["blue", "orange", "green", "red", "purple", "brown", "pink", "gray", "olive", "cyan"]), "black", "navy"]
SMALL = 6  # the size of names in print
PLACES = sorted(((side, away, up) for away in (6, 46, 86, 126) for up in range(-120, 121, 4) for side in (1, -1)), key=lambda at: at[1] / 2 + abs(at[2]))
CURVES = (
    *("float", "float_longer", "mobilenet", "ternary", "ternary_b", "funmatch_ternary_same_shifts_6", "best_ternary"),
    *("qkd_w4a4_ss", "qkd_w4a4_ss_tu", "best_w4a4", "qkd_w2a2_ss", "best_w2a2_taught"),
)

BEST = {  # of README's picture: {series: {row: its name there}}
    "a hundred epochs in float, then six in low bits": {
        "float_100": "float",
        "long_w4a4": "W4A4",
        "long_ternary": "ternary-A8",
        "long_w2a2_fast": "W2A2",
    },
    "twelve epochs in all, under a wider teacher": {
        "float_taught_longer": "float",
        "best_w4a4_taught": "W4A4",
        "best_ternary_taught": "ternary-A8",
        "best_w2a2_taught": "W2A2",
    },
    "the wider teacher": {"teacher": "float, twice as wide"},
}


def _mean(figure, runs):
    return statistics.mean(run[figure] for run in runs)


def scattered(found, measured, label, unit=1, scale="linear"):
    """Accuracy against a figure of runs in `unit`: a mark for each section, a point for each row in which it was measured, the mean of its seeds."""
    figure = Figure(figsize=(10, 11), layout="constrained")
    axes = figure.subplots()
    named = []
    for mark, colour, (title, rows) in zip(MARKS, COLOURS, SECTIONS.items(), strict=True):
        there = [row for row in rows if found[row] and measured in found[row][0]]
        points = [(_mean(measured, found[row]) / unit, 100 * _mean("accuracy", found[row]), row) for row in there]
        if points:
            axes.plot([x for x, _, _ in points], [y for _, y, _ in points], mark, color=colour, markersize=5, label=title, alpha=0.8)
        named += [(*point, colour) for point in points]
    axes.set(xlabel=label, ylabel="test accuracy, %", xscale=scale)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.3)
    axes.grid(alpha=0.3)
    if axes.lines:
        figure.legend(fontsize=7, loc="outside lower center", ncols=2, frameon=False)
    figure.draw_without_rendering()  # so that places are known
    _name(axes, named)
    return figure


def best(found):
    """Accuracy against bytes of README's rows, the mean of their seeds."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for (title, rows), colour, mark in zip(BEST.items(), ("navy", "tab:orange", "tab:gray"), "osD", strict=True):
        points = [(_mean("zipped", found[row]) / 1e3, 100 * _mean("accuracy", found[row]), name) for row, name in rows.items() if found[row]]
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], mark, color=colour, label=title)
        for x, y, name in points:
            axes.annotate(f"{name} {y:.2f}", (x, y), (0, 7), textcoords="offset points", fontsize=8, ha="center", color=colour)
    axes.set(xlabel="kilobytes of the .tflite, zipped; a float network's in float32", ylabel="test accuracy, %", xscale="log", xlim=(50, 10_000))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(y=0.1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def _name(axes, points):
    """Writes each row's name beside its point [x, y, row, colour], where nothing is yet; a line leads to a name that stands apart."""
    at = axes.transData.transform([(x, y) for x, y, *_ in points]) * 72 / axes.figure.dpi if points else []  # in points of print
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in at]
    for (x, y), (*place, row, colour) in zip(at, points, strict=True):
        width = 0.62 * SMALL * len(row)
        boxes = [(sorted((x + side * away, x + side * (away + width))), y + up) for side, away, up in PLACES]
        boxes = [(near, middle - 4, far, middle + 4) for (near, far), middle in boxes]
        place_of = next((k for k, box in enumerate(boxes) if not any(_meet(box, other) for other in taken)), 0)
        (side, away, up), box = PLACES[place_of], boxes[place_of]
        taken.append(box)
        line = {"arrowstyle": "-", "lw": 0.4, "color": colour, "shrinkA": 0, "shrinkB": 2} if away > 6 or abs(up) > 4 else None
        text = {"fontsize": SMALL, "va": "center", "ha": "left" if side > 0 else "right", "color": colour}
        axes.annotate(row, place, (side * away, up), textcoords="offset points", arrowprops=line, **text)


def _meet(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def learning(found):
    """Test accuracy against epochs of a few rows, those of the float network they start from included, the mean of their seeds; float rows dashed."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for row, colour in zip(CURVES, COLOURS, strict=True):
        if not found[row]:
            continue
        means = [100 * statistics.mean(values) for values in zip(*([line["val_accuracy"] for line in run["metrics"]] for run in found[row]), strict=True)]
        first = 1 + epochs_before(row)
        axes.plot(range(first, first + len(means)), means, "--" if row.startswith("float") else "-", marker=".", color=colour, label=row)
    axes.set(xlabel="epoch", ylabel="test accuracy of the Keras network, %", ylim=(50, None))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)
    return figure

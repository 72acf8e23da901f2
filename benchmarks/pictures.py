"""The pictures of results/README.md."""

import statistics

from matplotlib.figure import Figure

from benchmarks.rows import SECTIONS

MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")
CURVES = ("float", "float_taught", "ternary", "ternary_b", "ternary_c", "qkd_w4a4_ss", "qkd_w4a4_ss_tu", "qkd_w2a2_ss", "qkd_w2a2_ss_tu")


def _mean(figure, runs):
    return statistics.mean(run[figure] for run in runs)


def scattered(found, measured, label, unit=1, scale="linear"):
    """Accuracy against a figure of runs in `unit`: a mark for each section, a point for each row in which it was measured, the mean of its seeds."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for number, (mark, (title, rows)) in enumerate(zip(MARKS, SECTIONS.items(), strict=True)):
        side = {"xytext": (5, 3), "ha": "left"} if number % 2 else {"xytext": (-5, 3), "ha": "right"}  # points of two sections may meet
        there = [row for row in rows if found[row] and measured in found[row][0]]
        points = [(_mean(measured, found[row]) / unit, 100 * _mean("accuracy", found[row]), row) for row in there]
        if points:
            axes.plot([x for x, _, _ in points], [y for _, y, _ in points], mark, label=title, alpha=0.8)
        for x, y, row in points:
            axes.annotate(row, (x, y), textcoords="offset points", fontsize=6, **side)
    axes.set(xlabel=label, ylabel="test accuracy, %", xscale=scale)
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=7)
    return figure


def learning(found):
    """Test accuracy against epochs of a few rows, the mean of their seeds; float rows dashed."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for row in (row for row in CURVES if found[row]):
        means = [100 * statistics.mean(values) for values in zip(*([line["val_accuracy"] for line in run["metrics"]] for run in found[row]), strict=True)]
        axes.plot(range(1, len(means) + 1), means, "--" if row.startswith("float") else "-", marker=".", label=row)
    axes.set(xlabel="epoch", ylabel="test accuracy, %", ylim=(50, None))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)
    return figure

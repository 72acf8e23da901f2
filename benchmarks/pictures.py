"""The pictures of results/README.md."""

from matplotlib.figure import Figure

from benchmarks.tables import RESULTS, SECTIONS, mean

STEPS = 390  # of 128 images in an epoch
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")
CURVES = ("float", "float_taught", "ternary", "ternary_b", "ternary_c", "qkd_w4a4_ss", "qkd_w4a4_ss_tu", "qkd_w2a2_ss", "qkd_w2a2_ss_tu")


def zipped(run):
    """Kilobytes of the smallest file: the int4 container in a zip archive, of a float network the float32 file as it is (it hardly shrinks)."""
    if run["card"] is None:
        return run["bytes"] / 1e3
    return min(row["zipped"] for row in run["card"]["table"] if ".tflite" in row["network"]) / 1e3


def step_seconds(run):
    """CPU seconds of a training step, all that the run needs included; None for a run whose CPU time was not recorded."""
    return run["cpu_seconds"] / len(run["metrics"]) / STEPS if run.get("cpu_seconds") else None


def scattered(found, value, label, log):
    """Accuracy against value(run): a mark for each section, a point for each row."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for mark, (title, rows) in zip(MARKS, SECTIONS.items(), strict=False):
        points = [(value(found[row][0]), 100 * mean(found[row]), row) for row in rows if found[row] and value(found[row][0])]
        if points:
            axes.plot([x for x, _, _ in points], [y for _, y, _ in points], mark, label=title, alpha=0.8)
        for x, y, row in points:
            axes.annotate(row, (x, y), textcoords="offset points", xytext=(5, 3), fontsize=6)
    axes.set(xlabel=label, ylabel="test accuracy, %", xscale="log" if log else "linear")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def learning(found):
    """Test accuracy against epochs of a few rows, the mean of their seeds."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for row in (row for row in CURVES if found[row]):
        curves = [[100 * line["val_accuracy"] for line in run["metrics"]] for run in found[row]]
        means = [sum(values) / len(values) for values in zip(*curves, strict=True)]
        axes.plot(range(1, len(means) + 1), means, "-" if "_" in row else "--", marker=".", label=row)
    axes.set(xlabel="epoch", ylabel="test accuracy, %", ylim=(50, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def draw(found):
    """Writes the pictures; returns their paths."""
    figures = {
        "bytes": scattered(found, zipped, "kilobytes of the smallest file, zipped", log=True),
        "epochs": learning(found),
        "step": scattered(found, step_seconds, "CPU seconds of a training step", log=False),
    }
    for name, figure in figures.items():
        figure.savefig(RESULTS / f"{name}.png", dpi=110)
    return [RESULTS / f"{name}.png" for name in figures]

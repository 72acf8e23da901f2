"""Pictures of a run: the learning curves."""

from kerakd.rundir import write_aside


def curves(rows, path):
    """Draws test error and training loss against epochs, a line for each stage, into a PNG.

    Args:
        rows: RunDirectory.metrics().
        path: of the PNG.
    """
    from matplotlib.figure import Figure  # half a second's import, needed at the end of a run

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for stage in dict.fromkeys(row["stage"] for row in rows):
        epochs = [row["epoch"] + 1 for row in rows if row["stage"] == stage]
        style = {"label": stage.replace("_", " "), "linewidth": 1.4, "linestyle": "--" if stage.startswith("alone") else "-"}
        left.plot(epochs, [100 * (1 - row["val_accuracy"]) for row in rows if row["stage"] == stage], **style)
        right.plot(epochs, [row["hard_loss"] for row in rows if row["stage"] == stage], **style)
    for axes, title, unit in ((left, "Test error", "%"), (right, "Training loss on labels", "cross-entropy, nats")):
        axes.set(title=title, xlabel="epoch", ylabel=unit, yscale="log")
        axes.grid(alpha=0.3, which="both")
    left.legend(fontsize=8)
    write_aside(path, lambda aside: figure.savefig(aside, dpi=120))

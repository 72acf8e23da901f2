"""The learning curves of a run as a picture."""

import numpy as np

from kerakd.files import write_aside
from kerakd.rundir import kind_of

COLOURS = {"teacher": "tab:gray", "float": "tab:green", "alone": "tab:orange", "taught": "tab:blue"}


def figure_of(rows):
    """Test error and training loss against epochs, a colour for each kind of network: thin for each seed, thick for their mean.

    Args: rows: RunDirectory.metrics().
    Returns: a matplotlib Figure of two axes.
    """
    from matplotlib.figure import Figure  # half a second's import, needed at the end of a run
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind in dict.fromkeys(kind_of(row["stage"]) for row in rows):
        stages = list(dict.fromkeys(row["stage"] for row in rows if kind_of(row["stage"]) == kind))
        errors = [[100 * (1 - row["val_accuracy"]) for row in rows if row["stage"] == stage] for stage in stages]
        losses = [[row["loss"] for row in rows if row["stage"] == stage] for stage in stages]
        label = kind if len(stages) == 1 else f"{kind}, mean of {len(stages)}{' seeds' * (kind != 'teacher')}"
        for axes, drawn in ((left, errors), (right, losses)):
            draw(axes, drawn, label, COLOURS.get(kind))
    left.set(title="Test error", xlabel="epoch", ylabel="%", ylim=(0, None))
    right.set(title="Training loss, all terms", xlabel="epoch", ylabel="nats", yscale="log")
    for format_by in (right.yaxis.set_major_formatter, right.yaxis.set_minor_formatter):
        format_by(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.4)))
    for axes in (left, right):
        epochs_axis(axes)
    left.legend()
    return figure


def draw(axes, curves, label, colour):
    """One kind's curves; a network that trained for a few epochs shows its points."""
    epochs = np.arange(1, len(curves[0]) + 1)
    marker = "o" if len(epochs) < 5 else None
    if len(curves) > 1:
        for curve in curves:
            axes.plot(epochs, curve, color=colour, linewidth=0.6, alpha=0.4)
    axes.plot(epochs, np.mean(curves, axis=0), color=colour, linewidth=1.8, marker=marker, label=label)


def epochs_axis(axes):
    """Whole numbers on the axis of epochs, and a grid."""
    from matplotlib.ticker import MaxNLocator

    low, high = axes.get_xlim()
    if high - low < 1:  # one epoch
        axes.set_xlim(round(low) - 0.5, round(high) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def write(rows, path):
    """Writes `figure_of(rows)` as a PNG to `path`."""
    write_aside(path, lambda aside: figure_of(rows).savefig(aside, dpi=120))

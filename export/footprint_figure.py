"""What `export.footprint` shows: at which widths and batches, as a table, a picture, and figures by name."""

import itertools
import textwrap

import numpy as np

WIDTHS = (32, 8, 4, 3, 2)
BATCHES = (1, 8)
ROWS = ((32, 32), (8, 8), (4, 8), (2, 8), (4, 4), (3, 3), (2, 2))  # weights, activations
DRAWN = tuple(widths for widths in ROWS if widths != (3, 3))
READINGS = {"peak": "the most alive at once", "sum": "all tensors together"}
COLOURS = {"weights": "tab:blue", "activations": "tab:orange"}


def table(networks, found, reading):
    """The table for a terminal, in MB.

    Args: networks: {name: Network}. found: {name: {widths: Footprint of one image}}. reading: of the activations that shares are of.
    """
    lines = [["network", "images", "widths", "weights", *(f"{kind}, batch {batch}" for kind in READINGS for batch in BATCHES)]]
    lines[0] += [f"weights' share, batch {batch}" for batch in BATCHES]
    for name, rows in found.items():
        for index, (widths, one) in enumerate(rows.items()):
            sizes = [one.weights, *(batch * getattr(one, kind) for kind in READINGS for batch in BATCHES)]
            shares = [one.weights / (one.weights + batch * getattr(one, reading)) for batch in BATCHES]
            first = ["", ""] if index else [name, networks[name].image]
            lines.append([*first, title(widths), *map(megabytes, sizes), *(f"{share:.0%}" for share in shares)])
    columns = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join([*map(str.ljust, line[:3], columns), *map(str.rjust, line[3:], columns[3:])]) for line in lines)


def title(widths):
    return "W{}A{}".format(*widths)


def megabytes(size):
    """`size` bytes in MB, three digits."""
    return f"{size / 1e6:.0f}" if size >= 1e8 else f"{size / 1e6:#.3g}"


def flat(found):
    """{figure: bytes} of {name: {widths: Footprint of one image}}: weights at each width, activations at each width, batch and reading."""
    figures = {}
    for name, rows in found.items():
        weights = {bits_w: one.weights for (bits_w, _), one in rows.items()}
        activations = {bits_a: one for (_, bits_a), one in rows.items()}
        figures |= {f"{name} weights W{bits}": weights[bits] for bits in WIDTHS}
        for bits, kind, batch in itertools.product(WIDTHS, READINGS, BATCHES):
            figures[f"{name} activations A{bits} {kind} batch {batch}"] = batch * getattr(activations[bits], kind)
    return figures


def figure_of(networks, found, reading):
    """A picture for each network: for each width a bar of batch 1 and one of batch 8, weights below, activations above.

    Args: as of `table`.
    Returns: a matplotlib Figure.
    """
    from matplotlib.figure import Figure  # half a second's import, not needed for a refusal

    columns = min(3, len(found))
    count = -(-len(found) // columns)
    figure = Figure(figsize=(8 if columns == 1 else 5.6 * columns, 1.1 + 3.9 * count), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
    figure.suptitle(f"Memory at inference: weights and activations ({reading}: {READINGS[reading]})", fontsize=13)
    panels = np.ravel(figure.subplots(count, columns, squeeze=False))
    for axes, (name, rows) in zip(panels, found.items()):
        _draw(axes, {widths: rows[widths] for widths in DRAWN}, reading)
        axes.set_title(f"{textwrap.fill(name, 50)}, {networks[name].image}")
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    note = "W2: ternary.  Below 32 the first and the last layer, and tensors that can be negative, have 8 bits."
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=2, title=note, frameon=False)
    legend.get_title().set_fontsize(9)
    return figure


def _draw(axes, rows, reading):
    """One network's bars."""
    places, bars = [], []
    for group, one in enumerate(rows.values()):
        for side, batch in zip((-0.21, 0.21), BATCHES):
            places.append(group + side)
            bars.append((one.weights / 1e6, batch * getattr(one, reading) / 1e6))
    weights, activations = np.array(bars).T
    axes.bar(places, weights, 0.38, color=COLOURS["weights"], label="weights")
    axes.bar(places, activations, 0.38, bottom=weights, color=COLOURS["activations"], label="activations")
    for place, total in zip(places, weights + activations):
        axes.annotate(megabytes(1e6 * total), (place, total), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    axes.set_xticks(places, [str(batch) for _ in rows for batch in BATCHES], minor=True, fontsize=7)
    axes.set_xticks(range(len(rows)), [title(widths) for widths in rows], fontsize=9)
    axes.tick_params(axis="x", which="minor", length=0, pad=5)
    axes.tick_params(axis="x", which="major", length=0, pad=17)
    axes.annotate("batch", (0, 0), (-6, -7), xycoords="axes fraction", textcoords="offset points", ha="right", va="top", fontsize=7)
    axes.set_ylabel("MB")
    axes.margins(y=0.08)
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", alpha=0.3)

"""One self-contained HTML page of runs: their table and pictures, weights on their grids, intervals over time, sensitivity."""

import base64
import html
import io
import shlex

import numpy as np
import tensorflow as tf

from kerakd.files import read_json
from kerakd.rundir import kind_of
from kerakd.sensitivity import figure_of as sensitivity_figure
from kerakd.wrapper import QuantizedLayer

MOST = 24  # layers whose weights are drawn
STYLE = "body{font:15px sans-serif;max-width:1200px;margin:2em auto;padding:0 1em}pre{overflow-x:auto;background:#f4f4f4;padding:1em}img{max-width:100%}"


def page(title, sections):
    """The page as text.

    Args: sections: [(heading, [paragraph, ("pre", text) or matplotlib Figure])], in order.
    """
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for heading, contents in sections:
        parts.append(f"<h2>{html.escape(heading)}</h2>")
        for content in contents:
            if isinstance(content, str):
                parts.append(f"<p>{html.escape(content)}</p>")
            elif isinstance(content, tuple):
                parts.append(f"<pre>{html.escape(content[1])}</pre>")
            else:
                parts.append(f'<img alt="{html.escape(heading)}" src="data:image/png;base64,{_png(content)}">')
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html><head>{head}</head>\n<body>" + "\n".join(parts) + "</body></html>\n"


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()


def sections_of(name, directory, curves):
    """The sections of one run.

    Args: directory: a RunDirectory of a complete run. curves: the Figure of its learning curves.
    """
    found = [(name, [curves])]
    students = [stage for stage in directory.results() if kind_of(stage) == "taught"]
    weights = weights_figure(directory.load_model(students[0])) if students else None
    if weights is not None:
        text = "Kernels of the first student in steps of their grids: the float weights that training moves, and under them the codes that they are."
        found.append((f"{name}: weights on their grids", [text, weights]))
    rows = [row for row in directory.intervals() if students and row["stage"] == students[0]]
    if rows:
        text = "Each line is one interval of the first student, as a share of what it was after the first epoch."
        found.append((f"{name}: intervals over time", [text, intervals_figure(rows)]))
    path = directory.path / "sensitivity.json"
    if path.exists():
        said = read_json(path)
        layers = {layer: {int(bits): judged for bits, judged in row.items() if bits != "weights"} for layer, row in said["layers"].items()}
        found.append((f"{name}: sensitivity", [sensitivity_figure(layers, said["accuracy"])]))
    else:
        command = f"python -m kerakd.sensitivity --run={shlex.quote(str(directory.path))} --json={shlex.quote(str(path))}"
        found.append((f"{name}: sensitivity", ["What each layer loses where it alone is lowered is not there yet; this measures it:", ("pre", command)]))
    return found


def weights_figure(student):
    """A histogram for each of the first 24 quantized kernels of a student, in steps; None where there is none."""
    from matplotlib.figure import Figure

    kernels = [(layer.layer.name, *kernel) for layer in student._flatten_layers() if isinstance(layer, QuantizedLayer) for kernel in layer.kernels]
    if not kernels:
        return None
    shown = kernels[:MOST]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.1 * rows), layout="constrained")
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in places[len(shown) :]:
        axes.set_axis_off()
    for axes, (name, variable, quantizer, variables) in zip(places, shown, strict=False):
        kernel = tf.convert_to_tensor(variable)
        step = np.maximum(np.asarray(quantizer.step(kernel, variables)), np.finfo(np.float32).tiny)
        values, codes = (np.asarray(quantizer.view(kernel)) / step).ravel(), np.asarray(quantizer.codes(kernel, variables)).ravel()
        low, high = codes.min() - 1.5, codes.max() + 1.5
        axes.hist(np.clip(values, low, high), bins=120, range=(low, high), color="tab:blue", label="float weights")
        counts = np.bincount(codes - codes.min())
        top = axes.get_ylim()[1]
        axes.bar(np.arange(codes.min(), codes.max() + 1), -0.6 * top * counts / counts.max(), 0.6, color="tab:orange", label="codes")
        axes.axhline(0, color="0.2", linewidth=0.6)
        axes.set_title(name, fontsize=8)
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
    if len(kernels) > MOST:
        figure.suptitle(f"the first {MOST} of {len(kernels)} kernels", fontsize=10)
    figure.axes[0].legend(fontsize=6)
    return figure


def intervals_figure(rows):
    """Intervals against epochs, those of weights left, those of activations right.

    Args: rows: of one stage, as RunDirectory.intervals() gives them.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2), ("weights", "activations"), strict=True):
        for name in (name for name in rows[0] if name.endswith(f" {kind}")):
            values = np.array([row[name] for row in rows])
            axes.plot([row["epoch"] + 1 for row in rows], values / (values[0] or 1.0), linewidth=1, marker="o" if len(rows) < 5 else None)
        axes.set(title=f"intervals of {kind}", xlabel="epoch", ylabel="share of the first epoch's")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(alpha=0.3)
    return figure

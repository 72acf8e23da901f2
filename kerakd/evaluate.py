"""How good a network is on test images, Keras model and TFLite file alike, and how far a student agrees with its teacher.

python -m kerakd.evaluate --run=runs/cifar10
python -m kerakd.evaluate --model=student.tflite --dataset=cifar10
"""

import dataclasses
import pathlib
import sys

from kerakd import quiet  # first: it keeps TensorFlow quiet

with quiet.native_chatter_off():
    import numpy as np

    from kerakd import commandline, data, graph, scores
    from kerakd import config as config_module
    from kerakd.captions import caption, shortened
    from kerakd.checks import check_classifier
    from kerakd.commandline import flag
    from kerakd.errors import BadInput
    from kerakd.files import is_aside, write_aside, write_json
    from kerakd.modelfile import load_model
    from kerakd.plan import takes_pixels
    from kerakd.rundir import RunDirectory
    from kerakd.teachers import VALUES, Teacher
    from kerakd.tflite import flatfile


def figure_of(counts, names, title):
    """A confusion matrix as a picture: for each class the share of its images in each column, with numbers up to 20 classes; of more the
    darkness grows with the share's square root, as errors are spread thin.

    Args: counts: as `confusion`. names: of the classes, [C].
    Returns: a matplotlib Figure.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    names, title, classes = [caption(shortened(name, 24)) for name in names], caption(title), len(counts)
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 3 + 0.45 * min(classes, 20)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(share, cmap="Blues", norm=PowerNorm(1.0 if classes <= 20 else 0.5, 0, 100))
    axes.set(title=title, xlabel="taken for", ylabel="class")
    if classes <= 20:
        axes.set_xticks(range(classes), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(classes), names)
        for axis in (axes.xaxis, axes.yaxis):  # white lines between the cells
            axis.set_ticks(np.arange(0.5, classes - 1), minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="minor", length=0)
        for row in range(classes):
            for column in np.flatnonzero(counts[row]):
                colour = "white" if share[row, column] > 50 else "black"
                axes.text(column, row, f"{share[row, column]:.0f}" if share[row, column] >= 0.5 else "<1", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(drawn, label="% of the class", shrink=0.8)
    return figure


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of this program. Raises: BadInput for values that can't be, or that don't go together."""

    run: str = flag("", "the directory of a run: its models, and its .tflite files where it was exported")
    model: tuple = flag((), "a .tflite, .keras or .h5 file; repeat it for more")
    dataset: str = flag("", "digits, a TFDS name or folder:DIR, whose test images are used; empty: the run's")
    data_dir: str = flag("", "where TFDS keeps its datasets; empty: the run's, or TFDS's default")
    image_size: int = flag(0, "height and width of the images; 0: what each model takes")
    values: str = flag("-1..1", "what a --model takes its images in", tuple(VALUES))
    picture: str = flag("", "a .png for the confusion of the last of them")
    json: str = flag("", "a file for all figures")
    overwrite: bool = flag(False, "replace files that exist")

    def __post_init__(self):
        if bool(self.run) == bool(self.model):
            raise BadInput("--run, --model: expected one of them, received " + ("both" if self.run else "none; give --run=DIR or --model=FILE"))
        if self.model and not self.dataset:
            raise BadInput("--dataset: expected one beside --model, received none; give --dataset=cifar10 or so")
        if self.run and self.values != "-1..1":
            raise BadInput(f"--values: expected none beside --run, whose models take -1..1, received {self.values}")
        if self.values not in VALUES:
            raise BadInput(f"--values: expected one of {', '.join(VALUES)}, received {self.values!r}")
        if self.image_size < 0:
            raise BadInput(f"--image_size: expected 0 or more, received {self.image_size}")
        for path in self.model:
            if pathlib.Path(path).suffix not in (".tflite", ".keras", ".h5"):
                raise BadInput(f"--model: expected a .tflite, .keras or .h5 file, received {path!r}")
            if not pathlib.Path(path).is_file():
                raise BadInput(f"--model: expected a file, received {path}, which is not there")
        for name, path, kind in (("picture", self.picture, ".png"), ("json", self.json, ".json")):
            if path:
                commandline.check_new(name, path, (kind,), self.overwrite)


def _found(options):
    """({name: path of a model file}, dataset, data_dir, synthetic, names of the classes that a folder has to have or None)."""
    if options.model:
        return {path: pathlib.Path(path) for path in options.model}, options.dataset, options.data_dir, False, None
    directory = RunDirectory(options.run)
    results = directory.results()
    config = config_module.read(directory.path / "flags.cfg")
    order = list(results)
    models = {path.stem: path for path in (directory.path / "models").glob("*.keras") if not is_aside(path)}
    paths = {name: models[name] for name in sorted(models, key=lambda name: (order.index(name) if name in order else len(order), name))}
    for name in (name for name in order if name not in models):
        print(f"{name} is a file of its own: give it with --model and --values")
    paths |= {path.name: path for path in sorted(directory.path.glob("*.tflite")) if not is_aside(path)}
    same = not options.dataset or options.dataset == config.dataset
    folders = all(name.startswith(data.FOLDER) for name in (config.dataset, options.dataset or config.dataset))
    expected = directory.data().get("classes") if folders else None
    return paths, options.dataset or config.dataset, options.data_dir or config.data_dir, config.synthetic and same, expected


def _loaded(path, values):
    """(predictor, (height, width, channels)) of a model file. Raises: BadInput for what is none."""
    if path.suffix == ".tflite":
        contents = path.read_bytes()
        if values != "-1..1":
            raise BadInput(f"--values: expected -1..1 beside a .tflite file, which is one network with its input as it was exported, received {values}")
        inside = flatfile.read(contents).subgraphs[0]
        shapes = [[tuple(map(int, inside.tensors[index].shape)) for index in ends] for ends in (inside.inputs, inside.outputs)]
        if [[len(shape) for shape in side] for side in shapes] != [[4], [2]]:
            raise BadInput(f"{path}: expected one input [1, height, width, channels] and one output [1, classes], received {shapes[0]} and {shapes[1]}")
        return contents, shapes[0][0][1:]
    model = load_model(path)
    check_classifier(model, str(path))
    if values == "-1..1" and takes_pixels(graph.calls(model)):
        raise BadInput(f"--values: expected 0..255, as {path} begins with a rescaling of pixels, received {values}; give --values=0..255")
    return Teacher(str(path), values=values).prepared(model), tuple(model.input_shape[1:])


def _size(name, shape, asked, test):
    """(height, width) of the images for a model of this input shape."""
    if asked and any(side not in (None, asked) for side in shape[:2]):
        raise BadInput(f"--image_size: expected {shape[0]}, which {name} takes, or none, received {asked}")
    if asked:
        return asked, asked
    stored = shape if all(shape[:2]) else test.image_shape()
    return tuple(side or own for side, own in zip(shape[:2], stored[:2], strict=True))


def main():
    options, _ = commandline.parse(["python -m kerakd.evaluate", *sys.argv[1:]], Options)
    paths, dataset, data_dir, synthetic, expected = _found(options)
    loaded = {name: _loaded(path, options.values) for name, path in paths.items()}
    largest = max(options.image_size or shape[0] or 0 for _, shape in loaded.values())
    test = data.load(dataset, data_dir or None, synthetic, largest)[1]
    data.check_classes(expected, test)
    found, sizes = {}, {name: _size(name, shape, options.image_size, test) for name, (_, shape) in loaded.items()}
    for name, (_, shape) in loaded.items():
        channels = test.image_shape(sizes[name][0])[2]
        if shape[2] != channels:
            raise BadInput(f"{name}: expected images of {channels} channels, as {test.name} has, received a model of {shape[2]}")
    width = max(map(len, loaded))
    print(f"{test.name}, {test.count} images\n{'':{width}}  accuracy    top-5      nll  calibration error")
    for name, (predictor, _) in loaded.items():
        batches = data.testing(test, size=sizes[name])
        logits, labels = scores.predictions(predictor, batches), scores.labels_of(batches)
        if logits.shape[-1] != test.classes:
            raise BadInput(f"{name}: expected logits of {test.classes} classes, as {test.name} has, received {logits.shape[-1]}")
        counts = scores.confusion(logits, labels, test.classes)
        found[name] = {**scores.summary(logits, labels), "confusion": counts.tolist()}
        figures = [found[name][key] for key in ("accuracy", "top5", "nll", "calibration_error")]
        print(f"{name:{width}}  " + "  ".join(f"{value:8.4f}"[:8].rjust(8) for value in figures), flush=True)
    names = test.names or [str(label) for label in range(test.classes)]
    for times, true, taken in scores.worst(counts, names):
        print(f"  {name}: {true} taken for {taken} {times} time{'s' * (times > 1)}")
    if options.picture:
        write_aside(options.picture, lambda aside: figure_of(counts, names, f"{name}: accuracy {found[name]['accuracy']:.4f}").savefig(aside, dpi=120))
    if options.json:
        write_json(options.json, {"dataset": test.name, "images": test.count, "models": found})
    for path in filter(None, (options.picture, options.json)):
        print(f"wrote {path}")


if __name__ == "__main__":
    commandline.program(main)

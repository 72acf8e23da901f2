"""How much a network loses where one layer alone is lowered, and which widths fit a budget of bytes.

python -m kerakd.sensitivity --run=runs/cifar10 --budget=100000

The float student of the run is lowered in one kernel at a time, without training, on images of the training split: the test
images are not to choose anything. Losses of layers are taken to add up (their KL divergences from the float network, which
show what a few thousand images' accuracy can't), and layers go down where that costs least for each byte that it saves. The
accuracy that is predicted is that of all chosen widths together, measured, before training; training gives back much of it.
"""

import dataclasses
import math
import re
import sys

from kerakd import quiet  # first: it keeps TensorFlow quiet

with quiet.native_chatter_off():
    import numpy as np
    import tqdm

    from kerakd import commandline, data, graph, scores
    from kerakd import config as config_module
    from kerakd.calibration import fit_weight_intervals
    from kerakd.commandline import flag
    from kerakd.errors import BadInput
    from kerakd.files import write_aside, write_json
    from kerakd.modelfile import load_model
    from kerakd.quantizers import Interval, parse
    from kerakd.rewrite import simplify
    from kerakd.rundir import RunDirectory, kind_of
    from kerakd.scheme import Scheme, quantize
    from kerakd.teachers import is_file
    from kerakd.wrapper import kernel_name


class Kernels:
    """The kernels of a float network, and the network with any choice of them lowered.

    Args:
        net: a functional tf_keras model of logits. outer: bits of the first and the last kernel, which are not to be chosen; 0: float.
        batches: (images, labels) on which it is judged.
        quantizer: an Interval, lowered to each width.
    Raises: BadInput for a network without a kernel between its first and its last.
    """

    def __init__(self, net, outer, batches, quantizer):
        self.net, self.batches, self.labels, self.quantizer = net, batches, scores.labels_of(batches), quantizer
        weighted = [call.layer for call in graph.calls(simplify(net)[0]) if kernel_name(call.layer)]
        self.sizes = {layer.name: int(np.prod(getattr(layer, kernel_name(layer)).shape)) for layer in weighted}
        ends = (weighted[0].name, weighted[-1].name)
        self.fixed = {name: width for name, width in zip(ends, outer, strict=True) if width}
        self.names = [name for name in self.sizes if name not in ends]
        if not self.names:
            raise BadInput(f"--run: expected a network with a kernel between its first and its last, received {net.name!r} with {len(self.sizes)}")
        self.logits = scores.predictions(net, batches)

    def judge(self, widths):
        """{"accuracy", "kl": mean KL(float || lowered), nats} with {layer: bits}; the others stay float."""
        rules = {f"^{re.escape(name)}$": Scheme(dataclasses.replace(self.quantizer, bits=width), None) for name, width in widths.items()}
        lowered = quantize(self.net, Scheme(None, None, first=None, last=None, overrides=rules))
        fit_weight_intervals(lowered, "mse")
        logits = scores.predictions(lowered, self.batches)
        return {"accuracy": scores.top1(logits, self.labels), "kl": scores.agreement(logits, self.logits)["kl"]}

    def bytes(self, widths):
        """Of all kernels at {layer: bits}, 32 where there is none."""
        return sum(size * widths.get(name, 32) for name, size in self.sizes.items()) / 8


def losses(kernels, widths, shown=False):
    """{layer: {bits: `Kernels.judge` of that layer alone at them}}, the first and the last layer left out. shown: a bar of progress."""
    asked = [(name, width) for name in kernels.names for width in sorted(widths)]
    found = {name: {} for name in kernels.names}
    for name, width in tqdm.tqdm(asked, desc="layers", disable=not shown, leave=False):
        found[name][width] = kernels.judge({name: width})
    return found


def check_budget(narrowest, sizes, budget, fixed_bytes=0.0):
    """Raises BadInput unless kernels fit a budget at their narrowest, {layer: bits}; the other arguments are those of `fit`."""
    least = fixed_bytes + sum(sizes[name] * width for name, width in narrowest.items()) / 8
    if least > budget:
        raise BadInput(
            f"--budget: expected at least {math.ceil(least)} bytes, which the narrowest kernels take, received {budget}; give more, or smaller --widths"
        )


def fit(found, sizes, budget, fixed_bytes=0.0):
    """Widths whose kernels fit a budget.

    Args: found: as `losses`. sizes: {layer: weights}. budget: bytes. fixed_bytes: of what is not to be chosen.
    Returns: {layer: bits}: all at the widest; then, step by step, the layer goes down whose KL rises least for each byte saved.
    Raises: BadInput where the narrowest do not fit.
    """
    widths = {name: sorted(one) for name, one in found.items()}
    check_budget({name: one[0] for name, one in widths.items()}, sizes, budget, fixed_bytes)
    chosen = {name: one[-1] for name, one in widths.items()}

    def total():
        return fixed_bytes + sum(sizes[name] * width for name, width in chosen.items()) / 8

    while total() > budget:
        steps = []
        for name, width in chosen.items():
            for lower in widths[name][: widths[name].index(width)]:
                saved = sizes[name] * (width - lower) / 8
                steps.append(((found[name][lower]["kl"] - found[name][width]["kl"]) / saved, name, lower))
        _, name, lower = min(steps)
        chosen[name] = lower
    return chosen


def figure_of(found, accuracy):
    """The accuracy that each layer costs at each width: a group of bars a layer.

    Args: found: as `losses`. accuracy: of the float network.
    Returns: a matplotlib Figure.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    names, widths = list(found), sorted(next(iter(found.values())))
    figure = Figure(figsize=(max(7, 1.5 + 0.35 * len(names)), 5), layout="constrained")
    axes = figure.subplots()
    for k, width in enumerate(widths):
        lost = [100 * (accuracy - found[name][width]["accuracy"]) for name in names]
        places = np.arange(len(names)) + (k - (len(widths) - 1) / 2) * 0.8 / len(widths)
        axes.bar(places, lost, 0.8 / len(widths), color=colormaps["viridis"](k / max(len(widths) - 1, 1)), label=f"{width} bits")
    axes.axhline(0, color="0.2", linewidth=0.8)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set(title=f"Accuracy lost where one kernel is lowered, without training (float: {accuracy:.4f})", ylabel="percentage points")
    axes.margins(x=0.01)
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return figure


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of this program. Raises: BadInput for values that can't be."""

    run: str = flag("", "the directory of a complete run with a float student")
    widths: str = flag("2,3,4,8", "bits that kernels are tried at")
    images: int = flag(2000, "how many training images to measure on")
    budget: int = flag(0, "bytes that all kernels may take; 0: none")
    trained: str = flag("", "the directory of a run with the widths that were proposed: its accuracy is printed beside the prediction")
    picture: str = flag("", "a .png of what each layer loses")
    json: str = flag("", "a file for all figures")
    overwrite: bool = flag(False, "replace files that exist")

    def __post_init__(self):
        if not self.run:
            raise BadInput("--run: expected the directory of a run, received none; give --run=DIR")
        if not re.fullmatch(r"[2-8](,[2-8])*", self.widths) or len(set(self.bits)) < len(self.bits):
            raise BadInput(f"--widths: expected numbers from 2 to 8, each once, as 2,4,8, received {self.widths!r}")
        for name, least in (("images", 1), ("budget", 0)):
            if getattr(self, name) < least:
                raise BadInput(f"--{name}: expected {least} or more, received {getattr(self, name)}")
        for name, path, kind in (("picture", self.picture, ".png"), ("json", self.json, ".json")):
            if path:
                commandline.check_new(name, path, (kind,), self.overwrite)

    @property
    def bits(self):
        return [int(width) for width in self.widths.split(",")]


def _float_net(directory, config):
    if directory.has_model("float"):
        return directory.load_model("float")
    if is_file(config.student) and config.from_float():
        return load_model(config.student)
    raise BadInput(f"--run: expected a run with a float student, received {directory.path} without; train one with --float_epochs, or from a file")


def _batches(net, config, count, classes):
    """[(images, labels)] of `count` images of a run's training split, whole: the first in the order of its first epoch."""
    train, _ = data.load(config.dataset, config.data_dir or None, config.synthetic, config.largest())
    data.check_classes(classes, train)
    count = min(count, train.count)
    views = data.training(train, view="whole", size=tuple(net.input_shape[1:3]), batch_size=count, seed=config.seed, epochs=1)
    images, labels = next(views.take(1).as_numpy_iterator())
    return [(images[at : at + 128], labels[at : at + 128]) for at in range(0, count, 128)]


def _table(found, sizes, accuracy):
    """The lines of what each kernel costs at each width, in percentage points."""
    room, widths = max(map(len, found)), list(next(iter(found.values())))
    head = f"{'':{room}}   weights" + "".join(f"{width:>7} b" for width in widths)
    rows = (f"{name:{room}}{sizes[name]:>10}" + "".join(f"{100 * (accuracy - row[width]['accuracy']):9.2f}" for width in widths) for name, row in found.items())
    return "\n".join([head, *rows])


def overrides(widths, weights, activations):
    """The flags that ask for {layer: bits}: of --weights an interval's options stay, of another quantizer nothing does."""
    head, *options = weights.split(",")
    kept = [option for option in options if head.startswith("interval") and not option.startswith("bits=")]
    return [f"--override=^{re.escape(name)}$={','.join([f'interval:{width}', *kept])}/{activations}" for name, width in widths.items()]


def _proposal(kernels, found, budget, outer, config):
    """Widths that fit, {"bytes", "widths", "predicted", "overrides"}."""
    chosen = fit(found, kernels.sizes, budget, outer)
    whole = {**kernels.fixed, **chosen}
    flags = overrides(chosen, config.weights, config.activations)
    return {"bytes": kernels.bytes(whole), "widths": chosen, "predicted": kernels.judge(whole)["accuracy"], "overrides": flags}


def main():
    options, _ = commandline.parse(["python -m kerakd.sensitivity", *sys.argv[1:]], Options)
    directory = RunDirectory(options.run)
    directory.results()
    config = config_module.read(directory.path / "flags.cfg")
    if options.budget and config.override:
        raise BadInput(f"--budget: expected a run without --override, whose patterns would come first, received {', '.join(config.override)}")
    trained = RunDirectory(options.trained, flag="trained").results() if options.trained else {}
    net = _float_net(directory, config)
    batches = _batches(net, config, options.images, directory.data().get("classes"))
    kernels = Kernels(net, (config.first, config.last), batches, parse(config.weights) if config.weights.startswith("interval") else Interval(8))
    outer = kernels.bytes({**kernels.fixed, **dict.fromkeys(kernels.names, 0)})
    if options.budget:  # before the minutes that the losses take
        check_budget(dict.fromkeys(kernels.names, min(options.bits)), kernels.sizes, options.budget, outer)
    accuracy, count = scores.top1(kernels.logits, kernels.labels), len(kernels.labels)
    found = losses(kernels, options.bits, shown=sys.stderr.isatty())
    print(f"{net.name}: accuracy {accuracy:.4f} in float on {count} training images; lost where one kernel is lowered, in percentage points")
    print(_table(found, kernels.sizes, accuracy))
    said = {"accuracy": accuracy, "images": count, "layers": {name: {"weights": kernels.sizes[name], **row} for name, row in found.items()}}
    if options.budget:
        said["budget"] = proposal = _proposal(kernels, found, options.budget, outer, config)
        taken, predicted = proposal["bytes"], proposal["predicted"]
        print(f"\nfor {options.budget} bytes: {taken:.0f} bytes of kernels, predicted accuracy {predicted:.4f} before training")
        print(" ".join(f"'{text}'" for text in proposal["overrides"]))
    taught = [value for name, value in trained.items() if kind_of(name) == "taught"]
    if taught:
        said["trained"] = float(np.mean(taught))
        print(f"{options.trained}: trained, accuracy {said['trained']:.4f} on test images")
    if options.picture:
        write_aside(options.picture, lambda aside: figure_of(found, accuracy).savefig(aside, dpi=120))
    if options.json:
        write_json(options.json, said)
    for path in filter(None, (options.picture, options.json)):
        print(f"wrote {path}")


if __name__ == "__main__":
    commandline.program(main)

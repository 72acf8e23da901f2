"""The proof: a file against the student that it was made from."""

import dataclasses

import numpy as np

from kerakd import graph
from kerakd.errors import BadInput
from kerakd.kinds import is_transparent
from kerakd.tflite import flatfile, layers, reference, runtime
from kerakd.tflite.emulator import NotModelled, emulate
from kerakd.tflite.fold import fold

LAYER_IMAGES = 32  # on which the tensors inside are compared


@dataclasses.dataclass(frozen=True)
class Proof:
    """What `verify` found; true where the file is exact. Shares are of 1.

    codes_equal: weight codes of the file equal to the trained ones.
    logits_equal: logits of the file equal to the snapped Keras copy's; logits is how many there were.
    top1_equal: images on which both name the same class; images is how many there were.
    max_steps: the largest difference of a logit, in steps of the output's grid.
    float_tensors: float tensors in the file besides its input and output.
    foreign_kernels: kernels of layers that the scheme leaves float, which the converter rounded to 8 bits of its own choice: nobody trained their codes.
    not_delegated: operators that XNNPACK did not take.
    container: "int8" or "int4", what was found in the file.
    moved_steps: the largest move of a logit from the float32 student that was given to the snapped copy, in steps.
    moved_top1: images on which the float32 student and the snapped copy name the same class.
    dead_channels: constants in the file: channels of kernels or gammas of 0, too small for any input to move the output by a step, or beyond its grid.
    emulated_equal: logits of the file equal to what NumPy computes by its runtime's arithmetic (`emulate`); None where an operator is not modelled.
    layers: a LayerProof for each quantized tensor, on the first layer_images images, in the order of the network: the file's values
        against what the copy makes of the file's own values before it, so that a difference counts where it arises.
    """

    codes_equal: float
    logits_equal: float
    top1_equal: float
    max_steps: int
    float_tensors: list
    foreign_kernels: list
    not_delegated: list
    container: str
    logits: int
    images: int
    moved_steps: float
    moved_top1: float
    dead_channels: int
    emulated_equal: float | None
    layers: list
    layer_images: int

    @property
    def exact(self):
        """Whether every code, every logit, every top-1 and every tensor inside is equal, no tensor is float and no kernel the converter's own."""
        equal = [self.codes_equal, self.logits_equal, self.top1_equal, *(layer.equal for layer in self.layers)]
        return all(share == 1 for share in equal) and not self.float_tensors and not self.foreign_kernels

    def __bool__(self):
        return self.exact

    def __str__(self):
        equal = round(self.logits_equal * self.logits)
        modelled = "not modelled" if self.emulated_equal is None else f"{self.emulated_equal:.2%} of the logits as the runtime's arithmetic in NumPy gives them"
        lines = {
            f"{self.container} container": f"{equal} of {self.logits} logits of {self.images} images equal ({self.logits_equal:.2%}), "
            f"at most {self.max_steps} steps apart, top-1 equal on {self.top1_equal:.2%}",
            "kernels": f"{self.codes_equal:.2%} of the codes equal; {self._foreign()}{len(self.float_tensors)} float tensors in the file; "
            f"outside XNNPACK: {', '.join(sorted(set(self.not_delegated))) or 'nothing'}",
            "inside": self._inside(),
            "emulation": modelled,
            "rounding": f"for integers moved the student's logits by at most {self.moved_steps:.1f} steps, top-1 kept on {self.moved_top1:.2%}"
            + f"; channels that became constants: {self.dead_channels}" * (self.dead_channels > 0),
        }
        return "\n".join(f"{name:16} {text}" for name, text in lines.items())

    def _foreign(self):
        names = ", ".join(self.foreign_kernels)
        return f"float ones that the converter rounded to 8 bits: {names}; " if names else ""

    def _inside(self):
        differing = [layer for layer in self.layers if layer.equal < 1]
        first = f", the first other one {differing[0]}" if differing else ""
        return f"{len(self.layers) - len(differing)} of {len(self.layers)} tensors equal in every value on {self.layer_images} images{first}"

    def table(self):
        """A line for each quantized tensor, in the order of the network."""
        return "\n".join([f"tensors inside, {self.layer_images} images", *(f"  {layer}" for layer in self.layers)])


@dataclasses.dataclass(frozen=True)
class Settling:
    """How far `settle` moved a student. steps: the largest move of a logit, in steps of the output's grid. top1: the share of images, of
    which there were `images`, whose class it kept.
    """

    steps: float
    top1: float
    images: int

    def __str__(self):
        return f"the trained student's logits are moved by at most {self.steps:.1f} steps, top-1 kept on {self.top1:.2%} of {self.images} images"


def settling(trained, settled, images):
    """The Settling of a student as training left it and its copy from `settle`, on images [n, ...] as they take them. Raises: BadInput as `verify`."""
    images, shape = np.asarray(images, np.float32), tuple(settled.inputs[0].shape[1:])
    if images.shape[1:] != shape or not len(images):
        raise BadInput(f"images: expected at least one of shape {shape}, as the student takes them, received an array of shape {images.shape}")
    before, after = (reference.logits(model, images) for model in (trained, settled))
    step = _output_step(settled, fold(settled))
    return Settling(float(np.abs(before - after).max() / step), float(np.mean(before.argmax(-1) == after.argmax(-1))), len(images))


def verify(model, data, images):
    """Compares a file with the student: what it holds, and what it computes on real images.

    The reference is `snap(model)`, the Keras copy with biases and steps rounded as integers need it, in float64; how far
    that rounding moved the float32 student is part of the proof. Of a student from `settle` little is left to move: `settling` says
    how far that moved what was trained.

    Args:
        model: the student that `data` was made from.
        data: bytes from `to_tflite` or `unpack`.
        images: [n, ...] float, as the model takes them.
    Returns: a Proof.
    Raises: BadInput for a file that is not TFLite, images of another shape, a model that is not a calibrated student.
    """
    logits = runtime.run(data, images)  # first: it refuses what is no file, and what are no images for it
    images = np.asarray(images, np.float32)
    if images.shape[1:] != tuple(model.inputs[0].shape[1:]):
        raise BadInput(f"data: expected a file of this model, which takes {tuple(model.inputs[0].shape[1:])}, received one that takes {images.shape[1:]}")
    if logits.shape[1:] != tuple(model.outputs[0].shape[1:]):
        raise BadInput(f"data: expected a file of this model, which answers {tuple(model.outputs[0].shape[1:])}, received one of {logits.shape[1:]}")
    folded, found = _closest_fold(model, data)
    snapped = reference.snap(model, folded)
    expected = reference.logits(snapped, images)
    trained = reference.logits(model, images)
    step = _output_step(model, folded)
    apart = np.abs(np.rint(logits / step) - np.rint(expected / step))
    census = flatfile.census(data)
    return Proof(
        codes_equal=float(np.average([m.codes_equal for m in found], weights=[folded.linears[m.name].codes.size for m in found])),
        logits_equal=float(np.mean(apart == 0)),
        top1_equal=float(np.mean(logits.argmax(-1) == expected.argmax(-1))),
        max_steps=int(apart.max()),
        float_tensors=census["float_tensors"],
        foreign_kernels=flatfile.foreign_kernels(data, found),
        not_delegated=runtime.not_delegated(data),
        container="int4" if set(census["weights"]) & set(flatfile.PACKED) else "int8",
        logits=apart.size,
        images=len(images),
        moved_steps=float(np.abs(trained - expected).max() / step),
        moved_top1=float(np.mean(trained.argmax(-1) == expected.argmax(-1))),
        dead_channels=sum(len(linear.dead) for linear in folded.linears.values()),
        emulated_equal=_emulated_equal(data, images, logits),
        layers=layers.compare(snapped, folded, data, images[:LAYER_IMAGES]),
        layer_images=min(len(images), LAYER_IMAGES),
    )


def _emulated_equal(data, images, logits):
    try:
        return float(np.mean(emulate(data, images) == logits))
    except NotModelled:
        return None


def _closest_fold(model, data):
    """(Folded, matches) of the container whose folding the file holds: an unpacked small file is int8 outside and int4's inside."""
    tried = []
    for container in ("int8", "int4"):
        folded = fold(model, container)
        found = flatfile.matches(data, folded.linears)
        tried.append((sum(m.equal for m in found), folded, found))
        if all(m.equal for m in found):
            break
    _, folded, found = max(tried, key=lambda t: t[0])
    return folded, found


def _output_step(model, folded):
    call = next(call for call in graph.calls(model) if call.outputs[0].is_output)
    while is_transparent(call.layer):
        call = call.inputs[0].call
    if call.layer.name in folded.joined:
        return folded.joined[call.layer.name].step
    if call.layer.name not in folded.grids:
        raise BadInput(f"model: expected quantized logits, received the output of {call.layer.name!r}, which is float")
    return folded.grids[call.layer.name].step

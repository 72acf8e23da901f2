"""The tensors inside a file against those of the student's copy, each made of the file's own before it: a difference counts where it arises."""

import dataclasses
import itertools

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kerakd import graph
from kerakd.tflite import flatfile, runtime

HELD = 2**22  # values of all tensors together that are compared at once
PAIRED_ON = 4  # images, as of a blank one many tensors are alike


@dataclasses.dataclass(frozen=True)
class LayerProof:
    """A quantized tensor of the student in the file.

    layer: name of its quantizer. tensor: that of the file, empty if none has its grid and size. values: how many were compared.
    equal: share of them. max_steps: the largest difference.
    """

    layer: str
    tensor: str
    values: int
    equal: float
    max_steps: int

    def __str__(self):
        if not self.tensor:
            return f"{self.layer}: no tensor of the file has its grid and size"
        return f"{self.layer}: {self.equal:.4%} of {self.values} values equal, at most {self.max_steps} steps apart"


def compare(snapped, folded, data, images):
    """A LayerProof for each quantized tensor of the student.

    The file's tensors are made its outputs, so it is the runtime's own kernels that are looked at. What the copy makes of a tensor it
    makes of the file's values of the quantized tensors before it: a layer that rounds otherwise does not have those behind it
    counted too, and where none differs, the whole is equal. Of tensors with one grid and size, the one that agrees best on a
    few images is taken; of several that do, the first that is no other's.

    Args:
        snapped: `reference.snap(model, folded)`; its layers are called anew.
        folded: `fold(model, container)` of the file's container.
        data: the file's bytes.
        images: [n, ...] float.
    """
    model = flatfile.read(data)
    inside = _computed(model)
    tensors = [model.subgraphs[0].tensors[index] for index in inside]
    file = flatfile.with_outputs(data, inside)
    size = sum(output.size for output in next(runtime.each(file, images[:1])))
    few = images[np.linspace(0, len(images) - 1, max(1, min(PAIRED_ON, len(images), HELD // size))).astype(int)]
    names, values, pairs = _paired(snapped, folded, few, tensors, [np.stack(outputs) for outputs in zip(*runtime.each(file, few))])
    grids = [folded.grids[name] for name in names]
    layerwise = _layerwise(snapped, folded, pairs)
    equal, steps, sizes = (np.zeros(len(names), int) for _ in range(3))
    at_once, runs = max(1, HELD // size), runtime.each(file, images)
    for begin in range(0, len(images), at_once):
        found = [np.stack(outputs) for outputs in zip(*itertools.islice(runs, at_once))]
        theirs = [grid.real(found[pair]).reshape(-1, *value.shape[1:]) for pair, grid, value in zip(pairs, grids, values, strict=True) if pair is not None]
        made = layerwise([images[begin : begin + at_once].astype(np.float64), *theirs], training=False)
        for k, (grid, pair, value) in enumerate(zip(grids, pairs, made if isinstance(made, list) else [made], strict=True)):
            wanted = _codes(value, grid)
            sizes[k] += wanted.size
            if pair is not None:
                apart = np.abs(found[pair].reshape(-1).astype(int) - wanted)
                equal[k] += np.sum(apart == 0)
                steps[k] = max(steps[k], apart.max())
    return [
        LayerProof(name, "" if pair is None else tensors[pair].name.decode(), int(size), float(count / size), int(most))
        for name, pair, size, count, most in zip(names, pairs, sizes, equal, steps, strict=True)
    ]


def _paired(snapped, folded, images, tensors, found):
    """(names of the quantizers in the order of their calls, what each makes of the file's values before it, the index of each one's tensor or None).

    Tensors of a concatenation share a quantizer. images: [n, ...]; found: the file's values of `tensors` on them.
    """
    names, values, pairs = [], [], []

    def call(layer, args, kwargs):
        value = layer(*args, **({**kwargs, "training": False} if layer._expects_training_arg else kwargs))
        if layer.name not in folded.grids:
            return value
        grid = folded.grids[layer.name]
        pair = _best(_codes(value, grid), grid, tensors, found, pairs)
        names.append(layer.name)
        values.append(value)
        pairs.append(pair)
        return value if pair is None else tf.constant(grid.real(found[pair]).reshape(value.shape))

    images = tf.constant(images, tf.float64)
    graph.walk(snapped, tf.nest.map_structure(lambda _: images, snapped._nested_inputs), call)
    return names, values, pairs


def _layerwise(snapped, folded, pairs):
    """A model: [images, the file's values of each quantized tensor that has a pair] -> each such tensor as made of those before it."""
    inputs, made, paired = [keras.Input(snapped.inputs[0].shape[1:], dtype="float64")], [], iter(pairs)

    def call(layer, args, kwargs):
        value = layer(*args, **kwargs)
        if layer.name not in folded.grids:
            return value
        made.append(value)
        if next(paired) is None:
            return value
        inputs.append(keras.Input(value.shape[1:], dtype="float64"))
        return inputs[-1]

    graph.walk(snapped, tf.nest.map_structure(lambda _: inputs[0], snapped._nested_inputs), call)
    return keras.Model(inputs, made)


def _computed(model):
    """Indices of the integer tensors that operators make, and of the input: the converter leaves some in the file that nothing makes."""
    graph = model.subgraphs[0]
    made = sorted({int(index) for indices in (graph.inputs, *(operator.outputs for operator in graph.operators)) for index in indices})
    return [index for index in made if flatfile.TYPES[graph.tensors[index].type] == "INT8" and graph.tensors[index].quantization.scale is not None]


def _codes(values, grid):
    return np.rint(values.numpy().reshape(-1) / grid.step).astype(int) + grid.zero


def _best(wanted, grid, tensors, found, taken):
    """Index of the tensor with this grid and size that holds most of the codes `wanted`, one that is not `taken` before others, or None."""
    fitting = [
        k
        for k, tensor in enumerate(tensors)
        if found[k].size == wanted.size and tensor.quantization.zeroPoint[0] == grid.zero and np.isclose(tensor.quantization.scale[0], grid.step, rtol=1e-6)
    ]
    return max(fitting, key=lambda k: (np.mean(found[k].reshape(-1) == wanted), k not in taken), default=None)

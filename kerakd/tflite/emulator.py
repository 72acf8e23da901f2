"""What a phone or a microcontroller will compute, without one: a TFLite file run in NumPy by the arithmetic of one runtime."""

import dataclasses
import types

import numpy as np
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

from kerakd.errors import BadInput, first_line
from kerakd.tflite import arithmetic, flatfile
from kerakd.tflite.arithmetic import clamp
from kerakd.tflite.logistic import sigmoid_micro

BATCH = 64  # images at once
RELUS = {schema.ActivationFunctionType.RELU: (0, None), schema.ActivationFunctionType.RELU6: (0, 6), schema.ActivationFunctionType.RELU_N1_TO_1: (-1, 1)}

_SHARED = {"mean": arithmetic.mean_builtin, "pool": arithmetic.pool_builtin}
KERNELS = {  # runtime: its arithmetic, operator by operator
    "xnnpack": types.SimpleNamespace(
        conv=arithmetic.requantize_xnnpack,
        depthwise=arithmetic.requantize_xnnpack,
        dense=arithmetic.requantize_xnnpack,
        add=arithmetic.add_xnnpack,
        mul=arithmetic.mul_xnnpack,
        mean=arithmetic.mean_xnnpack,
        mean_kept=arithmetic.mean_xnnpack,
        rescale=arithmetic.rescale_xnnpack,
        quantize=arithmetic.quantize_xnnpack,
        sigmoid=arithmetic.sigmoid_xnnpack,
    ),
    "builtin": types.SimpleNamespace(
        **_SHARED,
        conv=arithmetic.requantize_builtin,
        depthwise=arithmetic.requantize_depthwise_builtin,
        dense=arithmetic.requantize_dense_builtin,
        add=arithmetic.add_builtin,
        mul=arithmetic.mul_builtin,
        mean_kept=arithmetic.mean_kept_builtin,
        rescale=arithmetic.rescale_builtin,
        quantize=arithmetic.quantize_builtin,
        sigmoid=arithmetic.sigmoid_builtin,
    ),
    "micro": types.SimpleNamespace(
        **_SHARED,
        conv=arithmetic.requantize_micro,
        depthwise=arithmetic.requantize_micro,
        dense=arithmetic.requantize_micro,
        add=arithmetic.add_micro,
        mul=arithmetic.mul_micro,
        mean_kept=arithmetic.mean_builtin,
        rescale=arithmetic.rescale_micro,
        quantize=arithmetic.quantize_micro,
        sigmoid=sigmoid_micro,
    ),
}


class NotModelled(BadInput):
    """The file holds an operator whose arithmetic is not here."""


@dataclasses.dataclass
class Tensor:
    """A tensor of the file. scales, zero: of its grid. value: its codes, [images, ...] or a constant."""

    name: str
    type: str
    shape: tuple
    scales: np.ndarray | None
    zero: int
    value: np.ndarray | None = None

    @property
    def grid(self):
        return self.scales[0], self.zero

    @property
    def centred(self):
        """The codes less the zero point, float64: products and sums of them are exact."""
        return self.value.astype(np.float64) - self.zero


@dataclasses.dataclass
class Operation:
    """An operator of the file with its tensors, and the arithmetic that computes it."""

    name: str
    options: object
    inputs: list
    output: Tensor
    arithmetic: types.SimpleNamespace

    @property
    def clamped(self):
        """(lowest, highest) code that the fused activation leaves."""
        low, high = RELUS.get(self.options.fusedActivationFunction, (None, None))
        scale, zero = self.output.grid

        def code(real, otherwise):
            return otherwise if real is None else zero + int(np.rint(real / scale))

        return max(-128, code(low, -128)), min(127, code(high, 127))


def _real(images, source):
    """The images. Raises: BadInput for integers that could be the file's codes as well as pixels."""
    dtype = np.asarray(images).dtype if hasattr(images, "dtype") else np.dtype(float)
    if flatfile.TYPES[source.type] != "FLOAT32" and dtype.kind in "iu":
        raise BadInput(
            f"images: expected float ones, as the Keras model takes them, received {dtype}, which may be codes or pixels; give codes as "
            "(codes.astype(float) - zero_point) * scale, by those in the file, and pixels as floats"
        )
    return images


def emulate(data, images, kernels="xnnpack"):
    """The logits of an integer file as a runtime computes them, to the bit, without that runtime.

    Args:
        data: bytes of a TFLite file from `to_tflite` or `unpack`.
        images: [n, ...] float, as the Keras model takes them, also where the file takes codes.
        kernels: "xnnpack", LiteRT's default on x86-64 and ARM, where operators that XNNPACK does not take run in LiteRT's own
            kernels; "builtin", all in LiteRT's own kernels, with one thread on x86-64; or "micro", TFLite Micro's reference kernels.
    Returns: float32 [n, classes].
    Raises: BadInput for what is not a TFLite file, images of another shape, integers for a file of integers: codes or pixels; NotModelled (a BadInput)
        for a float operator or one not known here.
    """
    if kernels not in KERNELS:
        raise BadInput(f"kernels: expected one of {', '.join(KERNELS)}, received {kernels!r}")
    model = flatfile.read(data)
    try:
        source, target = (model.subgraphs[0].tensors[ends[0]] for ends in (model.subgraphs[0].inputs, model.subgraphs[0].outputs))
        taken = flatfile.as_input(_real(images, source), source)
        outputs = [_run(model, taken[i : i + BATCH], kernels) for i in range(0, len(taken), BATCH)]
    except BadInput:
        raise
    except (ValueError, IndexError, TypeError, AttributeError, tf.errors.OpError) as error:
        raise BadInput(
            f"file: expected operators that fit their tensors, received one that is damaged, or unknown here ({first_line(error)}); copy it again"
        ) from error
    return flatfile.as_real(np.concatenate(outputs), target)


def _run(model, images, kernels):
    """The values of the file's output on a batch of what its input takes."""
    graph = model.subgraphs[0]
    tensors = [_tensor(model, tensor) for tensor in graph.tensors]
    tensors[graph.inputs[0]].value = images
    for operator in graph.operators:
        name, output = flatfile.op_name(model, operator), tensors[operator.outputs[0]]
        inputs = [tensors[i] if i >= 0 else None for i in operator.inputs]
        if name not in COMPUTED or (name not in ENDS and output.type == "FLOAT32"):
            raise NotModelled(f"file: expected integer operators among {', '.join(COMPUTED)}, received {name} for {output.name}")
        operation = Operation(name, operator.builtinOptions, inputs, output, None)
        operation.arithmetic = KERNELS[_kernels_of(operation, kernels)]
        output.value = COMPUTED[name](operation)
    return tensors[graph.outputs[0]].value


def _tensor(model, tensor):
    grid = tensor.quantization
    known = grid is not None and grid.scale is not None and len(grid.scale)
    scales = np.asarray(grid.scale, np.float32) if known else None
    zero = int(grid.zeroPoint[0]) if known else 0
    shape = () if tensor.shape is None else tuple(map(int, tensor.shape))
    return Tensor(tensor.name.decode(), flatfile.TYPES[tensor.type], shape, scales, zero, flatfile.values(model, tensor))


def _kernels_of(operation, kernels):
    """The kernels that compute an operator: XNNPACK leaves some to LiteRT's own, and those take grouped convolutions as TFLite Micro does."""
    if kernels == "xnnpack" and _taken(operation):
        return "xnnpack"
    grouped = operation.name == "CONV_2D" and operation.inputs[1].shape[-1] != operation.inputs[0].shape[-1]
    return "micro" if kernels == "micro" or grouped else "builtin"


def _taken(operation):
    """Whether XNNPACK takes the operator (tensorflow/lite/delegates/xnnpack, as LiteRT 2.3 has it)."""
    name, scale = operation.name, None if operation.output.scales is None else operation.output.scales[0]
    if name in flatfile.WEIGHTED:
        kernel = operation.inputs[1]
        few_bits = {"INT4": kernel.shape[-1] % 2 == 0, "INT2": kernel.shape[-1] % 4 == 0 and len(kernel.scales) == kernel.shape[0]}
        return kernel.type == "INT8" or (name == "FULLY_CONNECTED" and few_bits.get(kernel.type, False))
    if name == "ADD":
        return all(2.0**-10 <= x.scales[0] / scale < 2.0**8 for x in operation.inputs)
    if name == "MUL":
        return 2.0**-16 <= operation.inputs[0].scales[0] * operation.inputs[1].scales[0] / scale < 2.0**8
    if name == "QUANTIZE" and operation.inputs[0].type == "INT8" == operation.output.type:
        return 2.0**-8 <= operation.inputs[0].scales[0] / scale <= 2.0**7
    if name == "STRIDED_SLICE":
        return not operation.options.shrinkAxisMask and (operation.inputs[3].value == 1).all()
    return name != "AVERAGE_POOL_2D"


# The operators


def _conv(op):
    x, kernel = op.inputs[:2]
    strides, dilations = _steps(op.options)
    weights = np.moveaxis(kernel.value, 0, -1).astype(np.float64)  # HWIO
    padded = _padded(x.centred, op.options, kernel.shape[1:3], strides, dilations)
    return _requantized(op, tf.nn.conv2d(padded, weights, strides, "VALID", dilations=dilations).numpy(), op.arithmetic.conv)


def _depthwise(op):
    x, kernel = op.inputs[:2]
    strides, dilations = _steps(op.options)
    weights = kernel.value.reshape(*kernel.shape[1:3], x.shape[-1], -1).astype(np.float64)
    padded = _padded(x.centred, op.options, kernel.shape[1:3], strides, dilations)
    every = tf.nn.depthwise_conv2d(padded, weights, [1, 1, 1, 1], "VALID", dilations=dilations).numpy()  # strides have to be equal there
    return _requantized(op, every[:, :: strides[0], :: strides[1]], op.arithmetic.depthwise)


def _dense(op):
    x, kernel = op.inputs[:2]
    acc = x.centred.reshape(len(x.value), -1, kernel.shape[1]) @ kernel.value.astype(np.float64).T
    return _requantized(op, acc.reshape(_batch_of(op, x)), op.arithmetic.dense)


def _requantized(op, acc, requantize):
    x, kernel, bias = (*op.inputs, None)[:3]
    acc = acc.astype(np.int64) + (0 if bias is None else bias.value)
    return requantize(acc, x.scales[0], kernel.scales, *op.output.grid, *op.clamped)


def _steps(options):
    return (options.strideH, options.strideW), (options.dilationHFactor, options.dilationWFactor)


def _padded(x, options, size, strides, dilations=(1, 1), value=0.0):
    """Images with the padding that the operator sees, the larger half behind where it is odd."""
    if options.padding == schema.Padding.VALID:
        return x
    widths = []
    for side, kernel, stride, dilation in zip(x.shape[1:3], size, strides, dilations, strict=True):
        total = max(0, (-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side)
        widths.append((total // 2, total - total // 2))
    return np.pad(x, [(0, 0), *widths, (0, 0)], constant_values=value)


def _batch_of(op, x):
    """The output's shape for as many images as `x` holds; its first axis may be more than the images, as of pixels that are taken one by one."""
    return (len(x.value) * op.output.shape[0] // x.shape[0], *op.output.shape[1:])


def _add(op):
    return _of_pairs(op, op.arithmetic.add)


def _mul(op):
    return _of_pairs(op, op.arithmetic.mul)


def _of_pairs(op, arithmetic_of):
    a, b = op.inputs
    codes = arithmetic_of(*_runs(a, b), a.grid, b.grid, op.output.grid, *op.clamped)
    return codes.reshape(len(codes), *op.output.shape[1:])


def _runs(a, b):
    """The values of both, image by image, with the trailing axes that are equal, or all 1 in one of them, as one: LiteRT's vectors go along it."""
    shapes = [x.shape[1:] if len(x.shape) == max(len(a.shape), len(b.shape)) else x.shape for x in (a, b)]
    rank = max(map(len, shapes))
    shapes = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    kinds = [None if p == q == 1 else "same" if p == q else "a" if p == 1 else "b" for p, q in zip(*shapes, strict=True)]
    last = next((kind for kind in reversed(kinds) if kind), "same")
    split = next((axis + 1 for axis in reversed(range(rank)) if kinds[axis] not in (None, last)), 0)
    images = [len(x.value) if len(x.value.shape) == len(x.shape) and x.value.shape[:1] != x.shape[:1] else 1 for x in (a, b)]
    return [x.value.reshape(count, *shape[:split], -1) for x, count, shape in zip((a, b), images, shapes, strict=True)]


def _mean(op):
    x, axes = op.inputs
    axes = tuple(sorted(int(axis) % len(x.shape) for axis in np.atleast_1d(axes.value)))
    count = int(np.prod([x.shape[axis] for axis in axes]))
    mean = op.arithmetic.mean_kept if op.options.keepDims and len(x.shape) == 4 and axes == (1, 2) else op.arithmetic.mean
    return mean(x.value.astype(np.int64).sum(axes), count, x.grid, op.output.grid).reshape(_batch_of(op, x))


def _windows(op, value):
    """(the windows of a pooling [..., h, w], how many of each window's pixels are images')."""
    (x,), options = op.inputs, op.options
    size, strides = (options.filterHeight, options.filterWidth), (options.strideH, options.strideW)

    def cut(images, outside):
        padded = _padded(images, options, size, strides, value=outside)
        return np.lib.stride_tricks.sliding_window_view(padded, size, (1, 2))[:, :: strides[0], :: strides[1]]

    return cut(x.value.astype(np.int64), value), cut(np.ones((1, *x.shape[1:3], 1), np.int64), 0).sum((-2, -1))


def _average_pool(op):
    windows, counts = _windows(op, 0)
    return op.arithmetic.pool(windows.sum((-2, -1)), counts, *op.clamped)


def _max_pool(op):
    windows, _ = _windows(op, -128)
    return clamp(windows.max((-2, -1)), *op.clamped)


def _reduce_max(op):
    x, axes = op.inputs
    return x.value.max(tuple(int(axis) for axis in np.atleast_1d(axes.value))).reshape(_batch_of(op, x))


def _quantize(op):
    (x,) = op.inputs
    if x.type == "FLOAT32":
        return op.arithmetic.quantize(x.value.reshape(len(x.value), -1), op.output.grid).reshape(x.value.shape)
    if "UINT8" in (x.type, op.output.type):  # at the file's ends: the same grid, its codes moved by 128
        return (x.value.astype(np.int64) - x.zero + op.output.zero).astype(flatfile.NUMPY[op.output.type])
    return op.arithmetic.rescale(x.value.reshape(len(x.value), -1), x.grid, op.output.grid).reshape(x.value.shape)


def _dequantize(op):
    (x,) = op.inputs
    return ((x.value.astype(np.int64) - x.zero) * x.scales[0]).astype(np.float32)


def _sigmoid(op):
    (x,) = op.inputs
    return op.arithmetic.sigmoid(x.value, x.grid)


def _pad(op):
    x, widths = op.inputs[:2]
    return np.pad(x.value, [tuple(map(int, width)) for width in widths.value], constant_values=np.int8(op.output.zero))


def _concatenation(op):
    axis = op.options.axis
    return np.concatenate([x.value for x in op.inputs], axis if axis >= 0 else axis + len(op.output.shape))


def _reshape(op):
    return op.inputs[0].value.reshape(_batch_of(op, op.inputs[0]))


def _transpose(op):
    return op.inputs[0].value.transpose([int(axis) for axis in op.inputs[1].value])


def _strided_slice(op):
    x, begin, end, strides = op.inputs
    masks = op.options
    if masks.ellipsisMask or masks.newAxisMask or masks.shrinkAxisMask & 1 or masks.offset:
        raise NotModelled(f"file: expected a slice of every image, received STRIDED_SLICE for {op.output.name} that drops some or adds an axis")
    cut = [slice(None)]  # every image
    for axis in range(1, len(x.shape)):
        ends = [None if mask >> axis & 1 else int(value.value[axis]) for mask, value in ((masks.beginMask, begin), (masks.endMask, end))]
        cut.append(int(begin.value[axis]) if masks.shrinkAxisMask >> axis & 1 else slice(*ends, int(strides.value[axis])))
    return x.value[tuple(cut)]


def _depth_to_space(op):
    x, b = op.inputs[0].value, op.options.blockSize
    n, height, width, depth = x.shape
    return x.reshape(n, height, width, b, b, depth // b**2).transpose(0, 1, 3, 2, 4, 5).reshape(n, height * b, width * b, depth // b**2)


def _space_to_depth(op):
    x, b = op.inputs[0].value, op.options.blockSize
    n, height, width, depth = x.shape
    return x.reshape(n, height // b, b, width // b, b, depth).transpose(0, 1, 3, 2, 4, 5).reshape(n, height // b, width // b, depth * b**2)


ENDS = ("QUANTIZE", "DEQUANTIZE")  # the operators that have a float side
COMPUTED = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _dense,
    "ADD": _add,
    "MUL": _mul,
    "MEAN": _mean,
    "AVERAGE_POOL_2D": _average_pool,
    "MAX_POOL_2D": _max_pool,
    "REDUCE_MAX": _reduce_max,
    "QUANTIZE": _quantize,
    "DEQUANTIZE": _dequantize,
    "LOGISTIC": _sigmoid,
    "PAD": _pad,
    "CONCATENATION": _concatenation,
    "RESHAPE": _reshape,
    "EXPAND_DIMS": _reshape,
    "SQUEEZE": _reshape,
    "TRANSPOSE": _transpose,
    "STRIDED_SLICE": _strided_slice,
    "DEPTH_TO_SPACE": _depth_to_space,
    "SPACE_TO_DEPTH": _space_to_depth,
}

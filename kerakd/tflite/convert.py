"""A student to TFLite bytes: stock fake-quantization ops on folded constants, the stock converter, then a look at what it made."""

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorflow.lite.python.convert_phase import ConverterError

from kerakd import graph
from kerakd.chatter import native_chatter_off
from kerakd.errors import BadInput, first_line
from kerakd.kinds import OPERATORS, is_exact, operator
from kerakd.tflite import flatfile
from kerakd.tflite.fold import fold
from kerakd.tflite.lint import ENDS, check
from kerakd.wrapper import QuantizedActivation

L = keras.layers
IO_TYPES = {"float32": tf.float32, "int8": tf.int8, "uint8": tf.uint8}
CONTAINERS = ("int8", "int4")
# operations that have one grid before and behind them in a file, though they make other values, and functions that may hold such
AVERAGES = ("AvgPool", "ResizeBilinear", "PartitionedCall", "StatefulPartitionedCall")


def to_tflite(model, container="int8", io="float32"):
    """The integer TFLite file of a student. Pure: no file is read or written, the model is not changed.

    Args:
        model: a calibrated student from `kerakd.quantize`.
        container: "int8", every weight stored in 8 bits: all of it runs in XNNPACK; or "int4", the weights that fit
            4 bits stored in 4, or 2: the smaller file. Both hold the same trained codes; biases are finer in the first.
        io: type of the file's input and output. With "int8" and "uint8" the caller quantizes by the scale and zero point in the file.
    Returns: bytes.
    Kernels that the scheme leaves float are stored in 8 bits of the converter's choice; `lint` and the proof name them.
    Raises: BadInput for another container or io, what `lint` says is refused, a model that is not calibrated or has NaN;
        RuntimeError if the converter's file is not what was folded.
    """
    if container not in CONTAINERS:
        raise BadInput(f"container: expected one of {', '.join(CONTAINERS)}, received {container!r}")
    if io not in IO_TYPES:
        raise BadInput(f"io: expected one of {', '.join(IO_TYPES)}, received {io!r}")
    graph.check_functional(model)
    check(model, graph.calls(model), ENDS)
    folded = fold(model, container)
    data = _convert(model, folded, IO_TYPES[io])
    wrong = [found.name for found in flatfile.matches(data, folded.linears) if not found.equal]
    if wrong:
        raise RuntimeError(f"the converter changed the codes, steps or bias of {', '.join(wrong)}; please report this model")
    return data if container == "int8" else flatfile.pack(data, {name: linear for name, linear in folded.linears.items() if linear.bits < 8})


def _convert(model, folded, io):
    constants = {name: _constant_layer(linear) for name, linear in folded.linears.items()}

    def lower(layer, args, kwargs):
        if layer.name in folded.absorbed:
            return args[0]
        if layer.name in folded.linears:
            return constants[layer.name](args[0])
        if isinstance(layer, QuantizedActivation):
            return _on_grid(tf.nn.relu(args[0]) if layer.relu else args[0], folded.grids[layer.name])
        if layer.name in folded.joined:  # said again, as the converter does not carry a grid across a concatenation
            return _on_grid(_in_float32(layer)(*args, **kwargs), folded.joined[layer.name])
        if layer._expects_training_arg:
            kwargs = {**kwargs, "training": False}
        if is_exact(layer):
            return _in_float32(layer)(*args, **kwargs)
        traced = tf.compat.v1.get_default_graph()
        before = len(traced.get_operations())
        args, kwargs = tf.nest.map_structure(_kept_float, (args, kwargs))  # a copied model gives all but the first by name
        outputs = _softplus(*args, **kwargs) if _is_softplus(layer) else _in_float32(layer)(*args, **kwargs)
        averages = any(operation.type in AVERAGES for operation in traced.get_operations()[before:])
        return tf.nest.map_structure(_kept_float, outputs) if averages else outputs

    (source,) = model.inputs
    function = tf.function(lambda images: graph.walk(model, images, lower))
    with native_chatter_off():
        concrete = _for_one_image(function, tf.TensorSpec([1, *source.shape[1:]], tf.float32, name=source.node.layer.name))
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = converter.inference_output_type = io
        try:
            return converter.convert()
        except ConverterError as error:
            raise BadInput(f"model: expected operators that TFLite has, received an error of its converter ({first_line(error)})") from error


def _for_one_image(function, spec):
    """The function traced for a batch of one. Raises: BadInput where the model has another batch size built in."""
    remedy = "use -1 for the batch in what reshapes"
    try:
        concrete = function.get_concrete_function(spec)
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        raise BadInput(f"model: expected one that takes any number of images, received one that fails on a single one; {remedy}") from error
    if concrete.outputs[0].shape[0] != 1:
        raise BadInput(f"model: expected one row of logits for one image, received {tuple(concrete.outputs[0].shape)}; {remedy}")
    return concrete


def _kept_float(x):
    """x, read or made by a layer that stays float: without this the converter makes integers of means inside it, rounded to the grid of x, and
    has AVERAGES read x on the grid of what they make, which clips it."""
    return x + 1e-30 if tf.is_tensor(x) and x.dtype.is_floating else x


def _is_softplus(layer):
    return (isinstance(layer, OPERATORS) and operator(layer) == "softplus") or getattr(layer, "activation", None) is keras.activations.softplus


def _softplus(features, name=None):
    """As TensorFlow computes it; the converter makes log(exp(x) + 1) of it, which is 88 from 88 on."""
    return tf.nn.relu(features) + tf.math.log(tf.exp(-tf.abs(features)) + 1.0)


def _in_float32(layer):
    """The layer, or a copy of one that computes in less."""
    if layer.compute_dtype == "float32":
        return layer
    with tf.init_scope():
        copy = graph.clone_layer(layer, dtype="float32")
        if layer.weights:  # another may be called on several shapes, and has no one to be built for
            copy.build(layer.input_shape)
            copy.set_weights(layer.get_weights())
    return copy


def _on_grid(x, grid):
    """The stock op for an activation's grid: its range at 8 bits, whose top code is 127."""
    return tf.quantization.fake_quant_with_min_max_vars(x, -(grid.zero + 128) * grid.step, (127 - grid.zero) * grid.step, num_bits=8)


def _constant_layer(linear):
    """A function of the layer's input: the layer with fake-quantized constants for kernel and bias."""
    layer = graph.clone_layer(linear.template, use_bias=True, dtype="float32")
    limits = (linear.steps * 127).astype(np.float32)
    kernel = (linear.codes.reshape(-1, len(limits)) * linear.steps).astype(np.float32)
    bias = tf.constant(linear.bias * linear.steps * linear.x.step, tf.float32)
    per_channel = tf.quantization.fake_quant_with_min_max_vars_per_channel
    shape = linear.codes.shape

    def quantized(rank4):
        return per_channel(tf.constant(kernel.reshape(rank4)), -limits, limits, num_bits=8, narrow_range=True)

    if isinstance(layer, L.Dense):
        return _dense(layer, kernel, bias, limits, quantized)
    layer.build(_input_shape(layer, shape))
    depthwise = isinstance(layer, L.DepthwiseConv2D)

    def call(x):
        value = tf.reshape(quantized([*shape[:2], 1, len(limits)]), shape) if depthwise else quantized(shape)
        object.__setattr__(layer, "depthwise_kernel" if depthwise else "kernel", value)
        object.__setattr__(layer, "bias", bias)
        if linear.shape is None:
            return layer.call(x)
        return tf.reshape(layer.call(tf.reshape(x, [-1, *linear.image])), [-1, *linear.shape])

    return call


def _input_shape(layer, kernel_shape):
    groups = getattr(layer, "groups", 1)
    return tf.TensorShape([None] * (layer.rank + 1) + [kernel_shape[-2] * groups])


def _dense(layer, kernel, bias, limits, quantized):
    """One step for all units: FULLY_CONNECTED. One for each unit: a 1x1 convolution, as the converter has no such dense layer."""
    if (limits == limits[0]).all():
        fake = tf.quantization.fake_quant_with_min_max_vars

        def value():
            return fake(tf.constant(kernel), -limits[0], limits[0], num_bits=8, narrow_range=True)

        return lambda x: layer.activation(tf.linalg.matmul(x, value()) + bias)

    def call(x):
        pixels = tf.reshape(x, [-1, 1, 1, kernel.shape[0]])
        y = tf.nn.conv2d(pixels, quantized([1, 1, *kernel.shape]), 1, "VALID") + bias
        return layer.activation(tf.reshape(y, [-1, *x.shape[1:-1], kernel.shape[1]]))

    return call

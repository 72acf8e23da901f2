"""Calibration: every interval of a student set from its weights and from a few hundred images."""

import contextlib

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import QuantizeWrapper

from kerakd import graph
from kerakd.errors import BadInput, first_line
from kerakd.kinds import is_transparent, keeps_pixels
from kerakd.wrapper import QuantizedActivation, interval_variables

SMALLEST_OF_KERNELS, SMALLEST_OF_TENSORS = 1e-6, 2e-6  # intervals; a file has no tensor whose 255 steps are less than 1e-6


def calibrate(model, images, rule="max"):
    """Sets every interval of `model` in one pass, layer after layer, each on what the quantized layers before it give.

    A BatchNorm that was never trained normalizes by the images' own statistics here, as its first training step will.

    Args:
        model: from `quantize`, or from tfmot's `quantize_apply` with quantizers of kerakd. One without intervals, as a float one, stays as it is.
        images: [n, ...], as the model takes them (a list for several inputs); a few hundred will do.
        rule: what the interval I is: "max" the largest |x| (QKD's min-max), "percentile" the 99.9th percentile of |x|,
            or the largest where that is 0, "mse" the I with the least squared error of quantizing x; 2e-6 and more, of kernels 1e-6. A
            tensor that is 0 on all images gets 1, or the bound of its ReLU if that is less, a kernel of zeros 1 / sqrt(fan-in).
    Raises: BadInput for another rule; a dataset in the place of images; images of another shape, of integers, none, with NaN or infinity, or below 0
        where the model begins with a rescaling of pixels.
    """
    if not isinstance(rule, str) or rule not in RULES:
        raise BadInput(f"rule: expected one of {', '.join(RULES)}, received {rule!r}")
    images = _checked(images, model)
    fit_weight_intervals(model, rule)
    seen = {}  # of a quantizer that several tensors share: the intervals so far, the widest counts

    def fit(quantizer, x, variables, bound=None):
        _fit(quantizer, x, variables, rule, bound=bound)
        for variable in (variables or {}).values():
            variable.assign(tf.maximum(variable, seen.get(variable.ref(), variable)))
            seen[variable.ref()] = tf.identity(variable)

    def run(layer, args, kwargs):
        if is_transparent(layer) and layer._expects_training_arg:  # augmentation would train unless it is told
            kwargs = {"training": False, **kwargs}
        if isinstance(layer, QuantizedActivation):
            fit(layer.quantizer, _seen(layer, args[0]), layer.quantizer_variables, layer.bound)
        elif isinstance(layer, QuantizeWrapper):
            with _told(layer, fit):
                return layer(*args, **kwargs)
        elif isinstance(layer, keras.layers.BatchNormalization) and _untouched(layer) and kwargs.get("training") is not False:
            return _with_batch_statistics(layer, args)
        elif isinstance(layer, QuantizeLayer):  # tfmot's own, at the input; its range is learned only while training
            layer(*args, training=True)
        return layer(*args, **kwargs)

    graph.walk(model, images, run)


def _checked(images, model):
    """The images as tensors. Raises: BadInput for what the model does not take."""
    if isinstance(images, tf.data.Dataset):
        raise BadInput("images: expected an array [n, ...], received a dataset; give a batch of it: images, labels = next(iter(dataset))")
    try:
        images = tf.nest.map_structure(tf.convert_to_tensor, images)
        batches = model._flatten_to_reference_inputs(images)
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(f"images: expected an array [n, ...] for each input, received {type(images).__name__} ({first_line(error)})") from error
    expected = [tf.TensorShape([None, *source.shape[1:]]) for source in model.inputs]
    received = [batch.shape for batch in batches]
    if len(expected) != len(received) or not all(shape.is_compatible_with(wanted) and shape[0] for shape, wanted in zip(received, expected)):
        raise BadInput(f"images: expected {', '.join(map(str, expected))}, one image or more, received {', '.join(map(str, received))}")
    for batch in batches:
        if not batch.dtype.is_floating:
            raise BadInput(f"images: expected float images as the model takes them, received {batch.dtype.name}; cast and scale them first")
        if not bool(tf.reduce_all(tf.math.is_finite(batch))):
            raise BadInput("images: expected finite values, received NaN or infinity; look for a division by zero in the preprocessing")
    for source, batch in zip(model.inputs, batches, strict=True):
        least = float(tf.reduce_min(batch))
        if least < 0 and any(_quantizes_pixels(node.layer) for node in source.node.layer.outbound_nodes):
            raise BadInput(f"images: expected pixels, 0 and more, as the model begins with a rescaling of them, received {least:g}; rescale before the model")
    return images


def _quantizes_pixels(layer):
    """Whether it is the quantizer of an input that the plan took for pixels."""
    return isinstance(layer, QuantizedActivation) and layer.quantizer.levels()[0] == 0 and any(isinstance(one, keras.layers.Rescaling) for one in _read(layer))


def _read(layer):
    """The layers that read its output, past those that keep pixels, or quantize them."""
    for node in layer.outbound_nodes:
        if keeps_pixels(node.layer) or isinstance(node.layer, QuantizedActivation):
            yield from _read(node.layer)
        else:
            yield node.layer


def _untouched(norm):
    """Whether a BatchNorm has the statistics that it was born with: its first training step will see another scale than inference does."""
    return not np.any(norm.moving_mean) and bool(np.all(norm.moving_variance.numpy() == 1))


def _with_batch_statistics(norm, args):
    momentum, norm.momentum = norm.momentum, 1.0  # nothing of the batch goes into the moving statistics
    try:
        return norm(*args, training=True)
    finally:
        norm.momentum = momentum


def _seen(layer, x):
    """x behind the ReLU that `layer` stands for."""
    if not layer.relu:
        return x
    return tf.nn.relu(x) if layer.bound is None else tf.clip_by_value(x, 0.0, layer.bound)


@contextlib.contextmanager
def _told(wrapper, fit):
    """Has tfmot's wrapper call `fit(quantizer, x, variables)` before it quantizes an activation inside its layer or the layer's output."""

    def telling(quantizer):
        def quantized(x, training, weights):
            fit(quantizer, x, weights)
            return quantizer(x, training, weights)

        return quantized

    activations = [(activation, activation.quantizer) for activation in wrapper._quantize_activations]
    outputs, wrapper._output_quantizers = wrapper._output_quantizers, [telling(quantizer) for quantizer in wrapper._output_quantizers]
    for activation, quantizer in activations:
        activation.quantizer = telling(quantizer)
    try:
        yield
    finally:
        wrapper._output_quantizers = outputs
        for activation, quantizer in activations:
            activation.quantizer = quantizer


def fit_weight_intervals(model, rule):
    """Sets the intervals of the kernels alone, each from its kernel, by a key of RULES."""
    for layer in model._flatten_layers():
        if isinstance(layer, QuantizeWrapper):
            for kernel, quantizer, variables in layer._weight_vars:
                kernel = tf.convert_to_tensor(kernel)
                _fit(quantizer, quantizer.view(kernel) if hasattr(quantizer, "view") else kernel, variables, rule, of_kernel=True)


def _fit(quantizer, x, variables, rule, of_kernel=False, bound=None):
    """Sets the interval in `variables`, if there is one to be set, to what `rule` says of x, which nowhere is more than `bound`."""
    if "interval" not in (variables or {}) or not hasattr(quantizer, "calibrated"):
        return
    x = tf.cast(x, tf.float32)
    channels = variables["interval"].shape.rank == 1
    rows = tf.reshape(x, [-1, variables["interval"].shape[0] if channels else 1])  # [values, intervals]
    interval = RULES[rule](rows, quantizer, variables["interval"].shape)
    # all zeros, as behind a gamma of 0, say nothing of what is to come; a kernel of zeros is about to become an ordinary one
    unknown = float(x.shape.num_elements() // x.shape[-1]) ** -0.5 if of_kernel else min(1.0, bound or 1.0)
    least = SMALLEST_OF_KERNELS if of_kernel else SMALLEST_OF_TENSORS
    interval = tf.where(_maximum(rows, quantizer, None) > 0, tf.maximum(interval, least), unknown)
    for name, value in quantizer.calibrated(interval).items():
        variables[name].assign(tf.reshape(value, variables[name].shape))


def _maximum(rows, quantizer, shape):
    return tf.reduce_max(tf.abs(rows), axis=0)


def _percentile(rows, quantizer, shape):
    found = tf.constant(np.percentile(np.abs(rows), 99.9, axis=0), tf.float32)
    return tf.where(found > 0, found, _maximum(rows, quantizer, shape))  # of a sparse tensor the percentile says nothing


def _least_squares(rows, quantizer, shape):
    quantizer = getattr(quantizer, "quantizer", quantizer)  # rows are of its view already
    best = largest = _maximum(rows, quantizer, shape)
    least = tf.fill(tf.shape(best), float("inf"))
    for share in np.linspace(0.02, 1.0, 50, dtype=np.float32):
        interval = tf.maximum(largest * share, SMALLEST_OF_KERNELS)
        error = tf.reduce_mean(tf.math.squared_difference(quantizer.quantize(rows, {"interval": tf.reshape(interval, shape)}), rows), axis=0)
        best, least = tf.where(error < least, interval, best), tf.minimum(error, least)
    return best


RULES = {"max": _maximum, "percentile": _percentile, "mse": _least_squares}


def uncalibrated(model):
    """The names of the layers of `model` whose interval is not set."""
    return [layer.name for layer, _, variable in interval_variables(model) if not bool(tf.reduce_all(tf.math.is_finite(variable)))]

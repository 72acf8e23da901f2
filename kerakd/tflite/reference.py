"""The student as its integer file has it: a float64 Keras copy that computes the file's codes, and a student settled on them."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kerakd import graph
from kerakd.kinds import OPERATORS, is_transparent
from kerakd.quantizers import Interval
from kerakd.tflite.fold import fold
from kerakd.wrapper import QuantizedActivation, QuantizedLayer

L = keras.layers


def snap(model, folded=None):
    """A float64 Keras copy of a quantized model with everything rounded as its integer file needs it.

    BatchNorms are folded into kernels of code * step, biases lie on their accumulator's grid, and what one unit of the
    accumulator is worth is exactly the runtime's float32 multiplier. The caller's model is not touched.

    Args:
        model: a calibrated student.
        folded: what `fold(model)` gave, if it is at hand.
    Returns: a functional model, float64 images -> float64 logits, each logit code * step of the file's output.
    """
    folded = folded or fold(model)
    made = {}  # layer name: (its copy, the copy's weights); a layer that is called twice has one copy

    def copy(layer, args, kwargs):
        if layer.name in folded.absorbed:
            return args[0]
        if layer.name not in made:
            made[layer.name] = _float64_copy(layer, folded)
        clone, linear = made[layer.name][0], folded.linears.get(layer.name)
        if clone.compute_dtype == "float64":
            value = clone(*args, **kwargs)
        else:
            value = _cast("float64", clone(*_cast(clone.compute_dtype, args), **_cast(clone.compute_dtype, kwargs)))
        return value if linear is None or linear.largest <= 2**24 else Accumulated(linear.unit)(value)

    snapped = graph.rebuild(model, copy, dtype="float64")
    for clone, values in made.values():
        clone.set_weights(values)
    return snapped


class Accumulated(L.Layer):
    """Sums beyond 2^24 as XNNPACK multiplies them: rounded to float32, in units of the accumulator."""

    def __init__(self, unit, **kwargs):
        super().__init__(**{"dtype": "float64", **kwargs})
        self.unit = np.asarray(unit)

    def call(self, x):
        units = tf.cast(tf.cast(tf.round(x / self.unit), tf.float32), tf.float64)
        return units * self.unit

    def get_config(self):
        return {**super().get_config(), "unit": self.unit.tolist()}


def _float64_copy(layer, folded):
    """(a fresh float64 layer, the weights that it is to have)."""
    if layer.name in folded.linears:
        linear = folded.linears[layer.name]
        return linear.layer(dtype="float64"), [_scaled(linear.codes, linear.unit / linear.x.step), linear.bias * linear.unit]
    if isinstance(layer, QuantizedActivation):
        grid, quantizer = folded.grids[layer.name], _as_interval(layer.quantizer)
        return QuantizedActivation(quantizer, name=layer.name, dtype="float64"), [np.float64(grid.step * quantizer.levels()[1])]
    foreign = (isinstance(layer, OPERATORS) and not is_transparent(layer)) or not type(layer).__module__.startswith("tf_keras.")
    return graph.clone_layer(layer, dtype="float32" if foreign else "float64"), layer.get_weights()


def _cast(dtype, values):
    """Float tensors among `values` in another dtype: a user's own layer, or an operator with constants in it, takes what it was built for."""
    return tf.nest.map_structure(lambda x: tf.cast(x, dtype) if hasattr(x, "dtype") and hasattr(x, "shape") and tf.as_dtype(x.dtype).is_floating else x, values)


def settle(model):
    """A copy of a student whose own variables are those of its int8 file: the last step of a training.

    Activation intervals take the file's steps, gamma and beta of each folded BatchNorm, or a layer's own bias, its
    multipliers and biases. What is left between the copy's float32 answers and the file is float32's own noise. A layer
    without such variables is left as it is.

    Args:
        model: a calibrated student; it is not touched.
    Returns: a student of the same structure.
    Raises: BadInput as `to_tflite`.
    """
    folded = fold(model)
    settled = keras.models.clone_model(model)
    settled.set_weights(model.get_weights())
    by_name = {layer.name: layer for layer in settled._flatten_layers()}
    for name, grid in folded.grids.items():
        variables = by_name[name].quantizer_variables
        if variables:
            variables["interval"].assign(grid.step * by_name[name].quantizer.levels()[1])
    for call in graph.calls(settled):
        linear = folded.linears.get(call.layer.name)
        if isinstance(call.layer, QuantizedLayer):
            ((kernel, quantizer, variables),) = call.layer.kernels
            step = quantizer.step(keras.backend.constant(kernel), variables).numpy().astype(np.float64)
            inner, reader = call.layer.layer, call.sole_reader
            if reader and reader.layer.name in folded.absorbed:
                _settle_norm(reader.layer, linear, step, inner.bias.numpy() if inner.use_bias else 0.0)
            elif inner.use_bias:
                inner.bias.assign(linear.bias * linear.unit * linear.excess)
        elif linear and isinstance(call.layer, L.BatchNormalization):
            _settle_norm(call.layer, linear, 1.0, 0.0)
    return settled


def _settle_norm(norm, linear, step, before):
    """Gives a BatchNorm on x + before, x made with codes of `step`, the multipliers and biases of `linear`."""
    deviation = np.sqrt(norm.moving_variance.numpy().astype(np.float64) + norm.epsilon)
    unit = linear.unit if norm.scale else linear.unit * linear.excess
    gain = 1 / deviation
    if norm.scale:
        sign = np.where(norm.gamma.numpy() < 0, -1, 1)
        gain = sign * unit * linear.headroom / (linear.x.step * np.maximum(step, 1e-30))
        gain[linear.dead] = 0
        norm.gamma.assign(gain * deviation)
    if norm.center:
        norm.beta.assign(linear.bias * unit + (norm.moving_mean.numpy() - np.float64(before)) * gain)


def _scaled(codes, scale):
    return (codes.reshape(-1, len(scale)) * scale).reshape(codes.shape)


def _as_interval(quantizer):
    """The Interval of the same grid: fixed grids have no step that could be set."""
    low, high = quantizer.levels()
    return Interval(quantizer.width, signed=low < 0, narrow=low == -high)


def logits(model, images, batch_size=64):
    """The outputs of a model, computed in its own precision, as NumPy [n, classes]."""
    batches = (tf.cast(images[i : i + batch_size], model.inputs[0].dtype) for i in range(0, len(images), batch_size))
    return np.concatenate([tf.nest.flatten(model(batch, training=False))[0].numpy() for batch in batches])

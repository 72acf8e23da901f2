"""The student as its integer file has it: a float64 Keras copy that computes the file's codes, and a student settled on them."""

import numpy as np
import tf_keras as keras

from kerakd import graph
from kerakd.quantizers import Interval
from kerakd.tflite.fold import fold
from kerakd.wrapper import QuantizedActivation, QuantizedLayer


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
    weights = {}

    def copy(layer, args, kwargs):
        name = layer.name
        if name in folded.absorbed:
            return args[0]
        if isinstance(layer, QuantizedLayer):
            linear = folded.linears[name]
            clone = graph.clone_layer(layer.layer, use_bias=True, dtype="float64")
            scale = linear.unit / linear.x.step
            weights[name] = clone, [_scaled(linear.codes, scale), linear.bias * linear.unit]
        elif isinstance(layer, QuantizedActivation):
            grid = folded.grids[name]
            clone = QuantizedActivation(_as_interval(layer.quantizer), name=name, dtype="float64")
            weights[name] = clone, [np.float64(grid.step * clone.quantizer.levels()[1])]
        else:
            clone = graph.clone_layer(layer, dtype="float64")
            weights[name] = clone, layer.get_weights()
        return clone(*args, **kwargs)

    snapped = graph.rebuild(model, copy, dtype="float64")
    for clone, values in weights.values():
        clone.set_weights(values)
    return snapped


def settle(model):
    """A copy of a student whose own variables are those of its int8 file: the last step of a training.

    Activation intervals take the file's steps, gamma and beta of each folded BatchNorm, or a layer's own bias, its
    multipliers and biases. What is left between the copy's float32 answers and the file is float32's own noise. A layer
    without such variables is left as it is.

    Args:
        model: a calibrated student; it is not touched.
    Returns: a student of the same structure.
    """
    folded = fold(model)
    settled = keras.models.clone_model(model)
    settled.set_weights(model.get_weights())
    by_name = {layer.name: layer for layer in settled.layers}
    for name, grid in folded.grids.items():
        variables = by_name[name].quantizer_variables
        if variables:
            variables["interval"].assign(grid.step * by_name[name].quantizer.levels()[1])
    for call in graph.calls(settled):
        if isinstance(call.layer, QuantizedLayer):
            _settle_linear(call, folded)
    return settled


def _settle_linear(call, folded):
    linear, wrapper = folded.linears[call.layer.name], call.layer
    bias = linear.bias * linear.unit
    norm = call.sole_reader.layer if call.sole_reader and call.sole_reader.layer.name in folded.absorbed else None
    if norm is None:
        if wrapper.layer.use_bias:
            wrapper.layer.bias.assign(bias)
        return
    ((kernel, quantizer, variables),) = wrapper.kernels
    step = quantizer.step(keras.backend.constant(kernel), variables).numpy().astype(np.float64)
    deviation = np.sqrt(norm.moving_variance.numpy().astype(np.float64) + norm.epsilon)
    own = wrapper.layer.bias.numpy().astype(np.float64) if wrapper.layer.use_bias else 0.0
    sign = np.where(norm.gamma.numpy() < 0, -1, 1) if norm.scale else 1
    gain = sign * linear.unit * linear.headroom / (linear.x.step * np.maximum(step, 1e-30))
    gain[linear.dead] = 0
    if norm.scale:
        norm.gamma.assign(gain * deviation)
    if norm.center:
        norm.beta.assign(bias + (norm.moving_mean.numpy() - own) * (gain if norm.scale else 1 / deviation))


def _scaled(codes, scale):
    return (codes.reshape(-1, len(scale)) * scale).reshape(codes.shape)


def _as_interval(quantizer):
    """The Interval of the same grid: fixed grids have no step that could be set."""
    low, high = quantizer.levels()
    bits = int(high - low).bit_length()
    return Interval(bits, signed=low < 0, narrow=low == -high)


def logits(model, images, batch_size=64):
    """The outputs of a float64 model as NumPy float64, [n, classes]."""
    return model.predict(keras.backend.cast(images, "float64"), batch_size=batch_size, verbose=0)

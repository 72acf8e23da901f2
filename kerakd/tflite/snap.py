"""The snapped copy: a Keras model in float64 whose every code is the one that the integer file computes."""

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

"""What was trained, as NumPy: integer codes and scales of every weighted layer, for engines that are not TFLite."""

import numpy as np
import tf_keras as keras

from kerakd import graph
from kerakd.kinds import is_relu
from kerakd.tflite.fold import fold
from kerakd.wrapper import QuantizedLayer


def codes(model):
    """The trained integers of a student.

    Each layer with a kernel, its BatchNorm folded in, computes output codes
    clip(rint((sum(input_codes * codes[..., c]) * input_step * scales[c] + bias[c]) / output_step), output_low, output_high).

    Args:
        model: a calibrated student.
    Returns: {"LAYER/codes": int8 in the shape of the Keras kernel (average pooling and a BatchNorm on its own: a depthwise one),
        "LAYER/scales": float64 [C], "LAYER/bias": float64 [C] real values, "LAYER/input_step", "LAYER/output_step": float64,
        "LAYER/output_low", "LAYER/output_high": int64}, codes within the quantizer's levels.
    Raises: BadInput as `to_tflite`.
    """
    arrays, folded = {}, fold(model)
    for call in graph.calls(model):
        name, linear = call.layer.name, folded.linears.get(call.layer.name)
        if linear is None:
            continue
        low, high = _ends(call, linear)
        arrays |= {
            f"{name}/codes": (linear.codes // linear.headroom).astype(np.int8),
            f"{name}/scales": linear.steps * linear.headroom,
            f"{name}/bias": linear.bias * linear.steps * linear.x.step,
            f"{name}/input_step": np.float64(linear.x.step),
            f"{name}/output_step": np.float64(linear.y.step),
            f"{name}/output_low": np.int64(low),
            f"{name}/output_high": np.int64(high),
        }
    return arrays


def _ends(call, linear):
    """The lowest and highest code of the output: those of its grid, or of a ReLU's before a grid that other tensors share."""
    reader = call.sole_reader
    while reader is not None and isinstance(reader.layer, keras.layers.BatchNormalization):
        reader = reader.sole_reader
    if reader is None or not is_relu(reader.layer):
        return linear.y.low, linear.y.high
    bound = reader.layer.max_value
    return max(linear.y.low, 0), linear.y.high if bound is None else min(linear.y.high, int(np.rint(bound / linear.y.step)))


def ideal_bytes(model):
    """Bytes of all trained kernels at the widths of their codes, 2 bits for ternary ones. Raises: BadInput as `to_tflite`."""
    fold(model)
    kernels = [kernel for layer in model._flatten_layers() if isinstance(layer, QuantizedLayer) for kernel in layer.kernels]
    bits = sum(int(np.prod(variable.shape)) * quantizer.width for variable, quantizer, _ in kernels)
    return -(-bits // 8)

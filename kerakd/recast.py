"""The same network for other arithmetic: its layers' precision, and whose batch its BatchNorms normalize by."""

import tensorflow as tf
import tf_keras as keras

from kerakd import graph
from kerakd.kinds import computes, is_transparent
from kerakd.wrapper import QuantizedActivation, QuantizedLayer, kernel_name

L = keras.layers
NEAR = (L.GlobalAveragePooling2D, L.GlobalAveragePooling1D, L.AveragePooling2D, L.Add)
LIGHT = (QuantizedActivation, L.ReLU, L.Activation, L.ZeroPadding2D)  # reading and writing is what they cost


def recast(model, policy="float32", synchronized=False):
    """A copy of a functional model with the same weights; the variables are float32 whatever the layers compute in.

    From the last weighted layer on everything stays float32, and so are the logits: a soft loss compares small differences. So do
    quantizers, poolings and additions right before it: in 16 bits each value of a grid has an error of its own, and where no BatchNorm is
    between the grid and the logits, these add up to one side in its interval's gradient, a small difference of large sums (BUILD.md).
    On a CPU alone strided depthwise convolutions and a few others do as well, which are slower there in 16 bits (BUILD.md).
    Grids are computed in float32 in any case (`quantizers`).

    Args:
        model: a functional tf_keras model, float or quantized.
        policy: a Keras dtype policy: "float32", "mixed_bfloat16" or "mixed_float16".
        synchronized: whether BatchNorms normalize by the global batch under `tf.distribute`, rather than by a replica's part of it;
            False takes that from those that have it.
    Returns: a functional model; the caller's is not touched.
    """
    stay = _last_layers(model)
    if {device.device_type for device in tf.config.list_logical_devices()} == {"CPU"}:
        stay |= _slow_in_16_bits(model)

    def copy(layer):
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(layer, clone_function=copy)
        chosen = "float32" if layer.name in stay else policy
        return type(layer).from_config(_changed(layer.get_config(), type(layer).__name__, chosen, synchronized))

    made = copy(model)
    made.set_weights(model.get_weights())
    return made


def _changed(config, class_name, policy, synchronized):
    """A layer's configuration under another policy, and those of the layers inside it."""
    made = {key: _changed_inside(value, policy, synchronized) for key, value in config.items()}
    if "dtype" in made:
        made["dtype"] = policy
    if class_name == "BatchNormalization":
        made["synchronized"] = synchronized
    return made


def _changed_inside(value, policy, synchronized):
    if isinstance(value, dict) and {"class_name", "config"} <= set(value) and isinstance(value["config"], dict):
        return {**value, "config": _changed(value["config"], value["class_name"], policy, synchronized)}
    return value


def _last_layers(model):
    """The names of the layers from the last weighted one to the logits, and of the quantizers, poolings and additions right before it."""
    found = set()
    values = [(value, False) for call in graph.calls(model) for value in call.outputs if value.is_output]
    while values:
        value, before = values.pop()
        call = value.call
        if call is None or call.layer.name in found or (before and not _is_light(call)):
            continue
        found.add(call.layer.name)
        values.extend((value, before or isinstance(call.layer, QuantizedLayer) or kernel_name(call.layer) is not None) for value in call.inputs)
    return found


def _is_light(call):
    """Whether a call does little, for one reader, and may have another precision than what is around it."""
    light = isinstance(call.layer, QuantizedActivation) or is_transparent(call.layer) or computes(call.layer, *NEAR)
    return light and call.once and call.sole_reader is not None and call.sole_reader.casts


def _slow_in_16_bits(model):
    """The names of the layers that a CPU computes faster in float32.

    Those are strided depthwise convolutions, BatchNorms of a number of channels that is no multiple of 16, and what is beside them: as a cast
    between two layers reads and writes a large tensor, activations and padding before them, and BatchNorms and these behind them, do so too.
    A layer that is called twice does not, nor one whose output is read by what does not cast it.
    """
    calls = graph.calls(model)
    free = [call for call in calls if call.once and all(reader.casts for value in call.outputs for reader in value.readers)]
    found = [call for call in free if _is_slow(call.layer)]
    for call in free:
        if isinstance(call.layer, (L.BatchNormalization, *LIGHT)) and call.inputs[0].call in found:
            found.append(call)
    for call in reversed(free):
        readers = call.outputs[0].readers
        if isinstance(call.layer, LIGHT) and readers and all(reader in found for reader in readers):
            found.append(call)
    return {call.layer.name for call in found}


def _is_slow(layer):
    if isinstance(layer, L.BatchNormalization):
        return layer.fused and layer.moving_mean.shape[0] % 16 != 0
    inner = getattr(layer, "layer", layer)
    return isinstance(inner, L.DepthwiseConv2D) and max(inner.strides) > 1

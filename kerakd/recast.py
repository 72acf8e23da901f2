"""The same network for other arithmetic: its layers' precision, and whose batch its BatchNorms normalize by."""

import tensorflow as tf
import tf_keras as keras

from kerakd import graph
from kerakd.wrapper import QuantizedActivation, QuantizedLayer, kernel_name


def recast(model, policy="float32", synchronized=False):
    """A copy of a functional model with the same weights; the variables are float32 whatever the layers compute in.

    From the last weighted layer on everything stays float32, and so are the logits: a soft loss compares small differences.
    On a CPU alone depthwise convolutions and some of their neighbours do as well, which are slower there in 16 bits (BUILD.md).
    Grids are computed in float32 in any case (`quantizers`).

    Args:
        policy: a Keras dtype policy: "float32", "mixed_bfloat16" or "mixed_float16".
        synchronized: whether BatchNorms normalize by the global batch under `tf.distribute`, rather than by a replica's part of it.
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
    """The names of the layers from the last weighted one to the logits."""
    found = set()
    values = [value for call in graph.calls(model) for value in call.outputs if value.is_output]
    while values:
        call = values.pop().call
        if call is not None and call.layer.name not in found:
            found.add(call.layer.name)
            if not isinstance(call.layer, QuantizedLayer) and kernel_name(call.layer) is None:
                values.extend(call.inputs)
    return found


def _slow_in_16_bits(model):
    """The names of the layers that a CPU computes faster in float32: depthwise convolutions, BatchNorms of a number of channels that is no
    multiple of 16, and their neighbours without a kernel, as a cast between two layers reads and writes a large tensor.
    """
    calls = graph.calls(model)
    found = {call.layer.name for call in calls if _is_slow(call.layer) and _is_cast_after(call)}
    for call in calls:
        made = [value.call is not None and value.call.layer.name in found for value in call.inputs]
        if made and all(made) and (isinstance(call.layer, keras.layers.BatchNormalization) or _goes_along(call.layer)) and _is_cast_after(call):
            found.add(call.layer.name)
    for call in reversed(calls):
        readers = [reader.layer.name for value in call.outputs for reader in value.readers]
        if _goes_along(call.layer) and readers and found.issuperset(readers):
            found.add(call.layer.name)
    return found


def _is_slow(layer):
    if isinstance(layer, keras.layers.BatchNormalization):
        return layer.built and layer.moving_mean.shape[0] % 16 != 0
    return isinstance(getattr(layer, "layer", layer), keras.layers.DepthwiseConv2D)


def _goes_along(layer):
    """Whether it may stay float32 with a neighbour: a quantizer, or a layer without weights that casts what it reads."""
    return layer._autocast and (isinstance(layer, QuantizedActivation) or not layer.weights)


def _is_cast_after(call):
    """Whether all that read its outputs take either precision; an operator on tensors takes one."""
    return all(reader.layer._autocast for value in call.outputs for reader in value.readers)

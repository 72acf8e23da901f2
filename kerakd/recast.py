"""The same network for other arithmetic: its layers' precision, and whose batch its BatchNorms normalize by."""

import tensorflow as tf
import tf_keras as keras

from kerakd import graph
from kerakd.wrapper import QuantizedLayer, kernel_name


def recast(model, policy="float32", synchronized=False):
    """A copy of a functional model with the same weights; the variables are float32 whatever the layers compute in.

    From the last weighted layer on everything stays float32, and so are the logits: a soft loss compares small differences.
    Depthwise convolutions do as well on a CPU alone: TensorFlow's own in 16 bits are slower there (BUILD.md). Grids are computed
    in float32 in any case (`quantizers`).

    Args:
        policy: a Keras dtype policy: "float32", "mixed_bfloat16" or "mixed_float16".
        synchronized: whether BatchNorms normalize by the global batch under `tf.distribute`, rather than by a replica's part of it.
    """
    last, on_cpu = _last_layers(model), {device.device_type for device in tf.config.list_logical_devices()} == {"CPU"}

    def copy(layer):
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(layer, clone_function=copy)
        depthwise = isinstance(getattr(layer, "layer", layer), keras.layers.DepthwiseConv2D)
        chosen = "float32" if layer.name in last or (depthwise and on_cpu) else policy
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

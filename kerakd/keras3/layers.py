"""Which tf_keras layer computes what a Keras 3 layer computes, and with which arguments."""

import inspect

import tf_keras as keras

from kerakd.errors import BadInput
from kerakd.keras3.words import reason, shown

L = keras.layers
LAYERS = {  # of one name and one meaning in both; tests/test_keras3.py compares every one
    *("Activation", "ELU", "LeakyReLU", "PReLU", "ReLU", "Softmax"),
    *("Add", "Average", "Concatenate", "Dot", "Maximum", "Minimum", "Multiply", "Subtract"),
    *("AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"),
    *("AveragePooling1D", "AveragePooling2D", "AveragePooling3D", "MaxPooling1D", "MaxPooling2D", "MaxPooling3D"),
    *("BatchNormalization", "GroupNormalization", "LayerNormalization", "Normalization", "UnitNormalization"),
    *("CenterCrop", "RandomBrightness", "RandomContrast", "RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom"),
    *("Conv1D", "Conv1DTranspose", "Conv2D", "Conv2DTranspose", "Conv3D", "Conv3DTranspose", "Dense", "EinsumDense"),
    *("Cropping1D", "Cropping2D", "Cropping3D", "UpSampling1D", "UpSampling2D", "UpSampling3D", "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D"),
    *("DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D"),
    *("Flatten", "Identity", "Permute", "RepeatVector", "Rescaling", "Reshape", "Resizing"),
    *("GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D", "GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D"),
}
ACTIVATIONS = {  # Keras 3's name -> tf_keras's
    **{name: name for name in ("elu", "exponential", "gelu", "leaky_relu", "linear", "mish", "relu", "relu6", "selu")},
    **{name: name for name in ("sigmoid", "softmax", "softplus", "softsign", "swish", "tanh")},
    "silu": "swish",
}
WITHIN = ("Activation", "ELU", "LeakyReLU", "ReLU", "Softmax")  # layers without weights, which another layer may have as its activation
HARD = ("hard_sigmoid", "hard_silu", "hard_swish")  # relu6(x + 3) / 6, and x times that: tf_keras's hard_sigmoid is another function
AGREED = {"activity_regularizer": None, "renorm": False}  # at other values tf_keras trains otherwise: it divides the first one's loss by the batch size
HARMLESS = {  # keys that the tf_keras layer does not know, and the values with which it computes the same
    "antialias": (False,),
    "data_format": (None, "channels_last"),
    "dilation_rate": ((1, 1, 1),),
    "pad_to_aspect_ratio": (False,),
    "quantization_config": (None,),
    "rms_scaling": (False,),
    "value_range": ((0, 255),),  # of RandomContrast: tf_keras clips there too
}
SILENT = ("fill_mode", "fill_value", "renorm_clipping", "renorm_momentum")  # count only with renorm or pad_to_aspect_ratio


def class_of(layer):
    """The tf_keras class of a Keras 3 layer. Raises: BadInput for a user's class, and one that is not in LAYERS."""
    cls = type(layer)
    if not cls.__module__.startswith("keras."):
        raise BadInput(
            f"model: expected Keras 3's own layers, received {layer.name!r} of the custom class {cls.__module__}.{cls.__name__}; "
            "write that layer, and the model with it, in tf_keras and set its weights"
        )
    if cls.__name__ not in LAYERS:
        raise BadInput(
            f"model: expected layers that tf_keras computes in the same way, received {layer.name!r} of class {cls.__name__}; "
            "take that layer out, or write the model in tf_keras"
        )
    return getattr(L, cls.__name__)


def config_of(layer, cls, keras3):
    """The arguments of the tf_keras layer. Raises: BadInput for one that tf_keras does not have, unless it changes nothing."""
    try:
        config = layer.get_config()
    except Exception as error:  # a function in it that Keras 3 cannot write down fails in any way
        raise BadInput(f"model: expected Keras 3's own functions in layers, received {layer.name!r} with others ({reason(error)}); change them") from error
    if config.get("data_format") == "channels_first":
        raise BadInput(f"model: expected data_format='channels_last', received 'channels_first' in layer {layer.name!r}; build the model for channels_last")
    if isinstance(layer, keras3.layers.LeakyReLU):
        config["alpha"] = config.pop("negative_slope")
    known, result = _parameters(cls), {}
    for key, value in config.items():
        if key in known and key not in AGREED:
            if not key.endswith("_initializer") or _initializer(value) is not None:
                result[key] = _value(layer, key, value)
        elif key in AGREED and value == AGREED[key] or key in SILENT:
            continue
        elif (tuple(value) if isinstance(value, list) else value) not in HARMLESS.get(key, ()):
            raise _unknown(layer, key, value)
    return result


def _parameters(cls):
    """The arguments of a tf_keras layer class, with those that it hands on to its bases."""
    bases = [base for base in cls.__mro__ if issubclass(base, L.Layer) and base is not L.Layer]
    return {"name", "trainable", "dtype", *(name for base in bases for name in inspect.signature(base.__init__).parameters)}


def _unknown(layer, key, value):
    return BadInput(f"model: expected arguments that tf_keras has too, received {shown({key: value})} in layer {layer.name!r}; change that argument")


def _value(layer, key, value):
    """The value of one argument for tf_keras."""
    if isinstance(value, dict) and value.get("class_name") == "__numpy__":
        return value["config"]["value"]
    if key == "dtype" and isinstance(value, dict):
        if value["config"].get("name") not in ("float32", "float64"):  # half precision rounds otherwise, int8 holds another kernel
            received = f"{value['class_name']} {value['config'].get('name')!r} in layer {layer.name!r}"
            raise BadInput(f"model: expected layers in float32, received {received}; build the model in float32 and set its weights")
        return value["config"]["name"]
    if key == "seed":
        return value if isinstance(value, int) else None
    if key.endswith("_initializer"):
        return _initializer(value)
    for kind in ("regularizer", "constraint"):
        if key.endswith(f"_{kind}") and value is not None:
            own = isinstance(value, dict) and value.get("module") == f"keras.{kind}s"
            cls = getattr(getattr(keras, f"{kind}s"), value["class_name"], None) if own else None
            if cls is None:
                raise _unknown(layer, key, value)
            return cls(**value["config"])
    return value


def _initializer(value):
    """The tf_keras initializer, or None if there is none of that name: weights are copied, so the layer's default does as well."""
    own = isinstance(value, dict) and value.get("module") == "keras.initializers"
    cls = getattr(keras.initializers, value["class_name"], None) if own else None
    if cls is None:
        return None
    known = inspect.signature(cls.__init__).parameters
    return cls(**{key: entry for key, entry in value["config"].items() if key in known and not isinstance(entry, dict)})


def hard(which, name, names, dtype):
    """The function of a tensor that computes Keras 3's hard_sigmoid or hard_silu with layers, the last one of which has the name."""
    scale = L.Rescaling(1 / 6, 0.5, name=names.added(f"{name}_scale"), dtype=dtype)
    clip = L.ReLU(1.0, name=name if which == "hard_sigmoid" else names.added(f"{name}_clip"), dtype=dtype)
    if which == "hard_sigmoid":
        return lambda x: clip(scale(x))
    multiply = L.Multiply(name=name, dtype=dtype)
    return lambda x: multiply([x, clip(scale(x))])

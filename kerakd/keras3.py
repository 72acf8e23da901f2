"""A tf_keras (Keras 2) model out of a Keras 3 one: layer by layer, operation by operation, then both run on one random batch."""

import dataclasses
import inspect
import itertools
import json
import os
import pathlib
import zipfile

import h5py
import numpy as np
import tensorflow as tf
import tf_keras as keras

from kerakd.errors import BadInput

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
UNKNOWN_SIZE = 64  # in the final check, of an axis whose size the model leaves open


def from_keras3(model):
    """A tf_keras (Keras 2) functional model with the weights and the outputs of a Keras 3 model, which is not touched.

    Layers keep their names, nested models stay nested, shared layers stay shared. Operations on tensors (`x + y`,
    `keras.ops.relu(x)`) and the activations that tf_keras lacks (hard_sigmoid as Keras 3 means it, hard_silu) become
    layers. At the end both models are run on a random batch and compared.

    Args:
        model: a Keras 3 functional or built Sequential model, or the path of its .keras or .h5 file.
    Returns: a tf_keras functional model.
    Raises: BadInput for a tf_keras model, a subclassed one, a layer or operation that tf_keras has no like of (named), outputs that differ.
    """
    keras3 = _keras3()
    if isinstance(model, (str, os.PathLike)):
        model = _load(pathlib.Path(model), keras3)
    if isinstance(model, keras.Model):
        raise BadInput(
            f"model: expected a Keras 3 model, received {model.name!r}, which is a tf_keras (Keras 2) model already; it needs nothing, use it as it is"
        )
    if not isinstance(model, keras3.Model):
        raise BadInput(f"model: expected a Keras 3 model or the path of its .keras or .h5 file, received {type(model).__name__}; pass the built model")
    made = _Made(keras3)
    copy = made.model(model)
    for source, layer, _ in made.layers.values():
        _copy_weights(source, layer)
    _copy_trainable(made, model)
    _check_outputs(_graph(model, keras3), copy, made.tensors, keras3)
    return copy


def _keras3():
    import keras as keras3  # here: a program without Keras 3 models need not load it

    if not keras3.__version__.startswith("3."):
        raise BadInput(f"model: expected Keras 3 as the package `keras`, received version {keras3.__version__}; install keras 3 to read the model")
    return keras3


def _load(path, keras3):
    if not path.is_file():
        raise BadInput(f"model: expected the path of a .keras or .h5 file, received {str(path)!r}, where there is no file; give its path")
    try:
        version = version_of(path)
        if version.startswith("3."):
            return keras3.models.load_model(path, compile=False)
    except Exception as error:  # a file can be broken in any way
        raise BadInput(
            f"model: expected a .keras or .h5 file that Keras 3 can load, received {str(path)!r} ({_reason(error)}); "
            "save the model with Keras 3 as .keras (an .h5 file cannot hold operations such as x + y), without custom layers"
        ) from error
    raise BadInput(f"model: expected a file of Keras 3, received {str(path)!r} of Keras {version}; it needs nothing but tf_keras.models.load_model")


def version_of(path):
    """The version of the Keras that wrote a model file. Keras 3 would load a tf_keras file, but with its own hard_sigmoid in it.

    Raises: KeyError, OSError, ValueError or zipfile.BadZipFile for what is no model file.
    """
    if not h5py.is_hdf5(path):
        with zipfile.ZipFile(path) as file:
            return json.loads(file.read("metadata.json"))["keras_version"]
    with h5py.File(path) as file:
        if "model_config" not in file.attrs:
            raise ValueError("it holds no model, perhaps only weights")
        version = file.attrs["keras_version"]
        return version.decode() if isinstance(version, bytes) else version


def _reason(error):
    """The error in one clause; Keras 3 puts the cause behind "Exception encountered:"."""
    text = str(error).split("Exception encountered:")[-1].strip()
    return f"{type(error).__name__}: {text}".split("\n")[0].split(". ")[0].rstrip(".")[:200]


def _graph(model, keras3):
    """The keras.Function that holds the nodes of a Keras 3 model. Raises: BadInput for a model without."""
    if not type(model).call.__module__.startswith("keras."):  # also a functional one: its call() may do more than the graph says
        remedy = "write it as keras.Model(inputs, outputs): the body of its call() applied to a keras.Input"
        raise BadInput(f"model: expected a functional or Sequential model, received {model.name!r} of the subclass {type(model).__name__}; {remedy}")
    graph = model._functional if isinstance(model, keras3.Sequential) else model
    if not hasattr(graph, "_nodes_by_depth"):
        raise BadInput(f"model: expected a built Sequential model, received {model.name!r}, which has no layer graph; give it a keras.Input first")
    return graph


class _Names:
    """Names for the layers of one model: its own are kept, those of added layers keep clear of them."""

    def __init__(self, reserved):
        self.reserved, self.given = set(reserved), set()

    def own(self, name):
        if name in self.given:  # an operation object that is called twice
            return self.added(name)
        self.given.add(name)
        return name

    def added(self, name):
        free = (n for n in itertools.chain([name], (f"{name}_{k}" for k in itertools.count(2))) if n not in self.reserved | self.given)
        return self.own(next(free))


class _Made:
    """What has been rebuilt so far: each layer and each model once, so that what is shared stays shared.

    layers: {id of the Keras 3 layer: (it, the tf_keras layer or None, the function of (tensor, call arguments) that stands for it)}.
    models: {id of the Keras 3 model: (it, the tf_keras model)}, inner ones first.
    tensors: [(layer or operation name, Keras 3 tensor, tf_keras tensor)] of the outermost model, in the order of the calls.
    """

    def __init__(self, keras3):
        self.keras3, self.layers, self.models, self.tensors = keras3, {}, {}, []

    def model(self, source):
        """The tf_keras model for a Keras 3 one."""
        if id(source) in self.models:
            return self.models[id(source)][1]
        graph = _graph(source, self.keras3)
        names = _Names(op.name for op in graph._operations)
        values, found = {id(ref): _input(ref) for ref in graph.inputs}, []
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                if node.is_input or any(id(ref) not in values for ref in node.input_tensors):
                    continue
                made = tf.nest.flatten(self.call(node, values, names))
                values.update((id(ref), value) for ref, value in zip(node.outputs, made, strict=True))
                found += [(node.operation.name, ref, value) for ref, value in zip(node.outputs, made)]
        structures = [tf.nest.map_structure(lambda ref: values[id(ref)], refs) for refs in (graph._inputs_struct, graph._outputs_struct)]
        copy = keras.Model(*structures, name=source.name)
        self.models[id(source)], self.tensors = (source, copy), found
        return copy

    def call(self, node, values, names):
        """The tf_keras outputs for one call of a layer, a nested model or an operation."""
        op = node.operation
        args, kwargs = node.arguments.fill_in(values)
        try:
            if isinstance(op, self.keras3.Model):
                return _apply(self.model(op), *_arguments(op, args, kwargs))
            if isinstance(op, self.keras3.layers.Layer):
                return self.layer(op, names, names.own)(*_arguments(op, args, kwargs))
            return _operation(_Operation(op, args, kwargs, node.outputs[0], names))
        except BadInput:
            raise
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise BadInput(
                f"model: expected layers that tf_keras can build, received {op.name!r} of class {type(op).__name__} ({_reason(error)}); "
                "change that layer, or write the model in tf_keras"
            ) from error

    def layer(self, source, names, pick):
        """The function of (tensor, call arguments) that stands for a call of a Keras 3 layer; `pick` makes the name out of the layer's."""
        if id(source) not in self.layers:
            cls = _class(source)
            config = {**_config(source, cls, self.keras3), "name": pick(source.name)}
            after = None
            if "activation" in config:
                config["activation"], after = self.activation(source, config, names)
            copy = None if after and cls is L.Activation else cls(**config)
            self.layers[id(source)] = source, copy, _chain(copy, after)
        return self.layers[id(source)][2]

    def activation(self, source, config, names):
        """(what the tf_keras layer takes as its `activation`, the function that comes after the layer or None)."""
        value, name = config["activation"], config["name"]
        if isinstance(source.activation, self.keras3.layers.Layer):
            inner = self.layer(source.activation, names, lambda own: names.added(f"{name}_{own}"))
            return "linear", lambda x: inner(x, {})
        if not isinstance(value, str) or value not in (*ACTIVATIONS, *HARD):
            known = ", ".join((*ACTIVATIONS, *HARD))
            raise BadInput(f"model: expected one of the activations {known}, received {_short(value)} in layer {source.name!r}; change it")
        if value in ACTIVATIONS:
            return ACTIVATIONS[value], None
        own = name if isinstance(source, self.keras3.layers.Activation) else names.added(f"{name}_{value}")
        return "linear", _hard(value, own, names, source.compute_dtype)


def _chain(copy, after):
    """The function of (tensor, call arguments) that calls the layer, if there is one, and what comes after it, if that is."""
    if after is None:
        return lambda x, training: _apply(copy, x, training)
    return lambda x, training: after(x if copy is None else _apply(copy, x, training))


def _apply(copy, x, training):
    return copy(x, **training) if copy._expects_training_arg else copy(x)


def _arguments(layer, args, kwargs):
    """(the tensors, {"training": False} or {}) of a layer's call. Raises: BadInput for any other argument.

    Keras 3 notes a default True down in some layers and lets the model's own `training` overrule it, so True is left out.
    It overrules (3.15) a False as well, which tf_keras honours: that is what was written, so it is kept.
    """
    given = dict(inspect.signature(layer.call).bind(*args, **kwargs).arguments)
    x, training = given.pop(next(iter(given))), given.pop("training", None)
    others = {name: value for name, value in given.items() if any(part is not None for part in tf.nest.flatten(value))}
    if others:
        raise BadInput(f"model: expected layers called with tensors and `training` only, received {layer.name!r} called with {_shown(others)}; leave that out")
    return x, {} if training is None or training else {"training": False}


def _shown(config):
    return ", ".join(f"{key}={_short(value)}" for key, value in config.items())


def _short(value):
    """A value as a part of one line."""
    return " ".join(repr(value).split())[:80]


def _input(ref):
    """The tf_keras input for an input tensor of a Keras 3 model."""
    layer = ref._keras_history.operation
    special = {key: True for key in ("sparse", "ragged", "optional") if getattr(layer, key, False)}
    if special:
        raise BadInput(f"model: expected dense inputs that are always given, received {layer.name!r} with {_shown(special)}; make it a plain keras.Input")
    return keras.Input(ref.shape[1:], batch_size=ref.shape[0], dtype=ref.dtype, name=layer.name)


def _class(layer):
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


def _config(layer, cls, keras3):
    """The arguments of the tf_keras layer. Raises: BadInput for one that tf_keras does not have, unless it changes nothing."""
    try:
        config = layer.get_config()
    except Exception as error:  # a function in it that Keras 3 cannot write down fails in any way
        raise BadInput(f"model: expected Keras 3's own functions in layers, received {layer.name!r} with others ({_reason(error)}); change them") from error
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
    return BadInput(f"model: expected arguments that tf_keras has too, received {_shown({key: value})} in layer {layer.name!r}; change that argument")


def _value(layer, key, value):
    """The value of one argument for tf_keras."""
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


def _hard(which, name, names, dtype):
    """The function of a tensor that computes Keras 3's hard_sigmoid or hard_silu with layers, the last one of which has the name."""
    scale = L.Rescaling(1 / 6, 0.5, name=names.added(f"{name}_scale"), dtype=dtype)
    clip = L.ReLU(1.0, name=name if which == "hard_sigmoid" else names.added(f"{name}_clip"), dtype=dtype)
    if which == "hard_sigmoid":
        return lambda x: clip(scale(x))
    multiply = L.Multiply(name=name, dtype=dtype)
    return lambda x: multiply([x, clip(scale(x))])


@dataclasses.dataclass
class _Operation:
    """One call, on tf_keras tensors, of a Keras 3 operation that is no layer; `out` is its Keras 3 output."""

    op: object
    args: tuple
    kwargs: dict
    out: object
    names: _Names

    def put(self, cls, *args, on=None, **kwargs):
        """The output of a new tf_keras layer on the operation's first argument, or on `on`."""
        layer = cls(*args, name=self.names.own(self.op.name), dtype=self.out.dtype, **kwargs)
        return layer(self.args[0] if on is None else on)


def _operation(call):
    """The tf_keras output of an operation. Raises: BadInput if there is no layer for it."""
    kind = type(call.op).__name__
    own = type(call.op).__module__.startswith("keras.") and tf.as_dtype(call.out.dtype).is_floating
    plain = all(value is None for value in call.kwargs.values())
    output = OPERATIONS[kind](call) if own and plain and kind in OPERATIONS else None
    if output is None:
        arguments = ", ".join("a tensor" if _is_tensor(arg) else _short(arg) for arg in call.args)
        raise BadInput(
            f"model: expected operations for which tf_keras has a layer, received {call.op.name!r} ({type(call.op).__name__} of {arguments}); "
            "write it with Keras 3 layers, or the model in tf_keras"
        )
    return output


def _is_tensor(value):
    return isinstance(value, keras.__internal__.KerasTensor)


def _arithmetic(call):
    """A merging layer for two tensors, a Rescaling for a tensor and a constant, or None."""
    a, b = call.args
    if _is_tensor(a) and _is_tensor(b):  # of one rank: merging layers align shapes of two ranks otherwise than operations do
        layer = MERGING.get(type(call.op).__name__)
        return call.put(layer, on=[a, b]) if layer and a.shape.rank == b.shape.rank else None
    x, constant = (a, b) if _is_tensor(a) else (b, a)
    affine = AFFINE.get((type(call.op).__name__, x is a))
    if affine is None or hasattr(constant, "assign") or tuple(x.shape) != tuple(call.out.shape):  # a variable may be trained
        return None
    scale, offset = (np.asarray(term).tolist() for term in affine(np.asarray(constant, np.float64)))
    return call.put(L.Rescaling, scale, offset, on=x)


def _concatenate(call):
    axis = call.op.axis % len(call.out.shape)
    return call.put(L.Concatenate, axis=axis) if axis and all(_is_tensor(x) for x in call.args[0]) else None


def _clip(call):
    numbers = all(isinstance(bound, (int, float)) for bound in (call.op.x_min, call.op.x_max))
    return call.put(L.ReLU, float(call.op.x_max)) if numbers and call.op.x_min == 0 <= call.op.x_max else None


def _pool(kind):
    """The rule for a mean or a maximum over all axes between batch and channels."""

    def rule(call):
        rank, axes = call.args[0].shape.rank, call.op.axis
        axes = range(rank) if axes is None else [axes] if isinstance(axes, int) else axes
        spatial = 3 <= rank <= 5 and {axis % rank for axis in axes} == set(range(1, rank - 1)) and getattr(call.op, "initial", None) is None
        return call.put(getattr(L, f"Global{kind}Pooling{rank - 2}D"), keepdims=call.op.keepdims) if spatial else None

    return rule


def _reshape(call):
    """A Reshape to the shape that Keras 3 inferred, if it leaves the batch axis alone."""
    before, after = call.args[0].shape[1:], tuple(call.out.shape[1:])
    known = None not in (*before, *after) and len(call.out.shape) > 0
    return call.put(L.Reshape, after) if known and np.prod(before, dtype=int) == np.prod(after, dtype=int) else None


def _transpose(call):
    axes = call.op.axes
    return call.put(L.Permute, axes[1:]) if axes and axes[0] == 0 else None


def _hard_operation(which):
    return lambda call: _hard(which, call.names.own(call.op.name), call.names, call.out.dtype)(call.args[0])


def _function(name):
    return lambda call: call.put(L.Activation, name)


MERGING = {"Add": L.Add, "Subtract": L.Subtract, "Multiply": L.Multiply, "Maximum": L.Maximum, "Minimum": L.Minimum}
AFFINE = {  # (operation, whether the tensor comes first) -> function of the constant that gives scale and offset
    **{("Add", first): lambda c: (1.0, c) for first in (True, False)},
    **{("Multiply", first): lambda c: (c, 0.0) for first in (True, False)},
    ("Subtract", True): lambda c: (1.0, -c),
    ("Subtract", False): lambda c: (-1.0, c),
    ("Divide", True): lambda c: (1 / c, 0.0),
    ("TrueDivide", True): lambda c: (1 / c, 0.0),
}
OPERATIONS = {  # class name of the operation -> function of its call that gives the tf_keras output, or None if this call has no layer
    **dict.fromkeys((*MERGING, "Divide", "TrueDivide"), _arithmetic),
    **{name: _function(name.lower()) for name in ("Sigmoid", "Tanh", "Selu", "Softplus", "Softsign")},
    **dict.fromkeys(("Reshape", "Squeeze", "ExpandDims"), _reshape),
    "Clip": _clip,
    "Concatenate": _concatenate,
    "Elu": lambda call: call.put(L.ELU, call.op.alpha),
    "Exp": _function("exponential"),
    "Gelu": lambda call: None if call.op.approximate else call.put(L.Activation, "gelu"),
    "HardSigmoid": _hard_operation("hard_sigmoid"),
    "HardSilu": _hard_operation("hard_silu"),
    "LeakyRelu": lambda call: call.put(L.LeakyReLU, call.op.negative_slope),
    "Max": _pool("Max"),
    "Mean": _pool("Average"),
    "Negative": lambda call: call.put(L.Rescaling, -1.0),
    "ReLU": lambda call: call.put(L.ReLU, call.op.max_value, call.op.negative_slope, call.op.threshold),
    "Relu": lambda call: call.put(L.ReLU),
    "Relu6": lambda call: call.put(L.ReLU, 6.0),
    "Silu": _function("swish"),
    "Softmax": lambda call: None if call.op.axis is None else call.put(L.Softmax, call.op.axis),
    "Transpose": _transpose,
}


def _copy_weights(source, copy):
    """The Keras 3 layer's weights into the tf_keras layer, each to the one of its name."""
    if copy is None:
        return
    values = {variable.name: variable.numpy() for variable in source.weights}
    names = [variable.name.split("/")[-1].split(":")[0] for variable in copy.weights]
    if "Depthwise" in type(copy).__name__:
        names = [name.removeprefix("depthwise_") for name in names]  # Keras 3 calls a depthwise convolution's kernel "kernel"
    shapes = dict(zip(names, (tuple(variable.shape) for variable in copy.weights)))
    if {name: value.shape for name, value in values.items()} != shapes:
        received = ", ".join(f"{name} {value.shape}" for name, value in values.items())
        expected = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise BadInput(f"model: expected the weights {expected} in layer {source.name!r}, received {received}; write the model in tf_keras")
    copy.set_weights([values[name] for name in names])


def _copy_trainable(made, model):
    """Setting a model's switch sets those of all in it, so outer models come first and layers last.

    In tf_keras an inner model that is switched off hides layers in it that are on; in Keras 3 it does not.
    """
    for source, copy in reversed(made.models.values()):
        copy.trainable = source.trainable if source is model else any(variable.trainable for variable in source.variables)
    for source, copy, _ in made.layers.values():
        if copy is not None:
            copy.trainable = source.trainable


def _check_outputs(graph, copy, tensors, keras3):
    """Raises BadInput unless both models have the same outputs on a random batch."""
    batch = {id(ref): _random(ref) for ref in graph.inputs}
    inputs = tf.nest.map_structure(lambda ref: batch[id(ref)], graph._inputs_struct)
    if _same(graph(inputs, training=False), copy(inputs, training=False), keras3):
        return
    probes = keras3.Model(graph.inputs, [ref for _, ref, _ in tensors]), keras.Model(copy.inputs, [value for _, _, value in tensors])
    flat = list(batch.values())
    pairs = zip(*(tf.nest.flatten(probe(flat, training=False)) for probe in probes))
    first = next((name for (name, _, _), (expected, got) in zip(tensors, pairs) if not _same(expected, got, keras3)), graph.name)
    raise BadInput(
        f"model: expected the same outputs from Keras 3 and from tf_keras, received others from {first!r} on; change that layer, or write the model in tf_keras"
    )


def _random(ref):
    """Values for an input: three samples of small, middling and large numbers, unless the model fixes the batch."""
    shape = [size or (UNKNOWN_SIZE if axis else 3) for axis, size in enumerate(ref.shape)]
    rng = np.random.default_rng(0)
    if not tf.as_dtype(ref.dtype).is_floating:
        return tf.cast(rng.integers(0, 2 if ref.dtype == "bool" else 100, shape), ref.dtype).numpy()
    sizes = np.resize([1.0, 10.0, 100.0], [shape[0], *[1] * (len(shape) - 1)])
    return tf.cast(sizes * rng.normal(size=shape), ref.dtype).numpy()


def _same(expected, got, keras3):
    """Whether two structures of outputs are close, an array's every sample on the scale of its largest number."""
    for one, other in zip(tf.nest.flatten(expected), tf.nest.flatten(got), strict=True):
        one, other = keras3.ops.convert_to_numpy(one), other.numpy()
        if one.shape != other.shape:
            return False
        largest = np.max(np.abs(np.where(np.isfinite(one), one, 0)), axis=tuple(range(1, one.ndim)), keepdims=True)
        if not np.allclose(one, other, rtol=1e-4, atol=1e-5 * np.maximum(largest, 1), equal_nan=True):
            return False
    return True

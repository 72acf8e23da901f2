"""A model written in the few kinds of layers that a scheme and an integer file know; what it computes stays the same."""

import inspect
import itertools
import re

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kerakd import graph
from kerakd.errors import BadInput
from kerakd.kinds import OPERATORS, computes, is_transparent, sees_padding
from kerakd.models.bit import StandardizedConv2D

L = keras.layers
SLICES = keras.src.layers.core.tf_op_layer.SlicingOpLambda  # x[...], as Keras records it


def simplify(model):
    """A flat copy of a functional model, without its weights, and which weights of the model each layer of the copy has.

    * Nested models come out flat; a name that is taken already gets a number, as do new layers' where a layer of the model has it.
    * An activation inside a layer becomes a layer of its own behind it. Swish becomes x * sigmoid(x), a hard sigmoid
      a Rescaling and a bounded ReLU, a hard swish their product with x: what integer kernels have.
    * Operators and TensorFlow functions on tensors (x + y, x * 0.5, tf.nn.relu6, tf.nn.max_pool2d) become layers, where there is one.
    * A Conv1D becomes a Conv2D of height 1, with the BatchNorm and ReLU behind it, a DepthwiseConv1D and a mean or average pooling of a row
      one of such an image. A separable convolution becomes a depthwise one, NAME_depthwise, and a pointwise one that keeps its name.
      What a causal one pads is a ZeroPadding2D before it.
    * Additions and products of several tensors go pair by pair. Rescalings and Normalizations in a row become one Rescaling.
    * What a concatenation reads of the model's input goes through a Rescaling by 1, as it shares a grid with the rest there.

    Args:
        model: a functional or built Sequential tf_keras model; it is not touched.
    Returns: (functional tf_keras model, {name of its layer: variables of `model`, in the order of the layer's own and of its shapes but for
        axes of length 1}); layers without weights may be missing.
    """
    copier = _Copier({call.layer.name for call in graph.calls(model)})
    return graph.rebuild(model, copier.copy), copier.sources


class _Copier:
    """The copies made so far: `made` by id of the source, `parts` where it became convolutions of images, `sources`, its variables, by name of the copy.

    affine: {id of a Rescaling's output: (its input, scale, offset)}. clipped: {id of a ReLU's output: (its input, bound)}.
    lifted: {id of a tensor [n, length, C]: the same as [n, 1, length, C]}. theirs: names of the source's layers; at: the one that is copied.
    """

    def __init__(self, theirs):
        self.theirs, self.at = theirs, ""
        self.made, self.parts, self.sources, self.taken = {}, {}, {}, set()
        self.affine, self.clipped, self.lifted = {}, {}, {}

    def name(self, wanted):
        """`wanted`, or with the first number that makes it unique, and no other layer's of the source: overrides name those."""
        free = (n for n in itertools.chain([wanted], (f"{wanted}_{k}" for k in itertools.count(2))) if n not in self.taken)
        found = next(n for n in free if n == self.at or n not in self.theirs)
        self.taken.add(found)
        return found

    def new(self, cls, name, *args, **kwargs):
        """A fresh layer without weights, its name near `name`."""
        return cls(*args, name=self.name(name), **kwargs)

    def copy(self, layer, args, kwargs):
        """Symbolic outputs that stand for layer(*args, **kwargs)."""
        self.at = layer.name
        rule = _OF_TYPE.get(_kind(layer)) or next((rule for cls, rule in _RULES.items() if computes(layer, cls)), None)
        outputs = rule(self, layer, args, kwargs) if rule else None
        return self.clone(layer)(*args, **kwargs) if outputs is None else outputs

    def clone(self, layer, **changes):
        """One clone for each layer, however often it is called."""
        if id(layer) not in self.made:
            clone = graph.clone_layer(layer, _kind(layer), name=self.name(layer.name), **changes)
            self.made[id(layer)] = clone
            self.sources[clone.name] = layer.weights
        return self.made[id(layer)]

    def convolutions(self, layer):
        """The convolutions of images that one of rows, or a separable one, is made of, once for all of its calls; the last has its name."""
        if id(layer) not in self.parts:
            config, name = _kind(layer).get_config(layer), self.name(layer.name)
            if len(layer.kernel_size) == 1:
                config |= {key: (1, *config[key]) for key in ("kernel_size", "dilation_rate")}
                config |= {key: _past_one_axis(config[key]) for key in config if key.endswith("_constraint") and key != "bias_constraint"}
                config["strides"] = config["strides"] * 2  # equal ones, which a depthwise convolution asks for; one row stays one
                config["padding"] = "valid" if layer.padding == "causal" else layer.padding  # what a causal one needs is there before it
            if isinstance(layer, (L.SeparableConv1D, L.SeparableConv2D)):
                depthwise = L.DepthwiseConv2D.from_config(_depthwise_part(config) | {"name": self.name(f"{name}_depthwise")})
                parts = {depthwise: layer.weights[:1], L.Conv2D.from_config(_pointwise_part(config) | {"name": name}): layer.weights[1:]}
            else:
                cls = L.Conv2D if isinstance(layer, L.Conv1D) else L.DepthwiseConv2D
                parts = {cls.from_config(config | {"activation": None, "name": name}): layer.weights}
            self.parts[id(layer)] = list(parts)
            self.sources |= {part.name: weights for part, weights in parts.items()}
        return self.parts[id(layer)]

    def rescale(self, x, name, scale, offset):
        """x * scale + offset; on the output of a rescaling, one rescaling of its input; if it can be, before a ReLU."""
        if id(x) in self.clipped and np.size(scale) == 1 and scale > 0 and not np.any(offset):
            before, bound = self.clipped[id(x)]
            return self.relu(self.rescale(before, f"{name}_line", scale, offset), name, bound and bound * float(scale))
        x, first, shift = self.affine.get(id(x), (x, 1.0, 0.0))
        scale, offset = np.multiply(scale, first), np.multiply(scale, shift) + offset
        y = self.new(L.Rescaling, name, _plain(scale), _plain(offset))(x)
        self.affine[id(y)] = x, scale, offset
        return y

    def average(self, x, name, keepdims):
        """The mean over height and width; of one pixel, a reshape. So are kept dimensions: the integer mean without them has one rounding less."""
        one_pixel = tuple(x.shape[1:3]) == (1, 1)
        if not one_pixel:
            x = self.new(L.GlobalAveragePooling2D, name)(x)
        kept = [1, 1] if keepdims else []
        return self.new(L.Reshape, name if one_pixel else f"{name}_kept", [*kept, x.shape[-1]])(x) if one_pixel or kept else x

    def average_of_rows(self, x, name, keepdims):
        """The mean of x [n, length, C] over the length: that of an image of height 1."""
        y = self.average(self.lift(x, name), name, False)
        return self.new(L.Reshape, f"{name}_kept", [1, x.shape[-1]])(y) if keepdims else y

    def concatenate(self, layer, tensors, name):
        """`layer`, a Concatenate, on tensors of which none holds the model's input."""
        return layer([self.new(L.Rescaling, f"{name}_line", 1.0)(x) if _holds_input(x) else x for x in tensors])

    def lift(self, x, name):
        """x [n, length, C] as [n, 1, length, C]."""
        if id(x) not in self.lifted:
            self.lifted[id(x)] = self.new(L.Reshape, f"{name}_image", [1, -1, x.shape[-1]])(x)
        return self.lifted[id(x)]

    def lower(self, y, name):
        """y [n, 1, length, C] as [n, length, C], and the way back."""
        x = self.new(L.Reshape, f"{name}_row", [-1, y.shape[-1]])(y)
        self.lifted[id(x)] = y
        return x

    def relu(self, x, name, bound=None):
        if id(x) in self.lifted:
            return self.lower(self.relu(self.lifted[id(x)], name, bound), name)
        y = self.new(L.ReLU, name, bound)(x)
        self.clipped[id(y)] = x, bound
        return y

    def activate(self, x, function, name):
        """`function`, an activation, on x; None for one that has no form of its own here."""
        if function in (None, keras.activations.linear):
            return x
        if function in (keras.activations.relu, tf.nn.relu):
            return self.relu(x, name)
        if function is tf.nn.relu6:
            return self.relu(x, name, 6.0)
        if function in (keras.activations.sigmoid, tf.nn.sigmoid, tf.math.sigmoid):
            return self.new(L.Activation, name, "sigmoid")(x)
        if function in (keras.activations.swish, tf.nn.silu):
            return self.new(L.Multiply, name)([x, self.new(L.Activation, f"{name}_gate", "sigmoid")(x)])
        if function is keras.activations.hard_sigmoid:
            return self.relu(self.rescale(x, f"{name}_line", 0.2, 0.5), name, 1.0)
        return None


def _kind(layer):
    """Its class; of a subclass that changes nothing of one of _OF_TYPE but what it is built with, at most with methods beside, that one."""
    own = type(layer)
    base = next((cls for cls in own.__mro__ if cls in _OF_TYPE), own)
    if base is own:
        return own
    found = inspect.getattr_static
    changed = {name for name in dir(base) if found(own, name) is not found(base, name)} - _OF_NO_ACCOUNT
    replaced = any(inspect.isroutine(found(base, name, None)) for name in vars(layer))  # a method, on the layer itself
    read = any(hasattr(type(one), "__set__") for cls in own.__mro__ if cls not in base.__mro__ for one in vars(cls).values())  # in its way: a kernel, say
    more = {id(weight) for weight in layer.weights} - {id(getattr(layer, name, None)) for name in _WEIGHTS}
    return own if changed or replaced or read or more else base


_WEIGHTS = ("kernel", "depthwise_kernel", "pointwise_kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
_OF_NO_ACCOUNT = {
    *("__init__", "get_config", "from_config", "__module__", "__doc__", "__annotations__", "__dict__", "__weakref__", "__slots__"),
    *("__abstractmethods__", "_abc_impl", "_keras_api_names", "_keras_api_names_v1"),
}


def _holds_input(x):
    """Whether a tensor has values of a model's input, at most through layers that only pass values on."""
    node = x.node
    while is_transparent(node.layer):
        node = node.keras_inputs[0].node
    return isinstance(node.layer, L.InputLayer)


def _plain(value):
    """A number or a list of numbers, as a layer's configuration keeps it."""
    value = np.asarray(value, np.float64).squeeze()
    return value.tolist() if value.ndim else float(value)


def _split_activation(copier, layer, args, kwargs):
    """A layer and, behind it, its activation."""
    if layer.activation is keras.activations.linear:
        return None
    _check_activation(layer)
    return _activated(copier, copier.clone(layer, activation=None)(*args, **kwargs), layer)


def _check_activation(layer):
    if isinstance(layer.activation, L.Layer):
        raise BadInput(f"model: expected a function for the activation of {layer.name!r}, received a layer; put the layer behind it")


def _activated(copier, outputs, layer):
    """The activation of `layer` on what it gives without, as a layer."""
    name = f"{layer.name}_{re.sub(r'[^A-Za-z0-9_]', '', getattr(layer.activation, '__name__', 'activation'))}"
    activated = copier.activate(outputs, layer.activation, name)
    return copier.new(L.Activation, name, layer.activation)(outputs) if activated is None else activated


def _convolution(copier, layer, args, kwargs):
    """One of rows as one of images of height 1, a separable one as a depthwise one without activation and a pointwise one behind it."""
    (x,) = args
    of_rows = len(layer.kernel_size) == 1
    as_it_is = len(x.shape) != len(layer.kernel_size) + 2 or layer.data_format != "channels_last"
    if id(layer) in (copier.parts if as_it_is else copier.made):
        raise BadInput(f"model: expected calls of one layer on tensors of as many axes, received {layer.name!r} on others; make it two layers")
    if as_it_is:
        return _split_activation(copier, layer, args, kwargs)
    _check_activation(layer)
    y = copier.lift(x, layer.name) if of_rows else x
    if layer.padding == "causal":
        before = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        y = copier.new(L.ZeroPadding2D, f"{layer.name}_pad", ((0, 0), (before, 0)))(y)
    for part in copier.convolutions(layer):
        y = part(y)
    return _activated(copier, copier.lower(y, layer.name) if of_rows else y, layer)


def _depthwise_part(config):
    """Of a separable convolution's configuration that of its depthwise one."""
    kept = ("trainable", "dtype", "data_format", "kernel_size", "strides", "padding", "dilation_rate", "depth_multiplier")
    return {key: config[key] for key in (*kept, *(f"depthwise_{what}" for what in _OF_KERNELS))} | {"use_bias": False}


def _pointwise_part(config):
    """Of a separable convolution's configuration that of its pointwise one."""
    kept = ("trainable", "dtype", "data_format", "filters", "use_bias", *(f"bias_{what}" for what in _OF_KERNELS))
    return {key: config[key] for key in kept} | {f"kernel_{what}": config[f"pointwise_{what}"] for what in _OF_KERNELS} | {"kernel_size": 1}


_OF_KERNELS = ("initializer", "regularizer", "constraint")


def _past_one_axis(constraint):
    """A serialized constraint of a kernel as that of the kernel behind one more axis, the first."""
    if not isinstance(constraint, dict) or "axis" not in constraint["config"]:
        return constraint
    axes = tf.nest.map_structure(lambda axis: axis + (axis >= 0), constraint["config"]["axis"])
    return {**constraint, "config": {**constraint["config"], "axis": axes}}


def _batch_norm(copier, layer, args, kwargs):
    """A BatchNorm behind a convolution that became two-dimensional, as that."""
    (x,) = args
    if id(x) not in copier.lifted or list(layer.axis) != [2]:
        return None
    return copier.lower(copier.clone(layer, axis=-1)(copier.lifted[id(x)], **kwargs), layer.name)


def _activation(copier, layer, args, kwargs):
    return copier.activate(args[0], layer.activation, layer.name)


def _relu(copier, layer, args, kwargs):
    return None if layer.negative_slope or layer.threshold else copier.relu(args[0], layer.name, layer.max_value and float(layer.max_value))


def _pairs(copier, layer, args, kwargs):
    """An addition or product of several tensors, one after the other."""
    first, *rest = args[0]
    for operand in rest:
        first = copier.new(L.Add if isinstance(layer, L.Add) else L.Multiply, layer.name)([first, operand])
    return first


def _concatenation(copier, layer, args, kwargs):
    """A layer for each call: each has a grid of its own."""
    return copier.concatenate(graph.clone_layer(layer, name=copier.name(layer.name)), args[0], layer.name)


def _rescaling(copier, layer, args, kwargs):
    if not all(_is_per_channel(np.asarray(value), args[0].shape) for value in (layer.scale, layer.offset)):
        raise BadInput(f"model: expected numbers for all or for each channel, received those of {layer.name!r} by place; rescale before the model")
    return copier.rescale(args[0], layer.name, layer.scale, layer.offset)


def _normalization(copier, layer, args, kwargs):
    """(x - mean) / deviation, the last axis's own."""
    if layer.axis not in ((), (-1,), (len(args[0].shape) - 1,)) or layer.invert:
        return None
    deviation = np.maximum(np.sqrt(np.asarray(layer.variance, np.float64)), keras.backend.epsilon())
    return copier.rescale(args[0], layer.name, 1 / deviation, -np.asarray(layer.mean, np.float64) / deviation)


def _global_average(copier, layer, args, kwargs):
    return copier.average(args[0], layer.name, layer.keepdims) if layer.data_format == "channels_last" else None


def _average_1d(copier, layer, args, kwargs):
    """Average pooling of a row: that of an image of height 1."""
    (x,) = args
    if layer.data_format != "channels_last":
        return None
    size, stride = layer.pool_size[0], layer.strides[0]
    if sees_padding(x.shape[1:2], (size,), (stride,), layer.padding):
        return None  # no convolution; it stays float
    return copier.lower(copier.new(L.AveragePooling2D, layer.name, (1, size), stride, layer.padding)(copier.lift(x, layer.name)), layer.name)


def _global_average_1d(copier, layer, args, kwargs):
    return copier.average_of_rows(args[0], layer.name, layer.keepdims) if layer.data_format == "channels_last" else None


def _operator(copier, layer, args, kwargs):
    """A TensorFlow function on tensors, as Keras records it."""
    rule = _OPERATORS.get(layer.symbol.rpartition(".")[2])
    if rule is None:
        return None
    try:  # in the order of the function's own arguments, up to the last that is given
        bound = inspect.signature(layer.function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None
    given = set(bound.arguments) - {"name"}
    bound.apply_defaults()
    names = list(bound.arguments)
    last = max((names.index(name) for name in given), default=-1)
    return rule(copier, layer.name, [bound.arguments[name] for name in names[: last + 1] if name != "name"])


def _is_per_channel(constant, shape):
    """Whether a constant is numbers, one or one for each channel of a tensor of `shape`, the last axis."""
    sizes = constant.shape
    return np.issubdtype(constant.dtype, np.number) and len(sizes) <= len(shape) and all(size == 1 for size in sizes[:-1]) and constant.size in (1, shape[-1])


def _both(cls, scale, offset, turned=False):
    """The rule of an operator on two tensors, or on a tensor and a constant c: a rescaling by scale(c) and offset(c).

    turned: whether c before the operator makes c - x of it.
    """

    def rule(copier, name, values):
        symbolic = [hasattr(value, "_keras_history") for value in values]
        if len(values) != 2 or not any(symbolic) or not all(value.dtype.is_floating for value, ours in zip(values, symbolic, strict=True) if ours):
            return None  # integers are sizes, no images
        if all(symbolic):
            same = values[0].shape.rank == values[1].shape.rank
            return copier.new(cls, name)(list(values)) if cls and same else None
        x, constant = values if symbolic[0] else values[::-1]
        if not _is_per_channel(np.asarray(constant), x.shape):
            return None
        constant = np.asarray(constant, np.float64)
        if x is not values[0] and cls is None:
            return copier.rescale(x, name, -np.ones(1), constant) if turned else None
        return copier.rescale(x, name, scale(constant), offset(constant))

    return rule


def _bias(copier, name, values):
    """x + bias, of each channel."""
    x, bias, *layout = values
    return _ADDITION(copier, name, [x, bias]) if layout in ([], [None], ["NHWC"], ["channels_last"]) else None


def _mean(copier, name, values):
    """Over the sides of images, or of rows."""
    if len(values) < 2:
        return None
    x, axes, *keep = values
    if len(x.shape) not in (3, 4) or axes is None or sorted(np.ravel(axes) % len(x.shape)) != [*range(1, len(x.shape) - 1)]:
        return None
    return copier.average(x, name, any(keep)) if len(x.shape) == 4 else copier.average_of_rows(x, name, any(keep))


def _pad(copier, name, values):
    """Zeros around images."""
    x, sides, *mode = values
    sides = np.asarray(sides).tolist() if not hasattr(sides, "_keras_history") else None
    if len(x.shape) != 4 or sides is None or sides[0] != [0, 0] or sides[3] != [0, 0] or mode not in ([], ["CONSTANT"], ["CONSTANT", 0]):
        return None
    return copier.new(L.ZeroPadding2D, name, (tuple(sides[1]), tuple(sides[2])))(x)


def _transpose(copier, name, values):
    """Of the axes behind that of the images."""
    x, axes, *more = values
    if axes is None or hasattr(axes, "_keras_history") or any(more) or np.ravel(axes)[0] != 0:
        return None
    return copier.new(L.Permute, name, [int(axis) % len(x.shape) for axis in np.ravel(axes)[1:]])(x)


def _split(copier, name, values):
    """A slice for each part: those that nobody reads are no part of the copy then, where a file would have them in float."""
    x, sizes, axis, *_ = (*values, 0) if len(values) == 2 else values
    if not isinstance(axis, int) or hasattr(sizes, "_keras_history") or axis % len(x.shape) == 0 or x.shape[axis] is None:
        return None
    side = x.shape[axis]
    parts = [side // sizes] * sizes if np.ndim(sizes) == 0 else [int(size) for size in sizes]
    parts = [side - sum(parts) - 1 if size < 0 else size for size in parts]
    ends, before = np.cumsum(parts).tolist(), (slice(None),) * (axis % len(x.shape))
    return [copier.new(SLICES, name, tf.__operators__.getitem)(x, (*before, slice(end - size, end))) for size, end in zip(parts, ends, strict=True)]


def _clip(copier, name, values):
    """Of 0 and a bound: a ReLU."""
    x, low, high = values
    return copier.relu(x, name, float(high)) if all(np.ndim(end) == 0 and not hasattr(end, "_keras_history") for end in (low, high)) and low == 0 else None


def _maximum(copier, name, values):
    """Of x and 0: a ReLU."""
    symbolic = [hasattr(value, "_keras_history") for value in values]
    if sorted(symbolic) != [False, True]:
        return None
    x, constant = values if symbolic[0] else values[::-1]
    return copier.relu(x, name) if np.ndim(constant) == 0 and constant == 0 and x.dtype.is_floating else None


def _concat(copier, name, values):
    if len(values) != 2 or not isinstance(values[0], (list, tuple)) or not all(hasattr(x, "_keras_history") for x in values[0]):
        return None
    tensors, axis = values
    return copier.concatenate(copier.new(L.Concatenate, name), tensors, name) if axis in (-1, len(tensors[0].shape) - 1) else None


def _cast(copier, name, values):
    """One to what the tensor is already."""
    return values[0] if len(values) == 2 and tf.as_dtype(values[1]) == values[0].dtype else None


def _reshape(copier, name, values):
    """One that leaves the images apart."""
    x, shape = values if len(values) == 2 else (None, None)
    if not isinstance(shape, (list, tuple)) or not all(isinstance(side, int) for side in shape) or None in x.shape[1:]:
        return None
    return copier.new(L.Reshape, name, shape[1:])(x) if shape[0] == -1 and np.prod(shape[1:]) == np.prod(x.shape[1:]) else None


def _window(sides):
    """(height, width) as TensorFlow takes them: one number, two or four; None where it is more than one image's or channel's."""
    sides = np.ravel(sides).tolist()
    if len(sides) == 4:
        return tuple(sides[1:3]) if sides[0] == sides[3] == 1 else None
    return tuple(sides * 2)[:2]


def _pool(cls):
    """The rule of an operator that pools images."""

    def rule(copier, name, values):
        x, size, strides, padding, *layout = values  # the four have no defaults
        size, strides = _window(size), _window(strides)
        if len(x.shape) != 4 or padding not in ("VALID", "SAME") or layout not in ([], [None], ["NHWC"]) or None in (size, strides):
            return None
        if cls is L.AveragePooling2D and (sees_padding(x.shape[1:3], size, strides, padding) or len(set(strides)) > 1):
            return None  # no convolution; it stays float
        return copier.new(cls, name, size, strides, padding.lower())(x)

    return rule


def _function(function):
    return lambda copier, name, values: copier.activate(values[0], function, name) if len(values) == 1 else None


_ONE, _ZERO = lambda c: np.ones(1), lambda c: np.zeros(1)  # noqa: E731
_ADDITION = _both(L.Add, _ONE, lambda c: c)
_OPERATORS = {
    **dict.fromkeys(("add", "add_v2", "AddV2"), _ADDITION),
    **dict.fromkeys(("bias_add",), _bias),
    **dict.fromkeys(("multiply", "mul", "Mul"), _both(L.Multiply, lambda c: c, _ZERO)),
    **dict.fromkeys(("subtract", "sub"), _both(None, _ONE, lambda c: -c, turned=True)),
    **dict.fromkeys(("truediv", "divide", "div"), _both(None, lambda c: 1 / c, _ZERO)),
    **dict.fromkeys(("relu",), _function(tf.nn.relu)),
    **dict.fromkeys(("relu6",), _function(tf.nn.relu6)),
    **dict.fromkeys(("sigmoid",), _function(tf.nn.sigmoid)),
    **dict.fromkeys(("silu", "swish"), _function(keras.activations.swish)),
    **dict.fromkeys(("reduce_mean",), _mean),
    **dict.fromkeys(("pad",), _pad),
    **dict.fromkeys(("transpose",), _transpose),
    **dict.fromkeys(("split",), _split),
    **dict.fromkeys(("clip_by_value",), _clip),
    **dict.fromkeys(("maximum",), _maximum),
    **dict.fromkeys(("concat",), _concat),
    **dict.fromkeys(("reshape",), _reshape),
    **dict.fromkeys(("cast",), _cast),
    **dict.fromkeys(("avg_pool", "avg_pool2d"), _pool(L.AveragePooling2D)),
    **dict.fromkeys(("max_pool", "max_pool2d"), _pool(L.MaxPooling2D)),
}


def _pooling(copier, layer, args, kwargs):
    """A layer for each call: each is a convolution of its own in a file."""
    return graph.clone_layer(layer, name=copier.name(layer.name))(*args, **kwargs)


# of these, and subclasses that change nothing of them: another may be built or called otherwise, and stays as it is
_OF_TYPE = {
    L.BatchNormalization: _batch_norm,
    **dict.fromkeys((L.Conv1D, L.DepthwiseConv1D, L.SeparableConv1D, L.SeparableConv2D), _convolution),
    **dict.fromkeys((StandardizedConv2D, L.Conv2D, L.Conv3D, L.DepthwiseConv2D, L.Conv2DTranspose, L.Dense), _split_activation),
}
_RULES = {
    L.AveragePooling2D: _pooling,
    L.Activation: _activation,
    L.ReLU: _relu,
    L.Add: _pairs,
    L.Multiply: _pairs,
    L.Concatenate: _concatenation,
    L.Rescaling: _rescaling,
    L.Normalization: _normalization,
    L.AveragePooling1D: _average_1d,
    L.GlobalAveragePooling1D: _global_average_1d,
    L.GlobalAveragePooling2D: _global_average,
    OPERATORS: _operator,
}

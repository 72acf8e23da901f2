"""A model written in the few kinds of layers that a scheme and an integer file know; what it computes stays the same."""

import inspect
import itertools
import re

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kerakd import graph, operators
from kerakd.errors import BadInput
from kerakd.kinds import OPERATORS, computes, is_transparent, sees_padding
from kerakd.models.bit import StandardizedConv2D
from kerakd.operators import scales_channels

L = keras.layers


def simplify(model):
    """A flat copy of a functional model, without its weights, and which weights of the model each layer of the copy has.

    * Nested models come out flat; a name that is taken already gets a number, as do new layers' where a layer of the model has it.
    * An activation inside a layer becomes a layer of its own behind it. Swish becomes x * sigmoid(x), a hard sigmoid
      a Rescaling and a bounded ReLU, a hard swish their product with x: what integer kernels have.
    * Operators and TensorFlow functions on tensors (x + y, x * 0.5, tf.nn.relu6, tf.nn.max_pool2d) become layers, where there is one.
    * A Conv1D becomes a Conv2D of height 1, with the BatchNorm and ReLU behind it, a DepthwiseConv1D and a mean or average pooling of a row
      one of such an image. A separable convolution becomes a depthwise one, NAME_depthwise, and a pointwise one that keeps its name.
      What a causal one pads is a ZeroPadding2D before it.
    * Additions and products of several tensors go pair by pair. Equal additions, products, means and sigmoids of the same tensors are one, as they
      are in a file. Rescalings and Normalizations in a row become one Rescaling.
    * What a concatenation reads of the model's input goes through a Rescaling by 1, as it shares a grid with the rest there.

    Args:
        model: a functional or built Sequential tf_keras model; it is not touched.
    Returns: (functional tf_keras model, {name of its layer: variables of `model`, in the order of the layer's own and of its shapes but for
        axes of length 1}); layers without weights may be missing.
    """
    copier = _Copier({call.layer.name for call in graph.calls(model)})
    copy = graph.rebuild(model, copier.copy)
    there = {layer.name for layer in copy.layers}  # of what a layer stands for, as tf.shape in a reshape, nothing is left
    return copy, {name: variables for name, variables in copier.sources.items() if name in there}


class _Copier:
    """The copies made so far: `made` by id of the source, `parts` where it became convolutions of images, `sources`, its variables, by name of the copy.

    affine: {id of a Rescaling's output: (its input, scale, offset)}. clipped: {id of a ReLU's output: (its input, bound)}.
    equal: {what `once` made: its output}. lifted: {id of a tensor [n, length, C]: the same as [n, 1, length, C]}.
    theirs: names of the source's layers; at: the one that is copied.
    """

    def __init__(self, theirs):
        self.theirs, self.at = theirs, ""
        self.made, self.parts, self.sources, self.taken = {}, {}, {}, set()
        self.affine, self.clipped, self.lifted, self.equal = {}, {}, {}, {}

    def name(self, wanted):
        """`wanted`, or with the first number that makes it unique, and no other layer's of the source: overrides name those."""
        free = (n for n in itertools.chain([wanted], (f"{wanted}_{k}" for k in itertools.count(2))) if n not in self.taken)
        found = next(n for n in free if n == self.at or n not in self.theirs)
        self.taken.add(found)
        return found

    def new(self, cls, name, *args, **kwargs):
        """A fresh layer without weights, its name near `name`."""
        return cls(*args, name=self.name(name), **kwargs)

    def once(self, cls, name, inputs, *args):
        """The output of a fresh layer without weights. Equal ones on the same tensors are one: a file has one of them, whose output has one grid."""
        key = (cls, *args, *sorted(id(x) for x in tf.nest.flatten(inputs)))  # the order of operands does not matter
        if key not in self.equal:
            self.equal[key] = self.new(cls, name, *args)(inputs)
        return self.equal[key]

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
            x = self.once(L.GlobalAveragePooling2D, name, x)
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
            return self.once(L.Activation, name, x, "sigmoid")
        if function in (keras.activations.swish, tf.nn.silu):
            return self.once(L.Multiply, name, [x, self.once(L.Activation, f"{name}_gate", x, "sigmoid")])
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
        first = copier.once(L.Add if isinstance(layer, L.Add) else L.Multiply, layer.name, [first, operand])
    return first


def _concatenation(copier, layer, args, kwargs):
    """A layer for each call: each has a grid of its own."""
    return copier.concatenate(graph.clone_layer(layer, name=copier.name(layer.name)), args[0], layer.name)


def _rescaling(copier, layer, args, kwargs):
    if not all(scales_channels(np.asarray(value), args[0].shape) for value in (layer.scale, layer.offset)):
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
    OPERATORS: operators.copy,
}

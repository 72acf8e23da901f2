"""TensorFlow functions on tensors (x + y, tf.nn.relu6, tf.split), each as the layer that computes the same, for `rewrite`.

A rule takes the copier of `rewrite`, the operator's name and the values of its arguments in the order of the function's own, and returns
symbolic outputs, or None for a use that has no layer.
"""

import inspect

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kerakd.kinds import operator, sees_padding

L = keras.layers
SLICES = keras.src.layers.core.tf_op_layer.SlicingOpLambda  # x[...], as Keras records it


def copy(copier, layer, args, kwargs):
    """Symbolic outputs that stand for a TensorFlow function on tensors, as Keras records it; None where no rule knows it."""
    rule = _RULES.get(operator(layer))
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


def scales_channels(constant, shape):
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
            return copier.once(cls, name, list(values)) if cls and same else None
        x, constant = values if symbolic[0] else values[::-1]
        if not scales_channels(np.asarray(constant), x.shape):
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
    ends, before = np.cumsum(parts).tolist(), (_slice(None, None),) * (axis % len(x.shape))
    return [copier.new(SLICES, name, tf.__operators__.getitem)(x, (*before, _slice(end - size, end))) for size, end in zip(parts, ends, strict=True)]


def _slice(start, stop):
    """As Keras keeps one in a model's configuration."""
    return {"start": start, "stop": stop, "step": None}


def _getitem(copier, name, values):
    """x[...] with an Ellipsis, which no .keras file keeps, written out."""
    x, spec = values
    spec = list(spec) if isinstance(spec, (tuple, list)) else [spec]
    at = [k for k, one in enumerate(spec) if one is Ellipsis]
    if not at:
        return None
    given = sum(one is not Ellipsis and one is not None for one in spec)  # None is a new axis
    spec[at[0] : at[0] + 1] = [_slice(None, None)] * (x.shape.rank - given)
    return copier.new(SLICES, name, tf.__operators__.getitem)(x, tuple(spec))


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
    if not isinstance(shape, (list, tuple)) or not all(isinstance(side, int) for side in shape[1:]) or None in x.shape[1:]:
        return None
    first, sides = shape[0] if isinstance(shape[0], int) else -1, shape[1:]  # tf.shape(x)[0]: if the others are all of an image, it can be nothing else
    whole = first == -1 and np.prod(sides) == np.prod(x.shape[1:]) > 0 and all(side > 0 for side in sides)
    return copier.new(L.Reshape, name, sides)(x) if whole else None


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
_RULES = {
    **dict.fromkeys(("add", "add_v2", "AddV2"), _ADDITION),
    "bias_add": _bias,
    **dict.fromkeys(("multiply", "mul", "Mul"), _both(L.Multiply, lambda c: c, _ZERO)),
    **dict.fromkeys(("subtract", "sub"), _both(None, _ONE, lambda c: -c, turned=True)),
    **dict.fromkeys(("truediv", "divide", "div"), _both(None, lambda c: 1 / c, _ZERO)),
    "relu": _function(tf.nn.relu),
    "relu6": _function(tf.nn.relu6),
    "sigmoid": _function(tf.nn.sigmoid),
    **dict.fromkeys(("silu", "swish"), _function(keras.activations.swish)),
    "reduce_mean": _mean,
    "pad": _pad,
    "transpose": _transpose,
    "split": _split,
    "getitem": _getitem,
    "clip_by_value": _clip,
    "maximum": _maximum,
    "concat": _concat,
    "reshape": _reshape,
    "cast": _cast,
    **dict.fromkeys(("avg_pool", "avg_pool2d"), _pool(L.AveragePooling2D)),
    **dict.fromkeys(("max_pool", "max_pool2d"), _pool(L.MaxPooling2D)),
}

"""Which tf_keras layer computes what an operation on Keras 3 tensors computes, such as `x + y` or `keras.ops.relu(x)`."""

import dataclasses

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kerakd.errors import BadInput
from kerakd.keras3.layers import hard
from kerakd.keras3.names import Names
from kerakd.keras3.words import short

L = keras.layers


@dataclasses.dataclass
class Operation:
    """One call, on tf_keras tensors, of a Keras 3 operation that is no layer; `out` is its Keras 3 output."""

    op: object
    args: tuple
    kwargs: dict
    out: object
    names: Names

    def put(self, cls, *args, on=None, **kwargs):
        """The output of a new tf_keras layer on the operation's first argument, or on `on`."""
        layer = cls(*args, name=self.names.own(self.op.name), dtype=self.out.dtype, **kwargs)
        return layer(self.args[0] if on is None else on)


def operation(call):
    """The tf_keras output of an operation. Raises: BadInput if there is no layer for it."""
    kind = type(call.op).__name__
    own = type(call.op).__module__.startswith("keras.") and tf.as_dtype(call.out.dtype).is_floating
    plain = all(value is None for value in call.kwargs.values())
    output = OPERATIONS[kind](call) if own and plain and kind in OPERATIONS else None
    if output is None:
        arguments = ", ".join("a tensor" if _is_tensor(arg) else short(arg) for arg in call.args)
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
    return lambda call: hard(which, call.names.own(call.op.name), call.names, call.out.dtype)(call.args[0])


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

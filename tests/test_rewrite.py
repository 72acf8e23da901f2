"""Laws of the rewriting: the copy computes what the model does, in the layers that a scheme knows; the model stays as it is."""

import collections

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kerakd
from kerakd.quantizers import Interval, Sigmoid
from kerakd.rewrite import simplify
from kerakd.scheme import Scheme, quantize
from kerakd.wrapper import QuantizedActivation

L = keras.layers
IMAGE, ROW, VECTOR = (6, 6, 4), (9, 4), (4,)


def draw(shape, seed=0):
    """Values wide enough for every bound of every activation here."""
    return np.random.default_rng(seed).normal(size=(3, *shape), scale=5).astype(np.float32)


def dense_of(activation):
    return lambda x: L.Dense(4, activation=activation)(x)


def hard_sigmoid(x):
    """As in tf_keras.applications' MobileNetV3."""
    return L.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)


def norm_after(**kwargs):
    return lambda x: L.ReLU()(L.BatchNormalization()(L.Conv1D(8, 3, **kwargs)(x)))


def adapted(x):
    norm = L.Normalization()
    norm.adapt(draw(x.shape[1:], seed=1))
    return L.Rescaling([1.0, 2.0, -3.0, 0.5], [0.0, 1.0, 2.0, 3.0])(norm(x))


def nested(x):
    inner = keras.Sequential([keras.Input(VECTOR), L.Dense(4, "relu", name="same"), L.Dense(4, name="other")], name="inner")
    return L.Dense(4, "swish", name="same")(inner(L.Dense(4, name="other")(x)))


def nested_twice(x):
    inner = keras.Sequential([keras.Input(VECTOR), L.Dense(4, "relu"), L.Rescaling(2.0)])
    return inner(inner(x) - 3.0)


def shared(x):
    twice = L.Dense(4, activation="hard_sigmoid")
    return twice(twice(x))


def shared_row(x):
    twice = L.Conv1D(4, 3, padding="same", activation="relu")
    return twice(twice(x))


def row_read_twice(x):
    y = L.Conv1D(4, 3, padding="same")(x)
    return L.Add()([L.ReLU()(L.BatchNormalization()(y)), L.MaxPooling1D(3, 1, padding="same")(y)])


LINE = {"Rescaling": 1}
HARD_SIGMOID = {"Rescaling": 1, "ReLU": 1}
ROWS = {"Reshape": 2, "Conv2D": 1}  # a Conv1D as an image of height 1, and the way back
CASES = {  # what is called on an input of which shape, and how many layers of which kind are left
    **{
        f"{kind.__name__} {getattr(act, '__name__', act)}": (IMAGE, lambda x, kind=kind, act=act: kind(4, 3, activation=act)(x), {kind.__name__: 1, **left})
        for kind in (L.Conv2D, lambda _, size, **kw: L.DepthwiseConv2D(size, **kw))
        for act, left in ()
    },
    "subtraction": (VECTOR, lambda x: x - L.Dense(4)(x), {"Dense": 1, "TFOpLambda": 1}),
}

"""Normalizations that have no integer form, written in operators that the converter leaves in float."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

L = keras.layers


def normalize(layer, x):
    """What a LayerNormalization or GroupNormalization gives for float x [n, ..., C]; None for another layer.

    Keras's own takes means, and the converter would make those of a quantized tensor integers, rounded to its grid; sums it leaves alone.
    """
    rule = _RULES.get(type(layer))
    return rule and rule(layer, x)


def _standardize(x, axes, epsilon):
    count = float(np.prod([x.shape[axis] for axis in axes]))
    centered = x - tf.reduce_sum(x, axes, keepdims=True) * (1 / count)
    return centered * tf.math.rsqrt(tf.reduce_sum(centered * centered, axes, keepdims=True) * (1 / count) + epsilon)


def _scale_and_shift(layer, y, shape):
    for name, apply in (("gamma", tf.multiply), ("beta", tf.add)):
        value = getattr(layer, name, None)
        if value is not None:
            with tf.init_scope():  # a constant of the file, not a variable of it
                value = value.numpy()
            y = apply(y, tf.constant(value.reshape(shape)))
    return y


def _layer_norm(layer, x):
    axes = [axis % len(x.shape) for axis in np.ravel(layer.axis)]
    shape = [x.shape[axis] if axis in axes else 1 for axis in range(len(x.shape))]
    return _scale_and_shift(layer, _standardize(x, axes, layer.epsilon), shape)


def _group_norm(layer, x):
    grouped = tf.reshape(x, [*x.shape[:-1], layer.groups, x.shape[-1] // layer.groups])
    axes = [*range(1, len(x.shape) - 1), len(x.shape)]
    return _scale_and_shift(layer, tf.reshape(_standardize(grouped, axes, layer.epsilon), x.shape), [*[1] * (len(x.shape) - 1), x.shape[-1]])


_RULES = {L.LayerNormalization: _layer_norm, L.GroupNormalization: _group_norm}

"""Re-estimation of BatchNorm's statistics: the averages that training leaves behind lag behind quantized weights."""

import collections

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kerakd.errors import BadInput
from kerakd.graph import calls, random_states


def reestimate(model, batches):
    """Sets the moving mean and variance of every BatchNorm to the average over `batches` (Nagel et al. 2022, section 4.1).

    Kernels whose codes oscillate give every batch other statistics than the last steps' running averages. Nothing else
    moves. Networks without BatchNorm stay as they are.

    Args:
        model: a functional tf_keras model; its BatchNorm statistics are changed.
        batches: an iterable of images [n, ...] (a list or dict of them for several inputs), training images with their augmentation; some 50 batches will do.
    Raises: BadInput as `check`.
    """
    check(model)
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization) and layer.built]  # others are never called
    statistics = [variable for layer in norms for variable in (layer.moving_mean, layer.moving_variance)]
    if not norms:
        return
    momenta, before, seen = [layer.momentum for layer in norms], [variable.numpy() for variable in statistics], []
    drawn = [(generator.state, generator.state.numpy()) for generator in random_states(model)]
    forward = None
    try:
        for layer in norms:
            layer.momentum = 0.0  # the moving statistics become those of the batch
        for images in batches:
            images = tf.nest.map_structure(tf.convert_to_tensor, images) if len(model.inputs) > 1 else tf.convert_to_tensor(images)
            forward = forward or _training_pass(model, images)
            for variable in statistics:  # not every BatchNorm forgets to the last bit what was there, NaN not at all
                variable.assign(tf.zeros_like(variable))
            forward(images)
            seen.append([variable.numpy() for variable in statistics])
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
        for variable, old in [*zip(statistics, before, strict=True), *drawn]:
            variable.assign(old)
    for variable, values in zip(statistics, zip(*seen, strict=True), strict=False):  # none where there was no batch
        variable.assign(np.mean(values, axis=0, dtype=np.float64))


def check(model):
    """Raises BadInput for a BatchNorm that is called twice: it has one mean and variance for inputs of two."""
    for layer, count in collections.Counter(call.layer for call in calls(model)).items():
        if isinstance(layer, keras.layers.BatchNormalization) and count > 1:
            raise BadInput(f"model: expected BatchNorms that are called once, received {layer.name!r}, which is called {count} times; keep its averages")


def _training_pass(model, images):
    """The model in training mode as a graph, for any number of images like these; a concrete one, as calls of many functions bring TensorFlow's warnings."""
    spec = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), images)
    return tf.function(lambda x: model(x, training=True)).get_concrete_function(spec)


class Reestimate(keras.callbacks.Callback):
    """`reestimate` before each validation of a `fit`, so that what is measured, kept and shipped has the same statistics.

    Training itself does not see them: in training mode a BatchNorm normalizes by its batch.

    Args:
        student: the model whose statistics are estimated: that inside a Distiller.
        batches: a function of the epoch, 0 the first, that gives the batches of images.
    Raises: BadInput as `check`.
    """

    def __init__(self, student, batches):
        super().__init__()
        check(student)
        self.student, self.batches, self.epoch = student, batches, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_test_begin(self, logs=None):
        reestimate(self.student, self.batches(self.epoch))

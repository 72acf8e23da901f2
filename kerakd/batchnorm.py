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
    Raises: BadInput for a BatchNorm that is called twice.
    """
    _check(model)
    found = norms(model)
    statistics = [variable for layer in found for variable in (layer.moving_mean, layer.moving_variance)]
    if not found:
        return
    momenta, before, seen = [layer.momentum for layer in found], [variable.numpy() for variable in statistics], []
    drawn = [(generator.state, generator.state.numpy()) for generator in random_states(model)]
    forward = None
    try:
        for layer in found:
            layer.momentum = 0.0  # the moving statistics become those of the batch
        for images in batches:
            images = tf.nest.map_structure(tf.convert_to_tensor, images) if len(model.inputs) > 1 else tf.convert_to_tensor(images)
            forward = forward or _training_pass(model, images)
            forward(images)
            seen.append([variable.numpy() for variable in statistics])
    finally:
        for layer, momentum in zip(found, momenta, strict=True):
            layer.momentum = momentum
        for variable, old in [*zip(statistics, before, strict=True), *drawn]:
            variable.assign(old)
    for variable, values in zip(statistics, zip(*seen, strict=True), strict=False):  # none where there was no batch
        variable.assign(np.mean(values, axis=0, dtype=np.float64))


def norms(model):
    """The BatchNorms of a model and of the models in it that are called."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization) and layer.built]


def called_twice(model):
    """The names of the BatchNorms that learn statistics of more than one call: they have one mean and variance for the inputs of all."""
    inner = (layer for call in calls(model) for layer in call.layer._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization))
    return [layer.name for layer, count in collections.Counter(layer for layer in inner if layer.trainable).items() if count > 1]


def _check(model):
    found = called_twice(model)
    if found:
        raise BadInput(f"model: expected BatchNorms that are called once, received {', '.join(found)}; give each call one of its own, or estimate none anew")


def _training_pass(model, images):
    """The model in training mode as a graph, for any number of images like these; a concrete one, as calls of many functions bring TensorFlow's warnings."""
    spec = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), images)
    return tf.function(lambda x: model(x, training=True)).get_concrete_function(spec)


class Reestimate(keras.callbacks.Callback):
    """`reestimate` before each validation of a `fit`, and at its end where no validation was the last, so that what is measured, kept and
    shipped has the same statistics.

    Training itself does not see them: in training mode a BatchNorm normalizes by its batch.

    Args:
        student: the model whose statistics are estimated: that inside a Distiller.
        batches: a function of the epoch, 0 the first, that gives the batches of images.
    Raises: BadInput as `reestimate`.
    """

    def __init__(self, student, batches):
        super().__init__()
        _check(student)
        self.student, self.batches, self.epoch, self.due = student, batches, 0, False

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.due = epoch, True

    def on_test_begin(self, logs=None):
        reestimate(self.student, self.batches(self.epoch))
        self.due = False

    def on_train_end(self, logs=None):
        if self.due:
            self.on_test_begin()

"""Re-estimated BatchNorm statistics are the mean over the batches, and nothing else moves."""

import numpy as np
import pytest
import tf_keras as keras

from kerakd import batchnorm, models
from kerakd.errors import BadInput

L = keras.layers
RNG = np.random.default_rng(0)
BATCHES = [RNG.normal(i, 1 + i, size=(16, 3)).astype(np.float32) for i in range(4)]


def test_statistics_are_the_mean_over_batches():
    model = keras.Sequential([keras.Input((3,)), L.BatchNormalization(momentum=0.7)])
    batchnorm.reestimate(model, BATCHES)
    _, _, mean, variance = model.layers[0].get_weights()
    np.testing.assert_allclose(mean, np.mean([b.mean(0) for b in BATCHES], 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, np.mean([b.var(0) for b in BATCHES], 0), rtol=1e-4)
    assert model.layers[0].momentum == 0.7


def test_what_was_there_is_forgotten_and_only_statistics_move():
    model = models.build("resnet8", (8, 8, 1), 10, 0.25)
    images = [RNG.normal(size=(8, 8, 8, 1)).astype(np.float32) for _ in range(3)]
    trained = [v.numpy() for v in model.trainable_variables]
    batchnorm.reestimate(model, images)
    first = model.get_weights()
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.moving_mean.assign(layer.moving_mean + 100)
    batchnorm.reestimate(model, images)
    for a, b in zip(first, model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    for a, b in zip(trained, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_norm_that_is_frozen_or_called_for_inference_keeps_what_it_has(frozen):
    inputs, norm = keras.Input((3,)), L.BatchNormalization(trainable=not frozen)
    model = keras.Model(inputs, L.BatchNormalization(name="behind")(norm(inputs, **({} if frozen else {"training": False}))))
    norm.set_weights([np.full(3, value) for value in (1, 0, 5, 4)])
    batchnorm.reestimate(model, BATCHES)
    np.testing.assert_array_equal(norm.get_weights()[2:], [[5] * 3, [4] * 3])
    expected = np.mean([((b - 5) / np.sqrt(4.001)).mean(0) for b in BATCHES], 0)
    np.testing.assert_allclose(model.get_layer("behind").moving_mean, expected, rtol=1e-4, atol=1e-5)


def test_a_norm_of_two_inputs_is_refused_and_nothing_moves():
    norm, inputs = L.BatchNormalization(name="bn"), keras.Input((3,))
    model = keras.Model(inputs, norm(3 * norm(inputs) + 10))
    before = model.get_weights()
    with pytest.raises(BadInput, match="expected BatchNorms that are called once, received bn; give each call one of its own"):
        batchnorm.reestimate(model, BATCHES)
    with pytest.raises(BadInput, match="called once, received bn"):
        batchnorm.Reestimate(model, lambda epoch: BATCHES)
    assert all(map(np.array_equal, before, model.get_weights()))
    norm.trainable = False  # nothing of it would move
    assert batchnorm.called_twice(model) == []


def test_dropout_draws_on_as_if_nothing_had_been_asked():
    keras.backend.experimental.enable_tf_random_generator()
    try:
        model = keras.Sequential([keras.Input((3,)), L.BatchNormalization(), L.Dropout(0.5, seed=1)])
        asked = keras.models.clone_model(model)
        batchnorm.reestimate(asked, BATCHES)
        np.testing.assert_array_equal(*(one.layers[1](np.ones((8, 8)), training=True) for one in (model, asked)))
    finally:
        keras.backend.experimental.disable_tf_random_generator()


def test_a_norm_that_is_never_called_is_left_alone():
    """As in blocks of keras_cv that make one for a branch that they do not have."""

    class Block(L.Layer):
        def __init__(self):
            super().__init__()
            self.used, self.spare = L.BatchNormalization(), L.BatchNormalization()

        def call(self, x, training=None):
            return self.used(x, training=training)

    model = keras.Sequential([keras.Input((3,)), Block()])
    batchnorm.reestimate(model, BATCHES)
    np.testing.assert_allclose(model.layers[0].used.moving_mean, np.mean([b.mean(0) for b in BATCHES], 0), rtol=1e-4, atol=1e-5)


def test_momentum_comes_back_when_a_batch_fails():
    model = keras.Sequential([keras.Input((3,)), L.BatchNormalization(momentum=0.7)])
    with pytest.raises(Exception, match="."):
        batchnorm.reestimate(model, [np.zeros((2, 5), np.float32)])
    assert model.layers[0].momentum == 0.7


def test_statistics_stay_as_they_were_without_a_batch_or_after_one_that_fails():
    model = keras.Sequential([keras.Input((3,)), L.BatchNormalization()])
    model.layers[0].set_weights([np.full(3, value, np.float32) for value in (1, 2, 3, 4)])
    batchnorm.reestimate(model, [])
    with pytest.raises(Exception, match="."):
        batchnorm.reestimate(model, [BATCHES[0], np.zeros((2, 5), np.float32)])
    for value, weight in zip((1, 2, 3, 4), model.layers[0].get_weights(), strict=True):
        np.testing.assert_array_equal(weight, np.full(3, value))


def test_in_fit_the_statistics_are_those_of_the_epochs_batches_before_each_validation():
    asked = []

    def batches(epoch):
        asked.append(epoch)
        return BATCHES[epoch : epoch + 2]

    student = models.build("resnet8", (8, 8, 1), 10, 0.25)
    images, labels = RNG.normal(size=(16, 8, 8, 1)).astype(np.float32), np.arange(16) % 10
    student.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    views = [RNG.normal(size=(8, 8, 8, 1)).astype(np.float32) for _ in range(4)]
    callback = batchnorm.Reestimate(student, lambda epoch: batches(epoch) and views[epoch : epoch + 2])
    student.fit(images, labels, validation_data=(images, labels), epochs=2, verbose=0, callbacks=[callback])
    assert asked == [0, 1]  # and not again at the end: nothing moved since
    kept = student.get_weights()
    batchnorm.reestimate(student, views[1:3])
    for a, b in zip(kept, student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("validation", [{}, {"validation_data": True, "validation_freq": 2}])
def test_in_fit_the_last_epochs_statistics_are_estimated_without_a_validation_behind_it_too(validation):
    student = models.build("resnet8", (8, 8, 1), 10, 0.25)
    images, labels = RNG.normal(size=(16, 8, 8, 1)).astype(np.float32), np.arange(16) % 10
    student.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    views = [RNG.normal(size=(8, 8, 8, 1)).astype(np.float32) for _ in range(4)]
    given = {**validation, "validation_data": (images, labels)} if validation else {}
    student.fit(images, labels, epochs=3, verbose=0, callbacks=[batchnorm.Reestimate(student, lambda epoch: views[epoch : epoch + 2])], **given)
    kept = student.get_weights()
    batchnorm.reestimate(student, views[2:4])
    for a, b in zip(kept, student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)

"""Re-estimated BatchNorm statistics are the mean over the batches, and nothing else moves."""

import numpy as np
import pytest
import tf_keras as keras

from kerakd import batchnorm, models

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


def test_momentum_comes_back_when_a_batch_fails():
    model = keras.Sequential([keras.Input((3,)), L.BatchNormalization(momentum=0.7)])
    with pytest.raises(Exception, match="."):
        batchnorm.reestimate(model, [np.zeros((2, 5), np.float32)])
    assert model.layers[0].momentum == 0.7

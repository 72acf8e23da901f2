"""Laws of calibration: what an interval is set from, and what calibration leaves as it is."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kerakd.calibration import RULES, calibrate
from kerakd.errors import BadInput
from kerakd.quantizers import Interval, Pact, Ternary
from kerakd.scheme import Scheme, quantize
from kerakd.wrapper import QuantizedActivation

L = keras.layers
UNSIGNED = Interval(4, signed=False, narrow=False)
IMAGES = np.random.default_rng(0).normal(size=(32, 6, 6, 3), scale=2).astype(np.float32)
VECTORS = IMAGES[:, 0, 0]


def calibrated(x, rule="max", **kwargs):
    """What one quantizer's interval becomes on x."""
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, QuantizedActivation(UNSIGNED, **kwargs, name="q")(inputs))
    calibrate(model, x, rule)
    return model.get_layer("q").quantizer_variables["interval"].numpy()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bound, high", [(None, np.inf), (2.5, 2.5), (100.0, 100.0)])
def test_an_interval_that_is_a_relu_is_set_from_what_is_behind_it(bound, high, rule):
    x = IMAGES[..., 0].reshape(-1, 8) - 1  # negative values reach farther than positive ones
    assert -x.min() > 1.2 * x.max() > 4
    assert calibrated(x, rule, relu=True, bound=bound) == calibrated(np.clip(x, 0, high), rule) != calibrated(x, rule)


def test_a_relus_bound_is_the_interval_where_values_pass_it_and_their_maximum_else():
    assert calibrated(VECTORS, relu=True, bound=1.5) == 1.5
    assert calibrated(VECTORS, relu=True, bound=50.0) == calibrated(VECTORS, relu=True) == VECTORS.max() < -VECTORS.min()


@pytest.mark.parametrize("rule", RULES)
def test_the_interval_of_a_sparse_tensor_holds_its_few_values(rule):
    x = np.zeros((1000, 8), np.float32)
    x[0, 0] = 120.0  # fewer than one value in a thousand
    assert calibrated(x, rule) == pytest.approx(120.0, rel=0.02)


@pytest.mark.parametrize("quantizer", [Interval(4), Pact(4)], ids=repr)
@pytest.mark.parametrize("eager", [False, True])
def test_keras_trains_no_student_that_nobody_calibrated_and_the_same_one_once_it_is(quantizer, eager):
    keras.utils.set_random_seed(0)
    student = quantize(keras.Sequential([L.Input((4,)), L.Dense(8, "relu"), L.Dense(2)]), Scheme(Ternary(learned=True), quantizer, None, None))
    student.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=eager)
    images, labels = VECTORS[:, [0, 1, 2, 0]], np.arange(32) % 2
    before = student.get_weights()
    message = r"activation_interval.*expected an interval, received NaN; call kerakd.calibrate\(student, images\) first"
    for run in (student.fit, student.evaluate):
        with pytest.raises(BadInput if eager else tf.errors.InvalidArgumentError, match=message):
            run(images, labels, verbose=0)
    assert all(map(np.array_equal, before, student.get_weights(), [True] * len(before)))
    calibrate(student, images)
    assert np.isfinite(student.fit(images, labels, verbose=0).history["loss"]).all() and np.isfinite(student.evaluate(images, labels, verbose=0))


def normed(x, **kwargs):
    """A student of float kernels whose 'relu_out' sees a BatchNorm's output."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(x.shape[1:])
    layer = L.Conv2D(4, 1, name="weighted") if x.ndim == 4 else L.Dense(4, name="weighted")
    y = L.ReLU(name="relu")(L.BatchNormalization(name="norm", **kwargs)(layer(inputs)))
    return quantize(keras.Model(inputs, L.Dense(2)(L.Flatten()(y))), Scheme(None, Interval(4), None, None))


def relu_of_norm(student, x, mean=None, variance=None):
    """The largest value behind the BatchNorm and its ReLU, by the given statistics or by those of x, in NumPy."""
    kernel, bias = student.get_layer("weighted").get_weights()
    z = (x @ kernel.reshape(x.shape[-1], -1) + bias).reshape(-1, 4).astype(np.float64)
    norm = student.get_layer("norm")
    mean, variance = (z.mean(0), z.var(0)) if mean is None else (mean, variance)
    return ((z - mean) / np.sqrt(variance + norm.epsilon) * norm.gamma.numpy() + norm.beta.numpy()).max()


def statistics(student):
    norm = student.get_layer("norm")
    return [value.numpy().tobytes() for value in (norm.moving_mean, norm.moving_variance)]


def interval(student, name="relu_out"):
    return student.get_layer(name).quantizer_variables["interval"].numpy()


every_rank = pytest.mark.parametrize("x", [IMAGES, VECTORS], ids=["images", "vectors"])  # Keras norms them in two ways


@every_rank
def test_a_fresh_batchnorm_is_calibrated_by_the_images_own_statistics_and_keeps_those_it_was_born_with(x):
    student = normed(x + 7, gamma_initializer=keras.initializers.Constant(1.7), beta_initializer="ones")
    before, momentum = statistics(student), student.get_layer("norm").momentum
    calibrate(student, x + 7)
    np.testing.assert_allclose(interval(student), relu_of_norm(student, x + 7), rtol=1e-4)
    assert interval(student) < 0.8 * relu_of_norm(student, x + 7, 0.0, 1.0)
    assert statistics(student) == before and student.get_layer("norm").momentum == momentum


@every_rank
@pytest.mark.parametrize("mean, variance", [(0.5, 1.0), (0.0, 3.0)])
def test_a_trained_batchnorm_is_used_as_it_is(x, mean, variance):
    student = normed(x)
    norm = student.get_layer("norm")
    norm.moving_mean.assign([mean, 0, 0, 0])
    norm.moving_variance.assign([1, 1, 1, variance])
    before = statistics(student)
    calibrate(student, x)
    wanted = relu_of_norm(student, x, norm.moving_mean.numpy(), norm.moving_variance.numpy())
    np.testing.assert_allclose(interval(student), wanted, rtol=1e-4)
    assert abs(relu_of_norm(student, x) / wanted - 1) > 0.05 and statistics(student) == before


def test_a_fresh_batchnorm_that_is_called_with_training_false_is_used_as_it_is():
    inputs = keras.Input((3,))
    y = L.ReLU(name="relu")(L.BatchNormalization(name="norm")(L.Dense(4, name="weighted")(inputs), training=False))
    student = quantize(keras.Model(inputs, L.Dense(2)(y)), Scheme(None, Interval(4), None, None))
    calibrate(student, VECTORS)
    np.testing.assert_allclose(interval(student), relu_of_norm(student, VECTORS, 0.0, 1.0), rtol=1e-4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0], r"images: expected \(None, 6, 6, 3\), one image or more, received \(6, 6, 3\)"),
        (IMAGES[:, :4], r"received \(32, 4, 6, 3\)"),
        (IMAGES[:0], r"received \(0, 6, 6, 3\)"),
        ([IMAGES, IMAGES], r"received \(32, 6, 6, 3\), \(32, 6, 6, 3\)"),
        (tf.data.Dataset.from_tensors(IMAGES), "images: expected an array .*received a dataset; give a batch"),
    ],
)
def test_images_that_the_model_does_not_take_are_refused(images, message):
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, QuantizedActivation(UNSIGNED, name="q")(inputs))
    with pytest.raises(BadInput, match=message):
        calibrate(model, images)
    assert np.isnan(model.get_layer("q").quantizer_variables["interval"])

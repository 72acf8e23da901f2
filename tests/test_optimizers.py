"""Laws of the optimizers: the schedule's numbers, decay on kernels alone, the table."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kerakd import models, optimizers, scheme
from kerakd.errors import BadInput
from kerakd.quantizers import Interval

every = pytest.mark.parametrize("name", optimizers.BY_NAME)


def variables():
    """A kernel, a bias, a gamma and an interval of each kind, named as a quantized student names them."""
    names = ("conv/kernel:0", "conv/bias:0", "bn/gamma:0", "conv/kernel_interval:0", "out/activation_interval:0", "conv/depthwise_kernel:0")
    return [tf.Variable([2.0, -3.0], name=name[:-2]) for name in names]


def paper_cosine(rate, steps, warmup, step):
    if step < warmup:
        return rate * step / warmup
    return rate * 0.5 * (1 + np.cos(np.pi * min(1, (step - warmup) / (steps - warmup))))


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("step", [0, 1, 3, 4, 5, 12, 19, 20, 30])
def test_the_rate_warms_up_in_a_line_and_falls_in_half_a_cosine(step, warmup):
    assert float(optimizers.cosine(0.3, 20, warmup)(step)) == pytest.approx(paper_cosine(0.3, 20, warmup, step), abs=1e-7)


@pytest.mark.parametrize("step, expected", [(0, 0.0), (1, 0.08), (4, 0.32), (5, 0.4), (6, 0.324), (10, 0.1), (14, 0.004), (15, 0.0), (30, 0.0)])
def test_the_rate_warms_up_in_a_line_and_falls_in_a_square(step, expected):
    assert float(optimizers.SCHEDULES["quadratic"](0.4, 15, 5)(step)) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("step, expected", [(0, 0.4), (5, 0.1), (9, 0.004), (10, 0.0), (11, 0.0)])
def test_without_warm_up_the_square_begins_at_once(step, expected):
    assert float(optimizers.SCHEDULES["quadratic"](0.4, 10)(step)) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("schedule", optimizers.SCHEDULES)
def test_every_schedule_goes_from_nothing_over_the_rate_to_nothing_and_can_be_saved(schedule):
    made = optimizers.SCHEDULES[schedule](0.3, 20, 4)
    assert [round(float(made(step)), 6) for step in (0, 2, 4, 20, 99)] == [0.0, 0.15, 0.3, 0.0, 0.0]
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(made))
    np.testing.assert_array_equal([made(step) for step in range(22)], [again(tf.constant(step, tf.int64)) for step in range(22)])


@pytest.mark.parametrize("schedule", optimizers.SCHEDULES)
def test_with_restarts_each_phase_has_the_whole_schedule_and_the_first_the_warm_up(schedule):
    falling = optimizers.build("sgd", 0.3, [10, 6, 4], variables(), 2, schedule=schedule)._learning_rate
    parts = [(steps, optimizers.SCHEDULES[schedule](0.3, steps, warmup)) for steps, warmup in ((10, 2), (6, 0), (4, 0))]
    expected = [float(part(step)) for steps, part in parts for step in range(steps)]
    np.testing.assert_allclose([falling(tf.constant(step)) for step in range(21)], [*expected, 0.0], atol=1e-7)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(falling))
    np.testing.assert_array_equal([again(step) for step in range(21)], [falling(step) for step in range(21)])


@every
def test_an_optimizer_follows_another_schedule(name):
    weights = variables()
    optimizer = optimizers.build(name, 0.1, 10, weights, warmup_steps=2, schedule="quadratic")
    seen = []
    for _ in range(5):
        optimizer.apply_gradients([(tf.ones_like(w), w) for w in weights])
        seen.append(float(optimizer.learning_rate))
    np.testing.assert_allclose(seen, [0, 0.05, 0.1, 0.1 * (7 / 8) ** 2, 0.1 * (6 / 8) ** 2], atol=1e-7)


@every
def test_an_optimizer_follows_the_schedule(name):
    weights = variables()
    optimizer = optimizers.build(name, 0.1, 10, weights, warmup_steps=2)
    seen = []
    for _ in range(4):
        optimizer.apply_gradients([(tf.ones_like(w), w) for w in weights])
        seen.append(float(optimizer.learning_rate))  # the rate that the step took
    np.testing.assert_allclose(seen, [paper_cosine(0.1, 10, 2, step) for step in range(4)], atol=1e-7)


@every
def test_decay_takes_rate_times_decay_of_every_kernel_and_of_nothing_else(name):
    weights = variables()
    optimizer = optimizers.build(name, 0.1, 1000, weights, weight_decay=0.5)
    optimizer.apply_gradients([(tf.zeros_like(w), w) for w in weights])
    for weight in weights:
        kept = 1 - 0.1 * 0.5 if weight.name.endswith("kernel:0") else 1.0
        np.testing.assert_allclose(weight, [2.0 * kept, -3.0 * kept], rtol=1e-6, err_msg=weight.name)


@every
def test_without_decay_no_gradient_is_no_step(name):
    weights = variables()
    optimizers.build(name, 0.1, 1000, weights).apply_gradients([(tf.zeros_like(w), w) for w in weights])
    for weight in weights:
        np.testing.assert_array_equal(weight, [2.0, -3.0], err_msg=weight.name)


def test_every_kernel_of_a_student_decays_and_no_interval():
    student = scheme.quantize(models.build("resnet8", (8, 8, 1), 10, 0.25), scheme.Scheme(Interval(4), Interval(4)))
    before = [v.numpy() for v in student.trainable_variables]
    optimizer = optimizers.build("sgd", 0.1, 1000, student.trainable_variables, weight_decay=0.5)
    optimizer.apply_gradients([(tf.zeros_like(v), v) for v in student.trainable_variables])
    decayed = [v.name for v, old in zip(student.trainable_variables, before) if not np.array_equal(v, old, equal_nan=True)]
    assert len(decayed) == 10 and all(name.endswith("/kernel:0") for name in decayed)


def test_clipping_scales_all_gradients_together_to_the_norm():
    weights = [tf.Variable([0.0, 0.0]), tf.Variable([0.0])]
    optimizer = optimizers.build("sgd", 1.0, 1000, weights, clip_norm=1.3)
    optimizer.apply_gradients([(tf.constant([3.0, 4.0]), weights[0]), (tf.constant([12.0]), weights[1])])  # norm 13
    np.testing.assert_allclose(np.concatenate(weights), -1.9 * np.array([0.3, 0.4, 1.2]), rtol=1e-5)  # Nesterov's first step: 1 + momentum


def test_sgd_has_nesterovs_momentum():
    weight = tf.Variable([0.0])
    optimizer = optimizers.build("sgd", 1.0, 10**9, [weight])
    for expected in (-1.9, -1.9 - 1 - 0.9 * 1.9):
        optimizer.apply_gradients([(tf.constant([1.0]), weight)])
        np.testing.assert_allclose(weight, [expected], rtol=1e-5)


@every
def test_an_optimizer_comes_built_so_that_its_state_can_be_restored(name):
    weights = variables()
    optimizer = optimizers.build(name, 0.1, 10, weights)
    assert isinstance(optimizer, keras.optimizers.Optimizer) and len(optimizer.variables) > len(weights)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(BadInput, match="expected one of adam, sgd, shampoo, received 'lion'"):
        optimizers.build("lion", 0.1, 10, variables())


def test_an_unknown_schedule_is_refused():
    for schedule in (optimizers.cosine, optimizers.Quadratic):
        for warmup in (10, 11, -1):
            with pytest.raises(BadInput, match=f"warmup_steps: expected 0 or more, and fewer than the 10 steps of the schedule, received {warmup}"):
                schedule(0.1, 10, warmup)
    with pytest.raises(BadInput, match="expected one of cosine, quadratic, received 'step'"):
        optimizers.build("sgd", 0.1, 10, variables(), schedule="step")

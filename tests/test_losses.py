"""Laws of the losses: the golden numbers, zero between equals, the detached side, the shape."""

import numpy as np
import pytest
import tensorflow as tf

from kerakd import losses

STUDENT = np.float32([[2, 1, -1], [0.3, -0.2, 4], [1, 1, 1], [-3, 2.5, 0]])
TEACHER = np.float32([[3, 0.5, -2], [1, 0.1, 2], [0, 5, -1], [-2, 2, 1]])
every = pytest.mark.parametrize("name", losses.BY_NAME)
TEMPERATURES = (1.0, 2.0, 10.0)


def softmax(z):
    return np.exp(z - z.max(-1, keepdims=True)) / np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)


def paper_kl(student, teacher, temperature):
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(-1)


def paper_cross_entropy(student, teacher, temperature):
    return -(temperature**2) * (softmax(teacher / temperature) * np.log(softmax(student / temperature))).sum(-1)


def paper_logit_mse(student, teacher, temperature):
    return ((student - teacher) ** 2).mean(-1)


def paper_standardized_kl(student, teacher, temperature):
    student, teacher = ((z - z.mean(-1, keepdims=True)) / (z.std(-1, keepdims=True) + 1e-7) for z in (student, teacher))
    return paper_kl(student, teacher, temperature)


PAPER = {"kl": paper_kl, "cross_entropy": paper_cross_entropy, "logit_mse": paper_logit_mse, "standardized_kl": paper_standardized_kl}


def slopes(loss, student, teacher, temperature):
    student, teacher = tf.constant(student), tf.constant(teacher)
    with tf.GradientTape() as tape:
        tape.watch([student, teacher])
        total = tf.reduce_sum(loss(student, teacher, temperature))
    return tape.gradient(total, (student, teacher))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@every
def test_a_soft_loss_is_its_papers(name, temperature):
    expected = PAPER[name](np.float64(STUDENT), np.float64(TEACHER), temperature)
    np.testing.assert_allclose(losses.BY_NAME[name](STUDENT, TEACHER, temperature), expected, rtol=1e-4, atol=5e-5)  # T^2 = 100 times float32


@pytest.mark.parametrize("temperature, expected", [(1.0, 0.138455), (2.0, 0.293459), (10.0, 0.375141)])
def test_kl_is_the_golden_number(temperature, expected):
    assert float(losses.kl(STUDENT[:1], TEACHER[:1], temperature)[0]) == pytest.approx(expected, abs=1e-5)


def test_kl_is_not_symmetric():
    assert float(losses.kl(TEACHER[:1], STUDENT[:1], 2.0)[0]) == pytest.approx(0.320905, abs=5e-6)


def test_a_high_temperature_makes_kl_half_the_squared_distance_of_centred_logits():
    distance = (STUDENT - STUDENT.mean(-1, keepdims=True)) - (TEACHER - TEACHER.mean(-1, keepdims=True))
    np.testing.assert_allclose(losses.kl(STUDENT, TEACHER, 100.0), (distance**2).mean(-1) / 2, rtol=0.05)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", [name for name in losses.BY_NAME if name != "cross_entropy"])  # its least value is the teacher's entropy
def test_equal_logits_lose_nothing(name, temperature):
    np.testing.assert_allclose(losses.BY_NAME[name](TEACHER, TEACHER, temperature), 0, atol=1e-5)


def test_equal_logits_leave_cross_entropy_the_teachers_entropy():
    p = softmax(np.float64(TEACHER))
    np.testing.assert_allclose(losses.soft_cross_entropy(TEACHER, TEACHER), -(p * np.log(p)).sum(-1), rtol=1e-5)


@every
def test_the_gradient_reaches_the_student_alone(name):
    to_student, to_teacher = slopes(losses.BY_NAME[name], STUDENT, TEACHER, 2.0)
    assert to_teacher is None and np.abs(to_student).max(-1).min() > 1e-3


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_gradient_of_kl_is_the_difference_of_the_probabilities(temperature):
    expected = temperature * (softmax(STUDENT / temperature) - softmax(TEACHER / temperature))
    np.testing.assert_allclose(slopes(losses.kl, STUDENT, TEACHER, temperature)[0], expected, atol=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_cross_entropy_and_kl_teach_the_student_the_same(temperature):
    one, other = (slopes(loss, STUDENT, TEACHER, temperature)[0] for loss in (losses.soft_cross_entropy, losses.kl))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_standardized_kl_ignores_shift_and_scale_of_either_side():
    plain = losses.standardized_kl(STUDENT[[0, 1, 3]], TEACHER[[0, 1, 3]], 2.0)
    np.testing.assert_allclose(losses.standardized_kl(5 * STUDENT[[0, 1, 3]] - 2, 0.1 * TEACHER[[0, 1, 3]] + 7, 2.0), plain, rtol=1e-3)


@every
def test_there_is_one_loss_for_each_example_and_none_knows_the_others(name):
    together = losses.BY_NAME[name](STUDENT, TEACHER, 2.0)
    assert together.shape == (4,)
    alone = np.concatenate([losses.BY_NAME[name](STUDENT[i : i + 1], TEACHER[i : i + 1], 2.0) for i in range(4)])
    np.testing.assert_allclose(together, alone, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name, expected", [("kl", 5e3), ("cross_entropy", 5e3), ("logit_mse", 5e7 / 3), ("standardized_kl", None)])
def test_logits_of_ten_thousand_have_their_exact_loss(name, expected):
    student, teacher = np.float32([[1e4, 5e3, 0]]), np.float32([[5e3, 1e4, 0]])
    loss = losses.BY_NAME[name]
    if expected is None:
        expected = paper_standardized_kl(np.float64(student), np.float64(teacher), 1.0)[0]
    np.testing.assert_allclose(loss(student, teacher, 1.0), [expected], rtol=1e-4)
    assert not np.isnan(slopes(loss, student, teacher, 1.0)[0]).any()


def test_half_precision_logits_are_compared_in_float32():
    student, teacher = tf.cast(STUDENT, tf.float16), tf.cast(TEACHER, tf.float16)
    for name, loss in losses.BY_NAME.items():
        assert loss(student, teacher, 2.0).dtype == tf.float32
        np.testing.assert_allclose(loss(student, teacher, 2.0), loss(STUDENT, TEACHER, 2.0), rtol=0.02, err_msg=name)
    assert losses.cross_entropy(tf.constant([0, 1, 2, 1]), student).dtype == tf.float32


def test_hard_loss_is_minus_the_log_of_the_labels_probability():
    labels = np.int64([0, 2, 1, 1])
    np.testing.assert_allclose(losses.cross_entropy(labels, STUDENT), -np.log(softmax(np.float64(STUDENT))[range(4), labels]), rtol=1e-5)
    np.testing.assert_allclose(losses.cross_entropy(np.int64([1]), np.float32([[1e4, 0]])), [1e4])

"""Laws of the losses: the golden numbers, zero between equals, the detached side, the shape. Every table entry is tested by all that names no entry."""

import numpy as np
import pytest
import tensorflow as tf

from kerakd import losses

STUDENT = np.float32([[2, 1, -1], [0.3, -0.2, 4], [1, 1, 1], [-3, 2.5, 0]])
TEACHER = np.float32([[3, 0.5, -2], [1, 0.1, 2], [0, 5, -1], [-2, 2, 1]])
LABELS = np.int64([0, 2, 1, 1])
OF_THE_BATCH = {"dist"}  # an example's loss depends on the others
every = pytest.mark.parametrize("name", losses.BY_NAME)
every_of_features = pytest.mark.parametrize("name", losses.FEATURES)
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


def paper_dkd_parts(student, teacher, temperature, labels):
    """(TCKD, NCKD), [n] each, example by example."""

    def kl_of(p, q):
        return temperature**2 * np.sum(p * np.log(p / q))

    parts = []
    for z_s, z_t, label in zip(student, teacher, labels, strict=True):
        q, p = softmax(z_s / temperature), softmax(z_t / temperature)
        pair = kl_of(np.array([p[label], 1 - p[label]]), np.array([q[label], 1 - q[label]]))
        p, q = np.delete(p, label), np.delete(q, label)
        parts.append((pair, kl_of(p / p.sum(), q / q.sum())))
    return np.array(parts).T


def paper_dkd(student, teacher, temperature, labels):
    pair, others = paper_dkd_parts(student, teacher, temperature, labels)
    return pair + 8 * others


def paper_dist(student, teacher, temperature):
    q, p = softmax(student / temperature), softmax(teacher / temperature)
    # The third student says the same of each class, that has no correlation: by `dist`, half
    rows = [0.5 if np.ptp(a) == 0 else 1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)]
    columns = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)]
    return temperature**2 * (np.array(rows) + np.mean(columns))


PAPER = {
    "kl": paper_kl,
    "cross_entropy": paper_cross_entropy,
    "logit_mse": paper_logit_mse,
    "standardized_kl": paper_standardized_kl,
    "dist": paper_dist,
    "dkd": paper_dkd,
}


def call(loss, student, teacher, temperature, labels=LABELS):
    """The loss of BY_NAME or of its paper, with labels where it takes them."""
    with_labels = loss in losses.WITH_LABELS or loss is paper_dkd
    return loss(student, teacher, temperature, labels) if with_labels else loss(student, teacher, temperature)


def slopes(loss, *sides):
    """The gradients of the sum of loss(student, teacher), by either side."""
    sides = [tf.constant(side) for side in sides]
    with tf.GradientTape() as tape:
        tape.watch(sides)
        total = tf.reduce_sum(loss(*sides))
    return tape.gradient(total, sides)


def logit_slopes(loss, student, teacher, temperature, labels=LABELS):
    return slopes(lambda z_s, z_t: call(loss, z_s, z_t, temperature, labels), student, teacher)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@every
def test_a_soft_loss_is_its_papers(name, temperature):
    expected = call(PAPER[name], np.float64(STUDENT), np.float64(TEACHER), temperature)
    np.testing.assert_allclose(call(losses.BY_NAME[name], STUDENT, TEACHER, temperature), expected, rtol=1e-4, atol=3e-4)  # T^2 = 100 times float32


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
    np.testing.assert_allclose(call(losses.BY_NAME[name], TEACHER, TEACHER, temperature), 0, atol=1e-5)


def test_equal_logits_leave_cross_entropy_the_teachers_entropy():
    p = softmax(np.float64(TEACHER))
    np.testing.assert_allclose(losses.soft_cross_entropy(TEACHER, TEACHER), -(p * np.log(p)).sum(-1), rtol=1e-5)


@every
def test_the_gradient_reaches_the_student_alone(name):
    to_student, to_teacher = logit_slopes(losses.BY_NAME[name], STUDENT, TEACHER, 2.0)
    assert to_teacher is None and np.abs(to_student).max(-1).min() > 1e-3


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_gradient_of_kl_is_the_difference_of_the_probabilities(temperature):
    expected = temperature * (softmax(STUDENT / temperature) - softmax(TEACHER / temperature))
    np.testing.assert_allclose(logit_slopes(losses.kl, STUDENT, TEACHER, temperature)[0], expected, atol=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_cross_entropy_and_kl_teach_the_student_the_same(temperature):
    one, other = (logit_slopes(loss, STUDENT, TEACHER, temperature)[0] for loss in (losses.soft_cross_entropy, losses.kl))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_standardized_kl_ignores_shift_and_scale_of_either_side():
    plain = losses.standardized_kl(STUDENT[[0, 1, 3]], TEACHER[[0, 1, 3]], 2.0)
    np.testing.assert_allclose(losses.standardized_kl(5 * STUDENT[[0, 1, 3]] - 2, 0.1 * TEACHER[[0, 1, 3]] + 7, 2.0), plain, rtol=1e-3)


@every
def test_there_is_one_loss_for_each_example(name):
    assert call(losses.BY_NAME[name], STUDENT, TEACHER, 2.0).shape == (4,)


@pytest.mark.parametrize("name", [name for name in losses.BY_NAME if name not in OF_THE_BATCH])
def test_no_example_knows_the_others(name):
    loss = losses.BY_NAME[name]
    alone = np.concatenate([call(loss, STUDENT[i : i + 1], TEACHER[i : i + 1], 2.0, LABELS[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(call(loss, STUDENT, TEACHER, 2.0), alone, rtol=1e-6, atol=1e-7)


EXTREME = {"kl": 5e3, "cross_entropy": 5e3, "logit_mse": 5e7 / 3, "dist": 1.5, "dkd": 5e3}


@pytest.mark.parametrize("name, expected", EXTREME.items())
def test_logits_of_ten_thousand_have_their_exact_loss(name, expected):
    loss = call(losses.BY_NAME[name], np.float32([[1e4, 5e3, 0]]), np.float32([[5e3, 1e4, 0]]), 1.0, np.int64([0]))
    np.testing.assert_allclose(loss, [expected], rtol=1e-4)


@pytest.mark.parametrize("labels", [[0, 1], [1, 1], [2, 0]])
@every
def test_logits_of_ten_thousand_have_a_loss_and_a_gradient(name, labels):
    student, teacher = np.float32([[1e4, 5e3, 0], [0, -1e4, 1e4]]), np.float32([[5e3, 1e4, 0], [-1e4, 1e4, 0]])
    for sides in ((student, teacher), (student, student), (student * 0, teacher), (student, teacher * 0)):
        assert np.isfinite(call(losses.BY_NAME[name], *sides, 1.0, np.int64(labels))).all()
        assert np.isfinite(logit_slopes(losses.BY_NAME[name], *sides, 1.0, np.int64(labels))[0]).all()


@every
def test_a_loss_in_a_graph_of_any_batch_is_that_of_now(name):
    loss = losses.BY_NAME[name]
    spec = tf.TensorSpec((None, 3), tf.float32)
    graph = tf.function(lambda z_s, z_t, labels: call(loss, z_s, z_t, 2.0, labels), input_signature=[spec, spec, tf.TensorSpec((None,), tf.int64)])
    for n in (4, 1):
        now = call(loss, STUDENT[:n], TEACHER[:n], 2.0, LABELS[:n])
        np.testing.assert_allclose(graph(STUDENT[:n], TEACHER[:n], LABELS[:n]), now, rtol=1e-6, atol=1e-7)


def test_half_precision_logits_are_compared_in_float32():
    student, teacher = tf.cast(STUDENT, tf.float16), tf.cast(TEACHER, tf.float16)
    for name, loss in losses.BY_NAME.items():
        assert call(loss, student, teacher, 2.0).dtype == tf.float32
        np.testing.assert_allclose(call(loss, student, teacher, 2.0), call(loss, STUDENT, TEACHER, 2.0), rtol=0.02, err_msg=name)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_is_tckd_and_the_teachers_doubt_times_nckd(temperature):
    doubt = 1 - softmax(TEACHER / temperature)[range(4), LABELS]
    together = losses.dkd(STUDENT, TEACHER, temperature, LABELS, alpha=1.0, beta=doubt)
    np.testing.assert_allclose(together, losses.kl(STUDENT, TEACHER, temperature), rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_weights_of_dkd_are_of_its_two_parts(temperature):
    expected = paper_dkd_parts(np.float64(STUDENT), np.float64(TEACHER), temperature, LABELS)
    for weights, part in zip([(1, 0), (0, 1)], expected, strict=True):
        np.testing.assert_allclose(losses.dkd(STUDENT, TEACHER, temperature, LABELS, *weights), part, rtol=1e-4, atol=3e-5)


def test_dkd_is_the_golden_number():
    # (.9184, .0816) against (.7054, .2946): .13763; (.9241, .0759) against (.8808, .1192): .01011
    assert float(losses.dkd(STUDENT[:1], TEACHER[:1], 1.0, LABELS[:1])[0]) == pytest.approx(0.13763 + 8 * 0.01011, abs=5e-5)


def test_dkd_takes_labels_as_keras_datasets_have_them():
    column = np.float32(LABELS[:, np.newaxis])
    np.testing.assert_array_equal(losses.dkd(STUDENT, TEACHER, 2.0, column), losses.dkd(STUDENT, TEACHER, 2.0, np.int32(LABELS)))


def test_of_two_classes_dkd_has_the_label_alone():
    np.testing.assert_allclose(losses.dkd(STUDENT[:, :2], TEACHER[:, :2], 2.0, [0, 1, 1, 0]), losses.kl(STUDENT[:, :2], TEACHER[:, :2], 2.0), rtol=1e-5)


def test_the_weights_of_dist_are_of_rows_and_columns():
    rows, columns = (losses.dist(STUDENT, TEACHER, 2.0, *weights).numpy() for weights in [(1, 0), (0, 1)])
    assert np.ptp(rows) > 0.1 and np.ptp(columns) == 0
    np.testing.assert_allclose(losses.dist(STUDENT, TEACHER, 2.0, beta=3.0, gamma=0.5), 3 * rows + 0.5 * columns, rtol=1e-5)


def test_dist_ignores_how_sure_a_side_is_where_the_order_is_linear():
    """1 - r is 0 for probabilities that are a line of the others: (.5, .3, .2) and (.4, .32, .28) = .2 + .4 of it."""
    student, teacher = (np.log(np.float32([row])) for row in ((0.4, 0.32, 0.28), (0.5, 0.3, 0.2)))
    np.testing.assert_allclose(losses.dist(student, teacher, 1.0), 0, atol=1e-5)
    np.testing.assert_allclose(losses.dist(student, teacher[:, ::-1], 1.0, gamma=0.0), 1 - np.corrcoef((4, 3.2, 2.8), (2, 3, 5))[0, 1], rtol=1e-4)


def test_a_batch_of_one_has_no_columns():
    one = losses.dist(STUDENT[:1], TEACHER[:1], 2.0)
    np.testing.assert_allclose(one, losses.dist(STUDENT, TEACHER, 2.0, gamma=0.0)[:1], rtol=1e-5)
    assert np.isfinite(logit_slopes(losses.dist, STUDENT[:1], TEACHER[:1], 2.0)[0]).all()


random = np.random.default_rng(0)
MINE, THEIRS = (random.normal(size=(4, 3, 5, 6)).astype("float32") for _ in range(2))


def paper_hint(student, teacher):
    return np.array([np.mean((f - g) ** 2) for f, g in zip(student, teacher, strict=True)])


def paper_attention(student, teacher):
    found = []
    for f, g in zip(student, teacher, strict=True):
        q_s, q_t = (np.array([np.sum(position**2) for position in side.reshape(-1, side.shape[-1])]) for side in (f, g))
        found.append(np.sum((q_s / np.sqrt(np.sum(q_s**2)) - q_t / np.sqrt(np.sum(q_t**2))) ** 2))
    return np.array(found)


PAPER_OF_FEATURES = {"hint": paper_hint, "attention": paper_attention}


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 15, 6), (4, 9, 10)])
@every_of_features
def test_a_feature_loss_is_its_papers(name, shape):
    mine, theirs = MINE.reshape(shape), THEIRS.reshape(shape)
    expected = PAPER_OF_FEATURES[name](np.float64(mine), np.float64(theirs))
    found = losses.FEATURES[name](mine, theirs)
    assert found.shape == (4,) and found.dtype == tf.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@every_of_features
def test_equal_features_lose_nothing(name):
    np.testing.assert_array_equal(losses.FEATURES[name](MINE, MINE), np.zeros(4))


@every_of_features
def test_the_gradient_reaches_the_students_features_alone(name):
    to_student, to_teacher = slopes(losses.FEATURES[name], MINE, THEIRS)
    assert to_teacher is None and np.abs(to_student).reshape(4, -1).max(-1).min() > 1e-4


@every_of_features
def test_no_features_know_the_others_and_any_batch_has_its_graph(name):
    loss = losses.FEATURES[name]
    spec = tf.TensorSpec((None, 3, 5, 6), tf.float32)
    graph = tf.function(loss, input_signature=[spec, spec])
    np.testing.assert_allclose(np.concatenate([graph(MINE[i : i + 1], THEIRS[i : i + 1]) for i in range(4)]), loss(MINE, THEIRS), rtol=1e-6)


@every_of_features
def test_features_of_ten_thousand_or_of_zeros_have_a_loss_and_a_gradient(name):
    for sides in ((MINE * 1e4, THEIRS * 1e4), (MINE * 0, THEIRS), (MINE, THEIRS * 0), (MINE * 0, THEIRS * 0)):
        assert np.isfinite(losses.FEATURES[name](*sides)).all()
        assert np.isfinite(slopes(losses.FEATURES[name], *sides)[0]).all()


@every_of_features
def test_half_precision_features_are_compared_in_float32(name):
    half = losses.FEATURES[name](tf.cast(MINE, tf.float16), tf.cast(THEIRS, tf.float16))
    assert half.dtype == tf.float32
    np.testing.assert_allclose(half, losses.FEATURES[name](MINE, THEIRS), rtol=0.02)


@pytest.mark.parametrize("size", [1e-12, 1e-4, 1.0, 1e12])
def test_attention_is_the_same_of_features_of_any_size(size):
    one, other = tf.constant([[[1.0, 0.0], [0.5, 0.0]]]), tf.constant([[[0.0, 0.0], [3.0, 4.0]]])
    np.testing.assert_allclose(losses.attention(size * one, other), losses.attention(one, other), rtol=1e-5)
    np.testing.assert_allclose(losses.attention(other, size * one), losses.attention(one, other), rtol=1e-5)


def test_attention_asks_where_and_not_how_much_or_in_which_channel():
    np.testing.assert_allclose(losses.attention(MINE, -7 * MINE[..., ::-1]), 0, atol=1e-6)
    wide = np.concatenate([MINE, MINE], axis=-1)  # twice the channels
    np.testing.assert_allclose(losses.attention(MINE, wide), 0, atol=1e-6)

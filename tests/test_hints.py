"""Hints: NumPy's losses between layers, a projector that learns, a teacher that does not move, refusals."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kerakd import calibration, losses, scheme
from kerakd.distiller import Distiller
from kerakd.errors import BadInput
from kerakd.hints import Hints
from kerakd.quantizers import Interval
from kerakd.teachers import Teacher

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 6, 6, 1)).astype(np.float32)
Y = np.arange(8) % 3
PAIRS = [("a", "b"), ("b_norm", "a")]
every = pytest.mark.parametrize("loss", losses.FEATURES)


def net(seed, channels):
    """Layers a, b (ReLUs), b_norm and pooled, of `channels`."""
    init = keras.initializers.GlorotUniform(seed)
    inputs = keras.Input((6, 6, 1))
    x = L.Conv2D(channels, 3, padding="same", activation="relu", kernel_initializer=init, name="a")(inputs)
    x = L.BatchNormalization(name="b_norm")(L.Conv2D(channels, 3, padding="same", kernel_initializer=init)(x))
    x = L.GlobalAveragePooling2D(name="pooled")(L.ReLU(name="b")(x))
    return keras.Model(inputs, L.Dense(3, kernel_initializer=init, name="logits")(x))


def outputs(model, names, x, training=False):
    inside = keras.Model(model.inputs, {name: model.get_layer(name).output for name in names})(x, training=training)
    return [np.float64(inside[name]) for name in names]


def numpy_loss(name, mine, theirs, projector):
    """[n]."""
    if name == "hint":
        return ((mine @ np.float64(projector.kernel) - theirs) ** 2).mean((1, 2, 3))
    energies = [(f**2).sum(-1).reshape(len(f), -1) for f in (mine, theirs)]
    mine, theirs = (energy / np.linalg.norm(energy, axis=-1, keepdims=True) for energy in energies)
    return ((mine - theirs) ** 2).sum(-1)


def taught(loss="hint", student=None, teacher=None, pairs=PAIRS, **kwargs):
    model = Distiller(student=student or net(1, 2), teacher=teacher or net(2, 3), hints=pairs, hint_loss=loss, **kwargs)
    model.compile(keras.optimizers.SGD(0.1))
    return model


def train(model, epochs=1, **kwargs):
    return model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, **kwargs).history


def state(model):
    return [value.tobytes() for value in model.get_weights()]


@pytest.mark.parametrize("pairs", [{"a": "b"}, ["ab"], [("a", "b", "c")]])
def test_what_are_no_pairs_is_refused(pairs):
    with pytest.raises(BadInput, match="hints: expected pairs .*, received"):
        Distiller(student=net(1, 2), teacher=net(2, 3), hints=pairs)


def test_a_layer_that_is_called_twice_gives_no_hint_and_one_of_another_model_that_of_this_one():
    shared, x, other = keras.layers.Dense(4, name="shared"), keras.Input((6,)), keras.Input((6,))
    shared(other)  # its first call is of no model here
    student = keras.Model(x, keras.layers.Dense(3)(shared(x)))
    teacher = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="b"), keras.layers.Dense(3)])
    hints = Hints(student, teacher, [("shared", "b")])
    logits, feature = hints.student(np.ones((2, 6), np.float32))
    np.testing.assert_array_equal(feature, shared(np.ones((2, 6), np.float32)))
    twice = keras.layers.ReLU(name="twice")
    student = keras.Model(x, keras.layers.Dense(3)(twice(keras.layers.Dense(4)(twice(x)))))
    with pytest.raises(BadInput, match="hints: expected a layer that the student calls once, received 'twice', called 2 times"):
        Hints(student, teacher, [("twice", "b")])


def test_attention_to_one_position_is_refused_as_it_would_be_none():
    x = keras.Input((6,))
    student = keras.Model(x, keras.layers.Dense(3)(keras.layers.Dense(4, name="a")(x)))
    teacher = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, name="b"), keras.layers.Dense(3)])
    with pytest.raises(BadInput, match=r"hints: expected outputs with positions for the loss 'attention', received \(4,\) of 'a'; take 'hint'"):
        Hints(student, teacher, [("a", "b")], "attention")


def test_a_layer_of_a_nested_teacher_gives_a_hint():
    inner = net(1, 4)
    teacher = Teacher("t.keras", values="0..255").prepared(inner)
    nested, plain = Hints(net(0, 2), teacher, PAIRS), Hints(net(0, 2), inner, PAIRS)
    for one, other in zip(nested.teacher(X), plain.teacher(127.5 * X + 127.5), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)
    own = Hints(net(0, 2), teacher, [("logits", inner.name)], loss="hint")  # the nested model is a layer too
    assert own.teacher(X)[1].shape == (8, 3)
    inputs = keras.Input((6, 6, 1))
    twins = keras.Model(inputs, L.Add()([net(1, 4)(inputs), keras.Model(inner.inputs, inner.outputs, name="other")(inputs)]))
    with pytest.raises(BadInput, match="expected a layer of the teacher, received 'b'"):
        Hints(net(0, 2), twins, PAIRS)


@every
def test_the_loss_is_numpys_and_adds_to_the_others(loss):
    keras.utils.set_random_seed(0)
    weights = np.float32([0, 1, 2, 3, 0.5, 1, 1, 1])
    model = taught(loss, hint_weight=0.25)
    mine = outputs(net(1, 2), [name for name, _ in PAIRS], X, training=True)
    theirs = outputs(net(2, 3), [name for _, name in PAIRS], X)
    expected = sum(numpy_loss(loss, *sides) for sides in zip(mine, theirs, model.hints.projectors, strict=True))
    history = train(model, sample_weight=weights)
    added = history["loss"][0] - 0.5 * history["hard_loss"][0] - 0.5 * history["soft_loss"][0]
    assert added / 0.25 == pytest.approx((expected * weights).mean(), rel=1e-4) == history["hint_loss"][0]
    np.testing.assert_allclose(model.hints(*[[tf.constant(f, tf.float32) for f in side] for side in (mine, theirs)]).shape, [8])


@every
def test_the_student_and_the_projectors_learn_and_the_teacher_does_not_move(loss):
    student, teacher = net(1, 2), net(2, 3)
    model = taught(loss, student, teacher, hard_weight=0.0, soft_weight=0.0)
    before, before_teacher = state(student), state(teacher)
    projectors = [variable.numpy() for variable in model.hints.trainable_variables]
    assert len(projectors) == (len(PAIRS) if loss == "hint" else 0)
    history = train(model, 10)
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert state(teacher) == before_teacher
    assert all(not np.array_equal(old, new) for old, new in zip(projectors, model.hints.trainable_variables, strict=True))
    moved = {variable.name.partition("/")[0] for variable, old in zip(student.variables, before, strict=True) if variable.numpy().tobytes() != old}
    assert {"a", "b_norm"} <= moved and "logits" not in moved  # what is after the hinted layers learns nothing of them


def test_the_first_of_several_teachers_gives_the_hints():
    keras.utils.set_random_seed(0)
    alone = train(taught(hard_weight=0.0, soft_weight=0.0))["loss"]
    keras.utils.set_random_seed(0)
    several = taught(teacher=[net(2, 3), net(3, 4)], hard_weight=0.0, soft_weight=1.0)
    history = train(several)
    assert history["loss"][0] - history["soft_loss"][0] == pytest.approx(alone[0], rel=1e-4)
    expected = train(_without_hints([net(2, 3), net(3, 4)]))["soft_loss"]
    assert history["soft_loss"] == pytest.approx(expected, rel=1e-5)


def _without_hints(teachers):
    model = Distiller(student=net(1, 2), teacher=teachers, hard_weight=0.0, soft_weight=1.0)
    model.compile(keras.optimizers.SGD(0.1))
    return model


def test_a_hinted_teacher_sees_its_own_view():
    keras.utils.set_random_seed(0)
    model, other = taught("attention", pairs=[("a", "a")], hard_weight=0.0, soft_weight=0.0), X[::-1].copy()
    history = model.fit(tf.data.Dataset.from_tensors(({"student": X, "teachers": (other,)}, Y)), verbose=0).history
    expected = numpy_loss("attention", *outputs(net(1, 2), ["a"], X), *outputs(net(2, 3), ["a"], other), None)
    assert history["loss"][0] == pytest.approx(expected.mean(), rel=1e-4)


def test_a_quantized_student_takes_hints():
    student = scheme.quantize(net(1, 2), scheme.Scheme(Interval(4), Interval(4)))
    calibration.calibrate(student, X)
    before = state(student)
    history = train(taught("attention", student, pairs=[("b_out", "b")], hard_weight=0.0, soft_weight=0.0))
    assert history["loss"][0] > 0 and state(student) != before


@pytest.mark.parametrize(
    "kwargs, telling",
    [
        ({"pairs": [("nope", "a")]}, "hints: expected a layer of the student, received 'nope'; its layers are .*a, .*logits"),
        ({"pairs": [("a", "nope")]}, "hints: expected a layer of the teacher, received 'nope'"),
        ({"pairs": [("a", "pooled")]}, r"expected outputs of one size, received \(6, 6, 2\) of 'a' and \(3,\) of 'pooled'"),
        ({"loss": "cosine"}, "hint_loss: expected one of hint, attention, received 'cosine'"),
    ],
)
def test_what_cannot_be_compared_is_refused(kwargs, telling):
    with pytest.raises(BadInput, match=telling):
        Hints(net(1, 2), net(2, 3), **{"pairs": PAIRS, **kwargs})

"""Laws of the distiller: who is moved by what, the losses in the history, phases, refusals."""

import functools
import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tensorflow.python.util._pywrap_util_port import IsMklEnabled

from kerakd import calibration, checks, losses, quantizers, scheme, soft
from kerakd.distiller import Distiller
from kerakd.errors import BadInput, Diverged
from kerakd.groups import LossScales
from kerakd.modes import MODES
from kerakd.quantizers import Interval
from kerakd.recast import recast

L = keras.layers
RNG = np.random.default_rng(0)
HINT = ("hidden", "hidden")  # a layer of net
X = RNG.normal(size=(16, 6)).astype(np.float32)
Y = np.arange(16) % 3
every_mode = pytest.mark.parametrize("mode", MODES)


def net(seed, classes=3, decay=0.0, norm=True):
    """A network with everything that training could move: kernels, biases, BatchNorm statistics, regularizers."""
    init = keras.initializers.GlorotUniform(seed)
    x = keras.Input((6,))
    y = L.Dense(8, name="hidden", kernel_initializer=init, kernel_regularizer=keras.regularizers.L2(decay) if decay else None)(x)
    y = L.ReLU()(L.BatchNormalization()(y) if norm else y)
    return keras.Model(x, L.Dense(classes, kernel_initializer=init)(y))


def taught(mode="trained_teacher", student=None, teacher=None, optimizer=None, **kwargs):
    """A compiled distiller. SGD at 0.1, so that a step is -0.1 times the gradient."""
    compile_kwargs = {
        key: kwargs.pop(key) for key in list(kwargs) if key.endswith("_optimizer") or key in ("metrics", "steps_per_execution", "jit_compile", "loss")
    }
    if MODES[mode].teacher_learns:
        compile_kwargs.setdefault("teacher_optimizer", keras.optimizers.SGD(0.1))
    teacher = net(2) if teacher is None and MODES[mode].teacher else teacher
    model = Distiller(student=student or net(1), teacher=teacher, mode=mode, **kwargs)
    model.compile(optimizer or keras.optimizers.SGD(0.1), **compile_kwargs)
    return model


def state(model):
    return [value.tobytes() for value in model.get_weights()]


def train(model, epochs=1, batch_size=16, **kwargs):
    return model.fit(X, Y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0, **kwargs).history


def softmax(z):
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def hard(z, weights=1.0):
    return (-np.log(softmax(z)[np.arange(len(z)), Y[: len(z)]]) * weights).mean()


def kl(to, of, temperature, weights=1.0):
    p, q = softmax(to / temperature), softmax(of / temperature)
    return (temperature**2 * (p * np.log(p / q)).sum(-1) * weights).mean()


# ---- Who is moved --------------------------------------------------------------------------------------------------------------------------------


@every_mode
def test_training_moves_all_of_the_student_and_the_teacher_only_where_it_learns(mode):
    teacher = net(2)
    model = taught(mode, teacher=teacher)
    before, before_teacher = state(model.student), state(teacher)
    train(model)
    assert all(old != new for old, new in zip(before, state(model.student)))  # BatchNorm's statistics among them
    moved = [old != new for old, new in zip(before_teacher, state(teacher))]
    assert all(moved) if MODES[mode].teacher_learns else not any(moved)


@every_mode
def test_evaluate_and_predict_move_nothing(mode):
    model = taught(mode)
    train(model)
    networks = [model.student, *model.teachers]
    before = [state(network) for network in networks]
    model.evaluate(X, Y, verbose=0)
    model.predict(X, verbose=0)
    assert before == [state(network) for network in networks]


def test_the_callers_trainable_flags_are_left_alone():
    model = taught("trained_teacher")
    train(model)
    assert all(layer.trainable for network in (model.student, *model.teachers) for layer in network.layers)


def test_a_layer_that_the_caller_froze_stays():
    student = net(1)
    student.layers[1].trainable = False
    frozen = student.layers[1].kernel.numpy()
    train(taught(student=student))
    np.testing.assert_array_equal(student.layers[1].kernel, frozen)


@pytest.mark.parametrize(("mode", "who"), [("joint", "teacher"), ("co_study", "teacher"), ("co_study", "student"), ("trained_teacher", "student")])
def test_who_should_learn_and_has_nothing_that_does_is_refused(mode, who):
    model = taught(mode)
    (model.student if who == "student" else model.teachers[0]).trainable = False
    with pytest.raises(BadInput, match=f"{who}: expected trainable variables, as it learns, received none; set {who}.trainable = True before"):
        train(model)


def test_a_frozen_teacher_may_be_frozen():
    model = taught("trained_teacher")
    model.teachers[0].trainable = False
    train(model)


def test_the_answer_is_the_students():
    model = taught()
    np.testing.assert_array_equal(model(X), model.student(X))
    np.testing.assert_allclose(model.predict(X, verbose=0), model.student(X), rtol=1e-5, atol=1e-6)


# ---- What is learned -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["alone", "trained_teacher", "joint", "co_study"])
def test_without_soft_loss_it_is_plain_keras_step_for_step(mode):
    plain, student = net(1, decay=0.01), net(1, decay=0.01)
    plain.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    expected = plain.fit(X, Y, batch_size=4, epochs=3, shuffle=False, verbose=0).history
    got = train(taught(mode, student, optimizer=keras.optimizers.Adam(0.01), soft_weight=0.0, hard_weight=1.0), 3, 4)
    assert state(plain) == state(student)
    np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-6)


def test_a_learning_teacher_that_does_not_listen_is_trained_as_by_plain_keras():
    plain, teacher = net(2, decay=0.01), net(2, decay=0.01)
    plain.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    plain.fit(X, Y, batch_size=4, epochs=3, shuffle=False, verbose=0)
    train(taught("joint", teacher=teacher), 3, 4)
    assert state(plain) == state(teacher)


@every_mode
def test_the_history_is_numpys(mode):
    row, temperature = MODES[mode], 2.0
    student, teacher = net(1, decay=0.01), net(2, decay=0.02)
    z_s, z_t = np.float64(student(X, training=True)), np.float64(teacher(X, training=row.teacher_learns))
    student, teacher = net(1, decay=0.01), net(2, decay=0.02)  # anew: the calls above moved BatchNorm
    penalty, teachers_penalty = (np.float64(sum(network.losses)) for network in (student, teacher))
    history = train(taught(mode, student, teacher, temperature=temperature))
    assert history["hard_loss"] == pytest.approx([hard(z_s)], rel=1e-5)
    soft = kl(z_t, z_s, temperature) if row.teacher else 0.0
    assert history["loss"] == pytest.approx([row.hard_weight * hard(z_s) + row.soft_weight * soft + penalty], rel=1e-5)
    assert history.get("soft_loss", [0.0]) == pytest.approx([soft], rel=1e-4)
    if row.teacher_learns:
        said = row.soft_weight * kl(z_s, z_t, temperature) if row.teacher_listens else 0.0
        assert history["teacher_loss"] == pytest.approx([hard(z_t) + said + teachers_penalty], rel=1e-5)
    names = {"loss", "hard_loss"} | ({"soft_loss", "teacher_accuracy"} if row.teacher else set()) | ({"teacher_loss"} if row.teacher_learns else set())
    assert history.keys() == names
    if row.teacher:
        assert history["teacher_accuracy"] == pytest.approx([(z_t.argmax(-1) == Y).mean()])


def test_the_table_is_the_papers():
    rows = {name: (row.teacher, row.teacher_learns, row.teacher_listens, row.hard_weight, row.soft_weight) for name, row in MODES.items()}
    assert rows["alone"] == (False, False, False, 1.0, 0.0)
    assert rows["joint"] == (True, True, False, 0.5, 0.5)
    assert rows["trained_teacher"] == rows["finetune"] == (True, False, False, 0.5, 0.5)
    assert rows["co_study"] == (True, True, True, 1.0, 1.0)


@every_mode
def test_a_step_goes_down_its_own_loss_and_does_not_reach_into_the_other_network(mode):
    row = MODES[mode]
    student, teacher, same_student, same_teacher = net(1, norm=False), net(2, norm=False), net(1, norm=False), net(2, norm=False)
    labels, cross_entropy = tf.constant(Y), keras.losses.sparse_categorical_crossentropy
    with tf.GradientTape(persistent=True) as tape:
        z_s, z_t = same_student(X), same_teacher(X)
        student_loss = row.hard_weight * tf.reduce_mean(cross_entropy(labels, z_s, from_logits=True))
        if row.teacher:
            student_loss += row.soft_weight * tf.reduce_mean(losses.kl(z_s, z_t, 2.0))
        teacher_loss = tf.reduce_mean(cross_entropy(labels, z_t, from_logits=True))
        if row.teacher_listens:
            teacher_loss += row.soft_weight * tf.reduce_mean(losses.kl(z_t, z_s, 2.0))
    train(taught(mode, student, teacher if row.teacher else None, temperature=2.0))
    pairs = [(student, same_student, student_loss)] + ([(teacher, same_teacher, teacher_loss)] if row.teacher_learns else [])
    for got, start, loss in pairs:
        for new, old in zip(got.trainable_variables, start.trainable_variables):
            np.testing.assert_allclose(new, old - 0.1 * tape.gradient(loss, old), atol=1e-6)


@pytest.mark.parametrize("name", losses.BY_NAME)
def test_a_soft_loss_is_taken_by_name_or_as_a_function(name):
    temperature = 1.0 if name == "logit_mse" else 3.0
    by_name, as_function = (train(taught(soft_loss=loss, temperature=temperature))["soft_loss"] for loss in (name, losses.BY_NAME[name]))
    assert by_name == as_function
    loss = losses.BY_NAME[name]
    expected = np.mean(loss(net(1)(X, training=True), net(2)(X), temperature, *([Y] if loss in losses.WITH_LABELS else [])))
    assert by_name == pytest.approx([expected], rel=1e-4)


@pytest.mark.parametrize("weights", [None, [1.0, 1.0], [0.5, 2.0]])
@pytest.mark.parametrize("ensemble", soft.ENSEMBLES)
def test_several_teachers_are_weighed_and_summed_or_averaged_as_by_numpy(ensemble, weights):
    teachers, z = [net(2), net(3)], np.float64(net(1)(X, training=True))
    history = train(taught(teacher=teachers, teacher_weights=weights, ensemble=ensemble, temperature=2.0))
    told, share = [np.float64(teacher(X)) for teacher in teachers], weights or [1.0, 1.0]
    summed = sum(w * kl(one, z, 2.0) for w, one in zip(share, told))
    averaged = kl(np.average(told, axis=0, weights=share), z, 2.0)
    assert history["soft_loss"] == pytest.approx([{"sum": summed, "mean": averaged}[ensemble]], rel=1e-4)
    assert history["teacher_accuracy"] == pytest.approx([(np.average(told, axis=0, weights=share).argmax(-1) == Y).mean()])


@pytest.mark.parametrize(("classes", "labels"), [(1, Y[:, None] / 2), (3, np.ones((16, 2))), (3, np.ones((16, 3, 1)))], ids=["one logit", "others", "rank 3"])
def test_of_labels_that_are_no_classes_nobody_says_how_often_a_teacher_is_right(classes, labels):
    said = {"student": net(1, classes), "teacher": net(2, classes), "soft_loss": "logit_mse", "loss": lambda y, z: tf.reduce_mean(z**2, axis=-1)}
    history = taught(**said).fit(X, labels, verbose=0).history
    assert "soft_loss" in history and "teacher_accuracy" not in history


def test_how_often_a_teacher_is_right_is_asked_on_its_own_views_of_all_examples_by_labels_of_either_kind():
    views, expected = {"student": X, "teachers": (-3 * X,)}, (np.float64(net(2)(-3 * X)).argmax(-1) == Y).mean()
    assert expected != (np.float64(net(2)(X)).argmax(-1) == Y).mean()
    rows = keras.losses.CategoricalCrossentropy(from_logits=True)
    for model, labels in ((taught(), Y), (taught(), Y[:, None]), (taught(loss=rows), np.eye(3)[Y])):
        history = model.fit(views, labels, batch_size=5, verbose=0).history  # the last batch has one example
        assert history["teacher_accuracy"] == pytest.approx([expected])


@pytest.mark.parametrize("ensemble", soft.ENSEMBLES)
def test_one_teacher_has_its_weight_in_a_sum(ensemble):
    history, plain = (train(taught(ensemble=ensemble, teacher_weights=weights))["soft_loss"][0] for weights in ([3.0], None))
    assert history == pytest.approx({"sum": 3, "mean": 1}[ensemble] * plain, rel=1e-5)


@every_mode
def test_sample_weights_weigh_every_loss(mode):
    row, weights = MODES[mode], RNG.uniform(0, 2, 16).astype(np.float32)
    z_s, z_t = np.float64(net(1)(X, training=True)), np.float64(net(2)(X, training=row.teacher_learns))
    history = train(taught(mode), sample_weight=weights)
    soft = kl(z_t, z_s, 1.0, weights) if row.teacher else 0.0
    assert history["loss"] == pytest.approx([row.hard_weight * hard(z_s, weights) + row.soft_weight * soft], rel=1e-4)
    if row.teacher_learns:
        said = row.soft_weight * kl(z_s, z_t, 1.0, weights) if row.teacher_listens else 0.0
        assert history["teacher_loss"] == pytest.approx([hard(z_t, weights) + said], rel=1e-4)


@every_mode
def test_sample_weights_in_a_column_weigh_as_in_a_row(mode):
    weights = RNG.uniform(0, 2, 16).astype(np.float32)
    assert train(taught(mode), sample_weight=weights[:, None]) == train(taught(mode), sample_weight=weights)


def test_the_last_batch_counts_by_its_size():
    def losses(batch_size):
        keras.utils.set_random_seed(0)
        nets = [keras.Sequential([keras.Input((6,)), L.Dense(3)]) for _ in range(2)]
        model = Distiller(student=nets[0], teacher=nets[1], mode="co_study")
        model.compile(keras.optimizers.SGD(0.0), teacher_optimizer=keras.optimizers.SGD(0.0))
        return model.fit(X, Y, batch_size=batch_size, shuffle=False, verbose=0).history

    uneven, whole = losses(12), losses(16)
    assert uneven.keys() == whole.keys() >= {"loss", "hard_loss", "soft_loss", "teacher_loss"}
    for name, values in whole.items():
        assert uneven[name] == pytest.approx(values, rel=1e-5)


def test_weights_are_the_steps_constants_and_hints_are_saved(tmp_path):
    model = taught(hints=[HINT])
    with pytest.raises(AttributeError):
        model.soft_weight = 0.0
    with pytest.raises(BadInput, match="save: expected a network, received a Distiller; take distiller.student.save"):
        model.save(tmp_path / "x.keras")
    (projector,) = model.hints.projectors
    assert any(weight is projector.kernel for weight in model.weights)
    train(model)
    model.save_weights(tmp_path / "x.weights.h5")
    again = taught(hints=[HINT])
    again.load_weights(tmp_path / "x.weights.h5")
    np.testing.assert_array_equal(again.hints.projectors[0].kernel, projector.kernel)


@pytest.mark.parametrize("constant", ["hard_weight", "temperature", "soft_loss", "teacher_weights", "ensemble", "dampening", "freezing", "hints"])
def test_what_the_traced_step_would_ignore_can_not_be_set(constant):
    with pytest.raises(AttributeError):
        setattr(taught(), constant, 2.0)


@pytest.mark.parametrize("path", ["weights", "x.weights.h5"])
@pytest.mark.parametrize("fitted", [False, True])
def test_saved_weights_hold_optimizers_and_what_is_frozen(path, fitted, tmp_path):
    def made(seed):
        student = scheme.quantize(net(seed), scheme.Scheme(Interval(4), Interval(8), first=4, last=4))
        calibration.calibrate(student, X)
        model = Distiller(student=student, teacher=net(2), mode="co_study")
        optimizers = [keras.optimizers.Adam(0.01) for _ in range(3)]
        model.compile(optimizers[0], teacher_optimizer=optimizers[1], weight_interval_optimizer=optimizers[2], freezing=0.9)
        return model

    model, again = made(1), made(4)
    train(model, 2)
    for of_kernel in model.watch.states:
        of_kernel["frozen"].assign(tf.random.stateless_uniform(of_kernel["frozen"].shape, [1, 2]) < 0.5)
    if fitted:
        train(again)
    model.save_weights(tmp_path / path)
    again.load_weights(tmp_path / path)
    assert [variable.numpy().tobytes() for variable in again.weights] == [variable.numpy().tobytes() for variable in model.weights]
    for name, optimizer in model.optimizers.items():
        theirs = again.optimizers[name]
        assert theirs.iterations.numpy() == optimizer.iterations.numpy() == 2
        assert [variable.numpy().tobytes() for variable in theirs.variables] == [variable.numpy().tobytes() for variable in optimizer.variables], name
    for ours, theirs in zip(model.watch.states, again.watch.states, strict=True):
        assert all((ours[name].numpy() == theirs[name].numpy()).all() for name in ours) and 0 < ours["frozen"].numpy().mean() < 1
    assert train(again) == train(model)  # and they go on as one


def test_weights_of_another_distiller_are_refused(tmp_path):
    taught(student=net(1, norm=False)).save_weights(tmp_path / "x.weights.h5")
    with pytest.raises(BadInput, match="filepath: expected weights that this version saved of the same networks, compiled likewise, received others"):
        taught().load_weights(tmp_path / "x.weights.h5")


@pytest.mark.parametrize(
    "x, telling",
    [
        ({"student": X, "teacher": X}, "batch: expected views named .*, received 'teacher' as well"),
        ({"student": X, "teachers": (X[:, :4],)}, r"teacher: expected images \(6,\), which it takes, received \(4,\); give batches of {'student': images, 'te"),
    ],
)
def test_views_of_nobody_and_of_another_size_are_refused(x, telling):
    with pytest.raises(BadInput, match=telling):
        taught().fit(tf.data.Dataset.from_tensors((x, Y)), verbose=0)


@pytest.mark.parametrize("what", ["optimizer", "loss", "metrics"])
def test_what_is_of_keras_3_is_named(what):
    import keras as keras_3

    theirs = {"optimizer": keras_3.optimizers.SGD(), "loss": keras_3.losses.SparseCategoricalCrossentropy(), "metrics": [keras_3.metrics.Mean()]}[what]
    with pytest.raises(BadInput, match="compile: expected optimizers, losses and metrics of tf_keras .Keras 2., received .* of Keras 3"):
        Distiller(student=net(1), teacher=net(2)).compile(**{what: theirs})


def test_weights_are_loaded_into_the_strategy_of_the_networks_from_anywhere(tmp_path):
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")

    def made():
        with strategy.scope():
            return taught("alone", net(1), teacher=None, optimizer=keras.optimizers.Adam(0.01))

    first, again = made(), made()
    train(first)
    first.save_weights(tmp_path / "weights")
    scopes, build = [], again._build_optimizers
    object.__setattr__(again, "_build_optimizers", lambda: scopes.append(tf.distribute.get_strategy()) or build())
    again.load_weights(tmp_path / "weights")
    assert scopes == [strategy]


@pytest.mark.parametrize("name", ["x.h5", "x.hdf5", "x.keras"])
def test_kerass_older_format_is_refused(tmp_path, name):
    model = taught()
    for of_weights in (model.save_weights, model.load_weights):
        with pytest.raises(BadInput, match=f"filepath: expected NAME.weights.h5, or a path without .h5, received .*{name}"):
            of_weights(tmp_path / name)
    with pytest.raises(BadInput, match="filepath: "):
        model.save_weights(tmp_path / "x", save_format="h5")


@pytest.mark.parametrize("x", [{"images": X}, [X]], ids=["dict", "list"])
def test_batches_as_keras_takes_them_train(x):
    student, teacher = (keras.Model(one := keras.Input((6,), name="images"), net(seed)(one)) for seed in (1, 2))
    history = taught(student=student, teacher=teacher).fit(x, Y, batch_size=16, verbose=0).history
    for name, values in train(taught(student=net(1), teacher=net(2))).items():
        assert history[name] == pytest.approx(values, rel=1e-5), name


def test_an_unasked_teacher_may_be_uncalibrated():
    teacher = scheme.quantize(net(2), scheme.Scheme(Interval(8), Interval(8)))
    model = taught(teacher=teacher)
    model.evaluate(X, Y, verbose=0)
    model.enter("alone")
    train(model)


def test_a_teacher_without_intervals_is_named():
    teacher = scheme.quantize(net(2), scheme.Scheme(Interval(8), Interval(8)))
    with pytest.raises(BadInput, match="teacher: expected calibrated intervals, received none for .*; call kerakd.calibrate.teacher, images. first"):
        train(taught(teacher=teacher))


def test_a_subclassed_teacher_takes_images_of_any_size():
    class Means(keras.Model):
        def call(self, inputs):
            return tf.reduce_mean(inputs, [1, 2]) - 1.0

    student = keras.Sequential([keras.Input((None, None, 3)), L.Conv2D(3, 1), L.GlobalAveragePooling2D()])
    model = taught(student=student, teacher=Means())
    assert np.isfinite(model.fit(np.ones((4, 7, 5, 3)), np.zeros(4, int), verbose=0).history["loss"]).all()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_under_a_policy_of_the_callers_losses_are_float32(policy):
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = taught(student=net(1), teacher=net(2))
        history = train(model, validation_data=(X, Y))
        student = scheme.quantize(keras.Sequential([keras.Input((6,)), L.Dense(8), L.Dense(3, dtype="float32")]), scheme.Scheme(Interval(4), Interval(4)))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert student.output.dtype == tf.float32
    plain = train(taught(student=net(1), teacher=net(2)), validation_data=(X, Y))
    assert history["loss"] == pytest.approx(plain["loss"], rel=0.02) and history["val_loss"] == pytest.approx(plain["val_loss"], rel=0.05)


def test_what_a_caller_gives_one_optimizer_for_is_refused():
    with pytest.raises(BadInput, match="optimizer: expected one without use_ema"):
        taught(optimizer=keras.optimizers.Adam(use_ema=True))
    model = taught("alone", optimizer=keras.optimizers.Adam(use_ema=True))  # there is nobody else
    model.fit(X, Y, epochs=2, verbose=0)
    one = keras.optimizers.Adam()
    with pytest.raises(BadInput, match="teacher_optimizer: expected one of its own, received that of the student"):
        taught("co_study", optimizer=one, teacher_optimizer=one)


def test_class_weights_are_sample_weights_by_class():
    by_class = train(taught(), class_weight={0: 0.2, 1: 1.0, 2: 3.0})
    by_sample = train(taught(), sample_weight=np.float32([0.2, 1.0, 3.0])[Y])
    assert by_class == by_sample and by_class != train(taught())


def test_the_same_seed_gives_the_same_history():
    def run(seed):
        keras.utils.set_random_seed(seed)
        return taught("co_study").fit(X, Y, batch_size=4, epochs=2, verbose=0).history  # shuffled

    assert run(5) == run(5) != run(6)


def test_metrics_and_validation_are_the_students_and_need_no_teacher():
    model = taught("co_study", metrics=["accuracy"])
    history = train(model, validation_data=(X, Y))
    z = np.float64(model.student(X))
    assert history["val_loss"] == history["val_hard_loss"] == pytest.approx([hard(z)], rel=1e-5)
    assert history["val_accuracy"] == pytest.approx([(z.argmax(-1) == Y).mean()])
    assert not {"val_soft_loss", "val_teacher_loss"} & history.keys() and "accuracy" in history


def test_steps_per_execution_changes_nothing():
    one, many = taught("co_study"), taught("co_study", steps_per_execution=2)
    np.testing.assert_allclose(train(one, 2, 4)["loss"], train(many, 2, 4)["loss"], rtol=1e-6)
    for a, b in zip(one.student.get_weights(), many.student.get_weights()):
        np.testing.assert_allclose(a, b, atol=1e-6)


# ---- Batches of views ----------------------------------------------------------------------------------------------------------------------------


def fit(model, *batch, **kwargs):
    return model.fit(tf.data.Dataset.from_tensors(batch).repeat(kwargs.pop("steps", 1)), verbose=0, **kwargs).history


def test_each_teacher_answers_to_its_own_view_and_the_student_to_the_students():
    teachers, seen = [net(2), net(3)], [X[::-1].copy(), 2 * X]
    history = fit(taught(teacher=teachers), {"student": X, "teachers": tuple(seen)}, Y)
    z = np.float64(net(1)(X, training=True))
    assert history["soft_loss"] == pytest.approx([sum(kl(np.float64(teacher(x)), z, 1.0) for teacher, x in zip(teachers, seen))], rel=1e-4)
    assert history["hard_loss"] == pytest.approx([hard(z)], rel=1e-5)


def test_a_learning_teacher_learns_from_its_own_view():
    theirs = X[::-1].copy()
    history = fit(taught("co_study"), {"student": X, "teachers": (theirs,)}, Y)
    z_s, z_t = np.float64(net(1)(X, training=True)), np.float64(net(2)(theirs, training=True))
    assert history["soft_loss"] == pytest.approx([kl(z_t, z_s, 1.0)], rel=1e-4)
    assert history["teacher_loss"] == pytest.approx([hard(z_t) + kl(z_s, z_t, 1.0)], rel=1e-4)


def test_given_logits_are_what_the_teachers_said():
    said = RNG.normal(size=(16, 2, 3)).astype(np.float32)
    history = fit(taught(teacher=[net(2), net(3)], teacher_weights=[1.0, 0.5]), {"student": X, "logits": said}, Y)
    z = np.float64(net(1)(X, training=True))
    assert history["soft_loss"] == pytest.approx([kl(said[:, 0], z, 1.0) + 0.5 * kl(said[:, 1], z, 1.0)], rel=1e-4)


def test_a_batch_by_name_is_the_batch():
    plain, by_name = taught(metrics=["accuracy"]), taught(metrics=["accuracy"])
    assert fit(plain, X, Y, steps=3) == fit(by_name, {"student": X}, Y, steps=3)
    assert state(plain.student) == state(by_name.student)
    named = tf.data.Dataset.from_tensors(({"student": X, "teachers": (2 * X,)}, Y))
    assert by_name.evaluate(named, verbose=0) == plain.evaluate(X, Y, batch_size=16, verbose=0)


def test_batches_without_labels_train_as_with_a_hard_weight_of_zero():
    student, same, weights = net(1, decay=0.01), net(1, decay=0.01), {"hard_weight": 0.0, "soft_weight": 1.0}
    without = fit(taught(student=student, metrics=["accuracy"], **weights), X, steps=3)
    with_labels = fit(taught(student=same, metrics=["accuracy"], **weights), X, Y, steps=3)
    assert state(student) == state(same)
    assert without.keys() == {"loss", "hard_loss", "soft_loss"} and without["hard_loss"] == [0.0]
    assert (without["loss"], without["soft_loss"]) == (with_labels["loss"], with_labels["soft_loss"])


def test_without_labels_there_is_no_hard_loss_whatever_its_weight():
    history = fit(taught(hard_weight=5.0), {"student": X, "teachers": (2 * X,)})
    soft = kl(np.float64(net(2)(2 * X)), np.float64(net(1)(X, training=True)), 1.0)
    assert history["loss"] == pytest.approx([0.5 * soft], rel=1e-4)


def test_without_labels_it_is_validated_on_labels():
    model = taught(metrics=["accuracy"], hard_weight=0.0)
    history = fit(model, X, validation_data=(X, Y))
    z = np.float64(model.student(X))
    assert history["val_loss"] == pytest.approx([hard(z)], rel=1e-5)
    assert history["val_accuracy"] == pytest.approx([(z.argmax(-1) == Y).mean()])


def test_compiled_by_xla_it_trains_the_same():
    plain, xla = taught(), taught(jit_compile=True)
    np.testing.assert_allclose(train(plain, 2, 8)["loss"], train(xla, 2, 8)["loss"], rtol=1e-5)
    for a, b in zip(plain.student.get_weights(), xla.student.get_weights()):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "weights"), [("co_study", Interval(4)), ("alone", Interval(3, per_channel=True)), ("trained_teacher", quantizers.Ternary())], ids=str
)
def test_a_quantized_student_compiled_by_xla_trains_the_same(mode, weights):
    losses, last = [], []
    for jit_compile in (False, True):
        student = scheme.quantize(net(1), scheme.Scheme(weights, Interval(4)))
        calibration.calibrate(student, X)
        model = taught(mode, student=student, jit_compile=jit_compile, metrics=["accuracy"])
        losses.append(train(model, 3, 8)["loss"])
        last.append((model.evaluate(X, Y, verbose=0, return_dict=True)["loss"], model.predict(X, verbose=0)))
    np.testing.assert_allclose(*losses, rtol=1e-4)
    np.testing.assert_allclose(last[0][0], last[1][0], rtol=1e-3)
    np.testing.assert_allclose(last[0][1], last[1][1], atol=0.05)  # an 8-bit step of the logits


@pytest.mark.parametrize("mode", ["joint", "co_study", "trained_teacher"])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_in_half_precision_it_trains_nearly_the_same(mode, policy):
    losses = []
    for chosen in ("float32", policy):
        student = scheme.quantize(net(1), scheme.Scheme(Interval(8), Interval(8)))
        calibration.calibrate(student, X)
        student, teacher = recast(student, chosen), recast(net(2), chosen)
        model = taught(mode, student, teacher, activation_interval_optimizer=keras.optimizers.SGD(0.01))
        losses.append(train(model, 3, 8))
    half = policy == "mixed_float16"
    every = (model.optimizer, model.activation_interval_optimizer, *([model.teacher_optimizer] if MODES[mode].teacher_learns else []))
    assert {isinstance(one, keras.mixed_precision.LossScaleOptimizer) for one in every} == {half}
    assert {one.iterations.numpy() for one in every} == {6}
    for name, values in losses[0].items():
        # where TensorFlow leaves oneDNN's kernels off, as without AVX512, roundings are others, and an image may be at a tie
        one_image = 1.01 / len(X) if name.endswith("accuracy") and not IsMklEnabled() else 0
        np.testing.assert_allclose(losses[1][name], values, rtol=0.02, atol=max(1e-3, one_image), err_msg=name)
    assert {variable.dtype for variable in student.trainable_variables} == {tf.float32} and student(X).dtype == tf.float32


def test_a_loss_scale_of_the_callers_own_scales_the_loss(monkeypatch):
    """In float32, where nobody else would."""
    optimizer = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.SGD(0.1), dynamic=False, initial_scale=64.0)
    scale, scaled = type(optimizer).get_scaled_loss, []
    monkeypatch.setattr(type(optimizer), "get_scaled_loss", lambda self, loss: scaled.append(loss) or scale(self, loss))
    assert train(taught("alone", net(1), optimizer=optimizer)) == train(taught("alone", net(1), optimizer=keras.optimizers.SGD(0.1))) and scaled


def test_an_optimizer_for_a_teacher_that_comes_later_is_no_harm():
    model, plain = taught("alone", teacher_optimizer=keras.optimizers.SGD(0.1)), taught("alone")
    assert train(model) == train(plain) and state(model.student) == state(plain.student)


# ---- Phases --------------------------------------------------------------------------------------------------------------------------------------


def test_entering_another_mode_goes_on_from_where_it_was():
    student, teacher = net(1), net(2)
    model = taught("alone", student, teacher, teacher_optimizer=keras.optimizers.SGD(0.1), optimizer=keras.optimizers.Adam(0.01))
    for steps, mode in enumerate(("alone", "co_study", "trained_teacher"), 1):
        before, before_teacher = state(student), state(teacher)
        model.enter(mode)
        assert state(student) == before
        history = train(model)
        assert model.mode_name == mode and ("teacher_loss" in history) == MODES[mode].teacher_learns
        assert state(student) != before and (state(teacher) != before_teacher) == MODES[mode].teacher_learns
        assert int(model.optimizer.iterations) == steps


def test_a_callback_may_enter_another_mode_within_a_fit():
    class Turn(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.enter("trained_teacher", hard_weight=0.0, soft_weight=0.0)

    once, twice = (taught("alone", teacher=net(2)) for _ in range(2))
    once.fit(X, Y, epochs=1, shuffle=False, verbose=0)
    history = twice.fit(X, Y, epochs=2, shuffle=False, verbose=0, callbacks=[Turn()]).history
    assert history["loss"][1] == pytest.approx(sum(map(float, twice.student.losses)), abs=1e-6) and "soft_loss" in history
    once.enter("trained_teacher", hard_weight=0.0, soft_weight=0.0)
    once.fit(X, Y, epochs=1, shuffle=False, verbose=0)
    assert state(once.student) == state(twice.student)


@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_epoch_end"])
def test_a_phase_without_a_teacher_counts_in_no_soft_loss_of_the_next(hook):
    modes = ["trained_teacher", "alone", "alone", "trained_teacher"]

    class Turn(keras.callbacks.Callback):
        pass

    def turn(self, epoch, logs=None):
        self.model.enter(modes[min(epoch + (hook == "on_epoch_end"), 3)])

    setattr(Turn, hook, turn)
    model = taught(optimizer=keras.optimizers.SGD(0.0))
    history = model.fit(X, Y, batch_size=16, epochs=4, verbose=0, callbacks=[Turn()]).history
    expected = kl(np.float64(net(2)(X)), np.float64(net(1)(X, training=True)), 1.0)
    assert history["soft_loss"] == pytest.approx([expected] * 2, rel=1e-4)  # of the epochs that have one
    assert history["teacher_accuracy"][0] == history["teacher_accuracy"][1]


@pytest.mark.parametrize("late", [False, True])
def test_the_weight_decay_of_an_optimizer_reaches_kernels_and_no_interval(late):
    student = scheme.quantize(net(1), scheme.Scheme(Interval(4), Interval(4)))
    calibration.calibrate(student, X)
    left_out = [variable for variable in student.trainable_variables if "bias" in variable.name]
    optimizer = keras.optimizers.AdamW(0.0, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=left_out)
    model = Distiller(student=student, mode="alone")
    model.compile(optimizer)
    if late:
        optimizer.exclude_from_weight_decay(var_list=left_out)  # Keras forgets what was left out before
    for variable in left_out:
        variable.assign_add(tf.ones_like(variable))
    before = {variable.name: variable.numpy() for variable in student.trainable_variables}
    optimizer.learning_rate = 1e-9  # of which the decay alone is to be seen
    optimizer.weight_decay = 1e8
    train(model)
    for variable in student.trainable_variables:
        kept = "interval" in variable.name or "bias" in variable.name
        np.testing.assert_allclose(variable, before[variable.name] * (1 if kept else 0.9), atol=1e-6)


@pytest.mark.parametrize(
    "batch, telling",
    [
        ({"teachers": (X,)}, "teachers: expected in each batch a tuple of 2, a view for each teacher, received 1"),
        ({"teachers": X}, "teachers: expected in each batch a tuple of 2, a view for each teacher, received"),
        ({"logits": np.zeros((16, 3), np.float32)}, r"logits: expected in each batch those of all teachers, \[n, 2, 3\], received"),
        ({"logits": np.zeros((16, 2, 4), np.float32)}, r"logits: expected in each batch those of all teachers, \[n, 2, 3\], received"),
    ],
)
def test_views_and_logits_of_other_teachers_are_refused(batch, telling):
    model = taught(teacher=[net(2), net(3)])
    with pytest.raises(BadInput, match=telling):
        model.fit(tf.data.Dataset.from_tensors(({"student": X, **batch}, Y)), verbose=0)


def test_logits_are_refused_where_the_teacher_learns():
    model = taught("joint")
    with pytest.raises(BadInput, match="logits: expected none in mode 'joint', in which the teacher learns"):
        model.fit(tf.data.Dataset.from_tensors(({"student": X, "logits": np.zeros((16, 1, 3), np.float32)}, Y)), verbose=0)


class Called(keras.Model):
    """A teacher that is only called."""

    def __init__(self, classes=3):
        super().__init__()
        self.flatten, self.head = L.Flatten(), L.Dense(classes)

    def call(self, x, training=None):
        return self.head(self.flatten(x))


def test_a_subclassed_teacher_keeps_its_size_and_is_asked_on_its_own_views():
    called, built = Called(), Called()
    called(tf.zeros([1, 12]))
    built.build((None, 12))  # what it takes Keras does not keep
    theirs = RNG.normal(size=(16, 12)).astype(np.float32)
    for teacher in (called, built):
        model = taught(teacher=teacher, optimizer=keras.optimizers.SGD(0.0))
        history = model.fit(tf.data.Dataset.from_tensors(({"student": X, "teachers": (theirs,)}, Y)), verbose=0).history
        assert teacher.head.kernel.shape == (12, 3)
        assert history["soft_loss"] == pytest.approx([kl(np.float64(teacher(theirs)), np.float64(net(1)(X, training=True)), 1.0)], rel=1e-4)
    other = Called(4)
    other.build((None, 12))
    model = taught(teacher=other)
    with pytest.raises(BadInput, match=r"teacher: expected logits \[n, 3\], as the student has, received"):
        model.fit(tf.data.Dataset.from_tensors(({"student": X, "teachers": (theirs,)}, Y)), verbose=0)


def test_a_checkpoint_of_weights_is_kept_without_a_word(tmp_path, caplog):
    train(taught(), callbacks=[keras.callbacks.ModelCheckpoint(str(tmp_path / "x.weights.h5"), save_weights_only=True)])
    assert (tmp_path / "x.weights.h5").exists() and "non-serializable" not in caplog.text


def test_what_nothing_would_read_is_refused():
    for argument in ({"hint_loss": "attention"}, {"hint_weight": 7.0}):
        with pytest.raises(BadInput, match="hint_loss, hint_weight: expected none without hints, received"):
            taught(**argument)
    with pytest.raises(BadInput, match="temperature: expected 1 with logit_mse, which knows none, received 4"):
        taught(soft_loss="logit_mse", temperature=4.0)
    for name in ("weight_interval_optimizer", "activation_interval_optimizer"):
        with pytest.raises(BadInput, match=f"{name}: expected none for a student without learned intervals of"):
            taught(**{name: "sgd"})


def test_a_soft_loss_may_be_one_with_other_arguments_of_its_own():
    histories = [
        train(taught(soft_loss=loss))["soft_loss"] for loss in ("dkd", functools.partial(losses.dkd, beta=8.0), functools.partial(losses.dkd, beta=0.5))
    ]
    assert histories[0] == histories[1] != histories[2]


def test_a_mode_has_the_weights_asked_for_last():
    model = Distiller(student=net(1), teacher=net(2), mode="co_study", hard_weight=0.25)
    assert (model.hard_weight, model.soft_weight) == (0.25, 1.0)
    model.enter("trained_teacher", soft_weight=0.75)
    assert (model.hard_weight, model.soft_weight) == (0.25, 0.75)
    model.enter("trained_teacher", hard_weight=0.0)
    assert (model.hard_weight, model.soft_weight) == (0.0, 0.5)
    model.enter("alone")
    assert (model.hard_weight, model.soft_weight) == (1.0, 0.0)  # the constructor's are of what it weighs against the teacher
    for mode, weights, telling in (
        ("alone", {"soft_weight": 3.0}, "soft_weight: expected none in mode 'alone', which has no soft loss, received 3.0"),
        ("trained_teacher", {"hard_weight": -1.0}, "hard_weight: expected a number of 0 or more, received -1.0"),
    ):
        with pytest.raises(BadInput, match=telling):
            model.enter(mode, **weights)
    assert (model.mode_name, model.hard_weight, model.soft_weight) == ("alone", 1.0, 0.0)


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.CategoricalCrossentropy(),
        "kl_divergence",
        keras.losses.KLDivergence(),
    ],
)
def test_a_loss_that_would_read_logits_as_probabilities_is_refused(loss):
    with pytest.raises(
        BadInput,
        match="received '?((sparse_c|C)ategorical_?[cC]rossentropy|kl_divergence|KLDivergence)'?, which takes probabilities; give .*from_logits=True",
    ):
        Distiller(student=net(1), mode="alone").compile("adam", loss=loss)


@pytest.mark.parametrize(
    "metric",
    [
        *("sparse_categorical_crossentropy", "CE", "kld", keras.metrics.categorical_crossentropy),
        *(keras.metrics.SparseCategoricalCrossentropy(), keras.metrics.KLDivergence(), keras.metrics.AUC()),
        *(keras.metrics.MeanMetricWrapper(one, name="wrapped") for one in (keras.losses.sparse_categorical_crossentropy, keras.losses.kl_divergence)),
    ],
    ids=lambda metric: metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__),
)
@pytest.mark.parametrize("kind", ["metrics", "weighted_metrics"])
def test_a_metric_that_would_read_logits_as_probabilities_is_refused(kind, metric):
    with pytest.raises(BadInput, match=f"^{kind}: expected one of logits, received .*, which takes probabilities; give tf_keras.metrics.*from_logits=True"):
        Distiller(student=net(1), mode="alone").compile("adam", **{kind: ["accuracy", metric]})


@pytest.mark.parametrize(
    ("metric", "remedies"),
    [
        *((one, 2) for one in (keras.metrics.Precision(), keras.metrics.Recall(0.5), "Precision")),
        *((one, 1) for one in (keras.metrics.TruePositives(), keras.metrics.FalseNegatives([0.5]), keras.metrics.BinaryAccuracy(), "binary_accuracy")),
        *((one, 1) for one in (keras.metrics.F1Score(threshold=0.5), keras.metrics.FBetaScore(threshold=0.3), keras.metrics.binary_accuracy)),
        *((one, 0) for one in (keras.metrics.SensitivityAtSpecificity(0.9), keras.metrics.PrecisionAtRecall(0.5))),
    ],
)
def test_metrics_that_compare_logits_with_probabilities_are_refused_and_each_remedy_is_taken(metric, remedies):
    told = r"^metrics: expected one of logits, received .*, which compares them with numbers from 0 to 1; (give tf_keras|leave it out)"
    with pytest.raises(BadInput, match=told) as refused:
        Distiller(student=net(1), mode="alone").compile("adam", metrics=[metric])
    found = re.findall(r"tf_keras\.metrics\.(\w+)\((\w+)=(\w+)\)", str(refused.value))
    assert len(found) == remedies
    for name, argument, value in found:
        instead = getattr(keras.metrics, name)(**{argument: None if value == "None" else int(value)})
        Distiller(student=net(1), mode="alone").compile("adam", metrics=[instead])


UNLABELLED = {
    "an array": lambda: {"validation_data": X},
    "labels that are none": lambda: {"validation_data": (X, None)},
    "a tuple of one": lambda: {"validation_data": (X,)},
    "a dataset": lambda: {"validation_data": tf.data.Dataset.from_tensor_slices(X).batch(8)},
    "a share": lambda: {"validation_split": 0.5},
}


@pytest.mark.parametrize("name", UNLABELLED)
def test_validation_without_labels_is_refused_before_a_step(name):
    model = taught()
    before = state(model.student)
    with pytest.raises(BadInput, match="validation_(data|split): expected images with labels, received images alone; leave it out, or give their labels"):
        model.fit(X, **UNLABELLED[name](), verbose=0)
    assert state(model.student) == before


def test_evaluating_without_labels_is_refused():
    with pytest.raises(BadInput, match="labels: expected batches with labels to evaluate on, received images alone; `predict` needs none"):
        taught().evaluate(X, verbose=0)


def test_a_checkpoint_of_a_whole_distiller_is_refused_before_a_step(tmp_path):
    model = taught()
    before = state(model.student)
    for whole in (keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras")), [keras.callbacks.ModelCheckpoint(str(tmp_path / "best"))]):
        with pytest.raises(BadInput, match=r"callbacks: expected a ModelCheckpoint of weights, received one of the whole model.*save_weights_only=True"):
            train(model, callbacks=whole)
    assert state(model.student) == before
    train(model, callbacks=[keras.callbacks.ModelCheckpoint(str(tmp_path / "best.weights.h5"), save_weights_only=True)])
    assert (tmp_path / "best.weights.h5").exists()

    class OfStudent(keras.callbacks.ModelCheckpoint):
        def set_model(self, model):
            super().set_model(model.student)

    train(model, callbacks=[OfStudent(str(tmp_path / "best.keras"))])
    assert keras.models.load_model(tmp_path / "best.keras").output_shape == model.student.output_shape


@pytest.mark.parametrize("name", ["best.h5", "best.hdf5", "best.keras"])
def test_a_checkpoint_of_weights_that_could_not_be_saved_is_refused_before_a_step(name, tmp_path):
    model = taught()
    before = state(model.student)
    with pytest.raises(BadInput, match="filepath: expected NAME.weights.h5, or a path without .h5, received"):
        train(model, callbacks=[keras.callbacks.ModelCheckpoint(str(tmp_path / name), save_weights_only=True)])
    assert state(model.student) == before


def test_a_distiller_made_from_a_configuration_is_refused():
    with pytest.raises(BadInput, match="from_config: expected a network, received a Distiller"):
        keras.models.clone_model(taught())


def test_the_metrics_names_are_those_of_what_evaluate_answers():
    model = taught("co_study", metrics=["accuracy"])
    train(model)
    named = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert list(zip(model.metrics_names, model.evaluate(X, Y, verbose=0), strict=True)) == list(named.items())
    assert list(named) == ["loss", "hard_loss", "accuracy"]
    still = taught("co_study", optimizer=keras.optimizers.SGD(0.0), teacher_optimizer=keras.optimizers.SGD(0.0), metrics=["accuracy"])
    answered, told = (still.train_on_batch(X, Y, return_dict=by_name) for by_name in (False, True))
    assert answered[:3] == pytest.approx([told[name] for name in still.metrics_names], rel=1e-3)


def test_after_a_fit_that_was_stopped_the_next_validates_on_its_own_images():
    def stop(epoch, logs):
        raise KeyboardInterrupt

    model = taught()
    with pytest.raises(KeyboardInterrupt):
        train(model, validation_data=(X, Y), callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=stop)])
    found = train(model, validation_data=(X[:5], Y[:5]))
    assert found["val_loss"] == [pytest.approx(model.evaluate(X[:5], Y[:5], verbose=0, return_dict=True)["loss"])]


def test_predicting_without_intervals_says_what_is_missing():
    student = scheme.quantize(net(1), scheme.Scheme(Interval(4), Interval(4)))
    with pytest.raises(BadInput, match="student: expected calibrated intervals, received none for .*; call kerakd.calibrate"):
        Distiller(student=student, mode="alone").predict(X, verbose=0)


def test_metrics_with_a_threshold_of_logits_are_taken():
    told = keras.metrics.Precision(0), keras.metrics.Precision(top_k=1), keras.metrics.Recall([0, 1]), keras.metrics.BinaryAccuracy(threshold=0)
    Distiller(student=net(1), mode="alone").compile("adam", metrics=[*told, keras.metrics.F1Score()])


def test_metrics_of_logits_are_taken():
    model = Distiller(student=net(1), mode="alone")
    entropy, top = keras.metrics.SparseCategoricalCrossentropy(from_logits=True), keras.metrics.SparseTopKCategoricalAccuracy(2)
    model.compile("adam", metrics=["accuracy", entropy, top])
    history = model.fit(X, Y, verbose=0).history
    assert history["sparse_categorical_crossentropy"] == [pytest.approx(history["hard_loss"][0], rel=1e-4)]


class Untold(keras.losses.Loss):
    """A user's own, which does not say what it is made of."""

    def call(self, labels, logits):
        return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)

    def get_config(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    "loss",
    [
        None,
        "mse",
        Untold(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        functools.partial(keras.losses.sparse_categorical_crossentropy, from_logits=True),
    ],
)
def test_a_loss_of_logits_is_taken(loss):
    model = Distiller(student=net(1), mode="alone")
    model.compile("adam", loss=loss)
    assert np.all(np.isfinite(model.evaluate(X, Y if loss != "mse" else np.eye(3, dtype=np.float32)[Y], verbose=0)))


@pytest.mark.parametrize("metric", ["accuracy", "Acc", "binary_accuracy", keras.metrics.binary_accuracy])
def test_an_accuracy_by_name_is_refused_of_one_logit_as_its_threshold_is_no_logits(metric):
    model = Distiller(student=keras.Sequential([keras.Input((4,)), L.Dense(1)]), mode="alone")
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    with pytest.raises(BadInput, match=r"metrics: expected an accuracy of logits for a student of one, received .*; give .*BinaryAccuracy\(threshold=0\)"):
        model.compile("adam", loss, metrics=[metric])
    model.compile("adam", loss, metrics=[keras.metrics.BinaryAccuracy(threshold=0)])
    images = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    assert model.evaluate(images, np.float32(model.student(images) > 0), verbose=0, return_dict=True)["binary_accuracy"] == 1


# ---- Quantized students and users' own -----------------------------------------------------------------------------------------------------------


def quantized():
    layers = [L.Conv2D(2, 3, name="c1"), L.ReLU(name="relu"), L.Conv2D(2, 3, activation="relu", name="c2"), L.Flatten(), L.Dense(3, name="logits")]
    model = keras.Sequential([keras.Input((8, 8, 1), name="image"), *layers])
    return scheme.quantize(model, scheme.Scheme(Interval(4), Interval(4))), RNG.normal(size=(8, 8, 8, 1)).astype(np.float32)


@pytest.mark.parametrize("own, name", [("weight_interval_optimizer", "kernel_interval"), ("activation_interval_optimizer", "activation_interval")])
def test_an_interval_optimizer_moves_its_intervals_and_nothing_else(own, name):
    student, images = quantized()
    calibration.calibrate(student, images)
    assert not any("image_out" in v.name for v in student.trainable_variables)  # images keep their range
    student.get_layer("logits").layer.kernel.assign_add(0.1 * tf.sign(student.get_layer("logits").layer.kernel))  # so that no interval is at rest
    before = {v.ref(): v.numpy() for v in student.trainable_variables}
    model = taught("alone", student, optimizer=keras.optimizers.SGD(0.0), **{own: keras.optimizers.Adam(0.01)})
    model.fit(images, Y[:8], verbose=0)
    moved = {v.name for v in student.trainable_variables if not np.array_equal(v, before[v.ref()])}
    own_names = {v.name for v in student.trainable_variables if name in v.name}
    assert moved and moved <= own_names and len(moved) >= len(own_names) - 1


def test_without_its_own_optimizer_an_interval_moves_with_the_weights():
    student, images = quantized()
    calibration.calibrate(student, images, "mse")
    before = [v.numpy() for v in student.trainable_variables]
    taught("alone", student, optimizer=keras.optimizers.Adam(0.01)).fit(images, Y[:8], verbose=0)
    moved = [v.name for v, old in zip(student.trainable_variables, before) if not np.array_equal(v, old)]
    assert any("kernel_interval" in name for name in moved) and any("activation_interval" in name for name in moved)
    assert any("kernel:0" in name for name in moved)


def test_a_student_without_calibrated_intervals_is_refused_and_not_moved():
    student, images = quantized()
    model, before = taught("alone", student), state(student)
    with pytest.raises(BadInput, match=r"student: .*received none for image_out, relu_out, c2_relu_out, logits_out; call kerakd.calibrate"):
        model.fit(images, Y[:8], verbose=0)
    with pytest.raises(BadInput, match="expected calibrated intervals"):
        model.evaluate(images, Y[:8], verbose=0)
    assert state(student) == before


def test_a_subclass_with_its_own_train_step_is_trained_by_it():
    class Doubled(Distiller):
        def train_step(self, data):
            results = super().train_step(data)
            return {**results, "twice": 2 * results["loss"]}

    model = Doubled(student=net(1), teacher=net(2))
    model.compile(keras.optimizers.SGD(0.1))
    history = train(model)
    assert history["twice"] == pytest.approx([2 * history["loss"][0]])


def test_a_subclassed_teacher_is_only_called():
    class Constant(keras.Model):
        def call(self, inputs, training=None):
            return tf.tile([[3.0, 0.5, -2.0]], [tf.shape(inputs)[0], 1])

    z = np.float64(net(1)(X, training=True))
    assert train(taught(teacher=Constant()))["soft_loss"] == pytest.approx([kl(np.array([[3.0, 0.5, -2.0]]), z, 1.0)], rel=1e-4)


class Halved(keras.Model):
    """A functional model with a call() of its own."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=training) / 2


def halved():
    model = net(2)
    return Halved(model.inputs, model.outputs)


def test_a_functional_teacher_with_a_call_of_its_own_is_only_called():
    z_s, z_t = np.float64(net(1)(X, training=True)), np.float64(net(2)(X)) / 2
    assert train(taught(teacher=halved()))["soft_loss"] == pytest.approx([kl(z_t, z_s, 1.0)], rel=1e-4)


# ---- Refusals ------------------------------------------------------------------------------------------------------------------------------------


def ends_in_softmax(as_layer):
    x = keras.Input((6,))
    return keras.Model(x, L.Softmax(name="out")(L.Dense(3)(x)) if as_layer else L.Dense(3, activation="softmax", name="out")(x))


def keras_3_net():
    import keras as keras_3

    return keras_3.Sequential([keras_3.Input((6,)), keras_3.layers.Dense(3)])


@pytest.mark.parametrize(
    "kwargs, telling",
    [
        (lambda: {"student": keras_3_net(), "mode": "alone"}, "student: expected a tf_keras .Keras 2. model, received a Keras 3 one"),
        (lambda: {"student": net(1), "teacher": keras_3_net()}, "teacher: expected a tf_keras .Keras 2. model, received a Keras 3 one"),
        (lambda: {"student": net(1), "teacher": net(2, classes=4)}, "teacher: expected 3 classes, as the student has, received 4"),
        (lambda: {"student": net(1), "teacher": [net(2), net(3, classes=4)]}, "teacher: expected 3 classes, as the student has, received 4"),
        (lambda: {"student": ends_in_softmax(False), "mode": "alone"}, "student: expected logits, received probabilities: 'out' ends in softmax"),
        (lambda: {"student": ends_in_softmax(True), "mode": "alone"}, "student: expected logits, received probabilities: 'out' ends in softmax"),
        (lambda: {"student": net(1), "teacher": ends_in_softmax(False)}, "teacher: expected logits, received probabilities"),
        (
            lambda: {"student": net(1), "teacher": keras.Sequential([keras.Input((6,)), L.Dense(3), L.Lambda(tf.nn.softmax)])},
            "teacher: expected logits, received probabilities",
        ),
        (lambda: {"student": net(1)}, "teacher: expected a model in mode 'trained_teacher', received none"),
        (lambda: {"student": net(1), "teacher": [net(2), net(3)], "mode": "co_study"}, "teacher: expected one in mode 'co_study'.*received 2"),
        (lambda: {"student": net(1), "mode": "tutoring"}, "mode: expected one of alone, joint, .* received 'tutoring'"),
        (lambda: {"student": net(1), "teacher": net(2), "soft_loss": "hinge"}, "soft_loss: expected a function or one of kl, .* received 'hinge'"),
        (lambda: {"student": net(1), "teacher": net(2), "temperature": 0}, "temperature: expected more than 0, received 0"),
        (lambda: {"student": net(1), "teacher": net(2), "temperature": -1.0}, "temperature: expected more than 0, received -1.0"),
        (lambda: {"student": net(1), "teacher": net(2), "temperature": "2"}, "temperature: expected more than 0, received .2."),
        (lambda: {"student": net(1), "teacher": net(2), "temperature": float("nan")}, "temperature: expected more than 0, received nan"),
        (lambda: {"student": net(1), "teacher": net(2), "soft_weight": -1}, "soft_weight: expected a number of 0 or more, received -1"),
        (lambda: {"student": net(1), "teacher": net(2), "hard_weight": float("inf")}, "hard_weight: expected a number of 0 or more, received inf"),
        (lambda: {"student": net(1), "teacher": net(2), "hint_weight": float("nan")}, "hint_weight: expected a number of 0 or more, received nan"),
        (lambda: {"student": net(1), "teacher": net(2), "ensemble": "vote"}, "ensemble: expected one of sum, mean, received 'vote'"),
        (lambda: {"student": net(1), "teacher": net(2), "teacher_weights": [1, 2]}, "teacher_weights: expected a positive number for each of 1 teachers"),
        (lambda: {"student": (one := net(1)), "teacher": one}, "teacher: expected a network of its own, received one that shares '.*' with the student"),
        (lambda: {"student": net(1), "mode": "alone", "hard_weight": 0.5}, "hard_weight: expected none without a teacher, received 0.5"),
        (lambda: {"student": net(1), "mode": "alone", "soft_weight": 0.5}, "soft_weight: expected none without a teacher, received 0.5"),
        (lambda: {"student": net(1), "teacher": net(2), "teacher_weights": [np.nan]}, r"teacher_weights: expected a positive number.*received \[nan\]"),
        (lambda: {"student": net(1), "teacher": net(2), "teacher_weights": [0]}, r"teacher_weights: expected a positive number.*received \[0\]"),
        (lambda: {"student": net(1), "teacher": halved(), "hints": [HINT]}, "teacher: expected a model that computes what its layers do, received Halved"),
        (lambda: {"student": net(1), "mode": "alone", "hints": [HINT]}, "hints: expected a teacher beside them, received none"),
        (lambda: {"student": net(1), "teacher": net(2), "mode": "co_study", "hints": [HINT]}, "hints: expected none in mode 'co_study'"),
        (lambda: {"student": net(1), "teacher": net(2), "hints": [HINT], "teacher_cache": object()}, "hints: expected none beside teacher_cache"),
        (lambda: {"student": net(1), "teacher": net(2), "mode": "joint", "teacher_cache": object()}, "teacher_cache: expected none in mode 'joint'"),
    ],
)
def test_what_cannot_be_is_refused(kwargs, telling):
    with pytest.raises(BadInput, match=telling):
        Distiller(**kwargs())


def test_a_mode_that_hints_and_caches_cannot_have_is_not_entered():
    model = taught(hints=[HINT])
    with pytest.raises(BadInput, match="hints: expected none in mode 'co_study'"):
        model.enter("co_study")
    assert model.mode_name == "trained_teacher"


class Unjoined:
    """A cache whose `join` the batches did not go through."""


@pytest.mark.parametrize(
    "kwargs, batch, telling",
    [
        ({"soft_loss": "dkd"}, (X,), "soft_loss: expected labels in the batches for a loss that uses them, received none"),
        ({"hints": [HINT]}, ({"student": X, "logits": np.zeros((16, 1, 3), np.float32)}, Y), "hints: expected batches of which the teacher is asked"),
        ({"teacher_cache": Unjoined()}, (X, Y), "teacher_cache: expected batches of its `join`, received others"),
        ({"soft_loss": "dkd"}, (X, np.eye(3, dtype=np.int32)[Y]), r"labels: expected class numbers .n., received \(.*, 3\); give compile"),
        ({"mode": "alone"}, (X,), "labels: expected batches with labels in mode 'alone', received images alone"),
        ({"mode": "joint"}, (X,), "labels: expected batches with labels in mode 'joint'"),
    ],
)
def test_batches_that_do_not_fit_are_refused(kwargs, batch, telling):
    model = taught(**kwargs)
    before = state(model.student)
    with pytest.raises(BadInput, match=telling):
        fit(model, *batch)
    assert state(model.student) == before


def test_predictions_of_views_are_those_of_the_students():
    views = tf.data.Dataset.from_tensor_slices({"student": X, "teachers": (2 * X,)}).batch(16)
    np.testing.assert_array_equal(taught().predict(views, verbose=0), taught().predict(X, batch_size=16, verbose=0))


@pytest.mark.parametrize("mode", [name for name, row in MODES.items() if row.teacher_learns])
def test_a_learning_teacher_without_an_optimizer_is_refused(mode):
    with pytest.raises(BadInput, match=f"teacher_optimizer: expected an optimizer in mode '{mode}'"):
        Distiller(student=net(1), teacher=net(2), mode=mode).compile("sgd")
    model = taught("trained_teacher")
    with pytest.raises(BadInput, match=f"teacher_optimizer: expected an optimizer in mode '{mode}'"):
        model.enter(mode)
    assert model.mode_name == "trained_teacher"


@pytest.mark.parametrize(
    "labels, telling",
    [
        (np.where(Y == 2, 3, Y), "labels: expected 0 to 2, as the networks have 3 classes, received 0 to 3"),
        (np.where(Y == 0, -1, Y)[:, None], "received -1 to 2"),
    ],
)
def test_labels_outside_the_classes_are_refused_and_nothing_moves(labels, telling):
    model = taught()
    before = state(model.student)
    with pytest.raises(BadInput, match=telling):
        model.fit(X, labels, verbose=0)
    assert state(model.student) == before


def test_labels_that_are_no_class_numbers_are_the_losss_to_judge():
    checks.check_labels(np.eye(3, dtype=np.int64)[Y], 3)  # one-hot
    checks.check_labels(np.float32([0.0, 7.0]), 3)
    model = taught("alone", loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    history = model.fit(X, np.eye(3, dtype=np.float32)[Y], batch_size=16, verbose=0).history
    assert history["loss"] == pytest.approx([hard(np.float64(net(1)(X, training=True)))], rel=1e-5)


def test_a_student_that_ends_in_softmax_is_refused_however_it_is_dressed():
    inside = keras.Sequential([keras.Input((4,)), L.Dense(3, activation=tf.nn.softmax)])
    inputs = keras.Input((4,))
    for net in (inside, keras.Model(inputs, inside(inputs)), keras.Model(inputs, L.Softmax()(L.Dense(3)(inputs)))):
        with pytest.raises(BadInput, match="expected logits, received probabilities"):
            scheme.quantize(net, scheme.Scheme(Interval(4), Interval(8)))
        with pytest.raises(BadInput, match="expected logits, received probabilities"):
            Distiller(student=net, mode="alone")


def test_a_subclassed_teacher_with_other_classes_is_refused():
    class Teacher(keras.Model):
        def call(self, x, training=None):
            return tf.zeros([tf.shape(x)[0], 5])

    with pytest.raises(BadInput, match="teacher: expected 3 classes, as the student has, received 5"):
        Distiller(student=keras.Sequential([keras.Input((4,)), L.Dense(3)]), teacher=Teacher())


@pytest.mark.parametrize("dressed", [lambda model: model, lambda model: (model(X[:3]), model)[1]], ids=["new", "called before"])
def test_a_subclassed_teacher_that_ends_in_softmax_is_refused(dressed):
    class Teacher(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = L.Dense(3, activation="softmax")

        def call(self, x, training=None):
            return self.head(x)

    with pytest.raises(BadInput, match="teacher: expected logits, received probabilities, numbers that are positive and add up to 1"):
        Distiller(student=net(1), teacher=[net(2), dressed(Teacher())])


# ---- What is said --------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def said(monkeypatch, capsys):
    """What a distiller of a student with these kernels, made twice, says on stderr and stdout, as if it were the first of its process."""
    monkeypatch.setattr(checks, "_warned", set())

    def said(weights, temperature, mode="trained_teacher"):
        student = keras.Sequential([keras.Input((6,)), L.Dense(4), L.ReLU(), L.Dense(4), L.ReLU(), L.Dense(3)])  # the first and the last have 8 bits
        student = student if weights is None else scheme.quantize(student, scheme.Scheme(weights, Interval(8)))
        for _ in range(2):
            Distiller(student=student, teacher=net(2) if MODES[mode].teacher else None, mode=mode, temperature=temperature)
        return capsys.readouterr()

    return said


@pytest.mark.parametrize("weights", [quantizers.Ternary(), Interval(2), Interval(4)], ids=str)
def test_a_temperature_above_one_with_kernels_of_at_most_4_bits_gets_one_line(said, weights):
    out, err = said(weights, 2.0)
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith("kerakd: temperature 2 with kernels of at most 4 bits")


@pytest.mark.parametrize(
    "arguments",
    [(Interval(4), 1.0), (Interval(4), 0.5), (Interval(5), 2.0), (Interval(8), 2.0), (None, 2.0), (Interval(4), 2.0, "alone")],
    ids=str,
)
def test_other_temperatures_and_students_get_none(said, arguments):
    assert said(*arguments) == ("", "")


@pytest.mark.parametrize("wrap", [lambda x, y: (x, y), lambda x, y: (tf.data.Dataset.from_tensor_slices((x, y)).batch(2),)])
def test_evaluate_refuses_labels_outside_the_classes(wrap):
    distiller = Distiller(student=keras.Sequential([keras.Input((4,)), L.Dense(3)]), mode="alone")
    distiller.compile()
    with pytest.raises(BadInput, match="labels: expected 0 to 2"):
        distiller.evaluate(*wrap(np.zeros((4, 4), np.float32), np.array([0, 1, 2, 3])), verbose=0)


def test_a_training_that_diverged_says_where_and_what_to_do():
    inputs = keras.Input((6,))
    body = L.Dense(3, name="head")(L.Dense(4, activation="relu", name="body")(inputs))
    quantized = scheme.quantize(keras.Model(inputs, body), scheme.Scheme(Interval(4), Interval(4)))
    calibration.calibrate(quantized, X)
    distiller = Distiller(student=quantized, mode="alone")
    distiller.compile(loss=lambda y, z: tf.sqrt(0 * tf.reduce_sum(z, -1)))  # it is 0, its gradient NaN
    with pytest.raises(BadInput, match="received NaN in '(body|head).*'; the training diverged"):
        distiller.fit(X, Y, batch_size=4, verbose=0)


def same(history, other):
    return history.keys() == other.keys() and all(history[name] == pytest.approx(values, rel=1e-5) for name, values in other.items())


class Columns(keras.utils.Sequence):
    """Batches of X with labels whose shapes Keras does not know before it has them."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return 2

    def __getitem__(self, index):
        mine = slice(8 * index, 8 * index + 8)
        return X[mine], self.labels[mine]


@pytest.mark.parametrize("soft_loss", ["kl", "dkd"])
def test_class_numbers_in_a_column_may_come_from_a_generator(soft_loss):
    as_array, as_sequence = taught(soft_loss=soft_loss), taught(soft_loss=soft_loss)
    history = as_sequence.fit(Columns(Y[:, None]), shuffle=False, verbose=0).history
    assert same(history, train(as_array, batch_size=8)) and "teacher_accuracy" in history


def test_one_hot_rows_from_a_generator_are_refused_in_words_or_taken_by_a_loss_of_them():
    rows = Columns(np.eye(3, dtype=np.float32)[Y])
    with pytest.raises(BadInput, match=r"labels: expected class numbers \[n\], received rows of several numbers; give compile\(loss=Categorical"):
        taught().fit(rows, verbose=0)
    crossentropy = keras.losses.CategoricalCrossentropy(from_logits=True)
    history = taught(loss=crossentropy).fit(rows, shuffle=False, verbose=0).history
    assert same(history, train(taught(), batch_size=8))
    with pytest.raises(BadInput, match="soft_loss: expected class numbers in the batches for a loss that uses them, received rows"):
        taught(loss=crossentropy, soft_loss="dkd").fit(rows, verbose=0)


def test_fewer_labels_than_images_from_a_generator_are_said_to_be_so():
    class Short(Columns):
        def __getitem__(self, index):
            images, labels = super().__getitem__(index)
            return images, labels[1:]

    with pytest.raises(BadInput, match="labels: expected as many as images in each batch, received 7 for 8"):
        taught("alone").fit(Short(Y), verbose=0)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_teacher_that_shares_what_moves_is_refused_when_it_is_made_and_when_it_trains(frozen):
    shared = L.BatchNormalization(center=False, scale=False, trainable=not frozen)
    ours, theirs = keras.Input((6,)), keras.Input((6,))
    student, teacher = keras.Model(ours, L.Dense(3)(shared(ours))), keras.Model(theirs, L.Dense(3)(shared(theirs)))
    if not frozen:
        with pytest.raises(BadInput, match="teacher: expected a network of its own, received one that shares .*moving_mean"):
            taught(student=student, teacher=teacher)
        return
    model = taught(student=student, teacher=teacher)
    before = state(teacher)
    train(model)
    assert state(teacher) == before
    shared.trainable = True
    with pytest.raises(BadInput, match="teacher: expected a network of its own, received one that shares .*moving_mean"):
        train(model)


def test_hints_of_a_student_with_a_loss_of_its_own_are_refused():
    student = net(1)
    student.add_loss(tf.reduce_mean(student.output**2))
    with pytest.raises(BadInput, match="student: expected no add_loss of a tensor beside hints, received 'add_loss"):
        taught(student=student, hints=[HINT])
    kept = net(1)
    kept.add_loss(lambda: 5.0 * tf.reduce_sum(kept.weights[0] ** 2))
    plain = train(taught(student=net(1), hints=[HINT]))["loss"][0]
    assert train(taught(student=kept, hints=[HINT]))["loss"][0] > plain + 1
    assert train(taught(student=student))["loss"][0] > 0  # without hints it counts


@pytest.mark.parametrize("eagerly", [False, True])
@pytest.mark.parametrize("mode", ["alone", "co_study"])
def test_a_step_whose_loss_is_not_finite_changes_no_weight(mode, eagerly):
    model = taught(mode, metrics=["accuracy"])
    model.run_eagerly = eagerly
    train(model)
    networks = [model.student, *model.teachers]
    before, x = [state(network) for network in networks], X.copy()
    x[3, 2] = np.nan
    told = r"received NaN \(no trained weight was changed by this step\); the training diverged.*kerakd.batchnorm.reestimate"
    with pytest.raises(Diverged, match=f"loss: expected a finite one, {told}"):
        model.fit(x, Y, batch_size=16, verbose=0)
    for network, then in zip(networks, before, strict=True):
        same = [variable.numpy().tobytes() == old for variable, old in zip(network.weights, then, strict=True)]
        assert all(kept for variable, kept in zip(network.weights, same, strict=True) if variable.trainable)


def labelled(kind):
    ones = keras.utils.to_categorical(Y, 3)
    return {
        "arrays": (X, Y),
        "a column": (X, Y[:, None]),
        "one-hot": (X, ones),
        "dataset": (tf.data.Dataset.from_tensor_slices((X, Y)).batch(16),),
        "weighted": (tf.data.Dataset.from_tensor_slices((X, Y, np.ones(16, np.float32))).batch(16),),
    }[kind]


@pytest.mark.parametrize("mode", ["alone", "co_study"])
@pytest.mark.parametrize("kind", ["arrays", "a column", "one-hot", "dataset", "weighted"])
def test_a_step_is_traced_once(kind, mode):
    traces = []

    class Counted(Distiller):
        def train_step(self, data):
            traces.append(data)
            return super().train_step(data)

    model = Counted(student=net(1), teacher=None if mode == "alone" else net(2), mode=mode)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True) if kind == "one-hot" else None
    model.compile("adam", loss=loss, metrics=["accuracy"], teacher_optimizer=None if mode == "alone" else "adam")
    history = model.fit(*labelled(kind), batch_size=None if kind in ("dataset", "weighted") else 16, epochs=2, verbose=0).history
    assert len(traces) == 1 and 0 <= history["accuracy"][1] <= 1
    model.fit(*labelled(kind), batch_size=None if kind in ("dataset", "weighted") else 16, verbose=0)
    assert len(traces) == 1


def test_one_logit_has_nothing_to_learn_from_a_soft_loss_and_needs_a_loss_of_its_own():
    with pytest.raises(BadInput, match='student: expected two or more logits .* received 1, .* or soft_loss="logit_mse"'):
        Distiller(student=net(1, classes=1), teacher=net(2, classes=1))
    model = Distiller(student=net(1, classes=1), mode="alone")
    with pytest.raises(BadInput, match="loss: expected one for a student of one logit, received none"):
        model.compile()


@pytest.mark.parametrize("dtype", [np.float32, np.int64, bool])
@pytest.mark.parametrize("container", ["array", "dataset"])
def test_one_logit_learns_labels_of_any_type(dtype, container):
    y = (Y == 1).astype(dtype)
    given = (X, y) if container == "array" else (tf.data.Dataset.from_tensor_slices((X, y)).batch(16),)
    model = Distiller(student=net(1, classes=1), mode="alone")
    model.compile(keras.optimizers.SGD(0.0), loss=keras.losses.BinaryCrossentropy(from_logits=True))
    z = np.float64(net(1, classes=1)(X, training=True))[:, 0]
    assert model.fit(*given, verbose=0).history["loss"] == pytest.approx([np.mean(np.log1p(np.exp(-z * (2.0 * (Y == 1) - 1))))], rel=1e-5)
    assert np.isfinite(model.evaluate(*given, verbose=0)).all()


def test_a_loss_of_the_callers_says_itself_which_labels_it_takes():
    model = taught("alone", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1), optimizer=keras.optimizers.SGD(0.0))
    labels = np.where(np.arange(16) < 4, -1, Y)
    z = np.float64(net(1)(X, training=True))
    each = -np.log(softmax(z)[np.arange(16), Y])
    assert model.fit(X, labels, batch_size=16, verbose=0).history["loss"] == pytest.approx([each[4:].mean()], rel=1e-5)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(BadInput, match="labels: expected 0 to 2, .* received -1 to 2"):
        model.fit(X, labels, verbose=0)


def test_labels_and_metrics_may_have_the_name_of_the_students_output():
    student = net(1)
    name = student.output_names[0]
    plain, named = taught(metrics=["accuracy"]), taught(student=student, metrics={name: ["accuracy"]})
    expected = plain.fit(X, Y, batch_size=16, verbose=0).history
    assert named.fit(X, {name: Y}, batch_size=16, verbose=0).history == expected
    batches = tf.data.Dataset.from_tensor_slices((X, {name: Y})).batch(16)
    assert named.evaluate(batches, verbose=0) == plain.evaluate(X, Y, batch_size=16, verbose=0)
    assert named.evaluate(X, {"output_1": Y}, batch_size=16, verbose=0) == plain.evaluate(X, Y, batch_size=16, verbose=0)
    with pytest.raises(BadInput, match="labels: expected what is for .*, the student's output, received 'other'"):
        named.fit(X, {"other": Y}, verbose=0)


@pytest.mark.parametrize("kind", ["sequence", "named"])
def test_hints_wait_through_a_phase_alone(kind):
    """Their projectors are among what an optimizer was built for, though nothing moves them yet."""

    class Batches(keras.utils.Sequence):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return X, Y

    student = net(1)
    model = taught("alone", student, net(2), optimizer=keras.optimizers.Adam(0.01), hints=[HINT])
    given = Batches() if kind == "sequence" else tf.data.Dataset.from_tensors((X, {student.output_names[0]: Y}))
    projector = model.hints.trainable_variables[0]
    before = projector.numpy()
    model.fit(given, verbose=0)
    np.testing.assert_array_equal(projector, before)
    model.enter("trained_teacher")
    model.fit(given, verbose=0)
    assert (projector.numpy() != before).any()


def small(seed):
    """A quantized student with learned intervals of both kinds."""
    keras.utils.set_random_seed(seed)
    x = keras.Input((6,), name=f"in{seed}")
    y = L.Dense(4, activation="relu")(L.Dense(5, activation="relu")(x))
    made = scheme.quantize(keras.Model(x, L.Dense(3)(y)), scheme.Scheme(Interval(4), Interval(4)))
    calibration.calibrate(made, X)
    return made


def test_the_weight_decay_of_a_teachers_optimizer_reaches_no_interval_of_the_teachers():
    teacher, optimizer = small(1), keras.optimizers.AdamW(0.0, weight_decay=0.5)
    model = Distiller(student=small(0), teacher=teacher, mode="joint")
    model.compile("adam", teacher_optimizer=optimizer)
    optimizer.learning_rate, optimizer.weight_decay = 1e-9, 1e8  # of which the decay alone is to be seen
    before = {variable.name: variable.numpy() for variable in teacher.trainable_variables if "interval" in variable.name}
    train(model)
    for variable in teacher.trainable_variables:
        if variable.name in before:
            np.testing.assert_allclose(variable, before[variable.name], atol=1e-6)


def test_weight_decay_reaches_no_interval_in_a_single_batch_without_fit():
    model = Distiller(student=small(0), mode="alone")
    model.compile(keras.optimizers.AdamW(1e-9, weight_decay=1e8))
    before = {variable.name: variable.numpy() for variable in model.student.trainable_variables if "interval" in variable.name}
    model.train_on_batch(X, Y)
    for variable in model.student.trainable_variables:
        if variable.name in before:
            np.testing.assert_allclose(variable, before[variable.name], atol=1e-6)


def test_one_optimizer_for_intervals_of_both_kinds_takes_one_step():
    optimizer, model = keras.optimizers.Adam(0.01), Distiller(student=small(0), mode="alone")
    model.compile("sgd", weight_interval_optimizer=optimizer, activation_interval_optimizer=optimizer)
    train(model, batch_size=8, epochs=2)
    assert int(optimizer.iterations) == 4


@pytest.mark.parametrize("name", ["teacher_optimizer", "weight_interval_optimizer"])
def test_an_optimizer_that_averages_the_variables_of_others_is_refused_wherever_it_is_given(name):
    with pytest.raises(BadInput, match="optimizer: expected one without use_ema"):
        Distiller(student=small(0), teacher=small(1), mode="joint").compile("sgd", **{"teacher_optimizer": "sgd", name: keras.optimizers.Adam(use_ema=True)})


def test_a_teacher_may_not_have_the_optimizer_of_the_students_intervals():
    optimizer = keras.optimizers.Adam()
    with pytest.raises(BadInput, match="teacher_optimizer: expected one of its own"):
        Distiller(student=small(0), teacher=small(1), mode="joint").compile("sgd", weight_interval_optimizer=optimizer, teacher_optimizer=optimizer)


def test_an_optimizer_has_one_loss_scale_however_often_it_is_given():
    scales, optimizer = LossScales([keras.Sequential([keras.Input((3,)), L.Dense(2, dtype="mixed_float16")])]), keras.optimizers.SGD()
    assert scales.around(optimizer) is scales.around(optimizer)


@pytest.mark.parametrize("labels", [np.array(["a", "b", "c"])[Y], np.array(["a", "b", "c"], object)[Y], tf.constant(["a", "b", "c"] * 5 + ["a"])])
def test_labels_that_are_strings_are_refused(labels):
    with pytest.raises(BadInput, match="labels: expected class numbers, received strings or objects; number the classes"):
        taught().fit(X, labels, verbose=0)

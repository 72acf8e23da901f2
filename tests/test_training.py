"""What a run makes of its flags: the networks, losses, optimizers, medicine and images of each of its stages."""

import numpy as np
import pytest
import tf_keras as keras

from kerakd import data, losses, models, networks, train, training
from kerakd.config import Config
from kerakd.errors import BadInput
from kerakd.lessons import Lessons
from kerakd.rundir import RunDirectory
from kerakd.stages import stages

SMALL = {"dataset": "digits", "synthetic": True, "student": "resnet8", "student_width": 0.25, "batch_size": 16, "phase": ("alone:1",)}
TAUGHT = {**SMALL, "teacher": ("resnet8",), "teacher_width": 0.25, "teacher_epochs": 1, "phase": ("trained_teacher:1",)}


def run(directory, **flags):
    """A Training with a place for its networks."""
    made = training.Training(Config(**{**SMALL, **flags}), RunDirectory(directory))
    (directory / "models").mkdir(parents=True)
    return made


def ready(directory, **flags):
    """(the distiller of the last stage, compiled; {name: what its checkpoints hold})."""
    made = run(directory, **flags)
    return made.ready(made.stages[-1])


def assert_equal_weights(one, other):
    assert all(map(np.array_equal, one.get_weights(), other.get_weights()))


# ---- Networks ------------------------------------------------------------------------------------------------------------------------------------


def kernels(model):
    return [variable.numpy() for variable in model.weights if variable.name.endswith("kernel:0")]


@pytest.mark.parametrize("start", ["float", "scratch"])
@pytest.mark.parametrize("kind", ["name", "file"])
def test_a_student_begins_as_the_float_one_ended_or_anew_and_is_calibrated_as_told(tmp_path, monkeypatch, kind, start):
    asked, source = [], models.build("resnet8", (8, 8, 1), 10, width=0.25)
    monkeypatch.setattr(networks, "calibrate", lambda student, images, rule: asked.append((len(images), rule)))
    source.save(tmp_path / "net.keras")
    given = {"student": str(tmp_path / "net.keras"), "student_width": 1.0} if kind == "file" else {"float_epochs": 1}
    made = run(tmp_path / "run", start=start, calibration="mse", calibration_images=9, **given)
    if kind == "name":
        made.directory.save_model("float", source)
    same = [np.array_equal(one, other) for one, other in zip(kernels(source), kernels(made.networks.student()), strict=True)]
    assert same == [start == "float"] * len(same)
    assert asked == [(9, "mse")]


def test_a_student_without_intervals_asks_for_no_images(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "calibrate", lambda *args: pytest.fail("calibrated"))
    monkeypatch.setattr(networks.data, "training", lambda *args, **kwargs: pytest.fail("read"))
    assert run(tmp_path / "run", weights="float", activations="float", first=0, last=0).networks.student().output_shape == (None, 10)


def test_each_teacher_by_name_is_the_one_that_its_stage_trained(tmp_path):
    made = run(tmp_path / "run", **{**TAUGHT, "teacher": ("resnet8", "resnet8")})
    nets = [made.networks.teacher(one) for one in made.config.teachers()]
    for k, net in enumerate(nets):
        made.directory.save_model(networks.teacher_name(k), net)
    assert not np.array_equal(kernels(nets[0])[0], kernels(nets[1])[0])
    for net, found in zip(nets, made.networks.teachers(), strict=True):
        assert_equal_weights(net, found)


def test_a_batchnorm_of_two_inputs_is_refused_before_anything_is_trained(tmp_path):
    inputs, norm = keras.Input((8, 8, 1)), keras.layers.BatchNormalization(name="bn")
    x = keras.layers.Flatten()(norm(norm(inputs)))
    keras.Model(inputs, keras.layers.Dense(10)(x)).save(tmp_path / "net.keras")
    told = {"student": str(tmp_path / "net.keras"), "student_width": 1.0, "weights": "float", "activations": "float", "first": 0, "last": 0}
    run(tmp_path / "run", **told)
    with pytest.raises(BadInput, match="--batchnorm_batches: expected a student whose BatchNorms are called once, received bn called twice; leave it out"):
        run(tmp_path / "other", **told, batchnorm_batches=2)


@pytest.mark.parametrize("start", ["float", "scratch"])
def test_frozen_layers_of_a_file_are_named_or_refused_where_they_would_stay_random(tmp_path, capsys, start):
    net = models.build("resnet8", (8, 8, 1), 10, width=0.25)
    for layer in net.layers[:-1]:
        layer.trainable = False
    net.save(tmp_path / "net.keras")
    told = {"student": str(tmp_path / "net.keras"), "student_width": 1.0, "start": start}
    if start == "scratch":
        with pytest.raises(
            BadInput, match=r"layers that learn with --start=scratch, received .*frozen ones, 'conv', 'conv_bn', .* and \d+ more.*set trainable=True"
        ):
            run(tmp_path / "run", **told)
    else:
        run(tmp_path / "run", **told)
        assert "net.keras, so that their weights do not adapt to their grids: 'conv', 'conv_bn', " in capsys.readouterr().err


@pytest.mark.parametrize("student, said", [("mobilenet_v3_small_gn", 1), ("resnet8", 0)])
def test_estimating_batchnorms_of_a_student_that_has_none_is_said_to_do_nothing(tmp_path, capsys, student, said):
    run(tmp_path / "run", student=student, batchnorm_batches=2)
    assert capsys.readouterr().err.count("kerakd: --batchnorm_batches does nothing for a student without BatchNorms") == said


def test_checkpoints_that_a_killed_process_left_of_a_finished_stage_go(tmp_path, monkeypatch):
    made = run(tmp_path / "run")
    monkeypatch.setattr(made, "measure", dict)
    monkeypatch.setattr(training.curves, "write", lambda metrics, path: path.touch())
    made.directory.save_model("taught_0", made.networks.student())
    (tmp_path / "run/checkpoints/taught_0").mkdir(parents=True)
    made.run()
    assert not (tmp_path / "run/checkpoints/taught_0").exists()


# ---- Stages --------------------------------------------------------------------------------------------------------------------------------------


def test_the_student_alone_trains_as_long_from_the_same_seed():
    told = {**TAUGHT, "phase": ("alone:2", "trained_teacher:3"), "compare": True, "seed": 3, "seeds": 2}
    found = {stage.name: (stage.seed, sum(epochs for _, epochs in stage.phases)) for stage in stages(Config(**told), None)}
    assert found == {"teacher": (3, 1), "alone_3": (3, 5), "taught_3": (3, 5), "alone_4": (4, 5), "taught_4": (4, 5)}


def test_a_stage_begins_with_the_weights_of_its_seed(tmp_path):
    made = run(tmp_path / "run", **{**TAUGHT, "compare": True, "seed": 3, "seeds": 2})
    made.directory.save_model("teacher", made.networks.teacher(made.config.teachers()[0]))
    begun = {stage.name: made.ready(stage)[0].student for stage in made.stages if stage.quantized}
    for name, other in (("alone_3", "taught_3"), ("alone_4", "taught_4")):
        assert_equal_weights(begun[name], begun[other])
    assert not np.array_equal(kernels(begun["taught_3"])[0], kernels(begun["taught_4"])[0])


def test_the_table_has_means_over_seeds():
    found = train.table({"taught_3": 0.5, "taught_4": 0.7, "alone_3": 0.4}, taught=True)
    assert "0.6000  (mean of 2 seeds, 0.5000 to 0.7000)" in found and "0.4000\n" in found


# ---- Losses and optimizers -----------------------------------------------------------------------------------------------------------------------


def test_the_distiller_is_what_the_flags_say(tmp_path):
    loss = {"temperature": 3.0, "soft_loss": "dist", "ensemble": "mean", "hard_weight": 0.2, "soft_weight": 0.7}
    hint = {"hint": ("conv_relu_out=conv_relu",), "hint_loss": "attention", "hint_weight": 5.0}
    made, _ = ready(tmp_path / "run", **{**TAUGHT, "teacher": ("resnet8,weight=0.5", "resnet8")}, **loss, **hint)
    assert (made.temperature, made.soft_loss, made.ensemble, made.teacher_weights) == (3.0, losses.dist, "mean", [0.5, 1.0])
    assert (made.hard_weight, made.soft_weight) == (0.2, 0.7)
    assert (made.hint_weight, made.hints.loss) == (5.0, losses.attention)


def test_the_optimizers_are_what_the_flags_say(tmp_path):
    rates = {"learning_rate": 0.3, "weight_interval_rate": 0.1, "activation_interval_rate": 0.2}
    told = {"optimizer": "sgd", "schedule": "quadratic", "weight_decay": 0.5, "clip_norm": 2.0, "warmup_epochs": 1.0}
    _, made = ready(tmp_path / "run", phase=("alone:3",), **rates, **told)
    steps = 64 // 16  # of an epoch of synthetic images
    schedules = [made[name]._learning_rate.get_config() for name in ("optimizer", "weight_interval_optimizer", "activation_interval_optimizer")]
    assert schedules == [{"rate": rate, "steps": 3 * steps, "warmup_steps": steps} for rate in rates.values()]
    assert (made["optimizer"].weight_decay, made["optimizer"].global_clipnorm) == (0.5, 2.0)


def test_with_restart_each_phase_has_a_schedule_of_its_own(tmp_path):
    _, made = ready(tmp_path / "run", **{**TAUGHT, "phase": ("alone:3", "trained_teacher:2"), "restart": True, "warmup_epochs": 1.0})
    assert made["optimizer"]._learning_rate.get_config() == {"schedule": "cosine", "rate": 1e-3, "phases": [12, 8], "warmup_steps": 4}


def test_the_medicine_is_what_the_flags_say(tmp_path):
    made, _ = ready(tmp_path / "run", weights="interval:4", phase=("alone:2",), dampening=0.2, freeze=0.01)
    assert [float(one(step)) for one in (made.dampening, made.freezing) for step in (0, 8)] == pytest.approx([0, 0.2, 0.1, 0.01])
    without, _ = ready(tmp_path / "other", weights="interval:4")
    assert (without.dampening, without.freezing, without.watch) == (None, None, None)


def test_batchnorm_is_estimated_anew_on_as_many_batches_as_told(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(training.batchnorm, "reestimate", lambda model, batches: asked.append(len(list(batches))))
    made = run(tmp_path / "run", batchnorm_batches=3, phase=("alone:2",))
    made.train_stage(made.stages[-1])
    assert asked == [3, 3]


# ---- Images --------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"mixup": True}, {"augment": ("CutMix",)}], ids=str)
def test_who_learns_from_labels_sees_no_mixed_image_and_who_learns_from_a_teacher_does(tmp_path, change):
    told = {**TAUGHT, "dataset": "cifar10", "hard_weight": 0.0, "view": "same/rc"}
    images = data.load("cifar10", synthetic=True)[0]
    plain, changed = (Lessons(Config(**told, **more), RunDirectory(tmp_path), images, (32, 32, 3)) for more in ({}, change))
    for frozen in (False, True):
        one, other = (next(iter(lessons.views(0, 0, 1, frozen=frozen)))[0].numpy() for lessons in (plain, changed))
        assert np.array_equal(one, other) != frozen


def test_teachers_of_one_kind_have_seeds_of_their_own_and_their_own_size():
    flags = {"dataset": "digits", "teacher_epochs": 1, "student": "resnet8", "phase": ("trained_teacher:1",)}
    two = stages(Config(**flags, teacher=("resnet8", "resnet8"), seed=3), None)
    assert [(stage.name, stage.seed) for stage in two][:2] == [("teacher", 3), ("teacher_1", 4)]
    assert stages(Config(**flags, teacher=("resnet8,size=4",), view="same/ic"), None)[0].size == 4

"""The training program as a process: what it leaves, what it says, killed and resumed, run again from its own flags, taught in every way, fed nonsense."""

import ast
import random
import re
import shutil
import signal
import time

import numpy as np
import pytest
import tf_keras as keras
from conftest import SMALL_RUN, run_program, start
from PIL import Image

from kerakd import evaluate, halfspeed, networks, train, training
from kerakd.config import Config
from kerakd.errors import BadInput
from kerakd.rundir import RunDirectory
from kerakd.tflite import to_tflite

MODELS = ("teacher", "float", "alone_0", "taught_0", "taught_0_teacher")


def assert_same_run(one, other):
    """Metrics to the letter, weights to the bit."""
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    assert (one / "results.json").read_text() == (other / "results.json").read_text()
    names = [path.stem for path in (one / "models").iterdir()]
    assert names and sorted(names) == sorted(path.stem for path in (other / "models").iterdir())
    for name in names:
        for a, b in zip(*(RunDirectory(run).load_model(name).get_weights() for run in (one, other)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_run_leaves_its_models_metrics_results_and_picture(complete_run):
    directory = RunDirectory(complete_run)
    assert all(directory.has_model(name) for name in MODELS)
    assert set(directory.results()) == {"teacher", "float", "alone_0", "taught_0"}
    assert [(row["stage"], row["epoch"]) for row in directory.metrics()][-6:] == [("taught_0", epoch) for epoch in range(6)]
    assert (complete_run / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(complete_run.rglob("*partial*")) and not list((complete_run / "checkpoints").iterdir())


def test_phases_train_what_their_mode_says(complete_run):
    rows = [row for row in RunDirectory(complete_run).metrics() if row["stage"] == "taught_0"]
    assert ["teacher_loss" in row for row in rows] == [False, False, True, True, False, False]
    assert ["soft_loss" in row for row in rows] == [False, False, True, True, True, True]
    trained, after = (RunDirectory(complete_run).load_model(name).get_weights() for name in ("teacher", "taught_0_teacher"))
    assert any(not np.array_equal(a, b) for a, b in zip(trained, after, strict=True))


def test_only_the_programs_own_words_are_printed(complete_run):
    said = (complete_run / "stdout.txt").read_text() + (complete_run / "stderr.txt").read_text()
    foreign = [
        line for line in said.splitlines() if not line.startswith(("teacher resnet8:", "float student:", "student ", "test accuracy", "  ", "run:", "next:"))
    ]
    assert foreign == []


def test_a_killed_run_resumes_to_the_same_weights(complete_run, tmp_path):
    """From another run's flags, killed outright (SIGKILL) at three random moments, in whatever stage and at whatever step of an epoch it is."""
    directory = tmp_path / "killed"
    arguments = [f"--flagfile={complete_run / 'flags.cfg'}", f"--workdir={directory}", "--checkpoint_every=5"]
    seed = time.time_ns()
    print(f"killed at the moments of seed {seed}")  # shown where the test fails
    moments = random.Random(seed)
    kills = []
    for attempt in range(3):
        process = start("kerakd.train", *arguments, *(["--resume"] if attempt else []))
        lines = 0
        wanted = moments.randint(1, 5)
        while lines < wanted and process.poll() is None:  # an epoch a line on stdout
            lines += bool(process.stdout.readline())
        time.sleep(moments.random() * 0.5)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills.append(process.returncode)
    assert -signal.SIGKILL in kills
    assert not (directory / "results.json").exists()
    status, out, err = run_program("kerakd.train", *arguments, "--resume")
    assert status == 0, out + err
    assert_same_run(complete_run, directory)


def test_networks_from_files_go_on_from_their_weights_with_the_medicine_of_low_bits(complete_run, here, tmp_path, data_dir):
    models = complete_run / "models"
    data = ["--dataset=digits", f"--data_dir={data_dir}", f"--workdir={tmp_path / 'own'}"]
    nets = [f"--student={models / 'float.keras'}", f"--teacher={models / 'teacher.keras'}", "--weights=interval:3", "--activations=interval:4"]
    medicine = ["--phase=trained_teacher:1", "--dampening=0.1", "--freeze=0.01", "--watch", "--batchnorm_batches=2"]
    status, out, err = here(train.main, *data, *nets, *medicine)
    assert status == 0, out + err
    results, before = RunDirectory(tmp_path / "own").results(), RunDirectory(complete_run).results()
    assert (results["float"], results["teacher"]) == (before["float"], before["teacher"])
    assert f"after calibration, before training; float {before['float']:.4f}" in out
    assert 0 <= RunDirectory(tmp_path / "own").metrics()[-1]["oscillating"] <= 1


@pytest.fixture(scope="module")
def slow_epochs(nets, data_dir):
    """Flags of a run of a small student with dropout, whose epochs have 239 steps."""
    return [*quick(nets, data_dir), f"--student={nets / 'dropout.keras'}", "--start=scratch", "--weights=interval:4", "--phase=alone:2", "--batch_size=6"]


def stop(workdir, flags, wait=0.2):
    """Starts a run and asks it to stop (SIGTERM) within its second epoch."""
    process = start("kerakd.train", *flags, f"--workdir={workdir}")
    process.stdout.readline()
    time.sleep(wait)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, out + err
    assert err.endswith("kerakd: stopped by SIGTERM; --resume goes on from what the run has kept\n")


def test_a_run_that_is_asked_to_stop_goes_on_within_its_epoch(slow_epochs, tmp_path):
    status, out, err = run_program("kerakd.train", *slow_epochs, f"--workdir={tmp_path / 'whole'}")
    assert status == 0, out + err
    stop(tmp_path / "stopped", slow_epochs)
    newest = max(path.name for path in (tmp_path / "stopped" / "checkpoints" / "taught_0").iterdir())
    epochs, batches = map(int, newest.split("_"))
    assert epochs == 1 and 0 < batches < 239
    status, out, err = run_program("kerakd.train", *slow_epochs, f"--workdir={tmp_path / 'stopped'}", "--resume")
    assert status == 0, out + err
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_full_disk_at_the_word_of_settling_is_an_error_and_no_unsettled_student(nets, data_dir, tmp_path, monkeypatch):
    settings = {"dataset": "digits", "data_dir": str(data_dir), "student": str(nets / "student.keras"), "phase": ("alone:1",), "batch_size": 479}
    directory = RunDirectory(tmp_path / "run")
    config = Config(**settings, learning_rate=0.01)
    directory.claim(config.text(), resume=False, overwrite=False)
    monkeypatch.setattr(directory, "save_settled", lambda *_: (_ for _ in ()).throw(BadInput("full")))
    with pytest.raises(BadInput, match="^full$"):
        training.Training(config, directory).run()
    assert not directory.has_model("taught_0")


@pytest.fixture
def of_images(tmp_path):
    """Flags of a run on a folder of images, tmp_path/images, in which cats are red and dogs are not."""
    for part, count in (("train", 8), ("test", 4)):
        for name in ("cat", "dog"):
            for number in range(count):
                path = tmp_path / "images" / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (255 * (name == "cat"), 20 * number, 0)).save(path)
    return f"--dataset=folder:{tmp_path / 'images'}", "--image_size=8", "--student=resnet8", "--student_width=0.25", "--batch_size=8", "--phase=alone:1"


def test_an_image_to_test_on_that_can_not_be_read_is_named_before_anything_is_trained(here, of_images, tmp_path):
    path = tmp_path / "images/test/dog/3.png"
    path.write_bytes(path.read_bytes()[:40])
    status, out, err = here(train.main, *of_images, f"--workdir={tmp_path / 'run'}")
    assert status == 2 and out == "" and f"kerakd: image: expected one that can be read, received {path}" in err.splitlines()[-1]
    assert not RunDirectory(tmp_path / "run").metrics()


def test_a_run_does_not_go_on_with_other_images(here, of_images, tmp_path):
    flags = of_images
    status, out, err = here(train.main, *flags, f"--workdir={tmp_path / 'run'}", "--start=scratch")
    assert status == 0, out + err
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    kept = RunDirectory(tmp_path / "run").data()
    assert kept["classes"] == ["cat", "dog"] and kept["train"].startswith(f"folder:{tmp_path / 'images'} train, 16 images, ")
    for part in ("train", "test"):
        (tmp_path / "images" / part / "cat").rename(tmp_path / "images" / part / "zcat")
    for program, arguments in (
        (train.main, [*flags, f"--workdir={tmp_path / 'run'}", "--start=scratch", "--resume"]),
        (evaluate.main, [f"--run={tmp_path / 'run'}"]),
    ):
        status, _, err = here(program, *arguments)
        assert status == 2 and "zcat" in err and len(err.splitlines()) == 1, err
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_a_run_does_not_go_on_under_another_teacher(nets, here, tmp_path, data_dir):
    teacher = tmp_path / "teacher.keras"
    shutil.copy(nets / "teacher.keras", teacher)
    flags = [*quick(nets, data_dir), f"--teacher={teacher}", "--phase=trained_teacher:1", f"--workdir={tmp_path / 'run'}"]
    status, out, err = here(train.main, *flags)
    assert status == 0, out + err
    model = keras.models.load_model(teacher, compile=False)
    model.set_weights([2 * weight for weight in model.get_weights()])
    model.save(teacher)
    (tmp_path / "run" / "models" / "taught_0.keras").unlink()
    status, _, err = here(train.main, *flags, "--resume")
    assert status == 2 and f'expected the data that {tmp_path / "run"} is trained on, received {teacher} "sha256' in err and len(err.splitlines()) == 1, err
    shutil.copy(nets / "teacher.keras", teacher)
    status, out, err = here(train.main, *flags, "--resume")
    assert status == 0, out + err


@pytest.mark.parametrize("compiled", [False, True])
def test_a_training_that_diverges_says_where_and_keeps_what_was_good(nets, here, tmp_path, data_dir, compiled):
    flags = [
        *quick(nets, data_dir),
        "--phase=alone:3",
        "--optimizer=sgd",
        "--learning_rate=1e25",
        "--activations=float",
        "--weights=float",
        "--last=0",
        "--first=0",
    ]
    status, out, err = here(train.main, *flags, f"--jit_compile={compiled}", f"--workdir={tmp_path / 'run'}", "--checkpoint_every=1")
    assert status == 2, out + err
    where = r"found after \d epochs and \d steps" if compiled else r"epoch \d, batch \d of 3, images \d+, .*: first in .*'\w+' of the student"
    assert re.search(rf"loss: expected a finite one, received (NaN|Inf|nan|inf).* {where}; the checkpoint from before is kept", err), err
    assert any((tmp_path / "run" / "checkpoints" / "taught_0").iterdir())


# ---- Every way of teaching -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """Small networks of digits in files: student, teacher, and that teacher on pixels 0..255."""
    folder, images = tmp_path_factory.mktemp("nets"), keras.Input((8, 8, 1))
    keras.utils.set_random_seed(0)
    for name, channels in (("student", 2), ("teacher", 8)):
        layers = [keras.layers.Conv2D(channels, 3, strides=2, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(10)]
        net = keras.Sequential([keras.Input((8, 8, 1)), *layers])
        net.save(folder / f"{name}.keras")
    layers = [keras.layers.Conv2D(2, 3, strides=2, activation="relu"), keras.layers.Flatten(), keras.layers.Dropout(0.3), keras.layers.Dense(10)]
    keras.Sequential([keras.Input((8, 8, 1)), *layers]).save(folder / "dropout.keras")
    keras.Model(images, net(keras.layers.Rescaling(1 / 127.5, -1.0)(images))).save(folder / "bytes.keras")
    return folder


@pytest.fixture
def trained(nets, data_dir, here):
    """A function that trains the small student in a folder, which has to succeed: (stdout, stderr)."""

    def trained(*arguments):
        status, out, err = here(train.main, *quick(nets, data_dir), *arguments)
        assert status == 0, out + err
        return out, err

    return trained


def quick(nets, data_dir):
    return "--dataset=digits", f"--data_dir={data_dir}", f"--student={nets / 'student.keras'}", "--batch_size=479", "--learning_rate=0.01"


def test_function_matching_asks_its_teacher_once_for_runs_with_the_same_views(nets, trained, tmp_path):
    views = ["--view=same/ic", "--mixup", "--hard_weight=0", "--soft_weight=1", "--phase=trained_teacher:1"]
    common = [*views, f"--teacher={nets / 'teacher.keras'}", f"--teacher_cache={tmp_path / 'said'}"]
    trained(*common, f"--workdir={tmp_path / 'one'}")
    cache = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "said").rglob("*.*")}
    assert {path.name for path in cache} == {".made_from.lock", "made_from.json", "epoch_00000.logits", "epoch_00000.marks"}
    assert {path.read_bytes() for path in cache if path.suffix == ".marks"} == {bytes([1, 1, 1])}
    trained(*common, "--weights=interval:4", "--seed=5", "--view_seed=0", f"--workdir={tmp_path / 'two'}")
    assert cache == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "said").rglob("*.*")}
    for run, seed in (("one", 0), ("two", 5)):
        (row,) = RunDirectory(tmp_path / run).metrics()
        assert row["loss"] == pytest.approx(row["soft_loss"], rel=1e-5) and row["soft_loss"] > 0
        assert {"teacher", f"taught_{seed}"} <= RunDirectory(tmp_path / run).results().keys()


def test_an_ensemble_of_fixed_views_is_computed_once_also_by_a_run_that_is_killed(nets, data_dir, trained, here, tmp_path):
    views = ["--view=fix/ic_ens", "--ensemble_views=3", "--phase=trained_teacher:2", f"--teacher={nets / 'teacher.keras'}"]
    directory, file = RunDirectory(tmp_path / "run"), tmp_path / "run" / "fixed_logits.npz"
    process = start("kerakd.train", *quick(nets, data_dir), *views, f"--workdir={directory.path}")
    while "epoch 1/2" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    first, before = directory.metrics()[0], file.stat().st_mtime_ns
    logits = np.load(file)["logits"]
    assert logits.shape == (1437, 1, 10)
    np.testing.assert_allclose(np.exp(logits).sum(-1), 1, rtol=1e-4)  # logarithms of a mean of probabilities
    trained(*views, f"--workdir={directory.path}", "--resume")
    assert file.stat().st_mtime_ns == before
    assert [row["epoch"] for row in directory.metrics()] == [0, 1] and directory.metrics()[0] == first
    assert {"teacher", "taught_0"} <= directory.results().keys()
    again = shutil.copytree(directory.path, tmp_path / "again")
    said = dict(np.load(file))
    np.savez(again / file.name, **{**said, "made_from": str(said["made_from"]).replace("1437", "1436")})  # as if an image had come since
    for name in ("results.json", "models/taught_0.keras"):
        (again / name).unlink()
    status, _, err = here(train.main, *quick(nets, data_dir), *views, f"--workdir={again}", "--resume")
    assert status == 2 and "fixed_logits.npz of the same teachers and views, received one with images 'digits train, 1436, " in err.splitlines()[-1]


def test_from_scratch_a_file_keeps_what_it_knows_of_its_data_and_both_students_start_anew(trained, tmp_path):
    known = keras.layers.Normalization()
    known.adapt(np.random.default_rng(0).normal(0.3, 0.5, (64, 8, 8, 1)).astype(np.float32))
    net = keras.Sequential([keras.Input((8, 8, 1)), known, keras.layers.Flatten(), keras.layers.Dense(12, "relu"), keras.layers.Dense(10, name="logits")])
    net.get_layer("logits").kernel.assign(net.get_layer("logits").kernel * 0 + 9)
    net.save(tmp_path / "known.keras")
    flags = f"--student={tmp_path / 'known.keras'}", "--start=scratch", "--float_epochs=1", "--phase=alone:1", f"--workdir={tmp_path / 'run'}"
    trained(*flags)
    found = RunDirectory(tmp_path / "run").load_model("float")
    np.testing.assert_array_equal(found.layers[0].mean, known.mean)
    assert abs(found.get_layer("logits").kernel.numpy()).max() < 2


def test_a_student_that_became_unfit_for_a_file_is_kept_as_it_was_trained(trained, tmp_path):
    """At such a rate an interval's first step takes it below 0, where it counts as 1e-8."""
    _, err = trained("--weights=kbit:4", "--activations=interval:4", "--phase=alone:1", "--activation_interval_rate=100", f"--workdir={tmp_path / 'run'}")
    assert "student, seed 0: kept as trained, though export.tflite will refuse it: model: expected positive intervals" in err
    student = RunDirectory(tmp_path / "run").load_model("taught_0")
    with pytest.raises(BadInput, match="expected positive intervals"):
        to_tflite(student)
    assert RunDirectory(tmp_path / "run").complete


@pytest.mark.parametrize(
    "extra", [("--steps_per_execution=4", "--checkpoint_every=5"), ("--jit_compile",), ("--mixed_precision=bfloat16",)], ids=lambda extra: extra[0]
)
def test_several_steps_an_execution_xla_and_half_precision_train_the_same(nets, trained, tmp_path, monkeypatch, extra):
    monkeypatch.setattr(halfspeed, "times_as_long", lambda half: 7.0)  # as on a processor without 16 bits
    flags = f"--teacher={nets / 'teacher.keras'}", "--phase=co_study:2", "--batch_size=128"
    trained(*flags, f"--workdir={tmp_path / 'plain'}")
    _, err = trained(*flags, *extra, f"--workdir={tmp_path / 'other'}")
    assert ("takes 7.0 times as long in bfloat16" in err) == (extra == ("--mixed_precision=bfloat16",))
    plain, other = (RunDirectory(tmp_path / name).metrics() for name in ("plain", "other"))
    assert [row["epoch"] for row in other] == [0, 1]
    for a, b in zip(plain, other, strict=True):
        assert a.keys() == b.keys()
        assert (b["loss"], b["val_loss"]) == (pytest.approx(a["loss"], rel=5e-3), pytest.approx(a["val_loss"], rel=5e-3))
    kept = [RunDirectory(tmp_path / "other").load_model(name) for name in ("taught_0", "taught_0_teacher")]
    assert {layer.compute_dtype for model in kept for layer in model._flatten_layers()} == {"float32"}


def test_two_teachers_each_with_its_own_values(nets, trained, tmp_path):
    told = [f"--teacher={nets / 'bytes.keras'},values=0..255,weight=0.5", f"--teacher={nets / 'teacher.keras'}", "--ensemble=mean"]
    trained(*told, "--view=ind/rc", "--phase=trained_teacher:1", "--batchnorm_batches=2", f"--workdir={tmp_path / 'run'}")
    results, (row,) = RunDirectory(tmp_path / "run").results(), RunDirectory(tmp_path / "run").metrics()
    assert results["teacher"] == results["teacher_1"]
    assert row["loss"] == pytest.approx(0.5 * row["hard_loss"] + 0.5 * row["soft_loss"], rel=1e-5)


def test_images_of_another_dataset_teach_without_labels(nets, trained, tmp_path):
    images = ["--synthetic", "--transfer_dataset=mnist", "--batch_size=16", "--view=same/rc", "--hard_weight=0", "--soft_weight=1"]
    told = [f"--teacher={nets / 'teacher.keras'}", "--phase=trained_teacher:1", "--batchnorm_batches=2"]
    trained(*images, *told, f"--workdir={tmp_path / 'run'}")
    (row,) = RunDirectory(tmp_path / "run").metrics()
    assert row["hard_loss"] == 0 and row["loss"] == pytest.approx(row["soft_loss"], rel=1e-5) and row["soft_loss"] > 0
    assert "accuracy" not in row and row["val_accuracy"] == RunDirectory(tmp_path / "run").results()["taught_0"]


@pytest.mark.parametrize(
    ("received", "remedy"),
    [
        (((16, 16, 3), 10), "give --teacher=FILE,size=16"),
        (((None, None, 3), 10), "build it for one size"),
        (((16, 16, 1), 10), "take another network, or other data"),
        (((16, 12, 3), 10), "take another network, or other data"),
        (((16, 16, 3), 5), "take another network, or other data"),
        (((64,), 10), "take another network, or other data"),
    ],
)
def test_what_would_make_a_files_network_fit_is_said(received, remedy):
    assert networks._remedy(received, ((8, 8, 3), 10), "--teacher=FILE,size={}") == remedy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"view": "ind/ic", "mixup": True}, "mixup: expected a view that teacher and student share, as same/ic, received 'ind/ic'"),
        ({"view": "fix/cc", "mixup": True}, "mixup: .*received 'fix/cc'"),
        ({"view": "shift", "teacher": ("resnet8,size=4",)}, "view: expected a crop of the original image for a teacher of another size"),
        ({"teacher": ("resnet8,size=16",)}, "--teacher: expected a size of at most 8, which digits train .synthetic. is stored in, received 16"),
        ({"teacher": ("nowhere.keras", "resnet8")}, "nowhere.keras, which is not there"),
        ({"teacher": ("PIXELS",), "teacher_epochs": 0}, "--teacher: expected values=0..255, as .*pixels.keras begins with a rescaling of pixels"),
        ({"student": "PIXELS", "student_width": 1.0}, "--student: expected a network of images in -1..1, received .*pixels.keras"),
        ({"transfer_dataset": "imdb_reviews"}, "transfer_dataset: expected one with a feature .image."),
        ({"transfer_dataset": "cifar10"}, "--transfer_dataset: expected images of 1 channels, as --dataset has, received 3"),
        ({"hint": ("nope=conv",)}, "hints: expected a layer of the student, received 'nope'"),
        ({"hint": ("conv_relu_out=nope",)}, "hints: expected a layer of the teacher, received 'nope'"),
        ({"dataset": "imagenet2012", "image_size": 8, "batch_size": 65}, "--batch_size: expected at most 64"),
    ],
)
def test_what_cannot_be_taught_is_refused_before_anything_is_written(tmp_path, change, message):
    settings = {"dataset": "digits", "synthetic": True, "student": "resnet8", "student_width": 0.125, "teacher": ("resnet8",), "teacher_epochs": 1}
    settings |= {"phase": ("trained_teacher:1",), "hard_weight": 0.0, "view": "same/ic", "batch_size": 16}
    pixels = tmp_path / "pixels.keras"
    keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(10)]).save(pixels)
    change = {name: ast.literal_eval(repr(value).replace("PIXELS", str(pixels))) for name, value in change.items()}
    with pytest.raises(BadInput, match=message):
        training.Training(Config(**{**settings, **change}), RunDirectory(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bogus=1"], "Unknown command line flag 'bogus'"),
        (["--dataset=digits"], "--student: expected a value, received none"),
        ([*SMALL_RUN, "--workdir=RUN"], "holds a run; give --resume"),
        ([*SMALL_RUN], "--workdir: expected a directory, received none"),
        ([*SMALL_RUN, "--dataset=no_such_set", "--workdir=NEW"], "dataset: expected digits or a TFDS name"),
        ([*SMALL_RUN, "--batch_size=2000", "--workdir=NEW"], "--batch_size: expected at most 1437"),
        (["--dataset=digits", "--student=resnet8", "--teacher=nowhere.keras", "--phase=trained_teacher:1", "--workdir=NEW"], "which is not there"),
        ([*SMALL_RUN, "--checkpoints=0", "--workdir=NEW"], "--checkpoints: expected 1 or more, received 0"),
        ([*SMALL_RUN, "--checkpoint_every=soon", "--workdir=NEW"], "--checkpoint_every: expected steps"),
        (
            [*SMALL_RUN, "--workdir=RUN", "--overwrite", "--student_width=1", "--student=RUN/models/float.keras"],
            "--student: expected what lies outside the run that --overwrite",
        ),
        ([*SMALL_RUN, "--override=nothing=interval:4/interval:4", "--workdir=NEW"], "expected a pattern that matches a layer"),
    ],
)
def test_bad_input_gets_one_line_and_destroys_nothing(complete_run, tmp_path, data_dir, refusal, arguments, message):
    before = {path: path.stat().st_mtime_ns for path in complete_run.rglob("*")}
    filled = [text.replace("RUN", str(complete_run)).replace("NEW", str(tmp_path / "new")) for text in arguments]
    out, err = refusal(train.main, f"--data_dir={data_dir}", *filled)
    assert out == ""
    assert len(err.splitlines()) == 1 and err.startswith("kerakd: ") and message in err
    assert {path: path.stat().st_mtime_ns for path in complete_run.rglob("*")} == before
    assert not (tmp_path / "new").exists()


def test_a_run_does_not_begin_where_its_images_are_looked_for(tmp_path, refusal):
    (tmp_path / "images" / "cat").mkdir(parents=True)
    flags = f"--dataset=folder:{tmp_path / 'images'}", "--student=resnet8", "--image_size=8", "--phase=alone:1"
    for where in (
        ["--workdir=RUN/run"],
        ["--workdir=NEW", "--teacher_cache=RUN/cache", "--teacher=resnet8", "--teacher_epochs=1", "--phase=trained_teacher:1"],
    ):
        filled = [text.replace("RUN", str(tmp_path / "images")).replace("NEW", str(tmp_path / "new")) for text in where]
        _, err = refusal(train.main, *flags, *filled)
        assert err.startswith("kerakd: --") and f"expected a folder outside {tmp_path / 'images'}, which is read for images" in err
    assert [path.name for path in tmp_path.rglob("*")] == ["images", "cat"]


def test_a_refusal_is_the_process_s_one_line_and_status(tmp_path):
    status, out, err = run_program("kerakd.train", "--dataset=digits", f"--workdir={tmp_path / 'new'}")
    assert (status, out, err.count("\n")) == (2, "", 1) and err.startswith("kerakd: --student: expected a value")

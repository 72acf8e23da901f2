"""The run directory: claimed once, never half written, resumed from the newest whole checkpoint."""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from conftest import ROOT

from kerakd.errors import BadInput
from kerakd.modelfile import load_model
from kerakd.rundir import RunDirectory


@pytest.fixture
def claimed(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.claim("--a=1\n", resume=False, overwrite=False)
    return directory


def test_a_directory_is_claimed_once(claimed):
    with pytest.raises(BadInput, match="holds a run; give --resume .* or --overwrite"):
        claimed.claim("--a=1\n", resume=False, overwrite=False)


def test_resume_keeps_and_overwrite_removes(claimed):
    claimed.add_metrics("s", 0, {"loss": 1})
    claimed.claim("--a=1\n", resume=True, overwrite=False)
    assert len(claimed.metrics()) == 1
    claimed.claim("--a=2\n", resume=False, overwrite=True)
    assert claimed.metrics() == []


def test_overwriting_leaves_what_is_not_of_a_run(claimed):
    (claimed.path / "thesis").mkdir()
    (claimed.path / "thesis/chapter.tex").write_text("years of work")
    (claimed.path / "report.html").write_text("a page")
    (claimed.path / "student.int4.tflite").write_text("a file of the run before")
    claimed.claim("--a=2\n", resume=False, overwrite=True)
    assert sorted(path.name for path in claimed.path.iterdir()) == [".lock", "flags.cfg", "models", "report.html", "thesis"]
    assert (claimed.path / "thesis/chapter.tex").read_text() == "years of work"


def test_a_run_is_trained_by_one_process_at_a_time(claimed):
    other = RunDirectory(claimed.path)
    before = {path: path.stat().st_mtime_ns for path in claimed.path.rglob("*")}
    for how in ({"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}):
        with pytest.raises(BadInput, match="--workdir: expected a run that no other process trains"):
            other.claim("--a=1\n", **how)
    assert {path: path.stat().st_mtime_ns for path in claimed.path.rglob("*")} == before
    claimed.close()
    other.claim("--a=1\n", resume=True, overwrite=False)


HOLDING = """
import sys, time
from kerakd.rundir import RunDirectory
directory = RunDirectory(sys.argv[1])
directory.claim("--a=1\\n", resume=False, overwrite=False)
print("held", flush=True)
time.sleep(600)
"""


def test_a_killed_process_lets_go_of_its_run(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BadInput, match="no other process trains"):
            RunDirectory(tmp_path / "run").claim("--a=1\n", resume=True, overwrite=False)
        process.kill()
    RunDirectory(tmp_path / "run").claim("--a=1\n", resume=True, overwrite=False)


def test_what_a_run_reads_is_not_deleted_by_it(claimed, tmp_path):
    claimed.check_apart({"teacher=x": tmp_path / "run2/models/teacher.keras", "data_dir": tmp_path})
    for path in (claimed.path, claimed.path / "models/teacher.keras", claimed.path / "../run/models"):
        with pytest.raises(BadInput, match="--student: expected what lies outside the run that --overwrite deletes"):
            claimed.check_apart({"student": path})


def test_resume_with_other_flags_is_refused_and_names_them(claimed):
    with pytest.raises(BadInput, match="others .*--a=1, --a=2"):
        claimed.claim("--a=2\n", resume=True, overwrite=False)
    assert (claimed.path / "flags.cfg").read_text() == "--a=1\n"


def test_resume_without_a_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match="--resume: expected a run"):
        RunDirectory(tmp_path / "none").claim("", resume=True, overwrite=False)
    assert not (tmp_path / "none").exists()


def test_resume_and_overwrite_together_are_refused(claimed):
    with pytest.raises(BadInput, match="at most one"):
        claimed.claim("--a=1\n", resume=True, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_with_other_files_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="files that are not a run's; nothing was touched"):
        RunDirectory(tmp_path).claim("", resume=False, overwrite=overwrite)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_file_in_the_directorys_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="expected a directory, received the file"):
        RunDirectory(tmp_path / "file").claim("", resume=False, overwrite=True)


def test_a_directory_that_can_not_be_made_is_refused():
    with pytest.raises(BadInput, match="expected a directory that can be written"):
        RunDirectory("/proc/nowhere/run").claim("", resume=False, overwrite=False)


def test_a_run_that_kept_a_path_from_home_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/me")
    RunDirectory(tmp_path / "run").claim("--data_dir=~/tfds\n--teacher=~/t.keras,size=8\n", resume=False, overwrite=False)
    RunDirectory(tmp_path / "run").check("--data_dir=/me/tfds\n--teacher=/me/t.keras,size=8\n", resume=True, overwrite=False)
    with pytest.raises(BadInput, match="--resume: expected the flags"):
        RunDirectory(tmp_path / "run").check("--data_dir=/me/other\n--teacher=/me/t.keras,size=8\n", resume=True, overwrite=False)


def test_metrics_after_the_checkpoint_are_forgotten(claimed):
    for stage, epoch in (("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2)):
        claimed.add_metrics(stage, epoch, {"loss": epoch})
    with open(claimed.path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "b", "epo')  # a machine died
    claimed.forget_metrics("b", 1)
    assert (claimed.path / "metrics.jsonl").read_text().endswith("}\n")
    assert [(row["stage"], row["epoch"]) for row in claimed.metrics()] == [("a", 0), ("a", 1), ("b", 0)]


def test_the_newest_whole_checkpoint_is_restored_and_a_damaged_one_is_named(claimed, capsys):
    value = tf.Variable(0.0)
    for number, place in enumerate([(0, 7), (1, 0), (1, 20), (10, 3)]):
        value.assign(float(number))
        claimed.checkpoint("s", place, {"value": value}, {"loss 0": np.float32(number / 3)}, kept=3)
    folders = sorted((claimed.path / "checkpoints" / "s").iterdir())
    assert [folder.name for folder in folders] == ["000001_00000000", "000001_00000020", "000010_00000003"]
    place, metrics = claimed.restore("s", {"value": value})
    assert place == (10, 3) and float(value) == 3 and metrics == {"loss 0": np.float32(1)}
    newest = next(folders[-1].glob("*.data-*"))
    newest.write_bytes(newest.read_bytes()[:1])
    (folders[-2] / "metrics.npz").write_bytes(b"PK")
    assert claimed.restore("s", {"value": value}) == ((1, 0), {"loss 0": np.float32(1 / 3)}) and float(value) == 1
    said = capsys.readouterr().err
    assert folders[-1].name in said and folders[-2].name in said


def test_a_checkpoint_of_other_objects_is_passed_over_and_moves_nothing(claimed, capsys):
    claimed.checkpoint("s", (1, 0), {"value": tf.Variable(1.0)}, {})
    value, another = tf.Variable(7.0), tf.Variable(8.0)
    for others in ({"value": tf.Variable([1.0, 2.0])}, {"value": value, "another": another}):
        with pytest.raises(BadInput, match="--resume: expected a checkpoint of 's' that can be read, received 1 that can't; .* or move .*/s away"):
            claimed.restore("s", others)
    assert (float(value), float(another)) == (7, 8)
    assert capsys.readouterr().err.count("passed over") == 2
    assert [path.name for path in (claimed.path / "checkpoints" / "s").iterdir()] == ["000001_00000000"]


def test_damaged_checkpoints_make_room_for_whole_ones(claimed):
    value = tf.Variable(1.0)
    for place in ((1, 0), (5, 0)):
        claimed.checkpoint("s", place, {"value": value}, {})
    (claimed.path / "checkpoints" / "s" / "000005_00000000" / "metrics.npz").write_bytes(b"")
    assert claimed.restore("s", {"value": value})[0] == (1, 0)
    claimed.checkpoint("s", (1, 9), {"value": value}, {}, kept=1)
    assert claimed.restore("s", {"value": value})[0] == (1, 9)
    assert [path.name for path in (claimed.path / "checkpoints" / "s").iterdir()] == ["000001_00000009"]


def test_without_a_checkpoint_training_begins_at_zero(claimed):
    assert claimed.restore("s", {"value": tf.Variable(0.0)}) == ((0, 0), {})


def test_a_full_disk_is_one_error_and_leaves_the_checkpoints_from_before(claimed, tmp_path):
    """A process whose files may not grow stands for a disk that is full: the system refuses the same calls."""
    script = f"""
import resource, signal, sys
import numpy as np, tensorflow as tf
from kerakd.errors import BadInput
from kerakd.rundir import RunDirectory
directory, value = RunDirectory({str(claimed.path)!r}), tf.Variable(tf.ones([100_000]))
directory.checkpoint("s", (1, 0), {{"value": value}}, {{}})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
long = "x" * 60_000
for write in (
    lambda: directory.checkpoint("s", (2, 0), {{"value": value}}, {{}}),
    lambda: directory.add_metrics(long, 0, {{}}),
    lambda: directory.save_results({{long: 0}}),
):
    try:
        write()
    except BadInput as error:
        print("refused:", str(error)[:60])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(directory.restore("s", {{"value": value}})[0], directory.metrics())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.count("refused: --workdir: expected to write") == 3 and "(1, 0) []" in done.stdout, done.stdout + done.stderr
    assert [path.name for path in (claimed.path / "checkpoints" / "s").iterdir()] == ["000001_00000000"]


def test_results_complete_a_run(claimed):
    with pytest.raises(BadInput, match="without results.json"):
        claimed.results()
    claimed.save_results({"teacher": 0.5})
    assert claimed.complete and claimed.results() == {"teacher": 0.5}


def test_models_come_back_as_they_were(claimed):
    from kerakd import models

    model = models.build("resnet8", (8, 8, 1), 10, 0.25)
    claimed.save_model("teacher", model)
    for saved, loaded in zip(model.get_weights(), claimed.load_model("teacher").get_weights(), strict=True):
        np.testing.assert_array_equal(saved, loaded)


def test_a_missing_or_foreign_model_file_is_refused(tmp_path, claimed):
    with pytest.raises(BadInput, match="which is not there"):
        load_model(tmp_path / "x.keras")
    (tmp_path / "x.keras").write_bytes(b"PK not a model")
    with pytest.raises(BadInput, match="expected a tf_keras"):
        load_model(tmp_path / "x.keras")
    with pytest.raises(BadInput, match="is the run complete"):
        claimed.load_model("teacher")


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize(("kind", "suffix"), [("class", "keras"), ("class", "h5"), ("Lambda", "keras")])
def test_a_file_with_what_its_writer_alone_knows_says_so(tmp_path, kind, suffix):
    class OfOnesOwn(keras.layers.Layer):
        """Which no module has."""

    layer = OfOnesOwn() if kind == "class" else keras.layers.Lambda(lambda x: x)
    keras.Sequential([keras.Input((2,)), layer]).save(tmp_path / f"x.{suffix}")
    with pytest.raises(BadInput, match="own is known to your code alone: train there, with kerakd.Distiller"):
        load_model(tmp_path / f"x.{suffix}")


def test_overwrite_deletes_a_runs_own_files_and_no_other(claimed):
    own = ["metrics.jsonl", "results.json", "student.tflite", "student.md", "sensitivity.json", "models/taught_0.keras", "models/teacher_1.keras"]
    others = ["notes.jsonl", "student.notes.txt", "codes.npz", "models/mine/keep.keras"]
    for name in own + others:
        (claimed.path / name).parent.mkdir(exist_ok=True)
        (claimed.path / name).write_text("x")
    claimed.claim("--a=2\n", resume=False, overwrite=True)
    assert not [name for name in own if (claimed.path / name).exists()]
    assert [(claimed.path / name).read_text() for name in others] == ["x"] * len(others)


@pytest.mark.parametrize("at", range(4))
def test_a_run_whose_deletion_was_cut_short_is_an_incomplete_run_still(claimed, monkeypatch, at):
    for name in ("results.json", "metrics.jsonl", "models/teacher.keras"):
        (claimed.path / name).write_text("x")
    (claimed.path / "checkpoints").mkdir(exist_ok=True)
    left = iter([None] * at)

    def killed(remove):
        def call(path):
            try:
                next(left)
            except StopIteration:
                raise KeyboardInterrupt from None
            remove(path)

        return call

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed(shutil.rmtree))
        patch.setattr(pathlib.Path, "unlink", killed(pathlib.Path.unlink))
        claimed.claim("--a=2\n", resume=False, overwrite=True)
    assert claimed.complete == (at == 0)
    again = RunDirectory(claimed.path)
    claimed.close()
    again.claim("--a=2\n", resume=False, overwrite=True)
    assert sorted(path.name for path in again.path.iterdir()) == [".lock", "flags.cfg", "models"] and not [*again.path.glob("models/*")]


def test_what_a_killed_process_left_half_written_is_no_run_and_no_hindrance(tmp_path):
    (tmp_path / ".flags.partial.cfg").write_text("--a")
    RunDirectory(tmp_path).claim("--a=1\n", resume=False, overwrite=False)
    (tmp_path / "models" / ".taught_0.partial.keras").write_text("")
    RunDirectory(tmp_path).claim("--a=1\n", resume=True, overwrite=False)
    assert not [path for path in tmp_path.rglob("*") if ".partial" in path.name]


@pytest.mark.parametrize("name, read", [("data.json", RunDirectory.data), ("results.json", RunDirectory.results), ("metrics.jsonl", RunDirectory.metrics)])
def test_a_damaged_file_is_named_with_a_remedy(claimed, name, read):
    (claimed.path / name).write_text('{"a": \n')
    with pytest.raises(BadInput, match=f"{name}: expected JSON as it was written, received something damaged .*; restore it from a copy, or delete the file"):
        read(claimed)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("suffix, damage", [(".keras", "cut"), (".keras", "zeros"), (".h5", "cut")])  # zeros in an .h5 can have HDF5 itself loop
def test_a_damaged_model_file_is_one_error(tmp_path, suffix, damage):
    from kerakd import models

    path = tmp_path / f"x{suffix}"
    models.build("resnet8", (8, 8, 1), 10, 0.25).save(path)
    whole = bytearray(path.read_bytes())
    for at in range(4):
        part = whole[: len(whole) * (at + 1) // 6] if damage == "cut" else whole[: at * 900 + 300] + bytes(300) + whole[at * 900 + 600 :]
        path.write_bytes(part)
        refused = pytest.raises(BadInput, match=f"{re.escape(str(path))}.*save (it|the model) ")
        with refused if damage == "cut" else contextlib.suppress(BadInput):  # some bytes are of nothing that counts
            load_model(path)


def test_overwriting_removes_all_that_a_run_writes(claimed):
    own = ["intervals.jsonl", "data.json", "settled.json", "curves.png", "fixed_logits.npz", "fixed_logits_begun.npz", "student.int4.tflite", "student.json"]
    own += ["models/float.keras", "models/alone_0.keras", "models/teacher.keras", "tensorboard/x"]
    for name in own:
        (claimed.path / name).parent.mkdir(exist_ok=True)
        (claimed.path / name).write_text("x")
    claimed.claim("--a=2\n", resume=False, overwrite=True)
    assert not [name for name in own if (claimed.path / name).exists()]


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(claimed, monkeypatch):
    seen = []
    monkeypatch.setattr("kerakd.rundir.flush", lambda path: seen.append((path.name, claimed.has_checkpoint("s"))))
    claimed.checkpoint("s", (1, 0), {"value": tf.Variable(1.0)}, {})
    assert {("state.index", False), ("metrics.npz", False)} <= set(seen) and claimed.has_checkpoint("s") and all(not there for _, there in seen)


def test_small_intervals_keep_their_digits(claimed):
    claimed.add_intervals("b", 0, {"x weights": 1.23456789e-7})
    assert claimed.intervals()[0]["x weights"] == 1.23457e-7


def test_intervals_of_epochs_that_are_trained_again_are_forgotten(claimed):
    for epoch in range(3):
        claimed.add_intervals("b", epoch, {"x weights": 1.0})
    claimed.forget_metrics("b", 1)
    assert [row["epoch"] for row in claimed.intervals()] == [0]


def test_a_teacher_by_its_home_folder_is_found_in_the_run_that_would_go(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BadInput, match="--overwrite"):
        RunDirectory(tmp_path / "run").check_apart({"teacher": "~/run/models/teacher.keras"})


def test_a_run_that_another_process_trains_says_so_to_who_would_begin_one_there(claimed):
    with pytest.raises(BadInput, match="expected a run that no other process trains"):
        RunDirectory(claimed.path).check("--a=1\n", resume=False, overwrite=False)
    claimed.close()
    with pytest.raises(BadInput, match="holds a run; give --resume"):
        RunDirectory(claimed.path).check("--a=1\n", resume=False, overwrite=False)


def test_a_run_that_is_not_there_is_called_so(tmp_path):
    with pytest.raises(BadInput, match="expected a complete run, received .*, which is not there"):
        RunDirectory(tmp_path / "nowhere").results()

"""The run directory: claimed once, never half written, resumed from the newest whole checkpoint."""

import os

import numpy as np
import pytest
import tensorflow as tf

from kerakd.errors import BadInput
from kerakd.rundir import RunDirectory, load_model, write_aside


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


def test_writing_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(aside):
        aside.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_aside(path, fail)
    assert path.read_text() == "old"


def test_metrics_after_the_checkpoint_are_forgotten(claimed):
    for stage, epoch in (("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2)):
        claimed.add_metrics(stage, epoch, {"loss": epoch})
    claimed.keep_metrics("b", 1)
    assert [(row["stage"], row["epoch"]) for row in claimed.metrics()] == [("a", 0), ("a", 1), ("b", 0)]


def test_the_newest_whole_checkpoint_is_restored_and_a_damaged_one_is_named(claimed, capsys):
    value = tf.Variable(0.0)
    for epoch in (1, 2, 3):
        value.assign(float(epoch))
        claimed.checkpoint("s", epoch, {"value": value})
    kept = sorted(path.name for path in (claimed.path / "checkpoints" / "s").iterdir())
    assert kept == ["000002", "000003"]
    assert claimed.restore("s", {"value": value}) == 3 and float(value) == 3
    newest = next((claimed.path / "checkpoints" / "s" / "000003").glob("*.index"))
    newest.write_bytes(newest.read_bytes()[:10])
    assert claimed.restore("s", {"value": value}) == 2 and float(value) == 2
    assert "000003" in capsys.readouterr().out


def test_without_a_checkpoint_training_begins_at_zero(claimed):
    assert claimed.restore("s", {"value": tf.Variable(0.0)}) == 0


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

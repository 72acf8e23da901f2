"""The training program as a process: what it leaves, what it says, killed and resumed, run again from its own flags, fed nonsense."""

import random
import signal
import time

import numpy as np
import pytest
from conftest import SMALL_RUN, run_program, start

from kerakd.rundir import RunDirectory

MODELS = ("teacher", "float", "alone_0", "taught_0", "taught_0_teacher")


def weights(directory):
    return {name: RunDirectory(directory).load_model(name).get_weights() for name in MODELS}


def assert_same_run(one, other):
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    mine, theirs = weights(one), weights(other)
    for name in MODELS:
        for a, b in zip(mine[name], theirs[name], strict=True):
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
    foreign = [line for line in said.splitlines() if not line.startswith(("teacher:", "float student:", "student ", "test accuracy", "  ", "run:", "next:"))]
    assert foreign == []


def test_the_same_flags_give_the_same_run(complete_run, tmp_path):
    status, out, err = run_program("kerakd.train", f"--flagfile={complete_run / 'flags.cfg'}", f"--workdir={tmp_path / 'again'}")
    assert status == 0, out + err
    assert_same_run(complete_run, tmp_path / "again")


def test_a_killed_run_resumes_to_the_same_weights(complete_run, tmp_path, data_dir):
    """Killed outright (SIGKILL) at three random moments of its training, in whatever stage it is."""
    directory = tmp_path / "killed"
    arguments = [*SMALL_RUN, f"--data_dir={data_dir}", f"--workdir={directory}"]
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


def test_networks_from_files_go_on_from_their_weights_with_the_medicine_of_low_bits(complete_run, tmp_path, data_dir):
    models = complete_run / "models"
    data = ["--dataset=digits", f"--data_dir={data_dir}", f"--workdir={tmp_path / 'own'}"]
    nets = [f"--student={models / 'float.keras'}", f"--teacher={models / 'teacher.keras'}", "--weights=interval:3", "--activations=interval:4"]
    medicine = ["--phase=trained_teacher:1", "--dampening=0.1", "--freeze=0.01", "--watch", "--batchnorm_batches=2"]
    status, out, err = run_program("kerakd.train", *data, *nets, *medicine)
    assert status == 0, out + err
    results, before = RunDirectory(tmp_path / "own").results(), RunDirectory(complete_run).results()
    assert (results["float"], results["teacher"]) == (before["float"], before["teacher"])
    assert f"after calibration, before training; float {before['float']:.4f}" in out
    assert 0 <= RunDirectory(tmp_path / "own").metrics()[-1]["oscillating"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bogus=1"], "Unknown command line flag 'bogus'"),
        (["--dataset=digits"], "--student: expected a value, received none"),
        ([*SMALL_RUN, "--workdir=RUN"], "holds a run; give --resume"),
        ([*SMALL_RUN], "--workdir: expected a directory, received none"),
        ([*SMALL_RUN, "--dataset=no_such_set", "--workdir=NEW"], "dataset: expected digits or a TFDS name"),
        ([*SMALL_RUN, "--batch_size=2000", "--workdir=NEW"], "--batch_size: expected at most 1437"),
        ([*SMALL_RUN, "--teacher_epochs=0", "--teacher_width=1", "--teacher=nowhere.keras", "--workdir=NEW"], "which is not there"),
        ([*SMALL_RUN, "--override=nothing=interval:4/interval:4", "--workdir=NEW"], "expected a pattern that matches a layer"),
    ],
)
def test_bad_input_gets_one_line_and_destroys_nothing(complete_run, tmp_path, data_dir, arguments, message):
    before = {path: path.stat().st_mtime_ns for path in complete_run.rglob("*")}
    filled = [text.replace("RUN", str(complete_run)).replace("NEW", str(tmp_path / "new")) for text in arguments]
    status, out, err = run_program("kerakd.train", f"--data_dir={data_dir}", *filled)
    assert status == 2 and out == ""
    assert len(err.splitlines()) == 1 and err.startswith("kerakd: ") and message in err
    assert {path: path.stat().st_mtime_ns for path in complete_run.rglob("*")} == before
    assert not (tmp_path / "new").exists()

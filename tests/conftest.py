"""What several test files share: TensorFlow kept quiet, the programs as processes, one small complete run."""

import gc
import os
import pathlib
import subprocess
import sys

import pytest

import kerakd.quiet  # noqa: F401  (before any test imports TensorFlow)

ROOT = pathlib.Path(__file__).parents[1]
gc.set_threshold(200_000, 20, 20)  # Keras's graphs are millions of objects that live long: looking through them often takes minutes

# A file's tests run in one worker (pytest-xdist's loadfile): the longest files begin, and the second worker is at test_configs while
# the first one does those that share the complete run.
FIRST = [f"test_{name}.py" for name in ("train", "configs", "export", "evaluate", "sensitivity", "page", "models", "tflite", "emulator", "distiller", "rows")]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


SMALL_RUN = (
    "--dataset=digits",
    "--teacher=resnet8",
    "--teacher_width=0.5",
    "--teacher_epochs=3",
    "--student=resnet8",
    "--student_width=0.25",
    "--float_epochs=2",
    "--phase=alone:2",
    "--phase=co_study:2",
    "--phase=trained_teacher:2",
    "--compare",
    "--learning_rate=0.005",
)


def start(module, *arguments, cwd=ROOT):
    """A program as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run_program(module, *arguments, cwd=ROOT):
    """(exit status, stdout, stderr) of a program that is waited for."""
    process = start(module, *arguments, cwd=cwd)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture
def here(monkeypatch, capsys):
    """A function that runs a program's main in this process, which has TensorFlow loaded: (status, stdout, stderr)."""
    import tensorflow as tf
    import tf_keras as keras

    from kerakd.commandline import program
    from kerakd.keep import StopRequest

    def here(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)  # a whole process's matter, as are the next two
        monkeypatch.setattr(keras.backend.experimental, "enable_tf_random_generator", lambda: None)
        monkeypatch.setattr(StopRequest, "listen", lambda self: None)
        keras.backend.clear_session()
        try:
            program(main)
            status = 0
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    return here


@pytest.fixture
def refusal(here):
    """A function that runs a program's main, which has to end with status 2: (stdout, stderr)."""

    def refusal(main, *arguments):
        status, out, err = here(main, *arguments)
        assert status == 2
        return out, err

    return refusal


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where this session's TFDS datasets are prepared."""
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="session")
def complete_run(tmp_path_factory, data_dir):
    """The directory of a run of SMALL_RUN that nothing interrupted; its path has a space and an umlaut."""
    directory = tmp_path_factory.mktemp("runs") / "ein Läufer"
    status, out, err = run_program("kerakd.train", *SMALL_RUN, f"--data_dir={data_dir}", f"--workdir={directory}")
    assert status == 0, out + err
    (directory / "stdout.txt").write_text(out)
    (directory / "stderr.txt").write_text(err)
    return directory

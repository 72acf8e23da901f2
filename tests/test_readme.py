"""README's Python runs as it stands, and its commands are the Makefile's."""

import re
import subprocess
import sys

import pytest
import tf_keras as keras
from conftest import ROOT

import kerakd

README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_python_blocks_run_one_after_the_other(tmp_path):
    code = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "logits of 256 images equal (100.00%)" in done.stdout and (tmp_path / "student.keras").exists()


def test_a_models_softmax_is_taken_away_as_is_said(tmp_path):
    (said,) = re.findall(r"`(model\.layers\[-1\]\.activation = .*?)`", README)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    with pytest.raises(kerakd.BadInput):
        kerakd.quantize(model, kerakd.Scheme(None, kerakd.Interval(8)))
    exec(said, {"model": model, "keras": keras})
    model.save(tmp_path / "x.keras")
    kerakd.quantize(keras.models.load_model(tmp_path / "x.keras"), kerakd.Scheme(None, kerakd.Interval(8)))


def test_the_two_commands_come_first_and_the_makefile_has_them():
    first = re.search(r"```(?:sh)?\n(.*?)```", README, re.S).group(1)
    commands = [line.split("#")[0].strip() for line in first.splitlines() if line.strip()]
    assert commands == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert "\ndemo:" in makefile and "\ntest:" in makefile


def test_the_demo_is_nothing_but_the_ordinary_command_lines():
    recipe = re.search(r"\ndemo: env\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text()).group(1)
    lines = [line.strip().replace("$(RUN)", "python") for line in recipe.splitlines()]
    assert lines == [
        "python -m kerakd.train --flagfile=configs/digits_ternary.cfg --workdir=runs/digits --overwrite",
        "python -m export.tflite --run=runs/digits",
    ]


def test_ci_calls_the_readmes_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text()


HOSTS = ("arxiv.org", "bford.info", "docs.pytest.org", "github.com", "localhost", "scikit-learn.org", "www.apache.org")  # of papers, sources, licenses


def test_no_path_of_one_machine_and_no_host_of_a_registry_in_what_is_shipped():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    texts = [name for name in tracked if not name.endswith((".png", ".keras")) and name != "tests/test_readme.py"]
    assert {"Makefile", ".ci/run", "BUILD.md", "kerakd/train.py"} <= set(texts)
    for name in texts:
        text = (ROOT / name).read_text()
        assert not re.search(r"(?<![\w.~])/(home|root|Users|work|tmp)/\w", text), name
        assert {host.partition(":")[0] for host in re.findall(r"https?://([^/\s)\"'>]+)", text)} <= set(HOSTS), name

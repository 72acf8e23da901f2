"""Every configuration parses, carries its header, and trains under smoke.cfg, then again from its own flags.cfg."""

import subprocess
import sys

import pytest
from conftest import ROOT, run_program

from kerakd import train
from kerakd.config import parse
from kerakd.rundir import RunDirectory

CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.cfg") if path.name != "smoke.cfg")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_header_says_command_expectation_and_a_minutes_trial(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert "arXiv" in text and f"--flagfile=configs/{path.name}" in text and "# Expect:" in text and "# In a minute:" in text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_stands_on_its_own(path):
    made, _ = parse(["x", f"--flagfile={path}"])
    assert made.dataset and made.phases() and "flagfile" not in "".join(line for line in path.read_text().splitlines() if not line.startswith("#"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_trains_under_smoke(path, tmp_path, data_dir, here):
    """In this process, as there are many; those that run again below are processes."""
    flags = f"--flagfile={path}", f"--flagfile={ROOT / 'configs/smoke.cfg'}", f"--data_dir={data_dir}", f"--workdir={tmp_path / 'run'}"
    status, out, err = here(train.main, *flags)
    assert status == 0, out + err
    directory = RunDirectory(tmp_path / "run")
    phases = [epochs for _, epochs in parse(["x", f"--flagfile={tmp_path / 'run/flags.cfg'}"])[0].phases()]
    assert directory.complete and sum(row["stage"].startswith("taught") for row in directory.metrics()) == sum(phases)


def trained(workdir, *flags):
    status, out, err = run_program("kerakd.train", *flags, f"--workdir={workdir}")
    assert status == 0, out + err
    return (workdir / "metrics.jsonl").read_text(), (workdir / "results.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_takes_a_real_step_at_its_real_size(path, tmp_path, capsys):
    done = subprocess.run([sys.executable, ROOT / "tests/real_step.py", path, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with capsys.disabled():
        print("\n" + done.stdout, end="")


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_runs_again_from_its_own_flags(path, tmp_path, data_dir):
    first = trained(tmp_path / "first", f"--flagfile={path}", f"--flagfile={ROOT / 'configs/smoke.cfg'}", f"--data_dir={data_dir}")
    assert trained(tmp_path / "again", f"--flagfile={tmp_path / 'first' / 'flags.cfg'}") == first

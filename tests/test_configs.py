"""Every configuration parses, carries its header, and trains under smoke.cfg, then again from its own flags.cfg."""

import pytest
from conftest import ROOT, run_program

from kerakd.config import parse

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
def test_a_configuration_trains_under_smoke_and_again_from_its_own_flags(path, tmp_path, data_dir):
    first, again = tmp_path / "first", tmp_path / "again"
    status, out, err = run_program(
        "kerakd.train", f"--flagfile={path}", f"--flagfile={ROOT / 'configs/smoke.cfg'}", f"--data_dir={data_dir}", f"--workdir={first}"
    )
    assert status == 0, out + err
    status, out, err = run_program("kerakd.train", f"--flagfile={first / 'flags.cfg'}", f"--workdir={again}")
    assert status == 0, out + err
    assert (first / "metrics.jsonl").read_text() == (again / "metrics.jsonl").read_text()
    assert (first / "results.json").read_text() == (again / "results.json").read_text()

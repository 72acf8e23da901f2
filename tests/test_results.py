"""What results/ holds: a configuration for each row, runs that were made from them, and tables that say what the runs say."""

import json

import pytest
from conftest import ROOT

from benchmarks import tables
from kerakd.config import parse

CIFAR10 = ROOT / "results/cifar10"
RUNS = sorted(path.parent for path in CIFAR10.glob("*/run.json"))


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    """Where its programs are run from."""
    monkeypatch.chdir(ROOT)


def config(row, *more):
    return parse(["x", f"--flagfile=results/cifar10/{row}.cfg", *more])[0]


def test_every_row_has_a_configuration_and_every_configuration_a_row():
    assert {path.stem for path in CIFAR10.glob("*.cfg")} == {*tables.ROWS, "common"}


@pytest.mark.parametrize("row", tables.ROWS)
def test_a_row_says_how_it_is_run_and_trains_for_as_long_as_its_neighbours(row):
    header = [line for line in (CIFAR10 / f"{row}.cfg").read_text().splitlines() if line.startswith("#")]
    assert f"--flagfile=results/cifar10/{row}.cfg" in "\n".join(header)
    made = config(row)
    length = 10 if row == "teacher" else 3 if row.endswith("_3") else 6
    assert made.dataset == "cifar10" and sum(epochs for _, epochs in made.phases()) == length


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_kept_run_is_that_of_its_configuration(run):
    row, _, seed = run.name.rpartition("_")
    assert (run / "flags.cfg").read_text() == config(row, f"--seed={seed}").text()
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == sum(epochs for _, epochs in config(row).phases())
    kept = json.loads((run / "run.json").read_text())
    assert abs(kept["accuracy"] - metrics[-1]["val_accuracy"]) < 0.02  # trained in bfloat16, kept in float32, shipped in integers
    if kept["on"] == "int8 .tflite":
        table = json.loads((run / "student.json").read_text())["table"]
        assert kept["accuracy"] in [line["accuracy"] for line in table if "int8 .tflite" in line["network"]]


def test_the_tables_are_those_of_the_runs():
    """make results was called after the last run was kept."""
    assert tables.text(tables.runs()) == (ROOT / "results/README.md").read_text()


def test_a_row_that_was_not_run_is_named_and_has_no_number():
    nothing = {row: [] for row in tables.ROWS}
    lines = tables.section("x", {"float": "a", "ternary": "b"}, nothing)
    assert lines == ["### x", "", "Not run yet: float, ternary.", ""]
    assert not any("|" in line for line in lines)

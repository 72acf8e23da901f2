"""What results/ holds: a configuration for each row, runs that were made from them, and tables that say what the runs say."""

import dataclasses
import json
import pathlib
import re
import threading

import pytest
from conftest import ROOT
from matplotlib.text import Text

from benchmarks import accuracy, pictures, rows, tables
from kerakd.augment import view
from kerakd.config import parse

CIFAR10 = ROOT / "results/cifar10"
RUNS = sorted(path.parent for path in CIFAR10.glob("*/run.json"))


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    """Where its programs are run from."""
    monkeypatch.chdir(ROOT)


def config(row, *more):
    return parse(["x", f"--flagfile=results/cifar10/{row}.cfg", *more])[0]


# ---- Rows ----------------------------------------------------------------------------------------------------------------------------------------


def test_every_row_has_a_configuration_and_every_configuration_a_row():
    assert {path.stem for path in CIFAR10.glob("*.cfg")} == {*rows.ROWS, "common"}


@pytest.mark.parametrize("title, name", [(title, name) for title, section in rows.SECTIONS.items() for name in section])
def test_a_row_says_what_it_is_and_how_it_is_run(title, name):
    header = [line for line in (CIFAR10 / f"{name}.cfg").read_text().splitlines() if line.startswith("#")]
    assert header[0] == f"# {title}: {rows.ROWS[name].what}." and f"--flagfile=results/cifar10/{name}.cfg" in header[2]


# mixed images have no label, so that nobody learns from them alone
OF_THE_TEACHER = ("teacher", "teacher_width", "teacher_cache", "phase", "temperature", "soft_weight", "hard_weight", "mixup")


@pytest.mark.parametrize("name", [name for name, row in rows.ROWS.items() if row.alone])
def test_a_row_is_compared_with_the_same_without_a_teacher(name):
    taught, alone = config(name), config(rows.ROWS[name].alone)
    assert taught.taught() and not alone.taught() and sum(count for _, count in taught.phases()) == sum(count for _, count in alone.phases())
    apart = {field.name for field in dataclasses.fields(taught) if getattr(taught, field.name) != getattr(alone, field.name)}
    assert apart - {"view"} <= set(OF_THE_TEACHER) and view(taught.view).student is view(alone.view).student


def epochs(name):
    """Of a row's student, those of the float student that it starts from included."""
    made = config(name)
    before = epochs(pathlib.Path(made.student).parts[2].rpartition("_")[0]) if made.student.endswith(".keras") else 0
    return before + sum(count for _, count in made.phases())


@pytest.mark.parametrize("name", [name for name, row in rows.ROWS.items() if row.against])
def test_a_row_is_compared_with_a_float_row_that_trained_as_long(name):
    reference = config(rows.ROWS[name].against)
    assert not reference.taught() and reference.weights == "float" and epochs(rows.ROWS[name].against) == epochs(name)


# ---- Runs ----------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_kept_run_is_that_of_its_configuration(run):
    row, _, seed = run.name.rpartition("_")
    assert (run / "flags.cfg").read_text() == config(row, f"--seed={seed}").text()
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == sum(count for _, count in config(row).phases())
    kept, results = json.loads((run / "run.json").read_text()), json.loads((run / "results.json").read_text())
    assert abs(kept["accuracy"] - metrics[-1]["val_accuracy"]) < 0.02  # trained in bfloat16, kept in float32, shipped in integers
    assert kept["bytes"] > kept["zipped"] > 0 and kept.get("seconds", 1) > 0
    if config(row).exports():
        (line,) = [line for line in json.loads((run / "student.json").read_text())["table"] if "on the int8 .tflite" in line["network"]]
        assert kept["on"] == "int8 .tflite" and {key: kept[key] for key in ("accuracy", "bytes", "zipped")}.items() <= line.items()
    else:
        assert kept["on"] == "Keras, float32" and kept["accuracy"] == results[f"taught_{seed}"]


def test_no_file_names_a_machines_folders():
    texts = {path: path.read_text() for path in (ROOT / "results").rglob("*") if path.suffix in (".json", ".jsonl", ".cfg", ".md")}
    assert not [path for path, text in texts.items() if re.search(r"(?<![\w.])/(home|root|tmp|work|usr|opt)/", text)]


# ---- Tables --------------------------------------------------------------------------------------------------------------------------------------


def test_the_tables_are_those_of_the_runs():
    """make results was called after the last run was kept."""
    assert tables.text(tables.runs()) == (ROOT / "results/README.md").read_text()


README_ROWS = (  # in the order of its table
    *("float_100", "long_w4a4", "long_ternary", "long_w2a2_fast"),
    *("float_12", "float_taught_longer", "best_w4a4_taught", "best_ternary_taught", "best_w2a2_taught"),
)


def test_the_readme_says_what_was_measured():
    found = tables.runs()
    lines = re.findall(r"^\| .* \| ([\d.]+) \| ([\d,]+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert lines == [(tables.percent(tables.mean(found[row])), f"{found[row][0]['zipped'] / 1000:,.0f}") for row in README_ROWS]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("cifar10_*.cfg")), ids=lambda path: path.stem)
def test_a_configuration_expects_what_its_rows_gave(path):
    said = re.findall(r"(\d\d\.\d)[^()\d]*\((?:results/cifar10/)?(\w+)\.cfg\)", path.read_text())
    assert len(said) >= 4
    for value, row in said:
        assert float(value) == pytest.approx(100 * tables.mean(tables.runs()[row]), abs=0.0501), row


def some(**accuracies):
    """Runs as `tables.runs` gives them: {row: [accuracy of seed 0, 1, ...]}."""
    run = {"bytes": 2000, "zipped": 1000, "finished": "2026-01-02", "machine": "m", "versions": {"numpy": "2"}, "card": None}
    found = {name: [] for name in rows.ROWS}
    for name, values in accuracies.items():
        found[name] = [{**run, "seed": seed, "accuracy": value, "metrics": [{"val_accuracy": value}] * 3} for seed, value in enumerate(values)]
    return found


def test_a_row_is_the_mean_of_its_seeds_against_those_that_its_reference_has():
    found = some(float=[0.8, 0.82], ternary=[0.79])
    lines = tables.section("x", {name: rows.ROWS[name] for name in ("float", "ternary", "ternary_b")}, found)
    assert "| 81.00 | 80.00, 82.00 |  | 3 | 2,000 | 1,000 |" in lines[4] and "| 79.00 | one | -1.00 | 3 |" in lines[5]
    assert lines[-2] == "Not run yet: ternary_b."


def test_an_aim_says_how_far_it_is_reached_in_each_seed_or_that_it_is_open():
    accuracies = {"float_longer": [0.8, 0.8], "best_ternary": [0.795, 0.794], "ternary": [0.7], "ternary_b": [0.7], "w4a8": [0.7, 0.7], "w4a8_b": [0.68, 0.73]}
    text = "\n".join(tables.aims(some(**accuracies)))
    assert "| best_ternary at most 0.7 points below float_longer | yes: -0.55 (-0.50, -0.60) |" in text
    assert "| ternary_b above ternary, which has no teacher | no, of one seed: +0.00 |" in text
    assert "| w4a8_b above w4a8, which has no teacher | not shown: +0.50 (-2.00, +3.00) |" in text
    assert "| best_w4a4 not below float_longer | not run yet |" in text


def test_every_taught_low_bit_row_is_judged_or_named():
    judged, _, others = "\n".join(tables.aims(some())).partition("Not judged here")
    for name in (name for name in rows.ROWS if config(name).taught()):
        assert (f"| {name} above " in judged) != (f" {name}," in others or f" {name}." in others), name


def test_epochs_of_the_network_that_a_row_starts_from_are_said():
    for name in rows.ROWS:
        before = rows.epochs_before(name)
        assert (config(name).student.endswith(".keras"), rows.is_taught(name)) == (before > 0, config(name).taught())
    assert " | 6+3 | " in tables.section("x", {"float_longer": rows.ROWS["float_longer"]}, some(float_longer=[0.8]))[4]


def test_a_rows_step_is_that_of_the_one_run_that_timed_all(tmp_path, monkeypatch):
    timed = tmp_path / "steps.json"
    timed.write_text(json.dumps({"date": "2026-01-02", "machine": "m", "milliseconds": {"teacher": 765.4}}))
    monkeypatch.setattr(tables, "STEPS", timed)
    found = tables.runs()
    assert " | 765 | " in tables.section("x", {"teacher": rows.ROWS["teacher"]}, found)[4]
    assert "Steps were timed on 2026-01-02, m." in tables.text(found) and "(steps.png)" in tables.text(found)
    monkeypatch.setattr(tables, "STEPS", tmp_path / "none.json")
    assert "steps.png" not in tables.text(found)
    assert all("step_ms" not in run for row, made in found.items() if row != "teacher" for run in made)


def test_without_runs_there_are_no_numbers():
    text = tables.text(some())
    assert "Nothing was run yet." in text and all(f" {name}" in text for name in rows.ROWS)


def test_pictures_hold_every_row_that_was_run():
    found = some(float=[0.8, 0.82], ternary=[0.79])
    (axes,) = pictures.scattered(found, "zipped", "kilobytes", unit=1e3).axes
    assert {text.get_text() for text in axes.texts} == {"float", "ternary"} and [list(line.get_xdata()) for line in axes.lines] == [[1.0]] * 2
    (axes,) = pictures.scattered(found, "step_ms", "milliseconds").axes  # of no row a step was timed
    assert not axes.texts
    (axes,) = pictures.best(found).axes
    assert not axes.texts  # neither of the two is README's
    (axes,) = pictures.best(some(teacher=[0.88], best_w4a4_taught=[0.85, 0.87])).axes
    assert [text.get_text() for text in axes.texts] == ["W4A4 86.00", "float, twice as wide 88.00"]
    (axes,) = pictures.learning(found).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [pytest.approx([81] * 3), pytest.approx([79] * 3)]


def test_names_in_a_picture_do_not_lie_over_each_other():
    found = some(**{row: [0.8 + 0.0003 * number] for number, row in enumerate(rows.ROWS)} | {"teacher": [0.77]})  # so that the others are close
    figure = pictures.scattered(found, "zipped", "kilobytes", unit=1e3)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # an annotation's own extent has its line in it
    boxes = [(box.x0 + 1, box.y0 + 1, box.x1 - 1, box.y1 - 1) for box in boxes]  # a letter's margin may touch
    assert len(boxes) == len(rows.ROWS)
    assert not [(a, b) for n, a in enumerate(boxes) for b in boxes[:n] if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]]


# ---- The order of jobs ---------------------------------------------------------------------------------------------------------------------------


def test_jobs_wait_for_the_networks_that_they_need():
    kept, needed = set(), {("student", 0): {("teacher", 0)}}
    jobs = accuracy.Jobs([("student", 0), ("teacher", 0), ("teacher", 0)], threading.Event(), kept.__contains__, lambda job: needed.get(job, set()))
    assert not jobs.impossible() and jobs.take() == ("teacher", 0)
    kept.add(("teacher", 0))
    assert jobs.take() == ("student", 0) and jobs.take() is None


def test_what_needs_a_failed_job_is_dropped_and_named():
    jobs = accuracy.Jobs([("teacher", 0), ("student", 0)], threading.Event(), lambda job: False, lambda job: {("teacher", 0)} - {job})
    jobs.failed[jobs.take()] = "it broke"
    assert jobs.take() is None and jobs.failed == {("teacher", 0): "it broke", ("student", 0): "needs one that failed"}


def test_a_job_whose_network_nobody_makes_is_named_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["accuracy", "--row=best_mobilenet_w4a4"])
    monkeypatch.setattr(accuracy, "is_kept", lambda job: False)
    with pytest.raises(SystemExit):
        accuracy.main()
    assert "neither for" in (said := capsys.readouterr().err) and "mobilenet_0" in said

"""Pictures of runs side by side: their errors and what teaching gained; every line and bar is a number of the runs."""

import json

import numpy as np
import pytest
from conftest import run_program

from kerakd import report
from kerakd.config import Config
from kerakd.errors import BadInput

FLAGS = {"dataset": "digits", "student": "resnet8", "teacher": ("resnet14",)}
JOINT = {"phase": ("joint:2",)}
TRAINED = {"phase": ("trained_teacher:2",), "teacher_epochs": 3}
GRIDS = ({"signed": "interval:8,gradient_scale"}, {"calibration": "mse"})
WIDE = {"weights": "interval:4", "activations": "interval:4"}


def rows(stage, errors):
    return [{"stage": stage, "epoch": e, "val_accuracy": 1 - error, "loss": 10 * error} for e, error in enumerate(errors)]


def write_run(path, results, curves, **flags):
    """A complete run of these flags, with `curves` {stage: errors}."""
    path.mkdir()
    (path / "flags.cfg").write_text(Config(**{**FLAGS, **flags}).text())
    (path / "results.json").write_text(json.dumps(results))
    lines = [row for stage, errors in curves.items() for row in rows(stage, errors)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return path


def run(tmp_path, name="run", taught=(0.9, 0.8), alone=(), teacher=None, errors=None, **flags):
    """A Run that was written and read."""
    results = {f"taught_{seed}": value for seed, value in enumerate(taught)} | {f"alone_{seed}": value for seed, value in enumerate(alone)}
    results |= {} if teacher is None else {"teacher": teacher}
    curves = {f"taught_{seed}": errors[seed] if errors else [0.5, 1 - value] for seed, value in enumerate(taught)}
    curves |= {f"alone_{seed}": [0.7, 0.6] for seed, _ in enumerate(alone)}
    return report.read(write_run(tmp_path / name, results, curves, **{**JOINT, **flags}), name)


def named_lines(axes):
    return {line.get_label().split(":")[0]: line for line in axes.lines if not line.get_label().startswith("_")}


def bars(axes):
    """{scheme: heights} in percentage points."""
    return {container.get_label(): [bar.get_height() for bar in container] for container in axes.containers if hasattr(container, "patches")}


def test_errors_of_all_runs_stand_together(tmp_path):
    seeds = np.random.default_rng(0).uniform(0.1, 0.9, (3, 2))
    first = run(tmp_path, "a", taught=(0.5, 0.6, 0.7), errors=seeds.tolist())
    second = run(tmp_path, "b", taught=(0.5,), errors=[[0.4, 0.2]], teacher=0.95, **TRAINED)
    (axes,) = report.figure_of_runs([first, second]).axes
    lines = named_lines(axes)
    np.testing.assert_allclose(lines["a"].get_ydata(), 100 * seeds.mean(axis=0))
    thin = [line for line in axes.lines if line.get_color() == lines["a"].get_color() and line is not lines["a"]]
    np.testing.assert_allclose([line.get_ydata() for line in thin], 100 * seeds)
    np.testing.assert_allclose(lines["b"].get_ydata(), [40, 20])
    np.testing.assert_allclose(lines["teacher of b"].get_ydata(), [5, 5])
    assert lines["teacher of b"].get_linestyle() == "--" and lines["teacher of b"].get_color() == lines["b"].get_color() != lines["a"].get_color()
    assert "(mean of 3 seeds)" in lines["a"].get_label() and "mean" not in lines["b"].get_label()


def test_a_teacher_of_all_runs_is_drawn_once(tmp_path):
    runs = [run(tmp_path, name, teacher=0.9, **TRAINED) for name in "ab"]
    (axes,) = report.figure_of_runs(runs).axes
    assert sum(line.get_linestyle() == "--" for line in axes.lines) == 1 and "teacher" in named_lines(axes)
    assert axes.get_title() == "Test error, mean of 2 seeds"


def test_of_several_teachers_the_best_is_drawn(tmp_path):
    path = write_run(tmp_path / "a", {"teacher": 0.8, "teacher_1": 0.9, "taught_0": 0.5}, {"taught_0": [0.5, 0.5]}, **TRAINED)
    assert report.read(path, "a").teacher == 0.9


def test_every_run_has_a_colour_of_its_own(tmp_path):
    runs = [run(tmp_path, str(number), taught=(0.5,), learning_rate=0.01 * (number + 1)) for number in range(12)]
    for some in (runs[:9], runs):
        axes = report.figure_of_runs(some).axes[0]
        assert len({tuple(line.get_color()) for line in axes.lines}) == len(some)


def test_a_slow_start_does_not_press_the_curves_flat(tmp_path):
    slow = run(tmp_path, errors=[[0.9] * 2 + [0.3] * 18], taught=(0.7,), phase=("joint:20",))
    assert report.figure_of_runs([slow]).axes[0].get_ylim() == pytest.approx((0, 31.5))


def test_labels_say_what_differs(tmp_path):
    same = {"learning_rate": 0.02}
    a = run(tmp_path, "a", **same)
    b = run(tmp_path, "b", **same, **TRAINED)
    c = run(tmp_path, "c", **same, **WIDE, temperature=2.5)
    assert report.labels([a]) == ["a"]
    assert report.labels([a, b]) == ["a: joint:2", "b: trained_teacher:2, teacher_epochs=3"]
    assert report.labels([a, c]) == ["a: ternary / interval:8", "c: interval:4 / interval:4, temperature=2.5"]


def test_labels_leave_out_what_changes_no_student(tmp_path):
    a = run(tmp_path, "a")
    b = run(tmp_path, "b", alone=(0.5, 0.6), data_dir="elsewhere", compare=True, float_epochs=5, seeds=2)
    assert report.labels([a, b]) == ["a", "b"]
    c = run(tmp_path, "c", float_epochs=5, start="float")
    assert report.labels([a, c]) == ["a", "c: float_epochs=5, start=float"]


def test_labels_name_files_without_their_folders(tmp_path):
    a = run(tmp_path, "a", teacher=0.9, **TRAINED)
    path = write_run(tmp_path / "b", {"taught_0": 0.5}, {"taught_0": [0.5, 0.5]}, **{**JOINT, "teacher": ("/some/where/big net.keras",)})
    assert report.labels([a, report.read(path, "b")])[1] == "b: joint:2, teacher=big net.keras"


def test_bars_are_differences_of_means(tmp_path):
    a = run(tmp_path, "a", taught=(0.7, 0.9), alone=(0.6, 0.5))
    b = run(tmp_path, "b", taught=(0.5, 0.6), alone=(0.75, 0.65), **TRAINED)
    c = run(tmp_path, "c", taught=(0.8, 0.8), alone=(0.7, 0.75), **TRAINED, **WIDE)
    _, axes = report.figure_of_runs([a, b, c]).axes
    assert bars(axes) == {"A: joint": pytest.approx([25]), "B: trained_teacher": pytest.approx([-15, 7.5])}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["ternary / interval:8", "interval:4 / interval:4"]
    assert [tick.get_text() for tick in axes.get_xticklabels(minor=True)] == ["+25.00", "-15.00", "+7.50"]
    places = [bar.get_x() + bar.get_width() / 2 for container in axes.containers if hasattr(container, "patches") for bar in container]
    np.testing.assert_allclose(places, [-0.2, 0.2, 1])
    colours = {container.get_label(): {bar.get_facecolor() for bar in container} for container in axes.containers if hasattr(container, "patches")}
    assert all(len(own) == 1 for own in colours.values()) and colours["A: joint"] != colours["B: trained_teacher"]


def test_bars_show_the_spread_of_seeds(tmp_path):
    taught, alone = np.random.default_rng(1).uniform(0.5, 0.9, (2, 4))
    gain = report.gains([run(tmp_path, "a", taught=taught.tolist(), alone=alone.tolist())])[0]
    assert gain.mean == pytest.approx(taught.mean() - alone.mean()) and gain.spread == pytest.approx(np.std(taught - alone, ddof=1))
    axes = report.figure_of_runs([gain.run]).axes[1]
    (whisker,) = axes.collections[0].get_segments()
    np.testing.assert_allclose(whisker[:, 1], 100 * (gain.mean + np.array([-1, 1]) * gain.spread))


def test_the_spread_of_other_seeds_is_that_of_a_difference(tmp_path):
    a = run(tmp_path, "a", taught=(0.7, 0.9))
    b = run(tmp_path, "b", taught=(0.5,) * 3, alone=(0.6, 0.5, 0.7), **TRAINED)
    gain = report.gains([a, b])[0]
    assert gain.base is b and gain.spread == pytest.approx(np.sqrt(np.var([0.7, 0.9], ddof=1) + np.var([0.6, 0.5, 0.7], ddof=1)))
    assert report.gains([run(tmp_path, "c", taught=(0.7,), alone=(0.6,))])[0].spread is None


def test_the_student_alone_is_the_most_similar_of_the_others(tmp_path):
    a = run(tmp_path, "a", taught=(0.7,), learning_rate=0.01)
    far = run(tmp_path, "far", taught=(0.5,), alone=(0.1,), learning_rate=0.02, batch_size=64)
    near = run(tmp_path, "near", taught=(0.5,), alone=(0.4,), learning_rate=0.01, **TRAINED)
    assert {gain.run.name: gain.base.name for gain in report.gains([a, far, near])} == {"a": "near", "far": "far", "near": "near"}
    assert "0.4000 of near" in report.table([a, far, near]).splitlines()[1]


def test_runs_on_other_images_are_said_not_to_be_compared_and_epochs_are_those_trained(tmp_path):
    digits, mnist = run(tmp_path, "one"), run(tmp_path, "two", dataset="mnist")
    noise = run(tmp_path, "three", synthetic=True, phase=("joint:9",), max_epochs=2)
    assert "joint:2" in report.table([noise]) and "joint:9" not in report.table([noise])
    assert "tested on" not in report.table([digits])
    said = "tested on different images: one on digits, two on mnist, three on digits (synthetic)"
    assert report.table([digits, mnist, noise]).splitlines()[-1].endswith(said)


@pytest.mark.parametrize(
    "other",
    [WIDE, {"student_width": 0.5}, {"dataset": "cifar10"}, {"phase": ("joint:3",)}, {"float_epochs": 2, "start": "float"}, *GRIDS],
    ids=["widths", "student", "dataset", "epochs", "start", "signed", "calibration"],
)
def test_the_student_alone_is_never_another(tmp_path, other):
    a = run(tmp_path, "a")
    epochs = 3 if "phase" in other else 2
    b = run(tmp_path, "b", taught=(0.5,), alone=(0.4,), errors=[[0.5] * epochs], **other)
    assert [gain.run.name for gain in report.gains([a, b])] == ["b"]


def test_a_run_without_a_teacher_is_the_student_alone(tmp_path):
    a = run(tmp_path, "a", taught=(0.7,))
    path = write_run(tmp_path / "b", {"taught_0": 0.4}, {"taught_0": [0.5, 0.6]}, teacher=(), phase=("alone:2",))
    b = report.read(path, "b")
    assert [(gain.run.name, gain.mean) for gain in report.gains([a, b])] == [("a", pytest.approx(0.3))]
    assert "b" in named_lines(report.figure_of_runs([a, b]).axes[0])


def test_runs_of_one_scheme_at_one_width_are_told_apart_by_name(tmp_path):
    a = run(tmp_path, "a", taught=(0.7,), alone=(0.6,))
    b = run(tmp_path, "b", taught=(0.7,), alone=(0.5,), learning_rate=0.1)
    axes = report.figure_of_runs([a, b]).axes[1]
    assert [tick.get_text() for tick in axes.get_xticklabels(minor=True)] == ["+10.00  a", "+20.00  b"]


def test_what_is_no_accuracy_is_passed_over(tmp_path):
    results = {"taught_0": 0.5, "alone_0": 0.25, "agreement": {"taught_0": 0.9}, "alone_1": None, "taught_0_teacher": 0.99, "float": 0.3}
    found = report.read(write_run(tmp_path / "a", results, {"taught_0": [0.5, 0.5]}, **JOINT), "a")
    assert (found.taught, found.alone, found.teachers) == ({"0": 0.5}, {"0": 0.25}, [])


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("results.json", None, "complete run"),
        ("results.json", "{", "results.json"),
        ("results.json", "[1]", "results.json"),
        ("results.json", "{}", "received none in metrics.jsonl"),
        ("flags.cfg", None, "flags.cfg"),
        ("flags.cfg", "--nonsense=1\n", "nonsense"),
        ("metrics.jsonl", None, "expected 2 epochs"),
        ("metrics.jsonl", '{"stage": "taught_0"}\n', "val_accuracy"),
        ("metrics.jsonl", "not JSON\n", "metrics.jsonl"),
    ],
)
def test_a_run_that_is_not_whole_is_refused(tmp_path, file, text, said):
    path = write_run(tmp_path / "ein Läufer", {"taught_0": 0.5}, {"taught_0": [0.5, 0.5]}, **JOINT)
    (path / file).unlink()
    if text is not None:
        (path / file).write_text(text)
    with pytest.raises(BadInput, match=said) as raised:
        report.read(path, "a")
    assert str(path) in str(raised.value) and str(raised.value).startswith("--run")


def test_options_are_checked(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    for options, said in (
        ({}, "--run"),
        ({"run": ("a", "./a")}, "each run once"),
        ({"run": ("a",), "out": "x.pdf"}, ".png"),
        ({"run": ("a",), "out": str(tmp_path / "no" / "x.png")}, "folder that exists"),
        ({"run": ("a",), "out": str(tmp_path / "x.png")}, "--overwrite"),
    ):
        with pytest.raises(BadInput, match=said):
            report.Options(**options)
    assert report.Options(run=("a",), out=str(tmp_path / "x.png"), overwrite=True)


def test_the_program(tmp_path):
    write_run(tmp_path / "a", {"taught_0": 0.75}, {"taught_0": [0.5, 0.25]}, **JOINT)
    write_run(tmp_path / "ö b", {"teacher": 0.9, "alone_0": 0.5, "taught_0": 0.625}, {"taught_0": [0.5, 0.375]}, compare=True, **TRAINED)
    write_run(tmp_path / "c", {"taught_0": 0.5}, {"taught_0": [0.5, 0.5]}, **JOINT, **WIDE)
    runs = [f"--run={tmp_path / name}" for name in ("a", "ö b", "c")]
    status, out, err = run_program("kerakd.report", *runs, f"--out={tmp_path / 'x.png'}")
    assert (status, err) == (0, "")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    told = [" ".join(line.split()) for line in out.splitlines()]
    assert "a joint:2 ternary interval:8 0.5000 of ö b 0.7500 +0.2500 -" in told
    assert "ö b trained_teacher:2 ternary interval:8 0.5000 0.6250 +0.1250 0.9000" in told
    assert "c joint:2 interval:4 interval:4 - 0.5000 - -" in told
    assert [line.partition(",")[0] for line in told if "no gain" in line] == ["c: no gain"]


def test_nothing_is_written_of_runs_of_which_one_is_not_whole(tmp_path, monkeypatch, capsys):
    whole = write_run(tmp_path / "a", {"taught_0": 0.75}, {"taught_0": [0.5, 0.25]}, **JOINT)
    monkeypatch.setattr("sys.argv", ["report", f"--run={whole}", f"--run={tmp_path / 'b'}", f"--out={tmp_path / 'y.png'}"])
    with pytest.raises(BadInput, match="complete run"):
        report.main()
    assert capsys.readouterr().out == "" and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_runs_of_any_name_have_their_line_in_the_legend(tmp_path):
    runs = [run(tmp_path, name, learning_rate=0.01 * k) for k, name in enumerate(("_try", "a$1$b"), 1)]
    figure = report.figure_of_runs(runs)
    figure.savefig(tmp_path / "x.png")
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(shown) == 2 and shown[0].startswith(" _try") and shown[1].startswith(r"a\$1\$b")

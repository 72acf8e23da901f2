"""The learning curves of a run: each line is a number of its metrics."""

import numpy as np

from kerakd import curves


def rows(stage, errors):
    return [{"stage": stage, "epoch": e, "val_accuracy": 1 - error, "loss": 10 * error} for e, error in enumerate(errors)]


def test_each_kind_is_drawn_with_its_mean():
    figure = curves.figure_of(rows("teacher", [0.5, 0.25]) + rows("taught_0", [0.4, 0.2]) + rows("taught_1", [0.2, 0.1]))
    left, right = figure.axes
    lines = {line.get_label(): line.get_ydata() for line in left.lines if not line.get_label().startswith("_")}
    np.testing.assert_allclose(lines["teacher"], [50, 25])
    np.testing.assert_allclose(lines["taught, mean of 2 seeds"], [30, 15])
    assert len(left.lines) == 4
    np.testing.assert_allclose(right.lines[0].get_ydata(), [5, 2.5])


def test_a_single_epoch_is_seen():
    (line,) = curves.figure_of(rows("float", [0.5])).axes[0].lines
    assert line.get_marker() == "o" and list(line.get_xdata()) == [1]
    assert [tick for tick in line.axes.get_xticks() if tick == int(tick)] == [1] and line.axes.get_xlim() == (0.5, 1.5)


def test_several_teachers_are_no_seeds():
    left, _ = curves.figure_of(rows("teacher", [0.5]) + rows("teacher_1", [0.3])).axes
    assert left.lines[-1].get_label() == "teacher, mean of 2"


def test_the_picture_is_written(tmp_path):
    curves.write(rows("float", [0.5, 0.4]), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"

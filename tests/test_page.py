"""The page of a run: it stands alone, and its pictures show what the run's files hold."""

import base64
import re

import numpy as np
import pytest
import tensorflow as tf
from conftest import run_program

import kerakd
from kerakd import models, page
from kerakd.rundir import RunDirectory
from kerakd.wrapper import intervals


def test_a_page_stands_alone_and_escapes_what_it_is_told():
    text = page.page("a < b", [("x & y", ["<script>", ("pre", "1 < 2")])])
    assert "<script>" not in text and "a &lt; b" in text and "1 &lt; 2" in text
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet8", kerakd.Ternary()),
        ("mobilenet_v2", kerakd.Interval(4)),
        ("mobilenet_v2", kerakd.Interval(2, per_channel=True)),
        ("bit_r50x1", kerakd.Interval(3)),
        ("resnet8", kerakd.KBit(3)),
    ],
    ids=str,
)
def test_weights_are_drawn_in_steps_over_their_codes(name, weights):
    student = kerakd.quantize(models.build(name, (8, 8, 3), 10, 0.25, shallow=True), kerakd.Scheme(weights, kerakd.Interval(8)))
    figure = page.weights_figure(student)
    kernels = [kernel for layer in student.layers if hasattr(layer, "kernels") for kernel in layer.kernels]
    for axes, (variable, quantizer, made) in zip(figure.axes, kernels, strict=False):
        codes = np.asarray(quantizer.codes(tf.convert_to_tensor(variable), made))
        tops = [patch.get_height() for patch in axes.patches if patch.get_height() > 0]
        assert sum(tops) == codes.size  # every weight is in the histogram
        below = [round(patch.get_x() + patch.get_width() / 2) for patch in axes.patches if patch.get_height() < 0]
        assert set(below) == set(np.unique(codes).tolist())


def test_a_student_without_quantized_kernels_has_no_such_picture():
    assert page.weights_figure(models.build("resnet8", (8, 8, 1), 10, 0.25)) is None


def test_intervals_are_drawn_as_shares_of_the_first_epoch():
    rows = [{"stage": "taught_0", "epoch": k, "a weights": 2.0 + k, "b activations": 4.0 - k} for k in range(3)]
    left, right = page.intervals_figure(rows).axes
    assert not any(axes.yaxis.get_major_formatter().get_useOffset() for axes in (left, right))
    np.testing.assert_allclose(left.lines[0].get_ydata(), [1, 1.5, 2])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [1, 0.75, 0.5])


def test_the_program_writes_a_page_with_everything(complete_run, tmp_path):
    run = RunDirectory(complete_run)
    rows = [row for row in run.intervals() if row["stage"] == "taught_0"]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4, 5]
    last = {name: value for name, value in rows[-1].items() if name not in ("stage", "epoch")}
    assert last.keys() == intervals(run.load_model("taught_0")).keys()
    status, out, err = run_program("kerakd.report", f"--run={complete_run}", f"--out={tmp_path / 'report.html'}")
    assert status == 0, out + err
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
    pictures = re.findall(r"base64,([^\"]+)", text)
    assert len(pictures) == 4 and all(base64.b64decode(picture)[:4] == b"\x89PNG" for picture in pictures)
    for heading in ("weights on their grids", "intervals over time", "sensitivity", "flags"):
        assert heading in text
    assert "python -m kerakd.sensitivity" in text
    events = list((complete_run / "tensorboard" / "taught_0").glob("events.*"))
    assert events and _scalars(events) >= {"loss", "val_accuracy", "learning_rate/optimizer", f"intervals/{next(iter(last))}"}


def _scalars(files):
    from tensorflow.python.summary.summary_iterator import summary_iterator

    return {value.tag for file in files for event in summary_iterator(str(file)) for value in event.summary.value}

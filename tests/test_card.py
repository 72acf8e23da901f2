"""The words of a card, of one that is made up: each number stands where its heading says."""

import pytest

from export import card

CENSUS = {"weights": {"int8": 7}, "operators": {"CONV_2D": 6, "ADD": 2}, "float_tensors": ["a", "b", "c"]}


@pytest.fixture
def made():
    """A card of a color network whose every number is another."""
    return {
        "run": "runs/some",
        "config": "--dataset=digits",
        "table": [{"network": "the student", "accuracy": 0.8125, "bytes": 12345, "zipped": 678, "ms": 0.25}],
        "ideal_bytes": 4321,
        "proofs": {},
        "settled": None,
        "classes": ["cat", "dog"],
        "input": {"shape": [1, 8, 8, 3], "range": [-1, 1], "type": "int8", "scale": 0.0078125, "zero_point": 3},
        "output": {"shape": [1, 2], "type": "int8", "scale": 0.5, "zero_point": -9},
        "census": {"int8": CENSUS, "int4": {**CENSUS, "float_tensors": []}},
        "oldest_litert": {"int8": "1.2.0", "int4": "2.1.5"},
        "sha256": {"int8": "abc", "int4": "def"},
        "versions": {"numpy": "9.8.7"},
    }


@pytest.mark.parametrize(
    "line",
    [
        "| the student | 0.8125 | 12345 | 678 | 0.250 |",
        "The kernels at their trained widths alone: 4321 bytes.",
        "* kernels: 7 int8",
        "* operators: 6 CONV_2D, 2 ADD",
        "The files that this is said of have the sha256 `abc` of the int8 container, `def` of the int4 container.",
        "Oldest LiteRT (ai-edge-litert) that computes them right: 1.2.0 for the int8 container, 2.1.5 for the int4 container.",
        "* numpy 9.8.7",
    ],
)
def test_a_number_stands_where_its_heading_says(made, line):
    assert line in card.as_markdown(made, "x.tflite").splitlines()


def test_float_tensors_are_counted_for_each_container(made):
    lines = card.as_markdown(made, "x.tflite").splitlines()
    after = {name: lines[lines.index(f"## Census of the {name} container") :] for name in ("int8", "int4")}
    assert [next(line for line in after[name] if "float tensors" in line) for name in after] == ["* float tensors inside: 3", "* float tensors inside: 0"]


def test_three_channels_are_rgb_and_one_is_not(made):
    assert "channels last, RGB, pixels scaled to -1..1" in card.as_markdown(made, "x.tflite")
    made["input"]["shape"] = [1, 8, 8, 1]
    assert "RGB" not in card.as_markdown(made, "x.tflite")


def test_scale_and_zero_point_stand_at_their_end(made):
    text = card.as_markdown(made, "x.tflite")
    assert "* input: int8 [1, 8, 8, 3]" in text and "`round(x / scale) + zero_point` (scale 0.0078125, zero point 3);" in text
    assert "* output: int8 [1, 2], logits, by `(q - zero_point) * scale` (scale 0.5, zero point -9);" in text

"""The export program as a process: two files with proof and card, nothing overwritten, nothing half written."""

import json

import numpy as np
import pytest
from conftest import run_program

from kerakd import data
from kerakd.rundir import RunDirectory
from kerakd.tflite import flatfile, runtime


@pytest.fixture(scope="module")
def exported(complete_run):
    status, out, err = run_program("export.tflite", f"--run={complete_run}")
    assert status == 0, out + err
    return complete_run, out, err


def test_both_containers_and_the_card_are_written(exported):
    directory, out, err = exported
    names = {"student.tflite", "student.int4.tflite", "student.json", "student.md"}
    assert names <= {path.name for path in directory.iterdir()}
    assert err == ""


def test_the_table_has_every_network_and_the_proof_counts_every_logit(exported):
    _, out, _ = exported
    for row in ("teacher, float32", "student, float32", "student, ternary, alone", "student, ternary, taught", "on the int8 .tflite", "on the int4 .tflite"):
        assert row in out
    assert "3600 of 3600 logits of 360 images equal (100.00%)" in out


def test_accuracy_on_the_file_is_kerass_to_the_image(exported, data_dir):
    directory, _, _ = exported
    rows = {row["network"].strip(): row for row in json.loads((directory / "student.json").read_text())["table"]}
    images, labels = data.arrays(data.testing(data.load("digits", str(data_dir))[1], size=(8, 8)))
    file = (directory / "student.tflite").read_bytes()
    measured = float(np.mean(runtime.run(file, images).argmax(-1) == labels))
    assert rows["taught_0 on the int8 .tflite"]["accuracy"] == measured == rows["taught_0 in Keras"]["accuracy"]
    assert rows["taught_0 on the int8 .tflite"]["bytes"] == len(file)


def test_the_census_of_both_files(exported):
    directory, _, _ = exported
    int8 = flatfile.census((directory / "student.tflite").read_bytes())
    int4 = flatfile.census((directory / "student.int4.tflite").read_bytes())
    assert {kernel["type"] for kernel in int8["kernels"]} == {"INT8"}
    middle = [kernel for kernel in int8["kernels"] if len(kernel["codes"]) <= 3]
    assert len(middle) == len(int8["kernels"]) - 2
    for kernel in middle:
        assert kernel["codes"] == [-max(kernel["codes"]), 0, max(kernel["codes"])]
    assert sorted(kernel["type"] for kernel in int4["kernels"]) == ["INT4"] * len(middle) + ["INT8"] * 2
    assert int8["float_tensors"] == int4["float_tensors"] == []


def test_files_that_exist_are_kept(exported):
    directory, _, _ = exported
    before = (directory / "student.tflite").stat().st_mtime_ns
    status, out, err = run_program("export.tflite", f"--run={directory}")
    assert status == 2 and "which exists; give --overwrite" in err and len(err.splitlines()) == 1
    assert (directory / "student.tflite").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--run: expected a run directory"),
        (["--run=nowhere"], "expected a complete run"),
        (["--run=RUN", "--out=nowhere/x.tflite"], "expected a folder that exists"),
    ],
)
def test_bad_input_gets_one_line(complete_run, arguments, message):
    status, out, err = run_program("export.tflite", *[text.replace("RUN", str(complete_run)) for text in arguments])
    assert status == 2 and message in err and len(err.splitlines()) == 1


def test_a_run_that_was_exported_can_still_be_read(exported):
    assert RunDirectory(exported[0]).complete

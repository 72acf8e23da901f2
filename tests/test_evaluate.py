"""The program on models and files, and its picture."""

import io
import json
import re

import matplotlib.image
import numpy as np
import pytest
import tf_keras as keras
from conftest import run_program

import kerakd
from export.tflite import float_file
from kerakd import evaluate
from kerakd.evaluate import figure_of
from kerakd.rundir import RunDirectory


def test_keras_models_and_files_of_a_run_have_their_scores(complete_run, tmp_path, data_dir, here):
    """The run's own accuracies again, for the file those of the student it was made from."""
    student = RunDirectory(complete_run).load_model("taught_0")
    file = tmp_path / "student.tflite"
    file.write_bytes(kerakd.to_tflite(student))
    more = [f"--picture={tmp_path / 'confusion.png'}", f"--json={tmp_path / 'scores.json'}"]
    status, out, err = run_program("kerakd.evaluate", f"--run={complete_run}", *more)
    assert status == 0, out + err
    found = json.loads((tmp_path / "scores.json").read_text())["models"]
    known = {name: one["accuracy"] for name, one in found.items() if not name.endswith("tflite")}
    assert known.pop("taught_0_teacher") > 0.5 and known == RunDirectory(complete_run).results()
    for name, one in found.items():
        assert sum(map(sum, one["confusion"])) == 360 and name in out
        assert sum(row[k] for k, row in enumerate(one["confusion"])) / 360 == pytest.approx(one["accuracy"])
    assert matplotlib.image.imread(tmp_path / "confusion.png").std() > 0.05
    models = [f"--model={file}", f"--model={RunDirectory(complete_run).model_path('taught_0')}", "--dataset=digits", f"--data_dir={data_dir}"]
    status, out, err = here(evaluate.main, *models, f"--json={tmp_path / 'two.json'}")
    assert status == 0, out + err
    assert here(evaluate.main, *models, "--image_size=24")[0] == 2  # they take 8
    assert [one["accuracy"] for one in json.loads((tmp_path / "two.json").read_text())["models"].values()] == [found["taught_0"]["accuracy"]] * 2


def test_a_model_of_pixels_is_scored_on_pixels(complete_run, tmp_path, data_dir, here):
    images, directory = keras.Input((8, 8, 1)), RunDirectory(complete_run)
    teacher = directory.load_model("teacher")(keras.layers.Rescaling(1 / 127.5, -1.0)(images))
    keras.Model(images, teacher).save(tmp_path / "pixels.keras")
    flags = f"--model={tmp_path / 'pixels.keras'}", "--dataset=digits", f"--data_dir={data_dir}", "--values=0..255", f"--json={tmp_path / 'x.json'}"
    status, out, err = here(evaluate.main, *flags)
    assert status == 0, out + err
    (found,) = json.loads((tmp_path / "x.json").read_text())["models"].values()
    assert found["accuracy"] == pytest.approx(directory.results()["teacher"], abs=0.003)


def nets():
    """{name: (network, what is said of it)}."""
    image, vector = keras.Input((8, 8, 1)), keras.Input((64,))
    logits = keras.layers.Dense(10)(keras.layers.Flatten()(image))
    pixels = keras.layers.Dense(10)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 127.5, -1.0)(image)))
    return {
        "pixels": (keras.Model(image, pixels), "--values: expected 0..255, as .* begins with a rescaling of pixels"),
        "vectors": (keras.Model(vector, keras.layers.Dense(10)(vector)), "expected one input .n, height, width, channels. and one output"),
        "two inputs": (keras.Model([image, vector], logits), "expected one input"),
        "two outputs": (keras.Model(image, [logits, logits]), "one output .n, classes., received .*None, 10., .None, 10."),
        "named": (keras.Model(image, {"a": logits}), "expected one input"),
        "a map": (keras.Model(image, keras.layers.Conv2D(10, 3)(image)), "received .*None, 6, 6, 10"),
    }


@pytest.mark.parametrize("name", nets())
def test_a_network_of_another_form_is_refused(refusal, tmp_path, name):
    net, message = nets()[name]
    net.save(tmp_path / "net.keras")
    _, err = refusal(evaluate.main, f"--model={tmp_path / 'net.keras'}", "--dataset=digits")
    assert re.search(message, err) and len(err.splitlines()) == 1


def test_a_file_of_another_form_is_refused(refusal, tmp_path):
    (tmp_path / "x.tflite").write_bytes(float_file(nets()["vectors"][0]))
    _, err = refusal(evaluate.main, f"--model={tmp_path / 'x.tflite'}", "--dataset=digits")
    assert "expected one input [1, height, width, channels] and one output [1, classes], received [(1, 64)] and [(1, 10)]" in err


def test_dollars_and_underscores_of_names_are_shown():
    figure = figure_of(np.eye(2, dtype=int), ["$5_$10", "_x"], "a$b$c")
    figure.savefig(io.BytesIO())
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == [r"\$5_\$10", " _x"]


def test_what_a_killed_process_left_is_no_model_of_the_run(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.claim("--dataset=digits\n--student=resnet8\n--phase=alone:1\n", resume=False, overwrite=False)
    directory.save_results({"taught_0": 0.5})
    for name in ("models/taught_0.keras", "models/.taught_1.partial.keras", "student.tflite", ".student.int4.partial.tflite"):
        (directory.path / name).write_bytes(b"x")
    assert list(evaluate._found(evaluate.Options(run=str(directory.path)))[0]) == ["taught_0", "student.tflite"]


def test_a_long_name_is_shortened_in_the_picture():
    figure = figure_of(np.eye(2, dtype=int), ["short", 80 * "long"], "x")
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["short", "longlonglonglonglonglon…"]


@pytest.mark.parametrize("classes", [3, 40])
def test_the_picture_has_numbers_where_there_is_room(classes):
    figure = figure_of(np.eye(classes, dtype=int) * 4, [f"class {k}" for k in range(classes)], "x")
    assert [text.get_text() for text in figure.axes[0].texts] == (["100"] * 3 if classes == 3 else [])
    assert len(figure.axes[0].get_xticks(minor=True)) == len(figure.axes[0].get_yticks(minor=True)) == (2 if classes == 3 else 0)  # between cells
    norm = figure.axes[0].images[0].norm
    assert norm(1.0) == pytest.approx(0.01 if classes == 3 else 0.1) and (norm.vmin, norm.vmax) == (0, 100)  # what few images are taken for is seen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--run, --model: expected one of them, received none"),
        (["--run=x", "--model=y.tflite"], "received both"),
        (["--model=FILE"], "--dataset: expected one beside --model"),
        (["--model=FILE.txt", "--dataset=digits"], "expected a .tflite, .keras or .h5 file"),
        (["--model=nowhere.keras", "--dataset=digits"], "which is not there"),
        (["--model=FILE", "--dataset=digits"], "file: expected"),
        (["--model=FILE", "--dataset=digits", "--values=0..2"], "--values: expected one of"),
        (["--run=nowhere"], "expected a complete run"),
        (["--model=NET", "--dataset=cifar10", "--synthetic"], "Unknown command line flag"),
    ],
)
def test_bad_input_gets_one_line(refusal, tmp_path, arguments, message):
    (tmp_path / "x.tflite").write_bytes(b"no model")
    _, err = refusal(evaluate.main, *[text.replace("FILE", str(tmp_path / "x.tflite")) for text in arguments])
    assert message in err and len(err.splitlines()) == 1

"""Scores, calibration and confusion of logits, agreement of a student with its teacher, against literal numbers; the program on models and files."""

import io
import json
import re

import matplotlib.image
import numpy as np
import pytest
import tf_keras as keras
from conftest import run_program
from PIL import Image

import kerakd
from export.tflite import float_file
from kerakd import data, evaluate
from kerakd.errors import BadInput
from kerakd.evaluate import agreement, calibration_error, confusion, figure_of, scores, worst
from kerakd.rundir import RunDirectory


def test_a_student_that_says_the_same_agrees():
    logits = np.random.default_rng(0).normal(size=(20, 7))
    found = agreement(logits, logits)
    assert found == {"kl": pytest.approx(0, abs=1e-12), "top1": 1, "top5": 1, "distance": 0}


def test_literal_numbers():
    student, teacher = np.array([[2.0, 1.0, -1.0]]), np.array([[3.0, 0.5, -2.0]])
    found = agreement(student, teacher)
    assert found["kl"] == pytest.approx(0.138455, abs=1e-6) and found["distance"] == pytest.approx(1.5)
    assert found["top1"] == found["top5"] == 1


def test_the_teachers_class_is_looked_for_among_the_students_five():
    teacher = np.eye(7)[[0, 1, 6]]
    student = np.tile(np.arange(7.0, 0, -1), (3, 1))  # 0 first, 6 last
    found = agreement(student, teacher)
    assert found["top1"] == pytest.approx(1 / 3) and found["top5"] == pytest.approx(2 / 3)


def test_logits_of_ten_thousand_stay_finite():
    found = agreement(np.array([[1e4, 0.0]]), np.array([[0.0, 1e4]]))
    assert all(np.isfinite(value) for value in found.values()) and found["kl"] == pytest.approx(1e4)


def test_scores_against_literal_numbers():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.5, 0.3, 0.2]]))
    found = scores(logits, np.array([0, 1, 0, 1]))
    assert found["accuracy"] == 0.5 and found["top5"] == 1
    assert found["nll"] == pytest.approx(-np.log([0.7, 0.8, 0.2, 0.3]).mean())
    # each in a bin of its own: 1 - 0.7, 1 - 0.8, 0.6, 0.5
    assert found["calibration_error"] == pytest.approx((0.3 + 0.2 + 0.6 + 0.5) / 4)


def test_calibration_error_of_bins_is_of_their_means():
    logits = np.log(np.array([[0.9, 0.1]] * 10))
    assert calibration_error(logits, np.array([0] * 9 + [1])) == pytest.approx(0, abs=1e-9)
    assert calibration_error(logits, np.array([0] * 5 + [1] * 5)) == pytest.approx(0.4)
    assert calibration_error(np.array([[1e4, 0.0]]), np.array([0])) == pytest.approx(0)  # confidence 1 has a bin


def test_the_label_is_looked_for_among_the_five_largest_logits():
    logits = np.tile(np.arange(7.0, 0, -1), (3, 1))
    assert scores(logits, np.array([0, 4, 5]))["top5"] == pytest.approx(2 / 3)


def test_confusion_counts_and_names_the_worst_pairs():
    logits = np.eye(3)[[0, 0, 1, 2, 2, 2]]
    counts = confusion(logits, np.array([0, 1, 1, 2, 0, 0]), 3)
    assert counts.tolist() == [[1, 0, 2], [1, 1, 0], [0, 0, 1]]
    assert worst(counts, "abc") == [(2, "a", "c"), (1, "b", "a")]


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


def test_a_folder_whose_classes_have_other_names_is_refused(tmp_path):
    for root, names in (("a", ("cat", "dog")), ("b", ("cat", "dog")), ("c", ("Cat", "dog"))):
        for name in names:
            for number in range(12):
                (tmp_path / root / name).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4)).save(tmp_path / root / name / f"{number}.png")
    trained = data.load(f"folder:{tmp_path / 'a'}")[0].names
    evaluate.check_classes(trained, data.load(f"folder:{tmp_path / 'b'}")[1])
    evaluate.check_classes(None, data.load(f"folder:{tmp_path / 'c'}")[1])  # a file alone says nothing of its classes
    with pytest.raises(BadInput, match="expected the class folders on which the run was trained, received others in folder:.*c test .Cat, cat."):
        evaluate.check_classes(trained, data.load(f"folder:{tmp_path / 'c'}")[1])


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


def test_labels_that_a_dataset_keeps_to_itself_are_no_errors_of_the_network():
    with pytest.raises(BadInput, match="expected labels of 0 and more, received -1"):
        evaluate.labels_of([(None, np.array([1, 2])), (None, np.array([-1]))])


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


@pytest.mark.parametrize("classes", [3, 40])
def test_the_picture_has_numbers_where_there_is_room(classes):
    figure = figure_of(np.eye(classes, dtype=int) * 4, [f"class {k}" for k in range(classes)], "x")
    assert [text.get_text() for text in figure.axes[0].texts] == (["100"] * 3 if classes == 3 else [])
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

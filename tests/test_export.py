"""The export program as a process: two files with proof and card, nothing overwritten, nothing half written, nothing that is not proved."""

import dataclasses
import hashlib
import json
import re
import shutil
import types

import numpy as np
import pytest
import tf_keras as keras
from conftest import run_program

import kerakd
from export import card
from export import tflite as program
from kerakd import BadInput, commandline, data
from kerakd.rundir import RunDirectory
from kerakd.tflite import Settling, flatfile, runtime, settling
from kerakd.tflite.codes import ideal_bytes

L = keras.layers
NAMES = ("student.tflite", "student.int4.tflite", "student.json", "student.md")


@pytest.fixture(scope="module")
def exported(complete_run):
    status, out, err = run_program("export.tflite", f"--run={complete_run}", f"--codes={complete_run}/codes.npz")
    assert status == 0, out + err
    return complete_run, out, err


@pytest.fixture(scope="module")
def student(complete_run):
    return RunDirectory(complete_run).load_model("taught_0")


@pytest.fixture(scope="module")
def images(data_dir):
    return data.arrays(data.testing(data.load("digits", str(data_dir))[1], size=(8, 8)))[0]


@pytest.fixture(scope="module")
def proofs(exported, student, images):
    """The proofs of the files as they were written, on few images."""
    files = {"int8": exported[0] / "student.tflite", "int4": exported[0] / "student.int4.tflite"}
    found = {name: kerakd.verify(student, path.read_bytes(), images[:8]) for name, path in files.items()}
    return {**found, "int4, unpacked": kerakd.verify(student, kerakd.unpack(files["int4"].read_bytes()), images[:8])}


def test_both_containers_and_the_card_are_written(exported):
    directory, out, err = exported
    assert {*NAMES, "codes.npz"} <= {path.name for path in directory.iterdir()} and [path.name for path in directory.glob(".*")] == [".lock"]
    for name in (*NAMES, "codes.npz"):
        assert str(directory / name) in out.splitlines()[-1]
    card = json.loads((directory / "student.json").read_text())
    small = card["proofs"]["int4"]
    told = {
        "moved_top1": ", whose biases are coarser, names another class than the student",
        "top1_equal": ", which runs outside XNNPACK in kernels that round twice (a file of kerakd.unpack does not), names another class than its snapped copy",
    }
    astray = [why for share, why in told.items() if round((1 - small[share]) * small["images"]) > max(1, small["images"] // 100)]
    assert err == "".join(f"kerakd: the int4 container{why} on more than one image in a hundred\n" for why in astray)
    assert all(digits in (directory / "student.md").read_text() for digits in card["sha256"].values())


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
    assert [kernel["type"] for kernel in int4["kernels"]].count("INT8") == 2 and {kernel["type"] for kernel in int4["kernels"]} <= {"INT8", "INT4", "INT2"}
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
        (["--run=RUN", "--out=nowhere/x.tflite"], "--out: expected a folder that exists"),
        (["--run=RUN", "--out=/proc/x.tflite"], "--out: expected a folder that can be written, received /proc"),
        (["--run=RUN", "--out=RUN/results.tflite", "--overwrite"], "--out: expected a name that is no file's of the run, received results.json"),
        (["--run=RUN", "--out=RUN/sensitivity.tflite"], "--out: expected a name that is no file's of the run, received sensitivity.json"),
        (["--run=RUN", "--overwrite", "--codes=RUN/fixed_logits.npz"], "--codes: expected a name that is no file's of the run, received fixed_logits.npz"),
    ],
)
def test_bad_input_gets_one_line_and_changes_nothing(exported, refusal, arguments, message):
    directory, before = exported[0], contents(exported[0])
    _, err = refusal(program.main, *[text.replace("RUN", str(directory)) for text in arguments])
    assert message in err and len(err.splitlines()) == 1
    assert contents(directory) == before


def test_a_file_is_timed_once_whatever_rows_it_has(exported):
    rows = {row["network"].strip(): row for row in json.loads((exported[0] / "student.json").read_text())["table"]}
    assert rows["taught_0 in Keras"]["ms"] == rows["taught_0 on the int8 .tflite"]["ms"] != rows["taught_0 on the int4 .tflite"]["ms"]


def test_every_teacher_of_a_run_has_its_row():
    net = keras.Sequential([keras.Input((8, 8, 1)), L.Flatten(), L.Dense(10)])
    made = object.__new__(program.Export)
    made.results, made.measured = {"teacher": 0.9, "teacher_1": 0.8, "float": 0.7, "taught_0": 0.6}, {}
    made.directory = types.SimpleNamespace(has_model=lambda name: True, load_model=lambda name: net)
    titles = [(row["network"], row["accuracy"]) for row in made.float_rows()]
    assert titles == [("teacher, float32", 0.9), ("teacher 1, float32", 0.8), ("student, float32", 0.7)]


def test_a_run_that_was_exported_can_still_be_read(exported):
    assert RunDirectory(exported[0]).complete


# What was trained, and the card


def test_the_card_says_how_the_file_is_used_and_its_words_are_true(exported, images, monkeypatch):
    directory, _, _ = exported
    text, made = (directory / "student.md").read_text(), json.loads((directory / "student.json").read_text())
    assert made["classes"] == [str(digit) for digit in range(10)] and made["output"] == {"shape": [1, 10], "type": "float32"}
    assert made["input"] == {"shape": [1, 8, 8, 1], "range": [-1, 1], "type": "float32"}
    files = {"int8": "student.tflite", "int4": "student.int4.tflite"}
    assert made["sha256"] == {container: hashlib.sha256((directory / file).read_bytes()).hexdigest() for container, file in files.items()}
    assert "logits; the class is the largest: 0 `0`, 1 `1`, 2 `2`, 3 `3`, 4 `4`, 5 `5`, 6 `6`, 7 `7`, 8 `8`, 9 `9`\n" in text
    assert card._code("a|b, <c>") == "`a|b, <c>`" and card._code("back``tick") == "``` back``tick ```"
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(directory)
    known = {"image": np.rint((images[0] + 1) * 127.5)}
    exec(code, known)  # noqa: S102
    np.testing.assert_array_equal(known["logits"], runtime.run((directory / "student.tflite").read_bytes(), images[:1])[0])


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_files_whose_input_and_output_are_integers_are_proved_and_their_cards_words_true(exported, here, images, tmp_path, monkeypatch, kind):
    status, out, err = here(program.main, f"--run={exported[0]}", f"--out={tmp_path / 'x.tflite'}", f"--io={kind}", "--images=20")
    assert status == 0, out + err
    text, file = (tmp_path / "x.md").read_text(), (tmp_path / "x.tflite").read_bytes()
    assert f"* input: {kind} [1, 8, 8, 1]" in text and f"* output: {kind} [1, 10], logits" in text
    reader, made = runtime.interpreter(file), json.loads((tmp_path / "x.json").read_text())
    for end, details in (("input", reader.get_input_details()), ("output", reader.get_output_details())):
        assert (made[end]["scale"], made[end]["zero_point"]) == details[0]["quantization"]
        assert f"(scale {made[end]['scale']:.9g}, zero point {made[end]['zero_point']})" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    known = {"image": np.rint((images[0] + 1) * 127.5)}
    exec(code, known)  # noqa: S102
    np.testing.assert_allclose(known["logits"], runtime.run(file, images[:1])[0], rtol=1e-6)
    np.testing.assert_allclose(known["logits"], runtime.run((exported[0] / "student.tflite").read_bytes(), images[:1])[0], rtol=1e-6)


def test_how_far_settling_moved_what_was_trained_is_said(exported):
    directory, out, _ = exported
    settled = RunDirectory(directory).settled()["taught_0"]
    assert settled["images"] == 360 and 0 < settled["steps"] < 50 and 0.9 < settled["top1"] <= 1
    line = f"the trained student's logits are moved by at most {settled['steps']:.1f} steps, top-1 kept on {settled['top1']:.2%} of 360 images"
    assert f"settling\n  before the proof {line}\n" in out and line in (directory / "student.md").read_text()
    assert json.loads((directory / "student.json").read_text())["settled"] == settled


def test_settling_is_measured_in_the_outputs_steps(student, images):
    assert settling(student, student, images) == Settling(0.0, 1.0, 360)
    moved = keras.models.clone_model(student)
    moved.set_weights(student.get_weights())
    bias = moved.get_layer("logits").layer.bias
    bias.assign(bias + 5 * student.get_layer("logits_out").step_size)
    assert 4 <= settling(student, moved, images).steps <= 6


def test_a_proof_that_falls_short_says_in_what(proofs):
    worse = {**proofs, "int8": dataclasses.replace(proofs["int8"], float_tensors=["a", "b", "c", "d"], foreign_kernels=["k"])}
    with pytest.raises(BadInput, match=r"int8 .*: 100.00% of the logits, .* 4 float tensors inside \(a, b, c, ...\), 1 untrained kernels \(k\)"):
        program._check(worse, ("int8",))


def test_an_int4_file_that_names_other_classes_is_said_with_the_reason(proofs):
    right = dataclasses.replace(proofs["int4"], images=1000, moved_top1=0.99, top1_equal=0.99)
    assert program._astray(right) == []
    (coarse,) = program._astray(dataclasses.replace(right, moved_top1=0.98))
    twice, float_ = (program._astray(dataclasses.replace(right, top1_equal=0.98, not_delegated=left)) for left in (["CONV_2D"], []))
    assert "whose biases are coarser" in coarse and "kernels that round twice (a file of kerakd.unpack does not), names another class" in twice[0]
    assert float_ == [" names another class than its snapped copy"]


def test_the_codes_are_those_of_the_student(exported, student):
    expected = kerakd.codes(student)
    with np.load(exported[0] / "codes.npz") as arrays:
        assert set(arrays.files) == set(expected)
        for name, value in expected.items():
            assert arrays[name].dtype == value.dtype
            np.testing.assert_array_equal(arrays[name], value)


def test_the_card_says_what_was_looked_at_inside(exported, student, proofs):
    made = json.loads((exported[0] / "student.json").read_text())
    text = (exported[0] / "student.md").read_text()
    assert made["ideal_bytes"] == ideal_bytes(student)
    assert f"The kernels at their trained widths alone: {ideal_bytes(student)} bytes.\n" in text
    assert f"the kernels at their trained widths alone: {ideal_bytes(student)} bytes\n" in exported[1]
    assert list(made["proofs"]) == ["int8", "int4", "int4, unpacked"]
    for name, proof in made["proofs"].items():
        assert proof["emulated_equal"] == 1 and proof["images"] == 360 and proof["layer_images"] == 32
        assert f"\n## Tensors inside, {name}, 32 images\n" in text and f"{name}:\n\n```\n{proof['text']}\n```\n" in text
        assert [layer["layer"] for layer in proof["layers"]] == [layer.layer for layer in proofs[name].layers]
        for layer, looked in zip(proof["layers"], proofs[name].layers, strict=True):
            assert layer["values"] == 4 * looked.values and (layer["equal"] == 1) == (layer["max_steps"] == 0)
            assert (
                f"| {layer['layer']} | {layer['values']} | {layer['equal']:.4%} | {layer['max_steps']} |\n" in text.partition(f"## Tensors inside, {name}, ")[2]
            )
        assert name == "int4" or all(layer["equal"] == 1 for layer in proof["layers"])
    assert "emulation        100.00% of the logits as the runtime's arithmetic in NumPy gives them" in text


def test_a_table_of_codes_that_exists_is_kept_and_its_folder_has_to_be_there(exported, tmp_path):
    def outputs(**flags):
        return program._outputs(program.Options(run=str(exported[0]), out=str(tmp_path / "new.tflite"), **flags))

    existing = str(exported[0] / "codes.npz")
    with pytest.raises(BadInput, match="--codes: expected a new file, received .*codes.npz, which exists; give --overwrite to replace it, or another --codes"):
        outputs(codes=existing)
    with pytest.raises(BadInput, match="--codes: expected a folder that exists, received nowhere; make it first"):
        outputs(codes="nowhere/x.npz")
    assert str(outputs(codes=existing, overwrite=True)["codes"]) == existing
    assert "codes" not in outputs()


# What a proof has to show


DEFAULT = ("codes", "int8", "unpacked", "emulated", "kept")


def test_everything_is_required_unless_something_is_named():
    def required(*flags):
        return commandline.parse(["x", *flags], program.Options)[0].require

    assert required() == DEFAULT == tuple(name for name in program.REQUIREMENTS if name != "none")
    assert required("--require=none") == ("none",)
    assert required("--require=codes", "--require=int8") == ("codes", "int8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"require": ("int8", "speed")}, "--require: expected some of codes, int8, unpacked, emulated, kept, none, received 'speed'"),
        ({"codes": "codes.txt"}, "--codes: expected a .npz file, received codes.txt"),
        ({"io": "int4"}, "--io: expected one of float32, int8, uint8, received 'int4'"),
        ({"images": -1}, "--images: expected 0 or more, received -1"),
    ],
)
def test_a_value_that_is_none_is_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        program.Options(**changes)


WORSE = {  # a proof that falls short: of which container, in what, and which requirements see it
    "a code of int8": ("int8", {"codes_equal": 0.999}, ["codes", "int8"]),
    "a code of int4": ("int4", {"codes_equal": 0.999}, ["codes"]),
    "a code of the unpacked": ("int4, unpacked", {"codes_equal": 0.999}, ["codes", "unpacked"]),
    "a logit of int8": ("int8", {"logits_equal": 0.999}, ["int8"]),
    "a top-1 of int8": ("int8", {"top1_equal": 0.999}, ["int8"]),
    "a float tensor of int8": ("int8", {"float_tensors": ["x"]}, ["int8"]),
    "a kernel of int8 that nobody trained": ("int8", {"foreign_kernels": ["x"]}, ["codes", "int8"]),
    "a kernel of int4 that nobody trained": ("int4", {"foreign_kernels": ["x"]}, ["codes"]),
    "a logit of the unpacked": ("int4, unpacked", {"logits_equal": 0.999}, ["unpacked"]),
    "a logit of int4": ("int4", {"logits_equal": 0.5, "top1_equal": 0.9}, []),
    "a logit of int4 is not as emulated": ("int4", {"emulated_equal": 0.999}, ["emulated"]),
    "int4 can not be emulated": ("int4", {"emulated_equal": None}, ["emulated"]),
    "one class in 50 is another by int8": ("int8", {"moved_top1": 0.98, "images": 1000}, ["kept"]),
    "one class in 50 is another by int4": ("int4", {"moved_top1": 0.98, "images": 1000}, []),
    "one class of 20 is another": ("int8", {"moved_top1": 0.95, "images": 20}, []),
    "int8 is not as emulated": ("int8", {"emulated_equal": 0.999}, []),
}


@pytest.mark.parametrize("what", WORSE)
def test_each_requirement_sees_what_it_asks_for_and_nothing_else(proofs, what):
    name, changes, expected = WORSE[what]
    worse = {**proofs, name: dataclasses.replace(proofs[name], **changes)}
    program._check(proofs, DEFAULT)
    program._check(worse, ("none",))
    seen = []
    for requirement in DEFAULT:
        try:
            program._check(worse, (requirement,))
        except BadInput as error:
            assert str(error).startswith(f"proof: expected what --require asks, received less for {requirement} (")
            seen.append(requirement)
    assert seen == expected
    if expected:
        named = "; ".join(re.escape(f"{name} ({program.REQUIREMENTS[name][0]})") + ": [^;]+" for name in expected)
        met = " ".join(f"--require={name}" for name in DEFAULT if name not in expected)
        with pytest.raises(BadInput, match=f"received less for {named}; nothing was written, give {met} if that will do$"):
            program._check(worse, DEFAULT)


@pytest.fixture(scope="module")
def unproved(complete_run, tmp_path_factory):
    """A run whose student has a layer that stays float, and files of an older export."""
    directory = tmp_path_factory.mktemp("unproved") / "run"
    shutil.copytree(complete_run, directory, ignore=shutil.ignore_patterns("student*", "*.npz"))
    x = inputs = keras.Input((8, 8, 1))
    for layer in (L.Conv2D(4, 3), L.LayerNormalization(), L.ReLU(), L.Conv2D(4, 3), L.Flatten(), L.Dense(10)):
        x = layer(x)
    made = kerakd.quantize(keras.Model(inputs, x), kerakd.Scheme(kerakd.Ternary(), kerakd.Interval(8)))
    kerakd.calibrate(made, np.random.default_rng(0).normal(size=(32, 8, 8, 1)).astype(np.float32))
    RunDirectory(directory).save_model("taught_0", made)
    for name in (*NAMES, "codes.npz"):
        (directory / name).write_text(f"the {name} of before")
    return directory


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_proof_that_falls_short_writes_nothing_and_leaves_what_there_is(unproved):
    before = contents(unproved)
    status, out, err = run_program("export.tflite", f"--run={unproved}", f"--codes={unproved}/codes.npz", "--overwrite", "--images=20")
    assert status == 2 and "proof, int4, unpacked\n" in out and "float tensors in the file" in out
    line = err.splitlines()[-1]
    assert line.startswith("kerakd: proof: expected what --require asks, received less for int8 (") and "; unpacked (" in line and "; emulated (" in line
    assert "codes (" not in line and "; nothing was written" in line
    assert contents(unproved) == before


def test_with_nothing_required_it_is_written(unproved, tmp_path):
    out = tmp_path / "x.tflite"
    status, said, err = run_program("export.tflite", f"--run={unproved}", f"--out={out}", "--images=20", "--require=none")
    assert status == 0, said + err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.int4.tflite", "x.json", "x.md", "x.tflite"]
    proof = json.loads((tmp_path / "x.json").read_text())["proofs"]["int8"]
    assert proof["emulated_equal"] is None and not proof["exact"] and proof["float_tensors"]
    assert "emulation        not modelled\n" in (tmp_path / "x.md").read_text()
    assert kerakd.tflite.flatfile.census(out.read_bytes())["float_tensors"] == proof["float_tensors"]

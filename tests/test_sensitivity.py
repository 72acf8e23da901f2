"""Sensitivity: what one lowered kernel costs, which widths fit a budget, and that the proposed flags train."""

import dataclasses
import json
import re

import matplotlib.image
import numpy as np
import pytest
from conftest import run_program
from PIL import Image

import kerakd
from kerakd import models, scores, sensitivity
from kerakd.quantizers import parse
from kerakd.rundir import RunDirectory
from kerakd.sensitivity import Kernels, fit, losses


@pytest.fixture(scope="module")
def kernels():
    """Of an untrained network on noise: what is measured does not depend on its being good."""
    random = np.random.default_rng(0)
    net = models.build("resnet8", (8, 8, 1), 10, 0.25)
    return Kernels(net, (8, 8), [(random.normal(size=(64, 8, 8, 1)).astype(np.float32), random.integers(0, 10, 64))], kerakd.Interval(8))


def test_first_and_last_are_not_to_be_chosen(kernels):
    assert kernels.fixed == {"conv": 8, "logits": 8}
    assert not set(kernels.fixed) & set(kernels.names) and len(kernels.names) == len(kernels.sizes) - 2


def test_a_kernel_is_lowered_alone(kernels):
    """As by hand: that kernel's values on its grid, in the float network."""
    name = kernels.names[2]
    student = kerakd.quantize(kernels.net, kerakd.Scheme(kerakd.Interval(3), None, first=3, last=3))
    from kerakd.calibration import fit_weight_intervals

    fit_weight_intervals(student, "mse")
    (layer,) = [layer for layer in student.layers if getattr(getattr(layer, "layer", None), "name", None) == name]
    ((variable, quantizer, made),) = layer.kernels
    weights, target = kernels.net.get_weights(), kernels.net.get_layer(name).kernel
    before = target.numpy()
    target.assign(quantizer(variable, False, made))
    expected = scores.agreement(scores.predictions(kernels.net, kernels.batches), kernels.logits)["kl"]
    target.assign(before)
    assert kernels.judge({name: 3})["kl"] == pytest.approx(expected, rel=1e-4)
    for a, b in zip(kernels.net.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_more_bits_lose_less(kernels):
    found = losses(kernels, [2, 4, 8])
    assert list(found) == kernels.names
    kl = np.array([[row[width]["kl"] for width in (2, 4, 8)] for row in found.values()])
    assert (kl[:, 0] > kl[:, 1]).mean() > 0.9 and (kl[:, 1] > kl[:, 2]).mean() > 0.9 and kl[:, 2].max() < 0.01


def cost(**kl):
    return {int(bits[1:]): {"kl": value} for bits, value in kl.items()}


def test_the_cheapest_step_for_each_byte_is_taken_until_it_fits():
    found = {"a": cost(b2=1.0, b8=0.0), "b": cost(b2=0.1, b4=0.04, b8=0.0), "c": cost(b2=0.1, b8=0.0)}
    sizes = {"a": 80, "b": 80, "c": 800}
    assert fit(found, sizes, 960) == {"a": 8, "b": 8, "c": 8}
    assert fit(found, sizes, 959) == {"a": 8, "b": 8, "c": 2}  # 0.1 for 600 bytes
    assert fit(found, sizes, 359) == {"a": 8, "b": 4, "c": 2}  # 0.04 for 40
    assert fit(found, sizes, 319) == {"a": 8, "b": 2, "c": 2}  # 0.06 for 20
    assert fit(found, sizes, 240) == {"a": 2, "b": 2, "c": 2}
    with pytest.raises(kerakd.BadInput, match="--budget: expected at least 240 bytes"):
        fit(found, sizes, 239)
    with pytest.raises(kerakd.BadInput, match="at least 241 bytes, .*received 240"):  # 240.4
        fit(found, sizes, 240, fixed_bytes=0.4)
    with pytest.raises(kerakd.BadInput, match="at least 340 bytes"):
        fit(found, sizes, 330, fixed_bytes=100)


def test_the_program_proposes_widths_that_train(complete_run, tmp_path):
    out_files = [f"--picture={tmp_path / 's.png'}", f"--json={tmp_path / 's.json'}"]
    sizes = "--widths=2,8", "--images=200", "--budget=3000"
    status, out, err = run_program("kerakd.sensitivity", f"--run={complete_run}", *sizes, *out_files, f"--trained={complete_run}")
    assert status == 0, out + err
    said = json.loads((tmp_path / "s.json").read_text())
    assert said["budget"]["bytes"] <= 3000 and set(said["budget"]["widths"].values()) <= {2, 8}
    assert re.findall(r"'(--override=\S+)'", out) == said["budget"]["overrides"] and len(said["budget"]["overrides"]) == len(said["layers"])
    assert f"trained, accuracy {RunDirectory(complete_run).results()['taught_0']:.4f}" in out
    assert matplotlib.image.imread(tmp_path / "s.png").std() > 0.05
    made, _ = kerakd.config.parse(["x", f"--flagfile={complete_run / 'flags.cfg'}", *said["budget"]["overrides"]])
    net = RunDirectory(complete_run).load_model("float")
    student = kerakd.quantize(net, made.scheme())
    bits = {layer.layer.name: quantizer.bits for layer in student.layers if hasattr(layer, "kernels") for _, quantizer, _ in layer.kernels}
    assert {name: bits[name] for name in said["budget"]["widths"]} == said["budget"]["widths"]


@pytest.mark.parametrize("weights", ["interval:4", "interval:4,per_channel", "interval,bits=4,per_channel,gradient_scale", "ternary,learned"])
def test_flags_of_widths_keep_what_else_was_asked_of_an_interval(weights):
    base = parse(weights) if weights.startswith("interval") else kerakd.Interval(8)
    made, _ = kerakd.config.parse(
        ["x", "--dataset=digits", "--student=resnet8", "--phase=alone:1", f"--weights={weights}", *sensitivity.overrides({"a.b": 3}, weights, "interval:4")]
    )
    (rule,) = made.scheme().overrides.values()
    assert rule.weights == dataclasses.replace(base, bits=3) and list(made.scheme().overrides) == ["^a\\.b$"]


def test_widths_are_chosen_on_training_images_and_their_prediction_is_measured(complete_run, here, tmp_path, monkeypatch):
    asked, judged, make, judge = [], [], sensitivity.data.training, Kernels.judge
    monkeypatch.setattr(sensitivity.data, "training", lambda split, **kwargs: asked.append(split.name) or make(split, **kwargs))
    monkeypatch.setattr(Kernels, "judge", lambda self, widths: judged.append((widths, judge(self, widths))) or judged[-1][1])
    figures = "--widths=2,8", "--images=200", "--budget=3000", f"--json={tmp_path / 's.json'}"
    status, out, err = here(sensitivity.main, f"--run={complete_run}", *figures)
    assert status == 0, out + err
    said, (widths, found) = json.loads((tmp_path / "s.json").read_text())["budget"], judged[-1]
    assert asked == ["digits train"] and widths == {"conv": 8, "logits": 8, **said["widths"]} and said["predicted"] == found["accuracy"]


def test_a_budget_that_nothing_fits_is_refused_before_anything_is_judged(complete_run, refusal, monkeypatch):
    monkeypatch.setattr(Kernels, "judge", lambda self, widths: pytest.fail("judged"))
    _, err = refusal(sensitivity.main, f"--run={complete_run}", "--images=20", "--budget=9")
    assert re.search("--budget: expected at least [0-9]+ bytes, which the narrowest kernels take, received 9", err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--run: expected the directory of a run"),
        (["--run=nowhere"], "expected a complete run"),
        (["--run=RUN", "--widths=1,2"], "--widths: expected numbers from 2 to 8"),
        (["--run=RUN", "--widths=2,2"], "each once"),
        (["--run=RUN", "--images=0"], "--images: expected 1 or more"),
        (["--run=RUN", "--picture=x.gif"], "--picture: expected a .png file"),
        (["--run=RUN", "--trained=nowhere"], "--trained: expected a complete run"),
    ],
)
def test_bad_input_gets_one_line(refusal, complete_run, arguments, message):
    _, err = refusal(sensitivity.main, *[text.replace("RUN", str(complete_run)) for text in arguments])
    assert message in err and len(err.splitlines()) == 1


def test_classes_of_other_names_than_the_runs_are_refused(refusal, tmp_path):
    for name in ("a", "b"):
        for number in range(20):
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / f"{number}.png")
    directory = RunDirectory(tmp_path / "run")
    flags = f"--dataset=folder:{tmp_path / 'images'}\n--image_size=8\n--student=resnet8\n--start=float\n--float_epochs=1\n--phase=alone:1\n"
    directory.claim(flags, resume=False, overwrite=False)
    directory.save_data({"classes": ["z", "b"]})
    directory.save_model("float", models.build("resnet8", (8, 8, 3), 2, 0.25))
    directory.save_results({"float": 0.5, "taught_0": 0.5})
    _, err = refusal(sensitivity.main, f"--run={directory.path}")
    assert "expected the class folders on which the run was trained, received others" in err and "(a, z)" in err


def test_a_run_without_a_float_student_is_refused(refusal, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.claim("--dataset=digits\n--student=resnet8\n--phase=alone:1\n", resume=False, overwrite=False)
    directory.save_results({"taught_0": 0.5})
    _, err = refusal(sensitivity.main, f"--run={directory.path}")
    assert "expected a run with a float student" in err

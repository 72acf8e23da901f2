"""The footprint program: bytes counted by hand, against the real int8 file, and the program as a process."""

import json
import pathlib
import sys
from collections import Counter

import numpy as np
import pytest
import tf_keras as keras
from conftest import run_program

import kerakd
from export import footprint as program
from export import footprint_figure
from export.footprint import Footprint, Network, Options, footprint
from kerakd import commandline, models
from kerakd.errors import BadInput
from kerakd.plan import plan
from kerakd.tflite import flatfile

L = keras.layers


def residual_net(extra=()):
    """Images of 32 numbers; tensors of 64 (a), 64 (b), 64 (their sum), 4 and 3 numbers; kernels of 72, 144 and 12, channels 4, 4 and 3."""
    x = keras.Input((4, 4, 2))
    a = L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, padding="same", use_bias=False)(x)))
    b = L.BatchNormalization()(L.Conv2D(4, 3, padding="same", use_bias=False)(a))
    y = L.GlobalAveragePooling2D()(L.ReLU()(L.Add()([b, a])))
    for layer in extra:
        y = layer(y)
    return keras.Model(x, L.Dense(3)(y))


@pytest.fixture(scope="module")
def residual():
    return Network(residual_net())


@pytest.mark.parametrize(
    ("bits", "kernels", "scales"),
    [(32, 4 * (72 + 144 + 12), 0), (8, 72 + 144 + 12, 4 * 11), (4, 72 + 72 + 12, 4 * 11), (3, 72 + 54 + 12, 4 * 11), (2, 72 + 36 + 12, 4 * 11)],
)
def test_weights_by_hand_with_first_and_last_layer_at_8_bits(residual, bits, kernels, scales):
    assert footprint(residual_net(), bits, min(bits, 8)).weights == residual.footprint(bits, 8).weights == kernels + scales + 4 * 11


@pytest.mark.parametrize(
    ("bits", "image", "a", "b", "added", "pooled", "logits"),
    [
        (32, 128, 256, 256, 256, 16, 12),
        (8, 32, 64, 64, 64, 4, 3),
        (4, 32, 32, 64, 32, 4, 3),  # b can be negative, the pooled tensor goes into the last layer
        (3, 32, 24, 64, 24, 4, 3),
        (2, 32, 16, 64, 16, 4, 3),
    ],
)
def test_activations_by_hand(residual, bits, image, a, b, added, pooled, logits):
    found = residual.footprint(32 if bits == 32 else 8, bits)
    assert found.sum == image + a + b + added + pooled + logits
    assert found.peak == a + b + added  # at the addition: its operands and what it writes


def test_a_student_whose_sums_are_narrowed_counts_as_what_it_was_made_from(residual):
    student = kerakd.quantize(residual_net(), kerakd.Scheme(kerakd.Interval(2), kerakd.Interval(2), sums=8))
    assert any("narrow" in layer.name for layer in student.layers)
    for bits in (32, 4):
        assert Network(student).footprint(bits, min(bits, 8)) == residual.footprint(bits, min(bits, 8))


def test_a_student_whose_relu_stands_apart_counts_as_what_it_was_made_from():
    layers = [L.Conv2D(2, 3, padding="same"), L.MaxPooling2D(2), L.ReLU(), L.Flatten(), L.Dense(3)]
    net = keras.Sequential([keras.Input((4, 4, 1)), *layers])
    student = kerakd.quantize(net, kerakd.Scheme(kerakd.Interval(4), kerakd.Interval(4)))
    assert any("line" in layer.name for layer in student.layers)
    for bits in (32, 4):
        assert footprint(student, bits, bits) == footprint(net, bits, bits)


def test_views_write_nothing(residual):
    net = residual_net([L.Reshape((2, 2)), L.Dropout(0.1), L.Flatten()])
    assert footprint(net, 4, 4) == residual.footprint(4, 4)


def test_outputs_and_images_are_alive_while_they_are_needed():
    x = keras.Input((40,))
    first = L.Dense(100)(x)
    last = L.Dense(3)(L.Dense(2)(first))
    assert footprint(keras.Model(x, last), 32, 32) == Footprint(4 * (4000 + 100 + 200 + 2 + 6 + 3), peak=4 * 140, sum=4 * 145)
    assert footprint(keras.Model(x, [last, first]), 32, 32).peak == 4 * 140
    again = L.Dense(5)(L.Concatenate()([last, x]))  # the image stays until then
    assert footprint(keras.Model(x, again), 32, 32).peak == 4 * (40 + 100 + 2)
    assert footprint(keras.Model(x, [again, first]), 32, 32).peak == 4 * (40 + 100 + 3 + 43)


def test_every_tensor_is_rounded_up_to_bytes_in_each_image():
    x = keras.Input((3,))
    net = keras.Model(x, L.Dense(1)(L.Dense(3)(L.Dense(5, activation="relu")(x))))
    assert footprint(net, 3, 3).sum == 3 + 2 + 3 + 1  # 5 numbers of 3 bits: 2 bytes
    assert footprint(net, 3, 3, batch=8).sum == 8 * 9
    assert footprint(net, 3, 3).weights == 15 + 6 + 3 + 8 * (5 + 3 + 1)  # 15 weights of 3 bits: 6 bytes


def test_a_layer_called_twice_has_its_weights_once():
    x, shared = keras.Input((6,)), L.Dense(6)
    assert footprint(keras.Model(x, L.Dense(2)(shared(shared(x)))), 32, 32).weights == 4 * (36 + 6 + 12 + 2)


def test_weights_that_no_kernel_folds_or_no_width_lowers():
    x = keras.Input((4, 4, 3))
    y = L.Conv2DTranspose(5, 2, 2)(L.BatchNormalization()(L.GroupNormalization(1)(L.Rescaling(2.0)(x))))
    net = Network(keras.Model(x, L.Dense(2)(L.Flatten()(y))))
    others = 4 * 2 + 4 * 6 + 4 * 6 + 4 * (2 * 2 * 3 * 5 + 5)
    assert net.footprint(32, 32).weights == others + 4 * (640 + 2)
    assert net.footprint(2, 8).weights == others + 640 + 8 * 2  # the only weighted layer is the first one
    assert net.left_float() == {"GroupNormalization": 1, "Conv2DTranspose": 1}


@pytest.fixture(scope="module")
def small_networks():
    return [Network(models.build(name, (32, 32, 3), 10, 0.25)) for name in ("resnet8v2", "mobilenet_v3_small")]


def test_no_width_takes_more_than_a_larger_one_and_a_batch_scales_activations_alone(small_networks):
    for network in small_networks:
        rows = [network.footprint(bits, bits) for bits in (32, 8, 7, 6, 5, 4, 3, 2)]
        for figure in ("weights", "peak", "sum"):
            sizes = [getattr(row, figure) for row in rows]
            assert sizes == sorted(sizes, reverse=True)
        for bits, row in zip((32, 8), rows):
            assert 0 < row.peak < row.sum
            assert network.footprint(bits, bits, batch=8) == Footprint(row.weights, 8 * row.peak, 8 * row.sum)
        assert rows[0].sum == 4 * rows[1].sum and rows[0].peak == 4 * rows[1].peak
        assert network.footprint(2, 8).sum == rows[1].sum and network.footprint(2, 8).weights == rows[-1].weights


def test_tensors_and_peak_are_those_of_the_int8_file():
    net = models.build("resnet8", (16, 16, 3), 10, 0.5)
    student = kerakd.quantize(net, kerakd.Scheme(kerakd.Interval(8), kerakd.Interval(8)))
    assert footprint(student, 4, 4) == footprint(net, 4, 4)  # a student counts as what it was made from
    kerakd.calibrate(student, np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32"))
    file = flatfile.read(kerakd.to_tflite(student))
    (scene,) = file.subgraphs
    used = [{int(i) for i in (*op.inputs, *op.outputs)} for op in scene.operators]
    sizes = {  # of the tensors that are no constants; the float image and the float logits are the file's own
        i: int(np.prod(tensor.shape))
        for i, tensor in enumerate(scene.tensors)
        if not len(file.buffers[tensor.buffer].data if file.buffers[tensor.buffer].data is not None else []) and i not in (*scene.inputs, *scene.outputs)
    }
    network = Network(net)
    assert Counter(network.activations(plan(network.model, program.scheme_of(8, 8)))) == Counter(sizes.values())
    steps = {i: [step for step, tensors in enumerate(used) if i in tensors] for i in sizes}
    held = [sum(size for i, size in sizes.items() if min(steps[i]) <= step <= max(steps[i])) for step in range(1, len(used) - 1)]  # but for the casts
    assert network.footprint(8, 8).peak == max(held)


def test_resnet18_has_its_published_weights_and_takes_no_memory():
    options = Options(model=("resnet18",))
    net = program.load("resnet18", options)
    kernels, channels = 11_689_512 - 2 * 4800 - 1000, 4800 + 1000  # torchvision's parameters without BatchNorm's two a channel and the biases
    assert footprint(net, 32, 32).weights == 4 * (kernels + channels)
    assert {variable.numpy().size for variable in net.weights} == {0}


def test_the_callers_model_is_not_touched():
    net = residual_net()
    before = net.get_weights(), [len(layer._inbound_nodes) for layer in net.layers], net.get_config()
    footprint(net, 4, 4)
    assert all(np.array_equal(a, b) for a, b in zip(before[0], net.get_weights(), strict=True))
    assert ([len(layer._inbound_nodes) for layer in net.layers], net.get_config()) == before[1:]


def test_bits_batches_and_open_sizes_are_refused():
    net = residual_net()
    for arguments, message in (((9, 8), "bits: expected"), ((8, 1), "bits: expected"), ((8, 8, 0), "batch: expected 1 image or more")):
        with pytest.raises(BadInput, match=message):
            footprint(net, *arguments)
    with pytest.raises(BadInput, match="model: expected tensors of known size"):
        footprint(keras.Sequential([keras.Input((None, None, 1)), L.Conv2D(2, 3), L.GlobalAveragePooling2D(), L.Dense(2)]), 8, 8)


@pytest.fixture(scope="module")
def open_file(tmp_path_factory):
    """A file whose images may have any size."""
    path = tmp_path_factory.mktemp("nets") / "offen, größer.keras"
    keras.Sequential([keras.Input((None, None, 3)), L.Conv2D(8, 3, padding="same"), L.GlobalAveragePooling2D(), L.Dense(2)]).save(path)
    return path


def test_the_program_writes_picture_and_figures_and_overwrites_nothing(open_file, tmp_path, monkeypatch, capsys):
    out, figures = tmp_path / "picture.png", tmp_path / "figures.json"
    arguments = ["--model=resnet8", f"--model={open_file}", "--image_size=16", "--classes=7", f"--out={out}", f"--json={figures}"]
    status, printed, err = run_program("export.footprint", *arguments)
    assert status == 0 and err == "", printed + err
    assert out.read_bytes()[:4] == b"\x89PNG" and {path.name for path in tmp_path.iterdir()} == {out.name, figures.name}
    flat = json.loads(figures.read_text())
    assert len(flat) == 2 * 25 and all(type(value) is int for value in flat.values())
    one = footprint(models.build("resnet8", (16, 16, 3), 7), 2, 4)
    assert flat["resnet8 weights W2"] == one.weights
    assert flat["resnet8 activations A4 peak batch 1"] == one.peak and flat["resnet8 activations A4 sum batch 8"] == 8 * one.sum
    assert flat[f"{open_file.name} activations A32 sum batch 1"] == 4 * (16 * 16 * (3 + 8) + 8 + 2)
    (line,) = [line for line in printed.splitlines() if line.startswith("resnet8 ")]
    assert line.split()[:4] == ["resnet8", "16x16x3", "W32A32", footprint_figure.megabytes(flat["resnet8 weights W32"])]
    before = out.stat().st_mtime_ns
    monkeypatch.setattr(sys, "argv", ["footprint", *arguments])
    with pytest.raises(SystemExit) as ended:  # what the program does at its end, without another ten seconds of imports
        commandline.program(program.main)
    assert ended.value.code == 2 and out.stat().st_mtime_ns == before
    (line,) = capsys.readouterr().err.splitlines()
    assert f"received {out}, which exists; give --overwrite" in line
    monkeypatch.setattr(sys, "argv", ["footprint", *arguments, "--overwrite", "--activations=sum"])
    program.main()
    assert out.stat().st_mtime_ns != before and json.loads(figures.read_text()) == flat


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model: expected a network, received none; give"),
        (["--model=resnet9"], "--model: expected one of .*efficientnet_b0.*, or a .keras or .h5 file, received 'resnet9'; "),
        (["--model=resnet8", "--model=resnet8"], "--model: expected each network once, received resnet8, resnet8; "),
        (["--model=no.keras"], "--model=no.keras: model: expected a .keras or .h5 file, received no.keras, which is not there"),
        (["--model=junk.h5"], "--model=junk.h5: model: expected .*, received junk.h5"),
        (["--model=resnet8", "--image_size=0"], "--image_size: expected 1 or more, received 0; 224 is the default"),
        (["--model=resnet8", "--image_size=x"], "--image_size=x"),
        (["--model=resnet8", "--classes=0"], "--classes: expected 1 or more, received 0; "),
        (["--model=resnet8", "--channels=-3"], "--channels: expected 1 or more, received -3; "),
        (["--model=resnet8", f"--classes={10**25}"], "--model=resnet8: sizes: expected some that the network can have, received .*--classes=10000000"),
        (["--model=resnet8", "--activations=mean"], "--activations: expected one of peak, sum, received 'mean'; "),
        (["--model=resnet8", "--out=x.jpg"], "--out: expected a .png file, received 'x.jpg'; "),
        (["--model=resnet8", "--out=nowhere/x.png"], "--out: expected a folder that exists, received nowhere; "),
        (["--model=resnet8", "--json=x.txt"], "--json: expected a .json file, received 'x.txt'; "),
        (["--model=resnet8", "--out=old.png"], "--out: expected a new file, received old.png, which exists; give --overwrite"),
        (["--model=resnet8", "--json=old.json"], "--json: expected a new file, received old.json, which exists; give --overwrite"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(folder, monkeypatch, arguments, message):
    for name in ("junk.h5", "old.png", "old.json"):
        pathlib.Path(name).write_text("as it was")
    monkeypatch.setattr(sys, "argv", ["footprint", *arguments])
    with pytest.raises(BadInput, match=message):
        program.main()
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(("junk.h5", "old.png", "old.json"), "as it was")


@pytest.mark.parametrize(("count", "panels"), [(1, 1), (3, 3), (4, 6)])
def test_each_network_has_a_panel_of_bars(residual, count, panels):
    rows = {widths: residual.footprint(*widths) for widths in footprint_figure.ROWS}
    names = [f"net {n}" for n in range(count)]
    figure = footprint_figure.figure_of(dict.fromkeys(names, residual), dict.fromkeys(names, rows), "sum")
    assert len(figure.axes) == panels and sum(axes.axison for axes in figure.axes) == count
    weights, activations = figure.axes[0].containers
    one = rows[(32, 32)]
    np.testing.assert_allclose([bar.get_height() for bar in weights][:2], [one.weights / 1e6] * 2)
    np.testing.assert_allclose([bar.get_height() for bar in activations][:2], [one.sum / 1e6, 8 * one.sum / 1e6])
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["W32A32", "W8A8", "W4A8", "W2A8", "W4A4", "W2A2"]


def test_biases_and_scales_of_a_depthwise_layer_are_those_of_its_outputs():
    x = keras.Input((4, 4, 3))
    net = keras.Model(x, L.Dense(2)(L.GlobalAveragePooling2D()(L.DepthwiseConv2D(3, depth_multiplier=2)(x))))
    assert footprint(net, 32, 32).weights == 4 * (9 * 6 + 6 + 6 * 2 + 2)
    assert footprint(net, 8, 8).weights == 9 * 6 + 8 * 6 + 12 + 8 * 2  # a bias of 4 bytes and a scale of 4 for each output


def test_of_a_size_that_is_open_on_one_side_the_other_stays():
    net = keras.Sequential([keras.Input((None, 16, 3)), L.Conv2D(2, 3), L.GlobalAveragePooling2D(), L.Dense(2)])
    assert program._sized(net, 8).input_shape == (None, 8, 16, 3)

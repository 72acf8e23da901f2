"""The tensors inside a file against the student's: equal in the right file, and in a changed one only the changed layer's differs."""

import dataclasses

import numpy as np
import pytest
import tf_keras as keras

import kerakd
from kerakd import Interval, Scheme, verify
from kerakd.tflite import flatfile, layers, reference, runtime
from kerakd.tflite.fold import fold
from kerakd.tflite.grid import Grid
from kerakd.tflite.layers import LayerProof
from kerakd.wrapper import QuantizedActivation

L = keras.layers
SCHEME = Scheme(Interval(4), Interval(4))
SHAPE = (9, 9, 2)
# the quantized tensors of the net in its order, the layer that makes each and the size of one image's
TENSORS = {
    "image_out": (None, 9 * 9 * 2),
    "first_relu_out": ("first", 9 * 9 * 6),
    "a_relu_out": ("a", 9 * 9 * 6),
    "b_norm_out": ("b", 9 * 9 * 6),
    "add_relu_out": (None, 9 * 9 * 6),
    "depthwise_relu_out": ("depthwise", 5 * 5 * 6),
    "pool_out": (None, 6),
    "logits_out": ("logits", 5),
}


def noise(count, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def normed(layer, x, relu=True):
    x = L.BatchNormalization(name=f"{layer.name}_norm")(layer(x))
    return L.ReLU(name=f"{layer.name}_relu")(x) if relu else x


def made(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(SHAPE, name="image")
    x = normed(L.Conv2D(6, 3, padding="same", name="first"), inputs)
    y = normed(L.Conv2D(6, 3, padding="same", name="b"), normed(L.Conv2D(6, 3, padding="same", name="a"), x), relu=False)
    x = L.ReLU(name="add_relu")(L.Add(name="add")([x, y]))
    x = normed(L.DepthwiseConv2D(3, 2, padding="same", name="depthwise"), x)
    net = keras.Model(inputs, L.Dense(5, name="logits")(L.GlobalAveragePooling2D(name="pool")(x)))
    student = kerakd.quantize(net, SCHEME)
    kerakd.calibrate(student, noise(32, seed=9))
    return student


@pytest.fixture(scope="module")
def student():
    return made(1)


@pytest.fixture(scope="module")
def file(student):
    return kerakd.to_tflite(student)


def changed(data, student, name):
    """The file with one weight code of the layer `name` taken to the other end of its range, in every one of its output channels but the last."""
    model = flatfile.read(data)
    (match,) = (match for match in flatfile.matches(data, fold(student).linears) if match.name == name)
    kernel = next(kernel for _, kernel, _ in flatfile.weighted(model) if kernel.name == match.kernel.name)
    codes = flatfile.values(model, kernel).copy()
    first = codes.reshape(-1, codes.shape[-1])[0] if name == "depthwise" else codes.reshape(len(codes), -1)[:, 0]
    first[:-1] = np.where(first[:-1] < 0, 127, -127)
    model.buffers[kernel.buffer].data = codes.reshape(-1).view(np.uint8)
    return flatfile.write(model)


@pytest.mark.parametrize("count", [1, 6, 10, 32, 40])
def test_in_the_right_file_every_value_of_every_tensor_is_equal(student, file, count):
    """At most 32 images are looked at; shares of any number of them add up to 1."""
    proof = verify(student, file, noise(count))
    seen = min(count, 32)
    assert proof.layer_images == seen
    assert [layer.layer for layer in proof.layers] == list(TENSORS)
    for layer, (_, size) in zip(proof.layers, TENSORS.values(), strict=True):
        assert (layer.values, layer.equal, layer.max_steps) == (seen * size, 1.0, 0) and layer.tensor
    assert len({layer.tensor for layer in proof.layers}) == len(TENSORS)
    assert f"{len(TENSORS)} of {len(TENSORS)} tensors equal in every value on {seen} images\n" in str(proof)


@pytest.mark.parametrize("name", [name for name, (layer, _) in TENSORS.items() if layer and name != "logits_out"])
def test_the_one_tensor_that_differs_is_the_changed_layer_s(student, file, name):
    """What comes after it has other values too, but the right ones for what it reads."""
    proof = verify(student, changed(file, student, TENSORS[name][0]), noise(8))
    (differing,) = (layer for layer in proof.layers if layer.equal < 1)
    assert differing.layer == name and 0 < differing.max_steps < 256
    assert proof.logits_equal < 1
    equal = len(TENSORS) - 1
    assert f"inside           {equal} of {len(TENSORS)} tensors equal in every value on 8 images, the first other one {differing}\n" in str(proof)


@pytest.mark.parametrize("held", [1, 7000])
def test_images_are_compared_in_parts_where_they_are_many(student, file, monkeypatch, held):
    """One at a time, and three of 2,267 values, which does not divide ten."""
    folded = fold(student)
    wrong, images = changed(file, student, "a"), noise(10)
    whole = layers.compare(reference.snap(student, folded), folded, wrong, images)
    monkeypatch.setattr(layers, "HELD", held)
    assert layers.compare(reference.snap(student, folded), folded, wrong, images) == whole
    assert {proof.layer for proof in whole if proof.equal < 1} == {"a_relu_out"}


def test_of_the_small_container_the_tensors_are_looked_at_as_well(student):
    data = kerakd.to_tflite(student, "int4")
    proof, unpacked = (verify(student, packed, noise(8)) for packed in (data, kerakd.unpack(data)))
    assert [layer.layer for layer in proof.layers] == list(TENSORS)
    assert all(layer.tensor for layer in proof.layers)
    assert proof.layers[0].equal == proof.layers[1].equal == 1  # before the first kernel of 4 bits
    assert all(layer.equal == 1 for layer in unpacked.layers)


def test_counts_and_steps_are_numpy_s():
    """A dense net in a file with a code that is another, in integers."""
    inputs = keras.Input((6,))
    net = keras.Model(inputs, L.Dense(3, name="logits")(L.Dense(4, name="middle")(L.Dense(4, activation="relu", name="first")(inputs))))
    student = kerakd.quantize(net, Scheme(Interval(4), Interval(4)))
    kerakd.calibrate(student, noise(32, (6,), seed=9))
    data, images, folded = changed(kerakd.to_tflite(student), student, "middle"), noise(20, (6,)), fold(student)
    grids = list(folded.grids.values())
    tensors = flatfile.read(data).subgraphs[0].tensors
    scales = [None if tensor.quantization.scale is None else float(tensor.quantization.scale[0]) for tensor in tensors]
    indices = [scales.index(np.float32(grid.step)) for grid in grids]
    found = [np.stack(values).astype(int) - grid.zero for values, grid in zip(zip(*runtime.each(flatfile.with_outputs(data, indices), images)), grids)]
    codes = [np.clip(np.rint(images * (np.float32(1) / np.float32(grids[0].step))), grids[0].low, grids[0].high)]
    for linear, grid, read in zip(folded.linears.values(), grids[1:], found[:-1], strict=True):
        real = (read @ linear.codes + linear.bias) * linear.steps * linear.x.step
        codes.append(np.clip(np.rint(real / grid.step), grid.low, grid.high))
    proofs = layers.compare(reference.snap(student, folded), folded, data, images)
    for proof, wanted, values, index in zip(proofs, codes, found, indices, strict=True):
        apart = np.abs(values - wanted)
        assert (proof.values, proof.max_steps, proof.tensor) == (wanted.size, apart.max(), tensors[index].name.decode())
        assert proof.equal == pytest.approx(np.mean(apart == 0), abs=1e-12)
    assert 0 < proofs[2].equal < 1 and proofs[2].max_steps > 1 and proofs[3].equal == 1


def test_a_tensor_whose_grid_is_not_in_the_file_is_named_so(student, file):
    folded = fold(student)
    snapped = reference.snap(student, folded)
    folded.grids["a_relu_out"].step *= 1.01
    proofs = {proof.layer: proof for proof in layers.compare(snapped, folded, file, noise(3))}
    missing = proofs.pop("a_relu_out")
    assert missing == LayerProof("a_relu_out", "", 3 * TENSORS["a_relu_out"][1], 0.0, 0)
    assert str(missing) == "a_relu_out: no tensor of the file has its grid and size"
    assert all(proof.equal == 1 for proof in proofs.values())


def test_a_tensor_of_another_zero_point_is_not_taken(student, file):
    folded = fold(student)
    snapped = reference.snap(student, folded)
    folded.grids["pool_out"].high -= 1  # the zero point is 127 - high
    (pool,) = (proof for proof in layers.compare(snapped, folded, file, noise(3)) if proof.layer == "pool_out")
    assert pool.tensor == ""


def test_of_another_student_s_file_hardly_a_tensor_is_found(student):
    proof = verify(student, kerakd.to_tflite(made(2)), noise(4))
    assert sum(not layer.tensor for layer in proof.layers) >= len(TENSORS) - 1  # images have one range for both
    assert "no tensor of the file has its grid and size" in str(proof) and not proof.exact


def test_of_tensors_with_one_grid_the_one_of_its_size_that_agrees_is_taken():
    """Two convolutions whose outputs are on one grid, as is the largest of the first's: each is compared with its own."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 5, 2))
    x, y = (L.Conv2D(4, 3, name=name)(inputs) for name in "ab")
    outputs = L.Add(name="add")([L.MaxPooling2D(3, 1, name="pool")(x), L.Conv2D(4, 3, name="c")(y)])
    student = kerakd.quantize(keras.Model(inputs, L.Dense(2)(L.Flatten()(outputs))), SCHEME)
    kerakd.calibrate(student, noise(16, (5, 5, 2)))
    student.get_layer("b_out").quantizer_variables["interval"].assign(student.get_layer("a_out").quantizer_variables["interval"])
    proofs = {proof.layer: proof for proof in verify(student, kerakd.to_tflite(student), noise(8, (5, 5, 2))).layers}
    assert proofs["a_out"].tensor != proofs["b_out"].tensor
    assert all(proof.equal == 1 for proof in proofs.values()) and proofs["a_out"].values == proofs["b_out"].values == 8 * 3 * 3 * 4


def test_the_table_has_a_line_for_each_quantizer(student, file):
    proof = verify(student, file, noise(2))
    head, *lines = proof.table().splitlines()
    assert head == "tensors inside, 2 images"
    quantizers = [layer.name for layer in student.layers if isinstance(layer, QuantizedActivation)]
    assert lines == [f"  {name}: 100.0000% of {2 * TENSORS[name][1]} values equal, at most 0 steps apart" for name in quantizers]
    half = dataclasses.replace(proof, layers=[LayerProof("x", "t", 200, 0.995, 3)])
    assert half.table().splitlines()[1] == "  x: 99.5000% of 200 values equal, at most 3 steps apart"


def test_of_tensors_that_agree_alike_each_is_taken_once():
    file = flatfile.read(kerakd.to_tflite(made(1)))
    tensor = file.subgraphs[0].tensors[layers._computed(file)[0]]
    grid = Grid(float(tensor.quantization.scale[0]), 0, 127 - int(tensor.quantization.zeroPoint[0]))
    found = [np.array([1, 2]), np.array([1, 2]), np.array([1, 3])]
    best = [layers._best(np.array([1, 2]), grid, [tensor] * 3, found, taken) for taken in ([], [0], [0, 1])]
    assert best == [0, 1, 0]  # one that agrees less is not taken before

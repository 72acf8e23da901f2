"""Student to file: what the file holds is what was trained, what LiteRT computes is what the snapped copy computes, to the last code."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from networks import randomize

import kerakd
from kerakd import BadInput, Interval, KBit, Scheme, Ternary
from kerakd.quantizers import Sigmoid, Tanh
from kerakd.recast import recast
from kerakd.tflite import arithmetic, flatfile, reference, runtime, settle, snap, to_tflite, unpack, verify
from kerakd.tflite import fold as folding
from kerakd.tflite.grid import Grid
from kerakd.wrapper import QuantizedActivation

L = keras.layers
SHAPE = (8, 8, 1)
SCHEMES = {
    "ternary-A8": Scheme(Ternary(), Interval(8)),
    "W4A4": Scheme(Interval(4), Interval(4)),
    "W3A3 per channel": Scheme(Interval(3, per_channel=True), Interval(3)),
    "W2A2": Scheme(Interval(2), Interval(2)),
    "W8A8": Scheme(Interval(8), Interval(8)),
    "W5A6": Scheme(Interval(5), Interval(6)),
}
PACKED = ("ternary-A8", "W4A4")
# the residual net's weighted layers: the BatchNorm after each, and the quantized tensor that each reads
LAYERS = {
    "first": ("first_bn", "image_out"),
    "a": ("a_bn", "first_relu_out"),
    "b": ("b_bn", "a_relu_out"),
    "last_conv": ("last_conv_bn", "add_relu_out"),
    "logits": (None, "pool_out"),
}


def noise(count=240, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def conv(x, filters, name, relu=True, size=3, stride=1):
    x = L.Conv2D(filters, size, stride, padding="same", use_bias=False, name=name)(x)
    x = L.BatchNormalization(name=f"{name}_bn")(x)
    return L.ReLU(name=f"{name}_relu")(x) if relu else x


def residual_net():
    inputs = keras.Input(SHAPE, name="image")
    x = conv(inputs, 6, "first")
    y = conv(conv(x, 6, "a"), 6, "b", relu=False)
    x = L.ReLU(name="add_relu")(L.Add(name="add")([y, x]))
    x = L.GlobalAveragePooling2D(name="pool")(conv(x, 8, "last_conv", stride=2))
    return keras.Model(inputs, L.Dense(5, name="logits")(x))


def made_student(net, scheme, seed=0, images=lambda noise: noise):
    """images: of noise, what it is calibrated on."""
    keras.utils.set_random_seed(seed)
    student = kerakd.quantize(randomize(net(), seed), scheme)
    kerakd.calibrate(student, images(noise(64, student.input_shape[1:], seed=9)))
    return student


@dataclasses.dataclass
class Case:
    scheme: Scheme
    student: keras.Model
    file: bytes
    before: list  # the bytes of the weights, before the student was converted


def weight_bytes(model):
    return [weight.numpy().tobytes() for weight in model.weights]


def converted(scheme, container="int8"):
    student = made_student(residual_net, scheme)
    before = weight_bytes(student)
    return Case(scheme, student, to_tflite(student, container), before)


@pytest.fixture(scope="module", params=SCHEMES)
def case(request):
    return converted(SCHEMES[request.param])


def codes_apart(student, data, images):
    """The differences of the file's logits from the snapped copy's, in steps of the output's grid."""
    step = float(student.layers[-1].step_size)
    return np.rint(runtime.run(data, images) / step) - np.rint(reference.logits(snap(student), images) / step)


def assert_same_logits(student, data, images):
    assert np.ptp(runtime.run(data, images), axis=0).min() > 0  # every logit depends on the image
    np.testing.assert_array_equal(codes_apart(student, data, images), 0)


def assert_exact(student, data, images):
    proof = verify(student, data, images)
    assert proof.exact and proof.max_steps == 0, str(proof)
    return proof


def trained_codes(kernel, quantizer, interval):
    """(codes, step) by the formulas of the papers, in NumPy."""
    if isinstance(quantizer, Ternary):
        mask = np.abs(kernel) > 0.7 * np.abs(kernel).mean()
        return np.sign(kernel) * mask, np.abs(kernel)[mask].mean()
    top = 2 ** (quantizer.bits - 1) - 1
    step = interval / top
    return np.rint(np.clip(kernel / step, -top, top)), step


def test_codes_steps_and_biases_in_the_file_are_the_trained_ones_folded(case):
    model = flatfile.read(case.file)
    tensors = model.subgraphs[0].tensors
    for (op, kernel, bias), (name, (norm, source)) in zip(flatfile.weighted(model), LAYERS.items(), strict=True):
        quantizer = Interval(8) if name in ("first", "logits") else case.scheme.weights
        wrapper, grid = case.student.get_layer(name), case.student.get_layer(source)
        ((variable, _, variables),) = wrapper.kernels
        codes, step = trained_codes(variable.numpy().astype(np.float64), quantizer, variables.get("interval", np.nan) if variables else np.nan)
        gain, shift = 1.0, 0.0
        if norm:
            gamma, beta, mean, variance = case.student.get_layer(norm).get_weights()
            gain = gamma.astype(np.float64) / np.sqrt(variance + 1e-3)
            shift = beta - mean * gain
            assert (gain < 0).any() and (gain > 0).any()
        else:
            shift = wrapper.layer.bias.numpy()
        headroom = 127 // (1 if isinstance(quantizer, Ternary) else 2 ** (quantizer.bits - 1) - 1)
        assert flatfile.TYPES[kernel.type] == "INT8" and flatfile.TYPES[bias.type] == "INT32"
        np.testing.assert_array_equal(flatfile.values(model, kernel), np.moveaxis(codes * np.sign(gain) * headroom, -1, 0))
        expected = np.asarray(step * np.abs(gain) / headroom)
        np.testing.assert_allclose(kernel.quantization.scale, np.broadcast_to(expected, len(kernel.quantization.scale)), rtol=2**-16)
        assert not np.any(kernel.quantization.zeroPoint)
        x = tensors[op.inputs[0]].quantization
        high = grid.quantizer.levels()[1]
        slack = 2.1e-3 if source in ("add_relu_out", "pool_out") else 2**-16  # sums and means are moved off their ties
        np.testing.assert_allclose(x.scale, grid.quantizer_variables["interval"].numpy() / high, rtol=slack)
        assert x.zeroPoint.tolist() == [127 - high]
        unit = x.scale * kernel.quantization.scale.astype(np.float64)
        np.testing.assert_allclose(flatfile.values(model, bias) * unit, np.broadcast_to(shift, bias.shape), rtol=0, atol=0.51 * unit.max())


def test_every_logit_is_the_snapped_students(case):
    assert_same_logits(case.student, case.file, noise())


def test_no_tensor_is_float_but_the_ends_and_xnnpack_takes_it_all(case):
    counted = flatfile.census(case.file)
    assert counted["float_tensors"] == []
    assert counted["weights"] == {"INT8": 5}
    assert counted["operators"] == {"QUANTIZE": 1, "CONV_2D": 4, "ADD": 1, "MEAN": 1, "FULLY_CONNECTED": 1, "DEQUANTIZE": 1}
    assert runtime.not_delegated(case.file) == []


def test_middle_kernels_hold_at_most_the_codes_of_their_bits(case):
    top = case.scheme.weights.levels()[1]
    for kernel in flatfile.census(case.file)["kernels"][1:-1]:
        assert set(kernel["codes"]) <= {code * (127 // top) for code in range(-top, top + 1)}


def test_settling_brings_the_float_student_nearer_to_its_file_and_settles(case):
    images = noise()
    once = settle(case.student)
    twice = settle(once)
    file, step = runtime.run(case.file, images), float(case.student.layers[-1].step_size)
    before, after = (np.abs(model.predict(images, verbose=0) - file).mean() / step for model in (case.student, once))
    assert after < before
    assert after < 0.02  # what float32's own noise leaves
    for a, b in zip(once.weights, twice.weights, strict=True):
        np.testing.assert_allclose(b.numpy(), a.numpy(), rtol=2e-6, atol=1e-6, err_msg=a.name)
    first, second = folding.fold(case.student), folding.fold(once)
    for name, linear in first.linears.items():
        np.testing.assert_array_equal(second.linears[name].codes, linear.codes)
        np.testing.assert_allclose(second.linears[name].steps, linear.steps, rtol=2**-16)
    for name, grid in first.grids.items():
        assert second.grids[name] == grid


def test_settling_gives_a_layer_without_batchnorm_the_files_bias(small):
    student = small[0]
    settled, linears = settle(student), folding.fold(student).linears
    for name in ("first", "middle", "logits"):
        np.testing.assert_array_equal(settled.get_layer(name).layer.bias.numpy(), (linears[name].bias * linears[name].unit).astype(np.float32))
        assert (settled.get_layer(name).layer.bias.numpy() != student.get_layer(name).layer.bias.numpy()).any()


def test_the_callers_model_is_untouched(case):
    assert weight_bytes(case.student) == case.before  # by to_tflite
    layers = [layer.get_config() for layer in case.student.layers]
    snapped, settled = snap(case.student), settle(case.student)
    verify(case.student, case.file, noise(4))
    assert weight_bytes(case.student) == case.before
    for copy in (snapped, settled):  # nothing is shared with the copies
        copy.set_weights([weight * 0 for weight in copy.get_weights()])
    assert weight_bytes(case.student) == case.before
    assert [layer.get_config() for layer in case.student.layers] == layers


def test_the_proof_of_the_right_file_is_exact(case):
    proof = assert_exact(case.student, case.file, noise(60))
    assert (proof.container, proof.images, proof.logits, proof.dead_channels, proof.not_delegated) == ("int8", 60, 300, 0, [])
    assert str(proof).startswith("int8 container   300 of 300 logits of 60 images equal (100.00%), at most 0 steps apart, top-1 equal on 100.00%\n")
    assert (proof.emulated_equal, proof.layer_images, len(proof.layers)) == (1.0, 32, 8) and all(layer.equal == 1 for layer in proof.layers)


@pytest.fixture(scope="module", params=PACKED)
def packed(request):
    return converted(SCHEMES[request.param], "int4")


def test_the_small_container_stores_the_middle_in_4_bits(packed):
    counted = flatfile.census(packed.file)
    assert [kernel["type"] for kernel in counted["kernels"]] == ["INT8", "INT4", "INT4", "INT4", "INT8"]
    top = packed.scheme.weights.levels()[1]
    for kernel in counted["kernels"][1:-1]:
        assert set(kernel["codes"]) <= {code * (7 // top) for code in range(-top, top + 1)}
    assert counted["float_tensors"] == []


def test_the_unpacked_small_container_is_exact(packed):
    proof = assert_exact(packed.student, unpack(packed.file), noise())
    assert (proof.container, proof.not_delegated) == ("int8", [])


def test_the_small_container_holds_every_code(packed):
    proof = verify(packed.student, packed.file, noise(20))
    assert (proof.container, proof.codes_equal, proof.float_tensors) == ("int4", 1.0, [])


@pytest.mark.parametrize("bits", [2, 3])
def test_sums_wider_than_what_kernels_read_are_exact_and_survive_a_file(bits, tmp_path):
    student = made_student(residual_net, Scheme(Interval(bits), Interval(bits), sums=8))
    assert student.get_layer("first_relu_narrow") and assert_exact(student, to_tflite(student), noise())
    student.save(tmp_path / "student.keras")
    with kerakd.quantize_scope():
        again = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(again(noise(8)), student(noise(8)))


def test_a_projection_shortcut_is_exact():
    student = made_student(lambda: kerakd.models.build("resnet8", SHAPE, 10, 0.25), SCHEMES["W4A4"])
    assert_exact(student, to_tflite(student), noise())


# Other nets


def plain_net():
    inputs = keras.Input(SHAPE)
    x = L.Conv2D(4, 3, activation="relu", name="first")(inputs)
    x = L.ReLU(name="relu")(L.Conv2D(5, 3, name="middle")(x))
    return keras.Model(inputs, L.Dense(3, name="logits")(L.Flatten()(x)))


def depthwise_net():
    inputs = keras.Input(SHAPE)
    x = conv(inputs, 4, "first")
    for n, multiplier in enumerate((1, 2)):
        x = L.DepthwiseConv2D(3, depth_multiplier=multiplier, padding="same", use_bias=bool(n), name=f"middle{n}")(x)
        x = L.ReLU()(L.BatchNormalization()(x))
    return keras.Model(inputs, L.Dense(3, name="logits")(L.Flatten()(x)))


def dense_net():
    inputs = keras.Input(SHAPE)
    x = L.Dense(12, activation="relu", name="first")(L.Flatten()(inputs))
    x = L.ReLU()(L.BatchNormalization()(L.Dense(8, name="middle")(x)))
    return keras.Model(inputs, L.Dense(3, name="logits")(x))


def padded_net():
    inputs = keras.Input(SHAPE)
    x = conv(inputs, 4, "first", stride=2)
    x = L.Conv2D(5, 3, 2, padding="valid", name="middle")(L.ZeroPadding2D(((1, 0), (0, 1)))(x))
    x = L.ReLU()(L.BatchNormalization()(x))
    return keras.Model(inputs, L.Dense(3, name="logits")(L.Flatten()(x)))


def pooled_net():
    inputs = keras.Input(SHAPE)
    x = L.MaxPooling2D(2)(conv(inputs, 4, "first"))
    x = L.MaxPooling2D(3, 1, padding="same")(conv(x, 4, "middle"))
    return keras.Model(inputs, L.Dense(3, name="logits")(L.Flatten()(x)))


def averaged_net():
    """One pooling layer, called twice."""
    inputs, pool = keras.Input(SHAPE), L.AveragePooling2D(2, name="pool")
    x = pool(conv(pool(conv(inputs, 4, "first")), 4, "middle"))
    return keras.Model(inputs, L.Dense(3, name="logits")(L.Flatten()(x)))


PER_CHANNEL = Interval(3, per_channel=True)


@pytest.mark.parametrize(
    "net, weights",
    [
        (plain_net, PER_CHANNEL),
        (depthwise_net, PER_CHANNEL),
        (depthwise_net, Ternary()),
        (dense_net, PER_CHANNEL),
        (dense_net, Ternary()),
        (padded_net, Ternary()),
        (pooled_net, Interval(5)),
        (averaged_net, Interval(5)),
    ],
)
def test_each_kind_of_layer_is_exact(net, weights):
    student = made_student(net, Scheme(weights, Interval(4)))
    data = to_tflite(student)
    assert assert_exact(student, data, noise(200)).not_delegated == []
    assert_same_logits(student, data, noise(200))


def test_the_file_answers_the_same_by_any_type_of_input_and_output(small):
    student, float_file = small
    images, logits = noise(60), {}
    for io, dtype in (("float32", np.float32), ("int8", np.int8), ("uint8", np.uint8)):
        data = float_file if io == "float32" else to_tflite(student, io=io)
        made = runtime.interpreter(data)
        assert made.get_input_details()[0]["dtype"] == made.get_output_details()[0]["dtype"] == dtype
        logits[io] = runtime.run(data, images)
    np.testing.assert_array_equal(logits["int8"], logits["float32"])
    np.testing.assert_array_equal(logits["uint8"], logits["float32"])


# What the converter gets wrong, or refuses, unless the folding minds it


def gamma_zero(student):
    student.get_layer("middle_bn").gamma.assign([1.0, 0.0, -1.0, 0.5])


def gamma_tiny(student):
    student.get_layer("middle_bn").gamma.assign([1.0, 1e-7, -1.0, 0.5])


def gamma_zero_without_bias(student):
    gamma_zero(student)
    student.get_layer("middle_bn").beta.assign(np.zeros(4))
    student.get_layer("middle_bn").moving_mean.assign(np.zeros(4))


def bias_beyond_its_grid(student):
    student.get_layer("middle_bn").gamma.assign([1.0, 1e-3, -1.0, 0.5])
    student.get_layer("middle_bn").beta.assign([0.1, 1e4, -0.1, 0.0])


@pytest.mark.parametrize("spoil", [gamma_zero, gamma_tiny, gamma_zero_without_bias, bias_beyond_its_grid])
def test_a_channel_beyond_integers_becomes_its_constant(spoil):
    student = made_student(pooled_net, SCHEMES["W3A3 per channel"])
    spoil(student)
    data = to_tflite(student)
    proof = assert_exact(student, data, noise(100))
    assert (proof.dead_channels, proof.not_delegated) == (1, [])
    linear = folding.fold(student).linears["middle"]
    assert linear.dead == [1] and not linear.codes[..., 1].any() and linear.codes[..., 0].any()
    gamma, beta, mean, variance = student.get_layer("middle_bn").get_weights()
    constant = (beta - mean * gamma / np.sqrt(variance + 1e-3))[1]  # 1e4 is beyond the clip of its quantizer: any large bias is the same
    assert linear.bias[1] * linear.unit[1] == pytest.approx(constant, rel=1e-4, abs=linear.y.step / 100)
    assert settle(student).get_layer("middle_bn").gamma.numpy()[1] == 0


@pytest.mark.parametrize("weights", [Interval(3, per_channel=True), Ternary()], ids=["per channel", "per tensor"])
def test_biases_that_are_all_the_same_arrive(weights):
    student = made_student(plain_net, Scheme(weights, Interval(4)))
    student.get_layer("middle").layer.bias.assign(np.full(5, 0.25))
    linear = folding.fold(student).linears["middle"]
    np.testing.assert_allclose(linear.bias * linear.steps * linear.x.step, 0.25, atol=1.6 * (linear.steps * linear.x.step).max())
    assert_exact(student, to_tflite(student), noise(100))


def test_a_bias_before_batchnorm_is_folded_with_it():
    student = made_student(dense_net, Scheme(PER_CHANNEL, Interval(4)))
    linear, own = folding.fold(student).linears["middle"], student.get_layer("middle").layer.bias.numpy()
    (norm,) = (layer for layer in student.layers if isinstance(layer, L.BatchNormalization))
    gamma, beta, mean, variance = norm.get_weights()
    unit = linear.x.step * linear.steps
    np.testing.assert_allclose(linear.bias * unit, (own - mean) * gamma / np.sqrt(variance + 1e-3) + beta, rtol=0, atol=0.51 * unit.max())
    assert np.abs(own).min() > unit.max()


def test_a_snapped_kernel_is_the_runtimes_multiplier_to_the_bit():
    """One accumulator unit, in output codes, is XNNPACK's float32 product, not the real quotient of the three steps."""
    student = made_student(plain_net, SCHEMES["W3A3 per channel"])
    folded = folding.fold(student)
    kernel, bias = snap(student, folded).get_layer("middle").get_weights()
    linear = folded.linears["middle"]
    multiplier = arithmetic.multiplier(linear.x.step, linear.steps, linear.y.step).astype(np.float64)
    to_codes = np.float64(np.float32(1) / np.float32(linear.y.step))  # what the snapped copy's quantizer multiplies by
    np.testing.assert_allclose(kernel * linear.x.step * to_codes, linear.codes * multiplier, rtol=1e-14)
    np.testing.assert_allclose(bias * to_codes, linear.bias * multiplier, rtol=1e-14)
    assert np.abs(multiplier / (linear.x.step * linear.steps / linear.y.step) - 1).max() > 1e-9  # the two are not the same


def test_biases_of_the_same_number_of_units_on_different_grids_arrive():
    student = made_student(plain_net, Scheme(Interval(3, per_channel=True), Interval(4)))
    linear = folding.fold(student).linears["middle"]
    student.get_layer("middle").layer.bias.assign(500 * linear.steps * linear.x.step)
    assert folding.fold(student).linears["middle"].bias.tolist() == [501, 500, 500, 500, 500]
    assert_exact(student, to_tflite(student), noise(100))


# Ties


def tied_student():
    """An addition whose every odd sum, and a mean of which some sums, lie half-way between two codes."""
    inputs = keras.Input((4, 4, 2))
    x = L.Add(name="add")([L.Conv2D(3, 1, name="a")(inputs), L.Conv2D(3, 1, name="b")(inputs)])
    x = L.GlobalAveragePooling2D(name="pool")(L.ReLU(name="relu")(x))
    net = keras.Model(inputs, L.Dense(3)(x))
    student = kerakd.quantize(net, Scheme(Interval(4), Interval(4)))
    kerakd.calibrate(student, noise(20, (4, 4, 2)))
    for name, step in {"a_out": 2**-6, "b_out": 2**-6, "relu_out": 2**-5, "pool_out": 2**-5 * 5 / 8}.items():
        layer = student.get_layer(name)
        layer.quantizer_variables["interval"].assign(step * layer.quantizer.levels()[1])
    return student


def wrong_sums(folded):
    """How many pairs of operand codes the runtime adds otherwise than a float64 model rounds."""
    a, b, y = (folded.grids[name] for name in ("a_out", "b_out", "relu_out"))
    codes = np.arange(-128, 128)
    file = arithmetic.add_xnnpack(codes[:, None], codes, a.quantization, b.quantization, y.quantization, y.zero, 127)
    real = (codes[:, None] * a.step + codes * b.step) * np.float64(np.float32(1) / np.float32(y.step))
    return np.count_nonzero(file != np.clip(np.rint(real.astype(np.float32)), 0, y.high) + y.zero)


def wrong_means(folded):
    x, y = folded.grids["relu_out"], folded.grids["pool_out"]
    totals = np.arange(16 * x.high + 1)
    file = arithmetic.mean_xnnpack(totals + 16 * x.zero, 16, x.quantization, y.quantization)
    real = totals * x.step / 16 * np.float64(np.float32(1) / np.float32(y.step))
    return np.count_nonzero(file != np.clip(np.rint(real.astype(np.float32)), 0, y.high) + y.zero)


@pytest.mark.parametrize("wrong", [wrong_sums, wrong_means])
def test_the_output_step_is_moved_off_the_ties(wrong, monkeypatch):
    student = tied_student()
    moved = folding.fold(student)
    assert wrong(moved) == 0
    for name in ("relu_out", "pool_out"):
        assert moved.grids[name].step == pytest.approx(float(student.get_layer(name).step_size), rel=2.1e-3)
    monkeypatch.setattr(folding, "avoid_ties", lambda *args: None)
    assert wrong(folding.fold(student)) > 0


# The proof against files of another network


def flipped(data, layer=1):
    """The file with one weight code of its second layer changed by one."""
    model = flatfile.read(data)
    kernel = list(flatfile.weighted(model))[layer][1]
    raw = np.array(model.buffers[kernel.buffer].data, np.uint8)
    raw[0] ^= 1
    model.buffers[kernel.buffer].data = raw
    return flatfile.write(model)


@pytest.mark.parametrize("moves", [0, 1, 2, 99])
def test_steps_that_move_have_every_search_made_again(monkeypatch, moves):
    """As an operand's may that others read already; four times at most."""
    student, searched = made_student(residual_net, SCHEMES["W8A8"]), []
    count = sum(isinstance(layer, QuantizedActivation) for layer in student.layers)

    def search(made, grid, grids):
        searched.append(grid)
        if len(searched) in (count * (k + 1) for k in range(moves)):  # the last one of a pass moves the first one's
            searched[0].step *= 1 + 2.0**-12

    monkeypatch.setattr(folding, "avoid_ties", search)
    folding.fold(student)
    assert len(searched) == count * min(moves + 1, 4) and len(set(map(id, searched))) == count


@pytest.mark.parametrize("between", [[], [L.MaxPooling2D(2), L.Dropout(0.1)]], ids=["at once", "past layers that pass on"])
def test_a_sums_step_is_bound_by_its_own_ties_whatever_sigmoid_reads_it(between, monkeypatch):
    inputs = keras.Input(SHAPE)
    y = L.Add()([L.Conv2D(3, 3)(inputs), L.Conv2D(3, 3)(inputs)])
    for layer in between:
        y = layer(y)
    net = keras.Model(inputs, L.Dense(3)(L.Flatten()(L.Activation("sigmoid")(y))))
    student, searched = made_student(lambda: net, SCHEMES["W8A8"]), []
    monkeypatch.setattr(arithmetic, "sigmoid_xnnpack", lambda *args: searched.append(args))
    folding.fold(student)
    assert not searched


@pytest.fixture(scope="module")
def small():
    student = made_student(plain_net, SCHEMES["W4A4"])
    return student, to_tflite(student)


def test_the_proof_sees_one_changed_code(small):
    student, data = small
    count = sum(linear.codes.size for linear in folding.fold(student).linears.values())
    proof = verify(student, flipped(data), noise(10))
    assert proof.codes_equal == pytest.approx(1 - 1 / count, abs=1e-9) and proof.codes_equal < 1 and not proof.exact


def test_the_proof_says_how_far_rounding_moved_and_what_the_emulation_misses(small, monkeypatch):
    (student, data), images, real = small, noise(40), reference.logits
    ours, snapped = -real(student, images), real(snap(student), images)
    monkeypatch.setattr(reference, "logits", lambda model, images: (-1 if model is student else 1) * real(model, images))
    monkeypatch.setattr("kerakd.tflite.proof.emulate", lambda data, images: runtime.run(data, images) + (np.arange(len(images)) < 10)[:, None])
    proof = verify(student, data, images)
    step = folding.fold(student).grids[student.output_names[0]].step
    assert proof.moved_steps == pytest.approx(np.abs(ours - snapped).max() / step, rel=1e-6) and proof.moved_steps > 1
    assert (proof.moved_top1, proof.emulated_equal) == (np.mean(ours.argmax(-1) == snapped.argmax(-1)), 0.75)
    assert proof.moved_top1 < 1


def test_the_proof_sees_the_file_of_another_student(small):
    proof = verify(made_student(plain_net, SCHEMES["W4A4"], seed=1), small[1], noise(40))
    assert proof.codes_equal < 0.9 and proof.logits_equal < 0.9 and proof.max_steps > 0 and not proof.exact


# Refusals


def uncalibrated():
    return kerakd.quantize(plain_net(), SCHEMES["W4A4"])


def with_nan():
    student = made_student(plain_net, SCHEMES["W4A4"])
    student.get_layer("middle").layer.bias.assign([1, 2, np.nan, 4, 5])
    return student


def called_twice():
    inputs = keras.Input(SHAPE)
    x, twice = conv(inputs, 4, "first"), L.Conv2D(4, 3, padding="same", activation="relu", name="twice")
    student = kerakd.quantize(keras.Model(inputs, L.Dense(3)(L.Flatten()(twice(twice(x))))), SCHEMES["W4A4"])
    kerakd.calibrate(student, noise(8))
    return student


def float_activations():
    student = kerakd.quantize(plain_net(), Scheme(KBit(4), None))
    kerakd.calibrate(student, noise(8))
    return student


@pytest.mark.parametrize(
    "make, words",
    [
        (uncalibrated, r"received none for .*first_relu_out, relu_out.*call kerakd\.calibrate"),
        (with_nan, "NaN or infinity in .*bias"),
        (plain_net, r"no quantized kernel; make a student of it by kerakd\.quantize"),
        (called_twice, "received twice: called 2 times, which has 2 steps in a file; give each call a layer of its own"),
        (float_activations, "received first: a float input and output; give the scheme activations"),
        (lambda: "model.keras", "expected a tf_keras model, received str"),
    ],
)
def test_a_model_that_cannot_be_integers_is_refused(make, words):
    model = make()
    for use in (to_tflite, snap, settle):
        with pytest.raises(BadInput, match=words):
            use(model)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"container": "int2"}, "container: expected one of int8, int4, received 'int2'"),
        ({"io": "float16"}, "io: expected one of float32, int8, uint8, received 'float16'"),
    ],
)
def test_an_unknown_option_is_refused(small, options, words):
    with pytest.raises(BadInput, match=words):
        to_tflite(small[0], **options)


@pytest.mark.parametrize("words, cut", [("end too early or are damaged", lambda d: d[: len(d) // 2]), ("without its mark TFL3", lambda d: b"?" * 99)])
def test_the_proof_refuses_what_is_not_a_whole_file(small, words, cut):
    with pytest.raises(BadInput, match=words):
        verify(small[0], cut(small[1]), noise(2))


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 8, 8, 3), (2, 4, 4, 1), (0, 8, 8, 1)])
def test_the_proof_refuses_images_of_another_shape(small, shape):
    with pytest.raises(BadInput, match=r"images: expected at least one of shape \(8, 8, 1\), as the file takes them, received an array of shape"):
        verify(*small, np.zeros(shape, np.float32))


def test_the_runtime_refuses_images_of_another_shape(small):
    with pytest.raises(BadInput, match=r"images: expected .*\(8, 8, 1\), as the file takes them, received .*\(2, 4, 4, 1\)"):
        runtime.run(small[1], np.zeros((2, 4, 4, 1), np.float32))


def test_snapped_copies_compute_in_float64(small):
    assert snap(small[0])(tf.zeros((1, *SHAPE), tf.float64)).dtype == tf.float64


def branched(scheme, *, kernel, gamma):
    """A student of two convolutions with BatchNorm, the second on a branch that is added to the first."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input(SHAPE)
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, padding="same")(inputs)))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, padding="same", kernel_initializer=kernel)(x)))
    y = L.BatchNormalization(gamma_initializer=gamma)(L.Conv2D(4, 3, padding="same", use_bias=False, kernel_initializer=kernel)(x))
    student = kerakd.quantize(keras.Model(inputs, L.Dense(3)(L.Flatten()(L.ReLU()(L.Add()([x, y]))))), scheme)
    kerakd.calibrate(student, noise(64, seed=9))
    return student


@pytest.mark.parametrize("gamma", [0.0, 1e-6, 1e-4])
def test_a_residual_branch_that_says_nothing_yet_is_exact(gamma):
    """Gammas that begin at zero are usual in residual nets; such a branch has next to no range."""
    student = branched(Scheme(Interval(4), Interval(4)), kernel="he_normal", gamma=keras.initializers.Constant(gamma))
    assert_exact(student, to_tflite(student), noise())


def test_kernels_that_share_a_constant_in_the_file_are_packed_both():
    same = keras.initializers.Constant(np.random.default_rng(5).normal(size=(3, 3, 4, 4)))
    student = branched(Scheme(Ternary(), Interval(4)), kernel=same, gamma=keras.initializers.Constant(0.7))
    small = to_tflite(student, "int4")
    assert flatfile.census(small)["weights"] == {"INT8": 2, "INT4": 2}
    assert_exact(student, unpack(small), noise())


def rows_of_images():
    net = keras.Sequential([keras.Input((2, 8, 2)), L.Conv1D(3, 3), L.Flatten(), L.Dense(2)])
    student = kerakd.quantize(net, Scheme(Interval(4), Interval(4)))
    kerakd.calibrate(student, noise(8, (2, 8, 2)))
    return student


def two_headed():
    inputs = keras.Input((4,))
    student = kerakd.quantize(keras.Model(inputs, [L.Dense(2)(inputs), L.Dense(3)(inputs)]), Scheme(Interval(4), Interval(4)))
    kerakd.calibrate(student, noise(8, (4,)))
    return student


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (rows_of_images, "received conv1d.*: a Conv1D of images, or with its channels first, which is refused; make it a Conv2D with a kernel of .1, length"),
        (two_headed, "1 inputs and 2 outputs, where a file has one of each; export a model for each"),
    ],
)
def test_what_has_no_exact_file_is_refused_with_a_remedy(make, words):
    with pytest.raises(BadInput, match=words):
        to_tflite(make())


def test_layers_outside_the_exact_ones_are_named(capsys):
    net = keras.Sequential([keras.Input(SHAPE), L.Conv2D(3, 3), L.LeakyReLU(name="leaks"), L.Flatten(), L.Dense(2)])
    kerakd.quantize(net, Scheme(Interval(4), Interval(4)))
    assert "as exact there: leaks" in capsys.readouterr().err
    kerakd.quantize(residual_net(), Scheme(Interval(4), Interval(4)))
    assert capsys.readouterr().err == ""


def test_integer_inputs_are_refused():
    net = keras.Sequential([keras.Input((4,), dtype="uint8"), L.Rescaling(1 / 255), L.Dense(2)])
    with pytest.raises(BadInput, match="expected float inputs, received uint8"):
        kerakd.quantize(net, Scheme(Interval(4), Interval(4)))


# Activations, gates, rescalings and rows, which are rewritten before they are quantized


def headed(body, shape=SHAPE):
    """A net maker: `body` between a first convolution (a dense layer for vectors) and the logits."""

    def make():
        inputs = keras.Input(shape)
        x = conv(inputs, 4, "first") if len(shape) == 3 else L.Dense(8, activation="relu", name="first")(inputs)
        return keras.Model(inputs, L.Dense(3, name="logits")(L.Flatten()(body(x))))

    return make


def hard_swish(x):
    return x * (tf.nn.relu6(x + 3.0) * (1 / 6.0))


def squeeze_excite(gate):
    def body(x):
        pooled = L.GlobalAveragePooling2D(keepdims=True)(x)
        weight = L.Conv2D(4, 1, activation=gate, name="gate")(L.Conv2D(3, 1, activation="relu", name="squeeze")(pooled))
        return conv(L.Multiply(name="excite")([x, weight]), 3, "last", stride=2)

    return body


def from_pixels():
    inputs = keras.Input(SHAPE)
    x = conv(L.Rescaling(1 / 127.5, -1.0, name="scaled")(inputs), 4, "first")
    return keras.Model(inputs, L.Dense(3, name="logits")(L.Flatten()(conv(x, 4, "middle", stride=2))))


def rows_net():
    inputs = keras.Input((12, 2))
    x = L.ReLU()(L.BatchNormalization()(L.Conv1D(4, 3, use_bias=False, name="first")(inputs)))
    x = L.ReLU()(L.BatchNormalization()(L.Conv1D(5, 3, 2, padding="same", name="middle")(x)))
    x = L.Conv1D(4, 2, activation="relu", name="last")(x)
    return keras.Model(inputs, L.Dense(3, name="logits")(L.Flatten()(x)))


def beside_its_input(make):
    """A net that concatenates its image, or what `make` makes of it, and features of a wider range."""

    def net():
        inputs = keras.Input(SHAPE)
        other = make(inputs)
        features = L.Conv2D(3, 3, strides=SHAPE[0] // other.shape[1], padding="same", name="features")(inputs)
        joined = L.Concatenate(name="joined")([other, features * 3.0])
        return keras.Model(inputs, L.Dense(3, name="logits")(L.Flatten()(L.Conv2D(4, 3, activation="relu", name="middle")(joined))))

    return net


def dense_norm(x):
    return L.ReLU()(L.BatchNormalization()(L.Dense(8, name="middle")(x)))


def shuffled(x):
    """Half of the channels through a convolution, then the halves in turns."""
    left, right = tf.split(x, 2, axis=-1)
    x = L.Concatenate()([left, conv(right, 2, "middle")])
    sides = x.shape[1:3]
    return tf.reshape(tf.transpose(tf.reshape(x, [-1, *sides, 2, 2]), [0, 1, 2, 4, 3]), [-1, *sides, 4])


def by_operators(x):
    x = tf.clip_by_value(L.Conv2D(4, 3, name="middle")(tf.pad(x, [[0, 0], [0, 1], [0, 1], [0, 0]])), 0.0, 6.0)
    return tf.nn.bias_add(tf.maximum(L.Conv2D(4, 3, 2, name="last")(x), 0.0), np.float32([1, -1, 0.5, 2]))


REWRITTEN = {
    "channels in turns": headed(shuffled),
    "a part of the image": headed(lambda x: conv(x[:, 1:-1, 2:], 4, "middle")),
    "space to depth and back": headed(lambda x: tf.nn.depth_to_space(conv(tf.nn.space_to_depth(x, 2), 16, "middle"), 2)),
    "squeezed": headed(lambda x: tf.squeeze(L.GlobalAveragePooling2D(keepdims=True)(x), [1, 2])),
    "operators": headed(by_operators),
    "half of a split": headed(lambda x: conv(tf.split(x, 2, axis=-1)[0], 4, "middle")),
    "one token": headed(lambda x: L.Dense(8, activation="relu", name="middle")(L.Reshape((64, 4))(x)[:, 0])),
    "mean of tokens": headed(lambda x: tf.reduce_mean(L.Dense(8, activation="relu", name="middle")(L.Reshape((64, 4))(x)), 1)),
    "swish": headed(lambda x: L.Conv2D(4, 3, activation="swish", name="middle")(x)),
    "hard swish": headed(lambda x: hard_swish(L.Conv2D(4, 3, name="middle")(x))),
    "sigmoid gate": headed(squeeze_excite("sigmoid")),
    "hard sigmoid gate": headed(squeeze_excite("hard_sigmoid")),
    "pixels": from_pixels,
    "Conv1D": rows_net,
    "scaled addition": headed(lambda x: (lambda y: y + y * 0.5)(L.Conv2D(4, 3, name="middle")(x))),
    "Dense and BatchNorm": headed(dense_norm, (6,)),
    "Dense and Rescaling": headed(lambda x: L.Rescaling([0.5, -2.0] * 4, 0.1)(L.Dense(8, name="middle")(x)), (6,)),
    "image and features": beside_its_input(lambda image: image),
    "pooled image and features": beside_its_input(lambda image: L.ZeroPadding2D()(L.Cropping2D(1)(L.MaxPooling2D(2)(image)))),
    "image twice": beside_its_input(lambda image: tf.concat([image, image], -1)),
    "Dense and hard swish": headed(lambda x: hard_swish(L.Dense(8, name="middle")(x)), (6,)),
}


@pytest.mark.parametrize("scheme", PACKED)
@pytest.mark.parametrize("name", REWRITTEN)
def test_a_rewritten_net_is_exact(name, scheme):
    seen = (lambda noise: np.clip(127.5 + 60 * noise, 0, 255)) if name == "pixels" else lambda noise: noise
    student = made_student(REWRITTEN[name], SCHEMES[scheme], images=seen)
    images = seen(noise(100, student.input_shape[1:]))
    if name == "pixels":
        assert next(layer for layer in student.layers if isinstance(layer, QuantizedActivation)).quantizer.levels() == (0, 255)
    data = to_tflite(student)
    proof = assert_exact(student, data, images)
    assert set(proof.not_delegated) <= ({"STRIDED_SLICE"} if name == "one token" else set()) and proof.emulated_equal == 1
    assert np.ptp(runtime.run(data, images), axis=0).min() > 0


def test_an_offset_that_is_one_value_on_channels_of_different_steps_arrives():
    """400 units of the coarse channels are 1600 of the fine ones, to the bit."""
    body = headed(lambda x: L.Rescaling([0.5, -2.0] * 2, 400 * 2 / 127 / 64, name="scaled")(L.Conv2D(4, 3, name="middle")(x)))
    student = made_student(body, SCHEMES["W4A4"])
    student.get_layer("middle_out").quantizer_variables["interval"].assign(127 / 64)
    linear = folding.fold(student).linears["scaled"]
    assert linear.bias[1:].tolist() == [400, 1600, 400] and (linear.steps[1] / linear.steps[0]) == 4
    assert_exact(student, to_tflite(student), noise(100))


# What stays float


ON_GIVEN_GRIDS = {
    "softmax": (Sigmoid(), lambda x: L.Softmax(name="given")(x)),
    "softmax as an activation": (Sigmoid(), lambda x: L.Activation("softmax", name="given")(x)),
    "tf.nn.softmax": (Sigmoid(), lambda x: tf.nn.softmax(x, name="given")),
    "tanh": (Tanh(), lambda x: L.Activation("tanh", name="given")(x)),
    "tf.tanh": (Tanh(), lambda x: tf.tanh(x, name="given")),
    "length 1": (Tanh(), lambda x: L.UnitNormalization(name="given")(x)),
    "l2_normalize": (Tanh(), lambda x: tf.math.l2_normalize(x, -1, name="given")),
}


@pytest.mark.parametrize("name", ON_GIVEN_GRIDS)
def test_beside_others_in_a_concatenation_it_shares_their_grid(name):
    _, answer = ON_GIVEN_GRIDS[name]
    body = headed(lambda x: conv(L.Concatenate()([answer(L.Conv2D(4, 3, name="middle")(x)), L.Conv2D(4, 3, name="beside")(x)]), 4, "last"))
    student = made_student(body, SCHEMES["W4A4"])
    assert not [layer for layer in student.layers if isinstance(layer, QuantizedActivation) and layer.quantizer in (Sigmoid(), Tanh())]
    assert verify(student, to_tflite(student), noise(50)).top1_equal > 0.8


@pytest.mark.parametrize("name", ON_GIVEN_GRIDS)
def test_what_files_answer_on_a_grid_of_their_own_is_trained_on_it(name):
    quantizer, answer = ON_GIVEN_GRIDS[name]
    body = headed(lambda x: conv(answer(L.Conv2D(4, 3, name="middle")(x)), 4, "last"))
    student = made_student(body, SCHEMES["W4A4"])
    (found,) = [layer.quantizer for layer in student.layers if isinstance(layer, QuantizedActivation) and layer.quantizer in (Sigmoid(), Tanh())]
    assert found == quantizer
    proof = verify(student, to_tflite(student), noise(100))
    least = 0.99 if name in ("length 1", "l2_normalize") else 1  # of a root in other arithmetic a value may fall on the other side of a tie
    assert all(layer.equal >= least and layer.max_steps <= 1 for layer in proof.layers) and proof.float_tensors
    assert proof.logits_equal >= least


def drawn():
    """Arguments of a normalization whose gamma and beta say something."""
    return {"gamma_initializer": keras.initializers.RandomUniform(0.5, 2, seed=1), "beta_initializer": keras.initializers.RandomNormal(0, 0.5, seed=2)}


FLOATING = {
    "LayerNormalization": headed(lambda x: conv(L.LayerNormalization(name="float_one", **drawn())(x), 4, "last", stride=2)),
    "GroupNormalization": headed(lambda x: conv(L.GroupNormalization(2, name="float_one", **drawn())(x), 4, "last", stride=2)),
}


def means_of_codes(data):
    """The MEAN operators of the file that read integers."""
    model = flatfile.read(data)
    operators, tensors = model.subgraphs[0].operators, model.subgraphs[0].tensors
    return [op for op in operators if flatfile.op_name(model, op) == "MEAN" and flatfile.TYPES[tensors[op.inputs[0]].type] != "FLOAT32"]


@pytest.mark.parametrize("scheme", PACKED)
@pytest.mark.parametrize("name", FLOATING)
def test_a_normalization_stays_float_and_all_but_a_few_logits_are_the_snapped_students(name, scheme, capsys):
    student = made_student(FLOATING[name], SCHEMES[scheme])
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("kerakd:"))
    assert line.endswith("as exact there: float_one")
    data = to_tflite(student)
    counted = flatfile.census(data)
    assert {"RSQRT"} <= counted["operators"].keys() and counted["float_tensors"] and not means_of_codes(data)
    assert counted["weights"] == {"INT8": 3}
    apart = np.abs(codes_apart(student, data, noise()))
    assert np.mean(apart == 0) >= 0.98 and apart.max() <= 1


@pytest.mark.parametrize("interval", [0.0, -1.0])
def test_an_interval_that_collapsed_is_refused(interval):
    student = made_student(plain_net, SCHEMES["W4A4"])
    student.get_layer("relu_out").quantizer_variables["interval"].assign(interval)
    with pytest.raises(BadInput, match=f"received {interval:.2g} in 'relu_out'; the training diverged"):
        to_tflite(student)


@pytest.mark.parametrize("interval", [1e-4, 4e-6])
def test_an_output_of_less_than_a_unit_of_its_accumulator_is_exact(interval):
    student = made_student(plain_net, SCHEMES["W8A8"])
    student.get_layer("relu_out").quantizer_variables["interval"].assign(interval)
    data = to_tflite(student)
    assert_exact(student, data, noise())
    folded, settled = folding.fold(student).linears["middle"], folding.fold(settle(student)).linears["middle"]
    loud = folded.excess > 1
    assert loud.any() == (interval == 4e-6) and (folded.unit[loud] >= 255 * folded.y.step).all()
    ((kernel, quantizer, variables),) = student.get_layer("middle").kernels
    step = folded.x.step * quantizer.step(tf.convert_to_tensor(kernel), variables).numpy()
    np.testing.assert_allclose(folded.bias, np.rint(student.get_layer("middle").layer.bias / step), atol=1)  # in units of the trained step
    np.testing.assert_array_equal(folded.bias, settled.bias)
    np.testing.assert_array_equal(folded.steps, settled.steps)


def test_calibration_makes_no_interval_that_a_file_cannot_have():
    net = keras.Sequential([keras.Input((4,)), L.Dense(3, "relu", kernel_initializer="ones", name="small"), L.Dense(3)])
    student = kerakd.quantize(net, SCHEMES["W8A8"])
    kerakd.calibrate(student, 1e-7 * np.ones((4, 4), np.float32))
    assert float(student.get_layer("small_relu_out").quantizer_variables["interval"]) == pytest.approx(2e-6)
    to_tflite(student)


def test_biases_of_kernels_of_4_bits_stay_within_what_xnnpack_adds():
    inputs = keras.Input(SHAPE)
    x = L.BatchNormalization(name="bn")(L.Conv2D(8, 1, name="few")(L.Conv2D(8, 3, activation="relu")(inputs)))
    student = made_student(lambda: keras.Model(inputs, L.Dense(5)(L.Flatten()(L.Conv2D(6, 3)(L.ReLU()(x))))), Scheme(Interval(4), Interval(8)))
    norm = student.get_layer("bn")
    norm.gamma.assign([1, -1, 1, 1, 2, 5, 1, 1e-9])
    norm.beta.assign([0] * 7 + [-1e5])
    data = to_tflite(student, "int4")
    proof = verify(student, data, noise())
    assert proof.emulated_equal == 1.0 and not set(proof.not_delegated) - {"CONV_2D"}, proof


def test_steps_smaller_than_a_file_has_are_refused():
    student = made_student(plain_net, SCHEMES["W8A8"], images=lambda noise: 1e-9 * noise)
    assert_exact(student, to_tflite(student), 1e-9 * noise())
    student.get_layer("relu_out").quantizer_variables["interval"].assign(9e-7)
    with pytest.raises(BadInput, match="expected steps of 4e-09 and more, as a file has them, received 3.5e-09 in 'relu_out'; rescale images"):
        to_tflite(student)


@pytest.mark.parametrize("bias", [0.0, 1e-3, -1e-3])
def test_a_head_of_zeros_behind_large_images_keeps_its_bias(bias):
    student = made_student(plain_net, SCHEMES["W8A8"], images=lambda noise: 1e6 * noise)
    head = student.layers[-2].layer
    head.set_weights([np.zeros(head.kernel.shape), np.linspace(bias, 2 * bias, head.units)])
    kerakd.calibrate(student, 1e6 * noise())
    data = to_tflite(student)
    assert_exact(student, data, 1e6 * noise())
    np.testing.assert_allclose(runtime.run(data, noise(1)), student(noise(1)), atol=1e-4)


@pytest.mark.parametrize("merge", [L.Add, L.Multiply])
@pytest.mark.parametrize("container", ["int8", "int4"])
def test_sums_and_products_that_runtimes_compute_wrong_are_refused(merge, container):
    inputs = keras.Input(SHAPE)
    net = keras.Model(inputs, L.Dense(3)(L.Flatten()(merge(name="both")([L.Conv2D(3, 3, name=name)(inputs) for name in "ab"]))))
    student = made_student(lambda: net, SCHEMES["W8A8"])
    interval = student.get_layer("both_out").quantizer_variables["interval"]
    steps = [float(student.get_layer(name).step_size) for name in ("a_out", "b_out")]
    unit = max(steps) if merge is L.Add else np.prod(steps)
    interval.assign(127 * unit / 250)
    assert_exact(student, to_tflite(student), noise())
    interval.assign(127 * unit / 260)
    with pytest.raises(BadInput, match="more than 1/255 of a unit of what they are made of, received 1/260 in 'both', which runtimes compute wrong"):
        to_tflite(student, container)


@pytest.mark.parametrize("fine, most", [(2.0**-9, 250), (2.0**-12, 110)], ids=["in XNNPACK", "outside"])
def test_a_sum_with_a_fine_operand_that_others_read_too_is_refused_earlier(fine, most):
    inputs = keras.Input(SHAPE)
    a, b = (L.Conv2D(8, 3, name=name, activation="relu")(inputs) for name in "ab")
    both = L.Conv2D(3, 3)(L.Add(name="both")([a, b]))
    net = keras.Model(inputs, L.Dense(3)(L.Concatenate()([L.Flatten()(both), L.Flatten()(L.Conv2D(3, 3)(a))])))
    student = made_student(lambda: net, SCHEMES["W8A8"])
    unit = float(student.get_layer("b_relu_out").step_size)
    for ratio in (most, most + 15):
        sums = student.get_layer("both_out")
        sums.quantizer_variables["interval"].assign(sums.quantizer.levels()[1] * unit / ratio)
        student.get_layer("a_relu_out").quantizer_variables["interval"].assign(255 * fine * unit / ratio)
        if ratio == most:
            assert_exact(student, to_tflite(student), noise())
            continue
        with pytest.raises(BadInput, match=f"received 1/{ratio} in 'both', which runtimes compute wrong"):
            to_tflite(student)


@pytest.mark.parametrize("io", ["int8", "uint8"])
def test_a_file_of_integers_with_a_tensor_that_nothing_makes_is_looked_at(io):
    inputs = keras.Input(SHAPE)
    student = made_student(lambda: keras.Model(inputs, L.Dense(3)(L.Flatten()(L.Conv2D(3, 3, activation="tanh")(inputs)))), SCHEMES["W8A8"])
    proof = verify(student, to_tflite(student, io=io), noise())
    assert proof.top1_equal > 0.98 and len(proof.layers) == 4 and proof.layers[0].equal == 1.0


def test_a_student_trained_in_mixed_bfloat16_has_float32_grids_and_an_exact_file():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        student = made_student(residual_net, SCHEMES["W4A4"])
        student.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        student.fit(noise(32), np.arange(32) % 5, batch_size=8, verbose=0)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert student.get_layer("a_relu_out").compute_dtype == "bfloat16"
    assert {weight.dtype for weight in student.weights if weight.dtype.is_floating} == {tf.float32}
    ((kernel, quantizer, variables),) = student.get_layer("a").kernels
    used = {}
    inner = student.get_layer("a").layer
    convolution, inner.convolution_op = inner.convolution_op, lambda x, kernel: used.setdefault("kernel", kernel) is None or convolution(x, kernel)
    student(noise(1))
    inner.convolution_op = convolution
    expected = tf.cast(quantizer.quantize(tf.convert_to_tensor(kernel), variables), tf.bfloat16)  # of the float32 kernel, not of its bfloat16
    np.testing.assert_array_equal(tf.cast(used["kernel"], tf.float32), tf.cast(expected, tf.float32))
    assert_exact(student, to_tflite(student), noise())


@pytest.mark.parametrize("order", [1, -1])
def test_relus_that_share_a_grid_are_exact_whatever_their_bounds_and_order(order):
    inputs = keras.Input(SHAPE)
    x = L.Conv2D(4, 3, name="first")(inputs)
    parts = [L.ReLU(6.0)(L.Conv2D(3, 1)(x)), L.AveragePooling2D(1)(L.ReLU()(L.Conv2D(2, 1)(x))), L.ReLU()(L.Conv2D(3, 1)(x))][::order]
    net = keras.Model(inputs, L.Dense(3)(L.Flatten()(L.Conv2D(4, 1)(L.Concatenate()(parts)))))
    student = made_student(lambda: net, SCHEMES["W4A4"])
    assert_exact(student, to_tflite(student), noise())


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (2, 1)])
def test_an_average_over_padding_is_refused(size, stride):
    pooled = [L.Conv2D(3, 1), L.AveragePooling2D(size, stride, padding="same", name="average"), L.Flatten(), L.Dense(2)]
    student = made_student(lambda: keras.Sequential([keras.Input((8, 8, 2)), *pooled]), SCHEMES["W8A8"])
    assert [finding.layer for finding in kerakd.lint(student) if finding.refused] == ["average"]
    with pytest.raises(BadInput, match="received average: average pooling with padding on .8, 8., which is refused; use padding='valid'"):
        to_tflite(student)


def large_biases():
    """A net whose BatchNorm takes away a mean of many times its deviation, as kernels of one sign make it; images are positive."""
    inputs = keras.Input((1024,))
    x = L.BatchNormalization(name="norm")(L.Dense(6, use_bias=False, name="middle")(L.Dense(1024, activation="relu", name="first")(inputs)))
    return keras.Model(inputs, L.Dense(3, name="logits")(L.ReLU()(x)))


@pytest.mark.parametrize("scheme", [Scheme(Interval(8), Interval(8)), Scheme(Ternary(), Interval(8))], ids=["W8A8", "ternary-A8"])
def test_a_bias_beyond_what_float32_counts_is_exact(scheme):
    keras.utils.set_random_seed(0)
    net, random = large_biases(), np.random.default_rng(0)
    net.get_layer("first").kernel.assign(np.eye(1024) + random.normal(size=(1024, 1024), scale=1e-3))
    net.get_layer("middle").kernel.assign(random.normal(0.02, 0.004, (1024, 6)))
    images = (random.uniform(2, 3, (200, 1)) * random.uniform(0.5, 1.5, (200, 1024))).astype(np.float32)
    seen = keras.Model(net.input, net.get_layer("middle").output)(images).numpy()
    net.get_layer("norm").set_weights([np.full(6, 0.01), np.linspace(0, 0.02, 6), seen.mean(0), seen.var(0)])
    student = kerakd.quantize(net, scheme)
    kerakd.calibrate(student, images)
    folded = folding.fold(student).linears["middle"]
    assert np.abs(folded.bias).max() > (2**24 if "Ternary" in repr(scheme) else 2**22) and folded.dead == []
    proof = assert_exact(student, to_tflite(student), images)
    assert proof.moved_steps < 1.5 and "constants" not in str(proof)
    assert_exact(student, unpack(to_tflite(student, "int4")), images)
    assert kerakd.settling(student, settle(student), images).top1 > 0.98


def test_large_biases_that_are_all_the_same_arrive():
    """The next number of float32 is more than a unit away."""
    keras.utils.set_random_seed(0)
    net, random = large_biases(), np.random.default_rng(0)
    net.get_layer("first").kernel.assign(np.eye(1024))
    net.get_layer("middle").kernel.assign(np.repeat(random.normal(0.02, 0.004, (1024, 1)), 6, axis=1))
    images = (random.uniform(2, 3, (200, 1)) * random.uniform(0.5, 1.5, (200, 1024))).astype(np.float32)
    seen = keras.Model(net.input, net.get_layer("middle").output)(images).numpy()
    for ulps in range(8):  # processors differ in the last bits of the interval, and with them in whether the bias is a number of float32
        mean = np.float32(seen.mean()) * (1 + ulps * 2**-23)
        net.get_layer("norm").set_weights([np.full(6, 0.01), np.zeros(6), np.full(6, mean), np.full(6, seen.var())])
        student = kerakd.quantize(net, Scheme(Ternary(), Interval(8)))
        kerakd.calibrate(student, images)
        bias = folding.fold(student).linears["middle"].bias
        if np.float32(bias[0]) != np.float32(bias[1]):
            break
    assert abs(bias[0]) > 2**24 and len(set(bias[1:])) == 1 and np.float32(bias[0]) != np.float32(bias[1])
    assert_exact(student, to_tflite(student), images)


def test_channels_that_became_constants_are_said():
    student = made_student(pooled_net, SCHEMES["W3A3 per channel"])
    gamma_zero(student)
    assert str(verify(student, to_tflite(student), noise(20))).endswith("; channels that became constants: 1")


@pytest.mark.parametrize("container", ["int8", "int4"])
@pytest.mark.parametrize("what", ["gamma", "kernel", "beside"])
def test_branches_that_begin_at_zero_ship_untrained(what, container):
    """Each a constant of its own: with gammas of 0, as ResNets begin with, kernels of 0 behind others, and two that differ in their biases alone."""
    x = inputs = keras.Input(SHAPE)
    x = L.ReLU()(L.Conv2D(4, 3, padding="same")(x))
    for _ in range(2):
        if what == "gamma":
            y = [L.BatchNormalization(gamma_initializer="zeros")(L.Conv2D(4, 3, padding="same", use_bias=False)(x))]
        elif what == "kernel":
            y = [L.Conv2D(4, 3, padding="same", kernel_initializer="zeros")(L.ReLU()(L.Conv2D(4, 3, padding="same")(x)))]
        else:
            y = [L.Conv2D(4, 1, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(bias))(x) for bias in (0.5, 2.0)]
        x = L.ReLU()(L.Add()([x, *y]))
    student = kerakd.quantize(keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(x))), SCHEMES["W4A4"])
    kerakd.calibrate(student, noise(64))
    student = settle(student)
    data = to_tflite(student, container)
    assert_exact(student, unpack(data) if container == "int4" else data, noise(64))


@pytest.mark.parametrize("scheme", [*PACKED, "W2A2", "W8A8"])
@pytest.mark.parametrize("kernel", [keras.initializers.HeNormal(seed=0), "ones"], ids=["one seed", "ones"])
def test_equal_kernels_keep_their_steps(kernel, scheme):
    """Behind each other and beside each other: the converter makes one constant of two that are equal."""

    def net():
        inputs = keras.Input(SHAPE)
        same = {"use_bias": False, "kernel_initializer": kernel}
        x = L.Conv2D(4, 3, name="first")(inputs)
        x = L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, padding="same", name="a", **same)(x)))
        x = L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, padding="same", name="b", **same)(x)))
        x = L.Add()([L.Conv2D(4, 1, name=name, **same)(x) for name in ("c", "d")])
        return keras.Model(inputs, L.Dense(3, name="logits")(L.Flatten()(x)))

    keras.utils.set_random_seed(0)
    student = kerakd.quantize(net(), SCHEMES[scheme])
    kerakd.calibrate(student, noise(64))
    folded = folding.fold(student).linears
    assert np.all(folded["a"].steps != folded["b"].steps) and np.all(folded["c"].steps != folded["d"].steps)
    for data in (to_tflite(student), unpack(to_tflite(student, "int4"))):
        assert verify(student, data, noise(50)).exact


@pytest.mark.parametrize("other", [{"variance": 1 + 1e-6}, {"sign": -1}], ids=["almost equal steps", "turned signs"])
def test_kernels_that_the_file_would_have_equal_keep_their_steps(other):
    inputs = keras.Input(SHAPE)
    x = L.Conv2D(4, 1, name="first")(inputs)
    both = [L.BatchNormalization(name=f"{name}_bn")(L.Conv2D(4, 1, use_bias=False, name=name)(x)) for name in "ab"]
    net = randomize(keras.Model(inputs, L.Dense(3, name="logits")(L.Flatten()(L.ReLU()(L.Add()(both))))), 0)
    gamma, beta, mean, variance = net.get_layer("a_bn").get_weights()
    net.get_layer("b").kernel.assign(net.get_layer("a").kernel * other.get("sign", 1))
    net.get_layer("b_bn").set_weights([gamma * other.get("sign", 1), beta, mean + 1, variance * other.get("variance", 1)])
    student = kerakd.quantize(net, SCHEMES["W4A4"])
    kerakd.calibrate(student, noise(64))
    folded = folding.fold(student).linears
    assert np.array_equal(folded["a"].codes, folded["b"].codes) and np.all(folded["a"].steps != folded["b"].steps)
    for data in (to_tflite(student), unpack(to_tflite(student, "int4"))):
        assert verify(student, data, noise(50)).exact


def small_beside_large(activation):
    """An addition of a tensor and one a thousand times larger and more; the small one has another reader."""
    inputs = keras.Input(SHAPE)
    large, small = (L.Conv2D(4, 3, padding="same", name=name)(inputs) for name in ("large", "small"))
    small = L.Activation(activation, name="small_activation")(small)
    down = L.Conv2D(4, 1, activation="relu", name="down")(L.Add()([large, small]))
    other = L.Conv2D(4, 3, padding="same", activation="relu", name="other")(small)
    return keras.Model(inputs, L.Dense(3, name="logits")(L.Flatten()(L.Concatenate()([down, other]))))


@pytest.mark.parametrize("activation", ["linear", "sigmoid"])
def test_a_small_operand_of_an_addition_stays_as_fine_as_its_other_reader_needs_it(activation):
    net = randomize(small_beside_large(activation), 0)
    net.get_layer("large").kernel.assign(net.get_layer("large").kernel * 1e5)
    net.get_layer("down").kernel.assign(net.get_layer("down").kernel * 1e-5)
    student = kerakd.quantize(net, SCHEMES["W8A8"])
    kerakd.calibrate(student, noise(64))
    name = "small_activation_out" if activation == "sigmoid" else "small_out"
    trained = float(student.get_layer(name).step_size)
    assert folding.fold(student).grids[name].step == pytest.approx(trained, rel=0.003)
    proof = verify(student, to_tflite(student), noise(50))
    assert proof.exact and proof.not_delegated == ["ADD"] and proof.moved_steps < 1.5


def test_a_proof_with_one_other_tensor_inside_is_not_exact(small):
    proof = verify(*small[:2], noise(20))
    other = dataclasses.replace(proof.layers[0], equal=0.9)
    assert proof.exact and not dataclasses.replace(proof, layers=[other, *proof.layers[1:]]).exact


def test_a_proof_of_other_classes_and_settling_of_no_images_are_refused():
    five, three = made_student(residual_net, SCHEMES["W4A4"]), made_student(lambda: headed(lambda x: x)(), SCHEMES["W4A4"])
    with pytest.raises(BadInput, match=r"data: expected a file of this model, which answers \(3,\), received one of \(5,\)"):
        verify(three, to_tflite(five), noise(4))
    for images in (noise(0), noise(1)[0]):
        with pytest.raises(BadInput, match=r"images: expected at least one of shape \(8, 8, 1\), as the student takes them, received an array of shape"):
            kerakd.settling(five, five, images)
    with pytest.raises(BadInput, match="received rows of several lengths"):
        kerakd.emulate(to_tflite(five), [[1, 2], [3]])


def wide(kernel):
    """An image of 80,000 bright values under one dense kernel [80000, 4] of these signs."""
    inputs = keras.Input((100, 100, 1))
    x = L.Conv2D(8, 1, activation="relu", kernel_initializer="ones", name="first")(inputs)
    net = keras.Model(inputs, L.Dense(3, name="logits")(L.Dense(4, activation="relu", name="wide")(L.Flatten()(x))))
    net.get_layer("wide").kernel.assign(kernel)
    return net


BRIGHT = np.concatenate([np.ones((2, 100, 100, 1)), np.random.default_rng(0).uniform(0, 1, (2, 100, 100, 1))]).astype(np.float32)


@pytest.mark.parametrize("container", ["int8", "int4"])
def test_sums_of_many_products_stay_within_their_accumulator(container):
    """With the headroom of a small layer these overflow on bright images: 80,000 * 255 * 127 is more than 2^31."""
    kernel = np.random.default_rng(1).uniform(0.5, 1.0, (80_000, 4)).astype(np.float32) * 1e-4
    kernel[:, 1] *= -1
    student = kerakd.quantize(wide(kernel), SCHEMES["ternary-A8"])
    kerakd.calibrate(student, BRIGHT)
    proof = verify(student, to_tflite(student, container), BRIGHT)
    assert proof.logits_equal == proof.emulated_equal == 1 and all(layer.equal == 1 for layer in proof.layers)


def test_sums_that_no_accumulator_holds_are_refused():
    student = kerakd.quantize(wide(np.ones((80_000, 4), np.float32)), SCHEMES["W8A8"])
    kerakd.calibrate(student, BRIGHT)
    with pytest.raises(BadInput, match="expected sums that 32-bit integers hold, received up to 2,5[0-9,]* of the kernel of 'wide' .* take fewer bits"):
        to_tflite(student)


def test_a_kernel_whose_sums_are_too_large_for_4_bits_has_8_in_the_small_container():
    kernel = np.random.default_rng(1).uniform(0.9, 1.0, (80_000, 4)).astype(np.float32)
    student = kerakd.quantize(wide(kernel * 1e-4), Scheme(Interval(4), Interval(8)))
    kerakd.calibrate(student, BRIGHT)
    assert 2.0**26 < 80_000 * 7 * 255 < 2.0**30
    assert [linear.bits for linear in folding.fold(student, "int4").linears.values()] == [8, 8, 8]
    proof = verify(student, to_tflite(student, "int4"), BRIGHT)
    assert proof.logits_equal == proof.emulated_equal == 1


def test_a_mean_of_a_large_window_is_exact_on_bright_images():
    inputs = keras.Input((300, 300, 1))
    pooled = L.AveragePooling2D(300)(L.Conv2D(2, 1, activation="relu", kernel_initializer="ones", name="first")(inputs))
    student = kerakd.quantize(keras.Model(inputs, L.Dense(3)(L.Flatten()(pooled))), SCHEMES["W8A8"])
    images = np.concatenate([np.ones((1, 300, 300, 1)), np.random.default_rng(0).uniform(0, 1, (1, 300, 300, 1))]).astype(np.float32)
    kerakd.calibrate(student, images)
    assert_exact(student, to_tflite(student), images)


def test_one_pooling_on_two_shapes_ships_from_mixed_precision_too():
    inputs, pool = keras.Input(SHAPE), L.MaxPooling2D(2, name="pool")
    sides = [pool(L.Conv2D(4, size, activation="relu", name=f"side{size}")(inputs)) for size in (3, 5)]
    student = kerakd.quantize(randomize(keras.Model(inputs, L.Dense(3)(L.Concatenate()([L.Flatten()(side) for side in sides])))), SCHEMES["W4A4"])
    kerakd.calibrate(student, noise(16))
    mixed = recast(student, "mixed_bfloat16")
    assert to_tflite(mixed) == to_tflite(student)


def test_a_bias_and_what_is_added_to_it_fit_an_accumulator():
    assert 2 * folding._half_an_accumulator(8) <= 2**31 and 16 * 2 * folding._half_an_accumulator(4) <= 2**31


def test_kernels_of_zeros_move_no_output():
    student = made_student(pooled_net, SCHEMES["W3A3 per channel"])
    gamma = student.get_layer("middle_bn").gamma
    gamma.assign(np.zeros(gamma.shape))
    linear = folding.fold(student).linears["middle"]
    swing = np.abs(linear.codes.reshape(-1, len(linear.steps))).sum(0) * linear.steps * linear.x.step * max(-linear.x.low, linear.x.high)
    assert linear.codes.any() and (swing <= linear.y.step / 60).all()


def test_the_least_steps_are_such_as_xnnpack_multiplies_by():
    x, y = Grid(2.0**-10, 0, 255), Grid(1.0, 0, 255)
    assert (arithmetic.multiplier(x.step, folding._least_steps(np.zeros(2), x, y, 8), y.step) >= 2.0**-32).all()


def test_a_channel_that_reaches_its_grid_from_either_side_matters():
    kernel = folding.Kernel(L.Dense(2), np.ones((4, 2), int), np.ones(2), np.float64([-2, 257]), 1)
    assert folding._matters(kernel, Grid(1.0, 0, 1), Grid(1.0, 0, 255)).all()


@pytest.mark.parametrize("kind", ["of a ReLU", "of either sign", "of a concatenation"])
def test_a_mean_that_meets_its_own_tensor_in_a_concatenation_is_exact(kind):
    """Of 28 values on one grid with their mean many a total is a tie, whatever the step."""
    inputs = keras.Input((28, 3))
    x = L.Conv1D(8, 3, padding="same", activation=None if kind == "of either sign" else "relu", name="rows")(inputs)
    if kind == "of a concatenation":
        x = L.Concatenate()([x, L.Conv1D(4, 1, activation="relu")(inputs)])
    x = L.Concatenate()([L.GlobalAveragePooling1D(name="mean")(x), L.GlobalMaxPooling1D()(x)])
    net = randomize(keras.Model(inputs, L.Dense(5)(x)))
    student = kerakd.quantize(net, SCHEMES["ternary-A8"])
    images = np.random.default_rng(0).normal(size=(300, 28, 3)).astype(np.float32)
    kerakd.calibrate(student, images[:32])
    proof = verify(student, to_tflite(student), images)
    assert proof.exact and proof.logits_equal == 1
    assert [layer.name for layer in student.layers if "apart" in layer.name] == ["mean_apart", "mean_apart_out"]


def test_sums_beyond_2_to_the_24_are_rounded_as_xnnpack_multiplies_them():
    sums, unit = np.random.default_rng(0).integers(2**24, 2**30, size=(50, 4)), np.array([1e-7, 3e-6, 0.0123, 5.0])
    np.testing.assert_array_equal(reference.Accumulated(unit)(sums * unit), sums.astype(np.float32).astype(np.float64) * unit)
    inputs = keras.Input((3072,))
    student = kerakd.quantize(keras.Model(inputs, L.Dense(4, kernel_initializer="ones")(inputs)), SCHEMES["W8A8"])
    kerakd.calibrate(student, np.random.default_rng(0).random((8, 3072)).astype(np.float32))
    snapped = snap(student)
    assert any(isinstance(layer, reference.Accumulated) for layer in snapped.layers)
    images = np.random.default_rng(1).random((64, 3072)).astype(np.float32)
    assert verify(student, to_tflite(student), images).exact
    copy = keras.models.clone_model(snapped)
    copy.set_weights(snapped.get_weights())
    np.testing.assert_array_equal(copy(images[:2].astype(float)), snapped(images[:2].astype(float)))
    assert not any(isinstance(layer, reference.Accumulated) for layer in snap(made_student(plain_net, SCHEMES["W8A8"])).layers)


def test_an_operator_with_a_numpy_constant_is_proved():
    inputs = keras.Input((6, 6, 3))
    x = tf.minimum(L.Conv2D(4, 3, activation="relu")(inputs), np.float32(3))
    student = kerakd.quantize(keras.Model(inputs, L.Dense(5)(L.Flatten()(x))), SCHEMES["W4A4"])
    images = np.random.default_rng(0).normal(size=(8, 6, 6, 3)).astype(np.float32)
    kerakd.calibrate(student, images)
    assert verify(student, to_tflite(student), images).logits_equal == 1


@pytest.mark.parametrize("bound, interval", [(0.0, 1.0), (0.25, 0.25), (6.0, 1.0)])
def test_a_bound_of_a_relu_that_no_image_reached_is_kept(bound, interval):
    inputs = keras.Input((4,))
    net = keras.Model(inputs, L.Dense(2)(L.ReLU(max_value=bound, name="bounded")(L.Dense(3, name="before")(inputs))))
    net.get_layer("before").bias.assign(np.full(3, -9.0))
    student = kerakd.quantize(net, SCHEMES["W8A8"])
    kerakd.calibrate(student, np.ones((4, 4), np.float32))
    layer = student.get_layer("bounded_out")
    assert float(layer.quantizer_variables["interval"]) == interval
    student.get_layer("before").layer.bias.assign(np.full(3, 9.0))
    made = keras.Model(student.input, layer.output)(np.ones((4, 4), np.float32)).numpy()
    assert made.max() == pytest.approx(min(bound, interval), rel=1e-6)


@pytest.mark.parametrize("softplus", [L.Activation("softplus"), tf.nn.softplus, L.Dense(4, "softplus", kernel_initializer="identity")])
def test_a_softplus_of_large_values_is_no_less_in_the_file(softplus):
    inputs = keras.Input((4,))
    x = L.Dense(4, kernel_initializer="ones")(inputs)
    student = kerakd.quantize(keras.Model(inputs, L.Dense(3)(softplus(x))), SCHEMES["W8A8"])
    images = np.random.default_rng(0).uniform(-100, 100, (64, 4)).astype(np.float32)
    kerakd.calibrate(student, images)
    proof = verify(student, to_tflite(student), images)
    assert proof.logits_equal > 0.95 and proof.max_steps <= 1

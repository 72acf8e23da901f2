"""kerakd.codes: from its arrays alone NumPy computes what the file computes, layer by layer."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from networks import randomize

import kerakd
from kerakd import BadInput, Interval, KBit, Scheme, Ternary
from kerakd.tflite import flatfile, runtime
from kerakd.tflite.codes import ideal_bytes
from kerakd.tflite.fold import fold

L = keras.layers
SHAPE = (9, 9, 2)
LAYERS = {  # of the net: the shape of its kernel, and its strides where it is an image's
    "first": ((3, 3, 2, 8), (2, 2)),
    "a": ((3, 3, 8, 8), (1, 1)),
    "pointwise": ((1, 1, 8, 12), (1, 1)),
    "depthwise": ((3, 3, 12, 1), (1, 1)),
    "average": ((2, 2, 12, 1), (2, 2)),
    "norm": ((1, 1, 12, 1), (1, 1)),
    "logits": ((48, 5), None),
}
VALID = ("average", "norm")
SCHEMES = {
    "ternary-A8": (Scheme(Ternary(), Interval(8)), 1),
    "W4A4": (Scheme(Interval(4), Interval(4)), 7),
    "W3A8 per channel": (Scheme(Interval(3, per_channel=True), Interval(8)), 3),
    "W2A2": (Scheme(KBit(2), Interval(2)), 1),
}


def noise(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


def normed(layer, x):
    return L.BatchNormalization(name=f"{layer.name}_norm")(layer(x))


def made(scheme):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE, name="image")
    x = L.ReLU()(normed(L.Conv2D(8, 3, 2, padding="same", use_bias=False, name="first"), inputs))
    x = L.ReLU()(L.Add()([x, normed(L.Conv2D(8, 3, padding="same", name="a"), x)]))
    x = L.ReLU()(normed(L.Conv2D(12, 1, name="pointwise"), x))
    x = L.ReLU()(normed(L.DepthwiseConv2D(3, padding="same", name="depthwise"), x))
    x = L.BatchNormalization(name="norm")(L.AveragePooling2D(2, name="average")(x))
    net = keras.Model(inputs, L.Dense(5, name="logits")(L.Flatten()(x)))
    student = kerakd.quantize(randomize(net), scheme)
    kerakd.calibrate(student, noise(32, seed=9))
    return student


@pytest.fixture(scope="module", params=SCHEMES)
def case(request):
    """(a student, its arrays, the largest code of its middle layers)."""
    scheme, top = SCHEMES[request.param]
    student = made(scheme)
    return student, kerakd.codes(student), top


def accumulated(name, x, kernel):
    """The layer's sums of products, float64."""
    if name == "logits":
        return x.reshape(len(x), -1) @ kernel
    strides, padding = LAYERS[name][1], "VALID" if name in VALID else "SAME"
    if kernel.shape[-1] == 1:
        return tf.nn.depthwise_conv2d(x, kernel, [1, *strides, 1], padding).numpy()
    return tf.nn.conv2d(x, kernel, strides, padding).numpy()


def test_the_formula_gives_the_codes_of_the_file(case):
    """The operator's own input, as the file has it, by the docstring's formula; where the two differ, the real number is within 1e-4 of a half."""
    student, arrays, _ = case
    data = kerakd.to_tflite(student)
    model = flatfile.read(data)
    tensors = model.subgraphs[0].tensors
    found = {match.kernel.name: match.name for match in flatfile.matches(data, fold(student).linears)}
    operators = {found[kernel.name]: op for op, kernel, _ in flatfile.weighted(model)}
    assert operators.keys() == LAYERS.keys()
    ends = [index for op in operators.values() for index in (op.inputs[0], op.outputs[0])]
    values = [np.stack(value) for value in zip(*runtime.each(flatfile.with_outputs(data, ends), noise(20)), strict=True)]
    differing = 0
    for name, before, after in zip(operators, values[::2], values[1::2], strict=True):
        op, part = operators[name], {key.split("/")[1]: value for key, value in arrays.items() if key.startswith(f"{name}/")}
        x, y = (tensors[index].quantization for index in (op.inputs[0], op.outputs[0]))
        assert (x.scale[0], y.scale[0]) == (np.float32(part["input_step"]), np.float32(part["output_step"]))
        acc = accumulated(name, before.astype(np.float64) - x.zeroPoint[0], part["codes"].astype(np.float64))
        real = (acc * part["input_step"] * part["scales"] + part["bias"]) / part["output_step"]
        codes = np.clip(np.rint(real), part["output_low"], part["output_high"])
        apart = np.abs(after.reshape(codes.shape).astype(int) - y.zeroPoint[0] - codes)
        assert np.ptp(codes) > 1 and apart.max() <= 1
        near = np.abs(real % 1 - 0.5) < 1e-4
        assert near[apart > 0].all(), name
        differing += np.count_nonzero(apart)
    assert differing < 5


def test_the_arrays_are_these_and_no_others(case):
    _, arrays, _ = case
    parts = ("codes", "scales", "bias", "input_step", "output_step", "output_low", "output_high")
    assert list(arrays) == [f"{name}/{part}" for name in LAYERS for part in parts]
    for name, (shape, _) in LAYERS.items():
        channels = shape[2] * shape[3] if shape[-1] == 1 else shape[-1]
        codes, scales, bias = (arrays[f"{name}/{part}"] for part in parts[:3])
        assert (codes.dtype, codes.shape) == (np.int8, shape)
        assert (scales.dtype, scales.shape, bias.dtype, bias.shape) == (np.float64, (channels,), np.float64, (channels,)) and (scales > 0).all()
        for part, dtype in zip(parts[3:], ("float64", "float64", "int64", "int64"), strict=True):
            assert arrays[f"{name}/{part}"].dtype == dtype and np.ndim(arrays[f"{name}/{part}"]) == 0
        assert arrays[f"{name}/output_low"] < arrays[f"{name}/output_high"]
    assert (arrays["first/output_low"], arrays["a/output_low"], arrays["a/output_high"]) == (0, -128, 127)


def test_codes_are_the_trained_ones_turned_where_gamma_is_negative(case):
    student, arrays, top = case
    for name in LAYERS:
        codes = arrays[f"{name}/codes"].astype(int)
        if name in VALID:
            assert set(codes.ravel()) == ({1} if name == "average" else {1, -1})
            continue
        largest = 127 if name in ("first", "logits") else top
        assert np.abs(codes).max() == largest if name in ("first", "logits") else set(codes.ravel()) <= set(range(-largest, largest + 1))
        ((kernel, quantizer, variables),) = student.get_layer(name).kernels
        sign = np.sign(student.get_layer(f"{name}_norm").gamma.numpy()) if name != "logits" else np.ones(5)
        assert name == "logits" or set(sign) == {-1, 1}
        trained = quantizer.codes(tf.convert_to_tensor(kernel), variables).numpy()
        np.testing.assert_array_equal((codes.reshape(-1, len(sign)) * sign).reshape(codes.shape), trained)
        real = quantizer.quantize(tf.convert_to_tensor(kernel), variables).numpy()  # what training saw, times the BatchNorm's factor
        norm = student.get_layer(f"{name}_norm") if name != "logits" else None
        gain = 1 if norm is None else np.abs(norm.gamma.numpy()) / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
        values = trained.reshape(-1, len(sign)) * arrays[f"{name}/scales"]
        np.testing.assert_allclose(values, real.reshape(-1, len(sign)) * gain, rtol=1e-4, atol=1e-7)


def test_ternary_codes_are_minus_one_zero_and_one():
    """By TWN's threshold, in NumPy; all three occur."""
    student = made(SCHEMES["ternary-A8"][0])
    for name in ("a", "pointwise", "depthwise"):
        kernel = student.get_layer(name).kernels[0][0].numpy()
        sign = np.sign(student.get_layer(f"{name}_norm").gamma.numpy())
        expected = np.sign(kernel) * (np.abs(kernel) > 0.7 * np.abs(kernel).mean())
        codes = kerakd.codes(student)[f"{name}/codes"]
        assert set(codes.ravel()) == {-1, 0, 1}
        np.testing.assert_array_equal(codes, (expected.reshape(-1, len(sign)) * sign).reshape(kernel.shape))


def test_the_bias_is_the_trained_one_to_half_a_unit_of_the_fast_container(case):
    student, arrays, top = case
    norm = student.get_layer("a_norm")
    gamma, beta, mean, variance = (value.astype(np.float64) for value in norm.get_weights())
    expected = beta + (student.get_layer("a").layer.bias.numpy() - mean) * gamma / np.sqrt(variance + norm.epsilon)
    unit = arrays["a/input_step"] * arrays["a/scales"] / (127 // top)
    assert (np.abs(arrays["a/bias"] - expected) <= 0.51 * unit).all()


def test_a_channel_beyond_integers_has_codes_of_zero_and_its_constant():
    student = made(SCHEMES["W4A4"][0])
    student.get_layer("a_norm").gamma.assign([1, 0, 1, 1, 1, 1, 1, 1])
    arrays = kerakd.codes(student)
    assert not arrays["a/codes"][..., 1].any() and arrays["a/codes"][..., 0].any()
    assert arrays["a/bias"][1] == pytest.approx(student.get_layer("a_norm").beta.numpy()[1], rel=1e-2)


def test_the_student_is_not_touched(case):
    student, arrays, _ = case
    before = [weight.numpy().tobytes() for weight in student.weights]
    again = kerakd.codes(student)
    assert [weight.numpy().tobytes() for weight in student.weights] == before
    assert all((again[key] == value).all() for key, value in arrays.items())


@pytest.mark.parametrize(("scheme", "bits"), [("ternary-A8", 2), ("W4A4", 4), ("W3A8 per channel", 3), ("W2A2", 2)])
def test_ideal_bytes_by_hand(scheme, bits):
    """8 bits for the first and the last kernel, the scheme's for those between."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = L.Conv2D(8, 1, activation="relu")(L.Conv2D(8, 3, activation="relu")(inputs))
    x = L.DepthwiseConv2D(3, activation="relu")(x)
    student = kerakd.quantize(keras.Model(inputs, L.Dense(3)(L.Flatten()(x))), SCHEMES[scheme][0])
    kerakd.calibrate(student, np.random.default_rng(0).normal(size=(8, 6, 6, 2)).astype(np.float32))
    assert ideal_bytes(student) == 3 * 3 * 2 * 8 + (8 * 8 + 3 * 3 * 8) * bits // 8 + 32 * 3


def test_what_cannot_be_integers_is_refused():
    net = keras.Sequential([keras.Input(SHAPE), L.Conv2D(3, 3), L.Flatten(), L.Dense(2)])
    for model, words in ((net, r"make a student of it by kerakd\.quantize"), (kerakd.quantize(net, SCHEMES["W4A4"][0]), "expected calibrated intervals")):
        for use in (kerakd.codes, ideal_bytes):
            with pytest.raises(BadInput, match=words):
                use(model)


def test_where_the_codes_of_an_output_end_is_said_behind_a_relu_on_a_shared_grid():
    x = keras.Input((6, 6, 2))
    y = L.Conv2D(4, 1, activation="relu", name="first")(x)
    y = L.Concatenate()([L.ReLU(6.0)(L.Conv2D(3, 1, name="bounded")(y)), L.Conv2D(2, 1, name="linear")(y)])
    student = kerakd.quantize(keras.Model(x, L.Dense(2)(L.Flatten()(y))), Scheme(Interval(4), Interval(4)))
    kerakd.calibrate(student, np.float32(20 * np.random.default_rng(0).normal(size=(8, 6, 6, 2))))
    arrays = kerakd.codes(student)
    assert (arrays["bounded/output_low"], arrays["linear/output_low"]) == (0, -128)
    assert arrays["bounded/output_high"] == np.rint(6 / arrays["bounded/output_step"]) < 127 == arrays["linear/output_high"]


def test_ideal_bytes_are_whole_ones():
    x = keras.Input((5,))
    student = kerakd.quantize(keras.Model(x, L.Dense(1)(L.Dense(3)(L.Dense(5)(x)))), Scheme(Interval(3), Interval(8)))
    kerakd.calibrate(student, np.float32(np.random.default_rng(0).normal(size=(8, 5))))
    assert ideal_bytes(student) == 25 + 6 + 3  # 15 weights of 3 bits: 45 bits in 6 bytes

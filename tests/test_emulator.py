"""The emulation against the runtimes themselves: every tensor inside a file and every logit to the bit, and a refusal where it has no arithmetic."""

import functools
import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from networks import randomize
from tensorflow.lite.python import schema_py_generated as schema

import kerakd
from kerakd import BadInput, Interval, Scheme, Ternary, emulate
from kerakd.chatter import native_chatter_off
from kerakd.tflite import emulator, flatfile, runtime
from kerakd.tflite.emulator import NotModelled

L = keras.layers
IMAGE, ROW, VECTOR = (9, 9, 3), (18, 3), (10,)
SCHEMES = {
    "W4A4": Scheme(Interval(4), Interval(4)),
    "ternary-A8": Scheme(Ternary(), Interval(8)),
    "W2A2": Scheme(Interval(2), Interval(2)),
    "W3A3 per channel": Scheme(Interval(3, per_channel=True), Interval(3)),
}


def normed(x):
    return L.ReLU()(L.BatchNormalization()(x))


def residual(x):
    """Strides on odd sizes, additions with a ReLU and without, of a pixel and of one channel, a mean that drops its dimensions."""
    x = normed(L.Conv2D(9, 3, 2, padding="same")(x))
    x = L.ReLU()(L.Add()([x, L.BatchNormalization()(L.Conv2D(9, 3, padding="same")(x))]))
    x = L.Add()([x, L.BatchNormalization()(L.Conv2D(9, (3, 2), padding="same")(x))])
    x = L.Add()([L.Conv2D(1, 3, padding="same")(x), x])
    return L.GlobalAveragePooling2D()(L.Add()([x, L.GlobalAveragePooling2D(keepdims=True)(x)]))


def mobile(x):
    """1x1 convolutions of 16 channels and of others, depthwise ones of 20 channels, two blocks of 8 and a rest, and of 40."""
    x = normed(L.Conv2D(16, 3, padding="same")(x))
    x = normed(L.Conv2D(20, 1)(x))
    x = L.BatchNormalization()(L.DepthwiseConv2D(3, 2, padding="same")(x))
    x = normed(L.DepthwiseConv2D((2, 3), depth_multiplier=2)(x))
    return L.BatchNormalization()(L.Conv2D(6, 1)(x))


def excited(gate):
    """Squeeze and excite: a mean that keeps its dimensions, a gate, a product of an image and a pixel."""

    def body(x):
        x = normed(L.Conv2D(20, 3, padding="same")(x))
        squeezed = L.Conv2D(6, 1, activation="relu")(L.GlobalAveragePooling2D(keepdims=True)(x))
        return L.GlobalMaxPooling2D()(L.Multiply()([x, L.Conv2D(20, 1, activation=gate)(squeezed)]))

    return body


def pooled(x):
    """Both paddings of a pooling, zeros around an image, a cropping, two concatenations, a ReLU that keeps its bound."""
    x = L.Concatenate()([x, normed(L.Conv2D(5, 3, padding="same")(x))])
    x = L.MaxPooling2D(2)(L.ZeroPadding2D(((1, 0), (2, 1)))(normed(L.Conv2D(6, 3)(x))))
    x = normed(L.Conv2D(4, 2)(L.Cropping2D(((1, 0), (0, 1)))(L.MaxPooling2D(3, 1, padding="same")(x))))
    bounded = L.ReLU(6.0)(L.Conv2D(3, 1, kernel_initializer=keras.initializers.RandomNormal(0, 4))(x))
    return L.Concatenate()([bounded, L.AveragePooling2D(1)(x), L.ReLU()(L.Conv2D(2, 1)(x)), L.Conv2D(2, 1)(x)])


def rows(x):
    """One-dimensional convolutions and poolings."""
    x = normed(L.Conv1D(4, 3)(x))
    x = L.AveragePooling1D(2)(L.MaxPooling1D(2, 1)(normed(L.Conv1D(6, 3, 2, padding="same")(x))))
    return L.GlobalMaxPooling1D()(normed(L.Conv1D(8, 1)(x)))


def divided(x):
    """Groups, which LiteRT has in a reference kernel only, dilations, and a 1x1 convolution with a stride."""
    x = L.BatchNormalization()(L.Conv2D(12, 3, padding="same", groups=3)(normed(L.Conv2D(6, 3, 2, padding="same")(x))))
    x = normed(L.DepthwiseConv2D(3, padding="same", dilation_rate=2)(normed(L.Conv2D(9, 3, padding="same", dilation_rate=2)(x))))
    return normed(L.Conv2D(4, 1, 2)(normed(L.Conv2D(6, 1, groups=3)(x))))


def dense(x):
    """Dense layers of an even and an odd number of inputs, and of one unit."""
    for units in (16, 9, 8, 7, 4, 1):
        x = L.ReLU()(L.Dense(units)(x)) if units % 4 else normed(L.Dense(units)(x))
    return x


def shaped(x):
    """A BatchNorm on its own, tensors that change shape, a dense layer on each row of one."""
    x = L.BatchNormalization()(L.MaxPooling2D(2)(L.Conv2D(6, 3, 2, padding="same", activation="relu")(x)))
    x = L.Dense(5, activation="relu")(L.Reshape((-1, 4))(L.Permute((3, 1, 2))(x)))
    return L.Permute((2, 1))(x)


def moved(x):
    """Blocks of pixels as channels and back, half of the channels, some of the pixels, one of the tokens."""
    left, _ = tf.split(tf.nn.space_to_depth(L.Conv2D(4, 2, activation="relu")(x), 2), 2, -1)
    x = tf.nn.depth_to_space(normed(L.Conv2D(8, 1)(left)), 2)[:, 1:, ::2]
    return L.Dense(6, activation="relu")(L.Reshape((-1, 2))(x)[:, 3])


NETS = {
    "residual": (residual, IMAGE),
    "mobile": (mobile, IMAGE),
    "sigmoid gate": (excited("sigmoid"), IMAGE),
    "hard sigmoid gate": (excited("hard_sigmoid"), IMAGE),
    "pooled": (pooled, IMAGE),
    "rows": (rows, ROW),
    "divided": (divided, IMAGE),
    "dense": (dense, VECTOR),
    "shaped": (shaped, IMAGE),
    "moved": (moved, IMAGE),
}
ONLY = {"W2A2": ("residual", "mobile", "pooled"), "W3A3 per channel": ("dense", "shaped")}
CASES = [(net, scheme) for net in NETS for scheme in SCHEMES if net in ONLY.get(scheme, NETS)]


def noise(count, shape, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


@functools.cache
def student(net, scheme):
    """A calibrated student whose BatchNorms and biases are as a training leaves them."""
    keras.utils.set_random_seed(0)
    body, shape = NETS[net]
    inputs = keras.Input(shape)
    model = keras.Model(inputs, L.Dense(5)(L.Flatten()(body(inputs))))
    made = kerakd.quantize(randomize(model), SCHEMES[scheme])
    kerakd.calibrate(made, noise(64, shape, seed=9))
    return made


@functools.cache
def file(net, scheme, container, io="float32"):
    return kerakd.to_tflite(student(net, scheme), container, io)


# The runtimes: all outputs of a file, [outputs][images, ...]


def litert(xnnpack):
    return lambda data, images: [np.stack(values) for values in zip(*runtime.each(data, images, xnnpack=xnnpack), strict=True)]


def micro(data, images):
    from tflite_micro.python.tflite_micro import runtime as tflm

    graph = flatfile.read(data).subgraphs[0]
    interpreter = tflm.Interpreter.from_bytes(data, arena_size=1 << 20)
    found = []
    for image in images:
        interpreter.set_input(flatfile.as_input(image[None], graph.tensors[graph.inputs[0]]), 0)
        interpreter.invoke()
        found.append([interpreter.get_output(k)[0] for k in range(len(graph.outputs))])
    return [np.stack(values) for values in zip(*found, strict=True)]


RUNTIMES = {"xnnpack": litert(True), "builtin": litert(False), "micro": micro}


def refused_by_micro(data):
    """Whether TFLite Micro does not take the file: it has no dense layer with one step for each unit and fewer than 8 bits."""
    model = flatfile.read(data)
    kernels = [kernel for op, kernel, _ in flatfile.weighted(model) if flatfile.op_name(model, op) == "FULLY_CONNECTED"]
    return any(flatfile.TYPES[kernel.type] in flatfile.PACKED and len(kernel.quantization.scale) > 1 for kernel in kernels)


def assert_emulated(data, images, kernels, monkeypatch):
    """Every tensor inside the file that is computed, and what the file answers, are the runtime's."""
    kept, read = [], emulator._tensor
    with monkeypatch.context() as patch:
        patch.setattr(emulator, "_tensor", lambda *args: kept.append(read(*args)) or kept[-1])
        answers = emulate(data, images, kernels)
    constants = flatfile.read(data)
    inside = [
        k
        for k, tensor in enumerate(constants.subgraphs[0].tensors)
        if flatfile.values(constants, tensor) is None and tensor.quantization.scale is not None and tensor.shape[0] == 1  # else pixels one by one
    ]
    assert len(inside) > 3 and len(images) <= emulator.BATCH
    for index, found in zip(inside, RUNTIMES[kernels](flatfile.with_outputs(data, inside), images), strict=True):
        np.testing.assert_array_equal(kept[index].value, found, err_msg=f"{kernels}, {kept[index].name}")
    graph = constants.subgraphs[0]
    (outputs,) = RUNTIMES[kernels](data, images)
    expected = flatfile.as_real(outputs, graph.tensors[graph.outputs[0]])
    assert answers.dtype == np.float32 and answers.shape == expected.shape and np.ptp(expected) > 0
    np.testing.assert_array_equal(answers, expected)


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin"])
@pytest.mark.parametrize("container", ["int8", "int4"])
@pytest.mark.parametrize(("net", "scheme"), CASES)
def test_every_value_inside_and_every_logit_is_litert_s(net, scheme, container, kernels, monkeypatch):
    assert_emulated(file(net, scheme, container), noise(24, NETS[net][1]), kernels, monkeypatch)


@pytest.mark.parametrize("container", ["int8", "int4"])
@pytest.mark.parametrize(("net", "scheme"), CASES)
def test_every_value_inside_and_every_logit_is_tflite_micro_s(net, scheme, container, monkeypatch):
    """What Micro refuses it takes unpacked."""
    data, images = file(net, scheme, container), noise(24, NETS[net][1])
    if refused_by_micro(data):
        assert container == "int4"
        with pytest.raises(RuntimeError, match="failed to allocate tensors"):
            micro(data, images)
        data = kerakd.unpack(data)
    assert_emulated(data, images, "micro", monkeypatch)


def tied(data):
    """The file with every step of a tensor inside rounded to a power of two: half the sums, products and means are then half-way between two codes."""
    model = flatfile.read(data)
    tensors = model.subgraphs[0].tensors
    for tensor in tensors:
        if flatfile.TYPES[tensor.type] == "INT8" and flatfile.values(model, tensor) is None:
            tensor.quantization.scale = np.exp2(np.rint(np.log2(tensor.quantization.scale))).astype(np.float32)
    for op, kernel, bias in flatfile.weighted(model):
        if bias is not None:
            bias.quantization.scale = tensors[op.inputs[0]].quantization.scale * kernel.quantization.scale
    return flatfile.write(model)


@pytest.mark.parametrize("kernels", RUNTIMES)
@pytest.mark.parametrize(("net", "scheme"), [("residual", "W4A4"), ("residual", "ternary-A8"), ("sigmoid gate", "ternary-A8"), ("pooled", "ternary-A8")])
def test_what_is_half_way_between_two_codes_goes_where_the_runtime_s_goes(net, scheme, kernels, monkeypatch):
    """The folding avoids such steps; a file that is not from there may have them."""
    assert_emulated(tied(file(net, scheme, "int8")), noise(24, NETS[net][1]), kernels, monkeypatch)


def test_of_the_small_containers_some_are_run_by_micro_and_some_are_refused():
    refused = {net: refused_by_micro(file(net, "W4A4", "int4")) for net in NETS}
    assert refused == {**dict.fromkeys(NETS, True), "residual": False, "divided": False}


@functools.cache
def pooled_by_others():
    """A file of the converter's own with average poolings, which kerakd's have as convolutions."""

    def on_grid(x, limit):
        return tf.quantization.fake_quant_with_min_max_vars(x, -limit, limit)

    @tf.function(input_signature=[tf.TensorSpec([1, *IMAGE])])
    def model(images):
        x = on_grid(tf.nn.avg_pool2d(on_grid(images, 3.0), 3, 2, "SAME"), 3.0)
        x = on_grid(tf.nn.avg_pool2d(x, [2, 1], 1, "VALID"), 3.0)
        return on_grid(tf.reshape(tf.nn.relu(x), [1, -1]), 3.0)

    converter = tf.lite.TFLiteConverter.from_concrete_functions([model.get_concrete_function()])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with native_chatter_off():
        return converter.convert()


@pytest.mark.parametrize("kernels", RUNTIMES)
def test_average_poolings_in_a_file_of_others(kernels, monkeypatch):
    assert_emulated(pooled_by_others(), noise(24, IMAGE), kernels, monkeypatch)


def test_every_operator_that_is_modelled_is_in_one_of_these_files():
    """The converter writes a RESHAPE where a dimension of 1 comes or goes, so there are none of the other two."""
    files = [pooled_by_others(), *(file(net, scheme, "int8") for net, scheme in CASES)]
    found = {name for data in files for name in flatfile.census(data)["operators"]}
    assert found == emulator.COMPUTED.keys() - {"EXPAND_DIMS", "SQUEEZE"}
    kinds = {kind for net, scheme in CASES for kind in flatfile.census(file(net, scheme, "int4"))["weights"]}
    assert kinds == {"INT8", "INT4", "INT2"}


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin"])
@pytest.mark.parametrize("container", ["int8", "int4"])
@pytest.mark.parametrize("io", ["int8", "uint8"])
def test_files_that_take_and_give_integers(io, container, kernels, monkeypatch):
    assert_emulated(file("residual", "W4A4", container, io), noise(24, IMAGE), kernels, monkeypatch)


def test_runtimes_differ_and_so_do_their_emulations():
    """So equality says something: 200 images, more than a batch, on which no two runtimes give the same logits."""
    data, images = file("residual", "W4A4", "int4"), noise(200, IMAGE, seed=1)
    logits = {kernels: emulate(data, images, kernels) for kernels in RUNTIMES}
    for kernels, found in logits.items():
        np.testing.assert_array_equal(found, RUNTIMES[kernels](data, images)[0])
        assert all((found != other).any() for name, other in logits.items() if name != kernels)


@pytest.mark.parametrize("kernels", RUNTIMES)
def test_images_half_way_between_two_codes_go_where_the_runtime_s_go(kernels, monkeypatch):
    data = file("residual", "W4A4", "int8")
    graph = flatfile.read(data).subgraphs[0]
    step = graph.tensors[graph.operators[0].outputs[0]].quantization.scale[0]
    assert_emulated(data, (np.random.default_rng(2).integers(-130, 130, (24, *IMAGE)) + np.float32(0.5)) * step, kernels, monkeypatch)


@pytest.mark.parametrize(("net", "scheme"), CASES)
def test_xnnpack_leaves_what_the_emulation_says(net, scheme):
    data = file(net, scheme, "int4")
    model = flatfile.read(data)
    tensors = [emulator._tensor(model, tensor) for tensor in model.subgraphs[0].tensors]
    left = []
    for op in model.subgraphs[0].operators:
        name, inputs = flatfile.op_name(model, op), [tensors[k] if k >= 0 else None for k in op.inputs]
        if not emulator._taken(emulator.Operation(name, op.builtinOptions, inputs, tensors[op.outputs[0]], types.SimpleNamespace())):
            left.append(name)
    assert sorted(left) == sorted(runtime.not_delegated(data))


@pytest.mark.parametrize(("inputs", "units"), [(8, 3), (7, 3), (8, 1), (7, 1), (6, 3)])
def test_dense_kernels_of_4_bits_with_any_number_of_inputs_and_units(inputs, units, monkeypatch):
    """XNNPACK takes those of an even number of inputs, one unit or more."""
    source = keras.Input((5, 5, 2))
    x = L.Conv2D(units, 1, activation="relu")(L.Conv2D(inputs, 3, activation="relu")(source))
    made = kerakd.quantize(keras.Model(source, L.Dense(4)(L.Flatten()(x))), SCHEMES["ternary-A8"])
    kerakd.calibrate(made, noise(64, (5, 5, 2), seed=9))
    data = kerakd.to_tflite(made, "int4")
    assert flatfile.census(data)["weights"] == {"INT8": 2, "INT4": 1}
    assert runtime.not_delegated(data) == ["FULLY_CONNECTED"] * (inputs % 2)
    for kernels in ("xnnpack", "builtin"):
        assert_emulated(data, noise(64, (5, 5, 2)), kernels, monkeypatch)


@pytest.mark.parametrize("units", [1, 2])
def test_ternary_kernels_of_2_bits_with_one_unit_and_more(units, monkeypatch):
    """A step for one unit is a step for each."""
    source = keras.Input((5, 5, 2))
    x = L.Conv2D(units, 1)(L.Conv2D(128, 3, padding="same")(source))
    made = kerakd.quantize(keras.Model(source, L.Dense(4)(L.Flatten()(x))), SCHEMES["ternary-A8"])
    kerakd.calibrate(made, noise(64, (5, 5, 2), seed=9))
    data = kerakd.to_tflite(made, "int4")
    assert flatfile.census(data)["weights"] == {"INT8": 2, "INT2": 1} and not runtime.not_delegated(data)
    for kernels in ("xnnpack", "builtin"):
        assert_emulated(data, noise(64, (5, 5, 2)), kernels, monkeypatch)


# Refusals


@pytest.mark.parametrize("norm", [L.LayerNormalization(), L.GroupNormalization(2)], ids=lambda norm: type(norm).__name__)
def test_a_file_with_a_float_island_is_not_modelled(norm):
    source = keras.Input((5, 5, 2))
    x = L.Conv2D(4, 3, activation="relu")(norm(L.Conv2D(4, 3, padding="same", activation="relu")(source)))
    made = kerakd.quantize(keras.Model(source, L.Dense(4)(L.Flatten()(x))), SCHEMES["W4A4"])
    kerakd.calibrate(made, noise(8, (5, 5, 2)))
    assert issubclass(NotModelled, BadInput)
    for kernels in RUNTIMES:
        with pytest.raises(NotModelled, match="expected integer operators among CONV_2D, .*, received "):
            emulate(kerakd.to_tflite(made), noise(2, (5, 5, 2)), kernels)


@pytest.mark.parametrize("shape", [(2, 9, 9), (2, 9, 9, 1), (2, 8, 9, 3), (9, 9, 3), (0, 9, 9, 3)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(BadInput, match=r"images: expected .*\(9, 9, 3\).*, as the file takes them, received"):
        emulate(file("residual", "W4A4", "int8"), np.zeros(shape, np.float32))


def test_unknown_kernels_are_refused():
    with pytest.raises(BadInput, match="kernels: expected one of xnnpack, builtin, micro, received 'gpu'"):
        emulate(file("residual", "W4A4", "int8"), noise(2, IMAGE), "gpu")


@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.99])
def test_a_cut_file_is_refused(part):
    data = file("residual", "W4A4", "int4")
    with pytest.raises(BadInput, match="file: expected a .*TFLite flatbuffer"):
        emulate(data[: int(len(data) * part)], noise(2, IMAGE))


def test_a_file_whose_operators_do_not_fit_their_tensors_is_refused():
    """As a flipped bit makes one: the runtime may take it all the same."""
    student = kerakd.quantize(keras.Sequential([keras.Input(IMAGE), L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(3)]), SCHEMES["W4A4"])
    images = np.random.default_rng(0).normal(size=(4, *IMAGE)).astype(np.float32)
    kerakd.calibrate(student, images)
    model = flatfile.read(kerakd.to_tflite(student))
    operator = next(operator for operator, _, _ in flatfile.weighted(model) if flatfile.op_name(model, operator) == "CONV_2D")
    operator.builtinOptions.dilationHFactor = 50  # higher than the image
    with pytest.raises(BadInput, match="expected operators that fit their tensors, received one that is damaged, or unknown here .*; copy it again"):
        emulate(flatfile.write(model), images)


def operation(name, scales, out, **options):
    """An operation on tensors of these scales."""
    tensors = [emulator.Tensor("t", "INT8", (1, 4), np.float32([scale]), 0) for scale in (*scales, out)]
    return emulator.Operation(name, types.SimpleNamespace(**options), tensors[:-1], tensors[-1], None)


@pytest.mark.parametrize(
    ("name", "within", "beyond"),
    [
        ("ADD", [([200.0, 1.0], 1.0)], [([256.0, 1.0], 1.0)]),
        ("MUL", [([2.0**-8, 2.0**-8], 1.0)], [([2.0**-8, 2.0**-9], 1.0)]),
        ("QUANTIZE", [([2.0**-8], 1.0)], [([2.0**-9], 1.0), ([129.0], 1.0)]),
    ],
)
def test_xnnpack_takes_scales_of_a_range(name, within, beyond):
    assert all(emulator._taken(operation(name, *scales)) for scales in within)
    assert not any(emulator._taken(operation(name, *scales)) for scales in beyond)


def test_a_slice_that_makes_an_axis_is_not_modelled():
    masks = {"ellipsisMask": 0, "newAxisMask": 1, "shrinkAxisMask": 0, "offset": False, "beginMask": 0, "endMask": 0}
    sliced = operation("STRIDED_SLICE", [1.0] * 4, 1.0, **masks)
    for tensor, value in zip(sliced.inputs, (np.zeros((1, 4), np.int8), np.int32([0, 0]), np.int32([1, 4]), np.int32([1, 1])), strict=True):
        tensor.value = value
    with pytest.raises(NotModelled):
        emulator._strided_slice(sliced)


def test_an_addition_may_be_bounded_on_both_sides():
    bounded = operation("ADD", [1.0, 1.0], 0.1, fusedActivationFunction=schema.ActivationFunctionType.RELU_N1_TO_1)
    assert bounded.clamped == (-10, 10)


def test_integers_for_a_file_of_integers_are_codes_or_pixels_and_so_refused():
    net = keras.Sequential([keras.Input((4,)), L.Dense(3)])
    student = kerakd.quantize(net, Scheme(Interval(8), Interval(8)))
    kerakd.calibrate(student, np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))
    codes = np.arange(8, dtype=np.uint8).reshape(2, 4)
    with pytest.raises(BadInput, match="images: expected float ones, as the Keras model takes them, received uint8, which may be codes or pixels"):
        emulate(kerakd.to_tflite(student, io="uint8"), codes)
    assert emulate(kerakd.to_tflite(student), codes).shape == (2, 3)
    tensor = tf.constant(codes / 8.0, tf.float32)
    np.testing.assert_array_equal(emulate(kerakd.to_tflite(student, io="uint8"), tensor), emulate(kerakd.to_tflite(student), tensor))

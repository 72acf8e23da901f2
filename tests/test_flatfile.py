"""Reading and rewriting the flatbuffer: nothing is lost, a damaged file is refused, the census counts what is there, few bits hold the same codes."""

import collections

import numpy as np
import pytest
import tf_keras as keras
from tensorflow.lite.python import schema_py_generated as schema

import kerakd
from kerakd import BadInput
from kerakd.tflite import flatfile, runtime
from kerakd.tflite.fold import Kernel, fold, stored_bits
from kerakd.tflite.grid import Grid

L = keras.layers


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(40, 6, 6, 1)).astype(np.float32)


def calibrated(inputs, outputs, scheme, images):
    made = kerakd.quantize(keras.Model(inputs, outputs), scheme)
    kerakd.calibrate(made, images)
    return made


@pytest.fixture(scope="module")
def student(images):
    """One weighted layer of each kind between an 8-bit first and last one; the kernels of 4 bits have odd and even counts."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 6, 1))
    x = L.Conv2D(3, 3, activation="relu", name="first")(inputs)
    x = L.Conv2D(5, 1, activation="relu", name="pointwise")(x)  # 15 codes
    x = L.Conv2D(3, (1, 3), activation="relu", name="conv")(x)  # 45 codes
    x = L.DepthwiseConv2D((2, 1), activation="relu", name="depthwise")(x)
    x = L.Dense(7, activation="relu", name="dense")(L.Flatten()(x))  # 126 codes
    return calibrated(inputs, L.Dense(3, name="last")(x), kerakd.Scheme(kerakd.Interval(3), kerakd.Interval(4)), images)


@pytest.fixture(scope="module")
def files(student):
    return {container: kerakd.to_tflite(student, container) for container in ("int8", "int4")}


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 15, 16, 33])
@pytest.mark.parametrize("bits", [4, 2])
def test_unpacking_gives_back_what_was_packed(bits, count):
    half = 2 ** (bits - 1)
    codes = np.resize(np.arange(-half, half), count).astype(np.int8)
    packed = flatfile.pack_codes(codes, bits)
    assert packed.dtype == np.uint8 and len(packed) == -(-count * bits // 8)
    unpacked = flatfile.unpack_codes(packed, bits, count)
    assert unpacked.dtype == np.int8
    np.testing.assert_array_equal(unpacked, codes)


def test_every_byte_holds_the_pair_of_its_codes_the_first_in_the_low_half():
    raw = np.arange(256, dtype=np.uint8)
    codes = flatfile.unpack_codes(raw, 4, 512)
    assert codes[:2].tolist() == [0, 0] and codes[2 * 0x8F : 2 * 0x8F + 2].tolist() == [-1, -8]
    np.testing.assert_array_equal(flatfile.pack_codes(codes, 4), raw)


def test_every_byte_holds_the_four_of_its_codes_the_first_in_the_lowest_bits():
    raw = np.arange(256, dtype=np.uint8)
    codes = flatfile.unpack_codes(raw, 2, 1024)
    two = {0: 0, 1: 1, 2: -2, 3: -1}
    assert codes.tolist() == [two[byte // 4**place % 4] for byte in range(256) for place in range(4)]
    np.testing.assert_array_equal(flatfile.pack_codes(codes, 2), raw)


@pytest.mark.parametrize("bits", [4, 2])
def test_what_is_left_of_the_last_byte_is_zero(bits):
    assert flatfile.pack_codes(np.array([-1], np.int8), bits).tolist() == [2**bits - 1]
    assert flatfile.pack_codes(-np.ones(8 // bits + 1, np.int8), bits).tolist() == [255, 2**bits - 1]


def test_a_kernel_of_any_shape_is_packed_in_its_own_order():
    for bits, codes in ((4, np.arange(-4, 2, dtype=np.int8)), (2, np.array([-1, 0, 1, 1, 0, -1], np.int8))):
        packed = flatfile.pack_codes(codes.reshape(1, 2, 3), bits)
        np.testing.assert_array_equal(flatfile.unpack_codes(packed, bits, 6), codes)


@pytest.mark.parametrize("container", ["int8", "int4"])
def test_a_file_cut_anywhere_is_refused(files, container):
    data = files[container]
    for length in range(len(data)):
        with pytest.raises(BadInput, match=f"received {length} bytes"):
            flatfile.read(data[:length])


def test_a_cut_file_is_called_cut_and_another_file_is_called_another(files):
    data = files["int8"]
    with pytest.raises(BadInput, match="end too early or are damaged"):
        flatfile.read(data[: len(data) // 2])
    with pytest.raises(BadInput, match="without its mark TFL3"):
        flatfile.read(b"PK\x03\x04" + bytes(100))


@pytest.mark.parametrize("container", ["int8", "int4"])
def test_with_other_outputs_the_values_are_the_same(files, images, container):
    """The file's own output among them, with its tensors and, one by one, alone."""
    data = files[container]
    graph = flatfile.read(data).subgraphs[0]
    inside = [op.outputs[0] for op in graph.operators]
    assert inside[-1] == graph.outputs[0]
    together = list(zip(*runtime.each(flatfile.with_outputs(data, inside), images), strict=True))
    np.testing.assert_array_equal(together[-1], runtime.run(data, images))
    for index, values in zip(inside, together, strict=True):
        changed = flatfile.with_outputs(data, [index])
        assert list(flatfile.read(changed).subgraphs[0].outputs) == [index]
        np.testing.assert_array_equal([value for (value,) in runtime.each(changed, images)], values)
        assert runtime.interpreter(changed).get_output_details()[0]["index"] == index
    assert flatfile.census(flatfile.with_outputs(data, inside))["operators"] == flatfile.census(data)["operators"]


def test_signatures_which_name_the_outputs_that_were_are_dropped_with_them(files, images):
    model = flatfile.read(files["int8"])
    graph, signature = model.subgraphs[0], schema.SignatureDefT()
    ends = [schema.TensorMapT(name="end", tensorIndex=int(index)) for index in (graph.inputs[0], graph.outputs[0])]
    signature.signatureKey, signature.subgraphIndex, signature.inputs, signature.outputs = "serving_default", 0, ends[:1], ends[1:]
    model.signatureDefs = [signature]
    named = flatfile.write(model)
    assert flatfile.read(named).signatureDefs[0].signatureKey == b"serving_default"
    changed = flatfile.with_outputs(named, [graph.operators[1].outputs[0]])
    assert not flatfile.read(changed).signatureDefs and next(runtime.each(changed, images))[0].shape == (4, 4, 3)


@pytest.mark.parametrize("container", ["int8", "int4"])
def test_a_constant_shorter_than_its_shape_is_refused(files, container):
    model = flatfile.read(files[container])
    kernel = list(flatfile.weighted(model))[2][1]
    model.buffers[kernel.buffer].data = model.buffers[kernel.buffer].data[:-2]
    with pytest.raises(BadInput, match="damaged"):
        flatfile.read(flatfile.write(model))


@pytest.mark.parametrize("reader", [flatfile.census, flatfile.unpack, runtime.interpreter, runtime.not_delegated, runtime.milliseconds])
def test_whatever_takes_a_file_refuses_a_damaged_one(files, reader):
    for data in (b"", b"\x1c\x00\x00\x00TFL3", files["int8"][:-1], files["int8"][:4] + b"TFL2" + files["int8"][8:]):
        with pytest.raises(BadInput, match="expected a"):
            reader(data)


@pytest.mark.parametrize("container", ["int8", "int4"])
def test_writing_what_was_read_computes_the_same(files, images, container):
    again = flatfile.write(flatfile.read(files[container]))
    np.testing.assert_array_equal(runtime.run(again, images), runtime.run(files[container], images))
    assert flatfile.census(again) == flatfile.census(files[container])


def test_unpacking_a_file_without_4_bit_tensors_changes_nothing(files, images):
    unpacked = flatfile.unpack(files["int8"])
    np.testing.assert_array_equal(runtime.run(unpacked, images), runtime.run(files["int8"], images))
    assert flatfile.census(unpacked) == flatfile.census(files["int8"])


def kernels(data):
    """{operator and number: (type, codes, steps)} of the file's weighted operators."""
    model = flatfile.read(data)
    rows = enumerate(flatfile.weighted(model))
    return {
        f"{flatfile.op_name(model, op)} {n}": (flatfile.TYPES[kernel.type], flatfile.values(model, kernel), np.asarray(kernel.quantization.scale))
        for n, (op, kernel, _) in rows
    }


def assert_unpacked(packed, unpacked):
    """The same operators with the same codes and steps, in 8 bits."""
    assert packed.keys() == unpacked.keys()
    for name, (kind, codes, steps) in unpacked.items():
        assert kind == "INT8"
        np.testing.assert_array_equal(codes, packed[name][1])
        np.testing.assert_array_equal(steps, packed[name][2])


def test_unpacking_keeps_every_code_and_step_and_leaves_8_bits(files):
    packed = kernels(files["int4"])
    assert [kind for kind, _, _ in packed.values()] == ["INT8", "INT4", "INT4", "INT8", "INT4", "INT8"]
    assert_unpacked(packed, kernels(flatfile.unpack(files["int4"])))


def stored(data):
    """How many bytes each kernel takes; the codes in another width are gone, not left behind in a buffer that nobody reads."""
    model = flatfile.read(data)
    used = {tensor.buffer for tensor in model.subgraphs[0].tensors} | {entry.buffer for entry in model.metadata or []}
    assert all(n in used for n, buffer in enumerate(model.buffers) if buffer.data is not None and len(buffer.data))
    return [len(model.buffers[kernel.buffer].data) for _, kernel, _ in flatfile.weighted(model)]


def test_a_packed_code_takes_half_a_byte(files):
    first, depthwise, last = 27, 6, 21
    assert stored(files["int4"]) == [first, 8, 23, depthwise, 63, last]
    assert stored(flatfile.unpack(files["int4"])) == [first, 15, 45, depthwise, 126, last]


@pytest.mark.parametrize("operator, version", [("CONV_2D", 7), ("FULLY_CONNECTED", 10)])
def test_an_operator_with_weights_of_few_bits_says_the_version_that_takes_them(files, ternary, operator, version):
    for data in (files["int4"], ternary[1]):
        model = flatfile.read(data)
        versions = {model.operatorCodes[op.opcodeIndex].version for op, kernel, _ in flatfile.weighted(model)
                    if flatfile.TYPES[kernel.type] != "INT8" and flatfile.op_name(model, op) == operator}  # fmt: skip
        assert versions and min(versions) >= version


@pytest.mark.parametrize("container", ["int8", "int4"])
def test_the_census_counts_operators_weights_and_codes(student, files, container):
    """In the small container a 1x1 convolution is a dense layer of each pixel, and a depthwise one keeps its 8 bits."""
    counted, small = flatfile.census(files[container]), container == "int4"
    kinds = ["CONV_2D", "FULLY_CONNECTED" if small else "CONV_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "FULLY_CONNECTED"]
    weighted = {"CONV_2D": kinds.count("CONV_2D"), "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": kinds.count("FULLY_CONNECTED")}
    assert counted["operators"] == {"QUANTIZE": 1, **weighted, "RESHAPE": 1, "DEQUANTIZE": 1}
    assert counted["weights"] == ({"INT8": 3, "INT4": 3} if small else {"INT8": 6})
    assert counted["float_tensors"] == []
    linears = fold(student, container).linears
    assert [kernel["codes"] for kernel in counted["kernels"]] == [np.unique(linear.codes).tolist() for linear in linears.values()]
    assert [kernel["op"] for kernel in counted["kernels"]] == kinds
    assert len({kernel["name"] for kernel in counted["kernels"]}) == 6
    assert [kernel["type"] for kernel in counted["kernels"]] == ["INT4" if small and n in (1, 2, 4) else "INT8" for n in range(6)]


def test_the_census_names_a_float_tensor_inside_but_not_the_ends(files):
    model = flatfile.read(files["int8"])
    op, _, _ = list(flatfile.weighted(model))[1]
    inner = model.subgraphs[0].tensors[op.outputs[0]]
    inner.type = schema.TensorType.FLOAT32
    assert flatfile.census(flatfile.write(model))["float_tensors"] == [inner.name.decode()]


# Kernels of 2 bits, and convolutions that are dense layers


@pytest.fixture(scope="module")
def ternary():
    """(a student of ternary kernels, its small container, images): 1x1 convolutions of 4n channels and of others, one with a stride, one divided."""
    keras.utils.set_random_seed(2)
    images = np.random.default_rng(0).normal(size=(40, 6, 6, 3)).astype(np.float32)
    inputs = keras.Input((6, 6, 3))
    x = L.Conv2D(32, 3, activation="relu", name="first")(inputs)
    x = L.Conv2D(9, 1, activation="relu", name="two")(x)  # 32 to 9 channels: 2 bits
    x = L.Conv2D(8, 1, activation="relu", name="four")(x)  # 9 are no multiple of 4
    x = L.Conv2D(6, 1, groups=2, activation="relu", name="divided")(x)
    x = L.Conv2D(7, 1, strides=2, activation="relu", name="strided")(x)
    x = L.Dense(48, activation="relu", name="wide")(L.Flatten()(x))  # 28 inputs
    made = calibrated(inputs, L.Dense(3, name="last")(x), kerakd.Scheme(kerakd.Ternary(), kerakd.Interval(8)), images)
    for name in ("two", "wide"):  # ranges that a bias on a coarse grid is good enough for
        interval = made.get_layer(f"{name}_relu_out").quantizer_variables["interval"]
        interval.assign(interval * 8)
    return made, kerakd.to_tflite(made, "int4"), images


def test_ternary_kernels_of_4n_inputs_have_2_bits(ternary):
    student, data, _ = ternary
    model = flatfile.read(data)
    found = [(flatfile.op_name(model, op), flatfile.TYPES[kernel.type]) for op, kernel, _ in flatfile.weighted(model)]
    dense, conv = "FULLY_CONNECTED", "CONV_2D"
    assert found == [(conv, "INT8"), (dense, "INT2"), (dense, "INT4"), (conv, "INT4"), (conv, "INT4"), (dense, "INT2"), (dense, "INT8")]
    assert stored(data) == [864, 32 * 9 // 4, 9 * 8 // 2, 4 * 6 // 2, 6 * 7 // 2, 28 * 48 // 4, 144]
    for (_, kernel, _), linear in zip(flatfile.weighted(model), fold(student, "int4").linears.values(), strict=True):
        if flatfile.TYPES[kernel.type] == "INT2":
            assert set(flatfile.values(model, kernel).ravel()) == {-1, 0, 1} and (linear.bits, linear.headroom) == (2, 1)


def test_the_fewest_bits_say_the_oldest_litert_and_an_older_one_is_refused(files, ternary, monkeypatch):
    assert [runtime.oldest(data) for data in (files["int8"], files["int4"], ternary[1])] == ["1.2.0", "1.3.0", "2.1.5"]
    monkeypatch.setattr(runtime.metadata, "version", lambda name: "1.2.0")
    runtime.interpreter(files["int8"])
    with pytest.raises(BadInput, match="expected ai-edge-litert 1.3.0 or newer for its kernels, received 1.2.0; upgrade it, or take kerakd.unpack"):
        runtime.interpreter(files["int4"])


def test_unpacking_2_bits_keeps_every_code_and_step_and_what_is_computed(ternary):
    student, data, images = ternary
    unpacked = flatfile.unpack(data)
    assert_unpacked(kernels(data), kernels(unpacked))
    assert stored(unpacked) == [864, 32 * 9, 9 * 8, 4 * 6, 6 * 7, 28 * 48, 144]
    assert flatfile.census(unpacked)["weights"] == {"INT8": 7}
    assert kerakd.verify(student, unpacked, images).exact and runtime.not_delegated(unpacked) == []


def test_only_1x1_convolutions_of_all_channels_at_every_pixel_become_dense(ternary):
    _, data, _ = ternary
    model = flatfile.read(data)
    tensors = model.subgraphs[0].tensors
    for op, kernel, bias in flatfile.weighted(model):
        if flatfile.op_name(model, op) == "FULLY_CONNECTED":
            x, y = (tensors[index] for index in (op.inputs[0], op.outputs[0]))
            assert len(kernel.shape) == 2 and (kernel.shape[0], kernel.shape[1]) == (y.shape[-1], x.shape[-1])
            assert list(x.shape[:-1]) == list(y.shape[:-1]) and op.builtinOptions.keepNumDims == (len(x.shape) == 4)
            packed = flatfile.TYPES[kernel.type] != "INT8"
            assert len(kernel.quantization.scale) == len(kernel.quantization.zeroPoint) == (kernel.shape[0] if packed else 1)
            assert kernel.quantization.quantizedDimension == 0 and not np.any(kernel.quantization.zeroPoint)
            assert bias is None or bias.shape[0] == kernel.shape[0]


def test_what_a_dense_layer_computes_of_a_pixel_is_what_the_convolution_computed(student, files, images, ternary, monkeypatch):
    """The same file with its convolutions left as they are; both unpacked, so that XNNPACK takes all of them."""
    for made, data, seen, expected in ((*ternary, [(5, 2), (3, 4)]), (student, files["int4"], images, [(3, 2), (2, 3)])):
        with monkeypatch.context() as patch:
            patch.setattr(flatfile, "_make_dense", lambda model, operator: None)
            convolutions = kerakd.to_tflite(made, "int4")
        counts = [flatfile.census(file)["operators"] for file in (convolutions, data)]
        assert [(count["CONV_2D"], count["FULLY_CONNECTED"]) for count in counts] == expected
        one, other = (runtime.run(flatfile.unpack(file), seen) for file in (convolutions, data))
        np.testing.assert_array_equal(one, other)
        assert len(np.unique(one)) > 3


@pytest.mark.parametrize(
    ("template", "inputs", "high", "bits"),
    [
        (L.Conv2D(8, 1), 4, 1, 2),
        (L.Dense(8), 12, 1, 2),
        (L.Conv2D(8, 1), 6, 1, 4),  # no whole bytes for an output
        (L.Dense(8), 3, 1, 4),
        (L.Conv2D(8, 1), 4, 3, 4),  # codes that are not ternary
        (L.Conv2D(8, 1), 4, 7, 4),
        (L.Conv2D(8, 1), 4, 15, 8),
        (L.Conv2D(8, 1, strides=2), 4, 1, 4),  # no dense layer of each pixel
        (L.Conv2D(8, 1, groups=2), 4, 1, 4),
        (L.Conv2D(8, (1, 3)), 4, 1, 4),
        (L.DepthwiseConv2D(1), 4, 1, 8),  # XNNPACK has none in few bits
    ],
)
def test_a_code_has_2_bits_where_runtimes_take_them_4_if_it_fits_and_else_8(template, inputs, high, bits):
    kernel = Kernel(template, np.zeros((*getattr(template, "kernel_size", ()), inputs, 8)), np.full(8, 0.5), np.zeros(8), high)
    x, fine, coarse = Grid(0.25, 0, 255), Grid(0.125 * 1024 / 255, 0, 255), Grid(0.1249 * 1024 / 255, 0, 255)
    assert stored_bits(kernel, x, fine, "int4") == bits
    assert stored_bits(kernel, x, fine, "int8") == 8
    # 2 bits leave no headroom, so one unit of the bias is a step of the input times one of the kernel: here more than 1/1024 of the output's range
    assert stored_bits(kernel, x, coarse, "int4") == max(bits, 4)


def test_writing_keeps_equal_vectors_once_and_buffers_where_a_phone_can_map_them(files):
    """Zero points are equal in every kernel; LiteRT maps a buffer whose address is a multiple of 16."""
    data = flatfile.write(flatfile.read(files["int4"]))
    model = flatfile.read(data)
    for _, kernel, _ in flatfile.weighted(model):
        raw = np.asarray(model.buffers[kernel.buffer].data, np.uint8).tobytes()
        places = [place for place in range(0, len(data), 16) if data[place : place + len(raw)] == raw]
        assert places and int.from_bytes(data[places[0] - 4 : places[0]], "little") == len(raw)
    quantizations = [tensor.quantization for tensor in model.subgraphs[0].tensors if tensor.quantization.zeroPoint is not None]
    (vector, count), *_ = collections.Counter(zero.zeroPoint.tobytes() for zero in quantizations if len(zero.zeroPoint) > 3).most_common()
    assert count > 1 and data.count((len(vector) // 8).to_bytes(4, "little") + vector) == 1

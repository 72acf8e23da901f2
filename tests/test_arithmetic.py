"""The NumPy models of XNNPACK's int8 arithmetic against the real LiteRT interpreter, on files of one operator each: zero mismatches."""

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from tensorflow.lite.python import schema_py_generated as schema

from kerakd.tflite import arithmetic

NONE, RELU, RELU6 = (getattr(schema.ActivationFunctionType, name) for name in ("NONE", "RELU", "RELU6"))
CODES = np.arange(-128, 128)
OPTIONS = {
    "CONV_2D": schema.Conv2DOptionsT,
    "DEPTHWISE_CONV_2D": schema.DepthwiseConv2DOptionsT,
    "FULLY_CONNECTED": schema.FullyConnectedOptionsT,
    "ADD": schema.AddOptionsT,
    "MEAN": schema.ReducerOptionsT,
    "QUANTIZE": schema.QuantizeOptionsT,
}
VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 5, "ADD": 2, "MEAN": 2, "QUANTIZE": 1, "LOGISTIC": 2}
TYPES = {"int8": schema.TensorType.INT8, "int32": schema.TensorType.INT32, "float32": schema.TensorType.FLOAT32}


class OneOp:
    """A flatbuffer of one operator: tensors are added in the order of the operator's inputs, the output last."""

    def __init__(self):
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.buffers, self.model.subgraphs = 3, [schema.BufferT()], [self.graph]
        self.graph.tensors, self.graph.inputs = [], []

    def tensor(self, shape, dtype="int8", quantization=None, axis=0, data=None):
        """Adds a constant if there is `data`, else an input; the output is taken back from the inputs in `run`."""
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer, tensor.name = list(shape), TYPES[dtype], 0, f"t{len(self.graph.tensors)}"
        if quantization is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = np.atleast_1d(np.asarray(quantization[0], np.float32))
            tensor.quantization.zeroPoint = np.atleast_1d(np.asarray(quantization[1], np.int64))
            tensor.quantization.quantizedDimension = axis
        if data is None:
            self.graph.inputs.append(len(self.graph.tensors))
        else:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data, dtype).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)

    def run(self, name, *inputs, **options):
        """The output of operator `name`, computed by XNNPACK (asserted) on `inputs`."""
        last = len(self.graph.tensors) - 1
        self.graph.inputs.remove(last)
        self.graph.outputs = [last]
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
        code.version = VERSIONS[name]
        operator.opcodeIndex, operator.inputs, operator.outputs = 0, list(range(last)), [last]
        if name in OPTIONS:  # the schema has none for some operators
            operator.builtinOptions = option = OPTIONS[name]()
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(option).__name__[:-1])
            for key, value in options.items():
                setattr(option, key, value)
        self.model.operatorCodes, self.graph.operators = [code], [operator]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        interpreter = Interpreter(model_content=bytes(builder.Output()), num_threads=1)
        interpreter.allocate_tensors()
        assert any(op["op_name"] == "DELEGATE" for op in interpreter._get_ops_details())
        for index, value in zip(self.graph.inputs, inputs, strict=True):
            interpreter.set_tensor(index, value)
        interpreter.invoke()
        return interpreter.get_tensor(last)


def fractions(rng, low, high, size=None):
    """float32 scales between 2^low and 2^high."""
    return np.exp2(rng.uniform(low, high, size)).astype(np.float32)


def fused_range(activation, scale, zero):
    """The lowest and highest code that a fused activation leaves."""
    return (-128 if activation == NONE else zero), (min(127, zero + round(6 / scale)) if activation == RELU6 else 127)


def run_weighted(name, x, kernel, bias, x_q, steps, y_q, activation=NONE):
    """One weighted operator, 1x1 and stride 1; x [n, C_in], kernel [C_out, C_in], or [C] for a depthwise one."""
    one, rows = OneOp(), len(x)
    dense, depthwise = name == "FULLY_CONNECTED", name == "DEPTHWISE_CONV_2D"
    kernel = kernel if dense else kernel.reshape(1, 1, 1, -1) if depthwise else kernel[:, None, None]
    spread = () if dense else (1, 1)
    one.tensor((rows, *spread, x.shape[1]), quantization=x_q)
    one.tensor(kernel.shape, quantization=(steps, np.zeros(len(steps))), axis=3 if depthwise else 0, data=kernel)
    one.tensor((len(bias),), "int32", quantization=(np.float32(x_q[0]) * steps, np.zeros(len(steps))), data=bias)
    one.tensor((rows, *spread, len(bias)), quantization=y_q)
    strides = {} if dense else {"strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1, "padding": schema.Padding.VALID}
    multiplier = {"depthMultiplier": 1} if depthwise else {}
    y = one.run(name, x.reshape(rows, *spread, -1), fusedActivationFunction=activation, **strides, **multiplier)
    return y.reshape(rows, -1)


WEIGHTED = [("CONV_2D", True), ("DEPTHWISE_CONV_2D", True), ("FULLY_CONNECTED", True), ("FULLY_CONNECTED", False)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name, per_channel", WEIGHTED)
def test_products_are_rounded_once_from_float32(name, per_channel, seed):
    rng = np.random.default_rng(seed)
    c_in, c_out = 24, 24
    depthwise = name == "DEPTHWISE_CONV_2D"
    kernel = rng.integers(-127, 128, c_in if depthwise else (c_out, c_in)).astype(np.int8)
    x = rng.integers(-128, 128, (256, c_in)).astype(np.int8)
    bias = rng.integers(-3000, 3000, c_out)
    x_q, steps = (fractions(rng, -6, 1), int(rng.integers(-128, 128))), fractions(rng, -8, -5, c_out if per_channel else 1)
    y_q = np.float32(x_q[0] * 0.012 * 74 * (1 if depthwise else c_in**0.5)), int(rng.integers(-128, 128))
    centred = x.astype(np.int64) - x_q[1]
    acc = (centred * kernel if depthwise else centred @ kernel.astype(np.int64).T) + bias
    expected = arithmetic.requantize_xnnpack(acc, x_q[0], steps, y_q[0], y_q[1])
    np.testing.assert_array_equal(run_weighted(name, x, kernel, bias, x_q, steps, y_q), expected)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name, per_channel", WEIGHTED)
def test_accumulators_next_to_a_tie_show_the_multiplier_to_the_last_bit(name, per_channel, seed):
    """With x at its zero point the accumulator is the bias: it is put where any other order of the products gives another code."""
    rng = np.random.default_rng(seed)
    count, zero = 509, int(rng.integers(-128, 128))
    c_in = count if name == "DEPTHWISE_CONV_2D" else 4
    x_q, steps = (fractions(rng, -6, 1), zero), fractions(rng, -8, -5, count if per_channel else 1)
    y_q = np.float32(x_q[0] * fractions(rng, 8, 15)), 0
    exact = np.float64(x_q[0]) * steps.astype(np.float64) / np.float64(y_q[0])
    bias = np.rint((rng.integers(-128, 127, count) + 0.5) / exact).astype(np.int64) + rng.integers(-1, 2, count)
    kernel = rng.integers(-127, 128, count if name == "DEPTHWISE_CONV_2D" else (count, c_in)).astype(np.int8)
    y = run_weighted(name, np.full((2, c_in), zero, np.int8), kernel, bias, x_q, steps, y_q)
    np.testing.assert_array_equal(y, arithmetic.requantize_xnnpack(np.tile(bias, (2, 1)), x_q[0], steps, *y_q))


@pytest.mark.parametrize("zero", [-128, -3, 0, 40, 127])
@pytest.mark.parametrize("activation", [NONE, RELU, RELU6])
@pytest.mark.parametrize("name", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"])
def test_ties_go_to_even_before_the_zero_point_and_codes_are_clamped_after_it(name, activation, zero):
    bias = np.arange(-400, 401)
    count, c_in = len(bias), len(bias) if name == "DEPTHWISE_CONV_2D" else 4
    steps = np.full(count, 0.5, np.float32)  # the multiplier is one half: every odd accumulator is a tie
    kernel = np.ones(count if name == "DEPTHWISE_CONV_2D" else (count, c_in), np.int8)
    y = run_weighted(name, np.zeros((1, c_in), np.int8), kernel, bias, (1.0, 0), steps, (1.0, zero), activation)
    low, high = fused_range(activation, 1.0, zero)
    np.testing.assert_array_equal(y[0], arithmetic.requantize_xnnpack(bias, 1.0, steps, 1.0, zero, low, high))
    np.testing.assert_array_equal(y[0], np.clip([round(int(b) / 2) + zero for b in bias], low, high))


@pytest.mark.parametrize("name", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"])
def test_an_accumulator_beyond_24_bits_is_rounded_to_float32_first(name):
    """Halves that only exist before the accumulator is rounded to a float32."""
    rng = np.random.default_rng(3)
    count, unit = 1024, 2**23
    c_in = count if name == "DEPTHWISE_CONV_2D" else 4
    bias = (2 * rng.integers(-127, 127, count) + 1) * (unit // 2) + rng.integers(-40, 41, count)
    steps = np.full(count, 2.0**-3, np.float32)
    kernel = np.ones(count if name == "DEPTHWISE_CONV_2D" else (count, c_in), np.int8)
    y_scale = np.float32(2.0**-3 * unit)
    y = run_weighted(name, np.zeros((1, c_in), np.int8), kernel, bias, (1.0, 0), steps, (y_scale, 0))
    np.testing.assert_array_equal(y[0], arithmetic.requantize_xnnpack(bias, 1.0, steps, y_scale, 0))
    assert (y[0] != np.clip(np.rint(bias / unit), -128, 127)).any()  # the exact quotient gives other codes


def test_the_multiplier_is_the_rounded_product_over_the_output_step():
    rng = np.random.default_rng(0)
    s_x, s_y, s_w = np.float32(0.1), np.float32(0.7), fractions(rng, -8, -5, 100)
    product = (np.float64(s_x) * s_w).astype(np.float32)
    made = arithmetic.multiplier(s_x, s_w, s_y)
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made, (product.astype(np.float64) / np.float64(s_y)).astype(np.float32))


def all_pairs():
    return np.repeat(CODES, 256).astype(np.int8), np.tile(CODES, 256).astype(np.int8)


def run_add(a, b, a_q, b_q, y_q, activation=NONE):
    one = OneOp()
    for quantization in (a_q, b_q, y_q):
        one.tensor(a.shape, quantization=quantization)
    return one.run("ADD", a, b, fusedActivationFunction=activation)


ADDED = [
    ((0.05, 0), (0.05, 0), (0.05, 0)),
    ((0.05, 0), (0.05, 0), (0.1, 3)),  # every odd sum is a tie
    ((0.05, -7), (0.031, 100), (0.07, -20)),
    ((0.5, 127), (0.25, -128), (1.0, -128)),  # ties among powers of two
    ((1.0, 5), (0.003, 6), (0.9, 0)),  # the smaller ratio loses bits of its multiplier
    ((0.003, 5), (1.0, 6), (0.9, 112)),
    ((0.02, 0), (0.03, 0), (3.0, 0)),  # both ratios far below one
    ((3.0, 0), (2.0, 0), (0.04, -1)),  # and far above
    ((0.7, 0), (1.3, 0), (1.3, 0)),  # the larger ratio exactly one
]


@pytest.mark.parametrize("activation", [NONE, RELU, RELU6])
@pytest.mark.parametrize("a_q, b_q, y_q", ADDED)
def test_add_is_known_for_every_pair_of_codes(a_q, b_q, y_q, activation):
    a, b = all_pairs()
    expected = arithmetic.add_xnnpack(a, b, a_q, b_q, y_q, *fused_range(activation, *y_q))
    np.testing.assert_array_equal(run_add(a, b, a_q, b_q, y_q, activation), expected)


@pytest.mark.parametrize("seed", range(12))
def test_add_is_known_for_every_pair_of_codes_at_any_scales(seed):
    rng = np.random.default_rng(seed)
    a_q, b_q, y_q = ((fractions(rng, -6, 1), int(rng.integers(-128, 128))) for _ in range(3))
    a, b = all_pairs()
    np.testing.assert_array_equal(run_add(a, b, a_q, b_q, y_q), arithmetic.add_xnnpack(a, b, a_q, b_q, y_q))


def run_mean(x, x_q, y_q):
    one = OneOp()
    one.tensor(x.shape, quantization=x_q)
    one.tensor((2,), "int32", data=[1, 2])
    one.tensor((len(x), x.shape[-1]), quantization=y_q)
    return one.run("MEAN", x, keepDims=False)


@pytest.mark.parametrize("same_grid", [True, False])
@pytest.mark.parametrize("height, width", [(1, 1), (2, 2), (4, 4), (7, 7), (3, 5), (8, 8), (14, 2)])
def test_mean_is_known_at_any_scales(height, width, same_grid):
    for seed in range(6):
        rng = np.random.default_rng([seed, height])
        x_q = fractions(rng, -6, 1), int(rng.integers(-128, 128))
        y_q = x_q if same_grid else (np.float32(x_q[0] * fractions(rng, -3, 1)), int(rng.integers(-128, 128)))
        x = np.clip(rng.normal(rng.integers(-60, 60, 999), 30, (2, height, width, 999)), -128, 127).astype(np.int8)
        expected = arithmetic.mean_xnnpack(x.astype(np.int64).sum((1, 2)), height * width, x_q, y_q)
        np.testing.assert_array_equal(run_mean(x, x_q, y_q), expected)


@pytest.mark.parametrize("x_zero, y_zero", [(0, 0), (0, 1), (-128, -128), (112, 112), (5, -127), (-3, 126)])
def test_a_tied_mean_goes_to_an_even_code_zero_point_included(x_zero, y_zero):
    totals = np.arange(-256, 255)  # of two codes; each odd one is a tie
    first = np.clip(totals, -128, 127)
    x = np.stack([first, totals - first]).reshape(1, 2, 1, -1).astype(np.int8)
    y = run_mean(x, (0.5, x_zero), (0.5, y_zero))
    np.testing.assert_array_equal(y[0], arithmetic.mean_xnnpack(totals, 2, (0.5, x_zero), (0.5, y_zero)))
    np.testing.assert_array_equal(y[0], np.clip([round((int(t) - 2 * x_zero) / 2 + y_zero) for t in totals], -128, 127))


@pytest.mark.parametrize("seed", range(12))
def test_floats_are_quantized_by_the_rounded_inverse_of_the_step(seed):
    rng = np.random.default_rng(seed)
    y_q = fractions(rng, -8, 3) if seed % 4 else np.float32(0.25), int(rng.integers(-128, 128))
    halves = (rng.integers(-300, 300, 4096) / 2 * y_q[0]).astype(np.float32)  # ties, their neighbours, and codes past both ends
    above, below = (np.nextafter(halves, np.float32(end)) for end in (np.inf, -np.inf))
    x = np.concatenate([halves, above, below, rng.normal(0, 40 * y_q[0], 4096)])
    x = x.astype(np.float32)
    one = OneOp()
    one.tensor(x.shape, "float32")
    one.tensor(x.shape, quantization=y_q)
    np.testing.assert_array_equal(one.run("QUANTIZE", x), arithmetic.quantize_xnnpack(x, y_q))


def run_sigmoid(x_q):
    one = OneOp()
    one.tensor(CODES.shape, quantization=x_q)
    one.tensor(CODES.shape, quantization=(1 / 256, -128))
    return one.run("LOGISTIC", CODES.astype(np.int8))


@pytest.mark.parametrize("seed", range(100))
def test_sigmoid_is_known_for_every_code(seed):
    rng = np.random.default_rng(seed)
    x_q = fractions(rng, -8, 3), int(rng.integers(-128, 128))
    np.testing.assert_array_equal(run_sigmoid(x_q), arithmetic.sigmoid_xnnpack(CODES, x_q))


@pytest.mark.parametrize("code", [3, 17, 101])
def test_a_sigmoid_next_to_a_tie_shows_the_order_of_its_roundings(code):
    for answer in np.delete(np.arange(0.5, 255), 127):
        scale = np.float32(abs(np.log(answer / (256 - answer)) / code))  # puts `code` or its negative half-way between two answers
        for s in (scale, *np.nextafter(scale, np.float32([0, np.inf]))):
            np.testing.assert_array_equal(run_sigmoid((s, 0)), arithmetic.sigmoid_xnnpack(CODES, (s, 0)), err_msg=repr((s, answer)))


@pytest.mark.parametrize("zero", [-128, 0, 127])
@pytest.mark.parametrize("scale", [0.03, 0.5, 100.0, 1e30])
def test_a_sigmoid_is_a_half_at_the_zero_point_and_saturates_without_a_warning(scale, zero):
    y = arithmetic.sigmoid_xnnpack(CODES, (scale, zero))
    np.testing.assert_array_equal(run_sigmoid((scale, zero)), y)
    assert y[zero + 128] == 0 and (np.diff(y.astype(int)) >= 0).all() and (scale < 1 or set(y) <= {-128, 0, 127})


def test_clamp_saturates_instead_of_wrapping():
    np.testing.assert_array_equal(arithmetic.clamp(np.array([-1000, -129, -128, 127, 128, 1000])), [-128, -128, -128, 127, 127, 127])
    clamped = arithmetic.clamp(np.array([-1000, 5, 1000]), -3, 9)
    assert clamped.dtype == np.int8
    np.testing.assert_array_equal(clamped, [-3, 5, 9])

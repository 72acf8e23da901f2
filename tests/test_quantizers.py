"""Laws of the quantizers: the papers' numbers and gradients, the grid, what an optimizer may do to an interval, the flags."""

import contextlib
import dataclasses
import itertools
import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kerakd import grids, quantizers
from kerakd.errors import BadInput
from kerakd.quantizers import DoReFa, GridQuantizer, Interval, KBit, Pact, Sigmoid, Tanh, Ternary, deserialize, parse, serialize

WIDTHS = range(2, 9)
KINDS = ("weights", "unsigned", "signed")
SEVENTH = 1 / 7

# the inputs of the golden vectors in the spec
W = np.float32([-1.3, -0.62, -0.30, -0.04, 0, 0.07, 0.21, 0.55, 0.98])
A = np.float32([-0.2, 0, 0.1, 0.333, 0.5, 0.9, 1.7])


def fields_default(cls, name):
    return next(field.default for field in dataclasses.fields(cls) if field.name == name)


def options(cls):
    """Every setting of a quantizer's own flags: its widths and the subsets of its switches."""
    fields = {field.name: field.type for field in dataclasses.fields(cls) if field.name not in ("signed", "narrow")}
    switches = [name for name, kind in fields.items() if kind is bool and fields_default(cls, name) is False]
    for on in itertools.product((False, True), repeat=len(switches)):
        for bits in WIDTHS if "bits" in fields else [None]:
            yield {**({} if bits is None else {"bits": bits}), **dict(zip(switches, on))}


FLAGGED = [(name, kwargs) for name, cls in quantizers.BY_NAME.items() for kwargs in options(cls)]


def usable():
    """Every quantizer of the table, for every kind of tensor that it takes."""
    found = [Ternary(scale="positive"), Ternary(scale="positive", per_channel=True)]
    for name, kwargs in FLAGGED:
        for kind in KINDS:
            try:
                quantizer = quantizers.BY_NAME[name](**kwargs).for_tensor(kind)
            except BadInput:
                continue
            found += [quantizer] if quantizer not in found else []
    return found


USABLE = usable()
every = pytest.mark.parametrize("quantizer", USABLE, ids=repr)


def learns(quantizer):
    return bool(built(quantizer, (2, 3), 1.0))


def is_dorefa_weights(quantizer):
    # 2 * code / n - 1 with an odd n: the grid has no 0, and tanh keeps a grid point from mapping to itself
    return isinstance(quantizer, DoReFa) and quantizer.signed


def built(quantizer, shape, interval):
    """The quantizer's variables for a tensor of `shape`, all set to `interval`."""
    variables = quantizer.build(tf.TensorShape(shape), "kernel", keras.layers.Layer())
    for variable in variables.values():
        variable.assign(np.broadcast_to(np.float32(interval), variable.shape))
    return variables


def apply(quantizer, x, interval=0.8):
    return quantizer(tf.constant(x), True, built(quantizer, x.shape, interval)).numpy()


def gradients(quantizer, x, interval, upstream):
    """(to x, to the interval or None) of sum(upstream * q(x))."""
    x, variables = tf.constant(x), built(quantizer, x.shape, interval)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(quantizer(x, True, variables) * upstream)
    to_x, to_variables = tape.gradient(total, (x, variables))
    return to_x.numpy(), to_variables["interval"].numpy() if variables else None


def noise(seed, shape=(3, 3, 4, 5), spread=0.6):
    return np.random.default_rng(seed).normal(scale=spread, size=shape).astype(np.float32)


DENSE = np.float32(np.stack([np.linspace(-3, 3, 2001), np.linspace(-1.5, 1.5, 2001)], axis=-1))  # meets every level of every grid


# ---- The papers in NumPy, float64: name of the class -> function of (quantizer, x, intervals that broadcast to x) -> values ----------------------


def ends(quantizer):
    """Lowest and highest code of WRPN's and QKD's grids; the lowest of a full signed grid is one further out."""
    if not quantizer.signed:
        return 0, 2**quantizer.bits - 1
    high = 2 ** (quantizer.bits - 1) - 1
    return -high - (not getattr(quantizer, "narrow", True)), high


def paper_twn(w, scale):
    threshold = 0.7 * np.abs(w).mean()
    chosen = np.abs(w) > threshold if scale == "abs" else w > threshold
    return np.abs(w[chosen]).mean() * np.sign(w) * (np.abs(w) > threshold)


def paper_ternary(quantizer, w, interval):
    if quantizer.learned:
        return interval * np.rint(1.5 * np.clip(w / interval, -0.99, 0.99)) / 1.5
    if quantizer.per_channel:
        return np.stack([paper_twn(w[..., c], quantizer.scale) for c in range(w.shape[-1])], axis=-1)
    return paper_twn(w, quantizer.scale)


def paper_kbit(quantizer, x, interval):
    low, high = ends(quantizer)
    return np.rint(high * np.clip(x, np.sign(low), 1)) / high


def paper_interval(quantizer, x, interval):
    low, high = ends(quantizer)
    return interval * np.rint(high * np.clip(x / interval, low / high, 1)) / high


def paper_pact(quantizer, x, interval):
    n = 2**quantizer.bits - 1
    return np.rint(np.clip(x, 0, interval) * n / interval) * interval / n


def paper_dorefa(quantizer, x, interval):
    n = 2**quantizer.bits - 1
    if not quantizer.signed:
        return np.rint(n * np.clip(x, 0, 1)) / n
    return 2 * np.rint(n * (np.tanh(x) / (2 * np.abs(np.tanh(x)).max()) + 0.5)) / n - 1


PAPER = {Ternary: paper_ternary, KBit: paper_kbit, Interval: paper_interval, Pact: paper_pact, DoReFa: paper_dorefa}


# ---- Their gradients: -> (dy/dx * upstream, dy/dinterval * upstream value by value or None) ------------------------------------------------------


def slope_ternary(quantizer, w, interval, upstream):
    if not quantizer.learned:
        return upstream, None
    ratio = w / interval
    inside = np.abs(ratio) <= 0.99
    to_alpha = np.where(inside, np.rint(1.5 * np.clip(ratio, -0.99, 0.99)) / 1.5 - ratio, np.sign(ratio))
    return upstream * inside, upstream * to_alpha / np.sqrt(w.size)


def slope_kbit(quantizer, x, interval, upstream):
    return upstream * ((x >= (-1 if quantizer.signed else 0)) & (x <= 1)), None


def slope_interval(quantizer, x, interval, upstream):
    low, high = ends(quantizer)
    ratio = x / interval
    inside = (ratio >= low / high) & (ratio <= 1)
    to_interval = np.where(inside, (paper_interval(quantizer, x, interval) - x) / interval, np.where(ratio > 1, 1, low / high))
    if not quantizer.gradient_scale:
        return upstream * inside, upstream * to_interval
    is_weights = quantizer.signed and quantizer.narrow
    count = x.size if is_weights else x[0].size  # of activations the values of one example count, not the batch
    count = count // x.shape[-1] if quantizer.per_channel else count
    return upstream * inside, upstream * to_interval / np.sqrt(count * high)


def slope_pact(quantizer, x, interval, upstream):
    return upstream * ((x >= 0) & (x < interval)), upstream * (x >= interval)


def slope_dorefa(quantizer, x, interval, upstream):
    if not quantizer.signed:
        return upstream * ((x >= 0) & (x <= 1)), None
    squeezed = np.tanh(x)
    largest, where = np.abs(squeezed).max(), np.unravel_index(np.abs(squeezed).argmax(), x.shape)
    to_squeezed = upstream / largest
    to_squeezed[where] -= np.sign(squeezed[where]) * (upstream * squeezed).sum() / largest**2  # the maximum moves with its weight
    return to_squeezed * (1 - squeezed**2), None


SLOPES = {Ternary: slope_ternary, KBit: slope_kbit, Interval: slope_interval, Pact: slope_pact, DoReFa: slope_dorefa}


def some_intervals(quantizer, x):
    return np.float32(np.linspace(0.3, 1.1, x.shape[-1])) if getattr(quantizer, "per_channel", False) else np.float32(0.83)


def test_every_quantizer_of_the_table_has_its_paper_here():
    assert set(PAPER) == set(SLOPES) == set(quantizers.BY_NAME.values())


@every
def test_forward_is_the_papers(quantizer):
    x = noise(1)
    intervals = some_intervals(quantizer, x)
    expected = PAPER[type(quantizer)](quantizer, np.float64(x), np.float64(intervals))
    np.testing.assert_allclose(apply(quantizer, x, intervals), expected, rtol=1e-5, atol=1e-7)


@every
def test_gradients_are_the_papers(quantizer):
    x, upstream = noise(2), noise(3)
    intervals = some_intervals(quantizer, x)
    to_x, to_interval = gradients(quantizer, x, intervals, upstream)
    expected_x, expected_interval = SLOPES[type(quantizer)](quantizer, np.float64(x), np.float64(intervals), np.float64(upstream))
    np.testing.assert_allclose(to_x, expected_x, rtol=1e-4, atol=1e-5)
    if expected_interval is None:
        assert to_interval is None
    else:
        axes = tuple(range(x.ndim - 1)) if np.ndim(intervals) else None
        np.testing.assert_allclose(to_interval, expected_interval.sum(axes), rtol=1e-3, atol=1e-3)


# ---- Golden vectors ------------------------------------------------------------------------------------------------------------------------------

TWN = 0.8625
SEQ = 0.866667
GOLDEN = {
    "WRPN W4": (KBit(4), W, None, [-1, -0.571429, -0.285714, 0, 0, 0, SEVENTH, 0.571429, 1]),
    "WRPN W8": (KBit(8), W, None, [-1, -0.622047, -0.299213, -0.03937, 0, 0.070866, 0.212598, 0.551181, 0.976378]),
    "WRPN A4": (KBit(4, signed=False), A, None, [0, 0, 0.133333, 0.333333, 0.533333, 0.933333, 1]),
    "WRPN A8": (KBit(8, signed=False), A, None, [0, 0, 0.101961, 0.333333, 0.501961, 0.901961, 1]),
    "DoReFa A4": (DoReFa(4, signed=False), A, None, [0, 0, 0.133333, 0.333333, 0.533333, 0.933333, 1]),
    "TWN": (Ternary(), W, None, [-TWN, -TWN, 0, 0, 0, 0, 0, TWN, TWN]),
    "SEQ": (Ternary(learned=True), W, 1.3, [-SEQ, -SEQ, 0, 0, 0, 0, 0, SEQ, SEQ]),
    "QKD W4": (Interval(4), W, 0.8, [-0.8, -0.571429, -0.342857, 0, 0, 0.114286, 0.228571, 0.571429, 0.8]),
    "QKD A2": (Interval(2, signed=False, narrow=False), A, 0.9, [0, 0, 0, 0.3, 0.6, 0.9, 0.9]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_forward_is_the_golden_vector(name):
    quantizer, x, interval, expected = GOLDEN[name]
    np.testing.assert_allclose(apply(quantizer, x, interval or 1.0), expected, atol=1e-6)


def one_by_one(quantizer, x, interval):
    """The interval's gradient of each value alone."""
    return np.array([gradients(quantizer, x, interval, np.float32(np.arange(len(x)) == i))[1] for i in range(len(x))])


def test_gradients_of_a_signed_interval_are_the_golden_vectors():
    np.testing.assert_allclose(one_by_one(Interval(4), W, 0.8), [-1, 0.060714, -0.053571, 0.05, 0, 0.055357, 0.023214, 0.026786, 1], atol=2e-6)
    np.testing.assert_array_equal(gradients(Interval(4), W, 0.8, np.ones_like(W))[0], [0, 1, 1, 1, 1, 1, 1, 1, 0])


def test_gradient_of_an_unsigned_interval_is_the_golden_vector():
    got = one_by_one(Interval(2, signed=False, narrow=False), A, 0.9)
    np.testing.assert_allclose(got, [0, 0, -0.111111, -0.036667, 0.111111, 0, 1], atol=2e-6)


def test_gradient_of_a_step_is_the_golden_vector_of_lsq():
    step, x = tf.constant(0.25), tf.constant(W)
    with tf.GradientTape() as tape:
        tape.watch(step)
        y = quantizers.uniform(x, step, -2, 1)
    np.testing.assert_allclose(y, [-0.5, -0.5, -0.25, 0, 0, 0, 0.25, 0.25, 0.25], atol=1e-7)
    assert float(tape.gradient(y, step)) == pytest.approx(-2 - 2 + 0.2 + 0.16 + 0 - 0.28 + 0.16 + 1 + 1, abs=1e-5)


def test_seq_clips_at_99_hundredths_of_its_scale():
    w = np.float32([-1.01, -0.995, -0.985, 0.985, 0.995, 1.01])
    np.testing.assert_array_equal(gradients(Ternary(learned=True), w, 1.0, np.ones_like(w))[0], [0, 0, 1, 1, 0, 0])
    np.testing.assert_allclose(one_by_one(Ternary(learned=True), w, 1.0) * np.sqrt(6), [-1, -1, 0.985 - 2 / 3, 2 / 3 - 0.985, 1, 1], rtol=1e-5)


def test_gradient_scale_of_nine_two_bit_weights_is_a_third():
    plain, scaled = (gradients(Interval(2, gradient_scale=on), W, 0.25, np.ones_like(W))[1] for on in (False, True))
    assert scaled == pytest.approx(plain / 3, rel=1e-5)
    assert plain == pytest.approx(-1 - 1 - 1 + 0.16 + 0 - 0.28 + 0.16 + 1 + 1, abs=1e-5)


@pytest.mark.parametrize("bits, count", [(6, 25088 * 4096), (8, 25088 * 4096), (8, 384 * 384 * 64 * 2)])
def test_gradient_scale_of_very_many_values_is_what_it_is_of_few(bits, count):
    interval = tf.Variable(2.0)
    with tf.GradientTape() as tape:
        step = Interval(bits, gradient_scale=True).trained_step(tf.constant([1.0]), {"interval": interval}, count)
    q = 2 ** (bits - 1) - 1
    assert float(step) == pytest.approx(2 / q) and float(tape.gradient(step, interval)) == pytest.approx((count * q) ** -0.5 / q, rel=1e-5)


@pytest.mark.parametrize("interval", [1e-6, 1e-7, 1e-8])
def test_codes_of_the_smallest_steps_are_what_they_are_of_others(interval):
    x = tf.constant([-1.0, -0.5, 0.0, 0.25, 1.0]) * interval
    expected = Interval(8).codes(x / interval, {"interval": tf.constant(1.0)})
    np.testing.assert_array_equal(Interval(8).codes(x, {"interval": tf.constant(interval)}), expected)
    np.testing.assert_array_equal(Ternary().codes(tf.constant([4e-9, -4e-9, 0.0]), {}), [1, -1, 0])
    np.testing.assert_array_equal(Ternary().codes(tf.zeros([3]), {}), [0, 0, 0])


def test_pact_gives_values_at_its_ends_the_gradients_of_the_formula():
    x, interval = tf.Variable([-1.0, 0.0, 3.0, 6.0, 7.0]), tf.Variable(6.0)
    with tf.GradientTape() as tape:
        y = Pact(4).quantize(x, {"interval": interval})
    dx, dinterval = tape.gradient(y, [x, interval])
    np.testing.assert_array_equal(dx, [0, 1, 1, 0, 0])
    assert float(dinterval) == 2


def test_gradient_scale_leaves_values_and_the_gradient_to_x_alone():
    x, upstream = noise(4), noise(5)
    plain, scaled = Interval(4), Interval(4, gradient_scale=True)
    np.testing.assert_array_equal(apply(plain, x), apply(scaled, x))
    np.testing.assert_array_equal(gradients(plain, x, 0.8, upstream)[0], gradients(scaled, x, 0.8, upstream)[0])


def test_gradient_scale_of_activations_does_not_depend_on_the_batch():
    quantizer, x = Interval(4, gradient_scale=True, signed=False, narrow=False), noise(6, (2, 8))
    once, twice = (gradients(quantizer, batch, 0.8, np.ones_like(batch))[1] for batch in (x, np.concatenate([x, x])))
    assert twice == pytest.approx(2 * once, rel=1e-5)


@pytest.mark.parametrize("name, of_kernel", [("kernel", True), ("output", False), ("activation", False), ("pre_activation", False), ("post_activation", False)])
def test_gradient_scale_does_not_count_the_batch_of_a_tensor_whatever_its_grid(name, of_kernel):
    layer, x = keras.layers.Layer(), tf.constant(noise(6, (2, 8)))
    quantizer = Interval(4, gradient_scale=True)  # narrow and signed, as a QuantizeConfig of the user's own may have it for an output
    variables, gradient = quantizer.build(x.shape, name, layer), []
    variables["interval"].assign(0.8)
    for batch in (x, tf.concat([x, x], 0)):
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(quantizer(batch, True, variables))
        gradient.append(float(tape.gradient(y, variables["interval"])))
    assert gradient[1] == pytest.approx(gradient[0] * 2 ** (0.5 if of_kernel else 1), rel=1e-5)


# ---- The grid ------------------------------------------------------------------------------------------------------------------------------------


@every
def test_values_are_codes_times_step_within_the_levels(quantizer):
    for x in map(tf.constant, (DENSE, noise(7), noise(8, spread=30.0), noise(9, spread=1e-3), noise(10, (64, 64)))):
        variables = built(quantizer, x.shape, 0.8)
        values, codes, step = quantizer(x, True, variables), quantizer.codes(x, variables), quantizer.step(x, variables)
        np.testing.assert_array_equal(values, tf.cast(codes, tf.float32) * step)
        assert quantizer.levels()[0] <= codes.numpy().min() and codes.numpy().max() <= quantizer.levels()[1]


@every
def test_a_dense_input_reaches_both_ends_of_the_grid(quantizer):
    codes = quantizer.codes(tf.constant(DENSE), built(quantizer, DENSE.shape, 0.8)).numpy()
    assert (codes.min(), codes.max()) == quantizer.levels()


@every
def test_a_channel_has_at_most_as_many_levels_as_its_bits_can_tell_apart(quantizer):
    values = apply(quantizer, DENSE)
    assert max(len(np.unique(values[:, c])) for c in range(2)) <= (3 if isinstance(quantizer, Ternary) else 2**quantizer.bits)


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_half_goes_to_the_code_that_a_float32_runtime_gives_it(bits):
    step = np.float32(0.8 / (2**bits - 1))
    halves = np.float64(np.float32((np.arange(2**bits - 1) + 0.5) * step))
    codes = np.rint(np.float32(halves * np.float64(np.float32(1 / np.float64(step)))))
    got = quantizers.uniform(tf.constant(halves), tf.constant(np.float64(step)), 0, 2**bits - 1) / np.float64(step)
    np.testing.assert_array_equal(np.rint(got), codes)


@every
def test_an_unsigned_grid_starts_at_zero_and_a_signed_one_below(quantizer):
    for kind in KINDS:
        try:
            low, high = quantizer.for_tensor(kind).levels()
        except BadInput:
            continue
        assert (low == 0) == (kind == "unsigned") and high > 0


@every
def test_the_step_is_a_scalar_or_one_value_for_each_channel(quantizer):
    x = tf.constant(noise(10))
    assert quantizer.step(x, built(quantizer, x.shape, 0.8)).shape == ((5,) if getattr(quantizer, "per_channel", False) else ())


@pytest.mark.parametrize("quantizer", [q for q in USABLE if not is_dorefa_weights(q)], ids=repr)
def test_quantizing_twice_is_quantizing_once(quantizer):
    x = tf.constant(noise(11))
    variables = built(quantizer, x.shape, 0.8)
    once = quantizer(x, True, variables)
    twice = quantizer(once, True, variables)
    np.testing.assert_array_equal(quantizer.codes(once, variables), quantizer.codes(x, variables))
    if isinstance(quantizer, Ternary) and not quantizer.learned:
        np.testing.assert_allclose(twice, once, rtol=1e-6)  # the mean of n equal numbers is that number but for float32 summation
    else:
        np.testing.assert_array_equal(twice, once)


@every
def test_zero_is_quantized_to_zero(quantizer):
    x = noise(12)
    x[0] = 0.0
    at_zero = apply(quantizer, x)[0]
    if is_dorefa_weights(quantizer):
        np.testing.assert_allclose(np.abs(at_zero), 1 / quantizer.levels()[1], rtol=1e-6)  # the grid is odd: its nearest levels are +-1/n
    else:
        np.testing.assert_array_equal(at_zero, 0.0)


@every
def test_all_zeros_give_no_nan(quantizer):
    zeros = np.zeros((4, 3), np.float32)
    values = apply(quantizer, zeros)
    expected = 1 / quantizer.levels()[1] if is_dorefa_weights(quantizer) else 0.0
    np.testing.assert_allclose(np.abs(values), expected, rtol=1e-6)
    if not is_dorefa_weights(quantizer):
        np.testing.assert_array_equal(quantizer.codes(tf.constant(zeros), built(quantizer, zeros.shape, 0.8)), 0)
    to_x, to_interval = gradients(quantizer, zeros, 0.8, np.ones_like(zeros))
    assert not np.isnan(to_x).any() and (to_interval is None or not np.isnan(to_interval).any())


@pytest.mark.parametrize("quantizer", [q for q in USABLE if getattr(q, "per_channel", False)], ids=repr)
def test_a_channel_is_quantized_as_if_it_were_alone(quantizer):
    x, intervals = noise(13), np.float32([0.2, 0.5, 0.8, 1.1, 1.4])
    alone = dataclasses.replace(quantizer, per_channel=False)
    expected = np.stack([apply(alone, x[..., c], intervals[c]) for c in range(5)], axis=-1)
    np.testing.assert_allclose(apply(quantizer, x, intervals), expected, rtol=1e-6)


@every
def test_a_grid_of_weights_is_symmetric_and_fits_int8(quantizer):
    try:
        low, high = quantizer.for_tensor("weights").levels()
    except BadInput:
        return
    assert low == -high  # so that folding a negative gamma keeps the codes
    assert high <= 127 or quantizer.for_tensor("weights") == DoReFa(8)  # which trains, and which an export refuses


@pytest.mark.parametrize("bits", WIDTHS)
def test_signed_activations_take_the_lowest_code_of_int8_runtimes(bits):
    assert Interval(bits).for_tensor("signed").levels() == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert Pact(bits).for_tensor("signed") == DoReFa(bits).for_tensor("signed") == Interval(bits).for_tensor("signed")


def test_ternary_positive_takes_the_mean_of_the_positive_weights_alone():
    np.testing.assert_allclose(apply(Ternary(scale="positive"), W), [-0.765, -0.765, 0, 0, 0, 0, 0, 0.765, 0.765], rtol=1e-6)


def test_ternary_positive_falls_back_to_the_absolute_mean_without_positive_weights():
    w = -np.abs(noise(14))
    np.testing.assert_array_equal(apply(Ternary(scale="positive"), w), apply(Ternary(), w))


# ---- Learning an interval ------------------------------------------------------------------------------------------------------------------------

LEARNED = [q for q in USABLE if learns(q)]
FEW_LEARNED = [q for q in LEARNED if getattr(q, "bits", 2) in (2, 5) and not getattr(q, "gradient_scale", False)]


def descend(quantizer, x, start, rate, steps=600):
    """The interval after gradient descent on the squared error of quantizing x."""
    x, variables = tf.constant(x), built(quantizer, x.shape, start)

    @tf.function
    def run():
        for _ in tf.range(steps):
            with tf.GradientTape() as tape:
                error = tf.reduce_sum((quantizer(x, True, variables) - x) ** 2)
            variables["interval"].assign_sub(rate * tape.gradient(error, variables["interval"]))

    run()
    return variables["interval"].numpy()


@pytest.mark.parametrize("quantizer", FEW_LEARNED, ids=repr)
def test_an_interval_learns_the_one_that_made_the_data(quantizer):
    x = apply(quantizer, noise(15, (64, 3)), 0.6)
    if isinstance(quantizer, Ternary):  # from above: below, the straight-through gradient of SEQ balances where its clip begins
        found = descend(quantizer, x, 0.75, rate=0.3)
    else:
        found = descend(quantizer, x, 0.45, rate=2e-3)
    np.testing.assert_allclose(found, 0.6, atol=5e-3)


def test_an_interval_that_is_too_wide_learns_to_shrink_where_inside_values_count():
    x = apply(Interval(2), noise(15, (64, 3)), 0.6)
    np.testing.assert_allclose(descend(Interval(2), x, 0.75, 2e-3), 0.6, atol=5e-3)  # slowly: the slope is the error squared


def test_pact_learns_nothing_from_values_below_its_clip():
    assert gradients(Pact(4), np.float32([-1, 0.1, 0.37, 0.79]), 0.8, np.float32([1, 1, 1, 1]))[1] == 0


@pytest.mark.parametrize("driven_to", [-1e-4, -0.2, -0.3, -5.0])
@pytest.mark.parametrize("quantizer", LEARNED, ids=repr)
def test_an_interval_below_zero_still_has_a_positive_step(quantizer, driven_to):
    x = tf.constant(noise(16))
    variables = built(quantizer, x.shape, driven_to)
    assert (quantizer.step(x, variables).numpy() > 0).all()
    assert np.abs(quantizer(x, True, variables)).max() < 1e-6


@pytest.mark.parametrize("start", [-0.05, -0.5])
@pytest.mark.parametrize("quantizer", FEW_LEARNED, ids=repr)
def test_an_interval_below_zero_comes_back_by_gradient_descent(quantizer, start):
    x = noise(17, (64, 3))
    rate = 0.1 if isinstance(quantizer, Ternary) else 2e-3
    assert (descend(quantizer, x, start, rate) > 0.1).all()


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_an_interval_below_zero_has_a_gradient_in_half_precision_too(dtype, bits):
    """In float16 a grid of 1e-8 would be zeros."""
    x, interval = tf.constant(np.abs(noise(18, (8, 6))) + 0.01), tf.Variable(-0.01)
    quantizer = Interval(bits).for_tensor("unsigned")
    for inputs in (x, tf.cast(x, dtype)):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(tf.cast(quantizer(inputs, True, {"interval": interval}), tf.float32))
        np.testing.assert_allclose(tape.gradient(total, interval), 48.0, rtol=0.01)  # 1 of each value, all of which are clipped


def test_a_scaled_gradient_leaves_the_step_as_it_is_to_the_bit():
    for interval in np.random.default_rng(19).uniform(0.01, 3, 100).astype(np.float32):
        variables, quantizer = {"interval": tf.Variable(interval)}, Interval(4, gradient_scale=True)
        np.testing.assert_array_equal(quantizer.trained_step(tf.zeros((5, 2)), variables, 7), quantizer.step(tf.zeros((5, 2)), variables))


@pytest.mark.parametrize("learned", [True, False])
def test_an_interval_is_trained_only_where_it_is_learned(learned):
    variables = Interval(8, learned=learned).build(tf.TensorShape((2, 3)), "activation", keras.layers.Layer())
    assert variables["interval"].trainable == learned


@pytest.mark.parametrize("quantizer", LEARNED, ids=repr)
def test_an_interval_is_nan_until_it_is_calibrated(quantizer):
    variables = quantizer.build(tf.TensorShape((2, 3)), "kernel", keras.layers.Layer())
    assert np.isnan(variables["interval"]).all() and variables["interval"].trainable
    assert quantizer.calibrated(0.5) == {"interval": 0.5}


@pytest.mark.parametrize("quantizer", [q for q in USABLE if q not in LEARNED], ids=repr)
def test_a_quantizer_without_an_interval_asks_for_no_calibration(quantizer):
    assert quantizer.calibrated(0.5) == {}


# ---- Types and refusals --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=lambda dtype: dtype.name)
@every
def test_half_precision_keeps_its_dtype_and_is_computed_in_float32(quantizer, dtype):
    x = tf.cast(noise(18), dtype)
    variables = built(quantizer, x.shape, 0.8)
    values = quantizer(x, True, variables)
    assert values.dtype == dtype
    in_float32 = quantizer(tf.cast(x, tf.float32), True, variables)
    np.testing.assert_array_equal(quantizer.codes(x, variables), quantizer.codes(tf.cast(x, tf.float32), variables))
    np.testing.assert_array_equal(tf.cast(values, tf.float32), tf.cast(tf.cast(in_float32, dtype), tf.float32))


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("grid", [(0, 15), (0, 255), (-8, 7), (-7, 7), (-128, 127)], ids=repr)
@pytest.mark.parametrize("stock", [True, False])
@pytest.mark.parametrize("end", [1.3, 2.0])
@pytest.mark.parametrize("shape", [(16,), (24,), (2, 24)], ids=repr)  # read as 16 columns, as none that oneDNN is fast for, as 16 again
def test_gradients_in_half_precision_are_those_of_float32(grid, dtype, stock, end, shape):
    """Every 16-bit number of some octaves, so that those at both ends are among them, at 2.0 the end itself; sums of all in float32."""
    low, high = grid
    step, every = np.float32(end / high), np.arange(2**16, dtype=np.uint16).view(dtype.as_numpy_dtype)
    size = np.abs(np.float32(every))
    x = every[(size > 1e-30) & (size < 8)]  # -0.0, and what float32 arithmetic may take for it, is outside [0, 1.3] to bits
    x = np.resize(x, (-(-x.size // np.prod(shape)), *shape))
    dy = np.random.default_rng(20).normal(size=x.shape).astype(x.dtype)

    def gradients(x, dy):
        x, at = tf.constant(x), tf.constant(step)
        with tf.GradientTape() as tape:
            tape.watch([x, at])
            y = grids.uniform(x, at, low, high)
        return y, *tape.gradient(y, [x, at], output_gradients=tf.constant(dy))

    with contextlib.nullcontext() if stock else grids.plain_ops():
        y, dx, dstep = gradients(x, dy)
        y32, dx32, _ = gradients(np.float32(x), np.float32(dy))
    np.testing.assert_array_equal(y, tf.cast(y32, dtype))
    np.testing.assert_array_equal(dx, tf.cast(dx32, dtype))
    y, dx, dy, x = (np.float64(value) for value in (y, dx, dy, x))
    assert float(dstep) == pytest.approx((np.sum(dy * y) - np.sum(dx * x)) / step, rel=1e-4)


def test_what_float16_can_not_hold_is_clipped_as_any_other_large_value():
    gradients = []
    for large in (60000.0, np.inf):
        x, step = tf.Variable(tf.constant([large, 0.6], tf.float16)), tf.Variable(0.25)
        with tf.GradientTape() as tape:
            y = grids.uniform(tf.convert_to_tensor(x), tf.convert_to_tensor(step), 0, 3)
        gradients.append([value.numpy() for value in tape.gradient(y, [x, step])])
    np.testing.assert_array_equal(gradients[1][0], [0, 1])
    assert gradients[0][1] == gradients[1][1] == pytest.approx(3 + 2 - 0.6 / 0.25, abs=0.01)


@pytest.mark.parametrize("channels", [16, 24])
def test_each_channel_of_a_half_tensor_has_a_gradient_of_its_own(channels):
    x = np.float32(tf.cast(np.random.default_rng(22).normal(size=(4, 6, channels)), tf.bfloat16))
    steps = tf.constant(np.linspace(0.05, 0.2, channels, dtype=np.float32))

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(steps)
            y = grids.uniform(x, steps, -7, 7)
        dy = tf.cast(tf.reshape(tf.range(float(tf.size(x))) % 3 - 1, x.shape), x.dtype)
        return y, dy, tape.gradient(y, steps, output_gradients=dy)

    y, dy, found = gradient(tf.cast(x, tf.bfloat16))
    inside = np.abs(x) <= 7 * np.float32(steps)
    expected = np.sum(np.float64(tf.cast(dy, tf.float32)) * (np.float64(tf.cast(y, tf.float32)) - np.where(inside, x, 0)), (0, 1)) / np.float32(steps)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "channels", "stock"),
    [((None, 6, 6, 16), 0, True), ((None, 8, 8, 24), 0, True), ((None, None, None, 32), 0, True), ((None, 24), 0, False), ((None, None), 0, False)]
    + [((None, 8, 8, 16), 16, True), ((None, 8, 8, 24), 24, False)],
)
def test_sums_of_bfloat16_are_taken_without_a_copy_where_onednn_is_fast(shape, channels, stock):
    steps = tf.fill([channels] if channels else [], 0.1)

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(steps)
            y = grids.uniform(x, steps, 0, 15)
        return tape.gradient(y, steps)

    graph = tf.function(gradient, input_signature=[tf.TensorSpec(shape, tf.bfloat16)]).get_concrete_function().graph
    assert ("FusedBatchNormGradV3" in {op.type for op in graph.get_operations()}) == stock


def test_a_half_tensor_of_unknown_channels_has_the_same_gradients():
    """As those of a known number: the sums are then taken in float32 tensors."""
    x, step = tf.cast(noise(21), tf.bfloat16), tf.constant(0.1)

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(step)
            y = grids.uniform(x, step, 0, 15)
        return tape.gradient(y, step)

    unknown = tf.function(gradient, input_signature=[tf.TensorSpec([None, None], tf.bfloat16)])
    assert float(unknown(tf.reshape(x, [-1, x.shape[-1]]))) == pytest.approx(float(gradient(x)), rel=1e-4)
    images = tf.constant(np.random.default_rng(23).normal(size=(4, 5, 6, 32)), tf.bfloat16)
    sizes = tf.function(gradient, input_signature=[tf.TensorSpec([None, None, None, 32], tf.bfloat16)])
    with grids.plain_ops():
        expected = gradient(images)
    assert float(sizes(images)) == pytest.approx(float(expected), rel=1e-3)


@every
def test_float64_is_computed_in_float64(quantizer):
    x = np.float64(noise(19))
    intervals = np.float32(0.8)
    values = apply(quantizer, x, intervals)
    assert values.dtype == np.float64
    # float32 anywhere on the way to a value would leave 1e-8
    np.testing.assert_allclose(values, PAPER[type(quantizer)](quantizer, x, np.float64(intervals)), rtol=1e-13, atol=1e-15)


@every
def test_integer_input_is_refused(quantizer):
    with pytest.raises(BadInput, match="float tensor, received int32"):
        quantizer(tf.constant([[1, 2]]), True, {})
    with pytest.raises(BadInput, match="float tensor, received int64"):
        quantizer(np.array([[1, 2]]), True, {})


@pytest.mark.parametrize("bits", [-4, 0, 1, 9, 4.0, True, "4", None], ids=repr)
@pytest.mark.parametrize("name", [name for name, cls in quantizers.BY_NAME.items() if "bits" in {f.name for f in dataclasses.fields(cls)}])
def test_bits_outside_two_to_eight_are_refused(name, bits):
    with pytest.raises(BadInput, match="from 2 to 8, received"):
        quantizers.BY_NAME[name](bits)


@pytest.mark.parametrize(
    "make, telling",
    [
        (lambda: Ternary(scale="median"), 'expected "abs" or "positive", received \'median\''),
        (lambda: Ternary(scale="positive", learned=True), "a learned scale is not a mean"),
        (lambda: Ternary().for_tensor("unsigned"), "received Ternary"),
        (lambda: Ternary(learned=True).for_tensor("signed"), "received Ternary"),
        (lambda: Interval(4, per_channel=True).for_tensor("unsigned"), "received per_channel=True"),
        (lambda: Interval(4, per_channel=True).for_tensor("signed"), "received per_channel=True"),
        (lambda: Pact(4).for_tensor("weights"), "received Pact"),
    ],
)
def test_an_option_that_cannot_be_is_refused(make, telling):
    with pytest.raises(BadInput, match=telling):
        make()


def test_the_bare_interface_names_the_quantizers_to_use():
    bare = GridQuantizer()
    for ask in (bare.levels, lambda: bare.quantize(None, {}), lambda: bare.step(None, {})):
        with pytest.raises(TypeError, match="use one of ternary, kbit"):
            ask()


# ---- Flags and files -----------------------------------------------------------------------------------------------------------------------------


def flag(name, kwargs):
    width = f":{kwargs['bits']}" if "bits" in kwargs else ""
    return name + width + "".join(f",{key}" for key, value in kwargs.items() if key != "bits" and value)


@pytest.mark.parametrize("name, kwargs", FLAGGED, ids=str)
def test_a_flag_is_parsed_to_its_quantizer(name, kwargs):
    assert parse(flag(name, kwargs)) == quantizers.BY_NAME[name](**kwargs)


def test_a_flag_says_float_a_word_true_or_false():
    assert parse("float") is None
    assert parse("ternary,scale=positive") == Ternary(scale="positive")
    assert parse("interval:4,per_channel=true,gradient_scale=false") == Interval(4, per_channel=True)


@pytest.mark.parametrize(
    "text, telling",
    [
        ("", "expected float or one of ternary"),
        ("binary:1", "expected float or one of ternary, .* received 'binary:1'"),
        ("float:4", "received 'float:4'"),
        ("interval", "expected a width, as interval:4, received 'interval'"),
        ("interval:", "whole number of bits after interval:"),
        ("interval:²", "whole number of bits after interval:"),
        ("interval:4,bits=5", "expected the bits once"),
        ("interval,bits=4.5", "whole number of bits after interval:, received '4.5'"),
        ("ternary,scale=positive,scale=abs", "expected each option once, received 'ternary,scale=positive,scale=abs'"),
        ("interval:four", "whole number of bits after interval:, received 'four'"),
        ("interval:-4", "whole number of bits after interval:, received '-4'"),
        ("interval:9", "from 2 to 8, received 9"),
        ("ternary:2", "expected for ternary only scale, per_channel, learned, received 'bits'"),
        ("interval:4,wide", "received 'wide' in 'interval:4,wide'"),
        ("interval:4,signed=false", "received 'signed'"),  # the tensor decides, not the flag
        ("interval:4,narrow", "received 'narrow'"),
        ("interval:4,per_channel=yes", "expected per_channel, per_channel=true or per_channel=false, received per_channel=yes"),
        ("ternary,scale=median", "scale: expected"),
    ],
)
def test_a_flag_that_cannot_be_is_refused(text, telling):
    with pytest.raises(BadInput, match=telling):
        parse(text)


@every
def test_a_quantizer_survives_being_written_as_json(quantizer):
    again = deserialize(json.loads(json.dumps(serialize(quantizer))))
    assert again == quantizer and type(again) is type(quantizer) and hash(again) == hash(quantizer)


def test_no_quantizer_is_written_as_nothing():
    assert serialize(None) is None and deserialize(None) is None


@keras.utils.register_keras_serializable("kerakd_tests")
@dataclasses.dataclass(frozen=True)
class Halves(GridQuantizer):
    """A user's own quantizer: onto multiples of a half."""

    count: int = 3

    def levels(self):
        return -self.count, self.count


def test_a_users_own_quantizer_survives_being_written():
    data = serialize(Halves(5))
    assert "quantizer" not in data and deserialize(data) == Halves(5)


@pytest.mark.parametrize("nudge", [-2, -1, 0, 1, 2])
def test_the_last_bits_of_a_sum_in_float64_decide_no_code(nudge):
    """-1447 * 0x1.485cp-7 is the middle between -14.5 and the next float32: LiteRT rounds it to -14.5 and then to -14, half to even."""
    middle = -1447 * float.fromhex("0x1.485cp-7")
    x = tf.constant([middle + nudge * np.spacing(middle)], tf.float64)
    assert grids.uniform(x, tf.constant(1.0, tf.float64), -128, 127).numpy() == -14


def test_the_grid_of_tanh_is_minus_128_to_127_of_128():
    x = tf.constant([-2.0, -1.0, -0.6 / 128, 0.0, 0.4 / 128, 126.6 / 128, 1.0])
    np.testing.assert_array_equal(Tanh().quantize(x, {}) * 128, [-128, -128, -1, 0, 0, 127, 127])
    np.testing.assert_array_equal(Tanh().codes(x, {}), [-128, -128, -1, 0, 0, 127, 127])


def test_a_sigmoids_grid_is_0_to_255_of_256():
    x = tf.constant([-1.0, 0.0, 0.4 / 256, 0.6 / 256, 0.5, 254.4 / 256, 254.6 / 256, 1.0])
    np.testing.assert_array_equal(Sigmoid().quantize(x, {}) * 256, [0, 0, 0, 1, 128, 254, 255, 255])
    np.testing.assert_array_equal(Sigmoid().codes(x, {}), [0, 0, 0, 1, 128, 254, 255, 255])


def test_the_end_of_an_interval_has_a_gradient_however_its_step_was_rounded():
    found = 0
    for value in np.float32(np.random.default_rng(0).uniform(0.5, 2, 400)):
        step = np.float32(value / np.float32(15))
        if np.float32(step * np.float32(15)) < value and found < 5:
            found += 1
            x = tf.constant([value])
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = grids.uniform(x, tf.constant(step), 0, 15)
            assert tape.gradient(y, x).numpy() == 1
    assert found

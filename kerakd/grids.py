"""The mathematics of quantization: pure functions onto grids of a few levels, with the gradients that training needs."""

import contextlib
import contextvars
import math

import tensorflow as tf

EDGE = 1 + 1e-6  # x = I itself is inside, whatever float32 makes of x / step
SMALLEST = 1e-8  # of an interval or a scale: keeps every division finite and a learned interval positive
HALF = (tf.bfloat16, tf.float16)

_stock = contextvars.ContextVar("stock", default=True)


@contextlib.contextmanager
def plain_ops():
    """Within it grids are traced in ops that XLA knows too, rather than in the stock ops that take one pass over memory."""
    token = _stock.set(False)
    try:
        yield
    finally:
        _stock.reset(token)


def arithmetic(x):
    """The dtype in which grids of `x` are computed: float64 for what is float64, else float32."""
    return tf.float64 if x.dtype == tf.float64 else tf.float32


def _sum_to(x, shape):
    """Sums `x` [..., C] to `shape`: () or [C]."""
    return tf.reduce_sum(x) if shape.rank == 0 else tf.reduce_sum(x, axis=list(range(x.shape.rank - 1)))


def _ends(step, low, high, inverse):
    """low * step and high * step; of a fixed step they are exact. An end of 0 stays a constant, which costs nothing."""
    return [float(0 if not code else code / inverse) if inverse or not code else code * step for code in (low, high)]


def _fused(x, low, high, ends):
    """Fake quantization in one pass over memory, by a stock op; None where there is none for this grid or dtype."""
    bits = (high - low).bit_length()
    known = low == 0 or low in (1 - 2 ** (bits - 1), -(2 ** (bits - 1)))
    if not _stock.get() or x.dtype != tf.float32 or not known or high - low < 2 or any(tf.is_tensor(end) and end.shape.rank for end in ends):
        return None
    grid = {"signed_input": low < 0, "num_bits": bits, "range_given": True, "narrow_range": low == -high, "round_mode": "HALF_TO_EVEN"}
    return tf.raw_ops.QuantizeAndDequantizeV2(input=x, input_min=ends[0], input_max=ends[1], **grid)


def _inside(dy, x, ends):
    """dy where ends[0] <= x <= ends[1], else 0."""
    ends = [end * EDGE for end in ends]
    if _stock.get() and not any(tf.is_tensor(end) and end.shape.rank for end in ends):
        if x.dtype == tf.float32:  # one pass over memory, by a stock op
            return tf.raw_ops.QuantizeAndDequantizeV4Grad(gradients=dy, input=x, input_min=ends[0], input_max=ends[1])[0]
        if x.dtype in HALF:
            return tf.raw_ops.Select(condition=_inside_by_bits(x, ends), x=dy, y=tf.zeros_like(dy))
    wide = tf.cast(x, arithmetic(x))
    return dy * tf.cast((wide >= ends[0]) & (wide <= ends[1]), dy.dtype)


def _inside_by_bits(x, ends):
    """Whether ends[0] <= x <= ends[1], of 16-bit floats x and ends[0] <= 0 < ends[1] of 32 bits, without a copy of x in 32.

    Floats of one sign are ordered as their bits are. Read as signed integers negative floats are below all positive ones, read as
    unsigned above them: so one comparison bounds the positive ones, and the other the negative ones. With ends[0] = 0, -0.0 is
    outside, as negative numbers are.
    """

    def bits(end):  # of the largest 16-bit float that is not above it
        near = tf.cast(end, x.dtype)
        return tf.bitcast(near, tf.int16) - tf.cast(tf.cast(near, tf.float32) > end, tf.int16)

    high = bits(ends[1])
    if not tf.is_tensor(ends[0]) and ends[0] == 0:
        return tf.bitcast(x, tf.uint16) <= tf.bitcast(high, tf.uint16)
    return (tf.bitcast(x, tf.int16) <= high) & (tf.bitcast(x, tf.uint16) <= tf.bitcast(bits(-ends[0]), tf.uint16) + 0x8000)


def _dot(a, b, step):
    """sum(a * b) in step's dtype and of its shape: () or [C]."""
    columns = _columns(a.shape, step.shape) if _stock.get() and a.dtype == tf.bfloat16 else 0
    if columns and not tf.config.list_logical_devices("GPU"):  # there it has no deterministic form
        return _sum_to(_column_dots(a, b, columns), step.shape)
    if a.dtype == tf.float16:  # sums of its numbers may be infinite; where that is clipped, a is 0
        return _sum_to(tf.math.multiply_no_nan(tf.cast(b, step.dtype), tf.cast(a, step.dtype)), step.shape)
    return _sum_to(tf.cast(a, step.dtype) * tf.cast(b, step.dtype), step.shape)


def _columns(shape, wanted):
    """As how many columns `_column_dots` may read a tensor: its channels where each has a sum of its own, else any; 0 if it is slow for it.

    With a number that is no multiple of 16 oneDNN's kernel is ten times slower and more. A size that is not known only adds rows.
    """
    if not shape.rank or shape[-1] is None:
        return 0
    found = shape[-1] if wanted.rank else math.gcd(math.prod(size or 1 for size in shape[1:]), 256)
    return 0 if found % 16 else found


def _column_dots(a, b, columns):
    """sum(a * b) of each column, float32 [columns], of bfloat16 tensors read as [-1, columns], without a copy of either in 32.

    It is what a BatchNorm's gamma gets as its gradient where the mean is 0 and the variance 1: a stock op that reads 16 bits and sums in 32.
    """
    zeros, ones = tf.zeros([columns]), tf.ones([columns])
    statistics = {"scale": ones, "reserve_space_1": zeros, "reserve_space_2": ones, "reserve_space_3": zeros, "epsilon": 0.0}
    a, b = (tf.reshape(x, [-1, 1, 1, columns]) for x in (a, b))
    return tf.raw_ops.FusedBatchNormGradV3(y_backprop=a, x=b, is_training=False, **statistics)[1]


def without_noise(x):
    """x, float64 of NumPy or TensorFlow, rounded to 44 bits (Veltkamp's splitting).

    What a sum of products in float64 stands for, 24 bits times 24, may be the middle between two numbers of float32. There the last
    bit of float64, in which sums differ by their order, would decide to which of them it is rounded.
    """
    high = x * (2.0**9 + 1)
    return high - (high - x)


def uniform(x, step, low, high, inverse=None, carried=()):
    """Fake quantization onto {low..high} * step, with LSQ's gradient for the step.

    Forward:   y = step * round(clip(x / step, low, high)), halves to even.
    Backward:  dy/dx = 1 where low <= x/step <= high, else 0 (straight-through estimator);
               dy/dstep = round(x/step) - x/step inside; low or high where clipped.
    With I = step * q this is QKD's trainable interval (section 3; the printed equations are QIL's form), and LSQ (section 2.1).

    In float64, which a copy of a model for the proof has, the quotient is x * float32(1/step), rounded to float32 before
    it is rounded to a code, as integer runtimes compute it: the code is theirs to the bit (`without_noise`). Of 16-bit tensors all is computed
    in float32, of x as it is and of y as it is rounded to x's dtype.

    Args:
        x: [..., C], of any float dtype.
        step: positive, () or [C].
        low, high: integers, the grid's ends.
        inverse: of a fixed step, where 1/step in float32 is not it.
        carried: which terms of dstep are taken elsewhere (`carries`): "input", sum(dx * x), "output", sum(dy * y).
    Returns: [..., C].
    """

    @tf.custom_gradient
    def forward(x, step):
        ends, wide = _ends(step, low, high, inverse), tf.cast(x, arithmetic(x))
        y = _fused(wide, low, high, ends)
        if y is None:
            ratio = wide * (tf.cast(tf.cast(1.0 / step, tf.float32), wide.dtype) if inverse is None else float(inverse))
            ratio = tf.cast(without_noise(ratio) if wide.dtype == tf.float64 else ratio, tf.float32)
            codes = tf.round(tf.raw_ops.ClipByValue(t=ratio, clip_value_min=float(low), clip_value_max=float(high)))
            y = tf.cast(codes, wide.dtype) * step
        y = tf.cast(y, x.dtype)

        def gradient(dy):
            dx = _inside(dy, x, ends)
            # sum(dy * (y - x) / step) inside and sum(dy * y / step) outside, without a select
            dstep = tf.zeros_like(step) if "output" in carried else _dot(dy, y, step)
            return dx, (dstep if "input" in carried else dstep - _dot(dx, x, step)) / step

        return y, gradient

    return forward(x, step)


def carries(tensor, step, sign):
    """`tensor` as it is; `step` () gets the gradient sign * sum(dtensor * tensor) / step, as if the tensor were proportional to step^sign."""

    @tf.custom_gradient
    def forward(tensor, step):
        return tf.identity(tensor), lambda dy: (dy, sign * tf.reduce_sum(tf.cast(dy, step.dtype) * tf.cast(tensor, step.dtype)) / step)

    return forward(tensor, step)


def positive(value, smallest=SMALLEST):
    """max(value, smallest), with the gradient of the identity: an interval pushed below zero finds its way back. Keeps NaN."""

    @tf.custom_gradient
    def forward(value):
        return tf.where(value < smallest, tf.constant(smallest, value.dtype), value), lambda gradient: gradient

    return forward(value)


def smallest_interval(dtype):
    """SMALLEST; of float16 its smallest normal number: a grid below it would hold zeros alone, and these give an interval no gradient."""
    return 2.0**-14 if dtype == tf.float16 else SMALLEST


@tf.custom_gradient
def straight_through(x, y):
    """y forward, to the bit, where x + stop_gradient(y - x) rounds; the identity's gradient to x backward, none to y."""
    return tf.identity(y), lambda dy: (dy, None)


def ternary_threshold(w, axes):
    """TWN's threshold: 0.7 * mean|w| over `axes`, kept dimensions (TWN, section 2.2)."""
    return 0.7 * tf.reduce_mean(tf.abs(w), axes, keepdims=True)


def ternary_scale(w, axes, scale="abs"):
    """The scale of ternary weights, kept dimensions.

    "abs":      mean(|w| : |w| > threshold)  (TWN, section 2.2).
    "positive": mean(w : w > threshold)      (Apprentice, section 5); where no weight is above it, the formula has no
                value and "abs" is taken.
    """
    threshold = ternary_threshold(w, axes)

    def mean_where(mask):
        mask = tf.cast(mask, w.dtype)
        return tf.math.divide_no_nan(tf.reduce_sum(tf.abs(w) * mask, axes, keepdims=True), tf.reduce_sum(mask, axes, keepdims=True))

    both = mean_where(tf.abs(w) > threshold)
    if scale == "abs":
        return both
    above = mean_where(w > threshold)
    return tf.where(above > 0, above, both)


@tf.custom_gradient
def sequential_ternary(w, alpha):
    """SEQ: w onto {-2/3, 0, 2/3} * alpha (ParetoQ, section 3).

    Forward:   y = alpha * round(1.5 * clip(w/alpha, -.99, .99)) / 1.5
    Backward:  dy/dw = 1 where |w/alpha| <= .99, else 0; dy/dalpha = y/alpha - w/alpha inside, -1 or 1 where clipped.

    Args: w [..., C]; alpha positive, () or [C].
    """
    ratio = w / alpha
    y = tf.round(1.5 * tf.clip_by_value(ratio, -0.99, 0.99)) * (alpha / 1.5)

    def gradient(dy):
        inside = tf.abs(ratio) <= 0.99
        to_alpha = tf.where(inside, y / alpha - ratio, tf.sign(ratio))
        return dy * tf.cast(inside, dy.dtype), _sum_to(dy * to_alpha, alpha.shape)

    return y, gradient


def scaled_gradient(x, factor):
    """x forward, to the bit; its gradient times `factor`, which has none, backward (LSQ, section 2.2)."""

    @tf.custom_gradient
    def forward(x):
        return tf.identity(x), lambda dy: dy * factor

    return forward(x)

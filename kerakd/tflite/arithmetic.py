"""NumPy models of what the int8 kernels of XNNPACK, of LiteRT itself and of TFLite Micro compute, to the bit.

A quantization is (scale, zero point), the scale as the float32 that the file holds. `acc` is the sum of products of
codes less their zero points, plus the bias. Each function is tested against its runtime (tests/test_arithmetic.py, tests/test_arithmetic_builtin.py).
"""

import math

import numpy as np

f32, i64 = np.float32, np.int64


def clamp(codes, low=-128, high=127):
    return np.clip(codes, low, high).astype(np.int8)


def multiplier(s_x, s_w, s_y):
    """XNNPACK's float32 factor from an accumulator to an output code: (s_x * s_w) / s_y, each rounded to float32."""
    return (f32(s_x) * np.asarray(s_w, f32)) / f32(s_y)


def requantize_xnnpack(acc, s_x, s_w, s_y, zero_y, low=-128, high=127):
    """CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED: rint(float32(acc) * multiplier) + zero_y, clamped. acc int32 [..., C]."""
    codes = np.rint(np.asarray(acc, np.int32).astype(f32) * multiplier(s_x, s_w, s_y))
    return clamp(codes.astype(i64) + zero_y, low, high)


def add_xnnpack(a, b, a_q, b_q, y_q, low=-128, high=127):
    """ADD: (a * m_a + b * m_b + 2^(t-1)) >> t, halves up, with m = rint(s/s_y * 2^t), t = 20 - exponent of the larger ratio."""
    ratio_a, ratio_b = f32(a_q[0]) / f32(y_q[0]), f32(b_q[0]) / f32(y_q[0])
    shift = 20 - (math.frexp(float(max(ratio_a, ratio_b)))[1] - 1)
    m_a, m_b = (int(np.rint(np.ldexp(ratio, shift))) for ratio in (ratio_a, ratio_b))
    acc = (np.asarray(a, i64) - a_q[1]) * m_a + (np.asarray(b, i64) - b_q[1]) * m_b
    return clamp(((acc + (1 << (shift - 1))) >> shift) + y_q[1], low, high)


def mul_xnnpack(a, b, a_q, b_q, y_q, low=-128, high=127):
    """MUL: rint(float32(a * b) * float32(float32(s_a * s_b) / s_y)) + zero_y, clamped."""
    product = (np.asarray(a, i64) - a_q[1]) * (np.asarray(b, i64) - b_q[1])
    factor = f32(a_q[0]) * f32(b_q[0]) / f32(y_q[0])
    return clamp(np.rint(product.astype(f32) * factor).astype(i64) + y_q[1], low, high)


def mean_xnnpack(total, count, x_q, y_q):
    """MEAN over `count` values: rint(float32(total) * m + b), m = s_x/s_y * 1/count, b = zero_y - count * zero_x * m, every step in float32.

    total: the sum of the codes as they are, zero points included. The output's zero point is added before rounding.
    """
    factor = (f32(x_q[0]) / f32(y_q[0])) * (f32(1) / f32(count))
    offset = f32(y_q[1]) - f32(count * x_q[1]) * factor
    return clamp(np.rint(np.asarray(total, i64).astype(f32) * factor + offset).astype(i64))


def sigmoid_xnnpack(x, x_q):
    """LOGISTIC, whose output is always on (1/256, -128): rint(256 * float32(sigmoid of the real x in double) - 128), clamped."""
    real = (np.asarray(x, i64) - x_q[1]).astype(f32) * f32(x_q[0])
    value = (1 / (1 + np.exp(-np.clip(real.astype(np.float64), -100, 100)))).astype(f32)
    return clamp(np.rint(value * f32(256) - f32(128)).astype(i64))


def quantize_xnnpack(x, y_q):
    """QUANTIZE of float32: rint(x * float32(1/s)) + zero, clamped."""
    codes = np.rint(np.asarray(x, f32) * (f32(1) / f32(y_q[0])))
    return clamp(codes.astype(i64) + y_q[1])


def rescale_xnnpack(x, x_q, y_q):
    """QUANTIZE of int8: ((x - zero_x) * rint(256 * s_x/s_y) + 128) >> 8, halves up, + zero_y, clamped."""
    factor = int(np.rint(256 * (f32(x_q[0]) / f32(y_q[0]))))
    return clamp((((np.asarray(x, i64) - x_q[1]) * factor + 128) >> 8) + y_q[1])


# LiteRT's own kernels, which take what XNNPACK does not, and TFLite Micro's: multipliers of 31 bits, and two roundings


def quantize_multiplier(real):
    """Reals > 0 as (M, shift), M / 2^31 * 2^shift about `real` and 2^30 <= M < 2^31; (0, 0) below 2^-32. int64 arrays."""
    fraction, shift = np.frexp(np.asarray(real, np.float64))
    multiplied = np.floor(fraction * 2.0**31 + 0.5).astype(i64)
    full = multiplied == 1 << 31
    multiplied, shift = np.where(full, 1 << 30, multiplied), np.where(full, shift + 1, shift).astype(i64)
    return np.where(shift < -31, 0, multiplied), np.where(shift < -31, 0, shift)


def _halves_away(x, m, shift):
    """x * M / 2^31 * 2^shift with a rounding after the product, halves up, and one after the shift, halves away from zero (gemmlowp)."""
    high = ((np.asarray(x, i64) << np.maximum(shift, 0)) * m + (1 << 30)) >> 31
    right = np.maximum(-shift, 0)
    rest, half = high & ((1 << right) - 1), ((1 << right) - 1) >> 1
    return (high >> right) + (rest > half + (high < 0))


def _halves_up(x, m, shift):
    """The same with halves up both times, as kernels that work on whole vectors have it (ruy)."""
    high = ((np.asarray(x, i64) << np.maximum(shift, 0)) * m + (1 << 30)) >> 31
    right = np.maximum(-shift, 0)
    return (high + ((1 << right) >> 1)) >> right


def _in_blocks(x, m, shift, block):
    """Along the last axis whole blocks with halves up, what is left over with halves away from zero."""
    up, away = _halves_up(x, m, shift), _halves_away(x, m, shift)
    return np.where(np.arange(x.shape[-1]) < x.shape[-1] // block * block, up, away)


def _accumulator_multiplier(s_x, s_w, s_y):
    return quantize_multiplier(np.float64(f32(s_x)) * np.asarray(s_w, f32).astype(np.float64) / np.float64(f32(s_y)))


def requantize_builtin(acc, s_x, s_w, s_y, zero_y, low=-128, high=127):
    """CONV_2D of LiteRT without a delegate, unless it is grouped. acc int32 [..., C]."""
    return clamp(_halves_up(acc, *_accumulator_multiplier(s_x, s_w, s_y)) + zero_y, low, high)


def requantize_dense_builtin(acc, s_x, s_w, s_y, zero_y, low=-128, high=127):
    """FULLY_CONNECTED of LiteRT without a delegate: as CONV_2D, but with one step for all the kernel s_x * s_w is a float32."""
    if np.size(s_w) == 1:
        s_x, s_w = f32(s_x) * np.asarray(s_w, f32), f32(1)
    return requantize_builtin(acc, s_x, s_w, s_y, zero_y, low, high)


def requantize_depthwise_builtin(acc, s_x, s_w, s_y, zero_y, low=-128, high=127):
    """DEPTHWISE_CONV_2D of LiteRT without a delegate, in blocks of 8 channels."""
    return clamp(_in_blocks(acc, *_accumulator_multiplier(s_x, s_w, s_y), block=8) + zero_y, low, high)


def requantize_micro(acc, s_x, s_w, s_y, zero_y, low=-128, high=127):
    """CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED of TFLite Micro's reference kernels; LiteRT's grouped CONV_2D too."""
    return clamp(_halves_away(acc, *_accumulator_multiplier(s_x, s_w, s_y)) + zero_y, low, high)


def _add(a, b, a_q, b_q, y_q, low, high, scaled):
    """Operands shifted left by 20 bits, three multipliers; `scaled` applies the first two."""
    s_a, s_b, s_y = (np.float64(f32(q[0])) for q in (a_q, b_q, y_q))
    twice = 2 * max(s_a, s_b)
    total = sum(scaled(np.asarray(x, i64) - q[1], *quantize_multiplier(s / twice)) for x, q, s in ((a, a_q, s_a), (b, b_q, s_b)))
    return clamp(_halves_away(total, *quantize_multiplier(twice / (2**20 * s_y))) + y_q[1], low, high)


def add_builtin(a, b, a_q, b_q, y_q, low=-128, high=127):
    """ADD of LiteRT without a delegate, but for sums of more than 2^15 steps, at which its vectors of 16 bits overflow.

    a, b: [..., size of one example]. In blocks of 16 along it an operand is rounded once. Where b (or a) is [C] against [..., C] the blocks are along C;
    where its last axis is 1 they are of 8, and an operand is rounded, halves up, and then down.
    """
    size, scalar = max(a.shape[-1], b.shape[-1]), a.shape[-1] != b.shape[-1]
    block = np.arange(size) < (size // 8 * 8 if scalar else size // 16 * 16)

    def scaled(x, m, shift):
        if scalar:
            rounded = ((x << 20) * m + (1 << 30)) >> 31 >> -shift
        else:
            rounded = (((x << max(20 + shift, 0)) >> max(-20 - shift, 0)) * m + (1 << 30)) >> 31
        return np.where(block, rounded, _halves_away(x << 20, m, shift))

    return _add(a, b, a_q, b_q, y_q, low, high, scaled)


def add_micro(a, b, a_q, b_q, y_q, low=-128, high=127):
    """ADD of TFLite Micro."""
    return _add(a, b, a_q, b_q, y_q, low, high, lambda x, m, shift: _halves_away(x << 20, m, shift))


def _mul(a, b, a_q, b_q, y_q, low, high, real):
    product = (np.asarray(a, i64) - a_q[1]) * (np.asarray(b, i64) - b_q[1])
    return clamp(_halves_away(product, *quantize_multiplier(real(a_q[0]) * real(b_q[0]) / real(y_q[0]))) + y_q[1], low, high)


def mul_builtin(a, b, a_q, b_q, y_q, low=-128, high=127):
    """MUL of LiteRT without a delegate, but for products of more than 2^15 steps: the multiplier is a float32, each step rounded."""
    return _mul(a, b, a_q, b_q, y_q, low, high, f32)


def mul_micro(a, b, a_q, b_q, y_q, low=-128, high=127):
    """MUL of TFLite Micro."""
    return _mul(a, b, a_q, b_q, y_q, low, high, lambda scale: np.float64(f32(scale)))


def mean_builtin(total, count, x_q, y_q):
    """MEAN of TFLite Micro, and of LiteRT where not `mean_kept_builtin`. `total` as in `mean_xnnpack`."""
    m, shift = quantize_multiplier(np.float64(f32(x_q[0])) / np.float64(f32(y_q[0])))
    more = min(int(math.log2(count)), 32, 31 + int(shift))
    return clamp(_halves_away(np.asarray(total, i64) - count * x_q[1], (int(m) << more) // count, int(shift) - more) + y_q[1])


def mean_kept_builtin(total, count, x_q, y_q):
    """MEAN over an image (axes 1 and 2 of 4) of LiteRT without a delegate where they are kept: blocks of 16 channels, the zero points' bias rounded alone.

    By one thread; each of several has its own share of the channels, and the blocks start anew with it.
    """
    s_x, s_y = f32(x_q[0]), f32(y_q[0])
    zero = f32(x_q[1]) * s_x / s_y
    bias = y_q[1] - int(zero + np.copysign(f32(0.5), zero))
    m, shift = quantize_multiplier(s_x / (f32(count) * s_y))
    return clamp(_in_blocks(np.asarray(total, i64), m, shift, block=16) + bias)


def pool_builtin(total, count, low=-128, high=127):
    """AVERAGE_POOL_2D of both: total / count, halves away from zero; the grid stays, and padding is not counted."""
    total = np.asarray(total, i64)
    return clamp(np.sign(total) * ((np.abs(total) + count // 2) // count), low, high)


def rescale_builtin(x, x_q, y_q):
    """QUANTIZE of int8 of LiteRT without a delegate, in blocks of 16 along the whole tensor, x [..., size of one example]."""
    m, shift = quantize_multiplier(np.float64(f32(x_q[0])) / np.float64(f32(y_q[0])))
    return clamp(_in_blocks(np.asarray(x, i64) - x_q[1], m, shift, block=16) + y_q[1])


def rescale_micro(x, x_q, y_q):
    """QUANTIZE of int8 of TFLite Micro."""
    m, shift = quantize_multiplier(np.float64(f32(x_q[0])) / np.float64(f32(y_q[0])))
    return clamp(_halves_away(np.asarray(x, i64) - x_q[1], m, shift) + y_q[1])


def _away(x):
    """The nearest integers of floats, halves away from zero."""
    return np.trunc(x + np.copysign(0.5, x).astype(np.float64)).astype(i64)


def quantize_builtin(x, y_q):
    """QUANTIZE of float32 of LiteRT without a delegate: XNNPACK's in blocks of 8, what is left over by a division in double, halves away from zero.

    x: [..., size of one example].
    """
    left = clamp(_away(np.asarray(x, np.float64) / np.float64(f32(y_q[0]))) + y_q[1])
    return np.where(np.arange(x.shape[-1]) < x.shape[-1] // 8 * 8, quantize_xnnpack(x, y_q), left)


def quantize_micro(x, y_q):
    """QUANTIZE of float32 of TFLite Micro: round(float32(x / s)), halves away from zero, + zero, clamped."""
    return clamp(_away(np.asarray(x, f32) / f32(y_q[0])) + y_q[1])


def sigmoid_builtin(x, x_q):
    """LOGISTIC of LiteRT without a delegate: a table of round(256 / (1 + exp(-x))) - 128, every step in float32."""
    real = (np.asarray(x, i64) - x_q[1]).astype(f32) * f32(x_q[0])
    value = 1 / (1 + np.exp(np.clip(-real.astype(np.float64), -100, 80)).astype(f32))
    return clamp(_away(value * f32(256)) - 128)

"""NumPy models of what TFLite's int8 kernels compute, to the bit: XNNPACK's and the builtin ones'.

A quantization is (scale, zero point), the scale as the float32 that the file holds. `total` and `acc` are int sums of
codes less their zero point. Each function is tested against its runtime (tests/test_arithmetic.py).
"""

import math

import numpy as np

f32, i64 = np.float32, np.int64


def clamp(codes, low=-128, high=127):
    return np.clip(codes, low, high).astype(np.int8)


# XNNPACK: one rounding, to even, of a float32 product


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


def mean_xnnpack(total, count, x_q, y_q):
    """MEAN over `count` values: rint(float32(total) * (s_x/s_y * 1/count)) + zero_y, every factor a float32."""
    factor = (f32(x_q[0]) / f32(y_q[0])) * (f32(1) / f32(count))
    return clamp(np.rint(np.asarray(total, i64).astype(f32) * factor).astype(i64) + y_q[1])


def quantize_xnnpack(x, y_q):
    """QUANTIZE of float32: rint(x * float32(1/s)) + zero, clamped."""
    codes = np.rint(np.asarray(x, f32) * (f32(1) / f32(y_q[0])))
    return clamp(codes.astype(i64) + y_q[1])


# Builtin kernels and TFLM: a 31-bit multiplier, two roundings (gemmlowp)


def quantize_multiplier(value):
    """A positive factor as (31-bit multiplier, shift): value ~ multiplier * 2^(shift - 31)."""
    fraction, shift = math.frexp(value)
    scaled = math.floor(fraction * 2.0**31 + 0.5)
    if scaled == 1 << 31:
        scaled, shift = scaled // 2, shift + 1
    return (0, 0) if shift < -31 else (scaled, shift)


def multiply_twice_rounded(x, scaled, shift):
    """gemmlowp's MultiplyByQuantizedMultiplier: a doubling high product rounded, then a right shift rounded half away from zero."""
    x, scaled, shift = np.asarray(x, i64), np.asarray(scaled, i64), np.asarray(shift, i64)
    product = (x << np.maximum(shift, 0)) * scaled
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = np.where(nudged >= 0, nudged >> 31, -((-nudged) >> 31))
    right = np.maximum(-shift, 0)
    mask = (i64(1) << right) - 1
    return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))


def requantize_builtin(acc, s_x, s_w, s_y, zero_y, low=-128, high=127):
    """CONV_2D and DEPTHWISE_CONV_2D of the builtin kernels: the factor in double, rounded twice. acc int32 [..., C], s_w [C]."""
    factors = [quantize_multiplier(float(f32(s_x)) * float(f32(w)) / float(f32(s_y))) for w in np.atleast_1d(s_w)]
    scaled, shift = np.array(factors, i64).T
    return clamp(multiply_twice_rounded(acc, scaled, shift) + zero_y, low, high)

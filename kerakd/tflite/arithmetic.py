"""NumPy models of what XNNPACK's int8 kernels compute, to the bit.

A quantization is (scale, zero point), the scale as the float32 that the file holds. `acc` is the sum of products of
codes less their zero points, plus the bias. Each function is tested against the runtime (tests/test_arithmetic.py).
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

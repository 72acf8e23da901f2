"""Whether 16 bits are slower than 32 here: processors without instructions for them compute each value in 32 and round it."""

import sys
import time

import tensorflow as tf

SIZES = (16, 16, 16, 32), (3, 3, 32, 32)  # images and kernel: 38 million multiplications, three times that with the gradients
TOO_SLOW = 1.5  # beyond what a busy machine adds


def times_as_long(half, repeats=9):
    """How many times as long as in float32 a convolution and its gradients take in `half` on TensorFlow's first device; the best of `repeats` each."""
    best = {}
    for dtype in ("float32", half) * repeats:
        images, kernel = (tf.zeros(size, dtype) for size in SIZES)
        began = time.perf_counter()
        with tf.GradientTape() as tape:
            tape.watch((images, kernel))
            out = tf.nn.conv2d(images, kernel, 1, "SAME")
        for gradient in tape.gradient(out, (images, kernel)):
            gradient.numpy()  # a device answers when it is done
        best[dtype] = min(best.get(dtype, float("inf")), time.perf_counter() - began)
    return best[half] / best["float32"]


def warn(half):
    """One line for who asked for `half` where it takes TOO_SLOW times as long and more."""
    ratio = times_as_long(half)
    if ratio >= TOO_SLOW:
        print(
            f"kerakd: --mixed_precision={half}: a convolution takes {ratio:.1f} times as long in {half} as in float32 here; leave the flag out, or train "
            "where the hardware has 16 bits (a CPU with AVX512-BF16 or AMX for bfloat16, a GPU)",
            file=sys.stderr,
        )

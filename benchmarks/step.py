"""Milliseconds of a training step: float, tfmot's 8-bit QAT, kerakd W4A4 and ternary-A8, side by side.

    python -m benchmarks.step [--net=resnet20|mobilenet_v2] [--precision=float32|mixed_bfloat16] [--repeats=9] [--json=FILE]

Each variant takes a few steps in turn, round after round; the medians count, so a machine whose speed drifts is fair to all.
"""

import argparse
import time

import kerakd.quiet

with kerakd.quiet.native_chatter_off():
    import numpy as np
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf_keras as keras

    import kerakd
    from kerakd import models
    from kerakd.carry import Carry
    from kerakd.files import write_json
    from kerakd.recast import recast

CASES = {"resnet20": (128, 32, 10), "mobilenet_v2": (16, 224, 1000)}  # batch, side, classes


def step_function(model, images, labels):
    """A compiled SGD step on one batch, returning the loss."""
    optimizer = keras.optimizers.SGD(1e-6, momentum=0.9)  # random labels teach nothing: what is timed must stay finite
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer.build(model.trainable_variables)
    carry = Carry(model)  # as the Distiller does; there is nothing to carry in the other networks

    @tf.function
    def step():
        with tf.GradientTape() as tape, carry():
            loss = loss_of(labels, model(images, training=True))
        optimizer.minimize(loss, model.trainable_variables, tape=tape)
        return loss

    return step


def variants(net, images, precision):
    """{name: function that makes the model}."""

    def student(weights, activations):
        made = kerakd.quantize(net(), kerakd.Scheme(weights, activations))
        kerakd.calibrate(made, images[:32])
        return recast(made, precision)

    found = {
        "float": lambda: recast(net(), precision),
        "tfmot W8A8": lambda: tfmot.quantization.keras.quantize_model(net()),
        "kerakd W4A4": lambda: student(kerakd.Interval(4), kerakd.Interval(4)),
        "kerakd ternary-A8": lambda: student(kerakd.Ternary(), kerakd.Interval(8)),
    }
    if precision != "float32":
        del found["tfmot W8A8"]  # it refuses other policies
    return found


def all_steps(name, precisions):
    """{(precision, variant): compiled step}."""
    batch, side, classes = CASES[name]
    random = np.random.default_rng(0)
    images = tf.constant(random.normal(size=(batch, side, side, 3)), tf.float32)
    labels = tf.constant(random.integers(0, classes, batch))
    steps = {}
    for precision in precisions:
        for key, make in variants(lambda: models.build(name, (side, side, 3), classes), images, precision).items():
            steps[precision, key] = step_function(make(), images, labels)
    return steps


def measure(name, precisions, repeats):
    """{figure: number} of one network."""
    steps = all_steps(name, precisions)
    times = {key: [] for key in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for key, step in steps.items():
            start = time.perf_counter()
            step().numpy()
            step().numpy()
            times[key].append((time.perf_counter() - start) / 2)
    return {f"{name} {precision} {key} ms": 1e3 * float(np.median(seconds)) for (precision, key), seconds in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=CASES, action="append")
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16"), action="append")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", help="write one flat object, a name for each figure")
    options = parser.parse_args()
    figures = {}
    for name in options.net or CASES:
        figures.update(measure(name, options.precision or ["float32", "mixed_bfloat16"], options.repeats))
        base = figures.get(f"{name} float32 float ms") or figures[f"{name} mixed_bfloat16 float ms"]
        for key, value in figures.items():
            if key.startswith(name):
                print(f"{key:44} {value:8.1f}   {value / base:5.2f} x float", flush=True)
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()

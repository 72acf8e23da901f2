"""Images a second of the input pipeline beside what a training step consumes, and how long the step waits for its batch.

    python -m benchmarks.data [--dataset=cifar10 --data_dir=DIR] [--view=shift_flip] [--steps=60] [--json=FILE]

Without --dataset, noise of CIFAR-10's shape and number. The step is a float ResNet-20's at batch 128:
what consumes fastest here. Pipeline alone, step alone on one batch that is held, and both together, in turn, round after round;
medians count. Waiting is the share of the time of both together that goes by before the next batch is there.
"""

import argparse
import time

import kerakd.quiet

with kerakd.quiet.native_chatter_off():
    import numpy as np
    import tensorflow as tf
    import tf_keras as keras

    import kerakd
    from kerakd import augment, data, models
    from kerakd.files import write_json

BATCH, ROUNDS = 128, 3


def noise_like_cifar():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (50_000, 32, 32, 3), np.uint8)
    rows = {"image": images, "label": random.integers(0, 10, 50_000), "index": np.arange(50_000)}
    return data.Split("noise like cifar10", tf.data.Dataset.from_tensor_slices(rows), 50_000, 10, (32, 32, 3))


def batches_of(split, view):
    size = split.image_shape()[:2]
    return iter(data.training(split, view=view, size=size, batch_size=BATCH, seed=0, epochs=1000))


def stepper(split):
    """A function that trains a step on a batch and waits for it."""
    distiller = kerakd.Distiller(student=models.build("resnet20", split.image_shape(), split.classes), mode="alone")
    distiller.compile(keras.optimizers.SGD(1e-6), metrics=["accuracy"])
    train = tf.function(distiller.train_step)
    return lambda batch: train(batch)["loss"].numpy()


def measure(split, view, steps):
    """{figure: value}."""
    step, batches = stepper(split), batches_of(split, view)
    held = next(batches)
    step(held)
    found = {"pipeline images/s": [], "step images/s": [], "both images/s": [], "input wait": []}
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(2 * steps):
            next(batches)
        found["pipeline images/s"].append(2 * steps * BATCH / (time.perf_counter() - started))
        started = time.perf_counter()
        for _ in range(steps):
            step(held)
        found["step images/s"].append(steps * BATCH / (time.perf_counter() - started))
        waited, started = 0.0, time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            step(batch)
        total = time.perf_counter() - started
        found["both images/s"].append(steps * BATCH / total)
        found["input wait"].append(waited / total)
    medians = {name: float(np.median(values)) for name, values in found.items()}
    return {**medians, "pipeline / step": medians["pipeline images/s"] / medians["step images/s"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="a dataset as of kerakd.train, in place of noise")
    parser.add_argument("--data_dir")
    parser.add_argument("--view", choices=list(augment.BY_NAME), action="append", help="repeat it for more; shift_flip without")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", help="write one flat object, a name for each figure")
    options = parser.parse_args()
    split = data.load(options.dataset, options.data_dir)[0] if options.dataset else noise_like_cifar()
    figures = {}
    for view in options.view or ["shift_flip"]:
        found = measure(split, view, options.steps)
        figures |= {f"{view} {name}": value for name, value in found.items()}
        print(f"{split.name}, {view}: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    print("targets: pipeline / step at least 3, input wait at most 0.03")
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()

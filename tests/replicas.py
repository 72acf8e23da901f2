"""A process of its own, as TensorFlow takes logical devices only before its first operation: steps of two replicas beside those of one device.

Prints {case: [the largest relative difference of a loss, the largest difference of a weight]} as a line of JSON, the losses of a run
on one device and of one that began on two replicas and went on, from its checkpoint, on one device, and that of an epoch whose last batch has
an image for one of two replicas alone.

    python tests/replicas.py DATA_DIR WORKDIR [CASE ...]
"""

import json
import sys

import kerakd.quiet  # noqa: F401  (before TensorFlow)
from kerakd.devices import devices

TWO = devices("mirrored", 2)

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tf_keras as keras  # noqa: E402

from kerakd import calibration, config, data, scheme  # noqa: E402
from kerakd.distiller import Distiller  # noqa: E402
from kerakd.keep import Every, Keeping, Stopped  # noqa: E402
from kerakd.quantizers import Interval  # noqa: E402
from kerakd.recast import recast  # noqa: E402
from kerakd.rundir import RunDirectory  # noqa: E402
from kerakd.training import Training  # noqa: E402

L = keras.layers
BATCH, STEPS = 16, 4
CASES = {
    "joint": {"mode": "joint"},
    "hints and medicine": {
        "mode": "trained_teacher",
        "hints": [("relu_out", "relu")],
        "hint_loss": "attention",
        "medicine": {"dampening": 0.01, "freezing": 0.009},
    },
    "co_study": {"mode": "co_study", "temperature": 2.0},
    "float16": {"mode": "co_study", "policy": "mixed_float16"},
}
RUN = ("--dataset=digits", "--student=resnet8", "--student_width=0.25", "--shrink=2", "--weights=interval:8", "--phase=alone:2", "--optimizer=sgd")


def net(seed):
    init = keras.initializers.GlorotUniform(seed)
    x = keras.Input((8, 8, 1))
    y = L.Conv2D(4, 3, use_bias=False, kernel_initializer=init, kernel_regularizer=keras.regularizers.L2(0.01))(x)
    y = L.ReLU(name="relu")(L.BatchNormalization()(y))
    return keras.Model(x, L.Dense(10, kernel_initializer=init)(L.GlobalAveragePooling2D()(y)))


def trained(images, split, one, mode, policy="float32", medicine=None, **kwargs):
    """(history, weights) of a student of STEPS steps on the devices `one`."""
    student = scheme.quantize(net(1), scheme.Scheme(Interval(4), Interval(8), first=4))
    calibration.calibrate(student, images)
    with one.strategy.scope():
        networks = [recast(model, policy, one.distributed) for model in (student, net(2))]
        model = Distiller(student=networks[0], teacher=networks[1] if mode != "alone" else None, mode=mode, **kwargs)
        model.compile(keras.optimizers.SGD(0.1), teacher_optimizer=keras.optimizers.SGD(0.1), metrics=["accuracy"], **(medicine or {}))
    batches = one.split(lambda *part: data.training(split, view="shift", size=(8, 8), batch_size=BATCH, seed=0, epochs=1, part=part).take(STEPS * one.replicas))
    history = model.fit(batches, steps_per_epoch=1, epochs=STEPS, verbose=0).history
    return history, recast(model.student).trainable_weights


def short_of_images(images):
    """The loss of a batch for both replicas and of one with a single image, under a teacher that is asked at each, and the sum of the weights then."""
    student = scheme.quantize(net(1), scheme.Scheme(Interval(4), Interval(8, gradient_scale=True)))
    calibration.calibrate(student, images)
    with TWO.strategy.scope():
        model = Distiller(student=recast(student, synchronized=True), teacher=recast(net(2), synchronized=True), mode="trained_teacher", soft_weight=1.0)
        model.compile(keras.optimizers.SGD(0.1))
    losses = model.fit(images[: BATCH + 1], np.zeros(BATCH + 1, int), batch_size=BATCH, verbose=0).history["loss"]
    return [*losses, sum(float(tf.reduce_sum(weight)) for weight in model.student.trainable_weights)]


def apart(*cases):
    """[the largest relative difference of the losses, the largest difference of a weight]."""
    (losses, weights), (theirs, others) = cases
    assert losses.keys() == theirs.keys()
    of_losses = max(np.max(np.abs(np.subtract(losses[name], theirs[name])) / np.maximum(np.abs(losses[name]), 1e-3)) for name in losses)
    return [float(of_losses), max(float(tf.reduce_max(tf.abs(a - b))) for a, b in zip(weights, others, strict=True))]


class Stopping(Keeping):
    """A run that is asked to stop when its first checkpoint is due."""

    def agreed(self, over=False):
        self.request.number = 15 if over else None
        return super().agreed(over)


def run(path, *keepings):
    """The losses of a run, each epoch's, under one Keeping after the other."""
    chosen, _ = config.parse(["", *RUN, f"--data_dir={sys.argv[1]}"])
    for keeping in keepings:
        directory = RunDirectory(path)
        directory.claim(chosen.text(), resume=directory.path.exists(), overwrite=False)
        try:
            Training(chosen, directory, keeping).run()
            assert keeping is keepings[-1]
        except Stopped:
            assert keeping is not keepings[-1] and directory.has_checkpoint("taught_0")
    return [row[name] for row in directory.metrics() for name in ("loss", "val_loss")]


if __name__ == "__main__":
    split, _ = data.load("digits", sys.argv[1])
    images = np.stack([example["image"] for example in split.examples.take(64).as_numpy_iterator()]).astype(np.float32) / 127.5 - 1
    ONE = devices()
    print(json.dumps({name: apart(*(trained(images, split, one, **CASES[name]) for one in (ONE, TWO))) for name in sys.argv[3:] or CASES}))
    losses = run(f"{sys.argv[2]}/one", Keeping()), run(f"{sys.argv[2]}/two", Stopping(Every("5"), devices=TWO), Keeping())
    print(json.dumps(losses))
    print(json.dumps(short_of_images(images)))

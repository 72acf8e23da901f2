"""Milliseconds of a training step of each row that is kept in results/cifar10, side by side.

    python -m benchmarks.row_steps [--row=NAME ...] [--repeats=9] [--json=FILE]

A step as kerakd.train takes it, with the row's configuration but for its rates and its rule of calibration, which cost a step nothing, on
a batch that lies in memory, on one core; a teacher that is asked at every step is asked, and not read from a cache. The rows take a few
steps in turn, round after round; the medians count. Of a row with several phases it is the mean over its epochs. TFDS_DATA_DIR says where
CIFAR-10 lies.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import tempfile
import time

import kerakd.quiet

with kerakd.quiet.native_chatter_off():
    import numpy as np
    import tensorflow as tf
    import tf_keras as keras

    from benchmarks.accuracy import is_kept, machine
    from benchmarks.rows import CIFAR10, ROWS, STEPS
    from kerakd import config, data
    from kerakd.files import write_json
    from kerakd.rundir import RunDirectory
    from kerakd.training import Training

AT_ONCE = 2  # steps of a row in its turn
STILL = {"learning_rate": 1e-6, "weight_interval_rate": 1e-6, "activation_interval_rate": 1e-6}  # what learns nothing stays finite


def phases(row, workdir):
    """[(its share of the epochs, a function that takes AT_ONCE steps)] of a row."""
    flags, _ = config.parse(["row_steps", f"--flagfile={CIFAR10 / f'{row}.cfg'}"])
    rates = {name: rate for name, rate in STILL.items() if getattr(flags, name) is not None}
    flags = dataclasses.replace(flags, teacher_cache="", batchnorm_batches=0, steps_per_execution=1, calibration="max", **rates)
    workdir.mkdir()
    training = Training(flags, RunDirectory(workdir))
    stage, lessons = training.stages[-1], training.lessons
    epochs = sum(count for _, count in stage.phases)
    found = []
    for mode, count in stage.phases:  # a distiller of its own for each, as a step belongs to a mode
        distiller, _ = training.ready(stage)
        distiller.enter(mode)
        frozen = distiller.mode.frozen_teacher
        if frozen:
            lessons.prepare(distiller.teachers)
        views = lessons.heard(distiller, 0, 0, 1) if frozen else lessons.views(0, 0, 1)
        batches = iter(views.take(1).cache().repeat())
        step = distiller.make_train_function()

        def take(step=step, batches=batches):
            for _ in range(AT_ONCE):
                logs = step(batches)
            return float(logs["loss"])

        take()  # traced, and the batch is in memory
        found.append((count / epochs, take))
    return found


def measure(rows, repeats):
    """{row: milliseconds}."""
    data.load = functools.cache(data.load)  # the rows hold the images together
    with tempfile.TemporaryDirectory() as folder:
        steps = {}
        for row in rows:
            steps[row] = phases(row, pathlib.Path(folder) / row)
            print(f"{row} is ready", flush=True)
        times = {row: [[] for _ in found] for row, found in steps.items()}
        for _ in range(repeats):
            for row, found in steps.items():
                for taken, (_, take) in zip(times[row], found, strict=True):
                    start = time.perf_counter()
                    take()
                    taken.append(1e3 * (time.perf_counter() - start) / AT_ONCE)
    return {row: sum(share * float(np.median(taken)) for (share, _), taken in zip(found, times[row], strict=True)) for row, found in steps.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", choices=ROWS, metavar="NAME", help="only these; repeat it for more")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=pathlib.Path, default=STEPS)
    options = parser.parse_args()
    rows = options.row or [row for row in ROWS if is_kept((row, 0))]
    if options.row and options.json == STEPS:
        parser.error(f"--json: expected another file than {STEPS} beside --row, as that has all rows of one run, received none; name one")
    if not rows or options.repeats < 1:
        parser.error(f"expected a row that is kept and --repeats of 1 or more, received {rows} and {options.repeats}")
    tf.config.experimental.enable_op_determinism()  # as kerakd.train
    keras.backend.experimental.enable_tf_random_generator()
    found = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "milliseconds": measure(rows, options.repeats)}
    for row, milliseconds in found["milliseconds"].items():
        print(f"{row:32} {milliseconds:8.1f}")
    write_json(options.json, found)


if __name__ == "__main__":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # before TensorFlow counts its threads
    main()

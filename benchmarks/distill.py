"""Milliseconds of a training step under a teacher: the student alone, the teacher's forward alone, both together, and the teacher read from a cache.

    python -m benchmarks.distill [--batch=128] [--repeats=15] [--json=FILE]

A ResNet-20 W4A4 on images of 32x32, 10 classes, under a ResNet-20 of the same size and one of 4 times the multiplications (width 2).
A step is Distiller's own, compiled as `fit` compiles it, on batches of `kerakd.data.training` that hold their place; ops are
deterministic, as in kerakd.train. The pipeline is out, the same for all: its batches were made once and are held in memory. The
cache is in: a warm step reads its logits from the folder that a first epoch filled.

Each variant takes two steps in turn, round after round; medians count, of ratios too, so a machine whose speed drifts is fair to all.
The same in milliseconds of CPU, of all threads, says which work there is where other programs take the cores.
"""

import argparse
import tempfile
import time

import kerakd.quiet

with kerakd.quiet.native_chatter_off():
    import numpy as np
    import tensorflow as tf
    import tf_keras as keras

    import kerakd
    from kerakd import data, models
    from kerakd.cache import TeacherCache, fingerprint
    from kerakd.files import write_json

SIDE, CLASSES, BATCHES = 32, 10, 4  # batches of an epoch
TEACHERS = {"1x": 1.0, "4x": 2.0}  # multiplications, as many times the student's: width
TARGETS = {"live": 1.10, "warm": 1.05}
STEPS = 2  # of a turn


def images_like_cifar(batch):
    """A data.Split of noise around a pattern per class."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, BATCHES * batch)
    patterns = random.integers(0, 256, (CLASSES, SIDE, SIDE, 3))
    images = np.clip(patterns[labels] + random.normal(0, 32, (len(labels), SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    examples = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels, "index": np.arange(len(labels))})
    return data.Split("like cifar10", examples, len(labels), CLASSES, (SIDE, SIDE, 3))


def student(images):
    made = kerakd.quantize(models.build("resnet20", (SIDE, SIDE, 3), CLASSES), kerakd.Scheme(kerakd.Interval(4), kerakd.Interval(4)))
    kerakd.calibrate(made, images)
    return made


def stepper(views, images, teacher=None, cache=None):
    """A function of no arguments that trains a fresh student for a step on the next of `views` and waits for it."""
    distiller = kerakd.Distiller(student=student(images), teacher=teacher, mode="trained_teacher" if teacher else "alone", teacher_cache=cache)
    distiller.compile(keras.optimizers.SGD(1e-6, momentum=0.9), metrics=["accuracy"])  # what is timed must stay finite
    step, batches = distiller.make_train_function(), iter(views if cache is None else cache.join(views))
    return lambda: step(batches)["loss"].numpy()


def steps_of(batch, folder):
    """({variant: step}, {cache's name: TeacherCache})."""
    made = data.training(images_like_cifar(batch), view="shift_flip", size=(SIDE, SIDE), batch_size=batch, seed=0, epochs=1, places=True)
    views = made.cache().repeat()
    images = next(iter(views))[0]["student"]
    steps, caches = {"alone": stepper(views, images)}, {}
    for name, width in TEACHERS.items():
        teacher = models.build("resnet20", (SIDE, SIDE, 3), CLASSES, width)
        teacher.trainable = False
        forward = tf.function(lambda x, teacher=teacher: teacher(x, training=False))
        steps[f"teacher {name} forward"] = lambda forward=forward: forward(images).numpy()
        steps[f"live {name}"] = stepper(views, images, teacher)
        caches[name] = TeacherCache(f"{folder}/{name}", {"teacher": fingerprint(teacher)}, BATCHES, (batch, 1, CLASSES))
        steps[f"warm {name}"] = stepper(views, images, teacher, caches[name])
    return steps, caches


def measure(batch, repeats):
    """{figure: number}."""
    with tempfile.TemporaryDirectory() as folder:
        steps, caches = steps_of(batch, folder)
        for name, step in steps.items():
            for _ in range(2 * BATCHES if name.startswith("warm") else 2):  # traced, and the caches filled
                step()
        asked = [cache.written_batches for cache in caches.values()]
        wall, cpu = ({name: [] for name in steps} for _ in range(2))
        for _ in range(repeats):
            for name, step in steps.items():
                start = time.perf_counter(), time.process_time()
                for _ in range(STEPS):
                    step()
                wall[name].append(1e3 * (time.perf_counter() - start[0]) / STEPS)
                cpu[name].append(1e3 * (time.process_time() - start[1]) / STEPS)
        if asked != [cache.written_batches for cache in caches.values()]:
            raise SystemExit("expected no step of a warm cache to ask the teacher, one did")
    return {**summary(wall, "ms"), **summary(cpu, "CPU ms")}


def summary(times, unit):
    """{figure: median} of {variant: milliseconds of each round}."""
    times = {name: np.array(taken) for name, taken in times.items()}
    figures = {f"{name} {unit}": float(np.median(taken)) for name, taken in times.items()}
    clock = " (CPU)" * unit.startswith("CPU")
    for name in TEACHERS:
        together = times["alone"] + times[f"teacher {name} forward"]
        figures[f"live {name} / (alone + teacher forward){clock}"] = float(np.median(times[f"live {name}"] / together))
        figures[f"warm {name} / alone{clock}"] = float(np.median(times[f"warm {name}"] / times["alone"]))
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", help="write one flat object, a name for each figure")
    options = parser.parse_args()
    tf.get_logger().setLevel("ERROR")  # each variant is traced once, which TensorFlow takes for one that is traced again
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)
    figures = measure(options.batch, options.repeats)
    for name, value in figures.items():
        target = f"   target {TARGETS[name.split()[0]]:.2f}" if "/" in name else ""
        print(f"{name:44} {value:8.3f}{target}" if target else f"{name:44} {value:8.1f}", flush=True)
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()

"""The files that ship: milliseconds, bytes, and what their making costs, of float32, tfmot's 8-bit QAT and kerakd, side by side.

    python -m benchmarks.export [--net=resnet18|resnet50|mobilenet_v2] [--repeats=150] [--json=FILE]

One thread; every file of a net takes an image in turn, round after round; the medians count, so a machine whose speed drifts is
fair to all. The nets are random ones whose BatchNorms have gammas, betas and statistics, as trained ones do.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import kerakd.quiet

with kerakd.quiet.native_chatter_off():
    import numpy as np
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf_keras as keras

    import kerakd
    from export import card
    from export.tflite import float_file
    from kerakd import batchnorm, modelfile, models
    from kerakd.files import write_json
    from kerakd.tflite import runtime
    from kerakd.tflite.codes import ideal_bytes

SHAPE, CLASSES = (224, 224, 3), 1000
PROVED = 4  # images of the proof
BITS4, TERNARY = "kerakd W4A4", "kerakd ternary-A8"
STOCK, INT8, INT4 = "tfmot W8A8", f"{BITS4} int8", f"{BITS4} int4"
SCHEMES = {BITS4: (kerakd.Interval(4), kerakd.Interval(4)), TERNARY: (kerakd.Ternary(), kerakd.Interval(8))}
INT4_TARGETS = {"resnet18": 1.05, "resnet50": 1.05, "mobilenet_v2": 1.16}


def images(count):
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(np.float32)


def float_net(name):
    """A net with He's kernels and BatchNorms as a training leaves them: spread gammas and betas, statistics of what comes in."""
    keras.utils.set_random_seed(0)
    net = models.build(name, SHAPE, CLASSES)
    random = np.random.default_rng(1)
    for layer in net.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(random.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(random.normal(0, 0.2, layer.beta.shape))
    batchnorm.reestimate(net, [images(16)])
    return net


def student(net, scheme):
    made = kerakd.quantize(net, kerakd.Scheme(*SCHEMES[scheme]))
    kerakd.calibrate(made, images(16))
    batchnorm.reestimate(made, [images(16)])
    return made


def stock_file(net):
    """tfmot's default 8-bit QAT, its ranges from three training passes, by the stock converter; float32 in and out, as ours."""
    model = tfmot.quantization.keras.quantize_model(net)
    for _ in range(3):
        model(images(16), training=True)
    with kerakd.quiet.native_chatter_off():
        concrete = tf.function(lambda x: model(x, training=False)).get_concrete_function(tf.TensorSpec([1, *SHAPE], tf.float32))
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        return converter.convert()


def prove(path):
    """{figure: number} of converting the student at `path` to the int8 container and proving it, in a process that does nothing else.

    The seconds are those of to_tflite and verify. The memory is the peak of the whole process: Python, TensorFlow and the
    student's loading are in it. It is the kernel's mark of this program, as ru_maxrss begins at that of the process that started it.
    """
    model = modelfile.load_model(path)
    start = time.perf_counter()
    proof = kerakd.verify(model, kerakd.to_tflite(model), images(PROVED))
    seconds = time.perf_counter() - start
    peak = next(int(line.split()[1]) for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"conversion and proof s": seconds, "conversion and proof GB": peak * 1024 / 1e9, "logits equal": proof.logits_equal}


def proved_apart(model):
    """`prove` in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "student.keras"
        model.save(path)
        command = [sys.executable, "-m", "benchmarks.export", f"--prove={path}"]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def milliseconds(files, image, repeats):
    """{file: [ms]} of an image [1, h, w, c]: each file takes two images in turn, the first for its caches' sake, the second timed."""
    made = {}
    for key, data in files.items():
        made[key] = runtime.interpreter(data)
        made[key].set_tensor(made[key].get_input_details()[0]["index"], image)
    times = {key: [] for key in files}
    for round_ in range(repeats + 1):
        for key, interpreter in made.items():
            interpreter.invoke()
            start = time.perf_counter()
            interpreter.invoke()
            if round_:
                times[key].append(1e3 * (time.perf_counter() - start))
    return times


def measure(name, repeats):
    """{figure: number} of one network."""
    net = float_net(name)
    students = {scheme: student(net, scheme) for scheme in SCHEMES}
    ideal = {scheme: ideal_bytes(made) for scheme, made in students.items()}
    figures = {f"{BITS4} {key}": value for key, value in proved_apart(students[BITS4]).items()}
    files = {
        "float32": float_file(net),
        STOCK: stock_file(net),
        INT8: kerakd.to_tflite(students[BITS4]),
        INT4: kerakd.to_tflite(students[BITS4], "int4"),
        f"{TERNARY} int8": kerakd.to_tflite(students[TERNARY]),
    }
    for key, times in milliseconds(files, images(1), repeats).items():
        figures[f"{key} ms"], figures[f"{key} p90 ms"] = (float(np.percentile(times, share)) for share in (50, 90))
        figures[f"{key} bytes"], figures[f"{key} zipped"] = len(files[key]), card.zipped(files[key])
    figures.update({f"{scheme} ideal bytes": value for scheme, value in ideal.items()})
    figures["int8 ms / tfmot ms"] = figures[f"{INT8} ms"] / figures[f"{STOCK} ms"]
    figures["int4 bytes / ideal"] = figures[f"{INT4} bytes"] / ideal[BITS4]
    figures["zipped ternary / 2 bits"] = figures[f"{TERNARY} int8 zipped"] / ideal[TERNARY]
    return {f"{name} {key}": value for key, value in figures.items()}


def report(name, figures):
    """The table of one network."""
    print(f"{name:28}      ms  p90 ms      bytes     zipped")
    for key in [key.removesuffix(" p90 ms") for key in figures if key.startswith(name) and key.endswith(" p90 ms")]:
        ms, p90, size, zipped = (figures[f"{key} {figure}"] for figure in ("ms", "p90 ms", "bytes", "zipped"))
        print(f"  {key.removeprefix(name + ' '):26}{ms:8.2f}{p90:8.2f}{size:11d}{zipped:11d}")
    for scheme in SCHEMES:
        print(f"  {scheme + ', its weights alone':42}{figures[f'{name} {scheme} ideal bytes']:11.0f}")
    targets = {"int8 ms / tfmot ms": 1.02, "int4 bytes / ideal": INT4_TARGETS[name], "zipped ternary / 2 bits": 1.15}
    if name == "resnet50":
        targets.update({f"{BITS4} conversion and proof s": 90, f"{BITS4} conversion and proof GB": 6})
    shown = [*targets, f"{BITS4} conversion and proof s", f"{BITS4} conversion and proof GB", f"{BITS4} logits equal"]
    for key in dict.fromkeys(shown):
        print(f"  {key:42}{figures[f'{name} {key}']:11.3f}" + (f"  target {targets[key]:g}" if key in targets else ""))
    print(flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=INT4_TARGETS, action="append")
    parser.add_argument("--repeats", type=int, default=150)
    parser.add_argument("--json", help="write one flat object, a name for each figure")
    parser.add_argument("--prove", metavar="STUDENT.keras", help="only convert and prove this student, and print what that costs as JSON")
    options = parser.parse_args()
    if options.prove:
        print(json.dumps(prove(options.prove)))
        return
    figures = {}
    for name in options.net or INT4_TARGETS:
        figures.update(measure(name, options.repeats))
        report(name, figures)
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()

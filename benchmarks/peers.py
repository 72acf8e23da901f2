"""What a user would pick instead, beside kerakd: the same ResNet-20 from the same float weights, the same batches in the same order.

    python -m benchmarks.peers [--peer=NAME ...] [--steps=100] [--workdir=runs/peers] [--json=FILE]

Each peer runs in a virtual environment of its own, which this program makes in --workdir; the script of a peer is in benchmarks/peer.
Every variant trains for --steps steps of 128 images in float32 (SGD with momentum, rate 0.01 on half a cosine) from the float student
of results/cifar10/float_0, then is measured on the 10,000 test images, and so is the TFLite file that the peer makes of it.
TFDS_DATA_DIR says where CIFAR-10 is. A variant that is in FILE already is not run again. PyPI's torch for Linux brings gigabytes of CUDA;
pip's own settings (PIP_EXTRA_INDEX_URL) can name an index with its CPU build.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
import venv

import kerakd.quiet

with kerakd.quiet.native_chatter_off():
    import numpy as np

    from benchmarks.accuracy import machine
    from benchmarks.export import milliseconds
    from benchmarks.peer import resnet
    from benchmarks.rows import CIFAR10, RESULTS
    from kerakd import data, modelfile
    from kerakd.files import write_json
    from kerakd.tflite import runtime

ROOT = pathlib.Path(__file__).parents[1]
TF = ["tensorflow==2.21.0", "tf_keras==2.21.0", "tensorflow-model-optimization==0.8.1"]
PEERS = {  # name: (script, what is installed; None is kerakd's own environment)
    "kerakd": ("kerakd_itself", None),
    "tfmot default QAT": ("tfmot_default", TF),
    "tfmot n-bit": ("tfmot_nbit", TF),
    "QKeras": ("qkeras_layers", ["qkeras==0.9.0", "tensorflow==2.15.1", "pyparsing==3.3.3"]),
    "Brevitas": ("brevitas_layers", ["torch==2.13.0", "brevitas==0.13.4"]),
    "keras.distillation": ("keras3_distillation", ["keras==3.15.1", "tensorflow==2.21.0"]),
}
VARIANTS = ("8", "4", "2", "ternary", "float KD")  # bits of weights and activations; ternary weights with 8-bit activations
BATCH = 128
ROUNDS = 300  # of the files, for their milliseconds


def write_task(folder, steps, rate):
    """What benchmarks/peer/task.py reads."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = data.load("cifar10", None, False, 0)
    views = data.training(train, view="shift_flip", size=(32, 32), batch_size=BATCH, seed=0, epochs=1 + steps * BATCH // train.count).take(steps)
    batches = list(views.as_numpy_iterator())
    np.save(folder / "views.npy", np.stack([images for images, _ in batches]).astype(np.float16))
    np.save(folder / "labels.npy", np.stack([labels for _, labels in batches]))
    tests = list(data.testing(test, size=(32, 32)))
    images = np.concatenate([np.asarray(images) for images, _ in tests])
    np.save(folder / "test_images.npy", images.astype(np.float16))
    np.save(folder / "test_labels.npy", np.concatenate([np.asarray(labels) for _, labels in tests]))
    nets = {name: modelfile.load_model(CIFAR10 / run / "models/taught_0.keras") for name, run in (("student", "float_0"), ("teacher", "teacher_0"))}
    for name, net in nets.items():
        np.savez(folder / f"{name}.npz", **{resnet.key(layer, variable): variable.numpy() for layer in net.layers for variable in layer.weights})
    np.save(folder / "logits.npy", nets["student"](images[:100].astype(np.float16).astype(np.float32), training=False).numpy())
    (folder / "settings.json").write_text(json.dumps({"steps": steps, "rate": rate}))


def environment(name, packages, workdir):
    """The Python of the peer's environment, made where it is not there."""
    if packages is None:
        return sys.executable
    folder = workdir / "environments" / ("tfmot" if packages is TF else name.replace(" ", "_"))
    if not (folder / "installed").exists():
        print(f"installs {' '.join(packages)}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True)
        (folder / "installed").touch()
    return folder / "bin/python"


def installed(python, packages):
    """{package: its version} in an environment."""
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"], check=True, capture_output=True, text=True).stdout
    versions = {entry["name"].lower().replace("_", "-"): entry["version"] for entry in json.loads(listed)}
    names = [name.split("==")[0].replace("_", "-") for name in packages or TF]
    return {name: versions[name] for name in names}


def run(python, script, task, variant, file):
    """What the script says. Raises: SystemExit with its last words where it says nothing."""
    command = [python, "-m", f"benchmarks.peer.{script}", task, variant, file]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    said = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    if not said:
        raise SystemExit(f"{script} {variant} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return {key: value.replace(str(ROOT), "") if isinstance(value, str) else value for key, value in json.loads(said[-1].removeprefix("FIGURES ")).items()}


def of_file(contents, task):
    """{"bytes", "file_accuracy"} by LiteRT on all test images."""
    images, labels = (np.load(task / f"test_{name}.npy") for name in ("images", "labels"))
    logits = runtime.run(contents, images.astype(np.float32))
    return {"bytes": len(contents), "file_accuracy": float(np.mean(logits.argmax(-1) == labels))}


def shown(figures):
    if "absent" in figures:
        return f"-  (has no {figures['absent']})"
    found = [f"{figures['step_ms']:.0f} ms a step", f"accuracy {figures['accuracy']:.4f}"]
    if "bytes" in figures:
        found.append(f"its file {figures['file_accuracy']:.4f}, {figures['bytes']} bytes")
    return ", ".join(found) + (f"; no file: {figures['no_file']}" if "no_file" in figures else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", choices=PEERS)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/peers"))
    parser.add_argument("--json", type=pathlib.Path, default=RESULTS / "peers.json")
    options = parser.parse_args()
    if options.steps < 10:
        parser.error(f"--steps: expected 10 or more, of which the later half is timed, received {options.steps}")
    about = {"steps": options.steps, "machine": machine()}
    found = json.loads(options.json.read_text()) if options.json.exists() else {**about, "versions": {}, "variants": {}}
    if any(found[key] != value for key, value in about.items()):
        parser.error(f"--json: expected a file of {about}, received {options.json} of other steps or another machine; name another, or delete it")
    task = (options.workdir / "task").resolve()
    write_task(task, options.steps, 0.01)
    for name in options.peer or PEERS:
        script, packages = PEERS[name]
        python = environment(name, packages, options.workdir.resolve())
        found["versions"][name] = installed(python, packages)
        for variant in (variant for variant in VARIANTS if variant not in found["variants"].setdefault(name, {})):
            file = task / f"{script}_{variant.replace(' ', '_')}.tflite"
            figures = run(python, script, task, variant, file)
            figures |= of_file(file.read_bytes(), task) if figures.pop("file", None) else {}
            found["variants"][name][variant] = figures
            found["date"] = time.strftime("%Y-%m-%d")
            write_json(options.json, found)
            print(f"{name:20} {variant:9} {shown(figures)}", flush=True)
    with_files = [(name, variant) for name, variants in found["variants"].items() for variant, figures in variants.items() if "bytes" in figures]
    files = {key: (task / f"{PEERS[key[0]][0]}_{key[1].replace(' ', '_')}.tflite").read_bytes() for key in with_files}
    image = np.load(task / "test_images.npy", mmap_mode="r")[:1].astype(np.float32)
    for (name, variant), taken in milliseconds(files, image, ROUNDS).items():
        found["variants"][name][variant]["file_ms"] = float(np.median(taken))
    write_json(options.json, found)


if __name__ == "__main__":
    main()

"""What a user would pick instead, beside kerakd: the same ResNet-20 from the same float weights, the same batches in the same order.

    python -m benchmarks.peers [--peer=NAME ...] [--steps=200] [--workdir=runs/peers] [--json=FILE]

Each peer runs in a virtual environment of its own, which this program makes in --workdir; the script of a peer is in benchmarks/peer.
Every variant trains for --steps steps of 128 images in float32 (SGD with momentum, rate 0.01 on half a cosine) from the float student
of results/cifar10/float_0, then is measured on the 10,000 test images, and so is the TFLite file that the peer makes of it.
TFDS_DATA_DIR says where CIFAR-10 is. A variant that is in FILE already is not run again.
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
    from benchmarks.tables import CIFAR10, RESULTS
    from kerakd import data, rundir

ROOT = pathlib.Path(__file__).parents[1]
TF = ["tensorflow==2.21.0", "tf_keras==2.21.0", "tensorflow-model-optimization==0.8.1"]
PEERS = {  # name: (script, what is installed; None is kerakd's own environment)
    "kerakd": ("kerakd_itself", None),
    "tfmot default QAT": ("tfmot_default", TF),
    "tfmot n-bit": ("tfmot_nbit", TF),
    "QKeras": ("qkeras_layers", ["qkeras==0.9.0", "tensorflow==2.15.1", "pyparsing"]),
    "Brevitas": ("brevitas_layers", ["torch==2.13.0", "brevitas==0.13.4"]),
    "keras.distillation": ("keras3_distillation", ["keras==3.15.1", "tensorflow==2.21.0"]),
}
VARIANTS = ("8", "4", "2", "ternary", "float KD")
BATCH = 128


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
    nets = {name: rundir.load_model(CIFAR10 / run / "models/taught_0.keras") for name, run in (("student", "float_0"), ("teacher", "teacher_0"))}
    for name, net in nets.items():
        named = {f"{layer.name}/{variable.name.split('/')[-1].split(':')[0]}": variable.numpy() for layer in net.layers for variable in layer.weights}
        np.savez(folder / f"{name}.npz", **named)
    np.save(folder / "logits.npy", nets["student"](images[:100].astype(np.float16).astype(np.float32), training=False).numpy())
    (folder / "settings.json").write_text(json.dumps({"steps": steps, "batch": BATCH, "rate": rate}))


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


def run(python, script, task, variant):
    """What the script says, or {"error": its last words}."""
    command = [python, "-m", f"benchmarks.peer.{script}", task, variant]
    quiet = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    said = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    if said:
        return json.loads(said[-1].removeprefix("FIGURES "))
    return {"error": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:300]}


def shown(figures):
    if "error" in figures:
        return f"-  ({figures['error']})"
    found = [f"{figures['step_ms']:.0f} ms a step", f"accuracy {figures['accuracy']:.4f}"]
    if "bytes" in figures:
        found.append(f"its file {figures['file_accuracy']:.4f}, {figures['bytes']} bytes, {figures['ms']:.2f} ms an image")
    return ", ".join(found) + (f"; no file: {figures['file_error']}" if "file_error" in figures else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", choices=PEERS)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/peers"))
    parser.add_argument("--json", type=pathlib.Path, default=RESULTS / "peers.json")
    options = parser.parse_args()
    task = (options.workdir / "task").resolve()
    write_task(task, options.steps, 0.01)
    found = json.loads(options.json.read_text()) if options.json.exists() else {"variants": {}}
    for name in options.peer or PEERS:
        script, packages = PEERS[name]
        python = environment(name, packages, options.workdir.resolve())
        for variant in (variant for variant in VARIANTS if variant not in found["variants"].get(name, {})):
            figures = run(python, script, task, variant)
            found["variants"].setdefault(name, {})[variant] = figures
            found |= {
                "machine": machine(),
                "date": time.strftime("%Y-%m-%d"),
                "steps": options.steps,
                "packages": {peer: packages for peer, (_, packages) in PEERS.items()},
            }
            options.json.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{name:20} {variant:9} {shown(figures)}", flush=True)


if __name__ == "__main__":
    main()

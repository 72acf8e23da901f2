"""What every peer is given, and what it measures: NumPy alone, as it runs in each peer's own environment.

A task is a folder: settings.json (steps, batch, rate), views.npy [steps, batch, 32, 32, 3] float16 in -1..1 and labels.npy, the same
images in the same order for all; test_images.npy, test_labels.npy; student.npz and teacher.npz, weights by "layer/variable" of
float ResNet-20s; logits.npy, the student's on the first 100 test images.
"""

import json
import math
import pathlib
import time

import numpy as np


class Task:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        settings = json.loads((self.folder / "settings.json").read_text())
        self.steps, self.batch, self.rate = settings["steps"], settings["batch"], settings["rate"]
        self.views = np.load(self.folder / "views.npy", mmap_mode="r")
        self.labels = np.load(self.folder / "labels.npy")
        self.test_images = np.load(self.folder / "test_images.npy").astype(np.float32)
        self.test_labels = np.load(self.folder / "test_labels.npy")

    def weights(self, name="student"):
        """{"layer/variable": array}."""
        return dict(np.load(self.folder / f"{name}.npz"))

    def rate_at(self, step):
        """Half a cosine from `rate` to 0."""
        return self.rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def check(self, logits_of):
        """The net that a peer built is the student that all start from. Raises: SystemExit."""
        apart = float(np.abs(logits_of(self.test_images[:100]) - np.load(self.folder / "logits.npy")).max())
        if apart > 1e-2:
            raise SystemExit(f"expected the float student's logits before quantizing, received others, {apart:.3g} apart")

    def train(self, step):
        """Calls step(images, labels, rate) for every batch, which returns when it is done; the median milliseconds of the later half."""
        taken = []
        for k in range(self.steps):
            images, labels = np.asarray(self.views[k], np.float32), self.labels[k]
            start = time.perf_counter()
            step(images, labels, self.rate_at(k))
            taken.append(1e3 * (time.perf_counter() - start))
        return float(np.median(taken[self.steps // 2 :]))

    def accuracy(self, logits_of):
        """The share of the test images that logits_of(images [n, 32, 32, 3]) names right, 500 at a time."""
        parts = np.split(self.test_images, range(500, len(self.test_images), 500))
        logits = np.concatenate([np.asarray(logits_of(part)) for part in parts])
        return float(np.mean(logits.argmax(-1) == self.test_labels))


def tflite_figures(task, contents, interpreter_class):
    """{"bytes", "file_accuracy", "ms"} of a TFLite file: all test images, one thread, the median of an image."""
    interpreter = interpreter_class(model_content=contents, num_threads=1)
    interpreter.allocate_tensors()
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    named, taken = [], []
    for image in task.test_images:
        scale, zero = given["quantization"]
        image = image[None] if given["dtype"] == np.float32 else np.clip(np.round(image[None] / scale) + zero, -128, 127).astype(given["dtype"])
        interpreter.set_tensor(given["index"], image)
        start = time.perf_counter()
        interpreter.invoke()
        taken.append(1e3 * (time.perf_counter() - start))
        named.append(interpreter.get_tensor(answer["index"]).argmax())
    return {"bytes": len(contents), "file_accuracy": float(np.mean(np.array(named) == task.test_labels)), "ms": float(np.median(taken))}


def reported(figures):
    """Prints what the run of a peer came to, for `benchmarks.peers` to read."""
    print("FIGURES " + json.dumps(figures), flush=True)


def attempt(figures, name, what):
    """Adds what() to `figures`, or under `name` the error that it gave."""
    try:
        figures.update(what())
    except Exception as error:  # a peer may fail in any way, and how it fails is a result
        figures[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"

"""What every peer is given, and what it measures: NumPy alone, as it runs in each peer's own environment.

A task is a folder: settings.json (steps, rate), views.npy [steps, batch, 32, 32, 3] float16 in -1..1 and labels.npy, the same
images in the same order for all; test_images.npy, test_labels.npy; student.npz and teacher.npz, weights by "layer/variable" of
float ResNet-20s; logits.npy, the student's on the first 100 test images.
"""

import json
import math
import pathlib
import sys
import time

import numpy as np


class Task:
    def __init__(self, folder, file=None):
        """folder: the task's. file: where the peer's TFLite file goes."""
        self.folder, self.file = pathlib.Path(folder), file
        settings = json.loads((self.folder / "settings.json").read_text())
        self.steps, self.rate = settings["steps"], settings["rate"]
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

    def dataset(self, tf):
        """An iterator of tf.data over the batches of `train`, for what takes those rather than arrays."""
        pairs = lambda: ((np.asarray(views, np.float32), labels) for views, labels in zip(self.views, self.labels))  # noqa: E731
        shapes = tf.TensorSpec(self.views.shape[1:], tf.float32), tf.TensorSpec(self.labels.shape[1:], self.labels.dtype)
        return iter(tf.data.Dataset.from_generator(pairs, output_signature=shapes).prefetch(2))

    def accuracy(self, logits_of):
        """The share of the test images that logits_of(images [n, 32, 32, 3]) names right, 500 at a time."""
        parts = np.split(self.test_images, range(500, len(self.test_images), 500))
        logits = np.concatenate([np.asarray(logits_of(part)) for part in parts])
        return float(np.mean(logits.argmax(-1) == self.test_labels))


def arguments():
    """(the Task, the variant) of a peer's command line: TASK VARIANT FILE."""
    folder, variant, file = sys.argv[1:]
    return Task(folder, pathlib.Path(file)), variant


def absent(why):
    """Ends the script of a variant that the peer has not."""
    print("FIGURES " + json.dumps({"absent": why}), flush=True)
    raise SystemExit


def reported(figures, convert=None):
    """Prints what a variant came to, for `benchmarks.peers` to read; convert() gives its TFLite file, or fails, which is a result too."""
    if convert:
        try:
            figures["file"] = str(convert())
        except Exception as error:  # a peer may fail in any way
            text = str(error).strip()
            figures["no_file"] = f"{type(error).__name__}: {text.splitlines()[0][:200] if text else ''}"
    print("FIGURES " + json.dumps(figures), flush=True)

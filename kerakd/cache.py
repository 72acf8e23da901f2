"""What frozen teachers said of every view, kept: views are pure functions of (seed, epoch, example), so a run with the same views never asks again."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import threading

import numpy as np
import tensorflow as tf

from kerakd.errors import BadInput
from kerakd.files import write_json

KINDS = ("logits", "marks")  # of an epoch's files
TOLERANCE = 1e-3  # of a logit, of the largest one: what another batch of operations on another machine may give


def fingerprint(model):
    """sha256 of a model's weights, as hexadecimal digits."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(str(weight.shape).encode() + np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def differences(there, made_from):
    """In words what differs of what logits were made from, and now would be; "" where nothing does."""
    differing = sorted(key for key in {*there, *made_from} if there.get(key) != made_from.get(key))
    return "; ".join(f"{key} {there.get(key)!r} and not {made_from.get(key)!r}" for key in differing)


@contextlib.contextmanager
def _alone(folder):
    """One run at a time is in here with the folder."""
    with open(folder / ".made_from.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class TeacherCache:
    """Logits by place (epoch, batch) in a folder: an array a training epoch, and beside it which of its batches are there.

    A batch is marked only after it was written, so a killed run loses nothing but the batch that it was writing.

    Args:
        folder: made where it is not there.
        made_from: {what: value}, all that the logits depend on: the teachers' fingerprints, dataset, view, seed, sizes, batch size.
        batches: of an epoch.
        shape: (batch size, teachers, classes) of the logits of one batch.
    Raises: BadInput for a folder whose logits were made from something else, or that is no cache.
    """

    def __init__(self, folder, made_from, batches, shape):
        self.folder, self.batches, self.shape = pathlib.Path(folder), batches, tuple(shape)
        self.read_batches = self.written_batches = 0
        self._open, self._lock = {}, threading.Lock()  # the pipeline reads ahead in a thread of its own
        made_from = json.loads(json.dumps({**made_from, "batches": batches, "shape": shape}))
        label = self.folder / "made_from.json"
        if not label.exists():
            self._begin(label, made_from)
        there = _read(label)
        differing = differences(there, made_from)
        if differing:
            raise BadInput(f"teacher_cache: expected logits of the same teachers and views, received {self.folder} with {differing}; take another folder")

        for kind in KINDS:  # now, and not from within a pipeline
            for path in self.folder.glob(f"epoch_*.{kind}"):
                if path.stat().st_size:
                    _check_size(path, *self._layout(kind))

    def _begin(self, label, made_from):
        """Makes a new cache. Of runs that begin one at once the first says what it is made from."""
        others = self.folder.exists() and (not self.folder.is_dir() or any(not path.name.startswith(".made_from") for path in self.folder.iterdir()))
        if others and not label.exists():
            raise BadInput(f"teacher_cache: expected a cache, or a new or empty folder, received {self.folder}, which holds other files; take another")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _alone(self.folder):
                if not label.exists():
                    write_json(label, made_from)
        except OSError as error:
            raise BadInput(f"teacher_cache: expected a folder that can be written, received {self.folder} ({error.strerror}); take another") from error

    def _layout(self, kind):
        """(dtype, shape) of an epoch's file."""
        return {"logits": (np.float32, (self.batches, *self.shape)), "marks": (np.uint8, (self.batches,))}[kind]

    def _epoch(self, epoch):
        """(logits [batches, ...], marks [batches]) of an epoch, on disk."""
        with self._lock:
            if epoch not in self._open:
                for other in set(self._open) - {epoch - 1}:
                    del self._open[other]
                paths = [self.folder / f"epoch_{epoch:05d}.{kind}" for kind in KINDS]
                with _alone(self.folder):
                    if not paths[0].exists():
                        paths[1].unlink(missing_ok=True)  # marks of logits that somebody deleted
                    self._open[epoch] = [_array(path, *self._layout(kind)) for path, kind in zip(paths, KINDS, strict=True)]
            return self._open[epoch]

    def read(self, epoch, batch):
        """(logits float32 of `shape`, whether they are there)."""
        logits, marks = self._epoch(int(epoch))
        there = bool(marks[int(batch)])
        self.read_batches += there
        return (np.array(logits[int(batch)]) if there else np.zeros(self.shape, np.float32)), there

    def write(self, epoch, batch, said):
        """Keeps the logits `said` [batch size, teachers, classes] of one batch, and marks it as kept after that."""
        logits, marks = self._epoch(int(epoch))
        logits[int(batch)] = said
        logits.flush()  # before their mark, also where the machine goes down
        marks[int(batch)] = 1
        self.written_batches += 1

    def join(self, views):
        """A dataset of `data.training(..., places=True)` with what is known of each batch: x["known"] and x["said"]."""

        def look_up(x, *labels):
            said, known = tf.numpy_function(self.read, [x["place"][0], x["place"][1]], [tf.float32, tf.bool])
            return ({**x, "said": tf.ensure_shape(said, self.shape), "known": tf.ensure_shape(known, [])}, *labels)

        return views.map(look_up, num_parallel_calls=1, deterministic=True)

    def recall(self, x, ask):
        """The logits of a batch of `join`: those read, or ask(), which are then written. Graph code; ask() is float32 of `shape`."""

        def ask_and_write():
            said = ask()
            with tf.control_dependencies([tf.numpy_function(lambda *a: self.write(*a) or np.int64(0), [x["place"][0], x["place"][1], said], tf.int64)]):
                return tf.identity(said)

        return tf.cond(x["known"], lambda: x["said"], ask_and_write)

    def check(self, views, ask, batches=2):
        """Compares the first of the batches that are there with the live teachers. Raises: BadInput where they differ.

        Args:
            views: a dataset of `join`, or the same places.
            ask: x -> the teachers' logits on a batch, float32 of `shape`.
        Returns: how many batches were compared.
        """
        compared = 0
        for x, *_ in views.take(batches):
            if bool(x["known"]):
                live, said = np.asarray(ask(x)), x["said"].numpy()
                apart = float(np.abs(live - said).max())
                if not apart <= TOLERANCE * max(1.0, float(np.abs(live).max())):
                    raise BadInput(
                        f"teacher_cache: expected the logits of the live teachers in {self.folder}, received others, up to {apart:.3g} apart; take another"
                    )
                compared += 1
        return compared


def _read(label):
    try:
        there = json.loads(label.read_text())
    except ValueError:
        there = None
    if not isinstance(there, dict):
        raise BadInput(f"teacher_cache: expected what its logits were made from in {label}, received something damaged; take another folder")
    return there


def _check_size(path, dtype, shape):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if path.stat().st_size != size:
        raise BadInput(f"teacher_cache: expected {size} bytes in {path}, received {path.stat().st_size}; delete it, its epoch is computed again")


def _array(path, dtype, shape):
    """A file of zeros of this shape, or what is there, mapped: what is written survives the death of the process. Raises: BadInput for another size."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with open(path, "ab") as file:
        if not file.tell():  # new, or left empty by a run that was killed just here
            try:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk says so now, and not as a bus error later
            except OSError as error:
                raise BadInput(
                    f"teacher_cache: expected {size} bytes for {path}, received an error ({error.strerror}); free some, or take another folder"
                ) from error
    _check_size(path, dtype, shape)
    return np.memmap(path, dtype, "r+", shape=shape)

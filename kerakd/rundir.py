"""The run directory: its flags, its metrics, its checkpoints, its models; everything written aside and renamed."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
import weakref
import zipfile

import numpy as np
import tensorflow as tf

from kerakd.devices import lost
from kerakd.errors import BadInput, first_line
from kerakd.files import flush, is_aside, read_json, write_aside, write_json
from kerakd.modelfile import load_model

WRITTEN = (
    *("flags.cfg", "results.json", "data.json", "metrics.jsonl", "intervals.jsonl", "settled.json", "curves.png"),
    *("fixed_logits.npz", "fixed_logits_begun.npz"),
    *("models/teacher*.keras", "models/float.keras", "models/alone_*.keras", "models/taught_*.keras", "checkpoints", "tensorboard"),
)  # by a run
EXPORTED = ("student.tflite", "student.int4.tflite", "student.json", "student.md")
MEASURED = ("sensitivity.json",)  # of a run's networks, where its page looks for it
LOCK = ".lock"  # held by the process that trains in a run directory
_HELD = "--workdir: expected a run that no other process trains, received {}; wait for that one, or stop it first"


def kind_of(stage):
    """What a stage named KIND or KIND_NUMBER trains: "teacher", "float", "alone" or "taught"."""
    return stage.partition("_")[0]


class RunDirectory:
    """A run directory.

    flags.cfg       the configuration, to run it again
    data.json       what it is trained and tested on: {"classes": names, "train", "test", "transfer": which images, FILE: sha256 of a network's}
    metrics.jsonl   one line per stage and epoch; the same for the same flags
    intervals.jsonl the students' intervals, likewise
    tensorboard/    both for TensorBoard, with the learning rates
    models/         teacher, float, and each student, as .keras
    fixed_logits.npz  what the teacher said of the training images, where the view is fixed; fixed_logits_begun.npz, of part of them
    settled.json    how far `settle` moved each trained student, {stage: {"steps", "top1", "images"}}
    results.json    accuracies at the end; its presence says that the run is complete
    curves.png      the learning curves
    checkpoints/    of the stage under way

    own: False for a worker that is not the chief: it reads the run and writes what it has to write into a folder that is deleted
    with this object, as the workers' variables can only be read by all of them together.
    flag: the one that names the run, for errors.
    """

    def __init__(self, path, own=True, flag="run"):
        self.path, self.flag = pathlib.Path(path), flag
        self._aside = None if own else tempfile.TemporaryDirectory(prefix="kerakd_")  # until this object goes
        self.written = self.path if own else pathlib.Path(self._aside.name)
        self._let_go = lambda: None  # what `claim` took

    def close(self):
        """Lets go of the run; deletes the folder of a worker that is not the chief."""
        if self._aside is not None:
            self._aside.cleanup()
        self._let_go()

    @property
    def complete(self):
        return (self.path / "results.json").exists()

    def check(self, text, resume, overwrite):
        """Raises BadInput if the directory holds a run and neither `resume` nor `overwrite` is given, if it holds other
        files, or if the run to resume has other flags than `text`. Writes nothing.
        """
        flags = self.path / "flags.cfg"
        if resume and overwrite:
            raise BadInput("--resume, --overwrite: expected at most one, received both")
        if self.path.exists() and not self.path.is_dir():
            raise BadInput(f"--workdir: expected a directory, received the file {self.path}")
        if flags.exists() and not resume and not overwrite:
            if not getattr(self._let_go, "alive", False) and self._is_held():
                raise BadInput(_HELD.format(self.path))
            raise BadInput(
                f"--workdir: expected a new directory, received {self.path}, which holds a run; give --resume to go on with it or --overwrite to start anew"
            )
        if self.path.is_dir() and any(path.name != LOCK and not is_aside(path) for path in self.path.iterdir()) and not flags.exists():
            raise BadInput(
                f"--workdir: expected a new or empty directory, received {self.path}, which holds files that are not a run's; nothing was touched, take another"
            )
        if resume and not flags.exists():
            raise BadInput(f"--resume: expected a run in {self.path}, received none; leave --resume out to start one")
        if resume and _at_home(flags.read_text()) != _at_home(text):
            changed = set(flags.read_text().splitlines()) ^ set(text.splitlines())
            raise BadInput(
                f"--resume: expected the flags of {self.path}, received others ({', '.join(sorted(changed))}); use its flags.cfg, or another --workdir"
            )

    def check_data(self, found):
        """Raises BadInput if the run is trained on something else than `found`, as `save_data` was given it; what an older run did not keep may differ."""
        there = self.data()
        differing = [name for name in found if name in there and there[name] != found[name]]
        if differing:
            told = "; ".join(f"{name} {_short(found[name])} where it has {_short(there[name])}" for name in differing)
            raise BadInput(f"--resume: expected the data that {self.path} is trained on, received {told}; put that back, or begin another run")

    def save_data(self, found):
        """Raises: BadInput if it can't be written."""
        self._save("data.json", found)

    def data(self):
        """As `save_data` was given it, {} for a run of before there was such a file."""
        return self._saved("data.json")

    def save_settled(self, stage, moved):
        """Raises: BadInput if it can't be written."""
        self._save("settled.json", {**self.settled(), stage: moved})

    def settled(self):
        """{stage: as `save_settled` was given it}."""
        return self._saved("settled.json")

    def _save(self, name, found):
        with self.writing(name) as path:
            write_json(path, found)

    def _saved(self, name):
        return read_json(self.path / name) if (self.path / name).exists() else {}

    def check_apart(self, files):
        """Raises BadInput if one of {flag: path}, which a run is to read, lies where --overwrite deletes."""
        for name, path in files.items():
            if pathlib.Path(path).expanduser().resolve().is_relative_to(self.path.resolve()):
                raise BadInput(f"--{name}: expected what lies outside the run that --overwrite deletes, received {path}; take another --workdir")

    def claim(self, text, resume, overwrite):
        """Makes the directory ready to train in, with `text` as its flags, for this process alone. What is not of a run stays.

        Raises: BadInput as `check`, if another process trains in it, or if it can't be written.
        """
        if self._aside is None:
            self.check(text, resume, overwrite)
        try:
            self.written.mkdir(parents=True, exist_ok=True)
            self._hold()
            # not flags.cfg, which is replaced below: were this process killed here, what is left is an incomplete run still
            for old in (path for pattern in (*WRITTEN[1:], *EXPORTED, *MEASURED) for path in self.written.glob(pattern)) if overwrite else ():
                if old.is_dir() and not old.is_symlink():
                    shutil.rmtree(old)
                else:
                    old.unlink()
            for left in filter(is_aside, [*self.written.iterdir(), *self.written.glob("models/*")]):  # by a process that was killed
                left.unlink()
            write_aside(self.written / "flags.cfg", lambda aside: aside.write_text(text))
            (self.written / "models").mkdir(exist_ok=True)
        except OSError as error:
            raise BadInput(f"--workdir: expected a directory that can be written, received {self.path} ({error.strerror})") from error

    def _hold(self):
        self._let_go()  # if it is this object that holds it
        lock = os.open(self.written / LOCK, os.O_CREAT | os.O_RDWR, 0o666)
        self._let_go = weakref.finalize(self, os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it however this process ends
        except BlockingIOError:
            raise BadInput(_HELD.format(self.path)) from None

    def _is_held(self):
        """Whether another process trains in it."""
        try:
            with (self.path / LOCK).open("rb+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # it has none, or is another's: who would write there is told so
            pass
        return False

    def metrics(self):
        """[{"stage", "epoch", ...}] in the order of training."""
        return self._rows("metrics.jsonl")

    def intervals(self):
        """[{"stage", "epoch", layer: interval}], likewise."""
        return self._rows("intervals.jsonl")

    def _rows(self, name):
        path = self.path / name
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [read_json(path, line) for line in lines if line.endswith("\n")]  # a line without its end was cut off when the run was

    @contextlib.contextmanager
    def writing(self, name):
        """The path of a file or folder to write. Raises: BadInput if it can't be written; TensorFlow's error if another worker is lost."""
        path = self.written / name
        try:
            yield path
        except (OSError, tf.errors.OpError) as error:
            raise error if lost(error) else _unwritten(path, error) from error

    def forget_metrics(self, stage, epochs):
        """Forgets the lines of `stage` from epoch `epochs` on, which a checkpoint from before does not know, and one that was cut off."""
        for name in ("metrics.jsonl", "intervals.jsonl"):
            text = "".join(json.dumps(row) + "\n" for row in self._rows(name) if row["stage"] != stage or row["epoch"] < epochs)
            with self.writing(name) as path:
                if path.exists() and path.read_text() != text:
                    write_aside(path, lambda aside, text=text: aside.write_text(text))

    def add_metrics(self, stage, epoch, values):
        """Adds a line. Raises: BadInput if it can't be written."""
        self._add("metrics.jsonl", stage, epoch, {name: values[name] for name in sorted(values)}, ".6f")

    def add_intervals(self, stage, epoch, values):
        """Likewise, where there are any."""
        if values:
            self._add("intervals.jsonl", stage, epoch, values, ".6g")  # one of a kernel may be a millionth

    def _add(self, name, stage, epoch, values, form):
        row = {"stage": stage, "epoch": epoch, **{name: float(f"{float(value):{form}}") for name, value in values.items()}}
        with self.writing(name) as path, open(path, "a") as file:
            file.write(json.dumps(row) + "\n")

    def model_path(self, name):
        return self.path / "models" / f"{name}.keras"

    def has_model(self, name):
        return self.model_path(name).exists()

    def save_model(self, name, model):
        """Raises: BadInput if it can't be written."""
        with self.writing(f"models/{name}.keras") as path:
            write_aside(path, lambda aside: model.save(aside))

    def load_model(self, name):
        """Raises: BadInput if the run has no such model."""
        if not self.has_model(name):
            raise BadInput(f"--{self.flag}: expected {self.model_path(name)}, received none; is the run complete?")
        return load_model(self.model_path(name))

    def results(self):
        """Raises: BadInput if the run is not complete."""
        if not self.complete:
            if not self.path.is_dir():
                raise BadInput(f"--{self.flag}: expected a complete run, received {self.path}, which is not there; give its directory")
            raise BadInput(
                f"--{self.flag}: expected a complete run, received {self.path} without results.json; train it, or go on with python -m kerakd.train --resume"
            )
        return read_json(self.path / "results.json")

    def save_results(self, results):
        """Raises: BadInput if it can't be written."""
        self._save("results.json", results)

    def checkpoint(self, stage, place, objects, metrics, kept=2):
        """Writes a checkpoint of `stage` and forgets all but the newest `kept`.

        Args:
            place: (epochs, batches of the next one) that are done. objects: {name: trackable}.
            metrics: {name: array}, what the epoch under way has come to.
            kept: how many checkpoints of the stage stay.
        Raises: BadInput if it can't be written; those from before are as they were. TensorFlow's error if another worker is lost.
        """
        folder = self.written / "checkpoints" / stage
        aside, final = folder / ".partial", folder / "{:06d}_{:08d}".format(*place)
        with self.writing(f"checkpoints/{stage}/{final.name}"), contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, aside, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            tf.train.Checkpoint(**objects).write(str(aside / "state"))
            np.savez(aside / "metrics.npz", **metrics)
            for written in aside.iterdir():
                flush(written)
            shutil.rmtree(final, ignore_errors=True)
            os.rename(aside, final)
        found = sorted(folder.glob("[0-9]*"))
        after = [path for path in found if path.name > final.name]  # passed over when the run was resumed
        for old in [*after, *[path for path in found if path.name <= final.name][:-kept]]:
            shutil.rmtree(old)

    def has_checkpoint(self, stage):
        return any((self.path / "checkpoints" / stage).glob("[0-9]*"))

    def restore(self, stage, objects):
        """Restores the newest checkpoint of `stage`; one that can't be read is named and passed over.

        Returns: ((epochs, batches of the next one), {name: array}), as given to `checkpoint`; ((0, 0), {}) if there is none.
        Raises: BadInput where none of those there can be read, and leaves them and `objects` as they are.
        """
        found = sorted((self.path / "checkpoints" / stage).glob("[0-9]*"), reverse=True)
        fresh = self.written / "checkpoints" / stage / ".fresh"
        if found:  # one that matches in part moves what it matches
            with self.writing(f"checkpoints/{stage}/.fresh"):
                tf.train.Checkpoint(**objects).write(str(fresh / "state"))
        for folder in found:
            try:
                place = tuple(int(number) for number in folder.name.split("_"))
                with np.load(folder / "metrics.npz", allow_pickle=False) as file:
                    metrics = dict(file)
                tf.train.Checkpoint(**objects).read(str(folder / "state")).assert_existing_objects_matched()
                shutil.rmtree(fresh)
                return place, metrics
            except (tf.errors.OpError, AssertionError, ValueError, OSError, EOFError, IndexError, zipfile.BadZipFile) as error:
                print(f"kerakd: passed over the checkpoint {folder}, which can't be read ({type(error).__name__})", file=sys.stderr)
                tf.train.Checkpoint(**objects).read(str(fresh / "state"))
        shutil.rmtree(fresh, ignore_errors=True)
        if found:  # to begin anew would delete them
            raise BadInput(
                f"--resume: expected a checkpoint of {stage!r} that can be read, received {len(found)} that can't; "
                f"go on with the versions that wrote them, or move {found[0].parent} away to begin {stage!r} anew"
            )
        return (0, 0), {}

    def drop_checkpoints(self, stage):
        shutil.rmtree(self.written / "checkpoints" / stage, ignore_errors=True)


def _at_home(text):
    """Flags whose paths may begin with ~, which older runs kept."""
    return re.sub(r"=~(?=/|$)", lambda _: f"={os.path.expanduser('~')}", text, flags=re.MULTILINE)


def _short(value):
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _unwritten(path, error):
    return BadInput(f"--workdir: expected to write {path}, received an error ({first_line(error)}); make room, then give --resume")

"""Complete runs, read back and compared: what each taught student gained over the same one alone."""

import collections
import dataclasses
import re

import numpy as np

from kerakd import config as config_module
from kerakd.config import Config
from kerakd.errors import BadInput
from kerakd.rundir import RunDirectory

SCHEMES = {"joint": "A: joint", "trained_teacher": "B: trained_teacher", "finetune": "C: finetune"}  # Apprentice's letters
STUDENT = (
    "dataset",
    "synthetic",
    "image_size",
    "shrink",
    "student",
    "student_width",
    "weights",
    "activations",
    "signed",
    "first",
    "last",
    "sums",
    "override",
    "calibration",
)
WIDTHS = ("weights", "activations")
BARE = ("phase", "student")  # flags whose values speak for themselves
SILENT = ("data_dir", "teacher_cache", "compare", "watch", "seeds", "steps_per_execution")  # flags that change no student
TEACHING = ("phase", "teacher", "temperature", "ensemble", "hint", "soft", "hard")  # first words of flags that a student alone does not know


@dataclasses.dataclass(frozen=True)
class Run:
    """A complete run.

    taught, alone: {seed: test accuracy} of its students; those of a run without teachers are alone. teachers: [test accuracy].
    errors: test errors in % [seeds, epochs] of its students, the taught ones where there are both.
    """

    name: str
    config: Config
    taught: dict
    alone: dict
    teachers: list
    errors: np.ndarray

    @property
    def modes(self):
        return tuple(mode for mode, _ in self.config.phases())

    @property
    def tested_on(self):
        return self.config.dataset + " (synthetic)" * self.config.synthetic

    @property
    def scheme(self):
        """What papers call its phases: the scheme of a single one, else its modes."""
        return SCHEMES.get(self.modes[0], self.modes[0]) if len(self.modes) == 1 else " + ".join(self.modes)

    @property
    def teacher(self):
        """Accuracy of the best of its teachers, None where none was trained before."""
        return max(self.teachers, default=None)

    @property
    def student(self):
        """All that two runs must share for the student of one to be compared with that of the other: {what: value}."""
        shared = {name: getattr(self.config, name) for name in STUDENT}
        return {**shared, "from float": self.config.from_float(), "epochs": sum(epochs for _, epochs in self.config.phases())}

    def flags(self):
        """{name: value} of what makes its students what they are."""
        found = {field.name: getattr(self.config, field.name) for field in dataclasses.fields(Config) if field.name not in SILENT}
        return found if self.config.from_float() else {**found, "float_epochs": 0}


@dataclasses.dataclass(frozen=True)
class Gain:
    """What teaching a run's student gained over the student alone, which is of the run `base`."""

    run: Run
    base: Run

    @property
    def mean(self):
        return mean_of(self.run.taught) - mean_of(self.base.alone)

    @property
    def spread(self):
        """Standard deviation of the gain over seeds: of each seed's own where both have the same; None for a single seed."""
        taught, alone = self.run.taught, self.base.alone
        if min(len(taught), len(alone)) < 2:
            return None
        if taught.keys() == alone.keys():
            return float(np.std([taught[seed] - alone[seed] for seed in taught], ddof=1))
        return float(np.sqrt(sum(np.var(list(side.values()), ddof=1) for side in (taught, alone))))


def mean_of(accuracies):
    """The mean over {seed: accuracy}."""
    return float(np.mean(list(accuracies.values())))


def read(path, name):
    """The Run in a directory. Raises: BadInput for one that is not complete or can't be read."""
    directory = RunDirectory(path)
    results = _readable(path, "results.json", directory.results)
    config = _readable(path, "flags.cfg", lambda: config_module.read(directory.path / "flags.cfg"))
    found = collections.defaultdict(dict)
    for key, value in _readable(path, "results.json", lambda: dict(results)).items():
        kind = re.fullmatch(r"(taught|alone|teacher)_?(\d*)", key)
        if kind and isinstance(value, (int, float)):
            found[kind[1]][kind[2]] = float(value)
    epochs = sum(epochs for _, epochs in config.phases())
    rows = _readable(path, "metrics.jsonl", lambda: [(row["stage"], 100 * (1 - row["val_accuracy"])) for row in directory.metrics()])
    errors = [[error for stage, error in rows if stage == f"taught_{seed}"] for seed in found["taught"]]
    if not errors or any(len(curve) != epochs for curve in errors):
        raise BadInput(
            f"--run: expected {epochs} epochs of each student in {path}, received {', '.join(str(len(curve)) for curve in errors) or 'none'} in metrics.jsonl; "
            "train it again"
        )
    taught, alone = (found["taught"], found["alone"]) if config.taught() else ({}, found["taught"])
    return Run(name, config, taught, alone, list(found["teacher"].values()), np.array(errors))


def _readable(path, file, get):
    try:
        return get()
    except BadInput as error:
        raise error if str(error).startswith("--run:") else BadInput(f"--run={path}: {file}: {error}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadInput(f"--run: expected a run that can be read, received {path} with a {file} that can't ({type(error).__name__}: {error})") from error


def labels(runs):
    """[a run's name and what sets it apart from the others: its values of the flags in which they differ, but the defaults]."""
    flags = [run.flags() for run in runs]
    differing = [name for name in flags[0] if len({one[name] for one in flags}) > 1]
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    found = []
    for one in flags:
        told = [short(one[name]) for name in BARE if name in differing]
        told += [f"{one['weights']} / {one['activations']}"] if set(WIDTHS) & set(differing) else []
        told += [f"{name}={short(one[name])}" for name in differing if name not in (*BARE, *WIDTHS) and one[name] != defaults[name]]
        found.append(", ".join(told))
    return [f"{run.name}: {text}" if text else run.name for run, text in zip(runs, found, strict=True)]


def short(value):
    """The value of a flag as text; of a file its name."""
    values = value if isinstance(value, tuple) else (value,)
    return " + ".join(f"{one:g}" if isinstance(one, float) else re.sub(r"[^,=]*/([^/,]+\.(keras|h5))", r"\1", str(one)) for one in values)


def gains(runs):
    """[Gain] of the runs that teach and of which the student alone is known."""
    found = []
    for run in runs:
        same = [one for one in runs if one.alone and one.student == run.student]
        if run.taught and same:
            found.append(Gain(run, run if run.alone else min(same, key=lambda one: _apart(run, one))))
    return found


def _apart(one, other):
    """In how many flags that matter to a student alone two runs differ."""
    return sum(value != other.flags()[name] for name, value in one.flags().items() if name.split("_")[0] not in TEACHING)

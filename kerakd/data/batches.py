"""Examples of a split as batches of views."""

import math
import typing

import numpy as np
import tensorflow as tf

from kerakd import augment
from kerakd.data.splits import KEPT
from kerakd.errors import BadInput

SHUFFLED = 2**31  # bytes that wait to be drawn from: the buffer of a shuffle


class Part(typing.NamedTuple):
    """Whose part of each batch: that of one of several workers, of which each deals its own out to so many replicas."""

    worker: int
    workers: int
    replicas: int

    def of_batch(self, batch_size):
        """The places in a batch of the worker's images, a slice."""
        each = batch_size // self.workers
        return slice(self.worker * each, (self.worker + 1) * each)


ALONE = Part(0, 1, 1)


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
    part=ALONE,
):
    """Batches of views for epochs first_epoch..epochs-1, one after the other; each epoch has count // batch_size batches, the first those from first_batch on.

    The order within an epoch and every view are functions of (seed, epoch, example) alone, mixup's share of (seed, epoch, batch). A folder is
    shuffled whole, as its paths wait to be drawn and not its pixels; of a TFDS set that memory does not hold as many encoded images wait as
    SHUFFLED bytes take, of one that it holds at most 50,000 decoded.

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
        part: a Part: of each batch the images of its worker alone, as so many batches one after the other as that has replicas.
    Returns: a tf.data.Dataset of (x, int64 [batch]), or (x,) for a split without labels. x is float32 [batch, height, width, c] in
        -1..1 or, where teachers are to see or say something else, {"student": that, "teachers": a tuple of the like,
        "logits": float32 [batch, teachers, classes], "place": int64 [2], epoch and batch}, of which the last three are as asked for.
    Raises: BadInput for a batch larger than the split or that can't be dealt out evenly, a view whose teacher's size can't differ or be mixed.
    """
    part = Part(*part)
    if not 0 < batch_size <= split.count:
        raise BadInput(f"batch_size: expected 1 to {split.count}, the size of {split.name}, received {batch_size}")
    if batch_size % (part.workers * part.replicas):
        raise BadInput(f"batch_size: expected a multiple of {part.workers * part.replicas}, the replicas that share a batch, received {batch_size}")
    each, mine = batch_size // part.workers, part.of_batch(batch_size)
    make = _views(augment.view(view), view, size, teacher_sizes, mixup)
    fixed_logits = None if fixed_logits is None else tf.convert_to_tensor(fixed_logits)  # once, and no constant of a graph

    def one_epoch(epoch):
        key, order = _order(split, seed, epoch)
        begin = tf.where(epoch == first_epoch, tf.constant(first_batch, tf.int64), 0)
        order = order.skip(begin * batch_size).take((split.count // batch_size - begin) * batch_size)
        if part.workers > 1 and not mixup:  # before anything is read or drawn; mixed images need their neighbours
            order = order.enumerate().filter(lambda k, _: (k % batch_size >= mine.start) & (k % batch_size < mine.stop)).map(lambda _, e: e)
        views = order.map(lambda e: _example(split, e, make, key, fixed_logits), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        batches = views.batch(batch_size if mixup else each, drop_remainder=True).enumerate(begin)
        return batches.map(lambda number, batch: _finished(*batch, key=key, place=(epoch, number), mixup=mixup, augmenter=augmenter, places=places))

    batches = tf.data.Dataset.range(first_epoch, epochs).flat_map(one_epoch)
    if part.workers > 1 and mixup:
        batches = batches.map(lambda *batch: tf.nest.map_structure(lambda tensor: tensor[mine], batch))
    if part.replicas > 1:
        batches = batches.rebatch(each // part.replicas, drop_remainder=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def _example(split, e, make, key, fixed_logits):
    """({"student": view, ...}, label), or without the label, of an example or of the row that it is read from."""
    e = split.read(e) if split.read else e
    x = make(e["image"], key, e["index"])
    if fixed_logits is not None:
        x["logits"] = tf.gather(fixed_logits, e["index"])
    return (x, e["label"]) if split.labelled else (x,)


def _finished(x, *labels, key, place, mixup, augmenter, places):
    """A batch of examples as `training` gives it: mixed, augmented, with its place (epoch, number) where that is asked for."""
    if mixup:
        x = {**x, **tf.nest.map_structure(lambda images: augment.mixup(images, tf.stack([key, -1 - place[1]])), x)}
    if augmenter is not None:
        x["student"] = augmenter(x["student"])
    if places:
        x["place"] = tf.stack(place)
    return (x["student"] if set(x) == {"student"} else x, *labels)


def _order(split, seed, epoch):
    """(the key of an epoch, its examples in its order, or what `split.read` makes them of)."""
    buffer = min(50_000, SHUFFLED // split.bytes_each) if split.rows is None else SHUFFLED // split.row_bytes
    key = tf.random.stateless_uniform([], [seed, epoch], 0, 2**31 - 1, tf.int64)
    tf.compat.v1.set_random_seed(1)  # of this function's graph: shuffle mixes it in, and a program's global seed must not matter
    examples = split.examples if split.rows is None else split.rows
    return key, examples.shuffle(max(1, min(split.count, buffer)), seed=key, reshuffle_each_iteration=False)


def indices(split, seed, epoch, batch, batch_size):
    """Which examples of a split, by their place in it, are in a batch of `training`: [int]."""
    order = tf.data.Dataset.from_tensors(tf.constant(epoch, tf.int64)).flat_map(lambda epoch: _order(split, seed, epoch)[1])
    taken = order.skip(batch * batch_size).take(batch_size).map(lambda e: e["index"])
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
        made = {"student": augment.to_minus_one_one(chosen.student(image, size, seed))}
        if others:
            theirs = tf.stack([key + 2**31, index]) if apart else seed
            made["teachers"] = tuple(augment.to_minus_one_one(crop(image, side, theirs)) for side in teacher_sizes)
        return made

    return views


def fixed(split, *, view, size, seed, ensemble=1000, batch_size=64, first=0):
    """The views that a fixed teacher sees, in the split's order, those of one image one after the other.

    Args:
        view: a key of augment.BY_NAME whose teacher's view is fixed.
        ensemble: how many views an image has where the view averages over many; others have one.
        first: how many views to leave out, which were seen before.
    Returns: (a dataset of float32 [n, height, width, c], views for each image).
    """
    chosen = augment.view(view)
    count = ensemble if chosen.ensemble else 1

    def views(e):
        seeds = tf.data.Dataset.range(seed, seed + count)
        return seeds.map(lambda number: augment.to_minus_one_one(chosen.teacher(e["image"], size, tf.stack([number, e["index"]]))))

    return split.examples.skip(first // count).flat_map(views).skip(first % count).batch(batch_size).prefetch(2), count


def testing(split, *, size, batch_size=256, keep=False):
    """All examples in order, whole images: a tf.data.Dataset of (float32 [n, height, width, c] in -1..1, int64 [n]).

    keep: hold them in memory after the first pass, if they are at most KEPT bytes.
    """
    batches = split.examples.map(lambda e: (augment.to_minus_one_one(augment.whole(e["image"], size, None)), e["label"])).batch(batch_size)
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

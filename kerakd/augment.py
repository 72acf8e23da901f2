"""Views of an image as pure functions of (seed, epoch, example): the same whatever ran before, beside or elsewhere.

A crop is a function (image [h, w, c], (height, width), seed int64 [2]) -> [height, width, c]. Those of CROPS_OF_THE_IMAGE choose
a box of the original image by the seed alone, so that two sizes see the same box.
"""

import dataclasses
import typing

import tensorflow as tf

from kerakd.errors import BadInput


def to_minus_one_one(image):
    """uint8 0..255 -> float32 -1..1 (FunMatch's value range)."""
    return tf.cast(image, tf.float32) / 127.5 - 1.0


def whole(image, size, seed):
    """The image as it is, resized where its size differs."""
    del seed
    return _resize(image, size)


def shift(image, size, seed):
    """Padded by an eighth on each side (zeros), then a random crop of the size: ResNet's CIFAR augmentation without the flip."""
    image = _resize(image, size)
    pad = max(1, size[0] // 8), max(1, size[1] // 8)
    padded = tf.pad(image, [[pad[0]] * 2, [pad[1]] * 2, [0, 0]])
    return tf.image.stateless_random_crop(padded, [*size, image.shape[-1]], seed)


def shift_flip(image, size, seed):
    """`shift`, mirrored half of the time (He et al. 2016, section 4.2)."""
    return tf.image.stateless_random_flip_left_right(shift(image, size, seed), seed + [0, 1])


def random_crop(image, size, seed):
    """A box of 4/5 of each side at a random place, resized, mirrored half of the time: FunMatch's mild crop (resize to 160, crop 128; table 5)."""
    sides = tf.shape(image, out_type=tf.int64)[:2]
    extent = tf.maximum(sides * 4 // 5, 1)
    begin = tf.cast(tf.random.stateless_uniform([2], seed, dtype=tf.float64) * tf.cast(sides - extent + 1, tf.float64), tf.int64)
    return _box(image, begin, extent, size, seed)


def inception(image, size, seed):
    """A box of 5 to 100 % of the area, aspect 3/4 to 4/3, resized bilinearly, mirrored half of the time (FunMatch, section 3)."""
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros([1, 0, 4]),
        seed,
        min_object_covered=0.0,
        area_range=(0.05, 1.0),
        aspect_ratio_range=(0.75, 1.33),
        use_image_if_no_bounding_boxes=True,
    )
    return _box(image, begin[:2], extent[:2], size, seed)


def central_crop(image, size, seed):
    """The central box of 4/5 of each side, resized."""
    sides = tf.shape(image)[:2]
    extent = tf.maximum(sides * 4 // 5, 1)
    return _box(image, (sides - extent) // 2, extent, size, seed, mirrored=False)


def whole_flip(image, size, seed):
    """`whole`, mirrored half of the time."""
    return tf.image.stateless_random_flip_left_right(whole(image, size, seed), seed + [0, 1])


def _box(image, begin, extent, size, seed, mirrored=True):
    zero = tf.zeros([1], begin.dtype)
    box = tf.slice(image, tf.concat([begin, zero], 0), tf.concat([extent, zero - 1], 0))
    crop = _resize(tf.ensure_shape(box, [None, None, image.shape[-1]]), size)
    return tf.image.stateless_random_flip_left_right(crop, seed + [0, 1]) if mirrored else crop


def _resize(image, size):
    if image.shape[:2] == tuple(size):
        return image
    resized = tf.image.resize(image, size, method="bilinear", antialias=False)
    return tf.ensure_shape(resized, [*size, image.shape[-1]])


@dataclasses.dataclass(frozen=True)
class View:
    """What the student sees of an image, and what its teacher.

    student: a crop. teacher: None for the student's own pixels, else a crop with a seed of its own. fixed: the teacher sees the
    same views in every epoch, so its logits are computed once for each image, over one view, or `ensemble` many averaged.
    """

    student: typing.Callable
    teacher: typing.Callable | None = None
    fixed: bool = False
    ensemble: bool = False


BY_NAME = {
    "whole": View(whole),
    "shift": View(shift),
    "shift_flip": View(shift_flip),
    "inception": View(inception),
    "fix/rs": View(whole_flip, whole, fixed=True),
    "fix/cc": View(random_crop, central_crop, fixed=True),
    "fix/ic_ens": View(inception, inception, fixed=True, ensemble=True),
    "ind/rc": View(random_crop, random_crop),
    "ind/ic": View(inception, inception),
    "same/rc": View(random_crop),
    "same/ic": View(inception),
}
CROPS_OF_THE_IMAGE = (whole, whole_flip, random_crop, central_crop, inception)


def view(name):
    """The View of this name (FunMatch, section 3.1.1, for those with a slash). Raises: BadInput."""
    if name not in BY_NAME:
        raise BadInput(f"view: expected one of {', '.join(BY_NAME)}, received {name!r}")
    return BY_NAME[name]


def mixup(images, seed):
    """a * images + (1 - a) * their neighbours in the batch, a = max(u, 1 - u), u uniform in 0..1, one for the batch (FunMatch, section 3).

    The partner is `roll` by one, not `reverse`, which would make every pair twice. images: float [n, h, w, c].
    """
    share = tf.random.stateless_uniform([], seed, 0.5, 1.0)
    return share * images + (1 - share) * tf.roll(images, 1, axis=0)

"""Views of an image as pure functions of (seed, epoch, example): the same whatever ran before, beside or elsewhere."""

import tensorflow as tf

from kerakd.errors import BadInput


def to_unit_range(image):
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


def inception(image, size, seed):
    """A crop of 5 to 100 % of the area, aspect 3/4 to 4/3, resized bilinearly, mirrored half of the time (FunMatch, section 3)."""
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros([1, 0, 4]),
        seed,
        min_object_covered=0.0,
        area_range=(0.05, 1.0),
        aspect_ratio_range=(0.75, 1.33),
        use_image_if_no_bounding_boxes=True,
    )
    crop = _resize(tf.slice(image, begin, extent), size)
    return tf.image.stateless_random_flip_left_right(crop, seed + [0, 1])


def _resize(image, size):
    if image.shape[:2] == tuple(size):
        return image
    resized = tf.image.resize(image, size, method="bilinear", antialias=False)
    return tf.ensure_shape(resized, [*size, image.shape[-1]])


BY_NAME = {"whole": whole, "shift": shift, "shift_flip": shift_flip, "inception": inception}


def view(name):
    """The view of this name: (image [h, w, c], (height, width), seed int64 [2]) -> [height, width, c]. Raises: BadInput."""
    if name not in BY_NAME:
        raise BadInput(f"view: expected one of {', '.join(BY_NAME)}, received {name!r}")
    return BY_NAME[name]

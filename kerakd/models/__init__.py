"""Networks by name. All answer with logits, never with probabilities."""

import functools

from kerakd.errors import BadInput
from kerakd.models.bit import bit_resnet
from kerakd.models.mobilenet import V3, efficientnet_b0, efficientnet_lite0, mobilenet_v2, mobilenet_v3
from kerakd.models.resnet import IMAGENET, resnet_cifar, resnet_imagenet, resnet_v2_cifar

BY_NAME = {
    **{f"resnet{depth}": functools.partial(resnet_cifar, depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}v2": functools.partial(resnet_v2_cifar, depth) for depth in (8, 20, 56)},
    **{f"resnet{depth}": functools.partial(resnet_imagenet, depth) for depth in IMAGENET},
    "mobilenet_v2": mobilenet_v2,
    **{f"mobilenet_v3_{size}": functools.partial(mobilenet_v3, size) for size in V3},
    **{f"mobilenet_v3_{size}_gn": functools.partial(mobilenet_v3, size, grouped=True) for size in V3},
    "efficientnet_lite0": efficientnet_lite0,
    "efficientnet_b0": efficientnet_b0,
    **{f"bit_r{depth}x{factor}": functools.partial(bit_resnet, depth, factor) for depth, factor in ((50, 1), (152, 2))},
}


def build(name, input_shape, classes, width=1.0, shallow=False):
    """A fresh float network.

    Args:
        name: a key of BY_NAME.
        input_shape: (height, width, channels).
        classes: length of the logits.
        width: multiplies every number of channels; more than 0.
        shallow: one block of each of the first two stages, to try something out.
    Returns: a functional model, float32 images [n, *input_shape] -> logits [n, classes].
    Raises: BadInput for an unknown name, no classes, no width.
    """
    if name not in BY_NAME:
        raise BadInput(f"model: expected one of {', '.join(BY_NAME)}, received {name!r}")
    if classes < 1 or width <= 0:
        raise BadInput(f"model: expected 1 class or more and a width of more than 0, received {classes} and {width}")
    return BY_NAME[name](input_shape=tuple(input_shape), classes=classes, width=width, shallow=shallow)

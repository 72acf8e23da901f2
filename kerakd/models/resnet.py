"""Residual networks: for small images ResNet-8 to ResNet-110, for ImageNet ResNet-18 to ResNet-152, and ResNetV2."""

import tf_keras as keras

from kerakd.models.layers import SHALLOW, classifier, conv, norm, scaled

L = keras.layers


def _basic(x, filters, stride, name):
    """Two 3x3 convolutions (He et al. 2016, figure 2)."""
    y = norm(conv(x, filters, 3, stride, name=f"{name}_conv1"), f"{name}_1", "relu")
    return norm(conv(y, filters, 3, name=f"{name}_conv2"), f"{name}_2"), filters


def _bottleneck(x, filters, stride, name):
    """1x1, 3x3, 1x1 to four times the filters, the stride in the 3x3 (He et al. 2016, figure 5; the stride as in torch's ResNet)."""
    y = norm(conv(x, filters, 1, name=f"{name}_conv1"), f"{name}_1", "relu")
    y = norm(conv(y, filters, 3, stride, name=f"{name}_conv2"), f"{name}_2", "relu")
    return norm(conv(y, 4 * filters, 1, name=f"{name}_conv3"), f"{name}_3"), 4 * filters


def _residual(x, branch, filters, stride, name):
    y, width = branch(x, filters, stride, name)
    if stride != 1 or x.shape[-1] != width:
        x = norm(conv(x, width, 1, stride, name=f"{name}_shortcut"), f"{name}_s")
    return L.ReLU(name=f"{name}_relu")(L.Add(name=f"{name}_add")([y, x]))


def _stages(x, branch, filters, blocks):
    for stage, (width, count) in enumerate(zip(filters, blocks, strict=True)):
        for block in range(count):
            x = _residual(x, branch, width, 2 if stage and not block else 1, f"stage{stage + 1}_block{block + 1}")
    return x


def resnet_cifar(depth, input_shape, classes, width=1.0, shallow=False):
    """ResNet-`depth`, depth = 6n + 2: three stages of n blocks with 16, 32, 64 times `width` channels, projection shortcuts
    (He et al. 2016, section 4.2).

    Args:
        input_shape: (height, width, channels), float images about zero.
        classes: length of the logits.
        shallow: one block of each of the first two stages.
    Returns: a functional model, images [batch, height, width, channels] -> logits [batch, classes].
    """
    inputs = keras.Input(input_shape, name="image")
    filters = scaled((16, 32, 64), width)
    x = norm(conv(inputs, filters[0], 3, name="conv"), "conv", "relu")
    blocks = [1] * SHALLOW if shallow else [(depth - 2) // 6] * 3
    return classifier(_stages(x, _basic, filters[: len(blocks)], blocks), inputs, classes, f"resnet{depth}")


IMAGENET = {
    18: (_basic, (2, 2, 2, 2)),
    34: (_basic, (3, 4, 6, 3)),
    50: (_bottleneck, (3, 4, 6, 3)),
    101: (_bottleneck, (3, 4, 23, 3)),
    152: (_bottleneck, (3, 8, 36, 3)),
}


def resnet_imagenet(depth, input_shape, classes, width=1.0, shallow=False):
    """ResNet-`depth` of IMAGENET: 7x7 stem of stride 2, max pooling, four stages (He et al. 2016, table 1). As `resnet_cifar`."""
    inputs = keras.Input(input_shape, name="image")
    branch, blocks = IMAGENET[depth]
    blocks = [1] * SHALLOW if shallow else blocks
    filters = scaled((64, 128, 256, 512), width)
    x = norm(conv(inputs, filters[0], 7, 2, name="conv"), "conv", "relu")
    x = L.MaxPooling2D(3, 2, padding="same", name="maxpool")(x)
    return classifier(_stages(x, branch, filters[: len(blocks)], blocks), inputs, classes, f"resnet{depth}")


def resnet_v2_cifar(depth, input_shape, classes, width=1.0, shallow=False):
    """Pre-activation ResNet-`depth`, depth = 6n + 2 (He et al. 2016b, figure 4e). As `resnet_cifar`."""
    inputs = keras.Input(input_shape, name="image")
    filters = scaled((16, 32, 64), width)
    x = conv(inputs, filters[0], 3, name="conv")
    for stage, count in enumerate(filters[:SHALLOW] if shallow else filters):
        for block in range(1 if shallow else (depth - 2) // 6):
            name, stride = f"stage{stage + 1}_block{block + 1}", 2 if stage and not block else 1
            y = norm(x, f"{name}_1", "relu")
            if stride != 1 or x.shape[-1] != count:
                x = conv(y, count, 1, stride, name=f"{name}_shortcut")
            y = norm(conv(y, count, 3, stride, name=f"{name}_conv1"), f"{name}_2", "relu")
            x = L.Add(name=f"{name}_add")([conv(y, count, 3, name=f"{name}_conv2"), x])
    return classifier(norm(x, "last", "relu"), inputs, classes, f"resnet{depth}v2")

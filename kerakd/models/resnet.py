"""Residual networks for small images: ResNet-8 to ResNet-110 (He et al. 2016, section 4.2)."""

import tf_keras as keras

L = keras.layers


def _conv(x, filters, size, stride, name):
    return L.Conv2D(filters, size, stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=name)(x)


def _norm(x, name, relu=True):
    x = L.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    return L.ReLU(name=f"{name}_relu")(x) if relu else x


def _block(x, filters, stride, name):
    shortcut = x
    y = _norm(_conv(x, filters, 3, stride, f"{name}_conv1"), f"{name}_1")
    y = _norm(_conv(y, filters, 3, 1, f"{name}_conv2"), f"{name}_2", relu=False)
    if stride != 1 or x.shape[-1] != filters:
        shortcut = _norm(_conv(x, filters, 1, stride, f"{name}_shortcut"), f"{name}_s", relu=False)
    return L.ReLU(name=f"{name}_relu")(L.Add(name=f"{name}_add")([y, shortcut]))


def resnet_cifar(depth, input_shape, classes, width=1.0):
    """ResNet-`depth`, depth = 6n + 2: three stages of n blocks with 16, 32, 64 times `width` channels, projection shortcuts.

    Args:
        input_shape: (height, width, channels), float images about zero.
        classes: length of the logits.
    Returns: a functional model, images [batch, height, width, channels] -> logits [batch, classes].
    """
    inputs = keras.Input(input_shape, name="image")
    channels = [max(1, round(c * width)) for c in (16, 32, 64)]
    x = _norm(_conv(inputs, channels[0], 3, 1, "conv"), "conv")
    for stage, filters in enumerate(channels):
        for block in range((depth - 2) // 6):
            x = _block(x, filters, 2 if stage and not block else 1, f"stage{stage + 1}_block{block + 1}")
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, L.Dense(classes, name="logits")(x), name=f"resnet{depth}")

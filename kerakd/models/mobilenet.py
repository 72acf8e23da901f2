"""Inverted residuals: MobileNetV2 and EfficientNet-Lite0 with ReLU6, MobileNetV3 and EfficientNet-B0 with squeeze-excite."""

import functools

import tf_keras as keras

from kerakd.models.layers import SHALLOW, activate, channels, classifier, conv, depthwise, group_norm, norm, squeeze_excite

L = keras.layers
SMALL = 64  # images of fewer pixels keep their resolution in the stem and at the first stride of 2 after it


def _inverted_residual(x, filters, size, stride, expansion, name, activation="relu6", normalize=norm, excite=None):
    """1x1 expansion, depthwise, linear 1x1 projection; added to the input where shapes allow (Sandler et al. 2018, figure 4).
    `excite(x, y, name)`, if given, is between depthwise and projection (Howard et al. 2019, figure 4)."""
    y = x
    if expansion != 1:
        y = normalize(conv(y, channels(expansion * x.shape[-1]), 1, name=f"{name}_expand"), f"{name}_expand", activation)
    y = normalize(depthwise(y, size, stride, name=f"{name}_depthwise"), f"{name}_depthwise", activation)
    if excite:
        y = excite(x, y, name)
    y = normalize(conv(y, filters, 1, name=f"{name}_project"), f"{name}_project")
    return L.Add(name=f"{name}_add")([x, y]) if stride == 1 and x.shape[-1] == filters else y


# (expansion, channels, blocks, stride, kernel) of each stage
V2 = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3), (6, 160, 3, 2, 3), (6, 320, 1, 1, 3))
B0 = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3))


def _inverted_residual_net(stages, name, input_shape, classes, width, shallow, activation="relu6", normalize=norm, excite=None):
    inputs = keras.Input(input_shape, name="image")
    small = input_shape[0] < SMALL
    x = normalize(conv(inputs, channels(32 * width), 3, 1 if small else 2, name="stem"), "stem", activation)
    for stage, (expansion, count, blocks, stride, size) in enumerate(stages[:SHALLOW] if shallow else stages):
        for block in range(1 if shallow else blocks):
            step, at = 1 if block or (small and stage == 1) else stride, f"stage{stage + 1}_block{block + 1}"
            x = _inverted_residual(x, channels(count * width), size, step, expansion, at, activation, normalize, excite)
    x = normalize(conv(x, channels(1280 * max(1.0, width)), 1, name="head"), "head", activation)
    return classifier(x, inputs, classes, name)


def mobilenet_v2(input_shape, classes, width=1.0, shallow=False):
    """MobileNetV2 of any width (Sandler et al. 2018, table 2). Images below 64 pixels keep their resolution in the stem and
    in the first stride-2 stage, as is usual for CIFAR.

    Args:
        input_shape: (height, width, channels), float images about zero.
        classes: length of the logits.
        width: multiplies every number of channels, rounded to multiples of 8.
        shallow: one block of each of the first two stages.
    Returns: a functional model, images [batch, height, width, channels] -> logits [batch, classes].
    """
    return _inverted_residual_net(V2, "mobilenet_v2", input_shape, classes, width, shallow)


def efficientnet_lite0(input_shape, classes, width=1.0, shallow=False):
    """EfficientNet-Lite0: EfficientNet-B0 without squeeze-excite and with ReLU6. As `mobilenet_v2`."""
    return _inverted_residual_net(B0, "efficientnet_lite0", input_shape, classes, width, shallow)


def efficientnet_b0(input_shape, classes, width=1.0, shallow=False):
    """EfficientNet-B0 (Tan & Le 2019, table 1): swish, and squeeze-excite to a quarter of a block's input. As `mobilenet_v2`."""

    def excite(x, y, name):
        return squeeze_excite(y, max(1, x.shape[-1] // 4), "swish", "sigmoid", name=name)

    normalize = functools.partial(norm, momentum=0.99, epsilon=1e-3)
    return _inverted_residual_net(B0, "efficientnet_b0", input_shape, classes, width, shallow, "swish", normalize, excite)


# (kernel, expanded channels, channels, squeeze-excite, activation, stride) of each block, and the length of the last hidden layer
V3 = {
    "large": (
        (
            (3, 16, 16, False, "relu", 1),
            (3, 64, 24, False, "relu", 2),
            (3, 72, 24, False, "relu", 1),
            (5, 72, 40, True, "relu", 2),
            (5, 120, 40, True, "relu", 1),
            (5, 120, 40, True, "relu", 1),
            (3, 240, 80, False, "hard_swish", 2),
            (3, 200, 80, False, "hard_swish", 1),
            (3, 184, 80, False, "hard_swish", 1),
            (3, 184, 80, False, "hard_swish", 1),
            (3, 480, 112, True, "hard_swish", 1),
            (3, 672, 112, True, "hard_swish", 1),
            (5, 672, 160, True, "hard_swish", 2),
            (5, 960, 160, True, "hard_swish", 1),
            (5, 960, 160, True, "hard_swish", 1),
        ),
        1280,
    ),
    "small": (
        (
            (3, 16, 16, True, "relu", 2),
            (3, 72, 24, False, "relu", 2),
            (3, 88, 24, False, "relu", 1),
            (5, 96, 40, True, "hard_swish", 2),
            (5, 240, 40, True, "hard_swish", 1),
            (5, 240, 40, True, "hard_swish", 1),
            (5, 120, 48, True, "hard_swish", 1),
            (5, 144, 48, True, "hard_swish", 1),
            (5, 288, 96, True, "hard_swish", 2),
            (5, 576, 96, True, "hard_swish", 1),
            (5, 576, 96, True, "hard_swish", 1),
        ),
        1024,
    ),
}


def _excite_v3(x, y, name):
    return squeeze_excite(y, channels(y.shape[-1] / 4), "relu", "hard_sigmoid", name=name)


def mobilenet_v3(size, input_shape, classes, width=1.0, shallow=False, grouped=False):
    """MobileNetV3 "large" or "small" (Howard et al. 2019, tables 1 and 2), without dropout. As `mobilenet_v2`.

    Args:
        size: a key of V3.
        grouped: GroupNorm of 8 groups in place of every BatchNorm (as in Beyer et al. 2022).
    """
    inputs = keras.Input(input_shape, name="image")
    blocks, hidden = V3[size]
    if shallow:
        blocks = [block for block, before in zip(blocks, (blocks[0], *blocks), strict=False) if block is before or block[2] != before[2]][:SHALLOW]
    small, first = input_shape[0] < SMALL, [block[-1] for block in blocks].index(2)
    normalize = group_norm if grouped else functools.partial(norm, momentum=0.999, epsilon=1e-3)
    x, before = normalize(conv(inputs, channels(16 * width), 3, 1 if small else 2, name="stem"), "stem", "hard_swish"), 16
    for index, (kernel, expanded, count, excited, activation, stride) in enumerate(blocks):
        step, excite = 1 if small and index == first else stride, _excite_v3 if excited else None
        # the expansion is of the channels that come in, rounded already: so the published networks of other widths have it
        x = _inverted_residual(x, channels(count * width), kernel, step, expanded / before, f"block{index + 1}", activation, normalize, excite)
        before = count
    x = normalize(conv(x, channels(6 * x.shape[-1]), 1, name="head"), "head", "hard_swish")
    x = L.GlobalAveragePooling2D(name="pool")(x)
    x = activate(L.Dense(channels(hidden * max(1.0, width)), name="hidden")(x), "hidden", "hard_swish")
    return keras.Model(inputs, L.Dense(classes, name="logits")(x), name=f"mobilenet_v3_{size}{'_gn' if grouped else ''}")

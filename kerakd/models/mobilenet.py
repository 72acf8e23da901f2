"""MobileNetV2 and EfficientNet-Lite0: inverted residuals with ReLU6."""

import tf_keras as keras

from kerakd.models.layers import channels, classifier, conv, depthwise, norm

L = keras.layers


def _inverted_residual(x, filters, size, stride, expansion, name):
    """1x1 expansion, depthwise, linear 1x1 projection; added to the input where shapes allow (Sandler et al. 2018, figure 4)."""
    y = x
    if expansion != 1:
        y = norm(conv(y, expansion * x.shape[-1], 1, name=f"{name}_expand"), f"{name}_expand", "relu6")
    y = norm(depthwise(y, size, stride, name=f"{name}_depthwise"), f"{name}_depthwise", "relu6")
    y = norm(conv(y, filters, 1, name=f"{name}_project"), f"{name}_project")
    return L.Add(name=f"{name}_add")([x, y]) if stride == 1 and x.shape[-1] == filters else y


# (expansion, channels, blocks, stride, kernel) of each stage
V2 = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3), (6, 160, 3, 2, 3), (6, 320, 1, 1, 3))
LITE0 = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3))


def _inverted_residual_net(stages, name, input_shape, classes, width):
    inputs = keras.Input(input_shape, name="image")
    small = input_shape[0] < 64  # such images keep their resolution in the stem and in the first stage of stride 2
    x = norm(conv(inputs, channels(32 * width), 3, 1 if small else 2, name="stem"), "stem", "relu6")
    for stage, (expansion, count, blocks, stride, size) in enumerate(stages):
        for block in range(blocks):
            step = 1 if block or (small and stage == 1) else stride
            x = _inverted_residual(x, channels(count * width), size, step, expansion, f"stage{stage + 1}_block{block + 1}")
    x = norm(conv(x, channels(1280 * max(1.0, width)), 1, name="head"), "head", "relu6")
    return classifier(x, inputs, classes, name)


def mobilenet_v2(input_shape, classes, width=1.0):
    """MobileNetV2 of any width (Sandler et al. 2018, table 2). Images below 64 pixels keep their resolution in the stem and
    in the first stride-2 stage, as is usual for CIFAR.

    Args:
        input_shape: (height, width, channels), float images about zero.
        classes: length of the logits.
        width: multiplies every number of channels, rounded to multiples of 8.
    Returns: a functional model, images [batch, height, width, channels] -> logits [batch, classes].
    """
    return _inverted_residual_net(V2, "mobilenet_v2", input_shape, classes, width)


def efficientnet_lite0(input_shape, classes, width=1.0):
    """EfficientNet-Lite0: EfficientNet-B0 without squeeze-excite and with ReLU6. As `mobilenet_v2`."""
    return _inverted_residual_net(LITE0, "efficientnet_lite0", input_shape, classes, width)

"""The pieces that the networks are built of: convolution, norm and activation under one name."""

import tf_keras as keras

L = keras.layers
ACTIVATIONS = {"relu": lambda name: L.ReLU(name=name), "relu6": lambda name: L.ReLU(6.0, name=name)}


def conv(x, filters, size, stride=1, *, name):
    """A convolution without bias, its padding the same for every input size; He initialization."""
    return L.Conv2D(filters, size, stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=name)(x)


def depthwise(x, size, stride=1, *, name):
    """A depthwise convolution without bias."""
    return L.DepthwiseConv2D(size, stride, padding="same", use_bias=False, depthwise_initializer="he_normal", name=name)(x)


def norm(x, name, activation=None, momentum=0.9, epsilon=1e-5):
    """BatchNorm, named {name}_bn, and an activation, named {name}_{activation}."""
    x = L.BatchNormalization(momentum=momentum, epsilon=epsilon, name=f"{name}_bn")(x)
    return ACTIVATIONS[activation](f"{name}_{activation}")(x) if activation else x


def channels(count, divisor=8):
    """`count` rounded to a multiple of `divisor`, not below nine tenths of it (MobileNetV2's rule)."""
    rounded = max(divisor, int(count + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * count else rounded


def classifier(x, inputs, classes, name):
    """Global average pooling, logits, and the model."""
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, L.Dense(classes, name="logits")(x), name=name)

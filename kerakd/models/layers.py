"""The pieces that the networks are built of: convolution, norm, activation and squeeze-excite under one name each."""

import tf_keras as keras

L = keras.layers
SHALLOW = 2  # stages of a network that is only to try something out


def _hard_sigmoid(x, name):
    """ReLU6(x + 3) / 6; Keras's own hard_sigmoid is another function, clip(0.2 x + 0.5)."""
    return L.ReLU(1.0, name=name)(L.Rescaling(1 / 6, 0.5, name=f"{name}_rescale")(x))


def _hard_swish(x, name):
    """x ReLU6(x + 3) / 6 (Howard et al. 2019, section 5.2)."""
    return L.Multiply(name=name)([x, _hard_sigmoid(x, f"{name}_gate")])


ACTIVATIONS = {
    "relu": lambda x, name: L.ReLU(name=name)(x),
    "relu6": lambda x, name: L.ReLU(6.0, name=name)(x),
    "sigmoid": lambda x, name: L.Activation("sigmoid", name=name)(x),
    "swish": lambda x, name: L.Activation("swish", name=name)(x),
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": _hard_swish,
}


def activate(x, name, activation):
    """A key of ACTIVATIONS, named {name}_{activation}; none for None."""
    return ACTIVATIONS[activation](x, f"{name}_{activation}") if activation else x


def conv(x, filters, size, stride=1, *, name):
    """A convolution without bias, its padding the same for every input size; He initialization."""
    return L.Conv2D(filters, size, stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=name)(x)


def depthwise(x, size, stride=1, *, name):
    """A depthwise convolution without bias."""
    return L.DepthwiseConv2D(size, stride, padding="same", use_bias=False, depthwise_initializer="he_normal", name=name)(x)


def norm(x, name, activation=None, momentum=0.9, epsilon=1e-5):
    """BatchNorm, named {name}_bn, and an activation, named {name}_{activation}."""
    return activate(L.BatchNormalization(momentum=momentum, epsilon=epsilon, name=f"{name}_bn")(x), name, activation)


def groups(count, most):
    """The greatest number of equal groups of `count` channels that is at most `most`."""
    return max(n for n in range(1, most + 1) if count % n == 0)


def group_norm(x, name, activation=None, most=8, epsilon=1e-5):
    """GroupNorm of up to `most` groups, named {name}_gn, and an activation, named {name}_{activation}."""
    return activate(L.GroupNormalization(groups(x.shape[-1], most), epsilon=epsilon, name=f"{name}_gn")(x), name, activation)


def squeeze_excite(x, count, activation, gate, *, name):
    """x times a gate for each channel, made of all channels' means: 1x1 to `count`, `activation`, 1x1, `gate` (Hu et al. 2018, figure 3)."""
    y = L.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    y = activate(L.Conv2D(count, 1, name=f"{name}_reduce")(y), f"{name}_reduce", activation)
    y = activate(L.Conv2D(x.shape[-1], 1, name=f"{name}_gate")(y), f"{name}_gate", gate)
    return L.Multiply(name=f"{name}_excite")([x, y])


def scaled(filters, width):
    """Each number of channels times `width`, at least 1."""
    return [max(1, round(count * width)) for count in filters]


def channels(count, divisor=8):
    """`count` rounded to a multiple of `divisor`, not below nine tenths of it (MobileNetV2's rule)."""
    rounded = max(divisor, int(count + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * count else rounded


def classifier(x, inputs, classes, name, initializer="glorot_uniform"):
    """Global average pooling, logits, and the model."""
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, L.Dense(classes, kernel_initializer=initializer, name="logits")(x), name=name)

"""ResNet-20 for 32x32 images with the layer names of kerakd.models, for whichever Keras it is given."""


def resnet20(keras, width=1, conv=None, relu=None, dense=None):
    """A float net of `keras`, or with layers of the peer's own.

    conv(filters, size, strides, name), relu(name), dense(classes, name): makers of layers; not given: those of `keras`.
    """
    layers = keras.layers
    conv = conv or (lambda filters, size, strides, name: layers.Conv2D(filters, size, strides, "same", use_bias=False, name=name))
    relu = relu or (lambda name: layers.ReLU(name=name))
    dense = dense or (lambda classes, name: layers.Dense(classes, name=name))

    def norm(x, name):
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)

    def block(x, filters, strides, name):
        y = relu(f"{name}_1_relu")(norm(conv(filters, 3, strides, f"{name}_conv1")(x), f"{name}_1"))
        y = norm(conv(filters, 3, 1, f"{name}_conv2")(y), f"{name}_2")
        if strides != 1:
            x = norm(conv(filters, 1, strides, f"{name}_shortcut")(x), f"{name}_s")
        return relu(f"{name}_relu")(layers.Add(name=f"{name}_add")([y, x]))

    inputs = keras.Input((32, 32, 3), name="image")
    x = relu("conv_relu")(norm(conv(16 * width, 3, 1, "conv")(inputs), "conv"))
    for stage in range(3):
        for number in range(3):
            x = block(x, 16 * width * 2**stage, 2 if stage and not number else 1, f"stage{stage + 1}_block{number + 1}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, dense(10, "logits")(x))


def key(layer, variable):
    """ "layer/variable", the same in every Keras."""
    return f"{layer.name}/{variable.name.split('/')[-1].split(':')[0]}"


def load(model, weights):
    """Sets the weights of {key: array}. Raises: KeyError for a variable that is not there."""
    for layer in model.layers:
        if layer.weights:
            layer.set_weights([weights[key(layer, variable)] for variable in layer.weights])

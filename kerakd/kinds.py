"""Kinds of layers: what each is to a scheme and to an integer file."""

import tensorflow as tf
import tf_keras as keras

from kerakd.wrapper import kernel_name

L = keras.layers
TRANSPARENT = (  # layers whose output holds values of their input (and zeros), so it is on its input's grid
    *(L.MaxPooling1D, L.MaxPooling2D, L.GlobalMaxPooling1D, L.GlobalMaxPooling2D, L.Flatten, L.Reshape, L.Permute),
    *(L.ZeroPadding1D, L.ZeroPadding2D, L.Cropping1D, L.Cropping2D, L.Identity, L.ActivityRegularization),
    *(L.Dropout, L.SpatialDropout1D, L.SpatialDropout2D, L.GaussianDropout, L.AlphaDropout, L.GaussianNoise),  # these while they infer
    *(L.RandomFlip, L.RandomRotation, L.RandomZoom, L.RandomTranslation, L.RandomContrast, L.RandomBrightness),
)
OPERATORS = keras.src.layers.core.tf_op_layer.TFOpLambda  # TensorFlow functions on tensors, as Keras records them
MOVES = ("getitem", "squeeze", "expand_dims", "depth_to_space", "space_to_depth")  # of those, likewise transparent
KEEPS_SIGN = (L.Add, L.Concatenate, L.Multiply, L.Maximum, L.AveragePooling2D, L.GlobalAveragePooling2D, *TRANSPARENT)
PROBABILITIES = (keras.activations.softmax, keras.activations.sigmoid, tf.nn.softmax, tf.nn.sigmoid)
FLOAT = (L.LayerNormalization, L.GroupNormalization, L.UnitNormalization, L.Softmax)  # of which no integer form is known that is right to the last code
EXACT = (L.BatchNormalization, L.Rescaling, L.AveragePooling2D, L.GlobalAveragePooling2D, L.Add, L.Multiply, L.Concatenate)


def operator(layer):
    """The last name of the function that a layer of OPERATORS applies: "relu6" of tf.nn.relu6."""
    return layer.symbol.rpartition(".")[2]


def computes(layer, *classes):
    """Whether a layer computes what one of these Keras classes does: a subclass that calls or merges in its own way may compute something else."""
    return any(isinstance(layer, cls) and _work(type(layer)) == _work(cls) for cls in classes)


def _work(cls):
    return [getattr(cls, method, None) for method in ("call", "_merge_function")]


def is_transparent(layer):
    """Whether it is of TRANSPARENT, or an operator of MOVES on one tensor."""
    if isinstance(layer, OPERATORS):
        return operator(layer) in MOVES and all(len(node.keras_inputs) == 1 for node in layer.inbound_nodes)
    return computes(layer, *TRANSPARENT)


def passes_on(layer):
    """Whether its output holds values of its inputs, which then are on one grid with it."""
    return computes(layer, L.Concatenate) or is_transparent(layer)


def keeps_pixels(layer):
    """Whether what it makes of pixels are pixels: the same, a part of them, or values between theirs."""
    resized = computes(layer, L.Resizing) and layer.interpolation in ("nearest", "bilinear", "area")  # the others overshoot
    return resized or is_transparent(layer) or computes(layer, L.CenterCrop, L.RandomCrop)


def is_relu(layer):
    """Whether the layer is a ReLU, bounded or not."""
    return computes(layer, L.ReLU) and not (layer.negative_slope or layer.threshold)


def is_sigmoid(layer):
    return computes(layer, L.Activation) and layer.activation is keras.activations.sigmoid


def is_softmax(layer):
    return _applies(layer, L.Softmax, "softmax", keras.activations.softmax, tf.nn.softmax)


def is_tanh(layer):
    """Whether a file answers it on the grid of tanh, as it does of vectors of length 1 too."""
    return _applies(layer, L.UnitNormalization, "l2_normalize") or _applies(layer, None, "tanh", keras.activations.tanh, tf.nn.tanh)


def _applies(layer, cls, symbol, *functions):
    """Whether a layer is of a class, the operator of that name, or an Activation of one of some functions."""
    if isinstance(layer, OPERATORS):
        return operator(layer) == symbol
    return (cls is not None and computes(layer, cls)) or (computes(layer, L.Activation) and layer.activation in functions)


def is_per_channel(layer):
    """Whether a BatchNorm normalizes each channel, the last axis of at most four: of another one the file has no integer form."""
    return computes(layer, L.BatchNormalization) and _rank(layer) <= 4 and list(layer.axis) == [_rank(layer) - 1]


def _rank(layer):
    return max(len(node.input_shapes) for node in layer.inbound_nodes)


def fuses(call, reader):
    """Whether `reader` is computed in one operation with `call`, so that the tensor between them never exists."""
    weighted = kernel_name(call.layer) is not None
    if isinstance(reader.layer, L.BatchNormalization):
        return weighted and is_per_channel(reader.layer)
    return is_relu(reader.layer) and (weighted or computes(call.layer, L.BatchNormalization, L.Rescaling, L.AveragePooling2D, L.Add, *FLOAT))


def is_exact(layer):
    """Whether the integer arithmetic of the layer is one that the exporter knows to the last code."""
    if isinstance(layer, (L.Conv2D, L.DepthwiseConv2D, L.Dense)):
        return kernel_name(layer) is not None
    if isinstance(layer, L.BatchNormalization):
        return is_per_channel(layer)
    if isinstance(layer, L.Rescaling):
        return computes(layer, L.Rescaling) and _rank(layer) <= 4
    return is_relu(layer) or is_sigmoid(layer) or is_transparent(layer) or computes(layer, *EXACT)


def sees_padding(sides, size, strides, padding):
    """Whether windows of a pooling of `size` reach, or may, over an image of `sides`, None where they are not known."""
    windows = zip(sides, size, strides, strict=True)
    return padding.lower() != "valid" and any(extent > 1 if side is None else (side - 1) // step * step + extent > side for side, extent, step in windows)


def has_kernel(layer):
    """Whether it has weights of more than one axis, as any layer that is no mere scale or bias."""
    scales = isinstance(layer, (L.PReLU, L.BatchNormalization, *FLOAT))  # of several axes at most
    return not scales and any(weight.trainable and weight.shape.rank > 1 for weight in layer.weights)

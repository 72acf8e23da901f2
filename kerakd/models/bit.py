"""BiT: ResNetV2 with GroupNorm and standardized convolutions, and its published weights."""

import re
import zipfile

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras.src.mixed_precision.autocast_variable import enable_auto_cast_variables

from kerakd.errors import BadInput
from kerakd.models.layers import SHALLOW, classifier, groups, scaled
from kerakd.models.resnet import IMAGENET

L = keras.layers
HEAD = "head/conv2d"  # published as a 1x1 convolution


def standardize(kernel):
    """A kernel [h, w, in, out] with mean 0 and variance 1 in each output channel (Qiao et al. 2019)."""
    mean, variance = tf.nn.moments(kernel, [0, 1, 2], keepdims=True)
    return (kernel - mean) / tf.sqrt(variance + 1e-10)


@keras.utils.register_keras_serializable("kerakd")
class StandardizedConv2D(L.Conv2D):
    """A convolution with its kernel standardized at each call; the variable is the kernel as it was learned."""

    def convolution_op(self, inputs, kernel):
        wanted = getattr(kernel, "_cast_dtype", kernel.dtype)  # under mixed precision, what the layer computes in
        with enable_auto_cast_variables(None):  # float16 has no 1e-10, nor the variance of small kernels
            kernel = standardize(tf.convert_to_tensor(kernel))
        return super().convolution_op(inputs, tf.cast(kernel, wanted))


# the layers have their published names, "block1/unit01/a/group_norm"; a `name` below is what comes before the last part


def _conv(x, filters, size, stride, name):
    """Without bias; padded alike on all sides, which "same" does not do at stride 2."""
    if stride > 1 and size > 1:
        x = L.ZeroPadding2D(size // 2, name=f"{name}pad")(x)
    padding = "valid" if stride > 1 else "same"
    name = f"{name}standardized_conv2d"
    return StandardizedConv2D(filters, size, stride, padding=padding, use_bias=False, kernel_initializer="he_normal", name=name)(x)


def _norm(x, name):
    x = L.GroupNormalization(groups(x.shape[-1], 32), epsilon=1e-5, name=f"{name}group_norm")(x)
    return L.ReLU(name=f"{name}relu")(x)


def _unit(x, filters, stride, name):
    """Pre-activated 1x1, 3x3, 1x1 to four times the filters, the stride in the 3x3; a projection sees the activated input."""
    y = _norm(x, f"{name}a/")
    if stride != 1 or x.shape[-1] != 4 * filters:
        x = _conv(y, 4 * filters, 1, stride, f"{name}a/proj/")
    y = _conv(y, filters, 1, 1, f"{name}a/")
    y = _conv(_norm(y, f"{name}b/"), filters, 3, stride, f"{name}b/")
    y = _conv(_norm(y, f"{name}c/"), 4 * filters, 1, 1, f"{name}c/")
    return L.Add(name=f"{name}add")([y, x])


def bit_resnet(depth, factor, input_shape, classes, width=1.0, shallow=False):
    """BiT-R`depth`x`factor`: ResNet of `factor` times the channels, its head zero at first (Kolesnikov et al. 2020).

    Args:
        depth: a key of IMAGENET, which has the units of each block; they are bottlenecks at every depth.
        input_shape: (height, width, channels), float images in -1..1.
        classes: length of the logits.
        width: multiplies every number of channels once more; GroupNorm has 32 groups or the most below that divide them.
        shallow: one unit of each of the first two blocks.
    Returns: a functional model, images [batch, height, width, channels] -> logits [batch, classes].
    """
    inputs = keras.Input(input_shape, name="image")
    filters = scaled((64, 128, 256, 512), factor * width)
    x = _conv(inputs, filters[0], 7, 2, "root_block/")
    x = L.ZeroPadding2D(1, name="root_block/pool_pad")(x)  # with zeros, not -inf: so the weights were trained
    x = L.MaxPooling2D(3, 2, name="root_block/pool")(x)
    stages = list(zip(filters, IMAGENET[depth][1], strict=True))
    for block, (count, units) in enumerate(stages[:SHALLOW] if shallow else stages):
        for unit in range(1 if shallow else units):
            x = _unit(x, count, 2 if block and not unit else 1, f"block{block + 1}/unit{unit + 1:02d}/")
    return classifier(_norm(x, ""), inputs, classes, f"bit_r{depth}x{factor}", "zeros")


def _published(model):
    """{name in a published file: (variable, shape there)}."""
    named = {}
    for layer in model.layers:
        place = HEAD if layer.name == "logits" else layer.name
        for name in ("kernel", "bias", "gamma", "beta"):
            variable = getattr(layer, name, None)
            if variable is not None:
                shape = tuple(variable.shape)
                named[f"resnet/{place}/{name}"] = variable, (1, 1, *shape) if (place, name) == (HEAD, "kernel") else shape
    return named


def _read(path):
    try:
        with np.load(path) as file:
            # some published files count their convolutions: standardized_conv2d_17
            return {re.sub(r"/standardized_conv2d_\d+/", "/standardized_conv2d/", key): np.asarray(file[key], np.float32) for key in file}
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise BadInput(f"path: expected a BiT .npz file of arrays, received {path} ({error}); the published ones are gs://bit_models/BiT-*.npz") from error


def _some(keys):
    return ", ".join([*keys[:3], f"and {len(keys) - 3} more"] if len(keys) > 3 else keys) or "none"


def load_bit_npz(model, path, head=True):
    """Gives a model of `bit_resnet` the weights of a published file, all of them or, at an error, none.

    Args:
        path: an .npz file whose arrays are named as resnet/block1/unit01/a/standardized_conv2d/kernel.
        head: whether the head is loaded too; the file's number of classes must then be the model's. Otherwise it is left as it is.
    Raises: BadInput for a file that is not there or none of arrays, and for names or shapes that are not the model's.
    """
    named, arrays = ({k: v for k, v in found.items() if head or not k.startswith("resnet/head/")} for found in (_published(model), _read(path)))
    missing, extra = sorted(named.keys() - arrays.keys()), sorted(arrays.keys() - named.keys())
    if missing or extra:
        raise BadInput(
            f"path: expected the {len(named)} arrays of {model.name}, received {path} with missing: {_some(missing)}, unknown: {_some(extra)}; "
            "build the network of the file's depth"
        )
    for key, (_, shape) in named.items():
        if arrays[key].shape != shape:
            remedy = "classes, or leave the head with head=False" if key.startswith("resnet/head/") else "depth and width"
            raise BadInput(f"path: expected {key} of shape {shape}, received {arrays[key].shape} in {path}; build the network of the file's {remedy}")
    for key, (variable, _) in named.items():
        variable.assign(np.reshape(arrays[key], variable.shape))

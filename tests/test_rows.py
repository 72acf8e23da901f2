"""Models that people have, from the float net to the file: each quantizes, trains, survives its file and ships what it computes."""

import gc

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kerakd
from kerakd import batchnorm, models
from kerakd.kinds import FLOAT
from kerakd.quantizers import Interval, Ternary
from kerakd.tflite import reference, runtime
from kerakd.wrapper import QuantizedLayer

L = keras.layers
CLASSES = 10


def zoo(name, side=16, width=1 / 16):
    return lambda: models.build(name, (side, side, 3), CLASSES, width)


def bit(name="bit_r50x1", width=1 / 16):
    """BiT with a head as training leaves it: a fresh one is zero, and ten steps of 1e-4 do not take it off code 0 of its 8 bits.

    On images of 32 pixels its last groups would be of one value each, which GroupNorm makes 0.
    """
    net = models.build(name, (64, 64, 3), CLASSES, width)
    net.layers[-1].kernel.assign(tf.random.stateless_normal(net.layers[-1].kernel.shape, (1, 2)) / 8)
    return net


def application(name, side=32, **options):
    """A network of tf_keras.applications, without its published weights."""
    return lambda: getattr(keras.applications, name)(input_shape=(side, side, 3), weights=None, classes=CLASSES, classifier_activation=None, **options)


def backbone(name, **options):
    """A network of keras_cv behind a usual head."""

    def make():
        import keras_cv

        body = getattr(keras_cv.models, f"{name}Backbone")(input_shape=(32, 32, 3), include_rescaling=True, **options)
        return keras.Model(body.input, L.Dense(CLASSES)(L.GlobalAveragePooling2D()(body.output)))

    return make


def sequential(*layers, shape=(16, 16, 3)):
    return keras.Sequential([keras.Input(shape), *layers, L.Dense(CLASSES)])


def rescaled():
    """Sequential, from pixels: what tutorials begin with."""
    return sequential(
        *(L.Rescaling(1 / 127.5, -1), L.Conv2D(8, 3, activation="relu"), L.MaxPooling2D(), L.Conv2D(8, 3, activation="relu"), L.AveragePooling2D()),
        *(L.Flatten(), L.Dropout(0.2), L.Dense(16, activation="relu")),
    )


def padded():
    """Padding of its own before each strided convolution."""
    parts = [(L.ZeroPadding2D(((0, 1), (0, 1))), L.Conv2D(8 * n, 3, 2, use_bias=False), L.BatchNormalization(), L.ReLU(6.0)) for n in (1, 2)]
    return sequential(*parts[0], *parts[1], L.ZeroPadding2D(1), L.DepthwiseConv2D(3, 2), L.GlobalAveragePooling2D())


def transfer():
    """A functional model inside another, its input scaled by operators."""
    body = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, include_top=False, weights=None)
    inputs = keras.Input((32, 32, 3))
    x = L.GlobalAveragePooling2D()(body(inputs / 127.5 - 1))
    return keras.Model(inputs, L.Dense(CLASSES)(L.Dropout(0.2)(x)))


def gated():
    """Products: of two convolutions, of a tensor with a gate for each pixel, of three tensors."""
    inputs = keras.Input((16, 16, 3))
    x, y, z = (L.Conv2D(8, 3, strides=2, padding="same", activation=name)(inputs) for name in ("relu", None, "sigmoid"))
    x = L.Conv2D(8, 3, padding="same", activation="relu")(L.Multiply()([x, y, z]))
    x = L.Multiply()([x, L.Conv2D(1, 1, activation="sigmoid")(x)])
    return keras.Model(inputs, L.Dense(CLASSES)(L.GlobalAveragePooling2D()(x)))


def hard_swish_by_operators():
    inputs = keras.Input((16, 16, 3))
    x = inputs
    for strides in (2, 1):
        x = L.BatchNormalization()(L.Conv2D(8, 3, strides, padding="same", use_bias=False)(x))
        x = x * (tf.nn.relu6(x + 3) / 6)
    return keras.Model(inputs, L.Dense(CLASSES)(tf.reduce_mean(x, [1, 2])))


def conv_1d():
    """Ten channels in time, as of a sensor."""
    first = (L.Conv1D(8, 5, 2, use_bias=False), L.BatchNormalization(), L.ReLU(), L.MaxPooling1D(2))
    dilated = L.Conv1D(12, 3, padding="causal", dilation_rate=2, activation="relu")
    return sequential(*first, dilated, L.Conv1D(16, 3, padding="same", activation="relu"), L.Flatten(), shape=(64, 10))


def separable():
    """Separable convolutions with a shortcut around them, as tutorials have them."""
    inputs = keras.Input((16, 16, 3))
    x = before = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, strides=2, padding="same")(L.Rescaling(1 / 255)(inputs))))
    for _ in range(2):
        x = L.BatchNormalization()(L.SeparableConv2D(16, 3, padding="same", use_bias=False)(L.ReLU()(x)))
    x = L.Add()([L.MaxPooling2D(3, strides=2, padding="same")(x), L.Conv2D(16, 1, strides=2, padding="same")(before)])
    x = L.SeparableConv2D(16, 3, depth_multiplier=2, activation="relu")(x)
    return keras.Model(inputs, L.Dense(CLASSES)(L.Dropout(0.2)(L.GlobalAveragePooling2D()(x))))


def separable_rows():
    first = (L.SeparableConv1D(8, 5, 2, use_bias=False), L.BatchNormalization(), L.ReLU(), L.DepthwiseConv1D(3, 2), L.BatchNormalization(), L.ReLU(6.0))
    return sequential(*first, L.SeparableConv1D(16, 3, padding="same", activation="relu"), L.GlobalAveragePooling1D(), shape=(64, 10))


def layer_norm():
    """A mixer of channels: layers that stay float between layers that are integers."""
    inputs = keras.Input((16, 16, 3))
    x = L.Conv2D(16, 4, 4)(inputs)
    y = L.Conv2D(32, 1, activation="relu")(L.LayerNormalization(epsilon=1e-6)(x))
    x = L.Add()([x, L.Conv2D(16, 1)(y)])
    return keras.Model(inputs, L.Dense(CLASSES)(L.LayerNormalization()(L.GlobalAveragePooling2D()(x))))


RESNET = {"stackwise_filters": [64, 16], "stackwise_blocks": [2, 2], "stackwise_strides": [1, 2]}
EFFICIENT = {  # a fused block and two that are not
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "stackwise_num_repeats": [1, 2],
    "stackwise_kernel_sizes": [3, 3],
    "stackwise_strides": [1, 2],
    "stackwise_input_filters": [8, 8],
    "stackwise_output_filters": [8, 16],
    "stackwise_expansion_ratios": [1, 4],
    "stackwise_squeeze_and_excite_ratios": [0, 0.25],
    "stackwise_conv_types": ["fused", "unfused"],
}
MOBILE = {
    "stackwise_expansion": [1, 3, 4],
    "stackwise_filters": [16, 24, 24],
    "stackwise_kernel_size": [3, 3, 5],
    "stackwise_stride": [2, 2, 1],
    "stackwise_se_ratio": [None, None, None],
    "stackwise_activation": ["relu", "relu", "hard_swish"],
}
NETS = {
    "resnet50": zoo("resnet50", 32),
    "mobilenet_v3_small": zoo("mobilenet_v3_small"),
    "mobilenet_v3_large": zoo("mobilenet_v3_large"),
    "mobilenet_v3_small_gn": zoo("mobilenet_v3_small_gn"),
    "efficientnet_b0": zoo("efficientnet_b0"),
    "efficientnet_lite0": zoo("efficientnet_lite0"),
    "bit_r50x1": bit,
    "bit_r152x2": lambda: bit("bit_r152x2", 1 / 32),
    "Keras ResNet50": application("ResNet50"),
    "Keras ResNet50V2": application("ResNet50V2"),
    "Keras MobileNetV2": application("MobileNetV2", alpha=0.35),
    "Keras MobileNetV3Small": application("MobileNetV3Small", alpha=0.35, minimalistic=False),
    "Keras EfficientNetB0": application("EfficientNetB0"),
    "Keras DenseNet121": application("DenseNet121"),
    "Keras Xception": application("Xception", side=71),
    "keras_cv ResNet": backbone("ResNet", block_type="basic_block", **RESNET),
    "keras_cv ResNetV2": backbone("ResNetV2", **RESNET),
    "keras_cv EfficientNetV2": backbone("EfficientNetV2", **EFFICIENT),
    "keras_cv MobileNetV3": backbone("MobileNetV3", **MOBILE),
    "keras_cv MobileNetV3 squeezed": backbone("MobileNetV3", **{**MOBILE, "stackwise_se_ratio": [None, None, 0.25]}),
    "rescaled": rescaled,
    "padded": padded,
    "transfer": transfer,
    "gated": gated,
    "hard swish by operators": hard_swish_by_operators,
    "conv 1d": conv_1d,
    "separable": separable,
    "separable rows": separable_rows,
    "layer norm": layer_norm,
}
ELSEWHERE = {"resnet8", "resnet8v2", "resnet18"}  # in test_models.py
NETS |= {name: zoo(name, 32 if name in ("resnet34", "resnet101", "resnet152") else 16) for name in models.BY_NAME if name not in {*NETS, *ELSEWHERE}}
PIXELS = ("Keras MobileNetV3Small", "Keras EfficientNetB0", "rescaled", "separable", "transfer")  # and keras_cv: these take 0..255
SCHEMES = {"W4A4": kerakd.Scheme(Interval(4), Interval(4)), "ternary-A8": kerakd.Scheme(Ternary(), Interval(8))}
FAST = {"rescaled", "padded", "gated", "hard swish by operators", "conv 1d", "separable", "separable rows", "layer norm"}  # the others take 5 to 150 s
CHEAP = FAST - {"gated", "separable", "layer norm"}
CASES = [
    pytest.param(net, scheme, id=f"{net} {scheme}", marks=[] if net in (FAST if scheme == "W4A4" else CHEAP) else [pytest.mark.slow])
    for net in NETS
    for scheme in SCHEMES
]


def random_images(shape, pixels):
    """Noise of one color in each image, so that images differ in their means too."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, *shape)) + rng.normal(size=(40, *(1 for _ in shape[1:]), shape[-1]))
    return np.float32(np.clip(128 + 40 * values, 0, 255) if pixels else values)


def kernels(student):
    return {layer.name: layer.kernels[0][0].numpy() for layer in student.layers if isinstance(layer, QuantizedLayer)}


def trained(net, scheme, images):
    """A student after ten steps, its BatchNorms re-estimated."""
    student = kerakd.quantize(net, scheme)
    kerakd.calibrate(student, images)
    before = kernels(student)
    distiller = kerakd.Distiller(student=student, mode="alone")  # traces a step once, where a Keras model of its own does so twice
    distiller.compile(keras.optimizers.Adam(1e-4))
    history = distiller.fit(images, np.arange(len(images)) % CLASSES, batch_size=4, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert [name for name, kernel in kernels(student).items() if np.array_equal(kernel, before[name])] == []
    batchnorm.reestimate(student, np.split(images, 4))
    return student


def custom_objects(name):
    """keras_cv's class that is neither registered nor takes its own config: without this the float net does not load either."""
    if name != "keras_cv MobileNetV3 squeezed":
        return {}
    from keras_cv.src.models.backbones.mobilenet_v3.mobilenet_v3_backbone import HardSigmoidActivation

    return {"HardSigmoidActivation": type("Loadable", (HardSigmoidActivation,), {"from_config": classmethod(lambda cls, config: cls())})}


def steps_apart(student, data, images):
    """How far each logit of the file is from that of the Keras copy with everything rounded as the file has it."""
    step = float(student.layers[-1].step_size)
    return np.rint(np.abs(runtime.run(data, images) - reference.logits(reference.snap(student), images)) / step)


@pytest.fixture(autouse=True)
def forgotten():
    """Keras and its graphs keep what the test made alive: gigabytes after some dozen networks."""
    yield
    keras.backend.clear_session()
    gc.collect()


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_a_model_trains_is_saved_and_ships_what_it_computes(name, scheme, tmp_path, capsys):
    keras.utils.set_random_seed(1)
    net = NETS[name]()
    images = random_images(net.input_shape[1:], name in PIXELS or name.startswith("keras_cv"))
    student = trained(net, SCHEMES[scheme], images)
    told = capsys.readouterr().err
    floats = [layer.name for layer in net.layers if isinstance(layer, FLOAT) or type(layer).__module__.startswith("keras_cv")]
    assert ("stay float" in told) == bool(floats) and all(layer in told for layer in floats), told

    student.save(tmp_path / "student.keras")
    with kerakd.quantize_scope(), keras.utils.custom_object_scope(custom_objects(name)):
        loaded = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(loaded(images), student(images))

    data = kerakd.to_tflite(student)
    proof = kerakd.verify(student, data, images)
    if floats:  # float32 in the file and float64 in the copy fall on two sides of a tie now and then, one step apart; what follows is made of that
        assert proof.codes_equal == 1 and proof.top1_equal >= 0.95, str(proof)
        assert all(layer.max_steps <= 1 and layer.equal >= 0.995 for layer in proof.layers), proof.table()
        if not name.startswith("bit_"):  # whose 49 GroupNorms or more make much of a single code (BUILD.md)
            assert np.mean(steps_apart(student, data, images) <= 1) >= 0.98, str(proof)
    else:
        assert proof.exact, str(proof)
    assert len(np.unique(runtime.run(data, images), axis=0)) > len(images) / 2

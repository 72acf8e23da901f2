"""Networks: each quantizes, takes ten training steps, survives its file, and converts to a file equal in every logit."""

import numpy as np
import pytest
import tf_keras as keras

import kerakd
from kerakd import models
from kerakd.quantizers import Interval, Ternary

L = keras.layers
RNG = np.random.default_rng(0)


def zoo(name, side=16, width=0.25):
    return lambda: models.build(name, (side, side, 3), 5, width)


def dense_block():
    """BatchNorms before convolutions, concatenations of concatenations, average pooling: DenseNet's parts."""
    inputs = keras.Input((16, 16, 3))
    x = L.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    for _ in range(2):
        y = L.ReLU()(L.BatchNormalization()(x))
        x = L.Concatenate()([x, L.Conv2D(4, 3, padding="same", use_bias=False)(y)])
    x = L.ReLU()(L.BatchNormalization()(x))
    x = L.AveragePooling2D(2)(L.Conv2D(8, 1)(x))
    x = L.GlobalAveragePooling2D()(L.ReLU()(L.BatchNormalization()(x)))
    return keras.Model(inputs, L.Dense(5)(x))


def squeeze_excite():
    """A product of a tensor with its own gates; the gates in ReLU6."""
    inputs = keras.Input((16, 16, 3))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, padding="same", use_bias=False)(inputs)))
    gates = L.Conv2D(4, 1, activation="relu")(L.GlobalAveragePooling2D(keepdims=True)(x))
    gates = L.ReLU(6.0)(L.Conv2D(8, 1)(gates))
    return keras.Model(inputs, L.Dense(5)(L.Flatten()(L.Multiply()([x, gates]))))


def nested():
    """A functional model inside another, with padding before a strided convolution."""
    inside = keras.Sequential([keras.Input((16, 16, 3)), L.ZeroPadding2D(1), L.Conv2D(8, 3, 2, use_bias=False), L.BatchNormalization(), L.ReLU()], name="stem")
    inputs = keras.Input((16, 16, 3))
    x = L.MaxPooling2D(2)(inside(inputs))
    return keras.Model(inputs, L.Dense(5)(L.Dropout(0.1)(L.Flatten()(x))))


NETS = {
    "resnet8": zoo("resnet8"),
    "resnet8v2": zoo("resnet8v2"),
    "resnet18": zoo("resnet18", side=32, width=0.125),
    "mobilenet_v2": zoo("mobilenet_v2"),
    "dense block": dense_block,
    "squeeze-excite": squeeze_excite,
    "nested": nested,
}
SCHEMES = {"W4A4": (Interval(4), Interval(4)), "ternary-A8": (Ternary(), Interval(8))}


def trained(make, scheme):
    """A student of random BatchNorm statistics after ten steps, and the images that it saw."""
    keras.utils.set_random_seed(1)
    net = make()
    for layer in net._flatten_layers():
        if isinstance(layer, L.BatchNormalization):
            shapes = [w.shape for w in layer.get_weights()]
            layer.set_weights([RNG.uniform(-1.5, 1.5, shapes[0]), RNG.normal(0, 0.3, shapes[1]), RNG.normal(0, 0.3, shapes[2]), RNG.uniform(0.3, 2, shapes[3])])
    images = RNG.normal(size=(40, *net.input_shape[1:])).astype(np.float32)
    student = kerakd.quantize(net, kerakd.Scheme(*scheme))
    kerakd.calibrate(student, images)
    distiller = kerakd.Distiller(student=student, mode="alone")
    distiller.compile(keras.optimizers.Adam(1e-3))
    last = student.trainable_variables[-1]
    before = last.numpy()
    distiller.fit(images, RNG.integers(0, 5, 40), batch_size=4, verbose=0)
    assert not np.array_equal(before, last)
    return student, images


CASES = [
    pytest.param(net, scheme, id=f"{net} {scheme}", marks=[pytest.mark.slow] if scheme == "ternary-A8" and net not in ("resnet8", "nested") else [])
    for net in NETS
    for scheme in SCHEMES
]


@pytest.mark.parametrize(("net", "scheme"), CASES)
def test_a_network_trains_is_saved_and_ships_exactly(net, scheme, tmp_path):
    student, images = trained(NETS[net], SCHEMES[scheme])
    student.save(tmp_path / "student.keras")
    with kerakd.quantize_scope():
        loaded = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(loaded(images), student(images))
    proof = kerakd.verify(student, kerakd.to_tflite(student), images)
    assert proof.exact and proof.not_delegated == [], str(proof)


PUBLISHED = {  # trainable parameters; those of the ImageNet nets are what torchvision and the official code count
    ("resnet20", (32, 32, 3), 10): 272_474,
    ("resnet18", (224, 224, 3), 1000): 11_689_512,
    ("resnet50", (224, 224, 3), 1000): 25_557_032,
    ("mobilenet_v2", (224, 224, 3), 1000): 3_504_872,
    ("efficientnet_lite0", (224, 224, 3), 1000): 4_652_008,
}


@pytest.mark.parametrize(("name", "shape", "classes"), PUBLISHED)
def test_networks_have_the_parameters_of_the_published_ones(name, shape, classes):
    net = models.build(name, shape, classes)
    assert sum(int(np.prod(v.shape)) for v in net.trainable_variables) == PUBLISHED[name, shape, classes]


def test_every_network_answers_with_logits_of_the_asked_shape():
    for name in ("resnet8", "resnet8v2", "resnet18", "mobilenet_v2"):
        net = models.build(name, (32, 32, 1), 7, 0.25)
        assert net.output_shape == (None, 7) and getattr(net.layers[-1].activation, "__name__", "") == "linear"


def test_an_unknown_network_is_refused():
    with pytest.raises(kerakd.BadInput, match="model: expected one of resnet8, .*received 'resnet9'"):
        models.build("resnet9", (8, 8, 1), 10)

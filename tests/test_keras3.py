"""Laws of from_keras3: the tf_keras model has the Keras 3 model's outputs, weights, names and training switches, or a line says why there is none."""

import json
import os
import subprocess
import sys
import zipfile

import keras as k3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as k2
from conftest import ROOT
from tensorflow.python.util._pywrap_util_port import IsMklEnabled

import kerakd
from kerakd import graph
from kerakd.errors import BadInput
from kerakd.keras3 import check, from_keras3
from kerakd.keras3 import layers as keras3_layers

L, ops, act = k3.layers, k3.ops, k3.activations
RNG = np.random.default_rng(0)
keras3_warns = pytest.mark.filterwarnings("ignore:__array__ implementation", "ignore:You are saving your model as an HDF5 file")  # Keras 3's own
IMAGE, SERIES, VECTOR, VOLUME = (8, 8, 4), (8, 4), (6,), (4, 4, 4, 2)
dilates_backwards = pytest.mark.skipif(not IsMklEnabled(), reason="of CPU kernels oneDNN's alone have it, and TensorFlow leaves them off on this processor")


def scramble(model):
    """Random weights everywhere, so that nothing is 0 or 1 by chance; variances stay positive."""
    for variable in model.variables:
        if variable.dtype == "float32":
            values = RNG.normal(size=variable.shape) * 0.5
            variable.assign(np.abs(values) + 0.5 if "variance" in variable.name else values)
    for layer in layers(model):
        if isinstance(layer, L.Normalization):
            layer.finalize_state()
    return model


def one(layer, shape=IMAGE):
    """A model of one layer or of a function of tensors."""
    x = k3.Input(shape, name="x")
    return scramble(k3.Model(x, layer(x)))


def data(model, size=3):
    return tf.nest.map_structure(lambda ref: (3 * RNG.normal(size=(size, *(n or 16 for n in ref.shape[1:])))).astype("float32"), model._inputs_struct)


def layers(model):
    """Its layers with those of nested models."""
    return [found for layer in model.layers for found in (layers(layer) if isinstance(layer, (k2.Model, k3.Model)) else [layer])]


def assert_alike(model, copy):
    """Outputs within 1e-5 of their size, weights to the bit, names, training switches."""
    inputs = data(model._functional if isinstance(model, k3.Sequential) else model)
    expected, got = model(inputs, training=False), copy(inputs, training=False)
    tf.nest.assert_same_structure(expected, got)
    for a, b in zip(tf.nest.flatten(expected), tf.nest.flatten(got)):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * max(1, np.abs(a).max()))
    assert isinstance(copy, k2.Model) and copy._is_graph_network and copy.name == model.name
    weighted = [layer for layer in layers(model) if layer.weights]
    found = {layer.name: layer for layer in layers(copy)}
    assert sum(len(layer.weights) for layer in {id(layer): layer for layer in weighted}.values()) == len(copy.weights)
    for layer in weighted:
        for a, b in zip(layer.get_weights(), found[layer.name].get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        assert layer.trainable == found[layer.name].trainable
    assert len(copy.trainable_weights) == len(model.trainable_weights)


def converted(model):
    copy = from_keras3(model)
    assert_alike(model, copy)
    return copy


LAYERS = [
    *[(L.Activation(name), VECTOR) for name in ("elu", "exponential", "gelu", "leaky_relu", "linear", "mish", "relu", "relu6", "selu", "sigmoid", "silu")],
    *[(L.Activation(name), VECTOR) for name in ("softmax", "softplus", "softsign", "swish", "tanh", "hard_sigmoid", "hard_silu", "hard_swish")],
    *[(L.Conv2D(3, 3, activation=name), IMAGE) for name in ("relu", "relu6", "silu", "hard_silu", "hard_sigmoid", "gelu", "leaky_relu", None)],
    (L.Dense(3, activation=L.LeakyReLU(negative_slope=0.1)), VECTOR),
    (L.ELU(alpha=0.7), VECTOR),
    (L.LeakyReLU(negative_slope=0.15), VECTOR),
    (L.LeakyReLU(), VECTOR),
    (L.PReLU(shared_axes=[1, 2]), IMAGE),
    (L.ReLU(), VECTOR),
    (L.ReLU(max_value=6.0), VECTOR),
    (L.ReLU(max_value=3.0, negative_slope=0.1), VECTOR),
    (L.ReLU(negative_slope=0.1, threshold=0.5), VECTOR),
    (L.ReLU(max_value=2.0, negative_slope=0.1, threshold=0.5), VECTOR),
    (L.Softmax(axis=1), IMAGE),
    *[(cls(0.3), IMAGE) for cls in (L.AlphaDropout, L.Dropout, L.GaussianDropout, L.GaussianNoise, L.SpatialDropout2D)],
    (L.Dropout(0.3, seed=3, noise_shape=(None, 1, 1, 4)), IMAGE),
    (L.SpatialDropout1D(0.3), SERIES),
    (L.SpatialDropout3D(0.3), VOLUME),
    *[(cls(3, strides=2, padding=p), IMAGE) for cls in (L.AveragePooling2D, L.MaxPooling2D) for p in ("same", "valid")],
    *[(cls(2), shape) for cls, shape in ((L.AveragePooling1D, SERIES), (L.MaxPooling1D, SERIES), (L.AveragePooling3D, VOLUME), (L.MaxPooling3D, VOLUME))],
    (L.BatchNormalization(), IMAGE),
    (L.BatchNormalization(epsilon=0.01, momentum=0.7, scale=False), IMAGE),
    (L.BatchNormalization(axis=1, center=False), SERIES),
    (L.BatchNormalization(synchronized=True), IMAGE),
    (L.GroupNormalization(groups=2), IMAGE),
    (L.GroupNormalization(groups=-1, epsilon=0.01), IMAGE),
    (L.LayerNormalization(), IMAGE),
    (L.LayerNormalization(axis=(1, 2, 3), epsilon=1e-6, center=False), IMAGE),
    (L.Normalization(), IMAGE),
    (L.Normalization(axis=None, invert=True), IMAGE),
    (L.Normalization(mean=[1.0, 2.0, 3.0, 4.0], variance=[0.1, 1.0, 2.0, 9.0]), IMAGE),
    (L.UnitNormalization(), IMAGE),
    (L.CenterCrop(4, 6), IMAGE),
    (L.RandomBrightness(0.1), IMAGE),
    (L.RandomContrast(0.1), IMAGE),
    (L.RandomFlip("horizontal"), IMAGE),
    (L.RandomRotation(0.1, fill_mode="constant", fill_value=0.5), IMAGE),
    (L.RandomTranslation(0.1, (-0.2, 0.3)), IMAGE),
    (L.RandomZoom(0.1), IMAGE),
    (L.Conv1D(3, 3, padding="causal", dilation_rate=2), SERIES),
    (L.Conv1DTranspose(3, 3, strides=2, padding="same"), SERIES),
    (L.Conv2D(3, (3, 2), strides=2, padding="same", use_bias=False), IMAGE),
    (L.Conv2D(4, 3, groups=2, dilation_rate=2), IMAGE),
    (L.Conv2DTranspose(3, 3, strides=2, padding="same"), IMAGE),
    (L.Conv2DTranspose(3, 3, strides=2, padding="valid", output_padding=1), IMAGE),
    (L.Conv2DTranspose(3, 4, strides=2, padding="same", output_padding=1), IMAGE),
    pytest.param(L.Conv2DTranspose(3, 3, dilation_rate=2, padding="same"), IMAGE, marks=dilates_backwards),
    (L.Conv3D(3, 2), VOLUME),
    (L.Conv3DTranspose(3, 2, strides=2), VOLUME),
    (L.Dense(3, activation="relu"), VECTOR),
    (L.Dense(3, use_bias=False), IMAGE),
    (L.EinsumDense("abc,cd->abd", output_shape=(None, 5), bias_axes="d", activation="relu"), SERIES),
    (L.DepthwiseConv1D(3, depth_multiplier=2), SERIES),
    (L.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2), IMAGE),
    (L.DepthwiseConv2D(3, dilation_rate=2, use_bias=False), IMAGE),
    (L.SeparableConv1D(3, 3), SERIES),
    (L.SeparableConv2D(3, 3, strides=2, padding="same", activation="relu"), IMAGE),
    (L.Cropping1D(2), SERIES),
    (L.Cropping2D(((1, 2), (0, 3))), IMAGE),
    (L.Cropping3D(1), VOLUME),
    (L.UpSampling1D(2), SERIES),
    *[(L.UpSampling2D((2, 3), interpolation=name), IMAGE) for name in ("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5")],
    (L.UpSampling3D(2), VOLUME),
    (L.ZeroPadding1D((1, 2)), SERIES),
    (L.ZeroPadding2D(((1, 2), (0, 3))), IMAGE),
    (L.ZeroPadding3D(1), VOLUME),
    (L.Flatten(), IMAGE),
    (L.Identity(), IMAGE),
    (L.Permute((3, 1, 2)), IMAGE),
    (L.RepeatVector(3), VECTOR),
    (L.Rescaling(1 / 127.5, offset=-1.0), IMAGE),
    (L.Rescaling([1.0, 2.0, 3.0, 4.0], offset=[0.0, 1.0, 2.0, 3.0]), IMAGE),
    (L.Reshape((4, -1)), IMAGE),
    *[(L.Resizing(5, 12, interpolation=name), IMAGE) for name in ("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5")],
    (L.Resizing(6, 3, crop_to_aspect_ratio=True), IMAGE),
    *[
        (getattr(L, f"Global{kind}Pooling{n}D")(keepdims=keep), s)
        for kind in ("Average", "Max")
        for n, s in enumerate((SERIES, IMAGE, VOLUME), 1)
        for keep in (0, 1)
    ],
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: value.name if isinstance(value, k3.Layer) else "")
def test_a_layer_has_the_same_outputs_and_weights_and_its_name(layer, shape):
    copy = converted(one(layer, shape))
    assert layer.name in [made.name for made in copy.layers]


MERGES = [
    L.Add(),
    L.Average(),
    L.Concatenate(),
    L.Concatenate(axis=1),
    L.Dot(axes=1),
    L.Dot(axes=2, normalize=True),
    L.Maximum(),
    L.Minimum(),
    L.Multiply(),
    L.Subtract(),
]


@pytest.mark.parametrize("layer", MERGES, ids=lambda layer: layer.name)
def test_a_layer_of_two_tensors_has_the_same_outputs(layer):
    converted(one(lambda x: layer([x, L.Conv1D(4, 1, name="other")(x)]), SERIES))


def test_every_layer_on_the_list_is_compared_here():
    assert {type(layer).__name__ for layer in [*MERGES, *(layer for layer, _ in (getattr(row, "values", row) for row in LAYERS))]} == keras3_layers.LAYERS


OPERATIONS = {
    "x + y": lambda x: x + L.Conv2D(4, 1)(x),
    "x + x": lambda x: x + x,
    "x + broadcast": lambda x: x + L.GlobalAveragePooling2D(keepdims=True)(x),
    "x - y": lambda x: x - L.Conv2D(4, 1)(x),
    "x * y": lambda x: ops.multiply(x, L.Conv2D(4, 1)(x)),
    "maximum": lambda x: ops.maximum(x, L.Conv2D(4, 1)(x)),
    "minimum": lambda x: ops.minimum(x, L.Conv2D(4, 1)(x)),
    "x + 2": lambda x: x + 2,
    "2 + x": lambda x: 2 + x,
    "x - 1.5": lambda x: x - 1.5,
    "1 - x": lambda x: 1 - x,
    "x * 0.5": lambda x: x * 0.5,
    "0.5 * x": lambda x: 0.5 * x,
    "x / 3": lambda x: x / 3,
    "divide": lambda x: ops.divide(x, np.float32(7)),
    "-x": lambda x: -x,
    "x * array": lambda x: x * np.array([1, 2, 3, 4], "float32"),
    "array - x": lambda x: ops.subtract(np.array([1, 2, 3, 4], "float32"), x),
    **{name: getattr(ops, name) for name in ("relu", "relu6", "silu", "swish", "sigmoid", "hard_sigmoid", "hard_silu", "hard_swish", "softmax", "tanh")},
    **{f"ops.{name}": getattr(ops, name) for name in ("leaky_relu", "elu", "selu", "softplus", "softsign", "exp")},
    **{f"activations.{name}": getattr(act, name) for name in ("relu", "relu6", "silu", "sigmoid", "hard_sigmoid", "softmax", "gelu", "leaky_relu", "tanh")},
    "relu max": lambda x: act.relu(x, max_value=2.0, negative_slope=0.1, threshold=0.5),
    "softmax axis": lambda x: ops.softmax(x, axis=1),
    "elu alpha": lambda x: ops.elu(x, alpha=0.5),
    "gelu exact": lambda x: ops.gelu(x, approximate=False),
    "clip": lambda x: ops.clip(x, 0, 4),
    "mean": lambda x: ops.mean(x, axis=(1, 2)),
    "mean keepdims": lambda x: ops.mean(x, axis=[-3, -2], keepdims=True),
    "max": lambda x: ops.max(x, axis=(1, 2)),
    "reshape": lambda x: ops.reshape(x, (-1, 8, 32)),
    "reshape flat": lambda x: ops.reshape(x, (-1, 256)),
    "squeeze": lambda x: ops.squeeze(L.GlobalAveragePooling2D(keepdims=True)(x), (1, 2)),
    "expand": lambda x: ops.expand_dims(L.Flatten()(x), 1),
    "transpose": lambda x: ops.transpose(x, (0, 3, 1, 2)),
    "concatenate": lambda x: ops.concatenate([x, L.Conv2D(2, 1)(x)], axis=-1),
    "twice": lambda x: (lambda op: op(op(x) * 2))(ops.hard_silu(x)._keras_history.operation),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_becomes_layers_with_the_same_outputs(name):
    converted(one(OPERATIONS[name]))


REFUSED_OPERATIONS = {
    "power": lambda x: x**2,
    "get_item": lambda x: x[:, ::2],
    "true_divide": lambda x: 2 / x,
    "divide": lambda x: ops.divide(x, x),
    "mean": lambda x: ops.mean(x, axis=-1),
    "max": lambda x: ops.max(x, axis=(1, 2), initial=1.0),
    "concatenate": lambda x: ops.concatenate([x, x], axis=0),
    "reshape": lambda x: ops.reshape(x, (-1, 16)),
    "expand_dims": lambda x: ops.expand_dims(x, 0),
    "clip": lambda x: ops.clip(x, -1, 1),
    "gelu": lambda x: ops.gelu(x, approximate=True),
    "add": lambda x: x + L.GlobalAveragePooling2D()(x),
    "subtract": lambda x: x - np.ones((3, 1, 1, 1, 1), "float32"),
    "multiply": lambda x: x * k3.Variable(2.0),
    "cast": lambda x: ops.cast(x, "int32"),
    "transpose": lambda x: ops.transpose(x, (3, 0, 1, 2)),
}


@pytest.mark.parametrize("name", REFUSED_OPERATIONS)
def test_an_operation_without_a_layer_is_refused_by_name(name):
    with pytest.raises(BadInput, match=f"^model: expected operations .*received '{name}[_0-9]*' .*; write it with Keras 3 layers"):
        from_keras3(one(REFUSED_OPERATIONS[name]))


def residual(shape=(8, 8, 3), classes=4):
    """Convolutions, BatchNorm, an addition, a global mean: a small image classifier."""
    x = k3.Input(shape, name="image")
    y = L.ReLU(name="stem_relu")(L.BatchNormalization(name="stem_bn")(L.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(x)))
    z = L.Conv2D(8, 3, padding="same", kernel_regularizer=k3.regularizers.L1L2(1e-4, 1e-3), name="conv")(y)
    y = L.ReLU(name="relu")(L.Add(name="add")([L.BatchNormalization(name="bn")(z), y]))
    return k3.Model(x, L.Dense(classes, name="logits")(L.GlobalAveragePooling2D(name="mean")(y)), name="residual")


@pytest.fixture(scope="module")
def trained():
    """The residual net after a step, which moves the BatchNorm statistics; nobody changes it."""
    model = residual()
    model.compile("adam", k3.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch(5 * RNG.normal(size=(16, 8, 8, 3)), RNG.integers(0, 4, 16))
    assert np.abs(model.get_layer("bn").moving_mean.numpy()).max() > 0
    return model


def nested():
    """A model in a Sequential in a model, two inputs, an inner model called twice, names that occur inside and outside."""
    a = k3.Input((4,), name="a")
    inner = k3.Model(a, L.Dense(4, activation="hard_silu", name="dense")(a), name="inner")
    middle = k3.Sequential([k3.Input((4,)), inner, L.BatchNormalization(name="norm"), L.Dense(4, name="end")], name="middle")
    x, y = k3.Input((4,), name="x"), k3.Input((4,), name="y")
    return k3.Model([x, y], L.Concatenate(name="join")([middle(x), inner(y), middle(L.Dense(4, name="outer")(y), training=False)]), name="whole")


def shared():
    """One layer called twice; its hard activation too."""
    x = k3.Input((3,), name="x")
    dense = L.Dense(3, activation="hard_sigmoid", name="twice")
    return k3.Model(x, dense(x) + dense(dense(inputs=x)))


def dictionaries():
    a, b = k3.Input((3,), name="a"), k3.Input((2,), name="b")
    joined = L.Concatenate(name="join")([L.Dense(2, name="left")(a), b])
    return k3.Model({"b": b, "a": a}, {"z": joined, "sum": [L.Dense(1, name="top")(joined), a * 2]})


def sequential():
    return k3.Sequential(
        [k3.Input((8, 8, 1)), L.Rescaling(1 / 255), L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(3, activation="softmax")], name="line"
    )


def several_sizes():
    """Image size open, batch fixed."""
    x = k3.Input((None, None, 3), batch_size=2, name="x")
    return k3.Model(x, L.GlobalMaxPooling2D()(L.Conv2D(4, 3)(x)))


def clashing_names():
    """A layer already has the name that an added one would take."""
    x = k3.Input((3,), name="x")
    y = L.Dense(3, activation="hard_silu", name="d")(x)
    return k3.Model(x, L.Dense(2, name="d_hard_silu")(L.ReLU(name="d_hard_silu_scale")(y)))


@pytest.mark.parametrize("make", [residual, nested, shared, dictionaries, sequential, clashing_names], ids=lambda make: make.__name__)
def test_a_network_has_the_same_outputs_weights_and_names(make):
    model = scramble(make())
    copy = converted(model)
    assert {layer.name for layer in layers(model)} <= {layer.name for layer in layers(copy)}


def test_an_open_image_size_and_a_fixed_batch_are_kept():
    copy = from_keras3(scramble(several_sizes()))
    assert copy.input_shape == (2, None, None, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: k3.applications.MobileNetV3Small((64, 64, 3), alpha=0.35, weights=None, minimalistic=False, classes=10),
        lambda: k3.applications.EfficientNetB0(input_shape=(64, 64, 3), weights=None, classes=10, classifier_activation=None),
    ],
    ids=["MobileNetV3Small", "EfficientNetB0"],
)
def test_a_network_of_keras_applications_has_the_same_outputs_and_weights(make):
    converted(make())


def test_trained_statistics_come_over(trained):
    copy = converted(trained)
    np.testing.assert_array_equal(copy.get_layer("bn").moving_mean, trained.get_layer("bn").moving_mean.numpy())


def test_a_shared_layer_is_one_layer():
    copy = from_keras3(shared())
    assert len(copy.get_layer("twice")._inbound_nodes) == 3 and len([layer for layer in copy.layers if layer.weights]) == 1


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@keras3_warns
def test_a_file_gives_what_the_model_gives(trained, tmp_path, suffix):
    path = tmp_path / f"ein Modell.{suffix}"
    trained.save(path)
    expected = from_keras3(trained).get_weights()
    for given in (path, str(path)):
        for a, b in zip(from_keras3(given).get_weights(), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_copy_can_be_saved_and_loaded_by_tf_keras(tmp_path):
    model = scramble(one(L.Conv2D(3, 3, activation="silu")))
    copy = from_keras3(model)
    copy.save(tmp_path / "copy.keras")
    again = k2.models.load_model(tmp_path / "copy.keras")
    assert_alike(model, again)


def test_regularizers_constraints_and_initializers_are_kept():
    layer = L.Conv2D(
        3,
        3,
        kernel_regularizer=k3.regularizers.L1L2(0.25, 0.5),
        bias_regularizer="l1",
        kernel_constraint=k3.constraints.MaxNorm(3),
        kernel_initializer="he_normal",
    )
    model = one(layer)
    copy = from_keras3(model)
    assert isinstance(copy.layers[1].kernel_regularizer, k2.regularizers.L1L2) and isinstance(copy.layers[1].bias_regularizer, k2.regularizers.L1)
    assert copy.layers[1].kernel_constraint.max_value == 3 and isinstance(copy.layers[1].kernel_initializer, k2.initializers.HeNormal)
    np.testing.assert_allclose(sum(copy.losses), sum(model.losses), rtol=1e-5)


def test_a_rescaling_by_an_array_is_one_by_its_numbers():
    converted(one(L.Rescaling(np.float32([0.5, 2.0, 3.0]), np.float32([0.0, 1.0, -1.0])), (8, 8, 3)))


def test_what_is_not_trained_stays_untrained():
    model = nested()
    model.get_layer("middle").trainable = False
    model.get_layer("middle").get_layer("end").trainable = True
    copy = converted(model)
    assert copy.get_layer("middle").get_layer("end").trainable and not copy.get_layer("middle").get_layer("norm").trainable
    assert [weight.name.split("/")[-2] for weight in copy.trainable_weights] == [weight.path.split("/")[-2] for weight in model.trainable_weights]


def test_a_call_with_training_false_is_kept():
    x = k3.Input((3,))
    copy = from_keras3(k3.Model(x, L.BatchNormalization(name="bn")(x, training=False)))
    copy(np.ones((4, 3), "float32"), training=True)
    assert not copy.get_layer("bn").moving_mean.numpy().any()


def test_the_model_itself_is_not_touched(trained):
    before, nodes = trained.get_weights(), sum(map(len, trained._nodes_by_depth.values()))
    from_keras3(trained)
    for a, b in zip(before, trained.get_weights()):
        np.testing.assert_array_equal(a, b)
    assert sum(map(len, trained._nodes_by_depth.values())) == nodes


def test_double_precision_is_kept():
    x = k3.Input((8,), name="x", dtype="float64")
    copy = converted(k3.Model(x, act.silu(L.Dense(4, activation="hard_silu", dtype="float64")(x) * 2)))
    assert copy.output.dtype == "float64"


def test_whole_numbers_go_in_as_they_are():
    x = k3.Input((4, 4, 3), name="x", dtype="uint8")
    copy = from_keras3(k3.Model(x, L.Conv2D(2, 3)(L.Rescaling(1 / 255)(x))))
    assert copy.input.dtype == "uint8" and from_keras3(k3.Model(x, x / 255)).output.dtype == "float32"


def test_it_is_quantized_like_a_tf_keras_model(trained):
    copy = from_keras3(trained)
    student = kerakd.quantize(copy, kerakd.Scheme(kerakd.Interval(4), kerakd.Interval(4)))
    images = RNG.normal(size=(16, 8, 8, 3)).astype("float32")
    kerakd.calibrate(student, images)
    expected, got = copy(images).numpy(), student(images).numpy()
    assert np.isfinite(got).all() and np.corrcoef(expected.ravel(), got.ravel())[0, 1] > 0.9
    assert graph.calls(copy)[0].layer.name == "stem"


class Custom(L.Dense):
    """A user's own layer."""


class Subclassed(k3.Model):
    def __init__(self):
        super().__init__(name="mine")
        self.dense = L.Dense(2)

    def call(self, x):
        return self.dense(x)


class Extended(k3.Sequential):
    def call(self, x):
        return super().call(x) + 1


def tf_keras_model():
    return k2.Sequential([k2.Input((3,)), k2.layers.Dense(2)], name="old")


REFUSED = {
    "custom": (lambda: one(Custom(3, name="own"), VECTOR), "'own' of the custom class test_keras3.Custom; write that layer"),
    "subclassed": (Subclassed, "'mine' of the subclass Subclassed; write it as keras.Model"),
    "subclassed sequential": (lambda: Extended([k3.Input((3,)), L.Dense(3)], name="plus"), "'plus' of the subclass Extended; write it"),
    "nested subclassed": (lambda: one(Subclassed(), VECTOR), "'mine' of the subclass Subclassed"),
    "unbuilt": (lambda: k3.Sequential([L.Dense(3)], name="loose"), "'loose', which has no layer graph; give it a keras.Input"),
    "tf_keras": (tf_keras_model, "'old', which is a tf_keras .* it needs nothing"),
    "number": (lambda: 3, "int; pass the built model"),
    "layer": (lambda: L.Dense(3), "Dense; pass the built model"),
    "attention": (lambda: one(lambda x: L.MultiHeadAttention(2, 4, name="mha")(x, x), SERIES), "'mha' of class MultiHeadAttention; take that layer out"),
    "lambda": (lambda: one(L.Lambda(lambda x: x, name="free"), VECTOR), "'free' of class Lambda"),
    "crop": (lambda: one(L.RandomCrop(4, 4, name="crop")), "'crop' of class RandomCrop"),  # Keras 3.15's does not crop at inference
    "channels first": (lambda: one(L.ZeroPadding2D(1, data_format="channels_first", name="pad")), "'channels_first' in layer 'pad'; build the model"),
    "renorm": (lambda: one(L.BatchNormalization(renorm=True, name="bn")), "renorm=True in layer 'bn'; change that"),
    "rms": (lambda: one(L.LayerNormalization(rms_scaling=True, name="n")), "rms_scaling=True in layer 'n'"),
    "contrast": (lambda: one(L.RandomContrast(0.1, value_range=(0, 1), name="c")), "value_range=.* in layer 'c'"),
    "half": (lambda: one(L.Dense(3, dtype="mixed_float16", name="d"), VECTOR), "'mixed_float16' in layer 'd'; build the model in float32"),
    "int8": (lambda: _with_int8(), "in layer 'd'; build the model in float32"),
    "antialias": (lambda: one(L.Resizing(4, 4, antialias=True, name="r")), "antialias=True in layer 'r'"),
    "padded": (lambda: one(L.Resizing(4, 8, pad_to_aspect_ratio=True, name="r")), "pad_to_aspect_ratio=True in layer 'r'"),
    "activity": (lambda: one(L.Dense(3, activity_regularizer="l2", name="d")), "activity_regularizer=.* in layer 'd'"),
    "lora": (lambda: one(_with_lora), "lora_rank=2 in layer 'd'"),
    "activation": (lambda: one(L.Dense(3, activation="log_softmax", name="d")), "'log_softmax' in layer 'd'; change it"),
    "own regularizer": (lambda: one(L.Dense(3, kernel_regularizer=_own_regularizer, name="d")), "kernel_regularizer=.* in layer 'd'"),
    "weighted activation": (lambda: one(L.Dense(3, activation=L.PReLU(name="p"), name="d"), VECTOR), "the layer 'p' as that of 'd'; put it behind"),
    "frozen weight": (lambda: _with_a_weight_changed(trainable=False), "kernel of 'd' frozen; freeze the layer"),
    "weight's regularizer": (lambda: _with_a_weight_changed(regularizer=k3.regularizers.L2(0.1)), "'kernel' of 'd' alone; give the layer"),
    "can't run": (lambda: one(lambda x: L.Dense(2)(L.Flatten()(ops.softmax(x, axis=(1, 2))))), r"\(.*\); change that layer"),
    "mask": (lambda: _with_mask(), "'s' called with mask="),
    "optional": (lambda: (lambda x: k3.Model(x, L.Dense(2)(x)))(k3.Input((3,), optional=True, name="x")), "'x' with optional=True"),
    "missing": (lambda: "no/such.keras", "'no/such.keras', where there is no file"),
}


def _with_mask():
    x, mask = k3.Input((3,), name="x"), k3.Input((3,), dtype="bool", name="mask")
    return k3.Model([x, mask], L.Softmax(name="s")(x, mask=mask))


def _with_a_weight_changed(**change):
    model = one(L.Dense(3, name="d"), VECTOR)
    for name, value in change.items():
        setattr(model.get_layer("d").kernel, name, value)
    return model


def _with_lora(x):
    layer = L.Dense(3, name="d")
    y = layer(x)
    layer.enable_lora(2)
    return y


def _with_int8():
    model = one(L.Dense(3, name="d"), VECTOR)
    model.get_layer("d").quantize("int8")
    return model


def _own_regularizer(weights):
    return ops.sum(weights)


@keras3_warns
@pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_rebuilt_is_refused_by_name(name):
    make, message = REFUSED[name]
    with pytest.raises(BadInput, match=f"^model: expected .*received .*(?:{message})") as caught:
        from_keras3(make())
    assert "\n" not in str(caught.value) and "; " in str(caught.value)


@keras3_warns
def test_a_file_that_is_no_model_is_refused(tmp_path):
    text, weights, archive = tmp_path / "a.keras", tmp_path / "b.weights.h5", tmp_path / "c.keras"
    text.write_text("no model")
    residual().save_weights(weights)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("metadata.json", json.dumps({"keras_version": "3.0.0"}))
    for path in (text, weights, archive):
        with pytest.raises(BadInput, match=r"^model: expected a .keras or .h5 file that Keras 3 can load, received .*; save the model with Keras 3 as .keras"):
            from_keras3(path)


@keras3_warns
def test_a_file_of_tf_keras_needs_nothing(tmp_path):
    for name in ("old.keras", "old.h5"):
        tf_keras_model().save(tmp_path / name)
        with pytest.raises(BadInput, match=r"received .* of Keras 2.*it needs nothing but tf_keras.models.load_model"):
            from_keras3(tmp_path / name)


@keras3_warns
def test_a_file_with_a_custom_layer_is_refused_in_one_line(tmp_path):
    one(Custom(3, name="own"), VECTOR).save(tmp_path / "own.keras")
    with pytest.raises(BadInput, match="Custom.*; save the model with Keras 3 as .keras") as caught:
        from_keras3(tmp_path / "own.keras")
    assert "\n" not in str(caught.value)


@keras3_warns
def test_an_h5_file_with_operations_which_keras_3_cannot_load_is_refused(tmp_path):
    one(lambda x: x * 2).save(tmp_path / "a.h5")
    with pytest.raises(BadInput, match="cannot hold operations"):
        from_keras3(tmp_path / "a.h5")


def test_a_switched_off_model_stays_off(trained):
    model = residual()
    model.trainable = False
    assert from_keras3(model).trainable_weights == []


def test_other_outputs_are_refused_at_the_first_layer_that_has_them(monkeypatch):
    monkeypatch.setitem(keras3_layers.ACTIVATIONS, "silu", "relu")
    x = k3.Input((3,), name="x")
    model = k3.Model(x, L.Dense(2, name="third")(L.Dense(3, activation="silu", name="second")(L.Dense(3, name="first")(x))))
    with pytest.raises(BadInput, match="received others from 'second' on"):
        from_keras3(model)


def test_another_keras_is_refused(monkeypatch):
    monkeypatch.setattr(k3, "__version__", "2.15.0")
    with pytest.raises(BadInput, match="received version 2.15.0; install keras 3"):
        from_keras3("any.keras")


def test_importing_the_module_does_not_import_keras_3():
    code = "import sys, kerakd, kerakd.keras3; assert 'keras' not in sys.modules"  # TensorFlow itself imports it unless told so
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT), "TF_USE_LEGACY_KERAS": "1"}, check=True)


def test_the_last_check_measures_each_output_by_its_own_size():
    assert not check._same(np.float32([[0.01], [100.0]]), tf.constant([[0.0105], [100.0]]), k3)

"""Laws of recasting: the same network, other arithmetic, and back."""

import numpy as np
import pytest
import tf_keras as keras

from kerakd import models, scheme
from kerakd.calibration import calibrate
from kerakd.models.bit import StandardizedConv2D
from kerakd.quantizers import Interval
from kerakd.recast import recast
from kerakd.wrapper import QuantizedActivation

L = keras.layers
X = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)


def nested():
    inner = keras.Sequential([L.Conv2D(4, 3, input_shape=(16, 16, 3)), L.BatchNormalization(), L.ReLU()])
    x = keras.Input((16, 16, 3))
    return keras.Model(x, L.Dense(5)(L.GlobalAveragePooling2D()(inner(x))))


def student():
    made = scheme.quantize(models.build("mobilenet_v2", (16, 16, 3), 5, 0.25, shallow=True), scheme.Scheme(Interval(4), Interval(4)))
    calibrate(made, X)
    return made


@pytest.mark.parametrize("make", [nested, student])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_network_computes_in_half_precision_and_comes_back_as_it_was(make, policy):
    model = make()
    half = recast(model, policy, synchronized=True)
    layers = list(half._flatten_layers())
    assert policy.removeprefix("mixed_") in {layer.compute_dtype for layer in layers}
    assert half.outputs[0].dtype == half(X).dtype == "float32" and half.layers[-1].compute_dtype == "float32"
    assert {weight.dtype.name for weight in half.weights if weight.dtype.is_floating} == {"float32"}
    assert {layer.synchronized for layer in layers if isinstance(layer, L.BatchNormalization)} == {True}
    np.testing.assert_allclose(half(X), model(X), atol=0.1)
    back = recast(half)
    assert back.get_config() == model.get_config()
    np.testing.assert_array_equal(back(X), model(X))
    for mine, theirs in zip(model.get_weights(), half.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_small_kernels_are_standardized_in_float32():
    """Their variance is none in float16."""
    x = keras.Input((16, 16, 3))
    model = keras.Model(
        x, L.Dense(5)(L.GlobalAveragePooling2D()(L.ReLU()(StandardizedConv2D(4, 3, kernel_initializer=keras.initializers.RandomNormal(0, 2e-4, 1))(x))))
    )
    np.testing.assert_allclose(recast(model, "mixed_float16")(X), model(X), rtol=0.01, atol=0.01)


def around_depthwise():
    x = keras.Input((16, 16, 3))
    y = L.ReLU(name="before")(L.BatchNormalization(name="normalized")(L.Conv2D(32, 3, name="kernel")(x)))
    y = L.BatchNormalization(name="after")(L.DepthwiseConv2D(3, strides=2, name="strided")(L.ZeroPadding2D(name="padding")(y)))
    y = L.Conv2D(24, 1, name="point")(L.ReLU(6.0, name="afterwards")(y))
    y = L.BatchNormalization(name="odd")(y)
    y = L.DepthwiseConv2D(3, name="depthwise")(L.Conv2D(16, 1, name="even")(y))
    z = L.BatchNormalization(name="operand")(L.DepthwiseConv2D(3, 2, "same", name="second")(y))
    z = z * L.Conv2D(16, 3, 2, "same", name="other")(y)  # an operator on tensors, which takes two of one precision
    z = L.BatchNormalization(name="of_vectors")(L.Dense(24, name="dense")(L.GlobalAveragePooling2D(name="pool")(z)))  # no op of oneDNN's
    return keras.Model(x, L.Dense(5, name="logits")(L.ReLU(name="last")(z)))


def float32_layers(model):
    return {layer.name for layer in model._flatten_layers(include_self=False) if layer.compute_dtype == "float32" and not isinstance(layer, L.InputLayer)}


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_on_a_cpu_strided_depthwise_convolutions_and_their_neighbours_stay_float32(policy):
    model = around_depthwise()
    half = recast(model, policy)
    assert float32_layers(half) == {"before", "padding", "strided", "after", "afterwards", "odd", "second", "logits"}
    np.testing.assert_allclose(half(X), model(X), atol=0.1)


def test_quantizers_beside_strided_depthwise_convolutions_stay_float32_with_them():
    layers = list(recast(student(), "mixed_bfloat16")._flatten_layers())
    depthwise = [layer.layer for layer in layers if isinstance(getattr(layer, "layer", None), L.DepthwiseConv2D)]
    wide = [layer for layer in depthwise if layer.compute_dtype == "float32"]
    assert wide == [layer for layer in depthwise if max(layer.strides) > 1] and len(wide) < len(depthwise)
    assert sum(isinstance(layer, QuantizedActivation) and layer.compute_dtype == "float32" for layer in layers) >= 2 * len(wide)


def test_what_is_right_before_the_last_layer_is_quantized_in_float32():
    """In 16 bits the error of each of a grid's values is always the same, and no BatchNorm follows in which it does not matter."""
    model = scheme.quantize(models.build("resnet8", (16, 16, 3), 5), scheme.Scheme(Interval(4), Interval(4)))
    ends = {"stage3_block1_2_bn_out", "stage3_block1_s_bn_out", "stage3_block1_add", "stage3_block1_relu_out", "pool", "pool_out", "logits", "logits_out"}
    assert float32_layers(recast(model, "mixed_bfloat16")) == ends


class Gate(L.Layer):
    """Keras casts its first argument only."""

    def call(self, x, gate):
        return x * gate


def a_shared_activation(x):
    shared = L.ReLU()
    y = shared(L.BatchNormalization()(L.DepthwiseConv2D(3, 2, name="strided")(shared(x))))
    return shared(L.Conv2D(16, 1)(y)) + y


def a_shared_norm(x):
    shared = L.BatchNormalization()
    y = shared(L.Conv2D(24, 1)(x))
    return shared(L.Conv2D(24, 1)(y)) + y


def a_shared_depthwise(x):
    shared = L.DepthwiseConv2D(1, 2)
    return shared(shared(x)) + L.Conv2D(16, 1, 4)(x)


def a_nested_model_twice(x):
    inner = keras.Sequential([L.DepthwiseConv2D(1, 2, input_shape=x.shape[1:]), L.BatchNormalization(), L.ReLU()])
    other = keras.Sequential([L.Conv2D(16, 1, 2, input_shape=x.shape[1:])])
    return inner(L.Conv2D(16, 1)(x)) + inner(x) * other(x)


def one_name_in_two_models(x):
    inner = keras.Sequential([L.DepthwiseConv2D(1, 2, name="one", input_shape=x.shape[1:])])
    return inner(x) * keras.Sequential([L.Conv2D(16, 1, 2, name="one", input_shape=x.shape[1:])])(x)


def a_gate_that_is_wide(x):
    return Gate()(L.Conv2D(16, 1, 2)(x), L.Activation("sigmoid")(L.BatchNormalization()(L.DepthwiseConv2D(1, 2)(x))))


def a_gate_before(x):
    return L.DepthwiseConv2D(1, 2)(Gate()(x, L.Conv2D(16, 1, activation="sigmoid")(x)))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize(
    "body", [a_shared_activation, a_shared_norm, a_shared_depthwise, a_nested_model_twice, one_name_in_two_models, a_gate_that_is_wide, a_gate_before]
)
def test_no_layer_meets_tensors_of_two_precisions(body, policy):
    x = keras.Input((16, 16, 3))
    model = keras.Model(x, L.Dense(5)(L.GlobalAveragePooling2D()(body(L.Conv2D(16, 3)(x)))))
    np.testing.assert_allclose(recast(model, policy)(X), model(X), atol=0.1)

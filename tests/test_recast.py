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
    y = L.BatchNormalization(name="after")(L.DepthwiseConv2D(3, name="depthwise")(y))
    y = L.Conv2D(24, 1, name="point")(L.ReLU(6.0, name="afterwards")(y))
    y = L.BatchNormalization(name="odd")(y)
    z = L.BatchNormalization(name="operand")(L.DepthwiseConv2D(3, name="second")(y))
    z = z * L.Conv2D(24, 3, name="other")(y)  # an operator on tensors, which takes two of one precision
    return keras.Model(x, L.Dense(5, name="logits")(L.GlobalAveragePooling2D(name="pool")(z)))


def test_on_a_cpu_depthwise_convolutions_and_their_neighbours_stay_float32():
    model = around_depthwise()
    half = recast(model, "mixed_bfloat16")
    wide = {layer.name for layer in half.layers[1:] if layer.compute_dtype == "float32"}
    assert wide == {"before", "depthwise", "after", "afterwards", "odd", "second", "logits"}
    np.testing.assert_allclose(half(X), model(X), atol=0.1)


def test_quantizers_around_depthwise_convolutions_stay_float32_with_them():
    layers = list(recast(student(), "mixed_bfloat16")._flatten_layers())
    depthwise = [layer for layer in layers if isinstance(layer, L.DepthwiseConv2D)]
    assert {layer.compute_dtype for layer in depthwise} == {"float32"}
    assert len({layer.name for layer in layers if isinstance(layer, QuantizedActivation) and layer.compute_dtype == "float32"}) >= 2 * len(depthwise)

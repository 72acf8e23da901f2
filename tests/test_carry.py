"""Laws of carried gradients: the same numbers as from the large tensors, wherever a network allows it, and nothing left behind."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kerakd import models, scheme
from kerakd.calibration import calibrate
from kerakd.carry import Carry
from kerakd.distiller import Distiller
from kerakd.quantizers import Interval, Pact, Ternary
from kerakd.recast import recast

L = keras.layers
X = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
Y = np.arange(8) % 5


W4 = A4 = Interval(4)


def student(net, weights=W4, activations=A4):
    made = scheme.quantize(net, scheme.Scheme(weights, activations))
    calibrate(made, X)
    random = np.random.default_rng(1)
    for variable in made.trainable_variables:  # values that a trained network could have, with much that is clipped
        if "gamma" in variable.name:
            variable.assign(random.uniform(-1.5, 1.5, variable.shape))
        elif "beta" in variable.name:
            variable.assign(random.normal(size=variable.shape) * 0.2)
        elif "activation_interval" in variable.name:
            variable.assign(variable * 0.5)
    return made


def gradients(model, carried):
    carry = Carry(model)

    @tf.function
    def run():
        with tf.GradientTape() as tape, carry() if carried else contextlib.nullcontext():
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(Y, model(X, training=True)))
        return loss, tape.gradient(loss, model.trainable_variables)

    return run()


def branches(norm=None):
    """A value that a convolution and an addition read, one that two convolutions read, a pool between, an unnormalized convolution."""
    norm = norm or L.BatchNormalization
    x = keras.Input((16, 16, 3))
    y = L.ReLU()(norm()(L.Conv2D(4, 3, padding="same", name="first")(x)))
    a = L.ReLU()(norm()(L.Conv2D(4, 3, padding="same", name="a")(y)))
    y = L.ReLU()(L.Add()([y, a]))
    z = L.Add()([L.Conv2D(6, 1, name="b")(y), norm()(L.DepthwiseConv2D(3, padding="same", name="c")(L.Conv2D(6, 3, padding="same", name="d")(y)))])
    z = L.MaxPooling2D()(L.ReLU(6.0)(z))
    return keras.Model(x, L.Dense(5)(L.Flatten()(L.ReLU()(L.Conv2D(4, 3, name="e")(z)))))


def shared():
    """A convolution and a BatchNorm that are called twice, two tensors of a concatenation, which share a quantizer."""
    x = keras.Input((16, 16, 3))
    conv, norm = L.Conv2D(4, 3, padding="same", name="twice"), L.BatchNormalization(name="twice_norm")
    y = L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, padding="same", name="first")(x)))
    y = L.ReLU()(L.BatchNormalization()(conv(y)))
    y = L.ReLU()(norm(conv(y)))
    y = L.ReLU()(norm(L.Conv2D(4, 3, padding="same", name="between")(y)))
    normed, plain = L.BatchNormalization()(L.Conv2D(4, 3, name="left")(y)), L.Conv2D(4, 3, name="right")(y)
    y = L.Conv2D(4, 3, name="joined")(L.Concatenate()([L.ReLU()(normed), L.ReLU()(plain)]))
    return keras.Model(x, L.Dense(5)(L.Flatten()(L.ReLU()(y))))


NETS = {
    "shared": shared,
    "resnet": lambda: models.build("resnet8", (16, 16, 3), 5, 0.5),
    "mobilenet_v2": lambda: models.build("mobilenet_v2", (16, 16, 3), 5, 0.25, shallow=True),
    "bit": lambda: models.build("bit_r50x1", (16, 16, 3), 5, 0.125, shallow=True),
    "branches": branches,
    "no gamma": lambda: branches(lambda: L.BatchNormalization(scale=False)),
}


@pytest.mark.parametrize(("name", "scaled"), [(name, name in ("branches", "mobilenet_v2")) for name in NETS] + [("branches", False)])
def test_the_gradients_are_those_of_the_large_tensors(name, scaled):
    model = student(NETS[name](), activations=Interval(4, gradient_scale=scaled))
    (loss, plain), (same, carried) = gradients(model, False), gradients(model, True)
    assert float(loss) == float(same)
    largest = max(float(tf.abs(g)) for v, g in zip(model.trainable_variables, plain, strict=True) if "activation_interval" in v.name)
    for variable, a, b in zip(model.trainable_variables, plain, carried, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4 * largest if "interval" in variable.name else 1e-6, err_msg=variable.name)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_steps_are_those_that_the_quantizers_compute_with_where_an_interval_is_below_zero(policy):
    model = recast(student(branches()), policy)
    carry = Carry(model)
    assert carry.readers and carry.norms
    for layer, step, _ in [*carry.readers, *carry.norms]:
        layer.quantizer_variables["interval"].assign(-0.01)
        assert float(step()) == float(layer.quantizer.step(tf.zeros((), layer.compute_dtype), layer.quantizer_variables))


def test_a_tensor_that_a_hint_reads_is_not_carried():
    net = branches()
    model = student(net)
    name = next(layer.name for layer, *_ in Carry(model).readers)
    norm = Carry(model).norms[0][2].name
    distiller = Distiller(student=model, teacher=net, hints=[(name, name.removesuffix("_out")), (norm, norm)], hint_loss="attention")
    assert name not in [layer.name for layer, *_ in distiller.carry.readers] and norm not in [last.name for *_, last in distiller.carry.norms]
    assert distiller.carry.readers and distiller.carry.norms


@pytest.mark.parametrize(("name", "readers", "norms"), [("resnet", 6, 9), ("mobilenet_v2", 5, 7), ("branches", 2, 3), ("no gamma", 2, 0)])
def test_sums_are_carried_where_neighbours_know_them(name, readers, norms):
    carry = Carry(student(NETS[name]()))
    assert (len(carry.readers), len(carry.norms)) == (readers, norms)


@pytest.mark.parametrize("activations", [Pact(4), Interval(4, learned=False)], ids=["pact", "fixed"])
def test_other_quantizers_keep_their_own_gradients(activations):
    carry = Carry(student(NETS["branches"](), Ternary(), activations))
    assert not [layer for layer, *_ in carry.readers + carry.norms if layer.quantizer == activations]


def test_nothing_is_left_behind():
    model = student(branches())
    carry = Carry(model)
    before = [dict(vars(layer)) for layer in model._flatten_layers()]
    with pytest.raises(ZeroDivisionError), carry():
        model(X, training=False)
        raise ZeroDivisionError
    for layer, attributes in zip(model._flatten_layers(), before, strict=True):
        assert {name: value for name, value in vars(layer).items() if name in ("gamma", "beta", "_weight_vars", "carries", "carried")}.keys() <= {
            *attributes,
            "carries",
            "carried",
        }
        assert getattr(layer, "carried", ()) == () and getattr(layer, "carries", None) is None
        assert all(vars(layer)[name] is attributes[name] for name in ("gamma", "beta", "_weight_vars") if name in attributes)


def test_a_batchnorm_without_an_offset_carries_nothing():
    x = keras.Input((8, 8, 2))
    y = L.ReLU()(L.BatchNormalization(center=False)(L.Conv2D(3, 3)(x)))
    net = keras.Model(x, L.Dense(2)(L.Flatten()(L.Conv2D(3, 3, activation="relu")(y))))
    student = scheme.quantize(net, scheme.Scheme(Interval(4), Interval(4)))
    images = np.float32(np.random.default_rng(0).normal(size=(4, 8, 8, 2)))
    calibrate(student, images)
    carry = Carry(student)
    assert carry.readers and not carry.norms
    with carry():
        student(images)

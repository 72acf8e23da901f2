"""Lint names what a file would not have, each trap by a model that has it and no other, and says nothing of one that is exact."""

import dataclasses

import numpy as np
import pytest
import tf_keras as keras

import kerakd
from kerakd.errors import BadInput
from kerakd.tflite import lint

L = keras.layers
SCHEME = kerakd.Scheme(kerakd.Interval(4), kerakd.Interval(4))


def sequential(*layers, shape=(8, 8, 3)):
    return keras.Sequential([keras.Input(shape), *layers])


def clean():
    inputs = keras.Input((8, 8, 3))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, padding="same")(inputs)))
    x = L.Add()([x, L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same")(x))])
    x = L.Multiply()([x, L.Conv2D(4, 1, activation="sigmoid")(L.GlobalAveragePooling2D(keepdims=True)(x))])
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(L.Concatenate()([L.MaxPooling2D()(x), L.AveragePooling2D()(x)]))))


def two_headed():
    inputs = keras.Input((4,))
    return keras.Model(inputs, [L.Dense(2)(inputs), L.Dense(3)(inputs)])


def twice():
    inputs, layer = keras.Input((8, 8, 3)), L.Conv2D(3, 3, padding="same", name="twice")
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(layer(layer(inputs)))))


def norm_twice():
    inputs, norm = keras.Input((8, 8, 3)), L.BatchNormalization(name="norm")
    x = L.ReLU()(norm(L.MaxPooling2D()(L.Conv2D(4, 3)(inputs))))
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(norm(L.MaxPooling2D()(x)))))


def dead():
    net = sequential(L.Conv2D(4, 3), L.BatchNormalization(name="norm"), L.ReLU(), L.Flatten(), L.Dense(2))
    net.get_layer("norm").gamma.assign([1, 0, 1e-9, 1])
    return net


def no_activations(pattern):
    return kerakd.Scheme(kerakd.Interval(4), kerakd.Interval(4), overrides={pattern: kerakd.Scheme(kerakd.Interval(4), None)})


def simple(*layers):
    return lambda: sequential(L.Conv2D(3, 2), *layers, L.Flatten(), L.Dense(2))


def rows_of_images():
    return sequential(L.Conv1D(3, 3, name="c"), L.Flatten(), L.Dense(2), shape=(2, 8, 3))


def cropped():
    return sequential(L.RandomCrop(6, 6, name="crop"), L.Conv2D(3, 3), L.Flatten(), L.Dense(2))


def three():
    return sequential(L.Conv2D(3, 3, name="a"), L.Conv2D(3, 3, name="b"), L.Flatten(), L.Dense(2))


@dataclasses.dataclass(frozen=True, eq=True)
class Lopsided(kerakd.Interval):
    """As two's complement has them."""

    def levels(self):
        low, high = super().levels()
        return low - 1, high


FLOAT_ENDS = kerakd.Scheme(kerakd.Interval(4), kerakd.Interval(4), first=None)
TRAPS = {
    "two outputs": (two_headed, SCHEME, {"model": "1 inputs and 2 outputs"}),
    "float kernel": (three, FLOAT_ENDS, {"a": "a float kernel"}),
    "float tensor": (three, no_activations("^a$"), {"a": "a float output", "b": "a float input"}),
    "wide codes": (three, kerakd.Scheme(kerakd.DoReFa(8), kerakd.Interval(4)), {"b": "codes up to 255"}),
    "lopsided codes": (three, kerakd.Scheme(Lopsided(4), kerakd.Interval(4)), {"b": "codes from -8 to 7, of which a negative gamma turns the sign"}),
    "called twice": (twice, SCHEME, {"twice": "called 2 times"}),
    "norm called twice": (norm_twice, SCHEME, {"norm": "called 2 times"}),
    "float norm": (simple(L.LayerNormalization(name="ln")), SCHEME, {"ln": "LayerNormalization stays float between integers"}),
    "softmax": (simple(L.Softmax(name="sm")), SCHEME, {"sm": "Softmax stays float between integers"}),
    "random crop": (cropped, SCHEME, {"crop": "a RandomCrop, which no file holds"}),
    "unknown": (simple(L.LeakyReLU(name="leaks")), SCHEME, {"leaks": "LeakyReLU is not known"}),
    "rows of images": (rows_of_images, SCHEME, {"c": "a Conv1D of images"}),
    "padded average": (simple(L.AveragePooling2D(2, padding="same", name="p")), SCHEME, {"p": "average pooling with padding"}),
    "dead channels": (dead, SCHEME, {"norm": "2 of 4 channels"}),
}


def test_an_exact_model_has_no_finding():
    student = kerakd.quantize(clean(), SCHEME)
    assert lint(student) == []
    kerakd.calibrate(student, np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32))
    assert lint(student) == [] and kerakd.lint is lint


@pytest.mark.parametrize(("make", "scheme", "expected"), TRAPS.values(), ids=TRAPS)
def test_each_trap_is_named_with_a_remedy_and_nothing_else_is(make, scheme, expected):
    student = kerakd.quantize(make(), scheme)
    found = lint(student)
    names = {student.name if name == "model" else name: words for name, words in expected.items()}
    assert [finding.layer for finding in found] == list(names)
    assert all(names[finding.layer] in finding.problem and finding.remedy for finding in found)
    assert str(found[0]) == f"{found[0].layer}: {found[0].problem}; {found[0].remedy}"


def test_a_finding_is_what_the_export_does():
    """Models with a refusal among their findings are refused; the others convert."""
    for name, (make, scheme, _) in TRAPS.items():
        student = kerakd.quantize(make(), scheme)
        kerakd.calibrate(student, np.random.default_rng(0).normal(size=(8, *student.input_shape[1:])).astype(np.float32))
        if name in ("float kernel", "float norm", "softmax", "unknown", "dead channels"):
            kerakd.to_tflite(student)
            continue
        with pytest.raises(BadInput):
            kerakd.to_tflite(student, "int4")


@pytest.mark.parametrize("what, layer", [({"overrides": {"^b$": kerakd.Scheme(None, kerakd.Interval(4))}}, "b"), ({"last": None}, "dense")])
def test_a_kernel_that_the_scheme_leaves_float_is_no_trained_one_in_the_proof(what, layer):
    keras.backend.clear_session()
    images = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
    student = kerakd.quantize(three(), kerakd.Scheme(kerakd.Interval(4), kerakd.Interval(4), **what))
    kerakd.calibrate(student, images)
    assert [finding.layer for finding in lint(student)] == [layer]
    proof = kerakd.verify(student, kerakd.to_tflite(student), images)
    assert [name.split("/")[0] for name in proof.foreign_kernels] == [layer] and not proof.exact
    assert f"float ones that the converter rounded to 8 bits: {layer}/" in str(proof)
    whole = kerakd.quantize(three(), kerakd.Scheme(kerakd.Interval(4), kerakd.Interval(4)))
    kerakd.calibrate(whole, images)
    assert kerakd.verify(whole, kerakd.to_tflite(whole, "int4"), images).foreign_kernels == []


def test_a_subclassed_model_is_refused():
    with pytest.raises(BadInput, match="expected a tf_keras"):
        lint("model")

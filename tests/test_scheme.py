"""Laws of the scheme: which tensor gets which quantizer, what calibration finds, what survives a file, refusals."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tensorflow_model_optimization.quantization import keras as tfmot

import kerakd
from kerakd import calibration, models
from kerakd.calibration import RULES, calibrate
from kerakd.errors import BadInput
from kerakd.quantizers import DoReFa, Interval, KBit, Pact, Ternary
from kerakd.scheme import Scheme, quantize
from kerakd.wrapper import LayerConfig, QuantizedActivation, QuantizedLayer, interval_variables

L = keras.layers
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(8, 8, 8, 1)).astype(np.float32)
NOTHING = Scheme(None, None, None, None)
UNSIGNED, SIGNED = Interval(4, signed=False, narrow=False), Interval(8, narrow=False)
IMAGE = Interval(8, narrow=False, learned=False)  # the input: images keep their range
UNSIGNED_8 = Interval(8, signed=False, narrow=False)


def resnet():
    return models.build("resnet8", (8, 8, 1), 10, 0.25)


def dense(units):
    return keras.Sequential([keras.Input((4,)), L.Dense(units, kernel_initializer=keras.initializers.GlorotUniform(0), name="only")])


def nested():
    x = keras.Input((8, 8, 1))
    body = keras.Sequential([keras.Input((8, 8, 1)), L.Conv2D(3, 3, name="c1"), L.ReLU(name="r1"), L.Conv2D(3, 3, name="c2")], name="body")
    return keras.Model(x, L.Dense(10, name="head")(L.Flatten(name="flat")(body(x))))


def shared():
    x = keras.Input((8, 8, 1))
    twice = L.Conv2D(1, 3, padding="same", activation="relu", name="twice")
    return keras.Model(x, L.Dense(10, name="head")(L.Flatten(name="flat")(twice(twice(x)))))


def two_inputs():
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    joined = L.Concatenate(name="join")([L.Dense(5, activation="relu", name="left")(a), L.Dense(5, name="right")(b)])
    return keras.Model([a, b], L.Dense(2, name="head")(joined))


def depthwise():
    return keras.Sequential([keras.Input((8, 8, 1)), L.Conv2D(3, 3, name="c"), L.DepthwiseConv2D(3, name="d"), L.Flatten(), L.Dense(2, name="head")])


def data(model):
    arrays = [RNG.normal(size=(8, *ref.shape[1:])).astype(np.float32) for ref in model.inputs]
    return arrays if len(arrays) > 1 else arrays[0]


def kernels(model):
    return {layer.name: layer.kernels[0][1] for layer in model.layers if isinstance(layer, QuantizedLayer)}


def activations(model):
    return {layer.name: layer.quantizer for layer in model.layers if isinstance(layer, QuantizedActivation)}


def interval(model, name):
    layer = model.get_layer(name)
    return (layer.kernels[0][2] if isinstance(layer, QuantizedLayer) else layer.quantizer_variables)["interval"].numpy()


# ---- Which tensor gets what ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [Ternary(), Ternary(learned=True), KBit(4), Interval(2), Interval(4, per_channel=True)], ids=repr)
def test_first_and_last_weighted_layers_have_8_bits_and_the_rest_the_schemes(weights):
    found = kernels(quantize(resnet(), Scheme(weights, None)))
    assert len(found) == 10 and found.pop("conv") == found.pop("logits") == Interval(8)
    assert set(found.values()) == {weights}


def test_first_and_last_take_their_own_bits_or_stay_float():
    found = kernels(quantize(resnet(), Scheme(None, None, first=5, last=3)))
    assert found == {"conv": Interval(5), "logits": Interval(3)}
    assert kernels(quantize(resnet(), Scheme(Ternary(), None, first=None, last=None))).keys().isdisjoint({"conv", "logits"})


def test_a_residual_net_is_quantized_after_the_relu_at_the_additions_operands_and_at_the_ends_and_nowhere_else():
    relus = ["conv_relu"] + [f"stage{s}_block1_{name}" for s in (1, 2, 3) for name in ("1_relu", "relu")]
    operands = ["stage1_block1_2_bn", "stage2_block1_2_bn", "stage2_block1_s_bn", "stage3_block1_2_bn", "stage3_block1_s_bn"]
    expected = {f"{name}_out": UNSIGNED for name in relus} | {f"{name}_out": SIGNED for name in operands}
    expected |= {"image_out": IMAGE, "pool_out": UNSIGNED_8, "logits_out": SIGNED}
    assert activations(quantize(resnet(), Scheme(None, Interval(4)))) == expected


@pytest.mark.parametrize("told", [{"sums": 6}, {"overrides": {"^conv_relu": Scheme(None, Interval(2), sums=6)}}], ids=["scheme", "override"])
def test_what_additions_read_has_the_bits_of_sums_and_kernels_read_it_narrowed(told):
    plain = quantize(resnet(), Scheme(Ternary(), Interval(2)))
    student = quantize(resnet(), Scheme(Ternary(), Interval(2), **told))
    expected = activations(plain) | {"conv_relu_out": Interval(6, signed=False, narrow=False), "conv_relu_narrow_out": activations(plain)["conv_relu_out"]}
    assert activations(student) == expected
    calibrate(student, IMAGES)
    added, read = (keras.Model(student.inputs, student.get_layer(name).input)(IMAGES) for name in ("stage1_block1_add", "stage1_block1_conv1"))
    wide = keras.Model(student.inputs, student.get_layer("stage1_block1_add").input[1])(IMAGES)
    assert len(np.unique(read)) <= 4 < len(np.unique(wide)) <= 64 and len(added) == 2


def test_kernels_that_read_one_sum_share_what_narrows_it_past_a_pooling_too():
    inputs = keras.Input((8, 8, 2))
    x = L.MaxPooling2D(2, name="pool")(L.ReLU(name="relu")(L.Conv2D(3, 3, name="first")(inputs)))
    x = L.Add(name="add")([x, L.Conv2D(3, 1, name="a")(x), L.Conv2D(3, 1, name="b")(x)])
    model = keras.Model(inputs, L.Dense(2, name="head")(L.Flatten()(x)))
    student = quantize(model, Scheme(Ternary(), Interval(3), sums=8))
    assert [name for name in activations(student) if "narrow" in name] == ["pool_narrow_out"]
    assert {node.layer.name for node in student.get_layer("pool_narrow_out")._outbound_nodes} == {"a", "b"}


def test_tensors_of_a_concatenation_are_not_widened_by_sums():
    inputs = keras.Input((8, 8, 2))
    a, b = (L.Conv2D(3, 3, padding="same", activation="relu", name=name)(inputs) for name in "ab")
    x = L.Add()([a, L.Conv2D(3, 1, name="c")(a)])
    x = L.Flatten()(L.Concatenate()([a, b, x]))
    model = keras.Model(inputs, L.Dense(2)(x))
    assert activations(quantize(model, Scheme(Ternary(), Interval(3), sums=8))) == activations(quantize(model, Scheme(Ternary(), Interval(3))))


@pytest.mark.parametrize("more", [{"sums": 4}, {"sums": 8, "overrides": {"": Scheme(Ternary(), Interval(4))}}], ids=["no more bits", "override"])
def test_nothing_is_narrowed_where_sums_have_no_more_bits_or_an_override_says_otherwise(more):
    assert (
        activations(quantize(resnet(), Scheme(Ternary(), Interval(4), **more))).keys() == activations(quantize(resnet(), Scheme(Ternary(), Interval(4)))).keys()
    )


def test_nothing_stands_between_what_one_integer_operation_computes():
    student = quantize(resnet(), Scheme(Ternary(), Interval(4)))
    for layer in student.layers:
        if isinstance(layer, QuantizedActivation):
            reads = layer._inbound_nodes[0].inbound_layers
            read_by = {type(node.layer) for node in layer._outbound_nodes}
            assert L.BatchNormalization not in read_by
            assert L.ReLU not in read_by, reads.name


def test_an_unsigned_quantizer_is_the_relu_before_it_bounded_or_not():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2))
    x = L.ReLU(6.0, name="r6")(L.Conv2D(3, 3, name="c1")(inputs))
    x = L.ReLU(name="r")(L.Conv2D(3, 3, name="c2")(x))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))
    student = quantize(model, Scheme(None, Interval(8)))
    assert not any(isinstance(layer, L.ReLU) for layer in student.layers)
    assert (student.get_layer("r6_out").bound, student.get_layer("r_out").bound) == (6.0, None)
    images = 40 * RNG.normal(size=(64, 8, 8, 2)).astype(np.float32)
    calibrate(student, images)
    assert interval(student, "r6_out") == 6.0 and interval(student, "r_out") > 6
    np.testing.assert_allclose(student(images), model(images), atol=0.08 * np.abs(model(images)).max())
    kept = quantize(model, Scheme(Interval(4), None))
    assert sum(isinstance(layer, L.ReLU) for layer in kept.layers) == 2


def test_what_a_pooling_or_a_flatten_gives_is_on_its_inputs_grid_already():
    layers = [L.Conv2D(3, 3, activation="relu", name="c"), L.MaxPooling2D(name="p"), L.Flatten(), L.Dense(2, name="d")]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    found = activations(quantize(model, Scheme(None, Interval(4))))
    assert found == {model.input_names[0] + "_out": IMAGE, "c_relu_out": UNSIGNED_8, "d_out": SIGNED}  # c feeds the last layer


def test_the_operands_of_a_concatenation_share_one_quantizer_signed_if_any_is():
    student = quantize(two_inputs(), Scheme(None, Interval(4)))
    assert activations(student) == {"a_out": IMAGE, "b_out": IMAGE, "left_relu_out": SIGNED, "head_out": SIGNED}
    assert len(student.get_layer("left_relu_out").inbound_nodes) == 2


def test_a_shared_quantizer_is_calibrated_to_its_widest_tensor():
    student = quantize(two_inputs(), Scheme(None, Interval(4)))
    for name, scale in (("left", 0.1), ("right", 10.0)):
        student.get_layer(name).set_weights([w * scale for w in student.get_layer(name).get_weights()])
    x = data(student)
    calibrate(student, x)
    b = np.clip(np.rint(x[1] * 127 / np.abs(x[1]).max()), -128, 127) * (np.abs(x[1]).max() / 127)
    widest = np.abs(b @ student.get_layer("right").get_weights()[0]).max()
    np.testing.assert_allclose(student.get_layer("left_relu_out").quantizer_variables["interval"], widest, rtol=1e-4)


def test_activations_that_only_know_unsigned_take_an_interval_where_values_are_signed():
    found = activations(quantize(resnet(), Scheme(None, Pact(4))))
    assert found["conv_relu_out"] == Pact(4) and found["stage1_block1_2_bn_out"] == SIGNED


def test_an_override_of_a_kernel_alone_leaves_the_ends_their_bits():
    overrides = {"conv2$": Scheme(Interval(2), Interval(4))}
    model = keras.Sequential([keras.Input((8, 8, 1)), *(L.Conv2D(2, 3, activation="relu", name=f"conv{k}") for k in range(3)), L.Flatten(), L.Dense(2)])
    student = quantize(model, Scheme(Interval(4), Interval(4), overrides=overrides))
    assert activations(student)["conv2_relu_out"] == UNSIGNED_8 and kernels(student)["conv2"] == Interval(2)
    lower = Scheme(Interval(4), Interval(4), overrides={"conv2$": Scheme(Interval(2), Interval(3))})
    assert activations(quantize(model, lower))["conv2_relu_out"].bits == 3


def test_signed_is_for_what_can_be_negative_and_for_the_ends_of_the_last_layer():
    slow, held = Interval(8, gradient_scale=True), Interval(8, learned=False)
    student = quantize(resnet(), Scheme(None, Interval(4), signed=slow, overrides={"stage2_block1_s_bn": Scheme(None, Interval(4), signed=held)}))
    found, usual = activations(student), activations(quantize(resnet(), Scheme(None, Interval(4))))
    changed = {name: quantizer for name, quantizer in found.items() if quantizer != usual[name]}
    assert changed.pop("stage2_block1_s_bn_out") == held.for_tensor("signed")
    assert changed.pop("pool_out") == slow.for_tensor("unsigned")
    assert set(changed) == {name for name, quantizer in usual.items() if quantizer == SIGNED} - {"stage2_block1_s_bn_out"}
    assert set(changed.values()) == {slow.for_tensor("signed")}


def test_an_override_is_for_the_layers_that_its_pattern_finds_and_the_first_counts():
    rules = {"stage2.*conv": Scheme(KBit(3), None), "stage2|^conv": Scheme(Interval(6), Interval(6)), "logits": Scheme(None, None)}
    student = quantize(resnet(), Scheme(Ternary(), Interval(4), overrides=rules))
    found, outputs = kernels(student), activations(student)
    assert found["stage2_block1_conv1"] == found["stage2_block1_conv2"] == KBit(3)
    assert found["stage2_block1_shortcut"] == found["conv"] == Interval(6)  # an override comes before `first`
    assert found["stage1_block1_conv1"] == Ternary() and "logits" not in found and "logits_out" not in outputs
    assert outputs["stage2_block1_relu_out"] == outputs["conv_relu_out"] == Interval(6, signed=False, narrow=False)
    assert outputs["stage1_block1_relu_out"] == UNSIGNED


# ---- The student and its source ------------------------------------------------------------------------------------------------------------------

MODELS = (resnet, nested, shared, two_inputs, depthwise)
every_model = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)


@every_model
def test_a_scheme_of_nothing_leaves_the_output_to_the_bit(make):
    model = make()
    x = data(model)
    np.testing.assert_array_equal(quantize(model, NOTHING)(x), model(x))


@every_model
def test_the_callers_model_is_not_touched(make):
    model = make()
    x, config, layers = data(model), model.get_config(), list(model._flatten_layers())
    before, weights = model(x).numpy(), [w.tobytes() for w in model.get_weights()]
    student = quantize(model, Scheme(Interval(2), Interval(2)))
    calibrate(student, x)
    assert not calibration.uncalibrated(student)
    for variable in student.variables:
        if variable.dtype.is_floating:
            variable.assign(tf.ones_like(variable))
    np.testing.assert_array_equal(model(x), before)
    assert [w.tobytes() for w in model.get_weights()] == weights and model.get_config() == config
    assert all(one is other for one, other in zip(model._flatten_layers(), layers))


def test_a_shared_layer_stays_one_kernel_with_an_interval_for_each_of_its_outputs():
    student = quantize(shared(), Scheme(Interval(4), Interval(4)))
    assert list(kernels(student)) == ["twice", "head"]
    assert [name for name in activations(student) if name.startswith("twice")] == ["twice_relu_out", "twice_relu_2_out"]
    calibrate(student, IMAGES)
    assert not calibration.uncalibrated(student) and student(IMAGES).shape == (8, 10)


def test_a_nested_model_comes_out_flat_and_is_quantized_within():
    student = quantize(nested(), Scheme(Ternary(), Interval(4)))
    assert kernels(student) == {"c1": Interval(8), "c2": Ternary(), "head": Interval(8)}
    calibrate(student, IMAGES)
    assert not calibration.uncalibrated(student)


def test_intervals_of_weights_are_their_maximum_at_once_and_those_of_activations_are_not_set():
    student = quantize(resnet(), Scheme(Interval(4, per_channel=True), Interval(4)))
    kernel = student.get_layer("stage1_block1_conv1").layer.kernel
    np.testing.assert_array_equal(interval(student, "stage1_block1_conv1"), np.abs(kernel).max((0, 1, 2)))
    assert set(calibration.uncalibrated(student)) == set(activations(student))


def test_a_depthwise_kernel_has_an_interval_for_each_of_its_output_channels():
    student = quantize(depthwise(), Scheme(Interval(4, per_channel=True), None))
    layer = student.get_layer("d")
    kernel = layer.layer.depthwise_kernel.numpy()
    np.testing.assert_array_equal(interval(student, "d"), np.abs(kernel).max((0, 1)).reshape(-1))
    step = np.abs(kernel).max((0, 1), keepdims=True) / 7
    x = RNG.normal(size=(2, 6, 6, 3)).astype(np.float32)
    expected = tf.nn.depthwise_conv2d(x, np.rint(kernel / step) * step, [1, 1, 1, 1], "VALID")
    np.testing.assert_allclose(layer(x), expected + layer.layer.bias, atol=1e-5)


def test_after_a_call_the_wrapped_layer_still_has_its_variable():
    student = quantize(resnet(), Scheme(Ternary(), None))
    layer = student.get_layer("stage1_block1_conv1")
    variable = layer.kernels[0][0]
    student(IMAGES)
    student(IMAGES, training=True)
    assert layer.layer.kernel is variable and isinstance(variable, tf.Variable)


# ---- Calibration ---------------------------------------------------------------------------------------------------------------------------------


def paper_mse(x, quantized):
    shares = np.linspace(0.02, 1.0, 50, dtype=np.float32) * np.abs(x).max()
    return shares[np.argmin([((quantized(x, share) - x) ** 2).mean() for share in shares])]


PAPER = {
    "max": lambda x, quantized: np.abs(x).max(),
    "percentile": lambda x, quantized: np.percentile(np.abs(x), 99.9),
    "mse": paper_mse,
}


def fake(x, interval, low, high):
    return np.rint(np.clip(x / interval * high, low, high)) * interval / high


@pytest.mark.parametrize("rule", RULES)
def test_a_one_layer_net_is_calibrated_as_in_numpy(rule):
    model, x = dense(3), np.float32(RNG.normal(size=(500, 4)))
    student = quantize(model, Scheme(None, Interval(4), first=2))
    calibrate(student, x, rule)
    found = interval(student, model.input_names[0] + "_out"), interval(student, "only"), interval(student, "only_out")
    at_input = PAPER[rule](x, lambda x, i: fake(x, i, -128, 127))
    kernel = model.get_layer("only").kernel.numpy()
    of_kernel = PAPER[rule](kernel, lambda x, i: fake(x, i, -1, 1))
    z = fake(x, at_input, -128, 127) @ fake(kernel, of_kernel, -1, 1)  # layer after layer: of what the quantized input gives
    at_output = PAPER[rule](z, lambda x, i: fake(x, i, -128, 127))
    np.testing.assert_allclose(found, (at_input, of_kernel, at_output), rtol=1e-5)


def test_calibration_sees_what_the_quantized_layers_before_give():
    model = resnet()
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.moving_mean.assign(RNG.normal(0, 0.1, layer.moving_mean.shape))
    rules = {"stage2_block1_relu": Scheme(None, Interval(8))}
    coarse, fine = (quantize(model, Scheme(weights, None, overrides=rules)) for weights in (Ternary(), None))
    for student in (coarse, fine):
        calibrate(student, IMAGES)
        before = keras.Model(student.inputs, student.get_layer("stage2_block1_add").output)
        np.testing.assert_allclose(interval(student, "stage2_block1_relu_out"), np.maximum(before(IMAGES), 0).max(), rtol=1e-6)
    assert interval(coarse, "stage2_block1_relu_out") != interval(fine, "stage2_block1_relu_out")


def test_calibration_moves_intervals_alone():
    student = quantize(resnet(), Scheme(Interval(4), Interval(4)))
    before = {v.name: v.numpy() for v in student.variables}
    calibrate(student, IMAGES)
    moved = {v.name for v in student.variables if not np.array_equal(v, before[v.name])}
    assert moved == {v.name for v in student.variables if "activation_interval" in v.name}


@pytest.mark.parametrize("rule", RULES)
def test_all_zero_images_leave_no_interval_at_zero(rule):
    student = quantize(dense(3), Scheme(None, Interval(4)))
    calibrate(student, np.zeros((4, 4), np.float32), rule)
    assert not calibration.uncalibrated(student) and interval(student, "only_out") > 0
    np.testing.assert_array_equal(student(np.zeros((1, 4), np.float32)), 0)


@pytest.mark.parametrize("rule", RULES)
def test_a_tensor_of_zeros_gets_one_and_a_kernel_of_zeros_one_by_the_root_of_its_inputs(rule):
    only = keras.Sequential([keras.Input((16,)), keras.layers.Dense(3, kernel_initializer="zeros", name="only")])
    student = quantize(only, Scheme(None, Interval(4)))
    calibrate(student, np.zeros((4, 16), np.float32), rule)
    calibration.fit_weight_intervals(student, rule)
    assert (interval(student, "only"), interval(student, "only_out")) == (0.25, 1.0)


# ---- What survives -------------------------------------------------------------------------------------------------------------------------------

SCHEMES = [Scheme(Ternary(learned=True, per_channel=True), Pact(4)), Scheme(Interval(4, True, True), Interval(4, gradient_scale=True))]


@pytest.fixture(scope="module", params=SCHEMES, ids=lambda s: repr(s.weights))
def trained(request):
    """A calibrated student after a training step, so that nothing in it is as it was initialized."""
    model = keras.Sequential(
        [
            *(keras.Input((8, 8, 1)), L.Conv2D(3, 3, use_bias=False, name="c1"), L.BatchNormalization(name="bn"), L.ReLU(name="relu")),
            *(L.DepthwiseConv2D(3, activation="relu", name="dw"), L.Conv2D(4, 1, name="c2"), L.Flatten(name="flat"), L.Dense(3, name="head")),
        ]
    )
    student = quantize(model, request.param)
    calibrate(student, IMAGES)
    student.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    student.fit(IMAGES, np.arange(8) % 3, verbose=0)
    return student


def reloaded(model, path):
    """What a file of `model` is read as."""
    model.save(path)
    with kerakd.quantize_scope():
        return keras.models.load_model(path)


def assert_same_model(again, student):
    np.testing.assert_array_equal(again(IMAGES), student(IMAGES))
    assert sorted(w.tobytes() for w in again.get_weights()) == sorted(w.tobytes() for w in student.get_weights())


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")  # h5 is what is tested
@pytest.mark.parametrize("suffix", [".keras", ".h5", ""], ids=[".keras", ".h5", "SavedModel"])
def test_a_trained_student_survives_its_file_to_the_bit(trained, tmp_path, suffix):
    path = str(tmp_path / f"student{suffix}")
    again = reloaded(trained, path)
    assert_same_model(again, trained)
    assert kernels(again).keys() == kernels(trained).keys()


def test_trained_weights_survive_their_file_to_the_bit(trained, tmp_path):
    again = keras.models.clone_model(trained)
    trained.save_weights(str(tmp_path / "student.weights.h5"))
    again.load_weights(str(tmp_path / "student.weights.h5"))
    assert_same_model(again, trained)


def test_a_clone_takes_the_weights_in_their_order(trained):
    again = keras.models.clone_model(trained)
    again.set_weights(trained.get_weights())
    assert_same_model(again, trained)


def test_tfmots_own_annotation_takes_the_config_and_trains_its_kernel_and_intervals():
    config = LayerConfig(weights=Interval(4), output=Interval(8))
    annotated = keras.Sequential([keras.Input((4,)), tfmot.quantize_annotate_layer(L.Dense(3, name="by_hand"), config)])
    with kerakd.quantize_scope(), tfmot.quantize_scope():
        student = tfmot.quantize_apply(annotated)
    x = RNG.normal(size=(16, 4)).astype(np.float32)
    calibrate(student, x)
    wrapper = student.layers[-1]
    kernel, quantizer, variables = wrapper._weight_vars[0]
    assert wrapper._output_quantizers == [Interval(8, narrow=False)]  # all of int8
    assert [kind for _, kind, _ in interval_variables(student)] == ["kernel_interval", "activation_interval"]
    assert quantizer == Interval(4) and float(variables["interval"]) == np.abs(kernel).max()
    tracked = [kernel, variables["interval"], wrapper._output_quantizer_vars["interval"]]
    before = [float(tf.reduce_sum(v)) for v in tracked]
    assert not np.isnan(before).any()
    student.compile(keras.optimizers.Adam(0.01), "mse")
    student.fit(x, np.zeros((16, 3)), epochs=3, verbose=0)
    assert all(float(tf.reduce_sum(v)) != old for v, old in zip(tracked, before))


class OfActivations(tfmot.QuantizeConfig):
    """A user's own: the activation inside the layer is quantized, in the layer's `activation`."""

    def get_weights_and_quantizers(self, layer):
        return [(layer.kernel, Interval(4))]

    def set_quantize_weights(self, layer, quantize_weights):
        layer.kernel = quantize_weights[0]

    def get_activations_and_quantizers(self, layer):
        return [(layer.activation, Interval(4))]

    def set_quantize_activations(self, layer, quantize_activations):
        layer.activation = quantize_activations[0]

    def get_output_quantizers(self, layer):
        return []

    def get_config(self):
        return {}


def test_calibration_sets_the_intervals_inside_layers_with_a_config_of_the_users_own():
    shared = tfmot.quantize_annotate_layer(L.Dense(4, activation="relu", name="by_hand"), OfActivations())
    x, y = keras.Input((4,), name="x"), keras.Input((4,), name="y")
    with kerakd.quantize_scope(), tfmot.quantize_scope(), keras.utils.custom_object_scope({"OfActivations": OfActivations}):
        student = tfmot.quantize_apply(keras.Model([x, y], [shared(x), shared(y)]))
    wide, narrow = (scale * RNG.normal(size=(16, 4)).astype(np.float32) for scale in (3, 1))
    calibrate(student, [wide, narrow])
    seen, wrapper = student.layers[2](wide), student.get_layer("quant_by_hand")
    (activation,) = wrapper._quantize_activations
    kernel, quantizer, variables = wrapper._weight_vars[0]
    expected = tf.nn.relu(seen @ quantizer(kernel, False, variables)).numpy().max()  # the wider of two calls counts
    assert not calibration.uncalibrated(student) and float(activation._post_activation_vars["interval"]) == pytest.approx(expected)
    assert activation.quantizer == Interval(4)


# ---- Refusals ------------------------------------------------------------------------------------------------------------------------------------


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def keras_3_net():
    import keras as keras_3

    return keras_3.Sequential([keras_3.Input((4,)), keras_3.layers.Dense(3)])


USUAL = Scheme(Interval(4), Interval(4))


def bounded(bound=0.25):
    return keras.Sequential([keras.Input((4,)), L.Dense(3), L.ReLU(bound, name="re_lu"), L.Dense(3), L.Dense(3)])


@pytest.mark.parametrize("activations, bound", [(KBit(4), 1.0), (DoReFa(4), 6.0), (Interval(4), 0.25), (Pact(4), 0.25)], ids=repr)
def test_a_bound_that_a_grid_can_have_is_taken(activations, bound):
    student = quantize(bounded(bound), Scheme(Interval(4), activations))
    images = np.random.default_rng(0).normal(scale=9.0, size=(64, 4)).astype(np.float32)
    calibrate(student, images)
    assert keras.Model(student.input, student.get_layer("re_lu_out").output)(images).numpy().max() == pytest.approx(min(bound, 1.0))


@pytest.mark.parametrize(
    "model, rules, telling",
    [
        (keras_3_net, USUAL, "model: .*received a Keras 3 one .*import tf_keras as keras"),
        (Subclassed, USUAL, "model: .*received Subclassed, which has no layer graph; write it as keras.Model"),
        (lambda: keras.Sequential([L.Dense(3)]), USUAL, "model: .*received Sequential, which has no layer graph; give it an Input layer"),
        (lambda: quantize(dense(3), USUAL), USUAL, "model: expected a float model, .* which is quantized already"),
        (lambda: quantize(dense(3), Scheme(None, Interval(8), None, None)), USUAL, "quantized already"),
        (lambda: keras.Sequential([keras.Input((4,)), L.ReLU()]), USUAL, "expected at least one convolution or dense layer"),
        (lambda: dense(3), Scheme(None, None, overrides={"conv9": NOTHING}), "overrides: .* received 'conv9'; the layers are only"),
        (lambda: dense(3), "int8", "scheme: expected a kerakd.Scheme, received 'int8'"),
        (
            bounded,
            Scheme(Interval(4), KBit(4)),
            "activations: expected no bound of a ReLU below 1, .*KBit ends, received 0.25 in 're_lu'; take",
        ),
        (bounded, Scheme(Interval(4), DoReFa(4)), "DoReFa ends, received 0.25"),
    ],
    ids=["keras 3", "subclassed", "unbuilt", "quantized", "activations quantized", "no weights", "override", "no scheme", "bound", "bound of DoReFa"],
)
def test_a_model_that_cannot_be_quantized_is_refused(model, rules, telling):
    with pytest.raises(BadInput, match=telling):
        quantize(model(), rules)


@pytest.mark.parametrize(
    "make, telling",
    [
        (lambda: Scheme("ternary", None), "weights: expected a quantizer such as .* received 'ternary'"),
        (lambda: Scheme(None, 8), "activations: expected a quantizer such as .* received 8"),
        (lambda: Scheme(None, None, first=1), "from 2 to 8, received 1"),
        (lambda: Scheme(None, None, last=9), "from 2 to 8, received 9"),
        (lambda: Scheme(None, Interval(4), sums=16), "from 2 to 8, received 16"),
        (lambda: Scheme(Ternary(), None, sums=8), "sums: expected a quantizer of activations with bits beside it, received None"),
        (lambda: Scheme(None, None, overrides={"conv": Interval(4)}), "overrides.'conv'.: expected a Scheme, received Interval"),
        (lambda: quantize(resnet(), Scheme(None, Ternary())), "activations: expected a quantizer of activations, received Ternary"),
        (lambda: quantize(resnet(), Scheme(Pact(4), None)), "weights: expected a quantizer of weights, received Pact"),
    ],
)
def test_a_scheme_that_cannot_be_is_refused(make, telling):
    with pytest.raises(BadInput, match=telling):
        make()


@pytest.mark.parametrize(
    "images, rule, telling",
    [
        (np.float32([[1, 2, np.nan, 4]]), "max", "images: expected finite values, received NaN or infinity"),
        (np.float32([[1, 2, np.inf, 4]]), "max", "images: expected finite values, received NaN or infinity"),
        (np.uint8([[1, 2, 3, 4]]), "max", "images: expected float images .* received uint8; cast"),
        (np.float32([[1, 2, 3, 4]]), "median", "rule: expected one of max, percentile, mse, received 'median'"),
    ],
)
def test_images_that_cannot_calibrate_are_refused_and_nothing_is_set(images, rule, telling):
    student = quantize(dense(3), USUAL)
    with pytest.raises(BadInput, match=telling):
        calibrate(student, images, rule)
    assert len(calibration.uncalibrated(student)) == 2


@pytest.mark.parametrize("overrides", [{"^b$": Scheme(Interval(6), Interval(6))}, {}], ids=["override", "sigmoid"])
def test_tensors_of_one_concatenation_with_different_quantizers_are_refused(overrides):
    inputs = keras.Input((6,))
    parts = [L.Dense(3, activation="relu", name="a")(inputs), L.Dense(3, activation="relu" if overrides else "sigmoid", name="b")(inputs)]
    model = keras.Model(inputs, L.Dense(2)(L.Concatenate()(parts)))
    with pytest.raises(BadInput, match="expected one quantizer for the tensors of a concatenation"):
        quantize(model, Scheme(Interval(4), Interval(4), overrides=overrides))


def test_statistics_of_several_axes_are_no_kernel(capsys):
    inputs = keras.Input((8, 8, 3))
    norm = L.Normalization(axis=(1, 2), invert=True, name="norm")
    norm.adapt(np.ones((2, 8, 8, 3), np.float32))
    quantize(keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(norm(inputs)))), USUAL)
    assert capsys.readouterr().err == "kerakd: may stay float in the file, as README does not list their kind as exact there: norm\n"


@pytest.mark.parametrize(
    "layer",
    [
        *(L.PReLU(name="odd"), L.PReLU(shared_axes=[1, 2], name="odd"), L.LayerNormalization(axis=[1, 2, 3], name="odd")),
        *(L.BatchNormalization(axis=[1, 2], name="odd"), L.Conv2D(3, 3, padding="same", activation="tanh")),
    ],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("activations", [None, Interval(8)])
def test_scales_of_several_axes_are_no_kernel(activations, layer, capsys):
    inputs = keras.Input((8, 8, 3))
    quantize(keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(layer(inputs)))), Scheme(Ternary(), activations))
    odd = "odd" if layer.name == "odd" else f"{layer.name}_tanh"
    assert capsys.readouterr().err == (f"kerakd: may stay float in the file, as README does not list their kind as exact there: {odd}\n" if activations else "")


FRAMED = {
    "pixels": lambda x: L.Rescaling(1 / 255)(x),
    "pixels of another size": lambda x: L.Rescaling(1 / 255)(L.Resizing(6, 6)(x)),
    "a part of them": lambda x: L.Rescaling(1 / 255)(L.CenterCrop(6, 6)(x)),
    "clipped": lambda x: tf.clip_by_value(L.Rescaling(1 / 255)(x), 0.0, 1.0),
    "behind a ReLU": lambda x: L.ReLU()(L.Rescaling(1 / 255)(x)),
    "a slice of them": lambda x: L.Rescaling(1 / 255)(x[:, 1:-1, 1:-1]),
    "rescaled, then of another size": lambda x: L.Resizing(6, 6)(L.Rescaling(1 / 255)(x)),
}


@pytest.mark.parametrize("name", FRAMED)
def test_pixels_keep_their_256_levels_up_to_the_first_kernel(name):
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, activation="relu", name="first")(FRAMED[name](inputs))
    student = quantize(keras.Model(inputs, L.Dense(2)(L.Flatten()(x))), USUAL)
    grids = {layer.name: layer.quantizer.levels() for layer in student.layers if isinstance(layer, QuantizedActivation)}
    before = list(grids)[: list(grids).index("first_relu_out")]
    assert before and {grids[name] for name in before} == {(0, 255)}
    with pytest.raises(BadInput, match="expected pixels, 0 and more"):
        calibrate(student, np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32))


def test_an_overshooting_resizing_and_colors_around_0_are_signed():
    inputs = keras.Input((8, 8, 3))
    x = L.Rescaling(1 / 127.5, -1.0, name="scaled")(inputs)
    student = quantize(keras.Model(inputs, L.Dense(2)(L.Flatten()(x))), USUAL)
    assert student.get_layer("scaled_out").quantizer.levels() == (-128, 127)
    x = L.Rescaling(1 / 255)(L.Resizing(6, 6, "bicubic", name="sized")(inputs))
    student = quantize(keras.Model(inputs, L.Dense(2)(L.Flatten()(x))), USUAL)
    assert student.get_layer("sized_out").quantizer.levels() == (-128, 127)


def test_a_loaded_students_variables_have_their_layers_names(tmp_path):
    inputs = keras.Input((8, 8, 3))
    student = quantize(keras.Model(inputs, L.Dense(2)(L.Flatten()(L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, name="block/conv")(inputs)))))), USUAL)
    loaded = reloaded(student, tmp_path / "student.keras")
    assert [variable.name for variable in loaded.weights] == [variable.name for variable in student.weights]


def test_a_convolution_of_an_images_rows_is_quantized_and_not_said_to_be_exact(capsys):
    inputs = keras.Input((2, 8, 3))
    student = quantize(keras.Model(inputs, L.Dense(2)(L.Flatten()(L.Conv1D(4, 3, name="rows")(inputs)))), USUAL)
    assert capsys.readouterr().err == "kerakd: may stay float in the file, as README does not list their kind as exact there: rows\n"
    assert isinstance(student.get_layer("rows"), QuantizedLayer)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("activations", [None, Interval(8)])
def test_a_kernel_that_stays_float_is_named_with_its_kind_apart_from_other_layers_that_do(activations, frozen, capsys):
    class Own(L.Conv2D):
        def call(self, inputs):
            return 2.0 * super().call(inputs)

    inputs = keras.Input((8, 8, 3))
    x = Own(4, 3, name="own")(L.Conv2DTranspose(4, 3, name="transposed", trainable=not frozen)(L.Conv2D(4, 3, name="first")(inputs)))
    x = L.LayerNormalization(name="norm")(L.GlobalAveragePooling2D()(x))
    quantize(keras.Model(inputs, L.Dense(2, name="last")(x)), Scheme(Ternary(), activations))
    kernels = "kerakd: kernels that stay float, as no scheme quantizes such a layer: transposed (Conv2DTranspose), own (Own)\n"
    others = "kerakd: may stay float in the file, as README does not list their kind as exact there: norm\n"
    assert capsys.readouterr().err == kernels + (others if activations else "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"first": 16}, "first: expected a whole number from 2 to 8, received 16"),
        ({"last": 1}, "last: expected a whole number from 2 to 8, received 1"),
        ({"overrides": {"stage(": Scheme(None, None)}}, r"overrides: expected a regular expression, received 'stage\('"),
        ({"overrides": [Scheme(None, None)]}, "overrides: expected {regular expression: Scheme}, received"),
        (
            {"overrides": {"conv": Scheme(None, None, overrides={"a": NOTHING})}},
            r"overrides\['conv'\]: expected a Scheme without overrides of its own, received",
        ),
    ],
)
def test_what_a_scheme_cannot_be_is_refused_by_its_name(arguments, message):
    with pytest.raises(BadInput, match=message):
        Scheme(Ternary(), Interval(8), **arguments)


def test_a_config_by_hand_is_refused_for_a_layer_without_a_kernel():
    norm = L.BatchNormalization(name="norm")
    with pytest.raises(BadInput, match="weights: expected None for a layer that is none of Conv1D, .*for 'norm'"):
        LayerConfig(weights=Ternary()).get_weights_and_quantizers(norm)


def test_a_config_by_hand_gives_a_kernel_a_symmetric_grid_whatever_the_quantizer_says_of_signs():
    dense = L.Dense(3)
    dense.build((None, 4))
    for quantizer in (Interval(4, signed=False, narrow=False), KBit(4, signed=False)):
        ((_, seen),) = LayerConfig(weights=quantizer).get_weights_and_quantizers(dense)
        assert seen.levels() == (-7, 7)
    with pytest.raises(BadInput, match="weights: expected a quantizer of weights, received Pact"):
        LayerConfig(weights=Pact(4)).get_weights_and_quantizers(dense)
    with pytest.raises(BadInput, match="weights: expected one of kerakd's quantizers, received LastValueQuantizer"):
        LayerConfig(weights=tfmot.quantizers.LastValueQuantizer(8, True, True, False)).get_weights_and_quantizers(dense)


def parted():
    inputs = keras.Input((8, 8, 1))
    left, right = tf.split(L.Conv2D(6, 3, activation="relu", name="c")(inputs)[..., ::-1], [2, 4], axis=-1)
    return keras.Model(inputs, L.Dense(10, name="head")(L.Concatenate()([L.Flatten()(left), L.Flatten()(L.Conv2D(3, 3, name="d")(right))])))


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")  # h5 is what is tested
@pytest.mark.parametrize("kind", ["x.keras", "x.h5", "x"])
def test_a_split_student_is_saved_cloned_and_settled(kind, tmp_path):
    student = quantize(parted(), Scheme(Interval(4), Interval(4)))
    calibrate(student, IMAGES)
    loaded = reloaded(student, tmp_path / kind)
    cloned = keras.models.clone_model(student)
    cloned.set_weights(student.get_weights())
    for again in (loaded, cloned):
        np.testing.assert_array_equal(again(IMAGES), student(IMAGES))
    assert kerakd.verify(kerakd.settle(student), kerakd.to_tflite(student), IMAGES).exact


def test_a_layer_that_is_on_inside_a_model_that_is_off_is_named():
    net = nested()
    net.get_layer("body").trainable = False
    net.get_layer("body").get_layer("c2").trainable = True
    with pytest.raises(BadInput, match="expected layers that are frozen with the model around them, received c2, switched on in one that is off"):
        quantize(net, Scheme(Interval(4), Interval(4)))


def test_a_synchronized_batchnorm_stays_one():
    inputs = keras.Input((8, 8, 1))
    x = L.BatchNormalization(synchronized=True, name="b")(L.Conv2D(3, 3)(inputs))
    student = quantize(keras.Model(inputs, L.Dense(10)(L.Flatten()(x))), Scheme(Interval(4), Interval(4)))
    assert student.get_layer("b").synchronized and not quantize(resnet(), Scheme(Interval(4), Interval(4))).get_layer("conv_bn").synchronized


@keras.utils.register_keras_serializable("kerakd_tests")
@dataclasses.dataclass(frozen=True)
class Own(Interval):
    """A user's own quantizer."""


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")  # h5 is what is tested
@pytest.mark.parametrize("kind", ["x.keras", "x.h5", "x"])
def test_a_users_own_quantizer_is_read_from_every_kind_of_file(kind, tmp_path):
    student = quantize(nested(), Scheme(Own(4), Own(4)))
    calibrate(student, IMAGES)
    loaded = reloaded(student, tmp_path / kind)
    np.testing.assert_array_equal(loaded(IMAGES), student(IMAGES))


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")  # h5 is what is tested
@pytest.mark.parametrize("frozen", ["before", "after"])
def test_a_frozen_kernel_has_each_weight_once_and_in_its_place(frozen, tmp_path):
    net = nested()
    net.get_layer("body").get_layer("c2").trainable = frozen != "before"
    student, other = quantize(net, Scheme(Interval(4), Interval(4))), quantize(nested(), Scheme(Interval(4), Interval(4)))
    student.get_layer("c2").trainable = False
    for made in (student, other):
        calibrate(made, IMAGES)
    layer, free = student.get_layer("c2"), other.get_layer("c2")
    assert [weight.name for weight in layer.weights] == [weight.name for weight in free.weights] and not layer.trainable_weights
    layer.set_weights(free.get_weights())
    loaded = reloaded(student, tmp_path / "x.h5")
    np.testing.assert_array_equal(loaded(IMAGES), student(IMAGES))
    student.save_weights(tmp_path / "y.h5")


@pytest.mark.parametrize("patterns", [["^flat$"], ["^c1$", "^c1$"], ["c", "^c1$"], ["^nowhere$"]])
def test_an_override_that_changes_nothing_is_refused(patterns):
    rules = {pattern if k == 0 else f"(?:{pattern})": Scheme(Interval(2), Interval(2)) for k, pattern in enumerate(patterns)}
    with pytest.raises(BadInput, match="overrides: expected a pattern that matches a layer which is quantized, and which no pattern before it matches"):
        quantize(nested(), Scheme(Interval(4), Interval(4), overrides=rules))


def test_an_input_before_a_float_first_layer_is_float():
    x = keras.Input((6,), name="image")
    student = quantize(keras.Model(x, L.Dense(3)(L.Dense(4, activation="relu")(x))), Scheme(Ternary(), Interval(4), first=None))
    assert "image_out" not in [layer.name for layer in student.layers]


def test_the_last_layer_reads_a_sum_as_it_is():
    x = keras.Input((6,))
    y = L.Dense(4, activation="relu", name="sum")(x)
    student = quantize(keras.Model(x, L.Add()([y, L.Dense(4, name="last")(y)])), Scheme(Ternary(), Interval(2), sums=8))
    assert not [layer.name for layer in student.layers if "narrow" in layer.name]


def test_a_softmax_leaves_the_grid_of_a_concatenation_unsigned():
    x = keras.Input((6,))
    y = L.Concatenate()([L.Softmax(name="softmax")(L.Dense(3)(x)), L.Dense(4, activation="relu")(x)])
    student = quantize(keras.Model(x, L.Dense(2)(L.Dense(4, activation="relu")(y))), Scheme(Interval(4), Interval(4)))
    assert student.get_layer("softmax_out").quantizer.levels()[0] == 0


def test_a_quantizer_computes_as_the_layer_before_it():
    x = keras.Input((6, 6, 1))
    y = L.Conv2D(3, 3, name="c", dtype="mixed_bfloat16")(x)
    student = quantize(keras.Model(x, L.Dense(2)(L.Flatten()(y))), Scheme(Interval(4), Interval(4)))
    assert student.get_layer("c_out").compute_dtype == "bfloat16"

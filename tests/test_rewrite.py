"""Laws of the rewriting: the copy computes what the model does, in the layers that a scheme knows; the model stays as it is."""

import collections
import functools
import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kerakd
from kerakd.errors import BadInput
from kerakd.quantizers import Interval, Sigmoid
from kerakd.rewrite import simplify
from kerakd.scheme import Scheme, quantize
from kerakd.wrapper import QuantizedActivation

L = keras.layers
IMAGE, ROW, VECTOR = (6, 6, 4), (9, 4), (4,)
TABLE = np.arange(16, dtype=np.float32).reshape(4, 4)


def draw(shape, seed=0):
    """Values wide enough for every bound of every activation here."""
    return np.random.default_rng(seed).normal(size=(3, *shape), scale=5).astype(np.float32)


def hard_sigmoid(x):
    """As tf_keras.applications' MobileNetV3 writes it."""
    return L.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)


def branch(x, units=4, **kwargs):
    return L.Dense(units, **kwargs)(x)


def normalization(x, **kwargs):
    layer = L.Normalization(**kwargs)
    layer.adapt(draw(x.shape[1:], seed=1) + 2)
    return layer(x)


def convolution_1d(**kwargs):
    return lambda x: L.ReLU()(L.BatchNormalization()(L.Conv1D(8, 3, **kwargs)(x)))


def depthwise_1d(**kwargs):
    return lambda x: L.ReLU()(L.BatchNormalization()(L.DepthwiseConv1D(3, **kwargs)(x)))


def row_with_two_readers(x):
    y = L.Conv1D(4, 3, padding="same")(x)
    return L.Add()([L.ReLU()(L.BatchNormalization()(y)), L.MaxPooling1D(3, 1, padding="same")(y)])


def relu_with_two_readers(x):
    y = tf.nn.relu(x)
    return L.Add()([y * 0.5, y])


def sums_of_two(x):
    y = branch(x)
    return (x + y) * tf.nn.relu(L.Add()([y, x])) + y


def called_twice(layer):
    def body(x):
        one = layer()
        return one(one(x))

    return body


def nested(x):
    """A model called twice inside a model, its layers named as those outside."""
    inner = keras.Sequential([keras.Input(VECTOR), L.Dense(4, "relu", name="same"), L.Dense(4, name="other"), L.Rescaling(2.0)], name="inner")
    return L.Dense(4, "swish", name="same")(inner(inner(L.Dense(4, name="other")(x)) - 3.0))


def each_activation(kind, make, left=()):
    """The rows of CASES for `make(activation)`, a layer, and what is left of it besides the activation."""
    wanted = {
        "relu": {"ReLU": 1},
        tf.nn.relu6: {"ReLU": 1},
        "swish": {"Activation": 1, "Multiply": 1},
        "sigmoid": {"Activation": 1},
        keras.activations.hard_sigmoid: {"Rescaling": 1, "ReLU": 1},
        "tanh": {"Activation": 1},
    }
    return {f"{kind} {getattr(act, '__name__', act)}": (IMAGE, lambda x, act=act: make(act)(x), {**dict(left), **kinds}) for act, kinds in wanted.items()}


LINE, KEPT = {"Rescaling": 1}, {"TFOpLambda": 1}
HARD_SWISH = {"Rescaling": 1, "ReLU": 1, "Multiply": 1}
ROWS = {"Reshape": 2, "Conv2D": 1}  # a Conv1D as an image of height 1, and the way back
SEPARABLE = {"DepthwiseConv2D": 1, "Conv2D": 1, "ReLU": 1}
CAUSAL = {"Reshape": 2, "ZeroPadding2D": 1, "ReLU": 1}
SEPARATELY = ({"depth_multiplier": 2}, {"strides": 2}, {"padding": "same", "strides": 2}, {"dilation_rate": 2}, {"use_bias": False})
CASES = {  # what is called on inputs of which shape, and how many layers of which kind are left
    **each_activation("Activation", L.Activation),
    **each_activation("Conv2D", lambda act: L.Conv2D(4, 3, activation=act), {"Conv2D": 1}),
    **each_activation("DepthwiseConv2D", lambda act: L.DepthwiseConv2D(3, activation=act), {"DepthwiseConv2D": 1}),
    **each_activation("Dense", lambda act: L.Dense(4, activation=act), {"Dense": 1}),
    "linear": (VECTOR, lambda x: L.Activation("linear")(branch(x)), {"Dense": 1}),
    "leaky ReLU": (VECTOR, lambda x: L.ReLU(negative_slope=0.1)(x), {"ReLU": 1}),
    "ReLU past a threshold": (VECTOR, lambda x: L.ReLU(threshold=0.5)(x), {"ReLU": 1}),
    # operators
    "hard swish of operators": (IMAGE, lambda x: x * (tf.nn.relu6(x + 3.0) * (1 / 6.0)), HARD_SWISH),
    "hard swish from left to right": (IMAGE, lambda x: x * tf.nn.relu6(x + 3.0) * (1 / 6.0), {**HARD_SWISH, "Rescaling": 2}),
    "hard swish of MobileNetV3": (IMAGE, lambda x: L.Multiply()([x, hard_sigmoid(x)]), HARD_SWISH),
    "swish of operators": (IMAGE, lambda x: tf.nn.sigmoid(x) * x, {"Activation": 1, "Multiply": 1}),
    "swish": (IMAGE, lambda x: tf.nn.silu(x), {"Activation": 1, "Multiply": 1}),
    "steep swish": (IMAGE, lambda x: tf.nn.silu(x, 2.0), KEPT),
    "x + y": (IMAGE, lambda x: x + branch(x), {"Dense": 1, "Add": 1}),
    "x + x / 2": (IMAGE, lambda x: x + x * 0.5, {"Rescaling": 1, "Add": 1}),
    "x * y": (IMAGE, lambda x: x * branch(x), {"Dense": 1, "Multiply": 1}),
    "x - y": (IMAGE, lambda x: x - branch(x), {"Dense": 1, **KEPT}),
    "x / y": (IMAGE, lambda x: x / (branch(x, activation="softplus") + 1.0), {"Dense": 1, "Activation": 1, **LINE, **KEPT}),
    "x + 2": (IMAGE, lambda x: x + 2.0, LINE),
    "2 + x": (IMAGE, lambda x: 2.0 + x, LINE),
    "x * 0.5": (IMAGE, lambda x: x * 0.5, LINE),
    "x - 0.1": (IMAGE, lambda x: x - 0.1, LINE),
    "x / 2": (IMAGE, lambda x: x / 2.0, LINE),
    "2 - x": (IMAGE, lambda x: 2.0 - x, LINE),
    "2 / x": (IMAGE, lambda x: 2.0 / x, KEPT),
    "x * 0.5 - 1 of a ReLU": (IMAGE, lambda x: tf.nn.relu(x) * 0.5 - 1.0, {"Rescaling": 2, "ReLU": 1}),
    "x + channels": (IMAGE, lambda x: x + TABLE[0], LINE),
    "x * channels": (IMAGE, lambda x: x * tf.constant(TABLE[1]), LINE),
    "x + table": ((4, 4), lambda x: x + TABLE, KEPT),
    "x + column": ((4, 4), lambda x: x + TABLE[:, :1], None),
    "x + constant of higher rank": (VECTOR, lambda x: x + TABLE[None, :1], None),
    "x + y of lower rank": (IMAGE, lambda x: x + branch(tf.reduce_mean(x, [0, 1])), {"Dense": 1, "TFOpLambda": 2}),
    "x + y of one pixel": (IMAGE, lambda x: x + L.GlobalAveragePooling2D(keepdims=True)(x), {"GlobalAveragePooling2D": 1, "Reshape": 1, "Add": 1}),
    "x + y of one channel": (IMAGE, lambda x: x + branch(x, 1), {"Dense": 1, "Add": 1}),
    "reshape by the number of images": (IMAGE, lambda x: tf.reshape(x, (tf.shape(x)[0], math.prod(x.shape[1:3]), x.shape[3])), {"Reshape": 1}),
    "reshape of one number to none": (VECTOR, lambda x: L.Dense(2)(L.Reshape((1,))(tf.reshape(L.Dense(1)(x), [-1]))), None),
    "pools": (
        IMAGE,
        lambda x: tf.nn.avg_pool(tf.nn.max_pool2d(x, [1, 2, 2, 1], 1, "SAME"), [2, 3], [2, 2], "VALID"),
        {"MaxPooling2D": 1, "AveragePooling2D": 1},
    ),
    "a pool by keywords": (IMAGE, lambda x: tf.nn.avg_pool2d(x, strides=1, ksize=3, padding="VALID"), {"AveragePooling2D": 1}),
    "a mean by keywords": (IMAGE, lambda x: tf.reduce_mean(axis=[1, 2], input_tensor=x), {"GlobalAveragePooling2D": 1}),
    "a difference by keywords": (IMAGE, lambda x: tf.subtract(y=x, x=2.0), LINE),
    "averages that pad": (IMAGE, lambda x: tf.nn.avg_pool2d(x, 3, 2, "SAME"), KEPT),
    "averages of unequal strides": (IMAGE, lambda x: tf.nn.avg_pool2d(x, 2, [2, 1], "VALID"), KEPT),
    "averages of rows that pad": (ROW, lambda x: L.AveragePooling1D(3, 2, "same")(x), {"AveragePooling1D": 1}),
    "a pool over channels": (IMAGE, lambda x: tf.nn.max_pool2d(x, [1, 1, 1, 2], [1, 1, 1, 2], "VALID"), KEPT),
    "averages of rows": (ROW, lambda x: L.AveragePooling1D(3, 2)(L.AveragePooling1D(1, 1, "same")(x)), {"Reshape": 2, "AveragePooling2D": 2}),
    "mean": (IMAGE, lambda x: tf.reduce_mean(x, [1, 2]), {"GlobalAveragePooling2D": 1}),
    "mean with keepdims": (IMAGE, lambda x: tf.reduce_mean(x, axis=(2, -3), keepdims=True), {"GlobalAveragePooling2D": 1, "Reshape": 1}),
    "mean without keepdims": (IMAGE, lambda x: tf.reduce_mean(x, axis=[1, 2], keepdims=False), {"GlobalAveragePooling2D": 1}),
    "mean of tokens": (ROW, lambda x: tf.reduce_mean(x, 1), {"Reshape": 1, "GlobalAveragePooling2D": 1}),
    "mean of tokens with keepdims": (ROW, lambda x: tf.reduce_mean(x, -2, True), {"Reshape": 2, "GlobalAveragePooling2D": 1}),
    "a bias": (IMAGE, lambda x: tf.nn.bias_add(x, np.float32([1, -2, 3, 0])), LINE),
    "a bias as Keras adds it": (IMAGE, lambda x: keras.backend.bias_add(x, tf.constant([1.0, -2.0, 3.0, 0.0]), data_format="channels_last"), LINE),
    "preprocessing of ResNets": ((6, 6, 3), keras.applications.resnet50.preprocess_input, {"SlicingOpLambda": 1, **LINE}),
    "preprocessing of DenseNets": ((6, 6, 3), keras.applications.densenet.preprocess_input, LINE),
    "pads": (IMAGE, lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1], [0, 0]]), {"ZeroPadding2D": 1}),
    "pads with ones": (IMAGE, lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1], [0, 0]], constant_values=1), KEPT),
    "pads by reflection": (IMAGE, lambda x: tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT"), KEPT),
    "pads of channels": (IMAGE, lambda x: tf.pad(x, [[0, 0], [0, 0], [0, 0], [1, 1]]), KEPT),
    "clips at 0 and 3": (IMAGE, lambda x: tf.clip_by_value(x, 0, 3.0), {"ReLU": 1}),
    "clips at -1 and 1": (IMAGE, lambda x: tf.clip_by_value(x, -1.0, 1.0), KEPT),
    "maximum of x and 0": (IMAGE, lambda x: tf.maximum(0.0, tf.maximum(x, 0.0)), {"ReLU": 2}),
    "maximum of x and 1": (IMAGE, lambda x: tf.maximum(x, 1.0), KEPT),
    "maximum of two": (IMAGE, lambda x: tf.maximum(x, branch(x)), {"Dense": 1, **KEPT}),
    "mean of all of rows with keepdims": (ROW, lambda x: x * tf.reduce_mean(x, keepdims=True), {"TFOpLambda": 1, "Multiply": 1}),
    "a transpose": (IMAGE, lambda x: tf.transpose(x, [0, 3, 1, -2]), {"Permute": 1}),
    "a transpose of the batch": (ROW, lambda x: tf.transpose(tf.transpose(x, [1, 0, 2]), perm=[1, 0, 2]), {"TFOpLambda": 2}),
    "a split": (IMAGE, lambda x: sum(tf.split(x, 2, -1)), {"SlicingOpLambda": 2, "Add": 1, **LINE}),
    "a split of unequal parts": (IMAGE, lambda x: tf.split(x, [1, -1], 3)[1], {"SlicingOpLambda": 1}),
    "a split of rows, two of three read": (IMAGE, lambda x: L.Add()(tf.split(x, num_or_size_splits=3, axis=1)[:2]), {"SlicingOpLambda": 2, "Add": 1}),
    "two equal means": (IMAGE, lambda x: L.GlobalAveragePooling2D()(x) + 2.0 * tf.reduce_mean(x, [1, 2]), {"GlobalAveragePooling2D": 1, "Add": 1, **LINE}),
    "two equal swishes": (IMAGE, lambda x: branch(tf.nn.silu(x)) + branch(L.Activation("swish")(x)), {"Activation": 1, "Multiply": 1, "Dense": 2, "Add": 1}),
    "x + y, y + x and a product": (IMAGE, sums_of_two, {"Dense": 1, "Add": 2, "Multiply": 1, "ReLU": 1}),
    "an ellipsis": (IMAGE, lambda x: x[..., ::-1] + x[:, ..., :1], {"SlicingOpLambda": 2, "Add": 1}),
    "an ellipsis of one axis and a new one": (ROW, lambda x: x[:, None, ..., 1], {"SlicingOpLambda": 1}),
    "mean of channels": (IMAGE, lambda x: tf.reduce_mean(x, 3), KEPT),
    "mean of rows": ((6, 6), lambda x: tf.reduce_mean(x, [1, 2]), KEPT),
    "mean of all": (IMAGE, lambda x: tf.reduce_mean(x), KEPT),
    # layers
    "Add of three": (IMAGE, lambda x: L.Add()([x, branch(x), branch(x)]), {"Dense": 2, "Add": 2}),
    "Multiply of three": (IMAGE, lambda x: L.Multiply()([x, branch(x), branch(x)]), {"Dense": 2, "Multiply": 2}),
    "pooling with keepdims": (IMAGE, lambda x: L.GlobalAveragePooling2D(keepdims=True)(x), {"GlobalAveragePooling2D": 1, "Reshape": 1}),
    "pooling of channels first": (IMAGE, lambda x: L.GlobalAveragePooling2D("channels_first", keepdims=True)(x), {"GlobalAveragePooling2D": 1}),
    "Rescaling of Rescaling": (IMAGE, lambda x: L.Rescaling([1.0, 2.0, 3.0, 4.0], 1.0)(L.Rescaling(0.5, 2.0)(x)), LINE),
    "Normalization": (IMAGE, lambda x: L.Rescaling(TABLE[0].tolist(), TABLE[1].tolist())(normalization(x)), LINE),
    "Normalization of all": (IMAGE, lambda x: normalization(x, axis=None), LINE),
    "inverted Normalization": (IMAGE, lambda x: normalization(x, invert=True), {"Normalization": 1}),
    "Normalization of rows": (IMAGE, lambda x: normalization(x, axis=1), {"Normalization": 1}),
    "Rescaling of a ReLU": (IMAGE, lambda x: L.Rescaling(2.0)(L.ReLU(3.0)(x)), {"Rescaling": 1, "ReLU": 1}),
    "Rescaling of a ReLU with offset": (IMAGE, lambda x: L.Rescaling(2.0, -1.0)(L.ReLU()(x)), {"Rescaling": 1, "ReLU": 1}),
    "negative Rescaling of a ReLU": (IMAGE, lambda x: L.Rescaling(-2.0)(L.ReLU()(x)), {"Rescaling": 1, "ReLU": 1}),
    "Rescaling of one reader of a ReLU": (IMAGE, relu_with_two_readers, {"Rescaling": 1, "ReLU": 2, "Add": 1}),
    **{
        f"Conv1D {kwargs}": (ROW, convolution_1d(**kwargs), {**ROWS, "BatchNormalization": 1, "ReLU": 1})
        for kwargs in ({}, {"strides": 2}, {"dilation_rate": 2}, {"groups": 2}, {"padding": "same"}, {"padding": "same", "strides": 2})
    },
    "Conv1D with swish": (ROW, lambda x: L.Conv1D(8, 3, activation="swish")(x), {**ROWS, "Activation": 1, "Multiply": 1}),
    "Conv1D with tanh": (ROW, lambda x: L.Conv1D(8, 3, activation="tanh")(x), {**ROWS, "Activation": 1}),
    **{
        f"DepthwiseConv1D {kwargs}": (ROW, depthwise_1d(**kwargs), {"Reshape": 2, "DepthwiseConv2D": 1, "BatchNormalization": 1, "ReLU": 1})
        for kwargs in ({"depth_multiplier": 2}, {"strides": 2}, {"padding": "same", "strides": 2}, {"dilation_rate": 2})
    },
    **{
        f"{layer.__name__} {kwargs}": (shape, lambda x, layer=layer, kwargs=kwargs: layer(8, 3, **kwargs)(x), {**SEPARABLE, **rows})
        for layer, shape, rows in ((L.SeparableConv1D, ROW, {"Reshape": 2}), (L.SeparableConv2D, IMAGE, {}))
        for kwargs in ({"activation": "relu"}, *({"activation": "relu", **more} for more in SEPARATELY))
    },
    "SeparableConv2D of a rectangle": (IMAGE, lambda x: L.SeparableConv2D(8, (1, 3))(x), {"DepthwiseConv2D": 1, "Conv2D": 1}),
    **{
        f"causal {layer.__name__} {kwargs}": (ROW, lambda x, layer=layer, kwargs=kwargs: layer(8, 3, padding="causal", **kwargs)(x), {**kinds, **CAUSAL})
        for layer, kinds in ((L.SeparableConv1D, SEPARABLE), (L.Conv1D, {"Conv2D": 1}))
        for kwargs in ({"activation": "relu"}, {"activation": "relu", "dilation_rate": 2}, {"activation": "relu", "strides": 2})
    },
    "shared SeparableConv2D": (IMAGE, called_twice(lambda: L.SeparableConv2D(4, 3, padding="same")), {"DepthwiseConv2D": 1, "Conv2D": 1}),
    "Conv1D with two readers": (ROW, row_with_two_readers, {"Reshape": 3, "Conv2D": 1, "BatchNormalization": 1, "ReLU": 1, "MaxPooling1D": 1, "Add": 1}),
    # graphs
    "nested models": (VECTOR, nested, {"Dense": 4, "ReLU": 2, "Rescaling": 2, "Activation": 1, "Multiply": 1}),
    "shared Dense": (VECTOR, called_twice(lambda: L.Dense(4, "hard_sigmoid")), {"Dense": 1, "Rescaling": 2, "ReLU": 2}),
    "shared Conv1D": (ROW, called_twice(lambda: L.Conv1D(4, 3, padding="same", activation="relu")), {"Reshape": 2, "Conv2D": 1, "ReLU": 2}),
}
every_case = pytest.mark.parametrize("name", CASES)


def spread(model, seed=3):
    """`model` with weights that no two layers share, those of Normalizations as they are."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers(include_self=False):
        if not isinstance(layer, (keras.Model, L.Normalization)):
            for weight in layer.weights:
                weight.assign(rng.uniform(0.5, 2, weight.shape) if "variance" in weight.name else rng.normal(0, 0.6, weight.shape))
    return model


@functools.cache
def made(name):
    shape, body, _ = CASES[name]
    inputs = keras.Input(shape)
    return spread(keras.Model(inputs, body(inputs)))


def copied(model):
    """The simple copy with the model's weights, given as `quantize` gives them."""
    copy, sources = simplify(model)
    for name, source in sources.items():
        layer = copy.get_layer(name)
        layer.set_weights([np.reshape(value, weight.shape) for value, weight in zip(source, layer.weights, strict=True)])
    return copy


def kinds(model):
    return dict(collections.Counter(type(layer).__name__ for layer in model.layers if not isinstance(layer, L.InputLayer)))


def assert_same(copy, model, images):
    for got, wanted in zip(tf.nest.flatten(copy(images)), tf.nest.flatten(model(images)), strict=True):
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@every_case
def test_the_copy_computes_what_the_model_does(name):
    model = made(name)
    assert_same(copied(model), model, draw(CASES[name][0]))


@every_case
def test_these_kinds_of_layers_are_left_under_names_of_their_own(name):
    model = made(name)
    copy, _ = simplify(model)
    if CASES[name][2] is not None:  # else whatever is right
        assert kinds(copy) == CASES[name][2]
    for layer in copy.layers:
        assert isinstance(layer, L.Activation) or getattr(layer, "activation", keras.activations.linear) is keras.activations.linear
    names = [layer.name for layer in copy.layers]
    assert len(set(names)) == len(names)
    assert [ref.node.layer.name for ref in copy.inputs] == [ref.node.layer.name for ref in model.inputs]


@every_case
def test_sources_name_the_weights_of_the_model_that_each_layer_has(name):
    model = made(name)
    copy, sources = simplify(model)
    weighted = {layer.name: [w.shape.num_elements() for w in layer.weights] for layer in copy.layers if layer.weights}
    assert {key: [w.shape.num_elements() for w in sources[key]] for key in weighted} == weighted
    plain = [layer for layer in model._flatten_layers(include_self=False) if not isinstance(layer, (keras.Model, L.Normalization))]
    given = [weight for key, source in sources.items() if not isinstance(copy.get_layer(key), L.Normalization) for weight in source]
    assert sorted(map(id, given)) == sorted(id(weight) for layer in plain for weight in layer.weights)


@every_case
def test_the_callers_model_is_not_touched(name):
    model = made(name)
    layers = list(model._flatten_layers())

    def state():
        nodes = [(id(layer), len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in layers]
        return model.get_config(), nodes, [weight.tobytes() for weight in model.get_weights()]

    before = state()
    copy = copied(model)
    copy.set_weights([0 * weight for weight in copy.get_weights()])
    assert state() == before and not {id(layer) for layer in copy.layers} & {id(layer) for layer in layers}


def test_a_hard_sigmoids_bound_goes_to_1_and_its_line_before_it():
    copy, _ = simplify(made("hard swish of MobileNetV3"))
    (line,) = (layer for layer in copy.layers if isinstance(layer, L.Rescaling))
    (relu,) = (layer for layer in copy.layers if isinstance(layer, L.ReLU))
    assert (line.scale, line.offset, float(relu.max_value)) == (pytest.approx(1 / 6), pytest.approx(0.5), pytest.approx(1.0))
    assert relu.input is line.output


@pytest.mark.parametrize("name", ["Rescaling of a ReLU with offset", "negative Rescaling of a ReLU"])
def test_a_rescaling_that_moves_zero_or_turns_the_sign_stays_behind_the_relu(name):
    assert isinstance(simplify(made(name))[0].layers[-1], L.Rescaling)


def test_a_conv1d_with_its_channels_first_stays_one():
    x = keras.Input(ROW)
    copy, _ = simplify(keras.Model(x, L.Conv1D(8, 3, data_format="channels_first")(x)))
    assert kinds(copy) == {"Conv1D": 1}


def test_several_inputs_and_outputs_keep_their_structure():
    a, b = keras.Input(VECTOR, name="a"), keras.Input(VECTOR, name="b")
    outputs = {"sum": a + b * 0.5, "gate": L.Dense(4, "swish")(b), "rest": [2.0 - a, L.Dense(3, "relu")(a)]}
    model = spread(keras.Model({"left": a, "right": b}, outputs))
    images = {"left": draw(VECTOR), "right": draw(VECTOR, seed=1)}
    tf.nest.assert_same_structure(copied(model)(images), model(images))
    assert_same(copied(model), model, images)


def test_names_that_clash_get_a_number_and_the_first_keeps_its_own():
    copy, sources = simplify(made("nested models"))
    assert {name for name in sources if copy.get_layer(name).weights} == {"other", "same", "other_2", "same_2"}
    kernels = [sources[name][0] for name in ("other", "other_2")]
    assert [kernel.name for kernel in kernels] == ["other/kernel:0"] * 2 and kernels[0] is not kernels[1]


def test_a_new_layer_takes_no_name_of_one_that_comes_later():
    inputs = keras.Input(IMAGE)
    x = L.SeparableConv2D(8, 3, activation="relu", name="sep")(inputs)
    for name in ("sep_relu", "sep_depthwise"):
        x = L.Conv2D(4, 1, name=name)(x)
    model = keras.Model(inputs, x)
    copy, sources = simplify(model)
    assert [layer.name for layer in copy.layers][1:] == ["sep_depthwise_2", "sep", "sep_relu_2", "sep_relu", "sep_depthwise"]
    for name in ("sep_relu", "sep_depthwise"):
        assert [id(weight) for weight in sources[name]] == [id(weight) for weight in model.get_layer(name).weights]


# ---- The grid of a sigmoid -----------------------------------------------------------------------------------------------------------------------


def sigmoid_student():
    x = keras.Input(VECTOR)
    gate = L.Dense(4, activation="sigmoid", name="gate")(x)
    student = quantize(keras.Model(x, L.Dense(3)(L.Multiply()([x, gate]))), Scheme(Interval(4), Interval(4)))
    kerakd.calibrate(student, draw(VECTOR))
    return student


def test_a_sigmoid_has_the_grid_of_the_integer_runtimes_and_keeps_it_through_a_file(tmp_path):
    student = sigmoid_student()
    student.save(tmp_path / "student.keras")
    with kerakd.quantize_scope():
        again = keras.models.load_model(tmp_path / "student.keras")
    for model in (student, again):
        layer = model.get_layer("gate_sigmoid_out")
        assert isinstance(layer, QuantizedActivation) and layer.relu is False
        assert layer.quantizer == Sigmoid() and layer.quantizer.levels() == (0, 255) and not layer.weights
        assert float(layer.step_size) == 1 / 256
    np.testing.assert_array_equal(again(draw(VECTOR)), student(draw(VECTOR)))


def test_a_subclass_may_compute_something_else_and_stays():
    class Doubled(L.ReLU):
        def call(self, x):
            return 2 * super().call(x)

    inputs = keras.Input((6, 3))
    model = keras.Model(inputs, Doubled(name="doubled")(L.Conv1DTranspose(2, 3, name="up")(inputs)))
    copy, _ = simplify(model)
    assert [type(copy.get_layer(name)) for name in ("up", "doubled")] == [L.Conv1DTranspose, Doubled]


class Same(L.Conv2D):
    """What it is built with is its own, and so are methods that a Conv2D has not."""

    bias_at_first: float = 0.5

    def __init__(self, filters, size=3, **kwargs):
        super().__init__(filters, size, **{"padding": "same", "bias_initializer": keras.initializers.Constant(self.bias_at_first), **kwargs})

    def get_config(self):
        return {"filters": self.filters, "size": self.kernel_size, "name": self.name}

    def describe(self):
        return f"{self.filters} filters"

    def twice(self, x, *args):
        return 2 * L.Conv2D.convolution_op(self, x, *args)


def same(base):
    """A subclass of another, likewise."""

    def __init__(self, *args, own=1, **kwargs):
        base.__init__(self, *args, **kwargs)
        self.own = own

    return type("Same", (base,), {"__init__": __init__, "get_config": lambda self: {"own": self.own, "name": self.name}})


def changed(**body):
    return type("Changed", (Same,), body)


class Doubled:
    """A descriptor of what is read as twice what it is set to."""

    def __get__(self, layer, cls):
        return self if layer is None else 2 * layer.own

    def __set__(self, layer, value):
        layer.own = value


KERNELED = [(base, shape) for shape, bases in {IMAGE: (L.SeparableConv2D, L.DepthwiseConv2D), ROW: (L.Conv1D, L.SeparableConv1D)}.items() for base in bases]


@pytest.mark.parametrize(
    ("cls", "arguments", "shape"),
    [
        *((Same, (4,), IMAGE), (changed(__doc__="Another."), (4,), IMAGE), (same(L.Dense), (4,), IMAGE), (same(L.DepthwiseConv1D), (3,), ROW)),
        *((same(base), (3,) if base is L.DepthwiseConv2D else (4, 3), shape) for base, shape in KERNELED),
    ],
    ids=lambda value: value.__mro__[1].__name__ if isinstance(value, type) else "",
)
def test_a_subclass_that_changes_nothing_of_how_it_computes_is_its_base(cls, arguments, shape):
    inputs = keras.Input(shape)
    model = spread(keras.Model(inputs, cls(*arguments)(inputs)))
    copy = copied(model)
    assert {type(one) for one in copy.layers} <= {L.InputLayer, L.Conv2D, L.Dense, L.DepthwiseConv2D, L.Reshape}
    assert_same(copy, model, draw(shape))


def replacing(name, build=lambda self: self.twice):
    """An `__init__` that replaces or adds something on the layer."""

    def __init__(self, *args, **kwargs):
        Same.__init__(self, *args, **kwargs)
        setattr(self, name, build(self))

    return {"__init__": __init__}


@pytest.mark.parametrize(
    "body",
    [
        {"call": lambda self, x: 2 * L.Conv2D.call(self, x)},
        {"build": lambda self, shape: L.Conv2D.build(self, shape)},
        {"convolution_op": lambda self, x, kernel: L.Conv2D.convolution_op(self, x, 2 * kernel)},
        {"__call__": lambda self, x: 2 * L.Conv2D.__call__(self, x)},
        {"kernel": property(lambda self: 2 * self.own, lambda self, value: setattr(self, "own", value))},
        {"kernel": Doubled()},
        replacing("convolution_op"),
        replacing("seen", lambda self: self.add_weight(name="seen", shape=(), trainable=False)),
    ],
    ids=lambda body: next(iter(body)),
)
def test_a_subclass_that_changes_something_stays_what_it_is(body):
    inputs, own = keras.Input(IMAGE), changed(**body)
    copy, _ = simplify(keras.Model(inputs, own(4, name="own")(inputs)))
    assert type(copy.get_layer("own")) is own


def test_one_convolution_of_rows_and_of_rows_of_rows_is_refused():
    rows, planes = keras.Input((9, 4)), keras.Input((2, 9, 4))
    for first, second in ((rows, planes), (planes, rows)):
        one = L.Conv1D(4, 3, name="one")
        with pytest.raises(BadInput, match="expected calls of one layer on tensors of as many axes, received 'one' on others"):
            simplify(keras.Model([first, second], [one(first), one(second)]))


@pytest.mark.parametrize("axis", [0, [0, 1], -1])
def test_a_constraint_of_a_kernel_of_rows_constrains_the_same(axis):
    told = {f"{part}_constraint": keras.constraints.UnitNorm(axis) for part in ("depthwise", "pointwise")}
    inputs = keras.Input(ROW)
    x = L.DepthwiseConv1D(3, depthwise_constraint=keras.constraints.UnitNorm(axis))(L.SeparableConv1D(8, 3, **told)(inputs))
    model = spread(keras.Model(inputs, L.Conv1D(4, 3, kernel_constraint=keras.constraints.UnitNorm(axis), bias_constraint="non_neg")(x)))
    copy = copied(model)
    for network in (model, copy):
        for variable in network.trainable_variables:
            if variable.constraint:
                variable.assign(variable.constraint(variable))
    assert_same(copy, model, draw(ROW))


def test_an_activation_without_a_name_of_its_own_and_one_that_is_a_layer():
    inputs = keras.Input((8, 8, 3))
    with pytest.warns(UserWarning, match="includes a `lambda`"):  # Keras's own, which any copy of such a layer brings
        copy, _ = simplify(keras.Model(inputs, L.Conv2D(2, 3, name="c", activation=lambda x: 2 * x)(inputs)))
    assert "c_lambda" in [layer.name for layer in copy.layers]
    with pytest.raises(BadInput, match="expected a function for the activation of 'p', received a layer"):
        simplify(keras.Model(inputs, L.Conv2D(2, 3, name="p", activation=L.PReLU())(inputs)))
    row = keras.Input((8, 3))
    with pytest.raises(BadInput, match="expected a function for the activation of 'r', received a layer"):
        simplify(keras.Model(row, L.Conv1D(2, 3, name="r", activation=L.PReLU())(row)))
    assert simplify(keras.Model(inputs, tf.reduce_mean(inputs * 2.0, axis=None, keepdims=True)))


def test_a_normalization_of_what_never_varies_divides_by_no_zero():
    x = keras.Input((3,))
    model = keras.Model(x, L.Dense(2)(L.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 0.0, 4.0])(x)))
    copy, sources = simplify(model)
    for name, weights in sources.items():
        copy.get_layer(name).set_weights([variable.numpy() for variable in weights])
    images = np.float32([[1, 2, 3], [0, 2.5, 1]])
    np.testing.assert_allclose(copy(images), model(images), rtol=1e-5)

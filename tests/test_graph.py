"""Laws of the walk over a functional model: every call once, in order, with the model's own outputs."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kerakd import graph, models
from kerakd.errors import BadInput

L = keras.layers
RNG = np.random.default_rng(0)


def shared():
    """One layer called twice."""
    x = keras.Input((3,), name="x")
    dense = L.Dense(3, name="twice")
    return keras.Model(x, L.Add(name="add")([dense(x), dense(dense(x))]))


def nested():
    """A functional model inside a Sequential inside a functional model."""
    a = keras.Input((4,), name="a")
    inner = keras.Model(a, L.Dense(3, name="deep")(L.Dense(5, activation="relu", name="deeper")(a)), name="inner")
    middle = keras.Sequential([keras.Input((4,)), inner, L.Dense(2, name="middle_end")], name="middle")
    x = keras.Input((4,), name="x")
    return keras.Model(x, L.ReLU(name="end")(middle(L.Dense(4, name="start")(x))))


def two_inputs():
    """A list of inputs, a dictionary of outputs; one output is also read inside."""
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    joined = L.Concatenate(name="join")([L.Dense(2, name="left")(a), b])
    return keras.Model([a, b], {"joined": joined, "sum": L.Dense(1, name="top")(joined)})


def sequential():
    return keras.Sequential([keras.Input((4,)), L.Dense(3, name="one"), L.Dense(2, name="two")])


def resnet():
    return models.build("resnet8", (8, 8, 1), 10, 0.25)


MODELS = (shared, nested, two_inputs, sequential, resnet)
every = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)


def data(model):
    arrays = [tf.constant(RNG.normal(size=(2, *ref.shape[1:])), tf.float32) for ref in model.inputs]
    return tf.nest.pack_sequence_as(model._nested_inputs, arrays)


def plainly(layer, args, kwargs):
    return layer(*args, **kwargs)


def assert_same(got, expected):
    tf.nest.assert_same_structure(got, expected)
    for one, other in zip(tf.nest.flatten(got), tf.nest.flatten(expected)):
        np.testing.assert_array_equal(one, other)


@every
def test_a_walk_that_calls_every_layer_gives_the_models_outputs(make):
    model = make()
    inputs = data(model)
    assert_same(graph.walk(model, inputs, plainly), model(inputs))


@every
def test_a_rebuilt_model_gives_the_models_outputs_under_its_name(make):
    model = make()
    again, inputs = graph.rebuild(model, plainly), data(model)
    assert_same(again(inputs), model(inputs))
    assert again.name == model.name and [ref.shape for ref in again.inputs] == [ref.shape for ref in model.inputs]
    assert not any(isinstance(layer, keras.Model) for layer in again.layers)


def test_a_walk_enters_nested_models_and_sees_plain_layers_in_order():
    seen = []
    graph.walk(nested(), None, lambda layer, args, kwargs: seen.append(layer.name))
    assert seen == ["start", "deeper", "deep", "middle_end", "end"]


def test_a_walk_sees_a_shared_layer_at_each_of_its_calls():
    assert [call.layer.name for call in graph.calls(shared())] == ["twice", "twice", "twice", "add"]


def test_a_walk_passes_the_callers_own_marks_along():
    kept = graph.walk(sequential(), "in", lambda layer, args, kwargs: f"{layer.name}({args[0]})")
    assert kept == "two(one(in))"


def test_a_walk_passes_the_arguments_of_a_call():
    x = keras.Input((3,), name="x")
    model = keras.Model(x, L.Dropout(0.5, name="drop")(x, training=True))
    seen = []
    graph.walk(model, tf.zeros((1, 3)), lambda layer, args, kwargs: seen.append(kwargs) or args[0])
    assert seen == [{"training": True}]


def test_calls_link_every_tensor_to_its_maker_and_its_readers():
    by_name = {call.layer.name: call for call in graph.calls(two_inputs())}
    left, join, top = by_name["left"], by_name["join"], by_name["top"]
    assert join.inputs[0] is left.outputs[0] and join.inputs[0].call is left and left.outputs[0].readers == [join]
    assert [value.call for value in left.inputs] == [None] == [join.inputs[1].call]
    assert join.outputs[0].readers == [top] and join.outputs[0].is_output and top.outputs[0].is_output and not left.outputs[0].is_output


def test_a_sole_reader_reads_alone_and_of_what_is_no_output():
    by_name = {call.layer.name: call for call in graph.calls(two_inputs())}
    assert by_name["left"].sole_reader is by_name["join"]
    assert by_name["join"].sole_reader is None  # the model answers with it, too
    block = {call.layer.name: call for call in graph.calls(resnet())}
    assert block["conv_relu"].sole_reader is None  # the shortcut reads it, too
    assert block["conv"].sole_reader is block["conv_bn"]


def test_a_cloned_layer_has_the_configuration_with_its_changes_and_fresh_weights():
    layer = L.Dense(3, activation="relu", name="one")
    layer.build((None, 2))
    copy = graph.clone_layer(layer, use_bias=False)
    assert {**layer.get_config(), "use_bias": False} == copy.get_config() and not copy.built


def test_a_rebuilt_model_takes_another_dtype_and_a_wrapped_input():
    model = graph.rebuild(sequential(), lambda layer, args, kwargs: args[0], on_input=lambda x: 2 * x, dtype=tf.float64)
    np.testing.assert_array_equal(model(tf.constant([[1, 2, 3, 4]], tf.float64)), [[2, 4, 6, 8]])
    assert model.inputs[0].dtype == tf.float64


def test_only_a_layer_graph_of_keras_2_is_walked():
    import keras as keras_3

    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    for model, telling in (
        (keras_3.Sequential([keras_3.Input((2,)), keras_3.layers.Dense(1)]), "net: .*Keras 3 one .Sequential.*import tf_keras as keras"),
        (Own(), "net: .*received Own, which has no layer graph; write it as keras.Model"),
        (keras.Sequential([L.Dense(1)]), "net: .*received Sequential, which has no layer graph; give it an Input layer or call build"),
        ("resnet", "net: expected a tf_keras model, received str"),
    ):
        with pytest.raises(BadInput, match=telling):
            graph.check_functional(model, "net")
    graph.check_functional(sequential())


class Spare(L.Layer):
    """A layer that holds a dropout which it never calls, as keras_cv's blocks without a rate do."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = L.Dropout(0.5)

    def call(self, inputs):
        return inputs * 1.0


def test_a_random_layer_that_is_never_called_has_no_state():
    inputs = keras.Input((4,))
    net = keras.Model(inputs, L.Dense(2)(L.Dropout(0.5, force_generator=True)(Spare()(inputs))))
    assert len(graph.random_states(net)) == 1

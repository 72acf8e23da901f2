"""Walk a functional Keras model call by call, with a substitute for each layer's call."""

import collections
import dataclasses

import tensorflow as tf
import tf_keras as keras

from kerakd.errors import BadInput, first_line


def is_functional(model):
    """Whether a tf_keras model is made of layers and computes what they do, and nothing else."""
    own = type(model).call not in (keras.Sequential.call, keras.src.engine.functional.Functional.call)
    return getattr(model, "_is_graph_network", False) and not own


def check_functional(model, argument="model"):
    """Raises BadInput unless `model` is a built tf_keras functional or Sequential model."""
    if any(cls.__module__.startswith("keras.") for cls in type(model).__mro__):
        raise BadInput(
            f"{argument}: expected a tf_keras (Keras 2) model, received a Keras 3 one ({type(model).__name__}); build it with "
            "`import tf_keras as keras`, or take kerakd.from_keras3(model), which rebuilds it"
        )
    if not isinstance(model, keras.Model):
        raise BadInput(f"{argument}: expected a tf_keras model, received {type(model).__name__}")
    if not getattr(model, "_is_graph_network", False):
        remedy = (
            "give it an Input layer or call build(input_shape)"
            if isinstance(model, keras.Sequential)
            else "write it as keras.Model(inputs, outputs): the body of its call() applied to a keras.Input"
        )
        raise BadInput(f"{argument}: expected a functional or built Sequential model, received {type(model).__name__}, which has no layer graph; {remedy}")
    if not is_functional(model):
        raise BadInput(
            f"{argument}: expected a model that computes what its layers do, received {type(model).__name__}, which has a call() of its own; "
            "put what that adds into layers"
        )


def walk(model, inputs, call):
    """Runs `model` on `inputs`, asking `call(layer, args, kwargs)` for the value of every layer call.

    Nested functional models are entered, so `call` sees plain layers only, in an order that depends on the model alone.
    `inputs` and what `call` returns may be anything: tensors, symbolic tensors, or marks of the caller's own.

    Args:
        model: a functional tf_keras model.
        inputs: as the model takes them (one value, or the model's structure of them).
        call: function of (layer, args, kwargs) that stands in for `layer(*args, **kwargs)`.
    Returns: the model's outputs, in the model's own structure.
    """
    values = {str(id(ref)): value for ref, value in zip(model.inputs, model._flatten_to_reference_inputs(inputs))}
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input or any(i not in values for i in node.flat_input_ids):
                continue
            args, kwargs = node.map_arguments({i: [values[i]] * len(node.flat_input_ids) for i in node.flat_input_ids})
            if isinstance(node.layer, keras.Model):
                outputs = walk(_functional(node.layer), args[0], call if kwargs.get("training") is None else _in_mode(call, kwargs["training"]))
            else:
                outputs = call(node.layer, args, kwargs)
            values.update(zip(node.flat_output_ids, tf.nest.flatten(outputs)))
    return tf.nest.pack_sequence_as(model._nested_outputs, [values[str(id(out))] for out in model.outputs])


def _in_mode(call, training):
    """`call`, told the mode in which the nested model around the layer is called, where it does not say so itself."""

    def told(layer, args, kwargs):
        takes = layer._expects_training_arg and kwargs.get("training") is None
        return call(layer, args, {**kwargs, "training": training} if takes else kwargs)

    return told


def _functional(model):
    check_functional(model, f"nested model {model.name!r}")
    return model


@dataclasses.dataclass(eq=False)
class Value:
    """A tensor of the graph: which call made it (None for a model input) and which calls read it."""

    call: "Call | None"
    readers: list
    is_output: bool = False


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a layer; `inputs` and `outputs` are Values.

    training: whether the model calls it in training mode whatever its own mode is.
    casts: whether Keras casts all of `inputs` to the layer's own precision: only what is in the first argument, and for no operator on tensors.
    once: whether no other call is of a layer of this name.
    """

    layer: keras.layers.Layer
    inputs: list
    outputs: list
    training: bool
    casts: bool
    once: bool = True

    @property
    def sole_reader(self):
        """The call that alone reads this call's single output, or None."""
        if len(self.outputs) != 1 or self.outputs[0].is_output or len(self.outputs[0].readers) != 1:
            return None
        return self.outputs[0].readers[0]


def calls(model):
    """The layer calls of `model` in the order of `walk`, linked by the Values that they read and make."""
    found = []

    def record(layer, args, kwargs):
        inputs = [v for v in tf.nest.flatten((args, kwargs)) if isinstance(v, Value)]
        call = Call(layer, inputs, [], kwargs.get("training") is True, layer._autocast and len(inputs) == len(tf.nest.flatten(args[:1])))
        outputs = tf.nest.map_structure(lambda _: Value(call, []), layer.get_output_at(0) if layer._inbound_nodes else 0)
        call.outputs = tf.nest.flatten(outputs)
        for value in inputs:
            value.readers.append(call)
        found.append(call)
        return outputs

    inputs = tf.nest.map_structure(lambda _: Value(None, []), model._nested_inputs)
    for out in tf.nest.flatten(walk(model, inputs, record)):
        out.is_output = True
    times = collections.Counter(call.layer.name for call in found)
    for call in found:
        call.once = times[call.layer.name] == 1
    return found


def random_states(model):
    """The generators that its layers, dropout and the like, draw from: Keras leaves them out of checkpoints."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.__internal__.layers.BaseRandomLayer)]
    found = [getattr(layer._random_generator, "_generator", None) for layer in layers]  # one that was never called has none yet
    return [state for state in found if state is not None]


def clone_layer(layer, cls=None, **changes):
    """A fresh layer of the same configuration but for `changes`, and of the same class or of `cls`, one of its bases; its weights are not copied."""
    cls = cls or type(layer)
    if cls is keras.layers.BatchNormalization and layer.synchronized:
        changes = {"synchronized": True, **changes}  # which Keras leaves out of its configuration
    try:
        return cls.from_config({**cls.get_config(layer), **changes})
    except (TypeError, ValueError, NotImplementedError) as error:
        raise BadInput(
            f"model: expected layers that can be made again from their configuration, received {layer.name!r}, {type(layer).__name__} "
            f"({first_line(error, 120)}); register its class or function with keras.utils.register_keras_serializable, "
            "and for a lambda or a partial take a layer (LeakyReLU, say) or a function with a name"
        ) from error


def flat(model):
    """A model of the same layers, those of nested models among them; the same model where two of them have one name."""
    layers = {call.layer for call in calls(model)}
    if len({layer.name for layer in layers}) < len(layers):
        return model
    return rebuild(model, lambda layer, args, kwargs: layer(*args, **kwargs))


def rebuild(model, call, on_input=lambda tensor: tensor, dtype=None):
    """A new functional model: `walk` over symbolic inputs of the same shapes and names.

    Args:
        model: a functional tf_keras model; nested models come out flat.
        call: function of (layer, args, kwargs) that returns symbolic outputs; it decides which layers the new model is made of.
        on_input: applied to each symbolic input first.
        dtype: of the inputs; None keeps the model's.
    """
    inputs = [keras.Input(ref.shape[1:], batch_size=ref.shape[0], dtype=dtype or ref.dtype, name=ref.node.layer.name) for ref in model.inputs]
    structure = tf.nest.pack_sequence_as(model._nested_inputs, inputs)
    values = tf.nest.map_structure(on_input, structure)
    return keras.Model(structure, walk(model, values, call), name=model.name)

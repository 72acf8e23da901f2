"""The graph of a Keras 3 model, rebuilt call by call in tf_keras, and its weights."""

import inspect

import tensorflow as tf
import tf_keras as keras

from kerakd.errors import BadInput
from kerakd.keras3.layers import ACTIVATIONS, HARD, WITHIN, class_of, config_of, hard
from kerakd.keras3.names import Names
from kerakd.keras3.operations import Operation, operation
from kerakd.keras3.words import reason, short, shown

L = keras.layers


def graph_of(model, keras3):
    """The keras.Function that holds the nodes of a Keras 3 model. Raises: BadInput for a model without."""
    if not type(model).call.__module__.startswith("keras."):  # also a functional one: its call() may do more than the graph says
        remedy = "write it as keras.Model(inputs, outputs): the body of its call() applied to a keras.Input"
        raise BadInput(f"model: expected a functional or Sequential model, received {model.name!r} of the subclass {type(model).__name__}; {remedy}")
    graph = model._functional if isinstance(model, keras3.Sequential) else model
    if not hasattr(graph, "_nodes_by_depth"):
        raise BadInput(f"model: expected a built Sequential model, received {model.name!r}, which has no layer graph; give it a keras.Input first")
    return graph


class Made:
    """What has been rebuilt so far: each layer and each model once, so that what is shared stays shared.

    layers: {id of the Keras 3 layer: (it, the tf_keras layer or None, the function of (tensor, call arguments) that stands for it)}.
    models: {id of the Keras 3 model: (it, the tf_keras model)}, inner ones first.
    tensors: [(layer or operation name, Keras 3 tensor, tf_keras tensor)] of the outermost model, in the order of the calls.
    """

    def __init__(self, keras3):
        self.keras3, self.layers, self.models, self.tensors = keras3, {}, {}, []

    def model(self, source):
        """The tf_keras model for a Keras 3 one."""
        if id(source) in self.models:
            return self.models[id(source)][1]
        graph = graph_of(source, self.keras3)
        names = Names(op.name for op in graph._operations)
        values, found = {id(ref): _input(ref) for ref in graph.inputs}, []
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                if node.is_input or any(id(ref) not in values for ref in node.input_tensors):
                    continue
                made = tf.nest.flatten(self.call(node, values, names))
                values.update((id(ref), value) for ref, value in zip(node.outputs, made, strict=True))
                found += [(node.operation.name, ref, value) for ref, value in zip(node.outputs, made)]
        structures = [tf.nest.map_structure(lambda ref: values[id(ref)], refs) for refs in (graph._inputs_struct, graph._outputs_struct)]
        copy = keras.Model(*structures, name=source.name)
        self.models[id(source)], self.tensors = (source, copy), found
        return copy

    def call(self, node, values, names):
        """The tf_keras outputs for one call of a layer, a nested model or an operation."""
        op = node.operation
        args, kwargs = node.arguments.fill_in(values)
        try:
            if isinstance(op, self.keras3.Model):
                return _apply(self.model(op), *_arguments(op, args, kwargs))
            if isinstance(op, self.keras3.layers.Layer):
                return self.layer(op, names, names.own)(*_arguments(op, args, kwargs))
            return operation(Operation(op, args, kwargs, node.outputs[0], names))
        except BadInput:
            raise
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise BadInput(
                f"model: expected layers that tf_keras can build, received {op.name!r} of class {type(op).__name__} ({reason(error)}); "
                "change that layer, or write the model in tf_keras"
            ) from error

    def layer(self, source, names, pick):
        """The function of (tensor, call arguments) that stands for a call of a Keras 3 layer; `pick` makes the name out of the layer's."""
        if id(source) not in self.layers:
            cls = class_of(source)
            config = {**config_of(source, cls, self.keras3), "name": pick(source.name)}
            after = None
            if "activation" in config:
                config["activation"], after = self.activation(source, config, names)
            copy = None if after and cls is L.Activation else cls(**config)
            self.layers[id(source)] = source, copy, _chain(copy, after)
        return self.layers[id(source)][2]

    def activation(self, source, config, names):
        """(what the tf_keras layer takes as its `activation`, the function that comes after the layer or None)."""
        value, name = config["activation"], config["name"]
        if isinstance(source.activation, self.keras3.layers.Layer):
            if type(source.activation).__name__ not in WITHIN:
                received = f"the layer {source.activation.name!r} as that of {source.name!r}"
                raise BadInput(f"model: expected one of {', '.join(WITHIN)} as an activation, received {received}; put it behind {source.name!r}")
            inner = self.layer(source.activation, names, lambda own: names.added(f"{name}_{own}"))
            return "linear", lambda x: inner(x, {})
        if not isinstance(value, str) or value not in (*ACTIVATIONS, *HARD):
            known = ", ".join((*ACTIVATIONS, *HARD))
            raise BadInput(f"model: expected one of the activations {known}, received {short(value)} in layer {source.name!r}; change it")
        if value in ACTIVATIONS:
            return ACTIVATIONS[value], None
        own = name if isinstance(source, self.keras3.layers.Activation) else names.added(f"{name}_{value}")
        return "linear", hard(value, own, names, source.compute_dtype)


def _chain(copy, after):
    """The function of (tensor, call arguments) that calls the layer, if there is one, and what comes after it, if that is."""
    if after is None:
        return lambda x, training: _apply(copy, x, training)
    return lambda x, training: after(x if copy is None else _apply(copy, x, training))


def _apply(copy, x, training):
    return copy(x, **training) if copy._expects_training_arg else copy(x)


def _arguments(layer, args, kwargs):
    """(the tensors, {"training": False} or {}) of a layer's call. Raises: BadInput for any other argument.

    Keras 3 notes a default True down in some layers and lets the model's own `training` overrule it, so True is left out.
    It overrules (3.15) a False as well, which tf_keras honours: that is what was written, so it is kept.
    """
    given = dict(inspect.signature(layer.call).bind(*args, **kwargs).arguments)
    x, training = given.pop(next(iter(given))), given.pop("training", None)
    others = {name: value for name, value in given.items() if any(part is not None for part in tf.nest.flatten(value))}
    if others:
        raise BadInput(f"model: expected layers called with tensors and `training` only, received {layer.name!r} called with {shown(others)}; leave that out")
    return x, {} if training is None or training else {"training": False}


def _input(ref):
    """The tf_keras input for an input tensor of a Keras 3 model."""
    layer = ref._keras_history.operation
    special = {key: True for key in ("sparse", "ragged", "optional") if getattr(layer, key, False)}
    if special:
        raise BadInput(f"model: expected dense inputs that are always given, received {layer.name!r} with {shown(special)}; make it a plain keras.Input")
    return keras.Input(ref.shape[1:], batch_size=ref.shape[0], dtype=ref.dtype, name=layer.name)


def copy_weights(source, copy):
    """The Keras 3 layer's weights into the tf_keras layer, each to the one of its name."""
    if copy is None:
        return
    values = {variable.name: variable.numpy() for variable in source.weights}
    names = [variable.name.split("/")[-1].split(":")[0] for variable in copy.weights]
    if "Depthwise" in type(copy).__name__:
        names = [name.removeprefix("depthwise_") for name in names]  # Keras 3 calls a depthwise convolution's kernel "kernel"
    shapes = dict(zip(names, (tuple(variable.shape) for variable in copy.weights)))
    if {name: value.shape for name, value in values.items()} != shapes:
        received = ", ".join(f"{name} {value.shape}" for name, value in values.items())
        expected = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise BadInput(f"model: expected the weights {expected} in layer {source.name!r}, received {received}; write the model in tf_keras")
    _check_variables(source, {name for name, variable in zip(names, copy.weights) if variable.trainable})
    copy.set_weights([values[name] for name in names])


def _check_variables(source, learned):
    """Raises BadInput for what a variable of the Keras 3 layer has of its own and not by the layer's arguments. learned: names of those that learn."""
    frozen = sorted(learned - {variable.name for variable in source.weights if variable.trainable}) if source.trainable else []
    if frozen:
        raise BadInput(f"model: expected weights that learn as their layer does, received {', '.join(frozen)} of {source.name!r} frozen; freeze the layer")
    known = [value for name, value in vars(source).items() if name.endswith("_regularizer")]
    for variable in source.weights:
        if variable.regularizer is not None and not any(variable.regularizer is one for one in known):
            raise BadInput(
                f"model: expected regularizers that are arguments of their layer, received one of {variable.name!r} of {source.name!r} alone; "
                f"give the layer {variable.name}_regularizer"
            )


def copy_trainable(made, model):
    """Setting a model's switch sets those of all in it, so outer models come first and layers last.

    In tf_keras an inner model that is switched off hides layers in it that are on; in Keras 3 it does not.
    """
    for source, copy in reversed(made.models.values()):
        copy.trainable = source.trainable if source is model else any(variable.trainable for variable in source.variables)
    for source, copy, _ in made.layers.values():
        if copy is not None:
            copy.trainable = source.trainable

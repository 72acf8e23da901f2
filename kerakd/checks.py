"""What a student, a teacher and labels have to be, said before an hour is spent on them."""

import inspect
import sys

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kerakd import graph
from kerakd.errors import BadInput, Diverged
from kerakd.graph import check_functional
from kerakd.kinds import OPERATORS, PROBABILITIES, is_transparent, operator
from kerakd.wrapper import QuantizedActivation, QuantizedLayer

L = keras.layers


def check_labels(labels, classes):
    """Raises BadInput for integer labels outside 0..classes-1."""
    labels = tf.convert_to_tensor(labels)
    if labels.dtype.is_integer and labels.shape.num_elements() and labels.shape.rank in (1, 2) and (labels.shape.rank == 1 or labels.shape[1] == 1):
        low, high = int(tf.reduce_min(labels)), int(tf.reduce_max(labels))
        if low < 0 or high >= classes:
            raise BadInput(f"labels: expected 0 to {classes - 1}, as the networks have {classes} classes, received {low} to {high}")


def check_teacher(teacher, student):
    """Raises BadInput for a teacher of other classes, or of probabilities. One that was never called is built for the student's images."""
    if isinstance(teacher, keras.Model) and not graph.is_functional(teacher):  # subclassed: it is only called, never looked into
        said = _said_of_nothing(teacher, student)
        if said is None:  # the first batch will tell
            return
        theirs = said.shape[-1]
        if bool(tf.reduce_all((said >= 0) & (tf.abs(tf.reduce_sum(said, -1, keepdims=True) - 1) < 1e-3))):
            raise BadInput("teacher: expected logits, received probabilities, numbers that are positive and add up to 1; leave its softmax out")
    else:
        check_functional(teacher, "teacher")
        check_logits(teacher, "teacher")
        theirs = teacher.output_shape[-1]
    ours = student.output_shape[-1]
    if theirs != ours:
        raise BadInput(f"teacher: expected {ours} classes, as the student has, received {theirs}; the soft loss compares them class by class")


def _said_of_nothing(teacher, student):
    """What a subclassed teacher says of black images as it was called on, or of the student's size; None where it takes others."""
    known = teacher.save_spec()
    asked = known[0][0] if known and known[0] else student._nested_inputs
    black = tf.nest.map_structure(lambda x: tf.zeros([2, *(size or 32 for size in x.shape[1:])], x.dtype), asked)
    try:
        return teacher(black, training=False)
    except (ValueError, TypeError, tf.errors.InvalidArgumentError):
        return None


def check_apart(teacher, student):
    """Raises BadInput where a variable that moves as the student learns is the teacher's as well: it would not stay what it is."""
    layers = [layer for layer in student._flatten_layers() if layer.trainable]
    averages = [variable for layer in layers for variable in layer._non_trainable_weights if "moving_" in variable.name]  # of BatchNorms of any class
    moving = {variable.ref() for variable in [*student.trainable_variables, *averages]}
    shared = [variable.name for variable in teacher.variables if variable.ref() in moving]
    if shared:
        raise BadInput(
            f"teacher: expected a network of its own, received one that shares {shared[0]!r} with the student; give a copy: clone_model, then set_weights"
        )


def check_kept_losses(model):
    """Raises BadInput for losses that `add_loss` gave a model or a layer: a model made of its layers would not have them. Regularizers are kept."""
    for layer in model._flatten_layers():
        given = [one for one in layer._callable_losses if getattr(getattr(one.args[0], "func", None), "__name__", "") != "_loss_for_variable"]
        if given or type(layer).__name__ in ("AddLoss", "AddMetric"):
            received = "add_metric" if type(layer).__name__ == "AddMetric" else "add_loss"
            raise BadInput(f"model: expected no {received}, received one in {layer.name!r}; leave it out and add it in the training step")


def check_classifier(model, argument):
    """Raises BadInput for what is no functional model of images [n, h, w, c] -> logits [n, C]."""
    check_functional(model, argument)
    shapes = [tuple(value.shape) for value in model.inputs], [tuple(value.shape) for value in model.outputs]
    named = isinstance(model.input_shape, dict) or isinstance(model.output_shape, dict)
    if named or [[len(shape) for shape in side] for side in shapes] != [[4], [2]]:
        told = " and ".join(", ".join(map(str, side)) for side in shapes)
        raise BadInput(f"{argument}: expected one input [n, height, width, channels] and one output [n, classes], received {told}; make a model of those two")
    check_logits(model, argument)


def check_logits(model, argument):
    """Raises BadInput if an output of the model comes out of a softmax or a sigmoid: losses and files here are of logits."""
    for call in graph.calls(model):
        layer = getattr(call.layer, "layer", call.layer)
        applied = isinstance(layer, OPERATORS) and operator(layer) in ("softmax", "sigmoid")
        says = applied or isinstance(layer, L.Softmax) or any(getattr(layer, name, None) in PROBABILITIES for name in ("activation", "function"))
        if says and any(map(_ends, call.outputs)):
            own = not applied and not isinstance(layer, L.Softmax)
            remedy = "give the layer activation=None" if own else "leave it out: tf_keras.Model(model.input, what it is given)"
            raise BadInput(f"{argument}: expected logits, received probabilities: {layer.name!r} ends in softmax or sigmoid; {remedy}")


def check_loss(loss):
    """Raises BadInput for a loss, as `compile` takes it, that would read logits as probabilities: Keras's divergence, its cross-entropies unless told."""
    for one in tf.nest.flatten(loss):
        if _takes_probabilities(keras.losses.get(one) if isinstance(one, str) else one):
            _refuse_probabilities("loss", one, "losses", ", or none for that one")


def check_learners(student, teacher):
    """Raises BadInput where nothing of what is to learn does. student: its variables; teacher: the model that learns beside it, or None."""
    frozen = "student" if not student else "teacher" if teacher is not None and not teacher.trainable_variables else ""
    if frozen:
        raise BadInput(f"{frozen}: expected trainable variables, as it learns, received none; set {frozen}.trainable = True before `fit`")


def check_fit(x, y, callbacks=None, validation_split=0.0, validation_data=None):
    """Raises BadInput for arguments of `fit` that would fail later: labels that are no numbers, validation without labels, a callback that saves a Distiller
    whole, or its weights where `check_path` has them not.
    """
    if getattr(y, "dtype", None) == tf.string or (isinstance(y, np.ndarray) and y.dtype.kind in "USO"):
        raise BadInput("labels: expected class numbers, received strings or objects; number the classes: np.unique(labels, return_inverse=True)[1]")
    if isinstance(validation_data, tf.data.Dataset):
        alone = not isinstance(validation_data.element_spec, tuple) or len(validation_data.element_spec) < 2
    else:
        pair = isinstance(validation_data, (tuple, list))
        alone = hasattr(validation_data, "shape") or pair and (len(validation_data) < 2 or validation_data[1] is None)
    if alone or (validation_split and y is None and not isinstance(x, tf.data.Dataset)):
        argument = "validation_data" if alone else "validation_split"
        raise BadInput(f"{argument}: expected images with labels, received images alone; leave it out, or give their labels")
    for callback in tf.nest.flatten(getattr(callbacks, "callbacks", callbacks)):
        if type(callback) is not keras.callbacks.ModelCheckpoint:  # one of the caller's own may save something else
            continue
        if callback.save_weights_only:
            check_path(callback.filepath)
        else:
            raise BadInput(
                "callbacks: expected a ModelCheckpoint of weights, received one of the whole model, and a Distiller is a way to train; "
                'give ModelCheckpoint("NAME.weights.h5", save_weights_only=True), or a LambdaCallback that calls distiller.student.save'
            )


def check_path(filepath, overwrite=True, save_format=None, **_):
    """Raises BadInput for what a Distiller's weights can't be saved to, given as `save_weights` is."""
    older = str(filepath).endswith((".h5", ".hdf5", ".keras")) or save_format in ("h5", "hdf5", "keras")
    if older and not str(filepath).endswith(".weights.h5"):
        raise BadInput(f"filepath: expected NAME.weights.h5, or a path without .h5, received {filepath}; Keras's older format knows no optimizers")
    if str(filepath).endswith(".weights.h5") and tf.distribute.get_strategy().num_replicas_in_sync > 1:
        raise BadInput(f"filepath: expected a path without .h5 under a strategy of several replicas, received {filepath}; Keras can't write it there")


def check_metrics(metrics, argument="metrics", one_logit=False):
    """Raises BadInput for one of metrics, as `compile` takes them, that would read logits as probabilities: one of those losses, AUC unless told
    from_logits=True, one that compares with a threshold from 0 to 1.

    one_logit: whether the student has one: an accuracy by name has its threshold at 0.5 there, which is no logit's.
    """
    for one in tf.nest.flatten(metrics):
        named = one.lower() if isinstance(one, str) else ""
        if one_logit and (named in ("accuracy", "acc", "binary_accuracy") or one is keras.metrics.binary_accuracy):
            raise BadInput(
                f"{argument}: expected an accuracy of logits for a student of one, received {one!r}; give tf_keras.metrics.BinaryAccuracy(threshold=0)"
            )
        entropy = named in ("crossentropy", "ce", "kld", "kl_divergence", "kullback_leibler_divergence")
        metric = keras.metrics.get(one) if named and not entropy else one
        if entropy or _takes_probabilities(metric):
            _refuse_probabilities(argument, one, "metrics", "")
        remedy = _instead(metric)
        if remedy:
            name = getattr(metric, "name", getattr(metric, "__name__", one))
            raise BadInput(f"{argument}: expected one of logits, received {name!r}, which compares them with numbers from 0 to 1; {remedy}")


def _instead(metric):
    """What to take for a metric that compares what it is given with 0.5, or with several of 0..1; "" for another."""
    if metric is keras.metrics.binary_accuracy:
        return "give tf_keras.metrics.BinaryAccuracy(threshold=0)"
    try:
        config = metric.get_config() if isinstance(metric, keras.metrics.Metric) else {}
    except NotImplementedError:
        config = {}
    name = f"tf_keras.metrics.{type(metric).__name__}"
    if "num_thresholds" in config and "from_logits" not in config:
        return "leave it out"
    if isinstance(metric, keras.metrics.FBetaScore):
        return f"give {name}(threshold=None)" if config["threshold"] is not None else ""
    if "thresholds" in config:
        unset = config["thresholds"] is None and config.get("top_k") is None
        classes = f", or {name}(top_k=1) for several classes" if "top_k" in config else ""
        return f"give {name}(thresholds=0){classes}" if unset or _is_half(config["thresholds"]) else ""
    return f"give {name}(threshold=0)" if _is_half(config.get("threshold")) else ""


def _is_half(threshold):
    return threshold is not None and np.ravel(threshold).tolist() == [0.5]


def _takes_probabilities(one):
    """Whether a loss or metric, an object or a function, reads what it is given as probabilities, as far as it says so."""
    if isinstance(one, (keras.losses.KLDivergence, keras.metrics.KLDivergence)) or one is keras.losses.kl_divergence:
        return True
    if isinstance(one, (keras.losses.Loss, keras.metrics.Metric)):
        try:
            told = one.get_config().get("from_logits")
        except NotImplementedError:
            told = None
        function = getattr(one, "_fn", getattr(one, "fn", None))  # of a metric, or a loss, that wraps one
        return told is False if told is not None or function is None else _takes_probabilities(function)
    asked = inspect.signature(one).parameters.get("from_logits") if callable(one) else None
    return asked is not None and asked.default is False


def _refuse_probabilities(argument, one, module, otherwise):
    received = repr(one) if isinstance(one, str) else getattr(one, "__name__", type(one).__name__)
    raise BadInput(
        f"{argument}: expected one of logits, received {received}, which takes probabilities; give "
        f"tf_keras.{module}.SparseCategoricalCrossentropy(from_logits=True) or another with from_logits=True{otherwise}"
    )


def _ends(value):
    """Whether a tensor is an output, at most through layers that pass values on or quantize them."""
    passing = [reader for reader in value.readers if isinstance(reader.layer, QuantizedActivation) or is_transparent(reader.layer)]
    return value.is_output or any(_ends(out) for reader in passing for out in reader.outputs)


_warned = set()


def warn_of_temperature(student, temperature, teachers):
    """One line a process: published low-bit students got worse with T (pre-activation ResNet-20, W3A8: 91.6 % at T = 1, 90.9 at 2, 80.0 at 5).

    Those of results/README.md gained at 4, with nine tenths of the loss the teacher's.
    """
    if temperature <= 1 or not teachers or _warned:
        return
    for layer in student._flatten_layers():
        for _, quantizer, _ in layer.kernels if isinstance(layer, QuantizedLayer) else ():
            if quantizer.levels()[1] <= 7:
                _warned.add(temperature)
                told = "published students lost accuracy by T above 1, those of results/README.md gained at 4; compare with 1"
                print(f"kerakd: temperature {temperature:g} with kernels of at most 4 bits: {told}", file=sys.stderr)
                return


def first_not_finite(model, images):
    """Where a functional model first has NaN or infinity in training mode: "the images", "the weights of NAME" or NAME of a layer; None if nowhere."""
    if not _finite(images):
        return "the images"
    found = []

    def run(layer, args, kwargs):
        if not found and not all(_finite(weight) for weight in layer.trainable_weights):  # a BatchNorm's statistics are what the step made of them
            found.append(f"the weights of {layer.name!r}")
        if found:
            return args[0]
        outputs = layer(*args, **({**kwargs, "training": True} if isinstance(layer, keras.layers.BatchNormalization) else kwargs))
        if not all(_finite(tensor) for tensor in tf.nest.flatten(outputs)):
            found.append(repr(layer.name))
        return outputs

    graph.walk(model, images, run)
    return found[0] if found else None


def _finite(values):
    return bool(np.isfinite(np.asarray(values, np.float32)).all())


def broken(variables):
    """The name of the first of some variables that is not finite, or None."""
    return next((variable.name for variable in variables if variable.dtype.is_floating and not _finite(variable)), None)


def check_finite(model):
    """Raises Diverged for a weight that is not finite: a gradient can be where the loss was a number still."""
    name = broken(model.variables)
    if name:
        raise Diverged(f"weights: expected finite ones, received NaN or infinity in {name!r}; the training diverged: take a smaller learning rate")

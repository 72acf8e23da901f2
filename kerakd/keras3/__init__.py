"""A tf_keras (Keras 2) model out of a Keras 3 one: layer by layer, operation by operation, then both run on one random batch."""

import os
import pathlib

import tf_keras as keras

from kerakd.errors import BadInput
from kerakd.keras3.check import check_outputs
from kerakd.keras3.files import load, version_of
from kerakd.keras3.rebuild import Made, copy_trainable, copy_weights, graph_of

__all__ = ["from_keras3", "version_of"]


def from_keras3(model):
    """A tf_keras (Keras 2) functional model with the weights and the outputs of a Keras 3 model, which is not touched.

    Layers keep their names, nested models stay nested, shared layers stay shared. Operations on tensors (`x + y`,
    `keras.ops.relu(x)`) and the activations that tf_keras lacks (hard_sigmoid as Keras 3 means it, hard_silu) become
    layers. At the end both models are run on a random batch and compared.

    Args:
        model: a Keras 3 functional or built Sequential model, or the path of its .keras or .h5 file.
    Returns: a tf_keras functional model.
    Raises: BadInput for a tf_keras model, a subclassed one, a layer or operation that tf_keras has no like of (named), outputs that differ.
    """
    keras3 = _installed()
    if isinstance(model, (str, os.PathLike)):
        model = load(pathlib.Path(model), keras3)
    if isinstance(model, keras.Model):
        raise BadInput(
            f"model: expected a Keras 3 model, received {model.name!r}, which is a tf_keras (Keras 2) model already; it needs nothing, use it as it is"
        )
    if not isinstance(model, keras3.Model):
        raise BadInput(f"model: expected a Keras 3 model or the path of its .keras or .h5 file, received {type(model).__name__}; pass the built model")
    made = Made(keras3)
    copy = made.model(model)
    for source, layer, _ in made.layers.values():
        copy_weights(source, layer)
    copy_trainable(made, model)
    check_outputs(graph_of(model, keras3), copy, made.tensors, keras3)
    return copy


def _installed():
    """The package keras. Raises: BadInput for another version than 3."""
    import keras as keras3  # here: a program without Keras 3 models need not load it

    if not keras3.__version__.startswith("3."):
        raise BadInput(f"model: expected Keras 3 as the package `keras`, received version {keras3.__version__}; install keras 3 to read the model")
    return keras3

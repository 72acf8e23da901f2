"""Networks from files: of Keras 2, quantized or not, and of Keras 3."""

import pathlib
import zipfile

import tensorflow as tf
import tf_keras as keras

from kerakd.errors import BadInput, first_line
from kerakd.keras3 import from_keras3, version_of
from kerakd.wrapper import quantize_scope

OF_ITS_OWN = ("register_keras_serializable", "custom_object_scope", "Lambda", "<class 'str'>", "'str' object is not callable")
"""In what Keras says of a class or function that it does not find; the last two where it goes on with its name."""


def load_model(path):
    """A .keras or .h5 file as a tf_keras model, in safe mode; one of Keras 3 is rebuilt.

    Raises: BadInput for a file that is missing, is no such model, or has a layer that can't be rebuilt.
    """
    if not pathlib.Path(path).is_file():
        raise BadInput(f"model: expected a .keras or .h5 file, received {path}, which is not there")
    try:
        if version_of(path).startswith("3."):
            return from_keras3(path)
        with quantize_scope():
            return keras.models.load_model(path, compile=False, safe_mode=True)
    except BadInput:
        raise
    except (ValueError, OSError, TypeError, KeyError, RuntimeError, tf.errors.OpError, zipfile.BadZipFile) as error:
        own = any(word in str(error) for word in OF_ITS_OWN)
        remedy = "a class or function of your own is known to your code alone: train there, with kerakd.Distiller" if own else "save it again"
        raise BadInput(f"model: expected a tf_keras (Keras 2) model, received {path} ({first_line(error)}); {remedy}") from error

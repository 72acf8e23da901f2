"""Networks from files: of Keras 2, quantized or not, and of Keras 3."""

import pathlib
import zipfile

import tensorflow as tf
import tf_keras as keras

from kerakd.errors import BadInput
from kerakd.keras3 import from_keras3, version_of
from kerakd.wrapper import quantize_scope


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
        raise BadInput(
            f"model: expected a tf_keras (Keras 2) model, received {path} ({(str(error).splitlines() or ['broken'])[0][:200]}); save it again"
        ) from error

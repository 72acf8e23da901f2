"""Model files: which Keras wrote one, and loading those of Keras 3."""

import json
import zipfile

import h5py

from kerakd.errors import BadInput
from kerakd.keras3.words import reason


def load(path, keras3):
    """The Keras 3 model of a file. Raises: BadInput for no file, a broken one, one of another Keras."""
    if not path.is_file():
        raise BadInput(f"model: expected the path of a .keras or .h5 file, received {str(path)!r}, where there is no file; give its path")
    try:
        version = version_of(path)
        if version.startswith("3."):
            return keras3.models.load_model(path, compile=False)
    except Exception as error:  # a file can be broken in any way
        raise BadInput(
            f"model: expected a .keras or .h5 file that Keras 3 can load, received {str(path)!r} ({reason(error)}); "
            "save the model with Keras 3 as .keras (an .h5 file cannot hold operations such as x + y), without custom layers; "
            "a subclassed model has no layer graph, write it as keras.Model(inputs, outputs)"
        ) from error
    raise BadInput(f"model: expected a file of Keras 3, received {str(path)!r} of Keras {version}; it needs nothing but tf_keras.models.load_model")


def version_of(path):
    """The version of the Keras that wrote a model file. Keras 3 would load a tf_keras file, but with its own hard_sigmoid in it.

    Raises: KeyError, OSError, ValueError or zipfile.BadZipFile for what is no model file.
    """
    if not h5py.is_hdf5(path):
        with zipfile.ZipFile(path) as file:
            return json.loads(file.read("metadata.json"))["keras_version"]
    with h5py.File(path) as file:
        if "model_config" not in file.attrs:
            raise ValueError("it holds no model, perhaps only weights")
        version = file.attrs["keras_version"]
        return version.decode() if isinstance(version, bytes) else version

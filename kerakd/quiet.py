"""What every program imports first, and no module of the library: TensorFlow's chatter off, no Keras 3.

`tf.keras` is Keras 2 then, which keras_cv asks for.
"""

import os
import sys

from kerakd.chatter import native_chatter_off

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

__all__ = ["native_chatter_off"]


def _load_tfmot():
    """Loads it without Keras 3: it looks there for `keras.engine`, in vain, and loading Keras 3 takes seconds (BUILD.md)."""
    import tensorflow

    # a run makes many networks, each with functions of its own
    tensorflow.get_logger().addFilter(lambda record: "tf.function retracing" not in record.getMessage())
    hidden = sys.modules.setdefault("keras", None)  # makes `import keras` an ImportError
    try:
        import tensorflow_model_optimization  # noqa: F401
    finally:
        if hidden is None:
            del sys.modules["keras"]


with native_chatter_off():
    _load_tfmot()

"""Imported first by every program: TensorFlow's chatter off, and `tf.keras` is Keras 2, which keras_cv asks for."""

import contextlib
import os
import sys
import tempfile
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


@contextlib.contextmanager
def native_chatter_off():
    """Holds back what C++ libraries write to stderr; an exception brings it back, so nothing that explains it is lost."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except BaseException:
            sys.stderr.flush()
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)

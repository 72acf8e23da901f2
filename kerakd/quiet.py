"""Imported first by every program, never by the library: TensorFlow's chatter off, and `tf.keras` is Keras 2, which keras_cv asks for."""

import os

from kerakd.chatter import native_chatter_off

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

__all__ = ["native_chatter_off"]

"""Datasets by name, as splits of examples and as batches of views.

The names below are loaded on first use, so that `python -m kerakd.data` can keep TensorFlow quiet before it loads it.
"""

import importlib

_HOME = {
    **dict.fromkeys(("FOLDER", "PACKAGED", "Split", "check_classes", "check_outside", "images_of", "load"), "splits"),
    **dict.fromkeys(("arrays", "fixed", "indices", "testing", "training"), "batches"),
}
__all__ = [*_HOME]


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f"kerakd.data.{_HOME[name]}"), name)
    raise AttributeError(f"module 'kerakd.data' has no attribute {name!r}")

"""Datasets by name, as splits of examples and as batches of views: the names of `kerakd.data.splits`.

They are loaded on first use, so that `python -m kerakd.data` can keep TensorFlow quiet before it loads it.
"""


def __getattr__(name):
    import importlib

    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(importlib.import_module("kerakd.data.splits"), name)

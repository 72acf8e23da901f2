"""Datasets by name, as splits of examples and as batches of views: the names of `kerakd.data.splits` and `kerakd.data.batches`.

They are loaded on first use, so that `python -m kerakd.data` can keep TensorFlow quiet before it loads it.
"""

_OF_BATCHES = ("training", "indices", "fixed", "testing", "arrays")


def __getattr__(name):
    import importlib

    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(importlib.import_module(f"kerakd.data.{'batches' if name in _OF_BATCHES else 'splits'}"), name)

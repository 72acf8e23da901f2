"""kerakd: ternary and 2..8-bit Keras image classifiers, trained under a teacher, shipped as exact TFLite.

The names below are loaded on first use: importing kerakd loads no TensorFlow and defines no flag.
"""

import importlib

_HOME = {
    "BadInput": "errors",
    "Diverged": "errors",
    "Scheme": "scheme",
    "quantize": "scheme",
    "calibrate": "calibration",
    "Ternary": "quantizers",
    "KBit": "quantizers",
    "Interval": "quantizers",
    "Pact": "quantizers",
    "DoReFa": "quantizers",
    "from_keras3": "keras3",
    "LayerConfig": "wrapper",
    "quantize_scope": "wrapper",
    "Distiller": "distiller",
    "settle": "tflite",
    "settling": "tflite",
    "to_tflite": "tflite",
    "lint": "tflite",
    "unpack": "tflite",
    "emulate": "tflite",
    "codes": "tflite",
    "verify": "tflite",
    "Proof": "tflite",
}
_MODULES = ("batchnorm", "cache", "data", "losses", "models", "optimizers")

__all__ = [*_HOME, *_MODULES]
__version__ = "0.1.0"


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f"kerakd.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"kerakd.{name}")
    raise AttributeError(f"module 'kerakd' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)

"""Accuracy of a network or of a TFLite file on a test split."""

import numpy as np

from kerakd.tflite import runtime


def predictions(predictor, images):
    """Logits [n, C] of `predictor`: a Keras model, or the bytes of a TFLite file, which LiteRT runs."""
    if isinstance(predictor, (bytes, bytearray)):
        return runtime.run(predictor, images)
    return predictor.predict(images, verbose=0)


def accuracy(predictor, images, labels):
    """The share of `images` whose largest logit is their label's."""
    return float(np.mean(predictions(predictor, images).argmax(-1) == labels))

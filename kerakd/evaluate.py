"""Accuracy of a network or of a TFLite file on a test split, and how far a student agrees with its teacher."""

import numpy as np

from kerakd.tflite import runtime


def predictions(predictor, batches):
    """Logits [n, C] of `predictor`: a Keras model, or the bytes of a TFLite file, which LiteRT runs.

    batches: (images, labels) batch by batch, so that no more than one of them has to be in memory.
    """
    if isinstance(predictor, (bytes, bytearray)):
        return np.concatenate([runtime.run(predictor, np.asarray(images)) for images, _ in batches])
    return np.concatenate([predictor(images, training=False).numpy() for images, _ in batches])


def labels_of(batches):
    """int64 [n]."""
    return np.concatenate([np.asarray(labels) for _, labels in batches])


def accuracy(predictor, batches):
    """The share of the images whose largest logit is their label's; batches as of `predictions`."""
    return top1(predictions(predictor, batches), labels_of(batches))


def top1(logits, labels):
    """The share of rows of `logits` [n, C] whose largest is that of `labels` [n]."""
    return float(np.mean(np.asarray(logits).argmax(-1) == labels))


def agreement(student, teacher):
    """How near a student's logits are to its teacher's on the same images (FunMatch's evaluators).

    Args: student, teacher: logits [n, C].
    Returns: {"kl": mean KL(teacher || student), nats, "top1": the share of images on which both name the same class, "top5": on which
        the teacher's class is among the student's first five, "distance": mean Euclidean distance of the logits}.
    """
    log_t, log_s = (
        logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True) for logits in (np.asarray(teacher, np.float64), np.asarray(student, np.float64))
    )
    named = np.argmax(teacher, -1)
    return {
        "kl": float(np.mean(np.sum(np.exp(log_t) * (log_t - log_s), axis=-1))),
        "top1": float(np.mean(np.argmax(student, -1) == named)),
        "top5": float(np.mean([label in row for label, row in zip(named, np.argsort(-np.asarray(student), -1, kind="stable")[:, :5], strict=True)])),
        "distance": float(np.mean(np.linalg.norm(np.asarray(student, np.float64) - teacher, axis=-1))),
    }

"""How good logits are: accuracy, calibration, confusion, and how far a student agrees with its teacher. Keras models and TFLite files alike."""

import numpy as np

from kerakd.errors import BadInput
from kerakd.tflite import runtime

BINS = 15  # of confidence, in the calibration error


def predictions(predictor, batches):
    """Logits [n, C] of `predictor`: a Keras model, or the bytes of a TFLite file, which LiteRT runs.

    batches: (images, labels) batch by batch, so that no more than one of them has to be in memory.
    """
    if isinstance(predictor, (bytes, bytearray)):
        return np.concatenate(list(runtime.batches(predictor, (np.asarray(images) for images, _ in batches))))
    return np.concatenate([predictor(images, training=False).numpy() for images, _ in batches])


def labels_of(batches):
    """int64 [n]. Raises: BadInput for labels below 0, by which datasets say that they keep them to themselves."""
    found = np.concatenate([np.asarray(labels) for _, labels in batches])
    if found.min(initial=0) < 0:
        raise BadInput(f"dataset: expected labels of 0 and more, received {found.min()} in the images to test on; take a dataset whose test has labels")
    return found


def accuracy(predictor, batches):
    """The share of the images whose largest logit is their label's; batches as of `predictions`."""
    return top1(predictions(predictor, batches), labels_of(batches))


def top1(logits, labels):
    """The share of rows of `logits` [n, C] whose largest is that of `labels` [n]."""
    return float(np.mean(np.asarray(logits).argmax(-1) == labels))


def _log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def agreement(student, teacher):
    """How near a student's logits are to its teacher's on the same images (FunMatch's evaluators).

    Args: student, teacher: logits [n, C].
    Returns: {"kl": mean KL(teacher || student), nats, "top1": the share of images on which both name the same class, "top5": on which
        the teacher's class is among the student's first five, "distance": mean Euclidean distance of the logits}.
    """
    log_t, log_s = _log_softmax(teacher), _log_softmax(student)
    named = np.argmax(teacher, -1)
    return {
        "kl": float(np.mean(np.sum(np.exp(log_t) * (log_t - log_s), axis=-1))),
        "top1": float(np.mean(np.argmax(student, -1) == named)),
        "top5": _among_first(student, named, 5),
        "distance": float(np.mean(np.linalg.norm(np.asarray(student, np.float64) - teacher, axis=-1))),
    }


def _among_first(logits, labels, k):
    """The share of rows in which the label is among the k largest logits; of equal ones the first class counts as larger."""
    first = np.argsort(-np.asarray(logits), -1, kind="stable")[:, :k]
    return float(np.mean((first == np.asarray(labels)[:, None]).any(-1)))


def summary(logits, labels):
    """How good logits [n, C] are for labels [n].

    Returns: {"accuracy", "top5": the share of images whose label is among the five largest logits, 1 for five classes and less,
        "nll": mean negative log-likelihood, nats, "calibration_error": see `calibration_error`}.
    """
    labels = np.asarray(labels)
    return {
        "accuracy": top1(logits, labels),
        "top5": _among_first(logits, labels, 5),
        "nll": float(-np.mean(_log_softmax(logits)[np.arange(len(labels)), labels])),
        "calibration_error": calibration_error(logits, labels),
    }


def calibration_error(logits, labels):
    """The expected calibration error: sum over 15 equal bins of confidence, the largest probability, of the share of the images in it
    times |its accuracy - its mean confidence| (Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3).
    """
    confidence = np.exp(_log_softmax(logits).max(-1))
    right = np.asarray(logits).argmax(-1) == labels
    at = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # bins are open below and closed above
    gaps = np.abs(np.bincount(at, right - confidence, BINS))  # in each: how many, times the difference of the means
    return float(gaps.sum() / len(confidence))


def confusion(logits, labels, classes):
    """int64 [classes, classes]: how many images of a row's class are taken for a column's."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (np.asarray(labels), np.asarray(logits).argmax(-1)), 1)
    return counts


def worst(counts, names, count=5):
    """The pairs that are taken for each other most often: [(how many, class, taken for)], the largest first."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    return [(int(wrong.flat[at]), names[at // len(counts)], names[at % len(counts)]) for at in order if wrong.flat[at]]

"""The soft loss: what a network learns from the logits of others."""

import math
import numbers

import tensorflow as tf

from kerakd import losses
from kerakd.errors import BadInput

ROWS = "labels that are rows of several numbers"  # of an assertion, by which it is known again
ENSEMBLES = ("sum", "mean")


class SoftLoss:
    """One loss, at one temperature, of one teacher or several; a constant of the steps that are traced with it.

    "sum":   sum over teachers of w_k * loss(z_S, z_k, T)
    "mean":  loss(z_S, sum(w_k * z_k) / sum(w_k), T)

    Args:
        loss: a key of losses.BY_NAME, or a function (student logits, teacher logits, T) -> [n]; functools.partial(losses.dkd, beta=0.5) is dkd.
        temperature: T > 0.
        weights: a number for each teacher, or None: 1 for each.
        ensemble: of ENSEMBLES.
        teachers: how many there are.
    Raises: BadInput.
    """

    def __init__(self, loss, temperature, weights, ensemble, teachers):
        if not isinstance(temperature, numbers.Real) or not 0 < temperature < math.inf:
            raise BadInput(f"temperature: expected more than 0, received {temperature!r}")
        if not callable(loss) and loss not in losses.BY_NAME:
            raise BadInput(f"soft_loss: expected a function or one of {', '.join(losses.BY_NAME)}, received {loss!r}")
        if ensemble not in ENSEMBLES:
            raise BadInput(f"ensemble: expected one of {', '.join(ENSEMBLES)}, received {ensemble!r}")
        given = [1.0] * teachers if weights is None else list(weights)
        if len(given) != teachers or not all(0 < weight < math.inf for weight in given):
            raise BadInput(f"teacher_weights: expected a positive number for each of {teachers} teachers, received {weights}")
        self.loss = loss if callable(loss) else losses.BY_NAME[loss]
        self.function = getattr(self.loss, "func", self.loss)  # of a functools.partial that sets its other arguments
        if self.function is losses.logit_mse and temperature != 1:
            raise BadInput(f"temperature: expected 1 with logit_mse, which knows none, received {temperature}")
        self.temperature, self.weights, self.ensemble = temperature, given, ensemble

    def __call__(self, logits, teacher_logits, y):
        """[n], of logits [n, C], those of each teacher, and labels for a loss that uses them (None: there are none)."""
        if self.ensemble == "mean":
            return self.between(logits, self.mean(teacher_logits), y)
        return sum(weight * self.between(logits, z, y) for weight, z in zip(self.weights, teacher_logits, strict=True))

    def mean(self, teacher_logits):
        """The weighted mean of teachers' logits: float32 [n, C]."""
        return sum(weight * tf.cast(z, tf.float32) for weight, z in zip(self.weights, teacher_logits, strict=True)) / sum(self.weights)

    def between(self, learner, target, y):
        """[n], of two networks' logits. Raises: BadInput for labels that the loss can't use."""
        if self.function not in losses.WITH_LABELS:
            return self.loss(learner, target, self.temperature)
        if y is None:
            raise BadInput("soft_loss: expected labels in the batches for a loss that uses them, received none; take kl, or give labels")
        if is_one_hot(y):
            raise BadInput(
                f"soft_loss: expected class numbers in the batches for a loss that uses them, received labels {tuple(y.shape)}; take kl, or give numbers"
            )
        known = y.shape.rank != 2 or y.shape[-1] is not None
        with tf.control_dependencies([] if known else [tf.debugging.assert_equal(tf.shape(y)[-1], 1, message=ROWS)]):  # as a generator gives them
            return self.loss(learner, target, self.temperature, tf.reshape(y, [-1]))


def correct(logits, y):
    """[n], 1 where the highest of logits [n, C] is the label's, else 0; None for one logit, or labels that are no class numbers and no row of C."""
    if logits.shape[-1] == 1 or y.shape.rank not in (1, 2) or (is_one_hot(y) and y.shape[-1] != logits.shape[-1]):
        return None
    if y.shape.rank == 2 and y.shape[-1] is None:  # of a generator: one or the other, as it comes
        labels = tf.where(tf.shape(y)[-1] == 1, tf.cast(y[:, 0], tf.int64), tf.argmax(y, axis=-1))
    else:
        labels = tf.argmax(y, axis=-1) if is_one_hot(y) else tf.reshape(y, [-1])
    return tf.cast(tf.argmax(logits, axis=-1) == tf.cast(labels, tf.int64), tf.float32)


def is_one_hot(y):
    """Whether labels are known to be a row for each image, and no class numbers."""
    return y.shape.rank == 2 and y.shape[-1] not in (1, None)

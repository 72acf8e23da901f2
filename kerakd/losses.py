"""What a student is told: losses per example, from logits, that know nothing of reduction.

Every soft loss takes (student logits [n, C], teacher logits [n, C], temperature T > 0) and returns [n]. The gradient reaches
the first argument only: the second is detached.
"""

import tensorflow as tf


def cross_entropy(labels, logits):
    """Hard loss: -log softmax(logits)[label], [n].

    Args: labels [n] integer; logits [n, C].

    >>> float(cross_entropy(tf.constant([0]), tf.constant([[0.0, 0.0]]))[0])
    0.6931471824645996
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, tf.cast(logits, tf.float32))


def kl(student, teacher, temperature=1.0):
    """T^2 * KL(softmax(z_t/T) || softmax(z_s/T)) (FunMatch, section 3; QKD, section 3.2; Hinton et al. 2015 for T^2).

    >>> round(float(kl(tf.constant([[2.0, 1.0, -1.0]]), tf.constant([[3.0, 0.5, -2.0]]))[0]), 6)
    0.138455
    """
    log_p = tf.nn.log_softmax(tf.stop_gradient(tf.cast(teacher, tf.float32)) / temperature)
    log_q = tf.nn.log_softmax(tf.cast(student, tf.float32) / temperature)
    return temperature**2 * tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def soft_cross_entropy(student, teacher, temperature=1.0):
    """-T^2 * sum softmax(z_t/T) log softmax(z_s/T): Apprentice's third term H(z_T, p_A). The student's gradient is that of `kl`."""
    p = tf.nn.softmax(tf.stop_gradient(tf.cast(teacher, tf.float32)) / temperature)
    return -(temperature**2) * tf.reduce_sum(p * tf.nn.log_softmax(tf.cast(student, tf.float32) / temperature), axis=-1)


def logit_mse(student, teacher, temperature=1.0):
    """mean((z_s - z_t)^2) over classes; the limit of `kl` for a high T (Hinton et al. 2015, section 2.1). T does not enter."""
    del temperature  # one signature for all soft losses
    return tf.reduce_mean((tf.cast(student, tf.float32) - tf.stop_gradient(tf.cast(teacher, tf.float32))) ** 2, axis=-1)


def standardized_kl(student, teacher, temperature=2.0):
    """`kl` of logits standardized per example, z <- (z - mean z) / (std z + 1e-7) (logit standardization, CVPR 2024)."""

    def standardize(z):
        z = tf.cast(z, tf.float32)
        return (z - tf.reduce_mean(z, -1, keepdims=True)) / (tf.math.reduce_std(z, -1, keepdims=True) + 1e-7)

    return kl(standardize(student), standardize(teacher), temperature)


BY_NAME = {"kl": kl, "cross_entropy": soft_cross_entropy, "logit_mse": logit_mse, "standardized_kl": standardized_kl}

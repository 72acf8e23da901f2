"""What a student is told: losses per example that know nothing of reduction. The gradient reaches the student's side alone: the teacher's is detached.

Every soft loss of BY_NAME takes (student logits [n, C], teacher logits [n, C], temperature T > 0) and returns [n]; those in
WITH_LABELS take the labels [n] too, as a fourth argument. Every loss of FEATURES takes (student features [n, ...],
teacher features [n, ...]), channels last, and returns [n].
"""

import tensorflow as tf


def kl(student, teacher, temperature=1.0):
    """T^2 * KL(softmax(z_t/T) || softmax(z_s/T)) (FunMatch, section 3; QKD, section 3.2; Hinton et al. 2015 for T^2).

    >>> round(float(kl(tf.constant([[2.0, 1.0, -1.0]]), tf.constant([[3.0, 0.5, -2.0]]))[0]), 6)
    0.138455
    """
    log_p = tf.nn.log_softmax(tf.stop_gradient(tf.cast(teacher, tf.float32)) / temperature)
    log_q = tf.nn.log_softmax(tf.cast(student, tf.float32) / temperature)
    return temperature**2 * _divergence(log_p, log_q)


def _divergence(log_p, log_q):
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def soft_cross_entropy(student, teacher, temperature=1.0):
    """-T^2 * sum softmax(z_t/T) log softmax(z_s/T): Apprentice's third term H(z_T, p_A). The student's gradient is that of `kl`."""
    p = tf.nn.softmax(tf.stop_gradient(tf.cast(teacher, tf.float32)) / temperature)
    return -(temperature**2) * tf.reduce_sum(p * tf.nn.log_softmax(tf.cast(student, tf.float32) / temperature), axis=-1)


def logit_mse(student, teacher, temperature=1.0):
    """mean((z_s - z_t)^2) over classes; twice the limit of `kl` for a high T where both have one mean (Hinton et al. 2015, section 2.1). T does not enter."""
    del temperature  # one signature for all soft losses
    return tf.reduce_mean((tf.cast(student, tf.float32) - tf.stop_gradient(tf.cast(teacher, tf.float32))) ** 2, axis=-1)


def standardized_kl(student, teacher, temperature=1.0):
    """`kl` of logits standardized per example, z <- (z - mean z) / (std z + 1e-7) (Sun et al., CVPR 2024, "Logit Standardization in Knowledge
    Distillation", whose T is 2).

    std is that of the C logits, by C; the authors' code divides by C - 1, as a temperature sqrt(C / (C - 1)) of this one does.

    A student that says the same of each class, as a head of zeros does, is at a corner: its gradient is some millions of times the usual
    one, which SGD takes as it is and Adam remembers; clip it.
    """

    def standardize(z):
        z = tf.cast(z, tf.float32)
        return (z - tf.reduce_mean(z, -1, keepdims=True)) / (tf.math.reduce_std(z, -1, keepdims=True) + 1e-7)

    return kl(standardize(student), standardize(teacher), temperature)


def dkd(student, teacher, temperature, labels, alpha=1.0, beta=8.0):
    """alpha * TCKD + beta * NCKD: what the teacher says of the label, and of the other classes among each other (DKD, Zhao et al. 2022).

    TCKD = T^2 KL(b_t || b_s), b = (softmax(z/T)[label], the rest); NCKD = T^2 KL of the softmax over the classes but the label.
    KL = TCKD + (1 - p_t[label]) NCKD (section 3.1): of a sure teacher `kl` says little about the other classes.

    Args: labels [n] or [n, 1], integer; alpha, beta numbers or [n]. beta = 8 is the paper's for CIFAR-100; for ImageNet 0.5.

    >>> sides = tf.constant([[2.0, 1.0, -1.0]]), tf.constant([[3.0, 0.5, -2.0]])
    >>> [round(float(dkd(*sides, 1.0, tf.constant([0]), *weights)[0]), 5) for weights in [(1, 0), (0, 1)]]
    [0.13763, 0.01011]
    """
    labels = tf.cast(tf.reshape(labels, [-1]), tf.int64)

    def logs(z):
        """Of (label, rest), and of the classes without the label; 1e30 below the others, that has probability 0 and no gradient."""
        z = tf.cast(z, tf.float32) / temperature
        others = tf.where(tf.one_hot(labels, tf.shape(z)[-1], True, False), -1e30, z)
        pair = tf.stack([tf.gather(z, labels, batch_dims=1), tf.reduce_logsumexp(others, axis=-1)], axis=-1)
        return tf.nn.log_softmax(pair), tf.nn.log_softmax(others)

    (pair_t, others_t), (pair_s, others_s) = logs(tf.stop_gradient(teacher)), logs(student)
    return temperature**2 * (alpha * _divergence(pair_t, pair_s) + beta * _divergence(others_t, others_s))


def dist(student, teacher, temperature=1.0, beta=1.0, gamma=1.0):
    """T^2 (beta (1 - r(row)) + gamma * mean over classes of (1 - r(column))), r = Pearson's of softmax(z/T) (DIST, Huang et al. 2022).

    Rows are an example's classes, columns a class's examples: that term is of the whole batch, the same for each example.
    T^2 as in the authors' code. 1 - r = |u - v|^2 / 2 with u, v = centred / sqrt(|centred|^2 + 1e-8): for a constant row
    or column u = 0, so that two of them lose nothing (a batch of 1 has only such columns), and one of them 1/2. A student that
    says the same of each class, as a head of zeros does, is at a corner: its gradient is some thousands of times the usual one; clip it.

    Args: student, teacher [n, C]; temperature: T > 0; beta, gamma: weights of the relations among classes and among examples, 1 in the paper.
    """

    def relation(p, q, axis):
        u, v = (x - tf.reduce_mean(x, axis, keepdims=True) for x in (p, q))
        u, v = (x * tf.math.rsqrt(tf.reduce_sum(x**2, axis, keepdims=True) + 1e-8) for x in (u, v))
        return tf.reduce_sum((u - v) ** 2, axis) / 2

    p = tf.nn.softmax(tf.stop_gradient(tf.cast(teacher, tf.float32)) / temperature)
    q = tf.nn.softmax(tf.cast(student, tf.float32) / temperature)
    return temperature**2 * (beta * relation(p, q, -1) + gamma * tf.reduce_mean(relation(p, q, 0)))


def hint(student, teacher):
    """mean((f_s - f_t)^2) over all but the examples; f_s as a projector made it of the teacher's shape (FitNets, Romero et al. 2015).

    >>> hint(tf.constant([[1.0, 2.0]]), tf.constant([[1.0, 5.0]])).numpy().tolist()
    [4.5]
    """
    difference = tf.cast(student, tf.float32) - tf.stop_gradient(tf.cast(teacher, tf.float32))
    return tf.reduce_mean(tf.reshape(difference, (tf.shape(difference)[0], -1)) ** 2, axis=-1)


def attention(student, teacher):
    """sum over positions of (Q_s/|Q_s| - Q_t/|Q_t|)^2, Q = sum of f^2 over channels (Zagoruyko & Komodakis 2017, section 3.1; p = 2).

    The channels may differ, the positions not. Q of nothing but zeros stays 0. Features [n, C] have one position: no loss.

    >>> attention(tf.constant([[[1.0, 0.0], [0.0, 0.0]]]), tf.constant([[[0.0, 0.0], [3.0, 4.0]]])).numpy().tolist()  # 2 positions
    [2.0]
    """

    def unit(f):
        f = tf.cast(f, tf.float32)
        largest = tf.reduce_max(tf.abs(f), axis=tf.range(1, tf.rank(f)), keepdims=True)  # of small features Q^2 would be next to nothing
        energy = tf.reduce_sum(tf.math.divide_no_nan(f, tf.stop_gradient(largest)) ** 2, axis=-1)
        return tf.math.l2_normalize(tf.reshape(energy, (tf.shape(energy)[0], -1)), axis=-1)

    return tf.reduce_sum((unit(student) - unit(tf.stop_gradient(teacher))) ** 2, axis=-1)


BY_NAME = {
    "kl": kl,
    "cross_entropy": soft_cross_entropy,
    "logit_mse": logit_mse,
    "standardized_kl": standardized_kl,
    "dist": dist,
    "dkd": dkd,
}
WITH_LABELS = frozenset({dkd})
OF_PROBABILITIES = [loss for name, loss in BY_NAME.items() if name != "logit_mse"]  # those that take a softmax over the classes
FEATURES = {"hint": hint, "attention": attention}

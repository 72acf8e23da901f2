"""Shampoo: each kernel's step preconditioned from both sides (Gupta et al. 2018; Anil et al. 2020; FunMatch's second optimizer)."""

import math

import tensorflow as tf
import tf_keras as keras

from kerakd.errors import BadInput


def matrix_shape(variable):
    """(rows, columns) of a kernel: all axes but the last against the last; of a depthwise kernel the positions against its channels."""
    axis = -2 if variable.name.rpartition("/")[2].startswith("depthwise_kernel") else -1  # the layer's name may say anything
    return math.prod(variable.shape[:axis]), math.prod(variable.shape[axis:])


def split(matrix, block):
    """A matrix in equal blocks of at most `block` x `block`, [down, across, rows, columns], as large as need be; zeros fill the last ones."""
    rows, columns = matrix.shape
    down, across = -(-rows // block), -(-columns // block)
    tall, wide = -(-rows // down), -(-columns // across)
    padded = tf.pad(matrix, [[0, down * tall - rows], [0, across * wide - columns]])
    return tf.transpose(tf.reshape(padded, (down, tall, across, wide)), (0, 2, 1, 3))


def join(blocks, shape):
    """The matrix of `shape` (rows, columns) that `split` took apart."""
    down, across, tall, wide = blocks.shape
    return tf.reshape(tf.transpose(blocks, (0, 2, 1, 3)), (down * tall, across * wide))[: shape[0], : shape[1]]


def inverse_fourth_root(matrices, epsilon):
    """(S + epsilon * (its greatest eigenvalue) * I)^(-1/4) of symmetric S >= 0, [..., n, n]; float64 inside.

    >>> inverse_fourth_root(tf.constant([[16.0, 0.0], [0.0, 256.0]]), 0.0).numpy().tolist()
    [[0.5, 0.0], [0.0, 0.25]]
    """
    values, vectors = tf.linalg.eigh(tf.cast(matrices, tf.float64))
    values = tf.maximum(values, 0.0)
    values += epsilon * tf.reduce_max(values, axis=-1, keepdims=True) + 1e-30  # the last for S = 0
    return tf.cast(tf.matmul(vectors * values[..., tf.newaxis, :] ** -0.25, vectors, transpose_b=True), matrices.dtype)


@keras.utils.register_keras_serializable("kerakd")
class Shampoo(keras.optimizers.Optimizer):
    """Shampoo in blocks, grafted to RMSProp, with Nesterov's momentum.

    Of a kernel's gradient G, as a matrix (`matrix_shape`) in blocks (`split`), each block by itself:

        L <- beta2 L + (1 - beta2) G G^T,  R <- beta2 R + (1 - beta2) G^T G;  beta2 = 1: L <- L + G G^T, R <- R + G^T G
        P = L^(-1/4) G R^(-1/4)

    v, the same mean or sum of g^2 of each element, gives the diagonal step D = g / (sqrt(v) + 1e-8), where a mean is divided by
    1 - beta2^t as in Adam: RMSProp's, or for beta2 = 1 AdaGrad's. The step U is P with the norm of D over the whole kernel
    (grafting), and D itself for variables of rank below 2: biases, norms, intervals. Then

        m <- momentum m + (1 - momentum) U,  w <- w - rate (momentum m + (1 - momentum) U)

    From FunMatch: blocks of 128, roots at every step, Nesterov. From Anil et al.'s code: beta2, epsilon relative to the greatest
    eigenvalue, grafting over the whole kernel. Choices made here, as FunMatch does not say: grafting to RMSProp and a momentum
    that averages, so that a rate good for Adam is one for Shampoo; equal blocks (300 rows are 3 x 100, not 128 + 128 + 44).

    Args:
        learning_rate: a number or a tf_keras schedule.
        momentum: in [0, 1).
        beta2: what stays of the statistics at each step, in (0, 1]; 1.0 sums them up.
        block: the largest side of a preconditioner, 1 or more.
        inverse_every: steps from one computation of the roots to the next, 1 or more; the statistics take in every gradient.
        epsilon: times the greatest eigenvalue of L or R, is added to its diagonal; 0 or more.
        kwargs: of keras.optimizers.Optimizer: weight_decay, global_clipnorm, ...
    Raises: BadInput for numbers outside these ranges.
    """

    def __init__(self, learning_rate=0.001, momentum=0.9, beta2=0.999, block=128, inverse_every=1, epsilon=1e-6, name="Shampoo", **kwargs):
        ranges = {
            "momentum": (0 <= momentum < 1, "0 or more and less than 1", momentum),
            "beta2": (0 < beta2 <= 1, "more than 0 and at most 1", beta2),
            "block": (block >= 1, "1 or more", block),
            "inverse_every": (inverse_every >= 1, "1 or more", inverse_every),
            "epsilon": (epsilon >= 0, "0 or more", epsilon),
        }
        for argument, (right, expected, received) in ranges.items():
            if not right:
                raise BadInput(f"{argument}: expected {expected}, received {received}")
        super().__init__(name=name, **{"jit_compile": False, **kwargs})
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.momentum, self.beta2, self.block, self.inverse_every, self.epsilon = momentum, beta2, block, inverse_every, epsilon

    def build(self, var_list):
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self._slots = [self._slots_of(variable) for variable in var_list]
        self._built = True

    def _slots_of(self, variable):
        shapes = {"momentum": variable.shape, "diagonal": variable.shape}
        if variable.shape.rank > 1:
            down, across, tall, wide = split(tf.zeros(matrix_shape(variable)), self.block).shape
            left, right = (down, across, tall, tall), (down, across, wide, wide)
            shapes |= {"left": left, "right": right, "left_root": left, "right_root": right}
        return {name: self.add_variable_from_reference(variable, name, shape) for name, shape in shapes.items()}

    def update_step(self, gradient, variable):
        gradient = tf.convert_to_tensor(gradient)  # an embedding's comes in slices
        slots = self._slots[self._index_dict[self._var_key(variable)]]
        step = self._diagonal(gradient, slots["diagonal"])
        if "left" in slots:
            direction = self._precondition(tf.reshape(gradient, matrix_shape(variable)), slots)
            step = tf.reshape(direction, gradient.shape) * tf.math.divide_no_nan(tf.norm(step), tf.norm(direction))
        fresh = (1 - self.momentum) * step
        momentum = slots["momentum"]
        momentum.assign(self.momentum * momentum + fresh)
        variable.assign_sub(tf.cast(self.learning_rate, variable.dtype) * (self.momentum * momentum + fresh))

    def _accumulate(self, statistics, fresh):
        return tf.identity(statistics.assign(self.beta2 * statistics + (1 - self.beta2 if self.beta2 < 1 else 1.0) * fresh))

    def _diagonal(self, gradient, statistics):
        """D of the class."""
        mean = self._accumulate(statistics, gradient**2)
        if self.beta2 < 1:
            mean /= -tf.math.expm1(tf.cast(self.iterations + 1, mean.dtype) * math.log(self.beta2))
        return gradient / (tf.sqrt(mean) + 1e-8)

    def _precondition(self, gradient, slots):
        """P of the class, of a matrix."""
        blocks = split(gradient, self.block)
        self._accumulate(slots["left"], tf.matmul(blocks, blocks, transpose_b=True))
        self._accumulate(slots["right"], tf.matmul(blocks, blocks, transpose_a=True))
        return join(tf.matmul(self._root(slots, "left") @ blocks, self._root(slots, "right")), gradient.shape)

    def _root(self, slots, side):
        statistics, root = slots[side], slots[f"{side}_root"]
        # What is not finite has no eigenvalues: the step is not finite then, as any optimizer's, but no error
        due = (self.iterations % self.inverse_every == 0) & tf.reduce_all(tf.math.is_finite(statistics))
        return root.assign(tf.cond(due, lambda: inverse_fourth_root(statistics, self.epsilon), lambda: tf.identity(root)))

    def get_config(self):
        own = {name: getattr(self, name) for name in ("momentum", "beta2", "block", "inverse_every", "epsilon")}
        return {**super().get_config(), "learning_rate": self._serialize_hyperparameter(self._learning_rate), **own}

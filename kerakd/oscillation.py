"""Medicine for 4 bits and below: kernels that swing between two codes are watched, damped and frozen (Nagel et al. 2022)."""

import math

import tensorflow as tf
import tf_keras as keras

from kerakd.errors import BadInput
from kerakd.quantizers import DoReFa, Ternary
from kerakd.wrapper import QuantizedLayer, StandardizedKernel

OSCILLATING = 0.005  # a frequency above it is called oscillation (Nagel et al. 2022, section 2.2)
MOMENTUM = 0.01  # of the frequencies and of the mean codes (section 4.3)


def kernels(model):
    """[(variable, quantizer, its variables)] of the quantized kernels of at most 4 bits."""
    found = [kernel for layer in model._flatten_layers() if isinstance(layer, QuantizedLayer) for kernel in layer.kernels]
    return [kernel for kernel in found if kernel[1].width <= 4]


def dampening(model):
    """sum((q(w) - clip(w))^2) over the kernels of at most 4 bits: pulls weights to the middle of their code (section 4.2).

    The gradient goes to w where it is not clipped, none to q(w) or the step.
    """
    total = 0.0
    for kernel, quantizer, variables in kernels(model):
        kernel = tf.convert_to_tensor(kernel)
        low, high = quantizer.levels()
        step = tf.stop_gradient(quantizer.step(kernel, variables))
        seen = quantizer.view(kernel)
        target = tf.stop_gradient(tf.reshape(quantizer.quantize(kernel, variables), tf.shape(seen)))
        total += tf.reduce_sum((target - tf.clip_by_value(seen, low * step, high * step)) ** 2)
    return total


class Watch(keras.layers.Layer):
    """How often each weight of at most 4 bits turns back, and the weights that are held for it.

    After each step, of each weight's code: it oscillates if it changed in the direction opposite to its last change.
    frequency <- (1 - m) frequency + m [oscillates], mean <- (1 - m) mean + m code (section 4.3, m = 0.01). A weight whose
    frequency passes the threshold is frozen at the rounded mean: from then on it is set to that code times the step after
    every step.

    Raises: BadInput for a student without such kernels, or with ones that can't be held.
    """

    def __init__(self, student, held=True):
        super().__init__(name="watch", trainable=False)  # a layer, so that Keras saves its states
        check(student, held)
        object.__setattr__(self, "watched", kernels(student))  # past Keras's tracking: they are the student's
        self.states = [self._state(*kernel) for kernel in self.watched]

    @staticmethod
    def _state(kernel, quantizer, variables):
        return {name: tf.Variable(value, trainable=False, name=f"watch_{name}") for name, value in _beginning(_codes(kernel, quantizer, variables)).items()}

    @tf.function(autograph=False)
    def renew(self):
        """Begins anew with weights whose codes something else than a step has changed, as set_weights or a calibration; to be called before a training."""
        for kernel, state in zip(self.watched, self.states, strict=True):
            codes = _codes(*kernel)
            changed = codes != state["codes"]
            for name, value in _beginning(codes).items():
                state[name].assign(tf.where(changed, value, state[name]))

    def update(self, threshold=None):
        """To be called after each step. threshold: frequency above which a weight is frozen; None freezes none."""
        replica = tf.distribute.get_replica_context()
        if replica is None or replica.num_replicas_in_sync == 1:
            self._update(threshold)
        else:  # once for all replicas, whose weights are the same
            replica.merge_call(lambda strategy, given: self._update(strategy.experimental_local_results(given)[0]), (threshold,))

    def _update(self, threshold):
        for (kernel, quantizer, variables), state in zip(self.watched, self.states, strict=True):
            value = tf.convert_to_tensor(kernel)
            codes = _codes(value, quantizer, variables)
            direction = tf.sign(codes - state["codes"])
            turned = tf.cast((direction != 0) & (direction == -state["direction"]), tf.float32)
            state["frequency"].assign_add(MOMENTUM * (turned - state["frequency"]))
            state["mean"].assign_add(tf.where(state["frozen"], 0.0, MOMENTUM * (codes - state["mean"])))
            state["direction"].assign(tf.where(direction == 0, state["direction"], direction))
            if threshold is not None:
                state["frozen"].assign(state["frozen"] | (state["frequency"] > threshold))
                held = tf.round(state["mean"]) * _spread(quantizer.step(value, variables), kernel.shape)
                kernel.assign(tf.where(state["frozen"], held, value))
                codes = _codes(kernel, quantizer, variables)  # held weights move the threshold of a ternary kernel, and so codes of others
            state["codes"].assign(codes)

    def share(self):
        """The share of the watched weights that oscillate or are frozen for it, a scalar in 0..1."""
        found = [tf.reduce_sum(tf.cast((state["frequency"] > OSCILLATING) | state["frozen"], tf.float32)) for state in self.states]
        return tf.add_n(found) / sum(kernel.shape.num_elements() for kernel, _, _ in self.watched)


def _codes(kernel, quantizer, variables):
    return tf.cast(quantizer.codes(tf.convert_to_tensor(kernel), variables), tf.float32)


def _beginning(codes):
    """{name: value} of the states of a kernel that has not been trained yet."""
    zeros = tf.zeros_like(codes)
    return {"codes": codes, "direction": zeros, "frequency": zeros, "mean": codes, "frozen": tf.zeros_like(codes, tf.bool)}


def _spread(step, shape):
    """A step () or [C] as it multiplies a kernel of `shape`: of a depthwise one, C is its last two axes."""
    if step.shape.rank == 0 or step.shape[0] == shape[-1]:
        return step
    return tf.reshape(step, shape[-2:])


def check_treatment(student, dampening, freezing, watch):
    """Raises BadInput for a weight or a threshold that treats nothing, or a student that can't be treated or watched.

    dampening, freezing: numbers, functions of the step, or None.
    """
    if dampening is not None and not callable(dampening) and not 0 <= dampening < math.inf:
        raise BadInput(f"dampening: expected a number of 0 or more, or a function of the step, received {dampening}")
    if freezing is not None and not callable(freezing) and (isinstance(freezing, bool) or not 0 < freezing < 1):
        raise BadInput(f"freezing: expected a frequency between 0 and 1, as 0.01, or a function of the step, received {freezing}")
    if watch or dampening is not None or freezing is not None:
        check(student, held=dampening is not None or freezing is not None)


def check(student, held=True):
    """Raises BadInput where there is nothing to watch, or, if they are to be held, a kernel that does not stay at a code when set to it."""
    if not kernels(student):
        raise BadInput("student: expected kernels of 4 bits or fewer, received none; only those oscillate enough to be damped or frozen")
    for kernel, quantizer, _ in kernels(student) if held else ():
        inner = getattr(quantizer, "quantizer", quantizer)  # of a depthwise kernel
        # of positive weights alone: one that is set to their scale moves the threshold, and may take them all below it
        positive = isinstance(inner, Ternary) and inner.scale == "positive"
        if isinstance(quantizer, StandardizedKernel) or isinstance(inner, DoReFa) or positive:
            raise BadInput(f"student: expected kernels that stay at a code when set to it, received {kernel.name}; use Interval, KBit or Ternary()")

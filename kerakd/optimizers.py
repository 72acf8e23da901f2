"""Optimizers by name, with warm-up, a decaying rate and weight decay on kernels alone."""

import math

import tensorflow as tf
import tf_keras as keras

from kerakd.errors import BadInput
from kerakd.shampoo import Shampoo

BY_NAME = {
    "adam": keras.optimizers.Adam,
    "sgd": lambda **kwargs: keras.optimizers.SGD(momentum=0.9, nesterov=True, **kwargs),
    "shampoo": Shampoo,
}


def _check_steps(steps, warmup_steps):
    """Raises BadInput for a schedule that would have no step left for its way down."""
    if not 0 <= warmup_steps < steps:
        raise BadInput(f"warmup_steps: expected 0 or more, and fewer than the {steps} steps of the schedule, received {warmup_steps}")


def cosine(rate, steps, warmup_steps=0):
    """Linear warm-up from 0 to `rate` in `warmup_steps`, then half a cosine to 0 at `steps` (FunMatch, appendix).

    Args: rate: the peak learning rate. steps: optimizer steps of all of it, warm-up included. warmup_steps: fewer than those.
    Returns: a tf_keras LearningRateSchedule: step -> learning rate, a float32 scalar.
    Raises: BadInput for a warm-up that is not shorter than the schedule.
    """
    _check_steps(steps, warmup_steps)
    if not warmup_steps:
        return keras.optimizers.schedules.CosineDecay(rate, steps)
    return keras.optimizers.schedules.CosineDecay(0.0, steps - warmup_steps, warmup_target=rate, warmup_steps=warmup_steps)


@keras.utils.register_keras_serializable("kerakd")
class Quadratic(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0 to `rate` in `warmup_steps`, then rate * (1 - (t - warm-up) / (steps - warm-up))^2 (FunMatch's Shampoo).

    Args, Raises: as `cosine`.
    """

    def __init__(self, rate, steps, warmup_steps=0):
        _check_steps(steps, warmup_steps)
        self.rate, self.steps, self.warmup_steps = rate, steps, warmup_steps

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        done = tf.clip_by_value((step - self.warmup_steps) / (self.steps - self.warmup_steps), 0.0, 1.0)
        warm = tf.minimum(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        return self.rate * warm * (1 - done) ** 2

    def get_config(self):
        return {"rate": self.rate, "steps": self.steps, "warmup_steps": self.warmup_steps}


SCHEDULES = {"cosine": cosine, "quadratic": Quadratic}  # each of (rate, steps, warmup_steps)


@keras.utils.register_keras_serializable("kerakd")
class Restarts(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of its own for each phase, one after the other; the warm-up is the first one's.

    Args: schedule: a key of SCHEDULES. rate: the peak learning rate of each. phases: [optimizer steps of a phase]. warmup_steps: of the first.
    Raises: BadInput as `cosine`.
    """

    def __init__(self, schedule, rate, phases, warmup_steps=0):
        self.schedule, self.rate, self.phases, self.warmup_steps = schedule, rate, list(phases), warmup_steps
        warmups = [warmup_steps] + [0] * (len(self.phases) - 1)
        self.parts = [SCHEDULES[schedule](rate, steps, warmup) for steps, warmup in zip(self.phases, warmups, strict=True)]

    def __call__(self, step):
        value, begin = self.parts[0](step), 0
        for steps, part in zip(self.phases, self.parts[1:], strict=False):
            begin += steps
            value = tf.where(step < begin, value, part(tf.maximum(step - begin, 0)))
        return value

    def get_config(self):
        return {"schedule": self.schedule, "rate": self.rate, "phases": self.phases, "warmup_steps": self.warmup_steps}


class Ramp(keras.optimizers.schedules.LearningRateSchedule):
    """From `start` at step 0 to `end` at step `steps` and after it, on half a cosine, as `compile` takes for dampening and freezing.

    Args: start, end: any numbers. steps: optimizer steps, 1 or more.
    """

    def __init__(self, start, end, steps):
        self.start, self.end, self.steps = start, end, steps

    def __call__(self, step):
        done = tf.minimum(tf.cast(step, tf.float32) / self.steps, 1.0)
        return self.end + (self.start - self.end) * 0.5 * (1 + tf.cos(math.pi * done))

    def get_config(self):
        return {"start": self.start, "end": self.end, "steps": self.steps}


def build(name, rate, steps, variables, warmup_steps=0, weight_decay=0.0, clip_norm=None, schedule="cosine"):
    """An optimizer on a schedule, built for `variables`.

    Args:
        name: a key of BY_NAME.
        rate: the peak learning rate.
        steps: of the whole schedule, warm-up included; a list has a schedule for each of its numbers, one after the other.
        variables: those that it moves, a list of tf.Variable.
        warmup_steps: of the first schedule, in steps.
        weight_decay: each step takes learning rate * weight_decay of every kernel away; biases, norms and intervals are left alone.
        clip_norm: of all gradients together, or None.
        schedule: a key of SCHEDULES.
    Returns: a built tf_keras optimizer.
    Raises: BadInput for an unknown name or schedule, a warm-up that is not shorter than the schedule.
    """
    if name not in BY_NAME:
        raise BadInput(f"optimizer: expected one of {', '.join(BY_NAME)}, received {name!r}")
    if schedule not in SCHEDULES:
        raise BadInput(f"schedule: expected one of {', '.join(SCHEDULES)}, received {schedule!r}")
    falling = Restarts(schedule, rate, steps, warmup_steps) if isinstance(steps, list) else SCHEDULES[schedule](rate, steps, warmup_steps)
    optimizer = BY_NAME[name](learning_rate=falling, weight_decay=weight_decay or None, global_clipnorm=clip_norm)
    if weight_decay:
        optimizer.exclude_from_weight_decay(var_list=[v for v in variables if "kernel:" not in v.name])
    optimizer.build(variables)
    return optimizer

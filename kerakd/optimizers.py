"""Optimizers by name, with warm-up, cosine decay and weight decay on kernels alone."""

import math

import tensorflow as tf
import tf_keras as keras

from kerakd.errors import BadInput

BY_NAME = {
    "adam": keras.optimizers.Adam,
    "sgd": lambda **kwargs: keras.optimizers.SGD(momentum=0.9, nesterov=True, **kwargs),
}


def cosine(rate, steps, warmup_steps=0):
    """Linear warm-up from 0 to `rate` in `warmup_steps`, then half a cosine to 0 at `steps` (FunMatch, appendix)."""
    if not warmup_steps:
        return keras.optimizers.schedules.CosineDecay(rate, steps)
    return keras.optimizers.schedules.CosineDecay(0.0, steps - warmup_steps, warmup_target=rate, warmup_steps=warmup_steps)


class Ramp(keras.optimizers.schedules.LearningRateSchedule):
    """From `start` to `end` in `steps`, on half a cosine."""

    def __init__(self, start, end, steps):
        self.start, self.end, self.steps = start, end, steps

    def __call__(self, step):
        done = tf.minimum(tf.cast(step, tf.float32) / self.steps, 1.0)
        return self.end + (self.start - self.end) * 0.5 * (1 + tf.cos(math.pi * done))

    def get_config(self):
        return {"start": self.start, "end": self.end, "steps": self.steps}


def build(name, rate, steps, variables, warmup_steps=0, weight_decay=0.0, clip_norm=None):
    """An optimizer on a cosine schedule, built for `variables`.

    Args:
        name: a key of BY_NAME.
        rate: the peak learning rate.
        steps: of the whole schedule, warm-up included.
        weight_decay: each step takes learning rate * weight_decay of every kernel away; biases, norms and intervals are left alone.
        clip_norm: of all gradients together, or None.
    Raises: BadInput for an unknown name.
    """
    if name not in BY_NAME:
        raise BadInput(f"optimizer: expected one of {', '.join(BY_NAME)}, received {name!r}")
    optimizer = BY_NAME[name](learning_rate=cosine(rate, steps, warmup_steps), weight_decay=weight_decay or None, global_clipnorm=clip_norm)
    if weight_decay:
        optimizer.exclude_from_weight_decay(var_list=[v for v in variables if "kernel:" not in v.name])
    optimizer.build(variables)
    return optimizer

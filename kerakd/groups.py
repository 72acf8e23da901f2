"""Which optimizer moves which variable of a student: QKD has a learning rate for each kind of interval (section 4)."""

import tf_keras as keras

from kerakd.wrapper import interval_variables


def by_kind(student, variables, kinds):
    """{kind: the variables that are intervals of it} for the wanted kinds ("kernel_interval", "activation_interval"), the others under None."""
    known = {variable.ref(): kind for _, kind, variable in interval_variables(student)}
    found = {None: []}
    for variable in variables:
        kind = known.get(variable.ref())
        found.setdefault(kind if kind in kinds else None, []).append(variable)
    return found


def minimize(tape, loss, groups):
    """One step of each optimizer. groups: [(optimizer, its variables)]."""
    if not all(_takes_gradients(optimizer) for optimizer, _ in groups):
        for optimizer, variables in groups:
            optimizer.minimize(loss, variables, tape=tape)
        return
    gradients = iter(tape.gradient(loss, [variable for _, variables in groups for variable in variables]))  # one backward pass for all
    for optimizer, variables in groups:
        optimizer.apply_gradients([(next(gradients), variable) for variable in variables])


def _takes_gradients(optimizer):
    """Whether it takes the loss's gradients as they are, and does not make its own, as one that scales the loss does."""
    return all(getattr(type(optimizer), name, None) is getattr(keras.optimizers.Optimizer, name) for name in ("minimize", "compute_gradients"))


def spare(optimizers, variables):
    """Leaves variables out of the weight decay of optimizers, None among them, beside what their owners left out of it."""
    for optimizer in optimizers:
        inner = getattr(optimizer, "inner_optimizer", optimizer)  # of one that scales the loss
        if isinstance(inner, keras.optimizers.Optimizer) and inner.weight_decay:  # Keras's own method forgets what was left out before
            left_out = getattr(inner, "_exclude_from_weight_decay", [])
            inner._exclude_from_weight_decay = list(dict.fromkeys([*left_out, *map(inner._var_key, variables)]))


class LossScales:
    """Loss scales for optimizers of networks that compute in float16, in which small gradients are 0 (Micikevicius et al. 2018)."""

    def __init__(self, networks):
        self.networks, self.made = networks, []

    def around(self, optimizer):
        """An optimizer, or what scales the loss for it; None is None."""
        if optimizer is None:
            return None
        optimizer = keras.optimizers.get(optimizer)
        half = any(layer.compute_dtype == "float16" for model in self.networks for layer in model._flatten_layers())
        if not half or isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer):
            return optimizer
        known = [one for one in self.made if one.inner_optimizer is optimizer]  # Keras wraps an optimizer only once
        if not known:
            known = [keras.mixed_precision.LossScaleOptimizer(optimizer)]
            self.made += known
        return known[0]

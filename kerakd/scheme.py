"""Which tensor gets which quantizer: the scheme, and its attachment to a model."""

import dataclasses
import re
import sys

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import QuantizeWrapper

from kerakd import graph
from kerakd.calibration import fit_weight_intervals
from kerakd.checks import broken, check_kept_losses, check_logits
from kerakd.errors import BadInput
from kerakd.models.bit import StandardizedConv2D
from kerakd.plan import free_name, plan
from kerakd.quantizers import GridQuantizer, Interval, Quantizer, check_bits
from kerakd.rewrite import simplify
from kerakd.wrapper import LayerConfig, Narrowing, QuantizedActivation, QuantizedLayer

L = keras.layers


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One rule set for a whole model.

    Args:
        weights: quantizer of every kernel but the first and last; None leaves them float.
        activations: quantizer of every activation that is never negative; None leaves all activations float.
        signed: an Interval of 8 bits for tensors that can be negative (linear outputs, the operands of an addition), what the last layer
            reads and the logits, whatever `activations` is: give Interval(8, gradient_scale=True) to have theirs scaled as well.
        first, last: bits of the kernel of the first weighted layer and of each behind which there is no other; None leaves it
            float. The model's input, the last layer's input and the logits have 8 bits, in float only where `activations` is
            None (the input also where `first` is). The input's grid is signed, unless the model begins with a rescaling of pixels.
        overrides: {regular expression: Scheme}, for layers whose name it matches (`re.search`); the first match counts,
            and it comes before `first` and `last`; its own two are not read. One that counts nowhere is refused; of equal additions,
            products, means and sigmoids of the same tensors, which are one in a student, the first's name counts. Its `activations`
            are those of the layer's output, behind BatchNorm and ReLU; where they equal the scheme's, it is an override of kernels,
            and what the last layer reads keeps its 8 bits.
        sums: bits of what additions read and is never negative, where `activations` has fewer; a weighted layer but the last
            that reads such a tensor as well takes it narrowed to `activations`. Tensors of a concatenation stay as they
            are. The papers leave the sums of residual networks in float: 8 is the nearest to that in integers. None: as
            `activations`. An override has its own.
    Raises: BadInput for what is not a quantizer, bits outside 2..8, `sums` beside activations without bits, another `signed`, a pattern that is no
        regular expression, a rule that is not a Scheme, or has overrides of its own.
    """

    weights: Quantizer | None
    activations: Quantizer | None
    first: int | None = 8
    last: int | None = 8
    overrides: dict = dataclasses.field(default_factory=dict)
    sums: int | None = None
    signed: Quantizer = Interval(8)

    def __post_init__(self):
        for name in ("weights", "activations"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, GridQuantizer):
                raise BadInput(f"{name}: expected a quantizer such as kerakd.Interval(bits=4), or None for float, received {value!r}")
        for name in ("first", "last", "sums"):
            if getattr(self, name) is not None:
                check_bits(getattr(self, name), who=name)
        if self.sums is not None and not hasattr(self.activations, "bits"):
            raise BadInput(f"sums: expected a quantizer of activations with bits beside it, received {self.activations!r}; leave sums out")
        if not isinstance(self.signed, Interval) or self.signed.bits != 8 or self.signed.per_channel:
            raise BadInput(f"signed: expected an Interval of 8 bits for the tensor, received {self.signed!r}; take Interval(8) or with gradient_scale=True")
        if not isinstance(self.overrides, dict):
            raise BadInput(f"overrides: expected {{regular expression: Scheme}}, received {self.overrides!r}")
        for pattern, rule in self.overrides.items():
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise BadInput(f"overrides: expected a regular expression, received {pattern!r} ({error})") from error
            if not isinstance(rule, Scheme):
                raise BadInput(f"overrides[{pattern!r}]: expected a Scheme, received {rule!r}")
            if rule.overrides:
                raise BadInput(
                    f"overrides[{pattern!r}]: expected a Scheme without overrides of its own, received {rule!r}; name its patterns beside it, before it"
                )


def is_quantized(model):
    """Whether any layer of `model` carries a quantizer."""
    return any(isinstance(layer, (QuantizeWrapper, QuantizedActivation)) for layer in model._flatten_layers())


def _check_float(model, scheme):
    """Raises BadInput for what `quantize` does not take."""
    graph.check_functional(model)
    if not isinstance(scheme, Scheme):
        raise BadInput(f"scheme: expected a kerakd.Scheme, received {scheme!r}")
    check_logits(model, "model")
    check_kept_losses(model)
    for source in model.inputs:
        if source.dtype != tf.float32:
            raise BadInput(f"model: expected float inputs, received {source.dtype.name} for {source.node.layer.name!r}; scale the images before the model")
    for layer in model._flatten_layers():
        if type(layer).__module__.startswith("tensorflow_model_optimization."):
            raise BadInput(f"model: expected layers of Keras, received {layer.name!r}, tfmot's {type(layer).__name__}; take the model before tfmot changed it")
        if getattr(layer, "activity_regularizer", None) is not None:
            remedy = "leave the layer out" if isinstance(layer, L.ActivityRegularization) else "set it to None"
            raise BadInput(f"model: expected no activity_regularizer, received one of {layer.name!r}; {remedy} and add its loss in the training step")
        if isinstance(layer, L.Masking):
            raise BadInput(f"model: expected layers without masks, received {layer.name!r}; multiply what is to be left out by 0")
        if getattr(layer, "data_format", "channels_last") == "channels_first":
            raise BadInput(f"model: expected channels last, as integer files have them, received data_format='channels_first' in {layer.name!r}")
        if layer.weights and layer.dtype != "float32":
            raise BadInput(f"model: expected float32 variables, received {layer.dtype} in {layer.name!r}; build it with dtype float32 or a mixed policy")
    if is_quantized(model):
        raise BadInput(f"model: expected a float model, received {model.name!r}, which is quantized already; quantize the float model that it was made from")
    wrong = broken(model.weights)
    if wrong:
        raise BadInput(f"model: expected finite weights, received NaN or infinity in {wrong!r}; train it again")


def _name_floats(plan):
    """A line for the layers whose kernels no scheme quantizes, and one for those that may stay float in the file."""
    if plan.unknown:
        names = ", ".join(f"{name} ({kind})" for name, kind in plan.unknown.items())
        print(f"kerakd: kernels that stay float, as no scheme quantizes such a layer: {names}", file=sys.stderr)
    if plan.inexact:
        print(f"kerakd: may stay float in the file, as README does not list their kind as exact there: {', '.join(plan.inexact)}", file=sys.stderr)


class _Attachment:
    """A Plan on its way into a copy of a model, input by input and call by call, as `graph.rebuild` comes to them.

    copies: {name: the copy of the layer, which takes the model's weights}.
    """

    def __init__(self, model, todo):
        self.todo, self.steps = todo, iter(todo.steps)
        self.taken = {layer.name for layer in model.layers}
        self.copies, self.layers = {}, {}  # by name; `layers` with a quantized kernel where they have one
        self.quantizers, self.narrowed = {}, {}  # by group; tensors by name

    def input(self, x):
        """The tensor that stands for the model's input `x`."""
        return self._quantizer(x.node.layer.name, self.todo.input)(x) if self.todo.input else x

    def call(self, layer, args, kwargs):
        """The tensors that stand for those that `layer` makes of its arguments."""
        step = next(self.steps)
        if step.line or step.narrowed:
            args = (self._read(step, args[0]), *args[1:])
        outputs = args[0] if step.absorbed else self._layer(layer, step.kernel)(*args, **kwargs)
        if step.output is None:
            return outputs
        if step.group not in self.quantizers:
            bound = layer.max_value if step.absorbed else None
            self.quantizers[step.group] = self._quantizer(layer.name, step.output, step.absorbed, bound, dtype=layer._dtype_policy)
        quantizer = self.quantizers[step.group]
        return tf.nest.map_structure(lambda x: quantizer(x) if x.dtype.is_floating else x, outputs)  # shapes and masks are exact as they are

    def _read(self, step, x):
        """What the step's call reads in the place of `x`: that, moved to another grid."""
        if step.line:
            self.taken.add(name := free_name(f"{step.call.layer.name}_line", self.taken))
            return L.Rescaling(1.0, name=name)(x)
        quantizer, name = step.narrowed
        if name not in self.narrowed:
            unsigned = quantizer.levels()[0] == 0
            self.narrowed[name] = self._quantizer(name, quantizer, unsigned)(Narrowing(name=name)(x))
        return self.narrowed[name]

    def _layer(self, layer, kernel):
        """The copy of `layer`, one for all its calls, in a QuantizedLayer where `kernel` is its quantizer."""
        if layer.name not in self.layers:
            standardized = kernel is not None and isinstance(layer, StandardizedConv2D)
            copy = L.Conv2D.from_config(layer.get_config()) if standardized else graph.clone_layer(layer)
            config = kernel and LayerConfig(kernel, standardized=standardized)
            self.copies[layer.name] = copy
            self.layers[layer.name] = QuantizedLayer(copy, config, name=layer.name, dtype=layer._dtype_policy) if kernel else copy
        return self.layers[layer.name]

    def _quantizer(self, name, *args, dtype=None):
        self.taken.add(free := free_name(f"{name}_out", self.taken))
        return QuantizedActivation(*args, name=free, dtype=dtype)


def _check_switches(model):
    """Raises BadInput for layers that learn by their own switch and don't by that of a model around them, which the flat student does not have."""
    learned = {id(variable) for variable in model.trainable_weights}
    layers = [layer for layer in model._flatten_layers(include_self=False) if not isinstance(layer, keras.Model)]
    hidden = [layer.name for layer in layers if any(id(variable) not in learned for variable in layer.trainable_weights)]
    if hidden:
        raise BadInput(
            f"model: expected layers that are frozen with the model around them, received {', '.join(hidden)}, switched on in one that is off; "
            "set trainable of both alike"
        )


def quantize(model, scheme):
    """A student: a copy of `model` with the quantizers of `scheme` attached and the model's weights.

    The model is taken as `simplify` writes it: layers keep their names, an activation inside a layer gets one of its own.
    Kernels are quantized before BatchNorm, tensors after the ReLU, so that an integer convolution with its BatchNorm
    and ReLU folded computes the same. An unsigned quantizer takes the place of the ReLU before it: its clip at 0 is one.
    The caller's model is not touched. Intervals of weights are set here from the weights (their maximum); those of
    activations are NaN until `calibrate`.

    Args:
        model: a functional or built Sequential tf_keras model, not yet quantized; nested models come out flat.
        scheme: a Scheme.
    Returns: a functional tf_keras model.
    Raises: BadInput for a Keras 3 model, a subclassed one, one that is quantized already or has no weighted layer; probabilities instead of logits;
        layers that are switched on inside a model that is off; inputs or variables that are not float32; NaN or infinity; channels first, Masking, an
        activity_regularizer, add_loss, add_metric, layers of tfmot. Layers that stay float are named on stderr.
    """
    _check_float(model, scheme)
    _check_switches(model)
    simple, sources = simplify(model)
    todo = plan(simple, scheme)
    _name_floats(todo)
    attachment = _Attachment(simple, todo)
    student = graph.rebuild(simple, attachment.call, attachment.input)
    for name, layer in attachment.copies.items():
        if name in sources:
            values = keras.backend.batch_get_value(sources[name])
            layer.set_weights([np.reshape(value, v.shape) for value, v in zip(values, layer.weights, strict=True)])
    fit_weight_intervals(student, "max")
    return student

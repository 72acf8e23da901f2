"""Which tensor gets which quantizer: the scheme, its attachment to a model, and the calibration of its intervals."""

import collections
import dataclasses
import itertools
import re
import sys

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import QuantizeWrapper

from kerakd import graph
from kerakd.calibration import fit_weight_intervals
from kerakd.errors import BadInput
from kerakd.models.bit import StandardizedConv2D
from kerakd.quantizers import Interval, Quantizer, Sigmoid
from kerakd.rewrite import simplify
from kerakd.wrapper import Config, Narrowing, QuantizedActivation, QuantizedLayer, kernel_name

L = keras.layers
TRANSPARENT = (  # layers whose output holds values of their input (and zeros), so it is on its input's grid
    *(L.MaxPooling1D, L.MaxPooling2D, L.GlobalMaxPooling1D, L.GlobalMaxPooling2D, L.Flatten, L.Reshape, L.Permute),
    *(L.ZeroPadding1D, L.ZeroPadding2D, L.Cropping1D, L.Cropping2D, L.Dropout, L.SpatialDropout2D, L.GaussianNoise),
)
KEEPS_SIGN = (L.Add, L.Concatenate, L.Multiply, L.Maximum, L.AveragePooling2D, L.GlobalAveragePooling2D, *TRANSPARENT)
PROBABILITIES = (keras.activations.softmax, keras.activations.sigmoid, tf.nn.softmax, tf.nn.sigmoid)
FLOAT = (L.LayerNormalization, L.GroupNormalization, L.UnitNormalization, L.Softmax)  # no integer form in TFLite
EXACT = (L.BatchNormalization, L.Rescaling, L.AveragePooling2D, L.GlobalAveragePooling2D, L.Add, L.Multiply, L.Concatenate)


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One rule set for a whole model.

    Args:
        weights: quantizer of every kernel but the first and last; None leaves them float.
        activations: quantizer of every activation that is never negative; None leaves all activations float. Tensors
            that can be negative (linear outputs, the operands of an addition) take the same kind of interval at 8 bits.
        first, last: bits of the first and the last weighted layer's kernel; None leaves it float. The model's input, the
            last layer's input and the logits have 8 bits, in float only where `activations` is None (the input also
            where `first` is).
        overrides: {regular expression: Scheme}, for layers whose name it matches (`re.search`); the first match counts,
            and it comes before `first` and `last`. Its `activations` are those of the layer's output, behind BatchNorm and ReLU.
        sums: bits of what additions read and is never negative, where `activations` has fewer; a weighted layer but the last
            that reads such a tensor as well takes it narrowed to `activations`. Tensors of a concatenation stay as they
            are. The papers leave the sums of residual networks in float: 8 is the nearest to that in integers. None: as
            `activations`. An override has its own.
    Raises: BadInput for what is not a quantizer, for bits outside 2..8.
    """

    weights: Quantizer | None
    activations: Quantizer | None
    first: int | None = 8
    last: int | None = 8
    overrides: dict = dataclasses.field(default_factory=dict)
    sums: int | None = None

    def __post_init__(self):
        for name in ("weights", "activations"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Quantizer):
                raise BadInput(f"{name}: expected a quantizer such as kerakd.Interval(bits=4), or None for float, received {value!r}")
        for bits in (self.first, self.last, self.sums):
            if bits is not None:
                Interval(bits)  # refuses bits outside 2..8
        if self.sums is not None and not hasattr(self.activations, "bits"):
            raise BadInput(f"sums: expected a quantizer of activations with bits beside it, received {self.activations!r}; leave sums out")
        for pattern, rule in self.overrides.items():
            if not isinstance(rule, Scheme):
                raise BadInput(f"overrides[{pattern!r}]: expected a Scheme, received {rule!r}")


@dataclasses.dataclass
class Plan:
    """What `quantize` will do, in the order of the calls.

    kernels: a quantizer or None for each call's kernel.
    outputs: for each call None, or (quantizer, group) of its output; outputs of one group share one quantizer and its interval.
    absorbed: for each call whether the quantizer of its output takes its place.
    narrowed: for each call None, or (quantizer, name) of what it reads instead of its input: that, narrowed. One name is one tensor.
    input: the quantizer of the model's inputs, or None.
    inexact: names of the layers for which a file is not promised to be exact.
    """

    kernels: list
    outputs: list
    absorbed: list
    narrowed: list
    input: Quantizer | None
    inexact: list


def is_relu(layer):
    """Whether the layer is a ReLU, bounded or not."""
    return isinstance(layer, L.ReLU) and not (layer.negative_slope or layer.threshold)


def is_sigmoid(layer):
    return isinstance(layer, L.Activation) and layer.activation is keras.activations.sigmoid


def fuses(call, reader):
    """Whether `reader` is computed in one operation with `call`, so that the tensor between them never exists."""
    weighted = kernel_name(call.layer) is not None
    if isinstance(reader.layer, L.BatchNormalization):
        return weighted
    return is_relu(reader.layer) and (weighted or isinstance(call.layer, (L.BatchNormalization, L.Rescaling, L.Add, *FLOAT)))


def _never_negative(call, known):
    layer = call.layer
    if is_relu(layer) or is_sigmoid(layer):
        return True
    return isinstance(layer, KEEPS_SIGN) and all(known.get(id(value), False) for value in call.inputs)


def _feeds_only(call, target):
    """Whether the tensor is read by `target` alone, at most through transparent layers."""
    reader = call.sole_reader
    return reader is not None and (reader is target or (isinstance(reader.layer, TRANSPARENT) and _feeds_only(reader, target)))


def plan(model, scheme):
    """The Plan of `scheme` for a model that `simplify` made.

    Raises: BadInput for a model with no weighted layer, an override that matches nothing.
    """
    calls = graph.calls(model)
    weighted = [call for call in calls if kernel_name(call.layer)]
    if not weighted:
        raise BadInput(f"model: expected at least one convolution or dense layer, received {model.name!r} with none; there is nothing to quantize")
    _check_overrides(scheme, calls)
    never_negative = {}
    for call in calls:
        sign = _never_negative(call, never_negative)
        never_negative.update((id(value), sign) for value in call.outputs)
    groups = _groups(calls)
    kinds = {}  # of each group: signed if any of its tensors is
    for call in calls:
        kinds[groups[id(call)]] = kinds.get(groups[id(call)], True) and never_negative[id(call.outputs[0])]
    kernels = [_kernel_quantizer(call, weighted, scheme) if kernel_name(call.layer) else None for call in calls]
    outputs = []
    for call in calls:
        quantizer = _output_quantizer(call, weighted, scheme, "unsigned" if kinds[groups[id(call)]] else "signed")
        outputs.append(quantizer and (quantizer, groups[id(call)]))
    narrowed = _widen(calls, weighted, outputs, scheme)
    _check_groups(calls, outputs)
    sizes = collections.Counter(group for _, group in filter(None, outputs))
    absorbed = [output is not None and _absorbs(output[0], call.layer, sizes[output[1]]) for call, output in zip(calls, outputs, strict=True)]
    kept = {output[1] for output, gone in zip(outputs, absorbed, strict=True) if output and not gone}  # of tensors that share a quantizer, all ReLUs go or none
    absorbed = [gone and output[1] not in kept for output, gone in zip(outputs, absorbed, strict=True)]
    inexact = [call.layer.name for call in calls if not is_exact(call.layer)]
    return Plan(kernels, outputs, absorbed, narrowed, _input_quantizer(calls, scheme), inexact)


def _widen(calls, weighted, outputs, scheme):
    """Gives the tensors that additions read the bits of `sums`, in `outputs`; returns Plan.narrowed."""
    taken, sizes = {call.layer.name for call in calls}, collections.Counter(group for _, group in filter(None, outputs))
    readers = {}  # of a call's tensor, past layers that only pass values on
    for call in calls:
        for value in call.inputs:
            readers.setdefault(id(_origin(value)), []).append((call, value))
    narrowed, names = {}, {}
    for k, call in enumerate(calls):
        bits, read = (_rule(scheme, call) or scheme).sums, readers.get(id(call), [])
        if bits is None or outputs[k] is None or not any(isinstance(reader.layer, L.Add) for reader, _ in read):
            continue
        quantizer, group = outputs[k]
        low, high = quantizer.levels()
        if low < 0 or high >= 2**bits - 1 or sizes[group] > 1:
            continue
        outputs[k] = dataclasses.replace(quantizer, bits=bits), group
        for reader, value in read:
            if kernel_name(reader.layer) and reader is not weighted[-1]:
                free = _free_name(f"{value.call.layer.name}_narrow", {*names.values(), *taken})
                narrowed[id(reader)] = quantizer, names.setdefault(id(value), free)
    return [narrowed.get(id(call)) for call in calls]


def _free_name(wanted, taken):
    """`wanted`, with a number behind it where that is taken."""
    return next(name for name in itertools.chain([wanted], (f"{wanted}{k}" for k in itertools.count(2))) if name not in taken)


def _origin(value):
    """The call whose values the tensor holds; None for a model input."""
    call = value.call
    while call is not None and isinstance(call.layer, TRANSPARENT):
        call = call.inputs[0].call
    return call


def _absorbs(quantizer, layer, shared):
    """Whether a quantizer does the ReLU before it as well: an unsigned grid is clipped at 0, and a learned interval is a bound that learns.

    shared: by how many tensors; those of one concatenation may have other bounds.
    """
    return is_relu(layer) and quantizer.levels()[0] == 0 and (layer.max_value is None or shared == 1)


def _input_quantizer(calls, scheme):
    """8 bits, unsigned where the model itself rescales what it takes: those are pixels.

    Not learned: images keep their range, and its gradient would cost the first convolution's gradient to the images.
    """
    if scheme.activations is None or not scheme.first:
        return None
    readers = [call.layer for call in calls if any(value.call is None for value in call.inputs)]
    pixels = all(isinstance(layer, L.Rescaling) for layer in readers)
    return Interval(8, learned=False).for_tensor("unsigned" if pixels else "signed")


def is_exact(layer):
    """Whether the integer arithmetic of the layer is one that the exporter knows to the last code."""
    if isinstance(layer, (L.Conv2D, L.DepthwiseConv2D, L.Dense)):
        return kernel_name(layer) is not None
    return is_relu(layer) or is_sigmoid(layer) or isinstance(layer, (*EXACT, *TRANSPARENT))


def _groups(calls):
    """{id(call): group}: calls whose outputs meet in a concatenation, past layers that only pass values on, are one group.

    An integer concatenation only copies, so its operands must be on one grid.
    """
    parent = {id(call): id(call) for call in calls}

    def root(key):
        while parent[key] != key:
            key = parent[key]
        return key

    for call in calls:
        if isinstance(call.layer, L.Concatenate):
            for value in call.inputs:
                for source in _sources(value.call):
                    parent[root(id(source))] = root(id(call))
    return {id(call): root(id(call)) for call in calls}


def _sources(call):
    """The calls whose values `call` passes on: itself, unless it is transparent."""
    if call is None:
        return []
    if isinstance(call.layer, (*TRANSPARENT, L.Concatenate)):
        return [call, *(source for value in call.inputs for source in _sources(value.call))]
    return [call]


def _check_groups(calls, outputs):
    """Raises BadInput where tensors that share a quantizer are to have different ones."""
    first = {}
    for call, (quantizer, group) in ((call, output) for call, output in zip(calls, outputs, strict=True) if output):
        other, name = first.setdefault(group, (quantizer, call.layer.name))
        if other != quantizer:
            raise BadInput(
                f"model: expected one quantizer for the tensors of a concatenation, received {other} for {name!r} and {quantizer} for {call.layer.name!r}; "
                "give all of them the override, and put no bare sigmoid among them"
            )


def _check_overrides(scheme, calls):
    for pattern in scheme.overrides:
        if not any(re.search(pattern, call.layer.name) for call in calls):
            raise BadInput(f"overrides: expected a pattern that matches a layer, received {pattern!r}; the layers are {', '.join(c.layer.name for c in calls)}")


def _rule(scheme, call):
    """The override for the call's layer, else that for the layer whose operation it ends: a convolution's output is behind its BatchNorm and ReLU."""
    found = next((rule for pattern, rule in scheme.overrides.items() if re.search(pattern, call.layer.name)), None)
    before = call.inputs[0].call if len(call.inputs) == 1 else None
    return _rule(scheme, before) if found is None and before is not None and before.sole_reader is call and fuses(before, call) else found


def _kernel_quantizer(call, weighted, scheme):
    rule = _rule(scheme, call)
    if rule is not None:
        quantizer = rule.weights
    elif call is weighted[0]:
        quantizer = scheme.first and Interval(scheme.first)
    elif call is weighted[-1]:
        quantizer = scheme.last and Interval(scheme.last)
    else:
        quantizer = scheme.weights
    return quantizer and quantizer.for_tensor("weights")


def _output_quantizer(call, weighted, scheme, kind):
    reader = call.sole_reader
    if isinstance(call.layer, TRANSPARENT) or (reader is not None and fuses(call, reader)):
        return None
    if isinstance(call.layer, L.Concatenate) and all(_sources(value.call) for value in call.inputs):
        return None  # its operands are quantized together
    rule = _rule(scheme, call) or scheme
    if rule.activations is None:
        return None
    if is_sigmoid(call.layer):
        return Sigmoid()
    at_the_end = call is weighted[-1] or _feeds_only(call, weighted[-1])
    if kind == "signed" or (rule is scheme and at_the_end):
        return Interval(8).for_tensor(kind)
    return rule.activations.for_tensor(kind)


def is_quantized(model):
    """Whether any layer of `model` carries a quantizer."""
    return any(isinstance(layer, (QuantizeWrapper, QuantizedActivation)) for layer in model._flatten_layers())


def check_logits(model, argument):
    """Raises BadInput if an output of the model comes out of a softmax or a sigmoid: losses and files here are of logits."""
    for call in graph.calls(model):
        layer = getattr(call.layer, "layer", call.layer)
        quantized = [reader.outputs[0] for value in call.outputs for reader in value.readers if isinstance(reader.layer, QuantizedActivation)]
        ends = any(value.is_output for value in call.outputs + quantized)
        if ends and (isinstance(layer, L.Softmax) or getattr(layer, "activation", None) in PROBABILITIES):
            raise BadInput(f"{argument}: expected logits, received probabilities: {layer.name!r} ends in softmax or sigmoid; give the layer activation=None")


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
    Raises: BadInput for a Keras 3 model, a subclassed one, one that is quantized already or has no weighted layer.
    """
    graph.check_functional(model)
    if not isinstance(scheme, Scheme):
        raise BadInput(f"scheme: expected a kerakd.Scheme, received {scheme!r}")
    check_logits(model, "model")
    for source in model.inputs:
        if not source.dtype.is_floating:
            raise BadInput(f"model: expected float inputs, received {source.dtype.name} for {source.node.layer.name!r}; scale the images before the model")
    if is_quantized(model):
        raise BadInput(f"model: expected a float model, received {model.name!r}, which is quantized already; quantize the float model that it was made from")
    simple, sources = simplify(model)
    todo = plan(simple, scheme)
    if todo.inexact and scheme.activations is not None:
        print(
            f"kerakd: not on README's list of layers whose file is exact, and perhaps float in it: {', '.join(todo.inexact)}",
            file=sys.stderr,
        )
    made, quantizers, steps = {}, {}, iter(zip(todo.kernels, todo.outputs, todo.absorbed, todo.narrowed, strict=True))
    narrow = {}

    def attach(layer, args, kwargs):
        kernel, output, absorbed, narrowed = next(steps)
        if narrowed is not None:
            quantizer, name = narrowed
            if name not in narrow:
                narrow[name] = QuantizedActivation(quantizer, relu=True, name=f"{name}_out")(Narrowing(name=name)(args[0]))
            args = (narrow[name], *args[1:])
        if not absorbed and layer.name not in made:
            clone = graph.clone_layer(layer)
            standardized = kernel is not None and isinstance(layer, StandardizedConv2D)
            clone = L.Conv2D.from_config(layer.get_config()) if standardized else clone
            made[layer.name] = clone, QuantizedLayer(clone, Config(kernel, standardized=standardized), name=layer.name) if kernel else clone
        outputs = args[0] if absorbed else made[layer.name][1](*args, **kwargs)
        if output is None:
            return outputs
        quantizer, group = output
        if group not in quantizers:
            name = _free_name(f"{layer.name}_out", {layer.name for layer in quantizers.values()})
            quantizers[group] = QuantizedActivation(quantizer, absorbed, layer.max_value if absorbed else None, name=name)
        return tf.nest.map_structure(quantizers[group], outputs)

    on_input = (lambda x: QuantizedActivation(todo.input, name=f"{x.node.layer.name}_out")(x)) if todo.input else (lambda x: x)
    student = graph.rebuild(simple, attach, on_input)
    for name, (clone, _) in made.items():
        if name in sources:
            clone.set_weights([np.reshape(value, v.shape) for value, v in zip(sources[name].get_weights(), clone.weights, strict=True)])
    fit_weight_intervals(student, "max")
    return student

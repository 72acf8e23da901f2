"""The plan of a scheme for one model: which of its kernels and tensors get which quantizer."""

import collections
import dataclasses
import itertools
import re

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kerakd import graph
from kerakd.errors import BadInput
from kerakd.kinds import KEEPS_SIGN, computes, fuses, has_kernel, is_exact, is_relu, is_sigmoid, is_softmax, is_tanh, is_transparent, keeps_pixels, passes_on
from kerakd.quantizers import Interval, Quantizer, Sigmoid, Tanh
from kerakd.wrapper import kernel_name

L = keras.layers


@dataclasses.dataclass
class Step:
    """What `quantize` does at one call of a layer.

    call: of the model that `simplify` made. kernel: the quantizer of its layer's kernel, or None.
    output: that of the call's output, or None. group: outputs of one group share one quantizer and its interval.
    absorbed: whether the quantizer of its output takes the layer's place.
    narrowed: None, or (quantizer, name) of what it reads instead of its input: that, on a grid of its own. One name is one tensor.
    line: whether it is a ReLU of a tensor that is on a grid of its own, which integers move by a multiplication by 1.
    """

    call: graph.Call
    kernel: Quantizer | None
    output: Quantizer | None
    group: int
    absorbed: bool = False
    narrowed: tuple | None = None
    line: bool = False


@dataclasses.dataclass
class Plan:
    """What `quantize` will do.

    steps: a Step for each call, in their order.
    input: the quantizer of the model's inputs, or None.
    unknown: {name: class} of the layers with a kernel that no scheme quantizes.
    inexact: names of the other layers for which a file is not promised to be exact; none where activations stay float.
    """

    steps: list
    input: Quantizer | None
    unknown: dict
    inexact: list


def _never_negative(calls):
    """Ids of the tensors that are never negative, and of those that are not as they are made of pixels and nothing else."""
    known, pixels = set(), {id(value) for call in calls for value in call.inputs if value.call is None} if takes_pixels(calls) else set()
    for call in calls:
        outputs, layer = [id(value) for value in call.outputs], call.layer
        keeps = keeps_pixels(layer) or computes(layer, *KEEPS_SIGN)
        if is_relu(layer) or is_sigmoid(layer) or is_softmax(layer) or (keeps and all(id(value) in known for value in call.inputs)):
            known.update(outputs)
        scaled = computes(layer, L.Rescaling) and np.all(np.asarray(layer.scale) >= 0) and np.all(np.asarray(layer.offset) >= 0)
        if (keeps or scaled or is_relu(layer)) and all(id(value) in pixels for value in call.inputs):
            pixels.update(outputs)
    return known, pixels


def _last(calls):
    """The ids of the weighted calls behind which there is no other: of one output one, as a rule."""
    found, before = set(), set()  # ids of calls whose outputs lead to a weighted one
    for call in reversed(calls):
        leads = any(id(reader) in before or kernel_name(reader.layer) for value in call.outputs for reader in value.readers)
        if leads:
            before.add(id(call))
        elif kernel_name(call.layer):
            found.add(id(call))
    return found


def _at_the_end(call, last):
    """Whether the tensor is an output, what a last layer makes, or read by such alone, at most through layers that only pass values on."""
    passing = [reader for value in call.outputs for reader in value.readers]
    if _ends_one(call, last) or any(value.is_output for value in call.outputs):
        return True
    return bool(passing) and all(id(r) in last or (passes_on(r.layer) and _at_the_end(r, last)) for r in passing)


def plan(model, scheme):
    """The Plan of `scheme` for a model that `simplify` made.

    Raises: BadInput for a model with no weighted layer, an override that matches nothing, a ReLU whose bound is below the end of a fixed grid.
    """
    calls = graph.calls(model)
    weighted = [call for call in calls if kernel_name(call.layer)]
    if not weighted:
        raise BadInput(f"model: expected at least one convolution or dense layer, received {model.name!r} with none; there is nothing to quantize")
    _check_overrides(scheme, calls)
    last = _last(calls)
    steps = _steps(calls, weighted[0], last, scheme)
    _widen(steps, last, scheme)
    _part(steps)
    _check_groups(steps)
    _absorb(steps)
    _check_bounds(steps)
    others = {call.layer for call in calls if not is_exact(call.layer)}
    unknown = {call.layer.name: type(call.layer).__name__ for call in calls if call.layer in others and has_kernel(call.layer) and not kernel_name(call.layer)}
    inexact = [call.layer.name for call in calls if call.layer in others and call.layer.name not in unknown and scheme.activations is not None]
    return Plan(steps, _input_quantizer(calls, scheme), unknown, inexact)


def _steps(calls, first, last, scheme):
    """A Step for each call, with the quantizers that the scheme's rules name. first: the first weighted call; last: ids of those behind which there is none."""
    never_negative, pixels = _never_negative(calls)
    groups, members = _groups(calls), collections.defaultdict(list)
    for call in calls:
        members[groups[id(call)]].append(call)
    outputs = {}  # by id of the call
    for theirs in members.values():
        made = {id(call.outputs[0]) for call in theirs}
        kind = "pixels" if made <= pixels else "unsigned" if made <= never_negative else "signed"
        at_the_end = all(_at_the_end(call, last) for call in theirs)
        joined = any(computes(call.layer, L.Concatenate) for call in theirs)
        outputs.update((id(call), _output_quantizer(call, at_the_end, scheme, kind, joined)) for call in theirs)
    steps = []
    for call in calls:
        kernel = _kernel_quantizer(call, call is first, id(call) in last, scheme) if kernel_name(call.layer) else None
        output = outputs[id(call)]
        steps.append(Step(call, kernel, output, groups[id(call)], line=output is not None and is_relu(call.layer) and not _is_fused(call)))
    return steps


def _is_fused(call):
    """Whether the call is computed in one operation with that before it."""
    before = call.inputs[0].call if len(call.inputs) == 1 else None
    return before is not None and before.sole_reader is call and fuses(before, call)


def _ends_one(call, last):
    """Whether the call is of a last layer, or its BatchNorm or ReLU."""
    return id(call) in last or (_is_fused(call) and _ends_one(call.inputs[0].call, last))


def _tensors(steps):
    """{group: how many tensors share its quantizer}."""
    return collections.Counter(step.group for step in steps if step.output)


def _widen(steps, last, scheme):
    """Gives the tensors that additions read the bits of `sums`; what else reads them takes them narrowed."""
    taken, sizes = {step.call.layer.name for step in steps}, _tensors(steps)
    readers = collections.defaultdict(list)  # of a call's tensor, past layers that only pass values on: (step, value)
    for step in steps:
        for value in step.call.inputs:
            readers[id(_origin(value))].append((step, value))
    names = {}
    for step in steps:
        bits, read = (_rule(scheme, step.call) or scheme).sums, readers[id(step.call)]
        if bits is None or step.output is None or not any(isinstance(reader.call.layer, L.Add) for reader, _ in read):
            continue
        narrow = step.output
        low, high = narrow.levels()
        if low < 0 or high >= 2**bits - 1 or sizes[step.group] > 1:
            continue
        step.output = dataclasses.replace(narrow, bits=bits)
        for reader, value in read:
            if kernel_name(reader.call.layer) and id(reader.call) not in last:
                free = free_name(f"{value.call.layer.name}_narrow", {*names.values(), *taken})
                reader.narrowed = narrow, names.setdefault(id(value), free)


def _part(steps):
    """Gives a mean on the grid of the very tensor that it is of, as where both meet in a concatenation, that tensor on a grid of its own.

    The step of a mean is moved off ties against that of its tensor, which one step for both can't be.
    """
    by_call, taken = {id(step.call): step for step in steps}, {step.call.layer.name for step in steps}
    for step in steps:
        if step.output and computes(step.call.layer, L.GlobalAveragePooling2D):
            made = by_call.get(id(_origin(step.call.inputs[0])))
            if made is not None and made.group == step.group:  # of a concatenation, whose operands have the quantizer, as well
                taken.add(name := free_name(f"{step.call.layer.name}_apart", taken))
                step.narrowed = step.output, name


def free_name(wanted, taken):
    """`wanted`, with a number behind it where that is taken."""
    return next(name for name in itertools.chain([wanted], (f"{wanted}{k}" for k in itertools.count(2))) if name not in taken)


def _origin(value, passing=is_transparent):
    """The call whose values the tensor holds; None for a model input."""
    call = value.call
    while call is not None and passing(call.layer):
        call = call.inputs[0].call
    return call


def _absorbs(quantizer, layer, shared):
    """Whether a quantizer does the ReLU before it as well: an unsigned grid is clipped at 0, and a learned interval is a bound that learns.

    shared: by how many tensors; those of one concatenation may have other bounds.
    """
    return is_relu(layer) and quantizer.levels()[0] == 0 and (layer.max_value is None or (shared == 1 and layer.max_value > 0))


def _absorb(steps):
    """Sets Step.absorbed. Of tensors that share a quantizer, all ReLUs go or none."""
    sizes = _tensors(steps)
    kept = {step.group for step in steps if step.output and not _absorbs(step.output, step.call.layer, sizes[step.group])}
    for step in steps:
        step.absorbed = step.output is not None and step.group not in kept


def _check_bounds(steps):
    """Raises BadInput where the grid that takes the place of a bounded ReLU is fixed and goes on beyond the bound; intervals are calibrated to it."""
    for step in steps:
        layer, quantizer = step.call.layer, step.output
        if step.absorbed and layer.max_value is not None and not quantizer.calibrated(tf.ones(())):
            top = float(quantizer.step(tf.zeros(()), None)) * quantizer.levels()[1]
            if layer.max_value < top * (1 - 1e-6):
                raise BadInput(
                    f"activations: expected no bound of a ReLU below {top:g}, where the grid of {type(quantizer).__name__} ends, received "
                    f"{layer.max_value:g} in {layer.name!r}; take kerakd.Interval, for that layer alone by an override"
                )


def _input_quantizer(calls, scheme):
    """8 bits, unsigned where the model itself rescales what it takes from pixels.

    Not learned: images keep their range, and its gradient would cost the first convolution's gradient to the images.
    """
    if scheme.activations is None or not scheme.first:
        return None
    return Interval(8, learned=False).for_tensor("unsigned" if takes_pixels(calls) else "signed")


def takes_pixels(calls):
    """Whether a model, as `simplify` writes it, begins with a rescaling of pixels 0..255; as users write it only where that is a layer.

    calls: `graph.calls` of it.
    """
    readers = [call.layer for call in calls if any(_origin(value, keeps_pixels) is None for value in call.inputs) and not keeps_pixels(call.layer)]
    return all(computes(layer, L.Rescaling) and _takes_pixels(layer) for layer in readers)


def _takes_pixels(rescaling):
    """Whether what it takes must be pixels of 0..255: it makes numbers within -8..8 of them, or takes a mean of 16 and more away."""
    scale, offset = np.broadcast_arrays(np.float64(rescaling.scale), np.float64(rescaling.offset))
    mean = -offset / np.where(scale, scale, 1)
    return bool(np.all((mean >= 0) & (mean <= 255) & ((255 * np.abs(scale) <= 8) | (mean >= 16))))


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
        if computes(call.layer, L.Concatenate):
            for value in call.inputs:
                for source in _sources(value.call):
                    parent[root(id(source))] = root(id(call))
    return {id(call): root(id(call)) for call in calls}


def _sources(call):
    """The calls whose values `call` passes on: itself, unless it is transparent."""
    if call is None:
        return []
    if passes_on(call.layer):
        return [call, *(source for value in call.inputs for source in _sources(value.call))]
    return [call]


def _check_groups(steps):
    """Raises BadInput where tensors that share a quantizer are to have different ones."""
    first = {}
    for step in steps:
        if step.output is None:
            continue
        other = first.setdefault(step.group, step)
        if other.output != step.output:
            raise BadInput(
                f"model: expected one quantizer for the tensors of a concatenation, received {other.output} for {other.call.layer.name!r} and {step.output} "
                f"for {step.call.layer.name!r}; give all of them the override, and put no bare sigmoid among them"
            )


def _check_overrides(scheme, calls):
    names = [call.layer.name for call in calls if not passes_on(call.layer)]  # of what passes values on nothing is quantized
    for pattern in scheme.overrides:
        if not any(_override(scheme, name) == pattern for name in names):
            raise BadInput(
                f"overrides: expected a pattern that matches a layer which is quantized, and which no pattern before it matches, received {pattern!r}; "
                f"the layers are {', '.join(names)}"
            )


def _override(scheme, name):
    """The first pattern that matches a layer's name, or None."""
    return next((pattern for pattern in scheme.overrides if re.search(pattern, name)), None)


def _rule(scheme, call):
    """The override for the call's layer, else that for the layer whose operation it ends: a convolution's output is behind its BatchNorm and ReLU."""
    found = scheme.overrides.get(_override(scheme, call.layer.name))
    return _rule(scheme, call.inputs[0].call) if found is None and _is_fused(call) else found


def _kernel_quantizer(call, first, last, scheme):
    rule = _rule(scheme, call)
    if rule is not None:
        quantizer = rule.weights
    elif first:
        quantizer = scheme.first and Interval(scheme.first)
    elif last:
        quantizer = scheme.last and Interval(scheme.last)
    else:
        quantizer = scheme.weights
    return quantizer and quantizer.for_tensor("weights")


def _output_quantizer(call, at_the_end, scheme, kind, joined):
    """joined: whether the tensor is one of a concatenation, which has one grid: then what a file would answer on its own is moved to that."""
    reader = call.sole_reader
    if is_transparent(call.layer) or (reader is not None and fuses(call, reader)):
        return None
    if computes(call.layer, L.Concatenate):
        return None  # its operands are quantized together
    rule = _rule(scheme, call) or scheme
    if rule.activations is None:
        return None
    if is_sigmoid(call.layer) or (is_softmax(call.layer) and not joined):
        return Sigmoid()
    if is_tanh(call.layer) and not joined:
        return Tanh()
    if kind == "pixels":
        return rule.signed.for_tensor("unsigned")
    if kind == "signed" or (at_the_end and rule.activations == scheme.activations):
        return rule.signed.for_tensor(kind)
    return rule.activations.for_tensor(kind)

"""What of a student would not become exact integers, said before it is trained."""

import collections
import dataclasses

import numpy as np
import tf_keras as keras

from kerakd import graph
from kerakd.errors import BadInput
from kerakd.kinds import FLOAT, computes, fuses, is_exact, is_relu, passes_on, sees_padding
from kerakd.wrapper import QuantizedActivation, QuantizedLayer, kernel_name

L = keras.layers
PER_CALL = (QuantizedLayer, L.BatchNormalization)  # each call of such a layer has multipliers of its own in a file
IN_TRAINING = (L.BatchNormalization, keras.src.engine.base_layer.BaseRandomLayer)  # which compute something else in training mode than in a file
TINY = 1e-6  # of a gamma: its channel's multiplier is beyond integers, or close to it


@dataclasses.dataclass(frozen=True)
class Finding:
    """layer: its name. problem: what the file would have of it. remedy: what to do. refused: whether `to_tflite` refuses the model for it."""

    layer: str
    problem: str
    remedy: str
    refused: bool = False

    def __str__(self):
        return f"{self.layer}: {self.problem}; {self.remedy}"


def lint(model):
    """What in the structure of a student `to_tflite` would refuse or could not make exact, in seconds, with no image and no conversion.

    Not what its numbers may come to: intervals that are not calibrated or have collapsed, NaN.

    Args:
        model: from `kerakd.quantize`, calibrated or not, trained or not.
    Returns: list of Finding, in the order of the layers; empty where nothing was found.
    Raises: BadInput for what is no functional tf_keras model.
    """
    graph.check_functional(model)
    calls = graph.calls(model)
    order = {call.layer.name: index for index, call in reversed(list(enumerate(calls)))}
    found = [finding for rule in ENDS + OF_CALLS for finding in rule(model, calls)]
    return sorted(found, key=lambda finding: order.get(finding.layer, -1))


def check(model, calls, rules):
    """Raises BadInput for the first finding of a model, of these calls, that is refused."""
    refused = next((finding for rule in rules for finding in rule(model, calls) if finding.refused), None)
    if refused:
        raise BadInput(f"model: expected a network that an integer file can hold, received {refused}")


def _ends(model, calls):
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        yield Finding(model.name, f"{len(model.inputs)} inputs and {len(model.outputs)} outputs, where a file has one of each", "export a model for each", True)


def _no_student(model, calls):
    if not any(isinstance(call.layer, QuantizedLayer) for call in calls):
        yield Finding(model.name, "no quantized kernel", "make a student of it by kerakd.quantize, with weights, first or last in its scheme", True)


def _sizes(model, calls):
    for shape in (tuple(value.shape[1:]) for value in model.inputs if None in value.shape[1:]):
        yield Finding(model.name, f"images of any size, {shape}, where a file has one", "build it with the size that it is to have", True)


def _float_kernels(model, calls):
    for call in calls:
        if kernel_name(call.layer):
            yield Finding(
                call.layer.name, "a float kernel, which the converter may round to 8 bits", "give the scheme weights, also first, last and in its overrides"
            )


def _float_tensors(model, calls):
    """Kernels between tensors that are on no grid."""
    grids = _grids(calls)
    for call in calls:
        if not isinstance(call.layer, QuantizedLayer):
            continue
        reader, inner = call.sole_reader, dataclasses.replace(call, layer=call.layer.layer)
        last = reader if reader and isinstance(reader.layer, L.BatchNormalization) and fuses(inner, reader) else call
        sides = [side for side, there in (("input", id(call.inputs[0]) in grids), ("output", output_grid(last, grids))) if not there]
        if sides:
            yield Finding(call.layer.name, f"a float {' and '.join(sides)}", "give the scheme activations, also in its overrides", True)


def _wide_codes(model, calls):
    for call in calls:
        for _, quantizer, _ in call.layer.kernels if isinstance(call.layer, QuantizedLayer) else []:
            low, high = quantizer.levels()
            if high > 127:
                yield Finding(call.layer.name, f"codes up to {high}, beyond int8's 127", "take 7 bits, or Interval(8)", True)
            if low < -high:
                yield Finding(call.layer.name, f"codes from {low} to {high}, of which a negative gamma turns the sign", f"leave {low} out", True)


def _grids(calls):
    """{id of a Value: True} for the tensors on a grid."""
    grids = {}
    for call in calls:
        passed = passes_on(call.layer) and all(id(value) in grids for value in call.inputs)
        if passed or isinstance(call.layer, QuantizedActivation):
            grids.update((id(value), True) for value in call.outputs)
    return grids


def output_grid(call, grids):
    """The grid of the QuantizedActivation that reads `call`, past a ReLU."""
    reader = call.sole_reader
    while reader is not None and not isinstance(reader.layer, QuantizedActivation):
        if not is_relu(reader.layer):
            return None
        reader = reader.sole_reader
    return reader and grids[id(reader.outputs[0])]


def _called_twice(model, calls):
    counts = collections.Counter(call.layer.name for call in calls if isinstance(call.layer, PER_CALL))
    for name, count in counts.items():
        if count > 1:
            yield Finding(name, f"called {count} times, which has {count} steps in a file", "give each call a layer of its own", True)


def _odd_bounds(model, calls):
    for call in calls:
        reader = call.sole_reader  # a quantizer that tensors of a concatenation share leaves the bound where it is, at no grid's end
        inside = is_relu(call.layer) and reader is not None and isinstance(reader.layer, QuantizedActivation)
        if inside and call.layer.max_value not in (None, 6.0):  # files have a ReLU6
            yield Finding(call.layer.name, f"a bound of {call.layer.max_value:g}{' in a concatenation' * bool(call.layer.max_value)}", "take 6 or none", True)


def _called_in_training(model, calls):
    for call in calls:
        if call.training and isinstance(call.layer, IN_TRAINING):
            yield Finding(call.layer.name, "called with training=True, so no file computes what it does", "leave that to fit", True)


def _no_integers(model, calls):
    for call in calls:
        layer = call.layer.layer if isinstance(call.layer, QuantizedLayer) else call.layer
        if isinstance(layer, L.RandomCrop):
            yield Finding(layer.name, "a RandomCrop, which no file holds", "crop before the model", True)
        elif isinstance(layer, FLOAT):
            instead = "a sigmoid" if isinstance(layer, L.Softmax) else "BatchNormalization"
            yield Finding(layer.name, f"{type(layer).__name__} stays float between integers", f"use {instead} if all has to be integer")
        elif type(layer) is L.Conv1D and isinstance(call.layer, QuantizedLayer):
            yield Finding(layer.name, "a Conv1D of images, or with its channels first, which is refused", "make it a Conv2D with a kernel of (1, length)", True)
        elif not isinstance(call.layer, QuantizedActivation) and not is_exact(layer):
            yield Finding(layer.name, f"{type(layer).__name__} is not known to the last code and perhaps float", "see README's list of exact layers")


def _odd_averages(model, calls):
    """Poolings that are no convolution: between integers they are refused, elsewhere they stay float."""
    grids = _grids(calls)
    for call in calls:
        layer = call.layer
        if not computes(layer, L.AveragePooling2D):
            continue
        between = id(call.inputs[0]) in grids and bool(output_grid(call, grids))
        then = "which is refused" if between else "which stays float"
        if sees_padding(layer.input_shape[1:3], layer.pool_size, layer.strides, layer.padding):
            yield Finding(layer.name, f"average pooling with padding on {layer.input_shape[1:3]}, {then}", "use padding='valid'", between)
        if len(set(layer.strides)) > 1:
            yield Finding(layer.name, f"average pooling with strides {layer.strides}, {then}", "take equal ones", between)


def _dead_channels(model, calls):
    for call in calls:
        gamma = getattr(call.layer, "gamma", None) if isinstance(call.layer, L.BatchNormalization) else None
        dead = 0 if gamma is None else int(np.sum(np.abs(gamma.numpy()) < TINY))
        if dead:
            yield Finding(call.layer.name, f"{dead} of {gamma.shape[0]} channels with a gamma of 0 become constants", "prune them")


ENDS = (_ends,)  # asked where a file is made: `settle` and `codes` take models of several inputs and outputs as well
OF_CALLS = (
    *(_no_student, _sizes, _float_kernels, _float_tensors, _wide_codes, _called_twice, _called_in_training, _odd_bounds),
    *(_no_integers, _odd_averages, _dead_channels),
)

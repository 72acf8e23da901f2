"""A student as integers: codes, steps and biases of every weighted layer with its BatchNorm folded in.

Everything that is rounded for the file is rounded here, once, for the converter and for the proof.

* Steps are rounded to 16 significant bits, so that code * step and the range that tells the converter the step are exact.
* The bias of each channel goes to the int32 grid of its accumulator.
* The output step of an addition, a product or a mean moves off ties (`ties`).
"""

import collections
import dataclasses

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kerakd import graph
from kerakd.calibration import uncalibrated
from kerakd.errors import BadInput
from kerakd.grids import SMALLEST
from kerakd.kinds import computes, fuses, is_exact, passes_on
from kerakd.tflite import arithmetic
from kerakd.tflite.grid import Grid, short
from kerakd.tflite.lint import OF_CALLS, check, output_grid
from kerakd.tflite.ties import avoid_ties
from kerakd.wrapper import QuantizedActivation, QuantizedLayer

L = keras.layers
PASSES = 4  # over the grids, until none moves
NARROWEST = 1.01e-6  # of 255 steps of a tensor: of less the converter makes steps of its own
LOUD = 255.5  # steps of an output that a unit of its accumulator may be: XNNPACK takes less than 2^8, and so much is beyond any grid of 8 bits already


@dataclasses.dataclass
class Kernel:
    """A linear operation as it was trained, with its BatchNorm: y[c] = sum(x * codes[..., c]) * steps[c] + bias[c].

    template: a Keras layer that does the operation, given a kernel of the codes' shape: the layer itself, or a depthwise convolution for a
    BatchNorm on its own and for average pooling. codes: int. steps: float64 [C]. bias: float64 [C]. high: the highest code of its grid.
    """

    template: keras.layers.Layer
    codes: np.ndarray
    steps: np.ndarray
    bias: np.ndarray
    high: int

    @property
    def flat(self):
        """The codes as [inputs of an output, C]."""
        return self.codes.reshape(-1, len(self.steps))

    def largest_sum(self, x):
        """The largest sum of products of the codes that an input on the grid `x` can make."""
        return int(_largest_sums(self.flat, x).max())


@dataclasses.dataclass
class Linear:
    """A linear operation with its BatchNorm, y[c] = sum(x * codes[..., c]) * x_step * steps[c] + bias[c] * x_step * steps[c].

    name: of the layer. template, codes: as of a Kernel. steps: float64 [C]. bias: int64 [C].
    excess: [C], how many times larger the student's own step is, where that is beyond LOUD. headroom: what the trained codes are multiplied by.
    x, y: Grids. dead: channels that no input moves within y, and whose steps are too small for integers; their codes are 0, but one of a kernel of zeros.
    shape: of one example where it is no image; a depthwise convolution then sees it as one of height 1. bits: of a code in the container.
    """

    name: str
    template: keras.layers.Layer
    codes: np.ndarray
    steps: np.ndarray
    bias: np.ndarray
    excess: np.ndarray
    headroom: int
    x: Grid
    y: Grid
    dead: list
    bits: int
    shape: tuple | None = None

    @property
    def unit(self):
        """What one unit of the accumulator is worth in the output, [C] float64: exactly XNNPACK's multiplier over the output step's inverse."""
        return arithmetic.multiplier(self.x.step, self.steps, self.y.step).astype(np.float64) / np.float64(np.float32(1) / np.float32(self.y.step))

    @property
    def largest(self):
        """What its accumulator can come to at most."""
        return int((_largest_sums(self.codes.reshape(-1, len(self.steps)), self.x) + np.abs(self.bias)).max())

    def layer(self, **changes):
        """A fresh Keras layer for these codes, with a bias."""
        layer = graph.clone_layer(self.template, use_bias=True, **changes)
        return layer if self.shape is None else keras.Sequential([L.Reshape(self.image), layer, L.Reshape(self.shape)], name=layer.name)

    @property
    def image(self):
        """`shape` as that of an image."""
        return (*(1,) * (3 - len(self.shape)), *self.shape)


@dataclasses.dataclass
class Folded:
    """grids by QuantizedActivation name, linears by layer name, the names of the BatchNorms folded into them, grids of concatenations by name."""

    grids: dict
    linears: dict
    absorbed: set
    joined: dict


def stored_bits(kernel, x, y, container):
    """The bits that a code has in a container: 8, or in the small one 4, or 2 where runtimes take them.

    That is, ternary codes of a dense layer or a 1x1 convolution of 4n channels, if a bias on the coarse grid that this leaves
    is still within 1/2048 of the output's range. Depthwise kernels are few and stay at 8: in 4 bits they would leave XNNPACK.
    """
    layer = kernel.template
    if container == "int8" or kernel.high > 7 or isinstance(layer, L.DepthwiseConv2D):
        return 8
    dense = isinstance(layer, L.Dense) or (type(layer) is L.Conv2D and layer.kernel_size == layer.strides == (1, 1) and layer.groups == 1)
    fine = (x.step * kernel.steps * 1024 <= y.step * (y.high - y.low)).all()
    return 2 if kernel.high == 1 and dense and kernel.codes.shape[-2] % 4 == 0 and fine else 4


def headroom(high, bits):
    """What codes are multiplied by in the file: as much as its integers hold. The bias, whose grid is x_step * step, gets that much finer.

    On the int8 container's grid a W2A2 student keeps .98 of its logit codes, on the int4 container's .36 (BUILD.md).
    """
    return {8: max(1, 127 // high), 4: 7 // high, 2: 1}[bits]


def fold(model, container="int8"):
    """The Folded of a quantized model for one container.

    Raises: BadInput for what `lint` says is refused, a model that was never calibrated, with NaN, steps too small
        for a file, or sums too large for its integers.
    """
    graph.check_functional(model)
    calls = graph.calls(model)
    check(model, calls, OF_CALLS)
    _check_numbers(model)
    grids, made, seen = {}, {}, collections.Counter()  # by id of Value; by name of a grid; see _linear
    folded = Folded({}, {}, set(), {})
    for call in calls:
        if isinstance(call.layer, QuantizedActivation):
            name = call.layer.name
            folded.grids.setdefault(name, _grid(call.layer))
            made.setdefault(name, []).append(call.inputs[0].call)  # several where tensors of a concatenation share it
            grids[id(call.outputs[0])] = folded.grids[call.layer.name]
        elif passes_on(call.layer):
            known = [grids.get(id(value)) for value in call.inputs]
            shared = known[0] if all(grid is known[0] for grid in known) else None
            grids.update((id(value), shared) for value in call.outputs)
            if computes(call.layer, L.Concatenate) and shared:
                folded.joined[call.layer.name] = known[0]
    steps = None
    for _ in range(PASSES):  # an operand's step may have moved after a search that used it
        if steps == (steps := [grid.step for grid in folded.grids.values()]):
            break
        for name, calls_of in made.items():
            avoid_ties(calls_of, folded.grids[name], grids)
    for call in calls:
        linear = _linear(call, grids, folded, container, seen)
        if linear is not None:
            folded.linears[linear.name] = linear
    return folded


def _check_numbers(model):
    missing = uncalibrated(model)
    if missing:
        raise BadInput(f"model: expected calibrated intervals, received none for {', '.join(missing)}; call kerakd.calibrate(model, images) first")
    for layer in model._flatten_layers():
        if isinstance(layer, QuantizedActivation):
            _check_interval(layer)
    for weight in model.weights:
        if weight.dtype.is_floating and not np.isfinite(weight.numpy()).all():
            raise BadInput(f"model: expected finite weights, received NaN or infinity in {weight.name}; the training diverged, go back to a checkpoint")


def _check_interval(layer):
    """Raises BadInput unless a file has steps as small as those of a QuantizedActivation."""
    step, remedy = float(layer.step_size), "calibrate again and train with a smaller rate for activation intervals, or with Interval(gradient_scale=True)"
    for variable in layer.quantizer_variables.values():
        if variable.numpy() <= SMALLEST:
            raise BadInput(f"model: expected positive intervals, received {variable.numpy():.2g} in {layer.name!r}; the training diverged: {remedy}")
    if 255 * step < NARROWEST:
        raise BadInput(
            f"model: expected steps of {NARROWEST / 255:.1g} and more, as a file has them, received {step:.2g} in {layer.name!r}; rescale images that "
            f"are so small, or, where the training diverged, {remedy}"
        )


def _grid(layer):
    return Grid(float(short(layer.step_size)), *layer.quantizer.levels())


def _linear(call, grids, folded, container, seen):
    """The Linear that begins with `call`, or None if it is no linear operation of its own.

    seen: how many there were of the same codes and steps, and of "zeros" alone.
    """
    layer, norm, weighted = call.layer, None, isinstance(call.layer, QuantizedLayer)
    if weighted:
        reader = call.sole_reader
        norm = reader if reader and isinstance(reader.layer, L.BatchNormalization) and fuses(_unwrapped(call), reader) else None
    elif layer.name in folded.absorbed or not isinstance(layer, (L.BatchNormalization, L.Rescaling, L.AveragePooling2D)) or not is_exact(layer):
        return None
    x, y = grids.get(id(call.inputs[0])), output_grid(norm or call, grids)
    if x is None or y is None:
        if not weighted:
            return None
        raise BadInput(
            f"model: expected quantized tensors on both sides of {layer.name!r}, received float ones; give the scheme activations to export to integers"
        )
    if norm:
        folded.absorbed.add(norm.layer.name)
    kernel = _kernel(call, norm and norm.layer)
    bits, largest = stored_bits(kernel, x, y, container), kernel.largest_sum(x)
    bits = bits if largest <= _half_an_accumulator(bits) else 8  # of fewer an accumulator holds less
    least = _least_steps(kernel.bias, x, y, bits)
    most = min(headroom(kernel.high, bits), _most(largest, bits, layer.name))
    room = _fitting(most, (kernel.steps / least)[_matters(kernel, x, y)], layer.name)
    kernel, room = _told_apart(kernel, x, room, weighted, seen)
    linear = _on_the_bias_grid(layer.name, kernel, room, x, y, bits, least, seen)
    if isinstance(layer, (L.BatchNormalization, L.Rescaling)) and len(layer.input_shape) < 4:
        linear.shape = tuple(-1 if side is None else side for side in layer.input_shape[1:])
    return linear


def _least_steps(bias, x, y, bits):
    """[C]: what a kernel's steps have to be at least: XNNPACK takes multipliers from 2^-32, the converter steps from about 4e-9."""
    return np.maximum(np.maximum(np.abs(bias) / _half_an_accumulator(bits), y.step * 2.0**-31) / x.step, 2.0**-26)


def _half_an_accumulator(bits):
    """What a bias may come to, and as much what is added to it. Of kernels of 4 bits XNNPACK's 32 bits hold 16 times the sum."""
    return 2.0 ** (30 if bits == 8 else 26)


def _largest_sums(flat, x):
    """[C]: the largest sums of products of codes [inputs of an output, C] that an input on the grid `x` can make."""
    return np.abs(flat).sum(0) * max(-x.low, x.high)


def _most(largest, bits, name):
    """How large a headroom sums of at most `largest` leave in an accumulator. Raises: BadInput where they have none without it."""
    if largest > _half_an_accumulator(bits):
        raise BadInput(
            f"model: expected sums that 32-bit integers hold, received up to {largest:,} of the kernel of {name!r} at its input's largest; take fewer bits "
            "for it, or pool before it"
        )
    return int(_half_an_accumulator(bits) // max(largest, 1))


def _matters(kernel, x, y):
    """[C]: whether inputs could move the channel by a step, within the grid of the output. Of less, finer steps would make the biases of all coarser."""
    swing = _largest_sums(kernel.flat, x) * kernel.steps * x.step
    return (swing >= y.step) & (kernel.bias + swing > (y.low - 1) * y.step) & (kernel.bias - swing < (y.high + 1) * y.step)


def _fitting(room, times, name):
    """The headroom, at most `room`, for steps that are so many `times` what they have to be. Raises: BadInput where none is small enough."""
    if times.size and times.min() < 1:
        raise BadInput(
            f"model: expected kernels and biases that 32-bit integers compute, received {int(np.sum(times < 1))} channels of {name!r} whose weights are too "
            "small beside their bias, their input or their output; rescale the input, or prune them"
        )
    return min(room, int(times.min())) if times.size else room


def _told_apart(kernel, x, room, weighted, seen):
    """(kernel, headroom) as the file has them, unlike those that are `seen`: the converter would merge them.

    Of two equal kernels, wherever they are, it makes one constant. Of two equal operations on one tensor it makes one, whatever their
    biases are; equal poolings or additions before them make one tensor of two, so those on equal grids are told apart.
    """
    trained = kernel.steps
    while True:
        codes, steps = kernel.codes * room, trained / room
        key = None if weighted else x.step, codes.tobytes(), short(steps).tobytes()
        if not seen[key] or not steps.any():
            break
        room, trained = (room - 1, trained) if room > 1 and not weighted else (room, trained * (1 + 2.0**-15))  # a unit of what `short` keeps
    seen[key] += 1
    return dataclasses.replace(kernel, codes=codes, steps=steps), room


def _of_layer(call, norm):
    """The Kernel of a quantized layer, with its BatchNorm's gain in codes and steps, whose signs are the codes'."""
    layer = call.layer.layer
    ((variable, quantizer, variables),) = call.layer.kernels
    weights = tf.convert_to_tensor(variable)
    codes = quantizer.codes(weights, variables).numpy().astype(np.int64)
    channels = codes.shape[2] * codes.shape[3] if isinstance(layer, L.DepthwiseConv2D) else codes.shape[-1]
    steps = np.broadcast_to(quantizer.step(weights, variables).numpy().astype(np.float64), [channels])
    bias = layer.bias.numpy().astype(np.float64) if layer.use_bias else np.zeros(channels)
    if norm is not None:
        gain, bias = _gain_and_bias(norm, bias)
        codes = (codes.reshape(-1, channels) * np.where(gain < 0, -1, 1)).reshape(codes.shape)
        steps = steps * np.abs(gain)
    return Kernel(layer, codes, steps, bias, quantizer.levels()[1])


def _pointwise(name, gain, bias):
    """y = gain * x + bias by channel: a depthwise 1x1 convolution with the one code 1 or -1, its step the gain."""
    codes = np.where(gain < 0, -1, 1).reshape(1, 1, -1, 1)
    return Kernel(L.DepthwiseConv2D(1, name=name), codes, np.abs(gain), bias, 1)


def _of_norm(call, _):
    """The Kernel of a BatchNorm on its own."""
    return _pointwise(call.layer.name, *_gain_and_bias(call.layer, 0.0))


def _of_rescaling(call, _):
    layer = call.layer
    return _pointwise(layer.name, *(np.broadcast_to(np.float64(value), layer.input_shape[-1:]) for value in (layer.scale, layer.offset)))


def _of_pooling(call, _):
    """Average pooling: a depthwise convolution with the one code 1, its step 1 / window. The builtin operator would leave XNNPACK."""
    layer, channels = call.layer, call.layer.input_shape[-1]
    template = L.DepthwiseConv2D(layer.pool_size, layer.strides, padding="valid", name=layer.name)
    return Kernel(template, np.ones([*layer.pool_size, channels, 1], int), np.full(channels, 1 / np.prod(layer.pool_size)), np.zeros(channels), 1)


_KERNELS = {
    QuantizedLayer: _of_layer,
    L.BatchNormalization: _of_norm,
    L.Rescaling: _of_rescaling,
    L.AveragePooling2D: _of_pooling,
}


def _kernel(call, norm):
    """The Kernel of a call and the BatchNorm behind it, or None for that."""
    return next(of for cls, of in _KERNELS.items() if isinstance(call.layer, cls))(call, norm)


def _unwrapped(call):
    return dataclasses.replace(call, layer=call.layer.layer)


def _gain_and_bias(norm, before):
    """(gain [C], bias [C]) float64 of a BatchNorm on x + before: y = gain * x + bias."""
    values = {v.name.split("/")[-1].split(":")[0]: v.numpy().astype(np.float64) for v in norm.weights}
    gain = values.get("gamma", 1.0) / np.sqrt(values["moving_variance"] + norm.epsilon)
    return gain, (before - values["moving_mean"]) * gain + values.get("beta", 0.0)


def _carried(units, unit):
    """What the converter makes of biases of so many units, int64: beyond 2^23 not every number is exact in the float32 that carries them to it."""
    return np.rint((units * unit).astype(np.float32) / unit).astype(np.int64)


def _on_the_bias_grid(name, kernel, room, x, y, bits, least, seen):
    """The Linear with its steps shortened and its bias on the accumulator's grid; channels whose steps are too small, which matter not, become constants.

    Kernels of nothing but 0, as a gamma of 0 makes them, have one value in the converter's eyes, and so one constant: each has a code of 1 whose
    step is its own, and with which no input moves the output by more than a sixtieth of a step.
    """
    kernel = dataclasses.replace(kernel, codes=kernel.codes.copy())
    codes, flat, steps = kernel.codes, kernel.flat, kernel.steps.copy()
    dead = np.flatnonzero(steps < least)
    flat[:, dead] = 0
    loud = steps * x.step >= LOUD * y.step
    idle = np.union1d(dead, np.flatnonzero(loud & ~flat.any(0)))
    steps[idle] = np.maximum(y.step / 256 / x.step, least[idle])
    if not codes.any():
        codes.flat[0], steps[0] = 1, np.maximum(y.step * 2.0**-14 / x.step, least[0]) * (1 + 2.0**-15) ** seen["zeros"]
        seen["zeros"] += 1
    trained = short(steps)
    units = np.rint(kernel.bias / (x.step * trained))
    steps = short(np.minimum(trained, LOUD * y.step / x.step))
    unit = x.step * steps
    units = _carried(units, unit)
    values = (units * unit).astype(np.float32)
    if len(units) > 1 and units[0] and ((units == units[0]).all() or (values == values[0]).all()):
        # the converter takes channel 0's step for every channel of a bias with one value
        units[0] = max(units[0] + 1, _carried(np.nextafter(values[:1], np.float32(np.inf)) / unit[:1], unit[:1])[0])
    return Linear(name, kernel.template, codes, steps, units, trained / steps, room, x, y, [int(c) for c in dead], bits)

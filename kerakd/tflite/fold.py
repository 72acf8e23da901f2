"""A student as integers: codes, steps and biases of every weighted layer with its BatchNorm folded in.

Everything that is rounded for the file is rounded here, once, for the converter and for the proof.

* Steps are rounded to 16 significant bits, so that code * step and the range that tells the converter the step are exact.
* The bias of each channel goes to the int32 grid of its accumulator.
* The output step of an addition or a mean moves by up to 0.2 % where XNNPACK's fixed-point arithmetic would round some
  pair of codes otherwise than the real sum: all pairs are tried.
"""

import dataclasses

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kerakd import graph
from kerakd.errors import BadInput
from kerakd.scheme import TRANSPARENT, fuses, is_relu, uncalibrated
from kerakd.tflite import arithmetic
from kerakd.wrapper import QuantizedActivation, QuantizedLayer

L = keras.layers


def short(value):
    """`value` rounded to 16 significant bits, as float64."""
    fraction, exponent = np.frexp(np.asarray(value, np.float64))
    return np.ldexp(np.rint(fraction * 2**16), exponent - 16)


@dataclasses.dataclass
class Grid:
    """The grid of an activation tensor: value = code * step, code in {low..high}; in the file, code + zero is stored in int8."""

    step: float
    low: int
    high: int

    @property
    def zero(self):
        """The zero point: the top code sits at 127, so that int8 saturation is the quantizer's clip; the fused ReLU is the lower one."""
        return 127 - self.high

    @property
    def quantization(self):
        return np.float32(self.step), self.zero


@dataclasses.dataclass
class Linear:
    """A weighted layer with its BatchNorm, y[c] = sum(x * codes[..., c]) * x_step * steps[c] + bias[c] * x_step * steps[c].

    codes int32, in the kernel's own shape; steps float64 [C]; bias int64 [C]; bits of the trained codes; names of the
    channels whose multiplier is too small for integers (their codes are 0).
    """

    name: str
    codes: np.ndarray
    steps: np.ndarray
    bias: np.ndarray
    low: int
    high: int
    headroom: int
    x: Grid
    y: Grid
    dead: list

    @property
    def unit(self):
        """What one unit of the accumulator is worth in the output, [C] float64: exactly XNNPACK's multiplier times the output step's inverse."""
        return arithmetic.multiplier(self.x.step, self.steps, self.y.step).astype(np.float64) / np.float64(np.float32(1) / np.float32(self.y.step))

    @property
    def packs(self):
        """Whether the codes fit 4 bits."""
        return self.headroom * self.high <= 7


@dataclasses.dataclass
class Folded:
    """grids by QuantizedActivation name, linears by layer name, and the names of the BatchNorms folded into them."""

    grids: dict
    linears: dict
    absorbed: set


def headroom(high, container):
    """What codes are multiplied by in the file: as much as its integers hold. The bias, whose grid is x_step * step, gets that much finer.

    On the int8 container's grid a W2A2 student keeps .98 of its logit codes, on the int4 container's .36 (BUILD.md).
    """
    return 7 // high if container == "int4" and high <= 7 else max(1, 127 // high)


def fold(model, container="int8"):
    """The Folded of a quantized model for one container.

    Raises: BadInput for a model that was never calibrated, has NaN, float kernels or a weighted layer that is called twice.
    """
    _check(model)
    calls = graph.calls(model)
    grids = {}  # by id of Value
    folded = Folded({}, {}, set())
    for call in calls:
        if isinstance(call.layer, QuantizedActivation):
            grid = _grid(call.layer)
            _avoid_ties(call.inputs[0].call, grid, grids)
            folded.grids[call.layer.name] = grid
            grids[id(call.outputs[0])] = grid
        elif isinstance(call.layer, TRANSPARENT):
            grids[id(call.outputs[0])] = grids.get(id(call.inputs[0]))
    for call in calls:
        if isinstance(call.layer, QuantizedLayer):
            linear = _linear(call, grids, folded, container)
            if linear.name in folded.linears:
                raise BadInput(f"model: expected every weighted layer to be called once, received {linear.name!r} called twice; give each call a layer of its own")
            folded.linears[linear.name] = linear
    return folded


def _check(model):
    graph.check_functional(model)
    missing = uncalibrated(model)
    if missing:
        raise BadInput(f"model: expected calibrated intervals, received none for {', '.join(missing)}; call kerakd.calibrate(model, images) first")
    for weight in model.weights:
        if weight.dtype.is_floating and not np.isfinite(weight.numpy()).all():
            raise BadInput(f"model: expected finite weights, received NaN or infinity in {weight.name}; the training diverged, go back to a checkpoint")
    if not any(isinstance(layer, QuantizedLayer) for layer in model.layers):
        raise BadInput(f"model: expected a student made by kerakd.quantize, received {model.name!r} with no quantized layer")


def _grid(layer):
    return Grid(float(short(layer.step_size)), *layer.quantizer.levels())


def _source(call):
    """The call before `call`'s ReLU and transparent layers."""
    while call is not None and isinstance(call.layer, (L.ReLU, L.Activation)) and is_relu(call.layer):
        call = call.inputs[0].call
    return call


def _avoid_ties(call, grid, grids):
    """Moves grid.step by up to 0.2 % until XNNPACK computes an addition's or a mean's codes as the real numbers round."""
    call = _source(call)
    if call is None or not isinstance(call.layer, (L.Add, L.GlobalAveragePooling2D)):
        return
    operands = [grids.get(id(value)) for value in call.inputs]
    if any(operand is None for operand in operands) or (isinstance(call.layer, L.Add) and len(operands) != 2):
        return
    step = grid.step
    for k in range(400):  # 0, +, -, ++, --, ...
        grid.step = float(short(step * (1 + (k + 1) // 2 * (-1) ** k * 1e-5)))
        if isinstance(call.layer, L.Add) and _sums_agree(*operands, grid) or not isinstance(call.layer, L.Add) and _means_agree(call, operands[0], grid):
            return
    grid.step = step


def _round(values, grid):
    """The codes that a float64 model's quantizer gives to real `values`."""
    ratio = np.float32(values * np.float64(np.float32(1) / np.float32(grid.step)))
    return np.clip(np.rint(ratio), grid.low, grid.high).astype(np.int64) + grid.zero


def _sums_agree(a, b, y):
    codes_a, codes_b = np.arange(a.low, a.high + 1)[:, None], np.arange(b.low, b.high + 1)[None]
    file = arithmetic.add_xnnpack(codes_a + a.zero, codes_b + b.zero, a.quantization, b.quantization, y.quantization, y.low + y.zero, 127)
    return np.array_equal(file, _round(codes_a * a.step + codes_b * b.step, y))


def _means_agree(call, x, y):
    count = int(np.prod(call.layer.input_shape[1:3]))
    totals = np.arange(x.low * count, x.high * count + 1)
    file = arithmetic.mean_xnnpack(totals + count * x.zero, count, x.quantization, y.quantization)
    return np.array_equal(np.maximum(file, y.low + y.zero), _round(totals * x.step / count, y))


def _linear(call, grids, folded, container):
    wrapper, layer = call.layer, call.layer.layer
    norm = call.sole_reader if call.sole_reader and fuses(_unwrapped(call), call.sole_reader) and isinstance(call.sole_reader.layer, L.BatchNormalization) else None
    x = grids.get(id(call.inputs[0]))
    y = _output_grid(norm or call, grids)
    if x is None or y is None:
        raise BadInput(f"model: expected quantized tensors on both sides of {wrapper.name!r}, received float ones; give the scheme activations to export to integers")
    if norm:
        folded.absorbed.add(norm.layer.name)
    ((kernel, quantizer, variables),) = wrapper.kernels
    low, high = quantizer.levels()
    codes = quantizer.codes(tf.convert_to_tensor(kernel), variables).numpy()
    channels = layer.depthwise_kernel.shape[2] * layer.depthwise_kernel.shape[3] if isinstance(layer, L.DepthwiseConv2D) else codes.shape[-1]
    gain, bias = _gain_and_bias(layer, norm and norm.layer, channels)
    step = np.broadcast_to(quantizer.step(tf.convert_to_tensor(kernel), variables).numpy().astype(np.float64), [channels])
    room = headroom(high, container)
    steps = step * np.abs(gain) / room
    sign = np.where(gain < 0, -1, 1) * room
    codes = (codes.reshape(-1, channels) * sign).reshape(codes.shape)
    return _on_the_bias_grid(wrapper.name, codes, steps, bias, x, y, low, high, room)


def _unwrapped(call):
    return dataclasses.replace(call, layer=call.layer.layer)


def _output_grid(call, grids):
    """The grid of the QuantizedActivation that reads `call`, past a ReLU."""
    reader = call.sole_reader
    while reader is not None and not isinstance(reader.layer, QuantizedActivation):
        if not (isinstance(reader.layer, (L.ReLU, L.Activation)) and is_relu(reader.layer)):
            return None
        reader = reader.sole_reader
    return reader and grids[id(reader.outputs[0])]


def _gain_and_bias(layer, norm, channels):
    """(gain [C], bias [C]) float64 of BatchNorm after a layer's own bias: y = gain * conv(x) + bias."""
    own = layer.bias.numpy().astype(np.float64) if layer.use_bias else np.zeros(channels)
    if norm is None:
        return np.ones(channels), own
    values = {v.name.split("/")[-1].split(":")[0]: v.numpy().astype(np.float64) for v in norm.weights}
    gain = values.get("gamma", 1.0) / np.sqrt(values["moving_variance"] + norm.epsilon)
    return gain, (own - values["moving_mean"]) * gain + values.get("beta", 0.0)


def _on_the_bias_grid(name, codes, steps, bias, x, y, low, high, room):
    """The Linear with its steps shortened and its bias on the accumulator's grid; channels beyond integers become constants."""
    # XNNPACK takes multipliers from 2^-32; a bias beyond 2^23 units is not exact in the float32 that carries it to the converter
    reach = np.maximum(np.abs(bias) / 2**23, y.step * 2.0**-31)
    dead = np.flatnonzero(x.step * steps < reach)
    codes, steps = codes.copy(), steps.copy()
    codes.reshape(-1, len(steps))[:, dead] = 0
    steps[dead] = np.maximum(y.step / 256, reach[dead]) / x.step
    steps = short(steps)
    units = np.rint(bias / (x.step * steps)).astype(np.int64)
    if len(units) > 1 and units[0] and (units == units[0]).all():
        units[0] += 1  # the converter takes channel 0's step for every channel of a bias with one value (export traps)
    return Linear(name, codes, steps, units, low, high, room, x, y, [int(c) for c in dead])

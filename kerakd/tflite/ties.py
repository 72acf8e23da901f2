"""Steps moved off ties: where XNNPACK's fixed-point arithmetic would round some pair of codes otherwise than the real numbers, all pairs are tried."""

import numpy as np
import tf_keras as keras

from kerakd.errors import BadInput
from kerakd.grids import without_noise
from kerakd.kinds import computes, is_relu, is_sigmoid, is_transparent
from kerakd.quantizers import Given
from kerakd.tflite import arithmetic
from kerakd.tflite.grid import short
from kerakd.wrapper import QuantizedActivation

L = keras.layers


def _source(call):
    """The call whose output `call` is, past a ReLU."""
    while call is not None and is_relu(call.layer):
        call = call.inputs[0].call
    return call


def _is_alone(value, reader):
    """Whether the grid of a tensor is that of no other, read by no other call, and free."""
    call = value.call
    while call.sole_reader is reader and not computes(call.layer, L.Concatenate):
        if isinstance(call.layer, QuantizedActivation):
            return call.once and not isinstance(call.layer.quantizer, Given)
        reader, call = call, call.inputs[0].call
    return False


def avoid_ties(made, grid, grids):
    """Moves grid.step by up to 0.2 % until XNNPACK computes the codes of additions, products and means as the real numbers round.

    An operand that an addition alone reads, and that is too fine for it, gets a step of a thousandth of the sum's.

    made: the calls whose outputs are on the grid, several where they meet in a concatenation.
    Raises: BadInput for a sum or product that no runtime computes right.
    """
    checked = []
    for call in map(_source, made):
        operands = [] if call is None else [grids.get(id(value)) for value in call.inputs]
        if call is not None and is_sigmoid(call.layer):
            _avoid_sigmoid_ties(call, grid, grids)
        agree = _agreement(call)
        if agree is None or None in operands or len(operands) > 2:
            continue
        if computes(call.layer, L.Add):
            for operand, value in zip(operands, call.inputs, strict=True):
                # XNNPACK adds operands of at least 2^-10 of the output's step. What is finer moves no sum anyway; where others read it too, it stays
                if _is_alone(value, call):
                    operand.step = max(operand.step, float(short(grid.step / 1000)))
        _check_units(call, operands, grid)
        checked.append((agree, call, operands))
    step = grid.step
    for grid.step in _nearby(step) if checked else ():
        if all(agree(call, operands, grid) for agree, call, operands in checked):
            return
    grid.step = step


def _nearby(step):
    """The step itself, then ones a little finer and coarser in turns, to 0.2 % either way."""
    for k in range(400):
        yield float(short(step * (1 + (k + 1) // 2 * (-1) ** k * 1e-5)))


def _check_units(call, operands, y):
    """Raises BadInput for a sum or product so fine that XNNPACK leaves it: the 16-bit vectors of LiteRT's own kernels overflow there."""
    steps = [operand.step / y.step for operand in operands]
    unit, most = 0.0, 255
    if computes(call.layer, L.Add):
        unit, most = max(steps), 255 if min(steps) >= 2.0**-10 else 120  # what is finer leaves XNNPACK by itself
    elif computes(call.layer, L.Multiply):
        unit = np.prod(steps) * y.step
    if unit >= most:
        raise BadInput(
            f"model: expected sums and products in steps that are more than 1/{most} of a unit of what they are made of, received 1/{unit:.0f} in "
            f"{call.layer.name!r}, which runtimes compute wrong; calibrate again, and train with a smaller rate for activation intervals"
        )


def _avoid_sigmoid_ties(call, grid, grids):
    """As `avoid_ties`, for a sigmoid: its grid is given, so its operand's step moves, unless that is bound by ties of its own."""
    (value,) = call.inputs
    operand, made = grids.get(id(value)), value.call
    while made is not None and is_transparent(made.layer):
        made = made.inputs[0].call
    source = made and _source(made.inputs[0].call)
    if operand is None or _agreement(source) is not None or (source is not None and is_sigmoid(source.layer)):
        return
    step, codes = operand.step, np.arange(operand.low, operand.high + 1)
    for operand.step in _nearby(step):
        file = arithmetic.sigmoid_xnnpack(codes + operand.zero, operand.quantization)
        if np.array_equal(file, _round(1 / (1 + np.exp(-np.clip(codes * operand.step, -100, 100))), grid)):
            return
    operand.step = step


def _round(values, grid):
    """The codes that a float64 model's quantizer gives to real `values`."""
    ratio = np.float32(without_noise(values * np.float64(np.float32(1) / np.float32(grid.step))))
    return np.clip(np.rint(ratio), grid.low, grid.high).astype(np.int64) + grid.zero


def _all_pairs(operands):
    a, b = operands
    return np.arange(a.low, a.high + 1)[:, None], np.arange(b.low, b.high + 1)[None]


def _sums_agree(_, operands, y):
    (a, b), (codes_a, codes_b) = operands, _all_pairs(operands)
    file = arithmetic.add_xnnpack(codes_a + a.zero, codes_b + b.zero, a.quantization, b.quantization, y.quantization, y.low + y.zero, 127)
    return np.array_equal(file, _round(codes_a * a.step + codes_b * b.step, y))


def _products_agree(_, operands, y):
    (a, b), (codes_a, codes_b) = operands, _all_pairs(operands)
    file = arithmetic.mul_xnnpack(codes_a + a.zero, codes_b + b.zero, a.quantization, b.quantization, y.quantization, y.low + y.zero, 127)
    return np.array_equal(file, _round(codes_a * a.step * (codes_b * b.step), y))


def _means_agree(call, operands, y):
    (x,) = operands
    count = int(np.prod(call.layer.input_shape[1:3]))
    totals = np.arange(x.low * count, x.high * count + 1)
    file = arithmetic.mean_xnnpack(totals + count * x.zero, count, x.quantization, y.quantization)
    return np.array_equal(np.maximum(file, y.low + y.zero), _round(totals * x.step / count, y))


def _agreement(call):
    """The function that says whether file and real numbers agree on a call, None for one without ties to search."""
    return next((agree for cls, agree in _AGREE.items() if call is not None and computes(call.layer, cls)), None)


_AGREE = {L.Add: _sums_agree, L.Multiply: _products_agree, L.GlobalAveragePooling2D: _means_agree}

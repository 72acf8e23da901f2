"""The grid of an activation tensor, as a file has it."""

import dataclasses

import numpy as np


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

    def real(self, codes):
        """The float64 values of a file's stored int8 codes."""
        return (codes.astype(np.float64) - self.zero) * self.step

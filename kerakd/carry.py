"""Gradients of activation intervals without reading activations: their neighbours' small tensors know them already.

The gradient of an interval's step s is (<dy, y> - <dx, x>) / s over the tensor x before its quantizer and y after it (`grids.uniform`): four
large tensors read again, half of what quantizers cost a training step. But for z = conv(y, W), whatever is done with z,

    <dy, y> = <dz, z> = <dW, W>            as z is linear in y and in W,
    <dx, x> = <dgamma, gamma> + <dbeta, beta>   for x = BatchNorm, which is linear in both,

and those gradients are there already, of a kernel's and of a channel's size. So where y is read by weighted layers alone, and where x
comes from a BatchNorm that nobody else reads, the sums are taken there. They are the same but for the rounding of float32 sums.
"""

import contextlib
import functools

import tensorflow as tf
import tf_keras as keras

from kerakd import graph
from kerakd.grids import carries
from kerakd.quantizers import Interval
from kerakd.wrapper import QuantizedActivation, QuantizedLayer


class Carry:
    """Where the sums of a student's activation intervals are taken while it is called within `with carry():`.

    Args:
        student: a quantized functional model with every output that a loss reads; a float one has nothing to carry.
    """

    def __init__(self, student):
        self.readers, self.norms = [], []  # [(quantizer's layer, a function that gives its step, readers)], [(likewise, BatchNorm)]
        for call in graph.calls(student):
            if isinstance(call.layer, QuantizedActivation) and call.once and _learned(call.layer):
                self._add(call)

    def _add(self, call):
        shape = call.layer.input_shape[1:]
        if None in shape:
            return
        step = functools.partial(_step, call.layer, tf.TensorShape(shape).num_elements())
        (x,), (y,) = call.inputs, call.outputs
        if not y.is_output and all(isinstance(reader.layer, QuantizedLayer) and reader.layer.kernels and reader.once for reader in y.readers):
            self.readers.append((call.layer, step, [reader.layer for reader in y.readers]))
        norm = x.call.layer if x.call is not None and x.call.once and x.call.sole_reader is call else None
        if isinstance(norm, keras.layers.BatchNormalization) and norm.scale and norm.center:
            self.norms.append((call.layer, step, norm))

    @contextlib.contextmanager
    def __call__(self):
        """Within it the student's calls are traced so."""
        with contextlib.ExitStack() as undo:
            for layer, step, readers in self.readers:
                _set(undo, layer, "carried", (*layer.carried, "output"))
                carrying = functools.partial(carries, step=step(), sign=1)
                for reader in readers:
                    _set(undo, reader, "carries", carrying)
            for layer, step, norm in self.norms:
                _set(undo, layer, "carried", (*layer.carried, "input"))
                at = step()
                for name in ("gamma", "beta"):
                    _set(undo, norm, name, carries(tf.convert_to_tensor(getattr(norm, name)), at, sign=-1))
            yield


def _learned(layer):
    return isinstance(layer.quantizer, Interval) and layer.quantizer.learned


def _step(layer, count):
    return layer.quantizer.trained_step(tf.zeros((), layer.compute_dtype), layer.quantizer_variables, count)


def _set(undo, layer, name, value):
    """Sets an attribute past Keras's tracking, until `undo` is left."""
    undo.callback(object.__setattr__, layer, name, getattr(layer, name))
    object.__setattr__(layer, name, value)

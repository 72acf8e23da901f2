"""Quantizers: real tensors onto grids of a few levels, with the gradients that training needs.

Every quantizer is a genuine tfmot `Quantizer`, stateless: its variables live in the layer that it was built for. All of
them answer with `codes * step`: integer codes between `levels()[0]` and `levels()[1]`, and a step that is one scalar or
one value per output channel (the last axis). Those two are what the exporters ship.
"""

import dataclasses

import tensorflow as tf
import tf_keras as keras
from tensorflow_model_optimization.quantization.keras.quantizers import Quantizer
from tf_keras.src.mixed_precision.autocast_variable import enable_auto_cast_variables

from kerakd.errors import BadInput
from kerakd.grids import (
    SMALLEST,
    arithmetic,
    positive,
    scaled_gradient,
    sequential_ternary,
    smallest_interval,
    straight_through,
    ternary_scale,
    ternary_threshold,
    uniform,
)


def check_bits(bits, who="bits"):
    """Raises BadInput unless `bits` is a whole number from 2 to 8."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise BadInput(f"{who}: expected a whole number from 2 to 8, received {bits!r}{'; ternary weights are Ternary()' * (who == 'bits')}")


def _check_float(x, who):
    dtype = tf.as_dtype(x.dtype)
    if not dtype.is_floating:
        raise BadInput(f"{who}: expected a float tensor, received {dtype.name}; cast the images to float32 first")


def _once_calibrated(x, variables):
    """x; raises where an interval is NaN. In a graph only those are asked, each time it runs, that were NaN while it was traced; XLA leaves that out."""
    for interval in variables.values():
        if not isinstance(interval, tf.Variable):
            continue
        with tf.init_scope():
            unset = tf.executing_eagerly() and bool(tf.reduce_any(tf.math.is_nan(interval)))
        if unset:
            message = (
                f"{interval.name}: expected an interval, received NaN; call kerakd.calibrate(student, images) first, "
                "or, if that was done, train at a smaller learning rate"
            )
            if tf.executing_eagerly():
                raise BadInput(message)
            with tf.control_dependencies([tf.debugging.Assert(tf.math.reduce_all(tf.math.is_finite(interval)), [message])]):
                x = tf.identity(x)
    return x


def _channels(shape):
    return () if shape is None else (int(shape[-1]),)


class GridQuantizer(Quantizer):
    """What all quantizers here share: tfmot's interface around `quantize`, `step` and `levels`.

    `quantize`, `step` and `codes` take a tensor as Keras has it, in x's own dtype or that of `arithmetic(x)`; only `view` knows a kernel's channels to be
    on other axes. `variables` is what `build` has answered.
    """

    takes_half = False  # whether `quantize` takes 16 bits as they are, and computes in float32 itself

    def levels(self):
        """(lowest, highest) integer code."""
        raise TypeError(f"{type(self).__name__} has no grid of its own; use one of {', '.join(BY_NAME)}")

    @property
    def width(self):
        """Bits that a code takes where codes are stored as densely as can be."""
        low, high = self.levels()
        return (high - low).bit_length()

    def quantize(self, x, variables):
        """`x` on the grid, in x's dtype."""
        raise TypeError(f"{type(self).__name__} does not quantize; use one of {', '.join(BY_NAME)}")

    def step(self, x, variables):
        """The distance between two codes: () or [C]."""
        raise TypeError(f"{type(self).__name__} has no step; use one of {', '.join(BY_NAME)}")

    def view(self, x):
        """`x` as the grid sees it, channels last."""
        return x

    def codes(self, x, variables):
        """The integer codes of `x`, as int32."""
        x = tf.cast(x, arithmetic(x))
        quantized = self.quantize(x, variables)
        return tf.cast(tf.round(tf.math.divide_no_nan(quantized, self.step(x, variables))), tf.int32)  # a kernel of zeros may have no step

    def calibrated(self, interval):
        """{variable name: value} that fit data spread over [-interval, interval] or [0, interval]; {} where nothing is to be set."""
        return {}

    def for_tensor(self, kind):
        """This quantizer for "weights", "unsigned" or "signed" activations.

        Raises: BadInput if it can't be.
        """
        return self

    def build(self, tensor_shape, name, layer):
        """{name: variable} that `quantize` and `step` read, added to `layer`.

        tensor_shape: of the tensor, channels last. name: what their names begin with, as "kernel", "activation" or "output".
        """
        return {}

    @tf.autograph.experimental.do_not_convert  # there is nothing to convert, and looking for it takes time at every tracing
    def __call__(self, inputs, training, weights, **kwargs):
        _check_float(inputs, type(self).__name__)
        wanted = getattr(inputs, "_cast_dtype", inputs.dtype)  # under mixed precision, what the layer computes in
        with enable_auto_cast_variables(None):  # grids are computed in float32 then, of float32 kernels and intervals
            x = tf.convert_to_tensor(inputs)
            x = _once_calibrated(x if self.takes_half else tf.cast(x, arithmetic(x)), weights or {})
            return tf.cast(self.quantize(x, weights, **kwargs), wanted)

    def get_config(self):
        return dataclasses.asdict(self)


def _add_interval(layer, name, shape, trainable=True):
    # NaN until it is calibrated: an interval that nobody set must not pass for one
    return layer.add_weight(name=f"{name}_interval", shape=shape, initializer=keras.initializers.Constant(float("nan")), trainable=trainable)


def _of_tensor(interval):
    """Whether a variable of `_add_interval` is of no kernel, by the name that QuantizedActivation and tfmot's wrapper build it with."""
    return getattr(interval, "name", "").rpartition("/")[2].startswith(("activation_", "output_", "pre_activation_", "post_activation_"))


def symmetric_levels(bits):
    """The symmetric, narrow weight grid {-q..q}, q = 2^(bits-1) - 1: folding a negative BatchNorm gamma keeps it exact."""
    return 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1


@dataclasses.dataclass(frozen=True, eq=True)
class Ternary(GridQuantizer):
    """Ternary weights, codes {-1, 0, 1}.

    Forward:   a * sign(w) where |w| > t, else 0, with t = 0.7 mean|w| and a = `ternary_scale` (TWN; Apprentice, section 5).
    Backward:  the identity to w; nothing through t and a.
    learned=True: `sequential_ternary`, its scale learned (ParetoQ), with LSQ's gradient scale 1/sqrt(size).

    Args:
        scale: "abs" or "positive", see `ternary_scale`; only without `learned`.
        per_channel: one scale for each output channel (the last axis) rather than one for the layer.
        learned: learn the scale.
    Shapes: w [..., C] of any rank, the scale and the step () or, per channel, [C].
    Raises: BadInput for another scale, or one beside learned=True.
    """

    scale: str = "abs"
    per_channel: bool = False
    learned: bool = False

    def __post_init__(self):
        if self.scale not in ("abs", "positive"):
            raise BadInput(f'scale: expected "abs" or "positive", received {self.scale!r}')
        if self.learned and self.scale != "abs":
            raise BadInput(f"scale: expected none with learned=True, received {self.scale!r}; a learned scale is not a mean")

    def levels(self):
        return -1, 1

    def for_tensor(self, kind):
        if kind != "weights":
            raise BadInput("activations: expected a quantizer of activations, received Ternary; use Interval, KBit, Pact or DoReFa")
        return self

    def build(self, tensor_shape, name, layer):
        if not self.learned:
            return {}
        return {"interval": _add_interval(layer, name, _channels(tensor_shape if self.per_channel else None))}

    def _axes(self, w):
        return list(range(w.shape.rank - 1)) if self.per_channel else list(range(w.shape.rank))

    def step(self, w, variables):
        if self.learned:
            return positive(tf.cast(variables["interval"], w.dtype)) / 1.5
        return tf.reshape(ternary_scale(w, self._axes(w), self.scale), [-1] if self.per_channel else [])

    def quantize(self, w, variables):
        if self.learned:
            alpha = positive(tf.cast(variables["interval"], w.dtype))
            return sequential_ternary(w, scaled_gradient(alpha, tf.cast(tf.size(w), w.dtype) ** -0.5))
        axes = self._axes(w)
        mask = tf.cast(tf.abs(w) > ternary_threshold(w, axes), w.dtype)
        return straight_through(w, ternary_scale(w, axes, self.scale) * tf.sign(w) * mask)

    def calibrated(self, interval):
        return {"interval": interval} if self.learned else {}


@dataclasses.dataclass(frozen=True, eq=True)
class KBit(GridQuantizer):
    """A fixed grid: no scale, nothing to learn (WRPN; Apprentice, section 5).

    Weights:      round((2^(k-1) - 1) * clip(w, -1, 1)) / (2^(k-1) - 1)
    Activations:  round((2^k - 1) * clip(a, 0, 1)) / (2^k - 1); the clip at 1 takes the place of an unbounded ReLU.
    Backward:     the identity inside the clip, 0 outside.

    Args:
        bits: k, 2 to 8.
        signed: the grid on [-1, 1] (weights) or on [0, 1].
    Shapes: x [..., C] of any rank, the step ().
    Raises: BadInput for bits outside 2..8.
    """

    bits: int
    signed: bool = True
    takes_half = True

    def __post_init__(self):
        check_bits(self.bits)

    def levels(self):
        return symmetric_levels(self.bits) if self.signed else (0, 2**self.bits - 1)

    def for_tensor(self, kind):
        return dataclasses.replace(self, signed=kind != "unsigned")

    def step(self, x, variables):
        return tf.constant(1.0 / self.levels()[1], arithmetic(x))

    def quantize(self, x, variables):
        return uniform(x, self.step(x, variables), *self.levels(), inverse=self.levels()[1])


@dataclasses.dataclass(frozen=True, eq=True)
class Interval(GridQuantizer):
    """A trainable interval I; the step is I / q (QKD, section 3; LSQ with `gradient_scale`).

    Weights and signed tensors:  q = 2^(b-1) - 1, I * round(q * clip(x/I, -1, 1)) / q.
    Unsigned activations:        q = 2^b - 1,     I * round(q * clip(x/I, 0, 1)) / q.
    Without `narrow` a signed grid has one code more, so that it is clipped at -(q + 1) I / q.
    Backward:  dy/dx = 1 inside, 0 outside; dy/dI = (y - x)/I inside, y/I where clipped: -1 (signed; -(q + 1)/q without `narrow`), 0 (unsigned) or 1.

    The interval is kept above 1e-8 in the forward pass (of float16 tensors 2^-14) with a gradient that can bring it back, whatever an optimizer
    does to the variable. It is NaN until `calibrate` (activations) or `quantize` (weights) has set it.

    Args:
        bits: b, 2 to 8.
        per_channel: one interval for each output channel (the last axis) rather than one for the tensor.
        gradient_scale: multiply the interval's gradient by 1 / sqrt(n * q), n the values per interval in one example (LSQ, section 2.2).
        signed: the grid on [-I, I] or on [0, I].
        narrow: a signed grid without its lowest code -2^(b-1). Weights are always narrow. `quantize` takes the full
            grid for signed activations, as int8 runtimes saturate there.
        learned: False keeps the interval as it was calibrated.
    Shapes: x [..., C] of any rank, I and the step () or, per channel, [C].
    Raises: BadInput for bits outside 2..8.
    """

    bits: int
    per_channel: bool = False
    gradient_scale: bool = False
    signed: bool = True
    narrow: bool = True
    learned: bool = True
    takes_half = True

    def __post_init__(self):
        check_bits(self.bits)

    def levels(self):
        if not self.signed:
            return 0, 2**self.bits - 1
        low, high = symmetric_levels(self.bits)
        return (low, high) if self.narrow else (low - 1, high)

    def for_tensor(self, kind):
        if kind != "weights" and self.per_channel:
            raise BadInput("activations: expected one interval for the tensor, received per_channel=True; integer convolutions have one step for their input")
        return dataclasses.replace(self, signed=kind != "unsigned", narrow=kind == "weights")

    def build(self, tensor_shape, name, layer):
        return {"interval": _add_interval(layer, name, _channels(tensor_shape if self.per_channel else None), self.learned)}

    def step(self, x, variables):
        return positive(tf.cast(variables["interval"], arithmetic(x)), smallest_interval(x.dtype)) / self.levels()[1]

    def quantize(self, x, variables, carried=()):
        of_kernel = self.narrow and self.signed and not _of_tensor(variables["interval"])
        size = tf.size(x, tf.int64)  # times the levels it may be more than 2^31
        count = size if of_kernel else size // tf.maximum(tf.shape(x, tf.int64)[0], 1)  # per example: the batch does not count
        if self.per_channel:
            count //= x.shape[-1]
        return uniform(x, self.trained_step(x, variables, count), *self.levels(), carried=carried)

    def trained_step(self, x, variables, count):
        """`step` with the gradient that training gives it, for a quantizer of `count` values."""
        step = self.step(x, variables)
        if not self.gradient_scale:
            return step
        count = tf.maximum(tf.cast(count, tf.int64), 1)  # a replica may have no part of a batch, and 0 * inf is NaN for all of them
        return scaled_gradient(step, tf.cast(count * self.levels()[1], step.dtype) ** -0.5)

    def calibrated(self, interval):
        return {"interval": interval}


@dataclasses.dataclass(frozen=True, eq=True)
class Pact(GridQuantizer):
    """A learned clip of unsigned activations (PACT, section 3).

    Forward:   y = round(clip(x, 0, I) * (2^k - 1) / I) * I / (2^k - 1)
    Backward:  dy/dx = 1 where 0 <= x < I; dy/dI = 1 where x >= I, else 0: unlike Interval, nothing from inside.
    The paper's L2 penalty on I is the caller's to add.

    Args:
        bits: k, 2 to 8.
    Shapes: x [..., C] of any rank, I and the step ().
    Raises: BadInput for bits outside 2..8.
    """

    bits: int

    def __post_init__(self):
        check_bits(self.bits)

    def levels(self):
        return 0, 2**self.bits - 1

    def for_tensor(self, kind):
        if kind == "weights":
            raise BadInput("weights: expected a quantizer of weights, received Pact, which is for activations; use DoReFa, as the paper does, or Interval")
        return self if kind == "unsigned" else Interval(self.bits).for_tensor(kind)

    def build(self, tensor_shape, name, layer):
        return {"interval": _add_interval(layer, name, ())}

    def step(self, x, variables):
        return positive(tf.cast(variables["interval"], arithmetic(x)), smallest_interval(x.dtype)) / self.levels()[1]

    def quantize(self, x, variables):
        interval = positive(tf.cast(variables["interval"], x.dtype))
        clipped = tf.where(x >= interval, interval, tf.where(x < 0, tf.zeros_like(x), x))  # at both ends the gradients of the formula
        return straight_through(clipped, uniform(tf.stop_gradient(clipped), tf.stop_gradient(self.step(x, variables)), *self.levels()))

    def calibrated(self, interval):
        return {"interval": interval}


@dataclasses.dataclass(frozen=True, eq=True)
class DoReFa(GridQuantizer):
    """Weights squeezed by tanh, activations clipped to [0, 1] (DoReFa-Net, section 2.3).

    Weights:      2 * round(n * (tanh w / (2 max|tanh w|) + 1/2)) / n - 1, n = 2^k - 1: odd codes in {-n..n} at step 1/n, none of them 0.
    Activations:  round(n * clip(a, 0, 1)) / n.
    Backward:     the identity through round; tanh and the division by the maximum are differentiated.

    Args:
        bits: k, 2 to 8. Codes of 8-bit weights reach 255, beyond int8: they train, but `to_tflite` refuses them.
        signed: weights, or unsigned activations.
    Shapes: x [..., C] of any rank, the step ().
    Raises: BadInput for bits outside 2..8.
    """

    bits: int
    signed: bool = True

    def __post_init__(self):
        check_bits(self.bits)

    def levels(self):
        n = 2**self.bits - 1
        return (-n, n) if self.signed else (0, n)

    def for_tensor(self, kind):
        return Interval(self.bits).for_tensor(kind) if kind == "signed" else dataclasses.replace(self, signed=kind == "weights")

    @property
    def width(self):
        return self.bits  # its codes are odd

    def step(self, x, variables):
        return tf.constant(1.0 / self.levels()[1], arithmetic(x))

    def quantize(self, x, variables):
        n = self.levels()[1]
        if not self.signed:
            return uniform(x, self.step(x, variables), 0, n, inverse=n)
        squeezed = tf.tanh(x)
        unit = squeezed / (2 * tf.maximum(tf.reduce_max(tf.abs(squeezed)), SMALLEST)) + 0.5
        return (2 * straight_through(unit * n, tf.round(unit * n)) - n) * self.step(x, variables)


class Given(GridQuantizer):
    """A grid on which integer runtimes answer an operation, whatever it is given (TFLite's quantization specification). Nothing to learn or to choose.

    Forward:   round(n * clip(x, low / n, high / n)) / n, of `units` n and codes low to high.
    Backward:  the identity inside the clip, 0 outside.
    Shapes: x [..., C] of any rank, the step ().
    """

    takes_half = True
    units, codes_of = 1, (0, 0)

    def levels(self):
        return self.codes_of

    def step(self, x, variables):
        return tf.constant(1 / self.units, arithmetic(x))

    def quantize(self, x, variables):
        return uniform(x, self.step(x, variables), *self.levels(), inverse=self.units)


@dataclasses.dataclass(frozen=True, eq=True)
class Sigmoid(Given):
    """The grid of a sigmoid and of a softmax (LOGISTIC, SOFTMAX): 0 to 255 of 256."""

    units, codes_of = 256, (0, 255)


@dataclasses.dataclass(frozen=True, eq=True)
class Tanh(Given):
    """The grid of a hyperbolic tangent and of vectors of length 1 (TANH, L2_NORMALIZATION): -128 to 127 of 128."""

    units, codes_of = 128, (-128, 127)


BY_NAME = {"ternary": Ternary, "kbit": KBit, "interval": Interval, "pact": Pact, "dorefa": DoReFa}
_OURS = {cls.__name__: cls for cls in (*BY_NAME.values(), Sigmoid, Tanh)}


def serialize(quantizer):
    """A quantizer, or None, as plain data that every Keras file format keeps as it is."""
    if quantizer is None:
        return None
    if type(quantizer) in _OURS.values():
        return {"quantizer": type(quantizer).__name__, **quantizer.get_config()}
    return keras.utils.serialize_keras_object(quantizer)  # a user's own


def deserialize(data):
    """The inverse of `serialize`."""
    if data is None:
        return None
    if "quantizer" not in data:  # a user's own, by its registered name: while an .h5 file is read Keras looks its class's name up alone
        own = keras.utils.get_registered_object(data.get("registered_name") or "")
        return own.from_config(data["config"]) if own else keras.utils.deserialize_keras_object(data)
    return _OURS[data["quantizer"]](**{key: value for key, value in data.items() if key != "quantizer"})


def parse(text):
    """A quantizer from its flag: "float" is None; else NAME[:BITS][,OPTION[=VALUE]...], as "ternary,scale=positive" or "interval:4,per_channel".

    Raises: BadInput.
    """
    if text == "float":
        return None
    head, *options = text.split(",")
    name, colon, bits = head.partition(":")
    if name not in BY_NAME:
        raise BadInput(f'quantizer: expected float or one of {", ".join(BY_NAME)}, with ":BITS" where it has a width, received {text!r}')
    kwargs = dict(option.partition("=")[::2] for option in options)
    if len(kwargs) < len(options):
        raise BadInput(f"quantizer: expected each option once, received {text!r}")
    if colon and "bits" in kwargs:
        raise BadInput(f"quantizer: expected the bits once, received {text!r}")
    if colon or "bits" in kwargs:
        bits = bits if colon else kwargs["bits"]
        if not (bits.isascii() and bits.isdigit()):
            raise BadInput(f"quantizer: expected a whole number of bits after {name}:, received {bits!r}")
        kwargs["bits"] = int(bits)
    fields = {f.name: f for f in dataclasses.fields(BY_NAME[name]) if f.name not in ("signed", "narrow")}
    for key in kwargs.keys() - fields.keys():
        raise BadInput(f"quantizer: expected for {name} only {', '.join(fields)}, received {key!r} in {text!r}")
    if "bits" in fields and "bits" not in kwargs:
        raise BadInput(f"quantizer: expected a width, as {name}:4, received {text!r}")
    return BY_NAME[name](**{key: value if fields[key].type is not bool else _parse_bool(key, value) for key, value in kwargs.items()})


def _parse_bool(key, value):
    if value not in ("", "true", "false"):
        raise BadInput(f"quantizer: expected {key}, {key}=true or {key}=false, received {key}={value}")
    return value != "false"

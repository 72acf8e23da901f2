"""Quantizers on Keras layers: the tfmot QuantizeConfig, the wrapper for weights, the layer for activations."""

import contextlib

import tensorflow as tf
import tf_keras as keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import QuantizeWrapper, QuantizeWrapperV2
from tensorflow_model_optimization.quantization.keras import QuantizeConfig

from kerakd.errors import BadInput
from kerakd.models.bit import StandardizedConv2D, standardize
from kerakd.quantizers import GridQuantizer, deserialize, serialize

KERNELS = {  # the weighted layers that can be integer, and where each keeps its kernel
    keras.layers.Conv1D: "kernel",
    keras.layers.Conv2D: "kernel",
    keras.layers.DepthwiseConv2D: "depthwise_kernel",
    keras.layers.Dense: "kernel",
    StandardizedConv2D: "kernel",
}


def kernel_name(layer):
    """The attribute that holds the kernel of a weighted layer, or None if `layer` is not one."""
    return KERNELS.get(type(layer))


class _Seen(GridQuantizer):
    """A quantizer on a kernel that it sees in another form: `view` of it."""

    def __init__(self, quantizer):
        self.quantizer = quantizer

    def levels(self):
        return self.quantizer.levels()

    @property
    def width(self):
        return self.quantizer.width

    def step(self, x, variables):
        return self.quantizer.step(self.view(x), variables)

    def quantize(self, x, variables):
        return tf.reshape(self.quantizer.quantize(self.view(x), variables), tf.shape(x))

    def codes(self, x, variables):
        return tf.reshape(self.quantizer.codes(self.view(x), variables), tf.shape(x))

    def calibrated(self, interval):
        return self.quantizer.calibrated(interval)

    def get_config(self):
        return {"quantizer": serialize(self.quantizer)}


class DepthwiseKernel(_Seen):
    """A depthwise kernel [h, w, C, m] seen as [h, w, C * m]: its channels are the last axis as everywhere else."""

    def build(self, tensor_shape, name, layer):
        return self.quantizer.build(tf.TensorShape([*tensor_shape[:2], tensor_shape[2] * tensor_shape[3]]), name, layer)

    def view(self, kernel):
        return tf.reshape(kernel, [*kernel.shape[:2], kernel.shape[2] * kernel.shape[3]])


class StandardizedKernel(_Seen):
    """A kernel [h, w, in, out] seen standardized, as a StandardizedConv2D uses it."""

    def build(self, tensor_shape, name, layer):
        return self.quantizer.build(tensor_shape, name, layer)

    def view(self, kernel):
        return standardize(kernel)


@keras.utils.register_keras_serializable("kerakd", "Config")  # its name in files
class LayerConfig(QuantizeConfig):
    """A tfmot QuantizeConfig: one quantizer for the layer's kernel, one for its output; either may be None.

    Args:
        weights: of the layer's kernel, of the shapes that Keras gives it; its grid is a symmetric one, whatever the quantizer says of signs.
        output: of what the layer gives. Its grid starts at 0 where the quantizer's does, as Interval(8, signed=False) behind a ReLU, and is a full
            signed one otherwise.
        standardized: standardize the kernel before it is quantized, as a StandardizedConv2D does; the layer itself is then a Conv2D.
    Raises: BadInput, once tfmot builds the layer, for weights of one without a kernel that kerakd knows, or that are a quantizer of activations.

    `tfmot.quantization.keras.quantize_annotate_layer(layer, LayerConfig(weights=Ternary(), output=Interval(8, signed=False)))` takes it too.
    """

    def __init__(self, weights=None, output=None, standardized=False):
        self.weights = weights
        self.output = output
        self.standardized = standardized

    def get_weights_and_quantizers(self, layer):
        if self.weights is None:
            return []
        if kernel_name(layer) is None:
            known = ", ".join(cls.__name__ for cls in KERNELS)
            raise BadInput(f"weights: expected None for a layer that is none of {known}, received {self.weights!r} for {layer.name!r}")
        if not isinstance(self.weights, GridQuantizer):
            raise BadInput(f"weights: expected one of kerakd's quantizers, received {type(self.weights).__name__}; take Interval or Ternary, say")
        seen = StandardizedKernel if self.standardized else DepthwiseKernel if type(layer) is keras.layers.DepthwiseConv2D else lambda quantizer: quantizer
        return [(getattr(layer, kernel_name(layer)), seen(self.weights.for_tensor("weights")))]

    def set_quantize_weights(self, layer, quantize_weights):
        for value in quantize_weights:
            object.__setattr__(layer, kernel_name(layer), value)  # past Keras's tracking, which would forget the variable

    def get_activations_and_quantizers(self, layer):
        return []

    def set_quantize_activations(self, layer, quantize_activations):
        pass  # the output is quantized after the activation, not in its place

    def get_output_quantizers(self, layer):
        return [] if self.output is None else [self.output.for_tensor("signed" if self.output.levels()[0] < 0 else "unsigned")]

    def get_config(self):
        return {"weights": serialize(self.weights), "output": serialize(self.output), "standardized": self.standardized}

    @classmethod
    def from_config(cls, config):
        return cls(deserialize(config["weights"]), deserialize(config["output"]), config["standardized"])


def _named(layer):
    """A scope in which its variables have its name, as they have where a call builds it: a file's are built without one."""
    return contextlib.nullcontext() if f"/{tf.get_current_name_scope()}".endswith(f"/{layer.name}") else tf.name_scope(layer.name)


@keras.utils.register_keras_serializable("kerakd")
class QuantizedLayer(QuantizeWrapperV2):
    """tfmot's wrapper, mended: variables keep their order through save and load, and the wrapped layer keeps its kernel.

    Upstream builds the inner layer in the middle of its own build, so the variables' order depends on whether the layer
    was built before; and it leaves the quantized tensor in the layer's attribute after a call.
    """

    carries = None  # what `Carry` has a kernel carry while it is used

    def build(self, input_shape):
        if not self.layer.built:
            with _named(self.layer):
                self.layer.build(input_shape)
            self.layer.built = True
        trainable, self.trainable = self.trainable, True  # a file has the variables in the order of a layer that learns
        with _named(self.layer):
            super().build(input_shape)
        self.trainable = trainable

    @tf.autograph.experimental.do_not_convert  # there is nothing to convert, and looking for it takes time at every tracing; likewise below
    def call(self, inputs, training=None, **kwargs):
        kept = self._weight_vars
        if self.carries is not None:
            carrying = [(kernel, lambda *args, quantizer=quantizer, **told: self.carries(quantizer(*args, **told)), v) for kernel, quantizer, v in kept]
            object.__setattr__(self, "_weight_vars", carrying)
        try:
            return super().call(inputs, training=training, **kwargs)
        finally:
            object.__setattr__(self, "_weight_vars", kept)
            self.quantize_config.set_quantize_weights(self.layer, [weight for weight, _, _ in self._weight_vars])

    @property
    def trainable_weights(self):
        """None where it is frozen: upstream trains the kernel and its interval all the same."""
        return super().trainable_weights if self.trainable else []

    @property
    def non_trainable_weights(self):
        if self.trainable:
            return super().non_trainable_weights
        weights = {id(weight): weight for weight in super().trainable_weights + super().non_trainable_weights}  # both have those of the layer inside
        return list(weights.values())

    @property
    def kernels(self):
        """[(variable, quantizer, the quantizer's variables)] of the quantized kernel."""
        return list(self._weight_vars)


@keras.utils.register_keras_serializable("kerakd")
class QuantizedActivation(keras.layers.Layer):
    """Fake quantization of a tensor [batch, ...] by an activation quantizer.

    relu: whether this layer stands for a ReLU as well, which the clip at 0 of its unsigned quantizer is.
    bound: of that ReLU, or None. `calibrate` heeds it; from then on the interval is the bound.
    """

    carried = ()  # terms of the step's gradient that `Carry` takes elsewhere

    def __init__(self, quantizer, relu=False, bound=None, **kwargs):
        super().__init__(**kwargs)
        self.quantizer = quantizer
        self.relu = relu
        self.bound = bound

    def build(self, input_shape):
        with _named(self):
            self.quantizer_variables = self.quantizer.build(input_shape, "activation", self)
        super().build(input_shape)

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs, training=None):
        return self.quantizer(inputs, training, self.quantizer_variables, **({"carried": self.carried} if self.carried else {}))

    @property
    def step_size(self):
        """The step between two codes, a float32 scalar."""
        return self.quantizer.step(tf.zeros((), tf.float32), self.quantizer_variables)

    def get_config(self):
        return {**super().get_config(), "quantizer": serialize(self.quantizer), "relu": self.relu, "bound": self.bound}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "quantizer": deserialize(config["quantizer"])})


@keras.utils.register_keras_serializable("kerakd")
class Narrowing(keras.layers.Rescaling):
    """Times 1, before a QuantizedActivation that moves a tensor to another grid: in the file both are a depthwise 1x1 convolution."""

    def __init__(self, scale=1.0, offset=0.0, **kwargs):
        super().__init__(scale, offset, **kwargs)


def interval_variables(model):
    """(layer, "kernel_interval" or "activation_interval", variable) for each interval of a student, also of one that tfmot made."""
    for layer in model._flatten_layers():
        for variable in layer.weights if isinstance(layer, (QuantizedActivation, QuantizeWrapper)) else ():
            name = variable.name.rpartition("/")[2]
            if "_interval" in name:
                yield layer, "kernel_interval" if "kernel_interval" in name else "activation_interval", variable


def intervals(model):
    """{"LAYER weights" or "LAYER activations": the learned or calibrated interval, the mean of one for each channel} of a student."""
    what = {"kernel_interval": "weights", "activation_interval": "activations"}
    return {f"{layer.name} {what[kind]}": float(tf.reduce_mean(variable)) for layer, kind, variable in interval_variables(model)}


def quantize_scope():
    """A Keras custom object scope with every class that a quantized model is saved with."""
    return keras.utils.custom_object_scope({cls.__name__: cls for cls in (QuantizedLayer, QuantizedActivation, Narrowing, LayerConfig, StandardizedConv2D)})

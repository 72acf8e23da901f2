"""QKeras: layers with quantizers as strings; 8 bits in the first and the last."""

import math

import qkeras
import tensorflow as tf

from benchmarks.peer import keras2, resnet
from benchmarks.peer.task import absent, arguments, reported

keras = tf.keras
KERNELS = {**{bits: f"quantized_bits({bits},0,1,alpha='auto')" for bits in ("8", "4", "2")}, "ternary": "ternary(alpha='auto')"}


def conv(filters, size, strides, name):
    kernel = KERNELS["8" if name == "conv" else variant]
    return qkeras.QConv2D(filters, size, strides, "same", use_bias=False, kernel_quantizer=kernel, name=name)


def relu(name):
    """Unsigned, with as many integer bits as the float student's activations need: its steps are powers of two."""
    return qkeras.QActivation(f"quantized_relu({8 if variant == 'ternary' else variant},{max(0, math.ceil(math.log2(largest[name])))})", name=name)


task, variant = arguments()
if variant == "float KD":
    absent("distillation")
student = keras2.ready(resnet.resnet20(keras), task)
relus = [layer for layer in student.layers if isinstance(layer, keras.layers.ReLU)]
seen = keras.Model(student.inputs, [layer.output for layer in relus])(task.views[0].astype("float32"), training=False)
largest = {layer.name: float(tf.reduce_max(output)) for layer, output in zip(relus, seen)}
dense = {"kernel_quantizer": KERNELS["8"], "bias_quantizer": "quantized_bits(16,8,1)"}
model = resnet.resnet20(keras, conv=conv, relu=relu, dense=lambda classes, name: qkeras.QDense(classes, name=name, **dense))
resnet.load(model, task.weights())
reported(keras2.train(keras, model, task), lambda: keras2.convert(model, task))

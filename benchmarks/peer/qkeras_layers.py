"""QKeras: layers with quantizers as strings; 8 bits in the first and the last."""

import sys

import qkeras
import tensorflow as tf

from benchmarks.peer import keras2, resnet
from benchmarks.peer.task import Task, attempt, reported

keras = tf.keras
KERNELS = {
    "8": "quantized_bits(8,0,1,alpha='auto')",
    "4": "quantized_bits(4,0,1,alpha='auto')",
    "2": "quantized_bits(2,0,1,alpha='auto')",
    "ternary": "ternary()",
}
RELUS = {"8": "quantized_relu(8,3)", "4": "quantized_relu(4,2)", "2": "quantized_relu(2,1)", "ternary": "quantized_relu(8,3)"}  # bits, and of them integer ones


def conv(filters, size, strides, name):
    kernel = KERNELS["8" if name == "conv" else variant]
    return qkeras.QConv2D(filters, size, strides, "same", use_bias=False, kernel_quantizer=kernel, name=name)


task, variant = Task(sys.argv[1]), sys.argv[2]
if variant == "float KD":
    raise SystemExit("no distillation")
keras2.ready(resnet.resnet20(keras), task, task.weights())
model = resnet.resnet20(
    keras,
    conv=conv,
    relu=lambda name: qkeras.QActivation(RELUS[variant], name=name),
    dense=lambda classes, name: qkeras.QDense(classes, kernel_quantizer=KERNELS["8"], bias_quantizer="quantized_bits(16,8,1)", name=name),
)
resnet.load(model, task.weights())
figures = keras2.train(keras, model, task)
attempt(figures, "file_error", lambda: keras2.convert(model, task))
reported(figures)

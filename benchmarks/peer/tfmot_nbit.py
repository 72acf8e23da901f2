"""tfmot's experimental n-bit scheme, which TF Model Garden's quantization projects build upon: 2 to 8 bits, weights and activations."""

import sys

import tensorflow_model_optimization as tfmot
import tf_keras as keras
from tensorflow_model_optimization.python.core.quantization.keras.experimental.default_n_bit.default_n_bit_quantize_scheme import DefaultNBitQuantizeScheme

from benchmarks.peer import keras2, resnet
from benchmarks.peer.task import Task, attempt, reported

task, variant = Task(sys.argv[1]), sys.argv[2]
if variant == "float KD":
    raise SystemExit("no distillation")
if variant == "ternary":
    raise SystemExit("no ternary quantizer: its widths are whole bits")
scheme = DefaultNBitQuantizeScheme(num_bits_weight=int(variant), num_bits_activation=int(variant))
annotated = tfmot.quantization.keras.quantize_annotate_model(keras2.ready(resnet.resnet20(keras), task, task.weights()))
model = tfmot.quantization.keras.quantize_apply(annotated, scheme)
figures = keras2.train(keras, model, task)
attempt(figures, "file_error", lambda: keras2.convert(model, task))
reported(figures)

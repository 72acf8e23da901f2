"""tfmot's experimental n-bit scheme, which TF Model Garden's quantization projects build upon: 2 to 8 bits, weights and activations."""

import tensorflow_model_optimization as tfmot
import tf_keras as keras
from tensorflow_model_optimization.python.core.quantization.keras.experimental.default_n_bit.default_n_bit_quantize_scheme import DefaultNBitQuantizeScheme

from benchmarks.peer import keras2, resnet
from benchmarks.peer.task import absent, arguments, reported

task, variant = arguments()
if not variant.isdigit():
    absent("distillation" if variant == "float KD" else "ternary quantizers: its widths are whole bits")
scheme = DefaultNBitQuantizeScheme(num_bits_weight=int(variant), num_bits_activation=int(variant))
annotated = tfmot.quantization.keras.quantize_annotate_model(keras2.ready(resnet.resnet20(keras), task))
model = tfmot.quantization.keras.quantize_apply(annotated, scheme)
reported(keras2.train(keras, model, task), lambda: keras2.convert(model, task))

"""tfmot's default quantization aware training: 8 bits."""

import tensorflow_model_optimization as tfmot
import tf_keras as keras

from benchmarks.peer import keras2, resnet
from benchmarks.peer.task import absent, arguments, reported

task, variant = arguments()
if variant != "8":
    absent("distillation" if variant == "float KD" else "other widths than 8: quantize_model has no argument for them")
model = tfmot.quantization.keras.quantize_model(keras2.ready(resnet.resnet20(keras), task))
reported(keras2.train(keras, model, task), lambda: keras2.convert(model, task))

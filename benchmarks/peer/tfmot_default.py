"""tfmot's default quantization aware training: 8 bits."""

import sys

import tensorflow_model_optimization as tfmot
import tf_keras as keras

from benchmarks.peer import keras2, resnet
from benchmarks.peer.task import Task, attempt, reported

task, variant = Task(sys.argv[1]), sys.argv[2]
if variant == "float KD":
    raise SystemExit("no distillation")
if variant != "8":
    raise SystemExit("no other width than 8: quantize_model has no argument for it")
model = tfmot.quantization.keras.quantize_model(keras2.ready(resnet.resnet20(keras), task, task.weights()))
figures = keras2.train(keras, model, task)
attempt(figures, "file_error", lambda: keras2.convert(model, task))
reported(figures)

"""kerakd: learned intervals, ternary kernels, and a float student under the float teacher."""

import sys

import tf_keras as keras

import kerakd
from benchmarks.peer import keras2, resnet
from benchmarks.peer.task import Task, reported, tflite_figures
from kerakd.tflite import runtime

QUANTIZERS = {
    **{bits: (kerakd.Interval(int(bits)), kerakd.Interval(int(bits), gradient_scale=True)) for bits in ("8", "4", "2")},
    "ternary": (kerakd.Ternary(), kerakd.Interval(8)),
}

task, variant = Task(sys.argv[1]), sys.argv[2]
student = keras2.ready(resnet.resnet20(keras), task, task.weights())
taught = {}
if variant == "float KD":
    teacher = resnet.resnet20(keras, width=2)
    resnet.load(teacher, task.weights("teacher"))
    taught = {"teacher": teacher, "mode": "trained_teacher", "temperature": 4.0, "hard_weight": 0.5, "soft_weight": 0.5}
else:
    student = kerakd.quantize(student, kerakd.Scheme(*QUANTIZERS[variant]))
    kerakd.calibrate(student, task.views[0].astype("float32"), "mse")
optimizer = keras.optimizers.SGD(task.rate, momentum=0.9, nesterov=True)
intervals = {} if variant == "float KD" else {"weight_interval_optimizer": keras.optimizers.SGD(1e-4, momentum=0.9)}
distiller = kerakd.Distiller(student=student, **(taught or {"mode": "alone"}))
distiller.compile(optimizer, **intervals)


def step(images, labels, rate):
    optimizer.learning_rate.assign(rate)
    distiller.train_on_batch(images, labels)


figures = {"step_ms": task.train(step), "accuracy": task.accuracy(keras2.forward(student))}
if variant != "float KD":
    contents = kerakd.to_tflite(student, container="int8")
    figures |= tflite_figures(task, contents, runtime.Interpreter)
    figures["exact"] = kerakd.verify(student, contents, task.test_images[:1000]).exact
reported(figures)

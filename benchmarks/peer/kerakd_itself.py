"""kerakd: learned intervals, ternary kernels with learned scales, and the float student under the float teacher."""

import tensorflow as tf
import tf_keras as keras

import kerakd
from benchmarks.peer import keras2, resnet
from benchmarks.peer.task import arguments, reported

QUANTIZERS = {
    **{bits: (kerakd.Interval(int(bits)), kerakd.Interval(int(bits), gradient_scale=True)) for bits in ("8", "4", "2")},
    "ternary": (kerakd.Ternary(learned=True), kerakd.Interval(8)),
}

task, variant = arguments()
student, taught, intervals = keras2.ready(resnet.resnet20(keras), task), {"mode": "alone"}, {}
if variant in QUANTIZERS:
    student = kerakd.quantize(student, kerakd.Scheme(*QUANTIZERS[variant]))
    kerakd.calibrate(student, task.views[0].astype("float32"), "mse")
    intervals = {"weight_interval_optimizer": keras.optimizers.SGD(1e-4, momentum=0.9)}
if variant == "float KD":
    teacher = resnet.resnet20(keras, width=2)
    resnet.load(teacher, task.weights("teacher"))
    taught = {"teacher": teacher, "mode": "trained_teacher", "temperature": 4.0, "hard_weight": 0.5, "soft_weight": 0.5}
optimizer = keras.optimizers.SGD(task.rate, momentum=0.9, nesterov=True)
distiller = kerakd.Distiller(student=student, **taught)
distiller.compile(optimizer, **intervals)

batches = task.dataset(tf)
train = distiller.make_train_function()  # as fit calls it; train_on_batch makes a pipeline for every batch


def step(images, labels, rate):
    optimizer.learning_rate.assign(rate)
    train(batches)["loss"].numpy()


def convert():
    contents = kerakd.to_tflite(student, container="int8")
    task.file.write_bytes(contents)
    figures["exact"] = kerakd.verify(student, contents, task.test_images[:1000]).exact
    return task.file


figures = {"step_ms": task.train(step), "accuracy": task.accuracy(keras2.forward(student))}
reported(figures, convert if variant in QUANTIZERS else None)

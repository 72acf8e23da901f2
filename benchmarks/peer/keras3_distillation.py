"""keras.distillation of Keras 3: a float student under the float teacher, T = 4, half of the loss from labels."""

import keras
import numpy as np
import tensorflow as tf

from benchmarks.peer import resnet
from benchmarks.peer.task import absent, arguments, reported

task, variant = arguments()
if variant != "float KD":
    absent("quantizers that train")
student, teacher = resnet.resnet20(keras), resnet.resnet20(keras, width=2)
resnet.load(student, task.weights())
resnet.load(teacher, task.weights("teacher"))
task.check(lambda images: np.asarray(student(images, training=False)))
softened = keras.distillation.LogitsDistillation(temperature=4.0, loss=keras.losses.KLDivergence())  # the default takes logits for probabilities
distiller = keras.distillation.Distiller(teacher=teacher, student=student, distillation_losses=softened, student_loss_weight=0.5)
optimizer = keras.optimizers.SGD(task.rate, momentum=0.9, nesterov=True)
distiller.compile(optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))

batches = task.dataset(tf)
distiller.make_train_function()  # as fit calls it; train_on_batch makes a pipeline for every batch


def step(images, labels, rate):
    optimizer.learning_rate.assign(rate)
    np.asarray(distiller.train_function(batches)["loss"])


took = task.train(step)
compiled = tf.function(lambda x: student(x, training=False))
reported({"step_ms": took, "accuracy": task.accuracy(lambda images: compiled(tf.constant(images)).numpy())})

"""Training and converting a tf_keras net, the same for the peers that have one."""

import numpy as np
import tensorflow as tf

from benchmarks.peer import resnet


def train(keras, model, task):
    """{"step_ms", "accuracy"}: SGD on labels, the step compiled."""
    optimizer = keras.optimizers.SGD(task.rate, momentum=0.9, nesterov=True)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer.build(model.trainable_variables)

    @tf.function
    def compiled(images, labels):
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(images, training=True))
        optimizer.minimize(loss, model.trainable_variables, tape=tape)
        return loss

    def step(images, labels, rate):
        optimizer.learning_rate.assign(rate)
        compiled(tf.constant(images), tf.constant(labels)).numpy()

    took = task.train(step)
    return {"step_ms": took, "accuracy": task.accuracy(forward(model))}


def forward(model):
    compiled = tf.function(lambda x: model(x, training=False))
    return lambda images: compiled(tf.constant(images)).numpy()


def convert(model, task):
    """Writes what TensorFlow's converter makes of a quantized model; its path."""
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(tf.TensorSpec([1, 32, 32, 3], tf.float32))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    task.file.write_bytes(converter.convert())
    return task.file


def ready(model, task):
    """Loads the float weights and makes sure of them."""
    resnet.load(model, task.weights())
    task.check(lambda images: np.asarray(model(images, training=False)))
    return model

"""What TensorBoard shows of a run under way: losses, accuracies, intervals of each layer, oscillating weights, learning rates."""

import tensorflow as tf
import tf_keras as keras

from kerakd.wrapper import intervals


class Scalars(keras.callbacks.Callback):
    """Writes, after each epoch of a Distiller's `fit`, its history, its student's intervals and its learning rates.

    Args:
        directory: the RunDirectory: tensorboard --logdir=RUN/tensorboard. stage: of the run.
        optimizers: {name: tf_keras optimizer}.
    Raises: BadInput, from a callback, if they can't be written.
    """

    def __init__(self, directory, stage, optimizers):
        super().__init__()
        self.directory, self.name, self.optimizers, self.writer = directory, f"tensorboard/{stage}", optimizers, None

    def on_train_begin(self, logs=None):
        with self.directory.writing(self.name) as folder:
            self.writer = tf.summary.create_file_writer(str(folder))

    def on_epoch_end(self, epoch, logs=None):
        values = {**logs, **{f"intervals/{name}": value for name, value in intervals(self.model.student).items()}}
        for name, optimizer in self.optimizers.items():
            rate = optimizer.learning_rate
            values[f"learning_rate/{name}"] = tf.convert_to_tensor(rate(optimizer.iterations) if callable(rate) else rate)
        said = [tf.compat.v1.Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
        with self.directory.writing(self.name), self.writer.as_default():
            # as a message, since tf.summary.scalar needs TensorBoard to be installed here as well
            tf.summary.experimental.write_raw_pb(tf.compat.v1.Summary(value=said).SerializeToString(), step=epoch + 1)

    def on_train_end(self, logs=None):
        with self.directory.writing(self.name):
            self.writer.close()

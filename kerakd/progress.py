"""What a person sees while a stage trains: a bar with the time left, or a line per epoch where the output is not a terminal."""

import sys
import time

import tf_keras as keras
import tqdm


class Progress(keras.callbacks.Callback):
    """Progress of one `fit`.

    Args:
        title: of the stage.
        steps: in an epoch.
        batch_size: to say images a second.
        done: steps that were done before.
        epochs: of the whole stage, to say the time left.
    """

    def __init__(self, title, steps, batch_size, done, epochs):
        super().__init__()
        self.title, self.steps, self.batch_size, self.done, self.epochs = title, steps, batch_size, done, epochs
        self.bar = None

    def on_train_begin(self, logs=None):
        layout = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"
        self.bar = tqdm.tqdm(total=self.epochs * self.steps, initial=self.done, desc=self.title, bar_format=layout, leave=True, disable=not sys.stderr.isatty())

    def on_epoch_begin(self, epoch, logs=None):
        self.seen, self.images, self.began = 0, 0, time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        steps, self.seen = batch + 1 - self.seen, batch + 1  # several where an execution has several
        self.bar.update(steps)
        self.images += steps * self.batch_size
        self.ended = time.monotonic()  # without the evaluation behind the last batch

    def on_epoch_end(self, epoch, logs=None):
        rate = self.images / (self.ended - self.began)
        known = {"loss": "loss", "accuracy": "accuracy", "teacher": "teacher_accuracy", "test": "val_accuracy"}  # without labels there is no accuracy
        numbers = "  ".join(f"{title} {logs[name]:.4f}" for title, name in known.items() if name in logs)
        said = f"epoch {epoch + 1}/{self.epochs}  {numbers}  {rate:.0f} images/s"
        if self.bar.disable:
            print(f"{self.title}: {said}", flush=True)
        else:
            self.bar.set_postfix_str(said)

    def on_train_end(self, logs=None):
        self.bar.close()

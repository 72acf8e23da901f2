"""What a person sees while a stage trains: a bar with the time left, or a line per epoch where the output is not a terminal."""

import sys
import time

import tf_keras as keras
import tqdm


class Progress(keras.callbacks.Callback):
    """Progress of one `fit`.

    Args:
        title: of the stage.
        steps: a epoch.
        batch_size: to say images a second.
    """

    def __init__(self, title, steps, batch_size):
        super().__init__()
        self.title, self.steps, self.batch_size = title, steps, batch_size
        self.bar = None

    def on_train_begin(self, logs=None):
        self.started, self.images = time.monotonic(), 0
        done = self.first * self.steps
        layout = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"
        self.bar = tqdm.tqdm(total=self.params["epochs"] * self.steps, initial=done, desc=self.title, bar_format=layout, leave=True, disable=not sys.stderr.isatty())

    first = 0

    def on_train_batch_end(self, batch, logs=None):
        self.bar.update()
        self.images += self.batch_size

    def on_epoch_end(self, epoch, logs=None):
        rate = self.images / (time.monotonic() - self.started)
        said = f"epoch {epoch + 1}/{self.params['epochs']}  loss {logs['loss']:.4f}  accuracy {logs['accuracy']:.4f}  test {logs['val_accuracy']:.4f}  {rate:.0f} images/s"
        if self.bar.disable:
            print(f"{self.title}: {said}", flush=True)
        else:
            self.bar.set_postfix_str(said)

    def on_train_end(self, logs=None):
        self.bar.close()

"""When a run under way is kept: at every epoch's end, at an interval, and when the process is asked to stop."""

import contextlib
import dataclasses
import re
import signal
import time

import numpy as np
import tf_keras as keras

from kerakd.checks import check_finite
from kerakd.devices import Devices, devices
from kerakd.errors import BadInput, Diverged
from kerakd.wrapper import intervals


class Stopped(SystemExit):
    """The process was asked to stop, and what it did is kept. code: 128 + the signal, as shells have it."""

    def __init__(self, number):
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


class StopRequest:
    """SIGTERM and Ctrl-C: while a stage trains they are heeded after the step at hand, which is kept (an epoch's last: after its validation); a
    second one, or one at other times, at once.
    """

    def __init__(self):
        self.number, self.training = None, False

    def listen(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked)

    def _asked(self, number, frame):
        at_once = self.number is not None or not self.training
        self.number = self.number or number  # in any case: an exception raised within a destructor is lost, and the next step heeds this
        if at_once:
            raise Stopped(number)


class Every:
    """An interval: "500" steps, "90s" or "10min".

    Raises: BadInput for another text.
    """

    def __init__(self, text):
        found = re.fullmatch(r"(\d+)(s|min|)", text)
        if not found or not int(found[1]):
            raise BadInput(f'--checkpoint_every: expected steps, as "500", or a time, as "90s" or "10min", received {text!r}')
        count, unit = int(found[1]), found[2]
        self.steps, self.seconds = (count, None) if not unit else (None, count * {"s": 1, "min": 60}[unit])
        self.begin()

    def begin(self):
        self.done, self.started = 0, time.monotonic()

    def due(self, steps=1):
        """Whether it is over, after so many more steps."""
        self.done += steps
        return self.done >= self.steps if self.steps else time.monotonic() - self.started >= self.seconds


def _heed(agreed):
    if agreed > 1:
        raise Stopped(agreed)


@dataclasses.dataclass
class Keeping:
    """How a run is kept. every: between checkpoints within an epoch. kept: how many checkpoints of a stage stay. request: to stop.

    devices: whose workers do so together.
    """

    every: Every = dataclasses.field(default_factory=lambda: Every("10min"))
    kept: int = 2
    request: StopRequest = dataclasses.field(default_factory=StopRequest)
    devices: Devices = dataclasses.field(default_factory=devices)

    def agreed(self, over=False):
        """What all workers do now: 0, go on; 1, keep a checkpoint, as the interval of one is over; the signal that one received: keep one and stop."""
        return self.devices.largest(self.request.number or int(over))

    @contextlib.contextmanager
    def asked_within(self):
        """Within it, as within a `fit`, a request to stop waits for who asks `agreed`, and the interval begins."""
        self.request.training = True
        self.every.begin()
        try:
            yield
        finally:
            self.request.training = False

    def heed(self):
        """Raises: Stopped if any worker was asked to."""
        _heed(self.agreed())


class Keep(keras.callbacks.Callback):
    """After each epoch a line of metrics and one of intervals; checkpoints as the module says, but none at a stage's end, whose model is saved itself.

    Args:
        directory: the RunDirectory. stage: its name. objects: {name: trackable}, all that a step changes.
        steps: of an epoch. last: epochs of the stage.
        place: (epoch, batch) where this `fit` begins; from within an epoch, `metrics` are what that had come to.
        keeping: a Keeping.
    """

    def __init__(self, directory, stage, objects, *, steps, last, place, metrics, keeping):
        super().__init__()
        self.directory, self.stage, self.objects, self.steps, self.last = directory, stage, objects, steps, last
        self.place, self.resumed, self.keeping, self.agreed = place, (place, metrics), keeping, 0

    def on_train_begin(self, logs=None):
        self.keeping.request.training = True
        self.keeping.every.begin()

    def on_train_end(self, logs=None):
        self.keeping.request.training = False

    def on_epoch_begin(self, epoch, logs=None):
        (first, batch), values = self.resumed
        self.place = (epoch, batch if epoch == first else 0)
        self.began = self.place[1]
        if epoch == first and batch:
            with self.keeping.devices.strategy.scope():
                metrics = self._metrics()
                for name in metrics.keys() & values.keys():  # a checkpoint of before may know fewer
                    metrics[name].assign(values[name])

    def _metrics(self):
        return {f"{metric.name} {k}": variable for metric in self.model.metrics for k, variable in enumerate(metric.variables)}

    def on_train_batch_end(self, batch, logs=None):
        if not np.isfinite(logs["loss"]):  # where XLA left the step's own check out
            raise Diverged(f"loss: expected a finite one, received {logs['loss']}; the training diverged: take a smaller learning rate")
        done = self.began + batch + 1  # several steps on, where an execution has several
        over = self.keeping.every.due(done - self.place[1])
        self.place = (self.place[0], done)
        agreed = self.keeping.agreed(over) if done < self.steps else 0
        if agreed:
            with self.keeping.devices.strategy.scope():  # the sums of all replicas
                metrics = {name: variable.numpy() for name, variable in self._metrics().items()}
            self._checkpoint(metrics)
            _heed(agreed)

    def on_epoch_end(self, epoch, logs=None):
        self.directory.add_metrics(self.stage, epoch, logs)
        self.directory.add_intervals(self.stage, epoch, intervals(self.model.student))
        self.place = (epoch + 1, 0)
        if epoch + 1 < self.last:
            self.agreed = self.keeping.agreed()
            self._checkpoint({})
            self.model.stop_training = self.agreed > 1  # other callbacks are to see the epoch's end first

    def heed(self):
        """After `fit`. Raises: Stopped if that is why it ended."""
        _heed(self.agreed)

    def _checkpoint(self, metrics):
        """Raises: Diverged rather than keep what is not finite."""
        for model in self.objects.values():
            if isinstance(model, keras.Model):
                check_finite(model)
        self.directory.checkpoint(self.stage, self.place, self.objects, metrics, self.keeping.kept)
        self.keeping.every.begin()

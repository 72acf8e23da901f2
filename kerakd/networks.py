"""The networks of a run: from their names, from files, and from what the run has trained."""

import contextlib
import functools
import io
import sys

import tf_keras as keras

from kerakd import batchnorm, data, graph, models, oscillation
from kerakd.calibration import calibrate
from kerakd.checks import check_classifier
from kerakd.errors import BadInput
from kerakd.hints import Hints
from kerakd.modelfile import load_model
from kerakd.plan import takes_pixels
from kerakd.scheme import quantize
from kerakd.teachers import is_file
from kerakd.tflite import lint
from kerakd.wrapper import interval_variables


class Networks:
    """Makes them.

    Args:
        config: a Config. directory: the RunDirectory. images: the training Split. shape: (height, width, channels) of the student's views.
    """

    def __init__(self, config, directory, images, shape):
        self.config, self.directory, self.images, self.shape = config, directory, images, shape

    def build(self, name, width, fresh=False, size=0, flag="--image_size={}"):
        """The float network of a name or a file, for the dataset's images and classes; a file's has its weights, unless it is to be fresh.

        flag: what would set the size of its images.
        """
        shape = (size, size, self.shape[2]) if size else self.shape
        if not is_file(name):
            return models.build(name, shape, self.images.classes, width / self.config.shrink, shallow=self.config.shrink > 1)
        model = load_model(name)
        check_classifier(model, name)
        expected, received = (shape, self.images.classes), (tuple(model.input_shape[1:]), model.output_shape[-1])
        if received != expected:
            remedy = _remedy(received, expected, flag)
            raise BadInput(
                f"{name}: expected images {expected[0]} and {expected[1]} classes, as the data have, received {received[0]} and {received[1]}; {remedy}"
            )
        return _fresh(model) if fresh else model

    def check(self):
        """What would fail in an hour fails now, for the student and every teacher; what would not be exact in the file is named."""
        self._check_teachers(self._check_student())

    def _check_student(self):
        c = self.config
        net, scheme = self.float_student(), c.scheme()
        if is_file(c.student) and _takes_pixels(net):
            raise BadInput(f"--student: expected a network of images in -1..1, received {c.student}, which begins with a rescaling of pixels; save it without")
        if is_file(c.student):
            _check_frozen(net, c.student, fresh=not c.from_float())
        with contextlib.redirect_stderr(io.StringIO()):  # lint says it again, and more
            student = quantize(net, scheme)
        if c.dampening or c.freeze or c.watch:
            oscillation.check(student, held=bool(c.dampening or c.freeze))
        if c.batchnorm_batches and not batchnorm.norms(student):
            print("kerakd: --batchnorm_batches does nothing for a student without BatchNorms", file=sys.stderr)
        twice = batchnorm.called_twice(student) if c.batchnorm_batches else []
        if twice:
            raise BadInput(f"--batchnorm_batches: expected a student whose BatchNorms are called once, received {', '.join(twice)} called twice; leave it out")
        for finding in lint(student) if c.exports() else ():
            if finding.refused:
                raise BadInput(f"--student: expected a network that an integer file can hold, received {finding}")
            print(f"kerakd: {finding}", file=sys.stderr)
        return student

    def _check_teachers(self, student):
        c = self.config
        found = {k: one.prepared(self.teacher(one)) for k, one in enumerate(c.teachers()) if is_file(one.network) or c.hint}
        for k, one in enumerate(c.teachers()):
            if is_file(one.network) and one.values == "-1..1" and _takes_pixels(found[k]):
                raise BadInput(
                    f"--teacher: expected values=0..255, as {one.network} begins with a rescaling of pixels, received none; give {one.network},values=0..255"
                )
        if c.hint:
            Hints(student, found[0], c.hints(), c.hint_loss)

    def float_student(self):
        """The float student as its own stage trains it."""
        return self.build(self.config.student, self.config.student_width, fresh=is_file(self.config.student) and not self.config.from_float())

    def student(self):
        """A fresh quantized student with calibrated intervals."""
        net = self.build(self.config.student, self.config.student_width, fresh=not self.config.from_float())
        if self.config.float_epochs and self.config.from_float():
            net.set_weights(self.directory.load_model("float").get_weights())
        student = quantize(net, self.config.scheme())
        if any(interval_variables(student)):
            batch = min(self.config.calibration_images, self.images.count)
            views = data.training(self.images, view="whole", size=self.shape[:2], batch_size=batch, seed=self.config.seed, epochs=1)
            calibrate(student, next(iter(views))[0], self.config.calibration)
        return student

    def teacher(self, one):
        """A float teacher of the configuration's `Teacher`, fresh or its file's."""
        return self.build(one.network, self.config.teacher_width, size=one.size, flag=f"--teacher={one.network},size={{}}")

    def teachers(self):
        """The trained teachers on views in -1..1, or a fresh one where it learns from scratch beside the student."""
        return [self._trained(k, one) for k, one in enumerate(self.config.teachers())]

    def _trained(self, k, one):
        name = teacher_name(k)
        return one.prepared(self.directory.load_model(name) if self.directory.has_model(name) else self.teacher(one))

    def given(self):
        """[(name, a function that gives the model, size of its images)] of the files that a run's table says too."""
        c, found = self.config, []
        if is_file(c.student) and c.from_float() and not c.float_epochs:
            found.append(("float", self.float_student, 0))
        for k, one in enumerate(c.teachers()):
            if is_file(one.network):
                found.append((teacher_name(k), functools.partial(self._trained, k, one), one.size))
        return found


def _remedy(received, expected, flag):
    """What would have a file's network, which takes `received`, (shape, classes), take `expected`."""
    (*sides, channels), classes = received
    if None in sides:
        return "build it for one size"
    if len(sides) == 2 and sides[0] == sides[1] and (channels, classes) == (expected[0][2], expected[1]):
        return f"give {flag.format(sides[0])}"
    return "take another network, or other data"


def _takes_pixels(model):
    return takes_pixels(graph.calls(model))


def _check_frozen(model, path, fresh):
    """Says which layers of a file's student do not learn. Raises: BadInput where their weights are fresh, and would stay so."""
    frozen = [layer.name for layer in model._flatten_layers(include_self=False, recursive=True) if layer._trainable_weights and not layer.trainable]
    told = ", ".join(map(repr, frozen[:3])) + (f" and {len(frozen) - 3} more" if len(frozen) > 3 else "")
    if frozen and fresh:
        raise BadInput(
            f"--student: expected layers that learn with --start=scratch, received {path} with frozen ones, {told}, whose fresh weights would stay as they "
            "are; set trainable=True and save it again"
        )
    if frozen:
        print(f"kerakd: frozen in {path}, so that their weights do not adapt to their grids: {told}", file=sys.stderr)


def _fresh(model):
    """The network of a file with fresh weights, but for what it knows of its data (Normalization)."""
    fresh = keras.models.clone_model(model)
    for source, layer in zip(model._flatten_layers(), fresh._flatten_layers(), strict=True):
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            layer.set_weights(source.get_weights())
            layer.finalize_state()
    return fresh


def teacher_name(number):
    """The stage and the model of a teacher that the run trains."""
    return f"teacher_{number}" if number else "teacher"

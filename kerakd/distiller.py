"""Who learns from whom: a Keras Model that trains a student under a teacher."""

import contextlib
import dataclasses
import inspect
import math

import tensorflow as tf
import tf_keras as keras

from kerakd import grids, losses, oscillation
from kerakd.calibration import uncalibrated
from kerakd.carry import Carry
from kerakd.checks import (
    check_apart,
    check_fit,
    check_labels,
    check_learners,
    check_logits,
    check_loss,
    check_metrics,
    check_path,
    check_teacher,
    warn_of_temperature,
)
from kerakd.errors import BadInput, first_line
from kerakd.explain import LOSS, explained
from kerakd.graph import check_functional
from kerakd.groups import LossScales, by_kind, minimize, spare
from kerakd.modes import mode_named
from kerakd.panel import Panel, views_of
from kerakd.soft import SoftLoss, correct, is_one_hot
from kerakd.wrapper import interval_variables

TERMS = ("loss", "hard_loss", "soft_loss", "hint_loss", "teacher_loss", "oscillating", "teacher_accuracy")  # of a history; `evaluate` knows the first two


def _constant(name, what):
    """A property for what is a constant of the traced step, and so can't be set."""
    return property(lambda self: getattr(self, f"_{name}"), doc=what)


class Distiller(keras.Model):
    """Trains `student` on labels and on what `teacher` says.

    Student:  hard_weight * loss(y, z_S) + soft_weight * soft_loss(z_S, z_T) + hint_weight * hint_loss(f_S, f_T) + the student's own regularizers.
    Teacher, where it learns: loss(y, z_T), and where it listens + soft_weight * soft_loss(z_T, z_S).
    (Apprentice, equation 1 with alpha 1, beta hard_weight, gamma soft_weight; QKD, section 3.2.) Both networks answer
    before either is updated, and neither loss reaches into the other network.

    `call` answers with the student. Where it does not learn, the teacher runs in inference mode and none of its
    variables moves. `evaluate` needs no teacher: its loss is the hard loss. The history names loss, hard_loss, soft_loss,
    with hints hint_loss and, where the teacher learns, teacher_loss, beside the metrics of `compile`; and, under a teacher, of labels that are
    class numbers or one-hot rows, teacher_accuracy, the share that the teachers' weighted mean logits name on the views they are shown. One
    well below their accuracy on test images says that they do not know such views (of mixed images a label is one of several).

    Under a strategy of `tf.distribute`, in whose scope it and its networks are made, a replica learns from its part of the global batch, and
    the step is the mean of the replicas' own, as Keras has it: in a batch that they do not divide evenly, images of a smaller part weigh more.
    `recast(model, synchronized=True)` has BatchNorms normalize by the whole batch.

    A batch is (images, labels), or one whose images are a dict, as `kerakd.data.training` makes it: {"student": the student's
    view, "teachers": a view for each teacher, where they see others, "logits": [n, teachers, C], where they have spoken already,
    "place": of the batch among the views, for a cache}. Without labels, (images,), there is no hard loss, so a frozen teacher is needed.

    Args:
        student: a tf_keras functional model, images -> logits [n, C]; quantized or float.
        teacher: a tf_keras model with the same C, a list of them, or None in mode "alone"; a subclassed one that was never called is built for
            the student's images.
        mode: alone, joint, trained_teacher, finetune or co_study (`kerakd.modes`).
        temperature: T > 0 of the soft loss.
        soft_loss: kl, cross_entropy, logit_mse, standardized_kl, dist or dkd (`kerakd.losses`), or a function (student logits, teacher logits, T) -> [n].
        soft_weight, hard_weight: in modes with a teacher; None takes the mode's own. Alone the hard loss counts as it is.
        teacher_weights: a number for each teacher; None is 1 for each.
        ensemble: of several teachers, "sum": their weighted soft losses add up, or "mean": one soft loss of their weighted mean logits.
        hints: [(name of a layer of the student, of the first teacher)] whose outputs are compared as well.
        hint_loss: hint or attention. For "hint" a 1x1 convolution, which learns, brings the student's channels to the teacher's.
        hint_weight: of the hints' losses together.
        teacher_cache: a `kerakd.cache.TeacherCache`: what frozen teachers say of a place is computed once, and read from then on.
    Raises: BadInput for a Keras 3 model, outputs that are probabilities, numbers of classes that differ, a missing teacher,
        one that shares what moves as the student learns; hints beside an add_loss of a tensor.
    """

    def __init__(
        self,
        *,
        student,
        teacher=None,
        mode="trained_teacher",
        temperature=1.0,
        soft_loss="kl",
        soft_weight=None,
        hard_weight=None,
        teacher_weights=None,
        ensemble="sum",
        hints=(),
        hint_loss="hint",
        hint_weight=1.0,
        teacher_cache=None,
        **kwargs,
    ):
        super().__init__(**{"autocast": False, **kwargs})  # networks cast for themselves
        teachers = [] if teacher is None else list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
        check_functional(student, "student")
        if len(student.outputs) != 1:
            raise BadInput(f"student: expected one output, the logits, received {len(student.outputs)}; make a model of one of them")
        for one in teachers:
            check_teacher(one, student)
            check_apart(one, student)
        check_logits(student, "student")
        _check_weights(soft_weight=soft_weight, hard_weight=hard_weight, hint_weight=hint_weight)
        for name, weight, own in (("hard_weight", hard_weight, 1), ("soft_weight", soft_weight, 0)):
            if not teachers and weight not in (None, own):
                raise BadInput(f"{name}: expected none without a teacher, received {weight}; alone the hard loss is all that there is")
        if not hints and (hint_loss != "hint" or hint_weight not in (0, 1)):
            raise BadInput(f"hint_loss, hint_weight: expected none without hints, received {hint_loss!r} and {hint_weight}; give hints=, or leave them out")
        self.student = student
        self.teachers = teachers
        self._soft = SoftLoss(soft_loss, temperature, teacher_weights, ensemble, len(teachers))
        if _replicas() > 1 and (teacher_cache is not None or self._soft.function is losses.dist):
            given = "teacher_cache" if teacher_cache is not None else "soft_loss"
            raise BadInput(f"{given}: expected none or another under a strategy of {_replicas()} replicas, received one that needs a whole batch")
        self._panel = Panel(student, teachers, hints, hint_loss, teacher_cache)
        self.projectors = [] if self.hints is None else [one for one in self.hints.projectors if one is not None]  # so that Keras saves them
        self.carry = Carry(student if self.hints is None else self.hints.student)  # a tensor that a hint reads has another reader
        self.built = True  # its networks are
        warn_of_temperature(student, temperature, teachers)
        self._weights_asked, self._hint_weight = (hard_weight, soft_weight), hint_weight
        self._loss_scales = LossScales([student, *teachers])
        self.distribute_reduction_method = "first"  # of the results of a step, which all replicas agree on; Keras would add those of workers up
        self._trackers = {name: keras.metrics.Mean(name=name) for name in TERMS}
        self.teacher_optimizer = self.weight_interval_optimizer = self.activation_interval_optimizer = None
        self._dampening = self._freezing = self.watch = None
        self._expects_numbers = self._knows_range = False
        self.enter(mode)

    def enter(self, mode, *, hard_weight=None, soft_weight=None):
        """Starts a phase in another mode, also from a callback of `fit`; weights and optimizers go on from where they are.

        Args:
            hard_weight, soft_weight: None takes the constructor's in a mode with a teacher, else the mode's own.
        Raises: BadInput for an unknown mode, one that needs a teacher where there is none, or one alone where there are more; weights below 0, a
            soft_weight in a mode without a teacher.
        """
        chosen = mode_named(mode)
        _check_weights(soft_weight=soft_weight, hard_weight=hard_weight)
        if soft_weight and not chosen.teacher:
            raise BadInput(f"soft_weight: expected none in mode {mode!r}, which has no soft loss, received {soft_weight}; leave it out")
        self._panel.check(mode, chosen)
        if self.compiled and chosen.teacher_learns and self.teacher_optimizer is None:
            raise BadInput(_NO_TEACHER_OPTIMIZER.format(mode))
        asked_hard, asked_soft = self._weights_asked if chosen.teacher else (None, None)
        soft = next(w for w in (soft_weight, asked_soft, chosen.soft_weight) if w is not None) if chosen.teacher else 0.0
        if soft and self.student.output_shape[-1] == 1 and self._soft.function in losses.OF_PROBABILITIES:
            raise BadInput(
                "student: expected two or more logits for this soft_loss, received 1, whose softmax is 1 whatever it is; give one for each class, "
                'or soft_loss="logit_mse"'
            )
        before = set() if not hasattr(self, "mode") else {tracker.name for tracker in self.metrics}
        self.mode_name, self.mode, self._soft_weight = mode, chosen, soft
        for name in {tracker.name for tracker in self.metrics} & self._trackers.keys() - before:
            self._trackers[name].reset_state()  # Keras resets what `metrics` has, and that before it calls the callbacks of an epoch
        self._hard_weight = next(w for w in (hard_weight, asked_hard, chosen.hard_weight) if w is not None)
        if self.train_function is not None:  # traced anew, also within a fit, from a callback: the step of another mode is another graph
            self.make_train_function(force=True)

    hard_weight = _constant("hard_weight", "Of the hard loss; `enter` sets it.")
    soft_weight = _constant("soft_weight", "Of the soft loss, likewise.")
    hint_weight = _constant("hint_weight", "Of the hints' losses together.")
    dampening = _constant("dampening", "As `compile` was given it.")
    freezing = _constant("freezing", "Likewise.")
    temperature = property(lambda self: self._soft.temperature, doc="Of the soft loss.")
    soft_loss = property(lambda self: self._soft.loss, doc="The function (student logits, teacher logits, T) -> [n].")
    teacher_weights = property(lambda self: list(self._soft.weights), doc="One for each teacher.")
    ensemble = property(lambda self: self._soft.ensemble, doc='"sum" or "mean".')
    hints = property(lambda self: self._panel.hints, doc="The `Hints`, or None.")
    teacher_cache = property(lambda self: self._panel.cache, doc="The `TeacherCache`, or None.")

    def get_config(self):
        """Nothing, as no configuration makes its networks again; Keras asks for it where it saves weights."""
        return {}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Raises BadInput: see `get_config`."""
        raise BadInput("from_config: expected a network, received a Distiller; make one of its networks, compile it likewise, then load_weights")

    def save(self, *args, **kwargs):
        """Raises BadInput: a Distiller is a way to train, of which `save_weights` keeps all that it has learned."""
        raise BadInput("save: expected a network, received a Distiller; take distiller.student.save, or save_weights to go on with the training")

    def save_weights(self, filepath, *args, **kwargs):
        """As `keras.Model.save_weights`: networks, hints' projectors, optimizers, what is watched and frozen. Raises: BadInput for Keras's older format."""
        check_path(filepath, *args, **kwargs)
        super().save_weights(filepath, *args, **kwargs)

    def load_weights(self, filepath, *args, **kwargs):
        """As `keras.Model.load_weights`, into a Distiller of the same networks that was compiled likewise.

        Raises: BadInput as `save_weights`, and for an .h5 file of another Distiller.
        """
        check_path(filepath)
        if self.compiled:  # for what is read to have a place
            with self.distribute_strategy.scope():
                self._build_optimizers()
        try:
            return super().load_weights(filepath, *args, **kwargs)
        except ValueError as error:
            told = f"received others ({first_line(error)})"
            raise BadInput(f"filepath: expected weights that this version saved of the same networks, compiled likewise, {told}") from error

    @property
    def compiled(self):
        """Whether `compile` was called."""
        return bool(self._is_compiled)

    def compile(
        self,
        optimizer="adam",
        loss=None,
        metrics=None,
        *,
        teacher_optimizer=None,
        weight_interval_optimizer=None,
        activation_interval_optimizer=None,
        dampening=None,
        freezing=None,
        watch=False,
        **kwargs,
    ):
        """As `keras.Model.compile`, and:

        Args:
            loss: of labels and student logits; None is softmax cross-entropy with integer labels.
            teacher_optimizer: needed in modes in which the teacher learns.
            weight_interval_optimizer, activation_interval_optimizer: for the learned intervals of kernels and of
                activations (QKD has three learning rates); None leaves them to `optimizer`. No optimizer's weight decay reaches them.
                Keras's callbacks that set a learning rate, as LearningRateScheduler, set that of `optimizer` alone: give the others, and the
                teacher's, a schedule. Each is given a loss scale of its own where layers compute in float16 (a Keras policy of the networks).
            dampening: weight of `oscillation.dampening` in the loss, 0 or more; a number, or a function of the step such as optimizers.Ramp.
            freezing: frequency of oscillation, more than 0 and less than 1, above which a weight is frozen, likewise; None freezes none.
            watch: add to the history `oscillating`, the share of weights of at most 4 bits that oscillate; freezing does so too.
        A `compute_loss` of a subclass is not called.

        Raises: BadInput for a loss of probabilities; a metric of such (cross-entropy, divergence, AUC) or that compares with 0.5; one logit without
            a loss of its own, or with an accuracy by name; a missing teacher_optimizer, one of intervals that nothing learns; kernels that can't be
            damped or frozen; jit_compile with a teacher_cache.
        """
        optimizers = {"optimizer": optimizer, "teacher_optimizer": teacher_optimizer}
        optimizers |= {"weight_interval_optimizer": weight_interval_optimizer, "activation_interval_optimizer": activation_interval_optimizer}
        loss, metrics = self._by_name(loss, "loss"), self._by_name(metrics, "metrics")
        kwargs |= {"weighted_metrics": self._by_name(kwargs.get("weighted_metrics"), "weighted_metrics")}
        self._check_compile(optimizers, loss, metrics, kwargs)
        oscillation.check_treatment(self.student, dampening, freezing, watch)
        hard = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        optimizers = {name: self._loss_scales.around(one) for name, one in optimizers.items()}
        self._spare(optimizers.values())
        super().compile(optimizer=optimizers.pop("optimizer"), loss=hard, metrics=metrics, **kwargs)
        self._expects_numbers = loss is None
        self._knows_range = type(hard) is keras.losses.SparseCategoricalCrossentropy and hard.get_config().get("ignore_class") is None
        for name, one in optimizers.items():
            setattr(self, name, one)
        self._dampening, self._freezing = dampening, freezing
        self.watch = oscillation.Watch(self.student, held=freezing is not None) if watch or freezing is not None else None

    def _check_compile(self, optimizers, loss, metrics, kwargs):
        """Raises BadInput for what `compile` can't take. optimizers: {argument: optimizer or None}."""
        optimizer, teacher_optimizer, *others = optimizers.values()
        for given in tf.nest.flatten([*optimizers.values(), loss, metrics]):
            if any(cls.__module__.split(".")[0] == "keras" for cls in type(given).__mro__):
                received = f"{type(given).__name__} of Keras 3"
                raise BadInput(f"compile: expected optimizers, losses and metrics of tf_keras (Keras 2), received {received}; import tf_keras as keras")
        others = [one for one in others if one is not None]
        if any(getattr(one, "use_ema", False) for one in (optimizer, teacher_optimizer, *others)) and (self.teachers or others):
            raise BadInput("optimizer: expected one without use_ema, received one with it; Keras would average the variables of the others as well")
        if teacher_optimizer is not None and not isinstance(teacher_optimizer, str) and any(one is teacher_optimizer for one in (optimizer, *others)):
            raise BadInput("teacher_optimizer: expected one of its own, received that of the student; make another")
        check_loss(loss)
        for argument, given in (("metrics", metrics), ("weighted_metrics", kwargs.get("weighted_metrics"))):
            check_metrics(given, argument, one_logit=self.student.output_shape[-1] == 1)
        if loss is None and self.student.output_shape[-1] == 1:
            raise BadInput("loss: expected one for a student of one logit, received none; give tf_keras.losses.BinaryCrossentropy(from_logits=True)")
        if self.mode.teacher_learns and teacher_optimizer is None:
            raise BadInput(_NO_TEACHER_OPTIMIZER.format(self.mode_name))
        if kwargs.get("jit_compile") and self.teacher_cache is not None:
            raise BadInput("jit_compile: expected False with a teacher_cache, received True; XLA can't read files")
        kinds = {"kernel_interval": "weight_interval_optimizer", "activation_interval": "activation_interval_optimizer"}
        learned = by_kind(self.student, self.student.trainable_variables, kinds)
        for kind, argument in kinds.items():
            if optimizers[argument] is not None and kind not in learned:
                of = kind.removesuffix("_interval")
                raise BadInput(f"{argument}: expected none for a student without learned intervals of {of}s, received one; leave it out")

    @property
    def optimizers(self):
        """{name: optimizer} of those that `compile` was given."""
        names = ("optimizer", "teacher_optimizer", "weight_interval_optimizer", "activation_interval_optimizer")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def call(self, inputs, training=None):
        """The student's logits [n, C] of images, or of a dict of views."""
        with self._ops():
            return self.student(views_of(inputs)["student"], training=training)

    def _ops(self):
        """The context in which a step is traced."""
        compiled = self._jit_compile or isinstance(self.distribute_strategy, tf.distribute.TPUStrategy)
        return grids.plain_ops() if compiled else contextlib.nullcontext()

    def fit(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.fit`.

        Raises: BadInput for networks without calibrated intervals or trainable variables, a teacher that shares what the student moves, labels outside
            the classes or that are strings, validation without labels, a callback that saves a Distiller whole or to a path that has no place for
            its weights; Diverged for a step whose loss is not finite, before it changes any trained weight (not under
            jit_compile: XLA leaves such checks out).
        """
        y = self._by_name(y, "labels")
        self._check(y, training=True)
        check_learners(self.learning_variables, self.teachers[0] if self.mode.teacher_learns else None)
        for teacher in self.teachers:  # what was frozen when it was made may learn now
            check_apart(teacher, self.student)
        given = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        with self.distribute_strategy.scope():  # where the number of replicas is known
            check_fit(x, y, *(given.get(name) for name in ("callbacks", "validation_split", "validation_data")))
        self._eval_data_handler = None  # the images that a fit which was stopped validated on: Keras would take them again
        with self.distribute_strategy.scope():
            self._create_variables(x, y)
            if self.watch is not None:
                with self._ops():  # codes as the step computes them
                    self.watch.renew()
        with explained(self.student.output_shape[-1]):
            return super().fit(x, y, *args, **kwargs)

    def _check(self, y, training=False):
        """Raises BadInput for networks without calibrated intervals, labels outside the classes."""
        asked = self.teachers if training and self.mode.teacher else []
        for who, network in [("student", self.student), *(("teacher", teacher) for teacher in asked)]:
            missing = uncalibrated(network)
            if missing:
                raise BadInput(f"{who}: expected calibrated intervals, received none for {', '.join(missing)}; call kerakd.calibrate({who}, images) first")
        if y is not None and self._knows_range:
            check_labels(y, self.student.output_shape[-1])

    def _by_name(self, given, argument):
        """What is given for the one output: of a dict what is there under its name, that of the float network's, or Keras's for a subclassed model."""
        if not isinstance(given, dict):
            return given
        name = self.student.output_names[0]
        if len(given) != 1 or not set(given) <= {name, name.removesuffix("_out"), "output_1"}:
            raise BadInput(f"{argument}: expected what is for {name!r}, the student's output, received {', '.join(map(repr, given))}")
        return next(iter(given.values()))

    def _create_variables(self, x, y):
        """Those of optimizers, and of metrics where labels are known: a step that creates variables is traced twice, which takes seconds."""
        if not self.compiled:
            return
        self._build_optimizers()
        if isinstance(x, (tf.data.Dataset, tf.distribute.DistributedDataset)):
            y = x.element_spec[1] if isinstance(x.element_spec, tuple) and len(x.element_spec) > 1 else None
            y = self._by_name(getattr(y, "_value_specs", [y])[0], "labels")  # of the first replica
        if not hasattr(y, "dtype") or tf.TensorShape(y.shape).rank is None:
            return
        logits = tf.zeros([1, *self.student.output_shape[1:]])
        if not self.compiled_metrics.built:
            self.compiled_metrics.build(logits, tf.zeros([1, *(size or 1 for size in y.shape[1:])], y.dtype))
        if not self.compiled_loss.built:
            self.compiled_loss.build(logits)

    def _spare(self, optimizers):
        """Keeps their weight decay from intervals."""
        spare(optimizers, [variable for network in (self.student, *self.teachers) for _, _, variable in interval_variables(network)])

    def _build_optimizers(self):
        self._spare(self.optimizers.values())  # again, as an optimizer may have been given its decay after `compile`
        learners = self._groups(self.learning_variables)
        if self.teacher_optimizer and self.teachers:
            learners.append((self.teacher_optimizer, self.teachers[0].trainable_variables))
        for optimizer, variables in learners:
            if isinstance(optimizer, keras.optimizers.Optimizer):  # a legacy one makes them itself
                optimizer.build(variables)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.evaluate`; no variable changes. Raises: BadInput as `fit`."""
        y = self._by_name(y, "labels")
        self._check(y)
        with explained(self.student.output_shape[-1]):
            return super().evaluate(x, y, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """As `keras.Model.predict`: logits [n, C]. Raises: BadInput for a student without calibrated intervals."""
        self._check(None)
        with explained(self.student.output_shape[-1]):
            return super().predict(x, *args, **kwargs)

    @property
    def metrics(self):
        """The losses that this mode has and the metrics of `compile`, which Keras resets with each epoch."""
        there = {
            "soft_loss": self.mode.teacher,
            "hint_loss": self.hints is not None and self.mode.teacher,
            "teacher_loss": self.mode.teacher_learns,
            "teacher_accuracy": self.mode.teacher,
            "oscillating": self.watch is not None,
        }
        metrics = [tracker for name, tracker in self._trackers.items() if there.get(name, True)]
        return metrics + (self.compiled_metrics.metrics if self.compiled and self.compiled_metrics else [])

    @property
    def metrics_names(self):
        """Of what `evaluate` and `test_on_batch` answer, in that order; `train_on_batch` answers the others behind them, by their names."""
        return [name for name in super().metrics_names if name not in TERMS[2:]]

    def train_step(self, data):
        """One step of the mode that was entered on a batch: {metric: its value over the epoch so far}, as `keras.Model.train_step`."""
        with self._ops():
            return self._train_step(data)

    def _train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x, y = views_of(x), self._by_name(y, "labels")
        self._check_batch(x, y)
        told = self._panel.say(x) if self.mode.frozen_teacher else ([], [])
        # replicas are traced in turns, and would meet each other's patches
        carried = self.carry() if _replicas() == 1 else contextlib.nullcontext()
        with tf.GradientTape(persistent=True) as tape, carried:
            found = self._loss_terms(x, y, sample_weight, *told)
            shares = [value if value is None or _replicas() == 1 else value / _replicas() for value in (found.loss, found.teacher_loss)]  # gradients are summed
        total = found.loss if found.teacher_loss is None else found.loss + found.teacher_loss
        if _replicas() > 1:  # a loss that is not finite in one of them stops all, and at the same step
            total = tf.distribute.get_replica_context().all_reduce("SUM", total)
        with tf.control_dependencies([tf.debugging.check_numerics(total, LOSS)]):
            self._minimize(tape, *shares)
        return self._record(x, y, sample_weight, found)

    def _check_batch(self, x, y):
        """Raises BadInput for labels, or none, and for logits of a teacher that this mode and loss can't use."""
        if self.mode.teacher_learns and "logits" in x:
            raise BadInput(f"logits: expected none in mode {self.mode_name!r}, in which the teacher learns and says other things at every step, received some")
        if y is None and not self.mode.frozen_teacher:
            raise BadInput(f"labels: expected batches with labels in mode {self.mode_name!r}, received images alone; a frozen teacher alone needs none")
        if self._expects_numbers and y is not None and is_one_hot(y):
            raise BadInput(f"labels: expected class numbers [n], received {tuple(y.shape)}; give compile(loss=CategoricalCrossentropy(from_logits=True))")

    def _loss_terms(self, x, y, sample_weight, teacher_logits, teacher_features):
        """The _Terms of a batch, both networks having answered; of frozen teachers it is known already what they say."""
        asked = self.hints.student if teacher_features else self.student
        logits, *features = tf.nest.flatten(asked(x["student"], training=True))
        if self.mode.teacher_learns:
            teacher_logits = [self.teachers[0](self._panel.views(x)[0], training=True)]
        hard = 0.0 if y is None else self._hard(y, logits, sample_weight)
        soft = self._mean(self._soft(logits, teacher_logits, y), sample_weight) if teacher_logits else 0.0
        loss = self.hard_weight * hard + self.soft_weight * soft + _sum(self.student.losses)
        hint = self._mean(self.hints(features, teacher_features), sample_weight) if teacher_features else 0.0
        loss += self.hint_weight * hint
        if self.dampening is not None:
            loss += self._at_this_step(self.dampening) * oscillation.dampening(self.student)
        teacher_loss = self._teacher_loss(y, teacher_logits, logits, sample_weight) if self.mode.teacher_learns else None
        return _Terms(logits, loss, hard, soft, hint, teacher_loss, teacher_logits)

    @tf.autograph.experimental.do_not_convert
    def _minimize(self, tape, loss, teacher_loss):
        minimize(tape, loss, self._groups(self.learning_variables if self.mode.teacher else self.student.trainable_variables))  # alone there are no hints
        if teacher_loss is not None:
            minimize(tape, teacher_loss, [(self.teacher_optimizer, self.teachers[0].trainable_variables)])

    def _record(self, x, y, sample_weight, found):
        """The results of a step, {metric: value so far}."""
        count = tf.shape(found.logits)[0]  # the last batch of an array is smaller
        if found.teacher_loss is not None:
            self._trackers["teacher_loss"].update_state(found.teacher_loss, count)
        if self.watch is not None:
            self.watch.update(None if self.freezing is None else self._at_this_step(self.freezing))
            self._trackers["oscillating"].update_state(self.watch.share())
        shown = {tracker.name for tracker in self.metrics}
        for name, value in (("loss", found.loss), ("hard_loss", found.hard), ("soft_loss", found.soft), ("hint_loss", found.hint)):
            if name in shown:
                self._trackers[name].update_state(value, count)
        rights = None if y is None or not found.teacher_logits else correct(self._soft.mean(found.teacher_logits), y)
        if rights is not None:
            self._trackers["teacher_accuracy"].update_state(rights)
        if y is None:
            results = {tracker.name: tracker.result() for tracker in self.metrics if tracker in self._trackers.values()}
        else:
            results = self.compute_metrics(x, y, found.logits, sample_weight)
        return {name: value for name, value in results.items() if name != "teacher_accuracy" or rights is not None}

    def _hard(self, y, logits, sample_weight):
        """The mean hard loss of this replica's part of the batch, of which Keras gives its share in the mean of all."""
        return tf.cast(self.compiled_loss(y, tf.cast(logits, tf.float32), sample_weight), tf.float32) * _replicas()

    def ask(self, x):
        """What frozen teachers say of a batch of images, or of a dict of views: float32 [n, teachers, C]."""
        return self._panel.ask(views_of(x))

    def _at_this_step(self, value):
        return value(self.optimizer.iterations) if callable(value) else value

    def test_step(self, data):
        """Likewise, without a step: loss, hard_loss and the metrics of `compile`, which are the student's. Raises: BadInput for images without labels."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if y is None:
            raise BadInput("labels: expected batches with labels to evaluate on, received images alone; `predict` needs none")
        y = self._by_name(y, "labels")
        logits = self(x, training=False)
        hard, count = self._hard(y, logits, sample_weight), tf.shape(logits)[0]  # the last batch is smaller, and there may be replicas without a part of it
        self._trackers["loss"].update_state(hard, count)
        self._trackers["hard_loss"].update_state(hard, count)
        results = self.compute_metrics(x, y, logits, sample_weight)
        return {name: value for name, value in results.items() if name not in TERMS[2:]}

    def _teacher_loss(self, y, teacher_logits, logits, sample_weight):
        loss = self._hard(y, teacher_logits[0], sample_weight) + _sum(self.teachers[0].losses)
        if self.mode.teacher_listens:
            loss += self.soft_weight * self._mean(self._soft.between(teacher_logits[0], logits, y), sample_weight)
        return loss

    @staticmethod
    def _mean(per_example, sample_weight):
        if sample_weight is not None:
            per_example *= tf.reshape(tf.cast(sample_weight, per_example.dtype), [-1])  # Keras takes [n, 1] as well
        if _replicas() == 1:
            return tf.reduce_mean(per_example)
        return tf.math.divide_no_nan(tf.reduce_sum(per_example), tf.cast(tf.size(per_example), per_example.dtype))  # there may be one without a part

    @property
    def learning_variables(self):
        """What the student's optimizers move: its variables and the hints' projectors."""
        return self.student.trainable_variables + ([] if self.hints is None else self.hints.trainable_variables)

    def _groups(self, learning):
        """[(optimizer, its variables)] of the variables that the student's optimizers move."""
        own = {"kernel_interval": self.weight_interval_optimizer, "activation_interval": self.activation_interval_optimizer}
        own = {kind: optimizer for kind, optimizer in own.items() if optimizer is not None}
        merged = {}  # two kinds may have one optimizer, which takes all of its variables at once
        for kind, variables in by_kind(self.student, learning, own).items():
            optimizer = own.get(kind, self.optimizer)
            merged.setdefault(id(optimizer), (optimizer, []))[1].extend(variables)
        return list(merged.values())


@dataclasses.dataclass(frozen=True)
class _Terms:
    """Of a batch: the student's logits [n, C], scalars, and each teacher's logits."""

    logits: tf.Tensor
    loss: tf.Tensor
    hard: tf.Tensor
    soft: tf.Tensor
    hint: tf.Tensor
    teacher_loss: "tf.Tensor | None"
    teacher_logits: list


_NO_TEACHER_OPTIMIZER = "teacher_optimizer: expected an optimizer in mode {!r}, in which the teacher learns, received none; give compile(teacher_optimizer=...)"


def _check_weights(**weights):
    for name, weight in weights.items():
        if weight is not None and not 0 <= weight < math.inf:
            raise BadInput(f"{name}: expected a number of 0 or more, received {weight}")


def _replicas():
    return tf.distribute.get_strategy().num_replicas_in_sync


def _sum(terms):
    return tf.add_n([tf.cast(term, tf.float32) for term in terms]) if terms else 0.0

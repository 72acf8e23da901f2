"""The training of a run, stage after stage: its optimizers, checkpoints, and what is said of a step that diverged."""

import dataclasses
import functools
import sys

import tf_keras as keras

from kerakd import batchnorm, curves, data, optimizers, scores
from kerakd.checks import broken, check_finite, first_not_finite
from kerakd.distiller import Distiller
from kerakd.errors import BadInput, Diverged
from kerakd.files import sha256
from kerakd.graph import random_states
from kerakd.groups import by_kind
from kerakd.keep import Keep, Keeping
from kerakd.lessons import Lessons
from kerakd.modes import MODES
from kerakd.networks import Networks, teacher_name
from kerakd.progress import Progress
from kerakd.recast import recast
from kerakd.rundir import kind_of
from kerakd.scalars import Scalars
from kerakd.stages import stages
from kerakd.teachers import is_file
from kerakd.tflite import settle, settling

SETTLED_ON = 1000  # test images, on which a settled student is compared with what was trained


class Training:
    """A run: the configuration, its data, its directory and how it is kept."""

    def __init__(self, config, directory, keeping=None):
        self.config, self.directory, self.keeping = config, directory, keeping or Keeping()
        self.devices = self.keeping.devices
        self.check_devices()
        if not self.devices.chief:
            self.devices.largest(0)  # the chief prepares what there is to prepare
        self.train, self.test = data.load(config.dataset, config.data_dir or None, config.synthetic, config.largest())
        if self.devices.chief:
            self.devices.largest(0)
        self.shape = self.train.image_shape(config.size())
        self._tests = {}
        self.lessons = Lessons(config, directory, self.train, self.shape)
        self.networks = Networks(config, directory, self.train, self.shape)
        self.networks.check()
        self.lessons.check()
        self.stages = stages(config, self.networks)

    def data(self):
        """What the run is trained and tested on, and the networks that it takes from files, as its directory keeps it."""
        parts = {"train": self.train, "test": self.test, **({"transfer": self.lessons.transfer} if self.config.transfer_dataset else {})}
        images = {part: f"{split.name}, {split.count} images, {split.order}" for part, split in parts.items()}
        networks = {path: f"sha256 {sha256(path)}" for path in self.config.files().values() if is_file(path)}
        return {"classes": list(self.train.names), **images, **networks}

    def check_devices(self):
        """Several replicas can share this run's batches."""
        c, several = self.config, self.devices.replicas
        self.devices.check_batch(c.batch_size)
        refused = {"teacher_cache": c.teacher_cache, "soft_loss": c.soft_loss == "dist", "jit_compile": c.jit_compile}
        for name in (name for name, given in refused.items() if several > 1 and given):
            needs = "steps that XLA compiles are of one device" if name == "jit_compile" else "it needs whole batches"
            raise BadInput(f"--{name}: expected none or another with {several} replicas, received {getattr(c, name)}; {needs}")

    def optimizer(self, rate, phases, variables):
        """For the phases of a stage; --restart lets each begin anew."""
        c = self.config
        steps = self.steps(phases)
        return optimizers.build(c.optimizer, rate, steps if c.restart else sum(steps), variables, c.warmup(steps), c.weight_decay, c.clip_norm, c.schedule)

    def steps(self, phases):
        """How many each phase has."""
        return [epochs * self.lessons.batches(MODES[mode].frozen_teacher) for mode, epochs in phases]

    def compile(self, distiller, stage):
        """Gives the distiller its optimizers, each built for its variables; returns those, for the checkpoint."""
        c = self.config
        rates = {"activation_interval": c.activation_interval_rate, "kernel_interval": c.weight_interval_rate}
        rates = {kind: rate for kind, rate in rates.items() if rate is not None}
        variables = by_kind(distiller.student, distiller.learning_variables, rates)
        made = {kind: self.optimizer(rates.get(kind, c.learning_rate), stage.phases, of_kind) for kind, of_kind in variables.items()}
        if stage.teacher_learns:
            learning = [(mode, epochs) for mode, epochs in stage.phases if MODES[mode].teacher_learns]
            made["teacher_optimizer"] = self.optimizer(c.learning_rate, learning, distiller.teachers[0].trainable_variables)
        distiller.compile(
            made[None],
            metrics=["accuracy"],
            teacher_optimizer=made.get("teacher_optimizer"),
            weight_interval_optimizer=made.get("kernel_interval"),
            activation_interval_optimizer=made.get("activation_interval"),
            jit_compile=c.jit_compile,
            steps_per_execution=c.steps_per_execution,
            **(self.medicine(sum(self.steps(stage.phases))) if stage.quantized else {}),
        )
        return distiller.optimizers if distiller.watch is None else {**distiller.optimizers, "watch": distiller.watch}

    def medicine(self, steps):
        """The arguments of `compile` for kernels that oscillate."""
        c = self.config
        return {
            "dampening": optimizers.Ramp(0.0, c.dampening, steps) if c.dampening else None,
            "freezing": optimizers.Ramp(0.1, c.freeze, steps) if c.freeze else None,
            "watch": c.watch,
        }

    def ready(self, stage):
        """(its distiller, compiled; {name: what a checkpoint holds of it}), as they begin."""
        keras.utils.set_random_seed(stage.seed)
        networks = stage.make()
        with self.devices.strategy.scope():
            student, teachers = self.placed(*networks)
            del networks
            distiller = self.distiller(stage, student, teachers)
            objects = {"student": student, **self.compile(distiller, stage)}
        if stage.teacher_learns:  # a frozen one is read again
            objects["teacher"] = teachers[0]
        if distiller.hints is not None:
            objects |= {f"projector_{k}": projector for k, projector in enumerate(distiller.hints.projectors) if projector is not None}
        states = (state for model in stage.learners(distiller) for state in random_states(model))
        return distiller, objects | {f"random_{k}": state for k, state in enumerate(states)}

    def train_stage(self, stage):
        """Trains one stage, from its newest checkpoint if there is one, and saves its student."""
        c = self.config
        distiller, objects = self.ready(stage)
        student = distiller.student
        with self.devices.strategy.scope():
            (done, batch), metrics = self.directory.restore(stage.name, objects)
        self.directory.forget_metrics(stage.name, done)
        if done or batch:
            print(f"{stage.title}: goes on from epoch {done + 1}, step {batch + 1}")
        if stage.quantized and not (done or batch) and c.from_float():
            net = self.directory.load_model("float") if c.float_epochs else self.networks.float_student()
            print(f"{stage.title}: accuracy {self.accuracy(student):.4f} after calibration, before training; float {self.accuracy(net):.4f}")
        ended = 0
        for mode, epochs in stage.phases:
            first, ended = max(done, ended), ended + epochs
            if first < ended:
                distiller.enter(mode)
                if first == done and batch:
                    self.fit(distiller, stage, objects, first, first + 1, batch, metrics)
                    first += 1
                if first < ended:
                    self.fit(distiller, stage, objects, first, ended)
        for model in stage.learners(distiller):
            check_finite(model)
        if stage.teacher_learns:
            self.directory.save_model(f"{stage.name}_teacher", self.trained(distiller.teachers[0]))
        # last, as its presence says to a resumed run that the stage is done
        self.directory.save_model(stage.name, self.settled(stage, self.trained(student)))
        self.devices.largest(0)  # the chief has written what the others read next
        self.directory.drop_checkpoints(stage.name)

    def placed(self, student, teachers):
        """Networks as the devices train them."""
        if self.config.mixed_precision or self.devices.distributed:
            student, *teachers = (recast(model, self.config.policy(), self.devices.distributed) for model in (student, *teachers))
        return student, teachers

    def trained(self, model):
        """A network as the run keeps it."""
        return recast(model) if self.config.mixed_precision or self.devices.distributed else model

    def settled(self, stage, student):
        """The student as its file will compute it; what training made unfit for one is kept as it is, and said."""
        if stage.quantized and self.config.exports():
            try:
                settled = settle(student)
            except BadInput as error:
                print(f"kerakd: {stage.title}: kept as trained, though export.tflite will refuse it: {error}", file=sys.stderr)
                return student
            moved = settling(student, settled, data.arrays(self.tests(stage.size), SETTLED_ON)[0])
            print(f"{stage.title}: as integers have it, {moved}")
            self.directory.save_settled(stage.name, dataclasses.asdict(moved))
            return settled
        return student

    def distiller(self, stage, student, teachers):
        """The Distiller of a stage, not compiled: of losses and teachers what the flags say."""
        c = self.config
        asked = {}
        if teachers:
            asked = {
                "hard_weight": c.hard_weight,
                "soft_weight": c.soft_weight,
                "teacher_weights": [one.weight for one in c.teachers()],
                "ensemble": c.ensemble,
                "hints": c.hints(),
                "hint_loss": c.hint_loss,
                "hint_weight": c.hint_weight,
            }
            asked["teacher_cache"] = self.lessons.cache(stage.seed, teachers) if c.teacher_cache else None
        return Distiller(student=student, teacher=teachers or None, mode=stage.phases[0][0], temperature=c.temperature, soft_loss=c.soft_loss, **asked)

    def fit(self, distiller, stage, objects, first, ended, batch=0, metrics=None):
        """Trains epochs first..ended-1; the first from a batch on, when that had come to `metrics`. Raises: Diverged, saying where."""
        c, total, frozen = self.config, sum(epochs for _, epochs in stage.phases), distiller.mode.frozen_teacher
        if frozen:
            self.lessons.prepare(distiller.teachers, self.keeping)
            make = functools.partial(self.lessons.heard, distiller, stage.seed, first, ended, first_batch=batch)
        else:
            make = functools.partial(self.lessons.views, stage.seed, first, ended, size=stage.size, first_batch=batch)
        steps = self.lessons.batches(frozen)
        keep = Keep(
            self.directory,
            stage.name,
            objects,
            steps=steps,
            last=total,
            place=(first, batch),
            metrics=metrics,
            keeping=self.keeping,
        )
        optimizers = {name: one for name, one in objects.items() if isinstance(one, keras.optimizers.Optimizer)}
        scalars = Scalars(self.directory, stage.name, optimizers)
        callbacks = [keep, scalars, Progress(stage.title, steps, c.batch_size, first * steps + batch, total)]
        if c.batchnorm_batches:
            after = functools.partial(self.lessons.after, stage.seed, frozen=frozen, size=stage.size)
            callbacks.insert(0, batchnorm.Reestimate(distiller.student, after))
        try:
            distiller.fit(
                self.devices.split(lambda *part: make(part=part)),
                validation_data=self.tests(stage.size),
                initial_epoch=first,
                epochs=ended,
                steps_per_epoch=steps - batch,
                verbose=0,
                callbacks=callbacks,
            )
        except Diverged as error:
            raise Diverged(f"{error}; {self.where(distiller, stage, keep.place, frozen)}") from error
        finally:
            self.keeping.request.training = False
        keep.heed()

    def where(self, distiller, stage, place, frozen):
        """What is known of a step that diverged."""
        epoch, batch = place
        kept = "the checkpoint from before is kept" if self.directory.has_checkpoint(stage.name) else "there is no checkpoint from before"
        learners = [distiller.student, *(distiller.teachers if distiller.mode.teacher_learns else [])]
        if batch == self.lessons.batches(frozen) or any(broken(net.trainable_variables) for net in learners):  # an earlier step's doing
            return f"{stage.title}, found after {epoch} epochs and {batch} steps; {kept}"
        (x, *_) = next(iter(self.lessons.views(stage.seed, epoch, epoch + 1, frozen, stage.size, first_batch=batch)))
        x = x if isinstance(x, dict) else {"student": x}
        networks = {"student": (distiller.student, x["student"])}
        if distiller.mode.teacher:
            networks |= {f"teacher {k}": (net, x.get("teachers", [x["student"]] * (k + 1))[k]) for k, net in enumerate(distiller.teachers)}
        found = {who: first_not_finite(net, images) for who, (net, images) in networks.items()}
        layers = "; ".join(f"first in {layer} of the {who}" for who, layer in found.items() if layer) or "in the loss itself"
        layers += " (of the batch as --augment draws it anew)" if self.config.augment else ""
        indices = self.lessons.indices(stage.seed, epoch, batch, frozen)
        images = ", ".join(map(str, indices[:8])) + (f" ... ({len(indices)} in all)" if len(indices) > 8 else "")
        among = f" or one of the {self.config.steps_per_execution - 1} after it" if self.config.steps_per_execution > 1 else ""
        return f"{stage.title}, epoch {epoch + 1}, batch {batch + 1}{among} of {self.lessons.batches(frozen)}, images {images} of the split: {layers}; {kept}"

    def tests(self, size=0):
        """The test images in order at a size, 0 the student's, kept in memory where they are few."""
        if size not in self._tests:
            self._tests[size] = data.testing(self.test, size=(size, size) if size else self.shape[:2], keep=True)
        return self._tests[size]

    def accuracy(self, model):
        return scores.accuracy(model, self.tests())

    def measure(self):
        """{network: test accuracy}; prints how near each taught student is to its first teacher, as that ended."""
        titles = {stage.name: stage.title for stage in self.stages if kind_of(stage.name) == "taught" and self.config.taught()}
        results, labels, teacher = {}, scores.labels_of(self.tests()), None
        trained = [(stage.name, functools.partial(self.directory.load_model, stage.name), stage.size) for stage in self.stages]
        for name, model, size in self.networks.given() + trained:
            logits = scores.predictions(model(), self.tests(size))
            results[name] = scores.top1(logits, labels)
            teacher = logits if name == teacher_name(0) else teacher
            if name in titles:
                learned = f"{name}_teacher"
                told = scores.predictions(self.directory.load_model(learned), self.tests()) if self.directory.has_model(learned) else teacher
                print(f"{titles[name]}: with its teacher " + "  ".join(f"{what} {value:.4f}" for what, value in scores.agreement(logits, told).items()))
        return results

    def run(self):
        """Trains what is not trained yet; returns {stage: test accuracy}.

        Raises: BadInput for an image of a folder to test on that can't be read, before anything is trained.
        """
        if self.config.dataset.startswith(data.FOLDER) and any(not self.directory.has_model(stage.name) for stage in self.stages):
            for _ in self.tests():  # or an epoch would be lost to it; those that are kept in memory are read once in any case
                pass
        for stage in self.stages:
            self.keeping.heed()
            if self.directory.has_model(stage.name):
                self.directory.drop_checkpoints(stage.name)  # which a process that was killed may have left
            else:
                self.train_stage(stage)
        self.keeping.heed()
        results = self.measure()
        with self.directory.writing("curves.png") as path:
            curves.write(self.directory.metrics(), path)
        self.directory.save_results(results)
        return results

"""The program that trains: teacher, float student, quantized students, one after the other, in a run directory.

python -m kerakd.train --flagfile=configs/digits_ternary.cfg --workdir=runs/digits
"""

import contextlib
import dataclasses
import functools
import io
import os
import sys

from kerakd import quiet  # first: it keeps TensorFlow quiet

with quiet.native_chatter_off():
    import tensorflow as tf
    import tf_keras as keras

    from kerakd import batchnorm, commandline, data, evaluate, models, optimizers, oscillation, report
    from kerakd import config as config_module
    from kerakd.calibration import calibrate
    from kerakd.checks import broken, check_finite, check_logits, first_not_finite
    from kerakd.config import is_file
    from kerakd.devices import NAMES as DEVICES
    from kerakd.devices import devices, lost
    from kerakd.distiller import Distiller, interval_kind
    from kerakd.errors import BadInput, Diverged
    from kerakd.hints import Hints
    from kerakd.keep import Every, Keep, Keeping, Stopped, random_states
    from kerakd.lessons import Lessons
    from kerakd.modes import MODES
    from kerakd.progress import Progress
    from kerakd.recast import recast
    from kerakd.rundir import RunDirectory, load_model
    from kerakd.scalars import Scalars
    from kerakd.scheme import quantize
    from kerakd.tflite import lint, settle


@dataclasses.dataclass
class Stage:
    """One network on its way: its name in the run, what the person reads, the phases, and how to make its networks.

    make() -> (student, list of teachers), fresh for the seed. size: of its images, 0 for the run's.
    """

    name: str
    title: str
    phases: list
    seed: int
    make: object
    size: int = 0

    @property
    def quantized(self):
        """Whether its student is."""
        return self.name.split("_")[0] not in ("teacher", "float")

    @property
    def teacher_learns(self):
        """Whether it does in any of the phases."""
        return any(MODES[mode].teacher_learns for mode, _ in self.phases)

    def learners(self, distiller):
        """The networks that it trains."""
        return [distiller.student, *(distiller.teachers if self.teacher_learns else [])]


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
        self.check_teachers(self.check_student())

    def build(self, name, width, fresh=False, size=0):
        """The float network of a name or a file, for the dataset's images and classes; a file's has its weights, unless it is to be fresh."""
        shape = (size, size, self.shape[2]) if size else self.shape
        if not is_file(name):
            return models.build(name, shape, self.train.classes, width / self.config.shrink, shallow=self.config.shrink > 1)
        model = load_model(name)
        expected, received = (shape, self.train.classes), (tuple(model.input_shape[1:]), model.output_shape[-1])
        if received != expected:
            raise BadInput(f"{name}: expected images {expected[0]} and {expected[1]} classes, as the data have, received {received[0]} and {received[1]}")
        check_logits(model, name)
        return keras.models.clone_model(model) if fresh else model

    def check_student(self):
        """What would fail in an hour fails now; what would not be exact in the file is named."""
        c = self.config
        net, scheme = self.build(c.student, c.student_width), c.scheme()
        with contextlib.redirect_stderr(io.StringIO()):  # lint says it again, and more
            student = quantize(net, scheme)
        if c.dampening or c.freeze or c.watch:
            oscillation.check(student, held=bool(c.dampening or c.freeze))
        for finding in lint(student) if c.exports() else ():
            if finding.refused:
                raise BadInput(f"--student: expected a network that an integer file can hold, received {finding}")
            print(f"kerakd: {finding}", file=sys.stderr)
        return student

    def check_devices(self):
        """Several replicas can share this run's batches."""
        c, several = self.config, self.devices.replicas
        self.devices.check_batch(c.batch_size)
        refused = {"teacher_cache": c.teacher_cache, "soft_loss": c.soft_loss == "dist", "jit_compile": c.jit_compile}
        for name in (name for name, given in refused.items() if several > 1 and given):
            needs = "steps that XLA compiles are of one device" if name == "jit_compile" else "it needs whole batches"
            raise BadInput(f"--{name}: expected none or another with {several} replicas, received {getattr(c, name)}; {needs}")

    def check_teachers(self, student):
        """Every teacher can be had, and its views can be made."""
        c = self.config
        found = {
            k: one.prepared(self.build(one.network, c.teacher_width, size=one.size)) for k, one in enumerate(c.teachers()) if is_file(one.network) or c.hint
        }
        if c.hint:
            Hints(student, found[0], c.hints(), c.hint_loss, c.hint_weight)
        self.lessons.check()

    def stages(self):
        """The stages that the configuration asks for, in order."""
        c = self.config
        found = []
        for k, one in enumerate(c.teachers()):
            if c.teacher_epochs and not is_file(one.network):
                phases = [("alone", c.epochs(c.teacher_epochs))]
                found.append(Stage(teacher_name(k), f"teacher {one.network}", phases, c.seed + k, functools.partial(self.make_teacher, one), one.size))
        if c.float_epochs:
            found.append(Stage("float", "float student", [("alone", c.epochs(c.float_epochs))], c.seed, lambda: (self.build(c.student, c.student_width), [])))
        total = sum(epochs for _, epochs in c.phases())
        for seed in range(c.seed, c.seed + c.seeds):
            if c.compare:
                found.append(Stage(f"alone_{seed}", f"student alone, seed {seed}", [("alone", total)], seed, lambda: (self.student(), [])))
            title = f"student taught, seed {seed}" if c.taught() else f"student, seed {seed}"
            found.append(Stage(f"taught_{seed}", title, c.phases(), seed, lambda: (self.student(), self.teachers())))
        return found

    def student(self):
        """A fresh quantized student with calibrated intervals."""
        net = self.build(self.config.student, self.config.student_width, fresh=not self.config.from_float())
        if self.config.float_epochs and self.config.from_float():
            net.set_weights(self.directory.load_model("float").get_weights())
        batch = min(self.config.calibration_images, self.train.count)
        views = data.training(self.train, view="whole", size=self.shape[:2], batch_size=batch, seed=self.config.seed, epochs=1)
        student = quantize(net, self.config.scheme())
        calibrate(student, next(iter(views))[0], self.config.calibration)
        return student

    def make_teacher(self, one):
        return self.build(one.network, self.config.teacher_width, size=one.size), []

    def teachers(self):
        """The trained teachers on views in -1..1, or a fresh one where it learns from scratch beside the student."""
        found = []
        for k, one in enumerate(self.config.teachers()):
            trained = self.directory.has_model(teacher_name(k))
            model = self.directory.load_model(teacher_name(k)) if trained else self.build(one.network, self.config.teacher_width, size=one.size)
            found.append(one.prepared(model))
        return found

    def optimizer(self, rate, phases, variables):
        """For the phases of a stage; --restart lets each begin anew."""
        c = self.config
        steps = self.steps(phases)
        warmup = round(c.warmup_share() * sum(steps))
        return optimizers.build(c.optimizer, rate, steps if c.restart else sum(steps), variables, warmup, c.weight_decay, c.clip_norm, c.schedule)

    def steps(self, phases):
        """How many each phase has."""
        return [epochs * self.lessons.batches(MODES[mode].frozen_teacher) for mode, epochs in phases]

    def compile(self, distiller, stage):
        """Gives the distiller its optimizers, each built for its variables; returns those, for the checkpoint."""
        c = self.config
        rates = {"activation_interval": c.activation_interval_rate, "kernel_interval": c.weight_interval_rate}
        groups = {"optimizer": []}
        for variable in distiller.learning_variables:
            kind = interval_kind(variable)
            groups.setdefault("optimizer" if rates.get(kind) is None else kind, []).append(variable)
        made = {kind: self.optimizer(rates.get(kind, c.learning_rate), stage.phases, variables) for kind, variables in groups.items()}
        if stage.teacher_learns:
            learning = [(mode, epochs) for mode, epochs in stage.phases if MODES[mode].teacher_learns]
            made["teacher_optimizer"] = self.optimizer(c.learning_rate, learning, distiller.teachers[0].trainable_variables)
        distiller.compile(
            made["optimizer"],
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
        self.directory.keep_metrics(stage.name, done)
        if stage.quantized and not (done or batch) and c.from_float():
            net = self.directory.load_model("float") if c.float_epochs else self.build(c.student, c.student_width)
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
        student = self.trained(student)
        self.directory.save_model(stage.name, settle(student) if stage.quantized and c.exports() else student)
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

    def distiller(self, stage, student, teachers):
        c = self.config
        asked = {}
        if teachers:
            asked = {"hard_weight": c.hard_weight, "soft_weight": c.soft_weight, "teacher_weights": [one.weight for one in c.teachers()]}
            asked |= {"ensemble": c.ensemble, "hints": c.hints(), "hint_loss": c.hint_loss, "hint_weight": c.hint_weight}
            asked["teacher_cache"] = self.lessons.cache(stage.seed, teachers) if c.teacher_cache else None
        return Distiller(student=student, teacher=teachers or None, mode=stage.phases[0][0], temperature=c.temperature, soft_loss=c.soft_loss, **asked)

    def fit(self, distiller, stage, objects, first, ended, batch=0, metrics=None):
        """Trains epochs first..ended-1; the first from a batch on, when that had come to `metrics`. Raises: Diverged, saying where."""
        c, total, frozen = self.config, sum(epochs for _, epochs in stage.phases), distiller.mode.frozen_teacher
        if frozen:
            self.lessons.prepare(distiller.teachers)
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
        return evaluate.accuracy(model, self.tests())

    def networks(self, stages):
        """[(name, a function that gives the model, size of its images)] of all that the run's table says: files first, then the stages."""
        c, found = self.config, []
        if is_file(c.student) and c.from_float() and not c.float_epochs:
            found.append(("float", lambda: self.build(c.student, 1.0), 0))
        for k, one in enumerate(c.teachers()):
            if is_file(one.network):
                found.append((teacher_name(k), lambda k=k: self.teachers()[k], one.size))
        return found + [(stage.name, functools.partial(self.directory.load_model, stage.name), stage.size) for stage in stages]

    def measure(self, stages):
        """{network: test accuracy}; prints how near each taught student is to its first teacher, as that ended."""
        titles = {stage.name: stage.title for stage in stages if stage.name.split("_")[0] == "taught" and self.config.taught()}
        results, labels, teacher = {}, evaluate.labels_of(self.tests()), None
        for name, model, size in self.networks(stages):
            logits = evaluate.predictions(model(), self.tests(size))
            results[name] = evaluate.top1(logits, labels)
            teacher = logits if name == teacher_name(0) else teacher
            if name in titles:
                learned = f"{name}_teacher"
                told = evaluate.predictions(self.directory.load_model(learned), self.tests()) if self.directory.has_model(learned) else teacher
                print(f"{titles[name]}: with its teacher " + "  ".join(f"{what} {value:.4f}" for what, value in evaluate.agreement(logits, told).items()))
        return results

    def run(self):
        """Trains what is not trained yet; returns {stage: test accuracy}."""
        stages = self.stages()
        for stage in stages:
            self.keeping.heed()
            if not self.directory.has_model(stage.name):
                self.train_stage(stage)
        self.keeping.heed()
        results = self.measure(stages)
        with self.directory.writing("curves.png") as path:
            report.curves(self.directory.metrics(), path)
        self.directory.save_results(results)
        return results


def teacher_name(number):
    """The stage and the model of a teacher that the run trains."""
    return f"teacher_{number}" if number else "teacher"


def table(results, taught):
    """The lines that end a run: test accuracy of each kind of network, students as mean over seeds."""
    rows = []
    student = "student, taught" if taught else "student"
    for kind, title in (("teacher", "teacher"), ("float", "float student"), ("alone", "student, alone"), ("taught", student)):
        found = [accuracy for name, accuracy in results.items() if name.split("_")[0] == kind]
        if found:
            spread = f"  (mean of {len(found)}{' seeds' * (kind != 'teacher')}, {min(found):.4f} to {max(found):.4f})" if len(found) > 1 else ""
            rows.append(f"  {title:28}{sum(found) / len(found):.4f}{spread}")
    return "\n".join(["test accuracy", *rows])


def main():
    extra = (
        ("workdir", "", "the run directory, new or empty"),
        ("resume", False, "go on with the run in --workdir"),
        ("overwrite", False, "delete the run in --workdir and start anew"),
        ("checkpoint_every", "10min", 'keep a checkpoint after so many steps, as "500", or so long, as "90s" or "10min"; each epoch\'s end is kept as well'),
        ("checkpoints", 2, "how many checkpoints of the network under way are kept"),
        ("distribute", "none", f"the devices that share each batch, one of {', '.join(DEVICES)}; multi_worker: those of the processes in TF_CONFIG"),
        ("devices", 0, "with --distribute=mirrored, how many GPUs or parts of the CPU; 0: every GPU"),
        ("tpu", "", "with --distribute=tpu, its name or address; local on a TPU VM"),
    )
    config, where = config_module.parse(["python -m kerakd.train", *sys.argv[1:]], extra=extra)
    if not where["workdir"]:
        raise BadInput("--workdir: expected a directory, received none; give --workdir=runs/NAME")
    if where["checkpoints"] < 1:
        raise BadInput(f"--checkpoints: expected 1 or more, received {where['checkpoints']}")
    keeping = Keeping(Every(where["checkpoint_every"]), where["checkpoints"], devices=devices(where["distribute"], where["devices"], where["tpu"]))
    chief = keeping.devices.chief
    keeping.request.listen()
    tf.config.experimental.enable_op_determinism()
    keras.backend.experimental.enable_tf_random_generator()  # dropout draws from a state that checkpoints hold
    keras.utils.set_random_seed(config.seed)
    tf.random.set_global_generator(tf.random.Generator.from_seed(config.seed))  # keras_cv's layers draw from it
    if config.augment:
        print("kerakd: --augment draws from streams: the same flags give the same run, but one that was resumed sees other views", file=sys.stderr)
    directory, claimed = RunDirectory(where["workdir"], own=chief), False
    try:
        if chief:
            directory.check(config.text(), where["resume"], where["overwrite"])
        training = Training(config, directory, keeping)
        directory.claim(config.text(), where["resume"], where["overwrite"])
        claimed = keeping.devices.largest(1)
        if not chief:  # the run that the chief has begun or goes on with
            directory.check(config.text(), resume=True, overwrite=False)
        print(table(training.run(), config.taught()))
    except Stopped as stopped:
        print(f"kerakd: stopped by {stopped.name}; --resume goes on from the last checkpoint", file=sys.stderr)
        raise
    except tf.errors.OpError as error:
        if not lost(error):
            raise
        print("kerakd: another worker was lost; begins again, from the last checkpoint, as soon as all are there", file=sys.stderr, flush=True)
        directory.close()
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "kerakd.train", *sys.argv[1:], *(["--nooverwrite", "--resume"] if claimed else [])])
    print(f"run: {directory.path}  (curves.png, metrics.jsonl, flags.cfg; python -m kerakd.report --run={directory.path} --out=report.html)")
    if config.exports():
        print(f"next: python -m export.tflite --run={directory.path}")


if __name__ == "__main__":
    commandline.program(main)

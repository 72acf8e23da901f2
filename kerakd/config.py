"""One flag, one place: the configuration of a run and its files."""

import dataclasses
import re
import typing

from kerakd import augment, augmenters, calibration, commandline, distiller, losses, models, optimizers, quantizers, scheme
from kerakd.commandline import flag
from kerakd.errors import BadInput
from kerakd.modes import MODES
from kerakd.teachers import VALUES, Teacher

HALVES = ("bfloat16", "float16")


def is_file(name):
    """Whether a network is that of a model file rather than one by name."""
    return name.endswith((".keras", ".h5"))


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run trains. Each field is a flag of its name. Raises: BadInput for a value that is none."""

    dataset: str = flag("", "digits, a TFDS name such as cifar10 or imagenet2012, or folder:DIR with a folder for each class")
    data_dir: str = flag("", "where TFDS keeps its datasets; empty: TFDS's default")
    synthetic: bool = flag(False, "train on synthetic images of the dataset's shape and classes, to try a configuration out")
    image_size: int = flag(0, "height and width that the networks see; 0: as stored")
    view: str = flag("shift", "augmentation of the training images; with a slash FunMatch's, which say what the teacher sees", augment.BY_NAME)
    augment: tuple = flag(
        (),
        "NAME[,ARGUMENT=VALUE]: an image augmentation of keras_cv after the view, as RandAugment,magnitude=0.3; those that mix "
        "labels, as CutMix, where a frozen teacher alone says what is right; repeat it for more",
    )
    mixup: bool = flag(False, "mix each batch of a taught phase with its neighbours, the same for teacher and student: with same/ic, function matching")
    view_seed: typing.Optional[int] = flag(None, "seed of order and views; not given: --seed and those after it, as of the weights")
    transfer_dataset: str = flag("", "teach on this dataset's images, without labels; --dataset's calibrate, test, and train what is trained on labels")
    student: str = flag("", "network of the student: a .keras or .h5 file of logits, or a name", models.BY_NAME, file=True)
    student_width: float = flag(1.0, "multiplies the channels of a student by name")
    teacher: tuple = flag(
        (),
        "NETWORK[,size=PIXELS][,weight=NUMBER][,values=RANGE]: a teacher, likewise; that of a file is trained already; RANGE what it takes, one of "
        f"{', '.join(VALUES)}; repeat it for more",
    )
    teacher_width: float = flag(1.0, "multiplies the channels of a teacher by name")
    teacher_epochs: int = flag(0, "epochs of float training of the teacher before the phases")
    float_epochs: int = flag(0, "epochs of float training of the student: the float row of the table, and the start with --start=float")
    weights: str = flag("ternary", f"quantizer of kernels: float or {', '.join(quantizers.BY_NAME)}, as interval:4 or ternary,scale=positive")
    activations: str = flag("interval:8", "quantizer of activations, likewise")
    signed: str = flag("interval:8", "quantizer of activations that can be negative, of what the last layer reads and of the logits: an interval of 8 bits")
    first: int = flag(8, "bits of the first weighted layer; 0: float")
    last: int = flag(8, "bits of the last weighted layer; 0: float")
    sums: int = flag(0, "bits of what additions read, where activations have fewer; kernels but the last read it narrowed; 0: as activations")
    override: tuple = flag((), "REGEX=WEIGHTS/ACTIVATIONS for layers whose name the pattern matches; repeat it for more")
    calibration: str = flag("max", "rule that sets the intervals before training", calibration.RULES)
    calibration_images: int = flag(512, "how many training images it looks at")
    start: str = flag("", "weights that the student starts from; empty: float for a student from a file, else scratch", ("scratch", "float"))
    phase: tuple = flag((), f"MODE:EPOCHS, MODE one of {', '.join(MODES)}; repeat it for more phases")
    compare: bool = flag(False, "train the same student without the teacher as well")
    seed: int = flag(0, "first seed of initial weights, order and views")
    seeds: int = flag(1, "how many students, with seeds SEED, SEED+1, ...; their mean is reported, the first one is exported")
    temperature: float = flag(1.0, "T of the soft loss")
    ensemble: str = flag("sum", "of several teachers: the sum of their losses, or one of their mean logits", distiller.ENSEMBLES)
    ensemble_views: int = flag(1000, "views that a teacher averages over with --view=fix/ic_ens")
    teacher_cache: str = flag("", "a folder that keeps the teacher's logits of every view: another run with the same views does not ask it again")
    hint: tuple = flag((), "STUDENT_LAYER=TEACHER_LAYER whose outputs are compared as well; repeat it for more")
    hint_loss: str = flag("hint", "how", losses.FEATURES)
    hint_weight: float = flag(1.0, "weight of the hints' losses together")
    soft_loss: str = flag("kl", "what the student learns from the teacher's logits", losses.BY_NAME)
    hard_weight: typing.Optional[float] = flag(None, "weight of the loss on labels in phases with a teacher; not given: the mode's own")
    soft_weight: typing.Optional[float] = flag(None, "weight of the soft loss; not given: the mode's own")
    batch_size: int = flag(128, "images a step")
    optimizer: str = flag("adam", "optimizer of every network", optimizers.BY_NAME)
    learning_rate: float = flag(1e-3, "peak learning rate")
    schedule: str = flag("cosine", "how learning rates fall to 0 after the warm-up", optimizers.SCHEDULES)
    restart: bool = flag(False, "let each phase have a schedule of its own instead of one over all phases; the paper does not say (QKD)")
    weight_interval_rate: typing.Optional[float] = flag(None, "peak learning rate of learned weight intervals; not given: --learning_rate")
    activation_interval_rate: typing.Optional[float] = flag(None, "peak learning rate of learned activation intervals; not given: --learning_rate")
    warmup_epochs: float = flag(0.0, "epochs of linear warm-up of the phases; teacher and float student take the same share of theirs")
    weight_decay: float = flag(0.0, "each step takes learning rate * weight_decay of every kernel away")
    clip_norm: typing.Optional[float] = flag(
        None, "clip the gradients of each optimizer together to this norm: kernels, and intervals with a rate of their own"
    )
    dampening: float = flag(0.0, "weight at the end, on a cosine from 0, of the loss that holds kernels of at most 4 bits at their codes; 0: none")
    freeze: float = flag(0.0, "frequency at the end, on a cosine from 0.1, above which an oscillating weight is frozen; 0: none (0.01 is the paper's)")
    watch: bool = flag(False, "record the share of oscillating weights among kernels of at most 4 bits")
    batchnorm_batches: int = flag(
        0, "training batches on which BatchNorm statistics are estimated anew before each evaluation and export; 0: as training left them"
    )
    mixed_precision: str = flag(
        "",
        "what convolutions (on a CPU but strided depthwise ones) and dense layers compute in while training; weights, grids, logits and what is saved "
        "stay float32; empty: float32",
        HALVES,
    )
    jit_compile: bool = flag(False, "compile the steps by XLA: other roundings, on some machines faster")
    steps_per_execution: int = flag(1, "steps of one call of TensorFlow; checkpoints and requests to stop wait for its end")
    shrink: int = flag(
        1,
        "divides the sizes and widths that are given and, above 1, leaves networks by name one block in each of their first two stages, "
        "to try a configuration out",
    )
    max_epochs: int = flag(0, "no phase is longer than this; 0: as given")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata["choices"]
            optional = field.default == "" or value is None
            if choices and value not in choices and not (optional and value == "") and not (field.metadata["file"] and is_file(value)):
                also = ", or a .keras or .h5 file" if field.metadata["file"] else ""
                raise BadInput(f"--{field.name}: expected one of {', '.join(choices)}{also}, received {value!r}")
            if isinstance(value, (int, float)) and not value >= 0:
                raise BadInput(f"--{field.name}: expected 0 or more, received {value}")
        for name in ("dataset", "student", "phase"):
            if not getattr(self, name):
                raise BadInput(f"--{name}: expected a value, received none; take a file of configs/ with --flagfile, or give --{name}={_EXAMPLES[name]}")
        for name in (
            "seeds",
            "batch_size",
            "shrink",
            "ensemble_views",
            "temperature",
            "student_width",
            "teacher_width",
            "calibration_images",
            "steps_per_execution",
        ):
            if not getattr(self, name) > 0:
                raise BadInput(f"--{name}: expected more than 0, received {getattr(self, name)}")
        for who, files in (("student", is_file(self.student)), ("teacher", any(is_file(one.network) for one in self.teachers()))):
            if files and getattr(self, f"{who}_width") != 1:
                raise BadInput(f"--{who}_width: expected none beside a file, received {getattr(self, f'{who}_width')}; the file's network is as it is")
        self._check_teachers()
        self._check_phases()
        self._check_schedule()
        self._check_learning()
        self._check_augment()
        self._check_labels()
        self._check_frozen()
        self._check_read()
        self.hints()
        self.scheme()

    def _check_teachers(self):
        for one in self.teachers():
            if not is_file(one.network) and one.network not in models.BY_NAME:
                raise BadInput(f"--teacher: expected one of {', '.join(models.BY_NAME)}, or a .keras or .h5 file, received {one.network!r}")
            if not is_file(one.network) and one.values != "-1..1":
                raise BadInput(f"--teacher: expected values for files alone, received {one.values!r} for {one.network!r}, which is trained on -1..1 here")
        files = [is_file(one.network) for one in self.teachers()]
        if self.teacher_epochs and all(files):
            raise BadInput(f"--teacher_epochs: expected 0 beside files, whose networks are trained, or a teacher by name, received {self.teacher_epochs}")

    def _check_phases(self):
        needs_teacher = [mode for mode, _ in self.phases() if MODES[mode].teacher]
        if needs_teacher and not self.teacher:
            raise BadInput(f"--teacher: expected a network for phase {needs_teacher[0]!r}, received none; give a name or a file")
        if (self.teacher or self.compare) and not needs_teacher:
            raise BadInput("--phase: expected one with a teacher beside --teacher or --compare, received none; leave those away")
        trained = bool(self.teacher) and (self.teacher_epochs > 0 or all(is_file(one.network) for one in self.teachers()))
        for position, (mode, _) in enumerate(self.phases()):
            if mode in ("joint", "finetune") and position:
                start = {"joint": "trains both networks from scratch", "finetune": "begins with trained float weights"}[mode]
                raise BadInput(f"--phase: expected {mode!r} first, as it {start}, received it after {self.phases()[position - 1][0]!r}")
            if MODES[mode].teacher and not trained and not MODES[mode].teacher_learns:
                raise BadInput("--teacher_epochs: expected more than 0, or --teacher=FILE, received neither; an untrained teacher teaches nothing")
            trained = trained or MODES[mode].teacher_learns
        if self.from_float() and not self.float_epochs and not is_file(self.student):
            raise BadInput("--float_epochs: expected more than 0 with --start=float, received 0; the student has no trained float weights to start from")
        if any(mode == "finetune" for mode, _ in self.phases()) and not self.from_float():
            raise BadInput("--start: expected float for a phase 'finetune', received 'scratch'; Apprentice's scheme C starts from trained float weights")

    def warmup_share(self):
        """The warm-up as a share of all phases, whatever --max_epochs leaves of them."""
        return self.warmup_epochs / sum(self._asked())

    def _asked(self):
        return [int(text.partition(":")[2]) for text in self.phase]

    def _check_schedule(self):
        first = self._asked()[0] if self.restart else sum(self._asked())
        if self.warmup_epochs >= first:
            raise BadInput(f"--warmup_epochs: expected less than the {first} epochs that follow, received {self.warmup_epochs:g}")

    def _check_learning(self):
        """What a teacher that learns can't have."""
        learns = [mode for mode, _ in self.phases() if MODES[mode].teacher_learns]
        if learns and (len(self.teacher) > 1 or any(one.size for one in self.teachers()) or self.hint):
            raise BadInput(
                f"--teacher: expected one at the student's size and no --hint in phase {learns[0]!r}, in which it learns, received {', '.join(self.teacher)}"
            )
        for name, given in (("view", augment.view(self.view).fixed), ("teacher_cache", self.teacher_cache)):
            if given and (learns or not self.taught()):
                raise BadInput(f"--{name}: expected phases with a frozen teacher for {getattr(self, name)!r}, received {', '.join(self.phase)}")
        if learns and augment.view(self.view).teacher:
            raise BadInput(
                f"--view: expected one that teacher and student share in phase {learns[0]!r}, received {self.view!r}; take same/ic, or one without a slash"
            )

    def _check_augment(self):
        """keras_cv's augmentations are of the pixels that everybody sees."""
        view = augment.view(self.view)
        for name, given in (("view", view.teacher or view.fixed), ("teacher_cache", self.teacher_cache), ("teacher", any(one.size for one in self.teachers()))):
            if self.augment and given:
                raise BadInput(
                    f"--augment: expected a view of which teacher and student see the same pixels and no --teacher_cache, received --{name}="
                    f"{getattr(self, name)}; an augmentation draws anew each time that it is asked"
                )

    def _check_labels(self):
        """What images without labels, or mixed ones, can't teach."""
        unlabelled = {"mixup": self.mixup, "transfer_dataset": self.transfer_dataset, "augment": any(map(augmenters.mixes, self.augment))}
        if self.soft_loss == "dkd" and any(unlabelled.values()):
            raise BadInput("--soft_loss: expected one without labels beside images that are mixed or have none, received 'dkd'; take kl")
        for name in (name for name, given in unlabelled.items() if given):
            labels = [mode for mode, _ in self.phases() if not MODES[mode].teacher]
            if labels or any(MODES[mode].teacher_learns for mode, _ in self.phases()) or self.hard_weight != 0 or self.compare:
                raise BadInput(
                    f"--{name}: expected phases that learn from a frozen teacher alone, --hard_weight=0 and no --compare, received "
                    f"{', '.join(self.phase)}, --hard_weight={self.hard_weight}; its images have no labels of their own"
                )

    def _check_frozen(self):
        """What is known of a frozen teacher beforehand, and what is not."""
        if self.hint and not self.taught():
            raise BadInput("--hint: expected a phase with a teacher, received none")
        if self.teacher_cache and self.jit_compile:
            raise BadInput("--jit_compile: expected none beside --teacher_cache, received it; XLA can't read files")
        if self.teacher_cache and (augment.view(self.view).fixed or self.hint):
            raise BadInput(
                "--teacher_cache: expected no fixed view and no --hint beside it, received one; a fixed view is computed once anyway, features are not kept"
            )
        if augment.view(self.view).fixed and any(one.size for one in self.teachers()):
            raise BadInput(f"--teacher: expected no size with the fixed view {self.view!r}, received one; take ind/ic or same/ic")
        if augment.view(self.view).fixed and self.hint:
            raise BadInput(f"--hint: expected a view of which the teacher is asked, received {self.view!r}; take same/ic, or another that is not fixed")

    def _check_read(self):
        """Raises BadInput for a flag that nothing would read."""
        needs = {
            **dict.fromkeys(("temperature", "soft_loss", "soft_weight", "hard_weight"), ("a phase with a teacher", self.taught())),
            "teacher_width": ("a teacher by name", any(not is_file(one.network) for one in self.teachers())),
            "ensemble": ("several teachers", len(self.teacher) > 1),
            **dict.fromkeys(("hint_loss", "hint_weight"), ("--hint", bool(self.hint))),
            **({"view": ("a phase with a teacher", self.taught())} if augment.view(self.view).teacher else {}),
        }
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, (needed, there) in needs.items():
            if not there and getattr(self, name) != defaults[name]:
                raise BadInput(f"--{name}: expected {needed} beside it, received {getattr(self, name)!r} without one; leave it away")

    def teachers(self):
        """[Teacher], their sizes shrunk."""
        return [dataclasses.replace(one, size=one.size // self.shrink) for one in map(Teacher.parse, self.teacher)]

    def files(self):
        """{flag: path} of the files and folders that a run reads."""
        folders = {name: getattr(self, name).partition("folder:")[2] for name in ("dataset", "transfer_dataset")}
        networks = {"student": self.student} | {f"teacher={one.network}": one.network for one in self.teachers()}
        found = {name: path for name, path in networks.items() if is_file(path)} | folders | {"data_dir": self.data_dir, "teacher_cache": self.teacher_cache}
        return {name: path for name, path in found.items() if path}

    def size(self):
        """Height and width that the student sees, shrunk; 0: as stored."""
        return self.image_size // self.shrink

    def largest(self):
        """The largest size that any network sees, which synthetic images have."""
        return max([self.size(), *(one.size for one in self.teachers())])

    def hints(self):
        """[(student's layer, teacher's layer)]."""
        for text in self.hint:
            if text.count("=") != 1:
                raise BadInput(f"--hint: expected STUDENT_LAYER=TEACHER_LAYER, received {text!r}")
        return [tuple(text.split("=")) for text in self.hint]

    def from_float(self):
        """Whether the student starts from trained float weights."""
        return self.start == "float" or (not self.start and is_file(self.student))

    def phases(self):
        """[(mode, epochs)]."""
        found = []
        for text in self.phase:
            mode, _, epochs = text.partition(":")
            if mode not in MODES or not (epochs.isascii() and epochs.isdigit() and int(epochs)):
                raise BadInput(f"--phase: expected MODE:EPOCHS with MODE one of {', '.join(MODES)}, received {text!r}")
            found.append((mode, self.epochs(int(epochs))))
        return found

    def policy(self):
        """The Keras policy that networks train under."""
        return f"mixed_{self.mixed_precision}" if self.mixed_precision else "float32"

    def epochs(self, asked):
        """`asked`, capped by max_epochs."""
        return min(asked, self.max_epochs) if self.max_epochs else asked

    def scheme(self):
        """The Scheme."""
        overrides = {}
        for text in self.override:
            found = _OVERRIDE.fullmatch(text)
            if not found:
                raise BadInput(f"--override: expected REGEX=WEIGHTS/ACTIVATIONS, as stage3=interval:8/interval:8, received {text!r}")
            pattern, weights, activations = found[1], *map(quantizers.parse, found.groups()[1:])
            overrides[pattern] = scheme.Scheme(weights, activations, sums=activations and self.sums or None, signed=quantizers.parse(self.signed))
        weights, activations, signed = map(quantizers.parse, (self.weights, self.activations, self.signed))
        return scheme.Scheme(weights, activations, self.first or None, self.last or None, overrides, self.sums or None, signed)

    def exports(self):
        """Whether the student can become an integer file: every quantizer is there."""
        rules = [quantizer for rule in self.scheme().overrides.values() for quantizer in (rule.weights, rule.activations)]
        return None not in rules and "float" not in (self.weights, self.activations) and bool(self.first and self.last)

    def taught(self):
        """Whether any phase has a teacher."""
        return any(MODES[mode].teacher for mode, _ in self.phases())

    def text(self):
        """The flag file of this configuration: what differs from the defaults, a line each."""
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                lines += [f"--{field.name}={str(v).lower() if isinstance(v, bool) else v}" for v in (value if isinstance(value, tuple) else (value,))]
        return "\n".join(lines) + "\n"


# what a pattern may have in it too, "=" and "/", is told from a rule by the quantizers' names
_OVERRIDE = re.compile("(.+?)={0}/{0}".format(rf"((?:float|{'|'.join(quantizers.BY_NAME)})\b[^/]*)"))
_EXAMPLES = {"dataset": "digits", "student": "resnet8", "phase": "trained_teacher:30"}


def parse(argv, extra=()):
    """(Config, {name: value} of `extra`) of a command line, as `commandline.parse`."""
    return commandline.parse(argv, Config, extra)


def read(path):
    """The Config of a flag file, as a run keeps it. Raises: BadInput."""
    return parse(["run", f"--flagfile={path}"])[0]

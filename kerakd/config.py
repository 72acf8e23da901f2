"""One flag, one place: the configuration of a run and its files."""

import dataclasses
import re
import typing

from kerakd import augment, calibration, commandline, config_rules, losses, models, optimizers, quantizers, scheme, soft
from kerakd.commandline import flag
from kerakd.errors import BadInput
from kerakd.modes import MODES
from kerakd.teachers import VALUES, Teacher, is_file

HALVES = ("bfloat16", "float16")


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
    view_seed: typing.Optional[int] = flag(None, "seed of the order and the views of images; not given: the student's own, --seed and those after it")
    transfer_dataset: str = flag("", "teach on this dataset's images, without labels; --dataset's calibrate, test, and train what is trained on labels")
    student: str = flag("", "network of the student: a .keras or .h5 file of logits, or a name", models.BY_NAME, file=True)
    student_width: float = flag(1.0, "multiplies the channels of a student by name")
    teacher: tuple = flag(
        (),
        "NETWORK[,size=PIXELS][,weight=NUMBER][,values=RANGE]: a teacher, by name or a file's, which is trained already; RANGE what it takes, one of "
        f"{', '.join(VALUES)}; repeat it for more",
    )
    teacher_width: float = flag(1.0, "multiplies the channels of a teacher by name")
    teacher_epochs: int = flag(0, "epochs of float training of the teacher before the phases")
    float_epochs: int = flag(0, "epochs of float training of the student: the float row of the table, and the start with --start=float")
    weights: str = flag("ternary", f"quantizer of kernels: float or {', '.join(quantizers.BY_NAME)}, as interval:4 or ternary,scale=positive")
    activations: str = flag("interval:8", f"quantizer of activations: float or {', '.join(quantizers.BY_NAME)}, as interval:4 or pact:4")
    signed: str = flag("interval:8", "quantizer of activations that can be negative, of what the last layer reads and of the logits: an interval of 8 bits")
    first: int = flag(8, "bits of the first weighted layer; 0: float")
    last: int = flag(8, "bits of the last weighted layer; 0: float")
    sums: int = flag(0, "bits of what additions read, where --activations has fewer; each kernel but the last reads them rounded to those; 0: as --activations")
    override: tuple = flag(
        (),
        "REGEX=WEIGHTS/ACTIVATIONS for layers whose name the pattern matches; repeat it for more. Where ACTIVATIONS are those of --activations, "
        "what the last layer reads keeps its 8 bits",
    )
    calibration: str = flag("max", "rule that sets the intervals before training", calibration.RULES)
    calibration_images: int = flag(512, "how many training images it looks at")
    start: str = flag("", "weights that the student starts from; empty: float for a student from a file, else scratch", ("scratch", "float"))
    phase: tuple = flag((), f"MODE:EPOCHS, MODE one of {', '.join(MODES)}; repeat it for more phases")
    compare: bool = flag(False, "train the same student without the teacher as well")
    seed: int = flag(0, "first seed of initial weights, order and views")
    seeds: int = flag(1, "how many students, with seeds SEED, SEED+1, ...; their mean is reported, the first one is exported")
    temperature: float = flag(1.0, "T of the soft loss")
    ensemble: str = flag("sum", "of several teachers: the sum of their losses, or one of their mean logits", soft.ENSEMBLES)
    ensemble_views: int = flag(1000, "views that a teacher averages over with --view=fix/ic_ens")
    teacher_cache: str = flag("", "a folder that keeps the teacher's logits of every view: another run with the same views does not ask it again")
    hint: tuple = flag((), "STUDENT_LAYER=TEACHER_LAYER whose outputs are compared as well; repeat it for more")
    hint_loss: str = flag("hint", "how the outputs of --hint's layers are compared", losses.FEATURES)
    hint_weight: float = flag(1.0, "weight of the hints' losses together")
    soft_loss: str = flag("kl", "what the student learns from the teacher's logits", losses.BY_NAME)
    hard_weight: typing.Optional[float] = flag(
        None, "weight of the loss on labels in phases with a teacher; not given: the mode's own, 0.5, in co_study 1 (QKD has 1 in tutoring too)"
    )
    soft_weight: typing.Optional[float] = flag(None, "weight of the soft loss, likewise")
    batch_size: int = flag(128, "images a step")
    optimizer: str = flag("adam", "optimizer of every network", optimizers.BY_NAME)
    learning_rate: float = flag(1e-3, "peak learning rate")
    schedule: str = flag("cosine", "how learning rates fall to 0 after the warm-up", optimizers.SCHEDULES)
    restart: bool = flag(False, "begin the schedule of learning rates anew in each phase; else one runs over all phases (QKD does not say which)")
    weight_interval_rate: typing.Optional[float] = flag(None, "peak learning rate of learned weight intervals; not given: --learning_rate")
    activation_interval_rate: typing.Optional[float] = flag(None, "peak learning rate of learned activation intervals; not given: --learning_rate")
    warmup_epochs: float = flag(0.0, "epochs of linear warm-up of the phases; teacher and float student take the same share of theirs")
    weight_decay: float = flag(
        0.0,
        "each step takes learning rate * weight_decay of every kernel away, apart from the momentum (decoupled); with sgd, whose momentum is 0.9, 0.001 "
        "is what papers call 0.0001, an L2 loss, whose gradient goes through the momentum",
    )
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
        "16 bits in which layers compute while training, and to which what is between them is rounded, values of 8-bit grids too; weights, the "
        "arithmetic of grids, the last layers, strided depthwise convolutions on a CPU and all that is saved stay float32; empty: float32",
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
        config_rules.check(self)
        self.hints()
        self.scheme()

    def warmup(self, steps):
        """Steps of warm-up of an optimizer whose phases have these: the share that was asked of all epochs, whatever --max_epochs leaves of
        them, and with --restart no more of the first phase than was asked of that; at least one step is left for the way down.
        """
        asked = min(round(self.warmup_epochs / sum(self.asked()) * sum(steps)), sum(steps) - 1)
        return min(asked, round(self.warmup_epochs / self.asked()[0] * steps[0]), steps[0] - 1) if self.restart else asked

    def asked(self):
        """The epochs of each phase, as given."""
        return [int(text.partition(":")[2]) for text in self.phase]

    def teachers(self):
        """[Teacher], their sizes shrunk."""
        return [dataclasses.replace(one, size=self._shrunk(one.size)) for one in map(Teacher.parse, self.teacher)]

    def files(self):
        """{flag: path} of the files and folders that a run reads."""
        folders = {name: getattr(self, name).partition("folder:")[2] for name in ("dataset", "transfer_dataset")}
        networks = {"student": self.student} | {f"teacher={one.network}": one.network for one in self.teachers()}
        found = {name: path for name, path in networks.items() if is_file(path)} | folders | {"data_dir": self.data_dir, "teacher_cache": self.teacher_cache}
        return {name: path for name, path in found.items() if path}

    def size(self):
        """Height and width that the student sees, shrunk; 0: as stored."""
        return self._shrunk(self.image_size)

    def _shrunk(self, size):
        return size and max(1, size // self.shrink)  # 0 says that there is none

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
                raise BadInput(f"--phase: expected MODE:EPOCHS, MODE one of {', '.join(MODES)}, EPOCHS a whole number of 1 or more, received {text!r}")
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
            weights, activations = (_quantizer("override", part, text) for part in found.groups()[1:])
            overrides[found[1]] = scheme.Scheme(weights, activations, sums=activations and self.sums or None, signed=_quantizer("signed", self.signed))
        weights, activations, signed = (_quantizer(name, getattr(self, name)) for name in ("weights", "activations", "signed"))
        return scheme.Scheme(weights, activations, self.first or None, self.last or None, overrides, self.sums or None, signed)

    def exports(self):
        """Whether the student can become an integer file: every quantizer is there."""
        exceptions = [quantizer for rule in self.scheme().overrides.values() for quantizer in (rule.weights, rule.activations)]
        return None not in exceptions and "float" not in (self.weights, self.activations) and bool(self.first and self.last)

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


def _quantizer(flag, text, said=None):
    """The quantizer of a text. said: what the flag says, where that is more."""
    try:
        return quantizers.parse(text)
    except BadInput as error:
        raise BadInput(f"--{flag}={said or text}: {error}") from error


# what a pattern may have in it too, "=" and "/", is told from a rule by the quantizers' names
_OVERRIDE = re.compile("(.+?)={0}/{0}".format(rf"((?:float|{'|'.join(quantizers.BY_NAME)})\b[^/]*)"))


def parse(argv, extra=()):
    """(Config, {name: value} of `extra`) of a command line, as `commandline.parse`."""
    return commandline.parse(argv, Config, extra)


def read(path):
    """The Config of a flag file, as a run keeps it. Raises: BadInput that names the file."""
    try:
        return parse(["run", f"--flagfile={path}"])[0]
    except BadInput as error:
        raise BadInput(f"--run: {path}: {error}") from error

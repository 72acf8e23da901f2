"""What flags can't be, and what they can't be together: one function for each kind of reason."""

import dataclasses
import math

from kerakd import augment, augmenters, models, quantizers
from kerakd.errors import BadInput
from kerakd.modes import MODES
from kerakd.teachers import is_file

EXAMPLES = {"dataset": "digits", "student": "resnet8", "phase": "trained_teacher:30"}


def check(config):
    """Raises BadInput for a Config with a value that can't be, or with values that don't go together."""
    for rule in (_values, _teachers, _phases, _schedule, _learning, _augment, _labels, _soft, _frozen, _read):
        rule(config)


def _values(config):
    for field in dataclasses.fields(config):
        value, choices = getattr(config, field.name), field.metadata["choices"]
        if choices and value not in {*choices, field.default} and not (field.metadata["file"] and is_file(value)):
            also = ", or a .keras or .h5 file" if field.metadata["file"] else ""
            raise BadInput(f"--{field.name}: expected one of {', '.join(choices)}{also}, received {value!r}")
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:
            raise BadInput(f"--{field.name}: expected 0 or more, received {value}")
    for name in ("dataset", "student", "phase"):
        if not getattr(config, name):
            files = "a file of configs/, or the flags.cfg of a run,"
            raise BadInput(f"--{name}: expected a value, received none; take {files} with --flagfile, or give --{name}={EXAMPLES[name]}")
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
        "clip_norm",
    ):
        if getattr(config, name) is not None and not getattr(config, name) > 0:
            raise BadInput(f"--{name}: expected more than 0, received {getattr(config, name)}")
    if config.freeze and config.freeze > 0.1:
        raise BadInput(f"--freeze: expected at most 0.1, from which the threshold falls to it, received {config.freeze}")
    for name, last in (("seed", config.seed + config.seeds - 1), ("view_seed", config.view_seed or 0)):
        if last >= 2**32:
            raise BadInput(f"--{name}: expected seeds below 2^32, as NumPy's are, received {last}")
    for who, files in (("student", is_file(config.student)), ("teacher", any(is_file(one.network) for one in config.teachers()))):
        if files and getattr(config, f"{who}_width") != 1:
            raise BadInput(f"--{who}_width: expected none beside a file, received {getattr(config, f'{who}_width')}; the file's network is as it is")


def _teachers(config):
    for one in config.teachers():
        if not is_file(one.network) and one.network not in models.BY_NAME:
            raise BadInput(f"--teacher: expected one of {', '.join(models.BY_NAME)}, or a .keras or .h5 file, received {one.network!r}")
        if not is_file(one.network) and one.values != "-1..1":
            raise BadInput(f"--teacher: expected values for files alone, received {one.values!r} for {one.network!r}, which is trained on -1..1 here")
    files = [is_file(one.network) for one in config.teachers()]
    if config.teacher_epochs and all(files):
        raise BadInput(f"--teacher_epochs: expected 0 beside files, whose networks are trained, or a teacher by name, received {config.teacher_epochs}")


def _phases(config):
    needs_teacher = [mode for mode, _ in config.phases() if MODES[mode].teacher]
    if needs_teacher and not config.teacher:
        raise BadInput(f"--teacher: expected a network for phase {needs_teacher[0]!r}, received none; give a name or a file")
    if (config.teacher or config.compare) and not needs_teacher:
        raise BadInput("--phase: expected one with a teacher beside --teacher or --compare, received none; leave those out")
    trained = bool(config.teacher) and (config.teacher_epochs > 0 or all(is_file(one.network) for one in config.teachers()))
    for position, (mode, _) in enumerate(config.phases()):
        if mode in ("joint", "finetune") and position:
            start = {"joint": "trains both networks from scratch", "finetune": "begins with trained float weights"}[mode]
            raise BadInput(f"--phase: expected {mode!r} first, as it {start}, received it after {config.phases()[position - 1][0]!r}")
        if MODES[mode].teacher and not trained and not MODES[mode].teacher_learns:
            raise BadInput("--teacher_epochs: expected more than 0, or --teacher=FILE, received neither; an untrained teacher teaches nothing")
        trained = trained or MODES[mode].teacher_learns
    if config.from_float() and not config.float_epochs and not is_file(config.student):
        raise BadInput("--float_epochs: expected more than 0 with --start=float, received 0; the student has no trained float weights to start from")
    if any(mode == "finetune" for mode, _ in config.phases()) and not config.from_float():
        raise BadInput("--start: expected float for a phase 'finetune', received 'scratch'; Apprentice's scheme C starts from trained float weights")


def _schedule(config):
    first = config.asked()[0] if config.restart else sum(config.asked())
    if config.warmup_epochs >= first:
        raise BadInput(f"--warmup_epochs: expected less than the {first} epochs that follow, received {config.warmup_epochs:g}")


def _learning(config):
    """What a teacher that learns can't have."""
    learns = [mode for mode, _ in config.phases() if MODES[mode].teacher_learns]
    if learns and (len(config.teacher) > 1 or any(one.size for one in config.teachers()) or config.hint):
        raise BadInput(
            f"--teacher: expected one at the student's size and no --hint in phase {learns[0]!r}, in which it learns, received {', '.join(config.teacher)}"
        )
    for name, given in (("view", augment.view(config.view).fixed), ("teacher_cache", config.teacher_cache)):
        if given and (learns or not config.taught()):
            raise BadInput(f"--{name}: expected phases with a frozen teacher for {getattr(config, name)!r}, received {', '.join(config.phase)}")
    if learns and augment.view(config.view).teacher:
        raise BadInput(
            f"--view: expected one that teacher and student share in phase {learns[0]!r}, received {config.view!r}; take same/ic, or one without a slash"
        )


def _augment(config):
    """keras_cv's augmentations are of the pixels that everybody sees."""
    view = augment.view(config.view)
    for name, given in (("view", view.teacher or view.fixed), ("teacher_cache", config.teacher_cache), ("teacher", any(one.size for one in config.teachers()))):
        if config.augment and given:
            raise BadInput(
                f"--augment: expected a view of which teacher and student see the same pixels and no --teacher_cache, received --{name}="
                f"{getattr(config, name)}; an augmentation draws anew each time that it is asked"
            )


def _labels(config):
    """What images without labels, or mixed ones, can't teach."""
    unlabelled = {"mixup": config.mixup, "transfer_dataset": config.transfer_dataset, "augment": any(map(augmenters.mixes, config.augment))}
    if config.soft_loss == "dkd" and any(unlabelled.values()):
        raise BadInput("--soft_loss: expected one without labels beside images that are mixed or have none, received 'dkd'; take kl")
    for name in (name for name, given in unlabelled.items() if given):
        labels = [mode for mode, _ in config.phases() if not MODES[mode].teacher]
        if labels or any(MODES[mode].teacher_learns for mode, _ in config.phases()) or config.hard_weight != 0 or config.compare:
            raise BadInput(
                f"--{name}: expected phases that learn from a frozen teacher alone, --hard_weight=0 and no --compare, received "
                f"{', '.join(config.phase)}, --hard_weight={config.hard_weight}; its images have no labels of their own"
            )


def _soft(config):
    """What a student is to be told must be something, and something that is known."""
    if config.taught() and config.hard_weight == 0 and config.soft_weight == 0 and not (config.hint and config.hint_weight):
        raise BadInput("--soft_weight: expected more than 0 with --hard_weight=0 and no --hint, received 0; the student would learn nothing")
    if config.soft_loss == "logit_mse" and augment.view(config.view).ensemble:
        raise BadInput(f"--soft_loss: expected one of probabilities with --view={config.view}, received 'logit_mse'; the mean of many views has no logits")


def _frozen(config):
    """What is known of a frozen teacher beforehand, and what is not."""
    if config.hint and not config.taught():
        raise BadInput("--hint: expected a phase with a teacher, received none")
    if config.teacher_cache and config.jit_compile:
        raise BadInput("--jit_compile: expected none beside --teacher_cache, received it; XLA can't read files")
    if config.teacher_cache and (augment.view(config.view).fixed or config.hint):
        raise BadInput(
            "--teacher_cache: expected no fixed view and no --hint beside it, received one; a fixed view is computed once anyway, features are not kept"
        )
    if augment.view(config.view).fixed and any(one.size for one in config.teachers()):
        raise BadInput(f"--teacher: expected no size with the fixed view {config.view!r}, received one; take ind/ic or same/ic")
    if augment.view(config.view).fixed and config.hint:
        raise BadInput(f"--hint: expected a view of which the teacher is asked, received {config.view!r}; take same/ic, or another that is not fixed")


def _read(config):
    """Raises BadInput for a flag that nothing would read; smoke.cfg, which shrinks any configuration, may hold those of others."""
    scheme, overlaid = config.scheme(), config.shrink > 1
    rules = [scheme, *scheme.overrides.values()]
    (kernels, some_learn), (tensors, others_learn) = _intervals(scheme, rules)
    needs = {
        **dict.fromkeys(("soft_loss", "soft_weight", "hard_weight"), ("a phase with a teacher", config.taught())),
        "temperature": ("a phase with a teacher and another --soft_loss than logit_mse", config.taught() and config.soft_loss != "logit_mse"),
        "data_dir": ("a dataset of TFDS", any(name and not name.startswith("folder:") for name in (config.dataset, config.transfer_dataset))),
        "teacher_width": ("a teacher by name", any(not is_file(one.network) for one in config.teachers())),
        "ensemble": ("several teachers", len(config.teacher) > 1),
        **dict.fromkeys(("hint_loss", "hint_weight"), ("--hint", bool(config.hint))),
        **({"view": ("a phase with a teacher", config.taught())} if augment.view(config.view).teacher else {}),
        "ensemble_views": ("--view=fix/ic_ens", overlaid or augment.view(config.view).ensemble),
        "sums": ("--activations of fewer bits", any(getattr(rule.activations, "bits", 8) < config.sums for rule in rules)),
        "signed": ("--activations that are quantized", any(rule.activations is not None for rule in rules)),
        "weight_interval_rate": ("kernels with learned intervals", some_learn),
        "activation_interval_rate": ("activations with learned intervals", overlaid or others_learn),
        "calibration": ("quantizers with intervals", kernels or tensors),
        "calibration_images": ("quantizers with intervals", overlaid or kernels or tensors),
    }
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, (needed, there) in needs.items():
        if not there and getattr(config, name) != defaults[name]:
            back = f", or take it back by --{name}=" if defaults[name] is None else ""
            raise BadInput(f"--{name}: expected {needed} beside it, received {getattr(config, name)!r} without one; leave it out{back}")


def _intervals(scheme, rules):
    """Of kernels, then of activations: (whether any has an interval, whether any of those is learned)."""
    kernels = [rule.weights for rule in rules] + [quantizers.Interval(bits) for bits in (scheme.first, scheme.last) if bits]
    tensors = [one for rule in rules if rule.activations is not None for one in (rule.activations, rule.signed)]
    for found in (kernels, tensors):
        having = [one for one in found if one is not None and one.calibrated(1.0)]
        yield bool(having), any(getattr(one, "learned", True) for one in having)

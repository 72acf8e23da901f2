"""The rows of results/: which configurations belong together, what each is compared with, and what was aimed at."""

import dataclasses
import pathlib
import re

RESULTS = pathlib.Path("results")
CIFAR10 = RESULTS / "cifar10"
STEPS = RESULTS / "steps.json"


def _flags(row):
    return (CIFAR10 / f"{row}.cfg").read_text()


def epochs(row):
    """Of a row's student, those of the network that it starts from included."""
    return epochs_before(row) + sum(int(count) for count in re.findall(r"^--phase=\w+:(\d+)$", _flags(row), re.MULTILINE))


def epochs_before(row):
    """Of the kept float network that a row's student starts from; 0 from scratch."""
    start = re.search(r"^--student=results/cifar10/(\w+)_\d+/models/", _flags(row), re.MULTILINE)
    return epochs(start[1]) if start else 0


def is_taught(row):
    """Whether a row has a teacher."""
    return "\n--teacher=" in _flags(row)


@dataclasses.dataclass(frozen=True)
class Row:
    """what: in words. against: the float row that trained as long in all, alone; "" where there is none. alone: the same row but for the teacher."""

    what: str
    against: str = ""
    alone: str = ""


def _apprentice(kind):
    return {
        kind: Row("no teacher, from scratch", "float"),
        f"{kind}_a": Row("A: teacher and student together, from scratch", "float", kind),
        f"{kind}_b": Row("B: under the trained teacher, from scratch", "float", kind),
        f"{kind}_c_alone": Row("no teacher, from the float student", "float_longer"),
        f"{kind}_c": Row("C: under the trained teacher, from the float student", "float_longer", f"{kind}_c_alone"),
    }


def _qkd(bits):
    alone, *taught = (f"qkd_w{bits}a{bits}_{phases}" for phases in ("ss", "ss_tu", "ss_cs", "ss_cs_tu"))
    titles = ("SS, then TU under the trained teacher", "SS, then CS", "SS, CS and TU")
    return {alone: Row("SS alone: no teacher", "float_longer")} | {row: Row(title, "float_longer", alone) for row, title in zip(taught, titles, strict=True)}


def _funmatch(kind, epochs):
    length = "" if epochs == 6 else f"_{epochs}"
    against, on_crops, on_shifts = f"float{length}", f"funmatch_{kind}_alone_{epochs}", f"{kind}{length}"
    crops = {
        "fixed": "teacher asked once, about the central crop",
        "independent": "teacher sees a crop of its own",
        "same": "teacher and student see the same crop",
        "matching": "the same crop, mixed with its neighbour's: function matching",
    }
    shifts = {
        "same_shifts": "the same shift and flip, as the teacher was trained with",
        "matching_shifts": "the same shift and flip, mixed with its neighbour's",
    }
    return (
        {on_crops: Row("no teacher, on random crops", against)}
        | {f"funmatch_{kind}_{view}_{epochs}": Row(what, against, on_crops) for view, what in crops.items()}
        | {f"funmatch_{kind}_{view}_{epochs}": Row(what, against, on_shifts) for view, what in shifts.items()}
    )


SECTIONS = {
    "Float": {
        "teacher": Row("teacher: ResNet-20 of twice the width"),
        "float": Row("student, alone"),
        "float_taught": Row("student, distilled (T 4)", "float", "float"),
        "float_longer": Row("student, six epochs more, alone"),
        "float_12": Row("student, twelve epochs at once, alone", "float_longer"),
        "float_taught_longer": Row("student, six epochs more, under the trained teacher (T 4)", "float_longer", "float_longer"),
        "float_3": Row("student, half as long, alone"),
        "mobilenet": Row("MobileNetV2 of half the width, alone"),
        "mobilenet_longer": Row("MobileNetV2, six epochs more, alone"),
    },
    "Apprentice, ternary weights and 8-bit activations": {
        **_apprentice("ternary"),
        "ternary_3": Row("no teacher, from scratch, half as long", "float_3"),
    },
    "Apprentice, 4-bit weights (WRPN) and 8-bit activations": {
        **_apprentice("w4a8"),
        "w4a8_a_t4": Row("A at T 4, nine tenths of the loss the teacher's", "float", "w4a8"),
        "w4a8_c_t4": Row("C at T 4, nine tenths of the loss the teacher's", "float_longer", "w4a8_c_alone"),
    },
    **{f"QKD, W{bits}A{bits}, from the float student": _qkd(bits) for bits in (4, 3, 2)},
    **{
        f"FunMatch, {title}, {epochs} epochs": _funmatch(kind, epochs)
        for kind, title in (("float", "float"), ("ternary", "ternary weights and 8-bit activations"))
        for epochs in (3, 6)
    },
    "kerakd's best: a scale for each channel, at T 4 where there is a teacher, from the float student where nothing else is said": {
        "best_ternary_alone": Row("ternary weights, 8-bit activations, no teacher", "float_longer"),
        "best_ternary": Row("ternary weights, 8-bit activations", "float_longer", "best_ternary_alone"),
        "best_ternary_taught": Row("ternary weights, 8-bit activations, the float student taught as well", "float_longer"),
        "best_w4a4_alone": Row("4-bit weights and activations, no teacher", "float_longer"),
        "best_w4a4": Row("4-bit weights and activations", "float_longer", "best_w4a4_alone"),
        "best_w4a4_taught": Row("4-bit weights and activations, the float student taught as well", "float_longer"),
        "best_w2a2_alone": Row("2-bit weights and activations, no teacher", "float_longer"),
        "best_w2a2": Row("2-bit weights and activations", "float_longer", "best_w2a2_alone"),
        "best_w2a2_sums": Row("2-bit weights and activations, sums of branches in 8 bits, narrowed for kernels", "float_longer"),
        "best_w2a2_taught": Row("2-bit weights and activations, sums of branches in 8 bits, the float student taught as well", "float_longer"),
        "best_w2a2_decay": Row(
            "2-bit weights and activations, sums of branches in 8 bits, the float student taught as well, a quarter of the weight decay, in float32",
            "float_longer",
        ),
        "best_ternary_early": Row("ternary weights, 8-bit activations, from three taught epochs in float on", "float_12"),
        "best_w4a4_early": Row("4-bit weights and activations, from three taught epochs in float on", "float_12"),
        "best_w2a2_early": Row("2-bit weights and activations, sums of branches in 8 bits, from three taught epochs in float on", "float_12"),
        "best_mobilenet_w4a4_alone": Row("MobileNetV2 of half the width, 4-bit weights and activations, no teacher", "mobilenet_longer"),
        "best_mobilenet_w4a4": Row("MobileNetV2 of half the width, 4-bit weights and activations", "mobilenet_longer", "best_mobilenet_w4a4_alone"),
    },
    "A hundred epochs in float, then six in low bits": {
        "float_100": Row("student, a hundred epochs at once, alone"),
        "float_100_longer": Row("student, six epochs more, alone"),
        "long_ternary_alone": Row("ternary weights, 8-bit activations, no teacher", "float_100_longer"),
        "long_ternary": Row("ternary weights, 8-bit activations, under float_100 itself", "float_100_longer", "long_ternary_alone"),
        "long_w4a4_alone": Row("4-bit weights and activations, no teacher", "float_100_longer"),
        "long_w4a4": Row("4-bit weights and activations, under float_100 itself", "float_100_longer", "long_w4a4_alone"),
        "long_w2a2_alone": Row("2-bit weights and activations, sums of branches in 8 bits, no teacher", "float_100_longer"),
        "long_w2a2_fast_alone": Row(
            "2-bit weights and activations, sums of branches in 8 bits, at five times the rate, in float32, no teacher", "float_100_longer"
        ),
        "long_w2a2_fast": Row(
            "2-bit weights and activations, sums of branches in 8 bits, at five times the rate, in float32, under float_100 itself",
            "float_100_longer",
            "long_w2a2_fast_alone",
        ),
    },
}
ROWS = {name: row for rows in SECTIONS.values() for name, row in rows.items()}
LIMITS = {
    "best_w4a4": 0.0,
    "best_mobilenet_w4a4": 0.0,
    "best_w4a4_taught": 0.0,
    "best_ternary": 0.7,
    "best_ternary_taught": 0.7,
    "best_w2a2": 2.0,
    "best_w2a2_sums": 2.0,
    "best_w2a2_taught": 2.0,
    "best_w2a2_decay": 2.0,
    "best_ternary_early": 0.7,
    "best_w4a4_early": 0.0,
    "best_w2a2_early": 2.0,
    "long_ternary": 0.7,
    "long_w4a4": 0.0,
    "long_w2a2_fast": 2.0,
}  # aims: at most so many points below float
RIVALS = {  # more float students that train as long: in two schedules, at once, under the teacher; or before the last six epochs
    "float_longer": ("float_12", "float_taught_longer"),
    "float_12": ("float_longer", "float_taught_longer"),
    "float_100_longer": ("float_100",),
}

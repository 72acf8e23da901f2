"""results/README.md and its pictures, from what results/ holds and nothing else.

python -m benchmarks.tables        (make results)
"""

import json
import statistics

from benchmarks import pictures
from benchmarks.rows import CIFAR10, LIMITS, RESULTS, RIVALS, ROWS, SECTIONS, STEPS, epochs_before, is_taught

INTRODUCTION = """# Measured on CIFAR-10

Students on CIFAR-10's 50,000 training images, tested on all 10,000 test images: ResNet-20 (0.27 million weights), and MobileNetV2 where
a row says so. A low-bit row's number is that of its int8 `.tflite`, run by LiteRT; a float row's that of the Keras network in float32.
First and last layer have 8 bits. Rows train in mixed bfloat16 unless they say float32, and share [common.cfg](cifar10/common.cfg)
but for what they set themselves.

Students train for six epochs (three where it is said; those that start from the float student for six more), their teacher, a ResNet-20 of twice the
width, for ten, where the papers train for 100 and more: a hundred epochs of each of these runs would take some eleven days of CPU time. So the float
student is well below the 91.25 % that He et al. 2016 report for ResNet-20, and rows are for comparison with each other. One float student trained for
a hundred epochs, `float_100`: the students of the last table start from it, for six more, alone or taught by it. ResNet-56 as the teacher was not
tried. Two seeds hardly say how far seeds lie apart. Rows that start from a kept network start from the same one in every seed, and all rows under the
trained teacher have the same: their seeds are of the order of the images and of their views alone, and say less than seeds of whole trainings would.
Nothing was chosen on images of its own: rates, T and calibration were tried on these rows, and so on the test images.

Each row has a configuration, linked from its name. With CIFAR-10 prepared (BUILD.md, Data) where TFDS_DATA_DIR says, either of

```sh
python -m kerakd.train --flagfile=results/cifar10/ROW.cfg --workdir=runs/ROW --seed=0   # again; then python -m export.tflite --run=runs/ROW
python -m benchmarks.accuracy --row=ROW --seeds=2                                       # trains, exports and keeps; delete ROW_SEED to have it made again
```

and `make results` makes these tables and pictures from what is kept. The library changed while rows were made, in the last bits of some
gradients too, so the same flags come to these numbers within what seeds lie apart, not to the digit.

*against float*: points, over the seeds that both have, above the float student that trained as long in all, alone: `float`,
`float_longer` for a row that starts from the weights of `float` (6+6 epochs) or of `float_taught`, and for `float_12` and `float_taught_longer`,
`float_3` for three epochs, `float_12` for those that start from three taught epochs, `float_100_longer` for those that start from `float_100`,
`mobilenet_longer` for MobileNetV2. *zipped*: the bytes of the file, deflated. *file*: *exact* where
every kernel's code, every logit of 1,000 test images and, on 32 of them, every tensor inside equals that of the snapped Keras copy, whose biases
and steps are rounded as integers need it, and nothing in the file is float; from the settled student, whose own steps are the file's, that
moved logits by at most *moved* steps of the output (of `qkd_w3a3_ss_cs` one tensor had 5 other values, before copies rounded as files do).
*minutes*: of training, wall-clock on a core of a machine that had other work and at times stood still, and of its CPU; a row that was
the first to ask the teacher about its views paid for those after it, which read its answers from a cache; the time of three first runs was not kept.
*teacher right on*: of the last epoch's views of training images (of mixed ones, about the greater part); not measured in older runs.
*ms a step* (empty: not timed yet): of 128 images on one core, the teacher asked where it is at every step, all rows in turn (`python -m
benchmarks.row_steps`); of several phases the mean over epochs."""
COLUMNS = ("row", "what", "accuracy %", "seeds", "against float", "epochs", "bytes", "zipped", "file", "moved", "ms a step", "minutes (CPU)", "date")
PEERS = """`python -m benchmarks.peers`, {date}, {machine}: the same ResNet-20 from the same float weights (`float_0`), the same {steps} batches of 128
views in the same order, float32, SGD with momentum on labels, the same rates, each peer in an environment of its own, one after the
other. A file is what TensorFlow's converter makes of a Keras peer's network, and of kerakd's student its own exporter; its accuracy on
all 10,000 test images and milliseconds an image (one thread, all files in turn) are LiteRT's. A step holds all that the peer's own
training loop does in it; where that is fed by tf.data (kerakd, keras.distillation), the conversion of the views from float16 too.

What each was told: tfmot nothing: its default scheme, and its experimental n-bit scheme with that width for every layer, the first and
last too; both learn activations' ranges as moving averages of 0.999, which in so few steps hardly leave where they begin. QKeras
`quantized_bits(b,0,1,alpha='auto')` and `ternary(alpha='auto')`, `quantized_relu` with the integer bits that the float student's
activations need on a batch, first and last kernel in 8 bits. Brevitas `Int8WeightPerTensorFloatMSE`, `Uint8ActPerTensorFloat` with ranges
collected for 30 steps, `SignedTernaryWeightPerTensorConst` (whose scale is a constant 0.1), first and last kernel in 8 bits. kerakd
`Interval`, calibrated by `mse`, activations with LSQ's gradient scale, kernels' intervals at a rate of 0.0001, `Ternary(learned=True)`;
first and last layer in 8 bits. keras.distillation `LogitsDistillation(4.0, keras.losses.KLDivergence())`: its default, the name
"kl_divergence", stands for a function that it calls on logits as if they were probabilities. Sums of residual branches and images stay
float in QKeras and Brevitas; in kerakd and tfmot they are integers.

The float weights begin at {begun} %. At 8 bits tfmot's two ways are the same network: how far their times lie apart is the noise of all
of them. kerakd's ternary quantizer was chosen after a first one had less here. Accuracies of a file and of its network differ where
rounding for integers, or the converter, moved logits; kerakd's file is exactly its settled student."""


def runs():
    """{row: [what results/cifar10/ROW_SEED holds, in order of seeds]} of the runs that were kept, "step_ms" where a step was timed."""
    steps = json.loads(STEPS.read_text())["milliseconds"] if STEPS.exists() else {}
    found = {row: [] for row in ROWS}
    for path in sorted(CIFAR10.glob("*/run.json")):
        row, _, seed = path.parent.name.rpartition("_")
        metrics = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
        proof = path.parent / "student.json"
        card = json.loads(proof.read_text()) if proof.exists() else None
        step = {"step_ms": steps[row]} if row in steps else {}
        found[row].append({**json.loads(path.read_text()), **step, "seed": int(seed), "metrics": metrics, "card": card})
    return found


def mean(found):
    return statistics.mean(run["accuracy"] for run in found)


def percent(accuracy):
    return f"{100 * accuracy:.2f}"


def points(row, other, found):
    """[how many points a row is above another] on each of the seeds that both have."""
    accuracies = [{run["seed"]: run["accuracy"] for run in found[name]} if name else {} for name in (row, other)]
    return [100 * (accuracies[0][seed] - accuracies[1][seed]) for seed in sorted(accuracies[0].keys() & accuracies[1].keys())]


def _file(made):
    """(whether the files are exact, how far rounding moved logits) of a row's runs."""
    proofs = [run["card"]["proofs"]["int8"] for run in made if run["card"]]
    if not proofs:
        return "float", ""
    return "exact" if all(proof["exact"] for proof in proofs) else "not exact", f"{max(proof['moved_steps'] for proof in proofs):.0f}"


def _minutes(made):
    timed = [run for run in made if "seconds" in run]
    wall, cpu = (statistics.mean(run[name] / 60 for run in timed) if timed else 0 for name in ("seconds", "cpu_seconds"))
    return f"{wall:.0f} ({cpu:.0f})" if timed else ""


def _what(row, made):
    """What a row is and, of runs that measured it, how often its teacher is right on the views that it is shown."""
    right = [run["metrics"][-1]["teacher_accuracy"] for run in made if "teacher_accuracy" in run["metrics"][-1]]
    return f"{row.what}; teacher right on {100 * statistics.mean(right):.0f} %" if right else row.what


def _line(name, row, found):
    made, gain, before = found[name], points(name, row.against, found), epochs_before(name)
    cells = [
        f"[{name}](cifar10/{name}.cfg)",
        _what(row, made),
        percent(mean(made)),
        ", ".join(percent(run["accuracy"]) for run in made) if len(made) > 1 else "one",
        f"{statistics.mean(gain):+.2f}" if gain else "",
        f"{before}+{len(made[0]['metrics'])}" if before else str(len(made[0]["metrics"])),
        f"{made[0]['bytes']:,}",
        f"{made[0]['zipped']:,}",
        *_file(made),
        f"{made[0]['step_ms']:.0f}" if "step_ms" in made[0] else "",
        _minutes(made),
        ", ".join(sorted({run["finished"] for run in made})),
    ]
    return f"| {' | '.join(cells)} |"


def section(title, rows, found):
    """The lines of a table: its rows that were run, and the names of those that were not."""
    made = {name: row for name, row in rows.items() if found[name]}
    lines = [f"### {title}", ""]
    if made:
        lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *(_line(name, row, found) for name, row in made.items()), ""]
    if len(made) < len(rows):
        lines += [f"Not run yet: {', '.join(name for name in rows if name not in made)}.", ""]
    return lines


def _reached(gains, least):
    if not gains:
        return "not run yet"
    answers, each = {gain >= least for gain in gains}, ", ".join(f"{gain:+.2f}" for gain in gains)
    told = ("yes" if answers == {True} else "no") if len(answers) == 1 else "not shown"
    return f"{told}: {statistics.mean(gains):+.2f} ({each})" if len(gains) > 1 else f"{told}, of one seed: {each}"


def aims(found):
    """The lines on what was aimed at: how near float the best low-bit rows come, and whether a teacher helps in every low-bit row."""
    lines = [
        "## Aims",
        "",
        "In points, the mean and that of each seed; not shown: one seed says yes, another no. One seed alone shows little.",
        "",
        "| aim | reached |",
        "|---|---|",
    ]
    for row, limit in LIMITS.items():
        aim = f"at most {limit} points below" if limit else "not below"
        for other in (ROWS[row].against, *RIVALS.get(ROWS[row].against, ())):
            lines.append(f"| {row} {aim} {other} | {_reached(points(row, other, found), -limit)} |")
    taught = {name: row.alone for name, row in ROWS.items() if row.alone}
    lines += [f"| {name} above {alone}, which has no teacher | {_reached(points(name, alone, found), 0.01)} |" for name, alone in taught.items()]
    others = [name for name, row in ROWS.items() if is_taught(name) and not row.alone]
    lines += ["", f"Not judged here, as no row without a teacher is like them in all else: {', '.join(others)}."]
    return [*lines, ""]


def _peer_line(peer, figures):
    if "absent" in figures:
        return f"| {peer} | - | - | - | - | - | {figures['absent']} |"
    cells = [f"{figures['step_ms']:.0f}", percent(figures["accuracy"])]
    cells += (
        [percent(figures["file_accuracy"]), f"{figures['bytes']:,}", f"{figures['file_ms']:.2f}" if "file_ms" in figures else ""]
        if "bytes" in figures
        else ["-"] * 3
    )
    return f"| {peer} | {' | '.join(cells)} | {figures.get('no_file', '' if 'bytes' in figures else 'no file was made of the float network')} |"


def peers():
    """The lines of the tables of peers, one for each width."""
    path = RESULTS / "peers.json"
    if not path.exists():
        return ["## Beside what a user would pick instead", "", "Not run yet: `python -m benchmarks.peers`.", ""]
    found = json.loads(path.read_text())
    begun = percent(json.loads((CIFAR10 / "float_0/run.json").read_text())["accuracy"])
    lines = ["## Beside what a user would pick instead", "", PEERS.format(begun=begun, **{key: found[key] for key in ("steps", "machine", "date")}), ""]
    lines += [f"* {peer}: {', '.join(f'{name} {version}' for name, version in versions.items())}" for peer, versions in found["versions"].items()]
    names = {
        "8": "8 bits",
        "4": "4 bits",
        "2": "2 bits",
        "ternary": "ternary weights, 8-bit activations",
        "float KD": "float, distilled",
    }
    for variant, title in names.items():
        head = "| | ms a step | accuracy % | its .tflite % | bytes | ms an image | what it lacks, or the error that it gave |"
        lines += ["", f"### {title}", "", head, "|---" * 7 + "|"]
        lines += [_peer_line(peer, variants[variant]) for peer, variants in found["variants"].items() if variant in variants]
    return [*lines, ""]


def header(found):
    """Where, when and with what the runs were made."""
    every = [run for one in found.values() for run in one]
    if not every:
        return ["Nothing was run yet."]
    dates = sorted(run["finished"] for run in every)
    versions = sorted({f"{name} {version}" for run in every for name, version in run["versions"].items()})
    lines = [f"{len(every)} runs, {dates[0]} to {dates[-1]}, on {' and '.join(sorted({run['machine'] for run in every}))}; {', '.join(versions)}."]
    if STEPS.exists():
        lines.append("Steps were timed on {date}, {machine}.".format(**json.loads(STEPS.read_text())))
    return lines


def drawn(found):
    """{name of a picture: (what it shows, Figure)} of what was measured."""
    figures = {
        "best": ("accuracy against bytes of a row of each width", pictures.best(found)),
        "bytes": ("accuracy against bytes", pictures.scattered(found, "zipped", "kilobytes of the .tflite, zipped; a float network's in float32", 1e3, "log")),
        "epochs": ("accuracy against epochs", pictures.learning(found)),
    }
    if STEPS.exists():
        figures["steps"] = "accuracy against the time of a step", pictures.scattered(found, "step_ms", "milliseconds of a training step, one core")
    return figures


def text(found):
    """results/README.md."""
    images = [f"![{what}]({name}.png)" for name, (what, _) in drawn(found).items()]
    lines = [*INTRODUCTION.splitlines(), "", *header(found), "", *images, ""]
    for title, rows in SECTIONS.items():
        lines += section(title, rows, found)
    return "\n".join([*lines, *aims(found), *peers()]).rstrip() + "\n"


def main():
    found = runs()
    (RESULTS / "README.md").write_text(text(found))
    figures = drawn(found)
    for name, (_, figure) in figures.items():
        figure.savefig(RESULTS / f"{name}.png", dpi=110)
    print(f"wrote {RESULTS / 'README.md'}, {', '.join(str(RESULTS / f'{name}.png') for name in figures)}")


if __name__ == "__main__":
    main()

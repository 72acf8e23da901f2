"""results/README.md and its pictures, from what results/ holds and nothing else.

python -m benchmarks.tables        (make results)
"""

import json
import pathlib
import statistics

RESULTS = pathlib.Path("results")
CIFAR10 = RESULTS / "cifar10"
FUNMATCH_VIEWS = {
    "fixed": "teacher asked once about the whole image",
    "independent": "teacher sees a crop of its own",
    "same": "teacher and student see the same crop",
    "matching": "the same crop, mixed with its neighbour's: function matching",
}
QKD_PHASES = {"ss": "SS alone: no teacher", "ss_tu": "SS + TU", "ss_cs": "SS + CS", "ss_cs_tu": "SS + CS + TU"}


def _apprentice(kind):
    return {
        kind: "no teacher, from scratch",
        f"{kind}_a": "A: teacher and student together, from scratch",
        f"{kind}_b": "B: under the trained teacher, from scratch",
        f"{kind}_c_alone": "no teacher, from the float student",
        f"{kind}_c": "C: under the trained teacher, from the float student",
    }


SECTIONS = {
    "Float": {
        "teacher": "teacher: ResNet-20 of twice the width",
        "float": "student, alone",
        "float_taught": "student, distilled (T 4)",
        "float_longer": "student, six epochs more, alone",
    },
    "Apprentice, ternary weights and 8-bit activations": _apprentice("ternary"),
    "Apprentice, 4-bit weights (WRPN) and 8-bit activations": _apprentice("w4a8"),
    **{f"QKD, W{b}A{b}, from the float student": {f"qkd_w{b}a{b}_{phases}": text for phases, text in QKD_PHASES.items()} for b in (4, 3, 2)},
    **{
        f"FunMatch, {title}, {epochs} epochs": {f"funmatch_{kind}_{view}_{epochs}": text for view, text in FUNMATCH_VIEWS.items()}
        for kind, title in (("float", "float"), ("ternary", "ternary weights and 8-bit activations"))
        for epochs in (3, 6)
    },
    "kerakd's best: under the trained teacher at T 4, an interval or scale for each channel, from the float student": {
        "best_ternary": "ternary weights, 8-bit activations",
        "best_w4a4": "4-bit weights and activations",
        "best_w2a2": "2-bit weights and activations",
        "mobilenet": "MobileNetV2 of half the width, float, alone",
        "best_mobilenet_w4a4": "MobileNetV2 of half the width, 4-bit weights and activations",
    },
}
INTRODUCTION = """# Measured on CIFAR-10

ResNet-20 students (0.27 million weights) on CIFAR-10's 50,000 training images, tested on all 10,000 test images. A low-bit row's
number is that of its int8 `.tflite`, run by LiteRT; a float row's that of the Keras network. First and last layer have 8 bits.

Every student trains for six epochs, where the papers train for 100 and more: two cores have no more time. So the float student is
below the 91 to 92 % that it reaches at full length, and rows are for comparison with each other. All rows share
[common.cfg](cifar10/common.cfg); each has its own configuration, linked from its name, and is run again by

```sh
python -m kerakd.train --flagfile=results/cifar10/ROW.cfg --workdir=runs/cifar10/ROW_0
python -m benchmarks.accuracy --row=ROW     # the same with export and proof, kept as results/cifar10/ROW_0
make results                                # these tables and pictures from what is kept
```

*exact*: on 1,000 test images every logit of the file equals the trained student's, and every kernel's code.
*against float*: points above the float student that trained as long, alone: `float` for a row from scratch, `float_longer` for one
that starts from its weights, `mobilenet` for MobileNetV2. *minutes*: of training, wall-clock, on one core of a busy machine."""
PICTURES = [
    f"![{what}]({name}.png)"
    for name, what in {"bytes": "accuracy against bytes", "epochs": "accuracy against epochs", "step": "accuracy against the time of a step"}.items()
]
ROWS = [row for rows in SECTIONS.values() for row in rows]
SHIPPED = ("teacher_0", "float_0", "mobilenet_0")  # whose networks are kept, as other rows start from them


def runs():
    """{row: [what results/cifar10/ROW_SEED/run.json says, in order of seeds]} of the runs that were made."""
    found = {row: [] for row in ROWS}
    for path in sorted(CIFAR10.glob("*/run.json")):
        row, _, seed = path.parent.name.rpartition("_")
        metrics = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
        proof = path.parent / "student.json"
        card = json.loads(proof.read_text()) if proof.exists() else None
        found[row].append({**json.loads(path.read_text()), "seed": int(seed), "metrics": metrics, "card": card})
    return found


def mean(found):
    return statistics.mean(run["accuracy"] for run in found)


def percent(accuracy):
    return f"{100 * accuracy:.2f}"


def reference(row):
    """The row of the float student that trained as long in all, alone."""
    if "mobilenet" in row:
        return "mobilenet"
    return "float_longer" if "--student=results/cifar10/float_0" in (CIFAR10 / f"{row}.cfg").read_text() else "float"


def against(row, found):
    """Points above the row's reference; None if that was not run."""
    reference_runs = found[reference(row)]
    return 100 * (mean(found[row]) - mean(reference_runs)) if reference_runs and found[row] else None


def _signed(points):
    return "" if points is None else f"{points:+.2f}"


def _row(row, text, found):
    made = found[row]
    exact = {run["card"]["proofs"]["int8"]["exact"] for run in made if run["card"]}
    cells = [
        f"[{row}](cifar10/{row}.cfg)",
        text,
        percent(mean(made)),
        ", ".join(percent(run["accuracy"]) for run in made) if len(made) > 1 else "",
        _signed(against(row, found)),
        str(len(made[0]["metrics"])),
        f"{made[0]['bytes']:,}",
        "float" if not exact else "exact" if exact == {True} else "not exact",
        f"{statistics.mean(run['seconds'] / 60 for run in made):.0f}",
        ", ".join(sorted({run["finished"] for run in made})),
    ]
    return f"| {' | '.join(cells)} |"


COLUMNS = ("row", "what", "accuracy %", "seeds", "against float", "epochs", "bytes", "file", "minutes", "date")


def section(title, rows, found):
    """The lines of a table: its rows that were run, and the names of those that were not."""
    made = {row: text for row, text in rows.items() if found[row]}
    lines = [f"### {title}", ""]
    if made:
        lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *(_row(row, text, found) for row, text in made.items()), ""]
    if len(made) < len(rows):
        lines += [f"Not run yet: {', '.join(row for row in rows if row not in made)}.", ""]
    return lines


def _best(rows, found):
    return max((row for row in rows if found[row]), key=lambda row: mean(found[row]), default=None)


LIMITS = {  # which rows, and how many points below float the best of them may be
    "4-bit weights and activations": ("w4a4", 0.0),
    "ternary weights, 8-bit activations": ("ternary", 0.7),
    "2-bit weights and activations": ("w2a2", 2.0),
}
TAUGHT = {  # a row with a teacher: the same without
    **{f"{kind}_{scheme}": kind for kind in ("ternary", "w4a8") for scheme in ("a", "b")},
    **{f"{kind}_c": f"{kind}_c_alone" for kind in ("ternary", "w4a8")},
    **{f"qkd_w{b}a{b}_{phases}": f"qkd_w{b}a{b}_ss" for b in (4, 3, 2) for phases in ("ss_tu", "ss_cs", "ss_cs_tu")},
}


def targets(found):
    """The lines on what was aimed at: how near float the low-bit rows come, and what the teacher is worth in each."""
    lines = ["## Aims", "", "| aim | reached | by |", "|---|---|---|"]
    for what, (kind, limit) in LIMITS.items():
        best = _best([row for row in ROWS if kind in row and "mobilenet" not in row], found)
        points = best and against(best, found)
        if points is not None:
            aim = f"at most {limit} points below float" if limit else "not below float"
            lines.append(f"| {what}: {aim} | {'yes' if points >= -limit else 'no'}, {points:+.2f} | {best} |")
    for taught, alone in TAUGHT.items():
        if found[taught] and found[alone]:
            gain = 100 * (mean(found[taught]) - mean(found[alone]))
            lines.append(f"| {taught}: better than {alone} | {'yes' if gain > 0 else 'no'}, {gain:+.2f} | |")
    return [*lines, ""]


def _peer_cells(figures):
    if "error" in figures:
        return ["-", "-", "-", "-", "-", figures["error"]]
    cells = [f"{figures['step_ms']:.0f}", percent(figures["accuracy"])]
    cells += [percent(figures["file_accuracy"]), f"{figures['bytes']:,}", f"{figures['ms']:.2f}"] if "bytes" in figures else ["-"] * 3
    return [*cells, figures.get("file_error", "")]


def peers():
    """The lines of the tables of peers, one for each width."""
    path = RESULTS / "peers.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    lines = ["## Beside what a user would pick instead", "", PEERS.format(steps=found["steps"], machine=found["machine"], date=found["date"]), ""]
    names = {"8": "8 bits", "4": "4 bits", "2": "2 bits", "ternary": "ternary weights, 8-bit activations", "float KD": "float, distilled"}
    for variant, title in names.items():
        lines += [f"### {title}", "", "| | ms a step | accuracy % | its .tflite % | bytes | ms an image | what failed |", "|---|---|---|---|---|---|---|"]
        for peer, variants in found["variants"].items():
            if variant in variants:
                lines.append(f"| {peer} | {' | '.join(cell.replace('|', '/') for cell in _peer_cells(variants[variant]))} |")
        lines.append("")
    return lines


PEERS = """`python -m benchmarks.peers`, {date}, {machine}: the same ResNet-20 from the same float weights, the same {steps} batches of 128
views in the same order, float32, SGD on labels with the same rates, each peer in its own environment with quantizers as its own
documentation has them, first and last layer in 8 bits where it can be told so. *its .tflite*: the accuracy of the file that the peer
exports, of all 10,000 test images; bytes and milliseconds (one thread) are that file's."""


def header(found):
    """Where, when and with what the runs were made."""
    every = [run for one in found.values() for run in one]
    dates = sorted(run["finished"] for run in every)
    versions = sorted({f"{name} {version}" for run in every for name, version in run["versions"].items()})
    machines = " and ".join(sorted({run["machine"] for run in every}))
    return [f"{len(every)} runs, {dates[0]} to {dates[-1]}, on {machines}, two at a time; {', '.join(versions)}."]


def text(found):
    """results/README.md."""
    lines = [*INTRODUCTION.splitlines(), "", *header(found), "", *PICTURES, ""]
    for title, rows in SECTIONS.items():
        lines += section(title, rows, found)
    return "\n".join([*lines, *targets(found), *peers()]).rstrip() + "\n"


def main():
    from benchmarks import pictures

    found = runs()
    (RESULTS / "README.md").write_text(text(found))
    print(f"wrote {RESULTS / 'README.md'}, {', '.join(str(path) for path in pictures.draw(found))}")


if __name__ == "__main__":
    main()

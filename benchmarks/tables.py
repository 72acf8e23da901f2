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
*against float*: points above the float student that trained alone. *minutes*: of training, on one core, with other work beside it."""
ROWS = [row for rows in SECTIONS.values() for row in rows]
SHIPPED = ("teacher_0", "float_0")  # whose networks are kept, as other rows start from them


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


def _row(row, text, found, reference):
    seeds = ", ".join(percent(run["accuracy"]) for run in found)
    exact = {run["card"]["proofs"]["int8"]["exact"] for run in found if run["card"]}
    proved = "float" if not exact else "exact" if exact == {True} else "not exact"
    cells = [
        f"[{row}](cifar10/{row}.cfg)",
        text,
        percent(mean(found)),
        seeds if len(found) > 1 else "",
        f"{100 * (mean(found) - reference):+.2f}",
        f"{len(found[0]['metrics'])}",
        f"{found[0]['bytes']:,}",
        proved,
        f"{statistics.mean(run['seconds'] / 60 for run in found):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def section(title, rows, found):
    """The lines of a table: its rows that were run, and the names of those that were not."""
    made = {row: text for row, text in rows.items() if found[row]}
    lines = [f"### {title}", ""]
    if made:
        lines += ["| row | what | accuracy % | seeds | against float | epochs | bytes | file | minutes |", "|---|---|---|---|---|---|---|---|---|"]
        lines += [_row(row, text, found[row], mean(found["float"])) for row, text in made.items()]
    if len(made) < len(rows):
        lines += ["", f"Not run yet: {', '.join(row for row in rows if row not in made)}."]
    return [*lines, ""]


def header(found):
    """Where, when and with what the runs were made."""
    every = [run for one in found.values() for run in one]
    dates = sorted(run["finished"] for run in every)
    versions = sorted({f"{name} {version}" for run in every for name, version in run["versions"].items()})
    machines = " and ".join(sorted({run["machine"] for run in every}))
    return [f"{len(every)} runs, {dates[0]} to {dates[-1]}, on {machines}, two at a time; {', '.join(versions)}."]


def main():
    found = runs()
    lines = [*INTRODUCTION.splitlines(), "", *header(found), ""]
    for title, rows in SECTIONS.items():
        lines += section(title, rows, found)
    (RESULTS / "README.md").write_text("\n".join(lines))
    print(f"wrote {RESULTS / 'README.md'}")


if __name__ == "__main__":
    main()

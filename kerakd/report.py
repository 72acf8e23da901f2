"""Pictures of runs side by side, and a page that shows each of them.

python -m kerakd.report --run=runs/r18_ternary_a --run=runs/r18_ternary --out=report.png
python -m kerakd.report --run=runs/digits --out=report.html

Two panels: test error against epochs of all runs, with their teachers' (Apprentice, arXiv 1711.05852, figure 5), and what each way of
teaching gains over the same student alone, at each width of weights and activations (figures 3 and 4). The student alone is a
run's own, of --compare, or else that of the most similar of the other given runs with the same data, student, weights and
activations, trained as long from the same start. A page has them too, and for each run its curves, weights, intervals and sensitivity.
"""

import collections
import dataclasses
import pathlib
import sys
import textwrap

from kerakd import quiet  # first: it keeps TensorFlow quiet

with quiet.native_chatter_off():
    import numpy as np

    from kerakd import commandline, curves, page
    from kerakd.captions import caption
    from kerakd.commandline import flag
    from kerakd.errors import BadInput
    from kerakd.files import write_aside
    from kerakd.rundir import RunDirectory
    from kerakd.runs import BARE, STUDENT, WIDTHS, gains, labels, mean_of, read, short

COLUMNS = ("run", "phases", "weights", "activations", "alone", "taught", "gain", "teacher")


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of this program. Raises: BadInput for values that can't be, or that don't go together."""

    run: tuple = flag((), "the directory of a complete run; repeat it for more")
    out: str = flag("report.png", "the picture, or a page, .html, with that and more")
    overwrite: bool = flag(False, "replace a file that exists")

    def __post_init__(self):
        if not self.run:
            raise BadInput("--run: expected the directory of a run, received none; give --run=DIR, once or more")
        if len({pathlib.Path(path).resolve() for path in self.run}) < len(self.run):
            raise BadInput(f"--run: expected each run once, received {', '.join(self.run)}; leave the repeated one out")
        commandline.check_new("out", self.out, (".png", ".html"), self.overwrite)


def table(runs):
    """The table for a terminal."""
    known = {gain.run.name: gain for gain in gains(runs)}
    lines = [COLUMNS]
    for run in runs:
        gain = known.get(run.name)
        base = gain.base if gain else run
        alone = _accuracy(base.alone and mean_of(base.alone)) + (f" of {base.name}" if base is not run else "")
        phases = short(tuple(f"{mode}:{epochs}" for mode, epochs in run.config.phases()))  # as --max_epochs left them
        cells = [phases, run.config.weights, run.config.activations, alone, _accuracy(run.taught and mean_of(run.taught))]
        spread = f" ± {gain.spread:.4f}" if gain and gain.spread is not None else ""
        lines.append((run.name, *cells, f"{gain.mean:+.4f}{spread}" if gain else "-", _accuracy(run.teacher)))
    columns = [max(map(len, column)) for column in zip(*lines)]
    told = "\n".join("  ".join(map(str.ljust, line, columns)).rstrip() for line in lines)
    return told if len({run.tested_on for run in runs}) == 1 else told + "\n" + _apart(runs)


def _apart(runs):
    return "not to be compared, as they are tested on different images: " + ", ".join(f"{run.name} on {run.tested_on}" for run in runs)


def _accuracy(value):
    return f"{value:.4f}" if isinstance(value, float) else "-"


def figure_of_runs(runs):
    """Test error of all runs against epochs and, where any is known, the gains of teaching.

    Args: runs: [Run].
    Returns: a matplotlib Figure of one or two axes.
    """
    from matplotlib.figure import Figure

    found = gains(runs)
    figure = Figure(layout="constrained")
    left, *right = figure.subplots(1, 2 if found else 1, squeeze=False)[0]
    draw_errors(left, runs)
    for axes in right:
        draw_gains(axes, found)
    handles, texts = left.get_legend_handles_labels()
    texts = [textwrap.fill(text, 170 if found else 100, subsequent_indent="    ") for text in texts]
    figure.legend(handles, texts, loc="outside lower left", fontsize=9, frameon=False)
    figure.set_size_inches(15 if found else 9, 5.5 + 0.2 * sum(text.count("\n") + 1 for text in texts))
    return figure


def draw_errors(axes, runs):
    """Apprentice's figure 5: a colour a run, the mean over seeds thick, each seed thin, the teacher's error dashed; a teacher of several runs is gray."""
    from matplotlib import colormaps

    named = [colour for index, colour in enumerate(colormaps["tab10"].colors) if index != 7]  # without gray
    colours = named if len(runs) <= len(named) else list(colormaps["turbo"](np.linspace(0, 1, len(runs))))
    seeds = {len(run.errors) for run in runs}
    for run, colour, name in zip(runs, colours, labels(runs)):
        own = f" (mean of {len(run.errors)} seeds)" if len(seeds) > 1 and len(run.errors) > 1 else ""
        curves.draw(axes, run.errors, caption(name + own), colour)
    users = collections.defaultdict(list)
    for run, colour in zip(runs, colours):
        if run.teacher is not None:
            users[100 * (1 - run.teacher)].append((run.name, colour))
    for error, own in users.items():
        label = caption(f"teacher of {', '.join(name for name, _ in own)}") if len(own) < len(runs) else "teacher"
        axes.axhline(error, color=curves.COLOURS["teacher"] if len(own) > 1 else own[0][1], linestyle="--", linewidth=1.2, label=label)
    curves.epochs_axis(axes)
    title = f"Test error, mean of {seeds.pop()} seeds" if len(seeds) == 1 and len(runs[0].errors) > 1 else "Test error"
    axes.set(title=title, xlabel="epoch", ylabel="%", ylim=(0, _top(runs)))


def _top(runs):
    """The largest error to be shown: the first tenth of each run, in which nothing is learned yet, may leave the picture."""
    seen = [run.errors[:, run.errors.shape[1] // 10 :].max() for run in runs] + [100 * (1 - run.teacher) for run in runs if run.teacher is not None]
    return min(100.0, 1.05 * max(seen)) or 1.0


def draw_gains(axes, found):
    """Apprentice's figures 3 and 4: percentage points by which each way of teaching is better than the student alone, grouped by widths.

    Args: found: [Gain].
    """
    from matplotlib import colormaps

    schemes = list(dict.fromkeys(gain.run.scheme for gain in found))
    others = [name for name in STUDENT if name not in WIDTHS and len({getattr(gain.run.config, name) for gain in found}) > 1]
    groups = collections.defaultdict(list)
    for gain in sorted(found, key=lambda gain: schemes.index(gain.run.scheme)):
        c = gain.run.config
        told = [f"{c.weights} / {c.activations}", *(f"{'' if name in BARE else f'{name}='}{short(getattr(c, name))}" for name in others)]
        groups["\n".join(told)].append(gain)
    width = min(0.4, 0.8 / max(map(len, groups.values())))
    placed = [(middle + (k - (len(group) - 1) / 2) * width, gain) for middle, group in enumerate(groups.values()) for k, gain in enumerate(group)]
    for scheme in schemes:
        places, own = zip(*((place, gain) for place, gain in placed if gain.run.scheme == scheme))
        heights, spreads = (np.array([100 * value for value in values]) for values in ([g.mean for g in own], [g.spread or 0 for g in own]))
        colour = colormaps["Set2"](schemes.index(scheme) % 8)
        axes.bar(places, heights, 0.92 * width, yerr=spreads, color=colour, ecolor="0.4", capsize=3, error_kw={"linewidth": 1}, label=scheme)
    axes.axhline(0, color="0.2", linewidth=0.8)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.xaxis.remove_overlapping_locs = False  # a bar may stand in the middle of its group
    twice = any(len({gain.run.scheme for gain in group}) < len(group) for group in groups.values())  # colours do not tell all runs apart
    told = [f"{100 * gain.mean:+.2f}" + f"  {gain.run.name}" * twice for _, gain in placed]
    axes.set_xticks([place for place, _ in placed], told, minor=True, fontsize=8, rotation=90 if twice else 0)
    axes.tick_params(axis="x", which="major", pad=10 + 4.5 * max(map(len, told)) if twice else 18)
    axes.tick_params(axis="x", which="both", length=0)
    axes.set(title="Gain of teaching: accuracy taught minus accuracy alone", xlabel="weights / activations", ylabel="percentage points")
    axes.margins(y=0.12)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, title="lines: standard deviation over seeds" if any(gain.spread for gain in found) else None, title_fontsize=8)


def html(runs, directories):
    """The page of runs and their directories, as text."""
    sections = [("Runs", [("pre", table(runs)), figure_of_runs(runs)])]
    for run, directory in zip(runs, directories, strict=True):
        sections += page.sections_of(run.name, directory, curves.figure_of(directory.metrics()))
        sections.append((f"{run.name}: flags", [("pre", run.config.text())]))
    return page.page("kerakd: " + ", ".join(run.name for run in runs), sections)


def main():
    options, _ = commandline.parse(["python -m kerakd.report", *sys.argv[1:]], Options)
    names = [pathlib.Path(path).resolve().name for path in options.run]
    runs = [read(path, name if names.count(name) == 1 else path) for path, name in zip(options.run, names)]
    print("test accuracy, mean over seeds; gain with its standard deviation over seeds\n")
    print(table(runs) + "\n")
    for run in (run for run in runs if run.taught and run.name not in {gain.run.name for gain in gains(runs)}):
        print(f"{run.name}: no gain, as no given run has its student alone; train one with --compare and give its directory too")
    if options.out.endswith(".html"):
        text = html(runs, [RunDirectory(path) for path in options.run])
        write_aside(options.out, lambda aside: aside.write_text(text, encoding="utf-8"))
    else:
        write_aside(options.out, lambda aside: figure_of_runs(runs).savefig(aside, dpi=120))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    commandline.program(main)

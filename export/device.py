"""Which .tflite file to ship: milliseconds, peak memory and XNNPACK's share of each, on this machine or on a phone.

python -m export.device --model=student.tflite --model=student.int4.tflite
python -m export.device --model=student.tflite --adb --benchmark_binary=android_aarch64_benchmark_model
"""

import collections
import dataclasses
import os
import pathlib
import random
import re
import shlex
import subprocess
import sys
import time

from kerakd import quiet  # first: it keeps TensorFlow quiet

with quiet.native_chatter_off():
    import numpy as np

    from export import card
    from kerakd import commandline
    from kerakd.commandline import flag
    from kerakd.errors import BadInput, first_line
    from kerakd.files import write_json
    from kerakd.tflite import flatfile, runtime

BURST = 10  # images of one file in a row, before the next file's turn
EQUAL = 1.05  # medians of one file, timed twice on a busy machine, are as far apart
OUTSIDE = "outside XNNPACK"
REMOTE = "/data/local/tmp"

# What a process of its own runs, with NumPy and LiteRT loaded but not TensorFlow. Linux keeps the peak of its resident memory as
# VmHWM; writing 5 to clear_refs sets that back to what is resident now. getrusage's ru_maxrss won't do: it outlives fork and exec.
PEAK = """
import sys, numpy
from ai_edge_litert.interpreter import Interpreter
def megabytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = megabytes("VmRSS:")
made = Interpreter(model_path=sys.argv[1], num_threads=int(sys.argv[2]))
made.allocate_tensors()
(source,) = made.get_input_details()
made.set_tensor(source["index"], numpy.zeros(source["shape"], source["dtype"]))
for _ in range(5):
    made.invoke()
print(megabytes("VmHWM:") - before)
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of this program. Raises: BadInput for values that can't be, or that don't go together."""

    model: tuple = flag((), "a .tflite file of one image at a time; repeat it for more")
    threads: str = flag("", "time with this many threads beside 1; empty: the cores that this process may use; with --adb 4")
    runs: int = flag(200, "images timed of each file with each number of threads")
    json: str = flag("", "write one flat object to this file, a name for each figure")
    overwrite: bool = flag(False, "let --json replace a file")
    adb: bool = flag(False, "time on an Android phone, with TFLite's benchmark_model")
    benchmark_binary: str = flag("", "with --adb: TFLite's android_aarch64_benchmark_model, or another built for the phone")
    serial: str = flag("", "with --adb: which phone, as `adb devices` lists it; empty: the only one")
    dry_run: bool = flag(False, "with --adb: print the commands and run none")

    def __post_init__(self):
        if not self.model:
            raise BadInput("--model: expected a .tflite file, received none; give --model=FILE.tflite, once or more")
        if len({pathlib.Path(path).resolve() for path in self.model}) < len(self.model):
            raise BadInput(f"--model: expected each file once, received {', '.join(self.model)}; leave the repeated one out")
        if self.runs < 1:
            raise BadInput(f"--runs: expected 1 or more, received {self.runs}; 200 is the default")
        for name in ("benchmark_binary", "serial", "dry_run"):
            if getattr(self, name) and not self.adb:
                raise BadInput(f"--{name}: expected --adb beside it, received none; it says nothing about this machine")
        if self.adb and not pathlib.Path(self.benchmark_binary).is_file():
            received = f"{self.benchmark_binary}, which is no file" if self.benchmark_binary else "none"
            raise BadInput(f"--benchmark_binary: expected TFLite's benchmark_model built for the phone, received {received}; --adb pushes and runs it")
        if self.json and self.dry_run:
            raise BadInput("--json: expected none beside --dry_run, received one; nothing is measured")
        if self.json:
            commandline.check_new("json", self.json, (".json",), self.overwrite)
        self.thread_counts()

    def thread_counts(self):
        """1, and the other number of threads if it is another."""
        if self.threads and not (self.threads.isascii() and self.threads.isdigit() and int(self.threads)):
            raise BadInput(f"--threads: expected a whole number of 1 or more, received {self.threads!r}; leave it out for every core")
        return sorted({1, int(self.threads or (4 if self.adb else len(os.sched_getaffinity(0))))})


@dataclasses.dataclass
class File:
    """A file and what is known of it: {figure: number or text}."""

    name: str
    path: str
    data: bytes
    figures: dict


def load(name, path):
    """A File. Raises: BadInput for what is not a whole TFLite file of one image at a time."""
    try:
        data = pathlib.Path(path).read_bytes()
        counted, graph = flatfile.census(data), flatfile.read(data).subgraphs[0]
    except OSError as error:
        raise BadInput(f"--model: expected a .tflite file, received {path} ({error.strerror}); is the path right?") from error
    except BadInput as error:
        raise BadInput(f"--model={path}: {error}") from error
    shapes = [[] if graph.tensors[index].shape is None else list(map(int, graph.tensors[index].shape)) for index in graph.inputs]
    if len(shapes) != 1 or shapes[0][:1] != [1]:
        raise BadInput(f"--model={path}: expected one input of shape [1, ...], received {shapes}; convert it for one image at a time")
    container = next((kind.lower() for kind in ("INT2", "INT4", "INT8", "FLOAT32") if kind in counted["weights"]), "other")
    figures = {"container": container, "bytes": len(data), "zipped": card.zipped(data), "operators": sum(counted["operators"].values())}
    return File(name, path, data, {**figures, **{f"operators {kind}": count for kind, count in counted["operators"].items()}})


def timing(figure, threads):
    """The name of a time among the figures."""
    return f"ms {figure} {threads} thread{'s' * (threads > 1)}"


def add_delegation(file):
    """What LiteRT on this machine leaves outside XNNPACK. Raises: BadInput for a file with operators that LiteRT has not."""
    try:
        left = collections.Counter(runtime.not_delegated(file.data))
    except (RuntimeError, ValueError) as error:
        raise BadInput(f"--model={file.path}: expected a file that LiteRT runs, received one that it refuses ({first_line(error)})") from error
    file.figures |= {OUTSIDE: left.total(), **{f"{OUTSIDE} {kind}": count for kind, count in left.items()}}


def add_times(files, threads, runs):
    """Median and p90 of one image. The files take turns, in an order of their own each round: a machine that drifts is fair to all."""
    turns, order = [(runtime.interpreter(file.data, threads), file, []) for file in files], random.Random(0)
    for interpreter, _, _ in turns:
        detail = interpreter.get_input_details()[0]
        interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
        for _ in range(5):
            interpreter.invoke()
    for done in range(0, runs, BURST):
        for interpreter, _, times in order.sample(turns, len(turns)):
            interpreter.invoke()  # brings the caches back from the other files
            for _ in range(min(BURST, runs - done)):
                start = time.perf_counter()
                interpreter.invoke()
                times.append(1e3 * (time.perf_counter() - start))
    for _, file, times in turns:
        file.figures |= {timing("median", threads): float(np.median(times)), timing("p90", threads): float(np.percentile(times, 90))}


def add_peak(file, threads):
    """Peak memory of running the file in a fresh process: all that becomes resident from opening it on.

    That is the pages of the file (it is mapped), the tensors, what XNNPACK repacks, the threads' stacks, and the parts of
    LiteRT's library that are first used then, 3 to 4 MB whatever the file.
    """
    process = subprocess.run([sys.executable, "-c", PEAK, file.path, str(threads)], capture_output=True, text=True)
    if process.returncode:
        raise BadInput(f"peak memory: expected Linux and a file that runs, received exit status {process.returncode} ({complaint(process)}) for {file.path}")
    file.figures["peak MB"] = float(process.stdout)


def measure_here(options, files):
    """Adds what LiteRT on this machine needs for each of `files`: operators outside XNNPACK, milliseconds, megabytes."""
    for file in files:
        add_delegation(file)
    for threads in options.thread_counts():
        add_times(files, threads, options.runs)
    for file in files:
        add_peak(file, options.thread_counts()[-1])


def commands(options, files):
    """[(command, the file and the number of threads that it times, or None)] in the order in which they run."""
    adb, binary = ["adb", *(["-s", options.serial] if options.serial else [])], f"{REMOTE}/benchmark_model"
    remote = [f"{REMOTE}/kerakd_{n}.tflite" for n in range(len(files))]  # the phone's shell would split a name with a space
    found = [([*adb, "get-state"], None), ([*adb, "push", options.benchmark_binary, binary], None), ([*adb, "shell", "chmod", "+x", binary], None)]
    found += [([*adb, "push", file.path, path], None) for file, path in zip(files, remote)]
    for threads in options.thread_counts():
        for file, path in zip(files, remote):
            flags = [f"--graph={path}", f"--num_threads={threads}", "--use_xnnpack=true", f"--num_runs={options.runs}"]
            found.append(([*adb, "shell", binary, *flags, "--report_peak_memory_footprint=true"], (file, threads)))
    return found


def complaint(process):
    """What a process says went wrong, in a line."""
    lines = [line.strip() for line in (process.stdout + "\n" + process.stderr).splitlines() if line.strip()]
    return "; ".join(line for line in lines if line.startswith("ERROR")) or (lines[-1] if lines else "no output")


def answer(command):
    """The finished process of an adb command. Raises: BadInput without adb, without a phone, or for a command that failed."""
    try:
        process = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except FileNotFoundError as error:
        raise BadInput("--adb: expected adb on PATH, received none; install Android's platform-tools, or see the commands with --dry_run") from error
    if command[-1] == "get-state" and (process.returncode or process.stdout.strip() != "device"):
        raise BadInput(f"--adb: expected a phone that answers, received {complaint(process)!r}; connect it with USB debugging on, or choose one by --serial")
    if process.returncode:
        raise BadInput(f"--adb: expected success of {shlex.join(command)}, received exit status {process.returncode} ({complaint(process)})")
    return process


def parse(text, threads):
    """{figure: number} of what benchmark_model printed; what it did not print is not there.

    Its lines are written by tflite/tools/benchmark/benchmark_model.cc of google-ai-edge/LiteRT and xla/tsl/util/stats_calculator.h:
    microseconds, large ones as 1.04176e+06. Older binaries print no median and p95, some builds no "Replacing".
    """
    found = {}
    timed = (re.findall(r"count=\d.*", text) or [""])[-1]  # the one before it is of the warm-up
    for figure, pattern, part in (("avg", r"Inference \(avg\): ([\d.e+]+)", text), ("median", r" median=(\d+)", timed), ("p95", r" p95=(\d+)", timed)):
        if match := re.search(pattern, part):
            found[timing(figure, threads)] = float(match[1]) / 1e3
    if match := re.search(r"Overall peak memory footprint \(MB\) via periodic monitoring: ([\d.e+]+)", text):
        found["peak MB of benchmark_model"] = float(match[1])  # of the whole process
    if match := re.search(r"Replacing (\d+) out of (\d+) node\(s\) with delegate \(TfLiteXNNPackDelegate\)", text):
        found[OUTSIDE] = int(match[2]) - int(match[1])
    return found


def measure_phone(options, files):
    """Adds the milliseconds that benchmark_model says on a phone."""
    for command, timed in commands(options, files):
        process = answer(command)
        if timed:
            file, threads = timed
            found = parse(process.stdout + "\n" + process.stderr, threads)
            if timing("avg", threads) not in found:
                raise BadInput(f"--benchmark_binary: expected a line 'Inference (avg)', received {complaint(process)!r}; is it TFLite's benchmark_model?")
            file.figures |= found  # the peak that stays is that of most threads


def outside(figures):
    """As '8 of 16: 8 CONV_2D'; a phone does not say which."""
    kinds = ", ".join(f"{count} {key.removeprefix(OUTSIDE + ' ')}" for key, count in figures.items() if key.startswith(OUTSIDE + " "))
    return f"{figures[OUTSIDE]} of {figures['operators']}" + (f": {kinds}" if kinds else "") if OUTSIDE in figures else "-"


def table(files):
    """The table for a terminal: a column for each figure that any file has; 2t: with 2 threads."""
    known = dict.fromkeys(key for file in files for key in file.figures)
    columns = [key for start in ("container", "bytes", "ms ", "peak ") for key in known if key.startswith(start)]
    lines = [["file", *(re.sub(" threads?$", "t", key) for key in columns), OUTSIDE]]
    for file in files:
        values = [(key, file.figures.get(key, "-")) for key in columns]
        texts = [f"{value:.{1 if key.startswith('peak') else 4}f}" if isinstance(value, float) else str(value) for key, value in values]
        lines.append([file.name, *texts, outside(file.figures)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join([f"{first:{widths[0]}}", *map(str.rjust, middle, widths[1:-1]), last]) for first, *middle, last in lines)


def fastest(file):
    """(milliseconds, "N threads") of the better number of threads: medians, or averages from a binary that prints no medians."""
    kind = "ms median " if any(key.startswith("ms median ") for key in file.figures) else "ms avg "
    return min((value, key.removeprefix(kind)) for key, value in file.figures.items() if key.startswith(kind))


def sole(file):
    """One line on a file that is compared with none."""
    shares = {None: "XNNPACK's share unknown", 0: "all inside XNNPACK"}
    share = shares.get(file.figures.get(OUTSIDE), f"outside XNNPACK {outside(file.figures)}")
    remedy = "; time what kerakd.unpack makes of it too" if file.figures["container"] in ("int2", "int4") and file.figures.get(OUTSIDE) else ""
    return f"{file.name}: {file.figures['container']} container, {share}, fastest with {fastest(file)[1]} ({fastest(file)[0]:.4f} ms){remedy}"


def recommendation(files):
    """One line: the fastest file, or the smallest of those that are equally fast, beside the smallest other or the next in speed."""
    if len(files) == 1:
        return sole(files[0])
    best, smallest = min(fastest(file)[0] for file in files), min(files, key=lambda file: file.figures["bytes"])
    ship = min((file for file in files if fastest(file)[0] <= EQUAL * best), key=lambda file: file.figures["bytes"])
    other = smallest if smallest is not ship else min((file for file in files if file is not ship), key=fastest)
    faster, larger, zipped = fastest(other)[0] / fastest(ship)[0], *(ship.figures[key] / other.figures[key] for key in ("bytes", "zipped"))
    pace = f"{faster:.2f} times faster than" if faster > EQUAL else "as fast as"
    return f"ship {ship.name} ({fastest(ship)[1]}): {pace} {other.name}, {larger:.2f} times its bytes (zipped {zipped:.2f} times)"


def main():
    options, _ = commandline.parse(["python -m export.device", *sys.argv[1:]], Options)
    names = [pathlib.Path(path).name for path in options.model]
    files = [load(name if names.count(name) == 1 else path, path) for name, path in zip(names, options.model)]
    if options.dry_run:
        print("\n".join(shlex.join(command) for command, _ in commands(options, files)))
        return
    (measure_phone if options.adb else measure_here)(options, files)
    print(f"{table(files)}\n\n{recommendation(files)}")
    if options.json:
        flat = {f"{file.name} {figure}": value for file in files for figure, value in file.figures.items()}
        write_json(options.json, flat)


if __name__ == "__main__":
    commandline.program(main)

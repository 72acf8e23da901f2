"""Trains the rows of results/cifar10, exports each, and keeps there what the tables are made of: flags, metrics, proof, accuracy.

    python -m benchmarks.accuracy [--row=NAME ...] [--seeds=1] [--workers=CORES] [--workdir=runs/cifar10]

A row is a configuration results/cifar10/NAME.cfg; its run with a seed is kept as results/cifar10/NAME_SEED, and one that is there is
not trained again: delete it to have it so. What counts is the accuracy on the whole test set: of a low-bit row on its int8 .tflite, of
a float row in Keras. Each worker trains one run at a time on its own share of the cores. Ctrl-C and SIGTERM let the runs keep a
checkpoint; the same command goes on from there. TFDS_DATA_DIR says where TFDS keeps its datasets, so that no flag does.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import kerakd.quiet

with kerakd.quiet.native_chatter_off():
    from benchmarks.rows import CIFAR10, ROWS
    from export import card
    from export.tflite import float_file
    from kerakd import config
    from kerakd.files import write_aside, write_json
    from kerakd.modelfile import load_model
    from kerakd.rundir import kind_of

KEPT = ("flags.cfg", "metrics.jsonl", "results.json", "student.json")
NEEDS = re.compile(r"results/cifar10/(\w+)_(\d+)/models/")  # a network of another row


def is_kept(job):
    return (CIFAR10 / "{}_{}".format(*job) / "run.json").exists()


def needs(job):
    """The (row, seed) whose networks a job starts from or is taught by."""
    return {(row, int(seed)) for row, seed in NEEDS.findall((CIFAR10 / f"{job[0]}.cfg").read_text())}


class Jobs:
    """(row, seed) in order, each given out once, when all that it needs is kept; those that need a failed one are dropped."""

    def __init__(self, jobs, stop, is_kept, needs):
        self.waiting, self.failed, self.stop = list(dict.fromkeys(jobs)), {}, stop
        self.is_kept, self.needs, self.lock = is_kept, needs, threading.Lock()

    def impossible(self):
        """{job: what it needs that is neither kept nor among the jobs}."""
        found = {job: {need for need in self.needs(job) if not self.is_kept(need)} - set(self.waiting) for job in self.waiting}
        return {job: needed for job, needed in found.items() if needed}

    def take(self):
        """The next one; None if there is none, or if all is to stop."""
        while not self.stop.is_set():
            with self.lock:
                for job in list(self.waiting):
                    if self.needs(job) & self.failed.keys():
                        self.waiting.remove(job)
                        self.failed[job] = "needs one that failed"
                ready = [job for job in self.waiting if all(map(self.is_kept, self.needs(job)))]
                if ready:
                    self.waiting.remove(ready[0])
                    return ready[0]
                if not self.waiting:
                    return None
            self.stop.wait(2.0)
        return None


class Worker(threading.Thread):
    """Trains jobs until there are none; its programs run on `cpus`."""

    def __init__(self, jobs, cpus, workdir, stop):
        super().__init__()
        self.jobs, self.cpus, self.workdir, self.stop = jobs, cpus, workdir, stop

    def run(self):
        while (job := self.jobs.take()) is not None:
            try:
                self.row(*job)
            except Exception as error:  # whatever it was, the other jobs go on
                if not self.stop.is_set():
                    self.jobs.failed[job] = f"{error} (see {self.workdir}/{job[0]}_{job[1]}.log)"
                    print(f"failed  {job[0]}_{job[1]}: {self.jobs.failed[job]}", flush=True)

    def row(self, row, seed):
        name = f"{row}_{seed}"
        run, clock = self.workdir / name, self.workdir / f"{name}.clock"  # of all the times that it was begun
        if not (run / "results.json").exists():
            print(f"{time.strftime('%H:%M')}  trains  {name}", flush=True)
            resume = ["--resume"] if (run / "flags.cfg").exists() else []
            self.program(name, clock, "kerakd.train", f"--flagfile={CIFAR10 / f'{row}.cfg'}", f"--seed={seed}", f"--workdir={run}", *resume)
        if config.read(run / "flags.cfg").exports() and not (run / "student.json").exists():
            self.program(name, None, "export.tflite", f"--run={run}", "--overwrite")
        kept = keep(run, name, {**read_clock(clock), "threads": len(self.cpus)} if clock.exists() else {})
        print(f"{time.strftime('%H:%M')}  kept    {name}  accuracy {kept['accuracy']:.4f}", flush=True)

    def program(self, name, clock, *argv):
        """Runs a program of kerakd to its end; adds its wall-clock and CPU seconds to the file `clock`. Raises: CalledProcessError."""
        command, began = [sys.executable, "-m", *argv], time.monotonic()
        with open(self.workdir / f"{name}.log", "a") as log:  # a session of its own: Ctrl-C reaches it through `stop`, once
            child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        os.sched_setaffinity(child.pid, self.cpus)  # TensorFlow takes as many threads as it sees cores
        ended, asked = 0, False
        while not ended:
            if self.stop.is_set() and not asked:
                os.kill(child.pid, signal.SIGTERM)
                asked = True
            time.sleep(1.0)
            ended, status, usage = os.wait4(child.pid, os.WNOHANG)
        child.returncode = os.waitstatus_to_exitcode(status)
        if clock:
            taken = {"seconds": time.monotonic() - began, "cpu_seconds": usage.ru_utime + usage.ru_stime}
            before = read_clock(clock)
            write_aside(clock, lambda aside: aside.write_text(json.dumps({kind: round(before[kind] + seconds, 1) for kind, seconds in taken.items()})))
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, command[2])


def read_clock(path):
    return json.loads(path.read_text()) if path.exists() else {"seconds": 0.0, "cpu_seconds": 0.0}


def keep(run, name, clock):
    """Copies what the tables need of a run that ended, run.json last; returns that. clock: {} for a run that was not timed."""
    folder = CIFAR10 / name
    folder.mkdir(exist_ok=True)
    for file in KEPT:
        if (run / file).exists():
            shutil.copy(run / file, folder)
    if name in {"{}_{}".format(*need) for row in ROWS for need in needs((row, 0))}:  # other rows start from it
        shutil.copytree(run / "models", folder / "models", dirs_exist_ok=True)
    kept = {
        **measured(run),
        **clock,
        "finished": time.strftime("%Y-%m-%d", time.localtime((run / "results.json").stat().st_mtime)),
        "machine": machine(),
        "versions": card.versions(),
    }
    write_json(folder / "run.json", kept)
    return kept


def measured(run):
    """{"accuracy", "bytes", "zipped", "on": what they are of} of a run."""
    results = json.loads((run / "results.json").read_text())
    (name,) = [name for name in results if kind_of(name) == "taught"]
    if not (run / "student.json").exists():
        file = float_file(load_model(run / "models" / f"{name}.keras"))
        return {"accuracy": results[name], "bytes": len(file), "zipped": card.zipped(file), "on": "Keras, float32"}
    (row,) = [row for row in json.loads((run / "student.json").read_text())["table"] if "on the int8 .tflite" in row["network"]]
    return {**{key: row[key] for key in ("accuracy", "bytes", "zipped")}, "on": "int8 .tflite"}


def machine():
    names = re.findall(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", choices=ROWS, metavar="NAME", help="only these; repeat it for more")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0, 1, ... of each row")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/cifar10"))
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    if not 1 <= options.workers <= len(cpus):
        parser.error(f"--workers: expected 1 to {len(cpus)}, the cores, received {options.workers}")
    if options.seeds < 1:
        parser.error(f"--seeds: expected 1 or more, received {options.seeds}")
    stop, signals = threading.Event(), []
    asked = [(row, seed) for seed in range(options.seeds) for row in options.row or ROWS]
    jobs = Jobs([job for job in asked if not is_kept(job)], stop, is_kept, needs)
    for job, needed in jobs.impossible().items():
        names = ", ".join(f"{row}_{seed}" for row, seed in needed)
        parser.error(f"--row: expected what {job[0]} needs kept or asked for, received neither for {names}; add it with --row")
    options.workdir.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: (signals.append(number), stop.set()))
    print(f"{len(asked)} runs, {len(asked) - len(jobs.waiting)} of them kept already", flush=True)
    workers = [Worker(jobs, cpus[k :: options.workers], options.workdir, stop) for k in range(options.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for (row, seed), why in jobs.failed.items():
        print(f"not kept: {row}_{seed}: {why}", file=sys.stderr)
    sys.exit(128 + signals[0] if signals else 1 if jobs.failed else 0)


if __name__ == "__main__":
    main()

"""Trains the rows of results/cifar10, exports each, and keeps there what the tables are made of: flags, metrics, proof, accuracy.

    python -m benchmarks.accuracy [--row=NAME ...] [--seeds=2] [--workers=2] [--workdir=runs/cifar10]

A row is a configuration results/cifar10/NAME.cfg; its run with a seed is kept as results/cifar10/NAME_SEED, and one that is there is
not trained again. What counts is the accuracy on the whole test set: of a low-bit row on its int8 .tflite, of a float row in Keras.
Each worker trains one run at a time on its own share of the cores. Ctrl-C and SIGTERM let the runs keep a checkpoint; the same
command goes on from there. TFDS_DATA_DIR says where TFDS keeps its datasets, so that no flag does.
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
    from benchmarks.tables import CIFAR10, ROWS, SHIPPED
    from export import card
    from export.tflite import float_file
    from kerakd.rundir import load_model

KEPT = ("flags.cfg", "metrics.jsonl", "results.json", "student.json")
NEEDS = re.compile(r"results/cifar10/(\w+)/models/")  # a network of another row


class Worker(threading.Thread):
    """Trains jobs until there are none; its programs run on `cpus`."""

    def __init__(self, jobs, cpus, workdir, stop):
        super().__init__()
        self.jobs, self.cpus, self.workdir, self.stop = jobs, cpus, workdir, stop
        self.failed = []

    def run(self):
        while not self.stop.is_set():
            job = self.jobs.take()
            if job is None:
                return
            row, seed = job
            try:
                self.row(row, seed)
            except subprocess.CalledProcessError as error:
                if not self.stop.is_set():
                    self.failed.append(f"{row}_{seed}: {' '.join(error.cmd[1:4])} ended with {error.returncode}, see {self.workdir / f'{row}_{seed}.log'}")
                    print(f"failed  {self.failed[-1]}", flush=True)
            finally:
                self.jobs.done(job)

    def row(self, row, seed):
        run, name = self.workdir / f"{row}_{seed}", f"{row}_{seed}"
        clock = self.workdir / f"{name}.clock"  # of all the times that it was begun
        if not (run / "results.json").exists():
            print(f"{time.strftime('%H:%M')}  trains  {name}", flush=True)
            resume = ["--resume"] if (run / "flags.cfg").exists() else []
            self.program(name, clock, "kerakd.train", f"--flagfile={CIFAR10 / f'{row}.cfg'}", f"--seed={seed}", f"--workdir={run}", *resume)
        exported = "--weights=float" not in (run / "flags.cfg").read_text().splitlines()
        if exported and not (run / "student.json").exists():
            self.program(name, None, "export.tflite", f"--run={run}", "--overwrite")
        kept = keep(run, name, read_clock(clock), len(self.cpus))
        print(f"{time.strftime('%H:%M')}  kept    {name}  accuracy {kept['accuracy']:.4f}  ({kept['seconds'] / 60:.0f} minutes)", flush=True)

    def program(self, name, clock, *argv):
        """Runs a program of kerakd to its end; adds its wall-clock and CPU seconds to the file `clock`. Raises: CalledProcessError."""
        command, began = [sys.executable, "-m", *argv], time.monotonic()
        with open(self.workdir / f"{name}.log", "a") as log:
            child = subprocess.Popen(command, stdout=log, stderr=log)
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
            before = read_clock(clock)
            taken = {"seconds": time.monotonic() - began, "cpu_seconds": usage.ru_utime + usage.ru_stime}
            clock.write_text(json.dumps({kind: round(before[kind] + seconds, 1) for kind, seconds in taken.items()}))
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, command)


def read_clock(path):
    return json.loads(path.read_text()) if path.exists() else {"seconds": 0.0, "cpu_seconds": 0.0}


class Jobs:
    """(row, seed) in order, each once what it needs is there."""

    def __init__(self, jobs, stop):
        self.waiting, self.under_way, self.stop, self.lock = list(jobs), set(), stop, threading.Lock()

    def take(self):
        """The next one, or None if there is none."""
        while not self.stop.is_set():
            with self.lock:
                if not self.waiting:
                    return None
                for job in self.waiting:
                    if not missing(job[0]) & {f"{row}_{seed}" for row, seed in [*self.waiting, *self.under_way]}:
                        self.waiting.remove(job)
                        self.under_way.add(job)
                        return job
            self.stop.wait(5.0)
        return None

    def done(self, job):
        with self.lock:
            self.under_way.remove(job)


def missing(row):
    """The runs whose networks a row takes and that are not kept yet."""
    return {name for name in NEEDS.findall((CIFAR10 / f"{row}.cfg").read_text()) if not (CIFAR10 / name / "run.json").exists()}


def keep(run, name, clock, threads):
    """Copies what the tables need of a run that ended, run.json last; returns that."""
    folder = CIFAR10 / name
    folder.mkdir(exist_ok=True)
    for file in KEPT:
        if (run / file).exists():
            shutil.copy(run / file, folder)
    if name in SHIPPED:  # other rows start from it
        shutil.copytree(run / "models", folder / "models", dirs_exist_ok=True)
    kept = {
        **measured(run),
        **clock,
        "threads": threads,
        "finished": time.strftime("%Y-%m-%d", time.localtime((run / "results.json").stat().st_mtime)),
        "machine": machine(),
        "versions": card.versions(),
    }
    (folder / "run.json").write_text(json.dumps(kept, indent=1) + "\n")
    return kept


def measured(run):
    """{"accuracy", "bytes", "on": what both are of} of a run."""
    results = json.loads((run / "results.json").read_text())
    (name,) = [name for name in results if name.startswith("taught")]
    if not (run / "student.json").exists():
        return {"accuracy": results[name], "bytes": len(float_file(load_model(run / "models" / f"{name}.keras"))), "on": "Keras, float32"}
    (row,) = [row for row in json.loads((run / "student.json").read_text())["table"] if "on the int8 .tflite" in row["network"]]
    return {"accuracy": row["accuracy"], "bytes": row["bytes"], "on": "int8 .tflite"}


def machine():
    names = re.findall(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"


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
    options.workdir.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    asked = [(row, seed) for seed in range(options.seeds) for row in options.row or ROWS]
    jobs = Jobs([(row, seed) for row, seed in asked if not (CIFAR10 / f"{row}_{seed}" / "run.json").exists()], stop)
    print(f"{len(asked)} runs, {len(asked) - len(jobs.waiting)} of them kept already", flush=True)
    workers = [Worker(jobs, cpus[k :: options.workers], options.workdir, stop) for k in range(options.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if stop.is_set():
        sys.exit(130)
    sys.exit(1 if any(worker.failed for worker in workers) else 0)


if __name__ == "__main__":
    main()

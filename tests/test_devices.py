"""Laws of replicas: they learn what one device learns, their checkpoints are everybody's, and a lost worker costs nothing but time."""

import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from kerakd import train
from kerakd.devices import devices
from kerakd.errors import BadInput
from kerakd.rundir import RunDirectory

FLAGS = ("--dataset=digits", "--student=resnet8", "--student_width=0.25", "--shrink=2", "--weights=interval:8", "--phase=alone:4", "--optimizer=sgd")


@pytest.mark.parametrize("cases", [("co_study",), pytest.param((), marks=pytest.mark.slow)], ids=["co_study", "all"])
def test_two_replicas_learn_what_one_device_learns(data_dir, tmp_path, cases):
    """Some steps, in all cases with hints, medicine and float16; and a run that began on two replicas and went on on one."""
    arguments = [sys.executable, ROOT / "tests" / "replicas.py", data_dir, tmp_path, *cases]
    done = subprocess.run(list(map(str, arguments)), env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps, losses, short = (json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "[")))
    for name, (of_losses, of_weights) in steps.items():
        near = 1e-3 if "float16" in name else 1e-5
        assert of_losses < near and of_weights < near, name
    assert np.isfinite(short).all()
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)  # BatchNorm's moving variances are those of a sample in one, of all in the other


def worker(index, ports, *arguments):
    """A training process, one of two."""
    cluster = {"cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]}, "task": {"type": "worker", "index": index}}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CONFIG": json.dumps(cluster)}
    command = [sys.executable, "-m", "kerakd.train", *FLAGS, "--distribute=multi_worker", "--checkpoint_every=3", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def after(directory, last, processes):
    """The newest checkpoint, once there is one after `last`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(process.poll() for process in processes):
        found = sorted(path.name for path in directory.path.glob("checkpoints/taught_0/0*"))
        if found and found[-1] > last:
            return found[-1]
        time.sleep(0.1)
    raise AssertionError([process.communicate() for process in processes if process.poll()] or "no checkpoint in two minutes")


def test_a_lost_worker_comes_back_and_one_device_ends_what_two_workers_began(data_dir, tmp_path, here):
    ports, directory = free_ports(2), RunDirectory(tmp_path / "two")
    flags = f"--data_dir={data_dir}", f"--workdir={directory.path}"
    workers = [worker(index, ports, *flags) for index in (0, 1)]
    try:
        after(directory, "", workers)
        workers[1].kill()
        workers[1].communicate()
        last = after(directory, "", workers[:1])
        workers[1] = worker(1, ports, *flags, "--resume")
        after(directory, last, workers)
        workers[1].terminate()  # to one of them: both stop
        said = [process.communicate(timeout=60)[1] for process in workers]
    finally:
        for process in workers:
            process.kill()
    assert [process.returncode for process in workers] == [128 + 15, 128 + 15], said
    assert said[0].count("another worker was lost; begins again") == 1 and all("stopped by SIGTERM" in text for text in said)
    assert not directory.complete
    assert here(train.main, *FLAGS, *flags, "--resume")[0] == 0
    assert here(train.main, *FLAGS, flags[0], f"--workdir={tmp_path / 'one'}")[0] == 0
    one, two = (RunDirectory(tmp_path / name).metrics() for name in ("one", "two"))
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose([row[name] for row in two], [row[name] for row in one], rtol=3e-3)


@pytest.mark.parametrize(
    ("arguments", "config", "expected"),
    [
        (("many",), None, "--distribute: expected one of none, mirrored, multi_worker, tpu, received 'many'"),
        (("none", 2), None, "--devices: expected 0 with --distribute=none, received 2"),
        (("mirrored", 0, "local"), None, "--tpu: expected none with --distribute=mirrored, received 'local'"),
        (("mirrored",), None, f"--devices: expected 2 to {os.cpu_count()}, parts of this machine's CPU, as it has no GPU, received none"),
        (("mirrored", 1000), None, f"--devices: expected 2 to {os.cpu_count()}, .*received 1000"),
        (("multi_worker",), None, "TF_CONFIG: expected workers and the place of this one, .*received ''"),
        (("multi_worker",), "{", "TF_CONFIG: expected workers .*received '{'"),
        (("multi_worker",), '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}', "TF_CONFIG: expected workers"),
        (("multi_worker",), '{"cluster": {"worker": ["a:b", "b:1"]}, "task": {"type": "worker", "index": 0}}', "TF_CONFIG: expected workers"),
        (("multi_worker",), '{"cluster": {"chief": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}}', "TF_CONFIG: expected workers"),
        (("mirrored", -1), None, "--devices: expected 0 or more, received -1"),
        (("multi_worker",), '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}', "TF_CONFIG: expected two workers or more"),
        (("tpu", 0, "local"), None, r"--tpu: expected the name or address of a TPU, .*received 'local' \("),
        (("tpu", 0, "grpc://127.0.0.1:9"), None, r"--tpu: .*received 'grpc://127.0.0.1:9' \(.*refused"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_devices_that_are_not_there_are_refused(monkeypatch, arguments, config, expected):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(BadInput, match=expected):
        devices(*arguments)

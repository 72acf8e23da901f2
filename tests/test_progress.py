"""In a terminal a bar with the time left; elsewhere a line for each epoch."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

from conftest import ROOT

CODE = """
import time
from kerakd.progress import Progress
bar = Progress("student", steps=4, batch_size=8, done=4, epochs=3)
bar.on_train_begin()
for epoch in (1, 2):
    bar.on_epoch_begin(epoch)
    for batch in range(4):
        time.sleep(0.12)
        bar.on_train_batch_end(batch)
    bar.on_epoch_end(epoch, {"loss": 0.5, "accuracy": 0.75, "val_accuracy": 0.7})
bar.on_train_end()
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}


def test_a_terminal_shows_a_bar_with_the_time_left():
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", CODE], stdout=theirs, stderr=theirs, env=ENVIRONMENT)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # how Linux ends a terminal
        pass
    os.close(ours)
    assert process.wait() == 0
    lines = shown.decode().split("\r")
    assert any(line.startswith("student  33%|") for line in lines), lines  # it begins after the epoch that was done before
    assert any("<00:0" in line and "epoch 2/3  loss 0.5000  accuracy 0.7500  test 0.7000" in line for line in lines), lines
    assert lines[-2].startswith("student 100%|") or lines[-1].startswith("student 100%|"), lines


def test_elsewhere_each_epoch_is_a_line():
    done = subprocess.run([sys.executable, "-c", CODE], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["student: epoch 2/3", "student: epoch 3/3"]
    assert all("loss 0.5000  accuracy 0.7500  test 0.7000" in line and line.endswith("images/s") for line in lines)

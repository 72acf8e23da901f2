"""Files that are whole or as they were."""

import hashlib
import json
import os
import pathlib

from kerakd.errors import BadInput


def write_aside(path, write):
    """Calls write(temporary path) beside `path`, then renames: `path` is whole or as it was, also where the machine goes down."""
    write_together({path: write})


def write_together(writers):
    """Likewise several files, {path: write}: all are written before the first is renamed, and the last is renamed last."""
    asides = {path: path.with_name(f".{path.stem}.partial{path.suffix}") for path in map(pathlib.Path, writers)}
    try:
        for write, aside in zip(writers.values(), asides.values(), strict=True):
            write(aside)
            flush(aside)
        for path, aside in asides.items():
            os.replace(aside, path)
    finally:
        for aside in asides.values():
            aside.unlink(missing_ok=True)


def flush(path):
    """Has the disk hold what a file's writer has handed to the system."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def is_aside(path):
    """Whether it is what a process that was killed within `write_aside` has left."""
    return path.name.startswith(".") and path.stem.endswith(".partial") and path.is_file()


def sha256(path):
    """Of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path, value):
    """Writes a value as indented JSON; as `write_aside`."""
    write_aside(path, lambda aside: aside.write_text(json.dumps(value, indent=1) + "\n"))


def read_json(path, text=None):
    """What a JSON file says, or one line of it. Raises: BadInput for a damaged one."""
    try:
        return json.loads(pathlib.Path(path).read_text() if text is None else text)
    except ValueError as error:
        raise BadInput(f"{path}: expected JSON as it was written, received something damaged ({error}); restore it from a copy, or delete the file") from error

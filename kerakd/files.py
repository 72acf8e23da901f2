"""Files that are whole or as they were."""

import os
import pathlib


def write_aside(path, write):
    """Calls write(temporary path) beside `path`, then renames: `path` is whole or as it was."""
    path = pathlib.Path(path)
    aside = path.with_name(f".{path.stem}.partial{path.suffix}")
    write(aside)
    os.replace(aside, path)

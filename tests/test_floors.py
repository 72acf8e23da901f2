"""Imports go down only: a module of kerakd imports from its own floor or below, export imports kerakd, never the reverse; programs load no Keras 3."""

import ast
import graphlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FLOORS = [
    {"errors", "files", "captions", "quiet", "chatter", "commandline", "devices", "halfspeed"},
    {"graph", "keras3", "batchnorm", "augment", "augmenters", "grids", "quantizers", "losses", "optimizers", "shampoo", "models", "data"},
    {"wrapper", "calibration", "kinds", "operators", "rewrite", "plan", "scheme", "recast", "modes", "checks"},
    {"oscillation", "carry", "hints", "groups", "soft", "panel", "explain", "distiller"},
    {"config", "config_rules", "rundir", "modelfile", "cache", "teachers", "lessons", "tflite"},
    {"train", "training", "stages", "networks", "keep", "scalars", "scores", "evaluate", "runs", "curves", "report", "page", "progress", "sensitivity"},
]
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}
FILES = sorted(path for path in (ROOT / "kerakd").rglob("*.py") if path.parent != ROOT / "kerakd" or path.name != "__init__.py")


def room(path):
    """The module or package of kerakd that a file belongs to; a package's own program is none of its rooms."""
    if path.name == "__main__.py":
        return "train"
    return path.relative_to(ROOT / "kerakd").parts[0].removesuffix(".py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    below = {name.split(".")[1] for name in imported(path) if name.startswith("kerakd.")} & FLOOR.keys()
    assert {name for name in below if FLOOR[name] > FLOOR[room(path)]} == set()


def test_every_module_has_a_floor():
    assert {room(path) for path in FILES} == set(FLOOR)


def test_the_library_does_not_know_the_application():
    assert not [path for path in (ROOT / "kerakd").rglob("*.py") for name in imported(path) if name.split(".")[0] == "export"]


def test_the_program_that_trains_is_imported_by_nobody():
    users = [path for path in FILES if "kerakd.train" in set(imported(path))]
    assert users == []


def test_a_program_loads_no_keras_3_and_finds_it_when_it_needs_it():
    code = "import sys, kerakd.train; assert not {'keras', 'sklearn'} & set(sys.modules); import keras; assert keras.__version__.startswith('3.')"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def test_no_two_modules_import_each_other():
    """Within a floor too: the order in which modules of the library are made of one another has no circle."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in (ROOT / "kerakd").rglob("*.py")}
    needs = {name: {other for other in imported(path) if other in modules and not name.startswith(f"{other}.")} - {name} for name, path in modules.items()}
    assert sum(map(len, needs.values())) > 100
    list(graphlib.TopologicalSorter(needs).static_order())  # raises CycleError, naming the circle


def test_the_map_of_the_house_names_every_module_on_its_floor():
    text = (ROOT / "BUILD.md").read_text().split("## Map of the house")[1].split("Decisions that are not obvious")[0]
    for level, names in enumerate(FLOORS):
        floor = text.split(f"floor {level} ")[1].split("floor ")[0].split("    export/ ")[0]
        assert {name for name in names if not re.search(rf"\b{name}\b", floor)} == set()

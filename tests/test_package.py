"""The wheel and the import: only kerakd inside, usable elsewhere, cheap, without side effects."""

import os
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    subprocess.run(["git", "-C", str(ROOT), "checkout-index", "--all", f"--prefix={source}/"], check=True)  # building writes beside the sources
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return next(folder.glob("kerakd-*.whl"))


def python(code, **environment):
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([sys.executable, "-c", code], cwd="/", env={**kept, **environment}, capture_output=True, text=True, check=True).stdout


def test_the_wheel_holds_only_kerakd_and_its_metadata(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"kerakd", wheel.name.rsplit("-py3", 1)[0] + ".dist-info"}


def test_the_wheel_names_every_package_of_the_source(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "kerakd").rglob("*.py")} <= names


def test_the_wheel_requires_what_requirements_say(wheel):
    metadata = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("METADATA"))
    required = [line.split(": ")[1] for line in zipfile.ZipFile(wheel).read(metadata).decode().splitlines() if line.startswith("Requires-Dist")]
    listed = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert sorted(required) == sorted(line for line in listed if line)


def test_the_installed_wheel_works_from_another_directory(wheel, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), str(wheel)], check=True, stderr=subprocess.DEVNULL
    )
    code = "import kerakd; print(kerakd.__file__); kerakd.models.build('resnet8', (8, 8, 1), 10); print(kerakd.Ternary(), kerakd.to_tflite.__name__)"
    out = python(code, PYTHONPATH=str(tmp_path), TF_CPP_MIN_LOG_LEVEL="3")
    assert out.splitlines()[0] == str(tmp_path / "kerakd" / "__init__.py")
    assert "to_tflite" in out


def test_importing_kerakd_defines_no_flag_and_changes_no_environment():
    code = (
        "import os, tensorflow, tensorflow_model_optimization; from absl import flags; before = set(flags.FLAGS), dict(os.environ); import kerakd\n"
        "for name in kerakd.__all__: getattr(kerakd, name)\n"
        "assert (set(flags.FLAGS), dict(os.environ)) == before"
    )
    python(code, PYTHONPATH=str(ROOT), TF_CPP_MIN_LOG_LEVEL="3")


def test_importing_kerakd_costs_at_most_half_a_second_over_tensorflow_and_tfmot():
    code = (
        "import time, tensorflow, tensorflow_model_optimization; start = time.perf_counter(); import kerakd\n"
        "for name in kerakd.__all__: getattr(kerakd, name)\n"
        "print(time.perf_counter() - start)"
    )
    seconds = [float(python(code, PYTHONPATH=str(ROOT), TF_CPP_MIN_LOG_LEVEL="3")) for _ in range(2)]
    assert min(seconds) < 0.5, seconds


def test_every_public_name_is_there_and_an_unknown_one_is_refused():
    import kerakd

    assert set(kerakd.__all__) <= set(dir(kerakd))
    assert all(getattr(kerakd, name) is not None for name in kerakd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        kerakd.nope  # noqa: B018

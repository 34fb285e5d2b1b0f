"""What an import says when the compiled module is missing, broken or hidden."""

import subprocess
import sys
from pathlib import Path

import pytest

import reidops
from reidops import _extension


@pytest.fixture
def copy(tmp_path):
    """A copy of the Python files alone, as in a checkout that was never built."""
    folder = tmp_path / "checkout" / "reidops"
    folder.mkdir(parents=True)
    for path in Path(reidops.__file__).parent.glob("*.py"):
        (folder / path.name).write_text(path.read_text())
    return folder


def import_error(copy, *search):
    code = f"""
import sys
sys.path[1:1] = {list(map(str, search))}
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]  # of pip install -e
import reidops
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=copy.parent, capture_output=True, text=True)
    assert run.returncode != 0
    return run.stderr


def test_a_checkout_that_was_not_built(copy):
    error = import_error(copy)
    assert "reidops is not built" in error and str(copy) in error and "pip install -e ." in error


def test_a_checkout_that_hides_the_installed_one(copy, tmp_path):
    installed = tmp_path / "site" / "reidops"
    installed.mkdir(parents=True)
    (installed / "_C.cpython-39-x86_64-linux-gnu.so").touch()
    assert f"hides the installed one in {installed}" in import_error(copy, installed.parent)


def test_a_module_that_cannot_be_loaded(copy):
    suffix = Path(_extension.C.__file__).name.removeprefix("_C")
    (copy / f"_C{suffix}").write_bytes(b"not a library")
    error = import_error(copy)
    assert "cannot be loaded" in error and "wants torch" in error and "here is torch" in error
    assert "pip install --no-build-isolation" in error

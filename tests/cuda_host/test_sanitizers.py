"""The flavours that look at every access of memory: planted faults are found, and a part of every operator's tests
passes. AddressSanitizer needs a process of its own, because its runtime comes before Python."""

import re
import subprocess

import pytest

from tests.cuda_host import background, build

RUN_A_FAULT = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.run_fault.restype = ctypes.c_char_p
data = ctypes.create_string_buffer(1024)
print("ended with", library.run_fault(sys.argv[2].encode(), data, 256))
"""
FOUND = {
    "write behind dynamic shared memory": "use-after-poison",
    "read behind dynamic shared memory": "use-after-poison",
    "write behind a shared array": "index 64 out of bounds",
    "write behind a tensor": "heap-buffer-overflow",
    "read behind a tensor": "heap-buffer-overflow",
    "misaligned vector": "misaligned address",
}


@pytest.fixture(scope="module")
def python():
    if build.compiler() is None:
        pytest.skip("there is no g++")
    try:
        return build.sanitized_python()
    except build.NoSanitizer as error:
        pytest.skip(str(error))


def run_fault(name, python):
    library = build.build("asan", [build.HERE / "faults.cu"], "faults").library
    start, environment = python
    command = [*start, "-c", RUN_A_FAULT, str(library), name]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", FOUND)
def test_faults_are_found(name, python):
    run = run_fault(name, python)
    assert run.returncode == 99 and FOUND[name] in run.stderr, run.stdout + run.stderr
    assert "faults.cu" in run.stderr


@pytest.mark.parametrize("name", ["write of dynamic shared memory", "intrinsics", "copies", "last block"])
def test_right_kernels_pass(name, python):
    run = run_fault(name, python)
    assert run.stdout.strip() == "ended with None", run.stderr


@pytest.mark.parametrize("flavour", ["races", "asan"])
def test_every_operator(flavour):
    if build.compiler() is None:
        pytest.skip("there is no g++")
    try:
        run = background.results[flavour].result(timeout=900)
    except build.NoSanitizer as error:
        pytest.skip(str(error))
    # of a sanitizer's stacks, what is ours
    lines = [line for line in run.stdout.splitlines() if not re.match(r" *#\d+ ", line) or "/csrc/" in line]
    assert run.returncode == 0, "\n".join(lines)[-8000:]
    assert " passed" in lines[-1]
    print(lines[-1])

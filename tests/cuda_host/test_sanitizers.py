"""The flavours that look at every access of memory: planted faults are found, and a part of every operator's tests
passes. AddressSanitizer needs a process of its own, because its runtime comes before Python."""

import subprocess
import sys

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
def environment():
    if build.compiler() is None:
        pytest.skip("there is no C++ compiler")
    try:
        return build.sanitizer_environment()
    except build.NoSanitizer as error:
        pytest.skip(str(error))


def run_fault(name, environment):
    library = build.build("asan", [build.HERE / "faults.cu"], "faults").library
    command = [sys.executable, "-c", RUN_A_FAULT, str(library), name]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", FOUND)
def test_faults_are_found(name, environment):
    run = run_fault(name, environment)
    assert run.returncode == 99 and FOUND[name] in run.stderr, run.stdout + run.stderr
    assert "faults.cu" in run.stderr


@pytest.mark.parametrize("name", ["write of dynamic shared memory", "intrinsics", "copies", "last block"])
def test_right_kernels_pass(name, environment):
    run = run_fault(name, environment)
    assert run.stdout.strip() == "ended with None", run.stderr


@pytest.mark.parametrize("flavour", ["races", "asan"])
def test_every_operator(flavour):
    if build.compiler() is None:
        pytest.skip("there is no C++ compiler")
    try:
        run = background.results[flavour].result(timeout=900)
    except build.NoSanitizer as error:
        pytest.skip(str(error))
    assert run.returncode == 0, run.stdout[-8000:]
    assert " passed" in run.stdout.splitlines()[-1]
    print(run.stdout[-2000:])

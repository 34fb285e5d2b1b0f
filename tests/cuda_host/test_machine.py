"""The machine itself: faults that are planted in small kernels (faults.cu) are found, and right kernels pass."""

import ctypes
from functools import cache

import pytest
import torch

from tests.cuda_host import build

THREADS = 64


@cache
def faults(flavour):
    library = ctypes.CDLL(str(build.build(flavour, [build.HERE / "faults.cu"], "faults").library))
    library.run_fault.restype = ctypes.c_char_p
    return library


@pytest.fixture(params=["plain", "races"])  # asan: test_sanitizers.py
def run(request):
    """run(kernel, seed): its error, or None, and the memory it worked on."""
    if build.compiler() is None:
        pytest.skip("there is no g++")

    def run(name, seed=0, count=4 * THREADS):
        library = faults(request.param)
        library.machine_seed(ctypes.c_uint64(seed))
        data = torch.zeros(count)
        error = library.run_fault(name.encode(), ctypes.cast(data.data_ptr(), ctypes.c_void_p), count)
        assert error != b"", f"there is no kernel {name}"
        return error and error.decode(), data

    run.flavour = request.param
    return run


RIGHT = (
    "neighbour",
    "neighbour lane",
    "two rounds",
    "write of dynamic shared memory",
    "blocks write their own places",
    "bytes of a word",
    "atomic sum",
    "last block",
    "copies",
    "intrinsics",
    "atomics",
    "64 KB asked for",
)
REFUSED = {
    "48 threads": "not whole warps",
    "2048 threads": "blocks of 2048",
    "an empty grid": "empty grid",
    "a high grid": "beyond the limits",
    "64 KB not asked for": "65536 bytes of shared memory of 49152",
    "228 KB asked for": "more than the device has",
}
STOPPED = {  # in every flavour
    "half a block at a barrier": "deadlock; 32 threads (0 to 31) wait at __syncthreads (faults.cu:",
    "two barriers for one": "other threads of the block are at another barrier, __syncthreads (faults.cu:",
    "half a warp at a shuffle": "wait at __shfl_xor_sync (faults.cu:",
    "half a mask": "the mask 0000ffff leaves lanes out",
    "two intrinsics for one": "other lanes of the warp are at __a",
    "uncommitted copies": "never committed",
    "misaligned copies": "not aligned",
    "copies to global memory": "not in shared memory",
}
RACES = {  # what the race detector says of the two accesses; which of them comes second depends on the order
    "neighbour without barrier": ("write", "read"),
    "neighbour lane without barrier": ("write", "read"),
    "two rounds without barrier": ("write", "read"),
    "blocks write one place": ("write", "by another block's thread 0"),
    "one byte of two threads": ("write of 1 bytes", "and a write"),
    "plain read of an atomic": ("atomic", "read"),
    "last block without fence": ("read", "and a write by another block's thread"),
    "copies without wait": ("and a copy that has not been waited for by",),
    "copies without barrier": ("write", "read"),
    "copies begun too early": ("write", "read"),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_pass(run, name, seed):
    error, data = run(name, seed)
    assert error is None
    if name == "intrinsics":
        assert data[:THREADS].tolist() == [0] * THREADS
    if name == "atomics":
        assert data.view(torch.int32)[6] == 1
    if name == "last block":
        assert data[9] == 8


@pytest.mark.parametrize("name", [*REFUSED, *STOPPED])
def test_what_cannot_go_on_is_an_error(run, name):
    error, _ = run(name)
    if run.flavour == "races" and name == "uncommitted copies":
        assert "has not been waited for" in error
    else:
        assert error is not None and (REFUSED | STOPPED)[name] in error


def test_the_machine_goes_on_after_an_error(run):
    for _ in range(3):
        assert "deadlock" in run("half a block at a barrier")[0]
        assert run("two rounds")[0] is None


@pytest.mark.parametrize("run", ["races"], indirect=True)
@pytest.mark.parametrize("name", RACES)
def test_races_are_found(run, name):
    for seed in range(3):  # whatever the order
        error, _ = run(name, seed)
        assert error is not None and error.startswith("race") and error.count("faults.cu:") == 2
        assert all(part in error for part in RACES[name]), error


@pytest.mark.parametrize("run", ["plain"], indirect=True)
@pytest.mark.parametrize("name", ["neighbour without barrier", "two rounds without barrier", "copies without wait"])
def test_some_order_shows_a_missing_barrier(run, name):
    """Poison and random orders alone are enough, without the race detector."""
    right = run(name.replace(" without barrier", "").replace(" without wait", ""))[1]
    assert any(not torch.equal(run(name, seed)[1], right) for seed in range(20))


def test_unwritten_shared_memory_is_nan(run):
    _, data = run("unwritten shared memory")
    assert data[:THREADS].isnan().all()
    _, data = run("shared memory of another block")
    assert data.isnan().sum() == 3 * THREADS


def test_writes_behind_dynamic_shared_memory_are_found(run):
    assert "behind the 256 bytes" in run("write behind dynamic shared memory")[0]


@pytest.mark.parametrize("run", ["races"], indirect=True)
def test_misaligned_vectors_are_found(run):
    assert "not aligned" in run("misaligned vector")[0]

"""The fixture `host`: csrc/cuda's operators, compiled for the CPU.

REIDOPS_HOST_FLAVOURS=plain,races (see build.py) runs every test that uses it in each of these flavours; by default it
is `plain`, and test_sanitizers.py runs a part of the tests in the others, beside this process. REIDOPS_HOST_SEED is the
seed that tests begin with.
"""

import ctypes
import os
from functools import cache

import pytest
import torch

from tests.cuda_host import background, build

collect_ignore = ["rehearsal.py"]  # importing it, as for its doctests, replaces the CPU kernels
FLAVOURS = os.environ.get("REIDOPS_HOST_FLAVOURS", "plain").split(",")


class Host:
    """The operators of one flavour, and what can be set of the machine they run on.

    `ops`     torch.ops.reidops_host or the flavour's own namespace; takes CPU tensors
    `flavour` "plain", "races" or "asan": the last two are several times slower
    """

    def __init__(self, flavour):
        self.flavour = flavour
        self.built = build.build(flavour)
        torch.ops.load_library(str(self.built.library))
        self.ops = getattr(torch.ops, build.namespace(flavour))
        self._machine = ctypes.CDLL(str(self.built.library))
        self._machine.machine_launches.restype = ctypes.c_int64

    def seed(self, seed):
        """The order in which blocks, warps and lanes run, and when asynchronous copies arrive."""
        self._machine.machine_seed(ctypes.c_uint64(seed))

    def limits(self, **limits):
        """Says that the device has less: shared_memory and scratch_bytes, multiprocessors, max_blocks. For one test."""
        for name, value in limits.items():
            if self._machine.machine_set_limit(name.encode(), ctypes.c_int64(value)):
                raise ValueError(f"there is no limit {name}")

    def reset(self):
        self._machine.machine_reset_limits()
        self.seed(int(os.environ.get("REIDOPS_HOST_SEED", 0)))

    @property
    def launches(self):
        """How many kernels have been launched so far."""
        return self._machine.machine_launches()


@cache
def _host(flavour):
    return Host(flavour)


@pytest.fixture(params=FLAVOURS)
def host(request):
    if build.compiler() is None:
        pytest.skip("there is no g++")
    host = _host(request.param)
    host.reset()
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True)  # new tensors are filled with NaN and with the largest integers
    torch.set_num_threads(1)  # the other processors are the background's
    yield host
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)
    host.reset()


def pytest_configure(config):
    config.addinivalue_line("markers", "large: takes a second or more, and is left out where only a part of tests runs")


def pytest_collection_modifyitems(config, items):
    """With REIDOPS_HOST_PART=n, keeps n of the parameter sets of every test (of every operator, where that is the
    parameter `name`), and no large ones."""
    part = int(os.environ.get("REIDOPS_HOST_PART", 0))
    here = [item for item in items if part and item.path.parent == build.HERE]
    by_function = {}
    for item in here:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        by_function.setdefault((item.path, item.originalname, parameters.get("name")), []).append(item)
    left_out = {item for item in here if item.get_closest_marker("large")}
    for same in by_function.values():
        kept = {round(i * (len(same) - 1) / max(part - 1, 1)) for i in range(part)}
        left_out |= {item for i, item in enumerate(same) if i not in kept}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish(session):
    flavours = [item.callspec.params["flavour"] for item in session.items if background.asked_for(item)]
    if flavours and not session.config.option.collectonly and build.compiler() is not None:
        background.start(flavours)


def pytest_unconfigure():
    background.stop()

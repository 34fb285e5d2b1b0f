"""Fixtures that every room's tests share."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request):
    """Each backend of this machine in turn; `pytest -k cuda` takes one."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def same_processor():
    """What a training run sets for its process (threads, numbers below 1e-38 taken as 0) does not outlive its test."""
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture
def data_folder():
    """The folder of real data, from the environment variable REIDOPS_DATA."""
    if not os.environ.get("REIDOPS_DATA"):
        pytest.skip("the environment variable REIDOPS_DATA names no folder of real data")
    return Path(os.environ["REIDOPS_DATA"])

"""Every operator of csrc/cuda gives the same bits whatever order its blocks, warps and lanes run in."""

from functools import cache

import pytest
import torch

from tests.reidops import test_cuda


@cache
def arguments(host):
    return test_cuda.arguments("cpu", host.ops, scale=1)


@pytest.mark.parametrize("name", test_cuda.NAMES)
def test_any_order_gives_the_same_bits(name, host):
    if host.flavour != "plain":
        pytest.skip("the order is the same in every flavour")
    operator = getattr(host.ops, name.partition(" ")[0])
    host.limits(multiprocessors=1)
    first = operator(*arguments(host)[name])
    host.seed(1)
    second = operator(*arguments(host)[name])
    torch.testing.assert_close(second, first, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", test_cuda.NAMES)
def test_a_block_can_do_the_work_of_many(name, host):
    """With two blocks at most, every kernel's blocks come back to shared memory that they have used before."""
    operator = getattr(host.ops, name.partition(" ")[0])
    host.limits(multiprocessors=1, max_blocks=2)
    actual = operator(*arguments(host)[name])
    if host.flavour == "plain":
        host.reset()
        host.limits(multiprocessors=1)
        torch.testing.assert_close(actual, operator(*arguments(host)[name]), rtol=0, atol=0, equal_nan=True)

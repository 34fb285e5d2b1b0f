"""batch_hard from features as csrc/cuda computes it, in one kernel and in tiles, against the float64 reference."""

import pytest
import torch

from reidops import reference
from tests.reidops.inputs import integers, random
from tests.tolerances import assert_relative

FLOATS = (torch.float32, torch.float64)


def assert_mined(host, features, labels, precision="highest"):
    mined = host.ops.batch_hard(features, labels, precision)
    expected = reference.batch_hard(features, labels)
    for actual, wanted in zip(mined[:2], expected[:2], strict=True):
        assert_relative(actual, wanted)
    for actual, wanted in zip(mined[2:], expected[2:], strict=True):
        assert torch.equal(actual, wanted)
    return mined


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("batch, width, high", [(2, 1, 2), (8, 6, 3), (33, 40, 5), (70, 9, 70)])
def test_small_batches(batch, width, high, dtype, host):
    labels = integers(batch, high=high, seed=1)
    labels[0], labels[1] = -5, 1 << 40
    before = host.launches
    assert_mined(host, random(batch, width, dtype=dtype), labels)
    assert host.launches == before + 1


@pytest.mark.parametrize("dtype", FLOATS)
def test_ties_take_the_lowest_index(dtype, host):
    assert_mined(host, integers(60, 4, high=3, dtype=dtype), integers(60, high=4, seed=1))


@pytest.mark.large
@pytest.mark.parametrize("kind", ["random", "ties", "near"])
def test_large_batches(kind, host):
    """800 x 100 float32 values, read by 800 blocks, are more than 192 MB."""
    host.limits(multiprocessors=1)
    features = integers(800, 100, high=2, dtype=torch.float32) if kind == "ties" else random(800, 100)
    if kind == "near":
        features[400:] = features[:400] * (1 + 1e-4 * random(400, 100, seed=2))
    before = host.launches
    assert_mined(host, features, integers(800, high=80, seed=1))
    assert host.launches > before + 5


@pytest.mark.large
def test_large_batches_in_few_blocks(host):
    host.limits(multiprocessors=1, max_blocks=2)
    assert_mined(host, random(800, 100), integers(800, high=80, seed=1))


def test_an_anchor_without_a_negative(host):
    for batch, width in ((3, 4), (800, 100)):
        mined = host.ops.batch_hard(random(batch, width), torch.zeros(batch, dtype=torch.int64), "highest")
        assert mined[1].isnan().all() and torch.equal(mined[3], torch.arange(batch))


def test_nan_is_never_chosen(host):
    features = random(20, 5)
    features[3] = float("nan")
    _, _, positive, negative = host.ops.batch_hard(features, torch.arange(20) % 4, "highest")
    others = torch.arange(20) != 3
    assert (positive[others] != 3).all() and (negative[others] != 3).all()
    assert positive[3] == 3 and negative[3] == 3

"""k_reciprocal and its forms as csrc/cuda computes them, against the float64 reference."""

import pytest
import torch

from reidops import reference
from tests.reidops.inputs import clustered, integers
from tests.tolerances import K_RECIPROCAL, assert_k_reciprocal

FLOATS = (torch.float32, torch.float64)
VARIANTS = ("zhong2017", "torchreid", "jaccard")


def sets(count, queries, dtype, stripes=False):
    images = clustered(count, *((4, 6) if stripes else (6,)), clusters=max(2, count // 8), dtype=dtype)
    return images[:queries], images[queries:]


def settings(k1=20, k2=6, lambda_value=0.3, variant="zhong2017"):
    return {"k1": k1, "k2": k2, "lambda_value": lambda_value, "variant": variant}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("count, queries, k1, k2", [(2, 1, 1, 1), (40, 11, 5, 3), (150, 40, 20, 6), (300, 290, 7, 1)])
def test_features(count, queries, k1, k2, variant, dtype, host):
    host.limits(multiprocessors=1)  # tiles of 256 x 256
    query, gallery = sets(count, queries, dtype)
    chosen = settings(k1, k2, variant=variant)
    actual = host.ops.k_reciprocal(query, gallery, None, None, *chosen.values(), "highest")
    expected = reference.k_reciprocal(query, gallery, **chosen)
    assert_k_reciprocal(actual, expected)
    topk = min(9, count - queries)
    best = host.ops.k_reciprocal_topk(query, gallery, None, None, *chosen.values(), topk, "highest")
    nearest = actual.sort(dim=1, stable=True)
    assert torch.equal(best[1], nearest.indices[:, :topk])
    assert torch.equal(best[0], nearest.values[:, :topk])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("both", [False, True])
def test_local_features(both, dtype, host):
    host.limits(multiprocessors=1)
    local = sets(90, 30, dtype, stripes=True)
    plain = sets(90, 30, dtype) if both else (None, None)
    actual = host.ops.k_reciprocal(*plain, *local, *settings(8, 4).values(), "highest")
    expected = reference.k_reciprocal(*plain, query_local=local[0], gallery_local=local[1], **settings(8, 4))
    assert_k_reciprocal(actual, expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_given_distances(variant, dtype, host):
    query, gallery = sets(120, 40, dtype)
    matrices = [
        reference.euclidean_distance(a, b, squared=True).to(dtype)
        for a, b in ((query, gallery), (query, query), (gallery, gallery))
    ]
    matrices[2][3, 5] *= 0.5  # need not be symmetric
    chosen = settings(10, 4, variant=variant)
    actual = host.ops.k_reciprocal_from_distance(*matrices, *chosen.values())
    assert_k_reciprocal(actual, reference.k_reciprocal_from_distance(*matrices, **chosen))


@pytest.mark.large
def test_all_of_a_long_gallery_is_wanted(host):
    """More than the lists hold: whole rows are sorted."""
    images = integers(1100, 2, high=30, dtype=torch.float64)
    query, gallery = images[:20], images[20:]
    chosen = settings(3, 2)
    expected = reference.k_reciprocal(query, gallery, **chosen)
    distance, index = host.ops.k_reciprocal_topk(query, gallery, None, None, *chosen.values(), 1080, "highest")
    torch.testing.assert_close(distance, expected.sort(dim=1).values, rtol=0, atol=K_RECIPROCAL[torch.float64])
    assert torch.equal(index.sort(dim=1).values, torch.arange(1080).expand(20, 1080))


@pytest.mark.parametrize("precision, tolerance", [("high", 2e-2), ("medium", 1e-1)])
def test_coarser_products(precision, tolerance, host):
    query, gallery = sets(150, 40, torch.float32)
    actual = host.ops.k_reciprocal(query, gallery, None, None, *settings(10, 4).values(), precision)
    difference = (actual - reference.k_reciprocal(query, gallery, **settings(10, 4))).abs()
    assert difference.median() < tolerance / 10 and difference.mean() < tolerance


def test_two_runs_are_bit_equal(host):
    query, gallery = sets(200, 50, torch.float32)
    first = host.ops.k_reciprocal(query, gallery, None, None, *settings().values(), "highest")
    host.seed(7)
    assert torch.equal(first, host.ops.k_reciprocal(query, gallery, None, None, *settings().values(), "highest"))

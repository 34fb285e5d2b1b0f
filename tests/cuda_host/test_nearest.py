"""knn as csrc/cuda computes it, against the float64 reference."""

import pytest
import torch

from reidops import reference
from tests.reidops.inputs import integers, random
from tests.reidops.test_neighbors import assert_neighbors

FLOATS = (torch.float32, torch.float64)


def knn(host, query, gallery, k, precision="highest"):
    from reidops import Neighbors

    return Neighbors(*host.ops.knn(query, gallery, k, precision))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("num_query, num_gallery, width, k", [
    (1, 1, 1, 1), (3, 10, 3, 4), (17, 33, 28, 33), (5, 600, 5, 20), (300, 290, 6, 101),
])  # fmt: skip
def test_knn(num_query, num_gallery, width, k, dtype, host):
    host.limits(multiprocessors=1)  # tiles of 256 x 256
    query = random(num_query, width, dtype=dtype) / width**0.5
    gallery = random(num_gallery, width, seed=1, dtype=dtype) / width**0.5
    assert_neighbors(knn(host, query, gallery, k), query, gallery, k)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count, k", [(2, 1), (255, 21), (256, 3), (257, 257), (600, 40)])
def test_points_among_each_other(count, k, dtype, host):
    """Each pair is made once and seen from both sides."""
    host.limits(multiprocessors=1)
    points = random(count, 6, dtype=dtype)
    result = knn(host, points, points, k)
    assert_neighbors(result, points, points, k)
    assert torch.equal(result.index[:, 0], torch.arange(count))
    assert torch.equal(result.distance[:, 0], torch.zeros(count, dtype=dtype))
    apart = knn(host, points, points.clone(), k)
    assert torch.equal(apart.index, result.index)


@pytest.mark.large
@pytest.mark.parametrize("multiprocessors", [3, 2])
def test_tiles_of_several_turns(multiprocessors, host):
    """Tiles of 512 and 768 rows: more than a block turns over at once."""
    host.limits(multiprocessors=multiprocessors)
    points = integers(900, 3, high=6, dtype=torch.float32)
    actual, expected = knn(host, points, points, 9), reference.knn(points, points, 9)
    assert torch.equal(actual.index, expected.index)
    assert torch.equal(actual.distance.double(), expected.distance)


@pytest.mark.large
@pytest.mark.parametrize("k", [1, 64, 700])
@pytest.mark.parametrize("high", [1, 3])
def test_ties_take_the_lowest_index(high, k, host):
    host.limits(multiprocessors=1)
    gallery = integers(700, 5, high=high, seed=1, dtype=torch.float32)
    for query in (integers(30, 5, high=high, dtype=torch.float32), gallery):
        actual, expected = knn(host, query, gallery, k), reference.knn(query, gallery, k)
        assert torch.equal(actual.index, expected.index)
        assert torch.equal(actual.distance.double(), expected.distance)


@pytest.mark.large
@pytest.mark.parametrize("dtype, k", [(torch.float32, 1024), (torch.float32, 1025), (torch.float64, 1040)])
def test_lists_as_long_as_the_gallery(dtype, k, host):
    gallery = integers(1040, 3, high=4, dtype=dtype)
    actual, expected = knn(host, gallery[:40], gallery, k), reference.knn(gallery[:40], gallery, k)
    assert torch.equal(actual.index, expected.index)
    both = knn(host, gallery[:1030], gallery[:1030].clone(), min(k, 1030))
    assert torch.equal(both.index, reference.knn(gallery[:1030], gallery[:1030], min(k, 1030)).index)


def test_distances_that_are_not_numbers_are_nobodys_neighbours(host):
    query, gallery = random(4, 3), random(40, 3, seed=1)
    gallery[7] = float("nan")
    query[2] = float("nan")
    result = knn(host, query, gallery, 40)
    assert torch.equal(result.index[2], torch.zeros(40, dtype=torch.int64)) and result.distance[2].isinf().all()
    assert 7 not in result.index[0, :39] and result.distance[0, 39].isinf()


@pytest.mark.parametrize("precision, tolerance", [("high", 5e-3), ("medium", 5e-2)])
def test_coarser_products(precision, tolerance, host):
    query, gallery = random(9, 64), random(200, 64, seed=1)
    distance = knn(host, query, gallery, 5, precision).distance
    torch.testing.assert_close(distance.double(), reference.knn(query, gallery, 5).distance, rtol=tolerance, atol=0)

"""knn against the float64 reference."""

import numpy as np
import pytest
import torch

import reidops
from reidops import reference
from tests.reidops.inputs import DTYPES, LAYOUTS, evaluated, integers, laid_out, random
from tests.tolerances import RELATIVE, assert_relative


def assert_neighbors(actual, query, gallery, k):
    """Right distances, each of them the distance of its index, no index twice, ties by the lowest index.

    Where two distances differ by less than the tolerance, either order is right.
    """
    full = reference.euclidean_distance(query, gallery, squared=True)
    assert isinstance(actual, reidops.Neighbors)
    assert actual.index.dtype == torch.int64 and actual.index.shape == (len(query), k)
    index = actual.index.cpu()
    assert_relative(actual.distance, reference.knn(query, gallery, k).distance, evaluated(query.dtype))
    assert_relative(actual.distance, full.gather(1, index), evaluated(query.dtype))
    assert all(len(set(row)) == k for row in index.tolist())
    assert (actual.distance[:, 1:] >= actual.distance[:, :-1]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_query, num_gallery, width, k", [
    (1, 1, 1, 1), (3, 10, 3, 4), (17, 33, 128, 33), (5, 600, 15, 20), (130, 1100, 17, 100), (2, 40, 2048, 7),
])  # fmt: skip
def test_knn(num_query, num_gallery, width, k, dtype, device):
    query = random(num_query, width, dtype=dtype, device=device) / width**0.5
    gallery = random(num_gallery, width, seed=1, dtype=dtype, device=device) / width**0.5
    assert_neighbors(reidops.knn(query, gallery, k), query, gallery, k)


@pytest.mark.parametrize("width", range(1, 34))
def test_knn_of_every_small_width(width, device):
    query, gallery = random(6, width, device=device), random(40, width, seed=1, device=device)
    assert_neighbors(reidops.knn(query, gallery, 5), query, gallery, 5)


@pytest.mark.parametrize("k", [1, 2, 19, 64, 700])
@pytest.mark.parametrize("high", [1, 2, 3])
def test_ties_take_the_lowest_index(high, k, device):
    query = integers(30, 5, high=high, dtype=torch.float32, device=device)
    gallery = integers(700, 5, high=high, seed=1, dtype=torch.float32, device=device)
    actual, expected = reidops.knn(query, gallery, k), reference.knn(query, gallery, k)
    assert torch.equal(actual.index.cpu(), expected.index)
    assert torch.equal(actual.distance.cpu().double(), expected.distance)


@pytest.mark.parametrize("width", [3, 64, 257])
def test_duplicated_gallery_rows_tie(width, device):
    query, gallery = random(9, width, device=device), random(50, width, seed=1, device=device).repeat(7, 1)
    actual, expected = reidops.knn(query, gallery, 30), reference.knn(query, gallery, 30)
    assert torch.equal(actual.index.cpu(), expected.index)


def test_nearly_equal_rows(device):
    query = random(8, 128, dtype=torch.float64)
    gallery = query.repeat(5, 1) * (1 + 1e-4 * random(40, 128, seed=1, dtype=torch.float64))
    query, gallery = query.float().to(device), gallery.float().to(device)
    assert_neighbors(reidops.knn(query, gallery, 10), query, gallery, 10)


def test_rows_far_from_the_origin(device):
    query, gallery = (1e4 + random(n, 64, seed=n, device=device) for n in (10, 300))
    assert_neighbors(reidops.knn(query, gallery, 12), query, gallery, 12)


def test_a_row_finds_itself_first(device):
    features = random(300, 33, device=device)
    result = reidops.knn(features, features, 3)
    assert torch.equal(result.index[:, 0].cpu(), torch.arange(300))
    assert torch.equal(result.distance[:, 0], torch.zeros(300, device=device))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("count, width, k", [(1, 1, 1), (5, 3, 5), (257, 7, 40), (1300, 9, 3), (520, 2, 520)])
def test_a_set_with_itself(count, width, k, dtype, device):
    """Each pair is made once; the same neighbours as of two sets that are equal."""
    points = random(count, width, dtype=dtype, device=device)
    itself, clone = reidops.knn(points, points, k), reidops.knn(points, points.clone(), k)
    assert_relative(itself.distance, reference.knn(points, points, k).distance)
    torch.testing.assert_close(itself.distance, clone.distance)
    assert (itself.index != clone.index).double().mean() < 0.01  # nearly equal distances


@pytest.mark.parametrize("k", [1, 20, 700])
@pytest.mark.parametrize("high", [1, 2, 3])
def test_ties_of_a_set_with_itself_take_the_lowest_index(high, k, device):
    points = integers(1100, 4, high=high, dtype=torch.float32, device=device)
    result, expected = reidops.knn(points, points, k), reference.knn(points, points, k)
    assert torch.equal(result.index.cpu(), expected.index.cpu())


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("width", [40, 256])
def test_equal_rows_of_a_set_with_itself_tie(width, precision, device):
    """Though one twin comes before a point and one after it, in blocks of rows that are made apart."""
    if device.type != "cpu":
        pytest.skip("of cuBLAS it is not asked from which side a pair is made")
    half = random(600, width, device=device)
    points = torch.cat([half, half])
    for gallery in (points, points.clone()):
        distance, index = reidops.knn(points, gallery, 60, precision=precision)
        tied = distance[:, 1:] == distance[:, :-1]
        assert (index[:, 1:] > index[:, :-1])[tied].all()
        seen = torch.full((1200, 1200), torch.nan).scatter_(1, index, distance)
        first, second = seen[:, :600], seen[:, 600:]
        both = ~(first.isnan() | second.isnan())
        assert torch.equal(first[both], second[both])
        assert (both.sum(1) >= 29).all() and (first.isnan() <= second.isnan()).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_a_set_with_itself(layout, device):
    points = laid_out(random(30, 40, device=device), layout)
    assert_relative(reidops.knn(points, points, 3).distance, reference.knn(points, points, 3).distance)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout, device):
    query = laid_out(random(9, 20, device=device), layout)
    gallery = laid_out(random(50, 20, seed=1, device=device), layout)
    assert_neighbors(reidops.knn(query, gallery, 8), query, gallery, 8)


@pytest.mark.parametrize("precision", [None, "highest", "high", "medium"])
def test_precision(precision, device):
    query, gallery = random(9, 64, device=device), random(200, 64, seed=1, device=device)
    result = reidops.knn(query, gallery, 5, precision=precision)
    loosest = {"high": 1e-3, "medium": 1e-2}.get(precision, RELATIVE[torch.float32])  # TF32 and bfloat16 products
    expected = reference.knn(query, gallery, 5).distance
    torch.testing.assert_close(result.distance.cpu().double(), expected, rtol=loosest, atol=0)


def test_numpy_in_numpy_out():
    query, gallery = random(4, 8).numpy(), random(20, 8, seed=1).numpy()
    result = reidops.knn(query, gallery[::-1], 3)
    assert isinstance(result.distance, np.ndarray) and result.distance.dtype == np.float32
    assert isinstance(result.index, np.ndarray) and result.index.dtype == np.int64
    expected = reference.knn(query, gallery[::-1], 3)
    assert result.index.tolist() == expected.index.tolist()


def test_not_differentiable(device):
    query = random(4, 8, device=device).requires_grad_()
    assert not reidops.knn(query, query, 2).distance.requires_grad

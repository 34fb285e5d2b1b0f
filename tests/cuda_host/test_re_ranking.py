"""What follows the search for the nearest in k-reciprocal re-ranking, on given distances, against the reference."""

import numpy as np
import pytest
import torch

from reidops import reference
from tests.reidops.inputs import clustered, integers, random
from tests.tolerances import K_RECIPROCAL, assert_k_reciprocal

FLOATS = (torch.float32, torch.float64)
VARIANTS = ("zhong2017", "torchreid", "jaccard")


def split(distance, queries):
    return [
        distance[:queries, queries:].contiguous(),
        distance[:queries, :queries].contiguous(),
        distance[queries:, queries:].contiguous(),
    ]


def between(features, dtype):
    return reference.euclidean_distance(features, features, squared=True).to(dtype)


def assert_re_ranked(host, distance, queries, k1, k2, lambda_value=0.3, variant="zhong2017"):
    matrices = split(distance, queries)
    actual = host.ops.k_reciprocal_from_distance(*matrices, k1, k2, lambda_value, variant)
    expected = reference.k_reciprocal_from_distance(*matrices, k1=k1, k2=k2, lambda_value=lambda_value, variant=variant)
    assert_k_reciprocal(actual, expected)
    return actual


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "total, queries, k1, k2",
    [
        (2, 1, 1, 1),
        (2, 1, 1, 2),
        (3, 2, 2, 3),
        (33, 32, 1, 1),
        (65, 1, 3, 1),
        (97, 31, 20, 6),
        (70, 20, 32, 3),
        (90, 45, 71, 40),
    ],
)
def test_random_distances(total, queries, k1, k2, variant, dtype, host):
    assert_re_ranked(host, random(total, total, dtype=dtype).abs(), queries, k1, k2, variant=variant)


@pytest.mark.parametrize("variant, k1", [("zhong2017", 49), ("torchreid", 49), ("jaccard", 50)])
@pytest.mark.parametrize("k2", [1, 50])
def test_sets_of_all_images(variant, k1, k2, host):
    assert_re_ranked(host, between(clustered(50, 6, clusters=5), torch.float64), 12, k1, k2, variant=variant)


@pytest.mark.parametrize("lambda_value", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_images_that_gather(variant, lambda_value, host):
    """Sets join one another, so that members come whose distances no list has."""
    for spread in (0.3, 1.0):
        distance = between(clustered(130, 12, clusters=9, spread=spread), torch.float64)
        assert_re_ranked(host, distance, 40, 14, 5, lambda_value, variant)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k1, k2", [(1, 1), (4, 3), (20, 6)])
@pytest.mark.parametrize("width, high", [(4, 2), (3, 1), (2, 5)])
def test_ties_and_duplicates(width, high, k1, k2, dtype, host):
    """Of many equal images an image is not even in its own list, and some sets are empty."""
    features = integers(80, width, high=high, dtype=torch.float64)
    assert_re_ranked(host, between(features, dtype), 25, k1, k2)


@pytest.mark.large
def test_rows_longer_than_a_block(host):
    """Rows and lists of more than 256 entries, and neighbours of which many are averaged."""
    distance = between(random(290, 3, dtype=torch.float64), torch.float64)
    assert_re_ranked(host, distance, 6, 5, 290)


@pytest.mark.large
def test_a_gallery_of_several_segments(host):
    position = random(4103, 1, dtype=torch.float64)
    assert_re_ranked(host, between(position, torch.float64), 3, 3, 2)


def with_gaps(distance, num_query, k1, k2, lambda_value):
    """The reference's steps, where a distance that is not a number leaves a gap that the point itself fills."""
    order = np.argsort(distance, axis=1, kind="stable")  # NaN last
    points = np.arange(len(order))[:, None]
    order = np.where(np.isnan(np.take_along_axis(distance, order, axis=1)), points, order)
    half_size = int(np.around(k1 / 2)) + 1
    members = reference._expanded_sets(
        reference._reciprocal_sets(order, k1 + 1), reference._reciprocal_sets(order, half_size)
    )
    relative = distance / np.nanmax(distance, axis=1, keepdims=True)
    encoding = np.where(members, np.exp(-relative), 0.0)
    encoding /= np.maximum(encoding.sum(axis=1, keepdims=True), 1e-300)
    encoding = np.stack([encoding[nearest].mean(axis=0) for nearest in order[:, :k2]])
    shared = np.stack([np.minimum(row, encoding[num_query:]).sum(axis=1) for row in encoding[:num_query]])
    jaccard = 1 - shared / (2 - shared)
    return (1 - lambda_value) * jaccard + lambda_value * relative[:num_query, num_query:]


@pytest.mark.parametrize("k1, k2", [(4, 2), (25, 5), (39, 40)])
def test_gaps(k1, k2, host):
    """No distance between images of two kinds: lists of 40 have 10 to 30 gaps, and no set has a pair of two kinds."""
    distance = random(40, 40, dtype=torch.float64).abs()
    kind = integers(40, high=3, seed=1) == 0
    distance[kind[:, None] != kind] = float("nan")
    actual = host.ops.k_reciprocal_from_distance(*split(distance, 15), k1, k2, 0.3, "zhong2017")
    distance[15:, :15] = distance[:15, 15:].T
    expected = torch.from_numpy(with_gaps(distance.numpy(), 15, k1, k2, 0.3))
    assert torch.equal(actual.isnan(), distance[:15, 15:].isnan())
    tolerance = K_RECIPROCAL[torch.float64]
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("k1, k2", [(12, 1), (12, 5), (80, 20)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_little_memory(dtype, k1, k2, host):
    """Rows are counted before they are made, and few warps take all points in turn: the same bits."""
    distance = between(clustered(110, 9, clusters=7), dtype)
    expected = assert_re_ranked(host, distance, 30, k1, k2)
    launches = host.launches
    host.ops.k_reciprocal_from_distance(*split(distance, 30), k1, k2, 0.3, "zhong2017")
    launches = host.launches - launches
    before = host.launches
    host.limits(scratch_bytes=64, max_blocks=3)
    assert torch.equal(assert_re_ranked(host, distance, 30, k1, k2), expected)
    assert host.launches - before == launches + (2 if k2 > 1 else 1)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_order_of_threads_gives_the_same_bits(dtype, host):
    matrices = split(between(clustered(120, 8, clusters=8), dtype), 35)
    results = []
    for seed in range(4):
        host.seed(seed)
        results.append(host.ops.k_reciprocal_from_distance(*matrices, 10, 4, 0.3, "zhong2017"))
    assert all(torch.equal(results[0], result) for result in results)

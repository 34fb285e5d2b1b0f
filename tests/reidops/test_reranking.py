"""k_reciprocal and k_reciprocal_from_distance against the float64 reference and the published float16 program."""

import numpy as np
import pytest
import torch

import reidops
from reidops import reference
from tests.reidops.inputs import DTYPES, LAYOUTS, clustered, evaluated, integers, laid_out, random
from tests.reidops.published import k_reciprocal_float16
from tests.tolerances import PUBLISHED_K_RECIPROCAL, assert_k_reciprocal

VARIANTS = ("zhong2017", "torchreid", "jaccard")
SETTINGS = [(20, 6, 0.3), (20, 1, 0.3), (1, 1, 0.5), (2, 3, 0.0), (5, 2, 1.0), (9, 9, 0.1), (31, 12, 0.7)]


def away_from_ties(draw, distances, sizes, margin=2e-5):
    """The first draw(seed) in whose distances no row's n-th and next nearest are nearly equal, n in sizes.

    Which of two nearly equal neighbours belongs to a set is not a question of accuracy, so tests that compare values
    do not ask it.
    """
    for seed in range(50):
        images = draw(seed)
        ordered = distances(images).sort(dim=1).values
        gaps = [(ordered[:, n] - ordered[:, n - 1]) / ordered[:, n] for n in sizes if n < ordered.shape[1]]
        if min(gap.min().item() for gap in gaps) > margin:
            return images
    raise AssertionError("every draw has near ties")


def set_sizes(k1, k2):
    return {k1, k1 + 1, round(k1 / 2) or 1, round(k1 / 2) + 1, k2}


def features_away_from_ties(count, width, k1, k2, *, more_sizes=(), dtype=torch.float32, clusters=14):
    return away_from_ties(
        lambda seed: clustered(count, width, clusters=clusters, seed=10 * seed, dtype=dtype),
        lambda features: reference.euclidean_distance(features, features, squared=True),
        set_sizes(k1, k2).union(more_sizes),
    )


def split_distances(distance, num_query):
    return distance[:num_query, num_query:], distance[:num_query, :num_query], distance[num_query:, num_query:]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("k1, k2, lambda_value", SETTINGS)
def test_k_reciprocal(k1, k2, lambda_value, variant, device):
    features = features_away_from_ties(120, 16, k1, k2)
    query, gallery = features[:33].to(device), features[33:].to(device)
    options = {"k1": k1, "k2": k2, "lambda_value": lambda_value, "variant": variant}
    result = reidops.k_reciprocal(query, gallery, **options)
    assert result.device == query.device
    assert_k_reciprocal(result, reference.k_reciprocal(query, gallery, **options))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type(dtype, device):
    features = features_away_from_ties(90, 33, 7, 3, dtype=dtype)
    query, gallery = features[:20].to(device), features[20:].to(device)
    result = reidops.k_reciprocal(query, gallery, k1=7, k2=3)
    assert result.dtype == evaluated(dtype)
    assert_k_reciprocal(result, reference.k_reciprocal(query, gallery, k1=7, k2=3))


@pytest.mark.parametrize("num_query, num_gallery", [(1, 30), (30, 1), (1, 1), (2, 3), (65, 200)])
def test_any_number_of_images(num_query, num_gallery, device):
    k1 = min(10, num_query + num_gallery - 1)
    k2 = min(4, num_query + num_gallery)
    features = features_away_from_ties(num_query + num_gallery, 24, k1, k2)
    query, gallery = features[:num_query].to(device), features[num_query:].to(device)
    for variant in VARIANTS:
        result = reidops.k_reciprocal(query, gallery, k1=k1, k2=k2, variant=variant)
        assert_k_reciprocal(result, reference.k_reciprocal(query, gallery, k1=k1, k2=k2, variant=variant))


@pytest.mark.parametrize("variant, largest", [("zhong2017", 39), ("torchreid", 39), ("jaccard", 40)])
def test_sets_of_all_images(variant, largest, device):
    features = features_away_from_ties(40, 8, 39, 40, more_sizes={20, 21}).to(device)
    options = {"k1": largest, "k2": 40, "variant": variant}
    result = reidops.k_reciprocal(features[:10], features[10:], **options)
    assert_k_reciprocal(result, reference.k_reciprocal(features[:10], features[10:], **options))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("use_global", [False, True])
def test_local_features(use_global, variant, device):
    def draw(seed):
        return clustered(100, 12, clusters=12, seed=seed), clustered(100, 5, 9, clusters=12, seed=seed)

    def distances(images):
        features, stripes = images
        local = reference.dmli_matrix(stripes, stripes)
        return local + reference.euclidean_distance(features, features, squared=True) if use_global else local

    features, stripes = (values.to(device) for values in away_from_ties(draw, distances, set_sizes(8, 4)))
    query, gallery = (features[:30], features[30:]) if use_global else (None, None)
    options = {"query_local": stripes[:30], "gallery_local": stripes[30:], "k1": 8, "k2": 4, "variant": variant}
    result = reidops.k_reciprocal(query, gallery, **options)
    assert_k_reciprocal(result, reference.k_reciprocal(query, gallery, **options))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_from_distance(dtype, variant, device):
    features = features_away_from_ties(110, 20, 11, 5)
    distance = reference.euclidean_distance(features, features, squared=True).to(dtype).to(device)
    given, options = split_distances(distance, 25), {"k1": 11, "k2": 5, "variant": variant}
    result = reidops.k_reciprocal_from_distance(*given, **options)
    assert result.dtype == dtype
    assert_k_reciprocal(result, reference.k_reciprocal_from_distance(*given, **options))


@pytest.mark.parametrize("variant", VARIANTS)
def test_from_a_distance_that_is_not_symmetric(variant, device):
    distance = random(60, 60, dtype=torch.float64, device=device).abs()
    given, options = split_distances(distance, 20), {"k1": 9, "k2": 4, "variant": variant}
    result = reidops.k_reciprocal_from_distance(*given, **options)
    assert_k_reciprocal(result, reference.k_reciprocal_from_distance(*given, **options))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("k1, k2", [(1, 1), (4, 3), (20, 6)])
@pytest.mark.parametrize("width, high", [(4, 2), (5, 3), (3, 1)])
def test_ties_take_the_lowest_index(width, high, k1, k2, variant, device):
    features = integers(80, width, high=high, dtype=torch.float32, device=device)
    options = {"k1": k1, "k2": k2, "variant": variant}
    result = reidops.k_reciprocal(features[:25], features[25:], **options)
    assert result.isfinite().all()
    assert_k_reciprocal(result, reference.k_reciprocal(features[:25], features[25:], **options))
    distance = reference.euclidean_distance(features, features, squared=True).float().to(device)
    result = reidops.k_reciprocal_from_distance(*split_distances(distance, 25), **options)
    assert_k_reciprocal(result, reference.k_reciprocal_from_distance(*split_distances(distance, 25), **options))


@pytest.mark.parametrize("use_local", [False, True])
def test_duplicated_images_tie(use_local, device):
    features = clustered(25, 19, clusters=6, device=device).repeat(3, 1)
    stripes = clustered(25, 4, 7, clusters=6, device=device).repeat(3, 1, 1)
    local = {"query_local": stripes[:20], "gallery_local": stripes[20:]} if use_local else {}
    result = reidops.k_reciprocal(features[:20], features[20:], **local, k1=7, k2=4)
    assert_k_reciprocal(result, reference.k_reciprocal(features[:20], features[20:], **local, k1=7, k2=4))


def test_features_that_are_not_normalised(device):
    def draw(seed):
        return 30 + 5 * random(90, 16, seed=seed)

    def distances(features):
        return reference.euclidean_distance(features, features, squared=True)

    features = away_from_ties(draw, distances, set_sizes(6, 3)).to(device)
    for variant in VARIANTS:
        result = reidops.k_reciprocal(features[:30], features[30:], k1=6, k2=3, variant=variant)
        assert_k_reciprocal(result, reference.k_reciprocal(features[:30], features[30:], k1=6, k2=3, variant=variant))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout, device):
    features = features_away_from_ties(70, 16, 6, 3).to(device)
    query, gallery = laid_out(features[:20], layout), laid_out(features[20:], layout)
    result = reidops.k_reciprocal(query, gallery, k1=6, k2=3)
    assert_k_reciprocal(result, reference.k_reciprocal(query, gallery, k1=6, k2=3))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("topk", [1, 10, 50])
def test_topk_is_the_head_of_the_sorted_result(topk, variant, device):
    features = features_away_from_ties(80, 16, 8, 3).to(device)
    query, gallery = features[:30], features[30:]
    options = {"k1": 8, "k2": 3, "variant": variant}
    full = reidops.k_reciprocal(query, gallery, **options).cpu()
    result = reidops.k_reciprocal(query, gallery, **options, topk=topk)
    assert isinstance(result, reidops.Neighbors)
    assert result.index.dtype == torch.int64 and result.index.shape == (30, topk)
    expected = reference.k_reciprocal(query, gallery, **options, topk=topk)
    assert_k_reciprocal(result.distance, expected.distance)
    assert_k_reciprocal(full.gather(1, result.index.cpu()), expected.distance)
    assert all(len(set(row)) == topk for row in result.index.tolist())


@pytest.mark.parametrize("lambda_value", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("topk", [1, 7, 100, 460])
@pytest.mark.parametrize("kind", ["clusters", "noise", "ties", "equal", "stripes"])
def test_topk_is_the_sorted_result(kind, topk, lambda_value, device):
    """Whether the best are listed, share a neighbour, or tie with what was left out.

    To the last bit on the CPU. On CUDA topk multiplies queries with the gallery again, in other shapes, for which
    cuBLAS adds in another order: to the last bit only where distances have no say or products are exact.
    """
    features = {
        "clusters": clustered(500, 24, clusters=60, device=device),
        "noise": random(500, 24, device=device),
        "ties": integers(500, 3, high=3, dtype=torch.float32, device=device),
        "equal": torch.ones(500, 5, device=device),
        "stripes": clustered(500, 3, 8, clusters=60, device=device),
    }[kind]
    query, gallery = features[:40], features[40:]
    options = {"k1": 12, "k2": 4, "lambda_value": lambda_value}
    if kind == "stripes":
        query, gallery, options = None, None, options | {"query_local": features[:40], "gallery_local": features[40:]}
    full = reidops.k_reciprocal(query, gallery, **options)
    best = reidops.k_reciprocal(query, gallery, **options, topk=topk)
    distance, index = full.sort(dim=1, stable=True)
    if device.type == "cpu" or lambda_value == 0 or kind in ("ties", "equal"):
        assert torch.equal(best.index, index[:, :topk])
        assert torch.equal(best.distance, distance[:, :topk])
    else:
        assert_k_reciprocal(best.distance, distance[:, :topk].cpu().double())
        assert_in_order_and_of(full, best)


def assert_in_order_and_of(full, best):
    """By `best`'s own distances, equal ones by the lowest index; each image once, as far as `full` has it."""
    step, index_step = best.distance.diff(dim=1), best.index.diff(dim=1)
    assert ((step > 0) | ((step == 0) & (index_step > 0))).all()
    assert all(len(set(row)) == len(row) for row in best.index.tolist())
    assert_k_reciprocal(best.distance, full.gather(1, best.index).cpu().double())


@pytest.mark.parametrize("variant", VARIANTS)
def test_topk_ties_take_the_lowest_index(variant, device):
    features = integers(60, 3, high=2, dtype=torch.float32, device=device)
    options = {"k1": 6, "k2": 2, "variant": variant, "lambda_value": 0.5}
    result = reidops.k_reciprocal(features[:20], features[20:], **options, topk=15)
    full = reidops.k_reciprocal(features[:20], features[20:], **options).cpu().numpy()
    order = np.argsort(full, axis=1, kind="stable")[:, :15]
    assert result.index.tolist() == order.tolist()
    torch.testing.assert_close(result.distance.cpu(), torch.from_numpy(np.take_along_axis(full, order, axis=1)))


@pytest.mark.parametrize("k1, k2, lambda_value", [(20, 6, 0.3), (10, 3, 0.5)])
def test_published_program(k1, k2, lambda_value):
    features = features_away_from_ties(300, 32, k1, k2, clusters=40)
    distance = reference.euclidean_distance(features, features, squared=True)
    published = k_reciprocal_float16(distance.numpy(), 60, k1, k2, lambda_value)
    options = {"k1": k1, "k2": k2, "lambda_value": lambda_value}
    ours = reidops.k_reciprocal(features[:60], features[60:], **options)
    np.testing.assert_allclose(ours, published, rtol=0, atol=PUBLISHED_K_RECIPROCAL)
    ours = reidops.k_reciprocal_from_distance(*split_distances(distance.float(), 60), **options)
    np.testing.assert_allclose(ours, published, rtol=0, atol=PUBLISHED_K_RECIPROCAL)


@pytest.mark.parametrize("precision", [None, "highest", "high", "medium"])
def test_precision(precision, device):
    features = clustered(60, 16, clusters=6, device=device)
    result = reidops.k_reciprocal(features[:20], features[20:], k1=6, k2=3, precision=precision)
    assert result.isfinite().all() and (result > -1e-5).all() and (result < 1 + 1e-5).all()
    if precision in (None, "highest"):
        assert torch.equal(result, reidops.k_reciprocal(features[:20], features[20:], k1=6, k2=3))


def test_numpy_in_numpy_out():
    features = features_away_from_ties(50, 16, 6, 3).numpy()
    result = reidops.k_reciprocal(features[:20], features[20:], k1=6, k2=3)
    assert isinstance(result, np.ndarray) and result.dtype == np.float32
    expected = reference.k_reciprocal(features[:20], features[20:], k1=6, k2=3)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)
    best = reidops.k_reciprocal(features[:20], features[20:], k1=6, k2=3, topk=2)
    assert isinstance(best.distance, np.ndarray) and best.index.dtype == np.int64
    distance = reidops.euclidean_distance(features, features, squared=True)
    given = reidops.k_reciprocal_from_distance(*split_distances(distance, 20), k1=6, k2=3)
    assert isinstance(given, np.ndarray)
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5)


def test_not_differentiable(device):
    features = clustered(30, 8, clusters=4, device=device).requires_grad_()
    assert not reidops.k_reciprocal(features[:10], features[10:], k1=4, k2=2).requires_grad

"""The float64 reference itself, held to other ways of writing the papers' definitions and to worked examples."""

import inspect
import itertools
import math

import numpy as np
import pytest
import torch

import reidops
from reidops import reference
from tests.reidops.inputs import clustered, integers, random
from tests.reidops.published import k_reciprocal_float16
from tests.tolerances import PUBLISHED_K_RECIPROCAL

OPERATORS = [name for name, value in vars(reference).items() if inspect.isfunction(value) and not name.startswith("_")]


def all_paths(m, n):
    """Every monotone path from [0, 0] to [m-1, n-1], as a list of cells."""
    for downs in itertools.combinations(range(m + n - 2), m - 1):
        cells = [(0, 0)]
        for step in range(m + n - 2):
            i, j = cells[-1]
            cells.append((i + 1, j) if step in downs else (i, j + 1))
        yield cells


@pytest.mark.parametrize("name", OPERATORS)
def test_signature_is_the_public_one(name):
    public = inspect.signature(getattr(reidops, name)).parameters
    for argument, parameter in inspect.signature(getattr(reference, name)).parameters.items():
        assert argument in public, f"reidops.{name} has no argument {argument}"
        assert (public[argument].kind, public[argument].default) == (parameter.kind, parameter.default), argument


def test_every_operator_has_a_reference():
    assert set(OPERATORS) == {
        "euclidean_distance", "shortest_path", "shortest_path_indices", "dmli", "dmli_matrix", "batch_hard",
        "batch_hard_from_distance", "knn", "k_reciprocal", "k_reciprocal_from_distance", "rank_metrics",
        "channel_attention",
    }  # fmt: skip


@pytest.mark.parametrize("convert", [lambda t: t, lambda t: t.numpy(), lambda t: t.half(), lambda t: t.numpy()[::-1]])
def test_accepts_tensors_and_arrays_of_any_layout(convert):
    x = convert(random(3, 5))
    result = reference.euclidean_distance(x, x)
    assert isinstance(result, torch.Tensor) and result.dtype == torch.float64
    expected = [[math.dist(a, b) for b in x.tolist()] for a in x.tolist()]
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("m, n", [(1, 1), (1, 4), (4, 1), (3, 3), (4, 5)])
def test_shortest_path_is_the_cheapest_of_all_paths(m, n):
    cost = random(m, n, dtype=torch.float64)
    cheapest = min(all_paths(m, n), key=lambda cells: sum(cost[c] for c in cells))
    assert reference.shortest_path(cost).item() == pytest.approx(sum(cost[c] for c in cheapest).item())
    assert reference.shortest_path_indices(cost).tolist() == [list(c) for c in cheapest]


def test_shortest_path_gradient_follows_one_path_on_ties():
    cost = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    reference.shortest_path(cost).backward()
    assert cost.grad.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert reference.shortest_path_indices(cost).tolist() == [[0, 0], [1, 0], [2, 0], [2, 1], [2, 2], [2, 3]]


def test_dmli_is_the_published_formula():
    x, y = random(6, 4, 3, dtype=torch.float64), random(6, 4, 3, seed=1, dtype=torch.float64)
    pairs = zip(x.tolist(), y.tolist(), strict=True)
    distance = np.array([[[math.dist(a, b) for b in others] for a in own] for own, others in pairs])
    cost = torch.from_numpy((np.exp(distance) - 1) / (np.exp(distance) + 1))
    torch.testing.assert_close(reference.dmli(x, y), reference.shortest_path(cost))
    torch.testing.assert_close(reference.dmli(x, y, aligned=False), torch.stack([c.trace() for c in cost]))
    for aligned in (True, False):
        pairs = reference.dmli_matrix(x, y, aligned=aligned).diagonal()
        torch.testing.assert_close(pairs, reference.dmli(x, y, aligned=aligned))


def test_batch_hard_by_loops():
    features, labels = integers(12, 3, high=3).double(), integers(12, high=4, seed=1).tolist()
    result = reference.batch_hard(features, torch.tensor(labels))
    for anchor, label in enumerate(labels):
        distances = [math.dist(features[anchor].tolist(), row) for row in features.tolist()]
        positives = [i for i, other in enumerate(labels) if other == label]
        negatives = [i for i, other in enumerate(labels) if other != label]
        assert result.positive_index[anchor] == max(positives, key=lambda i: (distances[i], -i))
        assert result.negative_index[anchor] == min(negatives, key=lambda i: (distances[i], i))
        assert result.positive_distance[anchor] == pytest.approx(max(distances[i] for i in positives))
        assert result.negative_distance[anchor] == pytest.approx(min(distances[i] for i in negatives))


def test_knn_takes_the_lowest_index_of_equals():
    result = reference.knn([[0.0, 0.0]], [[1.0, 0.0], [3.0, 4.0], [0.0, 1.0], [0.0, 0.0], [-1.0, 0.0]], 4)
    assert result.index.tolist() == [[3, 0, 2, 4]]
    assert result.distance.tolist() == [[0, 1, 1, 1]]


@pytest.mark.parametrize("k1, k2, lambda_value", [(20, 6, 0.3), (7, 1, 0.0), (3, 2, 0.5)])
def test_k_reciprocal_is_the_published_program(k1, k2, lambda_value):
    features = clustered(160, 24, clusters=20, dtype=torch.float64)
    distance = reference.euclidean_distance(features, features, squared=True)
    published = k_reciprocal_float16(distance.numpy(), 40, k1, k2, lambda_value)
    ours = reference.k_reciprocal(features[:40], features[40:], k1=k1, k2=k2, lambda_value=lambda_value)
    np.testing.assert_allclose(ours, published, rtol=0, atol=PUBLISHED_K_RECIPROCAL)
    given = reference.k_reciprocal_from_distance(
        distance[:40, 40:], distance[:40, :40], distance[40:, 40:], k1=k1, k2=k2, lambda_value=lambda_value
    )
    torch.testing.assert_close(ours, given)


def test_k_reciprocal_variants():
    features = clustered(60, 8, clusters=8, dtype=torch.float64)
    distance = reference.euclidean_distance(features, features, squared=True)
    squared_again = reference.k_reciprocal_from_distance(
        *(values.square() for values in (distance[:20, 20:], distance[:20, :20], distance[20:, 20:])), k1=5
    )
    torch.testing.assert_close(
        reference.k_reciprocal(features[:20], features[20:], k1=5, variant="torchreid"), squared_again
    )

    # "jaccard" by sets and dictionaries
    order = np.argsort(distance.numpy(), axis=1)
    k1, half = 6, 3
    sets = {n: [{j for j in row[:n] if i in order[j, :n]} for i, row in enumerate(order)] for n in (k1, half)}
    encodings = []
    for i, own in enumerate(sets[k1]):
        chosen = own.union(*(sets[half][q] for q in own if len(sets[half][q] & own) / len(sets[half][q]) > 2 / 3))
        weight = {j: math.exp(-distance[i, j]) for j in chosen}
        encodings.append({j: w / sum(weight.values()) for j, w in weight.items()})
    expected = torch.empty(20, 40, dtype=torch.float64)
    for q in range(20):
        for g in range(40):
            a, b = encodings[q], encodings[20 + g]
            least = sum(min(a.get(j, 0), b.get(j, 0)) for j in range(60))
            most = sum(max(a.get(j, 0), b.get(j, 0)) for j in range(60))
            expected[q, g] = 1 - least / most
    result = reference.k_reciprocal(features[:20], features[20:], k1=k1, k2=1, variant="jaccard")
    torch.testing.assert_close(result, expected)


def test_k_reciprocal_of_identical_images_is_finite():
    ones = torch.ones(5, 3)
    result = reference.k_reciprocal(ones[:2], ones[2:], k1=2, k2=2)
    assert result.isfinite().all()
    # every image has images 0, 1, 2 as its nearest three, so only those have a set at all: 2 is gallery image 0
    assert result.tolist() == [pytest.approx([0.0, 0.0, 0.0])] * 2


def test_average_precision_by_hand():
    distance = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]])
    ids, gallery = np.array([7]), np.array([7, 3, 7, 4, -1, 7])  # matches at ranks 1, 3 and, without the junk, 5
    cameras = np.array([0]), np.array([1, 1, 1, 1, 1, 1])
    step = reference.rank_metrics(distance, ids, gallery, *cameras, max_rank=4)
    assert step.mean_ap.item() == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert step.mean_inp.item() == pytest.approx(3 / 5)
    assert step.cmc.tolist() == [1, 1, 1, 1]
    trapezoid = reference.rank_metrics(distance, ids, gallery, *cameras, protocol="mudeep")
    assert trapezoid.mean_ap.item() == pytest.approx(((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 4 + 3 / 5) / 2) / 3)
    own_camera = reference.rank_metrics(distance, ids, gallery, np.array([0]), np.array([0, 1, 1, 1, 1, 1]))
    assert own_camera.mean_ap.item() == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert own_camera.cmc.tolist() == [0, 1, 1, 1, 1, 1]
    nothing_dropped = reference.rank_metrics(distance, ids, gallery)
    assert nothing_dropped.mean_ap.item() == pytest.approx((1 + 2 / 3 + 3 / 6) / 3)


def test_queries_without_a_match():
    distance = np.array([[0.1, 0.2], [0.1, 0.2], [0.2, 0.1]])
    arguments = distance, np.array([1, 9, 2]), np.array([1, 2])
    market = reference.rank_metrics(*arguments)
    assert (market.num_valid.item(), market.mean_ap.item(), market.cmc.tolist()) == (2, 1.0, [1, 1])
    assert market.average_precision[[0, 2]].tolist() == [1, 1] and market.average_precision[1].isnan()
    mudeep = reference.rank_metrics(*arguments, protocol="mudeep")
    assert mudeep.num_valid.item() == 2
    assert mudeep.mean_ap.item() == pytest.approx(2 / 3)
    assert mudeep.cmc.tolist() == pytest.approx([2 / 3, 2 / 3])
    assert mudeep.average_precision.tolist() == [1, 0, 1]


def test_cuhk03_draws_evenly():
    # identity 1 lies at rank 1 or at rank 3 of the two drawn identities' images
    distance, ids, gallery = np.array([[0.1, 0.2, 0.3]]), np.array([1]), np.array([1, 2, 1])
    result = reference.rank_metrics(distance, ids, gallery, protocol="cuhk03", num_draws=4000)
    assert result.cmc[0].item() == pytest.approx(0.5, abs=0.03)  # 4 standard deviations
    assert result.cmc[1:].tolist() == [1, 1]
    assert result.mean_ap.item() == pytest.approx((result.cmc[0].item() + 1) / 2)  # precision 1 or 1/2
    assert result.mean_inp.item() == pytest.approx(result.mean_ap.item())
    again = reference.rank_metrics(distance, ids, gallery, protocol="cuhk03", num_draws=4000, seed=1)
    assert again.cmc[0].item() != result.cmc[0].item()


def test_splitmix64():
    # the first outputs of the splitmix64 generator started at 0 are the finaliser at multiples of its increment
    increment = 0x9E3779B97F4A7C15
    outputs = [reference._mix(i * increment) for i in range(3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert reference._mix(-1) == reference._mix(2**64 - 1)


def test_channel_attention_by_loops():
    query, key, value = (random(2, 3, length, seed=s, dtype=torch.float64) for s, length in enumerate((5, 5, 4)))
    result = reference.channel_attention(query, key, value)
    for b, c in itertools.product(range(2), range(3)):
        weight = [math.exp(query[b, c] @ key[b, other]) for other in range(3)]
        expected = sum(w * value[b, other] for other, w in enumerate(weight)) / sum(weight)
        torch.testing.assert_close(result[b, c], expected)


DIFFERENTIABLE = {
    "euclidean_distance": (lambda x, y: reference.euclidean_distance(x, y), [(3, 4), (2, 4)]),
    "euclidean_distance squared": (lambda x, y: reference.euclidean_distance(x, y, squared=True), [(3, 4), (2, 4)]),
    "shortest_path": (reference.shortest_path, [(2, 3, 4)]),
    "dmli": (reference.dmli, [(2, 3, 4), (2, 5, 4)]),
    "dmli unaligned": (lambda x, y: reference.dmli(x, y, aligned=False), [(2, 3, 4), (2, 3, 4)]),
    "batch_hard": (lambda x: reference.batch_hard(x, [0, 0, 1, 1, 2])[:2], [(5, 4)]),
    "batch_hard normalised": (lambda x: reference.batch_hard(x, [0, 0, 1, 1, 2], normalize=True)[:2], [(5, 4)]),
    "channel_attention": (reference.channel_attention, [(2, 3, 4), (2, 3, 4), (2, 3, 2)]),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradcheck(name):
    function, shapes = DIFFERENTIABLE[name]
    inputs = [random(*shape, seed=s, dtype=torch.float64).requires_grad_() for s, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(function, inputs)


def test_gradient_of_identical_rows_is_zero():
    x = torch.ones(2, 3, requires_grad=True)
    reference.euclidean_distance(x, torch.ones(2, 3)).sum().backward()
    assert torch.equal(x.grad, torch.zeros(2, 3))

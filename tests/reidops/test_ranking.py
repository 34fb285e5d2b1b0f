"""rank_metrics against the float64 reference and against a brute force that shares nothing with it."""

import numpy as np
import pytest
import torch

import reidops
from reidops import reference
from tests.reidops.inputs import LAYOUTS, integers, laid_out, random
from tests.tolerances import RANK_METRICS

PROTOCOLS = ("market1501", "mudeep", "cuhk03")
FIELDS = ("cmc", "mean_ap", "mean_inp", "num_valid", "average_precision")


def ranking_problem(num_query, num_gallery, *, identities=9, cameras=3, junk=True, seed=0, device="cpu", ties=False):
    """Distances, identities and cameras; identity -1 is junk, some queries find no match, but the first one does."""
    distance = random(num_query, num_gallery, seed=seed, device=device).abs()
    if ties:
        distance = (4 * distance).round()
    query_ids = integers(num_query, high=identities, seed=seed + 1, device=device)
    gallery_ids = integers(num_gallery, high=identities - 1, seed=seed + 2, device=device) - (1 if junk else 0)
    query_cameras = integers(num_query, high=cameras, seed=seed + 3, device=device)
    gallery_cameras = integers(num_gallery, high=cameras, seed=seed + 4, device=device)
    query_ids[0] = gallery_ids[-1] = 0
    query_cameras[0], gallery_cameras[-1] = 0, 1
    return distance, query_ids, gallery_ids, query_cameras, gallery_cameras


def brute_force(distance, query_ids, gallery_ids, query_cameras, gallery_cameras, max_rank, protocol):
    """CMC, mAP, mINP, valid queries and average precisions with Python lists, for the protocols without chance."""
    curves, precisions, penalties, valid = [], [], [], 0
    for q, row in enumerate(distance.tolist()):
        ranked = sorted(range(len(row)), key=lambda g: (row[g], g))
        hits = []
        for g in ranked:
            same = bool(gallery_ids[g] == query_ids[q])
            own_camera = query_cameras is not None and query_cameras[q] == gallery_cameras[g]
            junk = query_cameras is not None and gallery_ids[g] == -1
            if not junk and not (same and own_camera):
                hits.append(same)
        if not any(hits):
            if protocol == "mudeep":
                curves.append([0.0] * max_rank)
                penalties.append(0.0)
            precisions.append(0.0 if protocol == "mudeep" else float("nan"))
            continue
        valid += 1
        curves.append([float(any(hits[: r + 1])) for r in range(max_rank)])
        places = [r for r, hit in enumerate(hits, start=1) if hit]
        penalties.append(len(places) / places[-1])
        area = 0.0
        for r in places:
            now = sum(hits[:r]) / r
            before = now if protocol == "market1501" else (sum(hits[: r - 1]) / (r - 1) if r > 1 else 1.0)
            area += (now + before) / 2
        precisions.append(area / len(places))
    counted = [value for value in precisions if value == value]
    cmc = np.mean(curves, axis=0)[: distance.shape[1]]
    return cmc, sum(counted) / len(counted), sum(penalties) / len(penalties), valid, precisions


def assert_metrics(actual, expected):
    for name, a, e in zip(FIELDS, actual, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a.cpu()), np.asarray(e), rtol=RANK_METRICS, atol=0, err_msg=name)


@pytest.mark.parametrize("with_cameras", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("protocol", ["market1501", "mudeep"])
@pytest.mark.parametrize("num_query, num_gallery, max_rank", [(1, 9, 5), (13, 1, 5), (40, 130, 50), (25, 33, 100)])
def test_brute_force(num_query, num_gallery, max_rank, protocol, ties, with_cameras, device):
    problem = ranking_problem(num_query, num_gallery, ties=ties, device=device)
    if not with_cameras:
        problem = (*problem[:3], None, None)
    expected = brute_force(*problem, max_rank, protocol)
    result = reidops.rank_metrics(*problem, max_rank=max_rank, protocol=protocol)
    assert isinstance(result, reidops.RankMetrics)
    assert_metrics(result, expected)
    assert result.cmc.shape == (min(max_rank, num_gallery),)


@pytest.mark.parametrize("with_cameras", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_reference(protocol, ties, with_cameras, device):
    for seed in range(4):
        problem = ranking_problem(30, 90, seed=10 * seed, device=device, ties=ties)
        if not with_cameras:
            problem = problem[:3]
        options = {"max_rank": 20, "protocol": protocol}
        result = reidops.rank_metrics(*problem, **options)
        assert_metrics(result, reference.rank_metrics(*problem, **options))
        for name, values in zip(FIELDS, result, strict=True):
            assert values.dtype == (torch.int64 if name == "num_valid" else torch.float64), name
            assert values.device == problem[0].device, name
            assert values.ndim == (1 if name in ("cmc", "average_precision") else 0), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("identities", [2, 5, 40, 700])
def test_many_images_and_matches(identities, ties, dtype, device):
    """Galleries of several blocks, with few matches and with far more than are counted by vectors."""
    distance, *rest = ranking_problem(7, 1700, identities=identities + 1, seed=identities, ties=ties, device=device)
    for protocol in PROTOCOLS:
        options = {"protocol": protocol, "num_draws": 3}
        result = reidops.rank_metrics(distance.to(dtype), *rest, **options)
        assert_metrics(result, reference.rank_metrics(distance.to(dtype), *rest, **options))


@pytest.mark.parametrize("size", [1, 15, 16, 17, 511, 512, 513, 1024, 1025])
def test_all_images_tie(size, device):
    ids = torch.arange(size, device=device) % 3
    distance = torch.zeros(3, size, device=device)
    query_ids = torch.arange(3, device=device)
    for values in (0.0, float("inf"), -1.0):
        result = reidops.rank_metrics(distance + values, query_ids, ids, protocol="mudeep")
        assert_metrics(result, reference.rank_metrics(distance + values, query_ids, ids, protocol="mudeep"))


@pytest.mark.parametrize("matches", [3, 100])
def test_nan_anywhere_is_refused(matches, device):
    gallery_ids = torch.arange(1300, device=device) // matches
    query_ids = torch.tensor([0, 5, -7], device=device)  # the last one finds no match
    for place in ((0, 0), (1, 511), (1, 1299), (2, 1024)):
        for protocol in PROTOCOLS:
            distance = random(3, 1300, device=device).abs()
            distance[place] = float("nan")
            with pytest.raises(ValueError, match=rf"distance .*nan at \[{place[0]}, {place[1]}\]"):
                reidops.rank_metrics(distance, query_ids, gallery_ids, protocol=protocol, num_draws=2)


@pytest.mark.parametrize("num_draws, seed", [(1, 0), (7, 1), (100, -1), (3, 2**62)])
def test_draws_are_those_of_the_reference(num_draws, seed, device):
    problem = ranking_problem(12, 70, device=device)
    options = {"protocol": "cuhk03", "num_draws": num_draws, "seed": seed}
    assert_metrics(reidops.rank_metrics(*problem, **options), reference.rank_metrics(*problem, **options))


def test_identities_of_any_value(device):
    problem = list(ranking_problem(20, 60, junk=False, device=device))
    values = torch.tensor([-(2**62), -5, -2, 0, 7, 1501, 2**31, 2**40, 2**62], device=device)
    problem[1], problem[2] = values[problem[1]], values[problem[2]]
    for protocol in PROTOCOLS:
        result = reidops.rank_metrics(*problem, protocol=protocol)
        assert_metrics(result, reference.rank_metrics(*problem, protocol=protocol))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_distances_of_every_type(dtype, device):
    distance, *rest = ranking_problem(20, 60, device=device)
    distance = distance.to(dtype)
    for protocol in PROTOCOLS:
        result = reidops.rank_metrics(distance, *rest, protocol=protocol)
        assert_metrics(result, reference.rank_metrics(distance, *rest, protocol=protocol))


@pytest.mark.parametrize("integer", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_identities_of_any_integer_type(integer, device):
    distance, *rest = ranking_problem(20, 60, junk=False, device=device)
    result = reidops.rank_metrics(distance, *(values.to(integer) for values in rest))
    assert_metrics(result, reference.rank_metrics(distance, *rest))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout, device):
    distance, query_ids, *rest = ranking_problem(20, 60, device=device)
    problem = laid_out(distance, layout), query_ids.repeat_interleave(2)[::2], *rest
    for protocol in PROTOCOLS:
        result = reidops.rank_metrics(*problem, protocol=protocol)
        assert_metrics(result, reference.rank_metrics(*problem, protocol=protocol))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_infinite_and_signed_distances(protocol, device):
    distance, *rest = ranking_problem(20, 60, device=device)
    distance = (distance - 1).round()  # -1, -0, 0, 1, ...: both zeros tie
    distance[:, ::7], distance[:, 3::11] = float("inf"), -float("inf")
    result = reidops.rank_metrics(distance, *rest, protocol=protocol)
    assert_metrics(result, reference.rank_metrics(distance, *rest, protocol=protocol))


def test_perfect_and_reversed_rankings(device):
    ids = torch.arange(6, device=device)
    distance = (ids[:, None] != ids[None, :]).float()
    perfect = reidops.rank_metrics(distance, ids, ids)
    assert perfect.mean_ap == 1 and perfect.mean_inp == 1 and torch.equal(perfect.cmc.cpu(), torch.ones(6).double())
    worst = reidops.rank_metrics(-distance, ids, ids)
    assert worst.mean_ap.item() == pytest.approx(1 / 6) and worst.cmc.tolist() == [0, 0, 0, 0, 0, 1]


def test_average_precision_of_left_out_queries_is_nan(device):
    distance = torch.tensor([[0.0, 1.0], [0.0, 1.0]], device=device)
    ids = torch.tensor([1, 5], device=device), torch.tensor([1, 2], device=device)
    result = reidops.rank_metrics(distance, *ids)
    assert result.num_valid == 1
    assert result.average_precision[0] == 1 and result.average_precision[1].isnan()
    assert reidops.rank_metrics(distance, *ids, protocol="mudeep").average_precision.tolist() == [1, 0]


def test_numpy_in_numpy_out():
    problem = [values.numpy() for values in ranking_problem(20, 60)]
    result = reidops.rank_metrics(*problem)
    assert isinstance(result.cmc, np.ndarray) and result.cmc.dtype == np.float64
    assert isinstance(result.average_precision, np.ndarray)
    assert type(result.mean_ap) is float and type(result.mean_inp) is float and type(result.num_valid) is int
    expected = reference.rank_metrics(*problem)
    assert result.mean_ap == pytest.approx(expected.mean_ap.item(), rel=RANK_METRICS)
    assert result.cmc.tolist() == pytest.approx(expected.cmc.tolist(), rel=RANK_METRICS)


def test_a_real_network_on_market1501(data_folder):
    """The network's published figures: Rank-1 86.1, mAP 59.8 by the cosine of its features."""
    data = np.load(data_folder / "market1501_features.npz")
    query, gallery = (torch.from_numpy(data[f"{part}_features"]).float() for part in ("query", "gallery"))
    query, gallery = torch.nn.functional.normalize(query), torch.nn.functional.normalize(gallery)
    labels = [torch.from_numpy(data[f"{part}_{kind}"]) for kind in ("ids", "cameras") for part in ("query", "gallery")]
    distance = reidops.euclidean_distance(query, gallery, squared=True)
    result = reidops.rank_metrics(distance, *labels)
    assert result.num_valid == 3368
    assert round(100 * result.cmc[0].item(), 1) == 86.1
    assert round(100 * result.mean_ap.item(), 1) == 59.8
    head = [distance[:100], labels[0][:100], labels[1], labels[2][:100], labels[3]]
    assert_metrics(reidops.rank_metrics(*head), reference.rank_metrics(*head))

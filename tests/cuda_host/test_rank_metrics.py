"""rank_metrics as csrc/cuda computes it, against the float64 reference and, bit by bit, against the CPU's kernel."""

import pytest
import torch

import reidops  # noqa: F401  registers the CPU's kernel
from reidops import RankMetrics, reference
from tests.reidops.inputs import LAYOUTS, integers, laid_out, random
from tests.reidops.test_ranking import PROTOCOLS, assert_metrics, ranking_problem

FLOATS = (torch.float32, torch.float64)
LOWEST, HIGHEST = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max


def assert_scores(host, problem, max_rank=50, protocol="market1501", num_draws=10, seed=0, bits=True):
    problem = (*problem, None, None)[:5]
    arguments = *problem, max_rank, protocol, num_draws, seed
    scores = host.ops.rank_metrics(*arguments)
    for actual, expected in zip(scores, torch.ops.reidops.rank_metrics(*arguments), strict=True):
        tolerance = {"rtol": 0, "atol": 0} if bits else {"rtol": 1e-14, "atol": 0}
        torch.testing.assert_close(actual, expected, equal_nan=True, **tolerance)
    cmc, precision, penalty, num_valid = scores
    if num_valid > 0 and not problem[0].isnan().any():
        options = {"max_rank": max_rank, "protocol": protocol, "num_draws": num_draws, "seed": seed}
        metrics = RankMetrics(cmc, precision.nanmean(), penalty.nanmean(), num_valid, precision)
        assert_metrics(metrics, reference.rank_metrics(*problem, **options))
    return scores


@pytest.mark.parametrize("with_cameras", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "num_query, num_gallery, max_rank", [(1, 9, 5), (13, 1, 5), (9, 130, 50), (5, 33, 100), (2, 1201, 1201)]
)
def test_scores(num_query, num_gallery, max_rank, dtype, protocol, ties, with_cameras, host):
    distance, *people = ranking_problem(num_query, num_gallery, ties=ties)
    problem = distance.to(dtype), *people[: 4 if with_cameras else 2]
    assert_scores(host, problem, max_rank, protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_infinite_and_missing_distances(protocol, host):
    """NaN ranks with the infinite distances, after all others; both zeros tie."""
    distance, *people = ranking_problem(20, 61)
    distance = (distance - 1).round()
    distance[:, ::7], distance[:, 3::11] = float("inf"), -float("inf")
    assert_scores(host, (distance, *people), protocol=protocol)
    distance[:, 1::5] = float("nan")
    assert_scores(host, (distance, *people), protocol=protocol)
    assert_scores(host, (torch.full_like(distance, float("nan")), *people), protocol=protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_identities_of_any_value(protocol, host):
    distance, query_ids, gallery_ids, *cameras = ranking_problem(20, 60, junk=False)
    values = torch.tensor([LOWEST, LOWEST + 1, -2, 0, 7, 2**31, 2**40, HIGHEST - 1, HIGHEST])
    for people in ((), cameras):
        assert_scores(host, (distance, values[query_ids], values[gallery_ids], *people), protocol=protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_queries_without_a_match(protocol, host):
    distance, query_ids, gallery_ids, *cameras = ranking_problem(5, 40)
    without = 0.0 if protocol == "mudeep" else float("nan")
    for ids, gallery in ((query_ids, torch.full_like(gallery_ids, -1)), (query_ids * 0 - 1, gallery_ids)):
        cmc, precision, penalty, num_valid = assert_scores(host, (distance, ids, gallery, *cameras), protocol=protocol)
        assert num_valid == 0 and not cmc.any()
        torch.testing.assert_close(precision, torch.full((5,), without, dtype=torch.float64), equal_nan=True)
        torch.testing.assert_close(penalty, precision, equal_nan=True)
    assert_scores(
        host, (distance, query_ids * 0 - 1, gallery_ids), protocol=protocol
    )  # no cameras: -1 is like any other


@pytest.mark.parametrize("others", [0, 40])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("images", [1, 31, 32, 63, 64])
def test_identities_of_every_size(images, protocol, others, host):
    """A slot more than matches, and as many: the sort takes a power of two."""
    gallery_ids = torch.tensor([3] * images + [4] * others)[integers(images + others, high=2**40).argsort()]
    distance = integers(2, images + others, high=50, seed=1).float()
    assert_scores(host, (distance, torch.tensor([3, 4]), gallery_ids), protocol=protocol)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("protocol", ["market1501", "mudeep"])
@pytest.mark.parametrize("images, identities, cameras", [(1023, 1, 0), (1024, 1, 0), (2300, 2, 0), (2300, 1, 3)])
def test_identities_of_more_images_than_are_ranked_at_a_time(images, identities, cameras, protocol, ties, host):
    distance = random(1, images).abs()
    if ties:
        distance = (4 * distance).round()
    problem = [distance, torch.tensor([0]), integers(images, high=identities, seed=1)]
    if cameras:
        problem += [torch.tensor([1]), integers(images, high=cameras, seed=2)]
    assert_scores(host, problem, protocol=protocol, bits=images < 1024)


def test_a_chunk_without_a_match(host):
    """The first 1,100 images of the identity are dropped."""
    same = torch.zeros(1300, dtype=torch.int64)
    cameras = (torch.arange(1300) >= 1100).long()
    assert_scores(host, (random(1, 1300).abs(), same[:1], same, cameras[:1], cameras), bits=False)


@pytest.mark.parametrize("cameras", [0, 3])
def test_draws_from_many_images(cameras, host):
    problem = [random(2, 500).abs(), torch.tensor([0, 4]), integers(500, high=5, seed=1)]
    if cameras:
        problem += [torch.tensor([0, 1]), integers(500, high=cameras, seed=2)]
    assert_scores(host, problem, protocol="cuhk03")


@pytest.mark.parametrize("num_draws, seed", [(1, 0), (7, 1), (65, -1), (3, 2**62), (33, LOWEST)])
def test_draws_are_those_of_the_reference(num_draws, seed, host):
    assert_scores(host, ranking_problem(6, 70), protocol="cuhk03", num_draws=num_draws, seed=seed)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", [*LAYOUTS, "columns"])
def test_any_layout(layout, dtype, host):
    distance, query_ids, *rest = ranking_problem(7, 61)
    distance = distance.to(dtype)
    if layout == "columns":  # of a larger matrix, as re-ranking among all images leaves them
        distance = torch.cat([torch.full((7, 7), -1.0).to(distance), distance], dim=1)[:, 7:]
        assert distance.stride(1) == 1 and not distance.is_contiguous()
    else:
        distance = laid_out(distance, layout)
    problem = distance, query_ids.repeat_interleave(2)[::2], *rest
    for protocol in PROTOCOLS:
        assert_scores(host, problem, protocol=protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_fewer_blocks_than_queries(protocol, host):
    host.limits(max_blocks=3)
    assert_scores(host, ranking_problem(17, 90), protocol=protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_two_runs_are_equal(protocol, host):
    same = torch.zeros(1100, dtype=torch.int64)
    large = random(1, 1100).abs(), same[:1], same
    for problem in (ranking_problem(9, 90, ties=True)[:3], large):
        scores = []
        for seed in (1, 2):
            host.seed(seed)
            scores.append(host.ops.rank_metrics(*problem, None, None, 50, protocol, 5, 0))
        for first, second in zip(*scores, strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def test_unfit_inputs_are_refused(host):
    distance, query_ids, gallery_ids, query_cameras, gallery_cameras = ranking_problem(3, 5)
    good = {"cameras": (query_cameras, gallery_cameras), "rest": (50, "market1501", 1, 0)}
    for arguments in (
        (distance[0], query_ids, gallery_ids, *good["cameras"], *good["rest"]),
        (distance.half(), query_ids, gallery_ids, *good["cameras"], *good["rest"]),
        (distance, query_ids[:2], gallery_ids, *good["cameras"], *good["rest"]),
        (distance, query_ids, gallery_ids.int(), *good["cameras"], *good["rest"]),
        (distance, query_ids, gallery_ids, query_cameras, gallery_cameras[:2], *good["rest"]),
        (distance[:0], query_ids[:0], gallery_ids, None, None, *good["rest"]),
        (distance, query_ids, gallery_ids, *good["cameras"], 0, "market1501", 1, 0),
        (distance, query_ids, gallery_ids, *good["cameras"], 50, "market", 1, 0),
        (distance, query_ids, gallery_ids, *good["cameras"], 50, "cuhk03", 0, 0),
    ):
        with pytest.raises(RuntimeError):
            host.ops.rank_metrics(*arguments)

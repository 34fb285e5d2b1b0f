"""Scores of a ranking: cumulative match characteristic (CMC), mean average precision, mean inverse negative penalty."""

import torch
from torch import Tensor

from ._extension import check_kernel
from ._numpy import Array, numpy_in_numpy_out
from ._validate import (
    check_between,
    check_choice,
    check_floats,
    check_integers,
    check_no_nan,
    check_shape,
    checks_values,
    widen,
)
from .results import RankMetrics

PROTOCOLS = ("market1501", "cuhk03", "mudeep")


@torch.no_grad()
@numpy_in_numpy_out
def rank_metrics(
    distance: Array,
    query_ids: Array,
    gallery_ids: Array,
    query_cameras: Array | None = None,
    gallery_cameras: Array | None = None,
    *,
    max_rank: int = 50,
    protocol: str = "market1501",
    num_draws: int = 100,
    seed: int = 0,
    validate: bool = True,
) -> RankMetrics:
    """How well distances rank the gallery for every query; not differentiable.

    For each query the gallery is sorted by distance, equal distances by the lowest gallery index, without junk
    (identity -1) and without the images of the query's own identity from its own camera. What remains of the query's
    identity are its matches. Without cameras nothing is dropped, and -1 is an identity like any other.

    "market1501": average precision by the step rule, the mean of i / r_i over the matches at ranks r_1 < r_2 < ...;
    queries without a match are left out. "mudeep": the trapezoid rule, the mean of (i / r_i + (i - 1) / (r_i - 1)) / 2
    with 1 for the second term at rank 1; queries without a match count 0 in every mean. "cuhk03": of every gallery
    identity one image is drawn, `num_draws` times, and the scores of the draws are averaged; otherwise as "market1501".
    The inverse negative penalty of a query is its number of matches divided by the rank of the last.

    Args:
        distance: (M, N) float tensor or NumPy array; infinities are allowed, NaN is not.
        query_ids: (M,) integer identities, on the same device.
        gallery_ids: (N,) integer identities; where cameras are given, -1 marks junk.
        query_cameras: (M,) integer cameras, or None: then nothing is dropped.
        gallery_cameras: (N,) integer cameras, or None as query_cameras.
        max_rank: length R of the CMC, at least 1; at most N is given.
        protocol: "market1501", "cuhk03" or "mudeep".
        num_draws: draws of "cuhk03", at least 1.
        seed: of the draws; the same seed draws the same images on every backend.
        validate: look for NaN and for a match; False spares CUDA the wait. NaN then ranks last, with the infinities,
            and without any match the means are NaN.

    Returns:
        RankMetrics(cmc, mean_ap, mean_inp, num_valid, average_precision): float64 tensors cmc (R,), mean_ap (),
        mean_inp () and average_precision (M,), NaN for queries left out; int64 num_valid (), the queries that have a
        match. For NumPy arrays: arrays, and Python numbers in place of scalars.

    Raises:
        TypeError: distance is no float tensor or array, identities or cameras are no integers, or max_rank, num_draws
            or seed is no integer.
        ValueError: shapes or devices do not fit, a set is empty, only one of the cameras is given, max_rank, protocol,
            num_draws or seed is out of range, a distance is NaN, or no query has a match.

    Source:
        Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015 (Market-1501, mAP); Li et al., DeepReID,
        CVPR 2014 (CUHK03); Ye et al., Deep Learning for Person Re-identification: A Survey and Outlook, TPAMI 2021
        (mINP); the published program of Qian et al., Leader-based Multi-Scale Attention Deep Architecture for Person
        Re-identification, TPAMI 2020 (the trapezoid rule).

    Example:
        >>> distance = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])
        >>> scores = rank_metrics(distance, torch.tensor([7, 8]), torch.tensor([7, 8, 7]))
        >>> scores.cmc
        tensor([0.5000, 1.0000, 1.0000], dtype=torch.float64)
        >>> round(scores.mean_ap.item(), 4), scores.num_valid.item()   # (1/1 + 2/3) / 2 and 1/2
        (0.6667, 2)
    """
    check_floats(distance=distance)
    check_shape("distance", distance, ("M", "N"))
    query_ids, gallery_ids = _check_people(distance, query_ids=query_ids, gallery_ids=gallery_ids)
    if query_cameras is not None or gallery_cameras is not None:
        cameras = {"query_cameras": query_cameras, "gallery_cameras": gallery_cameras}
        query_cameras, gallery_cameras = _check_people(distance, **cameras)
    check_choice("protocol", protocol, PROTOCOLS)
    max_rank = check_between("max_rank", max_rank, 1, 2**63 - 1)
    num_draws = check_between("num_draws", num_draws, 1, 2**31 - 1)
    seed = check_between("seed", seed, -(2**63), 2**63 - 1)
    check_kernel("rank_metrics", distance)
    (distance,) = widen(distance)
    arguments = (
        distance, query_ids, gallery_ids, query_cameras, gallery_cameras, max_rank, protocol, num_draws, seed,
    )  # fmt: skip
    if not checks_values(distance, validate):
        scores = torch.ops.reidops.rank_metrics(*arguments)
    elif distance.device.type == "cpu":  # where the operator looks for NaN in what it reads anyway
        try:
            scores = torch.ops.reidops.rank_metrics(*arguments, refuse=True)
        except RuntimeError:
            check_no_nan("distance", distance)
            raise
    else:
        check_no_nan("distance", distance)
        scores = torch.ops.reidops.rank_metrics(*arguments)
    cmc, average_precision, inverse_penalty, num_valid = scores
    if checks_values(num_valid, validate) and num_valid == 0:
        raise ValueError(
            f"query_ids should have a match in gallery_ids, got none for any of the {len(query_ids)} queries (after"
            " dropping junk and, where cameras are given, the query's own camera)"
        )
    return RankMetrics(cmc, average_precision.nanmean(), inverse_penalty.nanmean(), num_valid, average_precision)


def _check_people(distance: Tensor, **people: Tensor) -> list[Tensor]:
    """Identities or cameras as int64, once the queries' fit the rows of the distances and the gallery's the columns."""
    missing = [name for name, tensor in people.items() if tensor is None]
    if missing:
        raise ValueError(f"{' and '.join(people)} should be given together, got {missing[0]}=None")
    check_integers({"distance": distance}, **people)
    for (name, tensor), size in zip(people.items(), distance.shape, strict=True):
        check_shape(name, tensor, (size,), like=f"like distance {tuple(distance.shape)}")
    return [tensor.to(torch.int64) for tensor in people.values()]


@torch.library.register_fake("reidops::rank_metrics")
def _rank_metrics_fake(
    distance: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_cameras: Tensor | None,
    gallery_cameras: Tensor | None,
    max_rank: int,
    protocol: str,
    num_draws: int,
    seed: int,
    refuse: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, columns = distance.shape
    empty = torch.empty(rows, dtype=torch.float64, device=distance.device)
    cmc = empty.new_empty(min(max_rank, columns))
    return cmc, empty, torch.empty_like(empty), empty.new_empty((), dtype=torch.int64)

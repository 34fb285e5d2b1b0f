"""Checks of results against float64, on a part of a benchmark's own inputs. Each gives figures, and "ok".

What counts as ok is generous: it tells a wrong result from a right one; exactness is the tests' part.
"""

from typing import Any

import torch
from torch import Tensor

import reidops
from benches.peers import shortest_path
from benches.timing import matmul_precision

TOLERANCE = {"highest": 1e-3, "high": 0.05, "medium": 0.3}  # of DMLI distances (0 to 15) and squared distances (0 to 4)
Figures = dict[str, Any]


def sample(count: int, most: int, device: torch.device) -> Tensor:
    """At most `most` indices below count, ascending, the same in every run; the last is among them."""
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(7))[:most].sort().values
    chosen[-1] = count - 1
    return chosen.to(device)


def product_distance(x: Tensor, y: Tensor) -> Tensor:
    """|x|^2 + |y|^2 - 2 x y in the inputs' own type."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)


def product_dmli(x: Tensor, y: Tensor) -> Tensor:
    """DMLI of all pairs by one matrix product, all in the inputs' own type."""
    squared = product_distance(x.flatten(0, 1), y.flatten(0, 1))
    cost = torch.tanh(squared.sqrt() / 2).view(*x.shape[:2], *y.shape[:2])
    return shortest_path(cost.permute(1, 3, 0, 2), torch.minimum)


def root_mean_square(values: Tensor) -> float:
    return values.double().square().mean().sqrt().item()


def dmli_matrix(result: Tensor, x: Tensor, y: Tensor, precision: str) -> Figures:
    """Errors of some entries, and how many times those of a float32 GEMM they are."""
    rows, columns = sample(len(x), 48, x.device), sample(len(y), 96, y.device)
    exact = product_dmli(x[rows].double(), y[columns].double())
    error = result[rows][:, columns] - exact
    with matmul_precision("highest"):
        plain = product_dmli(x[rows], y[columns]) - exact
    return {
        "ok": bool(error.abs().max() <= TOLERANCE[precision]),
        "max_error": error.abs().max().item(),
        "rms_error": root_mean_square(error),
        "gemm_max_error": plain.abs().max().item(),
        "gemm_rms_error": root_mean_square(plain),
        "error_ratio": root_mean_square(error) / max(root_mean_square(plain), 1e-12),
    }


def knn(result: reidops.Neighbors, query: Tensor, gallery: Tensor, precision: str) -> Figures:
    """Of some queries: the errors of the distances, and the share of the true neighbours that were found."""
    rows, k = sample(len(query), 64, query.device), result.index.shape[1]
    exact = product_distance(query[rows].double(), gallery.double())
    nearest = exact.topk(k, dim=1, largest=False)
    error = (result.distance[rows] - exact.gather(1, result.index[rows])).abs().max().item()
    behind = (exact.gather(1, result.index[rows]).sort(1).values - nearest.values).abs().max().item()
    found = (result.index[rows][:, :, None] == nearest.indices[:, None]).any(1).double().mean().item()
    ok = max(error, behind) <= TOLERANCE[precision] and found > 0.9
    return {"ok": ok, "max_error": error, "max_error_of_choice": behind, "recall": found}


def k_reciprocal(query: Tensor, gallery: Tensor, precision: str, topk: int | None) -> Figures:
    """On the first images alone: the same call on the processor, entry by entry; 20 best images of every query."""
    some = query[:128].contiguous(), gallery[:640].contiguous()
    depth = min(20, len(some[1]) if topk is None else topk)
    arguments = {"k1": min(20, len(some[0]) + len(some[1]) - 1), "precision": precision}
    theirs = reidops.k_reciprocal(*(tensor.cpu() for tensor in some), **arguments)
    if topk is None:
        ours = reidops.k_reciprocal(*some, **arguments).cpu()
        best = ours.argsort(dim=1, stable=True)[:, :depth]
        difference = (ours - theirs).abs()
    else:
        result = reidops.k_reciprocal(*some, **arguments, topk=min(topk, len(some[1])))
        best = result.index.cpu()[:, :depth]
        difference = (result.distance.cpu() - theirs.gather(1, result.index.cpu())).abs()
    expected = theirs.argsort(dim=1, stable=True)[:, :depth]
    agreeing = (best[:, :, None] == expected[:, None]).any(1).double().mean().item()
    differing = (difference > 1e-2).double().mean().item()
    ok = differing < (0.01 if precision == "highest" else 0.3) and agreeing > 0.9
    return {
        "ok": ok,
        "max_difference": difference.max().item(),
        "differing_by_0.01": differing,
        "differing_by_1e-4": (difference > 1e-4).double().mean().item(),
        "agreeing_of_best_20": agreeing,
    }


def neighbours_in_order(result: reidops.Neighbors, count: int) -> Figures:
    """Distances are finite and ascend, indices are of the gallery and none comes twice in a row."""
    distance, index = result
    ordered = bool((distance.diff(dim=1) >= 0).all() and distance.isfinite().all())
    twice = (index.sort(dim=1).values.diff(dim=1) == 0).any().item()
    return {"ordered": ordered and bool((index >= 0).all() and (index < count).all()) and not twice}


def rank_metrics(result: reidops.RankMetrics, distance: Tensor, *people: Tensor) -> Figures:
    """Average precision of some queries, by the same call on the processor."""
    rows = sample(len(distance), 64, distance.device)
    query_ids, gallery_ids, query_cameras, gallery_cameras = people
    some = distance[rows], query_ids[rows], gallery_ids, query_cameras[rows], gallery_cameras
    expected = reidops.rank_metrics(*(tensor.cpu() for tensor in some)).average_precision
    got = result.average_precision[rows].cpu()
    error = (got - expected).abs().nan_to_num(0).max().item()
    return {"ok": error <= 1e-9 and bool((got.isnan() == expected.isnan()).all()), "max_error": error}


def batch_hard(result: reidops.BatchHard, features: Tensor, labels: Tensor, tolerance: float) -> Figures:
    """Both distances of some anchors."""
    rows = sample(len(features), 64, features.device)
    exact = product_distance(features[rows].double(), features.double()).sqrt()
    same = labels[rows][:, None] == labels
    positive = exact.masked_fill(~same, -torch.inf).amax(1)
    negative = exact.masked_fill(same, torch.inf).amin(1)
    errors = [positive - result.positive_distance[rows], negative - result.negative_distance[rows]]
    error = max(values.abs().max().item() for values in errors)
    return {"ok": error <= tolerance, "max_error": error}


def gradients(results: tuple, expected: tuple, tolerance: float) -> Figures:
    """A result and its gradients, each relative to the largest expected entry."""
    errors = [
        ((got.detach().cpu().double() - wanted.cpu()).abs().max() / wanted.abs().max().cpu().clamp(min=1e-30)).item()
        for got, wanted in zip(results, expected, strict=True)
    ]
    return {"ok": max(errors) <= tolerance, "result_error": errors[0], "gradient_error": max(errors[1:])}

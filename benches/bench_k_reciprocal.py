"""k_reciprocal on the processor: re-ranking Market-1501 and MSMT17 by features of their size."""

from typing import Any

import pytest
from torch import Tensor

import reidops
from benches import accuracy, inputs, peers
from benches.cases import Case, Peer
from benches.cpu.contestant import CPU
from benches.cpu.gemm import products
from benches.cpu.rows import Row
from benches.rows import GEMM, HALF_GEMM, PUBLISHED_NUMPY, Figures, k_reciprocal_work, megabytes, ratio, speed
from reidops import reference


def case(precision: str, queries: int, gallery: int, width: int, topk: int) -> Case:
    total = queries + gallery
    features = inputs.features(inputs.people(total, 13, CPU), width)
    query, images = features.split((queries, gallery))
    arguments = {"k1": min(20, total - 1), "precision": precision}
    rivals = products(features, features)
    if not topk:
        rivals[PUBLISHED_NUMPY] = Peer(
            peers.k_reciprocal_numpy, [(query.numpy(), images.numpy())], alone_gb=26e-9 * total**2
        )

    def check(result: Any, query: Tensor, images: Tensor) -> Figures:
        figures = against_reference(query, images, arguments)
        if topk:
            figures |= accuracy.neighbours_in_order(result, gallery)
            figures["ok"] = figures["ok"] and figures["ordered"]
        return figures

    return Case(
        [(query, images)],
        lambda query, images: reidops.k_reciprocal(query, images, topk=topk or None, **arguments),
        rivals,
        check,
    )


def against_reference(query: Tensor, images: Tensor, arguments: dict[str, Any]) -> Figures:
    """Of the first images: the definition in float64, which rounding leaves but where it decides a tie."""
    some = query[:32].contiguous(), images[:224].contiguous()
    exact = reference.k_reciprocal(*some, k1=min(arguments["k1"], sum(map(len, some)) - 1))
    found = reidops.k_reciprocal(*some, k1=min(arguments["k1"], sum(map(len, some)) - 1))
    difference = (found.double() - exact).abs()
    differing = (difference > 1e-4).double().mean().item()
    return {"ok": differing < 0.02, "max_error": difference.max().item(), "differing_by_1e-4": differing}


def row(name: str, full: tuple[int, ...], part: tuple[int, ...], *bars, once: bool = False) -> Row:
    sizes = {"full": full, "part": part, "small": (7, 60, 16, min(full[-1], 5))}
    shape = "{:,} + {:,}, d = {}" + (", topk = {}" if full[-1] else "")
    return Row(f"k_reciprocal-{name}", "k_reciprocal", case, "highest", shape, k_reciprocal_work, bars, sizes, once)


ROWS = (
    row(
        "market", (3368, 15913, 2048, 0), (900, 4100, 2048, 0),
        ratio(GEMM, 1.25, 0.5, HALF_GEMM), speed(PUBLISHED_NUMPY, 12), megabytes(1000),
    ),
    row(
        "msmt17", (11659, 82161, 2048, 100), (900, 4100, 2048, 100),
        ratio(GEMM, 1.3, 0.5, HALF_GEMM), megabytes(4000), once=True,
    ),
)  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_k_reciprocal(bench, row):
    bench(row)

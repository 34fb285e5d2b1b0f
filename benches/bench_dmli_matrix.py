"""dmli_matrix on the processor: 400 queries against 4,000 images, 8 stripes each."""

import pytest
from torch import Tensor

import reidops
from benches import accuracy, inputs, peers
from benches.cases import Case, Peer, gemm
from benches.cpu import score
from benches.cpu.contestant import CPU
from benches.cpu.gemm import products
from benches.cpu.rows import HIGHEST, Row, bfloat16_speed, map_kept
from benches.rows import (
    GEMM,
    PUBLISHED_NUMPY,
    PUBLISHED_TORCH,
    Figures,
    dmli_matrix_work,
    megabytes,
    ratio,
)


def case(precision: str, queries: int, gallery: int, stripes: int, width: int) -> Case:
    people = inputs.people(queries + gallery, 13, CPU)
    x, y = inputs.features(people, width, stripes).split((queries, gallery))
    some, few = min(queries, 64), (min(queries, 32), min(gallery, 512))
    in_numpy = x[: few[0]].numpy(), y[: few[1]].numpy()
    rivals = {
        **products(x.flatten(0, 1), y.flatten(0, 1)),
        PUBLISHED_TORCH: Peer(
            peers.dmli_matrix_torch, [(x[:some], y)], some / queries, f"{some:,} of the {queries:,} queries"
        ),
        PUBLISHED_NUMPY: Peer(
            peers.dmli_matrix_numpy, [in_numpy], few[0] * few[1] / (queries * gallery),
            f"{few[0]} x {few[1]} of the pairs",
        ),
    }  # fmt: skip
    if precision == "medium":
        rivals = {
            HIGHEST: Peer(lambda x, y: reidops.dmli_matrix(x, y, precision="highest")),
            f"{GEMM} in bfloat16": gemm(x.flatten(0, 1), y.flatten(0, 1), precision),
        }

    def check(result: Tensor, x: Tensor, y: Tensor) -> Figures:
        figures = accuracy.dmli_matrix(result, x, y, precision)
        if precision == "medium":
            exact = reidops.dmli_matrix(x, y, precision="highest")
            figures |= score.kept(result, exact, *people.split((queries, gallery)))
            figures |= score.on_real_stripes(stripes)
        return figures

    return Case([(x, y)], lambda x, y: reidops.dmli_matrix(x, y, precision=precision), rivals, check)


def row(width: int, precision: str, *bars) -> Row:
    sizes = {"full": (400, 4000, 8, width), "part": (100, 1000, 8, width), "small": (4, 30, 8, 16)}
    name = f"dmli_matrix-{width}" + ("-medium" if precision == "medium" else "")
    return Row(name, "dmli_matrix", case, precision, "{:,} x {:,}, {} x {}", dmli_matrix_work, bars, sizes)


ROWS = (
    row(2048, "highest", ratio(GEMM, 1.08), megabytes(64)),
    row(128, "highest", ratio(GEMM, 1.5)),
    row(2048, "medium", bfloat16_speed(1.6), *map_kept(0.1)),
)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_dmli_matrix(bench, row):
    bench(row)

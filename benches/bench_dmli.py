"""dmli on the processor: forward and backward of a batch's pairs, as in training, beside the published operations."""

import pytest

from benches import cases
from benches.cases import Case
from benches.cpu.contestant import CPU
from benches.cpu.rows import Row
from benches.rows import PUBLISHED_TORCH, dmli_work, speed


def case(precision: str, batch: int, stripes: int, width: int) -> Case:
    return cases.dmli(precision, CPU, batch, stripes, width)


def row(batch: int) -> Row:
    sizes = {"full": (batch, 8, 128), "part": (batch, 8, 128), "small": (4, 8, 16)}
    shape = "{} pairs, {} x {}, forward and backward"
    return Row(f"dmli-{batch}", "dmli", case, "highest", shape, dmli_work, (speed(PUBLISHED_TORCH, 10),), sizes)


ROWS = (row(32), row(128))


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_dmli(bench, row):
    bench(row)

"""The rows at a processor's sizes for pytest-benchmark: ours and every peer that does the whole work."""

import pytest
import torch

from benches import rows, timing
from benches.cases import BUILDERS
from benches.measure import OURS

CPU = torch.device("cpu")


def contestants(*ops: str) -> pytest.MarkDecorator:
    """Parametrises a benchmark over row and contestant of the operators' rows that have a size for processors."""
    pairs = []
    for row in rows.select(size="cpu"):
        if row.op in ops:
            peers = BUILDERS[row.op](row.precision, CPU, *row.sizes["small"]).peers
            pairs += [pytest.param(row, name, id=f"{row.name}-{name}") for name in (OURS, *peers)]
    return pytest.mark.parametrize("row, contestant", pairs)


def bench(benchmark, row: rows.Row, contestant: str) -> None:
    case = BUILDERS[row.op](row.precision, CPU, *row.sizes["cpu"])
    run, inputs = case.ours, case.inputs[0]
    if contestant != OURS:
        peer = case.peers[contestant]
        assert peer.share == 1, f"{contestant} does only a part of row {row.name}"
        run, inputs = peer.run, (peer.inputs or case.inputs)[0]
    benchmark.group = f"{row.name}: {row.shape_text('cpu')}"
    benchmark.extra_info.update(threads=torch.get_num_threads(), torch=torch.__version__)
    with timing.matmul_precision(row.precision):
        benchmark(run, *inputs)

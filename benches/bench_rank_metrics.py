"""rank_metrics on the processor, beside the peers."""

from benches.support import bench, contestants


@contestants("rank_metrics")
def test_rank_metrics(benchmark, row, contestant):
    bench(benchmark, row, contestant)

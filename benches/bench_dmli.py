"""dmli of pairs, forward and backward on the processor, beside the peers."""

from benches.support import bench, contestants


@contestants("dmli")
def test_dmli(benchmark, row, contestant):
    bench(benchmark, row, contestant)

"""k_reciprocal on the processor, beside the peers."""

from benches.support import bench, contestants


@contestants("k_reciprocal")
def test_k_reciprocal(benchmark, row, contestant):
    bench(benchmark, row, contestant)

"""dmli_matrix on the processor, beside the peers."""

from benches.support import bench, contestants


@contestants("dmli_matrix")
def test_dmli_matrix(benchmark, row, contestant):
    bench(benchmark, row, contestant)

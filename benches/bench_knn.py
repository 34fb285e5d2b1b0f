"""knn on the processor, beside the peers."""

from benches.support import bench, contestants


@contestants("knn")
def test_knn(benchmark, row, contestant):
    bench(benchmark, row, contestant)

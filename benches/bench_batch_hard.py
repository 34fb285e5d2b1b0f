"""batch_hard on the processor, beside the peers: a training batch forward and backward, and a large one forward."""

from benches.support import bench, contestants


@contestants("batch_hard", "batch_hard_training")
def test_batch_hard(benchmark, row, contestant):
    bench(benchmark, row, contestant)

"""channel_attention, forward and backward on the processor, beside the peers."""

from benches.support import bench, contestants


@contestants("channel_attention")
def test_channel_attention(benchmark, row, contestant):
    bench(benchmark, row, contestant)

"""channel_attention on the processor, at MuDeep's two sizes, beside bmm and torch's attention.

Forward of a whole map, and forward and backward of its averages over three parts.
"""

from dataclasses import replace

import pytest
from torch import Tensor
from torch.nn.attention import SDPBackend

import reidops
from benches import accuracy, cases, inputs, peers
from benches.cases import Case, Peer
from benches.cpu.contestant import CPU
from benches.cpu.rows import Row
from benches.rows import BMM, Figures, Work, attended_averages_work, megabytes, speed
from reidops import reference


def case(precision: str, batch: int, channels: int, length: int) -> Case:
    query, key, value = (
        inputs.normal(batch, channels, length, device=CPU, seed=seed).mul_(scale)
        for seed, scale in enumerate((length**-0.25, length**-0.25, 1.0))  # scores of variance 1
    )
    return Case(
        [(query, key, value)],
        reidops.channel_attention,
        {
            BMM: Peer(peers.bmm_softmax_bmm),
            "SDPA": Peer(
                peers.scaled_dot_product_attention(None),
                note=f"torch chooses {peers.chosen_backend(query, key, value)}",
            ),
            "SDPA, math": Peer(peers.scaled_dot_product_attention(SDPBackend.MATH)),
        },
        check,
    )


def check(result: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Figures:
    """The first image in float64."""
    exact = reference.channel_attention(query[:1], key[:1], value[:1])
    return accuracy.gradients((result[:1], result[:1]), (exact, exact), 1e-4)


def work(batch: int, channels: int, length: int) -> Work:
    return Work(4.0 * batch * channels**2 * length, 4 * 4.0 * batch * channels * length)


def row(length: int) -> Row:
    sizes = {"full": (4, 2048, length), "part": (4, 2048, length), "small": (2, 24, 10)}
    bars = speed(BMM, 1.4), megabytes(16.7)  # less than one image's C x C matrix
    return Row(f"channel_attention-{length}", "channel_attention", case, "highest", "{} x {:,} x {}", work, bars, sizes)


def averages(precision: str, batch: int, channels: int, length: int) -> Case:
    """A training step of averages over three parts."""
    case = cases.attended_averages("float32", CPU, batch, channels, length)
    return replace(case, check=cases.check_attention(peers.averages_of_attended(reference.channel_attention), 1e-4))


def averages_work(batch: int, channels: int, length: int) -> Work:
    work = attended_averages_work(batch, channels, length)
    return Work(work.flops, 2 * work.bytes)  # float32


def averages_row(length: int) -> Row:
    sizes = {"full": (8, 2048, length), "part": (4, 2048, length), "small": (2, 24, 12)}
    name, shape = f"channel_attention-averages-{length}", "{} x {:,} x {} averaged to 3, forward and backward"
    bars = speed(BMM, 1.8), megabytes(33.6)  # less than two images' C x C matrices
    return Row(name, "channel_attention", averages, "highest", shape, averages_work, bars, sizes)


ROWS = (row(288), row(192), averages_row(288), averages_row(192))


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_channel_attention(bench, row):
    bench(row)

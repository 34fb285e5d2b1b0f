"""batch_hard on the processor: mining, forward and backward, of a large batch and of a training step's."""

import pytest
import torch
from torch import Tensor

import reidops
from benches import accuracy, inputs, peers
from benches.cases import Case, Peer, training_step
from benches.cpu.contestant import CPU
from benches.cpu.gemm import products
from benches.cpu.rows import Row
from benches.rows import GEMM, METRIC_LEARNING, Figures, batch_hard_training_work, megabytes, ratio, speed

ALIGNED_REID, MUDEEP = "AlignedReID's step", "MuDeep's step"


def case(precision: str, batch: int, width: int, images_each: int) -> Case:
    labels = torch.arange(batch) // images_each
    features = inputs.features(labels, width)
    leaves = (features.clone().requires_grad_(),)
    weights = tuple(inputs.normal(batch, device=CPU, seed=seed) for seed in (1, 2))
    large = batch > 512
    rivals = {
        **(products(features, features) if large else {}),
        METRIC_LEARNING: Peer(
            training_step(peers.metric_learning_batch_hard), note=peers.metric_learning_note
        ),
        ALIGNED_REID: Peer(training_step(peers.hard_example_mining)),
    }  # fmt: skip
    if not large:  # it holds (B, B, d) differences
        rivals[MUDEEP] = Peer(training_step(lambda features, labels: peers.triplets_by_slices(features, images_each)))
    return Case(
        [(leaves, (labels,), weights)],
        training_step(lambda features, labels: reidops.batch_hard(features, labels)[:2]),
        rivals,
        check,
        training=True,
    )


def check(result: tuple, leaves: tuple, others: tuple, weights: tuple) -> Figures:
    """Distances and gradients in float64, of the same definition by a matrix product."""
    (features,), (labels,) = leaves, others
    exact = features.detach().double().requires_grad_()
    expected = training_step(in_float64)((exact,), (labels,), [weight.double() for weight in weights])
    return accuracy.gradients(result, expected, 1e-3)


def in_float64(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    distance = accuracy.product_distance(features.detach(), features.detach())
    same = labels[:, None] == labels
    chosen = distance.masked_fill(~same, -1).argmax(1), distance.masked_fill(same, torch.inf).argmin(1)
    return tuple((features - features[other]).square().sum(1).sqrt() for other in chosen)


def work(batch: int, width: int, images_each: int):
    return batch_hard_training_work(batch, width)


SHAPE = "{:,} x {}, {} images a person, forward and backward"
SMALL = (12, 16, 3)
ROWS = (
    Row(
        "batch_hard-4096", "batch_hard", case, "highest", SHAPE, work,
        (ratio(GEMM, 1.3), speed(METRIC_LEARNING, 6), megabytes(67)),  # less than one N x N matrix
        {"full": (4096, 2048, 4), "part": (2048, 2048, 4), "small": SMALL},
    ),
    Row(
        "batch_hard-72", "batch_hard", case, "highest", SHAPE, work,
        (speed(ALIGNED_REID, 8), speed(MUDEEP, 8)),
        {"full": (72, 512, 6), "part": (72, 512, 6), "small": SMALL},
    ),
)  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_batch_hard(bench, row):
    bench(row)

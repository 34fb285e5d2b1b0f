"""rank_metrics on the processor: CMC and mAP of Market-1501's queries and gallery, beside the programs in use."""

import numpy as np
import pytest
import torch
from torch import Tensor

import reidops
from benches import inputs, peers
from benches.cases import Case, Peer
from benches.cpu.contestant import CPU
from benches.cpu.rows import Row
from benches.rows import PUBLISHED_NUMPY, TORCHREID, Figures, megabytes, rank_metrics_work, speed

CAMERAS = 6
DISTRACTORS = 0.176  # of the gallery's images show nobody who is looked for, as in Market-1501


def case(precision: str, queries: int, gallery: int, people: int) -> Case:
    strangers = int(DISTRACTORS * gallery)
    query_ids = inputs.integers(people, queries, device=CPU, seed=1)
    known = inputs.integers(people, gallery - strangers, device=CPU, seed=2)
    shown = torch.cat([query_ids, known, torch.arange(people, people + strangers)])
    gallery_ids = torch.cat([known + 1, torch.zeros(strangers, dtype=torch.int64)])
    query_cameras = inputs.integers(CAMERAS, queries, device=CPU, seed=3)
    gallery_cameras = inputs.integers(CAMERAS, gallery, device=CPU, seed=4)
    query, images = inputs.features(shown, 256).split((queries, gallery))
    ours = peers.squared_distance(query, images), query_ids + 1, gallery_ids, query_cameras, gallery_cameras
    in_numpy, few = tuple(tensor.numpy() for tensor in ours), min(queries, 128)

    def some(values: tuple) -> tuple:
        return tuple(value[:few] if len(value) == queries else value for value in values)

    return Case(
        [ours],
        reidops.rank_metrics,
        {
            TORCHREID: Peer(peers.torchreid_evaluation, [in_numpy]),
            PUBLISHED_NUMPY: Peer(peers.rank_metrics_numpy, [in_numpy]),
            "argsort in PyTorch": Peer(peers.rank_metrics_torch),
            "torchmetrics": Peer(
                peers.torchmetrics_mean_ap, [some(ours)], few / queries, f"{few:,} of the queries", "mAP alone"
            ),
        },
        check,
    )


def check(result: reidops.RankMetrics, *inputs: Tensor) -> Figures:
    """CMC and mAP by the published program, in float64."""
    cmc, mean_ap = peers.rank_metrics_numpy(*(tensor.numpy() for tensor in inputs))
    error = max(np.abs(result.cmc.numpy() - cmc).max(), abs(result.mean_ap.item() - mean_ap))
    return {"ok": bool(error < 1e-5), "max_error": float(error)}  # equal distances may stand in another order there


def work(queries: int, gallery: int, people: int):
    return rank_metrics_work(queries, gallery)


ROWS = (
    Row(
        "rank_metrics", "rank_metrics", case, "highest", "{:,} x {:,}, {} people", work,
        (speed(TORCHREID, 60), megabytes(21.4)),  # a tenth of the distances
        {"full": (3368, 15913, 750), "part": (3368, 15913, 750), "small": (40, 200, 10)},
    ),
)  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_rank_metrics(bench, row):
    bench(row)

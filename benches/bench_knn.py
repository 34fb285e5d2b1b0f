"""knn on the processor: 19,281 images among themselves, as many as Market-1501 has, beside faiss and PyTorch."""

import functools

import pytest
from torch import Tensor

import reidops
from benches import accuracy, inputs, peers
from benches.cases import Case, Peer, gemm
from benches.cpu import score
from benches.cpu.contestant import CPU
from benches.cpu.gemm import products
from benches.cpu.rows import HIGHEST, Row, bfloat16_speed, map_kept
from benches.rows import FAISS, GEMM, Figures, knn_work, ratio


def case(precision: str, images: int, k: int, width: int) -> Case:
    people = inputs.people(images, 13, CPU)
    features = inputs.features(people, width)
    share = features[: min(images, 4096)]
    part = f"{len(share):,} of the {images:,} queries"
    in_numpy = features.numpy()
    index = functools.cache(lambda: peers.faiss_index(in_numpy))  # filled in the first call, which is not timed

    def torch_peer(run) -> Peer:
        return Peer(run, [(share, features)], len(share) / images, part)

    rivals = {
        **products(features, features),
        "torch.cdist, topk": torch_peer(lambda query, gallery: peers.cdist_topk(query, gallery, k)),
        "addmm, topk": torch_peer(lambda query, gallery: peers.matrix_topk(query, gallery, k)),
        FAISS: Peer(lambda query: index().search(query, k), [(in_numpy,)]),
        "faiss.knn": Peer(lambda query, gallery: peers.faiss_knn(query, gallery, k), [(in_numpy, in_numpy)]),
    }
    if precision == "medium":
        rivals = {
            HIGHEST: Peer(lambda query, gallery: reidops.knn(query, gallery, k, precision="highest")),
            f"{GEMM} in bfloat16": gemm(features, features, precision),
        }

    def check(result: reidops.Neighbors, query: Tensor, gallery: Tensor) -> Figures:
        figures = accuracy.knn(result, query, gallery, precision)
        if precision == "medium":
            exact = reidops.knn(query, gallery, k, precision="highest")
            nearest = [score.dense(found, images) for found in (result, exact)]
            figures |= score.kept(*nearest, people, people, alone=True)
            figures |= score.on_real_features(k)
        return figures

    return Case(
        [(features, features)],
        lambda query, gallery: reidops.knn(query, gallery, k, precision=precision),
        rivals,
        check,
    )


SIZES = {"full": (19281, 21, 2048), "part": (6000, 21, 2048), "small": (60, 5, 16)}
SHAPE = "{:,}, k = {}, d = {}"
ROWS = (
    Row("knn", "knn", case, "highest", SHAPE, knn_work, (ratio(FAISS, 0.65),), SIZES),
    Row("knn-medium", "knn", case, "medium", SHAPE, knn_work, (bfloat16_speed(1.6), *map_kept(0.1)), SIZES),
)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_knn(bench, row):
    bench(row)

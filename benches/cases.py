"""What a row runs: for each operator of the table its inputs, our call, the peers' calls and the check of the result.

Every builder is given the precision, the device and the row's dimensions at the chosen size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

import reidops
from benches import accuracy, inputs, peers
from benches.rows import BMM, GEMM, METRIC_LEARNING, PUBLISHED_NUMPY, PUBLISHED_TORCH
from reidops import reference

PROCESSOR = "on the processor"


@dataclass
class Peer:
    """A rival. Where it does only a share of the work, `part`, its time is scaled up to the whole."""

    run: Callable[..., Any]
    inputs: list[tuple] | None = None  # None: ours
    share: float = 1.0
    part: str = ""
    note: str = ""
    on_host: bool = False
    capturable: bool = True  # by a CUDA graph
    alone_gb: float = 0  # the memory it needs; then it runs once, in a process of its own

    def remark(self) -> str:
        """What a reader of its time has to know."""
        return ", ".join(filter(None, [self.note, f"{self.part}, scaled" if self.share < 1 else ""]))


@dataclass
class Case:
    inputs: list[tuple]  # sets, taken in turn
    ours: Callable[..., Any]
    peers: dict[str, Peer]
    check: Callable[..., dict] | None = None  # (our result, *inputs) -> figures
    training: bool = False  # short calls that do not wait: launches are counted, and CUDA graphs timed
    once: bool = False  # one call is long enough


def gemm(x: Tensor, y: Tensor, precision: str) -> Peer:
    """x @ y.T by torch, so cuBLAS on a GPU, into memory that is already there; bfloat16 in and out for "medium"."""
    if precision == "medium":
        x, y = x.bfloat16(), y.bfloat16()
    product = torch.empty(len(x), len(y), dtype=x.dtype, device=x.device)
    note = {"medium": "bfloat16 in and out", "high": "tf32", "highest": "float32"}[precision]
    return Peer(lambda x, y: torch.mm(x, y.T, out=product), [(x, y)], note=note)


def training_step(function: Callable[..., Tensor | tuple]) -> Callable[..., tuple]:
    """A call that gives the function's results and their gradients, weighted, for the tensors in `leaves`."""

    def run(leaves: tuple, others: tuple, weights: tuple) -> tuple:
        results = function(*leaves, *others)
        results = (results,) if isinstance(results, Tensor) else tuple(results)
        return *results, *torch.autograd.grad(results, leaves, weights)

    return run


def on_host(*tensors: Tensor) -> tuple:
    return tuple(tensor.cpu().numpy() for tensor in tensors)


# ---------------------------------------------------------------------------------------------- distances


def dmli_matrix(precision: str, device: torch.device, queries: int, gallery: int, stripes: int, width: int) -> Case:
    x, y = inputs.features(inputs.people(queries + gallery, 13, device), width, stripes).split((queries, gallery))
    some, few = min(queries, 128), (min(queries, 32), min(gallery, 512))
    in_numpy = on_host(x[: few[0]], y[: few[1]])
    return Case(
        [(x, y)],
        lambda x, y: reidops.dmli_matrix(x, y, precision=precision),
        {
            GEMM: gemm(x.flatten(0, 1), y.flatten(0, 1), precision),
            PUBLISHED_TORCH: Peer(
                peers.dmli_matrix_torch, [(x[:some], y)], some / queries, f"{some:,} of the queries"
            ),
            PUBLISHED_NUMPY: Peer(
                peers.dmli_matrix_numpy, [in_numpy], few[0] * few[1] / (queries * gallery),
                part=f"{few[0]} x {few[1]} of the pairs", note=PROCESSOR, on_host=True,
            ),
        },
        lambda result, x, y: accuracy.dmli_matrix(result, x, y, precision),
    )  # fmt: skip


def dmli(precision: str, device: torch.device, batch: int, stripes: int, width: int) -> Case:
    def one(seed: int) -> tuple:
        images = inputs.features(inputs.people(batch, 4, device).repeat(2), width, stripes, seed)
        leaves = tuple(half.clone().requires_grad_() for half in images.split(batch))
        return leaves, (), (inputs.normal(batch, device=device, seed=seed),)

    def check(result: tuple, leaves: tuple, others: tuple, weights: tuple) -> dict:
        exact = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
        return accuracy.gradients(result, training_step(reference.dmli)(exact, (), [w.cpu() for w in weights]), 1e-3)

    sets = inputs.sets_needed(8 * batch * stripes * width, device)
    return Case(
        [one(seed) for seed in range(sets)],
        training_step(reidops.dmli),
        {PUBLISHED_TORCH: Peer(training_step(peers.dmli_torch))},
        check,
        training=True,
    )


# ---------------------------------------------------------------------------------------------- neighbours, re-ranking


def knn(precision: str, device: torch.device, images: int, k: int, width: int) -> Case:
    features = inputs.features(inputs.people(images, 13, device), width)
    return Case(
        [(features, features)],
        lambda query, gallery: reidops.knn(query, gallery, k, precision=precision),
        {
            GEMM: gemm(features, features, precision),
            "torch.cdist, topk": Peer(lambda query, gallery: peers.cdist_topk(query, gallery, k)),
            "addmm, topk": Peer(lambda query, gallery: peers.matrix_topk(query, gallery, k)),
        },
        lambda result, query, gallery: accuracy.knn(result, query, gallery, precision),
    )


def k_reciprocal(precision: str, device: torch.device, queries: int, gallery: int, width: int, topk: int) -> Case:
    query, images = inputs.features(inputs.people(queries + gallery, 13, device), width).split((queries, gallery))
    total, few = queries + gallery, (min(queries, 100), min(gallery, 500))
    huge = total > 200_000
    node_type = torch.float16 if total > 50_000 else torch.float32  # four T x T matrices have to fit
    rivals = {
        "GNN-style, dense": Peer(
            lambda query, gallery: peers.gnn_reranking(query, gallery, dtype=node_type),
            note=f"another method of that purpose, arXiv:2012.07620, nodes in {str(node_type)[6:]}",
        )
    }
    if precision == "highest":
        rivals[PUBLISHED_NUMPY] = Peer(
            peers.k_reciprocal_numpy, [on_host(query[: few[0]], images[: few[1]])], (sum(few) / total) ** 2,
            part=f"{sum(few)} of the images, squared", note=PROCESSOR, on_host=True,
        )  # fmt: skip

    def check(result: Any, query: Tensor, images: Tensor) -> dict:
        figures = accuracy.k_reciprocal(query, images, precision, topk or None)
        if topk:
            figures |= accuracy.neighbours_in_order(result, gallery)
            figures["ok"] = figures["ok"] and figures["ordered"]
        return figures

    return Case(
        [(query, images)],
        lambda query, gallery: reidops.k_reciprocal(
            query, gallery, k1=min(20, total - 1), topk=topk or None, precision=precision
        ),
        {} if huge else rivals,
        check,
        once=huge,
    )


# ---------------------------------------------------------------------------------------------- scores


def rank_metrics(precision: str, device: torch.device, queries: int, gallery: int) -> Case:
    people, cameras = max(gallery // 20, 2), 6
    query_ids = inputs.integers(people, queries, device=device, seed=1)
    gallery_ids = inputs.integers(people, gallery, device=device, seed=2)
    seen_by = inputs.integers(cameras, queries, device=device, seed=3)
    from_cameras = inputs.integers(cameras, gallery, device=device, seed=4)

    def one(seed: int) -> tuple:
        distance = inputs.normal(queries, gallery, device=device, seed=seed).abs_()
        for rows, ids in zip(distance.split(1024), query_ids.split(1024), strict=True):
            rows[ids[:, None] == gallery_ids] *= 0.3
        return distance, query_ids, gallery_ids, seen_by, from_cameras

    sets = [one(seed) for seed in range(inputs.sets_needed(4 * queries * gallery, device))]
    few = min(queries, 64)
    some = on_host(sets[0][0][:few], query_ids[:few], gallery_ids, seen_by[:few], from_cameras)
    return Case(
        sets,
        reidops.rank_metrics,
        {
            "argsort in PyTorch": Peer(peers.rank_metrics_torch),
            PUBLISHED_NUMPY: Peer(
                peers.rank_metrics_numpy, [some], few / queries, part=f"{few} of the queries", note=PROCESSOR,
                on_host=True,
            ),
        },
        accuracy.rank_metrics,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- mining


def batch_hard_training(precision: str, device: torch.device, batch: int, width: int) -> Case:
    labels = torch.arange(batch, device=device) // 4

    def one(seed: int) -> tuple:
        weights = tuple(inputs.normal(batch, device=device, seed=seed + i) for i in (1000, 2000))
        return (inputs.features(labels, width, seed=seed).requires_grad_(),), (labels,), weights

    def mine(features: Tensor, labels: Tensor) -> tuple:
        return reidops.batch_hard(features, labels)[:2]

    def check(result: tuple, leaves: tuple, others: tuple, weights: tuple) -> dict:
        exact = (leaves[0].detach().cpu().double().requires_grad_(),)
        defined = training_step(lambda features, labels: reference.batch_hard(features, labels)[:2])
        return accuracy.gradients(result, defined(exact, others, [weight.cpu().double() for weight in weights]), 1e-3)

    return Case(
        [one(seed) for seed in range(inputs.sets_needed(4 * batch * width, device))],
        training_step(mine),
        {
            METRIC_LEARNING: Peer(
                training_step(peers.metric_learning_batch_hard), note=peers.metric_learning_note, capturable=False
            ),
            "hard_example_mining": Peer(training_step(peers.hard_example_mining), capturable=False),
        },
        check,
        training=True,
    )


def batch_hard(precision: str, device: torch.device, batch: int, width: int) -> Case:
    labels = torch.arange(batch, device=device) // 4
    features = inputs.features(labels, width)
    return Case(
        [(features, labels)],
        reidops.batch_hard,  # at torch's setting, which is the row's
        {
            GEMM: gemm(features, features, precision),
            METRIC_LEARNING: Peer(peers.metric_learning_batch_hard, note=peers.metric_learning_note),
        },
        lambda result, features, labels: accuracy.batch_hard(result, features, labels, 0.05),
    )


# ---------------------------------------------------------------------------------------------- attention


def attention_inputs(
    precision: str, device: torch.device, batch: int, channels: int, length: int, width: int, seed: int
) -> tuple:
    """Query, key and value with scores of variance 1; the weights of a result of `width` columns."""
    dtype, scale = getattr(torch, precision), length**-0.25
    sizes = (scale, length), (scale, length), (1.0, length), (1.0, width)
    values = [
        inputs.normal(batch, channels, columns, device=device, seed=4 * seed + i).mul_(size).to(dtype)
        for i, (size, columns) in enumerate(sizes)
    ]
    return tuple(value.requires_grad_() for value in values[:3]), (), (values[3],)


def check_attention(attend: Callable[..., Tensor], tolerance: float) -> Callable[..., dict]:
    """The first image of a training step beside `attend` in float64."""

    def check(result: tuple, leaves: tuple, others: tuple, weights: tuple) -> dict:
        exact = [leaf[:1].detach().cpu().double().requires_grad_() for leaf in leaves]
        expected = training_step(attend)(exact, (), [weight[:1].cpu().double() for weight in weights])
        return accuracy.gradients([tensor[:1] for tensor in result], expected, tolerance)

    return check


def attended_averages(precision: str, device: torch.device, batch: int, channels: int, length: int) -> Case:
    """What MuDeep_v2 takes of the attended map: its averages over three parts. Ours attends to the parts' averages."""
    count = inputs.sets_needed(6 * batch * channels * length, device)
    sdpa = peers.scaled_dot_product_attention(None)
    return Case(
        [attention_inputs(precision, device, batch, channels, length, 3, seed) for seed in range(count)],
        training_step(peers.attended_averages(reidops.channel_attention)),
        {
            BMM: Peer(training_step(peers.averages_of_attended(peers.bmm_softmax_bmm)), note="then averages"),
            "bmm of averages": Peer(training_step(peers.attended_averages(peers.bmm_softmax_bmm))),
            "SDPA": Peer(training_step(peers.averages_of_attended(sdpa)), note="then averages"),
        },
        check_attention(peers.averages_of_attended(reference.channel_attention), 0.03),
        training=True,
    )


def channel_attention(precision: str, device: torch.device, batch: int, channels: int, length: int) -> Case:
    count = inputs.sets_needed(6 * batch * channels * length, device)
    sets = [attention_inputs(precision, device, batch, channels, length, length, seed) for seed in range(count)]
    backends = [SDPBackend.MATH]
    if device.type == "cuda":
        backends += [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    rivals = {"SDPA": Peer(training_step(peers.scaled_dot_product_attention(None)))}
    rivals["SDPA"].note = f"torch chooses {peers.chosen_backend(*sets[0][0])}"
    for backend in backends:
        name = backend.name.removesuffix("_ATTENTION").lower()
        rivals[f"SDPA, {name}"] = Peer(training_step(peers.scaled_dot_product_attention(backend)))
    return Case(
        sets,
        training_step(reidops.channel_attention),
        {BMM: Peer(training_step(peers.bmm_softmax_bmm)), **rivals},
        check_attention(reference.channel_attention, 0.03),
        training=True,
    )


BUILDERS: dict[str, Callable[..., Case]] = {
    function.__name__: function
    for function in (
        attended_averages, batch_hard, batch_hard_training, channel_attention, dmli, dmli_matrix, k_reciprocal, knn,
        rank_metrics,
    )
}  # fmt: skip

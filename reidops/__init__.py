"""reidops: operators for person re-identification on PyTorch, from distances to re-ranking and scores.

>>> import reidops, torch
>>> query, gallery = torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
>>> reidops.euclidean_distance(query, gallery)
tensor([[5., 1., 1.]])
>>> reidops.knn(query, gallery, k=2).index
tensor([[1, 2]])

Training: `euclidean_distance`, `shortest_path`, `dmli`, `batch_hard`, `batch_hard_from_distance`, `channel_attention`
and the modules of `reidops.losses`. Evaluation, on tensors or NumPy arrays: `knn`, `dmli_matrix`, `k_reciprocal`,
`k_reciprocal_from_distance`, `rank_metrics`, `shortest_path_indices`. `reidops.reference` holds each of them again in
plain float64.
"""

import importlib
import importlib.metadata
from typing import Any

from . import _extension, losses
from .attention import channel_attention
from .distance import dmli, dmli_matrix, euclidean_distance, shortest_path, shortest_path_indices
from .mining import batch_hard, batch_hard_from_distance
from .neighbors import knn
from .ranking import rank_metrics
from .reranking import k_reciprocal, k_reciprocal_from_distance
from .results import BatchHard, Neighbors, RankMetrics

__all__ = [
    "BatchHard",
    "Neighbors",
    "RankMetrics",
    "batch_hard",
    "batch_hard_from_distance",
    "build_info",
    "channel_attention",
    "dmli",
    "dmli_matrix",
    "euclidean_distance",
    "k_reciprocal",
    "k_reciprocal_from_distance",
    "knn",
    "losses",
    "rank_metrics",
    "reference",
    "shortest_path",
    "shortest_path_indices",
]

try:
    __version__ = importlib.metadata.version("reidops")
except importlib.metadata.PackageNotFoundError:  # a checkout whose extension was built in place, never installed
    __version__ = "0+unknown"


def build_info() -> dict[str, Any]:
    """What this reidops was built with and what it uses here; `python -m reidops` prints it with the machine.

    Returns:
        A dict of version, torch (built with), torch_target (the oldest torch it runs on), cuda (version built with, or
        None), cuda_archs, simd (level in use), simd_levels (available here), compiler, threads, and cuda_extension:
        "loaded" or the reason why it is not.

    Example:
        >>> sorted(build_info())[:3]
        ['compiler', 'cuda', 'cuda_archs']
    """
    return _extension.build_info(__version__)


def __getattr__(name: str) -> Any:
    if name == "reference":  # only tests and the curious need it
        return importlib.import_module("reidops.reference")
    raise AttributeError(f"module 'reidops' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

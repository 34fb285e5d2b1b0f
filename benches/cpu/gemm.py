"""GEMM, what our operators are held against: the fastest of the libraries at hand for the same float32 product."""

import numpy as np
import torch
from torch import Tensor

from benches.cases import Peer
from benches.rows import GEMM, Figures

MOST = 5e11  # FLOPs of a product that is computed whole; of a larger one some rows are, as its speed is the same


def one_dnn(x: Tensor, y: Tensor) -> Tensor:
    """x @ y.T by oneDNN, which takes no memory for its result."""
    return torch.ops.mkldnn._linear_pointwise(x, y, None, "none", [], "")


def products(x: Tensor, y: Tensor) -> dict[str, Peer]:
    """x @ y.T, (M, d), (N, d) -> (M, N), by every library, into memory that is already there where it can be given."""
    share = min(1.0, MOST / (2.0 * x.shape[0] * x.shape[1] * y.shape[0]))
    some = x[: max(int(share * len(x)), 1)]
    share = len(some) / len(x)
    product = torch.empty(len(some), len(y))
    in_numpy = some.numpy(), y.numpy()
    part = f"{len(some):,} of the {len(x):,} rows"

    def open_blas(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.matmul(x, y.T, out=product.numpy())

    def mkl(x: Tensor, y: Tensor) -> Tensor:
        return torch.mm(x, y.T, out=product)

    return {
        f"{GEMM}, OpenBLAS": Peer(open_blas, [in_numpy], share, part),
        f"{GEMM}, torch.mm": Peer(mkl, [(some, y)], share, part),
        f"{GEMM}, oneDNN": Peer(one_dnn, [(some, y)], share, part),
    }


def with_fastest(peers: Figures) -> Figures:
    """The peers' figures with one more, GEMM: those of the fastest product."""
    measured = {name: peer for name, peer in peers.items() if name.startswith(f"{GEMM}, ") and "ms" in peer}
    if not measured:
        return peers
    name = min(measured, key=lambda name: measured[name]["ms"])
    note = ", ".join(filter(None, [name.removeprefix(f"{GEMM}, "), measured[name].get("note")]))
    return {GEMM: {**measured[name], "note": note}, **peers}

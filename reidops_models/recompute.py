"""Parts of a network that cost little to compute and much to keep: in backward they are computed again.

torch keeps what a convolution returns twice on the way to the next one: before batch norm, and after batch norm and
ReLU. The second follows from the first in one pass over memory. A query and a key map follow from the leader they
share, which is an eighth of their size. With `recompute=True` these functions keep the first of each alone. Gradients
are the same to the last bit, because the same operations run again on the same numbers: a parameter that was changed in
place before backward is an error, as it is without.
"""

from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

import reidops


def stem(layers: nn.Sequential, images: Tensor, *, recompute: bool) -> Tensor:
    """A ResNet's first layers, named conv, bn, relu and pool, keeping what the convolution returns."""
    return _norm_relu_and(layers.pool, layers.bn, layers.relu, layers.conv(images), recompute)


def residual(block: BasicBlock | Bottleneck, features: Tensor, *, recompute: bool) -> Tensor:
    """A torchvision residual block, keeping what its convolutions return and its result, and nothing in between."""
    identity = features if block.downsample is None else block.downsample(features)
    mapped = _norm_relu_and(block.conv2, block.bn1, block.relu, block.conv1(features), recompute)
    if isinstance(block, BasicBlock):
        mapped = block.bn2(mapped)
    else:
        mapped = block.bn3(_norm_relu_and(block.conv3, block.bn2, block.relu, mapped, recompute))
    mapped += identity
    return block.relu(mapped)


def convolve_together(convolution: nn.Conv2d, maps: Sequence[Tensor], *, recompute: bool) -> Tensor:
    """A convolution of several maps (B, C, h, w) joined to one of all their channels, keeping the maps alone."""

    def part(*maps: Tensor) -> Tensor:
        return convolution(torch.cat(maps, dim=1))

    return checkpoint(part, *maps, use_reentrant=False, preserve_rng_state=False) if recompute else part(*maps)


def attend(leader: Tensor, query_weight: Tensor, key_weight: Tensor, value: Tensor, *, recompute: bool) -> Tensor:
    """`reidops.channel_attention` of queries and keys that are 1x1 convolutions of one leader, keeping the leader.

    Args:
        leader: (B, G, L).
        query_weight, key_weight: (C, G, 1).
        value: (B, C, V).
        recompute: compute queries and keys again in backward, rather than keep their 2 B C L numbers.

    Returns:
        (B, C, V); like torch's own layers, of NaN where NaN went in.
    """
    maps = [functional.conv1d(leader, weight) for weight in (query_weight, key_weight)]
    query, key = (_as_the_kernel_takes(one) for one in maps)
    if not recompute:
        return reidops.channel_attention(query, key, value.to(query.dtype), validate=False)
    kept, narrow, wide, shape = leader.detach(), maps[0].dtype, query.dtype, query.shape
    weight_of = {query.data_ptr(): query_weight.detach(), key.data_ptr(): key_weight.detach()}

    def pack(saved: Tensor) -> Tensor | Callable[[], Tensor]:
        weight = weight_of.get(saved.data_ptr()) if saved.shape == shape and saved.dtype == wide else None
        return saved if weight is None else lambda: functional.conv1d(kept.to(narrow), weight.to(narrow)).to(wide)

    def unpack(packed: Tensor | Callable[[], Tensor]) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed()

    with saved_tensors_hooks(pack, unpack):
        return reidops.channel_attention(query, key, value.to(wide), validate=False)


def _as_the_kernel_takes(tensor: Tensor) -> Tensor:
    """Half precision is widened on a CPU, whose kernels would do so themselves, and keep a copy."""
    narrow = tensor.device.type == "cpu" and tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if narrow else tensor


def _norm_relu_and(layer: nn.Module, norm: nn.Module, relu: nn.Module, mapped: Tensor, recompute: bool) -> Tensor:
    """layer(relu(norm(mapped))), keeping `mapped` and, unless `layer` is a convolution, the result."""
    if not recompute or type(norm) is not nn.BatchNorm2d:  # one that waits for other processes runs once
        return layer(relu(norm(mapped)))
    training, times = norm.training, count()
    parameters = [*norm.parameters(), *layer.parameters()]
    versions = [parameter._version for parameter in parameters]

    def part(x: Tensor) -> Tensor:
        if next(times) == 0:
            return layer(relu(norm(x)))
        if versions != [parameter._version for parameter in parameters]:
            raise RuntimeError("a parameter was modified by an inplace operation between forward and backward")
        settings = norm.running_mean, norm.running_var, norm.weight, norm.bias, training
        normalised = functional.batch_norm(x, *settings, momentum=0.0, eps=norm.eps)  # counts no batch twice
        return layer(relu(normalised))

    return checkpoint(part, mapped, use_reentrant=False, preserve_rng_state=False)

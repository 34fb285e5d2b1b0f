"""Triplet losses with batch-hard mining, as modules."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ._validate import check_floats, check_number, check_shape
from .distance import dmli
from .mining import batch_hard


class AlignedTripletLosses(NamedTuple):
    """The two parts of `AlignedTripletLoss`, to be weighed and added.

    Attributes:
        global_loss: () loss of the global features.
        local_loss: () loss of the local features.
    """

    global_loss: Tensor
    local_loss: Tensor


class TripletLoss(nn.Module):
    """Batch-hard triplet loss: an anchor's farthest positive should be nearer than its nearest negative, by a margin.

    The mean over anchors of max(positive - negative + margin, 0), or with the soft margin of
    log(1 + exp(positive - negative)), which never stops pulling.

    Args:
        margin: by how much, in units of the Euclidean distance, 0 or more; None for the soft margin.
        normalize: divide every feature by its Euclidean norm first.
        epsilon: added to the squared distance under the root, 0 or more. MuDeep_v2's program (its TripHard) has 1e-8.

    Raises:
        TypeError: margin or epsilon is no number.
        ValueError: margin or epsilon is negative or not finite.

    Source:
        Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, arXiv:1703.07737, section 2, eq. 5.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [1.5], [4.0]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> TripletLoss(margin=0.5)(features, labels)   # (0 + 1 + 2.5 + 0) / 4
        tensor(0.8750)
    """

    def __init__(self, margin: float | None = 0.3, normalize: bool = False, epsilon: float = 0.0) -> None:
        super().__init__()
        self.margin = _check_margin(margin)
        self.normalize = normalize
        self.epsilon = check_number("epsilon", epsilon, 0, math.inf)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Loss of a batch.

        Args:
            features: (B, d) float tensor.
            labels: (B,) integer identities, at least two different ones.

        Returns:
            () loss, in the features' dtype.

        Raises:
            TypeError, ValueError: as `reidops.batch_hard`.
        """
        positive, negative, *_ = batch_hard(features, labels, normalize=self.normalize)
        if self.epsilon:
            positive, negative = (torch.sqrt(distance.square() + self.epsilon) for distance in (positive, negative))
        return _triplet(positive, negative, self.margin)

    def extra_repr(self) -> str:
        return f"margin={self.margin}, normalize={self.normalize}, epsilon={self.epsilon}"


class AlignedTripletLoss(nn.Module):
    """Triplet loss of AlignedReID: global features choose the triplets, and local features learn from the same ones.

    Batch-hard mining on the global features gives each anchor its positive and its negative. The global loss compares
    their Euclidean distances, the local loss their DMLI distances (`reidops.dmli`).

    Args:
        margin: by how much a positive should be nearer than a negative, 0 or more; in both losses; None for the soft
            margin of `TripletLoss`.
        normalize: divide every global feature by its Euclidean norm first.

    Raises:
        TypeError: margin is no number.
        ValueError: margin is negative or not finite.

    Source:
        Luo et al., AlignedReID++, Pattern Recognition 94 (2019), section 3; Zhang et al., AlignedReID,
        arXiv:1711.08184, section 3.

    Example:
        >>> global_features = torch.tensor([[0.0], [1.0], [1.5], [4.0]])
        >>> local_features = global_features.reshape(4, 1, 1)   # one stripe of one channel
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> global_loss, local_loss = AlignedTripletLoss(margin=0.5)(global_features, local_features, labels)
        >>> global_loss
        tensor(0.8750)
        >>> local_loss   # each distance d is now tanh(d / 2)
        tensor(0.6477)
    """

    def __init__(self, margin: float | None = 0.3, normalize: bool = False) -> None:
        super().__init__()
        self.margin = _check_margin(margin)
        self.normalize = normalize

    def forward(self, global_features: Tensor, local_features: Tensor, labels: Tensor) -> AlignedTripletLosses:
        """Losses of a batch.

        Args:
            global_features: (B, d) float tensor.
            local_features: (B, stripes, c), stripes top first, same dtype and device. The published program keeps its
                local features as (B, c, stripes): `.transpose(1, 2)` turns one into the other.
            labels: (B,) integer identities, at least two different ones.

        Returns:
            AlignedTripletLosses(global_loss, local_loss), () each.

        Raises:
            TypeError, ValueError: as `reidops.batch_hard` and `reidops.dmli`.
        """
        check_floats(global_features=global_features, local_features=local_features)
        check_shape("global_features", global_features, ("B", "d"))
        like = f"like global_features {tuple(global_features.shape)}"
        check_shape("local_features", local_features, (global_features.shape[0], "stripes", "c"), like=like)
        mined = batch_hard(global_features, labels, normalize=self.normalize)
        positive = dmli(local_features, local_features.index_select(0, mined.positive_index))
        negative = dmli(local_features, local_features.index_select(0, mined.negative_index))
        return AlignedTripletLosses(
            _triplet(mined.positive_distance, mined.negative_distance, self.margin),
            _triplet(positive, negative, self.margin),
        )

    def extra_repr(self) -> str:
        return f"margin={self.margin}, normalize={self.normalize}"


def _check_margin(margin: float | None) -> float | None:
    return None if margin is None else check_number("margin", margin, 0, math.inf)


def _triplet(positive: Tensor, negative: Tensor, margin: float | None) -> Tensor:
    """Mean hinge, or with margin None mean softplus, of how much farther the positives are than the negatives."""
    excess = positive - negative
    penalty = nn.functional.softplus(excess) if margin is None else torch.relu(excess + margin)
    return penalty.mean()

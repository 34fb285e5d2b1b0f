"""The loss of a batch in each system: its parts by name, and what the classifiers say."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from reidops.losses import AlignedTripletLoss, TripletLoss
from reidops_models import AlignedReIDOutput, MuDeepOutput
from train import processes


class ReIDLoss(nn.Module):
    """Cross entropy over identities, plus the batch-hard triplet losses of the global and the local features.

    Args:
        margin: margin of both triplet losses.
        label_smoothing: weight spread evenly over all identities.
        triplet_only: leave the cross entropy out of the sum (it is still reported).

    Source: Luo et al., AlignedReID++, Pattern Recognition 94 (2019), equation 9.
    """

    names = ("loss", "cross_entropy", "global_loss", "local_loss")

    def __init__(self, margin: float = 0.3, label_smoothing: float = 0.0, triplet_only: bool = False):
        super().__init__()
        self.triplet = AlignedTripletLoss(margin=margin)
        self.label_smoothing = label_smoothing
        self.triplet_only = triplet_only

    def forward(self, output: AlignedReIDOutput, labels: Tensor) -> dict[str, Tensor]:
        """The losses of an AlignedReIDOutput, in float32 or wider, by their names."""
        cross_entropy = functional.cross_entropy(_wide(output.logits), labels, label_smoothing=self.label_smoothing)
        _require_finite(cross_entropy)
        global_loss, local_loss = self.triplet(_wide(output.global_features), _wide(output.local_features), labels)
        loss = global_loss + local_loss if self.triplet_only else cross_entropy + global_loss + local_loss
        return dict(zip(self.names, (loss, cross_entropy, global_loss, local_loss), strict=True))

    @staticmethod
    def predict(output: AlignedReIDOutput) -> Tensor:
        """(B,) the identities that an output tells."""
        return output.logits.argmax(1)


class MuDeepLoss(nn.Module):
    """Twice the cross entropies of all classifiers, plus the triplet-hard losses of the scales' global features.

    The cross entropies are averaged over the four regions of a scale and added up over the scales; the triplet losses
    take features of unit length, and 1e-8 is added under the root of their distances, as the published program does.
    Where several processes train together, triplets are found among the images of all of them.

    Args:
        margin: margin of the triplet losses.
        label_smoothing: weight spread evenly over all identities.

    Source: Qian et al., Leader-based Multi-Scale Attention, IEEE TPAMI 42 (2020), section 3.4, and its program.
    """

    names = ("loss", "cross_entropy", "triplet")

    def __init__(self, margin: float = 1.0, label_smoothing: float = 0.0):
        super().__init__()
        self.triplet = TripletLoss(margin=margin, normalize=True, epsilon=1e-8)
        self.label_smoothing = label_smoothing

    def forward(self, output: MuDeepOutput, labels: Tensor) -> dict[str, Tensor]:
        """The losses of a MuDeepOutput, in float32 or wider, by their names."""
        regions = len(output.logits) // len(output.global_features)
        cross_entropy = sum(
            functional.cross_entropy(_wide(logits), labels, label_smoothing=self.label_smoothing)
            for logits in output.logits
        )
        cross_entropy = cross_entropy / regions
        _require_finite(cross_entropy)
        everyone = processes.gather(labels)
        triplet = sum(self.triplet(processes.gather(_wide(scale)), everyone) for scale in output.global_features)
        return dict(zip(self.names, (2 * cross_entropy + triplet, cross_entropy, triplet), strict=True))

    @staticmethod
    def predict(output: MuDeepOutput) -> Tensor:
        """(B,) the identities that all classifiers together tell."""
        return sum(output.logits).argmax(1)


def _wide(tensor: Tensor) -> Tensor:
    """Half precision becomes float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _require_finite(cross_entropy: Tensor) -> None:
    """Say on the CPU that training has diverged, before the triplet loss meets features of NaN; a GPU would wait."""
    if cross_entropy.device.type == "cpu" and not math.isfinite(cross_entropy.item()):
        raise FloatingPointError(f"the cross entropy is {cross_entropy.item()}")

"""AlignedReID: a ResNet with a global feature and a row of local features, one for each horizontal stripe."""

from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from .checkpoints import load_backbone

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101")


class AlignedReIDOutput(NamedTuple):
    """What `AlignedReID` returns while training.

    Attributes:
        logits: (B, num_classes) scores of the training identities.
        global_features: (B, D) average-pooled features, not normalised; D is 512 (resnet18, 34) or 2048.
        local_features: (B, stripes, local_dim) stripe features of unit length, from head to foot.
    """

    logits: Tensor
    global_features: Tensor
    local_features: Tensor


class AlignedReID(nn.Module):
    """AlignedReID++: one trunk, a global branch, and a local branch of horizontal stripes matched by DMLI.

    A stripe is a row of the trunk's last feature map: 8 stripes for an image 256 pixels high, 4 for one of 128.
    Training returns an `AlignedReIDOutput`. Evaluation returns `(global_features (B, D), local_features
    (B, stripes, D))`: the stripes are then pooled straight from the trunk and scaled to unit length, without the
    batch norm and the convolution of the training branch, as the published model does.

    Parameters carry the names of the published model (`base.*`, `bn.*`, `conv1.*`, `classifier.*`), so its
    checkpoints load by name.

    Args:
        num_classes: number of training identities, at least 1.
        backbone: "resnet18", "resnet34", "resnet50" or "resnet101" of torchvision.
        local_dim: length of a stripe feature while training.
        weights: path to a torchvision ImageNet state dict for the trunk (its `fc` is left out); None starts from
            random weights.
        last_stride: stride of the trunk's last stage: 2 as published; 1 gives twice as many stripes, and costs more.

    Raises:
        ValueError: an argument is out of range, or `weights` does not fit the trunk.
        FileNotFoundError: `weights` does not exist.

    Source: Luo et al., AlignedReID++: Dynamically Matching Local Information for Person Re-Identification,
    Pattern Recognition 94 (2019), sections 3.1 and 3.2.

    Example:
        >>> import torch
        >>> from reidops_models import AlignedReID
        >>> model = AlignedReID(num_classes=10, backbone="resnet18")
        >>> output = model(torch.rand(2, 3, 256, 128))
        >>> output.logits.shape, output.global_features.shape, output.local_features.shape
        (torch.Size([2, 10]), torch.Size([2, 512]), torch.Size([2, 8, 128]))
        >>> global_features, local_features = model.eval()(torch.rand(2, 3, 256, 128))
        >>> local_features.shape
        torch.Size([2, 8, 512])
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        local_dim: int = 128,
        weights: str | None = None,
        last_stride: int = 2,
    ):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes should be at least 1, got {num_classes}")
        if backbone not in BACKBONES:
            raise ValueError(f"backbone should be one of {', '.join(BACKBONES)}, got {backbone!r}")
        if local_dim < 1:
            raise ValueError(f"local_dim should be at least 1, got {local_dim}")
        if last_stride not in (1, 2):
            raise ValueError(f"last_stride should be 1 or 2, got {last_stride}")
        trunk = getattr(torchvision.models, backbone)(weights=None)
        if weights is not None:
            load_backbone(trunk, weights)
        if last_stride == 1:
            first = trunk.layer4[0]
            first.downsample[0].stride = (1, 1)
            strided = first.conv2 if hasattr(first, "conv3") else first.conv1
            strided.stride = (1, 1)

        self.feature_dim = trunk.fc.in_features
        self.base = nn.Sequential(*list(trunk.children())[:-2])
        self.classifier = nn.Linear(self.feature_dim, num_classes)
        self.bn = nn.BatchNorm2d(self.feature_dim)
        self.conv1 = nn.Conv2d(self.feature_dim, local_dim, kernel_size=1)

    def forward(self, images: Tensor) -> AlignedReIDOutput | tuple[Tensor, Tensor]:
        """Features of a batch of images (B, 3, height, width); see the class for what comes back in each mode."""
        feature_map = self.base(images)
        global_features = feature_map.mean(dim=(2, 3))
        if not self.training:
            return global_features, _unit_stripes(_horizontal_max_pool(feature_map))
        stripes = self.conv1(_horizontal_max_pool(functional.relu(self.bn(feature_map))))
        return AlignedReIDOutput(self.classifier(global_features), global_features, _unit_stripes(stripes))


def _horizontal_max_pool(feature_map: Tensor) -> Tensor:
    """(B, D, stripes, width) -> (B, D, stripes, 1): the strongest response along each row."""
    return feature_map.amax(dim=3, keepdim=True)


def _unit_stripes(stripes: Tensor) -> Tensor:
    """(B, D, stripes, 1) -> (B, stripes, D), every stripe scaled to length 1; half precision becomes float32."""
    stripes = stripes.squeeze(3).transpose(1, 2)
    wide = stripes.float() if stripes.dtype in (torch.float16, torch.bfloat16) else stripes
    return functional.normalize(wide, dim=2, eps=1e-6)

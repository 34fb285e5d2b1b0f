"""AlignedReID: a trunk with a global feature and a row of local features, one for each horizontal stripe."""

import os
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .backbones import LEAST_PIXELS, PUBLISHED_STRIPES, base_names, make_base
from .checkpoints import load_checkpoint


class AlignedReIDOutput(NamedTuple):
    """What `AlignedReID` returns while training.

    Attributes:
        logits: (B, num_classes) scores of the training identities.
        global_features: (B, D) average-pooled features, not normalised; D is 2048 (resnet50,
            resnet101), 512 (resnet18, resnet34), 1024 (densenet121, shufflenet) or 1536 (inceptionv4).
        local_features: (B, stripes, local_dim) stripe features of unit length, from head to foot.
    """

    logits: Tensor
    global_features: Tensor
    local_features: Tensor


class AlignedReID(nn.Module):
    """AlignedReID++: one trunk, a global branch, and a local branch of horizontal stripes matched by DMLI.

    A stripe is a row of the trunk's last feature map: 8 stripes for an image 256 pixels high, 4 for one of 128 (of
    Inception-v4, which does not pad, 6 for 256). Training returns an `AlignedReIDOutput`. Evaluation returns
    `(global_features (B, D), local_features (B, stripes, d))`, the latter of unit length: with stripes "trunk"
    pooled straight from the trunk, d = D, as the published ResNet-50 does, whose figures the papers give; with
    "branch" through the batch norm and the convolution of training, d = local_dim, as the published classes of
    ResNet-101, DenseNet-121 and Inception-v4 do.

    Parameters carry the names of the published model (`base.*`, `bn.*`, `conv1.*`, `classifier.*`), so its
    checkpoints load by name.

    Args:
        num_classes: number of training identities, at least 1.
        backbone: "resnet18", "resnet34", "resnet50", "resnet101", "densenet121" or "shufflenet" (version 2, width 1.0)
            of torchvision, or "inceptionv4" (also "inception") of timm, which has to be installed for it.
        local_dim: length of a stripe feature while training.
        weights: ImageNet weights to start the trunk from, a file or a name, or a checkpoint; see `load_checkpoint`.
            None starts from random weights.
        last_stride: stride of a ResNet's last stage: 2 as published; 1 gives twice as many stripes, and costs more.
        stripes: where evaluation takes its stripes from, "trunk" or "branch"; None for what the published class of
            this backbone does, which is "trunk" once a checkpoint without a local branch has been loaded.

    Raises:
        ValueError: an argument is out of range, or `weights` do not fit.
        OSError: `weights` do not exist, or cannot be downloaded.
        ImportError: the backbone is timm's, and timm is not installed.

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

    # What `load_checkpoint` has to know of the names.
    trunk, classifiers = ("base.",), ("classifier.",)

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        local_dim: int = 128,
        weights: str | os.PathLike | None = None,
        last_stride: int = 2,
        stripes: str | None = None,
    ):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes should be at least 1, got {num_classes}")
        if local_dim < 1:
            raise ValueError(f"local_dim should be at least 1, got {local_dim}")
        if stripes not in (None, "trunk", "branch"):
            raise ValueError(f"stripes should be 'trunk' or 'branch', got {stripes!r}")
        self.backbone, self.as_published = backbone, stripes is None
        self.stripes = stripes or PUBLISHED_STRIPES.get(backbone, "trunk")
        self.base, self.feature_dim = make_base(backbone, last_stride)
        self.classifier = nn.Linear(self.feature_dim, num_classes)
        self.bn = nn.BatchNorm2d(self.feature_dim)
        self.conv1 = nn.Conv2d(self.feature_dim, local_dim, kernel_size=1)
        if weights is not None:
            load_checkpoint(self, weights)

    @property
    def training_only(self) -> tuple[str, ...]:
        """Beginnings of the names that a file may lack: those of the local branch, unless evaluation was to use it."""
        return ("bn.", "conv1.") if self.stripes == "trunk" or self.as_published else ()

    def from_imagenet(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """ImageNet weights under the names they have in this model."""
        return base_names(state, self.backbone)

    def forward(self, images: Tensor) -> AlignedReIDOutput | tuple[Tensor, Tensor]:
        """Features of a batch of images (B, 3, height, width); see the class for what comes back in each mode.

        Raises:
            ValueError: the images are too small for the trunk.
        """
        least = LEAST_PIXELS.get(self.backbone, 1)
        if min(images.shape[-2:]) < least:
            raise ValueError(
                f"images should be at least {least} x {least} pixels for backbone {self.backbone!r}, got "
                f"{images.shape[-2]} x {images.shape[-1]} (height x width)"
            )
        feature_map = self.base(images)
        global_features = feature_map.mean(dim=(2, 3))
        if not self.training and self.stripes == "trunk":
            return global_features, _unit_stripes(_horizontal_max_pool(feature_map))
        stripes = self.conv1(_horizontal_max_pool(functional.relu(self.bn(feature_map))))
        if not self.training:
            return global_features, _unit_stripes(stripes)
        return AlignedReIDOutput(self.classifier(global_features), global_features, _unit_stripes(stripes))


def _horizontal_max_pool(feature_map: Tensor) -> Tensor:
    """(B, D, stripes, width) -> (B, D, stripes, 1): the strongest response along each row."""
    return feature_map.amax(dim=3, keepdim=True)


def _unit_stripes(stripes: Tensor) -> Tensor:
    """(B, D, stripes, 1) -> (B, stripes, D), every stripe scaled to length 1; half precision becomes float32."""
    stripes = stripes.squeeze(3).transpose(1, 2)
    wide = stripes.float() if stripes.dtype in (torch.float16, torch.bfloat16) else stripes
    return functional.normalize(wide, dim=2, eps=1e-6)

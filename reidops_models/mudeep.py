"""MuDeep_v2: three scales of a ResNet, their channels mixed as a common leader says, and twelve classifiers."""

import copy
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .backbones import make_resnet
from .checkpoints import load_checkpoint
from .recompute import attend, convolve_together, residual, stem

REGIONS = ("global", "top", "middle", "bottom")
MAX_SCALES = 3


class MuDeepOutput(NamedTuple):
    """What `MuDeepV2` returns while training.

    Attributes:
        logits: 4 x num_scales tensors (B, num_classes), scale by scale: global, top, middle, bottom.
        global_features: num_scales tensors (B, feature_dim), the global feature of each scale, not normalised.
    """

    logits: tuple[Tensor, ...]
    global_features: tuple[Tensor, ...]


class MuDeepV2(nn.Module):
    """Leader-based multi-scale attention network: a global and three part features at each of three scales.

    A ResNet up to its layer3 feeds three copies of layer4 with one, two and three blocks and stride 1: the scales. The
    leader, a 1x1 convolution of all scales together, gives each scale a query and a key map; the channels of the
    scale attend to each other by them (`reidops.channel_attention`), and gamma times the result, gamma starting at 0,
    is added to the scale. Each scale is averaged over the whole map and over its upper, middle and lower third, and
    each of these goes through a bottleneck (1x1 convolution, batch norm, ReLU) to a classifier.

    Training returns a `MuDeepOutput`. Evaluation returns (B, 4 num_scales, feature_dim), scale by scale: global, top,
    middle, bottom; not normalised.

    The average over a region and the attention over channels commute, so the channels attend to the four averages
    rather than to the whole map: what comes out is the same, for half of the arithmetic forward and less backward,
    and no map of it is kept. Parameters carry the names of the published network (`conv.*`, `layer1` to `layer3`,
    `layer4_1` to `layer4_3`, `conv_all.*`, `atten1.*`, `scale1.*`, `scale1_1.*`, `gamma1`, ...), so that its
    checkpoints load by name.

    Args:
        num_classes: number of training identities, at least 1.
        num_scales: how many scales there are, 1 to 3: the first with one block, the second with two, the third three.
        attention: False leaves out the leader and the attention.
        backbone: "resnet50" as published, or "resnet18", "resnet34", "resnet101" of torchvision. A layer4 of fewer
            than three blocks is lengthened by copies of its last one.
        weights: ImageNet weights to start from, a file or a name (each copy of layer4 starts from the same ones), or a
            checkpoint; see `load_checkpoint`. None starts from random weights.
        feature_dim: length of a feature.
        leader_dim: channels of the leader.
        dropout: probability that a classifier does not see an entry of its feature in training.
        recompute: in training, compute cheap parts of the forward pass (batch norm with ReLU; queries and keys) again
            in the backward pass rather than keep their results: the same gradients, about a quarter less memory.
            `torch.compile` makes this choice itself, and the flag then has no effect.

    Raises:
        TypeError: a size is no whole number.
        ValueError: an argument is out of range, or `weights` do not fit.
        OSError: `weights` do not exist, or cannot be downloaded.

    Source: Qian et al., Leader-based Multi-Scale Attention Deep Architecture for Person Re-identification, IEEE TPAMI
    42 (2020), section 3, and its published program.

    Example:
        >>> import torch
        >>> from reidops_models import MuDeepV2
        >>> model = MuDeepV2(num_classes=10, backbone="resnet18")
        >>> output = model(torch.rand(2, 3, 96, 48))
        >>> len(output.logits), output.logits[0].shape
        (12, torch.Size([2, 10]))
        >>> len(output.global_features), output.global_features[0].shape
        (3, torch.Size([2, 512]))
        >>> model.eval()(torch.rand(1, 3, 96, 48)).shape
        torch.Size([1, 12, 512])
    """

    # What `load_checkpoint` has to know of the names.
    trunk = ("conv.", "layer")
    classifiers = tuple(f"scale{scale}{part}.classifier." for scale in (1, 2, 3) for part in ("", "_1", "_2", "_3"))

    def __init__(
        self,
        num_classes: int,
        num_scales: int = 3,
        *,
        attention: bool = True,
        backbone: str = "resnet50",
        weights: str | os.PathLike | None = None,
        feature_dim: int = 512,
        leader_dim: int = 512,
        dropout: float = 0.5,
        recompute: bool = True,
    ):
        super().__init__()
        sizes = {"num_classes": num_classes, "feature_dim": feature_dim, "leader_dim": leader_dim}
        for name, value in (sizes | {"num_scales": num_scales}).items():
            if not isinstance(value, int):
                raise TypeError(f"{name} should be an int, got {type(value).__name__} {value!r}")
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} should be at least 1, got {value}")
        if num_scales not in range(1, MAX_SCALES + 1):
            raise ValueError(f"num_scales should be 1, 2 or 3, got {num_scales}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout should be at least 0 and below 1, got {dropout}")
        self.num_scales, self.attention, self.feature_dim = num_scales, attention, feature_dim
        self.backbone, self.recompute = backbone, recompute

        trunk = make_resnet(backbone, last_stride=1)
        channels = trunk.fc.in_features
        first = (("conv", trunk.conv1), ("bn", trunk.bn1), ("relu", trunk.relu), ("pool", trunk.maxpool))
        self.conv = nn.Sequential(OrderedDict(first))
        self.layer1, self.layer2, self.layer3 = trunk.layer1, trunk.layer2, trunk.layer3
        blocks = list(trunk.layer4)
        blocks += [blocks[-1]] * (MAX_SCALES - len(blocks))
        for scale in range(1, num_scales + 1):
            copies = [copy.deepcopy(block) for block in blocks[:scale]]
            self.add_module(f"layer4_{scale}", nn.Sequential(*copies) if scale > 1 else copies[0])

        if attention:
            leader = (
                ("conv1", nn.Conv2d(channels * num_scales, leader_dim, kernel_size=1, bias=False)),
                ("bn1", nn.BatchNorm2d(leader_dim)),
                ("relu1", nn.ReLU(inplace=True)),
            )
            self.conv_all = nn.Sequential(OrderedDict(leader))
            for scale in range(1, num_scales + 1):
                self.add_module(f"atten{scale}", _QueryAndKey(leader_dim, channels))
                self.register_parameter(f"gamma{scale}", nn.Parameter(torch.zeros(1)))
        for scale in range(1, num_scales + 1):
            for name in _branch_names(scale):
                self.add_module(name, _Branch(channels, feature_dim, num_classes, dropout))
        if weights is not None:
            load_checkpoint(self, weights)

    def from_imagenet(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """ImageNet weights under the names they have in this model, those of layer4 once for each of its copies."""
        last = max((int(name.split(".")[1]) for name in state if name.startswith("layer4.")), default=0)
        named = {}
        for name, tensor in state.items():
            first, _, rest = name.partition(".")
            if first == "layer4":
                block, _, rest = rest.partition(".")
                named |= {f"{place}.{rest}": tensor for place in self._places(int(block), last)}
            elif first != "fc":
                named[{"conv1": "conv.conv.", "bn1": "conv.bn."}.get(first, f"{first}.") + rest] = tensor
        return named

    def _places(self, block: int, last: int) -> list[str]:
        """Where a block of layer4 stands in the scales; the last of a layer4 stands for those it lacks too."""
        count = MAX_SCALES if block == last else block + 1
        places = [(scale, n) for scale in range(1, self.num_scales + 1) for n in range(block, min(scale, count))]
        return [f"layer4_{scale}.{n}" if scale > 1 else "layer4_1" for scale, n in places]

    def forward(self, images: Tensor) -> MuDeepOutput | Tensor:
        """Features of a batch of images (B, 3, height, width); see the class for what comes back in each mode."""
        regions = self.attended_regions(images)
        branches = [
            self.get_submodule(name) for scale in range(1, self.num_scales + 1) for name in _branch_names(scale)
        ]
        pooled = [region for scale in regions for region in scale.split(1, dim=2)]
        features = [branch.bottleneck(region) for branch, region in zip(branches, pooled, strict=True)]
        if not self.training:
            return torch.stack(features, dim=1)
        logits = tuple(branch.classifier(feature) for branch, feature in zip(branches, features, strict=True))
        return MuDeepOutput(logits, tuple(features[:: len(REGIONS)]))

    def attended_regions(self, images: Tensor) -> list[Tensor]:
        """Each scale's averages over the whole map and its thirds, (B, C, 4), after the attention."""
        maps = self.scale_maps(images)
        regions = [average_regions(scale_map) for scale_map in maps]
        if not self.attention:
            return regions
        leader, attended = self.leader_map(maps).flatten(2), []
        for scale, values in enumerate(regions, start=1):
            weights = self.get_submodule(f"atten{scale}").weights()
            mixed = attend(leader, *weights, values, recompute=self._recomputes())
            attended.append(self.get_parameter(f"gamma{scale}") * mixed + values)
        return attended

    def scale_maps(self, images: Tensor) -> list[Tensor]:
        """The feature map of each scale, (B, C, height / 16, width / 16), before the attention."""
        again = self._recomputes()
        features = stem(self.conv, images, recompute=again)
        for stage in (self.layer1, self.layer2, self.layer3):
            features = _through(stage, features, again)
        scales = [self.get_submodule(f"layer4_{scale}") for scale in range(1, self.num_scales + 1)]
        return [_through(blocks, features, again) for blocks in scales]

    def leader_map(self, maps: list[Tensor]) -> Tensor:
        """The leader (B, leader_dim, h, w) of the scales' maps."""
        mixed = convolve_together(self.conv_all.conv1, maps, recompute=self._recomputes())
        return self.conv_all.relu1(self.conv_all.bn1(mixed))

    def _recomputes(self) -> bool:
        return self.recompute and torch.is_grad_enabled() and not torch.compiler.is_compiling()


class _QueryAndKey(nn.Module):
    """The two 1x1 convolutions from the leader to a scale's query and key map, under their published names."""

    def __init__(self, leader_dim: int, channels: int):
        super().__init__()
        for name in ("feature1", "feature2"):
            convolution = nn.Conv2d(leader_dim, channels, kernel_size=1, bias=False)
            self.add_module(name, nn.Sequential(OrderedDict(conv1=convolution)))

    def weights(self) -> tuple[Tensor, Tensor]:
        """(channels, leader_dim, 1) of the query and of the key."""
        return self.feature1.conv1.weight.squeeze(3), self.feature2.conv1.weight.squeeze(3)


class _Branch(nn.Module):
    """From an average-pooled region to its feature, and from the feature to the logits."""

    def __init__(self, channels: int, feature_dim: int, num_classes: int, dropout: float):
        super().__init__()
        feature = (
            ("conv1", nn.Conv2d(channels, feature_dim, kernel_size=1, bias=False)),
            ("bn", nn.BatchNorm2d(feature_dim)),
            ("relu", nn.ReLU(inplace=True)),
        )
        classifier = (("dropout", nn.Dropout(dropout)), ("fc", nn.Linear(feature_dim, num_classes)))
        self.feature = nn.Sequential(OrderedDict(feature))
        self.classifier = nn.Sequential(OrderedDict(classifier))
        nn.init.kaiming_normal_(self.feature.conv1.weight)
        nn.init.normal_(self.classifier.fc.weight, std=0.001)
        nn.init.zeros_(self.classifier.fc.bias)

    def bottleneck(self, region: Tensor) -> Tensor:
        """(B, channels, 1) -> (B, feature_dim).

        One image alone has no variance over the batch: its feature is then normalised by the running statistics, in
        training too, and leaves them as they are.
        """
        reduced, norm = self.feature.conv1(region.unsqueeze(3)), self.feature.bn
        if self.training and len(reduced) == 1:
            norm_settings = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
            normalised = functional.batch_norm(reduced, *norm_settings, training=False, eps=norm.eps)
        else:
            normalised = norm(reduced)
        return self.feature.relu(normalised).flatten(1)


def _branch_names(scale: int) -> tuple[str, ...]:
    """The published names of a scale's branches: global, top, middle, bottom."""
    return (f"scale{scale}", *(f"scale{scale}_{part}" for part in range(1, len(REGIONS))))


def average_regions(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 4): averages over the whole map and over its upper, middle and lower third."""
    rows = feature_map.mean(dim=3)
    return torch.cat([rows.mean(dim=2, keepdim=True), functional.adaptive_avg_pool1d(rows, 3)], dim=2)


def _through(blocks: nn.Module, features: Tensor, recompute: bool) -> Tensor:
    """A feature map through residual blocks, one after the other."""
    for block in blocks if isinstance(blocks, nn.Sequential) else [blocks]:
        features = residual(block, features, recompute=recompute)
    return features

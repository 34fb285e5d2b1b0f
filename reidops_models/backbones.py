"""Trunks: networks that torchvision and timm keep, without their classifiers, and the names of their weights."""

import importlib
import re
from collections.abc import Iterable, Mapping

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
BACKBONES = (*RESNETS, "densenet121", "shufflenet", "inceptionv4", "inception")

# What networks call their classifier: ResNets and ShuffleNet, DenseNet, Inception-v4.
HEADS = ("fc", "classifier", "last_linear")

# Where the published classes take the stripes of an evaluation from: those not named here, straight from the trunk.
PUBLISHED_STRIPES = {name: "branch" for name in ("resnet101", "densenet121", "inceptionv4", "inception")}

# The fewest pixels, high and wide, that a trunk still makes a map of; those not named here take any image.
LEAST_PIXELS = {"densenet121": 29, "inceptionv4": 75, "inception": 75}

# The stages of a network in their order: its numbers in an nn.Sequential.
_RESNET_STAGES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
_SHUFFLENET_STAGES = ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5")

_LAYERS_OF_RESNETS = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50", (23, True): "resnet101"}


def make_resnet(backbone: str, last_stride: int = 2) -> nn.Module:
    """A torchvision ResNet with random weights.

    Args:
        backbone: one of RESNETS.
        last_stride: stride of layer4: 2 as in the paper, or 1, which keeps the size of layer3's map.

    Raises:
        ValueError: there is no such ResNet here.
    """
    if backbone not in RESNETS:
        raise ValueError(f"backbone should be one of {', '.join(RESNETS)}, got {backbone!r}")
    network = getattr(torchvision.models, backbone)(weights=None)
    if last_stride == 1:
        first = network.layer4[0]
        strided = first.conv1 if isinstance(first, BasicBlock) else first.conv2
        strided.stride = first.downsample[0].stride = (1, 1)
    return network


def make_base(backbone: str, last_stride: int = 2) -> tuple[nn.Module, int]:
    """A trunk with random weights, images (B, 3, height, width) to maps (B, D, rows, columns), and its D.

    A map of 256 x 128 pixels has 8 rows and 4 columns; that of Inception-v4, whose convolutions have no padding, 6 and
    2 (it has 8 rows from 299 pixels on).

    Args:
        backbone: one of BACKBONES.
        last_stride: 2, or 1 for twice as many rows and columns, of a ResNet alone.

    Raises:
        ValueError: there is no such trunk, or it has no such stride.
        ImportError: the trunk is timm's, and timm is not installed.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"backbone should be one of {', '.join(BACKBONES)}, got {backbone!r}")
    if last_stride not in (1, 2):
        raise ValueError(f"last_stride should be 1 or 2, got {last_stride}")
    if backbone in RESNETS:
        network = make_resnet(backbone, last_stride)
        return nn.Sequential(*(getattr(network, stage) for stage in _RESNET_STAGES)), network.fc.in_features
    if last_stride == 1:
        raise ValueError(f"last_stride=1 is for {', '.join(RESNETS)}, got backbone {backbone!r}")
    if backbone == "densenet121":
        network = torchvision.models.densenet121(weights=None)
        return network.features, network.classifier.in_features
    if backbone == "shufflenet":
        network = torchvision.models.shufflenet_v2_x1_0(weights=None)
        return nn.Sequential(*(getattr(network, stage) for stage in _SHUFFLENET_STAGES)), network.fc.in_features
    network = import_timm(backbone).create_model("inception_v4", pretrained=False)
    return network.features, network.num_features


def import_timm(backbone: str):
    """The package timm, which few trunks need; ImportError in one line if it is not there."""
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ImportError(
            f"backbone {backbone!r} is timm's, and timm cannot be imported ({error}): pip install timm"
        ) from error


def base_names(state: Mapping[str, Tensor], backbone: str) -> dict[str, Tensor]:
    """ImageNet weights under the names of `make_base`'s trunk, with "base." before them and without the classifier.

    Args:
        state: the names of torchvision, or for Inception-v4 of timm, to tensors.
        backbone: one of BACKBONES.

    Example:
        >>> list(base_names({"conv1.weight": 0, "layer4.2.bn3.bias": 1, "fc.bias": 2}, "resnet50"))
        ['base.0.weight', 'base.7.2.bn3.bias']
    """
    stages = _RESNET_STAGES if backbone in RESNETS else _SHUFFLENET_STAGES if backbone == "shufflenet" else ()
    heads = HEADS[:1] if stages else HEADS[1:]
    named = {}
    for name, tensor in state.items():
        first, _, rest = name.partition(".")
        if first in heads:
            continue
        if first in stages:
            name = f"base.{stages.index(first)}.{rest}"
        elif first == "features" and not stages:
            name = f"base.{rest}"
        named[name] = tensor
    return named


def backbone_of(names: Iterable[str]) -> str:
    """Which backbone these names of a model or of ImageNet weights belong to; empty if none is recognised."""
    names = list(names)
    blocks = {int(found[1]) for name in names if (found := re.match(r"(?:base\.6|layer3)\.(\d+)\.", name))}
    if blocks:
        deep = any(re.match(r"(?:base\.6|layer3)\.0\.conv3\.", name) for name in names)
        return _LAYERS_OF_RESNETS.get((len(blocks), deep), "another ResNet")
    dense = {int(found[1]) for name in names if (found := re.search(r"\.denseblock3\.denselayer(\d+)\.", name))}
    if dense:
        return "densenet121" if len(dense) == 24 else "another DenseNet"
    if any(re.match(r"(?:base\.4|stage4)\.\d+\.branch1\.", name) for name in names):
        return "shufflenet"
    if any(re.match(r"(?:base|features)\.21\.branch1_1a\.", name) for name in names):
        return "inceptionv4"
    return ""

"""ImageNet weights by name, from torchvision's and timm's servers, kept where torch and timm keep them."""

import os
import re
from pathlib import Path
from urllib.parse import urlparse

import torch
import torchvision
from torchvision.models import WeightsEnum

from .backbones import import_timm
from .reading import find_state_dict, read_checkpoint

_NAME = re.compile(r"imagenet|(?:(\w+)_Weights\.)?(IMAGENET1K_V\d+|DEFAULT)", re.IGNORECASE)


def is_imagenet_name(text: str | os.PathLike | WeightsEnum) -> bool:
    """Whether a text, or a constant of torchvision's, names ImageNet weights, and no file that is there.

    Example:
        >>> [is_imagenet_name(text) for text in ("imagenet", "ResNet50_Weights.IMAGENET1K_V2", "resnet50.pth")]
        [True, True, False]
    """
    return _NAME.fullmatch(str(text)) is not None and not Path(str(text)).is_file()


def named_state_dict(backbone: str, name: str) -> dict[str, torch.Tensor]:
    """The ImageNet weights of a backbone, read from torch's cache folder, or downloaded into it first.

    Args:
        backbone: one of `backbones.BACKBONES`.
        name: "imagenet" (those the published programs start from, which torchvision calls IMAGENET1K_V1), or
            torchvision's own name, such as "IMAGENET1K_V2", "ResNet50_Weights.IMAGENET1K_V2" or "DEFAULT", the best
            it has.

    Returns:
        The names of torchvision (Inception-v4: of timm) to tensors.

    Raises:
        ValueError: the backbone has no weights of that name, or what lies in the cache is damaged.
        OSError: they are not in the cache and cannot be downloaded; the message says where to put them by hand.
        ImportError: the weights are timm's, and timm is not installed.
    """
    model, version = _NAME.fullmatch(name).groups()
    if backbone in ("inceptionv4", "inception"):
        return _from_timm(backbone, name)
    known = torchvision.models.get_model_weights({"shufflenet": "shufflenet_v2_x1_0"}.get(backbone, backbone))
    version = (version or "IMAGENET1K_V1").upper()
    if version not in known.__members__ or (model and f"{model}_Weights".lower() != known.__name__.lower()):
        names = ", ".join(f"{known.__name__}.{one}" for one in known.__members__)
        raise ValueError(f"weights {name} are none of {backbone}'s: it has {names}")
    path = _downloaded(known[version].url, f"ImageNet weights {known[version]}")
    return find_state_dict(read_checkpoint(path), path)


def _downloaded(url: str, what: str) -> Path:
    """The file of a URL in torch's cache folder (TORCH_HOME), downloaded if it is not there yet."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if path.is_file():
        return path
    digest = torch.hub.HASH_REGEX.search(path.name)
    print(f"downloading {what} from {url} to {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digest and digest[1])
    except (OSError, RuntimeError) as error:  # no network, no space; a file whose hash is wrong
        raise OSError(
            f"{what} are not at {path} and cannot be downloaded ({str(error).strip() or type(error).__name__}): get "
            f"{url} where there is a network, and put it there or name the file instead"
        ) from error
    return path


def _from_timm(backbone: str, name: str) -> dict[str, torch.Tensor]:
    """timm's Inception-v4, of which there is one version."""
    if name.lower() not in ("imagenet", "imagenet1k_v1", "default"):
        raise ValueError(f"weights {name} are none of {backbone}'s: timm has one version, imagenet")
    timm = import_timm(backbone)
    try:
        return timm.create_model("inception_v4", pretrained=True).state_dict()
    except Exception as error:  # the client of timm's server raises errors of many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(
            f"timm's ImageNet weights of inception_v4 cannot be downloaded ({reason}): get them where there is a "
            f"network, torch.save(timm.create_model('inception_v4', pretrained=True).state_dict(), 'inceptionv4.pth'), "
            f"and name that file instead"
        ) from error

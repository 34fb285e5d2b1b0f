"""From image to tensor: the published augmentations of AlignedReID and MuDeep_v2, and the plain way for tests."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Random2DTranslation:
    """Resizes to the target, or (otherwise) to 9/8 of it and crops the target out at a random place.

    Randomness comes from torch's global generator, which data loaders seed in each worker.

    Args:
        height: height of the result in pixels.
        width: width of the result in pixels.
        p: probability of the plain resize.
    """

    def __init__(self, height: int, width: int, p: float = 0.5):
        if height < 1 or width < 1:
            raise ValueError(f"height and width should be positive, got {height} and {width}")
        if not 0 <= p <= 1:
            raise ValueError(f"p should be a probability, got {p}")
        self.height, self.width, self.p = height, width, p

    def __call__(self, image: Image.Image) -> Image.Image:
        if torch.rand(()).item() < self.p:
            return image.resize((self.width, self.height), Image.Resampling.BILINEAR)
        tall, wide = round(self.height * 1.125), round(self.width * 1.125)
        top = int(torch.randint(tall - self.height + 1, ()))
        left = int(torch.randint(wide - self.width + 1, ()))
        image = image.resize((wide, tall), Image.Resampling.BILINEAR)
        return image.crop((left, top, left + self.width, top + self.height))

    def __repr__(self) -> str:
        return f"Random2DTranslation(height={self.height}, width={self.width}, p={self.p})"


class NormalizedTensor:
    """Turns an RGB image into a tensor with ImageNet's mean and deviation taken out.

    The same numbers as torchvision's ``ToTensor`` and ``Normalize`` give, bit for bit, in half their time: in place,
    and whole numbers become floats before the channels are sorted apart.
    """

    def __init__(self):
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image))
        return pixels.float().permute(2, 0, 1).contiguous().div_(255).sub_(self.mean).div_(self.std)

    def __repr__(self) -> str:
        return "NormalizedTensor()"


def to_bytes(image: Image.Image) -> Tensor:
    """The whole numbers of an RGB image, (height, width, 3), for ``to_device``."""
    return torch.from_numpy(np.array(image))


def to_device(
    images: Tensor, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """A batch as the model takes it: on its device, normalised.

    Bytes are a quarter of what loading processes hand over and what goes to a GPU; the device makes of them the same
    floats as ``NormalizedTensor``, bit for bit.

    Args:
        images: (B, 3, height, width) floats, which stay as they are, or (B, height, width, 3) bytes.
        device: where the model is.
        memory_format: of the result.

    Returns:
        (B, 3, height, width) floats.
    """
    if images.dtype != torch.uint8:
        return images.to(device, memory_format=memory_format, non_blocking=True)
    full, mean, std = _constants(device)
    images = images.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    return images.contiguous(memory_format=memory_format).div_(full).sub_(mean).div_(std)


@lru_cache
def _constants(device: torch.device) -> tuple[Tensor, ...]:
    """255, mean and deviation; 255 as a tensor because a GPU divides by a plain number with one rounding more."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return torch.tensor(255.0, device=device), mean, std


def train_transform(height: int, width: int, raw: bool = False) -> transforms.Compose:
    """The published training augmentation: random translation, horizontal flip, ImageNet normalisation.

    Args:
        height: pixels.
        width: pixels.
        raw: give bytes (height, width, 3), which ``to_device`` normalises.

    Returns:
        A callable from an RGB ``PIL.Image`` to a float32 tensor (3, height, width).
    """
    end = to_bytes if raw else NormalizedTensor()
    return transforms.Compose([Random2DTranslation(height, width), transforms.RandomHorizontalFlip(), end])


def erasing_transform(height: int, width: int, erasing: float = 0.5) -> transforms.Compose:
    """MuDeep_v2's training augmentation: bicubic resize, flip, ImageNet normalisation, random erasing.

    Args:
        height: pixels.
        width: pixels.
        erasing: probability that a rectangle of 2 to 40 % of the image is set to the mean colour.

    Returns:
        A callable from an RGB ``PIL.Image`` to a float32 tensor (3, height, width).

    Source: Zhong et al., Random Erasing Data Augmentation, AAAI 2020; Qian et al., IEEE TPAMI 42 (2020).
    """
    if not 0 <= erasing <= 1:
        raise ValueError(f"erasing should be a probability, got {erasing}")
    resize = transforms.Resize((height, width), transforms.InterpolationMode.BICUBIC)
    erase = transforms.RandomErasing(erasing, scale=(0.02, 0.4), ratio=(0.3, 1 / 0.3), value=0)
    return transforms.Compose([resize, transforms.RandomHorizontalFlip(), NormalizedTensor(), erase])


def test_transform(height: int, width: int, bicubic: bool = False, raw: bool = False) -> transforms.Compose:
    """The transform of queries and gallery: resize and ImageNet normalisation, nothing random.

    Args:
        height: pixels.
        width: pixels.
        bicubic: resize by bicubic interpolation, as MuDeep_v2 does, rather than by bilinear.
        raw: give bytes (height, width, 3), which ``to_device`` normalises.

    Returns:
        A callable from an RGB ``PIL.Image`` to a float32 tensor (3, height, width).

    Example:
        >>> test_transform(128, 64)(Image.new("RGB", (50, 100))).shape
        torch.Size([3, 128, 64])
    """
    mode = transforms.InterpolationMode.BICUBIC if bicubic else transforms.InterpolationMode.BILINEAR
    return transforms.Compose([transforms.Resize((height, width), mode), to_bytes if raw else NormalizedTensor()])


test_transform.__test__ = False  # its name is the field's word; pytest should not collect it

"""From image to tensor: the published augmentation of AlignedReID, and the plain way for tests."""

from __future__ import annotations

import torch
from PIL import Image
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


def train_transform(height: int, width: int) -> transforms.Compose:
    """The published training augmentation: random translation, horizontal flip, ImageNet normalisation.

    Args:
        height: pixels.
        width: pixels.

    Returns:
        A callable from an RGB ``PIL.Image`` to a float32 tensor (3, height, width).
    """
    return transforms.Compose([Random2DTranslation(height, width), transforms.RandomHorizontalFlip(), *_to_tensor()])


def test_transform(height: int, width: int) -> transforms.Compose:
    """The transform of queries and gallery: resize and ImageNet normalisation, nothing random.

    Args:
        height: pixels.
        width: pixels.

    Returns:
        A callable from an RGB ``PIL.Image`` to a float32 tensor (3, height, width).

    Example:
        >>> test_transform(128, 64)(Image.new("RGB", (50, 100))).shape
        torch.Size([3, 128, 64])
    """
    return transforms.Compose([transforms.Resize((height, width)), *_to_tensor()])


test_transform.__test__ = False  # its name is the field's word; pytest should not collect it


def _to_tensor() -> list:
    return [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]

"""The published augmentation."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from train.data import Random2DTranslation, erasing_transform, to_device, train_transform
from train.data import test_transform as plain_transform
from train.data.transforms import IMAGENET_MEAN, IMAGENET_STD, NormalizedTensor, to_bytes


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (100, 50, 3), dtype=np.uint8))


def test_plain_transform_is_resize_and_normalise(image):
    tensor = plain_transform(64, 32)(image)
    resized = np.asarray(image.resize((32, 64), Image.Resampling.BILINEAR), dtype=np.float64) / 255
    expected = (resized - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert tensor.dtype == torch.float32 and tensor.shape == (3, 64, 32)
    np.testing.assert_allclose(tensor.numpy(), expected.transpose(2, 0, 1), atol=1e-5)


def test_translation_is_a_resize_or_a_crop_of_the_larger(image):
    torch.manual_seed(0)
    transform = Random2DTranslation(64, 32)
    plain = np.asarray(image.resize((32, 64), Image.Resampling.BILINEAR))
    larger = np.asarray(image.resize((36, 72), Image.Resampling.BILINEAR))
    crops = {larger[y : y + 64, x : x + 32].tobytes(): (y, x) for y in range(9) for x in range(5)}
    found, resized = set(), 0
    for _ in range(600):
        result = np.asarray(transform(image))
        if np.array_equal(result, plain):
            resized += 1
        else:
            found.add(crops[result.tobytes()])
    assert 240 < resized < 360  # 300 +- 5 standard deviations
    assert {y for y, _ in found} == set(range(9)) and {x for _, x in found} == set(range(5))


def test_probability_bounds(image):
    plain = image.resize((32, 64), Image.Resampling.BILINEAR)
    assert all(Random2DTranslation(64, 32, p=1)(image) == plain for _ in range(10))
    assert all(Random2DTranslation(64, 32, p=0)(image) != plain for _ in range(10))
    with pytest.raises(ValueError, match=r"p should be a probability, got 1.5"):
        Random2DTranslation(64, 32, p=1.5)
    with pytest.raises(ValueError, match="height and width should be positive, got 0 and 32"):
        Random2DTranslation(0, 32)


def test_training_transform_flips_and_follows_the_seed(image):
    transform = train_transform(64, 32)
    plain = plain_transform(64, 32)(image)
    torch.manual_seed(1)
    results = [transform(image) for _ in range(60)]
    torch.manual_seed(1)
    assert all(torch.equal(transform(image), result) for result in results)
    assert all(result.shape == (3, 64, 32) for result in results)
    assert any(torch.equal(result, plain) for result in results)
    assert any(torch.equal(result.flip(2), plain) for result in results)


def test_bicubic_transform(image):
    resized = np.asarray(image.resize((32, 64), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    expected = (resized - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(plain_transform(64, 32, bicubic=True)(image), expected.transpose(2, 0, 1), atol=1e-5)


def test_erasing_flips_and_erases(image):
    torch.manual_seed(0)
    plain = plain_transform(64, 32, bicubic=True)(image)
    mirrored = plain_transform(64, 32, bicubic=True)(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    transform, flipped, shares = erasing_transform(64, 32), 0, []
    for _ in range(400):
        result = transform(image)
        untouched = [(result == one).all(0) for one in (plain, mirrored)]
        is_flipped = untouched[1].sum() > untouched[0].sum()
        flipped += int(is_flipped)
        erased = ~untouched[int(is_flipped)]
        if erased.any():
            assert (result[:, erased] == 0).all()  # the mean colour
            rows, columns = erased.any(1).sum().item(), erased.any(0).sum().item()
            assert erased.sum() == rows * columns  # a rectangle
            shares.append(rows * columns / (64 * 32))
    assert 150 < flipped < 250 and 150 < len(shares) < 250  # 200 +- 5 standard deviations
    assert 0.01 < min(shares) and 0.3 < max(shares) < 0.45
    with pytest.raises(ValueError, match=r"erasing should be a probability, got 1.5"):
        erasing_transform(64, 32, 1.5)


def test_bytes_become_the_same_floats_on_the_device(image, device):
    """To the last bit what torchvision's ToTensor and Normalize give, from the loader and from the device."""
    published = transforms.Compose([transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    ramp = Image.fromarray(np.arange(256 * 3, dtype=np.uint16).reshape(32, 8, 3).astype(np.uint8))
    expected = torch.stack([published(ramp), published(image.resize((8, 32)))])
    loaded = [torch.stack([end(ramp), end(image.resize((8, 32)))]) for end in (NormalizedTensor(), to_bytes)]
    assert torch.equal(loaded[0], expected) and loaded[1].dtype == torch.uint8
    for batch in loaded:
        for layout in (torch.contiguous_format, torch.channels_last):
            ready = to_device(batch, device, layout)
            assert ready.device.type == device.type and ready.is_contiguous(memory_format=layout)
            assert torch.equal(ready.cpu(), expected)


@pytest.mark.parametrize("make", [train_transform, plain_transform])
def test_raw_is_the_same_image(image, make):
    for seed in range(8):
        batches = []
        for raw in (False, True):
            torch.manual_seed(seed)
            batches.append(to_device(make(64, 32, raw=raw)(image)[None], torch.device("cpu")))
        assert torch.equal(*batches)

"""Random inputs of the benchmarks: features as a network gives them, people and cameras."""

import math

import torch
from torch import Tensor

LATENT = 64  # features vary in that many directions, so that neighbours differ in distance as real ones do
SPREAD = 1.0  # of a person's images about their mean, relative to that of the means
ROWS_AT_ONCE = 1 << 16


def features(people: Tensor, width: int, stripes: int | None = None, seed: int = 0) -> Tensor:
    """Features of one image for each entry of `people`, rows of length 1: images of a person lie close to one another.

    Args:
        people: (N,) int64 identities, 0 or more; their device is the result's.
        width: d, of a feature.
        stripes: None for one feature an image, (N, d), else how many: (N, stripes, d).
        seed: another one gives other people, who look in no way like these.
    """
    generator = torch.Generator(people.device).manual_seed(seed)
    parts = stripes or 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=people.device)

    means, projection = normal((int(people.max()) + 1) * parts, LATENT), normal(LATENT, width)
    places = (people[:, None] * parts + torch.arange(parts, device=people.device)).flatten()
    result = torch.empty(len(places), width, device=people.device)
    for rows, chosen in zip(result.split(ROWS_AT_ONCE), places.split(ROWS_AT_ONCE), strict=True):
        torch.mm(means[chosen] + SPREAD * normal(len(chosen), LATENT), projection, out=rows)
        rows.div_(rows.norm(dim=1, keepdim=True))
    return result if stripes is None else result.view(len(people), stripes, width)


def people(count: int, images_each: int, device: torch.device, seed: int = 0) -> Tensor:
    """(count,) identities drawn at random, of which there are as many as give each about `images_each` images."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randint(max(count // images_each, 2), (count,), generator=generator, device=device)


def normal(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def integers(high: int, *shape: int, device: torch.device, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def sets_needed(bytes_of_one: int, device: torch.device) -> int:
    """How many sets of inputs, taken in turn, are twice as large as the GPU's L2 cache; at most 256."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(max(math.ceil(2 * cache / bytes_of_one), 1), 256)

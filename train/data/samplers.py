"""Batches for triplet losses: P identities, K images of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from train.data.dataset import Sample


class RandomIdentitySampler(Sampler[int]):
    """Yields indices so that every ``batch_size`` in a row are P identities x K images of each.

    In an epoch each identity comes at most once; the identities that would not fill a last whole batch wait for
    another epoch. An identity with fewer than K images is drawn from with replacement. (Hermans et al., In Defense of
    the Triplet Loss for Person Re-Identification, 2017, section 2.)

    Args:
        samples: the training samples; only identities are read.
        batch_size: P x K, the ``batch_size`` of the loader that takes this sampler.
        num_instances: K.
        repeats: passes over the identities that make an epoch, dealt one after the other: a batch that lies across two
            of them may hold an identity twice.
        part, parts: yield the part of that number (from 0) of every batch, cut into so many: for processes that train
            together, each on some of the P identities.
        seed: with the epoch, decides every batch.
        generator: where given, the seed is drawn from it instead.

    Raises:
        ValueError: ``batch_size`` is no multiple of ``num_instances``, there are fewer than P identities, P cannot be
            cut into ``parts``, or ``seed`` is negative.

    Example:
        >>> samples = [Sample("", identity, 1) for identity in range(4) for _ in range(3)]
        >>> sampler = RandomIdentitySampler(samples, batch_size=4, num_instances=2)
        >>> len(sampler)
        8
        >>> [samples[i].identity for i in sampler][0::2] == [samples[i].identity for i in sampler][1::2]
        True
    """

    def __init__(self, samples: Sequence[Sample], batch_size: int, num_instances: int = 4, *, repeats: int = 1,
                 part: int = 0, parts: int = 1, seed: int = 0, generator: torch.Generator | None = None):  # fmt: skip
        if num_instances < 1 or batch_size < 1 or batch_size % num_instances:
            raise ValueError(
                f"batch_size should be a positive multiple of num_instances, got {batch_size} and {num_instances}"
            )
        if seed < 0:
            raise ValueError(f"seed should be at least 0, got {seed}")
        if repeats < 1:
            raise ValueError(f"repeats should be at least 1, got {repeats}")
        if not 0 <= part < parts or batch_size // num_instances % parts:
            raise ValueError(
                f"the {batch_size // num_instances} identities of a batch cannot be shared out evenly to {parts} "
                f"processes, of which this is number {part}"
            )
        images_of: dict[int, list[int]] = {}
        for index, (_, identity, _) in enumerate(samples):
            images_of.setdefault(identity, []).append(index)
        self.images_of = [np.array(images_of[identity]) for identity in sorted(images_of)]
        self.identities_per_batch = batch_size // num_instances
        if len(self.images_of) < self.identities_per_batch:
            raise ValueError(
                f"samples should hold at least batch_size / num_instances = {self.identities_per_batch} identities, "
                f"got {len(self.images_of)}"
            )
        self.num_instances, self.repeats, self.part, self.parts = num_instances, repeats, part, parts
        self.seed = seed if generator is None else int(torch.randint(2**62, (), generator=generator))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose batches come next; without it every epoch is the same."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = np.concatenate([rng.permutation(len(self.images_of)) for _ in range(self.repeats)])
        share = self.identities_per_batch // self.parts
        for place, identity in enumerate(order[: self._identities_per_epoch()]):
            images = self.images_of[identity]
            drawn = rng.choice(images, self.num_instances, replace=len(images) < self.num_instances).tolist()
            if place % self.identities_per_batch // share == self.part:
                yield from drawn

    def __len__(self) -> int:
        return self._identities_per_epoch() // self.parts * self.num_instances

    def _identities_per_epoch(self) -> int:
        return len(self.images_of) * self.repeats // self.identities_per_batch * self.identities_per_batch

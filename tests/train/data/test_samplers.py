"""P x K batches."""

import pytest
import torch

from train.data import RandomIdentitySampler, Sample


def make(*counts):
    """An unsorted list with ``counts[i]`` images of identity ``i``."""
    samples = [Sample(f"{i}-{j}", i, j) for i, count in enumerate(counts) for j in range(count)]
    return sorted(samples, key=lambda sample: sample.camera)


def batches_of(sampler, size):
    indices = list(sampler)
    assert len(indices) == len(sampler) and len(indices) % size == 0
    return [indices[start : start + size] for start in range(0, len(indices), size)]


@pytest.mark.parametrize("p, k", [(4, 4), (2, 3), (5, 1)])
def test_whole_batches_of_p_identities_with_k_images(p, k):
    samples = make(*[6] * 11)
    batches = batches_of(RandomIdentitySampler(samples, p * k, k), p * k)
    assert len(batches) == 11 // p
    seen = []
    for batch in batches:
        identities = [samples[index].identity for index in batch]
        groups = [identities[start : start + k] for start in range(0, p * k, k)]
        assert all(len(set(group)) == 1 for group in groups)
        assert len({group[0] for group in groups}) == p
        assert len(set(batch)) == p * k  # enough images: none twice
        seen += [group[0] for group in groups]
    assert len(set(seen)) == len(seen)  # an identity comes once an epoch


def test_few_images_are_drawn_again():
    samples = make(1, 2, 9, 9)
    for batch in batches_of(RandomIdentitySampler(samples, 16, 4), 16):
        counts = {identity: [samples[i].identity for i in batch].count(identity) for identity in range(4)}
        assert counts == {0: 4, 1: 4, 2: 4, 3: 4}
        assert len({i for i in batch if samples[i].identity == 2}) == 4


def test_epoch_and_seed_decide():
    samples = make(*[8] * 10)

    def draw(seed, epoch):
        sampler = RandomIdentitySampler(samples, 8, 4, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draw(1, 0) == draw(1, 0)
    assert draw(1, 0) != draw(1, 1)
    assert draw(1, 0) != draw(2, 0)
    assert draw(0, 1) != draw(1, 0)


def test_global_state_is_left_alone():
    samples, torch_state = make(*[8] * 10), torch.get_rng_state()
    list(RandomIdentitySampler(samples, 8, 4))
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_generator_gives_the_seed():
    samples = make(*[8] * 10)
    one, two, three = (
        list(RandomIdentitySampler(samples, 8, 4, generator=torch.Generator().manual_seed(seed))) for seed in (5, 5, 6)
    )
    assert one == two != three


def test_every_image_comes_in_time():
    samples, seen = make(*[5] * 7), set()
    sampler = RandomIdentitySampler(samples, 6, 2)
    for epoch in range(60):
        sampler.set_epoch(epoch)
        seen.update(sampler)
    assert seen == set(range(35))


@pytest.mark.parametrize("batch_size, num_instances", [(10, 4), (0, 1), (4, 0), (2, 4)])
def test_bad_sizes(batch_size, num_instances):
    with pytest.raises(ValueError, match=f"multiple of num_instances, got {batch_size} and {num_instances}"):
        RandomIdentitySampler(make(4, 4, 4), batch_size, num_instances)


def test_too_few_identities():
    with pytest.raises(ValueError, match="at least batch_size / num_instances = 4 identities, got 3"):
        RandomIdentitySampler(make(4, 4, 4), 16, 4)


def test_bad_seed():
    with pytest.raises(ValueError, match="seed should be at least 0, got -1"):
        RandomIdentitySampler(make(4, 4), 4, 2, seed=-1)


def test_repeats_are_dealt_one_after_the_other():
    samples = make(*[6] * 11)
    sampler = RandomIdentitySampler(samples, 12, 3, repeats=3, seed=4)
    batches = batches_of(sampler, 12)
    assert len(batches) == 3 * 11 // 4  # what does not fill a batch at the end of all passes is dropped
    identities = [samples[batch[start]].identity for batch in batches for start in range(0, 12, 3)]
    assert set(identities[:11]) == set(identities[11:22]) == set(range(11))
    assert identities[:11] != identities[11:22]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_share_out_every_batch(parts):
    samples, size = make(*[6] * 11), 12

    def draw(part, parts):
        sampler = RandomIdentitySampler(samples, size, 3, repeats=2, seed=4, part=part, parts=parts)
        sampler.set_epoch(5)
        return batches_of(sampler, size // parts)

    shares = [draw(part, parts) for part in range(parts)]
    together = [sum(batch, []) for batch in zip(*shares, strict=True)]
    assert together == draw(0, 1)


def test_bad_repeats_and_parts():
    samples = make(*[6] * 11)
    with pytest.raises(ValueError, match="repeats should be at least 1, got 0"):
        RandomIdentitySampler(samples, 12, 3, repeats=0)
    with pytest.raises(ValueError, match="the 4 identities of a batch cannot be shared out evenly to 3 processes"):
        RandomIdentitySampler(samples, 12, 3, parts=3)

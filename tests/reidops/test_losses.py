"""The triplet losses against their formulas on the reference's distances."""

import pytest
import torch
from torch.nn.functional import softplus

import reidops
from reidops import reference
from reidops.losses import AlignedTripletLoss, TripletLoss
from tests.reidops.inputs import integers, random
from tests.tolerances import assert_gradient, assert_relative


def batch(dtype=torch.float32, device="cpu", samples=24):
    """Global features, local features and labels."""
    return (
        0.2 * random(samples, 32, dtype=dtype, device=device),
        0.2 * random(samples, 5, 16, seed=1, dtype=dtype, device=device),
        integers(samples, high=6, seed=2, device=device),
    )


def hinge(positive, negative, margin):
    if margin is None:
        return softplus(positive - negative).mean()
    return (positive - negative + margin).clamp(min=0).mean()


def expected_losses(features, stripes, labels, margin, normalize=False):
    mined = reference.batch_hard(features, labels, normalize=normalize)
    positive, negative = (stripes[index.to(stripes.device)] for index in mined[2:])
    return (
        hinge(mined.positive_distance, mined.negative_distance, margin),
        hinge(reference.dmli(stripes, positive), reference.dmli(stripes, negative), margin),
    )


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("margin", [0.0, 0.3, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_triplet_loss(dtype, margin, normalize, device):
    features, stripes, labels = batch(dtype, device)
    features.requires_grad_()
    loss = TripletLoss(margin, normalize=normalize)(features, labels)
    expected, _ = expected_losses(features, stripes, labels, margin, normalize)
    assert_relative(loss, expected, dtype)
    assert_gradient(torch.autograd.grad(loss, features)[0], torch.autograd.grad(expected, features)[0].cpu().double())


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("margin", [0.0, 0.3, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_aligned_triplet_loss(dtype, margin, normalize, device):
    features, stripes, labels = batch(dtype, device)
    inputs = features.requires_grad_(), stripes.requires_grad_()
    losses = AlignedTripletLoss(margin, normalize=normalize)(*inputs, labels)
    expected = expected_losses(features, stripes, labels, margin, normalize)
    assert_relative(losses.global_loss, expected[0], dtype)
    assert_relative(losses.local_loss, expected[1], dtype)
    actual = torch.autograd.grad(losses.global_loss + 2 * losses.local_loss, inputs)
    for a, e in zip(actual, torch.autograd.grad(expected[0] + 2 * expected[1], inputs), strict=True):
        assert_gradient(a, e.cpu().double())


def test_a_satisfied_margin_costs_nothing(device):
    features = torch.tensor([[0.0], [0.1], [9.0], [9.1]], device=device, requires_grad=True)
    loss = TripletLoss(0.3)(features, torch.tensor([0, 0, 1, 1], device=device))
    assert loss == 0
    loss.backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_training_with_it_separates_identities(device):
    features, _, labels = batch(device=device)
    features.requires_grad_()
    optimizer = torch.optim.SGD([features], lr=0.5)
    loss = TripletLoss(1.0)
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(features, labels)
        value.backward()
        optimizer.step()
    mined = reidops.batch_hard(features.detach(), labels)
    assert (mined.positive_distance < mined.negative_distance).float().mean() > 0.9


def test_written_out():
    assert "margin=0.3" in repr(TripletLoss()) and "margin=None" in repr(AlignedTripletLoss(None))


@pytest.mark.parametrize("loss", [TripletLoss, AlignedTripletLoss])
def test_bad_margins(loss):
    for margin in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=rf"margin.*{margin}"):
            loss(margin)
    with pytest.raises(TypeError, match="margin.*wide"):
        loss("wide")


def test_bad_batches():
    features, stripes, labels = batch()
    with pytest.raises(ValueError, match=r"labels.*\(23,\)"):
        TripletLoss()(features, labels[1:])
    with pytest.raises(ValueError, match=r"local_features.*\(23, 5, 16\)"):
        AlignedTripletLoss()(features, stripes[1:], labels)
    with pytest.raises(ValueError, match="anchor.*no negative"):
        AlignedTripletLoss()(features, stripes, torch.full_like(labels, 3))


def trip_hard(features, p, k):
    """MuDeep_v2's published mining of p identities in a row, k images each: 1e-8 under the root, unit length."""
    features = features / features.norm(dim=1, keepdim=True)
    distance = torch.sqrt((features.unsqueeze(1) - features.unsqueeze(0)).square().sum(2) + 1e-8)
    rows = [distance[i * k : (i + 1) * k] for i in range(p)]
    positive = [row[:, i * k : (i + 1) * k].amax(1) for i, row in enumerate(rows)]
    negative = [torch.cat([row[:, : i * k], row[:, (i + 1) * k :]], dim=1).amin(1) for i, row in enumerate(rows)]
    return torch.cat(positive), torch.cat(negative)


@pytest.mark.parametrize(("p", "k"), [(12, 6), (4, 3), (5, 1), (2, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_epsilon_is_that_of_trip_hard(dtype, p, k, device):
    features = random(p * k, 64, dtype=dtype, device=device).requires_grad_()
    labels = torch.arange(p, device=device).repeat_interleave(k)
    loss = TripletLoss(1.0, normalize=True, epsilon=1e-8)(features, labels)
    wide = features.detach().cpu().double().requires_grad_()
    expected = hinge(*trip_hard(wide, p, k), 1.0)
    assert_relative(loss, expected, dtype)
    assert_gradient(torch.autograd.grad(loss, features)[0], torch.autograd.grad(expected, wide)[0])
    shuffled = torch.randperm(p * k, device=device)  # any order of labels, any labels
    again = TripletLoss(1.0, normalize=True, epsilon=1e-8)(features[shuffled], 1000 - 7 * labels[shuffled])
    torch.testing.assert_close(again, loss)


def test_epsilon_bounds():
    for wrong in (-1e-8, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="epsilon should be at least 0"):
            TripletLoss(epsilon=wrong)
    with pytest.raises(TypeError, match="epsilon should be a number"):
        TripletLoss(epsilon="1e-8")

"""channel_attention against the float64 reference."""

import pytest
import torch

import reidops
from reidops import reference
from tests.reidops.inputs import DTYPES, LAYOUTS, gradients, laid_out, random
from tests.tolerances import assert_gradient, assert_relative

SIZES = [(1, 1, 1), (2, 3, 5), (3, 17, 33), (2, 64, 32), (4, 33, 128), (1, 130, 257), (2, 256, 48)]


def attention_inputs(batch, channels, length, dtype=torch.float32, device="cpu"):
    """Query, key and value whose scores are of size 1, so that the softmax is neither flat nor one channel alone."""
    scale = length**-0.25
    sizes = (scale, scale, 1.0)
    return [
        (size * random(batch, channels, length, seed=s, dtype=torch.float64)).to(dtype).to(device)
        for s, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch, channels, length", SIZES)
def test_channel_attention(batch, channels, length, dtype, device):
    inputs = attention_inputs(batch, channels, length, dtype, device)
    result = reidops.channel_attention(*inputs)
    assert_relative(result, reference.channel_attention(*inputs), dtype, relative_to="largest")
    assert result.device == inputs[0].device


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch, channels, length", SIZES)
def test_gradient(batch, channels, length, dtype, device):
    inputs = attention_inputs(batch, channels, length, dtype, device)
    actual = gradients(reidops.channel_attention, *inputs, dtype=dtype)
    expected = gradients(reference.channel_attention, *inputs, dtype=dtype)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        if channels == 1:  # a softmax of one channel is constant: query and key have no gradient at all
            torch.testing.assert_close(a.cpu().double(), e.cpu().double(), rtol=1e-2, atol=1e-5)
        else:
            assert_gradient(a, e.cpu())


@pytest.mark.parametrize("length", range(1, 34))
def test_every_small_length(length, device):
    inputs = attention_inputs(2, length, length, device=device)
    expected = reference.channel_attention(*inputs)
    assert_relative(reidops.channel_attention(*inputs), expected, relative_to="largest")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout, device):
    inputs = [laid_out(values, layout) for values in attention_inputs(3, 9, 10, device=device)]
    expected = reference.channel_attention(*inputs)
    assert_relative(reidops.channel_attention(*inputs), expected, relative_to="largest")
    actual = gradients(reidops.channel_attention, *inputs)
    for a, e in zip(actual, gradients(reference.channel_attention, *inputs), strict=True):
        assert_gradient(a, e.cpu())


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_scores_do_not_overflow(size, device):
    query, key, value = (size * random(2, 8, 16, seed=s, device=device) for s in range(3))
    result = reidops.channel_attention(query, key, value)
    assert_relative(result, reference.channel_attention(query, key, value), relative_to="largest")
    for gradient in gradients(reidops.channel_attention, query, key, value):
        assert gradient.isfinite().all()


def test_equal_channels_share_equally(device):
    query = torch.zeros(1, 4, 6, device=device)
    value = random(1, 4, 6, device=device)
    result = reidops.channel_attention(query, query, value)
    torch.testing.assert_close(result, value.mean(1, keepdim=True).expand_as(value))


def test_no_images(device):
    inputs = [torch.empty(0, 3, 4, device=device, requires_grad=True) for _ in range(3)]
    result = reidops.channel_attention(*inputs)
    assert result.shape == (0, 3, 4)
    result.sum().backward()
    assert all(values.grad.shape == (0, 3, 4) for values in inputs)


def test_one_tensor_three_times(device):
    (x,) = attention_inputs(2, 5, 7, device=device)[:1]
    (actual,) = gradients(lambda x: reidops.channel_attention(x, x, x), x)
    (expected,) = gradients(lambda x: reference.channel_attention(x, x, x), x)
    assert_gradient(actual, expected.cpu())


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_gradient_of_some_inputs_only(wanted, device):
    inputs = attention_inputs(2, 5, 7, device=device)
    every = gradients(reidops.channel_attention, *inputs)

    def function(*leaves):
        chosen = dict(zip(wanted, leaves, strict=True))
        return reidops.channel_attention(*(chosen.get(i, values.detach()) for i, values in enumerate(inputs)))

    some = gradients(function, *(inputs[i].detach() for i in wanted))
    for i, gradient in zip(wanted, some, strict=True):
        torch.testing.assert_close(gradient, every[i])


def test_gradcheck(device):
    inputs = attention_inputs(2, 4, 6, torch.float64, device)
    assert torch.autograd.gradcheck(reidops.channel_attention, [values.requires_grad_() for values in inputs])

"""channel_attention against the float64 reference."""

import pytest
import torch

import reidops
from reidops import reference
from tests.reidops.inputs import DTYPES, LAYOUTS, gradients, laid_out, random
from tests.tolerances import assert_gradient, assert_relative

# images, channels and length
SIZES = [(1, 1, 1), (2, 3, 5), (3, 17, 33), (2, 64, 32), (4, 33, 128), (1, 130, 257), (2, 256, 48)]


# the same and a value's length of its own
VALUE_SIZES = [(2, 1, 5, 3), (2, 17, 33, 1), (3, 40, 20, 3), (2, 130, 48, 4), (1, 33, 128, 5), (2, 64, 32, 17),
               (2, 70, 16, 41), (1, 257, 24, 3), (1, 300, 40, 130)]  # fmt: skip


def attention_inputs(batch, channels, length, dtype=torch.float32, device="cpu", value_length=None):
    """Query, key and value whose scores are of size 1, so that the softmax is neither flat nor one channel alone."""
    scale = length**-0.25
    sizes = ((scale, length), (scale, length), (1.0, value_length or length))
    return [
        (size * random(batch, channels, width, seed=s, dtype=torch.float64)).to(dtype).to(device)
        for s, (size, width) in enumerate(sizes)
    ]


def assert_gradients(inputs, dtype=torch.float64):
    """They are those of the reference; query and key have none where there is one channel: its softmax is constant."""
    actual = gradients(reidops.channel_attention, *inputs, dtype=dtype)
    expected = gradients(reference.channel_attention, *inputs, dtype=dtype)
    for values, a, e in zip(inputs, actual, expected, strict=True):
        assert a.dtype == values.dtype
        if values.shape[1] == 1:
            torch.testing.assert_close(a.cpu().double(), e.cpu().double(), rtol=1e-2, atol=1e-5)
        else:
            assert_gradient(a, e.cpu())


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
    assert_gradients(attention_inputs(batch, channels, length, dtype, device), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch, channels, length, value_length", VALUE_SIZES)
def test_values_of_another_length(batch, channels, length, value_length, dtype, device):
    inputs = attention_inputs(batch, channels, length, dtype, device, value_length)
    result = reidops.channel_attention(*inputs)
    assert result.shape == (batch, channels, value_length)
    assert_relative(result, reference.channel_attention(*inputs), dtype, relative_to="largest")
    assert_gradients(inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("value_length", range(1, 19))
def test_every_small_value_length(value_length, dtype, device):
    inputs = attention_inputs(2, 7, 5, dtype, device, value_length)
    assert_relative(reidops.channel_attention(*inputs), reference.channel_attention(*inputs), relative_to="largest")
    assert_gradients(inputs)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_averages_of_values_attend_like_averages_of_the_attended(dtype, device):
    """Of the whole image and of its three parts, as MuDeep takes them."""
    query, key, value = (values.unflatten(2, (6, 4)) for values in attention_inputs(2, 40, 24, dtype, device))

    def pooled(maps):
        return torch.stack([maps.mean((2, 3)), *(part.mean((2, 3)) for part in maps.split(2, dim=2))], dim=2)

    def whole(query, key, value):
        attended = reidops.channel_attention(query.flatten(2), key.flatten(2), value.flatten(2))
        return pooled(attended.unflatten(2, (6, 4)))

    def few(query, key, value):
        return reidops.channel_attention(query.flatten(2), key.flatten(2), pooled(value))

    expected = whole(query, key, value)
    assert_relative(few(query, key, value), expected.cpu(), relative_to="largest")
    for a, e in zip(gradients(few, query, key, value), gradients(whole, query, key, value), strict=True):
        assert_gradient(a, e.cpu())


@pytest.mark.parametrize("length", range(1, 34))
def test_every_small_length(length, device):
    inputs = attention_inputs(2, length, length, device=device)
    expected = reference.channel_attention(*inputs)
    assert_relative(reidops.channel_attention(*inputs), expected, relative_to="largest")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout, device):
    for value_length in (10, 3):
        inputs = attention_inputs(3, 9, 10, device=device, value_length=value_length)
        inputs = [laid_out(values, layout) for values in inputs]
        expected = reference.channel_attention(*inputs)
        assert_relative(reidops.channel_attention(*inputs), expected, relative_to="largest")
        assert_gradients(inputs)


@pytest.mark.parametrize("value_length", [16, 3])
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_scores_do_not_overflow(size, value_length, device):
    lengths = (16, 16, value_length)
    query, key, value = (size * random(2, 8, length, seed=s, device=device) for s, length in enumerate(lengths))
    result = reidops.channel_attention(query, key, value)
    assert_relative(result, reference.channel_attention(query, key, value), relative_to="largest")
    for gradient in gradients(reidops.channel_attention, query, key, value):
        assert gradient.isfinite().all()


def test_equal_channels_share_equally(device):
    query = torch.zeros(1, 4, 6, device=device)
    value = random(1, 4, 6, device=device)
    result = reidops.channel_attention(query, query, value)
    torch.testing.assert_close(result, value.mean(1, keepdim=True).expand_as(value))


@pytest.mark.parametrize("value_length", [4, 2])
def test_no_images(value_length, device):
    shapes = [(0, 3, 4), (0, 3, 4), (0, 3, value_length)]
    inputs = [torch.empty(shape, device=device, requires_grad=True) for shape in shapes]
    result = reidops.channel_attention(*inputs)
    assert result.shape == shapes[2]
    result.sum().backward()
    assert [values.grad.shape for values in inputs] == shapes


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


@pytest.mark.parametrize("value_length", [6, 1, 3, 7])
def test_gradcheck(value_length, device):
    inputs = attention_inputs(2, 4, 6, torch.float64, device, value_length)
    assert torch.autograd.gradcheck(reidops.channel_attention, [values.requires_grad_() for values in inputs])

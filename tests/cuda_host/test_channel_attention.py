"""channel_attention as csrc/cuda computes it, in one part and in several, against the float64 reference."""

import pytest
import torch

from reidops import reference
from tests.reidops.inputs import DTYPES, LAYOUTS, integers, laid_out, random
from tests.tolerances import assert_gradient, assert_relative

HALF = (torch.float16, torch.bfloat16)
SMALL = [(1, 1, 1), (2, 3, 5), (3, 17, 33), (1, 40, 64)]
# More channels than a block of any kernel has rows, columns that fill no vector.
LARGE = [(1, 65, 128), (1, 200, 130), (2, 33, 192), (1, 70, 199), (1, 130, 288), (1, 49, 301), (1, 3, 700)]
# The same with a value's length: up to 4 numbers, up to 16, and more, which products take.
VALUE_SIZES = [(1, 1, 5, 3), (2, 3, 5, 1), (2, 17, 33, 4), (1, 40, 64, 3), (1, 66, 24, 8), (2, 20, 40, 13),
               (1, 33, 128, 16), (1, 40, 130, 17), (2, 20, 24, 100)]  # fmt: skip
LARGE_VALUE_SIZES = [(1, 130, 288, 3), (2, 65, 192, 4), (1, 200, 130, 1), (1, 70, 199, 9), (1, 49, 301, 3),
                     (1, 70, 40, 193), (1, 40, 288, 200), (1, 33, 192, 300), (1, 3, 700, 3),
                     (1, 5, 30, 700)]  # fmt: skip


def attention_inputs(batch, channels, length, dtype, scores=1.0, width=None):
    """Query, key, value and a gradient, with scores of about the given size; width: of value and gradient."""
    scale, width = scores**0.5 * length**-0.25, width or length
    sizes = ((scale, length), (scale, length), (1.0, width), (1.0, width))
    return [
        (size * random(batch, channels, columns, seed=s, dtype=torch.float64)).to(dtype)
        for s, (size, columns) in enumerate(sizes)
    ]


def run(host, query, key, value, grad):
    output, statistics = host.ops.channel_attention(query, key, value)
    grads = host.ops.channel_attention_backward(grad, query, key, value, output, statistics)
    return output, statistics, *grads


def assert_right(host, query, key, value, grad):
    output, statistics, *grads = run(host, query, key, value, grad)
    leaves = [values.double().requires_grad_() for values in (query, key, value)]
    expected = reference.channel_attention(*leaves)
    assert_relative(output, expected, query.dtype, relative_to="largest")
    for actual, wanted in zip(grads, torch.autograd.grad(expected, leaves, grad.double()), strict=True):
        if query.shape[1] == 1 and not wanted.any():  # a softmax of one channel is constant
            torch.testing.assert_close(actual.double(), wanted, rtol=0, atol=1e-5)
        else:
            assert_gradient(actual, wanted)
    scores = query.double() @ key.double().mT
    maximum, total = scores.amax(-1), scores.logsumexp(-1)
    assert statistics.dtype == (torch.float64 if query.dtype == torch.float64 else torch.float32)
    assert statistics.isfinite().all()
    assert_relative(statistics[:, 0], maximum, relative_to="largest")
    shares = statistics[:, 1].to(query.dtype) if query.dtype in HALF else statistics[:, 1]  # of rounded exponentials
    assert_relative(shares, (maximum - total).exp(), relative_to="largest")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch, channels, length", SMALL)
def test_small(batch, channels, length, dtype, host):
    assert_right(host, *attention_inputs(batch, channels, length, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch, channels, length", LARGE)
def test_large(batch, channels, length, dtype, host):
    if host.flavour != "plain" and channels * length > 20_000:
        pytest.skip("it takes long")
    assert_right(host, *attention_inputs(batch, channels, length, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch, channels, length, width", VALUE_SIZES)
def test_values_of_another_length(batch, channels, length, width, dtype, host):
    assert_right(host, *attention_inputs(batch, channels, length, dtype, width=width))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch, channels, length, width", LARGE_VALUE_SIZES)
def test_large_and_values_of_another_length(batch, channels, length, width, dtype, host):
    if host.flavour != "plain" and channels * length > 20_000:
        pytest.skip("it takes long")
    assert_right(host, *attention_inputs(batch, channels, length, dtype, width=width))


@pytest.mark.parametrize("width", [16, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout, dtype, width, host):
    assert_right(host, *(laid_out(values, layout) for values in attention_inputs(2, 9, 16, dtype, width=width)))


@pytest.mark.parametrize("width", [3, 9, 40])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [32, 64, 3 * 130])  # of scores at once: of an image's 130 channels, or of three images
def test_parts(rows, dtype, width, host):
    """Some rows of an image at a time, or some images, the last part smaller than the others."""
    pitch, score_bytes = 136, 8 if dtype == torch.float64 else 4
    inputs = attention_inputs(4, 130, 24, dtype, width=width)
    host.limits(scratch_bytes=2 * rows * pitch * score_bytes)
    before = host.launches
    assert_right(host, *inputs)
    assert host.launches - before >= 4 * 2 * (130 // rows + 1) if rows < 130 else 2 * 2


def test_parts_hold_no_more_than_they_should(host):
    """Half of the limit of scratch memory; what rows there are, whatever the limit."""
    host.limits(scratch_bytes=1)
    assert_right(host, *attention_inputs(2, 70, 8, torch.float32, width=3))


@pytest.mark.large
@pytest.mark.parametrize("width", [40, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_that_rise(dtype, width, host):
    """Every tile has higher scores than all before it, or lower ones."""
    query, key, value, grad = attention_inputs(2, 150, 40, dtype, width=width)
    direction = random(40, seed=9, dtype=torch.float64).sign() * 40**-0.5
    query = (query + 10 * direction).to(dtype)
    key = (key + torch.linspace(0, 3, 150)[:, None] * direction).to(dtype)
    assert_right(host, query, key, value, grad)
    assert_right(host, query, key.flip(1), value, grad)


@pytest.mark.parametrize("width, scores", [(64, 60), (3, 30)])  # sums over few show more of the scores' rounding
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_in_the_hundreds(dtype, width, scores, host):
    inputs = attention_inputs(1, 80, 64, dtype, scores=scores, width=width)
    assert (inputs[0].double() @ inputs[1].double().mT).max() > 100
    assert_right(host, *inputs)


@pytest.mark.parametrize("width", [48, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_below_zero(dtype, width, host):
    """Rows beyond the last channel, of whatever score, are no channels."""
    query, key, value, grad = attention_inputs(2, 20, 48, dtype, scores=10.0, width=width)
    query, key = -query.abs() - 1, key.abs()
    assert (query @ key.mT).max() < -10
    assert_right(host, query, key, value, grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_scores_share_equally(dtype, host):
    query, value = torch.zeros(1, 64, 24, dtype=dtype), integers(1, 64, 24, high=16, dtype=dtype)
    output, statistics = host.ops.channel_attention(query, query, value)
    assert torch.equal(output, value.double().mean(1, keepdim=True).to(dtype).expand_as(value))
    assert torch.equal(statistics[:, :2], torch.tensor([[0.0], [1 / 64]]).to(statistics).expand(1, 2, 64))


@pytest.mark.parametrize("width", [64, 3])
@pytest.mark.parametrize("size", [1e-6, 1e4])
def test_gradients_at_the_ends_of_float16(size, width, host):
    query, key, value, grad = attention_inputs(2, 70, 64, torch.float16, scores=0.1, width=width)
    assert_right(host, query, key, value, (size * grad.double()).to(torch.float16))


@pytest.mark.parametrize("width", [24, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_gradient_gives_none(dtype, width, host):
    query, key, value, grad = attention_inputs(2, 20, 16, dtype, width=width)
    grad[0] = 0
    grads = run(host, query, key, value, grad)[2:]
    assert all(not values[0].any() and values[1].all() for values in grads)


@pytest.mark.parametrize("width", [24, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_overflows_stays_within_bounds(dtype, width, host):
    largest = torch.finfo(dtype).max
    query, key, value, grad = (torch.full((1, 40, n), largest, dtype=dtype) for n in (24, 24, width, width))
    query[:, ::3] *= -1
    run(host, query, key, value, grad)


@pytest.mark.parametrize("width", [193, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_order_gives_the_same_bits(dtype, width, host):
    if host.flavour != "plain":
        pytest.skip("the order is the same in every flavour")
    inputs = attention_inputs(2, 70, 193, dtype, width=width)
    expected = run(host, *inputs)
    for seed in (1, 2, 3):
        host.seed(seed)
        for actual, wanted in zip(run(host, *inputs), expected, strict=True):
            assert torch.equal(actual, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_images(dtype, host):
    before = host.launches
    results = run(host, *(torch.empty(0, 3, width, dtype=dtype) for width in (4, 4, 6, 6)))
    assert [tuple(values.shape) for values in results] == [
        (0, 3, 6),
        (0, 5 if dtype in HALF else 2, 3),
        *[(0, 3, 4), (0, 3, 4), (0, 3, 6)],
    ]
    assert host.launches == before

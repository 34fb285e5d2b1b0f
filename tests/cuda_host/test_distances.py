"""euclidean_distance and dmli_matrix as csrc/cuda computes them, against the float64 reference."""

import pytest
import torch

from reidops import reference
from tests.reidops.inputs import clustered, integers, laid_out, random
from tests.tolerances import assert_gradient, assert_relative

FLOATS = (torch.float32, torch.float64)
# Tolerances of float32 products: TF32 keeps 11 bits and bfloat16 8, and errors add up at random over the channels.
COARSE = {"high": 2e-3, "medium": 2e-2}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows, columns, width", [(1, 1, 1), (3, 5, 7), (40, 33, 16), (130, 300, 5), (9, 700, 130)])
def test_euclidean_distance(rows, columns, width, dtype, host):
    host.limits(multiprocessors=1)  # tiles of 256 x 256
    x, y = random(rows, width, dtype=dtype), random(columns, width, seed=1, dtype=dtype)
    for squared in (False, True):
        expected = reference.euclidean_distance(x, y, squared=squared)
        assert_relative(host.ops.euclidean_distance(x, y, squared), expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_near_and_equal_rows(dtype, host):
    x = random(12, 40, dtype=torch.float64)
    y = torch.cat([x, x * (1 + 1e-4 * random(12, 40, seed=1, dtype=torch.float64)), random(9, 40, seed=2)])
    x, y = (1e3 + t.to(dtype) for t in (x, y))
    distance = host.ops.euclidean_distance(x, y, False)
    assert_relative(distance, reference.euclidean_distance(x, y))
    assert torch.equal(distance[:, :12].diagonal(), torch.zeros(12, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("near", [False, True])
def test_euclidean_gradient(near, squared, dtype, host):
    x, grad = random(11, 30, dtype=dtype), random(11, 300, seed=3, dtype=dtype)
    y = x.repeat(28, 1)[:300] + (1e-3 if near else 1.0) * random(300, 30, seed=1, dtype=dtype)
    y[5] = x[5]
    distance = host.ops.euclidean_distance(x, y, squared)
    grads = host.ops.euclidean_distance_backward(grad, x, y, distance, squared)
    leaves = [t.double().requires_grad_() for t in (x, y)]
    expected = torch.autograd.grad(reference.euclidean_distance(*leaves, squared=squared), leaves, grad.double())
    for actual, wanted in zip(grads, expected, strict=True):
        assert_gradient(actual, wanted)


@pytest.mark.parametrize("count", [(0, 3), (3, 0), (0, 0)])
def test_euclidean_empty(count, host):
    x, y = random(count[0], 4), random(count[1], 4)
    distance = host.ops.euclidean_distance(x, y, False)
    assert distance.shape == count
    grads = host.ops.euclidean_distance_backward(distance, x, y, distance, False)
    assert all(torch.equal(g, torch.zeros_like(t)) for g, t in zip(grads, (x, y), strict=True))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("m, n", [(1, 1), (8, 8), (3, 5), (7, 8), (5, 3)])
@pytest.mark.parametrize("images_x, images_y, width", [(1, 1, 3), (9, 13, 20), (70, 65, 2)])
def test_dmli_matrix(images_x, images_y, width, m, n, dtype, host):
    host.limits(multiprocessors=1)
    x = random(images_x, m, width, dtype=dtype)
    y = random(images_y, n, width, seed=1, dtype=dtype)
    y[0, 0] = x[0, 0]
    assert_relative(host.ops.dmli_matrix(x, y, True, "highest"), reference.dmli_matrix(x, y))
    if m == n:
        expected = reference.dmli_matrix(x, y, aligned=False)
        assert_relative(host.ops.dmli_matrix(x, y, False, "highest"), expected)


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("aligned", [True, False])
def test_dmli_matrix_of_coarser_products(precision, aligned, host):
    x, y = clustered(20, 8, 64, clusters=4), clustered(33, 8, 64, clusters=4, seed=5)
    actual = host.ops.dmli_matrix(x, y, aligned, precision)
    expected = reference.dmli_matrix(x, y, aligned=aligned)
    torch.testing.assert_close(actual.double(), expected, rtol=COARSE[precision], atol=0)
    assert not torch.equal(actual, host.ops.dmli_matrix(x, y, aligned, "highest"))


@pytest.mark.large
@pytest.mark.parametrize("dtype", FLOATS)
def test_dmli_matrix_of_many_stripes(dtype, host):
    host.limits(multiprocessors=1, scratch_bytes=1 << 20)
    x, y = random(3, 130, 4, dtype=dtype), random(200, 101, 4, seed=1, dtype=dtype)
    assert_relative(host.ops.dmli_matrix(x, y, True, "highest"), reference.dmli_matrix(x, y))


def test_dmli_matrix_of_equal_images_is_exactly_zero_on_the_diagonal(host):
    x = integers(30, 8, 16, high=3, dtype=torch.float32)
    x = x[:, :1].expand(30, 8, 16).contiguous()
    assert torch.equal(host.ops.dmli_matrix(x, x, False, "highest").diagonal(), torch.zeros(30))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "offset", "expanded"])
def test_any_layout(layout, host):
    x, y = laid_out(random(6, 8, 12), layout), laid_out(random(5, 8, 12, seed=1), layout)
    assert_relative(host.ops.dmli_matrix(x, y, True, "highest"), reference.dmli_matrix(x, y))
    assert_relative(host.ops.euclidean_distance(x[0], y[0], False), reference.euclidean_distance(x[0], y[0]))


def test_empty_images(host):
    x = random(4, 8, 3)
    assert host.ops.dmli_matrix(x, x[:0], True, "highest").shape == (4, 0)
    assert host.ops.dmli_matrix(x[:0], x, True, "highest").shape == (0, 4)


def test_two_runs_are_bit_equal(host):
    x, y = random(300, 40), random(310, 40, seed=1)
    host.limits(multiprocessors=1)
    first = host.ops.euclidean_distance(x, y, False)
    host.seed(1)
    assert torch.equal(first, host.ops.euclidean_distance(x, y, False))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("size", [1e19, 1e30])
def test_stripes_whose_squares_overflow(size, precision, aligned, host):
    """As far apart as can be, and never NaN; equal stripes are 0 apart where all digits are asked for."""
    x, y = size * random(5, 3, 4), size * random(6, 3, 4, seed=1)
    y[0] = x[0]
    distance = host.ops.dmli_matrix(x, y, aligned, precision)
    expected = torch.full((5, 6), 5.0 if aligned else 3.0)
    if precision == "highest":
        expected = reference.dmli_matrix(x, y, aligned=aligned).float()
    assert torch.equal(distance, expected) or (precision == "highest" and torch.allclose(distance, expected, rtol=1e-5))


def test_the_gradient_does_not_depend_on_autocast(host):
    x, y, grad = random(9, 20), random(30, 20, seed=1), random(9, 30, seed=2)
    distance = host.ops.euclidean_distance(x, y, False)
    expected = host.ops.euclidean_distance_backward(grad, x, y, distance, False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = host.ops.euclidean_distance_backward(grad, x, y, distance, False)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)

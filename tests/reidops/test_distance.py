"""euclidean_distance, shortest_path, shortest_path_indices, dmli and dmli_matrix against the float64 reference."""

import numpy as np
import pytest
import torch

import reidops
from reidops import reference
from tests.reidops.inputs import DTYPES, LAYOUTS, evaluated, gradients, integers, laid_out, random
from tests.tolerances import RELATIVE, assert_gradient, assert_relative

MATRIX_SIZES = [(1, 1, 1), (1, 5, 3), (7, 1, 128), (17, 33, 3), (33, 31, 257), (9, 10, 2048), (65, 130, 15)]
STRIPES = [(1, 1), (1, 8), (8, 1), (8, 8), (6, 8), (17, 17), (17, 3), (2, 40)]


def nearly_equal(*shape, relative=1e-4, dtype=torch.float32, device="cpu"):
    """Features, and the same features moved by about `relative` of themselves."""
    x = random(*shape, dtype=torch.float64)
    moved = x * (1 + relative * random(*shape, seed=1, dtype=torch.float64))
    return x.to(dtype).to(device), moved.to(dtype).to(device)


def stripes(m, n, *, count=7, width=33, dtype=torch.float32, device="cpu"):
    """Stripes of two times `count` images, m and n an image, at distances where tanh(d / 2) is neither d / 2 nor 1."""
    size = width**-0.5
    x = size * random(count, m, width, dtype=torch.float64)
    y = size * random(count, n, width, seed=1, dtype=torch.float64)
    return x.to(dtype).to(device), y.to(dtype).to(device)


# ---------------------------------------------------------------------------------------------- euclidean_distance


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_x, num_y, width", MATRIX_SIZES)
def test_euclidean_distance(num_x, num_y, width, dtype, squared, device):
    x, y = random(num_x, width, dtype=dtype, device=device), random(num_y, width, seed=1, dtype=dtype, device=device)
    result = reidops.euclidean_distance(x, y, squared=squared)
    assert_relative(result, reference.euclidean_distance(x, y, squared=squared), dtype)
    assert result.device == x.device


@pytest.mark.parametrize("width", range(1, 34))
def test_euclidean_distance_of_every_small_width(width, device):
    x, y = random(5, width, device=device), random(width, width, seed=1, device=device)
    assert_relative(reidops.euclidean_distance(x, y), reference.euclidean_distance(x, y))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_euclidean_distance_of_any_layout(layout, dtype, device):
    x = laid_out(random(9, 20, dtype=dtype, device=device), layout)
    y = laid_out(random(13, 20, seed=1, dtype=dtype, device=device), layout)
    for pair in ((x, y), (x, y.contiguous()), (x.contiguous(), y)):
        assert_relative(reidops.euclidean_distance(*pair), reference.euclidean_distance(*pair))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [3, 128, 2048])
def test_euclidean_distance_of_nearly_equal_rows(width, dtype, device):
    x, y = nearly_equal(40, width, dtype=dtype, device=device)
    for squared in (False, True):
        result = reidops.euclidean_distance(x, y, squared=squared)
        assert_relative(result, reference.euclidean_distance(x, y, squared=squared))


@pytest.mark.parametrize("offset, spread", [(1e4, 1.0), (1e15, 1e12), (1e-12, 1e-12)])
def test_euclidean_distance_of_features_of_any_size(offset, spread, device):
    x, y = (offset + spread * random(20, 64, seed=s, device=device) for s in range(2))
    assert_relative(reidops.euclidean_distance(x, y), reference.euclidean_distance(x, y))


@pytest.mark.parametrize("dtype", DTYPES)
def test_identical_rows_are_exactly_zero_apart(dtype, device):
    x = random(40, 77, dtype=dtype, device=device)
    for squared in (False, True):
        assert torch.equal(reidops.euclidean_distance(x, x, squared=squared).diagonal(), x.new_zeros(40))
        assert torch.equal(reidops.euclidean_distance(x, x.clone(), squared=squared).diagonal(), x.new_zeros(40))


@pytest.mark.parametrize("num_x, num_y", [(0, 3), (3, 0), (0, 0)])
def test_euclidean_distance_of_no_rows(num_x, num_y, device):
    x, y = torch.ones(num_x, 4, device=device, requires_grad=True), torch.ones(num_y, 4, device=device)
    result = reidops.euclidean_distance(x, y)
    assert result.shape == (num_x, num_y)
    result.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_euclidean_distance_gradient(dtype, squared, device):
    x, y = random(17, 33, dtype=dtype, device=device), random(9, 33, seed=1, dtype=dtype, device=device)
    actual = gradients(lambda x, y: reidops.euclidean_distance(x, y, squared=squared), x, y, dtype=dtype)
    expected = gradients(lambda x, y: reference.euclidean_distance(x, y, squared=squared), x, y, dtype=dtype)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        assert_gradient(a, e.cpu())


def test_euclidean_distance_gradient_is_zero_between_identical_rows(device):
    x = random(5, 8, device=device)
    rows = x.clone().requires_grad_()
    distance = reidops.euclidean_distance(rows, x)
    distance.diagonal().sum().backward()
    assert torch.equal(rows.grad, torch.zeros_like(x))


# ---------------------------------------------------------------------------------------------- shortest path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, n", STRIPES)
def test_shortest_path(m, n, dtype, device):
    cost = random(11, m, n, dtype=dtype, device=device).abs()
    result = reidops.shortest_path(cost)
    assert_relative(result, reference.shortest_path(cost), dtype)
    actual = gradients(reidops.shortest_path, cost, dtype=dtype)
    for a, e in zip(actual, gradients(reference.shortest_path, cost, dtype=dtype), strict=True):
        assert_gradient(a, e.cpu())


@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (0,), (2, 0)])
def test_shortest_path_of_any_batch(batch, device):
    cost = random(*batch, 4, 5, device=device).requires_grad_()
    result = reidops.shortest_path(cost)
    assert result.shape == batch
    assert_relative(result, reference.shortest_path(cost), relative_to="largest")
    result.sum().backward()
    assert cost.grad.shape == cost.shape
    assert torch.equal(cost.grad.sum((-1, -2)), torch.full(batch, 8.0, device=device))  # the path has m + n - 1 cells


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shortest_path_of_any_layout(layout, device):
    cost = laid_out(random(6, 5, 7, device=device), layout)
    assert_relative(reidops.shortest_path(cost), reference.shortest_path(cost), relative_to="largest")
    for a, e in zip(gradients(reidops.shortest_path, cost), gradients(reference.shortest_path, cost), strict=True):
        assert_gradient(a, e.cpu())
    matrix = laid_out(random(5, 7, device=device), layout)
    assert torch.equal(reidops.shortest_path_indices(matrix).cpu(), reference.shortest_path_indices(matrix))


@pytest.mark.parametrize("high", [1, 2, 3])
def test_shortest_path_comes_from_the_left_on_ties(high, device):
    cost = integers(30, 6, 7, high=high, dtype=torch.float32, device=device)
    assert torch.equal(reidops.shortest_path(cost).cpu().double(), reference.shortest_path(cost))
    (actual,), (expected,) = gradients(reidops.shortest_path, cost), gradients(reference.shortest_path, cost)
    assert_gradient(actual, expected.cpu())
    for one in cost:
        assert torch.equal(reidops.shortest_path_indices(one).cpu(), reference.shortest_path_indices(one))


@pytest.mark.parametrize("m, n", STRIPES)
def test_shortest_path_indices(m, n, device):
    cost = random(m, n, device=device)
    path = reidops.shortest_path_indices(cost)
    assert path.dtype == torch.int64 and path.device == cost.device
    assert torch.equal(path.cpu(), reference.shortest_path_indices(cost))
    assert cost[path[:, 0], path[:, 1]].sum().item() == pytest.approx(reidops.shortest_path(cost).item(), rel=1e-4)


# ---------------------------------------------------------------------------------------------- dmli

ALIGNMENTS = [(True, m, n) for m, n in STRIPES] + [(False, m, m) for m in (1, 8, 17)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("aligned, m, n", ALIGNMENTS)
def test_dmli(aligned, m, n, dtype, device):
    x, y = stripes(m, n, dtype=dtype, device=device)
    result = reidops.dmli(x, y, aligned=aligned)
    assert_relative(result, reference.dmli(x, y, aligned=aligned), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("aligned, m, n", ALIGNMENTS)
def test_dmli_gradient(aligned, m, n, dtype, device):
    x, y = stripes(m, n, dtype=dtype, device=device)
    actual = gradients(lambda x, y: reidops.dmli(x, y, aligned=aligned), x, y)
    expected = gradients(lambda x, y: reference.dmli(x, y, aligned=aligned), x, y)
    for a, e in zip(actual, expected, strict=True):
        assert_gradient(a, e.cpu())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("aligned, m, n", ALIGNMENTS)
def test_dmli_matrix(aligned, m, n, dtype, device):
    x, y = stripes(m, n, dtype=dtype, device=device)
    y = y[:5]
    result = reidops.dmli_matrix(x, y, aligned=aligned)
    assert_relative(result, reference.dmli_matrix(x, y, aligned=aligned), evaluated(dtype))


@pytest.mark.parametrize("width", [*range(1, 34), 127, 128, 257, 2048])
def test_dmli_of_every_width(width, device):
    x, y = stripes(4, 4, count=5, width=width, device=device)
    assert_relative(reidops.dmli(x, y), reference.dmli(x, y))
    assert_relative(reidops.dmli_matrix(x, y), reference.dmli_matrix(x, y))


@pytest.mark.parametrize("num_x, num_y", [(1, 1), (1, 70), (70, 1), (65, 129)])
def test_dmli_matrix_across_tiles(num_x, num_y, device):
    x, y = stripes(8, 7, count=max(num_x, num_y), width=16, device=device)
    x, y = x[:num_x], y[:num_y]
    assert_relative(reidops.dmli_matrix(x, y), reference.dmli_matrix(x, y))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dmli_of_any_layout(layout, device):
    x, y = (laid_out(values, layout) for values in stripes(5, 5, width=12, device=device))
    for aligned in (True, False):
        assert_relative(reidops.dmli(x, y, aligned=aligned), reference.dmli(x, y, aligned=aligned))
        assert_relative(reidops.dmli_matrix(x, y, aligned=aligned), reference.dmli_matrix(x, y, aligned=aligned))
    for a, e in zip(gradients(reidops.dmli, x, y), gradients(reference.dmli, x, y), strict=True):
        assert_gradient(a, e.cpu())


@pytest.mark.parametrize("distance", [1.0, 20.0, 88.0, 89.0, 1e4, 1e18])
def test_stripe_distance_does_not_overflow(distance, device):
    x = torch.zeros(1, 1, 4, device=device, requires_grad=True)
    y = torch.zeros(1, 1, 4, device=device)
    y[..., 0] = distance
    result = reidops.dmli(x, y)
    assert_relative(result, torch.tensor([np.tanh(distance / 2)], dtype=torch.float64))
    assert_relative(reidops.dmli_matrix(x, y), reference.dmli_matrix(x, y))
    result.sum().backward()
    expected = -0.5 / np.cosh(min(distance / 2, 300.0)) ** 2  # the slope of tanh(d / 2), 0 at last
    assert x.grad[0, 0].tolist() == pytest.approx([expected, 0, 0, 0], rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("relative", [1e-2, 1e-4])
def test_dmli_of_nearly_equal_images(relative, device):
    x, y = nearly_equal(12, 6, 128, relative=relative, device=device)
    assert_relative(reidops.dmli(x, y, aligned=False), reference.dmli(x, y, aligned=False))
    assert_relative(reidops.dmli(x, y), reference.dmli(x, y))
    assert_relative(reidops.dmli_matrix(x, y), reference.dmli_matrix(x, y))
    assert_relative(reidops.dmli_matrix(x, y, aligned=False), reference.dmli_matrix(x, y, aligned=False))


def test_dmli_of_an_image_with_itself(device):
    x = random(4, 5, 9, device=device).requires_grad_()
    result = reidops.dmli(x, x, aligned=False)
    assert torch.equal(result, torch.zeros(4, device=device))
    result.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))
    assert torch.equal(reidops.dmli_matrix(x, x, aligned=False).diagonal(), torch.zeros(4, device=device))
    assert (reidops.dmli(x, x) > 0).all()  # a path is longer than the diagonal: it leaves it and pays


def test_dmli_of_no_images(device):
    x, y = torch.empty(0, 4, 8, device=device, requires_grad=True), torch.empty(0, 3, 8, device=device)
    result = reidops.dmli(x, y)
    assert result.shape == (0,)
    result.sum().backward()
    assert x.grad.shape == x.shape
    three = random(3, 4, 8, device=device)
    assert reidops.dmli_matrix(x, three).shape == (0, 3)
    assert reidops.dmli_matrix(three, y).shape == (3, 0)


@pytest.mark.parametrize("precision", [None, "highest", "high", "medium"])
def test_dmli_matrix_precision(precision, device):
    x, y = stripes(4, 4, width=32, device=device)
    expected = reference.dmli_matrix(x, y)
    actual = reidops.dmli_matrix(x, y, precision=precision)
    loosest = {"high": 1e-3, "medium": 1e-2}.get(precision, RELATIVE[torch.float32])  # TF32 and bfloat16 products
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=loosest, atol=0)


def test_dmli_matrix_is_not_differentiable(device):
    x = random(3, 4, 8, device=device).requires_grad_()
    assert not reidops.dmli_matrix(x, x).requires_grad
    assert not reidops.shortest_path_indices(x[0]).requires_grad


# ---------------------------------------------------------------------------------------------- all

DIFFERENTIABLE = {
    "euclidean_distance": (reidops.euclidean_distance, [(4, 5), (3, 5)]),
    "euclidean_distance squared": (lambda x, y: reidops.euclidean_distance(x, y, squared=True), [(4, 5), (3, 5)]),
    "shortest_path": (reidops.shortest_path, [(3, 4, 5)]),
    "dmli": (reidops.dmli, [(3, 4, 5), (3, 6, 5)]),
    "dmli unaligned": (lambda x, y: reidops.dmli(x, y, aligned=False), [(3, 4, 5), (3, 4, 5)]),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradcheck(name, device):
    function, shapes = DIFFERENTIABLE[name]
    inputs = [random(*s, seed=i, dtype=torch.float64, device=device) for i, s in enumerate(shapes)]
    assert torch.autograd.gradcheck(function, [values.requires_grad_() for values in inputs], fast_mode=True)
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_of_one_input_only(name, device):
    function, shapes = DIFFERENTIABLE[name]
    inputs = [random(*s, seed=i, device=device) for i, s in enumerate(shapes)]
    both = gradients(function, *inputs)
    for i, values in enumerate(inputs):
        rest = [other for j, other in enumerate(inputs) if j != i]
        (alone,) = gradients(lambda v, i=i, rest=rest: function(*rest[:i], v, *rest[i:]), values)
        torch.testing.assert_close(alone, both[i])


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_an_expanded_incoming_gradient(name, device):
    function, shapes = DIFFERENTIABLE[name]
    inputs = [random(*s, seed=i, device=device).requires_grad_() for i, s in enumerate(shapes)]
    summed = torch.autograd.grad(function(*inputs).sum(), inputs)  # sum's gradient is one value, expanded
    weighted = torch.autograd.grad((function(*inputs) * torch.ones_like(function(*inputs))).sum(), inputs)
    for a, b in zip(summed, weighted, strict=True):
        torch.testing.assert_close(a, b)


def test_numpy_in_numpy_out():
    x, y = random(5, 8).numpy(), random(4, 8, seed=1).numpy()
    for result, expected in (
        (reidops.euclidean_distance(x, y), reference.euclidean_distance(x, y)),
        (reidops.euclidean_distance(x[::-1], y[:, ::1]), reference.euclidean_distance(x[::-1], y)),
        (reidops.shortest_path(np.abs(x)), reference.shortest_path(np.abs(x))),
        (reidops.dmli_matrix(x[None], y[None]), reference.dmli_matrix(x[None], y[None])),
    ):
        assert isinstance(result, np.ndarray if expected.ndim else float)
        np.testing.assert_allclose(result, expected, rtol=RELATIVE[torch.float32])
        assert np.ndim(result) == 0 or result.dtype == np.float32
    assert reidops.euclidean_distance(x.astype(np.float16), y.astype(np.float16)).dtype == np.float32
    path = reidops.shortest_path_indices(x)
    assert isinstance(path, np.ndarray) and path.dtype == np.int64
    assert path.tolist() == reference.shortest_path_indices(x).tolist()


@pytest.mark.parametrize("width", [32, 128, 256])
def test_dmli_gradient_of_stripes_far_apart(width, device):
    """Where tanh is next to 1 its slope is small, but not 0. (Along a path of such costs, float32 finds ties.)"""
    x, y = random(3, 4, width, device=device), random(3, 4, width, seed=1, device=device)
    actual = gradients(lambda x, y: reidops.dmli(x, y, aligned=False), x, y)
    expected = gradients(lambda x, y: reference.dmli(x, y, aligned=False), x.double().cpu(), y.double().cpu())
    for one, other in zip(actual, expected, strict=True):
        assert_gradient(one, other)


@pytest.mark.parametrize("m, n", [(1, 1), (1, 7), (3, 2), (5, 9), (8, 8)])
@pytest.mark.parametrize("width", [1, 3, 16, 31, 33, 130])
def test_dmli_blocks_of_stripes(m, n, width, device):
    x, y = random(3, m, width, device=device) / width**0.5, random(3, n, width, seed=1, device=device) / width**0.5
    assert_relative(reidops.dmli(x, y), reference.dmli(x, y))
    mine = gradients(lambda a, b: reidops.dmli(a, b), x, y)
    for actual, expected in zip(mine, gradients(lambda a, b: reference.dmli(a, b), x, y), strict=True):
        assert_gradient(actual, expected.cpu())


def test_dmli_of_equal_stripes_wherever_they_stand(device):
    stripe = random(1, 1, 37, device=device)
    x, y = stripe.expand(2, 7, 37), stripe.expand(2, 5, 37)
    assert torch.equal(reidops.dmli(x, y), torch.zeros(2, device=device))
    other = random(2, 1, 37, seed=1, device=device)
    costs = [reidops.dmli(x[:, a : a + 1], other) for a in range(7)]
    assert all(torch.equal(cost, costs[0]) for cost in costs)

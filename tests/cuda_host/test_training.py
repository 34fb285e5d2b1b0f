"""shortest_path, dmli and the rest of batch_hard as csrc/cuda computes them: against the float64 reference, and where
the arithmetic is the same, against the CPU kernels bit by bit."""

import pytest
import torch

import reidops  # noqa: F401  # the CPU kernels
from reidops import reference
from tests.reidops.inputs import integers, laid_out, random
from tests.tolerances import assert_gradient, assert_relative

FLOATS = (torch.float32, torch.float64)
SHAPES = ((1, 1), (1, 5), (5, 1), (8, 8), (7, 9), (17, 3), (3, 40), (16, 16), (33, 20))


def costs(kind, *shape, dtype):
    """`ties`: whole numbers, so that many paths cost the same; `equal`: so that all do."""
    if kind == "random":
        return random(*shape, dtype=dtype).abs()
    return torch.ones(shape, dtype=dtype) if kind == "equal" else integers(*shape, high=3).to(dtype)


# ------------------------------------------------------------------------------------------------------- shortest_path


def assert_paths(host, cost, grad):
    """As the CPU kernels, bit by bit, with the costs at any address."""
    for placed in (cost, laid_out(cost, "offset")):
        assert torch.equal(host.ops.shortest_path(placed), torch.ops.reidops.shortest_path(cost))
        assert torch.equal(
            host.ops.shortest_path_backward(grad, placed), torch.ops.reidops.shortest_path_backward(grad, cost)
        )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["random", "ties", "equal"])
@pytest.mark.parametrize("m, n", SHAPES)
def test_shortest_path(m, n, kind, dtype, host):
    for batch in (1, 5, 37):
        cost = costs(kind, batch, m, n, dtype=dtype)
        host.seed(batch)
        assert_paths(host, cost, random(batch, seed=1, dtype=dtype))
    leaf = cost.double().requires_grad_()
    expected = reference.shortest_path(leaf)
    assert_relative(host.ops.shortest_path(cost), expected)
    if kind == "ties":
        index = reference.shortest_path_indices(cost[0])
        assert torch.equal(host.ops.shortest_path_indices(cost[0]), index)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_shortest_path_of_any_layout(layout, host):
    cost, grad = laid_out(random(5, 6, 9).abs(), layout), random(5, seed=1)
    assert_paths(host, cost, grad)
    one = grad[:1].expand(5)
    expected = torch.ops.reidops.shortest_path_backward(one, cost)
    assert torch.equal(host.ops.shortest_path_backward(one, cost), expected)


@pytest.mark.large
@pytest.mark.parametrize("m, n, batch", [(64, 200, 5), (2, 4000, 6), (6100, 3, 5)])
def test_shortest_path_of_large_matrices(m, n, batch, host):
    """Beyond the shared memory of a block; with little scratch memory, blocks take several matrices."""
    for scratch in (64 << 20, 1):
        host.limits(scratch_bytes=scratch)
        assert_paths(host, random(batch, m, n).abs(), random(batch, seed=1))


def test_blocks_take_several_matrices(host):
    host.limits(max_blocks=2)
    assert_paths(host, random(150, 8, 7).abs(), random(150, seed=1))


def test_shortest_path_of_nothing_and_of_nan(host):
    assert host.ops.shortest_path(torch.empty(0, 3, 4)).shape == (0,)
    assert host.ops.shortest_path_backward(torch.empty(0), torch.empty(0, 3, 4)).shape == (0, 3, 4)
    cost = random(40, 9, 7)
    cost[random(40, 9, 7, seed=1) < -0.5] = float("nan")
    host.ops.shortest_path(cost)
    grad = host.ops.shortest_path_backward(torch.ones(40), cost)  # some path of the right length
    assert torch.equal(grad.sum((1, 2)), torch.full((40,), 15.0))


# ---------------------------------------------------------------------------------------------------------------- dmli


def stripes(kind, batch, m, n, d, dtype):
    if kind == "ties":  # equal rows, and equal distances
        x, y = (0.25 * integers(batch, r, 1, high=2, seed=r).expand(batch, r, d).to(dtype) / d**0.5 for r in (m, n))
        return x.contiguous(), y.contiguous()
    scale = 30.0 if kind == "far" else d**-0.5
    return scale * random(batch, m, d, dtype=dtype), scale * random(batch, n, d, seed=1, dtype=dtype)


def assert_dmli(host, x, y, aligned, gradient=True):
    grad = random(len(x), seed=2, dtype=x.dtype)
    leaves = [x.double().requires_grad_(), y.double().requires_grad_()]
    expected = reference.dmli(*leaves, aligned=aligned)
    wanted = torch.autograd.grad(expected, leaves, grad.double())
    for place in (lambda t: t, lambda t: laid_out(t, "offset")):  # copied 16 bytes at a time, or element by element
        actual = host.ops.dmli(place(x), place(y), aligned)
        assert_relative(actual, expected)
        assert torch.equal(actual, host.ops.dmli(place(x), place(y), aligned))
        if gradient:
            for one, other in zip(host.ops.dmli_backward(grad, place(x), place(y), aligned), wanted, strict=True):
                assert_gradient(one, other)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["random", "ties", "far"])
@pytest.mark.parametrize(
    "m, n, d", [(1, 1, 1), (8, 8, 128), (8, 8, 7), (3, 5, 130), (9, 4, 33), (17, 10, 129), (2, 2, 1030), (5, 5, 513)]
)
def test_dmli(m, n, d, kind, dtype, host):
    x, y = stripes(kind, 2, m, n, d, dtype)
    # Ties may be broken another way in float32 than in float64; far apart, tanh is 1 to working precision.
    gradient = kind == "random" or (kind == "ties" and dtype == torch.float64)
    assert_dmli(host, x, y, True, gradient)
    if m == n:
        assert_dmli(host, x, y, False, gradient)


@pytest.mark.large
@pytest.mark.parametrize("limits", [{"shared_memory": 48 << 10}, {"shared_memory": 48 << 10, "scratch_bytes": 1}])
@pytest.mark.parametrize("m, n", [(70, 80), (100, 90)])
def test_dmli_of_many_stripes(m, n, limits, host):
    """In shared memory beyond 48 KB, in scratch memory where the device has less, and one pair after the other."""
    x, y = stripes("random", 2, m, n, 20, torch.float32)
    assert_dmli(host, x, y, True)
    host.limits(**limits)
    assert_dmli(host, x, y, True)


@pytest.mark.parametrize("aligned", [True, False])
def test_blocks_take_several_pairs(aligned, host):
    host.limits(max_blocks=2)
    assert_dmli(host, *stripes("random", 11, 4, 4, 20, torch.float32), aligned)


@pytest.mark.parametrize("aligned", [True, False])
def test_dmli_of_nothing_of_nan_and_of_strides(aligned, host):
    nothing = torch.empty(0, 4, 6)
    assert host.ops.dmli(nothing, nothing, aligned).shape == (0,)
    assert [g.shape for g in host.ops.dmli_backward(torch.empty(0), nothing, nothing, aligned)] == [(0, 4, 6)] * 2
    x, y = stripes("random", 2, 6, 6, 130, torch.float32)
    x[0, 3, 2], x[1] = float("nan"), float("inf")
    host.ops.dmli(x, y, aligned)
    host.ops.dmli_backward(torch.ones(2), x, y, aligned)
    x, y = (laid_out(t, "transposed") for t in stripes("random", 3, 5, 5, 16, torch.float32))
    assert_relative(host.ops.dmli(x, y, aligned), reference.dmli(x, y, aligned=aligned))
    grads = host.ops.dmli_backward(torch.ones(()).expand(3), x, y, aligned)
    others = host.ops.dmli_backward(torch.ones(3), x.contiguous(), y.contiguous(), aligned)
    assert all(torch.equal(one, other) for one, other in zip(grads, others, strict=True))


# ---------------------------------------------------------------------------------------------------------- batch_hard


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["random", "ties", "equal", "infinite"])
@pytest.mark.parametrize("batch", [2, 7, 32, 33, 130])
def test_batch_hard_from_distance(batch, kind, dtype, host):
    distance = costs("random" if kind == "infinite" else kind, batch, batch, dtype=dtype)
    if kind == "infinite":
        distance[random(batch, batch, seed=1) < 0] = float("inf")
    labels = (integers(batch, high=5) - 2) << 40
    labels[0], labels[-1] = 9, 5
    for one, other in zip(
        host.ops.batch_hard_from_distance(laid_out(distance, "offset"), laid_out(labels.double(), "offset").long()),
        torch.ops.reidops.batch_hard_from_distance(distance, labels),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_batch_hard_from_distances_that_are_no_numbers(host):
    nan, apart = torch.full((5, 5), float("nan")), torch.arange(5)
    _, negative, _, negative_index = host.ops.batch_hard_from_distance(torch.rand(5, 5), torch.zeros_like(apart))
    assert negative.isnan().all() and torch.equal(negative_index, apart)
    positive, negative, positive_index, negative_index = host.ops.batch_hard_from_distance(nan, apart)
    assert positive.isnan().all() and negative.isnan().all()
    assert torch.equal(positive_index, apart) and torch.equal(negative_index, apart)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["mined", "hub", "equal rows"])
@pytest.mark.parametrize("batch, d", [(2, 1), (5, 3), (33, 40), (300, 5), (9, 700)])
def test_batch_hard_backward(batch, d, kind, dtype, host):
    """`hub`: all anchors share their partners."""
    features = random(batch, d, dtype=dtype)
    if kind == "equal rows":
        features[1::2] = features[: batch - 1 : 2]
    labels = integers(batch, high=4)
    labels[0] = 7
    _, _, *partners = torch.ops.reidops.batch_hard(features, labels, "highest")
    if kind == "hub":
        partners = [torch.full((batch,), batch - 1), torch.zeros(batch, dtype=torch.int64)]
    distances = [(features - features[index]).double().norm(dim=1).to(dtype) for index in partners]
    grads = [random(batch, seed=seed, dtype=dtype) for seed in (1, 2)]
    grads[0][::3] = 0
    actual = host.ops.batch_hard_backward(*grads, laid_out(features, "offset"), *distances, *partners)
    expected = torch.zeros(batch, d, dtype=torch.float64)
    for grad, distance, index in zip(grads, distances, partners, strict=True):
        slope = torch.where(distance > 0, grad.double() / distance.double(), 0.0)
        step = slope[:, None] * (features.double() - features[index].double())
        expected += step
        expected.index_add_(0, index, -step)
    assert_gradient(actual, expected)


def test_batch_hard_backward_of_partners_that_do_not_exist(host):
    features, index = random(6, 5), torch.tensor([-1, 6, 1 << 60, -(1 << 60), 0, 1])
    for value in (1.0, float("nan")):
        some = torch.full((6,), value)
        host.ops.batch_hard_backward(some, some, features, some, some, index, index)

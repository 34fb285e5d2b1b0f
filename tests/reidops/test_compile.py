"""The operators as parts of PyTorch: opcheck, torch.compile, autocast, inference mode, meta tensors."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import reidops
from reidops.losses import AlignedTripletLoss, TripletLoss
from tests.reidops.inputs import clustered, integers, random
from tests.tolerances import assert_relative

LABELS = integers(8, high=3)
TRAINING = (
    "euclidean_distance", "shortest_path", "dmli", "batch_hard", "batch_hard_from_distance", "channel_attention",
    "channel_attention averages",
)  # fmt: skip


def leaf(*shape, seed=0, positive=False):
    values = random(*shape, seed=seed)
    return (values.abs() if positive else values).requires_grad_()


def mined(features):
    return torch.ops.reidops.batch_hard(features, LABELS, "highest")


def samples():
    """Representative arguments of every registered operator, a list an operator."""
    x, y, features, cost = random(5, 7), random(3, 7, seed=1), random(8, 6), random(3, 4, 5)
    stripes_x, stripes_y = random(3, 4, 6), random(3, 4, 6, seed=1)
    attention = [random(2, 3, 5, seed=s) for s in range(3)]
    averages = [*attention[:2], random(2, 3, 2, seed=4)]
    images = clustered(12, 6, clusters=3)
    local = clustered(12, 3, 4, clusters=3)
    ids = [integers(5, high=3), integers(9, high=3, seed=1)]
    cameras = [torch.zeros(5, dtype=torch.int64), torch.ones(9, dtype=torch.int64)]
    ranked = random(5, 9).abs()
    settings = (3, 2, 0.3, "zhong2017")
    positive, negative, positive_index, negative_index = mined(features)
    return {
        "euclidean_distance": [(leaf(5, 7), leaf(3, 7, seed=1), s) for s in (False, True)] + [(x, x[:0], False)],
        "shortest_path": [(leaf(3, 4, 5),), (cost[:0],), (leaf(2, 1, 1),)],
        "shortest_path_backward": [(random(3), cost)],
        "shortest_path_indices": [(cost[0],), (cost[0].mT,)],
        "euclidean_distance_backward": [
            (random(5, 3, seed=2), random(5, 7), random(3, 7, seed=1), random(5, 3, seed=3).abs(), s)
            for s in (False, True)
        ],
        "dmli": [(leaf(3, 4, 6), leaf(3, 5, 6, seed=1), True), (leaf(3, 4, 6), leaf(3, 4, 6, seed=1), False)],
        "dmli_backward": [(random(3), stripes_x, stripes_y, aligned) for aligned in (True, False)],
        "dmli_matrix": [(stripes_x, stripes_y[:2], aligned, "highest") for aligned in (True, False)],
        "batch_hard": [(leaf(8, 6), LABELS, "highest")],
        "batch_hard_backward": [
            (random(8), random(8, seed=1), features, positive, negative, positive_index, negative_index)
        ],
        "batch_hard_from_distance": [(leaf(8, 8, positive=True), LABELS)],
        "knn": [(x, y, 2, "highest"), (y.double(), x.double(), 5, "highest")],
        "k_reciprocal": [
            (images[:4], images[4:], None, None, *settings, "highest"),
            (None, None, local[:4], local[4:], *settings, "highest"),
            (images[:4], images[4:], local[:4], local[4:], 3, 2, 0.3, "jaccard", "highest"),
        ],
        "k_reciprocal_topk": [
            (images[:4], images[4:], None, None, *settings, 5, "highest"),
            (None, None, local[:4], local[4:], *settings, 5, "highest"),
        ],
        "k_reciprocal_from_distance": [(ranked, ranked[:, :5].contiguous(), random(9, 9).abs(), *settings)],
        "rank_metrics": [
            (ranked, *ids, *people, 4, protocol, 10, 0)
            for people in ((None, None), cameras)
            for protocol in ("market1501", "mudeep", "cuhk03")
        ],
        "channel_attention": [
            tuple(leaf(2, 3, length, seed=s) for s, length in enumerate(lengths)) for lengths in ((5, 5, 5), (5, 5, 2))
        ],
        "channel_attention_backward": [
            (random(*values[2].shape, seed=3), *values, *torch.ops.reidops.channel_attention(*values))
            for values in (attention, averages)
        ],
    }


def registered():
    names = torch._C._dispatch_get_all_op_names()
    return sorted({name.removeprefix("reidops::").partition(".")[0] for name in names if name.startswith("reidops::")})


def test_every_registered_operator_is_checked():
    assert registered() == sorted(samples())


def on(device, values):
    """The arguments on the device, leaves as leaves."""
    if not isinstance(values, torch.Tensor):
        return values
    return values.detach().to(device).requires_grad_(values.requires_grad)


@pytest.mark.parametrize("name", registered())
def test_opcheck(name, device):
    for arguments in samples()[name]:
        arguments = tuple(on(device, values) for values in arguments)
        torch.library.opcheck(getattr(torch.ops.reidops, name).default, arguments)


def public_calls(n, device):
    """Every public operator as a function of tensors, with tensors of a size that grows with n."""

    def r(*shape, seed=0):
        return random(*shape, seed=seed, device=device)

    labels = torch.arange(2 * n, device=device) % 3
    images, local = clustered(4 * n, 6, clusters=4, device=device), clustered(4 * n, 3, 5, clusters=4, device=device)
    distance = r(n, 3 * n).abs()
    ids = torch.arange(n, device=device) % 3, torch.arange(3 * n, device=device) % 3
    cameras = torch.zeros(n, dtype=torch.int64, device=device), torch.ones(3 * n, dtype=torch.int64, device=device)
    near = {"k1": 4, "k2": 2}
    return {
        "euclidean_distance": (reidops.euclidean_distance, (r(n, 7), r(2 * n, 7, seed=1))),
        "shortest_path": (reidops.shortest_path, (r(n, n + 1, 5).abs(),)),
        "shortest_path_indices": (reidops.shortest_path_indices, (r(n, n + 1),)),
        "dmli": (reidops.dmli, (r(n, 4, 6), r(n, 5, 6, seed=1))),
        "dmli_matrix": (reidops.dmli_matrix, (r(n, 4, 6), r(2 * n, 5, 6, seed=1))),
        "batch_hard": (reidops.batch_hard, (r(2 * n, 6), labels)),
        "batch_hard_from_distance": (reidops.batch_hard_from_distance, (r(2 * n, 2 * n).abs(), labels)),
        "knn": (lambda q, g: reidops.knn(q, g, 3), (r(n, 6), r(2 * n, 6, seed=1))),
        "k_reciprocal": (lambda q, g: reidops.k_reciprocal(q, g, **near), (images[:n].clone(), images[n:].clone())),
        "k_reciprocal topk": (
            lambda q, g, a, b: reidops.k_reciprocal(q, g, query_local=a, gallery_local=b, **near, topk=3),
            (images[:n].clone(), images[n:].clone(), local[:n].clone(), local[n:].clone()),
        ),
        "k_reciprocal_from_distance": (
            lambda qg, qq, gg: reidops.k_reciprocal_from_distance(qg, qq, gg, **near),
            (distance, r(n, n).abs(), r(3 * n, 3 * n).abs()),
        ),
        "rank_metrics": (lambda *a: reidops.rank_metrics(*a, max_rank=4), (distance, *ids, *cameras)),
        "rank_metrics cuhk03": (
            lambda *a: reidops.rank_metrics(*a, max_rank=4, protocol="cuhk03", num_draws=5), (distance, *ids),
        ),
        "channel_attention": (reidops.channel_attention, [r(n, 4, 5, seed=s) for s in range(3)]),
        "channel_attention averages": (
            reidops.channel_attention, [r(n, 4, 5), r(n, 4, 5, seed=1), r(n, 4, 3, seed=2)]
        ),
        "TripletLoss": (TripletLoss(), (r(2 * n, 6), labels)),
        "AlignedTripletLoss": (AlignedTripletLoss(), (r(2 * n, 6), r(2 * n, 4, 5, seed=1), labels)),
    }  # fmt: skip


CALLS = list(public_calls(4, "cpu"))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", CALLS)
def test_compiled_once_for_all_sizes(name, device):
    counter = CompileCounterWithBackend("aot_eager")
    function = public_calls(4, device)[name][0]
    compiled = torch.compile(function, fullgraph=True, backend=counter, dynamic=True)
    compilations = []
    for n in (9, 13, 17):  # none of the sizes that stay: the tracer takes equal sizes for one and the same
        arguments = public_calls(n, device)[name][1]
        torch.testing.assert_close(compiled(*arguments), function(*arguments), equal_nan=True)
        compilations.append(counter.frame_count)
    assert compilations[0] > 0 and compilations == compilations[:1] * 3


@pytest.mark.parametrize("name", [*TRAINING, "TripletLoss", "AlignedTripletLoss"])
def test_compiled_gradients(name, device):
    function, arguments = public_calls(6, device)[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    inputs = [v.requires_grad_() if v.is_floating_point() else v for v in arguments]
    leaves = [v for v in inputs if v.requires_grad]

    def total(results):
        results = [results] if isinstance(results, torch.Tensor) else results
        return sum(values.square().sum() for values in results if values.is_floating_point())

    actual = torch.autograd.grad(total(compiled(*inputs)), leaves)
    torch.testing.assert_close(actual, torch.autograd.grad(total(function(*inputs)), leaves))


def test_compiled_with_inductor(device):
    def loss(x, y):
        return 2 * reidops.dmli(x, y) + 1  # something for the compiler to fuse behind the operator

    inputs = public_calls(6, device)["dmli"][1]
    torch.testing.assert_close(torch.compile(loss, fullgraph=True)(*inputs), loss(*inputs))


@pytest.mark.parametrize("name", CALLS)
def test_inference_mode(name, device):
    function, arguments = public_calls(5, device)[name]
    expected = function(*arguments)
    with torch.inference_mode():
        arguments = [values.clone() for values in arguments]
        result = function(*arguments)
    torch.testing.assert_close(result, expected, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CALLS)
def test_autocast_computes_in_float32(name, dtype, device):
    function, arguments = public_calls(5, device)[name]
    halves = [values.to(dtype) if values.is_floating_point() else values for values in arguments]
    wide = [values.float() if values.is_floating_point() else values for values in halves]
    expected = function(*wide)
    with torch.autocast(device.type, dtype=dtype):
        for inputs in (halves, wide):
            result = function(*inputs)
            own_kernel = name.startswith("channel_attention") and device.type == "cuda"
            if own_kernel and inputs is halves:
                assert result.dtype == dtype
                assert_relative(result, expected.double().cpu(), relative_to="largest")
            else:
                torch.testing.assert_close(result, expected, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("name", TRAINING)
def test_gradients_under_autocast(name, device):
    function, arguments = public_calls(5, device)[name]
    inputs = [v.bfloat16().requires_grad_() if v.is_floating_point() else v for v in arguments]
    leaves = [v for v in inputs if v.requires_grad]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        results = function(*inputs)
    results = [results] if isinstance(results, torch.Tensor) else [v for v in results if v.requires_grad]
    for gradient in torch.autograd.grad(sum(values.sum() for values in results), leaves):
        assert gradient.dtype == torch.bfloat16 and gradient.isfinite().all()


@pytest.mark.parametrize("name", CALLS)
def test_meta_tensors_give_shapes(name):
    function, arguments = public_calls(5, "cpu")[name]
    expected = function(*arguments)
    result = function(*(values.to("meta") for values in arguments))
    results = ([result], [expected]) if isinstance(result, torch.Tensor) else (result, expected)
    for r, e in zip(*results, strict=True):
        assert r.is_meta and r.shape == e.shape and r.dtype == e.dtype

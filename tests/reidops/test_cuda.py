"""What only a GPU can show of the CUDA kernels: streams, graphs, waiting, other devices, memory beyond 2^31 elements.

That their values are right is tested with the CPU's, by the fixture `device`; their logic runs in tests/cuda_host.
"""

import pytest
import torch

import reidops
from tests.reidops.inputs import clustered, integers, random

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def arguments(device="cuda", ops=torch.ops.reidops, scale=10):
    """The operators below torch.ops with arguments on the device: training and evaluation, forward and backward.

    With scale 10 there are more images than a tile of a large GPU has rows and columns.
    """
    count = 400 * scale
    images = clustered(count, 48, clusters=60, device=device)
    local = clustered(120 * scale, 8, 20, clusters=30, device=device)
    labels, distance = integers(count, high=40, device=device), random(100, 500, device=device).abs()
    ids = [integers(100, high=30, device=device), integers(500, high=30, seed=1, device=device)]
    cameras = [integers(n, high=4, seed=2, device=device) for n in (100, 500)]
    attention = [random(4, 64, 32, seed=s, device=device) / 3 for s in range(3)]
    half_way = 60 * scale
    pairs = local[:half_way].contiguous(), local[half_way:].contiguous()
    mined = ops.batch_hard(images, labels, "highest")
    attended = ops.channel_attention(*attention)
    settings = 20, 6, 0.3, "zhong2017"
    matrices = [torch.cdist(a, b) for a, b in ((images[:90], images[90:]), (images[:90],) * 2, (images[90:],) * 2)]
    calls = {
        "euclidean_distance": (images, images, False),
        "euclidean_distance_backward": (
            random(count, count, device=device),
            images,
            images,
            torch.cdist(images, images),
            False,
        ),
        "shortest_path": (random(300, 6, 7, device=device),),
        "shortest_path_backward": (random(300, device=device), random(300, 6, 7, device=device)),
        "shortest_path_indices": (random(9, 8, device=device),),
        "dmli": (*pairs, True),
        "dmli_backward": (random(half_way, device=device), *pairs, True),
        "batch_hard": (images, labels, "highest"),
        "batch_hard_backward": (*[random(count, seed=s, device=device) for s in range(2)], images, *mined),
        "batch_hard_from_distance": (torch.cdist(images, images), labels),
        "channel_attention": tuple(attention),
        "channel_attention_backward": (random(4, 64, 32, device=device), *attention, *attended),
        "rank_metrics": (distance, *ids, *cameras, 20, "market1501", 10, 0),
        "k_reciprocal_from_distance": (*matrices, *settings),
    }
    for precision in ("highest", "high", "medium"):
        calls[f"dmli_matrix {precision}"] = (*pairs, True, precision)
        calls[f"knn {precision}"] = (images, images, 20, precision)
        calls[f"k_reciprocal {precision}"] = (images[:90], images[90:], None, None, *settings, precision)
    calls["dmli_matrix unaligned"] = (*pairs, False, "highest")
    calls["rank_metrics cuhk03"] = (distance, *ids, None, None, 20, "cuhk03", 10, 0)
    calls["k_reciprocal_topk"] = (
        images[:40],
        images[40 : len(local)],
        local[:40],
        local[40:],
        *settings,
        20,
        "highest",
    )
    half = [t.bfloat16() for t in attention]
    attended = ops.channel_attention(*half)
    calls["channel_attention half"] = tuple(half)
    calls["channel_attention_backward half"] = (random(4, 64, 32, device=device).bfloat16(), *half, *attended)
    averages = [*attention[:2], random(4, 64, 3, device=device)]
    for kind, values in ("averages", averages), ("averages half", [t.bfloat16() for t in averages]):
        calls[f"channel_attention {kind}"] = tuple(values)
        grad = random(4, 64, 3, seed=1, device=device).to(values[0])
        calls[f"channel_attention_backward {kind}"] = (grad, *values, *ops.channel_attention(*values))
    return calls


NAMES = [
    "batch_hard", "batch_hard_backward", "batch_hard_from_distance", "channel_attention",
    "channel_attention averages", "channel_attention averages half", "channel_attention half",
    "channel_attention_backward", "channel_attention_backward averages", "channel_attention_backward averages half",
    "channel_attention_backward half", "dmli", "dmli_backward", "dmli_matrix high", "dmli_matrix highest",
    "dmli_matrix medium", "dmli_matrix unaligned", "euclidean_distance",
    "euclidean_distance_backward", "k_reciprocal high", "k_reciprocal highest", "k_reciprocal medium",
    "k_reciprocal_from_distance", "k_reciprocal_topk", "knn high", "knn highest", "knn medium", "rank_metrics",
    "rank_metrics cuhk03", "shortest_path", "shortest_path_backward", "shortest_path_indices",
]  # fmt: skip


@pytest.fixture(scope="module")
def calls():
    calls = arguments()
    assert sorted(calls) == NAMES
    return calls


def run(name, arguments):
    results = getattr(torch.ops.reidops, name.partition(" ")[0])(*arguments)
    return [results] if isinstance(results, torch.Tensor) else list(results)


def assert_bit_equal(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_runs_are_bit_equal_and_every_element_is_written(name, calls):
    first = run(name, calls[name])
    torch.use_deterministic_algorithms(True)  # new tensors are filled with NaN and with the largest integers
    try:
        for _ in range(3):
            assert_bit_equal(run(name, calls[name]), first)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_the_device(name, calls):
    run(name, calls[name])
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(name, calls[name])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", NAMES)
def test_on_a_stream_of_its_own(name, calls):
    """The inputs are made on the stream, behind a long wait: work on another one would read them too early."""
    expected = run(name, calls[name])
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    late = [torch.zeros_like(a) if isinstance(a, torch.Tensor) else a for a in calls[name]]
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        for to, value in zip(late, calls[name], strict=True):
            if isinstance(to, torch.Tensor):
                to.copy_(value)
        actual = run(name, late)
    stream.synchronize()
    assert_bit_equal(actual, expected)


@pytest.mark.parametrize("name", NAMES)
def test_in_a_graph(name, calls):
    """Captured once, replayed on other values in the same memory."""
    inputs = [a.clone() if isinstance(a, torch.Tensor) else a for a in calls[name]]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(name, inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(name, inputs)
    for one in inputs:
        if isinstance(one, torch.Tensor) and one.is_floating_point():
            one.copy_(one.flip(0))
    expected = run(name, inputs)
    graph.replay()
    torch.cuda.synchronize()
    assert_bit_equal(captured, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_on_another_device_than_the_current_one(name, calls):
    second = [a.to("cuda:1") if isinstance(a, torch.Tensor) else a for a in calls[name]]
    actual = run(name, second)
    assert torch.cuda.current_device() == 0 and all(result.device.index == 1 for result in actual)
    assert_bit_equal([result.cpu() for result in actual], [result.cpu() for result in run(name, calls[name])])


def free_memory():
    return torch.cuda.mem_get_info()[0]


@pytest.mark.skipif(torch.cuda.is_available() and free_memory() < 60 << 30, reason="this takes 60 GB of memory")
class TestBeyondTwoToThe31:
    """Offsets that do not fit 32 bits; checked where they are largest."""

    def test_euclidean_distance(self):
        x, y = random(50_000, 4, device="cuda"), random(50_000, 4, seed=1, device="cuda")
        distance = reidops.euclidean_distance(x, y)
        assert distance.numel() > 2**31
        torch.testing.assert_close(distance[-3:], torch.cdist(x[-3:].double(), y.double()).float(), rtol=1e-5, atol=0)

    def test_dmli_matrix(self):
        x, y = random(50_000, 2, 3, device="cuda"), random(50_000, 2, 3, seed=1, device="cuda")
        matrix = reidops.dmli_matrix(x, y)
        assert matrix.numel() > 2**31
        assert torch.equal(matrix[-300:, -300:], reidops.dmli_matrix(x[-300:], y[-300:])) or torch.allclose(
            matrix[-300:, -300:], reidops.dmli_matrix(x[-300:], y[-300:]), rtol=1e-5, atol=1e-6
        )

    def test_dmli(self):
        x = torch.randn(140_000, 8, 2048, device="cuda")  # 2.3e9 elements
        y = x.flip(0)
        assert torch.equal(reidops.dmli(x, y)[-100:], reidops.dmli(x[-100:].clone(), y[-100:].clone()))

    def test_batch_hard_backward(self):
        features = torch.randn(1_100_000, 2048, device="cuda")
        index = torch.arange(1_100_000, device="cuda").flip(0)
        ones = torch.ones(1_100_000, device="cuda")
        grad = torch.ops.reidops.batch_hard_backward(ones, 0 * ones, features, ones, ones, index, index)
        expected = 2 * (features[-5:] - features[:5].flip(0))
        torch.testing.assert_close(grad[-5:], expected, rtol=1e-5, atol=1e-5)

    def test_rank_metrics(self):
        distance = torch.rand(50_000, 50_000, device="cuda")
        ids = torch.arange(50_000, device="cuda") % 5_000
        scores = reidops.rank_metrics(distance, ids, ids)
        last = reidops.rank_metrics(distance[-10:].cpu(), ids[-10:].cpu(), ids.cpu())
        torch.testing.assert_close(scores.average_precision[-10:].cpu(), last.average_precision, rtol=1e-12, atol=0)

    def test_shortest_path(self):
        cost = torch.rand(36_000_000, 8, 8, device="cuda")
        assert torch.equal(reidops.shortest_path(cost)[-100:], reidops.shortest_path(cost[-100:].clone()))

    def test_knn(self):
        points = torch.randn(1_200_000, 2048, device="cuda")  # 2.5e9 elements
        query = points[-4:] + 1e-3
        assert reidops.knn(query, points, 3).index[:, 0].tolist() == list(range(1_199_996, 1_200_000))


def test_a_training_batch_takes_few_launches():
    features = random(64, 2048, device="cuda").requires_grad_()
    labels = torch.arange(64, device="cuda") // 4

    def step():
        mined = reidops.batch_hard(features, labels)
        torch.autograd.backward(mined[:2], [torch.ones(64, device="cuda")] * 2)

    step()
    ones = torch.ones(64, device="cuda")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        mined = reidops.batch_hard(features, labels)
        torch.autograd.grad(mined[:2], features, [ones, ones])
        torch.cuda.synchronize()
    launches = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [name for name in launches if not name.startswith(("Memcpy", "Memset"))]
    assert len(kernels) <= 4, kernels

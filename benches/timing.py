"""Time of calls: contestants in turn, medians, CUDA events on a GPU and the clock on a processor."""

import gc
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch

LEAST, MOST = 3, 100  # calls of a contestant that are timed
GRAPH_CALLS, GRAPH_MS = 64, 20  # calls in one CUDA graph: as many as take so long, at most so many


class Contestant(NamedTuple):
    """Something to time: each call is given the next set of inputs."""

    run: Callable[..., Any]
    inputs: list[tuple]
    on_host: bool = False  # it runs on the processor, whatever its rivals run on


class Timing(NamedTuple):
    """Milliseconds of a call: the median, and what a tenth of the calls are below and above."""

    ms: float
    low: float
    high: float
    calls: int


def compare(contestants: dict[str, Contestant], device: torch.device, seconds: float) -> dict[str, Timing | str]:
    """Times every contestant, in turn, so that a drifting clock favours none; the error's words where one fails.

    One call each to warm up, then rounds until each has had `seconds` and LEAST calls, or MOST calls.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    failed: dict[str, str] = {}

    def call(name: str, turn: int) -> float | None:
        run, inputs, on_host = contestants[name]
        try:
            return time_call(run, inputs[turn % len(inputs)], torch.device("cpu") if on_host else device)
        except Exception as error:
            failed[name] = describe(error)
            release(device)
            return None

    def waits(name: str) -> bool:
        done = times[name]
        return name not in failed and len(done) < MOST and (len(done) < LEAST or sum(done) < 1e3 * seconds)

    with collected_garbage():
        for name in contestants:
            call(name, 0)
        turn = 0
        while left := [name for name in contestants if waits(name)]:
            turn += 1
            for name in left if turn % 2 else left[::-1]:
                ms = call(name, turn)
                if ms is not None:
                    times[name].append(ms)
    return {name: failed[name] if name in failed else summary(times[name]) for name in contestants}


def time_call(run: Callable[..., Any], inputs: tuple, device: torch.device) -> float:
    """Milliseconds of one call on an idle device, from the call to the end of its last kernel."""
    if device.type != "cuda":
        start = time.perf_counter()
        run(*inputs)
        return 1e3 * (time.perf_counter() - start)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    result = run(*inputs)
    end.record()
    end.synchronize()
    del result
    return start.elapsed_time(end)


def graph_time(run: Callable[..., Any], inputs: list[tuple], ms: float = 0.0) -> float:
    """Milliseconds of a call on the device alone: calls captured in a CUDA graph, its replays timed.

    `ms` is what a call takes as far as is known.
    """
    calls = calls_in_graph(ms)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(*inputs[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in range(calls):
            run(*inputs[call % len(inputs)])
    graph.replay()
    return float(np.median([time_call(graph.replay, (), torch.device("cuda")) for _ in range(10)])) / calls


def calls_in_graph(ms: float) -> int:
    """How many calls of so many milliseconds a graph is made of.

    Example:
        >>> calls_in_graph(0.01), calls_in_graph(2.0), calls_in_graph(50.0)
        (64, 10, 1)
    """
    return max(1, min(GRAPH_CALLS, round(GRAPH_MS / max(ms, 1e-6))))


def launches(run: Callable[..., Any], inputs: tuple) -> list[str]:
    """Names of the kernels, copies and fills that one call gives to the GPU."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    for _ in range(2):  # the first profile of a process may miss some
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=activities) as profile:
            result = run(*inputs)
            torch.cuda.synchronize()
        del result
    on_device = torch.autograd.DeviceType.CUDA
    return [event.name for event in profile.events() if event.device_type == on_device]


def summary(times: list[float]) -> Timing:
    low, median, high = np.percentile(times, [10, 50, 90])
    return Timing(float(median), float(low), float(high), len(times))


def describe(error: BaseException) -> str:
    """The error in one line."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first[:300]}"


def release(device: torch.device) -> None:
    """Gives back what a row or a failed call held."""
    gc.collect()
    with suppress(RuntimeError):  # of a GPU that is lost to this process
        if device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def collected_garbage():
    """No garbage collection in here."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def matmul_precision(word: str):
    """torch's setting for products of float32 matrices; words it does not know mean "highest"."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(word if word in ("highest", "high", "medium") else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

"""Something to time on the processor, by samples of one or several calls."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from benches import timing
from benches.cases import Case

OURS = "reidops"
CPU = torch.device("cpu")
SAMPLE_MS = 5.0  # a sample is so long: one call, or several of a short one, after one that is not timed
SHORT_MS = 50.0  # a call of less is made once more before a sample, to bring its inputs back into the caches
MOST_CALLS = 200  # in a sample
PAUSE = 0.03  # seconds; a library's threads wait for more work with open eyes, OpenBLAS's for some 25 ms
WARMING_MS = 1_000.0  # a first call of less may mostly have been loading libraries


def mode(case: Case) -> AbstractContextManager:
    """No gradients are kept for but where they are asked for."""
    return torch.enable_grad() if case.training else torch.inference_mode()


class Contestant:
    """Something to time, by samples of one or several calls."""

    def __init__(self, run: Callable[..., Any], inputs: tuple):
        self.run, self.inputs = run, inputs
        self.samples: list[float] = []
        begin = time.perf_counter()
        self.result = run(*inputs)
        self.ms = 1e3 * (time.perf_counter() - begin)  # of a call, about
        if self.ms < WARMING_MS:
            self.ms = min(timing.time_call(run, inputs, CPU) for _ in range(2))
        self.calls = max(1, min(MOST_CALLS, math.ceil(SAMPLE_MS / self.ms)))

    def warm(self) -> None:
        """Lets the threads of the last library fall asleep, and brings a short call's inputs back into the caches."""
        time.sleep(PAUSE)
        if self.ms < SHORT_MS:
            self.run(*self.inputs)

    def sample(self) -> None:
        for _ in range(self.calls):
            self.run(*self.inputs)

    def take(self) -> None:
        self.warm()
        self.samples.append(timing.time_call(self.sample, (), CPU))

    def summary(self) -> timing.Timing:
        done = timing.summary([ms / self.calls for ms in self.samples])
        return done._replace(calls=len(self.samples) * self.calls)

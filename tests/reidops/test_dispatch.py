"""The answers do not depend on the number of threads, nor on the instruction set beyond rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import reidops
from reidops import reference
from tests.reidops.inputs import clustered, integers, random
from tests.reidops.simd_results import results
from tests.tolerances import RELATIVE

LEVELS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")
IMAGES = clustered(600, 48, clusters=80)
STRIPES = clustered(150, 8, 20, clusters=30)
LABELS = integers(600, high=40)
IDS = integers(100, high=30), integers(500, high=30, seed=1)
DISTANCE = random(100, 500).abs()
AVERAGES = random(3, 300, 32) / 3, random(3, 300, 32, seed=1) / 3, random(3, 300, 3, seed=2)

CALLS = {
    "euclidean_distance": lambda: [reidops.euclidean_distance(IMAGES, IMAGES)],
    "shortest_path": lambda: [reidops.shortest_path(random(5000, 6, 6))],
    "dmli": lambda: [reidops.dmli(STRIPES, STRIPES.flip(0))],
    "dmli_matrix": lambda: [reidops.dmli_matrix(STRIPES, STRIPES)],
    "batch_hard": lambda: reidops.batch_hard(IMAGES, LABELS),
    "knn": lambda: reidops.knn(IMAGES, IMAGES, 30),
    "k_reciprocal": lambda: [reidops.k_reciprocal(IMAGES[:100], IMAGES[100:])],
    "k_reciprocal topk": lambda: reidops.k_reciprocal(IMAGES[:100], IMAGES[100:], topk=20),
    "rank_metrics": lambda: reidops.rank_metrics(DISTANCE, *IDS),
    "rank_metrics cuhk03": lambda: reidops.rank_metrics(DISTANCE, *IDS, protocol="cuhk03", num_draws=10),
    "channel_attention": lambda: [reidops.channel_attention(*[random(16, 64, 32, seed=s) / 3 for s in range(3)])],
    "channel_attention averages": lambda: [reidops.channel_attention(*AVERAGES)],
}


@pytest.fixture
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", CALLS)
def test_one_thread_and_several_agree_bit_for_bit(name, keep_threads):
    torch.set_num_threads(1)
    alone = CALLS[name]()
    for threads in (2, 3):
        torch.set_num_threads(threads)
        for one, many in zip(alone, CALLS[name](), strict=True):
            torch.testing.assert_close(many, one, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "name", ["dmli", "batch_hard", "channel_attention", "channel_attention averages", "shortest_path"]
)
def test_gradients_of_one_thread_and_several_agree_bit_for_bit(name, keep_threads):
    inputs = {
        "dmli": (reidops.dmli, [STRIPES, STRIPES.flip(0)]),
        "batch_hard": (lambda f: torch.stack(reidops.batch_hard(f, LABELS)[:2]), [IMAGES]),
        "channel_attention": (reidops.channel_attention, [random(16, 64, 32, seed=s) / 3 for s in range(3)]),
        "channel_attention averages": (reidops.channel_attention, AVERAGES),
        "shortest_path": (reidops.shortest_path, [random(5000, 6, 6)]),
    }
    function, values = inputs[name]
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        leaves = [v.clone().requires_grad_() for v in values]
        found.append(torch.autograd.grad(function(*leaves).square().sum(), leaves))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_build_info_names_the_level():
    info = reidops.build_info()
    assert info["simd"] in info["simd_levels"]
    assert set(info["simd_levels"]) <= {*LEVELS, "neon"}


@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set_agrees_with_the_reference(level, tmp_path):
    if level not in reidops.build_info()["simd_levels"]:
        pytest.skip(f"this machine has no {level}")
    script = Path(__file__).with_name("simd_results.py")
    file = tmp_path / "results.npz"
    subprocess.run([sys.executable, script, file], env={**os.environ, "REIDOPS_SIMD": level}, check=True)
    found = np.load(file)
    assert found["simd"] == level
    for dtype in (torch.float32, torch.float64):
        for name, expected in results(reference, dtype).items():
            actual = found[f"{dtype} {name}".removeprefix("torch.")]
            largest = RELATIVE[dtype] * np.abs(expected).max() if "attention" in name or "reciprocal" in name else 0
            np.testing.assert_allclose(actual, expected, rtol=RELATIVE[dtype], atol=largest, err_msg=name)


MOST_ERROR = {
    "highest": 1e-5,
    "high": 3e-4,
    "medium": 5e-2,
}  # all digits of float32, at least 16 of its bits, at least 8


@pytest.mark.parametrize("level", LEVELS)
def test_every_precision_keeps_its_digits(level, tmp_path):
    if level not in reidops.build_info()["simd_levels"]:
        pytest.skip(f"this machine has no {level}")
    script = Path(__file__).with_name("precision_results.py")
    file = tmp_path / "errors.json"
    subprocess.run([sys.executable, script, file], env={**os.environ, "REIDOPS_SIMD": level}, check=True)
    for precision, errors in json.loads(file.read_text()).items():
        for name, error in errors.items():
            assert error <= MOST_ERROR[precision], f"{name} at {precision}: relative error {error}"
        if precision == "medium" and level in ("avx512_bf16", "amx"):
            assert errors["knn"] > 1e-4  # products of bfloat16 are really what is used


def bits_differ(first, second):
    return [
        name for name in first if any(not torch.equal(a, b) for a, b in zip(first[name], second[name], strict=True))
    ]


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_the_same_bits_again_and_again(threads, keep_threads):
    """Pairs of a symmetric set are made once, by threads in no order, which must not show."""
    torch.set_num_threads(threads)
    features = clustered(1500, 40, clusters=200, seed=3)
    labels = integers(1500, high=300)

    def run():
        return {
            "knn": reidops.knn(features, features, 25),
            "k_reciprocal": [reidops.k_reciprocal(features[:200], features[200:])],
            "topk": reidops.k_reciprocal(features[:200], features[200:], topk=30),
            "batch_hard": reidops.batch_hard(features, labels),
        }

    first = run()
    for _ in range(5):
        assert bits_differ(first, run()) == []

"""benches.input_speed at a tiny size."""

import json

import pytest
import torch

from benches import input_speed
from reidops_models import AlignedReID


def test_it_measures_every_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REIDOPS_DATA", "")
    monkeypatch.setattr(input_speed, "SIZE", (64, 32))
    monkeypatch.setattr(input_speed, "AlignedReID", lambda classes: AlignedReID(classes, "resnet18"))
    threads = torch.get_num_threads()
    results = input_speed.main([
        "--count", "8", "--batch", "8", "--steps", "2", "--seconds", "0.01", "--workers", "0", "1",
        "--output", str(tmp_path / "input.json"),
    ])  # fmt: skip
    assert torch.get_num_threads() == threads
    assert json.loads((tmp_path / "input.json").read_text())["verdict"] == results["verdict"]
    (found,) = results["loader"].values()
    for way in input_speed.WAYS:
        assert [found[way][count]["images_per_second"] > 0 for count in (0, 1)] == [True, True]
    (parts,) = results["parts"].values()
    assert parts["NormalizedTensor"]["differs_by"] == 0 and parts["decode, Pillow"]["us"] > 0
    assert "floats, ram" in capsys.readouterr().out


@pytest.mark.parametrize(("speed", "words"), [(200, "-j 2 is enough"), (100, "the model waits: at most 100")])
def test_the_verdict(speed, words):
    figures = {2: {"images_per_second": speed}}
    results = {"step_images_per_second": 100, "loader": {"set": {"off": figures, "ram": figures}}}
    assert all(words in line for line in input_speed.verdict(results))

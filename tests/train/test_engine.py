"""Training: resuming repeats an uninterrupted run, losses add up, trouble is said in words."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from reidops.losses import AlignedTripletLoss
from reidops_models import AlignedReIDOutput
from train import engine


class Killed(Exception):
    """Stands for the plug being pulled."""


def read_log(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name not in ("seconds", "images_per_second")} for line in lines]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_run_resumes_as_if_nothing_had_happened(run_small, tmp_path, monkeypatch, workers):
    flags = ["--max-epoch", 4, "--stepsize", 3, "--eval-step", 2, "-j", workers]
    run_small(tmp_path / "straight", *flags)

    train_epoch, save = engine.Trainer.train_epoch, engine.Trainer.save

    def killed_in_the_third(trainer, loader):
        means = train_epoch(trainer, loader)
        if trainer.epoch == 3:
            raise Killed
        return means

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(engine.Trainer, "train_epoch", killed_in_the_third)
        run_small(tmp_path / "killed", *flags)
    assert [line["epoch"] for line in read_log(tmp_path / "killed")] == [1, 2]

    def killed_before_saving(trainer, path):  # the log has the epoch then, the checkpoint has not
        if trainer.epoch == 3:
            raise Killed
        save(trainer, path)

    last = tmp_path / "killed" / "last.pth"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(engine.Trainer, "save", killed_before_saving)
        run_small(tmp_path / "killed", *flags, "--resume", last)
    results = run_small(tmp_path / "killed", *flags, "--resume", last)

    assert read_log(tmp_path / "killed") == read_log(tmp_path / "straight")
    assert len(read_log(tmp_path / "straight")) == 4
    straight = json.loads((tmp_path / "straight" / "results.json").read_text())
    assert results["rows"] == straight["rows"]
    assert results["training"]["best_epoch"] == straight["training"]["best_epoch"]
    for name in ("last.pth", "best.pth"):
        ours, theirs = (torch.load(tmp_path / run / name, weights_only=True) for run in ("killed", "straight"))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_loss_is_the_sum_of_its_parts():
    torch.manual_seed(0)
    output = AlignedReIDOutput(torch.randn(6, 4), torch.randn(6, 8), functional.normalize(torch.randn(6, 3, 5), dim=2))
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    global_loss, local_loss = AlignedTripletLoss(margin=0.5)(output.global_features, output.local_features, labels)
    losses = engine.ReIDLoss(margin=0.5, label_smoothing=0.1)(output, labels)
    assert tuple(losses) == engine.LOSSES
    log_probability = output.logits.log_softmax(1)
    target = functional.one_hot(labels, 4) * 0.9 + 0.1 / 4
    torch.testing.assert_close(losses["cross_entropy"], -(target * log_probability).sum(1).mean())
    torch.testing.assert_close(losses["global_loss"], global_loss)
    torch.testing.assert_close(losses["local_loss"], local_loss)
    torch.testing.assert_close(losses["loss"], losses["cross_entropy"] + global_loss + local_loss)
    triplet_only = engine.ReIDLoss(margin=0.5, triplet_only=True)(output, labels)
    torch.testing.assert_close(triplet_only["loss"], global_loss + local_loss)


class Diverged(nn.Module):
    """Returns features that are not numbers, or too large for one."""

    def __init__(self, value):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.value = value

    def forward(self, images):
        features = images.flatten(1)[:, :4] * self.value * self.scale
        return AlignedReIDOutput(features, features, features[:, None].expand(-1, 2, -1))


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_divergence_stops_with_the_place_and_the_cure(value):
    model = Diverged(value)
    optimizer = engine.make_optimizer("sgd", model, 0.5, 0.0)
    trainer = engine.Trainer(
        model, engine.ReIDLoss(), optimizer, engine.make_scheduler(optimizer, 0, 0.1), device=torch.device("cpu")
    )
    batch = torch.rand(4, 3, 2, 2) * 2, torch.tensor([0, 0, 1, 1]), torch.zeros(4)
    with pytest.raises(FloatingPointError, match=r"batch 1 of epoch 1: training has diverged; lower --lr \(now 0.5\)"):
        trainer.train_epoch([batch])
    assert model.scale.item() == 1


def test_an_epoch_without_a_batch_is_an_error():
    model = Diverged(1.0)
    optimizer = engine.make_optimizer("adam", model, 0.1, 0.0)
    scheduler = engine.make_scheduler(optimizer, 0, 0.1)
    trainer = engine.Trainer(model, engine.ReIDLoss(), optimizer, scheduler, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="fewer images than --train-batch"):
        trainer.train_epoch([])


@pytest.mark.parametrize("name", engine.OPTIMIZERS)
def test_step_decay(name):
    model = nn.Linear(2, 2)
    optimizer = engine.make_optimizer(name, model, 0.1, 1e-4)
    scheduler, rates = engine.make_scheduler(optimizer, 2, 0.5), []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])


def test_mixed_precision_trains_close_to_float32(run_small, tmp_path):
    plain = run_small(tmp_path / "float32", "--max-epoch", 1)
    mixed = run_small(tmp_path / "mixed", "--max-epoch", 1, "--amp", "bf16", "--channels-last")
    losses = [read_log(tmp_path / name)[0]["loss"] for name in ("float32", "mixed")]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert len(plain["rows"]) == len(mixed["rows"]) == 1
    weights = torch.load(tmp_path / "mixed" / "last.pth", weights_only=True)["state_dict"]
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32, torch.int64}


def test_mixed_precision_choices():
    cpu = torch.device("cpu")
    assert engine.mixed_precision(None, cpu) is None
    assert engine.mixed_precision("bf16", cpu) is torch.bfloat16
    assert engine.mixed_precision("auto", cpu) in (None, torch.bfloat16)
    with pytest.raises(ValueError, match="--amp fp16 needs a GPU"):
        engine.mixed_precision("fp16", cpu)


def test_weights_alone_cannot_be_resumed(run_small, trained, tmp_path):
    folder, _ = trained
    with pytest.raises(ValueError, match="holds no best_epoch, best_rank1, optimizer, scaler, scheduler"):
        run_small(tmp_path, "--resume", folder / "best.pth")

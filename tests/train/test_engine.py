"""Training: resuming repeats an uninterrupted run, losses add up, trouble is said in words."""

import json
import math
import os

import pytest
import torch
from torch import nn
from torch.nn import functional

from reidops.losses import AlignedTripletLoss
from reidops_models import AlignedReID, AlignedReIDOutput
from tests.train.checks import killed, read_log
from train import engine
from train.files import write_json, written_whole
from train.losses import ReIDLoss


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_run_resumes_as_if_nothing_had_happened(run_small, tmp_path, workers):
    flags = ["--max-epoch", 4, "--stepsize", 3, "--eval-step", 2, "-j", workers]
    run_small(tmp_path / "straight", *flags)

    with killed("train_epoch", 3):
        run_small(tmp_path / "killed", *flags)
    assert [line["epoch"] for line in read_log(tmp_path / "killed")] == [1, 2]

    last = tmp_path / "killed" / "last.pth"
    with killed("save", 4):  # the checkpoint has the epoch then, the log has not
        run_small(tmp_path / "killed", *flags, "--resume", last)
    assert [line["epoch"] for line in read_log(tmp_path / "killed")] == [1, 2, 3]
    results = run_small(tmp_path / "killed", *flags, "--resume", last)

    assert read_log(tmp_path / "killed") == read_log(tmp_path / "straight")
    assert len(read_log(tmp_path / "straight")) == 4
    straight = json.loads((tmp_path / "straight" / "results.json").read_text())
    assert results["rows"] == straight["rows"]
    assert results["training"]["best_epoch"] == straight["training"]["best_epoch"]
    for name in ("last.pth", "best.pth"):
        ours, theirs = (torch.load(tmp_path / run / name, weights_only=True) for run in ("killed", "straight"))
        assert ours.pop("settings") == theirs.pop("settings")
        for state in (ours, theirs):
            state.pop("means", None)  # holds seconds, and what the logs have been compared for
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_loss_is_the_sum_of_its_parts():
    torch.manual_seed(0)
    output = AlignedReIDOutput(torch.randn(6, 4), torch.randn(6, 8), functional.normalize(torch.randn(6, 3, 5), dim=2))
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    global_loss, local_loss = AlignedTripletLoss(margin=0.5)(output.global_features, output.local_features, labels)
    losses = ReIDLoss(margin=0.5, label_smoothing=0.1)(output, labels)
    assert tuple(losses) == ReIDLoss.names
    log_probability = output.logits.log_softmax(1)
    target = functional.one_hot(labels, 4) * 0.9 + 0.1 / 4
    torch.testing.assert_close(losses["cross_entropy"], -(target * log_probability).sum(1).mean())
    torch.testing.assert_close(losses["global_loss"], global_loss)
    torch.testing.assert_close(losses["local_loss"], local_loss)
    torch.testing.assert_close(losses["loss"], losses["cross_entropy"] + global_loss + local_loss)
    triplet_only = ReIDLoss(margin=0.5, triplet_only=True)(output, labels)
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
        model, ReIDLoss(), optimizer, engine.make_scheduler(optimizer, 0, 0.1), device=torch.device("cpu")
    )
    batch = torch.rand(4, 3, 2, 2) * 2, torch.tensor([0, 0, 1, 1]), torch.zeros(4)
    with pytest.raises(FloatingPointError, match=r"batch 1 of epoch 1: training has diverged; lower --lr \(now 0.5\)"):
        trainer.train_epoch([batch])
    assert model.scale.item() == 1


def test_an_epoch_without_a_batch_is_an_error():
    model = Diverged(1.0)
    optimizer = engine.make_optimizer("adam", model, 0.1, 0.0)
    scheduler = engine.make_scheduler(optimizer, 0, 0.1)
    trainer = engine.Trainer(model, ReIDLoss(), optimizer, scheduler, device=torch.device("cpu"))
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
    if not engine.convolves_in_bfloat16():  # asked here: it starts torch's threads, before a run has settled them
        pytest.skip("this torch's bfloat16 convolutions are wrong on this processor")
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


def test_a_few_people_are_learned(run_small, tmp_path):
    run_small(tmp_path, "--max-epoch", 30)
    history = read_log(tmp_path)
    first, last = history[:5], history[-5:]
    assert sum(line["loss"] for line in last) < 0.6 * sum(line["loss"] for line in first)
    assert sum(line["accuracy"] for line in last) / 5 > 0.5  # chance is 1/8
    engine.seed_everything(3)
    start = dict(AlignedReID(8, "resnet18").named_parameters())
    weights = torch.load(tmp_path / "last.pth", weights_only=True)["state_dict"]
    for name, parameter in start.items():
        assert not torch.equal(weights[name], parameter), name


def test_every_epoch_has_batches_of_its_own(run_small, tmp_path, monkeypatch):
    train_epoch, drawn = engine.Trainer.train_epoch, []

    def recording(trainer, loader):
        drawn.append(list(loader.sampler))
        return train_epoch(trainer, loader)

    monkeypatch.setattr(engine.Trainer, "train_epoch", recording)
    run_small(tmp_path, "--max-epoch", 2)
    assert len(drawn[0]) == len(drawn[1]) == 16
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("name", engine.OPTIMIZERS)
def test_a_malformed_training_state_is_refused_with_the_file(tmp_path, name):
    def make_trainer():
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
        optimizer = engine.make_optimizer(name, model, 0.1, 1e-4)
        scheduler = engine.make_scheduler(optimizer, 2, 0.5)
        return engine.Trainer(model, ReIDLoss(), optimizer, scheduler, device=torch.device("cpu"))

    trainer, path = make_trainer(), tmp_path / "last.pth"
    trainer.model(torch.ones(1, 2)).sum().backward()
    trainer.optimizer.step()
    trainer.epoch = 3
    trainer.save(path)
    make_trainer().resume(path)  # it is sound as it is

    sound = torch.load(path, weights_only=True)
    optimizer, weights = sound["optimizer"], sound["state_dict"]
    state, groups = optimizer["state"], optimizer["param_groups"]
    malformed = [
        *({"epoch": epoch} for epoch in ("3", -1, True, 2.0, None)),
        {"best_epoch": "1"},
        {"best_rank1": None},
        *({"optimizer": wrong} for wrong in (None, 3, {}, {"state": {}, "param_groups": []})),
        {"optimizer": {"state": {0: {"other": torch.ones(2, 2)}}, "param_groups": groups}},
        {"optimizer": {"state": {0: state[1], 1: state[0]}, "param_groups": groups}},
        {"optimizer": {"state": state, "param_groups": [{"params": [0, 1]}]}},
        *({"scheduler": wrong} for wrong in (None, {}, {"step_size": 2}, sound["scheduler"] | {"gamma": "0.5"})),
        {"scaler": 3, "means": 3},
        {"settings": 3},
        {"settings": {"lr": [1]}},
        {"state_dict": {0: torch.ones(2)}},
        {"state_dict": weights | {"bias": torch.ones(2, dtype=torch.complex64)}},
        {"state_dict": weights | {"bias": torch.ones(2, dtype=torch.int64)}},
    ]
    for change in malformed:
        torch.save(sound | change, path)
        with pytest.raises(ValueError, match="checkpoint .*last.pth"):
            make_trainer().resume(path)


def test_resuming_minds_the_flags(run_small, trained, tmp_path, capsys):
    last = trained[0] / "last.pth"
    flags = ["--resume", last, "--max-epoch", 2]
    with pytest.raises(ValueError, match="was trained with --optim adam, and this run has --optim sgd"):
        run_small(tmp_path, *flags, "--optim", "sgd")
    other = tmp_path / "other.pth"
    content = torch.load(last, weights_only=True)
    torch.save(content | {"settings": content["settings"] | {"dataset": "market1501"}}, other)
    with pytest.raises(ValueError, match="--dataset market1501, and this run has --dataset synthetic"):
        run_small(tmp_path, "--resume", other)
    capsys.readouterr()
    run_small(tmp_path, *flags, "--lr", 0.5, "--stepsize", 0)
    lines = [line for line in capsys.readouterr().out.splitlines() if "stays" in line]
    assert lines == [
        "--lr 0.0002 stays, as the training began (not 0.5)",
        "--stepsize 150 stays, as the training began (not 0)",
    ]


def test_the_folder_of_a_run(run_small, trained, tmp_path, capsys):
    """A resumed run brings its best model along; a fresh one clears an earlier run away."""
    run_small(tmp_path, "--resume", trained[0] / "last.pth", "--max-epoch", 2)
    assert (tmp_path / "best.pth").read_bytes() == (trained[0] / "best.pth").read_bytes()
    assert read_log(tmp_path) == read_log(trained[0])
    capsys.readouterr()
    run_small(tmp_path, "--max-epoch", 0)
    assert not any((tmp_path / name).is_file() for name in ("best.pth", "last.pth"))
    assert read_log(tmp_path) == []
    out = capsys.readouterr().out
    assert f"removed from an earlier run: {tmp_path / 'best.pth'}" in out


def test_temporary_files_are_of_one_process_and_do_not_stay(tmp_path):
    path = tmp_path / "file.json"
    with written_whole(path) as temporary:
        assert str(os.getpid()) in temporary.name
        temporary.write_text("whole")
        assert not path.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]
    with pytest.raises(TypeError):
        write_json({"a": object()}, path)
    assert path.read_text() == "whole"
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]

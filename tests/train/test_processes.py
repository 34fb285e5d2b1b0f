"""Several processes: what they gather and add up, and that training together is training on the whole batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import multiprocessing, nn

from reidops_models import MuDeepOutput
from train import engine, mudeep, processes
from train.losses import MuDeepLoss

ROOT = Path(__file__).resolve().parents[2]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def in_two(work, folder):
    """Runs work(rank, folder) in two processes that know each other."""
    multiprocessing.spawn(_start, (work, str(folder), free_port()), nprocs=2)


def _start(rank, work, folder, port):
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}  # fmt: skip
    torch.set_num_threads(1)
    with processes.started(use_cpu=True) as device:
        assert device == torch.device("cpu") and processes.rank() == rank and processes.count() == 2
        work(rank, Path(folder))


def whole_batch():
    torch.manual_seed(7)
    return torch.randn(8, 5, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])


def make_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()


def mudeep_loss(rows, labels):
    """The loss of MuDeep_v2, of rows that are logits and features at once."""
    return MuDeepLoss(1.0)(MuDeepOutput((rows,) * 4, (rows,)), labels)["loss"]


def _learn(rank, folder):
    net, (x, labels) = nn.parallel.DistributedDataParallel(make_net()), whole_batch()
    mine = slice(4 * rank, 4 * rank + 4)
    mudeep_loss(net(x[mine]), labels[mine]).backward()
    torch.save([parameter.grad for parameter in net.parameters()], folder / f"{rank}.pt")


def test_triplets_of_all_processes_give_the_whole_batchs_gradient(tmp_path):
    in_two(_learn, tmp_path)
    net, (x, labels) = make_net(), whole_batch()
    mudeep_loss(net(x), labels).backward()
    for rank in range(2):
        for ours, parameter in zip(torch.load(tmp_path / f"{rank}.pt"), net.parameters(), strict=True):
            torch.testing.assert_close(ours, parameter.grad)


def _collect(rank, folder):
    everything = torch.arange(14).reshape(7, 2)
    assert torch.equal(processes.collect(everything[processes.share(range(7))], torch.device("cpu")), everything)
    assert processes.add_up([1.0, float(rank)], torch.device("cpu")) == [2.0, 1.0]
    assert processes.quiet() is (True if rank else None)
    processes.wait()
    (folder / f"{rank}.done").touch()


def test_shares_are_collected_in_order(tmp_path):
    in_two(_collect, tmp_path)
    assert len(list(tmp_path.glob("*.done"))) == 2


def test_one_process_alone():
    rows = torch.rand(3, 2)
    with processes.started() as device:
        assert device is None
        assert (processes.rank(), processes.count(), processes.together()) == (0, 1, False)
        assert processes.gather(rows) is rows and processes.collect(rows, torch.device("cpu")) is rows
        assert processes.share([1, 2, 3]) == [1, 2, 3] and processes.add_up([1, 2], torch.device("cpu")) == [1, 2]


def flags_for(root, folder, *more):
    flags = ["-d", "synthetic", "--root", root, "-a", "resnet18", "--height", "64", "--width", "32", "-j", "0",
             "--P", "4", "--K", "2", "--repeats", "2", "--eval-step", "1", "--use-cpu", "--threads", "1",
             "--lr", "0.02", "--save-dir", folder, *more]  # fmt: skip
    return [str(flag) for flag in flags]


def _train(rank, folder):
    train_epoch, drawn = engine.Trainer.train_epoch, []

    def recording(trainer, loader):
        means = train_epoch(trainer, loader)
        drawn.append(list(loader.sampler))
        torch.save({"state": trainer.model.state_dict(), "drawn": drawn, "means": means}, folder / f"{rank}.pt")
        return means

    engine.Trainer.train_epoch = recording
    root = Path((folder / "root").read_text())
    mudeep.run(mudeep.make_parser().parse_args(flags_for(root, folder / "run", "--max-epoch", "2")))


def test_processes_stay_alike_and_score_what_they_save(small_people, tmp_path):
    (tmp_path / "root").write_text(str(small_people))
    in_two(_train, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.testing.assert_close(first["state"], second["state"], rtol=0, atol=0)
    for name in ("loss", "cross_entropy", "triplet", "accuracy"):
        assert first["means"][name] == second["means"][name]
    for ours, theirs in zip(first["drawn"], second["drawn"], strict=True):
        assert len(ours) == len(theirs) == 16 and ours != theirs
    trained = json.loads((tmp_path / "run" / "results.json").read_text())
    flags = flags_for(small_people, tmp_path / "test", "--evaluate", tmp_path / "run" / "last.pth")
    alone = mudeep.run(mudeep.make_parser().parse_args(flags))
    for ours, theirs in zip(trained["rows"], alone["rows"], strict=True):
        assert (ours["mAP"], ours["rank1"], ours["mINP"]) == (theirs["mAP"], theirs["rank1"], theirs["mINP"])


def test_torchrun(small_people, tmp_path):
    """Two processes train, evaluate and write one set of files; one process goes on from them."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command = [*launch, "-m", "train.mudeep", *flags_for(small_people, tmp_path, "--max-epoch", "1")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("MuDeep_v2, resnet18") == 1  # one of them speaks
    history = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in history] == [1]
    more = ["--max-epoch", "2", "--resume", tmp_path / "last.pth"]
    alone = mudeep.run(mudeep.make_parser().parse_args(flags_for(small_people, tmp_path, *more)))
    assert alone["training"]["epochs"] == 2


def test_more_identities_than_processes_can_share(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with processes.started() as device:  # LOCAL_RANK alone is not torchrun's
        assert device is None


pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")

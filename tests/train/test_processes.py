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

from reidops.losses import TripletLoss
from train import processes

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


def _learn(rank, folder):
    net, (x, labels) = nn.parallel.DistributedDataParallel(make_net()), whole_batch()
    mine = slice(4 * rank, 4 * rank + 4)
    loss = TripletLoss(1.0)(processes.gather(net(x[mine])), processes.gather(labels[mine]))
    loss.backward()
    torch.save([parameter.grad for parameter in net.parameters()], folder / f"{rank}.pt")


def test_triplets_of_all_processes_give_the_whole_batchs_gradient(tmp_path):
    in_two(_learn, tmp_path)
    net, (x, labels) = make_net(), whole_batch()
    TripletLoss(1.0)(net(x), labels).backward()
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


def test_torchrun(small_people, tmp_path):
    """Two processes train, evaluate and write one set of files; one process goes on from them."""
    flags = ["-d", "synthetic", "--root", small_people, "-a", "resnet18", "--height", "64", "--width", "32", "-j", "0",
             "--P", "4", "--K", "2", "--repeats", "2", "--eval-step", "1", "--use-cpu", "--threads", "1",
             "--lr", "0.02", "--save-dir", tmp_path]  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    run = subprocess.run([*map(str, [*launch, "-m", "train.mudeep", *flags, "--max-epoch", "2"])], cwd=ROOT,
                         capture_output=True, text=True, timeout=300)  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("MuDeep_v2, resnet18") == 1  # one of them speaks
    history = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in history] == [1, 2]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["rows"][0]["mAP"] == history[-1]["mAP"]
    alone = [
        *map(str, [sys.executable, "-m", "train.mudeep", *flags, "--max-epoch", "3", "--resume", tmp_path / "last.pth"])
    ]
    run = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "resumed from" in run.stdout and "epoch   3/3" in run.stdout


def test_more_identities_than_processes_can_share(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with processes.started() as device:  # LOCAL_RANK alone is not torchrun's
        assert device is None


pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")

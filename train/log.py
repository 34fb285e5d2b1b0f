"""The training log, and what a figure needs beside it to mean something."""

import json
import platform
from pathlib import Path

import torch

from train import processes
from train.files import written_whole


class Log:
    """The training log: log.jsonl, one line an epoch, and TensorBoard's files where TensorBoard is installed.

    Args:
        folder: where to write.
        epochs: how many epochs of an earlier log in this folder to keep; lines after them are dropped.

    Where several processes train together the first of them writes, and the others keep the history in memory.
    """

    def __init__(self, folder: Path, epochs: int = 0):
        self.path = folder / "log.jsonl"
        self.history: list[dict] = []
        if epochs and self.path.is_file():
            lines = [json.loads(line) for line in self.path.read_text().splitlines()]
            self.history = [line for line in lines if line["epoch"] <= epochs]
        self._write()
        self.board = None
        if processes.rank() > 0:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs + 1)
        except ImportError:
            print("TensorBoard is not installed (pip install tensorboard): the log is log.jsonl alone")

    @property
    def epoch(self) -> int:
        """The last epoch in it."""
        return self.history[-1]["epoch"] if self.history else 0

    def add(self, entry: dict) -> None:
        """Append an epoch's figures; "epoch" is their step."""
        self.history.append(entry)
        self._write()
        if self.board is not None:
            for name, value in entry.items():
                if name != "epoch":
                    self.board.add_scalar(name, value, entry["epoch"])
            self.board.flush()

    def close(self) -> None:
        """Close TensorBoard's files."""
        if self.board is not None:
            self.board.close()

    def _write(self) -> None:
        if processes.rank() > 0:
            return
        with written_whole(self.path) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in self.history))


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """What a figure needs beside it to mean something: versions, processor, threads, GPU."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def _processor() -> str:
    """The processor's name, with its widest vectors."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or "unknown"
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"

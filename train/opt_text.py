"""opt.txt: the record of a run as the published MuDeep_v2 writes it, for the tools that read it."""

import re
from collections.abc import Mapping
from pathlib import Path

from train import processes
from train.evaluate import Evaluation
from train.files import written_whole


class OptText:
    """The options of a run, then a line an evaluation.

    Args:
        path: where to write.
        options: flags and their values.
        epochs: how many epochs of an earlier file to keep; lines after them are dropped.
    """

    RANKS = (1, 5, 10, 15, 20)

    def __init__(self, path: Path, options: Mapping, epochs: int = 0):
        self.path = path
        self.lines = ["------------------------ Options -------------------------"]
        self.lines += [f"{name}: {value}" for name, value in sorted(options.items())]
        self.lines += ["-------------------------- End ----------------------------", ""]
        self.lines += ["------------------------ Accuracy -------------------------"]
        if epochs and path.is_file():
            earlier = (re.match(r"Epoch:(\d+),", line) for line in path.read_text().splitlines())
            self.lines += [found.string for found in earlier if found and int(found[1]) <= epochs]
        self._write()

    def add(self, epoch: int, evaluation: Evaluation) -> None:
        """Append the scores of an epoch; a score that stands there for it already is replaced."""
        self.lines = [line for line in self.lines if not line.startswith(f"Epoch:{epoch},")]
        ranks = ", ".join(f"Rank@{rank}:{evaluation.rank(rank):.4f}" for rank in self.RANKS)
        self.lines.append(f"Epoch:{epoch}, {ranks}, mAP:{evaluation.mean_ap:.4f}")
        self._write()

    def _write(self) -> None:
        if processes.rank() > 0:
            return
        with written_whole(self.path) as temporary:
            temporary.write_text("\n".join(self.lines) + "\n")

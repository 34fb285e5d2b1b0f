"""Training: the loss of a batch, an epoch, mixed precision, checkpoints that resume exactly, and the log."""

import json
import math
import os
import platform
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from reidops.losses import AlignedTripletLoss
from reidops_models.checkpoints import fill, find_state_dict, read_checkpoint

OPTIMIZERS = ("adam", "sgd", "rmsprop")
LOSSES = ("loss", "cross_entropy", "global_loss", "local_loss")

# Flags that a checkpoint remembers under "settings": those its weights have a meaning with, those a training goes on
# with, and those whose first values stay, being part of the optimizer's and the scheduler's state.
MODEL_SETTINGS = ("arch", "last_stride", "height", "width")
TRAINING_SETTINGS = ("dataset", "optim")
KEPT_SETTINGS = ("lr", "weight_decay", "stepsize", "gamma")

OPTIMIZER_STATE = {  # what each optimizer keeps about a parameter
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.RMSprop: {"step", "square_avg", "momentum_buffer"},
}


def make_optimizer(name: str, model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Adam, or SGD or RMSprop with momentum 0.9, over all parameters of a model."""
    if name == "adam":
        return torch.optim.Adam(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    kind = {"sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}[name]
    return kind(model.parameters(), lr=learning_rate, weight_decay=weight_decay, momentum=0.9)


def make_scheduler(
    optimizer: torch.optim.Optimizer, step_size: int, gamma: float
) -> torch.optim.lr_scheduler.LRScheduler:
    """Multiply the learning rate by gamma every `step_size` epochs; never, if that is not positive."""
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size if step_size > 0 else 2**31, gamma)


def mixed_precision(choice: str | None, device: torch.device) -> torch.dtype | None:
    """The dtype to autocast to on a device, or None for plain float32.

    Args:
        choice: None (off), "bf16", "fp16", or "auto": whatever is faster than float32 on this device. That is
            bfloat16 on GPUs and CPUs whose hardware multiplies it, float16 on older GPUs, nothing on older CPUs.
        device: where the model runs.

    Returns:
        torch.bfloat16, torch.float16, or None.

    Raises:
        ValueError: "fp16" on a CPU, whose gradients would underflow.
    """
    if choice == "fp16" and device.type == "cpu":
        raise ValueError("--amp fp16 needs a GPU; on a CPU use --amp bf16 or --amp auto")
    if choice == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if choice == "auto":
        abilities = getattr(torch.cpu, "get_capabilities", dict)()
        fast = any(abilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        return torch.bfloat16 if fast else None
    return {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}[choice]


def seed_everything(seed: int, epoch: int = 0) -> None:
    """Seed Python, NumPy and torch for one epoch.

    Every epoch starts from a state that depends on (seed, epoch) alone, so a resumed run draws what an uninterrupted
    one would have drawn, whatever happened in between.
    """
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


class ReIDLoss(nn.Module):
    """Cross entropy over identities, plus the batch-hard triplet losses of the global and the local features.

    Args:
        margin: margin of both triplet losses.
        label_smoothing: weight spread evenly over all identities.
        triplet_only: leave the cross entropy out of the sum (it is still reported).

    Source: Luo et al., AlignedReID++, Pattern Recognition 94 (2019), equation 9.
    """

    def __init__(self, margin: float = 0.3, label_smoothing: float = 0.0, triplet_only: bool = False):
        super().__init__()
        self.triplet = AlignedTripletLoss(margin=margin)
        self.label_smoothing = label_smoothing
        self.triplet_only = triplet_only

    def forward(self, output, labels: Tensor) -> dict[str, Tensor]:
        """The losses of an AlignedReIDOutput, in float32, by the names in LOSSES."""
        cross_entropy = functional.cross_entropy(output.logits.float(), labels, label_smoothing=self.label_smoothing)
        if not math.isfinite(cross_entropy.item()):  # say so before the triplet loss meets features of NaN
            raise FloatingPointError(f"the cross entropy is {cross_entropy.item()}")
        global_loss, local_loss = self.triplet(output.global_features.float(), output.local_features.float(), labels)
        loss = global_loss + local_loss if self.triplet_only else cross_entropy + global_loss + local_loss
        return dict(zip(LOSSES, (loss, cross_entropy, global_loss, local_loss), strict=True))


class Trainer:
    """A model in training: everything that changes from one epoch to the next, and how to save and restore it.

    Args:
        model: an AlignedReID on its device.
        criterion: a ReIDLoss.
        optimizer, scheduler: as made above.
        device: where batches go.
        amp_dtype: what `mixed_precision` returned.
        channels_last: hand images over in channels-last layout.
        gpus: spread every batch over these GPUs, the first of them holding the model; None or one for no spreading.
        print_freq: batches between two updates of the progress bar's figures.
        settings: values of the settings above, to be kept in checkpoints.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        *,
        device: torch.device,
        amp_dtype: torch.dtype | None = None,
        channels_last: bool = False,
        gpus: Sequence[int] | None = None,
        print_freq: int = 10,
        settings: Mapping[str, str | int | float] | None = None,
    ):
        self.model, self.criterion, self.optimizer, self.scheduler = model, criterion, optimizer, scheduler
        self.device, self.amp_dtype, self.print_freq = device, amp_dtype, print_freq
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16)
        self.parallel = nn.DataParallel(model, gpus) if gpus and len(gpus) > 1 else model
        self.settings = dict(settings or {})
        self.epoch = 0  # epochs finished
        self.means: dict[str, float] = {}  # what the last of them returned
        self.best_rank1, self.best_epoch = -1.0, 0

    def train_epoch(self, loader: Iterable) -> dict[str, float]:
        """Train for one epoch.

        Args:
            loader: batches of (images (B, 3, height, width), identities (B,), cameras (B,)).

        Returns:
            Means over the epoch: the losses, "accuracy" of the classifier, "lr", "seconds" and "images_per_second".

        Raises:
            FloatingPointError: a loss is not finite.
            ValueError: the loader yields no batch.
        """
        start = time.perf_counter()
        self.model.train()
        sums, images_seen, correct = dict.fromkeys(LOSSES, 0.0), 0, 0
        learning_rate = self.optimizer.param_groups[0]["lr"]
        bar = tqdm(loader, desc=f"epoch {self.epoch + 1}", unit="batch", leave=False, disable=None)
        for batch, (images, identities, _) in enumerate(bar):
            images = images.to(self.device, memory_format=self.memory_format, non_blocking=True)
            identities = identities.to(self.device, non_blocking=True)
            with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
                output = self.parallel(images)
            try:
                losses = self.criterion(output, identities)
                if not math.isfinite(losses["loss"].item()):
                    raise FloatingPointError(f"the loss is {losses['loss'].item()}")
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"{error} in batch {batch + 1} of epoch {self.epoch + 1}: training has diverged; lower --lr "
                    f"(now {learning_rate:g}), or train without --amp"
                ) from None
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(losses["loss"]).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()

            images_seen += len(identities)
            correct += (output.logits.argmax(1) == identities).sum().item()
            for name in LOSSES:
                sums[name] += losses[name].item() * len(identities)
            if batch % self.print_freq == 0:
                bar.set_postfix({name: f"{total / images_seen:.3f}" for name, total in sums.items()})
        if images_seen == 0:
            raise ValueError("the training set gives no batch: it has fewer images than --train-batch")
        self.scheduler.step()
        self.epoch += 1
        seconds = time.perf_counter() - start
        means = {name: total / images_seen for name, total in sums.items()}
        self.means = means | {
            "accuracy": correct / images_seen,
            "lr": learning_rate,
            "seconds": seconds,
            "images_per_second": images_seen / seconds,
        }
        return dict(self.means)

    def save(self, path: Path) -> None:
        """Write all that `resume` needs."""
        parts = {name: getattr(self, name).state_dict() for name in ("optimizer", "scheduler", "scaler")}
        progress = {name: getattr(self, name) for name in ("epoch", "means", "best_rank1", "best_epoch", "settings")}
        write_checkpoint({"state_dict": self.model.state_dict(), **parts, **progress}, path)

    def resume(self, path: str | os.PathLike) -> None:
        """Continue where `save` left off.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, does not fit the model, comes from a training with other settings, or holds
                weights without a training state.
        """
        content = read_checkpoint(path)
        missing = {"state_dict", "optimizer", "scheduler", "scaler", "epoch", "best_rank1", "best_epoch"} - set(content)
        if missing:
            raise ValueError(
                f"checkpoint {path} cannot be resumed: it holds no {', '.join(sorted(missing))}. Training resumes "
                f"from last.pth; a file of weights alone serves --evaluate"
            )
        found = read_settings(content, path)
        require_settings(content, self.settings, MODEL_SETTINGS + TRAINING_SETTINGS, path)
        fill(self.model, find_state_dict(content, path), path)
        try:
            self._restore(content)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"checkpoint {path} cannot be resumed, its training state is not one of this training: {error}"
            ) from error
        for name in KEPT_SETTINGS:
            if name in found and found[name] != self.settings.get(name, found[name]):
                print(f"{_flag(name, found)} stays, as the training began (not {self.settings[name]})")
        self.settings |= found

    def _restore(self, content: dict) -> None:
        """Take the training state over; whatever is wrong with it is an error of one kind or another."""
        for name in ("epoch", "best_epoch"):
            if type(content[name]) is not int or content[name] < 0:
                raise ValueError(f"{name} should be a whole number of at least 0, got {content[name]!r}")
        if type(content["best_rank1"]) not in (int, float):
            raise ValueError(f"best_rank1 should be a number, got {content['best_rank1']!r}")
        settings = set(self.optimizer.param_groups[0])
        self.optimizer.load_state_dict(content["optimizer"])
        wanted = OPTIMIZER_STATE[type(self.optimizer)]
        for group in self.optimizer.param_groups:
            if not settings <= set(group) or not isinstance(group["lr"], float):
                raise ValueError("the optimizer lacks its settings")
            for parameter in group["params"]:
                state = self.optimizer.state.get(parameter)
                if state and (
                    set(state) != wanted
                    or any(isinstance(x, Tensor) and x.ndim and x.shape != parameter.shape for x in state.values())
                ):
                    raise ValueError(f"the optimizer should keep {', '.join(sorted(wanted))} of every parameter")
        for name in ("step_size", "gamma", "last_epoch"):
            if type(content["scheduler"][name]) not in (int, float):
                raise ValueError(f"the scheduler's {name} should be a number, got {content['scheduler'][name]!r}")
        self.scheduler.load_state_dict(content["scheduler"])
        if content["scaler"]:  # empty where it was not in use
            self.scaler.load_state_dict(content["scaler"])
        self.epoch, self.means = content["epoch"], dict(content.get("means", {}))
        self.best_rank1, self.best_epoch = content["best_rank1"], content["best_epoch"]


def read_settings(content: Mapping, path: str | os.PathLike) -> dict[str, str | int | float]:
    """The settings in a checkpoint; none in one that keeps none, such as a published one."""
    settings = content.get("settings", {})
    if not isinstance(settings, Mapping) or not all(isinstance(x, str | int | float) for x in settings.values()):
        raise ValueError(f"checkpoint {path} should hold settings by name, got {settings!r}")
    return dict(settings)


def require_settings(content: Mapping, wanted: Mapping, names: Sequence[str], path: str | os.PathLike) -> None:
    """Refuse a checkpoint whose training differs in these settings from this run (ValueError, listing the flags).

    Args:
        content: the dict that was read.
        wanted: settings of this run.
        names: which of them have to agree, where both tell.
        path: where the checkpoint came from, for the message.
    """
    found = read_settings(content, path)
    differing = [name for name in names if name in found and name in wanted and found[name] != wanted[name]]
    if differing:
        theirs, ours = (" ".join(_flag(name, values) for name in differing) for values in (found, wanted))
        raise ValueError(f"checkpoint {path} was trained with {theirs}, and this run has {ours}: give {theirs}")


def _flag(name: str, settings: Mapping) -> str:
    return f"--{name.replace('_', '-')} {settings[name]}"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name of this process to write to, renamed at the end: a file by the right name is always whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_checkpoint(content: dict, path: Path) -> None:
    """Write a checkpoint, whole or not at all."""
    with written_whole(path) as temporary:
        torch.save(content, temporary)


def write_json(content: dict, path: str | os.PathLike) -> None:
    """Write a dict as indented JSON, whole or not at all; the folder is made if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


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


class Log:
    """The training log: log.jsonl, one line an epoch, and TensorBoard's files where TensorBoard is installed.

    Args:
        folder: where to write.
        epochs: how many epochs of an earlier log in this folder to keep; lines after them are dropped.
    """

    def __init__(self, folder: Path, epochs: int = 0):
        self.path = folder / "log.jsonl"
        self.history: list[dict] = []
        if epochs and self.path.is_file():
            lines = [json.loads(line) for line in self.path.read_text().splitlines()]
            self.history = [line for line in lines if line["epoch"] <= epochs]
        self._write()
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs + 1)
        except ImportError:
            self.board = None
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
        with written_whole(self.path) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in self.history))

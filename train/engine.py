"""Training: an epoch, optimizers, mixed precision, and checkpoints that resume exactly."""

import math
import os
import random
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from reidops_models.checkpoints import fill, find_state_dict, read_checkpoint
from train import processes
from train.data import to_device
from train.files import written_whole
from train.settings import Settings, flag, read_settings, require_settings

OPTIMIZERS = ("adam", "sgd", "rmsprop")

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


def make_mudeep_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, backbone_rate: float = 0.1
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum; backbone, leader and gamma learn at a part of the rate, as published."""
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[name.startswith(("scale", "atten"))].append(parameter)
    return torch.optim.SGD(
        [{"params": groups[False], "lr": learning_rate * backbone_rate}, {"params": groups[True]}],
        lr=learning_rate,
        weight_decay=weight_decay,
        momentum=0.9,
        nesterov=True,
    )


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

    Some versions of torch have wrong bfloat16 convolutions on CPUs with AMX: "auto" is then None, and "bf16" warns.
    """
    if choice == "fp16" and device.type == "cpu":
        raise ValueError("--amp fp16 needs a GPU; on a CPU use --amp bf16 or --amp auto")
    if choice in ("auto", "bf16") and device.type == "cpu" and not convolves_in_bfloat16():
        print(
            f"warning: the bfloat16 convolutions of torch {torch.__version__} are wrong on this processor; training in "
            f"{'float32' if choice == 'auto' else 'bfloat16 all the same'}. With the environment variable "
            f"ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 they are right"
        )
        choice = None if choice == "auto" else choice
    if choice == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if choice == "auto":
        abilities = getattr(torch.cpu, "get_capabilities", dict)()
        fast = any(abilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        return torch.bfloat16 if fast else None
    return {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}[choice]


@lru_cache
def convolves_in_bfloat16() -> bool:
    """Whether torch's own bfloat16 convolution is right on this CPU: oneDNN's has been seen not to be, with AMX."""
    image = torch.linspace(-1, 1, 8 * 256 * 8).reshape(8, 256, 4, 2)
    weight = torch.linspace(-1, 1, 512 * 256 * 9).reshape(512, 256, 3, 3)
    exact = functional.conv2d(image, weight, stride=2, padding=1)
    for _ in range(20):  # what the wrong one adds up depends on what lay in memory before
        rounded = functional.conv2d(image.bfloat16(), weight.bfloat16(), stride=2, padding=1)
        if not (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max():
            return False
    return True


def seed_everything(seed: int, epoch: int = 0) -> None:
    """Seed Python, NumPy and torch for one epoch.

    Every epoch starts from a state that depends on (seed, epoch) and the process alone, so a resumed run draws what an
    uninterrupted one would have drawn, whatever happened in between.
    """
    entropy = [seed, epoch] if processes.rank() == 0 else [seed, epoch, processes.rank()]
    mixed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


class Trainer:
    """A model in training: everything that changes from one epoch to the next, and how to save and restore it.

    Args:
        model: a model on its device.
        criterion: the loss of its output, as in train.losses: `names`, `predict`, and a call that returns the losses.
        optimizer, scheduler: as made above.
        device: where batches go.
        amp_dtype: what `mixed_precision` returned.
        channels_last: hand images over in channels-last layout.
        parallel: the model wrapped to run on several GPUs or processes; None to run it as it is.
        print_freq: batches between two updates of the progress bar's figures.
        settings: what checkpoints remember of the run.
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
        parallel: nn.Module | None = None,
        print_freq: int = 10,
        settings: Settings | None = None,
    ):
        self.model, self.criterion, self.optimizer, self.scheduler = model, criterion, optimizer, scheduler
        self.device, self.amp_dtype, self.print_freq = device, amp_dtype, print_freq
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16)
        self.parallel = model if parallel is None else parallel
        self.settings = settings or Settings({})
        self.epoch = 0  # epochs finished
        self.means: dict[str, float] = {}  # what the last of them returned
        self.best_rank1, self.best_epoch = -1.0, 0

    def train_epoch(self, loader: Iterable) -> dict[str, float]:
        """Train for one epoch.

        Args:
            loader: batches of (images (B, 3, height, width), or bytes for `to_device`, identities (B,), cameras (B,)).

        Returns:
            Means over the epoch: the losses, "accuracy" of the classifier, "lr", "seconds" and "images_per_second".

        Raises:
            FloatingPointError: a loss is not finite.
            ValueError: the loader yields no batch.
        """
        start = time.perf_counter()
        self.model.train()
        names = self.criterion.names
        sums, images_seen, correct = dict.fromkeys(names, 0.0), 0, 0
        learning_rate = max(group["lr"] for group in self.optimizer.param_groups)
        bar = tqdm(loader, desc=f"epoch {self.epoch + 1}", unit="batch", leave=False, disable=processes.quiet())
        for batch, (images, identities, _) in enumerate(bar):
            images = to_device(images, self.device, self.memory_format)
            identities = identities.to(self.device, non_blocking=True)
            try:
                *losses, right = self._step(images, identities)
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"{error} in batch {batch + 1} of epoch {self.epoch + 1}: training has diverged; lower --lr "
                    f"(now {learning_rate:g}), or train without --amp"
                ) from None
            images_seen += len(identities)
            correct += right
            for name, loss in zip(names, losses, strict=True):
                sums[name] += loss * len(identities)
            if batch % self.print_freq == 0:
                bar.set_postfix({name: f"{total / images_seen:.3f}" for name, total in sums.items()})
        if images_seen == 0:
            raise ValueError("the training set gives no batch: it has fewer images than --train-batch")
        processes.share_buffers(self.model)
        self.scheduler.step()
        self.epoch += 1
        *totals, correct, images_seen = processes.add_up([*sums.values(), correct, images_seen], self.device)
        seconds = time.perf_counter() - start
        means = {name: total / images_seen for name, total in zip(names, totals, strict=True)}
        self.means = means | {
            "accuracy": correct / images_seen,
            "lr": learning_rate,
            "seconds": seconds,
            "images_per_second": images_seen / seconds,
        }
        return dict(self.means)

    def _step(self, images: Tensor, identities: Tensor) -> list[float]:
        """Learn from one batch; its losses, and how many identities were told right (one wait for the device)."""
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            output = self.parallel(images)
        losses = self.criterion(output, identities)
        right = (self.criterion.predict(output) == identities).sum()
        figures = torch.stack([*losses.values(), right.to(losses["loss"].dtype)]).tolist()
        if not math.isfinite(figures[0]):
            raise FloatingPointError(f"the loss is {figures[0]}")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(losses["loss"]).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return figures

    def save(self, path: Path) -> None:
        """Write all that `resume` needs; where there are several processes, the first of them writes."""
        if processes.rank() > 0:
            return
        parts = {name: getattr(self, name).state_dict() for name in ("optimizer", "scheduler", "scaler")}
        progress = {name: getattr(self, name) for name in ("epoch", "means", "best_rank1", "best_epoch")}
        progress["settings"] = self.settings.values
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
                f"from last.pth; a file of weights alone serves --evaluate, or --weights to start from"
            )
        found = read_settings(content, path)
        ours = self.settings.values
        require_settings(content, ours, self.settings.model + self.settings.training, path)
        fill(self.model, find_state_dict(content, path), path)
        try:
            self._restore(content)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"checkpoint {path} cannot be resumed, its training state is not one of this training: {error}"
            ) from error
        for name in self.settings.kept:
            if name in found and found[name] != ours.get(name, found[name]):
                print(f"{flag(name, found)} stays, as the training began (not {ours[name]})")
        self.settings = self.settings._replace(values=ours | found)

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


def write_checkpoint(content: dict, path: Path) -> None:
    """Write a checkpoint, whole or not at all (OSError if it cannot be written)."""
    with written_whole(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(f"checkpoint {path} cannot be written: {str(error).splitlines()[0]}") from error

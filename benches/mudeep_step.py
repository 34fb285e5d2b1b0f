"""MuDeep_v2's training step beside that of the published program: agreement, time, and peak memory.

    python -m benches.mudeep_step --release path/to/MuDeep_v2                        # the processor, 72 x 384 x 192
    python -m benches.mudeep_step --release path/to/MuDeep_v2 --device cuda --steps 20
    python -m benches.mudeep_step --release path/to/MuDeep_v2 --only agreement --state market_160.pkl

--release is a checkout of the published program (its network.py and utils.py are used as they are). Without one its
place is taken by the same network in plain functions, the definition that the tests hold ours to. Each step is taken
in a process of its own, because a process's peak of memory is what is measured. On the processor numbers below 1e-38
count as 0 for both, as in our training script; the published program runs without that (--denormals), and its products
with a softmax full of them then take several times as long.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benches import process
from benches.cpu.memory import resident
from benches.timing import matmul_precision
from reidops_models import MuDeepV2
from reidops_models.checkpoints import find_state_dict, read_checkpoint
from tests.reidops_models.plain_mudeep import plain_mudeep
from train.log import describe_machine
from train.losses import MuDeepLoss

CLASSES, P, K, MARGIN = 751, 12, 6, 1.0
PARTS = ("agreement", "attention", "step")
CONTESTANTS = ("published", "reidops")


def random_state(classes: int = CLASSES) -> dict[str, Tensor]:
    """A state dict in the published naming, gamma not 0."""
    torch.manual_seed(0)
    state = MuDeepV2(classes).state_dict()
    for scale in (1, 2, 3):
        state[f"gamma{scale}"] = torch.rand(1) + 0.5
    return state


# ----------------------------------------------------------------------------------------------- the published program


def module_of(path: Path) -> types.ModuleType:
    """A Python file of the release as a module. It imports OpenCV without using it: an empty one does."""
    if "cv2" not in sys.modules and importlib.util.find_spec("cv2") is None:
        sys.modules["cv2"] = types.ModuleType("cv2")
    spec = importlib.util.spec_from_file_location(f"published_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Plain(nn.Module):
    """The published network in plain functions, under its own parameters."""

    def __init__(self, classes: int):
        super().__init__()
        self.inner = MuDeepV2(classes)

    def forward(self, images: Tensor, test: bool = False) -> tuple[Tensor, ...]:
        """What the published network returns."""
        state = dict(self.inner.named_parameters()) | dict(self.inner.named_buffers())
        features, logits = plain_mudeep(state, images, self.training)
        return tuple(features) if test else (*logits, *features[::4])


def plain_trip_hard(features: Tensor, p: int, k: int) -> tuple[Tensor, Tensor]:
    """The published mining as matrices: p identities in a row, k images each."""
    features = features / features.norm(dim=1, keepdim=True)
    distance = torch.sqrt((features[:, None] - features[None]).square().sum(2) + 1e-8)
    same = torch.eye(p, dtype=torch.bool, device=features.device).repeat_interleave(k, 0).repeat_interleave(k, 1)
    return distance.masked_fill(~same, -1).amax(1), distance.masked_fill(same, torch.inf).amin(1)


def published(release: Path | None, classes: int) -> tuple[nn.Module, Callable]:
    """The published network and its mining of triplets."""
    if release is None:
        return Plain(classes), plain_trip_hard
    network = module_of(release / "network.py").MuDeep_v2(classes, 3, pretrain=False)
    return network, module_of(release / "utils.py").TripHard


def published_loss(outputs: Sequence[Tensor], labels: Tensor, trip_hard: Callable, p: int, k: int) -> Tensor:
    """The published loss, line for line."""
    cross_entropy = sum(functional.cross_entropy(logits, labels) for logits in outputs[:12]) / 4
    triplet = 0
    for features in outputs[12:]:
        positive, negative = trip_hard(features, p, k)
        triplet = triplet + torch.mean(torch.clamp(positive - negative + MARGIN, min=0.0))
    return 2 * cross_entropy + triplet


def load(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Fill a network, or the one inside Plain, with every tensor of a state dict."""
    getattr(network, "inner", network).load_state_dict(state)


# ----------------------------------------------------------------------------------------------------------- agreement


def agreement(release: Path | None, state: dict[str, Tensor], device: torch.device, size: tuple[int, int]) -> dict:
    """Largest differences of features, logits, loss and gradients, relative to the largest number of each tensor.

    Without TF32, which torch allows convolutions on a GPU: its ten bits are not what is to be compared.
    """
    with without_tf32():
        return differences(release, state, device, size)


@contextmanager
def without_tf32():
    """Convolutions and products of float32 matrices in float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with matmul_precision("highest"):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def differences(release: Path | None, state: dict[str, Tensor], device: torch.device, size: tuple[int, int]) -> dict:
    """The same, at torch's settings."""
    classes = len(state["scale1.classifier.fc.bias"])
    found: dict[str, Any] = {}
    torch.manual_seed(1)
    images, labels = torch.randn(8, 3, *size), torch.arange(8).div(2, rounding_mode="floor") % classes
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        (theirs, trip_hard), ours = published(release, classes), MuDeepV2(classes, dropout=0.0)
        for network in (theirs, ours):
            load(network, state)
            network.to(device, dtype)
            for part in network.modules():
                if isinstance(part, nn.Dropout):
                    part.p = 0.0
        x, y = images.to(device, dtype), labels.to(device)
        with torch.no_grad():
            features = torch.stack(theirs.eval()(x, test=True), dim=1), ours.eval()(x)
        published_outputs = theirs.train()(x)
        output = ours.train()(x)
        losses = published_loss(published_outputs, y, trip_hard, 4, 2), MuDeepLoss(MARGIN)(output, y)["loss"]
        for loss in losses:
            loss.backward()
        pairs = {"features": [features], "loss": [losses]}
        pairs["logits"] = list(zip(published_outputs[:12], output.logits, strict=True))
        parameters = dict(getattr(theirs, "inner", theirs).named_parameters())
        pairs["gradients"] = [(p.grad, ours.get_parameter(key).grad) for key, p in parameters.items()]
        found[name] = {what: max(difference(*pair) for pair in both) for what, both in pairs.items()}
    return found


def difference(theirs: Tensor, ours: Tensor) -> float:
    """The norm of the difference over the norm."""
    return ((ours - theirs).norm() / theirs.norm().clamp_min(1e-30)).item()


# ---------------------------------------------------------------------------------------- attention and triplets alone


def attention_part(release: Path | None, device: torch.device, batch: int, size: tuple[int, int], rounds: int) -> dict:
    """Seconds, forward and backward, of three scales' attention with pooling, and of three triplet losses.

    Queries, keys and maps are given; the two ways take turns. A batch smaller than P x K shows images by the dozen.
    """
    import reidops
    from reidops_models.mudeep import average_regions

    trip_hard = plain_trip_hard if release is None else module_of(release / "utils.py").TripHard
    torch.manual_seed(0)
    rows, columns = size[0] // 16, size[1] // 16
    query, key = (torch.randn(batch, 2048, rows * columns, device=device) * 0.05 for _ in range(2))
    scale_map = torch.randn(batch, 2048, rows, columns, device=device).relu_()
    features = torch.randn(P * K, 512, device=device).relu_()
    labels, gamma = torch.arange(P, device=device).repeat_interleave(K), torch.full((1,), 0.5, device=device)
    for tensor in (query, key, scale_map, features, gamma):
        tensor.requires_grad_()
    weights = torch.randn(batch, 2048, 4, device=device)
    whole, thirds = nn.AdaptiveAvgPool2d((1, 1)), nn.AdaptiveAvgPool2d((3, 1))
    criterion = reidops.losses.TripletLoss(MARGIN, normalize=True, epsilon=1e-8)

    def their_attention() -> Tensor:
        attention = torch.softmax(torch.bmm(query, key.permute(0, 2, 1)), dim=2)
        mixed = torch.bmm(attention, scale_map.view(batch, 2048, -1)).view(scale_map.shape)
        added = gamma * mixed + scale_map
        return torch.cat([whole(added).flatten(2), thirds(added).flatten(2)], dim=2)

    def our_attention() -> Tensor:
        regions = average_regions(scale_map)
        return gamma * reidops.channel_attention(query, key, regions) + regions

    def their_triplet() -> Tensor:
        positive, negative = trip_hard(features, P, K)
        return torch.mean(torch.clamp(positive - negative + MARGIN, min=0.0))

    def our_triplet() -> Tensor:
        return criterion(features, labels)

    parts = {"attention": (their_attention, our_attention), "triplet": (their_triplet, our_triplet)}
    found: dict[str, Any] = {"batch": batch}
    for part, pair in parts.items():
        seconds = {name: [] for name in CONTESTANTS}
        for _ in range(rounds + 1):  # the first round warms up
            for name, forward in zip(CONTESTANTS, pair, strict=True):
                seconds[name].append(timed(lambda run=forward: backward(run(), weights), device))
                for tensor in (query, key, scale_map, features, gamma):
                    tensor.grad = None
        found[part] = {name: 3 * statistics.median(times[1:]) for name, times in seconds.items()}
    theirs, ours = (found["attention"][name] + found["triplet"][name] for name in CONTESTANTS)
    return found | {"times_as_fast": theirs / ours}


def backward(result: Tensor, weights: Tensor) -> None:
    """Gradients of a weighted sum of a result."""
    (result * weights).sum().backward() if result.ndim else result.backward()


def timed(run: Callable, device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


# ------------------------------------------------------------------------------------------------------ the whole step


def take_steps(args: argparse.Namespace) -> dict:
    """Steps of one contestant in this process: seconds of each, and the peak of memory beyond the bare program's."""
    torch.set_flush_denormal(not args.denormals)
    device, k = torch.device(args.device), K if args.batch % K == 0 else 2
    torch.manual_seed(0)
    images, labels = (
        torch.randn(args.batch, 3, args.height, args.width),
        torch.arange(args.batch // k).repeat_interleave(k),
    )
    images, labels = images.to(device), labels.to(device)
    base = resident("VmRSS")
    if args.contestant == "published":
        network, trip_hard = published(args.release, CLASSES)
        load(network, random_state())
        network.to(device).train()

        def loss() -> Tensor:
            return published_loss(network(images), labels, trip_hard, args.batch // k, k)

    else:
        network, criterion = MuDeepV2(CLASSES), MuDeepLoss(MARGIN)
        load(network, random_state())
        network.to(device).train()

        def loss() -> Tensor:
            return criterion(network(images), labels)["loss"]

    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step() -> None:
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    seconds = [timed(step, device) for _ in range(args.steps + 1)][1:]
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM") - base
    return {"seconds": statistics.median(seconds), "peak_bytes": peak}


def step_alone(args: argparse.Namespace, contestant: str) -> dict:
    """`take_steps` in a process of its own; if the system killed it, that is the figure."""
    command = [sys.executable, "-m", "benches.mudeep_step", "--contestant", contestant, "--device", args.device]
    for name in ("batch", "height", "width", "steps", "threads"):
        command += [f"--{name}", str(getattr(args, name))]
    command += ["--release", str(args.release)] if args.release else []
    command += ["--denormals"] if args.denormals else []
    run = subprocess.run(command, cwd=process.ROOT, capture_output=True, text=True)
    if run.returncode:
        lines = run.stderr.strip().splitlines()
        return {
            "failed": lines[-1] if lines and run.returncode > 0 else f"killed by signal {-run.returncode}: no memory"
        }
    return json.loads(run.stdout.splitlines()[-1])


def table(results: dict) -> str:
    """Everything measured, for people."""
    lines = []
    for dtype, figures in results.get("agreement", {}).items():
        found = ", ".join(f"{what} {value:.1e}" for what, value in figures.items())
        lines.append(f"agreement, {dtype}{' without TF32' if dtype == 'float32' else ''}: {found}")
    if "attention" in results:
        found = results["attention"]
        for part in ("attention", "triplet"):
            theirs, ours = (found[part][name] for name in CONTESTANTS)
            ratio = f"published {theirs:.4f} s, reidops {ours:.4f} s, {theirs / ours:.2f} x as fast"
            lines.append(f"3 x {part}, forward and backward: {ratio}")
        lines.append(f"both parts, {found['batch']} images: {found['times_as_fast']:.2f} x as fast")
    for name, figures in results.get("step", {}).items():
        if "seconds" in figures:
            lines.append(f"step, {name}: {figures['seconds']:.2f} s, peak {figures['peak_bytes'] / 1e9:.2f} GB")
        else:
            lines.append(f"step, {name}: {figures['failed']}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> dict:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benches.mudeep_step", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--release", type=Path, help="a checkout of the published program")
    add("--only", choices=PARTS, nargs="+", default=PARTS)
    add("--state", type=Path, help="a checkpoint to compare with, in the published naming (default: random weights)")
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--batch", type=int, default=P * K)
    add("--height", type=int, default=384)
    add("--width", type=int, default=192)
    add("--steps", type=int, default=2)
    add("--rounds", type=int, default=3, help="of the attention part")
    add("--threads", type=int, default=0)
    add("--denormals", action="store_true", help="of the step on the processor: compute with numbers below 1e-38 too")
    add("--output", type=Path, help="write the figures here as JSON")
    add("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.contestant:
        figures = take_steps(args)
        print(json.dumps(figures))
        return figures
    torch.set_flush_denormal(not args.denormals)
    device, size = torch.device(args.device), (args.height, args.width)
    results: dict[str, Any] = {
        "machine": describe_machine(device),
        "commit": process.commit(),
        "published": "release" if args.release else "plain functions",
        "images": [args.batch, 3, *size],
        "denormals": args.denormals,
    }
    if "agreement" in args.only:
        state = find_state_dict(read_checkpoint(args.state), args.state) if args.state else random_state()
        results["agreement"] = agreement(args.release, state, device, size)
    if "attention" in args.only:
        results["attention"] = attention_part(args.release, device, args.batch, size, args.rounds)
    if "step" in args.only:
        results["step"] = {name: step_alone(args, name) for name in CONTESTANTS}
    print(table(results))
    if args.output:
        process.write(args.output, json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()

"""Whether images reach the model as fast as it learns: images a second of the loader beside the training step.

    python -m benches.input_speed                                        # the processor
    python -m benches.input_speed --device cuda --output input.json      # in under a minute
    python -m benches.input_speed --images data/market1501/bounding_box_train

Four tables: what an image costs, part by part; the loader by processes and by way of reading; the step of AlignedReID's
ResNet-50 on batches that are there; and, on a GPU, both together. The ways of reading are

    before              Pillow, and torchvision's ToTensor and Normalize
    floats              Pillow, and our normalisation in the loader, as train.mudeep trains
    floats, ram         the same from a cache
    off, ram, folder    what train.alignedreid does with --cache: bytes leave the loader, and the device normalises

Images are noise of a photograph's smoothness in 128 x 64, a few kilobytes each, as Market-1501's are; with REIDOPS_DATA
also its vehicles, some 400 x 650.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import io as torchvision_io
from torchvision import transforms

from benches import process
from reidops_models import AlignedReID
from train import engine
from train.data import ImageCache, ImageDataset, Random2DTranslation, Sample, read_image, to_device, train_transform
from train.data.dataset import list_images
from train.data.transforms import IMAGENET_MEAN, IMAGENET_STD, NormalizedTensor, to_bytes
from train.files import write_json
from train.log import describe_machine
from train.losses import ReIDLoss

SIZE, IDENTITIES = (256, 128), 751
WAYS = ("before", "floats", "floats, ram", "off", "ram", "folder")
ENOUGH = 1.1  # a loader this much faster than the step does not make it wait

# ------------------------------------------------------------------------------------------------------------- images


def draw_images(folder: Path, count: int) -> list[str]:
    """JPEG files of 128 x 64 with the detail of photographs."""
    rng = np.random.default_rng(0)
    for index in range(count):
        rough = Image.fromarray(rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)).resize((64, 128), Image.BICUBIC)
        fine = np.asarray(rough) + rng.normal(0, 6, (128, 64, 3))
        Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(folder / f"{index:04d}.jpg", quality=90)
    return [str(path) for path in list_images(folder)]


class Again(Dataset):
    """A data set over and over."""

    def __init__(self, inner: Dataset, length: int):
        self.inner, self.length = inner, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        return self.inner[index % len(self.inner)]


def transform_of(way: str) -> Callable:
    """AlignedReID's training transform, in that way."""
    if way != "before":
        return train_transform(*SIZE, raw=not way.startswith("floats"))
    end = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    return transforms.Compose([Random2DTranslation(*SIZE), transforms.RandomHorizontalFlip(), *end])


# -------------------------------------------------------------------------------------------------- parts of one image


def parts(paths: Sequence[str]) -> dict[str, dict]:
    """Microseconds of processor time for each part of the way, in one thread, and how far two ways of it differ."""
    threads, paths = torch.get_num_threads(), paths[:100]
    torch.set_num_threads(1)  # as in a loader's process
    decoded = [read_image(path) for path in paths]
    resized = [Random2DTranslation(*SIZE, p=1)(image) for image in decoded]
    arrays = [np.asarray(image) for image in decoded]
    before = transforms.Compose([transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])

    def torchvision_decode(path: str) -> Tensor:
        return torchvision_io.decode_jpeg(torchvision_io.read_file(path), torchvision_io.ImageReadMode.RGB)

    def torch_resize(array: np.ndarray) -> Tensor:
        image = torch.from_numpy(array.copy()).permute(2, 0, 1)[None]
        return functional.interpolate(image, SIZE, mode="bilinear", antialias=True)[0]

    def apart(ours: Tensor, theirs: Image.Image | Tensor) -> float:
        theirs = to_bytes(theirs).permute(2, 0, 1) if isinstance(theirs, Image.Image) else theirs
        return (ours.double() - theirs.double()).abs().max().item()

    jpeg = all(path.endswith("jpg") for path in paths)
    pairs = zip(decoded, resized, arrays, paths, strict=True)
    apart_by = [
        (apart(torchvision_decode(path), image) if jpeg else 0.0, apart(torch_resize(array), large),
         apart(NormalizedTensor()(large), before(large)))
        for image, large, array, path in pairs
    ]  # fmt: skip
    decode, resize, normal = (max(column) for column in zip(*apart_by, strict=True))
    flip = Image.Transpose.FLIP_LEFT_RIGHT
    found = {
        "decode, Pillow": {"us": cost(read_image, paths)},
        "decode, torchvision": {"us": cost(torchvision_decode, paths) if jpeg else None, "differs_by": decode},
        "from the cache": {"us": cost(Image.fromarray, arrays)},
        "resize, Pillow": {"us": cost(Random2DTranslation(*SIZE, p=1), decoded)},
        "resize, torch": {"us": cost(torch_resize, arrays), "differs_by": resize},
        "flip": {"us": cost(lambda image: image.transpose(flip), resized)},
        "ToTensor, Normalize": {"us": cost(before, resized)},
        "NormalizedTensor": {"us": cost(NormalizedTensor(), resized), "differs_by": normal},
        "to bytes": {"us": cost(to_bytes, resized)},
    }
    torch.set_num_threads(threads)
    return found


def cost(call: Callable, items: Sequence) -> float:
    """Microseconds of processor time a call, the least of three rounds."""
    rounds = []
    for _ in range(3):
        begin = time.process_time()
        for item in items:
            call(item)
        rounds.append((time.process_time() - begin) / len(items) * 1e6)
    return min(rounds)


# ----------------------------------------------------------------------------------------------------------- the loader


def make_loader(args: argparse.Namespace, images: Dataset, workers: int, length: int = 1 << 20) -> DataLoader:
    """A loader as the training scripts make it."""
    pinned = args.device == "cuda"
    return DataLoader(Again(images, length), args.batch, num_workers=workers, pin_memory=pinned, drop_last=True)


def loader_speed(args: argparse.Namespace, images: Dataset, workers: int) -> dict[str, float]:
    """Images a second, once what the processes made ready at the start is used up; and seconds to the first batch."""
    begin = time.perf_counter()
    batches = iter(make_loader(args, images, workers))
    next(batches)
    first = time.perf_counter() - begin
    for _ in range(2 * workers):  # that many batches lie ready
        next(batches)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < args.seconds or count == 0:
        next(batches)
        count += args.batch
    return {"images_per_second": count / (time.perf_counter() - begin), "first_batch_s": first}


def loaders(args: argparse.Namespace, sets: dict[str, list[str]], folder: Path) -> tuple[dict, dict]:
    """Images a second by set, way and number of processes; and the data sets of each way, for training."""
    found, datasets = {}, {}
    for name, paths in sets.items():
        found[name], datasets[name] = {"fill_s": {}}, {}
        samples = [Sample(path, index % IDENTITIES, 0) for index, path in enumerate(paths)]
        readers: dict[str, Callable] = dict.fromkeys(WAYS, read_image)
        for way in ("ram", "folder"):
            readers[way] = cache = ImageCache(
                "ram" if way == "ram" else folder / "cache", max(args.workers), quiet=True
            )
            begin = time.perf_counter()
            cache.add(paths)
            found[name]["fill_s"][way] = time.perf_counter() - begin
        readers["floats, ram"] = readers["ram"]
        for way in WAYS:
            datasets[name][way] = images = ImageDataset(samples, transform_of(way), readers[way])
            found[name][way] = {workers: loader_speed(args, images, workers) for workers in args.workers}
    return found, datasets


# ------------------------------------------------------------------------------------------------------------- the step


def make_trainer(args: argparse.Namespace) -> engine.Trainer:
    """AlignedReID's ResNet-50 and its losses as `train.alignedreid` trains them, with --amp on a GPU, channels last."""
    cuda, device = args.device == "cuda", torch.device(args.device)
    model = AlignedReID(IDENTITIES)
    model.to(device, memory_format=torch.channels_last)
    optimizer = engine.make_optimizer("adam", model, 2e-4, 5e-4)
    return engine.Trainer(
        model,
        ReIDLoss(0.3, 0.1),
        optimizer,
        engine.make_scheduler(optimizer, 0, 0.1),
        device=device,
        amp_dtype=torch.bfloat16 if cuda else None,
        channels_last=True,
    )


def speed_of(trainer: engine.Trainer, batches: Iterable) -> float:
    """Images a second of training on batches, in the second half of them: the start does not count."""
    trainer.model.train()
    times, begin = [], time.perf_counter()
    for images, identities, _ in batches:
        images = to_device(images, trainer.device, trainer.memory_format)
        trainer._step(images, identities.to(trainer.device, non_blocking=True))
        times.append(time.perf_counter() - begin)
        begin = time.perf_counter()
    half = times[len(times) // 2 :]
    return len(identities) * len(half) / sum(half)


def step_speed(args: argparse.Namespace, trainer: engine.Trainer) -> float:
    """Images a second of the step alone."""
    images = torch.randn(args.batch, 3, *SIZE, device=args.device)
    identities = torch.arange(args.batch // 4, device=args.device).repeat_interleave(4)
    return speed_of(trainer, [(images, identities, identities)] * args.steps)


def together(args: argparse.Namespace, trainer: engine.Trainer, datasets: dict[str, Dataset]) -> dict:
    """Images a second of training, input and all, by way and number of processes."""
    found: dict[str, dict[int, float]] = {}
    for way in ("before", "floats", "off", "ram"):
        found[way] = {}
        for workers in sorted({min(4, max(args.workers)), max(args.workers)}):
            loader = make_loader(args, datasets[way], workers, args.batch * 60)
            batches = ((images, torch.arange(args.batch) // 4, None) for images, *_ in loader)
            found[way][workers] = speed_of(trainer, batches)
    return found


# ------------------------------------------------------------------------------------------------------------- tables


def table(results: dict) -> str:
    """Everything measured, for people."""
    lines = []
    for name, found in results["parts"].items():
        lines.append(f"{name}: microseconds of processor time an image, in one thread")
        for part, figures in found.items():
            apart = figures.get("differs_by")
            words = "" if apart is None else "   the same" if apart == 0 else f"   differs by up to {apart:g}"
            lines.append(f"  {part:<22}{figures['us'] or float('nan'):8.0f}{words}")
    step = results["step_images_per_second"]
    for name, found in results["loader"].items():
        fill = ", ".join(f"{way} {seconds:.2f} s" for way, seconds in found["fill_s"].items())
        lines.append(f"{name}: images a second of the loader, times those of the step ({step:.0f}); to fill: {fill}")
        workers = list(found[WAYS[0]])
        lines.append(f"  {'processes':<13}" + "".join(f"{count:>16}" for count in workers))
        for way in WAYS:
            speeds = [found[way][count]["images_per_second"] for count in workers]
            lines.append(f"  {way:<13}" + "".join(f"{speed:>9.0f} {speed / step:>4.1f} x" for speed in speeds))
    for way, speeds in results.get("together", {}).items():
        words = ", ".join(f"{speed:.0f} with {count} processes" for count, speed in speeds.items())
        lines.append(f"training, images a second, {way}: {words}")
    return "\n".join([*lines, *results["verdict"]])


def verdict(results: dict) -> list[str]:
    """Whether the model waits for its input, in words."""
    step, lines = results["step_images_per_second"], []
    for name, found in results["loader"].items():
        for way in ("off", "ram"):
            speeds = {count: figures["images_per_second"] for count, figures in found[way].items()}
            enough = [count for count, speed in speeds.items() if speed >= ENOUGH * step]
            words = f"-j {min(enough)} is enough" if enough else f"the model waits: at most {max(speeds.values()):.0f}"
            lines.append(f"{name}, --cache {way}: {words}")
    return lines


def main(argv: Sequence[str] | None = None) -> dict:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benches.input_speed", description=__doc__.splitlines()[0])
    add, cores = parser.add_argument, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--batch", type=int, help="images (default: 32 on the processor, 64 on a GPU)")
    add("--workers", type=int, nargs="+", help="processes of the loader (default: 0, 1, 2, 4, ... as there are cores)")
    add("--images", type=Path, help="a folder of images instead of the noise")
    add("--count", type=int, default=512, help="how many images (default 512)")
    add("--seconds", type=float, default=0.7, help="of each figure of the loader")
    add("--steps", type=int, help="training steps (default: 3 on the processor, 40 on a GPU)")
    add("--output", type=Path, help="write the figures here as JSON")
    args = parser.parse_args(argv)
    cuda, begin = args.device == "cuda", time.perf_counter()
    args.batch, args.steps = args.batch or (64 if cuda else 32), args.steps or (40 if cuda else 3)
    args.workers = args.workers or [0] + [count for count in (1, 2, 4, 8, 16) if count <= cores]
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        place = Path(folder)
        (place / "noise").mkdir()
        paths = [str(p) for p in list_images(args.images)] if args.images else draw_images(place / "noise", args.count)
        sets = {str(args.images or "noise, 128 x 64"): paths[: args.count]}
        vehicles = Path(os.environ.get("REIDOPS_DATA") or "nowhere") / "vehicle_reid" / "images" / "train"
        if vehicles.is_dir() and not args.images:
            sets["vehicles"] = [str(path) for path in list_images(vehicles)][: args.count // 2]
        results = {
            "machine": describe_machine(torch.device(args.device)) | {"cores": cores},
            "commit": process.commit(),
            "size": [args.batch, 3, *SIZE],
            "parts": {name: parts(paths) for name, paths in sets.items()},
        }
        results["loader"], datasets = loaders(args, sets, place)
        trainer = make_trainer(args)
        results["step_images_per_second"] = step_speed(args, trainer)
        if cuda:
            results["together"] = together(args, trainer, next(iter(datasets.values())))
    results["verdict"], results["seconds"] = verdict(results), time.perf_counter() - begin
    print(table(results))
    if args.output:
        write_json(json.loads(json.dumps(results)), args.output)
    return results


if __name__ == "__main__":
    main()

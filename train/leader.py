"""A picture of what the leader attention does: where each scale responds, before it and after it."""

import os
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

import reidops
from reidops_models import MuDeepV2
from train.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from train.visualize import INK, save_figure


def attended_maps(model: MuDeepV2, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each scale's feature map and what the attention adds to it, gamma times the mixed channels.

    Args:
        model: with attention; its mode is left as it is.
        images: (B, 3, height, width) on the model's device.

    Returns:
        A pair a scale, both (B, C, height / 16, width / 16).
    """
    with torch.no_grad():
        maps = model.scale_maps(images)
        leader, found = model.leader_map(maps).flatten(2), []
        for scale, scale_map in enumerate(maps, start=1):
            weights = model.get_submodule(f"atten{scale}").weights()
            query, key = (functional.conv1d(leader, weight) for weight in weights)
            mixed = reidops.channel_attention(query, key, scale_map.flatten(2)).reshape(scale_map.shape)
            found.append((scale_map, model.get_parameter(f"gamma{scale}") * mixed))
    return found


def draw_leader(path: str | os.PathLike, model: MuDeepV2, images: Tensor) -> None:
    """Draw images, one a row, with the strength of each scale before the attention, what it adds, and after it.

    The strength at a place is the root mean square over the channels. Before and after share one scale of colours in
    each row and scale; what is added has its own, and its part of the whole stands above it.

    Args:
        path: the PNG to write.
        model: with attention.
        images: (B, 3, height, width), normalised as for the model, on its device.
    """
    model.eval()
    scales = [tuple(part.float().cpu() for part in pair) for pair in attended_maps(model, images)]
    columns = 1 + 3 * len(scales)
    height, width = images.shape[2:]
    cell = 1.15
    figure = Figure(figsize=(cell * columns + 0.3, (cell * height / width + 0.1) * len(images) + 1.2))
    grid = figure.subplots(len(images), columns, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.06})
    mean, std = (torch.tensor(part).reshape(3, 1, 1) for part in (IMAGENET_MEAN, IMAGENET_STD))
    for row, image in zip(grid, images.cpu(), strict=True):
        row[0].imshow((image * std + mean).clamp(0, 1).permute(1, 2, 0).numpy(), aspect="auto")
    grid[0, 0].set_title("image", color=INK, fontsize=9)
    for scale, (before, added) in enumerate(scales, start=1):
        first = 3 * scale - 2
        after = before + added
        share = (added.norm() / before.norm()).item()
        gamma = model.get_parameter(f"gamma{scale}").item()
        titles = (f"scale {scale}", f"+ attention\ngamma {gamma:.3f}, {100 * share:.1f} %", "= after")
        for column, title in enumerate(titles, start=first):
            grid[0, column].set_title(title, color=INK, fontsize=9)
        for index, row in enumerate(grid):
            _heat(row[first : first + 3], [part[index] for part in (before, added, after)])
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
    top = 1 - 1.0 / figure.get_figheight()
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=top)
    figure.suptitle("What the leader attention adds to each scale", color=INK, fontsize=13)
    save_figure(figure, path)


def _heat(axes: Sequence, maps: Sequence[Tensor]) -> None:
    """The strengths of a map before, of what is added, and after, in three charts."""
    before, added, after = (part.square().mean(dim=0).sqrt() for part in maps)
    low, high = min(before.min(), after.min()).item(), max(before.max(), after.max()).item()
    for chart, strength in ((axes[0], before), (axes[2], after)):
        chart.imshow(strength.numpy(), cmap="magma", vmin=low, vmax=max(high, low + 1e-12), aspect="auto")
    axes[1].imshow(added.numpy(), cmap="viridis", aspect="auto")

"""Pictures of what was learned: how stripes are matched, what is ranked first, and the curves of a run."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from PIL import Image
from torch import Tensor

import reidops
from train.evaluate import DISTANCES, Evaluation
from train.features import Features
from train.files import written_whole

RIGHT, WRONG, INK, FAINT, ACCENT = "#2a9d5c", "#d1495b", "#222831", "#9aa5b1", "#f4a259"
LINES = {
    "loss": ("sum", INK),
    "cross_entropy": ("cross entropy", "#3d5a80"),
    "global_loss": ("triplet, global", "#ee6c4d"),
    "local_loss": ("triplet, local (DMLI)", "#2a9d8f"),
    "triplet": ("triplet", "#ee6c4d"),
}
ROWS = {"global": "#3d5a80", "local": "#b8860b", "dmli": "#2a9d8f", "global_local": "#7b2cbf", "global_dmli": "#d1495b"}
ROWS["cosine"] = ROWS["global"]


def draw_alignment(
    path: str | os.PathLike,
    query_image: str | os.PathLike,
    gallery_image: str | os.PathLike,
    query_stripes: Tensor,
    gallery_stripes: Tensor,
    size: tuple[int, int],
    title: str = "",
) -> None:
    """Draw two images with their stripes, the stripes DMLI matched, and the map of stripe distances with its path.

    Args:
        path: the PNG to write.
        query_image, gallery_image: image files.
        query_stripes, gallery_stripes: (stripes, d) local features of them.
        size: (height, width) the model sees the images at.
        title: line above the picture.
    """
    distance = torch.tanh(reidops.euclidean_distance(query_stripes, gallery_stripes) / 2)
    steps = reidops.shortest_path_indices(distance).tolist()
    dmli = reidops.dmli_matrix(query_stripes[None], gallery_stripes[None]).item()
    rows, columns = distance.shape
    low, high = distance.min().item(), distance.max().item()

    figure = Figure(figsize=(11.4, 5.3), layout="constrained")
    left, right, chart = figure.subplots(1, 3, width_ratios=[1, 1, 2])
    figure.get_layout_engine().set(w_pad=0.3)
    for axes, image, name, stripes in ((left, query_image, "query", rows), (right, gallery_image, "gallery", columns)):
        axes.imshow(_open(image, size), extent=(0, size[1], stripes, 0), aspect="auto", interpolation="bilinear")
        axes.set_box_aspect(size[0] / size[1])
        for stripe in range(1, stripes):
            axes.axhline(stripe, color="white", linewidth=1.2, alpha=0.85)
        axes.set(xticks=[], yticks=np.arange(stripes) + 0.5, yticklabels=range(1, stripes + 1))
        axes.tick_params(length=0, labelcolor=FAINT)
        axes.set_title(name, color=INK)
    right.yaxis.tick_right()

    # A stripe's own step is the cheapest of the steps that share it; corners of the path only pass through.
    for i, j in steps:
        closeness = 1 - (distance[i, j].item() - low) / max(high - low, 1e-12)
        figure.add_artist(
            ConnectionPatch(
                (size[1], i + 0.5),
                (0, j + 0.5),
                "data",
                "data",
                axesA=left,
                axesB=right,
                color=ACCENT,
                linewidth=1 + 3 * closeness,
                alpha=0.35 + 0.65 * closeness,
                capstyle="round",
            )
        )

    picture = chart.imshow(distance.numpy(), cmap="viridis_r", vmin=low, vmax=high)
    for i in range(rows):
        for j in range(columns):
            shade = (distance[i, j].item() - low) / max(high - low, 1e-12)
            if max(rows, columns) <= 10:
                chart.text(
                    j,
                    i,
                    f"{distance[i, j]:.2f}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="white" if shade > 0.55 else INK,
                )
    for i, j in steps:
        chart.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=ACCENT, linewidth=2.5))
    chart.plot([j for _, j in steps], [i for i, _ in steps], color=ACCENT, linewidth=5, alpha=0.45)
    chart.set(
        xlabel="stripe of the gallery image",
        ylabel="stripe of the query image",
        xticks=range(columns),
        xticklabels=range(1, columns + 1),
        yticks=range(rows),
        yticklabels=range(1, rows + 1),
    )
    chart.set_title(f"stripe distance tanh(d/2); along the path: {dmli:.3f}", color=INK)
    bar = figure.colorbar(picture, ax=chart, shrink=0.85)
    bar.outline.set_visible(False)
    if title:
        figure.suptitle(title, color=INK, fontsize=13)
    save_figure(figure, path)


def draw_ranked(
    path: str | os.PathLike,
    rankings: Sequence[tuple[str, Sequence[tuple[str, bool, float]]]],
    size: tuple[int, int],
    title: str = "",
) -> None:
    """Draw queries, one a row, with what the gallery holds nearest to them.

    Args:
        path: the PNG to write.
        rankings: for every query its image file and its nearest gallery images, nearest first: file, whether the
            identity is right, and the distance. `nearest` makes them.
        size: (height, width) to show images at.
        title: line above the picture.
    """
    columns = 1 + max(len(results) for _, results in rankings)
    cell = 1.05
    figure = Figure(figsize=(cell * (columns + 0.4), (cell * size[0] / size[1] + 0.32) * len(rankings) + 0.7))
    grid = figure.subplots(len(rankings), columns, squeeze=False, gridspec_kw={"wspace": 0.08, "hspace": 0.2})
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (query, results) in zip(grid, rankings, strict=True):
        _show(row[0], query, size, INK, "query")
        for axes, (image, right, distance) in zip(row[1:], results, strict=False):
            _show(axes, image, size, RIGHT if right else WRONG, f"{'✓' if right else '✗'} {distance:.2f}")
    for rank, axes in enumerate(grid[0, 1:], start=1):
        axes.set_title(f"{rank}", color=FAINT, fontsize=10)
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.05, top=1 - 0.75 / figure.get_figheight())
    if title:
        figure.suptitle(title, color=INK, fontsize=13, y=1 - 0.16 / figure.get_figheight(), va="top")
    save_figure(figure, path)


def draw_curves(path: str | os.PathLike, history: Sequence[dict], evaluations: Sequence[Evaluation]) -> None:
    """Draw the loss over the epochs, where there is a history, and the CMC curve of every row of the table.

    Args:
        path: the PNG to write.
        history: lines of log.jsonl; may be empty.
        evaluations: rows of the table, all by one protocol.
    """
    figure = Figure(figsize=(12 if history else 6.5, 4.8), layout="constrained")
    axes = list(figure.subplots(1, 2 if history else 1, squeeze=False)[0])
    if history:
        epochs = [line["epoch"] for line in history]
        losses = axes.pop(0)
        for name, (label, color) in LINES.items():
            if name not in history[0]:
                continue
            losses.plot(
                epochs,
                [line[name] for line in history],
                color=color,
                label=label,
                linewidth=2,
                marker="o" if len(epochs) < 3 else None,
            )
        for before, after in zip(history, history[1:], strict=False):
            if after["lr"] < before["lr"]:
                losses.axvline(after["epoch"] - 0.5, color=FAINT, linestyle=":")
                losses.text(
                    after["epoch"] - 0.4,
                    0.98,
                    f"lr {after['lr']:.2g}",
                    color=FAINT,
                    va="top",
                    transform=losses.get_xaxis_transform(),
                )
        losses.set(xlabel="epoch", ylabel="training loss", title="Loss", ylim=(0, None))
        losses.legend(frameon=False)
    protocol = evaluations[0].protocol
    protocol = "" if protocol == "market1501" else f" by the {protocol} protocol"
    ranks = np.arange(1, 1 + min(20, *(len(evaluation.cmc) for evaluation in evaluations), 20))
    for evaluation in evaluations:
        again = evaluation.reranking
        label = f"{DISTANCES[evaluation.distance]}{' + re-ranking' if again else ''}"
        score = f"{100 * evaluation.rank(1):.1f} / {100 * evaluation.mean_ap:.1f}"
        axes[0].plot(
            ranks,
            100 * evaluation.cmc[: len(ranks)].numpy(),
            color=ROWS[evaluation.distance],
            linewidth=2,
            linestyle="--" if again else "-",
            label=f"{label}  {score}",
        )
    axes[0].set(
        xlabel="rank",
        ylabel="queries with a match, %",
        title=f"CMC{protocol}  (legend: rank-1 / mAP)",
        xticks=[1, *range(5, len(ranks) + 1, 5)],
    )
    axes[0].legend(frameon=False, fontsize=9)
    for chart in figure.axes:
        chart.spines[["top", "right"]].set_visible(False)
        chart.grid(alpha=0.25)
    save_figure(figure, path)


def draw_rankings(
    path: str | os.PathLike,
    features: Features,
    distance: Tensor,
    query_files: Sequence[str],
    gallery_files: Sequence[str],
    size: tuple[int, int],
    by: str,
    queries: int = 6,
) -> None:
    """Draw queries, evenly spaced through the query set, with their nearest gallery images.

    Args:
        path: the PNG to write.
        features: identities and cameras of the rows and columns.
        distance: (M, N) distances.
        query_files, gallery_files: image files of rows and columns.
        size: (height, width) to show images at.
        by: what the distance is, for the title.
        queries: how many to show.
    """
    chosen = torch.linspace(0, len(query_files) - 1, min(queries, len(query_files))).round().long().tolist()
    rankings = [nearest(features, distance, query, query_files, gallery_files) for query in chosen]
    draw_ranked(path, rankings, size, f"Queries and their nearest gallery images {by} (green: same identity)")


def nearest(
    features: Features,
    distance: Tensor,
    query: int,
    query_files: Sequence[str],
    gallery_files: Sequence[str],
    count: int = 10,
) -> tuple[str, list[tuple[str, bool, float]]]:
    """A query's nearest gallery images as the Market-1501 protocol counts them, for `draw_ranked`.

    Args:
        features: identities and cameras of the rows and columns.
        distance: (M, N) distances.
        query: row of the query.
        query_files, gallery_files: image files of rows and columns.
        count: how many to show.

    Returns:
        The query's file, and (file, identity is right, distance) of the nearest.
    """
    identity, camera = features.query_ids[query], features.query_cameras[query]
    dropped = (features.gallery_ids == -1) | ((features.gallery_ids == identity) & (features.gallery_cameras == camera))
    order = torch.argsort(distance[query].masked_fill(dropped, torch.inf), stable=True)
    order = order[: min(count, int((~dropped).sum()))].tolist()
    matches = [(gallery_files[i], bool(features.gallery_ids[i] == identity), distance[query, i].item()) for i in order]
    return query_files[query], matches


def telling_pair(features: Features, limit: int = 200) -> tuple[int, int]:
    """The query and gallery image of one person, seen by two cameras, where aligning stripes changes most.

    Among the first `limit` queries that have a match, the pair whose row-by-row distance a step of the path is
    farthest above its distance along the DMLI path.

    Args:
        features: with local features.
        limit: how many queries to look at.

    Returns:
        (query row, gallery row).

    Raises:
        ValueError: there are no local features, or no pair of one identity from two cameras.
    """
    if features.query_local is None or features.gallery_local is None:
        raise ValueError("features have no local features to align")
    same = features.query_ids[:, None] == features.gallery_ids[None]
    same &= features.query_cameras[:, None] != features.gallery_cameras[None]
    queries = same.any(dim=1).nonzero().flatten()[:limit]
    if not len(queries):
        raise ValueError("features have no pair of one identity from two cameras")
    stripes = features.query_local[queries], features.gallery_local
    count = stripes[0].shape[1]
    gain = reidops.dmli_matrix(*stripes, aligned=False) / count - reidops.dmli_matrix(*stripes) / (2 * count - 1)
    row, match = divmod(int(gain.masked_fill(~same[queries], -torch.inf).argmax()), len(features.gallery))
    return int(queries[row]), match


def _open(image: str | os.PathLike, size: tuple[int, int]) -> Image.Image:
    """An image as the model's proportions show it, enlarged where it is small."""
    scale = max(1, round(256 / size[0]))
    with Image.open(image) as file:
        return file.convert("RGB").resize((size[1] * scale, size[0] * scale), Image.Resampling.BICUBIC)


def _show(axes, image: str | os.PathLike, size: tuple[int, int], color: str, label: str) -> None:
    axes.imshow(_open(image, size), aspect="auto")
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(label, color=color, fontsize=9, labelpad=4)
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=3)


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure as PNG, whole or not at all; the folder is made if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white", pil_kwargs={"optimize": True})
    with written_whole(path) as temporary:
        temporary.write_bytes(buffer.getvalue())

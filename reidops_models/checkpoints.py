"""Filling models from checkpoints: our own, the published ones, and ImageNet weights from a file or by name."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from .backbones import HEADS, backbone_of
from .imagenet import is_imagenet_name, named_state_dict
from .reading import find_state_dict, listed, read_checkpoint

ALIGNEDREID, MUDEEP, IMAGENET = "AlignedReID", "MuDeep_v2", "ImageNet weights"
FOREIGN = "a model of another program (torchreid?)"
_OLD_SHUFFLENET = "AlignedReID on ShuffleNet of version 1"
_LOCAL_BRANCH = ("bn.", "conv1.")


def load_checkpoint(
    model: nn.Module, path: str | os.PathLike, *, skip: Sequence[str] = (), replace_classifier: bool = False
) -> nn.Module:
    """Load the weights in a file into a model, every tensor by its name and shape.

    What the file is shows in its names:
    - a checkpoint of AlignedReID (`checkpoint_ep300.pth.tar`), of MuDeep_v2 (`.pkl`) or of our training scripts
      (`best.pth`, `last.pth`), under "state_dict", "model" or nothing, with or without DataParallel's "module.";
    - ImageNet weights of torchvision (Inception-v4: of timm), which fill the trunk and leave the rest as it is;
    - the same networks with another classifier, trained by another program: with `replace_classifier` alone, and as
      ImageNet weights are.

    A file of AlignedReID without the local branch (trained with `aligned=False`) fits a model whose evaluation does
    not use that branch, which then stays as it is. Only tensors and plain values are ever read (`weights_only=True`).
    The model is changed only when everything fits.

    Args:
        model: the model to fill; its tensors keep their device and dtype.
        path: the checkpoint file, or the name of ImageNet weights for the model's backbone: "imagenet",
            "IMAGENET1K_V1", "IMAGENET1K_V2", "DEFAULT", or torchvision's constant itself; those are downloaded unless
            they are in torch's cache.
        skip: beginnings of names to leave as they are in the model.
        replace_classifier: leave the model's classifiers as they are, new ones for other identities than the file's.

    Returns:
        The same model.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the named weights cannot be downloaded.
        TypeError: `path` is neither a path nor a name.
        ValueError: the file is damaged or not a checkpoint, or names or shapes do not match those of the model
            (missing, unexpected and misshaped ones are listed).

    Example:
        >>> import os, tempfile, torch
        >>> from reidops_models import AlignedReID, load_checkpoint
        >>> path = os.path.join(tempfile.mkdtemp(), "model.pth")
        >>> torch.save({"state_dict": AlignedReID(5, "resnet18").state_dict()}, path)
        >>> model = load_checkpoint(AlignedReID(5, "resnet18"), path)
        >>> model = load_checkpoint(AlignedReID(9, "resnet18"), path, replace_classifier=True)
    """
    content = read_weights(model, path)
    return load_content(model, content, path, skip=skip, replace_classifier=replace_classifier)


def read_weights(model: nn.Module, path: str | os.PathLike) -> dict:
    """What a checkpoint file holds, or, for a name, the ImageNet weights of a model's backbone; see load_checkpoint."""
    if not isinstance(path, str | os.PathLike | WeightsEnum):
        raise TypeError(f"weights should be a file's path or a name of ImageNet weights, got {type(path).__name__}")
    if not is_imagenet_name(path):
        return read_checkpoint(path)
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        raise ValueError(f"weights {path} are those of a backbone, and {type(model).__name__} names none: give a file")
    return named_state_dict(backbone, str(path))


def load_content(
    model: nn.Module,
    content: Mapping,
    path: str | os.PathLike,
    *,
    skip: Sequence[str] = (),
    replace_classifier: bool = False,
) -> nn.Module:
    """What `load_checkpoint` does, with what has been read; `path` is for the messages."""
    state, skip = find_state_dict(content, path), tuple(skip)
    kind, found = kind_of(state), _described(state)
    own, only, without_branch = {}, ("",), kind == ALIGNEDREID and _lacks_local_branch(state)
    if kind == _OLD_SHUFFLENET:
        raise ValueError(
            f"checkpoint {path} is of the published ShuffleNet, version 1, which no library keeps; the backbone "
            f"'shufflenet' is torchvision's version 2, other layers altogether: train it from ImageNet weights"
        )
    if replace_classifier:
        skip += getattr(model, "classifiers", ("classifier.", "fc."))
    if kind == ALIGNEDREID:
        if without_branch:
            skip += getattr(model, "training_only", ())
        if "features.0.conv.weight" in state:  # so the published class calls Inception-v4's trunk
            state = {name.replace("features.", "base.", 1): tensor for name, tensor in state.items()}
    elif kind in (IMAGENET, FOREIGN) and hasattr(model, "from_imagenet"):
        if kind == FOREIGN:
            if not replace_classifier:
                raise ValueError(
                    f"checkpoint {path} looks like {found}, with a classifier that is not ImageNet's: its trunk alone "
                    f"is taken with replace_classifier=True or --replace-classifier"
                )
            state = {name: tensor for name, tensor in state.items() if name.split(".")[0] not in HEADS}
        own = model.from_imagenet({name: name for name in state})
        state, only = {name: state[theirs] for name, theirs in own.items()}, model.trunk
    fill(model, state, path, skip, found, own, only)
    if without_branch and hasattr(model, "stripes"):
        model.stripes = "trunk"  # as the published classes do without a local branch
    return model


def fill(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    path: str | os.PathLike,
    skip: Sequence[str] = (),
    found: str = "",
    own: Mapping[str, str] | None = None,
    only: Sequence[str] = ("",),
) -> nn.Module:
    """Copy a state dict into a model, or refuse with the lists of names that do not match.

    Args:
        model: the model to fill, changed only when everything fits.
        state_dict: names to tensors.
        path: where they came from, for the message.
        skip: beginnings of names to leave as they are in the model.
        found: what the file looked like before any name was changed, for the message.
        own: the names in the file of those that were changed, for the message.
        only: beginnings of the names to fill; the others stay as they are.

    Returns:
        The same model.

    Raises:
        ValueError: names are missing or unexpected, shapes differ, a tensor is sparse or has no numbers ("meta"), or
            a number does not convert (complex to real, whole to floating).
    """
    own, skip = own or {}, tuple(skip)
    given = {name: value for name, value in state_dict.items() if not name.startswith(skip)}
    wanted = {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith(tuple(only)) and not name.startswith(skip)
    }
    # Files from before torch 0.4.1 do not count batches; torch fills those counters in itself.
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = list(dict.fromkeys(own.get(name, name) for name in given if name not in wanted))
    pairs = {own.get(name, name): (given[name], wanted[name]) for name in wanted if name in given}
    problems = {"missing": missing, "unexpected": unexpected, "not dense": [], "wrong shape": [], "wrong dtype": []}
    for name, (theirs, ours) in pairs.items():
        if theirs.layout != torch.strided or theirs.is_meta:
            problems["not dense"].append(f"{name} {'meta' if theirs.is_meta else theirs.layout}")
            continue
        if theirs.shape != ours.shape:
            problems["wrong shape"].append(f"{name} {tuple(theirs.shape)} for {tuple(ours.shape)}")
        if theirs.is_complex() or (ours.is_floating_point() and not theirs.is_floating_point()):
            problems["wrong dtype"].append(f"{name} {theirs.dtype} for {ours.dtype}")
    if any(problems.values()):
        lists = "; ".join(f"{problem}: {listed(names)}" for problem, names in problems.items() if names)
        hint = _hint(given, wanted, found or _described(given))
        raise ValueError(f"checkpoint {path} does not fit {type(model).__name__}: {lists}{hint and f' ({hint})'}")
    model.load_state_dict(given, strict=False)
    return model


def _hint(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], found: str) -> str:
    """What explains a mismatch in a word: another kind of model, no local branch, a classifier of other identities."""
    theirs, ours, sought = kind_of(given), kind_of(wanted), _described(wanted)
    if theirs and ours and theirs != ours and not found.startswith((IMAGENET, FOREIGN)):
        return f"the file looks like {theirs}, and the model is {ours}"
    if found and sought and backbone_of(given) != backbone_of(wanted):
        return f"the file looks like {found}, and the model is {sought}"
    if _lacks_local_branch(given) and any(name.startswith(_LOCAL_BRANCH) for name in wanted):
        return (
            "the file has no local branch, having been trained without one: it fits a model with stripes 'trunk', "
            "--stripes trunk"
        )
    differing = {
        (len(tensor), len(wanted[name]))
        for name, tensor in given.items()
        if "classifier" in name and name in wanted and tensor.ndim and tensor.shape != wanted[name].shape
    }
    if len(differing) == 1:
        theirs, ours = differing.pop()
        return (
            f"the file was trained on {theirs} identities, and the model has {ours} classes: replace the classifier, "
            f"replace_classifier=True or --replace-classifier, to train on others"
        )
    return ""


def kind_of(state: Mapping[str, Tensor]) -> str:
    """What a state dict belongs to, from its names; empty if it is nothing that is known."""
    names = set(state)
    starts = {name.split(".")[0] for name in names}
    if "layer4_1" in starts:
        return MUDEEP
    if "base" in starts or {"features.0.conv.weight", "classifier.weight"} <= names:
        return ALIGNEDREID
    if {"stage4", "classifier"} <= starts and "conv5" not in starts:
        return _OLD_SHUFFLENET
    if "conv1" in starts and starts & {"layer4", "stage4"}:
        return IMAGENET if _classifies_imagenet(state, ("fc",)) else FOREIGN
    if {"features.conv0.weight", "features.0.conv.weight"} & names:
        return IMAGENET if _classifies_imagenet(state, ("classifier", "last_linear")) else FOREIGN
    return ""


def _classifies_imagenet(state: Mapping[str, Tensor], heads: Sequence[str]) -> bool:
    """Whether a network's classifier, where it has one, has such a name and 1000 classes (1001 with a background)."""
    found = {name: tensor.shape[:1] for name, tensor in state.items() if name.split(".")[0] in HEADS}
    known = {f"{head}.{part}" for head in heads for part in ("weight", "bias")}
    return found.keys() <= known and all(rows in ((1000,), (1001,)) for rows in found.values())


def describe(content: Mapping, path: str | os.PathLike) -> str:
    """A checkpoint in a line: "AlignedReID on resnet50, 751 identities, epoch 300, rank-1 91.8 %".

    Args:
        content: what `read_checkpoint` returned.
        path: where it came from, for the message of an error.

    Raises:
        ValueError: there is no state dict in it.
    """
    state = find_state_dict(content, path)
    parts, kind = [_described(state) or "weights"], kind_of(state)
    classes = state.get("classifier.weight", state.get("scale1.classifier.fc.weight"))
    if kind in (ALIGNEDREID, MUDEEP, FOREIGN) and classes is not None and classes.ndim:
        parts.append(f"{len(classes)} identities")
    if _lacks_local_branch(state):
        parts.append("without a local branch")
    if type(content.get("epoch")) is int:
        published = kind == ALIGNEDREID and "rank1" in content and "settings" not in content
        parts.append(f"epoch {content['epoch'] + published}")  # that program counts from 0, and names files from 1
    if isinstance(content.get("rank1"), float | np.floating):
        parts.append(f"rank-1 {100 * float(content['rank1']):.1f} %")
    return ", ".join(parts)


def _lacks_local_branch(state: Mapping[str, Tensor]) -> bool:
    return kind_of(state) == ALIGNEDREID and not any(name.startswith(_LOCAL_BRANCH) for name in state)


def _described(state: Mapping[str, Tensor]) -> str:
    """The kind of a state dict, and the backbone where it is recognised."""
    kind, backbone = kind_of(state), backbone_of(state)
    if not kind or not backbone:
        return kind
    return f"{kind} {'of' if kind == IMAGENET else 'on'} {backbone}"

"""Loading checkpoints: the layouts that are read, and what is refused with which words."""

import os

import numpy as np
import pytest
import torch

from reidops_models import AlignedReID, load_checkpoint


def small_model(num_classes=5):
    return AlignedReID(num_classes, "resnet18")


@pytest.fixture(scope="module")
def source():
    """A model whose every tensor differs from a fresh one."""
    model = small_model()
    model(torch.rand(4, 3, 64, 32))  # moves the running means
    return model


def assert_same_weights(model, source, but=()):
    for name, tensor in source.state_dict().items():
        if not name.startswith(tuple(but)):
            assert torch.equal(model.state_dict()[name], tensor), name


LAYOUTS = {
    "state dict alone": lambda weights: weights,
    "published": lambda weights: {"state_dict": weights, "rank1": np.float32(0.9), "epoch": 299},
    "DataParallel": lambda weights: {"state_dict": {f"module.{name}": value for name, value in weights.items()}},
    "before batches were counted": lambda weights: {
        "state_dict": {name: value for name, value in weights.items() if "num_batches_tracked" not in name}
    },
    "model": lambda weights: {"model": weights, "epoch": 3},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zip_format", [True, False])
def test_layouts(tmp_path, source, layout, zip_format):
    path = tmp_path / "model.pth.tar"
    content = LAYOUTS[layout](source.state_dict())
    torch.save(content, path, pickle_protocol=2, _use_new_zipfile_serialization=zip_format)
    model = small_model()
    assert load_checkpoint(model, path) is model
    assert_same_weights(model, source, but=() if layout != "before batches were counted" else _counters(source))


def _counters(model):
    return [name for name in model.state_dict() if name.endswith("num_batches_tracked")]


def test_skip_leaves_the_classifier(tmp_path, source):
    torch.save({"state_dict": source.state_dict()}, tmp_path / "model.pth")
    model = small_model(num_classes=9)
    before = model.classifier.weight.clone()
    load_checkpoint(model, tmp_path / "model.pth", skip=("classifier.",))
    assert torch.equal(model.classifier.weight, before)
    assert_same_weights(model, source, but=("classifier.",))


def test_mismatch_lists_the_names_and_leaves_the_model(tmp_path, source):
    weights = dict(source.state_dict())
    weights["extra.weight"] = weights.pop("bn.bias")
    torch.save({"state_dict": weights}, tmp_path / "model.pth")
    model = small_model(num_classes=9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_checkpoint(model, tmp_path / "model.pth")
    for words in ("does not fit AlignedReID", "missing: bn.bias", "unexpected: extra.weight",
                  "wrong shape: classifier.weight (5, 512) for (9, 512)"):  # fmt: skip
        assert words in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_numbers_that_do_not_convert_are_refused(tmp_path, source, dtype):
    weights = source.state_dict()
    torch.save({"state_dict": weights | {"bn.bias": weights["bn.bias"].to(dtype)}}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=f"wrong dtype: bn.bias {dtype} for torch.float32"):
        load_checkpoint(small_model(), tmp_path / "model.pth")


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
@pytest.mark.parametrize("zip_format", [True, False])
def test_cut_short(tmp_path, source, kept, zip_format):
    path = tmp_path / "model.pth"
    torch.save({"state_dict": source.state_dict()}, path, _use_new_zipfile_serialization=zip_format)
    size = kept if isinstance(kept, int) else int(os.path.getsize(path) * kept)
    with open(path, "r+b") as file:
        file.truncate(size)
    with pytest.raises(ValueError, match=rf"model.pth \({size} bytes\) cannot be read"):
        load_checkpoint(small_model(), path)


class Surprise:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return os.system, ("true",)


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"state_dict": Surprise()}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(small_model(), tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "should hold a dict, got list"),
        ({"epoch": 3}, "no state dict: not a tensor: epoch"),
        ({"state_dict": {}, "epoch": 3}, "no state dict, only state_dict, epoch"),
        ({"state_dict": {"bn.bias": 3.0}}, "not a tensor: bn.bias"),
        ({"state_dict": {3: torch.ones(2)}}, "not a name: 3"),
    ],
)
def test_not_a_checkpoint(tmp_path, content, message):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message):
        load_checkpoint(small_model(), tmp_path / "model.pth")


def test_text_and_no_file(tmp_path):
    (tmp_path / "notes.pth").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(small_model(), tmp_path / "notes.pth")
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        load_checkpoint(small_model(), tmp_path / "nowhere.pth")

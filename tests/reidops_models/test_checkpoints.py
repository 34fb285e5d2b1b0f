"""Loading checkpoints: the layouts that are read, and what is refused with which words."""

import argparse
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from reidops_models import AlignedReID, load_checkpoint
from reidops_models.checkpoints import describe
from reidops_models.reading import read_checkpoint
from tests.reidops_models.plain_alignedreid import PlainAlignedReID, random_published, save_published


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
    "DataParallel twice": lambda weights: {f"module.module.{name}": value for name, value in weights.items()},
    "compiled": lambda weights: {"net": {f"_orig_mod.{name}": value for name, value in weights.items()}},
    "compiled in parallel": lambda weights: {
        "model_state_dict": {f"module._orig_mod.{name}": value for name, value in weights.items()}
    },
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


def test_the_classifier_alone_is_replaced(tmp_path, source):
    torch.save({"state_dict": source.state_dict()}, tmp_path / "model.pth")
    model = small_model(num_classes=9)
    before = model.classifier.weight.clone()
    with pytest.raises(
        ValueError, match="trained on 5 identities, and the model has 9 classes: .*--replace-classifier"
    ):
        load_checkpoint(model, tmp_path / "model.pth")
    load_checkpoint(model, tmp_path / "model.pth", replace_classifier=True)
    assert torch.equal(model.classifier.weight, before)
    assert_same_weights(model, source, but=("classifier.",))
    torch.save({"state_dict": source.state_dict() | {"bn.bias": torch.ones(3)}}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="wrong shape: bn.bias"):
        load_checkpoint(model, tmp_path / "model.pth", replace_classifier=True)


@pytest.mark.parametrize(
    ("backbone", "aligned"),
    [("resnet50", True), ("resnet50", False), ("resnet101", True), ("densenet121", True), ("densenet121", False)],
)
def test_features_from_a_published_file_are_those_of_the_published_class(tmp_path, monkeypatch, backbone, aligned):
    source, path = random_published(backbone=backbone, aligned=aligned), tmp_path / "checkpoint_ep300.pth.tar"
    save_published(source, path, monkeypatch, parallel=aligned)
    model = load_checkpoint(AlignedReID(751, backbone), path).eval()
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = source(images)
        assert expected[1].shape[2] == (128 if aligned and backbone != "resnet50" else source.classifier.in_features)
        for ours, theirs in zip(model(images), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    about = f"AlignedReID on {backbone}, 751 identities, " + ("" if aligned else "without a local branch, ")
    assert describe(read_checkpoint(path), path) == about + "epoch 300, rank-1 91.8 %"


def test_a_file_without_local_branch_needs_an_evaluation_without_it(tmp_path, source):
    weights = {name: x for name, x in source.state_dict().items() if not name.startswith(("bn.", "conv1."))}
    torch.save({"state_dict": weights}, tmp_path / "model.pth")
    model = load_checkpoint(small_model(), tmp_path / "model.pth")
    assert_same_weights(model, source, but=("bn.", "conv1."))
    with pytest.raises(ValueError, match="missing: bn.weight.*no local branch.*stripes 'trunk', --stripes trunk"):
        load_checkpoint(AlignedReID(5, "resnet18", stripes="branch"), tmp_path / "model.pth")
    torch.save({"state_dict": weights | {"bn.bias": source.bn.bias}}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="missing: bn.weight, bn.running_mean"):  # a part of it is no branch
        load_checkpoint(small_model(), tmp_path / "model.pth")


def test_another_backbone_is_named(tmp_path, source):
    torch.save({"state_dict": source.state_dict()}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="like AlignedReID on resnet18, and the model is AlignedReID on resnet34"):
        load_checkpoint(AlignedReID(5, "resnet34"), tmp_path / "model.pth")


def test_the_published_shufflenet_is_refused(tmp_path):
    names = ("conv1.0.weight", "stage2.0.conv1.weight", "stage4.3.bn3.bias", "classifier.weight")
    torch.save({"state_dict": dict.fromkeys(names, torch.ones(2))}, tmp_path / "shufflenet.pth.tar")
    with pytest.raises(ValueError, match="published ShuffleNet, version 1, which no library keeps"):
        load_checkpoint(AlignedReID(5, "shufflenet"), tmp_path / "shufflenet.pth.tar")


def test_our_own_epochs_count_from_one(source):
    content = {"state_dict": source.state_dict(), "settings": {"arch": "resnet18"}, "epoch": 12, "rank1": 0.5}
    assert describe(content, "best.pth") == "AlignedReID on resnet18, 5 identities, epoch 12, rank-1 50.0 %"


def python_2_checkpoint():
    """What torch 0.4 under Python 2 writes of {"state_dict": {"fc.weight": [[0, 1, 2], [3, 4, 5]]}, "rank1": 0.9}."""

    def text(value):  # Python 2 pickles a str as bytes
        return b"U" + bytes([len(value)]) + value

    def name(module, thing):
        return f"c{module}\n{thing}\n".encode()

    storage = b"(" + text(b"storage") + name("torch", "FloatStorage") + text(b"7") + text(b"cuda:0") + b"K\x06NtQ"
    hooks = name("collections", "OrderedDict") + b"]\x85R"
    tensor = (
        name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + b"K\0K\2K\3\x86K\3K\1\x86\x89" + hooks + b"tR"
    )
    state = name("collections", "OrderedDict") + b"](](" + text(b"fc.weight") + tensor + b"ee\x85R"
    dtype = (
        name("numpy", "dtype") + b"(" + text(b"f4") + b"K\0K\1tR(K\3" + text(b"<") + b"NNN" + 2 * b"J\xff\xff\xff\xff"
    )
    rank = name("numpy.core.multiarray", "scalar") + dtype + b"K\0tb" + text(np.float32(0.9).tobytes()) + b"\x86R"
    body = b"\x80\2}(" + text(b"state_dict") + state + text(b"rank1") + rank + b"u."
    heads = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
    keys = b"\x80\2](" + text(b"7") + b"e."
    data = struct.pack("<q", 6) + np.arange(6, dtype=np.float32).tobytes()
    return b"".join(pickle.dumps(head, 2) for head in heads) + body + keys + data


@pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "float16", "float32", "float64"])
def test_numpy_scalars_beside_the_weights(tmp_path, dtype):
    torch.save({"state_dict": {"fc.bias": torch.ones(2)}, "best": np.dtype(dtype).type(1)}, tmp_path / "model.pth")
    best = read_checkpoint(tmp_path / "model.pth")["best"]
    assert best == 1 and best.dtype == dtype


def test_python_2_wrote_it(tmp_path):
    (tmp_path / "old.pth.tar").write_bytes(python_2_checkpoint())
    content = read_checkpoint(tmp_path / "old.pth.tar")
    assert content["rank1"] == np.float32(0.9)
    assert content["state_dict"]["fc.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensor: tensor.to_sparse(), "torch.sparse_coo"),
        (lambda tensor: tensor.to("meta"), "meta"),
    ],
)
def test_tensors_without_all_their_numbers_are_refused(tmp_path, source, change, words):
    weights = source.state_dict()
    torch.save({"state_dict": weights | {"bn.bias": change(weights["bn.bias"])}}, tmp_path / "model.pth")
    model = small_model()
    before = model.bn.running_mean.clone()
    with pytest.raises(ValueError, match=f"does not fit AlignedReID: not dense: bn.bias {words}$"):
        load_checkpoint(model, tmp_path / "model.pth")
    assert torch.equal(model.bn.running_mean, before)


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


def test_damage_within_a_record(tmp_path, source):
    path = tmp_path / "model.pth"
    torch.save({"state_dict": source.state_dict()}, path)
    load_checkpoint(small_model(), path)
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        file.write(bytes(4096))
    with pytest.raises(
        ValueError, match=r"model.pth .* it is damaged \(its record model/data/\d+ does .*: copy or dow"
    ):
        load_checkpoint(small_model(), path)
    with open(path, "r+b") as file:  # and in the list of the records
        file.seek(-2000, os.SEEK_END)
        file.write(bytes(1000))
    with pytest.raises(ValueError, match="model.pth .* it is damaged .*: copy or download it again"):
        load_checkpoint(small_model(), path)


def test_checksums_that_were_never_written(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"state_dict": {"fc.bias": torch.ones(2)}}, tmp_path / "model.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(tmp_path / "model.pth")["state_dict"]["fc.bias"].tolist() == [1, 1]


class Surprise:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"state_dict": Surprise()}, f"{os.system.__module__}.system"),
        ({"state_dict": {"fc.bias": torch.ones(2)}, "args": argparse.Namespace(lr=0.1)}, "argparse.Namespace"),
        (PlainAlignedReID(3, "resnet18"), "tests.reidops_models.plain_alignedreid.PlainAlignedReID"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_code_in_a_file_is_not_run(tmp_path, content, named, zip_format):
    torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=zip_format)
    with pytest.raises(ValueError) as caught:
        load_checkpoint(small_model(), tmp_path / "model.pth")
    assert f"cannot be read: it holds Python objects ({named}), and reading those can run any code." in str(
        caught.value
    )
    assert "torch.save(model.state_dict(), 'weights.pth')" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "should hold a dict, got list"),
        ({"epoch": 3}, r"not a tensor: epoch \(nothing is under state_dict, model, model_state_dict, net\)"),
        ({"state_dict": {}, "epoch": 3}, "no state dict, only state_dict, epoch"),
        ({"state_dict": {"bn.bias": 3.0}}, "not a tensor: bn.bias"),
        ({"state_dict": {3: torch.ones(2)}}, "not a name: 3"),
    ],
)
def test_not_a_checkpoint(tmp_path, content, message):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message):
        load_checkpoint(small_model(), tmp_path / "model.pth")


def write_archives(folder):
    (folder / "notes.txt").write_text("no tensors")
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        archive.write(folder / "notes.txt", "notes.txt")
    with tarfile.open(folder / "model.tar", "w") as archive:
        archive.add(folder / "notes.txt", "notes.txt")
    torch.jit.script(torch.nn.Identity()).save(str(folder / "script.pt"))


def test_archives_are_told_from_checkpoints(tmp_path):
    write_archives(tmp_path)
    for name, words in (
        ("model.zip", "it is a packed archive: unpack it"),
        ("model.tar", "it is a packed archive: unpack it"),
        ("script.pt", "it holds Python objects (a TorchScript program)"),
    ):
        with pytest.raises(ValueError) as caught:
            read_checkpoint(tmp_path / name)
        assert f"{name} (" in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize(
    ("begins", "words"),
    [
        (b"", "it is empty: copy or download it again"),
        (b"\n<!DOCTYPE html><html><title>Google Drive - Virus scan warning", "it is a web page: follow the link"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "it is a Git LFS pointer, .* `git lfs pull`"),
        (b"\x1f\x8b\x08\0", "it is a packed archive"),
        (b"PK\3\4" + bytes(100), "it is cut short"),
        (bytes(2048), "it is damaged, beginning with zeros alone .*: copy or download it again"),
        (b"\x40\0\0\0\0\0\0\0{" + bytes(100), "it is a safetensors file: .*safetensors.torch.load_file"),
        (b"\x89PNG\r\n", "it is damaged, or no file of torch's: copy or download it again"),
        (b"\x80\x04\x95", "it holds Python objects"),
    ],
)
def test_files_that_are_no_checkpoints_say_what_they_are(tmp_path, begins, words):
    (tmp_path / "model.pth").write_bytes(begins)
    with pytest.raises(ValueError, match=rf"model.pth \({len(begins)} bytes\) cannot be read: {words}") as caught:
        read_checkpoint(tmp_path / "model.pth")
    assert "\n" not in str(caught.value)


def test_text_and_no_file(tmp_path):
    (tmp_path / "notes.pth").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(small_model(), tmp_path / "notes.pth")
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        load_checkpoint(small_model(), tmp_path / "nowhere.pth")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load_checkpoint(small_model(), tmp_path)

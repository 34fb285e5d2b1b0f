"""The trunks: rows and channels of their maps, names of their weights, ImageNet weights from a file and by name."""

import re
import sys
import urllib.error

import pytest
import torch
import torchvision

from reidops_models import AlignedReID, MuDeepV2, load_checkpoint
from reidops_models.backbones import BACKBONES, LEAST_PIXELS, backbone_of

DIMS = {
    "resnet18": 512,
    "resnet34": 512,
    "densenet121": 1024,
    "shufflenet": 1024,
    "inceptionv4": 1536,
    "inception": 1536,
}
NETWORKS = {"resnet18": "resnet18", "densenet121": "densenet121", "shufflenet": "shufflenet_v2_x1_0"}


def inception_or_skip(backbone):
    if backbone.startswith("inception"):
        pytest.importorskip("timm", reason="Inception-v4 is timm's")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_comes_back_of_every_backbone(backbone):
    inception_or_skip(backbone)
    dim, stripes = DIMS.get(backbone, 2048), 6 if backbone.startswith("inception") else 8
    with torch.device("meta"):
        model, images = AlignedReID(7, backbone, local_dim=32), torch.rand(2, 3, 256, 128)
        output = model(images)
        evaluated = {s: AlignedReID(7, backbone, 32, stripes=s).eval()(images)[1].shape for s in ("trunk", "branch")}
    assert output.logits.shape == (2, 7)
    assert output.global_features.shape == (2, dim)
    assert output.local_features.shape == (2, stripes, 32)
    assert evaluated == {"trunk": (2, stripes, dim), "branch": (2, stripes, 32)}
    assert backbone_of(model.state_dict()) == ("inceptionv4" if backbone == "inception" else backbone)


def test_inception_has_eight_rows_from_299_pixels_on():
    pytest.importorskip("timm", reason="Inception-v4 is timm's")
    with torch.device("meta"):
        assert AlignedReID(7, "inceptionv4")(torch.rand(2, 3, 299, 128)).local_features.shape == (2, 8, 128)


@pytest.mark.parametrize(("backbone", "least"), LEAST_PIXELS.items())
def test_images_too_small_for_a_trunk(backbone, least):
    inception_or_skip(backbone)
    with torch.device("meta"):
        model = AlignedReID(7, backbone)
        assert model(torch.rand(2, 3, least, least)).local_features.shape[1] == 1
        for height, width in ((least - 1, least), (least, least - 1)):
            with pytest.raises(ValueError, match=f"at least {least} x {least} pixels .*'{backbone}', got {height} x"):
                model(torch.rand(2, 3, height, width))


def test_without_timm_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="backbone 'inceptionv4' is timm's, .*: pip install timm$"):
        AlignedReID(7, "inceptionv4")


@pytest.mark.parametrize("backbone", NETWORKS)
def test_imagenet_weights_fill_the_trunk_alone(tmp_path, backbone):
    network = getattr(torchvision.models, NETWORKS[backbone])(weights=None).eval()
    # torchvision's file of DenseNet-121 has names of before torch 0.4
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))(\d)")
    torch.save({old.sub(r"\1.\2", name): x for name, x in network.state_dict().items()}, tmp_path / "imagenet.pth")
    model = AlignedReID(7, backbone).eval()
    rest = {name: x.clone() for name, x in model.state_dict().items() if not name.startswith("base.")}
    load_checkpoint(model, tmp_path / "imagenet.pth")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in rest.items())
    images = torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        maps = model.base(images)
        pooled = (maps.relu() if backbone == "densenet121" else maps).mean(dim=(2, 3))
        head = network.classifier if backbone == "densenet121" else network.fc
        torch.testing.assert_close(head(pooled), network(images))


def test_imagenet_weights_of_inception(tmp_path):
    timm = pytest.importorskip("timm", reason="Inception-v4 is timm's")
    network = timm.create_model("inception_v4", pretrained=False)
    torch.save(network.state_dict(), tmp_path / "inceptionv4.pth")
    model = load_checkpoint(AlignedReID(7, "inceptionv4"), tmp_path / "inceptionv4.pth")
    assert torch.equal(model.base[21].branch3[1].conv.weight, network.features[21].branch3[1].conv.weight)
    # The published class calls the trunk "features".
    published = {name.replace("base.", "features."): tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": published, "epoch": 3, "rank1": 0.5}, tmp_path / "checkpoint_ep4.pth.tar")
    again = load_checkpoint(AlignedReID(7, "inception"), tmp_path / "checkpoint_ep4.pth.tar")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_imagenet_weights_of_another_network_are_refused(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match="missing: base.conv0.*the file looks like ImageNet weights of resnet18, and"):
        load_checkpoint(AlignedReID(7, "densenet121"), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match="ImageNet weights of resnet18, and the model is MuDeep_v2 on resnet34"):
        load_checkpoint(MuDeepV2(7, backbone="resnet34"), tmp_path / "resnet18.pth")


@pytest.mark.parametrize("make", [lambda: AlignedReID(7, "resnet18"), lambda: MuDeepV2(7, backbone="resnet18")])
def test_imagenet_weights_that_do_not_fit_are_listed_as_in_the_file(tmp_path, make):
    state = torchvision.models.resnet18(weights=None).state_dict()
    odd = {"layer1.2.conv1.weight": torch.ones(2), "bn1.bias": torch.ones(3), "bn.bias": torch.ones(2)}
    torch.save(state | odd, tmp_path / "resnet18.pth")
    with pytest.raises(ValueError) as caught:
        load_checkpoint(make(), tmp_path / "resnet18.pth")
    assert "unexpected: layer1.2.conv1.weight, bn.bias; wrong shape: bn1.bias (3,) for (64,)" in str(caught.value)


def torchreid_file(backbone, folder):
    """A network trained by torchreid on 751 identities: its classifier is called so whatever the network is."""
    network = getattr(torchvision.models, NETWORKS[backbone])(weights=None)
    state = {name: x for name, x in network.state_dict().items() if not name.startswith(("fc.", "classifier."))}
    state |= {"classifier.weight": torch.rand(751, 16), "classifier.bias": torch.rand(751)}
    torch.save({"state_dict": state}, folder / "model.pth.tar-60")
    return folder / "model.pth.tar-60", state


@pytest.mark.parametrize("backbone", NETWORKS)
def test_a_classifier_that_is_not_imagenets_is_not_dropped_unasked(tmp_path, backbone):
    path, state = torchreid_file(backbone, tmp_path)
    model = AlignedReID(7, backbone)
    with pytest.raises(ValueError, match=rf"another program \(torchreid\?\) on {backbone}, .*--replace-classifier"):
        load_checkpoint(model, path)
    load_checkpoint(model, path, replace_classifier=True)
    last = [name for name in state if name.endswith("running_mean")][-1]
    assert torch.equal([x for name, x in model.base.state_dict().items() if "running_mean" in name][-1], state[last])


def test_a_head_of_other_classes_is_not_imagenets(tmp_path):
    torch.save(torchvision.models.resnet18(num_classes=751).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match="another program .* on resnet18"):
        load_checkpoint(MuDeepV2(7, backbone="resnet18"), tmp_path / "resnet18.pth")
    load_checkpoint(MuDeepV2(7, backbone="resnet18"), tmp_path / "resnet18.pth", replace_classifier=True)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder of torch, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)

    def download(*_):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize(
    "name",
    ["imagenet", "IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1", "DEFAULT", "ResNet18_Weights.DEFAULT",
     torchvision.models.ResNet18_Weights.DEFAULT],
)  # fmt: skip
def test_named_weights_come_from_the_cache(cache, name):
    network = torchvision.models.resnet18(weights=None)
    torch.save(network.state_dict(), cache / "resnet18-f37072fd.pth")
    assert torch.equal(AlignedReID(7, "resnet18", weights=name).base[0].weight, network.conv1.weight)
    model = load_checkpoint(MuDeepV2(7, backbone="resnet18", num_scales=2), name)
    assert torch.equal(model.layer4_2[1].conv2.weight, network.layer4[1].conv2.weight)


def test_named_weights_are_downloaded_once_asked_for(cache, monkeypatch, capsys):
    asked = []

    def download(url, path, digest):
        asked.append((url, digest))
        torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        AlignedReID(7, "resnet18", weights="imagenet")
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd")]
    assert capsys.readouterr().out.count("downloading ImageNet weights ResNet18_Weights.IMAGENET1K_V1 from") == 1


def test_named_weights_that_cannot_be_had(cache):
    with pytest.raises(OSError, match=r"resnet50-11ad3fa6.pth and cannot be downloaded \(.*no network.*put it there"):
        AlignedReID(7, "resnet50", weights="IMAGENET1K_V2")
    with pytest.raises(ValueError, match="IMAGENET1K_V2 are none of resnet18's: it has ResNet18_Weights.IMAGENET1K_V1"):
        AlignedReID(7, "resnet18", weights="IMAGENET1K_V2")
    with pytest.raises(ValueError, match="ResNet50_Weights.IMAGENET1K_V1 are none of resnet18's"):
        AlignedReID(7, "resnet18", weights="ResNet50_Weights.IMAGENET1K_V1")
    with pytest.raises(OSError, match=r"ResNet50_Weights.IMAGENET1K_V2 are not at .*resnet50-11ad3fa6.pth"):
        AlignedReID(7, "resnet50", weights="DEFAULT")
    with pytest.raises(TypeError, match="should be a file's path or a name of ImageNet weights, got int"):
        AlignedReID(7, "resnet18", weights=3)
    with pytest.raises(ValueError, match="those of a backbone, and Linear names none"):
        load_checkpoint(torch.nn.Linear(2, 2), "imagenet")
    (cache / "resnet18-f37072fd.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"resnet18-f37072fd.pth \(0 bytes\) cannot be read: it is empty"):
        AlignedReID(7, "resnet18", weights="imagenet")

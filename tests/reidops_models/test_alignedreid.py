"""The AlignedReID model: what it returns in each mode, the names of its parameters, its gradients."""

import pytest
import torch
import torchvision
from torch.nn import functional

import reidops
from reidops_models import AlignedReID, AlignedReIDOutput

FEATURES = {"resnet18": 512, "resnet50": 2048}


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.parametrize(("height", "stripes"), [(64, 2), (256, 8)])
def test_shapes(backbone, height, stripes):
    model, images = AlignedReID(7, backbone), torch.rand(2, 3, height, 64)
    output = model(images)
    assert isinstance(output, AlignedReIDOutput)
    assert output.logits.shape == (2, 7)
    assert output.global_features.shape == (2, FEATURES[backbone])
    assert output.local_features.shape == (2, stripes, 128)
    global_features, local_features = model.eval()(images)
    assert global_features.shape == (2, FEATURES[backbone])
    assert local_features.shape == (2, stripes, FEATURES[backbone])


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_last_stride_one_doubles_the_stripes(backbone):
    model = AlignedReID(7, backbone, last_stride=1)
    assert model(torch.rand(2, 3, 64, 32)).local_features.shape == (2, 4, 128)


def test_evaluation_features_are_those_of_the_definition():
    model = AlignedReID(7, "resnet18").eval()
    images = torch.rand(3, 3, 96, 64)
    with torch.no_grad():
        feature_map = model.base(images)
        global_features, local_features = model(images)
    torch.testing.assert_close(global_features, functional.adaptive_avg_pool2d(feature_map, 1).flatten(1))
    pooled = functional.adaptive_max_pool2d(feature_map, (3, 1)).squeeze(3)
    torch.testing.assert_close(local_features, (pooled / pooled.norm(dim=1, keepdim=True)).transpose(1, 2))


def test_training_stripes_pass_norm_and_convolution():
    model = AlignedReID(7, "resnet18")
    images = torch.rand(3, 3, 96, 64)
    output = model(images)
    pooled = functional.adaptive_max_pool2d(functional.relu(model.bn(model.base(images))), (3, 1))
    expected = functional.normalize(model.conv1(pooled).squeeze(3), dim=1).transpose(1, 2)
    torch.testing.assert_close(output.local_features, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.local_features.norm(dim=2), torch.ones(3, 3))
    torch.testing.assert_close(output.logits, model.classifier(output.global_features))


def test_every_parameter_gets_a_gradient():
    model = AlignedReID(7, "resnet18")
    output = model(torch.rand(4, 3, 64, 32))
    weights = torch.randn_like(output.local_features)
    (output.logits.square().mean() + output.global_features.mean() + (output.local_features * weights).sum()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_parameters_carry_the_published_names():
    names = set(AlignedReID(7, "resnet50").state_dict())
    assert {"base.0.weight", "base.1.running_mean", "base.4.0.conv1.weight", "base.7.2.bn3.bias"} <= names
    assert {name for name in names if not name.startswith("base.")} == {
        "classifier.weight", "classifier.bias", "conv1.weight", "conv1.bias",
        "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked",
    }  # fmt: skip


def test_imagenet_weights_fill_the_trunk(tmp_path):
    trunk = torchvision.models.resnet18(weights=None)
    torch.save(trunk.state_dict(), tmp_path / "resnet18.pth")
    model = AlignedReID(7, "resnet18", weights=tmp_path / "resnet18.pth")
    torch.testing.assert_close(model.base[4][1].conv2.weight, trunk.layer1[1].conv2.weight, rtol=0, atol=0)
    with pytest.raises(
        ValueError,
        match="missing: base.4.0.conv3.*ImageNet weights of resnet18, and the model is AlignedReID on resnet50",
    ):
        AlignedReID(7, "resnet50", weights=tmp_path / "resnet18.pth")
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        AlignedReID(7, "resnet18", weights=tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes .* got 0"),
        ({"backbone": "vgg"}, "backbone .* got 'vgg'"),
        ({"local_dim": 0}, "local_dim .* got 0"),
        ({"last_stride": 3}, "last_stride .* got 3"),
        ({"last_stride": 1, "backbone": "densenet121"}, "last_stride=1 is for resnet18.* got backbone 'densenet121'"),
        ({"stripes": "conv1"}, "stripes should be 'trunk' or 'branch', got 'conv1'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        AlignedReID(**{"num_classes": 7, **options})


def test_double_precision_reaches_the_loss():
    model = AlignedReID(4, "resnet18").double()
    output = model(torch.rand(4, 3, 64, 32, dtype=torch.float64))
    assert output.local_features.dtype == torch.float64
    losses = reidops.losses.AlignedTripletLoss()(output.global_features, output.local_features, torch.arange(4) // 2)
    assert losses.local_loss.dtype == torch.float64

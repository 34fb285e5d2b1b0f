"""The published AlignedReID classes once more, in plain PyTorch, and the files they are saved to.

They differ in how they evaluate: ResNet-50 takes its stripes straight from the trunk; ResNet-101, DenseNet-121 and
Inception-v4 send them through the local branch, where they have one.
"""

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional


class PlainAlignedReID(nn.Module):
    def __init__(self, classes, backbone="resnet50", aligned=True):
        super().__init__()
        self.through_branch = aligned and backbone != "resnet50"
        network = getattr(torchvision.models, backbone)(weights=None)
        dense = hasattr(network, "features")
        dim = network.classifier.in_features if dense else network.fc.in_features
        self.base = network.features if dense else nn.Sequential(*list(network.children())[:-2])
        self.classifier = nn.Linear(dim, classes)
        if aligned:
            self.bn = nn.BatchNorm2d(dim)
            self.conv1 = nn.Conv2d(dim, 128, 1)

    def forward(self, images):
        found = self.base(images)
        rows = self.conv1(_rows(functional.relu(self.bn(found)))) if self.through_branch else _rows(found)
        rows = rows.flatten(2)
        rows = rows / (rows**2).sum(dim=1, keepdim=True).sqrt()
        return functional.avg_pool2d(found, found.shape[2:]).flatten(1), rows.permute(0, 2, 1)


def _rows(found):
    return functional.max_pool2d(found, (1, found.shape[3]))


def random_published(**options):
    """One in evaluation mode with running statistics and affine parts drawn at random, features near 1 in size."""
    model = PlainAlignedReID(751, **options).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(1, 3)
            elif name.endswith("running_mean") or (name.endswith("bias") and "classifier" not in name):
                tensor.uniform_(-0.2, 0.2)
    return model


def save_published(model, path, monkeypatch, parallel=True):
    """A checkpoint as the published program and torch 0.4 write it: from a GPU, in the file format without a zip."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    state = (nn.DataParallel(model) if parallel else model).state_dict()
    content = {"state_dict": state, "rank1": np.float32(0.918), "epoch": 299}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    monkeypatch.undo()

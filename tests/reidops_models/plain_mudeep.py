"""MuDeep_v2 once more, as its published program computes it, in plain functions of a state dict in its naming.

The attention is made with the whole matrix of channels and over the whole map, which is pooled afterwards; nothing is
shared with `reidops_models`. Takes any weights: number of scales, blocks and channels follow from the names.
"""

import torch
from torch.nn import functional


def plain_mudeep(state, images, training=False):
    """Features (B, feature_dim) and logits (B, classes) of every branch, scale by scale, without dropout.

    Args:
        state: names of the published network, with or without "module.", to tensors.
        images: (B, 3, height, width).
        training: normalise by the batch rather than by the running statistics.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    maps = _Network(state, training).maps(images)
    features, logits = [], []
    for scale, whole in enumerate(maps, start=1):
        regions = [functional.adaptive_avg_pool2d(whole, (1, 1))]
        regions += functional.adaptive_avg_pool2d(whole, (3, 1)).split(1, dim=2)
        for name, region in zip(["", "_1", "_2", "_3"], regions, strict=True):
            prefix, network = f"scale{scale}{name}", _Network(state, training)
            reduced = network.convolution(f"{prefix}.feature.conv1", region)
            feature = functional.relu(network.norm(f"{prefix}.feature.bn", reduced)).flatten(1)
            features.append(feature)
            weights = state[f"{prefix}.classifier.fc.weight"], state[f"{prefix}.classifier.fc.bias"]
            logits.append(functional.linear(feature, *weights))
    return features, logits


class _Network:
    def __init__(self, state, training):
        self.state, self.training = state, training

    def maps(self, images):
        """The scales' feature maps after the attention."""
        found = functional.relu(self.norm("conv.bn", self.convolution("conv.conv", images, 2, 3)))
        found = functional.max_pool2d(found, 3, 2, 1)
        for stage, stride in (("layer1", 1), ("layer2", 2), ("layer3", 2)):
            found = self.stage(stage, found, stride)
        count = max(scale for scale in (1, 2, 3) if any(name.startswith(f"layer4_{scale}.") for name in self.state))
        scales = [self.block("layer4_1", found, 1), *(self.stage(f"layer4_{n}", found, 1) for n in range(2, count + 1))]
        if "conv_all.conv1.weight" not in self.state:
            return scales
        leader = self.convolution("conv_all.conv1", torch.cat(scales, dim=1))
        leader = functional.relu(self.norm("conv_all.bn1", leader))
        return [self.attend(n, leader, scale) for n, scale in enumerate(scales, start=1)]

    def attend(self, number, leader, scale):
        query = self.convolution(f"atten{number}.feature1.conv1", leader).flatten(2)
        key = self.convolution(f"atten{number}.feature2.conv1", leader).flatten(2)
        attention = torch.softmax(torch.bmm(query, key.permute(0, 2, 1)), dim=2)
        mixed = torch.bmm(attention, scale.flatten(2)).reshape(scale.shape)
        return self.state[f"gamma{number}"] * mixed + scale

    def stage(self, name, found, stride):
        blocks = sorted({int(key.split(".")[1]) for key in self.state if key.startswith(f"{name}.")})
        for block in blocks:
            found = self.block(f"{name}.{block}", found, stride if block == 0 else 1)
        return found

    def block(self, name, found, stride):
        shortcut = found
        if f"{name}.downsample.0.weight" in self.state:
            shortcut = self.norm(f"{name}.downsample.1", self.convolution(f"{name}.downsample.0", found, stride))
        if f"{name}.conv3.weight" in self.state:
            found = functional.relu(self.norm(f"{name}.bn1", self.convolution(f"{name}.conv1", found)))
            found = functional.relu(self.norm(f"{name}.bn2", self.convolution(f"{name}.conv2", found, stride, 1)))
            found = self.norm(f"{name}.bn3", self.convolution(f"{name}.conv3", found))
        else:
            found = functional.relu(self.norm(f"{name}.bn1", self.convolution(f"{name}.conv1", found, stride, 1)))
            found = self.norm(f"{name}.bn2", self.convolution(f"{name}.conv2", found, 1, 1))
        return functional.relu(found + shortcut)

    def convolution(self, name, found, stride=1, padding=0):
        return functional.conv2d(found, self.state[f"{name}.weight"], stride=stride, padding=padding)

    def norm(self, name, found):
        statistics = self.state[f"{name}.running_mean"].clone(), self.state[f"{name}.running_var"].clone()
        affine = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return functional.batch_norm(found, *statistics, *affine, training=self.training)

"""Residual networks for 32x32 images, ResNet-32 (narrow and wide) and ResNet-34 with a CIFAR stem; and torchvision's
for 224x224 images.

"ResNet-32" names two networks in this field. The narrow one (16-32-64 channels, He et al. 2015,
section 4.2) has 0.46 M weights; the wide one (64-128-256) has 7.4 M. The numbers of the weight
balancing paper come from neither: its network is a ResNet-34 whose stem is one 3x3 convolution.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, figure 5 left).

    Args:
        stride: of the first convolution.
        projection: True for a 1x1 convolution where the shapes differ (option B), False to
            subsample and pad with zero channels, which has no weights (option A).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - in_channels
        self.downsample = None
        if projection and (stride != 1 or self.new_channels):
            conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def shortcut(self, x: Tensor) -> Tensor:
        """Bring the input [B, in_channels, H, W] to the shape of the output."""
        if self.downsample is not None:
            return self.downsample(x)
        if self.stride == 1 and not self.new_channels:
            return x
        before = self.new_channels // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, channels, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class CifarResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks, global average pooling and a linear classifier.

    Args:
        num_classes: C, the rows of the classifier.
        widths: channels of each stage; every stage but the first halves the resolution.
        depths: blocks of each stage.
        projection: the kind of shortcut, see `BasicBlock`.
    """

    def __init__(self, num_classes: int, widths: Sequence[int], depths: Sequence[int], projection: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
        )
        blocks, in_channels = [], widths[0]
        for stage, (channels, depth) in enumerate(zip(widths, depths, strict=True)):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(in_channels, channels, stride, projection))
                in_channels = channels
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(in_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features of normalised images."""
        x = self.stem(x)  # [B, 3, H, W] -> [B, widths[0], H, W]
        x = self.blocks(x)  # [B, D, H / 4, W / 4] with three stages, H / 8 with four
        return x.mean((2, 3))  # [B, D]

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images [B, 3, H, W] to logits [B, C]."""
        return logits_of(self.classifier, self.features(x))


def logits_of(classifier: nn.Linear, features: Tensor) -> Tensor:
    """Logits [B, C] of features [B, D], in the classifier's own precision where the rest is autocast.

    In bfloat16 a logit has eight bits, so that classes tie, and the one with the lower index gets the answer.
    """
    kind = features.device.type
    exact = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
    with exact:
        return classifier(features.to(classifier.weight.dtype))


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [..., D] at unit length; rows of zeros stay zeros.

    Those whose squares would under- or overflow are scaled by a power of two first, which rounds nothing.
    """
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    largest = rows.detach().abs().amax(-1, keepdim=True)
    scale = torch.ones_like(largest).masked_fill(largest > 1e15, 2.0**-80)
    scale = scale.masked_fill((largest < 1e-15) & (largest > 0), 2.0**80)
    return F.normalize(rows * scale, dim=-1, eps=torch.finfo(torch.float32).tiny)


class CosineClassifier(nn.Linear):
    """Logits that are cosines between features and weights, times a scale (Cao et al. 2019, for LDAM)."""

    scale = 30.0

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, D] to [B, C]."""
        return self.scale * F.linear(unit_rows(features), unit_rows(self.weight))


class Trunk(nn.Module):
    """A network without its last blocks: what stays frozen while they learn.

    Args:
        model: shares its weights, which stop to ask for gradients.
        blocks: how many are left out.
    """

    def __init__(self, model: "Network", blocks: int) -> None:
        super().__init__()
        self.stem, self.blocks = model.stem, model.blocks[: len(model.blocks) - blocks]
        self.requires_grad_(False)

    def features(self, x: Tensor) -> Tensor:
        """Maps [B, D, H, W] that the last blocks take, of normalised images [B, 3, H, W]."""
        return self.blocks(self.stem(x))


class LastLayers(nn.Module):
    """The last blocks of a trained network, whose last layers learn (the paper's section 5.3, "last 2 layers").

    A layer is a convolution with its batch-norm, counted from the classifier, which is the first.

    Args:
        model: shares its weights; all but the last layers' stop to ask for gradients.
        layers: how many learn, the classifier included.
        blocks: how many of the last blocks are here; None for those with a layer that learns.
        drifts: False keeps batch-norm in evaluation mode; True lets it normalise by the batch's statistics while
            its running ones drift, in frozen layers too, as the released code does.
        from_images: True begins with the frozen trunk; False takes the maps that `Trunk.features` gives.

    Raises:
        ValueError: the network has fewer layers in its blocks (the stem never learns), or the blocks fewer.
    """

    def __init__(
        self, model: "Network", layers: int, blocks: int | None = None, drifts: bool = False, from_images: bool = False
    ) -> None:
        super().__init__()
        found = [layer for block in model.blocks for layer in layers_of(block)]
        if not 1 <= layers <= len(found) + 1:
            raise ValueError(f"layers: must be 1 to {len(found) + 1}, got {layers}")
        learning = found[len(found) - layers + 1 :]
        needed = sum(any(layer in learning for layer in layers_of(block)) for block in model.blocks)
        blocks = needed if blocks is None else blocks
        if not needed <= blocks <= len(model.blocks):
            raise ValueError(f"blocks: must be {needed} to {len(model.blocks)} for {layers} layers, got {blocks}")
        self.trunk = Trunk(model, blocks) if from_images else None
        self.blocks = model.blocks[len(model.blocks) - blocks :].requires_grad_(False)
        self.classifier = model.classifier.requires_grad_(True)
        self.drifts = drifts
        for module in (module for layer in learning for module in layer):
            module.requires_grad_(True)

    def train(self, mode: bool = True) -> "LastLayers":
        """Training mode only where batch-norm drifts."""
        return super().train(mode and self.drifts)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, D, H, W], or normalised images [B, 3, H, W], to logits [B, C]."""
        maps = self.trunk.features(x) if self.trunk is not None else x
        return logits_of(self.classifier, self.blocks(maps).mean((2, 3)))


def layers_of(block: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """A block's convolutions, each with the batch-norm behind it; those of a shortcut do not count."""
    parts = [
        module
        for name, module in block.named_modules()
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) and "downsample" not in name
    ]
    return list(zip(parts[::2], parts[1::2], strict=True))


class ImageNetResNet(nn.Module):
    """torchvision's network for 224x224 images, its last layer named `classifier`.

    Args:
        num_classes: C, the rows of the classifier.
        architecture: torchvision's name of it.
    """

    def __init__(self, num_classes: int, architecture: str) -> None:
        super().__init__()
        from torchvision.models import get_model  # here, as torchvision alone takes two seconds to import

        self.backbone = get_model(architecture, weights=None, num_classes=num_classes)
        self.classifier = self.backbone.fc
        self.backbone.fc = nn.Identity()

    @property
    def stem(self) -> nn.Sequential:
        """All before the first block."""
        net = self.backbone
        return nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)

    @property
    def blocks(self) -> nn.Sequential:
        """The bottleneck blocks of all stages, one after another."""
        net = self.backbone
        return nn.Sequential(*net.layer1, *net.layer2, *net.layer3, *net.layer4)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features of normalised images."""
        return self.backbone(x)  # [B, 3, H, W] -> [B, 2048]

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images [B, 3, H, W] to logits [B, C]."""
        return logits_of(self.classifier, self.features(x))


BACKBONES = {
    "resnet32": {"widths": (16, 32, 64), "depths": (5, 5, 5), "projection": False},
    "resnet32-wide": {"widths": (64, 128, 256), "depths": (5, 5, 5), "projection": False},
    "resnet34": {"widths": (64, 128, 256, 512), "depths": (3, 4, 6, 3), "projection": True},
    "resnext50": {"architecture": "resnext50_32x4d"},
    "resnet50": {"architecture": "resnet50"},
    "resnet152": {"architecture": "resnet152"},
}
CIFAR_BACKBONES = tuple(name for name, about in BACKBONES.items() if "widths" in about)
Network = CifarResNet | ImageNetResNet


def build_model(backbone: str, num_classes: int, seed: int = 0, cosine: bool = False) -> Network:
    """Make a freshly initialised network, the same weights for the same seed; the global random state is left alone.

    Args:
        backbone: a key of `BACKBONES`.
        num_classes: C.
        cosine: whether the classifier is a `CosineClassifier`.

    Raises:
        KeyError: the backbone is not known.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs' too
        kind = CifarResNet if backbone in CIFAR_BACKBONES else ImageNetResNet
        model = kind(num_classes, **BACKBONES[backbone])
        if cosine:
            model.classifier = CosineClassifier(model.classifier.in_features, num_classes)
        return model


def is_large(backbone: str) -> bool:
    """Whether a backbone has millions of weights."""
    return backbone != "resnet32"


def count_parameters(model: nn.Module) -> int:
    """Number of trained weights, batch-norm's included."""
    return sum(parameter.numel() for parameter in model.parameters())


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A classifier with copies of this weight [C, D] and bias [C] or None, of their type; nothing is drawn from the
    global generator."""
    like = {"device": weight.device, "dtype": weight.dtype}
    classifier = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, **like)
    given = {"weight": weight, "bias": bias}
    classifier.load_state_dict({name: values.detach() for name, values in given.items() if values is not None})
    return classifier


def copy_classifier(model: Network) -> nn.Linear:
    """A classifier of its own with the first stage's weights, where the second stage starts.

    A cosine one becomes linear, without bias: its unit rows times its scale, for the features of `frozen_features`.
    """
    if isinstance(model.classifier, CosineClassifier):
        return linear(model.classifier.scale * unit_rows(model.classifier.weight))
    return linear(model.classifier.weight, model.classifier.bias)


def frozen_features(model: Network | Trunk, x: Tensor) -> Tensor:
    """What the second stage learns from, float32: a network's features, at unit length before a cosine classifier."""
    features = model.features(x).float()
    cosine = isinstance(getattr(model, "classifier", None), CosineClassifier)
    return unit_rows(features) if cosine else features


def restore(
    backbone: str, num_classes: int, weights: Mapping[str, Tensor], device: torch.device | str = "cpu"
) -> Network:
    """A trained network on a device, in channels-last memory; its classifier is a cosine one where the weights' is.

    Raises:
        RuntimeError: the weights are another network's.
    """
    model = build_model(backbone, num_classes, cosine="classifier.bias" not in weights)
    model.load_state_dict(weights)
    return model.to(device, memory_format=torch.channels_last)

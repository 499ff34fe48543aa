"""The architectures of `lagrangian_jax.models` in PyTorch, under the names that published weights have."""

import torch
from torch import nn
from torch.nn import functional as F

RELU, SWISH = F.relu, F.silu


def conv(inputs, outputs, size, stride=1, padding=None):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2 if padding is None else padding, bias=False)


class Residual(nn.Module):
    """Convolutions with normalisation; a ReLU between them and after the sum."""

    def __init__(self, inputs, layers, stride, shortcut):
        super().__init__()
        self.count, self.stride, self.name = len(layers), stride, shortcut
        outputs = layers[-1][0]
        previous = inputs
        for i, (features, size, step) in enumerate(layers, start=1):
            self.add_module(f"conv{i}", conv(previous, features, size, step))
            self.add_module(f"bn{i}", nn.BatchNorm2d(features))
            previous = features
        self.extra = outputs - inputs
        if (stride > 1 or self.extra) and shortcut:
            self.add_module(shortcut, nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)))

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(y))
            y = RELU(y) if i < self.count else y
        if self.stride > 1 or self.extra:
            if self.name:
                x = self.get_submodule(self.name)(x)
            else:  # option A
                x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return RELU(x + y)


class ResNet(nn.Module):
    def __init__(self, stages, width=64, classes=10, imagenet=False, bottleneck=False, option_a=False):
        super().__init__()
        self.imagenet, self.stages = imagenet, len(stages)
        self.conv1 = conv(3, width, 7, 2) if imagenet else conv(3, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        shortcut = "" if option_a else "downsample" if imagenet else "shortcut"
        inputs = width
        for stage, count in enumerate(stages):
            blocks, features = [], width * 2**stage
            for index in range(count):
                stride = 2 if stage and not index else 1
                basic = [(features, 3, stride), (features, 3, 1)]
                layers = [(features, 1, 1), (features, 3, stride), (4 * features, 1, 1)] if bottleneck else basic
                blocks.append(Residual(inputs, layers, stride, shortcut))
                inputs = layers[-1][0]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.add_module("fc" if imagenet else "linear", nn.Linear(inputs, classes))

    def forward(self, x):
        x = RELU(self.bn1(self.conv1(x)))
        if self.imagenet:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.get_submodule("fc" if self.imagenet else "linear")(x.mean((2, 3)))


class PreActivation(nn.Module):
    """Normalisation, activation, convolution, twice.

    ``names`` are those of the norms, the convolutions and the shortcut. ``shortcut_of`` ("input" or "activated") says
    what a convolution in the shortcut sees, ``when`` ("changed" or "wider") which blocks have one.
    """

    def __init__(self, inputs, outputs, stride, names, act, shortcut_of, when="changed", shortcut_size=1, same=False):
        super().__init__()
        (norm1, norm2), (conv1, conv2), self.shortcut_name = names
        self.names, self.act, self.shortcut_of, self.same = (norm1, norm2, conv1, conv2), act, shortcut_of, same
        self.stride, self.shortcut_size = stride, shortcut_size
        padding = 0 if same else None
        self.add_module(norm1, nn.BatchNorm2d(inputs))
        self.add_module(conv1, conv(inputs, outputs, 3, stride, padding))
        self.add_module(norm2, nn.BatchNorm2d(outputs))
        self.add_module(conv2, conv(outputs, outputs, 3))
        self.has_shortcut = inputs != outputs or (when == "changed" and stride > 1)
        if self.has_shortcut:
            name, _, number = self.shortcut_name.partition(".")
            layer = conv(inputs, outputs, shortcut_size, stride, padding)
            self.add_module(name, nn.Sequential(layer) if number else layer)

    def pad(self, x):
        """TensorFlow's SAME for a 3x3 convolution, for even sizes."""
        return F.pad(x, (1, 1, 1, 1) if self.stride == 1 else (0, 1, 0, 1)) if self.same else x

    def forward(self, x):
        norm1, norm2, conv1, conv2 = map(self.get_submodule, self.names)
        y = self.act(norm1(x))
        if self.has_shortcut:
            source = x if self.shortcut_of == "input" else y
            source = self.pad(source) if self.shortcut_size == 3 else source
            x = self.get_submodule(self.shortcut_name)(source)
        return x + conv2(self.act(norm2(conv1(self.pad(y)))))


class Trunk(nn.Module):
    """Stem, groups of blocks, a last normalisation, pooling and a linear layer."""

    def __init__(self, stem, groups, final_norm, head, act, normalised=False):
        super().__init__()
        self.act, self.order = act, (stem[0], [name for name, _ in groups], final_norm and final_norm[0], head[0])
        if normalised:
            self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1))
            self.register_buffer("std", torch.tensor([0.2471, 0.2435, 0.2616]).view(3, 1, 1))
        self.normalised = normalised
        for name, module in [stem, *groups, *([final_norm] if final_norm else []), head]:
            *parents, child = name.split(".")
            holder = self
            for parent in parents:
                if not hasattr(holder, parent):
                    holder.add_module(parent, nn.Module())
                holder = getattr(holder, parent)
            holder.add_module(child, module)

    def forward(self, x):
        stem, groups, final_norm, head = self.order
        if self.normalised:
            x = (x - self.mean) / self.std
        x = self.get_submodule(stem)(x)
        for group in groups:
            x = self.get_submodule(group)(x)
        x = self.act(self.get_submodule(final_norm)(x)) if final_norm else x
        return self.get_submodule(head)(x.mean((2, 3)))


def preact_resnet(stages, width=64, classes=10, shortcut_of="input", final_norm=False):
    names = (("bn1", "bn2"), ("conv1", "conv2"), "shortcut.0")
    groups = [
        (f"layer{i + 1}", blocks)
        for i, blocks in enumerate(_blocks(stages, width, width, names, RELU, shortcut_of=shortcut_of))
    ]
    channels = width * 2 ** (len(stages) - 1)
    norm = ("bn", nn.BatchNorm2d(channels)) if final_norm else None
    return Trunk(("conv1", conv(3, width, 3)), groups, norm, ("linear", nn.Linear(channels, classes)), RELU)


def dm_preact_resnet(stages, width=64, classes=10):
    names = (("batchnorm_0", "batchnorm_1"), ("conv_2d_1", "conv_2d_2"), "shortcut")
    options = dict(shortcut_of="input", shortcut_size=3, same=True)
    groups = [(f"layer_{i}", blocks) for i, blocks in enumerate(_blocks(stages, width, width, names, SWISH, **options))]
    channels = width * 2 ** (len(stages) - 1)
    norm, head = ("batchnorm", nn.BatchNorm2d(channels)), ("logits", nn.Linear(channels, classes))
    return Trunk(("conv_2d", conv(3, width, 3)), groups, norm, head, SWISH, normalised=True)


def wide_resnet(depth, factor, classes=10):
    names = (("bn1", "bn2"), ("conv1", "conv2"), "convShortcut")
    options = dict(shortcut_of="activated", when="wider")
    blocks = _blocks([(depth - 4) // 6] * 3, 16, 16 * factor, names, RELU, **options)
    groups = [(f"block{i + 1}.layer", group) for i, group in enumerate(blocks)]
    channels = 64 * factor
    norm, head = ("bn1", nn.BatchNorm2d(channels)), ("fc", nn.Linear(channels, classes))
    return Trunk(("conv1", conv(3, 16, 3)), groups, norm, head, RELU)


def dm_wide_resnet(depth, factor, classes=10):
    names = (("batchnorm_0", "batchnorm_1"), ("conv_0", "conv_1"), "shortcut")
    options = dict(shortcut_of="activated", when="wider", same=True)
    blocks = _blocks([(depth - 4) // 6] * 3, 16, 16 * factor, names, SWISH, **options)
    groups = [(f"layer.{i}.block", group) for i, group in enumerate(blocks)]
    channels = 64 * factor
    norm, head = ("batchnorm", nn.BatchNorm2d(channels)), ("logits", nn.Linear(channels, classes))
    return Trunk(("init_conv", conv(3, 16, 3)), groups, norm, head, SWISH, normalised=True)


def _blocks(stages, inputs, width, names, act, **options):
    for stage, count in enumerate(stages):
        blocks = []
        for index in range(count):
            stride = 2 if stage and not index else 1
            blocks.append(PreActivation(inputs, width * 2**stage, stride, names, act, **options))
            inputs = width * 2**stage
        yield nn.Sequential(*blocks)


class AlexNet(nn.Module):
    """One-column AlexNet: five convolutions, three linear layers, dropout before the first two."""

    def __init__(self, imagenet, width=64, classes=10):
        super().__init__()
        first = nn.Conv2d(3, width, 11, 4, 2) if imagenet else nn.Conv2d(3, width, 3, 2, 1)
        pool = nn.MaxPool2d(3 if imagenet else 2, 2)
        self.features = nn.Sequential(
            *(first, nn.ReLU(), pool),
            *(nn.Conv2d(width, 3 * width, 5 if imagenet else 3, padding=2 if imagenet else 1), nn.ReLU(), pool),
            *(nn.Conv2d(3 * width, 6 * width, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(6 * width, 4 * width, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(4 * width, 4 * width, 3, padding=1), nn.ReLU(), pool),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6 if imagenet else 2)
        pixels = 36 if imagenet else 4
        self.classifier = nn.Sequential(
            *(nn.Dropout(), nn.Linear(pixels * 4 * width, 64 * width), nn.ReLU()),
            *(nn.Dropout(), nn.Linear(64 * width, 64 * width), nn.ReLU()),
            nn.Linear(64 * width, classes),
        )
        self.register_buffer("shift", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def forward(self, x):
        x = self.avgpool(self.features((x - self.shift) / self.scale))
        return self.classifier(x.flatten(1))


class EntryResidual(Residual):
    """ReLU in front of the first convolution, none after the sum."""

    def forward(self, x):
        y = self.bn2(self.conv2(RELU(self.bn1(self.conv1(RELU(x))))))
        return y + (self.get_submodule(self.name)(x) if self.stride > 1 or self.extra else x)


class AttentionHead(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.conv1, self.bn1 = conv(features, features, 1), nn.BatchNorm2d(features)
        self.conv2, self.bn2 = conv(features, 1, 1), nn.BatchNorm2d(1)
        self.shortcut = nn.Sequential(conv(features, 1, 1), nn.BatchNorm2d(1))

    def forward(self, x):
        return self.bn2(self.conv2(RELU(self.bn1(self.conv1(RELU(x)))))) + self.shortcut(x)


class Segmentation(nn.Module):
    """An image's logits are its pixels' logits, weighted by the foreground in evaluation, by the head in training."""

    def __init__(self, stages=(2, 2, 2, 2), width=64, classes=10):
        super().__init__()
        self.stages = len(stages)
        self.conv1, self.bn1, self.attn0 = conv(3, width, 3), nn.BatchNorm2d(width), AttentionHead(width)
        inputs = width
        for stage, count in enumerate(stages):
            blocks, features = [], width * 2**stage
            for index in range(count):
                stride = 2 if stage and not index else 1
                blocks.append(EntryResidual(inputs, [(features, 3, stride), (features, 3, 1)], stride, "shortcut"))
                inputs = features
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.classify = nn.Sequential(nn.BatchNorm2d(inputs + width), nn.ReLU(), conv(inputs + width, classes, 1))

    def forward(self, x):
        x = stem = self.bn1(self.conv1(x))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        x = F.interpolate(x, stem.shape[2:], mode="bilinear", align_corners=True)
        pixels = self.classify(torch.cat([x, stem], 1))
        weights = torch.sigmoid(self.attn0(stem) if self.training else pixels.logsumexp(1, keepdim=True))
        return (pixels * weights).sum((2, 3)) / weights.sum((2, 3))


# What `lagrangian_jax.models.create` gives, in PyTorch.
PUBLISHED = {
    "resnet18": lambda: ResNet([2, 2, 2, 2]),
    "resnet34": lambda: ResNet([3, 4, 6, 3]),
    "resnet50": lambda: ResNet([3, 4, 6, 3], bottleneck=True),
    "resnet8": lambda: ResNet([1] * 3, 16, option_a=True),
    "resnet20": lambda: ResNet([3] * 3, 16, option_a=True),
    "resnet32": lambda: ResNet([5] * 3, 16, option_a=True),
    "resnet44": lambda: ResNet([7] * 3, 16, option_a=True),
    "resnet56": lambda: ResNet([9] * 3, 16, option_a=True),
    "preact_resnet18": lambda: preact_resnet([2, 2, 2, 2]),
    "dm_preact_resnet18": lambda: dm_preact_resnet([2, 2, 2, 2]),
    "wide_resnet28_10": lambda: wide_resnet(28, 10),
    "wide_resnet34_10": lambda: wide_resnet(34, 10),
    "wide_resnet34_20": lambda: wide_resnet(34, 20),
    "wide_resnet70_16": lambda: wide_resnet(70, 16),
    "dm_wide_resnet28_10": lambda: dm_wide_resnet(28, 10),
    "dm_wide_resnet34_10": lambda: dm_wide_resnet(34, 10),
    "dm_wide_resnet34_20": lambda: dm_wide_resnet(34, 20),
    "dm_wide_resnet70_16": lambda: dm_wide_resnet(70, 16),
    "alexnet_cifar": lambda: AlexNet(imagenet=False),
    "alexnet": lambda: AlexNet(imagenet=True, classes=1000),
    "segmentation": lambda: Segmentation(),
}

"""The same training step in PyTorch, for comparison: ResNet-18, the Lagrangian attack in train mode, SGD.

Written from the algorithm (lagrangian_jax.attacks.lagrangian, lagrangian_jax.step). It takes resident uint8 images and
augments them, as the JAX step does.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet18(width: int = 64, classes: int = 10) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for stage in range(4):
        for index in range(2):
            layers.append(Block(inputs, width * 2**stage, 2 if stage and not index else 1))
            inputs = width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    top, classes = logits.topk(2, dim=1)
    other = torch.where(classes[:, 0] == labels, top[:, 1], top[:, 0])
    return other - logits.gather(1, labels[:, None])[:, 0]


def lagrangian(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, also: tuple[nn.Parameter, ...] = (), steps: int = 5
) -> torch.Tensor:
    """The attack's images; the gradients by ``also`` are computed, too, and thrown away."""
    perturbation = 0.01 * torch.randn_like(images)
    for step in range(steps):
        perturbation.requires_grad_(True)
        logits = network(images + perturbation)
        norm = perturbation.flatten(1).norm(dim=1)
        objective = margin(logits, labels).clamp(max=1.0) - 2.0 * 0.1 ** (1 - step / steps) * norm
        gradient, *_ = torch.autograd.grad(objective.sum(), (perturbation, *also))
        with torch.no_grad():
            unit = gradient / (gradient.abs().amax((1, 2, 3), keepdim=True) + 1e-8)
            perturbation = (images + perturbation + 0.15 * 0.1 ** (step / steps) * unit).clamp(0, 1) - images
    return (images + perturbation).detach()


def build(
    width: int,
    batch: int,
    device: str,
    channels_last: bool,
    bfloat16: bool,
    compiled: bool,
    graph: bool = False,
    statistics: str = "train",
    released: bool = False,
) -> Callable[[], None]:
    """Makes ``step()``, which runs one training step on the next batch.

    Args:
      width: of the network.
      batch: images in a step.
      device: "cpu" or "cuda".
      channels_last: the layout of images and kernels.
      bfloat16: whether to use autocast.
      compiled: whether to ``torch.compile`` the network.
      graph: record the whole step as a CUDA graph and replay it, so that Python no longer launches each kernel.
      statistics: of batch normalisation in the attack, "train" or "eval".
      released: do as the released code, whose ``backward()`` in the attack computes the gradients of the weights, too.
    """
    if device == "cuda":  # as fast as it goes, also in float32: XLA's convolutions and products use TF32, too
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = resnet18(width).to(device, memory_format=layout).train()
    forward = torch.compile(network) if compiled else network
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=2e-4)
    data = torch.randint(0, 256, (10 * batch, 3, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 10, (10 * batch,), device=device)
    position = torch.zeros((), dtype=torch.int64, device=device)  # a graph records no Python numbers
    consecutive = torch.arange(batch, device=device)

    def step() -> None:
        rows = (position + consecutive) % len(data)
        position.add_(batch)
        images = F.pad(data[rows].float() / 255, (4, 4, 4, 4), mode="reflect")
        top, left = torch.randint(0, 9, (2, batch, 1), device=device)
        span = torch.arange(32, device=device)
        flipped = torch.where(torch.rand(batch, 1, device=device) < 0.5, 31 - span, span)
        places = ((top + span)[:, None, :, None], (left + flipped)[:, None, None, :])
        example = torch.arange(batch, device=device)[:, None, None, None]
        images = images[example, torch.arange(3, device=device)[None, :, None, None], *places]
        images = images.contiguous(memory_format=layout)
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            # A compiled backward pass computes the gradients of everything that requires one, asked for or not.
            network.train(statistics == "train").requires_grad_(released)
            adversarial = lagrangian(forward, images, labels[rows], tuple(network.parameters()) if released else ())
            network.train().requires_grad_(True)
            loss = F.cross_entropy(forward(adversarial).float(), labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return recorded(step) if graph else step


def recorded(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph, after a few calls that compile, choose kernels and create the momenta."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay

"""The training steps of the comparison in plain PyTorch: networks, objectives, SGD.

An objective is `(network, frozen, x, y) -> (value, gradients of network's parameters)`; `frozen` is
the same network, on the same tensors, with its running statistics. x requires its gradient.
"""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import peers
import steps
import torch  # pyright: ignore[reportMissingImports]
from ml_collections import ConfigDict
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

from lipreg import data, experiment, models

Objective = Callable[[nn.Module, nn.Module, Any, Any], tuple[Any, tuple[Any, ...]]]


class Block(nn.Module):
    """`act(x + mean over branches of (conv BN act conv BN)(x))`."""

    def __init__(self, first: nn.Module, second: nn.Module, branches: int, activation: Callable):
        super().__init__()
        self.first, self.second = first, second
        self.branches, self.activation = branches, activation

    def forward(self, x: Any) -> Any:
        y = self.second(self.activation(self.first(x)))
        return self.activation(x + sum(y.chunk(self.branches, 1)) / self.branches)


class Unit(nn.Module):
    """`act(BN(conv(x)))`, and 2 x 2 average pooling where the resolution falls."""

    def __init__(self, layer: nn.Module, activation: Callable, pool: bool):
        super().__init__()
        self.layer, self.activation, self.pool = layer, activation, pool

    def forward(self, x: Any) -> Any:
        x = self.activation(self.layer(x))
        return F.avg_pool2d(x, 2) if self.pool else x


class ResNeXt(nn.Module):
    """`lipreg.models.ResNeXt34_2x32` on images `[B, 3, H, W]`; kernels go from HWIO to OIHW."""

    def __init__(self, loaded: experiment.Loaded):
        super().__init__()
        params, state = jax.tree.map(np.array, loaded.logits_fn.args)
        activation = peers.ACTIVATIONS[loaded.config.model.activation]
        numbers = itertools.count()

        def layer(channels: int) -> nn.Module:
            """The next convolution, of so many channels in, and its normalisation."""
            n = next(numbers)
            kernel = params[f"Conv_{n}"]["kernel"].transpose(3, 2, 0, 1)
            wide, narrow, side, _ = kernel.shape
            groups = channels // narrow
            conv = nn.Conv2d(channels, wide, side, padding=side // 2, groups=groups, bias=False)
            weights, norm = params[f"BatchNorm_{n}"], nn.BatchNorm2d(wide)
            if "scale" in weights:
                peers.filled(norm, weights["scale"], weights["bias"])
            else:
                norm.weight, norm.bias.data = None, torch.from_numpy(weights["bias"])
            peers.running(norm, state["batch_stats"][f"BatchNorm_{n}"])
            return nn.Sequential(peers.filled(conv, kernel, None), norm)

        like: Any = models.build("ResNeXt34_2x32", classes=10)
        body, narrow = [Unit(layer(3), activation, pool=False)], like.channels[0]
        for stage, (blocks, channels) in enumerate(zip(like.stages, like.channels, strict=True)):
            if stage:
                body.append(Unit(layer(narrow), activation, pool=True))
            for _ in range(blocks):
                first, second = layer(channels), layer(like.branches * channels)
                body.append(Block(first, second, like.branches, activation))
            narrow = channels
        self.body = nn.Sequential(*body)
        dense = params["Head_0"]["Dense_0"]
        kernel = np.ascontiguousarray(dense["kernel"].T)
        self.head = peers.filled(nn.Linear(*dense["kernel"].shape), kernel, dense["bias"])

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x).mean((2, 3)))


NETWORKS = {"CNN": peers.CNN, "ResNeXt34_2x32": ResNeXt}


def moved(network: str, params: Any, running: Any, activation: str = "relu") -> nn.Module:
    """A network of `steps.NETWORKS` with these weights, in training mode."""
    model = ConfigDict({"name": network, "head": "linear", "activation": activation})
    logits_fn = jax.tree_util.Partial(lambda *_: None, params, running)
    images = data.Dataset(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int32), 10)
    loaded = experiment.Loaded(ConfigDict({"model": model}), logits_fn, images, 0, 0)
    return NETWORKS[network](loaded).requires_grad_(True).train()


def frozen_view(network: nn.Module) -> nn.Module:
    """The same network with its running statistics; it shares every tensor with the first."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors}).eval()


def losses(network: nn.Module, x: Any, y: Any) -> Any:
    return F.cross_entropy(network(x), y, reduction="none")


def slopes(values: Any, x: Any, *, differentiable: bool = False) -> tuple[Any, Any]:
    """Input gradients of a sum of losses, and their Euclidean sizes `[B]`."""
    (grad,) = torch.autograd.grad(values.sum(), x, create_graph=differentiable)
    return grad, torch.linalg.vector_norm(grad.flatten(1), dim=1)


def attacked(frozen: nn.Module, x: Any, y: Any) -> tuple[Any, Any]:
    """`x + eps g / ||g||`, and the sizes of the gradients."""
    grad, sizes = slopes(losses(frozen, x, y), x)
    direction = grad / sizes.clamp(min=1e-30).view(-1, 1, 1, 1)
    return (x + steps.STRENGTH * direction).detach(), sizes


def gradients(network: nn.Module, value: Any) -> tuple[Any, tuple[Any, ...]]:
    """The value and its gradients in the parameters."""
    return value.detach(), torch.autograd.grad(value, list(network.parameters()))


def j0(network: nn.Module, frozen: nn.Module, x: Any, y: Any) -> Any:
    del frozen
    return gradients(network, losses(network, x.detach(), y).mean())


def j2_attack(network: nn.Module, frozen: nn.Module, x: Any, y: Any) -> Any:
    x_adv, _ = attacked(frozen, x, y)
    return gradients(network, losses(network, x_adv, y).mean())


def j2_penalty(network: nn.Module, frozen: nn.Module, x: Any, y: Any) -> Any:
    del frozen
    values = losses(network, x, y)
    _, sizes = slopes(values, x, differentiable=True)
    return gradients(network, (values + steps.STRENGTH * sizes).mean())


def j2_lip(network: nn.Module, frozen: nn.Module, x: Any, y: Any) -> Any:
    """Second derivatives of the example with the largest gradient only."""
    x_adv, sizes = attacked(frozen, x, y)
    top = sizes.argmax().view(1)
    x_top = x[top]
    _, lip = slopes(losses(frozen, x_top, y[top]), x_top, differentiable=True)
    # Before the network runs on the batch, which changes the statistics that the frozen one reads.
    above, of_lip = gradients(frozen, steps.STRENGTH * lip[0])
    value, grads = gradients(network, losses(network, x_adv, y).mean())
    return value + above, tuple(torch._foreach_add(grads, of_lip))


def j2_lip_of_all(network: nn.Module, frozen: nn.Module, x: Any, y: Any) -> Any:
    """The maximum of all sizes, differentiated by batch statistics."""
    x_adv, _ = attacked(frozen, x, y)
    value = losses(network, x_adv, y).mean()
    _, sizes = slopes(losses(network, x, y), x, differentiable=True)
    return gradients(network, value + steps.STRENGTH * sizes.max())


OBJECTIVES: dict[str, Objective] = {
    "j0": j0,
    "j2 by attack": j2_attack,
    "j2 by penalty": j2_penalty,
    "j2_lip": j2_lip,
    "j2_lip of all": j2_lip_of_all,
}


def step(
    objective: Objective, network: nn.Module, frozen: nn.Module, x: Any, y: Any
) -> Callable[[], Any]:
    """A step of SGD: `v <- 0.9 v + g + decay w`, `w <- w - rate v`."""
    weights = list(network.parameters())
    sgd = torch.optim.SGD(weights, steps.RATE, momentum=0.9, weight_decay=steps.DECAY, fused=True)

    def run() -> Any:
        value, grads = objective(network, frozen, x, y)
        for weight, grad in zip(weights, grads, strict=True):
            weight.grad = grad
        sgd.step()
        return value

    return run

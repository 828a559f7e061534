"""The training steps of the comparison in plain PyTorch: objectives and SGD.

An objective is `(network, frozen, x, y) -> (value, gradients of network's parameters)`; `frozen` is
the same network, on the same tensors, with its running statistics. x requires its gradient.
"""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import steps
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

Objective = Callable[[nn.Module, nn.Module, Any, Any], tuple[Any, tuple[Any, ...]]]


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
    above, lip_grads = gradients(frozen, steps.STRENGTH * lip[0])
    value, grads = gradients(network, losses(network, x_adv, y).mean())
    return value + above, tuple(torch._foreach_add(grads, lip_grads))


def j2_lip_full(network: nn.Module, frozen: nn.Module, x: Any, y: Any) -> Any:
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
    "j2_lip of all": j2_lip_full,
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
            weight.grad = laid_out(grad, weight)
        sgd.step()
        return value

    return run


def laid_out(grad: Any, weight: Any) -> Any:
    """In the weight's order of memory, as `backward` accumulates: the fused SGD asks for it."""
    same = grad.stride() == weight.stride()
    return grad if same else torch.empty_like(weight).copy_(grad)

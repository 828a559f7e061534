"""The library's CNN as a torch module, and the attacks of torchattacks and foolbox on it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import foolbox  # pyright: ignore[reportMissingImports]
import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torchattacks  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

from lipreg import experiment
from lipreg.norms import Norm

# `(x [B, C, H, W], y [B]) -> points`, one for each radius tried.
Attack = Callable[[Any, Any], Iterable[Any]]
# `(network, eps) -> attack`.
Peer = Callable[["CNN", float | None], Attack]


def c2relu(x: Any) -> Any:
    """`lipreg.models.c2relu`."""
    z = F.relu(torch.clamp(x, max=0.5) + 0.5)
    return torch.where(x < 0.5, z**3 - 0.5 * z**4, x)


ACTIVATIONS: dict[str, Callable] = {
    "relu": F.relu,
    "softplus": F.softplus,
    "silu": F.silu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "c2relu": c2relu,
}


class CNN(nn.Module):
    """The network of a run, `lipreg.models.CNN`, on images `[B, C, H, W]`.

    Kernels go from HWIO to OIHW and from `[in, out]` to `[out, in]`, and the rows of the first
    dense layer from (row, column, channel) to (channel, row, column).
    """

    def __init__(self, loaded: experiment.Loaded):
        super().__init__()
        model, (rows, columns, _) = loaded.config.model, loaded.dataset.x.shape[1:]
        if model.name != "CNN":
            raise ValueError(f"No torch form of the model {model.name!r}; give runs of the CNN.")
        params, state = jax.tree.map(np.array, loaded.logits_fn.args)
        stats = state.get("batch_stats", {})
        self.activation, self.kind = ACTIVATIONS[model.activation], model.head
        stages = []
        for n in range(sum(name.startswith("Conv_") for name in params)):
            weights = params[f"Conv_{n}"]
            _, _, narrow, wide = weights["kernel"].shape
            conv = nn.Conv2d(narrow, wide, 3, padding=1, bias="bias" in weights)
            layers = [filled(conv, weights["kernel"].transpose(3, 2, 0, 1), weights.get("bias"))]
            if f"BatchNorm_{n}" in params:
                scale, offset = (params[f"BatchNorm_{n}"][name] for name in ("scale", "bias"))
                norm = filled(nn.BatchNorm2d(wide), scale, offset)
                layers.append(running(norm, stats[f"BatchNorm_{n}"]))
            stages.append(nn.Sequential(*layers))
            if min(rows, columns) >= 4:
                rows, columns = rows // 2, columns // 2
        self.stages = nn.ModuleList(stages)
        kernel, bias = params["Dense_0"]["kernel"], params["Dense_0"]["bias"]
        features, hidden = kernel.shape
        kernel = kernel.reshape(rows, columns, -1, hidden).transpose(3, 2, 0, 1)
        kernel = kernel.reshape(hidden, features)
        self.dense = filled(nn.Linear(features, hidden), kernel, bias)
        head = params["Head_0"]
        kernel, bias = head["Dense_0"]["kernel"].T, head["Dense_0"].get("bias")
        last = nn.Linear(hidden, len(kernel), bias=bias is not None)
        layers = [filled(last, kernel, bias)]
        if self.kind != "linear":
            norm = nn.BatchNorm1d(len(kernel), affine=False)
            layers.append(running(norm, stats["Head_0"]["BatchNorm_0"]))
        self.head = nn.Sequential(*layers)
        self.t = torch.from_numpy(np.abs(head["t"])) if self.kind == "tanh" else None
        self.requires_grad_(False).eval()

    def forward(self, x: Any) -> Any:
        for stage in self.stages:
            x = self.activation(stage(x))
            if min(x.shape[2:]) >= 4:
                x = F.avg_pool2d(x, 2)
        logits = self.head(self.activation(self.dense(x.flatten(1))))
        return logits if self.t is None else self.t * torch.tanh(logits / self.t)


def filled(layer: Any, weight: Any, bias: Any) -> Any:
    """A layer with these weights."""
    layer.weight.data = torch.from_numpy(np.ascontiguousarray(weight))
    if bias is not None:
        layer.bias.data = torch.from_numpy(bias)
    return layer


def running(layer: Any, stats: Any) -> Any:
    """A normalisation with these running statistics."""
    layer.running_mean.data = torch.from_numpy(stats["mean"])
    layer.running_var.data = torch.from_numpy(stats["var"])
    return layer


def by_torchattacks(name: str, *, alpha: float | None = None, **options: Any) -> Peer:
    """An attack of torchattacks; the step size `alpha` is a fraction of the radius."""

    def peer(network: CNN, eps: float | None) -> Attack:
        chosen = dict(options)
        if eps is not None:
            chosen |= {"eps": eps} | ({"alpha": alpha * eps} if alpha else {})
        attack = getattr(torchattacks, name)(network, **chosen)
        return lambda x, y: (attack(x, y),)

    return peer


def by_foolbox(name: str, *, radii: Sequence[float] = (), **options: Any) -> Peer:
    """An attack of foolbox: at the radius, or else at each of `radii`, or else without one."""

    def peer(network: CNN, eps: float | None) -> Attack:
        model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
        attack = getattr(foolbox.attacks, name)(**options)
        at = radii if eps is None else [eps]
        if not at:
            return lambda x, y: (attack.run(model, x, y),)
        return lambda x, y: (attack.run(model, x, y, epsilon=r) for r in at)

    return peer


def distance(network: CNN, x: Any, y: Any, points: Iterable[Any], norm: Norm) -> np.ndarray:
    """`lipreg.curves.distance` of the nearest of several points, by the torch network, `[B]`."""
    with torch.no_grad():
        least = torch.where(network(x).argmax(1) == y, torch.inf, 0.0)
    for point in points:
        with torch.no_grad():
            fooled = network(point).argmax(1) != y
            fooled &= ((point >= 0) & (point <= 1)).flatten(1).all(1)  # NaN is neither
            size = torch.linalg.vector_norm((point - x).flatten(1), norm.p, 1)
            least = torch.where(fooled, torch.minimum(least, size), least)
    return least.numpy()

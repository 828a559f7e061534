"""The library's networks as torch modules, with the same weights and statistics."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from ml_collections import ConfigDict
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

from lipreg import datasets, models, runs


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

    Kernels are transposed from HWIO to OIHW and from `[in, out]` to `[out, in]`, the rows of the
    first dense layer from (row, column, channel) to (channel, row, column).
    """

    def __init__(self, loaded: runs.Loaded):
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
        self.sides = rows, columns  # of what the hidden layer sees
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
        self.t = torch.from_numpy(np.asarray(np.abs(head["t"]))) if self.kind == "tanh" else None
        self.requires_grad_(False).eval()

    def forward(self, x: Any) -> Any:
        for stage in self.stages:
            x = self.activation(stage(x))
            if min(x.shape[2:]) >= 4:
                x = F.avg_pool2d(x, 2)
        logits = self.head(self.activation(self.dense(x.flatten(1))))
        return logits if self.t is None else self.t * torch.tanh(logits / self.t)


def returned(network: CNN) -> tuple[Any, Any]:
    """The weights and statistics of a network as the library has them: the way back from `CNN`."""
    array = lambda tensor: tensor.detach().numpy().copy()
    params, stats = {}, {}

    def normalisation(layer: Any) -> dict[str, Any]:
        return {"mean": array(layer.running_mean), "var": array(layer.running_var)}

    for n, (conv, *norm) in enumerate(network.stages):
        params[f"Conv_{n}"] = {"kernel": array(conv.weight).transpose(2, 3, 1, 0)}
        if conv.bias is not None:
            params[f"Conv_{n}"]["bias"] = array(conv.bias)
        for layer in norm:
            scaled = {"scale": array(layer.weight), "bias": array(layer.bias)}
            params[f"BatchNorm_{n}"], stats[f"BatchNorm_{n}"] = scaled, normalisation(layer)
    kernel = array(network.dense.weight)
    kernel = kernel.reshape(len(kernel), -1, *network.sides).transpose(2, 3, 1, 0)
    kernel = kernel.reshape(-1, kernel.shape[-1])
    params["Dense_0"] = {"kernel": kernel, "bias": array(network.dense.bias)}
    last, *norm = network.head
    params["Head_0"] = {"Dense_0": {"kernel": array(last.weight).T}}
    if last.bias is not None:
        params["Head_0"]["Dense_0"]["bias"] = array(last.bias)
    for layer in norm:
        stats["Head_0"] = {"BatchNorm_0": normalisation(layer)}
    if network.t is not None:
        params["Head_0"]["t"] = array(network.t)
    return params, {"batch_stats": stats} if stats else {}


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
    """`lipreg.models.ResNeXt34_2x32` on images `[B, 3, H, W]`, with kernels transposed to OIHW."""

    def __init__(self, loaded: runs.Loaded):
        super().__init__()
        params, state = jax.tree.map(np.array, loaded.logits_fn.args)
        activation = ACTIVATIONS[loaded.config.model.activation]
        numbers = itertools.count()

        def layer(channels: int) -> nn.Module:
            """The next convolution, with `channels` inputs, and its normalisation."""
            n = next(numbers)
            kernel = params[f"Conv_{n}"]["kernel"].transpose(3, 2, 0, 1)
            wide, narrow, side, _ = kernel.shape
            groups = channels // narrow
            conv = nn.Conv2d(channels, wide, side, padding=side // 2, groups=groups, bias=False)
            weights, norm = params[f"BatchNorm_{n}"], nn.BatchNorm2d(wide)
            if "scale" in weights:
                filled(norm, weights["scale"], weights["bias"])
            else:
                # No scale: ones, as without them CUDA's derivative failed under autocast.
                del norm.weight
                norm.register_buffer("weight", torch.ones(wide))
                norm.bias.data = torch.from_numpy(weights["bias"])
            running(norm, state["batch_stats"][f"BatchNorm_{n}"])
            return nn.Sequential(filled(conv, kernel, None), norm)

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
        self.head = filled(nn.Linear(*dense["kernel"].shape), kernel, dense["bias"])

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x).mean((2, 3)))


NETWORKS = {"CNN": CNN, "ResNeXt34_2x32": ResNeXt}


def moved(network: str, params: Any, running: Any, activation: str = "relu") -> nn.Module:
    """A network of `steps.NETWORKS` with these weights, in training mode."""
    if network not in NETWORKS:
        raise ValueError(f"No network {network!r} in PyTorch; choose {', '.join(NETWORKS)}.")
    model = ConfigDict({"name": network, "head": "linear", "activation": activation})
    logits_fn = jax.tree_util.Partial(lambda *_: None, params, running)
    images = datasets.Dataset(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int32), 10)
    loaded = runs.Loaded(ConfigDict({"model": model}), logits_fn, images, 0, 0)
    return NETWORKS[network](loaded).requires_grad_(True).train()

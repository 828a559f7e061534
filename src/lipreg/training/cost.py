"""What a compiled step costs, read from the program itself, and how it would scale to many devices.

    step = jax.jit(step).lower(*arguments).compile()
    analyse(step)    floating-point operations, bytes of memory, collectives and what they move
    scaling(...)     the efficiency to expect on 1, 8, 64, 512 devices

A *forward unit* is one evaluation of the network; a backward pass in inputs or in weights costs one
more each. Plain training is 3 of them, and an objective's price is counted in them: `PRICES`.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["PRICES", "Cost", "Scaling", "analyse", "price", "scaling"]

# Forward units of a training step by (objective, method): directions and attacked step 2 + 3; the
# exact penalty differentiates the direction's pass, 2 + 4; a difference is a direction and two
# losses, 2 + 3 + 3, and one less where the directions' view of the model is the trained one. Those
# of adversarial training and linearity are counted in their docstrings, at the default options.
PRICES: dict[tuple[str, str], float] = {
    ("j0", ""): 3,
    ("j1", "attack"): 5,
    ("j2", "attack"): 5,
    ("j1", "penalty"): 6,
    ("j2", "penalty"): 6,
    ("tikhonov", "penalty"): 6,
    ("grad_lp", "penalty"): 6,
    ("j1", "difference"): 8,
    ("j2", "difference"): 8,
    ("tikhonov", "difference"): 8,
    ("grad_lp", "difference"): 8,
    ("jacobian", ""): 6,
    ("fgsm_rs", ""): 5,
    ("free_at", ""): 3,
    ("n_fgsm", ""): 5,
    ("pgd_at", ""): 24,
    ("trades", ""): 27,
    ("mart", ""): 27,
    ("grad_align", ""): 11,
    ("elle", ""): 14,
    ("cure", ""): 15,
    ("llr", ""): 16,
}


def price(objective: str, method: Any, batch_size: int, *, top_k: int = 1) -> float:
    """Forward units of one step of an objective with a method, `""` where it has none.

    J2-Lip adds `6 top_k / B` to J2: second derivatives of the examples of the largest gradients, of
    all where top_k is 0; and 2 by penalty, to find the largest in the frozen view.

    >>> price("j2_lip", "attack", 32), price("j2_lip", "attack", 32, top_k=0)
    (5.1875, 11.0)
    """
    if not isinstance(method, str):
        method = type(method).__name__  # one that carries its options
    if objective == "j2_lip":
        found = 2 if method == "penalty" and top_k else 0
        return price("j2", method, batch_size) + found + 6 * (top_k or batch_size) / batch_size
    if (objective, method) not in PRICES:
        raise ValueError(f"No price of {objective!r} by {method!r}.")
    return PRICES[objective, method]


class Cost(NamedTuple):
    """What a compiled program does and needs, on each device.

    Attributes:
      flops: XLA's count of floating-point operations; a loop's body counts once.
      arguments: bytes of the inputs.
      temporary: bytes of what lives between inputs and outputs.
      collectives: the number of each kind, and the bytes that these reduce or gather in total.
    """

    flops: float
    arguments: int
    temporary: int
    collectives: dict[str, tuple[int, int]]


_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(?:-start)?\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")


def analyse(compiled: Any) -> Cost:
    """The cost of what `jax.jit(f).lower(...).compile()` returns.

    >>> import jax, jax.numpy as jnp
    >>> analyse(jax.jit(jnp.dot).lower(jnp.ones((4, 8)), jnp.ones((8, 2))).compile()).flops
    128.0
    """
    memory = compiled.memory_analysis()
    count: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for shapes, kind in _OPERATION.findall(compiled.as_text()):
        count[kind] += 1
        moved[kind] += sum(_bytes(*shape) for shape in _SHAPE.findall(shapes))
    return Cost(
        float(compiled.cost_analysis()["flops"]),
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        {kind: (count[kind], moved[kind]) for kind in sorted(count)},
    )


def _bytes(dtype: str, dimensions: str) -> int:
    bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
    return int(np.prod([int(d) for d in dimensions.split(",") if d])) * bits // 8


class Scaling(NamedTuple):
    """One line of the scaling model, see `scaling`."""

    devices: int
    compute_s: float
    moved: float
    communicate_s: float
    efficiency: float


def scaling(
    flops: float,
    reduced: float,
    messages: int,
    *,
    flops_per_s: float,
    bytes_per_s: float,
    latency_s: float,
    devices: Sequence[int] = (1, 8, 64, 512),
) -> list[Scaling]:
    """`t(n) = flops / rate + 2 (n-1)/n bytes / bandwidth + 2 ceil(log2 n) messages latency`.

    Data-parallel training with the batch per device kept: each of n devices computes `flops`; an
    all-reduce sends `2 (n-1)/n` of the `reduced` bytes over every link (rings, Patarasuk & Yuan
    2009), and a short one takes the depth of a tree, up and down (Thakur, Rabenseifner & Gropp
    2005). Nothing overlaps, and no messages are joined: so `t(1) / t(n)` is a lower bound of the
    efficiency, for devices and links of the given speeds.

    >>> [round(line.efficiency, 3) for line in scaling(
    ...     1e9, 4e6, 1, flops_per_s=1e12, bytes_per_s=1e10, latency_s=0.0)]
    [1.0, 0.588, 0.559, 0.556]
    """
    lines = []
    for n in devices:
        moved = 2 * (n - 1) / n * reduced
        compute, communicate = flops / flops_per_s, moved / bytes_per_s
        communicate += 2 * math.ceil(math.log2(n)) * messages * latency_s
        lines.append(Scaling(n, compute, moved, communicate, compute / (compute + communicate)))
    return lines

"""Training steps against the same in PyTorch: weights, batch and objective are moved across.

    pip install -e '.[peers]'
    python benchmarks/training_peers.py --cases=CNN/32

The torch side is `torch_training.py`: eager in the default layout, eager in channels_last, and the
whole step by `torch.compile`, in that of the two layouts in which eager is faster. All forms and
ours take turns within one process.

Before, loss and gradients are compared. With softplus they must agree. With relu, which is timed, a
rounding can flip a kink, and a deep network has many: there every form must be as near to torch in
float64 as torch's own float32 is.
"""

import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import asked
import jax
import numpy as np
import optax
import steps
import torch  # pyright: ignore[reportMissingImports]
import torch_networks
import torch_training
from absl import app
from timing import compiled, interleaved, publish, ratio, table, times

from lipreg.training import cpu

# Relative differences of loss and of all gradients together, at most: with softplus; with relu from
# float64, or so many times torch's own.
SMOOTH, KINKED, SLACK = 1e-4, 1e-2, 2

# Traces `torch.autograd.grad` as part of the program: otherwise second derivatives do not compile.
torch._dynamo.config.trace_autograd_ops = True
torch.compiler.config.force_disable_caches = True  # every compilation is timed

Slope = tuple[float, np.ndarray]  # the value of an objective, and all its gradients in one vector


class Row(NamedTuple):
    """A step in all forms."""

    where: str
    name: str
    seconds: dict[str, np.ndarray]
    compile_s: dict[str, float]
    failure: str
    differ: float
    apart: dict[str, float]

    @property
    def best(self) -> str:
        """The fastest form of torch."""
        forms = [form for form in self.seconds if form != "lipreg"]
        return min(forms, key=lambda form: np.median(self.seconds[form]))

    @property
    def times(self) -> float:
        return times(self.seconds["lipreg"], self.seconds[self.best])

    def cells(self) -> dict[str, str]:
        """A line of the table."""
        medians = {form: f"{np.median(s):.4f}" for form, s in self.seconds.items()}
        return {
            "network/batch": self.where,
            "objective": self.name,
            "lipreg s": medians["lipreg"],
            "eager s": medians["eager"],
            "channels_last s": medians["channels_last"],
            "compile s": medians.get("compile", self.failure),
            "lipreg / best": ratio(self.seconds["lipreg"], self.seconds[self.best]),
            "best": self.best,
            "compilation, lipreg s": f"{self.compile_s['lipreg']:.1f}",
            "compilation, torch s": f"{self.compile_s.get('compile', np.nan):.0f}",
            "softplus: apart": f"{self.differ:.0e}",
            "relu: lipreg from float64": f"{self.apart['lipreg']:.0e}",
            "relu: eager from float64": f"{self.apart['eager']:.0e}",
        }


def ours(network: str, batch: int, name: str, **fields: Any) -> tuple[Callable, float, Slope]:
    """The step, its compile seconds, and its first gradients in torch's layout."""
    apply, state, inputs = steps.start(network, batch, **fields)
    step, strengths = steps.step(apply, name)
    program, seconds = compiled(step, state, strengths, inputs)
    after, parts = program(state, strengths, inputs)
    velocity = optax.tree.get(after.opt_state, "trace")
    grads = jax.tree.map(lambda v, w: v - steps.DECAY * w, velocity, state.params)
    # Gradients are laid out like the weights that they belong to.
    like = torch_networks.moved(network, grads, state.model_state)
    first = slope(parts["objective"], like.parameters())
    return partial(program, state, strengths, inputs), seconds, first


def theirs(
    network: str,
    batch: int,
    objective: torch_training.Objective,
    layout: Any = torch.contiguous_format,
    dtype: Any = torch.float32,
    **fields: Any,
) -> tuple[Callable[[], Any], float, Slope]:
    """The step in torch, the seconds of its first gradients, and these."""
    _, state, (x, y) = steps.start(network, batch, **fields)
    module = torch_networks.moved(network, state.params, state.model_state, **fields)
    module = module.to(dtype, memory_format=layout)
    images = torch.from_numpy(np.array(x).transpose(0, 3, 1, 2).copy())
    images = images.to(dtype, memory_format=layout).requires_grad_()
    inputs = module, torch_training.frozen_view(module), images
    classes = torch.from_numpy(np.array(y, np.int64))
    start = time.perf_counter()
    value, grads = objective(*inputs, classes)
    seconds = time.perf_counter() - start
    return torch_training.step(objective, *inputs, classes), seconds, slope(value, grads)


def slope(value: Any, grads: Iterable[Any]) -> Slope:
    """Both from tensors."""
    return float(value), np.concatenate([grad.detach().numpy().ravel() for grad in grads])


def difference(a: Slope, b: Slope) -> float:
    """Of the values and of the gradients, relative; the larger."""
    apart = np.linalg.norm(a[1] - b[1]) / np.linalg.norm(b[1])
    return max(abs(a[0] - b[0]) / abs(b[0]), float(apart))


def agreement(network: str, name: str) -> float:
    """The difference where no rounding can be large."""
    *_, first = ours(network, 8, name, activation="softplus")
    *_, other = theirs(network, 8, torch_training.OBJECTIVES[name], activation="softplus")
    return difference(first, other)


def case(network: str, batch: int, name: str) -> Row:
    """A step in all forms, which must agree, in one run."""
    objective = torch_training.OBJECTIVES[name]
    exactly = agreement(network, name)
    *_, exact = theirs(network, batch, objective, dtype=torch.float64)
    programs, compile_s, apart, failure = {}, {}, {}, ""

    def add(form: str, run: Callable, seconds: float, first: Slope) -> None:
        programs[form], compile_s[form], apart[form] = run, seconds, difference(first, exact)

    layouts = {"eager": torch.contiguous_format, "channels_last": torch.channels_last}
    add("lipreg", *ours(network, batch, name))
    for form, layout in layouts.items():
        add(form, *theirs(network, batch, objective, layout))
    quick = interleaved({form: programs[form] for form in layouts}, 2)
    faster = layouts[min(quick, key=lambda form: np.median(quick[form]))]
    torch._dynamo.reset()
    try:
        program = torch.compile(objective, fullgraph=True, dynamic=False)
        add("compile", *theirs(network, batch, program, faster))
    except Exception as error:
        failure = f"fails: {type(error).__name__}"
    most = max(KINKED, SLACK * apart["eager"])
    if not (exactly <= SMOOTH and all(far <= most for far in apart.values())):
        raise ValueError(f"{network}/{batch}, {name}: not the same in torch: {exactly}, {apart}.")
    seconds = interleaved(programs, asked.REPEATS.value)
    return Row(f"{network}/{batch}", name, seconds, compile_s, failure, exactly, apart)


def report(rows: list[Row]) -> str:
    """The table, and where torch is ahead."""
    behind = [
        f"- {row.where}, {row.name}: {row.times:.2f} times the seconds of torch, {row.best}."
        for row in rows
        if row.times > 1
    ]
    return f"""\
# Training steps against PyTorch's

The same weights, batch, objective and SGD in both; {torch.get_num_threads()} threads of torch.
Medians of {asked.REPEATS.value} turns in one process; the ratio, with quartiles, is within a turn.

{table([row.cells() for row in rows])}

## Behind

{chr(10).join(behind or ["Nowhere."])}
"""


def main(argv: list[str]) -> None:
    cpu.tune()
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    torch.set_num_threads(os.cpu_count() or 1)
    rows: list[Row] = []
    for network, batch in asked.cases():
        for name in torch_training.OBJECTIVES:
            if asked.wanted(name):
                rows.append(case(network, batch, name))
                print(f"| {' | '.join(rows[-1].cells().values())} |", flush=True)
                path = Path(asked.OUT.value) / "pytorch.md"
                publish(report(rows), path, torch=torch.__version__)
    print(f"\n{report(rows)}")


if __name__ == "__main__":
    app.run(main)

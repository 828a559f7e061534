"""Each objective at its price: operations and seconds of a training step, against plain steps.

    python benchmarks/objectives.py --cases=CNN/32,CNN/128

A price is in forward units (`cost.price`), plain training being 3 of them: a step that costs
`price / 3` plain steps is at its price, 1 in the tables. Operations are XLA's own count. PGD is the
attack alone, its steps unrolled, with the running statistics: two units a step, and one to look at
the last point. `--remat` adds each step with the blocks' activations computed again on the way back
where a network can do that: less memory for more operations, which the price leaves out.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import asked
import jax
import numpy as np
import steps
from absl import app, flags
from timing import compiled, interleaved, publish, ratio, table, times

from lipreg import attacks, training
from lipreg.norms import L2
from lipreg.training import cost, cpu
from lipreg.training.cost import Cost

_PGD = flags.DEFINE_integer("pgd", 7, "steps of PGD", lower_bound=1)
_REMAT = flags.DEFINE_bool("remat", False, "each step with recomputation, too")

OPERATIONS, SECONDS = 1.05, 1.10  # times its price: what an objective may cost
AGAIN = ", remat"


class Row(NamedTuple):
    """A program beside the plain step of its network and batch."""

    where: str
    name: str
    price: float
    cost: Cost
    plain: Cost
    seconds: np.ndarray
    plain_seconds: np.ndarray
    compile_s: float

    @property
    def operations(self) -> float:
        """Times its price, by XLA's count."""
        return self.cost.flops / self.plain.flops / (self.price / 3)

    def cells(self) -> dict[str, str]:
        """A line of the table."""
        return {
            "network/batch": self.where,
            "program": self.name,
            "price": f"{self.price:.3g}",
            "operations / price": f"{self.operations:.3f}",
            "seconds / price": ratio(self.seconds, self.plain_seconds * self.price / 3),
            "s": f"{np.median(self.seconds):.4f}",
            "temporary MiB": f"{self.cost.temporary / 2**20:.0f}",
            "compile s": f"{self.compile_s:.1f}",
        }

    def beyond(self) -> list[str]:
        """What is beyond the target, in words; recomputation is meant to cost more."""
        seconds = times(self.seconds, self.plain_seconds * self.price / 3)
        ratios = (("operations", self.operations, OPERATIONS), ("seconds", seconds, SECONDS))
        return [
            f"- {self.where}, {self.name}: {much:.2f} times its price in {what}."
            for what, much, most in ratios
            if much > most and not self.name.endswith(AGAIN)
        ]


def programs(network: str, batch: int, **fields: Any) -> dict[str, tuple[float, Callable, tuple]]:
    """The price, function and arguments of every row asked for, the plain step first."""
    apply, state, inputs = steps.start(network, batch, **fields)
    rows = {}
    for name, (_, options) in (steps.OBJECTIVES | steps.RECIPES).items():
        if asked.wanted(name) and "top_k" not in options:
            step, strengths = steps.step(apply, name)
            price = steps.price(name, batch)
            rows[name] = price, step, (state, strengths, inputs)
    pgd = partial(attacks.pgd, eps=0.5, norm=L2, steps=_PGD.value, unroll=True)
    if asked.wanted(f"pgd-{_PGD.value}"):
        arguments = (jax.random.key(0), training.logits_fn(apply, state), *inputs)
        rows[f"pgd-{_PGD.value}"] = 2 * _PGD.value + 1, pgd, arguments
    return rows


def case(network: str, batch: int) -> list[Row]:
    """All rows of a network at a batch size, in one run."""
    rows = programs(network, batch)
    if _REMAT.value and network != "CNN":
        again = programs(network, batch, remat=True)
        rows |= {f"{name}{AGAIN}": row for name, row in again.items()}
    built = {name: compiled(run, *arguments) for name, (_, run, arguments) in rows.items()}
    turns = {name: partial(built[name][0], *arguments) for name, (*_, arguments) in rows.items()}
    seconds = interleaved(turns, asked.REPEATS.value)
    costs = {name: cost.analyse(program) for name, (program, _) in built.items()}
    where, plain, plain_s = f"{network}/{batch}", costs["j0"], seconds["j0"]
    return [
        Row(where, name, price, costs[name], plain, seconds[name], plain_s, built[name][1])
        for name, (price, *_) in rows.items()
    ]


def report(rows: list[Row]) -> str:
    """The table, and what is beyond the target."""
    beyond = [sentence for row in rows for sentence in row.beyond()]
    return f"""\
# The price of the objectives

Training steps on noise, 32 x 32 x 3: SGD with momentum, batch normalisation, directions by the
running statistics. A price is in forward units, 3 for the plain step j0. "/ price" is the ratio to
j0's in the same turn, divided by a third of the price: 1 is at its price. Medians and quartiles of
{asked.REPEATS.value} turns.

{table([row.cells() for row in rows])}

## Beyond {OPERATIONS:.2f} times the price in operations, or {SECONDS:.2f} times in seconds

{chr(10).join(beyond or ["Nowhere."])}
"""


def main(argv: list[str]) -> None:
    cpu.tune()
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    rows: list[Row] = []
    for network, batch in asked.cases():
        rows += case(network, batch)
        publish(report(rows), Path(asked.OUT.value) / "objectives.md")  # a stopped run has these
    print(report(rows))


if __name__ == "__main__":
    app.run(main)

"""What a training step costs: seconds, images a second, share of peak, ratio to a plain step.

A price is in forward units (`cost.price`), 3 for the plain step j0. The share of the peak
counts the price: XLA's count of a forward pass's operations, times the price, per second. The peak
is measured: a product of two large matrices in the same precision, by the same compiler.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import steps
from timing import all_at_once, behind_a_queue, ratio, table, times

from stages.clock import Clock, toy
from stages.sound import reason

MAIN = ("j0", "j2 by attack", "j2 by penalty", "j2_lip")
PRECISIONS = ("default", "highest", "bf16")


class Case(NamedTuple):
    """Programs that are compiled together and take turns, "j0" first."""

    network: str
    batch: int
    precision: str = "default"
    names: tuple[str, ...] = MAIN
    per_dispatch: int = 1


# In order of importance.
CASES = (
    Case("ResNeXt34_2x32", 128, "bf16"),
    Case("ResNeXt34_2x32", 128),
    Case("ResNeXt34_2x32", 1024, "bf16"),
    Case("ResNeXt34_2x32", 128, "bf16", ("j0", "j2_lip"), 16),
    Case("ResNet18", 128, "bf16"),
    Case("ResNeXt34_2x32", 128, "highest", ("j0", "j2_lip")),
    Case("ResNet18", 1024, "bf16"),
    Case("ResNeXt34_2x32", 1024),
    Case("ResNet18", 512),
    Case("ResNeXt34_2x32", 128, "bf16", tuple(steps.OBJECTIVES)),
)
TOY = (Case("CNN", 4, names=("j0", "j2_lip")), Case("CNN", 4, "bf16", ("j0",), 2))


class Built(NamedTuple):
    """A compiled step and what is known of it before it runs."""

    run: Callable[[int], Any]
    temporary: float


def exactly(precision: str) -> Any:
    """The context in which a program is traced."""
    return jax.default_matmul_precision("highest") if precision == "highest" else nullcontext()


def build(case: Case, name: str) -> Built:
    """A step of `case`, or several in a scan, compiled."""
    dtype = "bfloat16" if case.precision == "bf16" else "float32"
    apply, state, inputs = steps.start(case.network, case.batch, dtype=dtype)
    step, strengths = steps.step(apply, name)

    def several(state: Any, strengths: Any, inputs: Any) -> Any:
        return jax.lax.scan(
            lambda state, _: step(state, strengths, inputs), state, length=case.per_dispatch
        )

    with exactly(case.precision):
        program = jax.jit(several if case.per_dispatch > 1 else step, donate_argnums=0)
        compiled = program.lower(state, strengths, inputs).compile()
    run = steps.repeated(compiled, state, strengths, inputs)
    return Built(run, getattr(compiled.memory_analysis(), "temp_size_in_bytes", np.nan))


def forward(network: str, batch: int) -> float:
    """The operations of a pass through the network, by XLA's count for the CPU."""
    apply, state, (x, _) = steps.start(network, batch)
    with jax.default_device(jax.devices("cpu")[0]):
        state, x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (state, x))
        lowered = jax.jit(apply, static_argnums=3).lower(state.params, state.model_state, x, False)
    return (lowered.cost_analysis() or {}).get("flops", np.nan)


def peak(precision: str) -> float:
    """Operations a second of a large product of matrices."""
    n = 256 if toy() else 8192
    dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)
    with exactly(precision):
        product = jax.jit(jnp.dot).lower(a, a).compile()

    def run(calls: int) -> None:
        jax.block_until_ready([product(a, a) for _ in range(calls)][-1])

    return 2 * n**3 / float(np.median(behind_a_queue({"": run}, 3, turn_s=0.1)[""]))


def run(clock: Clock, folder: Path) -> Iterator[str]:
    """The table after each case."""
    del folder
    peaks = {precision: peak(precision) for precision in PRECISIONS}
    rows: list[dict[str, str]] = []
    for case in TOY if toy() else CASES:
        if clock.left < 0:
            break
        try:
            rows += measured(case, peaks[case.precision])
        except Exception as error:  # of memory, for instance; the next case may be smaller
            rows.append(
                labels(case, "all") | dict.fromkeys(COLUMNS, "") | {COLUMNS[0]: reason(error)}
            )
        yield report(rows, peaks)


def measured(case: Case, most: float) -> list[dict[str, str]]:
    """A case's lines of the table."""
    steps.start(case.network, case.batch)  # the weights, which all share
    built = all_at_once({name: partial(build, case, name) for name in case.names})
    alive = {name: b for name, b in built.items() if isinstance(b, Built)}
    seconds = behind_a_queue({name: b.run for name, b in alive.items()}, 5, turn_s=0.15)
    seconds = {name: s / case.per_dispatch for name, s in seconds.items()}
    rows, once = [], forward(case.network, case.batch)
    for name, program in built.items():
        cells = dict.fromkeys(COLUMNS, "")
        if isinstance(program, Built):
            price = steps.price(name, case.batch)
            s = seconds[name]
            plain = seconds.get("j0", np.full_like(s, np.nan))
            values = (
                f"{1e3 * np.median(s):.2f}",
                f"{case.batch / np.median(s):,.0f}",
                f"{100 * price * once / np.median(s) / most:.1f}",
                f"{times(s, plain):.2f}",
                f"{price / 3:.2f}",
                ratio(s, plain * price / 3),
                f"{program.temporary / 2**20:.0f}",
            )
            cells = dict(zip(COLUMNS, values, strict=True))
        else:
            cells[COLUMNS[0]] = reason(program)
        rows.append(labels(case, name) | cells)
    return rows


def labels(case: Case, program: str) -> dict[str, str]:
    """The cells that say what a line is about."""
    return {
        "network/batch": f"{case.network}/{case.batch}",
        "precision": case.precision,
        "steps a dispatch": str(case.per_dispatch),
        "program": program,
    }


COLUMNS = (
    *("ms a step", "images/s", "% of peak", "times j0", "price / 3", "times j0 / (price / 3)"),
    "temporary MiB",
)


def report(rows: list[dict[str, str]], peaks: dict[str, float]) -> str:
    """The table and the peaks."""
    speeds = ", ".join(f"{name} {speed / 1e12:.3g}" for name, speed in peaks.items())
    return f"""\
# Price

Training steps on noise, 32 x 32 x 3, as in benchmarks/objectives.md: SGD with momentum, batch
normalisation, directions by the running statistics. "default" is float32 with the device's usual
products (TF32 where it has them), "highest" is float32 in full, bf16 is model.settings.dtype with
weights, statistics, losses in float32. Medians of 5 turns; ratios with quartiles, within a turn.
Measured peak in 10^12 operations a second: {speeds}.

{table(rows)}
"""

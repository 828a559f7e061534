"""Whether the accelerator computes what the CPU does: gradients, a resumed run, several devices.

The reference is the CPU in float32. With `highest` precision the accelerator must agree to 1e-4;
the distances of TF32 and bfloat16 are reported. The networks are smooth (softplus), so that
rounding cannot flip a kink.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import steps
from timing import all_at_once, table

from lipreg import datasets, objectives, parallel, training
from lipreg.runs import storage
from stages.clock import Clock, toy

AGREES = 1e-4  # relative, at highest precision
AT_ONCE = 5  # objectives compiled together

# Every objective, in the forms that are programs of their own.
OBJECTIVES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("j0", {}),
    *((name, {"method": "attack"}) for name in ("j1", "j2", "j2_lip")),
    ("j2", {"method": "penalty"}),
    ("j2_lip", {"top_k": 0}),
    ("j2_lip", {"method": "penalty"}),
    ("j1", {"method": "penalty"}),
    *((name, {"method": "difference"}) for name in ("j1", "j2", "j2_lip")),
    ("j2_lip", {"points": "attacked"}),
    *(("lip_excess", {"method": method}) for method in ("gradient", "pairs")),
    *(("tikhonov", {"method": method}) for method in ("penalty", "difference")),
    ("grad_lp", {"p": 4.0}),
    *((name, {}) for name in ("jacobian", "fgsm_rs", "n_fgsm", "free_at")),
    *((name, {}) for name in ("grad_align", "elle", "cure")),
    *((name, {"attack": "pgd(steps=3)"}) for name in ("pgd_at", "mart")),
    *((name, {"steps": 3}) for name in ("trades", "llr")),
)
STRENGTHS = {"eps": 0.1, "lam": 0.1, "L0": 0.0, "beta": 1.0, "mu": 0.1}


class Setting(NamedTuple):
    """Where a program runs and in what precision."""

    device: Any
    precision: str = "highest"
    dtype: str = "float32"

    def program(self, function: Callable, *arguments: Any) -> Callable[[], Any]:
        """The function compiled for it, ready to be called on these arguments."""
        arguments = jax.device_put(arguments, self.device)
        exact = self.precision == "highest"
        with jax.default_matmul_precision("highest") if exact else nullcontext():
            return partial(jax.jit(function).lower(*arguments).compile(), *arguments)


def settings() -> dict[str, Setting]:
    """The reference, and the settings compared with it."""
    device = jax.devices()[0]
    return {
        "cpu": Setting(jax.devices("cpu")[0]),
        "highest": Setting(device),
        "default": Setting(device, "default"),
        "bf16": Setting(device, "default", "bfloat16"),
    }


def run(clock: Clock, folder: Path) -> Iterator[str]:
    """The report after each of its parts, and after every few objectives."""
    del folder
    devices = jax.devices()
    text = (
        f"# Sound\n\n{len(devices)} x {devices[0].device_kind}, platform {devices[0].platform}.\n"
    )
    for part in (resume, sharded):
        try:
            text += f"\n{part()}\n"
        except Exception as error:  # the other parts still run
            text += f"\n{part.__name__} failed: {reason(error)}\n"
        yield text
    for section in gradients(clock):
        yield f"{text}\n{section}\n"


def resume() -> str:
    """A run that stops half-way and resumes from disk, against one that does not stop."""
    apply, first, (x, y) = steps.start("CNN", 256, 8, channels=(8, 16))
    images = datasets.Dataset(np.asarray(255 * x).astype(np.uint8), np.asarray(y), 10)
    step = training.make_step(apply, objectives.j2, steps.SGD)
    options: dict[str, Any] = {"batch_size": 64, "every": 4, "key": jax.random.key(2)}

    def last(state: training.State, count: int) -> training.State:
        *_, (state, _) = training.fit(step, state, {"eps": 0.1}, images, steps=count, **options)
        return state

    unbroken = last(first, 16)
    with tempfile.TemporaryDirectory() as folder:
        with storage.checkpoints(folder, keep=1) as manager:
            storage.save(manager, 8, last(first, 8))
        with storage.checkpoints(folder, keep=1) as manager:
            back = storage.restore(manager, first)
    apart = distance(flat(last(back, 16).params), flat(unbroken.params))
    return (
        "## A run taken up again\n\n16 steps against 8, a checkpoint read back, and 8 more: "
        f"weights {apart:.0e} apart (0 where all sums are in one order)."
    )


def sharded() -> str:
    """J2-Lip's gradient in the weights on all devices against the same on one."""
    count = len(jax.devices())
    if count < 2:
        return "## Several devices\n\nOnly one here."
    apply, state, inputs = small(8 * count, 8, "float32")
    step, strengths = steps.step(apply, "j2_lip")
    with jax.default_matmul_precision("highest"):
        one, _ = jax.jit(step)(state, strengths, inputs)
        with parallel.over():
            many, _ = jax.jit(step)(parallel.replicate(state), strengths, parallel.shard(inputs))
    a, b = (flat(optax.tree.get(after.opt_state, "trace")) for after in (many, one))
    return (
        f"## Several devices\n\nJ2-Lip's gradient on {count} devices and on one: "
        f"{distance(a, b):.0e} apart."
    )


def gradients(clock: Clock) -> Iterator[str]:
    """The objectives' gradients in the weights, against the CPU's: the table after every few."""
    made = settings()
    batch, side = (8, 8) if toy() else (32, 32)
    small(batch, side, "float32")  # the weights, which all share
    rows, beyond = [], []
    every = OBJECTIVES[: AT_ONCE if toy() else None]
    for first in range(0, len(every), AT_ONCE):
        if clock.left < 0:
            return
        some = every[first : first + AT_ONCE]
        programs = all_at_once(
            {
                (place, label): partial(gradient, setting, name, options, batch, side)
                for place, (name, options) in enumerate(some)
                for label, setting in made.items()
            }
        )
        for place, (name, options) in enumerate(some):
            row = {"objective": " ".join([name, *(f"{k}={v}" for k, v in options.items())])}
            row |= compared({label: programs[place, label] for label in made})
            rows.append(row)
            if not float(row["highest"]) <= AGREES:
                beyond.append(row["objective"])
        verdict = f"Beyond {AGREES:g} at highest precision: {', '.join(beyond) or 'none'}."
        yield (
            "## Gradients of the objectives in the weights\n\nRelative distance from the CPU's in "
            f"float32, all weights as one vector; {len(rows)} of {len(OBJECTIVES)} forms."
            f"\n\n{table(rows)}\n\n{verdict}"
        )


def gradient(setting: Setting, name: str, options: dict, batch: int, side: int) -> Callable:
    """The program that computes one objective's gradient."""
    apply, state, inputs = small(batch, side, setting.dtype)
    options = {k: objectives.method(v) if k == "method" else v for k, v in options.items()}
    objective = partial(getattr(objectives, name), **options)
    chosen = {s: np.float32(STRENGTHS[s]) for s in objectives.strengths(objective)}
    keep = optax.trace(0.0)  # the "momentum" after one step is the gradient itself
    state = training.init(jax.random.key(0), state.params, state.model_state, keep)
    step = training.make_step(apply, objective, keep)

    def slopes(state: training.State, inputs: tuple) -> Any:
        return optax.tree.get(step(state, chosen, inputs)[0].opt_state, "trace")

    return setting.program(slopes, state, inputs)


def small(batch: int, side: int, dtype: str) -> tuple[training.Apply, training.State, Any]:
    """A smooth network with batch normalisation, and a batch of noise."""
    return steps.start("CNN", batch, side, channels=(16, 32), activation="softplus", dtype=dtype)


def compared(programs: dict[str, Any]) -> dict[str, str]:
    """The distance from the CPU's gradient in each setting; nan where a program failed."""
    for program in programs.values():
        if isinstance(program, Exception):
            failed = dict.fromkeys([label for label in programs if label != "cpu"], "nan")
            return failed | {"twice the same": reason(program)}
    exact = flat(programs["cpu"]())
    row = {
        label: f"{distance(flat(program()), exact):.1e}"
        for label, program in programs.items()
        if label != "cpu"
    }
    a, b = (flat(programs["default"]()) for _ in range(2))
    return row | {"twice the same": "yes" if np.array_equal(a, b) else f"{distance(a, b):.0e}"}


def flat(tree: Any) -> np.ndarray:
    """All numbers of a tree in one vector, in float64."""
    return np.concatenate([np.ravel(leaf).astype(float) for leaf in jax.tree.leaves(tree)])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Relative to b."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def reason(error: Exception) -> str:
    """Why something failed, in a line that fits a table."""
    line = (str(error).strip().splitlines() or [""])[0].replace("|", "/")
    return f"{type(error).__name__}: {line[:160]}"

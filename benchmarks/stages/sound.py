"""Whether the accelerator computes what the CPU does: gradients, attacks, a resume, two devices.

The reference is the CPU in float32. With `highest` precision the accelerator must agree to 1e-4;
how far TF32 and bfloat16 are away is said. The networks are smooth (softplus), so that no rounding
can flip a kink.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import steps
from timing import all_at_once, table

from lipreg import attacks, curves, data, models, objectives, parallel, runs, train
from lipreg.norms import L1, L2, LINF, Norm
from stages.clock import Clock, toy

AGREES = 1e-4  # relative, at highest precision

# Every objective in every form.
OBJECTIVES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("j0", {}),
    *((name, {"method": m}) for name in ("j1", "j2") for m in ("attack", "penalty", "difference")),
    *(("j2_lip", {"method": m}) for m in ("attack", "penalty")),
    ("j2_lip", {"top_k": 0}),
    *(("lip_excess", {"method": method}) for method in ("gradient", "pairs")),
    *(("tikhonov", {"method": method}) for method in ("penalty", "difference")),
    ("grad_lp", {"p": 4.0}),
)
STRENGTHS = {"eps": 0.1, "lam": 0.1, "L0": 0.0}

# Every attack, with few steps: rounding grows from step to step.
ATTACKS: tuple[tuple[str, Norm, dict[str, Any]], ...] = (
    ("fgsm", LINF, {}),
    ("pgd", L2, {"steps": 5}),
    ("pgd", LINF, {"steps": 5}),
    ("apgd", L2, {"steps": 5}),
    ("fab", L2, {"steps": 5}),
    ("square", L2, {"queries": 50}),
    ("deepfool", L2, {"steps": 5}),
    ("ddn", L2, {"steps": 10}),
    ("fmn", L2, {"steps": 10}),
    ("basic_iterative", L2, {"steps": 5, "growths": 5, "bisections": 5}),
    ("carlini_wagner", L2, {"steps": 20, "searches": 2, "learning_rate": 0.1}),
    ("ead", L1, {"steps": 20, "searches": 2, "learning_rate": 0.1}),
    ("log_barrier", L2, {"outer": 2, "inner": 10}),
    ("boundary", L2, {"steps": 50}),
    ("hopskipjump", L2, {"steps": 3}),
)
RADII = {"l1": 5.0, "l2": 0.5, "linf": 8 / 255}


class Setting(NamedTuple):
    """Where and how exactly a program computes."""

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
    """The reference and those compared with it."""
    device = jax.devices()[0]
    return {
        "cpu": Setting(jax.devices("cpu")[0]),
        "highest": Setting(device),
        "default": Setting(device, "default"),
        "bf16": Setting(device, "default", "bfloat16"),
    }


def run(clock: Clock, folder: Path) -> Iterator[str]:
    """The report after each of its tables."""
    del folder
    text = f"# Sound\n\n{devices()}\n"
    for part in (gradients, points, resume, sharded):
        try:
            text += f"\n{part() if clock.left > 0 else f'{part.__name__}: no time left.'}\n"
        except Exception as error:  # the other parts stand
            text += f"\n{part.__name__} failed: {reason(error)}\n"
        yield text


def devices() -> str:
    found = jax.devices()
    return f"{len(found)} x {found[0].device_kind}, platform {found[0].platform}."


def gradients() -> str:
    """Every objective's gradient in the weights, against the CPU's."""
    made = settings()
    batch, side = (8, 8) if toy() else (32, 32)
    small(batch, side, "float32")  # the weights, which all share
    jobs = {
        (name, tuple(options.items()), label): partial(
            gradient, setting, name, options, batch, side
        )
        for name, options in OBJECTIVES
        for label, setting in made.items()
    }
    programs = all_at_once(jobs)
    rows, beyond = [], []
    for name, options in OBJECTIVES:
        found = {label: programs[name, *options.items(), label] for label in made}
        row = {"objective": " ".join([name, *(f"{k}={v}" for k, v in options.items())])}
        exact = flat(found["cpu"]())
        for label in list(made)[1:]:
            if isinstance(found[label], Exception):
                row[label] = reason(found[label])
                continue
            apart = distance(flat(found[label]()), exact)
            row[label] = f"{apart:.1e}"
            if label == "highest" and not apart <= AGREES:
                beyond.append(row["objective"])
        twice = [flat(found["default"]()) for _ in range(2)]
        row["twice the same"] = "yes" if np.array_equal(*twice) else f"{distance(*twice):.0e}"
        rows.append(row)
    verdict = f"Beyond {AGREES:g} at highest precision: {', '.join(beyond) or 'none'}."
    return (
        "## Gradients of every objective in the weights\n\nRelative distance from the CPU's in "
        f"float32, all weights as one vector.\n\n{table(rows)}\n\n{verdict}"
    )


def gradient(setting: Setting, name: str, options: dict, batch: int, side: int) -> Callable:
    """The program that computes one."""
    apply, state, inputs = small(batch, side, setting.dtype)
    objective = partial(getattr(objectives, name), **options)
    chosen = {s: np.float32(STRENGTHS[s]) for s in objectives.strengths(objective)}
    keep = optax.trace(0.0)  # the "momentum" after one step is the gradient itself
    state = train.init(jax.random.key(0), state.params, state.model_state, keep)
    step = train.make_step(apply, objective, keep)

    def slopes(state: train.State, inputs: tuple) -> Any:
        return optax.tree.get(step(state, chosen, inputs)[0].opt_state, "trace")

    return setting.program(slopes, state, inputs)


def small(batch: int, side: int, dtype: str) -> tuple[train.Apply, train.State, Any]:
    """A smooth network with batch normalisation, and a batch of noise."""
    return steps.start("CNN", batch, side, channels=(16, 32), activation="softplus", dtype=dtype)


def points() -> str:
    """Every attack's points against the CPU's."""
    made = settings()
    del made["bf16"]
    batch, side = (4, 8) if toy() else (64, 16)
    apply, state, (x, _) = small(batch, side, "float32")
    logits_fn = train.logits_fn(apply, state)
    y = jnp.argmax(logits_fn(x), -1)  # all are right to begin with
    jobs = {
        (place, label): partial(attacked, setting, place, logits_fn, x, y)
        for place in range(len(ATTACKS))
        for label, setting in made.items()
    }
    programs = all_at_once(jobs)
    rows = []
    for place, (name, norm, _) in enumerate(ATTACKS):
        row = {"attack": f"{name} {norm.name}"}
        failed = [p for label in made if isinstance(p := programs[place, label], Exception)]
        if failed:
            rows.append(row | dict.fromkeys(COLUMNS, reason(failed[0])))
            continue
        exact, fooled = map(np.asarray, programs[place, "cpu"]())
        size = np.asarray(norm.size(exact - np.asarray(x))) + 1e-12
        for label in ("highest", "default"):
            x_adv, other = map(np.asarray, programs[place, label]())
            apart = np.asarray(norm.size(x_adv - exact)) / size
            agree = int((apart <= AGREES).sum())
            row[f"{label}: within {AGREES:g}"] = f"{agree} of {batch}"
            row[f"{label}: median apart"] = f"{np.median(apart):.0e}"
            row[f"{label}: same outcome"] = f"{int((fooled == other).sum())} of {batch}"
        rows.append(row)
    return (
        "## Points of every attack\n\nDistance from the CPU's point, relative to the size of its "
        f"perturbation, image by image; few steps.\n\n{table(rows)}"
    )


COLUMNS = tuple(
    f"{label}: {what}"
    for label in ("highest", "default")
    for what in (f"within {AGREES:g}", "median apart", "same outcome")
)


def attacked(setting: Setting, place: int, logits_fn: Any, x: Any, y: Any) -> Callable:
    """The program of one attack: its points, and whether they are misclassified."""
    name, norm, options = ATTACKS[place]
    attack = partial(getattr(attacks, name), norm=norm, **options)
    radius = [RADII[norm.name]] if name in ("fgsm", "pgd", "apgd", "fab", "square") else []

    def program(key: Any, logits_fn: Any, x: Any, y: Any) -> Any:
        x_adv = attack(key, logits_fn, x, y, *radius)
        return x_adv, curves.distance(logits_fn, x, y, x_adv, norm=norm) < jnp.inf

    return setting.program(program, jax.random.key(0), logits_fn, x, y)


def resume() -> str:
    """A run that stops half-way, is read back from disk and goes on, against one that does not."""
    images = data.load("digits", "train")
    model = models.build("CNN", classes=10, channels=(8, 16), batch_norm=True)
    step = train.make_step(models.functional(model), objectives.j2, steps.SGD)
    variables = dict(model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False))
    first = train.init(jax.random.key(1), variables.pop("params"), variables, steps.SGD)
    options: dict[str, Any] = {"batch_size": 64, "every": 4, "key": jax.random.key(2)}

    def last(state: train.State, count: int) -> train.State:
        *_, (state, _) = train.fit(step, state, {"eps": 0.1}, images, steps=count, **options)
        return state

    unbroken = last(first, 16)
    with tempfile.TemporaryDirectory() as folder:
        with runs.checkpoints(folder, keep=1) as manager:
            runs.save(manager, 8, last(first, 8))
        with runs.checkpoints(folder, keep=1) as manager:
            back = runs.restore(manager, first)
    resumed = last(back, 16)
    apart = distance(flat(resumed.params), flat(unbroken.params))
    return (
        "## A run taken up again\n\n16 steps against 8, a checkpoint read back, and 8 more: "
        f"weights {apart:.0e} apart (0 where the accelerator's sums are in one order)."
    )


def sharded() -> str:
    """A step on all devices against the same on one."""
    count = len(jax.devices())
    if count < 2:
        return "## Several devices\n\nOnly one here."
    apply, state, inputs = small(8 * count, 8, "float32")
    step, strengths = steps.step(apply, "j2_lip")
    one = jax.jit(step)(state, strengths, inputs)
    with parallel.over():
        many = jax.jit(step)(parallel.whole(state), strengths, parallel.split(inputs))
    apart = distance(flat(many[0].params), flat(one[0].params))
    return (
        f"## Several devices\n\nA step of J2-Lip on {count} devices and on one: {apart:.0e} apart."
    )


def flat(tree: Any) -> np.ndarray:
    """All numbers of a tree in one vector, in float64."""
    return np.concatenate([np.ravel(leaf).astype(float) for leaf in jax.tree.leaves(tree)])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def reason(error: Exception) -> str:
    """Why something failed, in a line that fits a table."""
    line = (str(error).strip().splitlines() or [""])[0].replace("|", "/")
    return f"{type(error).__name__}: {line[:80]}"

"""Whether the accelerator's attacks arrive where the CPU's do, image by image.

Attacks take few steps, since rounding errors grow from step to step; the network is smooth.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import all_at_once, table

from lipreg import attacks, curves, training
from lipreg.norms import L1, L2, LINF, Norm
from stages.clock import Clock, toy
from stages.sound import AGREES, Setting, reason, settings, small

AT_ONCE = 5  # attacks compiled together
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
    ("ead", L1, {"steps": 20, "searches": 2, "c": 10.0, "learning_rate": 0.1}),
    ("log_barrier", L2, {"outer": 2, "inner": 10}),
    ("boundary", L2, {"steps": 50}),
    ("hopskipjump", L2, {"steps": 3}),
)
# Of those that have one.
RADII = {L2.name: 0.5, LINF.name: 8 / 255}
AT_A_RADIUS = ("fgsm", "pgd", "apgd", "fab", "square")
COLUMNS = (
    "fooled",
    *(
        f"{label}: {what}"
        for label in ("highest", "default")
        for what in (f"within {AGREES:g}", "median apart", "same outcome")
    ),
)


def run(clock: Clock, folder: Path) -> Iterator[str]:
    """The table after every few attacks."""
    del folder
    made = settings()
    del made["bf16"]
    batch, side = (4, 8) if toy() else (64, 16)
    apply, state, (x, _) = small(batch, side, "float32")
    logits_fn = training.logits_fn(apply, state)
    y = jax.jit(lambda f, x: jnp.argmax(f(x), -1))(logits_fn, x)  # all are classified correctly
    rows: list[dict[str, str]] = []
    for first in range(0, len(ATTACKS), AT_ONCE):
        if clock.left < 0:
            return
        some = range(first, min(first + AT_ONCE, len(ATTACKS)))
        programs = all_at_once(
            {
                (place, label): partial(attacked, setting, place, logits_fn, x, y)
                for place in some
                for label, setting in made.items()
            }
        )
        for place in some:
            name, norm, _ = ATTACKS[place]
            by_setting = {label: programs[place, label] for label in made}
            rows.append(
                {"attack": f"{name} {norm.name}"} | compared(by_setting, np.asarray(x), norm)
            )
        yield (
            "# Points of every attack\n\nDistance from the CPU's point, relative to the size of "
            f"its perturbation, image by image; few steps, {batch} images. Fooled: by the CPU's "
            f"points.\n\n{table(rows)}\n"
        )


def attacked(setting: Setting, place: int, logits_fn: Any, x: Any, y: Any) -> Callable:
    """The program of one attack: its points, and whether they are misclassified."""
    name, norm, options = ATTACKS[place]
    attack = partial(getattr(attacks, name), norm=norm, **options)
    radius = [RADII[norm.name]] if name in AT_A_RADIUS else []

    def program(key: Any, logits_fn: Any, x: Any, y: Any) -> Any:
        x_adv = attack(key, logits_fn, x, y, *radius)
        return x_adv, curves.distance(logits_fn, x, y, x_adv, norm=norm) < jnp.inf

    return setting.program(program, jax.random.key(0), logits_fn, x, y)


def compared(programs: dict[str, Any], x: np.ndarray, norm: Norm) -> dict[str, str]:
    """The cells of one attack."""
    for program in programs.values():
        if isinstance(program, Exception):
            return dict.fromkeys(COLUMNS, reason(program))
    exact, fooled = map(np.asarray, programs["cpu"]())
    size = np.asarray(norm.size(jnp.asarray(exact - x))) + 1e-12
    cells = [f"{int(fooled.sum())}"]
    for label in ("highest", "default"):
        x_adv, other = map(np.asarray, programs[label]())
        apart = np.asarray(norm.size(jnp.asarray(x_adv - exact))) / size
        cells += [
            f"{int((apart <= AGREES).sum())}",
            f"{np.median(apart):.0e}",
            f"{int((fooled == other).sum())}",
        ]
    return dict(zip(COLUMNS, cells, strict=True))

"""What equal seconds of training buy: recipes of experiments/compare.py on PreActResNet-18.

CIFAR-10 in bfloat16, in l_2 at 128/255 and in l_inf at 8/255: each recipe with its papers'
strengths, one seed, PGD-20 and AutoAttack on 200 test images. As many recipes as get half a minute
each, and at most 90 s. Without an accelerator: digits and the small CNN.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from stages.clock import Clock, shared, toy

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
RADII = {"l2": 128 / 255, "linf": 8 / 255}
# In order of importance.
RECIPES = {
    "l2": ("j2_penalty", "pgd_at", "j0", "n_fgsm", "j2_lip", "trades", "j2"),
    "linf": ("j1_penalty", "pgd_at", "j0", "n_fgsm", "j1", "trades", "grad_align"),
}
LEAST_S, MOST_S = 30.0, 90.0
MORE_S = 60.0  # for compiling and attacking a recipe
END_S = 5.0  # to write a table that is not whole before the stage is ended


def run(clock: Clock, folder: Path) -> Iterator[str]:
    """The table after each norm."""
    shared()
    text, failures = "# What equal seconds buy\n", []
    norms = ["l2"] if toy() or clock.left < 2 * (MORE_S + LEAST_S) * len(RADII) else list(RADII)
    for number, norm in enumerate(norms):
        seconds_s = max(0.1, (clock.left - END_S) / (len(norms) - number))
        table, failure = compared(norm, seconds_s, folder)
        failures += [f"{norm}: {failure}"] * bool(failure)
        text += f"\n## {norm} {RADII[norm]:.3g}\n\n{table}\n"
        yield text
    if failures:
        raise RuntimeError("; ".join(failures))


def compared(norm: str, seconds_s: float, folder: Path) -> tuple[str, str]:
    """The table of a norm, where it was cut that of the recipes attacked so far; why it failed."""
    place, options = arguments(norm, seconds_s, folder)
    argv = [sys.executable, str(EXPERIMENTS / "compare.py"), f"--workdir={place}", *options]
    try:
        made = subprocess.run(argv, capture_output=True, text=True, timeout=seconds_s)
        if not made.returncode:
            return made.stdout, ""
        failure = (made.stderr.strip().splitlines() or ["no word"])[-1]
        why = f"It failed: {failure}"
    except subprocess.TimeoutExpired:
        failure, why = "", "The time was out"
    so_far = place / "compare.md"
    table = f"{so_far.read_text()}\n" if so_far.is_file() else ""
    return f"{table}{why}; the same command goes on from here.", failure


def arguments(norm: str, seconds_s: float, folder: Path) -> tuple[Path, list[str]]:
    """The folder and the flags of compare.py, for what fits into so many seconds."""
    shared = ["--trials=1", "--seeds=1", "--best=0", "--silent", f"--norms={norm}"]
    shared += [f"--norm={norm}", f"--eps={RADII[norm]}"]
    if toy():
        shared += ["--rows=j0,j2", "--seconds=0.2", "--examples=4"]
        shared += [f"--config={EXPERIMENTS}/configs/digits.py"]
        return folder / "comparison" / norm, [*shared, "--config.model.settings.channels=(4,8)"]
    count = max(1, min(len(RECIPES[norm]), int(seconds_s / (LEAST_S + MORE_S))))
    each = min(MOST_S, max(LEAST_S, (seconds_s / count - MORE_S) // 10 * 10))
    return (
        folder / "comparison" / f"{norm}_{each:.0f}s",
        [  # another call may have other seconds
            *(*shared, f"--config={EXPERIMENTS}/configs/cifar10.py:j0"),
            *("--config.model.name=ResNet18", "--config.model.settings.dtype=bfloat16"),
            *(
                f"--rows={','.join(RECIPES[norm][:count])}",
                f"--seconds={each:.0f}",
                "--examples=200",
            ),
            *("--config.train.schedule=cosine", "--config.evaluation.batch_size=1000"),
        ],
    )

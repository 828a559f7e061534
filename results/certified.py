"""Clean, certified and attacked errors of the runs that certified.sh has trained, in one table.

`python results/certified.py RUNS OUT`: every folder of RUNS, LAYER-LOSS-SEED. Certified are all
test images, by the proved constants of margins, and attacked the first 100: by DDN and AutoAttack.
What a run was measured at is kept in its folder, and not measured again.
"""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lipreg import attacks, curves, datasets, evaluation, files, runs
from lipreg.certificates import margin_lipschitz
from lipreg.lipschitz.bounds import lipschitz
from lipreg.norms import L2
from lipreg.reports import plots
from lipreg.runs import storage
from lipreg.training import cpu

RADII = (0.25, 0.5, 1.0)
ATTACKED = 100
KEY = jax.random.key(0)


def measured(run: Path) -> dict:
    """Errors in %, the proved constant, and each image's radius and least attacked distance."""
    loaded = runs.load(run)
    x, y = datasets.to_unit(loaded.dataset.x), jnp.asarray(loaded.dataset.y)
    f = loaded.logits_fn
    bound = lipschitz(f, x[:1])
    constant = bound._replace(margins=bound.margins[0])
    radius = np.asarray(margin_lipschitz(f, x, y, constant=constant).radius)
    numbers = {
        "% clean error": 100 * float((f(x).argmax(1) != y).mean()),
        **{f"% certified error at {eps}": 100 * float((radius < eps).mean()) for eps in RADII},
    }
    x, y = x[:ATTACKED], y[:ATTACKED]
    found = jax.jit(partial(attacks.ddn, logits_fn=f, norm=L2, steps=100))(KEY, x=x, y=y)
    distance = np.asarray(curves.distance(f, x, y, found, norm=L2))
    for eps in RADII:
        outcome = evaluation.autoattack(KEY, f, x, y, eps, norm=L2)
        numbers[f"% AutoAttack error at {eps}"] = 100 * float(outcome.error)
        least = np.asarray(curves.distance(f, x, y, jnp.asarray(outcome.x_adv), norm=L2))
        distance = np.minimum(distance, least)
    inside = radius[:ATTACKED] > distance * (1 + 1e-4)  # distances are measured in float32
    return {
        "columns": numbers | {"proved constant": float(bound.output[0])},
        "violations": int(inside.sum()),
        "radius": radius[:ATTACKED].tolist(),
        "distance": [float(d) if np.isfinite(d) else 1e9 for d in distance],
    }


def main(folder: Path, out: Path) -> None:
    cpu.tune()
    found = {}
    for run in sorted(path.parent for path in folder.glob("*-*/trained")):
        kept = run / "certified.json"
        if not kept.is_file():
            files.write_json(kept, measured(run))
            print(run.name, flush=True)
        found[run.name] = files.read(kept)
    rows: dict[str, list[dict]] = {}
    for name, numbers in found.items():
        rows.setdefault(name.rpartition("-")[0], []).append(numbers["columns"])
    table = {
        name: {
            column: curves.spread(np.array([seed[column] for seed in seeds])) for column in seeds[0]
        }
        | {"seeds": len(seeds)}
        for name, seeds in rows.items()
    }
    violations = sum(numbers["violations"] for numbers in found.values())
    lines = [
        curves.to_markdown(table),
        f"\nRadii beyond an adversarial image: {violations} of {len(found) * ATTACKED}.",
        f"\n{storage.about()}",
    ]
    text = "\n".join(lines) + "\n"
    files.write(out / "table.md", text)
    files.write(out / "table.csv", curves.to_csv(table))
    shown = [n for n in ("sandwich-0", "cayley-0", "pgd_at-0", "j2_lip-0") if n in found]
    figure = plots.error_curves(
        {name: found[name]["distance"] for name in shown},
        radii={name: found[name]["radius"] for name in shown},
        norm_name="l2",
        marks=RADII,
        epsilons=np.linspace(0, 1.5, 151),
    )
    plots.save(figure, out / "curves_l2")
    print(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

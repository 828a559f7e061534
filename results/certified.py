"""Networks that are 1-Lipschitz by construction beside J2-Lip and adversarial training.

    python results/certified.py digits runs/certified results/certified

The data are `digits`, `mnist` or `cifar10`, each with its seconds of training a run, on one core if
not given. Every construction is trained once; the best two by PGD-20 on the validation split with
all the losses, and the best two of these with three seeds (`--once`: neither); then, on digits,
offsets and temperatures of the best. `--rows=cayley,aol,pgd_at` are only these.
Certified are all test images, by the proved constants of margins. The first 1,000 are attacked by
DDN, and by APGD within their certified balls; those of the first 100 that have no certificate at a
radius and no smaller adversarial change yet, by AutoAttack there (`--unattacked`: none). Writes
RESULTS/DATA: a table, the band of certified and attacked errors, and the front of clean against
certified error. Nothing is done twice.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lipreg import attacks, batching, curves, datasets, evaluation, files, runs
from lipreg.certificates import margin_lipschitz
from lipreg.folding import folded
from lipreg.lipschitz.bounds import lipschitz
from lipreg.models.lipschitz.constructions import LAYERS
from lipreg.norms import L2, select
from lipreg.reports import plots, sweeps
from lipreg.runs import compare, storage
from lipreg.runs.compare import Plan, Recipe, Trained
from lipreg.runs.config import Config
from lipreg.training import cpu

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
from configs import cifar10, digits, mnist
from configs.compare import recipes as usual

BY_DDN, BY_AUTOATTACK, BATCH, SURVIVORS = 1000, 100, 100, 32
INSIDE = 0.999  # of a certified radius
PENALISED = ("j2_lip", "pgd_at")
SQRT2 = 2**0.5
KEY = jax.random.key(0)


class Setting(NamedTuple):
    """What is trained on some data: `eps` is the radius that losses ask for."""

    base: Config
    strengths: Mapping[str, Any]
    seconds: float
    eps: float
    radii: tuple[float, ...]
    channels: tuple[int, ...]
    hidden: int
    front: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())  # offsets, temperatures


CIFAR = tuple(round(n / 255, 4) for n in (36, 72, 108))
SETTINGS = {
    "digits": Setting(
        *(digits.get_config("j0"), digits.STRENGTHS, 30.0, 0.5, (0.25, 0.5, 1.0), (16, 32), 64),
        front=((0.25, 0.5, 1.0, 2.0), (0.05, 0.2)),
    ),
    "mnist": Setting(
        *(mnist.get_config("j0"), mnist.STRENGTHS, 300.0, 1.0, (0.5, 1.0, 1.58), (16, 32), 128)
    ),
    "cifar10": Setting(
        *(cifar10.get_config("j0,cnn"), cifar10.CNN_STRENGTHS, 600.0, CIFAR[1], CIFAR),
        *((32, 64), 128),
    ),
}


def built(layer: str, setting: Setting, loss: str) -> Recipe:
    """The network made of a layer, trained by a loss."""
    eps = setting.eps
    losses = {
        "offset": f"offset_cross_entropy(offset={1.5 * SQRT2 * eps:.3g},temperature={eps / 4:.3g})",
        "hkr": f"hkr(alpha=0.9,margin={2 * SQRT2 * eps:.3g})",
        "emma": f"emma(eps={eps:.3g})",
        "annealing": f"logit_annealing(temperature={eps / 4:.3g},"
        f"offset={1.5 * SQRT2 * eps:.3g},eps=0)",
        "gloro": f"gloro(eps={eps:.3g})",
    }
    network = {"channels": setting.channels, "hidden": setting.hidden, "padding": "own"}
    fields = {
        "model.name": "LipschitzCNN",
        "model.activation": "own",
        "model.settings": {"dtype": "float32", "layer": layer, **network},
        **{"train.optimizer": "adam", "train.learning_rate": 0.01, "train.weight_decay": 0.0},
    }
    return Recipe("j0", [{"loss": losses.get(loss, loss)}], fields, approach="A")


def trained(
    setting: Setting, folder: Path, rows: Sequence[str], *, once: bool
) -> dict[str, Trained]:
    """All of the table, the constructions first; `once`: without losses and seeds."""
    base, eps, seconds = setting.base, setting.eps, setting.seconds
    alone = Plan("l2", eps, seconds, trials=1, trial_seconds=seconds, seeds=1, best=0)
    pixels = datasets.load(base.data.name, "validation", dir=base.data.dir).x[0].size
    others = usual("l2", eps, pixels, setting.strengths, base.train)
    narrow = {"model.settings.channels": setting.channels}
    penalised = {
        name: others[name]._replace(fields={**others[name].fields, **narrow})
        for name in PENALISED
        if name in rows
    }
    constructions = {layer: built(layer, setting, "offset") for layer in LAYERS if layer in rows}
    found = compare.train(constructions | penalised, base, alone, folder, silent=True)
    if once:
        return found
    best = sorted(constructions, key=lambda name: compare.error(found[name].runs[0]))[:2]
    by_loss = {name: constructions[name] for name in best} | {
        f"{name}-{loss}": built(name, setting, loss)
        for name in best
        for loss in ("hkr", "emma", "annealing", "gloro")
    }
    return found | compare.train(
        by_loss, base, alone._replace(seeds=3, best=2), folder, silent=True
    )


def measured(run: Path, radii: tuple[float, ...], *, attacked: bool = True) -> dict[str, Any]:
    """Errors in %, the proved constant, and each image's radius and least attacked distance."""
    path = run / ("certified.json" if attacked else "certified_alone.json")
    if path.is_file():
        return files.read(path)
    loaded = runs.load(run)
    images, labels = datasets.to_unit(loaded.dataset.x), loaded.dataset.y
    f = loaded.logits_fn
    bound = lipschitz(f, jnp.asarray(images[:1]))
    constant = bound._replace(margins=bound.margins[0])
    f = folded(f, jnp.asarray(images[:BATCH]))

    def judged(x: Any, y: Any) -> dict[str, Any]:
        radius = margin_lipschitz(partial(_logits, f), x, y, constant=constant).radius
        return {"radius": radius, "wrong": _logits(f, x).argmax(1) != y}

    clean = batching.map_batches(judged, BATCH, images, labels)
    radius = clean["radius"]
    columns = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(loaded.logits_fn.args[0])),
        "% clean error": 100 * float(clean["wrong"].mean()),
        **{f"% certified error at {eps:g}": 100 * float((radius < eps).mean()) for eps in radii},
        "proved constant": float(bound.output[0]),
    }
    found: dict[str, Any] = {"columns": columns}
    if attacked:
        most = min(BY_DDN, len(labels))
        near = batching.map_batches(
            partial(_nearest, f), min(BATCH, most), images[:most], labels[:most], radius[:most]
        )
        distance, points = near["distance"], near["points"][:BY_AUTOATTACK]
        x, y = images[: len(points)], labels[: len(points)]
        for eps in radii:
            broken = np.zeros(len(x), bool)
            if len(left := np.flatnonzero(radius[: len(x)] < eps)):
                known = {"known": points[left], "batch_size": SURVIVORS}
                outcome = evaluation.autoattack(KEY, f, x[left], y[left], eps, norm=L2, **known)
                hit = left[outcome.broken]
                broken[hit], points[hit] = True, outcome.x_adv[outcome.broken]
            columns[f"% AutoAttack error at {eps:g}"] = 100 * float(broken.mean())
            least = np.asarray(_found(f, jnp.asarray(x), jnp.asarray(y), jnp.asarray(points)))
            distance[: len(x)] = np.minimum(distance[: len(x)], least)
        # Distances are measured in float32.
        found["violations"] = int((radius[:most] > distance * (1 + 1e-4)).sum())
        found["attacked"] = most
        found["radius"] = radius[: len(x)].tolist()
        found["distance"] = [float(d) if np.isfinite(d) else 1e9 for d in distance[: len(x)]]
    files.write_json(path, found)
    print(run, flush=True)
    return found


@jax.jit
def _logits(f: Any, x: Any) -> Any:
    return f(x)


@jax.jit
def _found(f: Any, x: Any, y: Any, points: Any) -> Any:
    return curves.distance(f, x, y, points, norm=L2)


@jax.jit
def _nearest(f: Any, x: Any, y: Any, radius: Any) -> Any:
    """DDN's point, or that of APGD in the certified ball if it finds one, and its distance."""
    points = attacks.ddn(KEY, logits_fn=f, x=x, y=y, norm=L2, steps=100)
    inside = attacks.apgd(KEY, f, x, y, INSIDE * radius, norm=L2, steps=20)
    distance, wrong = _found(f, x, y, points), _found(f, x, y, inside)
    closer = wrong < distance
    return {"points": select(closer, inside, points), "distance": jnp.minimum(distance, wrong)}


def front(layer: str, setting: Setting, folder: Path, out: Path) -> str:
    """Clean against certified error by offset and temperature, in units of eps, with a picture."""
    base, eps, seconds = setting.base, setting.eps, setting.seconds
    loss = "offset_cross_entropy(offset={:.3g},temperature={:.3g})"
    points = {
        f"offset {offset:g}, T {t:g}": built(
            layer, setting, loss.format(offset * SQRT2 * eps, t * eps)
        )
        for offset, t in product(*setting.front)
    }
    plan = Plan("l2", eps, seconds, 1, seconds, seeds=3, best=len(points))
    made = compare.train(points, base, plan, folder, silent=True)
    columns = ("% clean error", f"% certified error at {eps:g}")
    errors = {}
    for name, found in made.items():
        each = [measured(run, setting.radii, attacked=False)["columns"] for run in found.runs]
        errors[name] = np.array([[seed[column] for column in columns] for seed in each])
    best = sweeps.front({name: seeds.mean(0).round(9) for name, seeds in errors.items()})
    plots.save(plots.pareto(errors, front=best, over=f"certified error at {eps:g}"), out / "front")
    rows = {
        name: {column: curves.spread(seeds[:, i]) for i, column in enumerate(columns)}
        | {"Pareto": "*" if name in best else ""}
        for name, seeds in errors.items()
    }
    return (
        f"\n`{layer}` by offset, in units of the margin that certifies {eps:g}, and by temperature,"
        f" in units of {eps:g}; mean ± standard deviation over 3 seeds:\n\n"
    ) + curves.to_markdown(rows)


def main(
    data: str,
    setting: Setting,
    folder: Path,
    out: Path,
    *,
    rows: Sequence[str],
    once: bool,
    attacked: bool,
) -> None:
    cpu.tune()
    out.mkdir(parents=True, exist_ok=True)
    made = trained(setting, folder, rows, once=once)
    found = {
        name: [measured(run, setting.radii, attacked=attacked) for run in t.runs]
        for name, t in made.items()
        if all(np.isfinite(compare.error(run)) for run in t.runs)
    }
    table = {}
    for name, seeds in found.items():
        columns = {key: [seed["columns"][key] for seed in seeds] for key in seeds[0]["columns"]}
        if attacked:  # by AutoAttack: those at distance 0 were wrong before
            alone = [100 * float(np.mean(np.equal(seed["distance"], 0))) for seed in seeds]
            columns[f"% clean error of {len(seeds[0]['distance'])}"] = alone
        steps = compare.fitting(setting.seconds, made[name].pace["step_s"])
        table[name] = {
            "epochs": round(steps / made[name].pace["epoch_steps"], 2),
            **{column: curves.spread(values) for column, values in columns.items()},
            "seeds": len(seeds),
        }
    lines = [
        f"# {data}, {setting.seconds:g} s of training a run on {where(made)}, l2\n",
        curves.to_markdown(table),
    ]
    if diverged := ", ".join(name for name in made if name not in found):
        lines.append(f"\nDiverged: {diverged}.")
    if attacked:
        every = [seed for seeds in found.values() for seed in seeds]
        beyond, images = (sum(seed[key] for seed in every) for key in ("violations", "attacked"))
        lines.append(f"\nRadii beyond an adversarial image: {beyond} of {images}.")
    layers = [layer for layer in LAYERS if layer in rows]
    best = min(layers, key=lambda name: compare.error(made[name].runs[0]), default="")
    if setting.front[0] and best:
        lines.append(front(best, setting, folder, out))
    text = "\n".join([*lines, f"\n{json.dumps(storage.about())}"]) + "\n"
    files.write(out / "table.md", text)
    files.write(out / "table.csv", curves.to_csv(table))
    print(text)
    if not attacked:
        return
    certified = f"% certified error at {setting.eps:g}"
    most = min(found, key=lambda name: found[name][0]["columns"][certified], default="")
    drawn = (best, most, "aol", "pgd_at", "j2_lip")
    shown = {name: found[name][0] for name in drawn if name in found}
    figure = plots.error_curves(
        {name: seed["distance"] for name, seed in shown.items()},
        radii={name: seed["radius"] for name, seed in shown.items()},
        norm_name="l2",
        marks=setting.radii,
        epsilons=np.linspace(0, 1.5 * setting.radii[-1], 151),
    )
    plots.save(figure, out / "curves_l2")


def where(made: Mapping[str, Trained]) -> str:
    """The devices that trained."""
    about = [files.read(run / "about.json") for found in made.values() for run in found.runs]
    return ", ".join(sorted({device for each in about for device in each["devices"]}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", choices=SETTINGS)
    parser.add_argument("runs", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--seconds", type=float, help="of training a run")
    parser.add_argument("--once", action="store_true", help="without other losses and seeds")
    parser.add_argument(
        "--unattacked", action="store_true", help="clean and certified errors alone"
    )
    parser.add_argument("--rows", help="some of the networks; default: all")
    args = parser.parse_args()
    names = (*LAYERS, *PENALISED)
    asked = args.rows.split(",") if args.rows else names
    if unknown := [name for name in asked if name not in names]:
        parser.error(f"--rows={unknown[0]}; choose among {', '.join(names)}")
    chosen = SETTINGS[args.data]
    main(
        args.data,
        chosen._replace(seconds=args.seconds or chosen.seconds),
        args.runs / args.data,
        args.results / args.data,
        rows=asked,
        once=args.once,
        attacked=not args.unattacked,
    )

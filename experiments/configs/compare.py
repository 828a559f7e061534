"""The recipes of experiments/compare.py: what is trained, and which settings each may try.

A recipe's settings are tried in this order, as many as there are trials, and the best by validation
is kept. Radii are in units of the attack's, strengths have their papers' defaults first.
"""

from collections.abc import Mapping
from typing import Any

from lipreg.runs.compare import Recipe
from lipreg.runs.config import Config

RADII = (1.0, 0.5, 1.5, 2.0)  # of training, in those of the attack


def recipes(
    norm: str, eps: float, pixels: int, known: Mapping[str, Mapping[str, float]], train: Config
) -> dict[str, Recipe]:
    """Those for attacks of radius eps on images of so many pixels.

    `known` are the strengths of the data set's config file, of which L0 is taken; `train` is the
    section of that config with the learning rate and the optimizer.
    """
    # A ball of the other norm that is about as hard: of MNIST l2 0.7 to linf 0.1.
    other = {"linf": pixels**0.5 / 4, "l2": 4 / pixels**0.5}[norm] * eps
    linf, l2 = (eps, other) if norm == "linf" else (other, eps)

    def within(radius: float, **more: Any) -> list[dict[str, Any]]:
        return [{"strengths.eps": r * radius, **_strengths(more)} for r in RADII]

    def weighed(field: str, *values: float | str, **more: Any) -> list[dict[str, Any]]:
        return [{field: value, **_strengths(more)} for value in values]

    def tried(*values: float, **more: float) -> list[dict[str, Any]]:
        return weighed("strengths.lam", *values, **more)

    def around(text: str, *values: float, **more: float) -> list[dict[str, Any]]:
        inner = "" if train.optimizer == "sgd" else f", inner={train.optimizer!r}"
        return weighed("train.optimizer", *(text.format(v, inner) for v in values), **more)

    at = {"options.norm": norm}
    exact = {"options.method": "penalty"}
    rates = lambda *factors: [round(factor * train.learning_rate, 12) for factor in factors]
    decays = [d for d in (3e-3, 1e-3, 1e-2, 3e-2, 1e-1) if d != train.weight_decay]  # that of j0
    made = {
        "j0": Recipe(
            "j0", weighed("train.learning_rate", *rates(1.0, 0.4, 2.0, 0.2)), approach="B"
        ),
        "weight_decay": Recipe("j0", weighed("train.weight_decay", *decays[:4]), approach="B"),
        "j1": Recipe("j1", within(linf), approach="C"),
        "j1_penalty": Recipe("j1", within(linf), exact, approach="C"),
        # GradNorm (2409.20139), 0.8 l + 1.2 eps ||grad l||_1, over 0.8.
        "grad_norm": Recipe(
            "j1",
            within(1.5 * linf),
            exact | {"train.ramp": 0.2, "train.ramped": "eps"},
            approach="C",
        ),
        "j2": Recipe("j2", within(l2), approach="C"),
        "j2_penalty": Recipe("j2", within(l2), exact, approach="C"),
        "j2_lip": Recipe(
            "j2_lip",
            [
                {"strengths.eps": r * l2, "strengths.lam": lam}
                for r, lam in ((1.0, 0.003), (1.0, 0.01), (2.0, 0.003), (0.5, 0.01))
            ],
            approach="C",
        ),
        "tikhonov": Recipe("tikhonov", tried(0.1, 1.0, 0.01, 0.3), approach="C"),
        "pgd_at": Recipe("pgd_at", within(eps), at, approach="B"),
        "fgsm_rs": Recipe("fgsm_rs", within(eps), at, approach="B"),
        # Fast adversarial training as it was published, with the highest rates of its cycle.
        "fast_at": Recipe(
            "fgsm_rs",
            weighed("train.learning_rate", *rates(2.0, 1.0, 4.0, 0.4), eps=eps),
            at | {"train.schedule": "cyclic"},
            approach="B",
        ),
        "n_fgsm": Recipe("n_fgsm", within(eps), at, approach="B"),
        "free_at": Recipe("free_at", within(eps), at | {"train.replay": 8}, approach="B"),
        "trades": Recipe(
            "trades", weighed("strengths.beta", 6.0, 3.0, 1.0, 10.0, eps=eps), at, approach="B"
        ),
        "mart": Recipe(
            "mart", weighed("strengths.beta", 5.0, 2.0, 1.0, 10.0, eps=eps), at, approach="B"
        ),
        "grad_align": Recipe("grad_align", tried(0.2, 2.0, 0.06, 0.6, eps=eps), at, approach="B"),
        "elle": Recipe(
            "elle",
            tried(5000.0, 1000.0, 10000.0, 200.0, eps=eps),
            at,
            approach="B",
        ),
        "cure": Recipe("cure", tried(4.0, 1.0, 10.0, 0.3, eps=eps), at, approach="C"),
        "llr": Recipe("llr", tried(4.0, 1.0, 10.0, 2.0, mu=3.0, eps=eps), at, approach="C"),
        "jacobian": Recipe("jacobian", tried(0.01, 0.1, 0.001, 1.0), approach="C"),
        "sam": Recipe("j0", around("sam(rho={}{})", 0.05, 0.1, 0.2, 0.02), approach="B"),
        "awp": Recipe(
            "pgd_at",
            around("awp(gamma={}{})", 0.01, 0.005, 0.002, 0.02, eps=eps),
            at,
            approach="B",
        ),
        "deep_relaxation": Recipe(
            "j0", around("local_entropy(coupling={}{})", 0.01, 0.1, 0.001, 1.0), approach="B"
        ),
    }
    lipschitz = {
        "model.name": "LipschitzCNN",
        "model.activation": "own",
        **{"train.optimizer": "adam", "train.learning_rate": 0.01, "train.weight_decay": 0.0},
        **{"train.momentum": 0.9, "train.nesterov": False},  # their defaults: adam reads neither
    }
    margins = [2**0.5 * radius * l2 for radius in (2, 4, 1, 8)]
    offsets = [{"loss": f"offset_cross_entropy(offset={margin:.3g})"} for margin in margins]
    network = {"channels": (16, 32), "hidden": 128, "padding": "own", "dtype": "float32"}
    for layer in ("aol", "spectral"):
        own = lipschitz | {"model.settings": {**network, "layer": layer}}
        made[f"lipschitz_{layer}"] = Recipe("j0", offsets, own, approach="A")
    if "lip_excess" in known:
        L0 = known["lip_excess"]["L0"]
        settings = tried(0.1, 1.0, 0.01, 0.3, L0=L0)
        made["lip_excess"] = Recipe("lip_excess", settings, approach="C")
    return made


def _strengths(more: Mapping[str, Any]) -> dict[str, Any]:
    return {f"strengths.{name}": value for name, value in more.items()}

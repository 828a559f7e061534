"""The attacks that lipreg shares with torchattacks and foolbox, with one set of settings."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from peers import Peer
from peers import by_foolbox as fb
from peers import by_torchattacks as ta

from lipreg import attacks
from lipreg.attacks.copies import likeliest_wrong
from lipreg.evaluation import Stage
from lipreg.losses import dlr
from lipreg.norms import L1, L2, LINF, Norm

LARGEST = {LINF: 0.5, L2: 6.0}  # of the radii in a list
SLOW = ("boundary", "hopskipjump")


class Case(NamedTuple):
    """An attack in one norm.

    Attributes:
      ours: `(key, logits_fn, x, y) -> x_adv`, with `eps` last where it is at a radius; or else the
        stages of a cascade.
      theirs: the same in other toolboxes, by their names.
    """

    name: str
    norm: Norm
    at_radius: bool
    ours: tuple[Stage, ...] | Callable
    theirs: dict[str, Peer]


def cases(classes: int, share: float) -> list[Case]:
    """All of them, with a share of their steps. Step sizes at a radius are fractions of it."""
    n = lambda steps: max(round(steps * share), 1)
    pgd = {"steps": n(40), "step_size": 0.1}
    mi = {"steps": n(10), "step_size": 0.1, "momentum": 1.0, "random_start": False}
    # A tenth of the toolboxes' steps, at ten times their rate: one image takes 900 steps.
    cw: dict[str, Any] = {"steps": n(100), "searches": 9, "learning_rate": 0.1}
    search: dict[str, Any] = {"steps": n(100), "binary_search_steps": 9}
    # foolbox looks for no radius: as its users do, every image is attacked at each of a list.
    bim = {"steps": 10, "rel_stepsize": 1 / 6}
    radii = {norm: np.geomspace(most / 100, most, n(31)).tolist() for norm, most in LARGEST.items()}
    return [
        short(
            "fgsm",
            LINF,
            attacks.fgsm,
            torchattacks=ta("FGSM"),
            foolbox=fb("LinfFastGradientAttack"),
        ),
        radius(
            "pgd",
            LINF,
            at(attacks.pgd, norm=LINF, **pgd),
            torchattacks=ta("PGD", steps=n(40), alpha=0.1),
            foolbox=fb("LinfPGD", steps=n(40), rel_stepsize=0.1),
        ),
        radius(
            "pgd",
            L2,
            at(attacks.pgd, norm=L2, **pgd),
            torchattacks=ta("PGDL2", steps=n(40), alpha=0.1),
            foolbox=fb("L2PGD", steps=n(40), rel_stepsize=0.1),
        ),
        short(
            "mi-fgsm",
            LINF,
            partial(attacks.pgd, norm=LINF, **mi),
            torchattacks=ta("MIFGSM", steps=n(10), alpha=0.1),
            foolbox=fb("LinfMomentumIterativeFastGradientMethod", steps=n(10), rel_stepsize=0.1),
        ),
        *(
            case
            for norm, name in ((LINF, "Linf"), (L2, "L2"))
            for case in auto_attack(norm, name, classes, n)
        ),
        nearest(
            "basic_iterative",
            LINF,
            foolbox=fb("LinfBasicIterativeAttack", **bim, radii=radii[LINF]),
        ),
        nearest(
            "basic_iterative", L2, foolbox=fb("L2BasicIterativeAttack", **bim, radii=radii[L2])
        ),
        nearest("deepfool", LINF, steps=n(50), foolbox=fb("LinfDeepFoolAttack", steps=n(50))),
        nearest(
            "deepfool",
            L2,
            steps=n(50),
            torchattacks=ta("DeepFool", steps=n(50)),
            foolbox=fb("L2DeepFoolAttack", steps=n(50)),
        ),
        nearest("ddn", L2, steps=n(100), foolbox=fb("DDNAttack", steps=n(100))),
        nearest("fmn", LINF, steps=n(100), foolbox=fb("LInfFMNAttack", steps=n(100))),
        nearest("fmn", L2, steps=n(100), foolbox=fb("L2FMNAttack", steps=n(100))),
        nearest("fmn", L1, steps=n(100), foolbox=fb("L1FMNAttack", steps=n(100))),
        nearest(
            "carlini_wagner", L2, **cw, foolbox=fb("L2CarliniWagnerAttack", **search, stepsize=0.1)
        ),
        nearest(
            "ead",
            L1,
            **cw,
            foolbox=fb("EADAttack", **search, initial_stepsize=0.1, decision_rule="L1"),
        ),
        nearest("boundary", L2, steps=n(1000), foolbox=fb("BoundaryAttack", steps=n(1000))),
        nearest("hopskipjump", L2, steps=n(10), foolbox=fb("HopSkipJumpAttack", steps=n(10))),
    ]


def auto_attack(norm: Norm, name: str, classes: int, n: Callable[[int], int]) -> list[Case]:
    """Its parts, with fewer steps. Every wrong class in turn is a target, on what is left."""
    ours: dict[str, Any] = {"norm": norm}
    theirs: dict[str, Any] = {"norm": name}
    targets: dict[str, Any] = {"n_classes": classes}
    return [
        radius(
            "apgd-ce",
            norm,
            at(attacks.apgd, steps=n(100), **ours),
            torchattacks=ta("APGD", steps=n(100), **theirs),
        ),
        radius(
            "apgd-t",
            norm,
            towards(attacks.apgd, classes - 1, steps=n(20), loss=dlr, **ours),
            rounds=classes - 1,
            torchattacks=ta("APGDT", steps=n(20), **theirs, **targets),
        ),
        radius(
            "fab",
            norm,
            at(attacks.fab, steps=n(20), classes=classes, **ours),
            torchattacks=ta("FAB", steps=n(20), **theirs, **targets),
        ),
        radius(
            "fab-t",
            norm,
            towards(attacks.fab, classes - 1, steps=n(20), **ours),
            rounds=classes - 1,
            torchattacks=ta("FAB", steps=n(20), multi_targeted=True, **theirs, **targets),
        ),
        radius(
            "square",
            norm,
            at(attacks.square, queries=n(1000), **ours),
            torchattacks=ta("Square", n_queries=n(1000), **theirs),
        ),
    ]


def at(attack: Callable, **options: Any) -> Callable:
    """The attack as a stage of a cascade."""
    return lambda key, f, x, y, eps, round_: attack(key, f, x, y, eps, **options)


def towards(attack: Callable, targets: int, **options: Any) -> Callable:
    """The attack as a stage whose rounds approach the `targets` likeliest wrong classes in turn."""

    def one(key: Any, f: Any, x: Any, y: Any, eps: Any, round_: Any) -> Any:
        target = likeliest_wrong(f(x), y, targets)[:, round_]
        return attack(key, f, x, y, eps, targets=target[:, None], **options)

    return one


def short(name: str, norm: Norm, attack: Callable, **theirs: Peer) -> Case:
    """An attack at a radius by itself."""
    return Case(name, norm, True, attack, theirs)


def radius(name: str, norm: Norm, attack: Callable, *, rounds: int = 1, **theirs: Peer) -> Case:
    """An attack at a radius as a stage of a cascade, behind two steps of PGD."""
    two = at(attacks.pgd, norm=norm, steps=2, step_size=0.8, random_start=False)
    return Case(name, norm, True, (Stage("first", two), Stage(name, attack, rounds)), theirs)


def nearest(
    name: str, norm: Norm, *, foolbox: Peer, torchattacks: Peer | None = None, **options: Any
) -> Case:
    """A minimum-norm attack, called by its name in `lipreg.attacks`."""
    theirs = {"foolbox": foolbox} | ({"torchattacks": torchattacks} if torchattacks else {})
    attack = partial(getattr(attacks, name), norm=norm, **options)
    return Case(name, norm, False, attack, theirs)

"""What the Python API refuses: one line with the value and the choices, and no wrong number."""

import inspect
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

from lipreg import (
    attacks,
    certificates,
    curves,
    datasets,
    evaluation,
    lipschitz,
    losses,
    norms,
    objectives,
    optimizers,
    training,
)
from lipreg.contracts import two_logits
from lipreg.lipschitz import Constant
from lipreg.norms import L1, L2, LINF

KEY = jax.random.key(0)
X, Y = jax.random.uniform(KEY, (6, 4)), jnp.arange(6) % 3
GRID = jnp.array([0.1, 0.2])
NAN = float("nan")


def net(x: Array) -> Array:
    return 5 * x[:, :3]


def evaluate(x=X, y=Y, f=net, **options):
    options = {"protocol": "pgd", "radii": {"l2": (0.1,)}, "progress": None} | options
    return evaluation.evaluate(f, x, y, **options)


def fit(x=np.zeros((6, 4), np.float32), y=np.zeros(6, np.int32), classes=2, **options):
    apply = lambda params, model_state, x, train, key: (x[:, :2] * params["w"], model_state)
    tx = optax.sgd(0.1)
    step = training.make_step(apply, objectives.j0, tx)
    state = training.init(KEY, {"w": jnp.ones(2)}, {}, tx)
    options = {"batch_size": 3, "steps": 1, "key": KEY} | options
    return next(training.fit(step, state, {}, datasets.Dataset(x, y, classes), **options))


def images(value: float) -> np.ndarray:
    return np.full((6, 2, 2, 1), value, np.float32)


ALL = (L1, L2, LINF)
NO_NORM = "No norm 'l7'; choose one of l1, l2, linf, or lp"
ONE_LOGIT = "one logit per image.*two_logits"
CLASSES = "y has values from 0 to 3; logits have 0 to 2"
SHAPES = r"logits of shape \[6, 3\] and y of shape"
BAD = {
    "weight of a hinge": (lambda: losses.hkr(net(X), Y, alpha=-1.0), "alpha = -1.0 of hkr"),
    "smoothing above 1": (
        lambda: losses.smoothed_cross_entropy(net(X), Y, smoothing=2.0),
        "smoothing = 2.0 of smoothed_cross_entropy; it must be a number from 0 to 1",
    ),
    "temperature below 0": (
        lambda: losses.offset_cross_entropy(net(X), Y, temperature=-1.0),
        "temperature = -1.0 of offset_cross_entropy; it must be a number of at least 1e-06",
    ),
    "radius of a loss": (lambda: losses.emma(net(X), Y, eps=-1.0), "eps = -1.0 of emma"),
    "weight of an extra logit": (lambda: losses.gloro(net(X), Y, weight=NAN), "weight = nan of gl"),
    "power of annealing": (lambda: losses.logit_annealing(net(X), Y, gamma="a"), "gamma = 'a' of"),
    "constant of a margin": (
        lambda: losses.emma(net(X), Y, margins=-1.0),
        "margins = -1.0; they must be 0 or more",
    ),
    "margin of a hinge": (lambda: losses.hkr(net(X), Y, margin=NAN), "margin = nan of hkr"),
    "offset of nan": (
        lambda: losses.offset_cross_entropy(net(X), Y, offset=NAN),
        "offset = nan of offset_cross_entropy",
    ),
    "negative step": (
        lambda: objectives.fgsm_rs(net, X, Y, eps=0.1, key=KEY, alpha=-1.25),
        "an inner attack: step_size = -1.25; it must be 0 or more, and finite",
    ),
    "negative clip": (lambda: optimizers.build("sgd", 0.1, clip=-1.0), "clip = -1.0; it must be 0"),
    "weights that grow": (lambda: optimizers.sgd(0.1, weight_decay=-1.0), "weight_decay = -1.0;"),
    "no accumulation": (lambda: optimizers.sgd(0.1, accumulate=0), "build: accumulate = 0"),
    "average of halves": (
        lambda: optimizers.ema(jnp.ones(1, jnp.bfloat16), jnp.ones(1, jnp.bfloat16), 0.999),
        "ema: weights are bfloat16; their average would stand still",
    ),
    "rounded gradients": (
        lambda: certificates.second_order(
            net, X.astype(jnp.bfloat16), Y, curvature=Constant(1.0, "exact")
        ),
        "second_order: x is bfloat16; want float32",
    ),
    "a box without an end": (
        lambda: certificates.interval_bound(net, X, Y, bounds=(-math.inf, math.inf)),
        "want two finite numbers",
    ),
    "radii in a column": (
        lambda: certificates.margin_lipschitz(
            net, X, Y, constant=Constant(1.0, "exact"), eps=jnp.ones((6, 1))
        ),
        r"eps has shape \[6, 1\]; want a number or \[6\]",
    ),
    "no steps between reports": (lambda: fit(every=0), "fit: every = 0; it must be at least 1"),
    "no replay": (lambda: fit(replay=0), "fit: replay = 0; it must be at least 1"),
    "norm of an inner attack": (
        lambda: objectives.pgd_at(net, X, Y, eps=0.1, key=KEY, attack="pgd(norm='l2')"),
        "norm of pgd: the attack gets that of the objective",
    ),
    "norm of an attack": (lambda: attacks.pgd(KEY, net, X, Y, 0.1, norm="l7"), NO_NORM),
    "norm that is a number": (lambda: attacks.fmn(KEY, net, X, Y, norm=2), "No norm 2; choose one"),
    "norm of a distance": (lambda: curves.distance(net, X, Y, X, norm="l7"), NO_NORM),
    "norm of AutoAttack": (lambda: evaluation.autoattack(KEY, net, X, Y, 0.1, norm="l7"), NO_NORM),
    "norm of the masking report": (
        lambda: evaluation.masking_report(KEY, net, X, Y, 0.1, norm="l7"),
        NO_NORM,
    ),
    "radius of nan": (lambda: attacks.pgd(KEY, net, X, Y, NAN), "eps = nan; a radius"),
    "radius without an end": (
        lambda: attacks.fgsm(KEY, net, X, Y, math.inf),
        "eps = inf; a radius",
    ),
    "negative radius": (lambda: attacks.fgsm(KEY, net, X, Y, -0.1), "eps = -0.1; a radius"),
    "radius of nan, trained": (lambda: objectives.j1(net, X, Y, eps=NAN), "eps = nan; a radius"),
    "negative radius, trained": (
        lambda: objectives.j2_lip(net, X, Y, eps=-1.0, lam=0.1),
        "eps = -1.0; a radius",
    ),
    "a number as key": (
        lambda: attacks.pgd(0, net, X, Y, 0.1),
        "A key of 0; make it with jax.random.key",
    ),
    "a curve in another norm": (
        lambda: curves.error_curve(KEY, net, X, Y, GRID, attack=attacks.fgsm, norm=L2),
        "norm = L2, and fgsm attacks in LINF",
    ),
    "a curve of nearest images": (
        lambda: curves.error_curve(KEY, net, X, Y, GRID, attack=partial(attacks.ddn, steps=3)),
        "ddn takes no radius: it looks for the nearest image.*curves.distance",
    ),
    "logits of one class": (lambda: curves.error(lambda x: x[:, :1], X, Y * 0), ONE_LOGIT),
    "logits without classes": (lambda: curves.error(lambda x: x[:, 0], X, Y), ONE_LOGIT),
    "attack on one logit": (lambda: attacks.pgd(KEY, lambda x: x[:, 0], X, Y, 0.1), ONE_LOGIT),
    "evaluation of one logit": (lambda: evaluate(f=lambda x: x[:, 0]), ONE_LOGIT),
    "loss of one logit": (lambda: losses.cross_entropy(X[:, :1], Y * 0), "One logit: .*two_logits"),
    "loss of a class too many": (
        lambda: losses.cross_entropy(net(X), jnp.where(Y == 2, 3, Y)),
        CLASSES,
    ),
    "margin of a class too many": (lambda: losses.margin(net(X), jnp.where(Y == 2, 3, Y)), CLASSES),
    "dlr of a class below 0": (lambda: losses.dlr(net(X), Y - 1), "y has values from -1 to 1"),
    "loss of fewer labels": (lambda: losses.kl(net(X), Y[:5]), SHAPES),
    "loss of labels in a column": (lambda: losses.cross_entropy(net(X), Y[:, None]), SHAPES),
    "loss of a distribution on other classes": (
        lambda: losses.squared_l2(net(X), jnp.ones((6, 4)) / 4),
        SHAPES,
    ),
    "objective of fewer labels": (lambda: objectives.j0(net, X, Y[:5]), SHAPES),
    "evaluation of fewer labels": (lambda: evaluate(y=Y[:5]), r"y has shape \[5\]"),
    "pixels beyond the bounds": (lambda: evaluate(x=2 * X), "outside bounds"),
    "pixels of nan": (lambda: evaluate(x=X.at[0, 0].set(NAN)), "x has values of nan: 1 of 24"),
    "pixels of nan, attacked": (
        lambda: attacks.pgd(KEY, net, X.at[0].set(NAN), Y, 0.1),
        "x has values of nan: 4 of 24",
    ),
    "pixels of 0 to 255 as floats": (lambda: fit(images(200.0)), "look like pixels of 0 to 255"),
    "pixels beyond their bounds": (
        lambda: fit(images(200.0), bounds=(0.0, 16.0)),
        "look like pixels of 0 to 255",
    ),
    "pixels of nan, trained": (lambda: fit(images(NAN)), "x has values that are not finite"),
    "pixels as integers": (lambda: fit(np.zeros((6, 4), int)), "x is int64; want uint8"),
    "a data set of unequal lengths": (lambda: fit(y=np.zeros(5, np.int32)), "of 6 x and 5 y"),
    "a data set with a class too many": (
        lambda: fit(y=np.arange(6, dtype=np.int32)),
        "y has classes from 0 to 5; of 2 there are 0 to 1",
    ),
    "a data set of fractional classes": (lambda: fit(y=np.zeros(6)), r"y is float64\[6\]; want"),
    "a batch of more than the data": (lambda: fit(batch_size=7), "batch_size = 7 of 6 examples"),
    "a batch of nothing": (lambda: fit(batch_size=0), "batch_size = 0 of 6 examples"),
}


RADIAL = {
    "fgsm_rs": {"key": KEY},
    "n_fgsm": {"key": KEY},
    "trades": {"key": KEY, "beta": 1.0},
    "mart": {"key": KEY, "beta": 1.0},
    "pgd_at": {"key": KEY, "attack": "ddn(steps=2)", "norm": "l2"},
    "grad_align": {"key": KEY, "lam": 1.0},
    "elle": {"key": KEY, "lam": 1.0},
    "cure": {"lam": 1.0},
    "llr": {"key": KEY, "lam": 1.0, "mu": 1.0},
    "free_at": {},
}


@pytest.mark.parametrize("eps", [-0.1, math.inf, NAN])
@pytest.mark.parametrize("name", RADIAL)
def test_no_objective_trains_at_a_radius_that_is_none(name, eps):
    with pytest.raises(ValueError, match="a radius must be 0 or more, and finite"):
        getattr(objectives, name)(net, X, Y, eps=eps, **RADIAL[name])


@pytest.mark.parametrize("case", BAD)
def test_nonsense_is_refused_in_one_line(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)


def traced(make):
    """The program of a norm or its name as text, without the addresses of functions."""
    return lambda norm: re.sub(r" at 0x\w+", "", str(make(norm)))


def served(program):
    try:
        program()
    except ValueError as error:
        if "no form for the norm" not in str(error):
            raise
        return False
    return True


def takes_a_norm(room):
    """The public functions of a room that have a norm by default."""
    functions = {name: getattr(room, name) for name in room.__all__}
    callables = {name: f for name, f in functions.items() if inspect.isfunction(f)}
    return [
        pytest.param(f, inspect.signature(f).parameters, id=name)
        for name, f in callables.items()
        if "norm" in inspect.signature(f).parameters
    ]


@pytest.mark.parametrize(("f", "takes"), takes_a_norm(attacks))
def test_an_attack_takes_its_norm_by_name(f, takes):
    given = {"eps": 0.1} if "eps" in takes else {}
    program = traced(
        lambda norm: jax.make_jaxpr(partial(f, logits_fn=net, norm=norm, **given))(KEY, x=X, y=Y)
    )
    by_norm = {norm.name: program(norm) for norm in ALL if served(partial(program, norm))}
    assert by_norm == {name: program(name) for name in by_norm}
    assert len(set(by_norm.values())) == len(by_norm) > 0


@pytest.mark.parametrize(("f", "takes"), takes_a_norm(objectives))
def test_an_objective_takes_its_norm_by_name(f, takes):
    given = dict.fromkeys(objectives.strengths(f), 0.1) | ({"key": KEY} if "key" in takes else {})
    program = traced(lambda norm: jax.make_jaxpr(partial(f, net, norm=norm, **given))(X, Y))
    by_norm = {norm.name: program(norm) for norm in ALL if served(partial(program, norm))}
    assert by_norm == {name: program(name) for name in by_norm}
    assert len(set(by_norm.values())) == len(by_norm) > 0
    with pytest.raises(ValueError, match=NO_NORM):
        program("l7")


def test_constants_take_their_norms_by_name():
    weight, f = np.array([[1.0, 2.0], [3.0, 4.0]]), lambda x: jnp.sin(x[:, 0]) + 2 * x[:, 1]
    constants = {norm: lipschitz.of_linear(weight, norm=norm, label_norm=norm) for norm in ALL}
    assert len(set(constants.values())) == 3
    assert len({float(lipschitz.gradient_norms(f, X, norm=norm)[0]) for norm in ALL}) == 3
    for norm in ALL:
        named = {"norm": norm.name, "label_norm": norm.name}
        plain = {"norm": norm, "label_norm": norm}
        assert lipschitz.of_linear(weight, **named) == lipschitz.of_linear(weight, **plain)
        np.testing.assert_array_equal(
            lipschitz.gradient_norms(f, X, norm=norm.name),
            lipschitz.gradient_norms(f, X, norm=norm),
        )
    with pytest.raises(ValueError, match=NO_NORM):
        lipschitz.of_data(np.asarray(X), np.arange(6), norm="l7")


def test_norms_are_printed_as_they_are_written():
    assert repr([L1, L2, LINF, norms.lp(1.5)]) == "[L1, L2, LINF, lp(1.5)]"
    assert " = L2, bounds" in str(inspect.signature(attacks.pgd))


ROOMS = (attacks, certificates, curves, evaluation, lipschitz, losses, norms, objectives, training)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
def test_help_calls_types_by_the_names_that_the_source_has(room):
    for f in filter(inspect.isfunction, map(partial(getattr, room), room.__all__)):
        assert not {"jaxlib", "collections"} & {*re.findall(r"\w+", str(inspect.signature(f)))}, f


def test_a_curve_is_measured_in_the_norm_of_its_attack():
    attack = partial(attacks.pgd, norm=LINF, steps=3, random_start=False)
    curve = partial(curves.minimal_distance, KEY, net, X, Y, GRID)
    own = curve(attack=attack)
    np.testing.assert_array_equal(own, curve(attack=attack, norm="linf"))
    reached = own[jnp.isfinite(own)]
    assert len(reached)
    assert float(reached.max()) <= 0.2 * (1 + 1e-4)  # in l_2: up to 0.4


def test_a_model_of_one_logit_is_lifted_to_two():
    z = jnp.linspace(-30.0, 30.0, 7)
    lifted = two_logits(lambda x: x)
    for shaped in (z, z[:, None]):
        np.testing.assert_allclose(
            jax.nn.softmax(lifted(shaped))[:, 1], jax.nn.sigmoid(z), rtol=1e-6
        )
    loss = losses.cross_entropy(lifted(z), jnp.ones(7, int))
    np.testing.assert_allclose(loss, jax.nn.softplus(-z), rtol=1e-6, atol=1e-7)


def test_logits_of_nan_fail_the_check_of_gradients():
    half = lambda x: jnp.where(x[:, :1] > 0.5, NAN, net(x))
    checks = evaluation.masking_report(KEY, half, X, Y, 0.01, steps=2, queries=2)
    share = float((X[:, 0] > 0.5).mean())
    gradients = next(check for check in checks if check.name == "gradients")
    assert gradients.status == "fail"
    assert gradients.value == pytest.approx(share, abs=1e-6)


def test_whole_numbers_within_their_bounds_are_no_pixels_of_0_to_255():
    counts = datasets.Dataset(images(16.0), np.zeros(6, np.int32), 2)
    datasets.check(counts, (0.0, 16.0))
    with pytest.raises(ValueError, match="whole numbers up to 16, which look like pixels"):
        datasets.check(counts)

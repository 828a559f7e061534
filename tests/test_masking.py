"""Honest networks get no flag, planted masks always do: one compiled family holds them all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.tree_util import Partial

from lipreg import batching, datasets, models, objectives, optimizers, training
from lipreg.evaluation import masking
from lipreg.evaluation.checks import answered
from lipreg.evaluation.masking import masking_report, to_markdown, verdict
from lipreg.norms import L1, L2, lp

KEY = jax.random.key(0)
N, EPS = 96, 0.1
DIGITS, HELD_OUT = (datasets.load("digits", split) for split in ("train", "test"))
X, Y = datasets.to_unit(HELD_OUT.x[:N]), jnp.asarray(HELD_OUT.y[:N])
LINEAR = models.build("MLP", classes=10, widths=(48,))
TANH = models.build("MLP", classes=10, widths=(96,), head="tanh")
APPLY = {module: models.functional(module) for module in (LINEAR, TANH)}


def trainer(module, objective):
    """`strengths -> (params, model_state)` after 300 steps on the digits; one program."""
    variables = module.init(KEY, X[:1], False)
    params = variables.pop("params")
    tx = optimizers.sgd(0.05)
    step = training.make_step(APPLY[module], objective, tx)
    x, y = jnp.asarray(DIGITS.x), jnp.asarray(DIGITS.y)
    epochs = [batching.epoch_batches(jax.random.key(i), len(y), 64) for i in range(15)]
    rows = jnp.asarray(np.concatenate(epochs)[:300])

    @jax.jit
    def run(strengths):
        one = lambda state, rows: (step(state, strengths, (x[rows], y[rows]))[0], None)
        state = lax.scan(one, training.init(KEY, params, variables, tx), rows)[0]
        return state.params, state.model_state

    return lambda **strengths: run(jax.tree.map(jnp.float32, strengths))


# The planted masks: (logits of an honest network, x) -> logits.


def from_bits(x):
    """Noise that is a function of the image's bits: a random network that looks pure."""
    bits = lax.bitcast_convert_type(x.reshape(len(x), -1).sum(1), jnp.uint32)
    keys = jax.vmap(lambda b: jax.random.fold_in(KEY, b))(bits)
    return jax.vmap(lambda key: jax.random.normal(key, (10,)))(keys)


def backwards(scale):
    """The identity, with a derivative of its own."""
    f = jax.custom_vjp(lambda x: x)
    f.defvjp(lambda x: (x, None), lambda _, g: (scale * g,))
    return f


def to_nearest(x):
    """How far the nearest of the images X is, and its class."""
    squares = jnp.square(x.reshape(len(x), 1, -1) - X.reshape(1, N, -1)).sum(2)
    return jnp.sqrt(squares.min(1) + 1e-12)[:, None], jax.nn.one_hot(Y[squares.argmin(1)], 10)


def rings(net, x):
    """Around each image, spheres on which its class is likeliest: local traps for an ascent."""
    distance, own = to_nearest(x)
    return net(x) + 8 * (1 + jnp.cos(2 * jnp.pi * distance / 0.3)) * own


def peak(net, x):
    """A summit so narrow that no step meets it, where the clean image's gradient is taken."""
    distance, own = to_nearest(x)
    return net(x) + 20 * jnp.exp(-0.5 * jnp.square(distance / 0.05)) * own


def away(x):
    """The change from the nearest of the images X, and its class."""
    squares = jnp.square(x.reshape(len(x), 1, -1) - X.reshape(1, N, -1)).sum(2)
    row = squares.argmin(1)
    return (x - X[row]).reshape(len(x), -1), jax.nn.one_hot(Y[row], 10)


def plateau(net, x):
    """Beyond one and a half radii the class of the image is certain, and no gradient leads back."""
    change, own = away(x)
    beyond = jnp.abs(change).max(1, keepdims=True) > 1.5 * EPS
    return net(x) + jnp.where(beyond, 100.0, 0.0) * own


def lottery(net, x):
    """The first pixel, black in all digits and without a gradient, decides whether there is a way,
    for a quarter of the starts; changes count threefold there."""
    change, own = away(x)
    seen = (x + 2 * change.reshape(x.shape)).at[:, 0, 0].set(0.0)
    return jnp.where(x[:, 0, 0] < EPS / 2, 100 * own, net(seen))


eighths = lambda x: jnp.round(8 * x) / 8
levels = jnp.linspace(0.05, 0.95, 10)[None, None, None, None]
columns = (jnp.arange(8) % 2 == 0)[None, None, :, None]
PLANTED = {
    "a saturated softmax": lambda net, x: 1000 * net(x),
    "a saturated tanh": lambda net, x: 3 * jnp.tanh(1e3 * net(x) / 3),
    "a steep tanh": lambda net, x: 3 * jnp.tanh(10 * net(x) / 3),
    "a quantiser": lambda net, x: net(eighths(x)),
    "a quantiser that lets gradients through": lambda net, x: net(
        x + lax.stop_gradient(eighths(x) - x)
    ),
    "a thermometer": lambda net, x: net((x[..., None] > levels).astype(x.dtype).mean(-1)),
    "a ripple": lambda net, x: net(x + 0.02 * jnp.sin(1000 * x)),
    "noise from bits": lambda net, x: net(x) + 0.3 * from_bits(x),
    "half of the pixels": lambda net, x: net(jnp.where(columns, x, lax.stop_gradient(x))),
    "a reversed gradient": lambda net, x: net(backwards(-1.0)(x)),
    "a shrunken gradient": lambda net, x: net(backwards(1e-30)(x)),
    "rings": rings,
    "a narrow peak": peak,
    "a plateau": plateau,
    "a lottery": lottery,
}


@jax.jit  # each report traces the attacks anew, but not the networks
def family(member, weights, x):
    """Every network of this file, by number: one program, compiled once."""
    linear, tanh = weights
    net = lambda x: APPLY[LINEAR](*linear, x, False)[0]
    plain = [net, lambda x: APPLY[TANH](*tanh, x, False)[0]]
    return lax.switch(member, plain + [lambda x, f=f: f(net, x) for f in PLANTED.values()], x)


@pytest.fixture(scope="module")
def networks():
    tanh = trainer(TANH, objectives.j2_lip)(eps=0.3, lam=0.1)
    j2 = trainer(LINEAR, objectives.j2)
    trained = {
        "undefended": j2(eps=0.0),
        "j2": j2(eps=0.5),
        "fgsm": trainer(LINEAR, objectives.j1)(eps=0.1),
    }
    found = {name: Partial(family, 0, (linear, tanh)) for name, linear in trained.items()}
    return found | {"tanh": Partial(family, 1, (trained["undefended"], tanh))}


@pytest.fixture(scope="module")
def report(networks):
    def run(network, eps=EPS, y=Y):
        options = {"surrogate": networks["undefended"], "steps": 20, "queries": 200}
        return masking_report(KEY, network, X, y, eps, **options)

    return run


def flags(checks):
    return {check.name: check.sentence for check in checks if check.status != "pass"}


@pytest.mark.parametrize("eps", [0.001, 0.1, 0.5])
@pytest.mark.parametrize("name", ["undefended", "j2", "fgsm", "tanh"])
def test_an_honest_network_has_no_flag(networks, report, name, eps):
    """Neither where nothing is broken, nor where everything is, nor in between."""
    checks = report(networks[name], eps)
    assert flags(checks) == {}
    assert verdict(checks) == "pass"
    assert [check.name for check in checks] == list(masking.QUESTIONS)


# The checks that have to see a mask, whatever else does.
SEEN_BY = {
    "a saturated softmax": {"gradients", "scale", "losses"},
    "a saturated tanh": {"gradients", "whole box"},
    "a steep tanh": {"losses"},
    "a quantiser": {"gradients", "whole box", "scores", "transfer"},
    "a quantiser that lets gradients through": {"linearity"},
    "a thermometer": {"gradients", "whole box", "scores", "transfer"},
    "a ripple": {"steps"},
    "noise from bits": {"randomness", "linearity"},
    "half of the pixels": {"scores", "transfer"},
    "a reversed gradient": {"linearity", "scores", "transfer"},
    "a shrunken gradient": {"linearity"},
    "rings": {"linearity", "scores"},
    "a narrow peak": {"linearity"},
    "a plateau": {"radius"},
    "a lottery": {"restarts"},
}


@pytest.fixture(scope="module")
def planted(networks, report):
    def run(name, base):
        member = 2 + list(PLANTED).index(name)
        return report(Partial(family, member, networks[base].args[1]))

    return run


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mask_is_flagged(planted, name):
    assert flags(planted(name, "undefended")).keys() >= SEEN_BY[name]


def test_every_check_sees_a_mask():
    assert set().union(*SEEN_BY.values()) == set(masking.QUESTIONS)


# On a network that was trained to resist, whatever sees it: three whose gradient looks sound.
@pytest.mark.parametrize("name", ["a steep tanh", "a thermometer", "rings"])
def test_a_planted_mask_is_flagged_on_a_network_that_resists(planted, name):
    assert verdict(planted(name, "fgsm")) != "pass"


def test_a_report_is_a_function_of_its_key(networks, report):
    assert report(networks["tanh"]) == report(networks["tanh"])


def test_a_model_that_is_always_wrong_has_nothing_to_hide(networks, report):
    checks = report(networks["undefended"], y=(Y + 1) % 10)
    assert verdict(checks) == "pass"


@jax.custom_vjp
def signed(sign, x):
    """x, with a gradient of that sign."""
    return x


signed.defvjp(lambda sign, x: (x, sign), lambda sign, g: (None, sign * g))


def scores(sign, x):
    slope = jnp.linspace(-1.0, 1.0, 6)
    return jnp.stack([0 * x[:, 0], signed(sign, x) @ slope], 1)


@pytest.mark.parametrize("norm", [L1, L2], ids=lambda norm: norm.name)
def test_other_norms_boxes_two_classes_and_the_last_batch_are_served(norm):
    """A linear model, and the same with its gradient reversed."""
    x = jax.random.uniform(jax.random.fold_in(KEY, 1), (20, 6), minval=-1.0)
    y = scores(1.0, x).argmax(1)
    options = {"norm": norm, "bounds": (-1.0, 1.0), "steps": 10, "queries": 50, "batch_size": 8}
    honest, masked = (
        masking_report(KEY, Partial(scores, sign), x, y, 0.3, **options) for sign in (1.0, -1.0)
    )
    assert flags(honest) == {}
    assert {check.name: check.value for check in masked}["linearity"] == 1.0
    left_out = {"transfer", "scores"} if norm is L1 else {"transfer"}
    assert {check.name for check in honest} == set(masking.QUESTIONS) - left_out


def test_a_masked_class_is_no_sign_of_a_masked_gradient():
    """It changes no answer of the report: neither "random", nor blind to what is not linear."""
    x = jax.random.uniform(jax.random.fold_in(KEY, 2), (24, 6))

    def with_a_class_more(sign, x):
        return jnp.concatenate([scores(sign, x), jnp.full((len(x), 1), -jnp.inf)], 1)

    for sign in (1.0, -1.0):
        y = scores(sign, x).argmax(1)
        for f in (Partial(scores, sign), Partial(with_a_class_more, sign)):
            keys = jax.random.split(KEY, len(x))
            found = masking._probe(L2, (0.0, 1.0), f, keys, x, y, eps=jnp.float32(0.3))
            for name in ("gradients", "linearity", "randomness"):
                assert (found[name] == (sign < 0 and name == "linearity")).all()


@pytest.mark.parametrize(
    ("name", "count", "n", "status"),
    [
        ("steps", 2, 10, "pass"),  # two images are chance
        ("steps", 3, 10, "fail"),
        ("steps", 3, 100, "pass"),
        ("steps", 4, 100, "warn"),
        ("steps", 6, 100, "warn"),
        ("steps", 7, 100, "fail"),
        ("losses", 20, 100, "pass"),
        ("losses", 21, 100, "warn"),
        ("losses", 36, 100, "fail"),
        ("randomness", 0, 100, "pass"),
        ("randomness", 1, 100, "warn"),  # a deterministic model has none
        ("randomness", 4, 100, "fail"),
    ],
)
def test_a_status_follows_from_the_share_of_images(name, count, n, status):
    check = answered(name, count, n)
    assert (check.name, check.value, check.status) == (name, count / n, status)
    assert f": {count} of {n} images ({100 * count / n:.1f} %). " in check.sentence
    assert check.sentence.endswith("No sign of masking.") == (status == "pass")


def test_the_verdict_is_the_worst_status_and_the_table_has_a_line_for_each():
    checks = [answered("steps", count, 100) for count in (0, 4, 50)]
    assert [verdict(checks[:n]) for n in (1, 2, 3)] == ["pass", "warn", "fail"]
    *_, line = to_markdown(checks[2:]).splitlines()
    assert line == f"| steps | fail | 0.5 | 0.03 | 0.06 | {checks[2].sentence} |"


def test_what_is_wrong_is_named_in_one_line():
    net = lambda x: x.reshape(len(x), -1)[:, :10]
    given = {"key": KEY, "logits_fn": net, "x": X, "y": Y, "eps": EPS}
    for change, said in (
        ({"x": 255 * X}, r"x has values from 0 to 255, outside bounds \(0.0, 1.0\)"),
        ({"y": Y[:4]}, r"y has shape \[4\], dtype int32; want classes \[96\]"),
        ({"logits_fn": lambda x: x}, r"must return \[96, K\]; it returned \[96, 8, 8, 1\]"),
        ({"eps": 0.0}, "eps = 0.0; it must be greater than 0"),
        ({"eps": float("nan")}, "eps = nan; it must be greater than 0"),
        ({"eps": float("inf")}, "eps = inf; it must be greater than 0, and finite"),
        ({"steps": 0}, "masking_report: steps = 0; it must be at least 1"),
        ({"batch_size": 0}, "masking_report: batch_size = 0; it must be at least 1"),
        ({"norm": lp(1.5)}, "no form for the norm l1.5; choose one of l1, l2, linf"),
    ):
        with pytest.raises(ValueError, match=said):
            masking_report(**given | change)

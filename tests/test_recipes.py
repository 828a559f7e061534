"""Recipes of robust training where their value is known: linear networks, quadratics, limits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipreg import losses, objectives
from lipreg.norms import L1, L2, LINF, lp
from lipreg.objectives import inner
from lipreg.runs import build
from lipreg.runs.checks import check
from lipreg.runs.config import base_config

KEY = jax.random.key(0)
WIDE = (-9.0, 9.0)  # a box that is not in the way
X = jax.random.uniform(jax.random.fold_in(KEY, 1), (8, 6), minval=-0.5, maxval=0.5)
Y = jnp.arange(8) % 2
SIGNS = jnp.where(Y == 1, 1.0, -1.0)
V = jax.random.normal(jax.random.fold_in(KEY, 2), (6,))
LEVEL = X - jnp.outer(X @ V, V) / (V @ V)  # where both classes of V are equally likely
first = lambda logits, y: logits[:, 0]


def one(f):
    """A network with f for its first logit, which `first` reads, and 0 for another."""
    return lambda x: jnp.stack([f(x), 0 * x[:, 0]], 1)


def two(v):
    """Logits with cross entropy `log(1 + e^-m)`, `m = (2y - 1) v.x`; x comes back as the aux."""
    return lambda x: (jnp.stack([-x @ v, x @ v], 1) / 2, x)


# Adversarial training of a linear network.


@pytest.mark.parametrize("norm", [L1, L2, LINF, lp(3)], ids=lambda norm: norm.name)
def test_adversarial_training_of_a_linear_network_is_its_robust_loss(norm):
    """`max over the ball = log(1 + e^-(m - eps ||v||_*))`, in value and in the gradient in v."""

    def robust(v):
        return jax.nn.softplus(0.3 * norm.dual(v[None])[0] - SIGNS * (X @ v)).mean()

    attack = "pgd(steps=4, random_start=False)"
    options = {"eps": 0.3, "key": KEY, "norm": norm, "bounds": WIDE, "attack": attack}
    trained = lambda v: objectives.pgd_at(two(v), X, Y, **options)[0]
    found, expected = jax.jit(lambda: [jax.value_and_grad(f)(V) for f in (trained, robust)])()
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-6)


def test_one_step_from_noise_ends_in_the_ball_or_as_far_beyond_as_the_noise():
    """RS-FGSM at the corner that 1.25 eps reach, 0.625 of the entries; N-FGSM at noise about it."""
    eps, x = 0.1, jnp.tile(X, (200, 1))
    corner = -eps * jnp.outer(jnp.tile(SIGNS, 200), jnp.sign(V))
    options = {"eps": eps, "key": KEY, "bounds": WIDE}
    moved = lambda form: form(two(V), x, jnp.tile(Y, 200), **options)[1]["aux"] - x
    inside, beyond = moved(objectives.fgsm_rs), moved(objectives.n_fgsm)
    assert jnp.abs(inside).max() <= eps + 1e-6
    assert abs((jnp.abs(inside - corner) < 1e-6).mean() - 0.625) < 0.02
    noise = (beyond - corner) / eps
    assert 1.98 < jnp.abs(noise).max() <= 2 + 1e-5
    assert abs(noise.mean()) < 0.05
    assert abs(jnp.square(noise).mean() - 4 / 3) < 0.05


def test_what_is_drawn_for_an_example_does_not_depend_on_its_batch():
    for form in (objectives.fgsm_rs, objectives.n_fgsm):
        few, many = (
            form(two(V), X[:n], Y[:n], eps=0.1, key=KEY, bounds=WIDE)[1]["aux"] for n in (3, 8)
        )
        np.testing.assert_array_equal(few, many[:3])


@pytest.mark.parametrize("attack", ["deepfool(steps=2)", "n_fgsm(k=0.0)"])
def test_what_an_inner_attack_finds_is_in_ball_and_box_and_is_not_differentiated(attack):
    """deepfool knows no radius, and loops until it succeeds."""

    options = {"eps": 0.2, "key": KEY, "norm": L2, "bounds": (-0.5, 0.5), "attack": attack}

    def trained(v):
        value, parts = objectives.pgd_at(two(v), X, Y, **options)
        return value, parts["aux"]

    (_, x_adv), slope = jax.jit(jax.value_and_grad(trained, has_aux=True))(V)
    assert L2.size(x_adv - X).max() <= 0.2 + 1e-6
    assert jnp.abs(x_adv).max() <= 0.5
    fixed = jax.grad(lambda v: losses.cross_entropy(two(v)(x_adv)[0], Y).mean())(V)
    np.testing.assert_allclose(slope, fixed, rtol=1e-5, atol=1e-6)


def test_attacks_see_the_frozen_view():
    frozen = two(V.at[0].set(0.0))
    for form in (objectives.fgsm_rs, partial(objectives.pgd_at, attack="fgsm")):
        aux = form(two(V), X, Y, eps=0.1, key=KEY, frozen=frozen, bounds=WIDE)[1]["aux"]
        along = -jnp.sign(aux - X) * jnp.outer(SIGNS, jnp.sign(V))
        assert (along[:, 1:].mean(1) > 0.5).all()
        assert abs(along[:, 0].mean()) < 0.9


def test_an_attack_on_the_frozen_view_has_its_direction_and_the_trained_views_loss():
    """Where the frozen view does not see the first entry, nothing moves along it: t is smaller."""
    seen = V.at[0].set(0.0)
    t = 0.4 * LINF.dual(seen[None])[0]
    options = {"eps": 0.4, "key": KEY, "bounds": WIDE, "frozen": two(seen)}
    still = "pgd(steps=4, random_start=False)"

    @jax.jit
    def run():
        return (
            objectives.trades(two(V), LEVEL, Y, beta=1.0, noise=1e-5, **options)[1]["kl"],
            objectives.mart(two(V), LEVEL, Y, beta=1.0, attack=still, **options)[1]["loss_adv"],
            objectives.elle(two(V), LEVEL, Y, lam=1.0, **options)[1]["loss_adv"],
            objectives.grad_align(two(V), LEVEL, Y, lam=1.0, **options)[1]["loss_adv"],
        )

    kl, *losses_adv = run()
    np.testing.assert_allclose(kl, jnp.log(jnp.cosh(t / 2)), rtol=1e-3)
    np.testing.assert_allclose(losses_adv, [jax.nn.softplus(t)] * 3, rtol=1e-4)


def test_a_recipe_with_one_step_ascends_cross_entropy_whatever_it_trains():
    """Where the network is surer than a smoothed target, that loss grows with the sureness."""
    sure, ones = 2 * jnp.abs(V), jnp.ones(8, int)
    smoothed = partial(losses.smoothed_cross_entropy, smoothing=0.2)
    x = jnp.abs(X) + 0.5
    options = {"eps": 0.01, "lam": 0.0, "key": KEY, "bounds": WIDE, "loss": smoothed}
    for form in (objectives.grad_align, objectives.elle):
        x_adv = form(two(sure), x, ones, **options)[1]["aux"]
        np.testing.assert_allclose(x_adv, x - 0.01, rtol=1e-5)


# TRADES and MART.


@pytest.mark.parametrize("norm", [L1, L2, LINF], ids=lambda norm: norm.name)
def test_at_equal_odds_trades_and_mart_are_known(norm):
    """`max KL(1/2 || sigma(t)) = log cosh(t/2)` at `t = eps ||v||_*`; mart's cross entropy is log 2
    with the boost of the attacked classes, and half of the divergence counts."""
    t = 0.4 * norm.dual(V[None])[0]
    options = {"eps": 0.4, "key": KEY, "norm": norm, "bounds": WIDE}
    attack = "pgd(steps=4, random_start=False)"

    @jax.jit
    def run():
        return (
            objectives.trades(two(V), LEVEL, Y, beta=6.0, **options),
            objectives.mart(two(V), LEVEL, Y, beta=5.0, attack=attack, **options),
        )

    (trades, parts), (mart, mart_parts) = run()
    gap = jnp.log(jnp.cosh(t / 2))
    np.testing.assert_allclose(parts["kl"], gap, rtol=1e-3)
    np.testing.assert_allclose(trades, jnp.log(2.0) + 6 * gap, rtol=1e-3)
    np.testing.assert_allclose(mart_parts["loss_adv"], jax.nn.softplus(t), rtol=1e-4)
    boosted = jax.nn.softplus(t) - jnp.log(1.0001 - jax.nn.sigmoid(t))
    np.testing.assert_allclose(mart, boosted + 5 * gap / 2, rtol=1e-4)


def test_marts_divergence_counts_where_the_clean_image_is_unsure():
    """`KL(p || p') (1 - p_y)` of two classes, where the images' p_y differ."""
    m, t = SIGNS * (X @ V), 0.4 * LINF.dual(V[None])[0]
    p, q = jax.nn.sigmoid(m), jax.nn.sigmoid(m - t)
    kl = p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q))
    boosted = -jnp.log(q) - jnp.log(1.0001 - (1 - q))
    still = "pgd(steps=4, random_start=False)"
    options = {"eps": 0.4, "beta": 5.0, "key": KEY, "bounds": WIDE, "attack": still}
    found, parts = objectives.mart(two(V), X, Y, **options)
    np.testing.assert_allclose(parts["aux"], X - 0.4 * jnp.outer(SIGNS, jnp.sign(V)), rtol=1e-5)
    np.testing.assert_allclose(found, (boosted + 5 * kl * (1 - p)).mean(), rtol=1e-4)


def test_of_two_passes_running_statistics_are_those_of_the_one_whose_loss_it_is():
    """docs/decisions.md: of trades and of differences the clean one, of mart (above) the other."""
    trades = objectives.trades(two(V), X, Y, eps=0.4, beta=1.0, key=KEY, bounds=WIDE)
    differences = objectives.j2(two(V), X, Y, eps=0.4, method=objectives.method("difference"))
    for _, parts in (trades, differences):
        np.testing.assert_array_equal(parts["aux"], X)


def test_one_small_step_of_trades_is_its_fisher_form():
    """`KL = eps^2 / 2 d'Fd + O(eps^3)`, and `d'Fd = p (1 - p) ||v||_*^2` of two classes."""
    p = jax.nn.sigmoid(X @ V)
    small = partial(objectives.trades, two(V), X, Y, beta=1.0, key=KEY, steps=1, step_size=1.0)
    for norm in (L2, LINF):
        gap = small(eps=0.01, noise=1e-5, norm=norm, bounds=WIDE)[1]["kl"]
        fisher = (p * (1 - p)).mean() * norm.dual(V[None])[0] ** 2
        np.testing.assert_allclose(gap, 0.01**2 / 2 * fisher, rtol=0.02)


def test_a_divergence_of_logits_is_that_of_their_softmax_and_has_a_slope_where_one_vanishes():
    z, t = (jax.random.normal(jax.random.fold_in(KEY, i), (8, 3)) for i in (3, 4))
    np.testing.assert_allclose(losses.divergence(z, t), losses.kl(z, jax.nn.softmax(t)), rtol=1e-4)
    far, masked = jnp.array([[300.0, 0.0, 1.0]]), jnp.array([[1.0, 0.0, -jnp.inf]])
    np.testing.assert_allclose(
        losses.divergence(masked, 2 * masked), losses.divergence(masked[:, :2], 2 * masked[:, :2])
    )
    for a, b in ((far, 0 * far), (0 * far, far), (far, -far), (masked, 2 * masked)):
        slopes = jax.grad(lambda a, b: losses.divergence(a, b).sum(), (0, 1))(a, b)
        assert all(jnp.isfinite(slope).all() for slope in slopes)


# Linearity.


def test_what_measures_linearity_vanishes_where_the_frozen_view_is_linear():
    """The trained view is not: a term that looked at it would show."""
    trained, frozen = one(lambda x: jnp.sin(x @ V)), one(lambda x: x @ V)
    options = {"eps": 0.1, "lam": 1e3, "frozen": frozen, "loss": first}
    drawn = {"key": KEY, "bounds": WIDE}
    forward = jnp.sin((X + 0.1 * jnp.sign(V)[None]) @ V).mean()
    ascent = {"attack": lambda key, f, x, y, eps, *, norm, bounds: x + eps * jnp.sign(V)[None]}

    @jax.jit
    def run():
        return (
            objectives.grad_align(trained, X, jnp.ones(8, int), **options, **drawn),
            objectives.elle(trained, X, Y, **options, **drawn, **ascent),
            objectives.cure(trained, X, Y, **options),
            objectives.llr(trained, X, Y, mu=0.0, **options, **drawn),
        )

    expected = (forward, forward, jnp.sin(X @ V).mean(), jnp.sin(X @ V).mean())
    for (value, parts), known in zip(run(), expected, strict=True):
        assert abs(parts["bend"]) < 1e-6
        np.testing.assert_allclose(value, known, atol=2e-3)


def test_what_measures_linearity_is_known_for_a_quadratic():
    """`l = a |x|^2 / 2`: CURE `(a eps)^2`; LLR's error `a eps^2 / 2`, and `<v, grad l> = 0` at
    x = 0; ELLE's mean square `a^2 eps^4 / 112.5` over draws in one dimension."""
    a, eps, many = 3.0, 0.2, jnp.zeros((40_000, 1))
    bowl = one(lambda x: a * jnp.square(x).sum(1) / 2)
    options, drawn = {"eps": eps, "lam": 2.0, "loss": first}, {"key": KEY, "bounds": WIDE}

    @jax.jit
    def run():
        return (
            objectives.cure(bowl, X, Y, norm=L2, **options)[1],
            objectives.cure(bowl, X, Y, norm=L2, squared=False, **options)[1],
            objectives.cure(bowl, X, Y, **options)[1],
            objectives.llr(bowl, X, Y, mu=0.0, norm=L2, **options, **drawn)[1],
            objectives.llr(bowl, 0 * X, Y, mu=5.0, norm=L2, **options, **drawn)[0],
            objectives.elle(bowl, many, jnp.zeros(len(many), int), **options, **drawn)[1],
        )

    cure, unsquared, corner, llr, at_rest, elle = run()
    np.testing.assert_allclose(corner["bend"], 6 * (a * eps) ** 2, rtol=1e-4)  # in LINF
    np.testing.assert_allclose(cure["bend"], (a * eps) ** 2, rtol=1e-4)
    np.testing.assert_allclose(unsquared["bend"], a * eps, rtol=1e-4)
    np.testing.assert_allclose(llr["bend"], a * eps**2 / 2, rtol=1e-3)
    np.testing.assert_allclose(at_rest, 2 * a * eps**2 / 2, rtol=1e-3)
    np.testing.assert_allclose(elle["bend"], a**2 * eps**4 / 112.5, rtol=0.05)


def test_llr_weighs_the_slope_along_its_perturbation():
    """Of a linear loss `|<v, w>|`, v a corner of the cube that only noise has chosen."""
    linear = one(lambda x: x @ V)
    options = {"eps": 0.1, "lam": 1.0, "key": KEY, "loss": first, "bounds": WIDE}
    light, heavy = (objectives.llr(linear, X, Y, mu=mu, **options)[0] for mu in (0.0, 2.0))
    assert 0 < heavy - light <= 2 * 0.1 * jnp.abs(V).sum() + 1e-6
    # Of 3/2 x^2 in one dimension, v is -eps or eps: |v 3 x|.
    bowl = one(lambda x: 1.5 * jnp.square(x[:, 0]))
    light, heavy = (objectives.llr(bowl, X[:, :1], Y, mu=mu, **options)[0] for mu in (0.0, 2.0))
    slope = jnp.abs(3 * X[:, 0]).mean()
    np.testing.assert_allclose(heavy - light, 2 * 0.1 * slope, rtol=1e-3)


def test_grad_align_differentiates_the_second_gradient_alone_and_leaves_out_those_of_0():
    x = X.at[0].set(0.0)  # where the gradient vanishes, at x and about it
    bump = lambda v: one(lambda x: jax.nn.relu(x[:, 0] * x[:, 1] - 1e-2) * (x @ v))
    slope_of = lambda v: jax.vmap(jax.grad(lambda x: bump(v)(x[None])[0, 0]))
    near = inner.near(KEY, x, 0.05, LINF, WIDE)
    seen, other = slope_of(V)(x), slope_of(V)(near)
    rows = np.flatnonzero(jnp.abs(seen).max(1) * jnp.abs(other).max(1))

    def formula(v):
        a, b = seen[rows], slope_of(v)(near[rows])
        cosines = (a * b).sum(1) / (jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1))
        forward = bump(v)(x + 0.05 * jnp.sign(seen))[:, 0].mean()
        return forward + 0.7 * (1 - cosines).mean()

    ones = jnp.ones(8, int)  # whose cross entropy grows with the first logit
    form = partial(objectives.grad_align, x=x, y=ones, eps=0.05, lam=0.7, key=KEY)
    run = lambda v: form(bump(v), loss=first, bounds=WIDE)[0]
    found, expected = (jax.jit(jax.value_and_grad(f))(V) for f in (run, formula))
    assert 0 < len(rows) < len(x)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-6)


# The Jacobian.


def test_random_projections_give_the_frobenius_norm_in_expectation():
    w = jax.random.normal(KEY, (6, 4))
    many, y = jnp.zeros((4000, 6)), jnp.zeros(4000, int)
    run = partial(objectives.jacobian, lambda x: x @ w, many, y, lam=2.0, key=KEY)
    for projections in (1, 3):
        value, parts = run(projections=projections)
        np.testing.assert_allclose(parts["jacobian"], jnp.square(w).sum(), rtol=0.03)
        np.testing.assert_allclose(value, jnp.log(4.0) + parts["jacobian"], rtol=1e-5)


# All of them.

DIFFERENTIATED = {
    "pgd_at": {"attack": "pgd(steps=2)"},
    "trades": {"steps": 2},
    "mart": {"attack": "pgd(steps=2)"},
    "elle": {},
    "cure": {},
    "llr": {},
    "jacobian": {},
    "fgsm_rs": {},
    "n_fgsm": {},
    "free_at": {},
}


def test_every_objective_is_differentiated_here_or_is_a_penalty_on_gradients():
    """Those are in test_objectives; grad_align is no gradient of its value (its test above)."""
    assert {*objectives.__all__} - {*DIFFERENTIATED} == {
        *("j0", "j1", "j2", "j2_lip", "tikhonov", "grad_lp", "lip_excess", "grad_align")
    }


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_the_gradient_in_the_weights_is_a_central_difference(name):
    """In float64. Attacks in l_inf end in points that a small change of the weights leaves."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, y = jnp.asarray(rng.uniform(0.3, 0.7, (3, 4))), jnp.array([0, 1, 2])
        params, away = (
            [jnp.asarray(rng.normal(size=shape)) for shape in ((4, 5), (5, 3))] for _ in range(2)
        )
        objective = getattr(objectives, name)
        given = dict.fromkeys(objectives.strengths(objective), 0.1) | DIFFERENTIATED[name]
        given |= {} if name in ("cure", "free_at") else {"key": KEY}

        @jax.jit
        def run(h):
            def value(params):
                return objective(lambda x: jnp.tanh(x @ params[0]) @ params[1], x, y, **given)[0]

            at = jax.tree.map(lambda p, d: p + h * d, params, away)
            return jax.jvp(value, (at,), (away,))

        value, slope = run(0.0)
        assert value.dtype == np.float64
        difference = (run(1e-5)[0] - run(-1e-5)[0]) / 2e-5
        np.testing.assert_allclose(slope, difference, rtol=1e-6)


# Losses and options.


def test_smoothed_cross_entropy_shares_a_part_of_the_label_among_all_classes():
    z = jax.random.normal(KEY, (8, 4))
    y = jnp.arange(8) % 4
    likely = jax.nn.log_softmax(z)
    expected = 0.7 * losses.cross_entropy(z, y) - 0.3 * likely.mean(1)
    np.testing.assert_allclose(
        losses.smoothed_cross_entropy(z, y, smoothing=0.3), expected, rtol=1e-5
    )
    np.testing.assert_array_equal(
        losses.smoothed_cross_entropy(z, y, smoothing=0.0), losses.cross_entropy(z, y)
    )
    masked = jnp.concatenate([z, jnp.full((8, 1), -jnp.inf)], 1)
    np.testing.assert_allclose(
        losses.smoothed_cross_entropy(masked, y, smoothing=0.3), expected, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("pgd_at", {"attack": "pdg"}, "No attack 'pdg'; choose one of apgd, .*n_fgsm, or name"),
        ("mart", {"attack": "pgd(step=3)"}, "No option 'step' of pgd; it takes loss, steps"),
        ("trades", {"bounds": (0.0, 1.0)}, r"outside bounds \(0.0, 1.0\)"),
        ("trades", {"steps": 0}, "steps = 0; it must be at least 1"),
        ("jacobian", {"projections": 0}, "projections = 0; it must be at least 1"),
    ],
)
def test_what_is_wrong_is_named_with_the_choices(name, options, said):
    objective = getattr(objectives, name)
    given = dict.fromkeys(objectives.strengths(objective), 0.1)
    with pytest.raises(ValueError, match=said):
        objective(two(V), X, Y, key=KEY, **given, **options)


def test_an_objective_that_attacks_stays_in_the_bounds_of_the_data():
    config = base_config("trades", {"trades": {"eps": 0.1, "beta": 6.0}})
    config.data.bounds = (-3.0, 3.0)
    with pytest.raises(ValueError, match=r"options.bounds = \(0.0, 1.0\); .*data.bounds = \(-3.0"):
        check(config)
    config.options.bounds = (-3.0, 3.0)
    check(config)


def test_pairs_of_points_stay_in_the_box_of_the_data():
    config = base_config("lip_excess", {"lip_excess": {"lam": 0.1, "L0": 1.0}})
    config.data.bounds, config.options.method = (-3.0, 3.0), "pairs(steps=4)"
    assert build.bound_objective(config).keywords["method"] == objectives.pairs(4, (-3.0, 3.0))
    config.options.method = "pairs(bounds=(0.0, 5.0))"
    with pytest.raises(ValueError, match=r"box of the data, config.data.bounds = \(-3.0, 3.0\)"):
        build.bound_objective(config)


def test_alignment_with_a_gradient_of_nan_is_seen():
    _, parts = objectives.grad_align(
        lambda x: jnp.where(x > 2, jnp.sqrt(x - 3), x),  # 0 times an infinite slope
        jnp.full((2, 2), 0.5),
        jnp.array([0, 1]),
        eps=0.1,
        lam=1.0,
        key=jax.random.key(0),
    )
    assert jnp.isnan(parts["bend"])

"""One contract for every attack, and PGD against what is known of linear models."""

import functools
import inspect
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.optimize import brentq

from lipreg import attacks
from lipreg.attacks.apgd import _checkpoints, _phases
from lipreg.boundary import misclassified
from lipreg.losses import cross_entropy, margin
from lipreg.norms import L1, L2, LINF, lp, random_in_ball

KEY = jax.random.key(0)
NORMS = [L1, L2, LINF, lp(1.5)]
label = lambda value: getattr(value, "name", None)
each_norm = pytest.mark.parametrize("norm", NORMS, ids=label)
BATCH, PIXELS, CLASSES = 8, (4, 4, 1), 3
X = jax.random.uniform(jax.random.fold_in(KEY, 1), (BATCH, *PIXELS))
Y = jax.random.randint(jax.random.fold_in(KEY, 2), (BATCH,), 0, CLASSES)


def normal(i, *shape):
    return jax.random.normal(jax.random.fold_in(KEY, 10 + i), shape)


MLP = {"w1": 0.5 * normal(0, 16, 6), "b1": 0.1 * normal(1, 1, 6), "w2": normal(2, 6, CLASSES)}
MLP |= {"b2": jnp.zeros((1, CLASSES))}


def mlp(params, x):
    hidden = jnp.tanh(x.reshape(x.shape[0], -1) @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


net = partial(mlp, MLP)


def radius(norm, scale=0.1):
    """As far as a step of `scale` in every pixel."""
    return scale * norm.size(jnp.ones((1, *PIXELS)))[0]


def takes(name):
    return inspect.signature(getattr(attacks, name)).parameters


# Contracts need no strength: fewer steps than an attack's own number.
SHORT = {"apgd": {"steps": 12}, "fab": {"steps": 8}, "square": {"queries": 40}}


def short(name):
    return partial(getattr(attacks, name), **SHORT.get(name, {}))


def serves(name, norm):
    """An attack refuses the norms that it does not serve with a ValueError."""
    try:
        jax.eval_shape(partial(getattr(attacks, name), KEY, net, norm=norm), X, Y, 0.1)
    except ValueError as e:
        if "no form for the norm" not in str(e):
            raise
        return False
    return True


# Attacks without `eps` look for the smallest perturbation: another contract.
FIXED = [name for name in attacks.__all__ if "eps" in takes(name)]
TABLE = [(name, norm) for name in FIXED for norm in NORMS if serves(name, norm)]
assert_close = partial(chex.assert_trees_all_close, rtol=1e-4, atol=1e-5)
every_member = pytest.mark.parametrize(("name", "norm"), TABLE, ids=label)
# What a norm cannot change is tried in one: an attack takes seconds to compile.
FEW = [(name, L2 if serves(name, L2) else LINF) for name in FIXED]
few_members = pytest.mark.parametrize(("name", "norm"), FEW, ids=label)


def loss(params, x, y):
    return cross_entropy(mlp(params, x), y).mean()


def evaluate(name, norm):
    """`(params, key, eps, x, y) -> x_adv, (the loss there, its gradient in params)`."""

    def run(params, key, eps, x, y):
        x_adv = short(name)(key, partial(mlp, params), x, y, eps, norm=norm)
        return x_adv, jax.value_and_grad(loss)(params, x_adv, y)

    return run


@functools.cache
def compiled(name, norm):
    """`evaluate` with one key and a radius per example: one trace for all the tests together."""
    chex.clear_trace_counter()
    return jax.jit(chex.assert_max_traces(evaluate(name, norm), 1))


# The contract, for every attack of attacks.__all__ with a radius.


def test_the_table_holds_every_attack_and_every_norm_it_documents():
    assert {name for name, _ in TABLE} == set(FIXED)
    served = {name: [norm for n, norm in TABLE if n == name] for name in FIXED}
    assert served["fgsm"] == served["pgd"] == NORMS
    assert served["apgd"] == served["fab"] == [L1, L2, LINF]
    for name in FIXED:
        assert list(takes(name))[:5] == ["key", "logits_fn", "x", "y", "eps"]
        assert takes(name)["bounds"].default == (0.0, 1.0)


@every_member
def test_an_attack_stays_in_the_box_and_in_the_ball(name, norm):
    """One trace serves radii of all sizes, an example's radius is its own, and 0 returns x."""
    base = radius(norm)
    mixed = jnp.where(jnp.arange(BATCH) % 2 == 0, 0.0, base)
    for eps in (jnp.zeros(BATCH), mixed, jnp.full(BATCH, base), jnp.full(BATCH, 20 * base)):
        x_adv, (found, _) = compiled(name, norm)(MLP, KEY, eps, X, Y)
        chex.assert_trees_all_equal_shapes_and_dtypes(x_adv, X)
        assert ((x_adv >= 0) & (x_adv <= 1)).all()
        assert (norm.size(x_adv - X) <= eps * (1 + 1e-5)).all()
        np.testing.assert_array_equal(x_adv[eps == 0], X[eps == 0])
        # FAB returns x where it finds nothing inside the ball.
        assert found >= loss(MLP, X, Y)
    assert found > loss(MLP, X, Y)


@few_members
def test_an_attack_is_not_differentiated(name, norm):
    attack = partial(short(name), KEY, norm=norm)
    total = lambda params, x, eps: attack(partial(mlp, params), x, Y, eps).sum()
    slopes = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    for slope in jax.tree.leaves(slopes(MLP, X, radius(norm))):
        np.testing.assert_array_equal(slope, 0.0)


@few_members
def test_an_attack_is_the_same_however_it_is_run(name, norm):
    """Eager, jit, vmap over radii, a batch sharded over four devices: x_adv, the loss there and its
    gradient; and a radius for all is that radius for each."""
    run = evaluate(name, norm)
    sweep = radius(norm) * jnp.array([0.5, 1.0, 1.5, 2.0])
    expected = [compiled(name, norm)(MLP, KEY, jnp.full(BATCH, eps), X, Y) for eps in sweep]
    results = jax.tree.map(lambda *rows: jnp.stack(rows), *expected)

    assert_close(run(MLP, KEY, float(sweep[1]), X, Y), expected[1])  # eager
    over = (None, None, 0, None, None)
    assert_close(jax.jit(jax.vmap(run, over))(MLP, KEY, sweep, X, Y), results)
    if name == "pgd":
        assert_close(jax.pmap(run, in_axes=over)(MLP, KEY, sweep, X, Y), results)

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x, y = jax.device_put((X, Y), NamedSharding(mesh, PartitionSpec("data")))
    params = jax.device_put(MLP, NamedSharding(mesh, PartitionSpec()))
    assert_close(jax.jit(run)(params, KEY, sweep[1], x, y), expected[1])


@few_members
def test_inputs_in_other_units_are_attacked_as_much(name, norm):
    """The box (-1, 1), a model in that unit and eps in it: the same images."""

    def scaled(low, high):
        unit = lambda x: (x - low) / (high - low)
        attack = partial(short(name), norm=norm, bounds=(low, high))
        eps = 2 * radius(norm) * (high - low)
        x_adv = attack(KEY, lambda x: net(unit(x)), X * (high - low) + low, Y, eps)
        return unit(x_adv), ((x_adv >= low) & (x_adv <= high)).all()

    boxes = (0.0, 1.0), (-1.0, 1.0)
    (expected, _), (x_adv, inside) = jax.jit(lambda: [scaled(*box) for box in boxes])()
    assert (expected == 0).any() or name == "fab"  # the box matters; FAB's points are too near
    assert inside
    np.testing.assert_allclose(x_adv, expected, atol=2e-5)


@few_members
def test_a_model_in_half_precision_gets_a_perturbation_in_single(name, norm):
    model = lambda x: mlp(jax.tree.map(lambda a: a.astype(x.dtype), MLP), x)
    half = lambda x: model(x.astype(jnp.bfloat16))
    x_adv = jax.jit(lambda: short(name)(KEY, half, X, Y, radius(norm), norm=norm))()
    assert (norm.size(x_adv - X) <= radius(norm) * (1 + 1e-5)).all()
    moved = (x_adv - X)[x_adv != X]
    assert (moved.astype(jnp.bfloat16).astype(X.dtype) != moved).mean() > 0.5
    assert (margin(half(x_adv), Y) >= margin(half(X), Y)).mean() > 0.8


@pytest.mark.parametrize("name", attacks.__all__)
def test_double_precision_stays_double(name):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: a.astype(jnp.float64), (MLP, X))
        attack = partial(short(name), KEY, partial(mlp, wide[0]))
        args = (wide[1], Y, 0.1) if name in FIXED else (wide[1], Y)
        program = jax.make_jaxpr(attack)(*args)
    assert [out.dtype for out in program.out_avals] == [jnp.float64]
    assert "f32" not in str(program)


@every_member
def test_constant_logits_leave_no_nan(name, norm):
    flat = MLP | {"w2": 0 * MLP["w2"], "b2": jnp.eye(CLASSES)[:1]}
    x_adv, _ = compiled(name, norm)(flat, KEY, jnp.full(BATCH, radius(norm)), X, Y)
    assert jnp.isfinite(x_adv).all()
    if name in ("fgsm", "pgd"):
        options = {"momentum": 1.0, "random_start": False} if name == "pgd" else {}
        x_adv = short(name)(KEY, partial(mlp, flat), X, Y, radius(norm), norm=norm, **options)
        np.testing.assert_array_equal(x_adv, X)


# Linear models, where everything is known. The box is far away.

FAR = (-100.0, 100.0)
POINTS = normal(3, BATCH, 16)
logistic = lambda x: jnp.stack([0 * x[:, 0], x @ normal(4, 16)], -1)


@each_norm
def test_fgsm_is_the_exact_worst_case_of_logistic_regression(norm):
    """`max {phi over the ball} = phi(m - eps ||w||_*)`."""
    y = Y % 2
    eps = jnp.linspace(0.0, 2.0, BATCH)
    x_adv = attacks.fgsm(KEY, logistic, POINTS, y, eps, norm=norm, bounds=FAR)
    exact = jax.nn.softplus(margin(logistic(POINTS), y) + eps * norm.dual(normal(4, 1, 16)))
    np.testing.assert_allclose(cross_entropy(logistic(x_adv), y), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", [L1, L2, LINF], ids=label)
@pytest.mark.parametrize("classes", [2, 4])
def test_pgd_breaks_a_linear_model_just_above_the_exact_distance_and_not_below(norm, classes):
    """`min_j (z_y - z_j) / ||w_j - w_y||_*`. With the margin as its loss, an attack on one class
    ascends `z_t - z_y`, and over all classes it is exact; of two classes the gradient sees both."""
    weights = normal(5, classes, 16)
    model = lambda x: x @ weights.T
    y = model(POINTS).argmax(-1)
    gaps = model(POINTS)[jnp.arange(BATCH), y][:, None] - model(POINTS)
    slopes = jax.vmap(norm.dual)(weights[None] - weights[y][:, None])
    exact = jnp.where(jax.nn.one_hot(y, classes) > 0, jnp.inf, gaps / slopes).min(1)

    each = {"loss": margin, "targets": 3, "restarts": 2} if classes == 4 else {}
    attack = partial(attacks.pgd, norm=norm, bounds=FAR, random_start=False, **each)
    run = jax.jit(lambda eps: margin(model(attack(KEY, model, POINTS, y, eps)), y))
    assert (run(1.01 * exact) > 0).all()
    assert (run(0.99 * exact) < 0).all()


@each_norm
def test_fgsm_is_one_whole_step_of_pgd(norm):
    """Two classes: the margin rises with the cross entropy, and PGD keeps its last point."""
    model = lambda x: net(x)[:, :2]
    y, eps = Y % 2, radius(norm, 0.02)
    one_step = partial(attacks.pgd, steps=1, step_size=1.0, random_start=False)
    x_adv, other = (a(KEY, model, X, y, eps, norm=norm) for a in (attacks.fgsm, one_step))
    assert (norm.size(x_adv - X) > 0.1 * eps).all()
    np.testing.assert_allclose(other, x_adv, atol=1e-6)


# PGD's options.


@pytest.mark.parametrize(("p", "dual"), [(2, 2), (np.inf, 1)])
@pytest.mark.parametrize(("momentum", "unroll"), [(0.0, 1), (0.5, True), (1.0, 1)])
def test_iterative_fgsm_and_momentum_follow_their_formulas(p, dual, momentum, unroll):
    eps, rate, start = 0.8, 0.3, np.array([0.1, 0.6])
    value = lambda x: 3 * x[0] + x[0] * x[1] - 4 * x[1] ** 2  # its gradient turns
    model = lambda x: jnp.stack([0 * x[:, 0], value(x.T)], -1)
    visited, velocity = [start], 0.0
    for _ in range(5):
        a, b = visited[-1]
        # Of the cross entropy, which scales this by a probability: a direction does not see it.
        slope = np.array([3 + b, a - 8 * b])
        velocity = momentum * velocity + slope / np.linalg.norm(slope, dual)
        step = np.sign(velocity) if p == np.inf else velocity / np.linalg.norm(velocity)
        moved = visited[-1] + rate * eps * step - start
        shrunk = moved * min(1.0, eps / np.linalg.norm(moved))
        moved = np.clip(moved, -eps, eps) if p == np.inf else shrunk
        visited.append(np.clip(start + moved, -1.0, 1.0))

    attack = partial(attacks.pgd, norm=lp(p), bounds=(-1.0, 1.0), steps=5, step_size=rate)
    attack = partial(attack, momentum=momentum, random_start=False, unroll=unroll)
    x_adv = attack(KEY, model, jnp.float32(start)[None], jnp.array([0]), eps)
    np.testing.assert_allclose(x_adv[0], max(visited, key=value), atol=1e-5)


@pytest.mark.parametrize("norm", [L2, LINF, lp(1.5)], ids=label)
def test_random_points_of_a_ball_are_not_all_at_its_surface(norm):
    """Their mean is the centre; their size is uniform, in l_inf that of uniform points."""
    keys = jax.random.split(KEY, 1000)
    points = jax.jit(random_in_ball, static_argnums=2)(keys, jnp.zeros((1000, 3, 1)), norm)
    quantiles = np.array([0.25, 0.5, 0.75, 1.0])
    sizes = norm.size(points) ** (3 if norm == LINF else 1)
    np.testing.assert_allclose(np.quantile(sizes, quantiles), quantiles, atol=0.06)
    assert norm.size(points).max() <= 1 + 1e-5
    np.testing.assert_allclose(points.mean(0), 0.0, atol=0.06)


@pytest.mark.parametrize(
    ("name", "norm"),
    [("fgsm", L1), ("fgsm", lp(1.2)), ("pgd", L1), ("pgd", lp(1.2)), ("apgd", L1)],
    ids=label,
)
def test_below_l2_a_step_goes_to_the_entries_that_can_move(name, norm):
    """The steepest entry, which is at its bound already, does not use up the step."""
    slopes = jnp.array([[2.0, 1.0, 0.5]])
    model = lambda x: jnp.concatenate([(x * slopes).sum(1, keepdims=True) - 0.55, 0 * x[:, :1]], 1)
    x, y = jnp.array([[0.0, 0.4, 0.4]]), jnp.array([0])
    x_adv = getattr(attacks, name)(KEY, model, x, y, 0.3, norm=norm)
    assert margin(model(x), y) < 0 < margin(model(x_adv), y)


def test_pgd_fills_the_box_in_l1_in_the_order_of_the_slopes():
    """From 0.9 everywhere, three of four entries fall to 0, and the last by what is left of eps."""
    slopes = jnp.array([[1.0, 0.9, 0.8, 0.7]])
    model = lambda x: jnp.concatenate([(x * slopes).sum(1, keepdims=True), 0 * x[:, :1]], 1)
    x = jnp.full((1, 4), 0.9)
    x_adv = attacks.pgd(KEY, model, x, jnp.array([0]), 3.0, norm=L1, loss=margin)
    np.testing.assert_allclose(model(x_adv)[0, 0], 0.6 * 0.7, atol=0.02)


def test_apgd_may_begin_at_larger_radii_and_ends_in_its_own():
    """30, 30 and 40 % of the steps at 3, 2 and 1 times eps (2103.01208); with few steps the first
    two phases may be empty."""
    for steps, shares in ((100, [30, 30, 40]), (7, [2, 2, 3]), (1, [0, 0, 1])):
        lengths, counts, multiples = _phases(steps, from_larger=True, sparse=True)
        assert counts.tolist() == shares
        assert multiples.tolist() == [3, 2, 1]
        assert (lengths.sum(1) <= counts).all()
    attack = partial(attacks.apgd, KEY, net, X, Y, norm=L1, steps=7, from_larger=True)
    base = radius(L1)
    for eps, x_adv in zip((0.0, base), jax.jit(lambda: [attack(0.0), attack(base)])(), strict=True):
        assert (L1.size(x_adv - X) <= eps * (1 + 1e-5)).all()
    assert (margin(net(x_adv), Y) > margin(net(X), Y)).any()


def test_pgd_starts_at_a_random_point_of_its_key():
    attack = partial(attacks.pgd, norm=LINF, steps=1, step_size=0.0, bounds=FAR)
    run = jax.jit(lambda key: (attack(key, net, X, Y, 0.4) - X).reshape(BATCH, -1))
    noise = run(KEY)
    assert ((LINF.size(noise) > 0.3) & (LINF.size(noise) < 0.4)).all()
    assert len(np.unique(jnp.concatenate([noise, run(jax.random.key(1))]))) == 2 * noise.size


def test_more_restarts_are_never_weaker():
    attack = partial(attacks.pgd, norm=LINF, steps=1, step_size=0.5)
    model = partial(mlp, jax.tree.map(lambda a: 4 * a, MLP))
    after = lambda restarts: margin(model(attack(KEY, model, X, Y, 0.5, restarts=restarts)), Y)
    one, four = jax.jit(lambda: (after(1), after(4)))()
    assert (four >= one - 1e-5).all()
    assert (four > one + 0.01).any()


def test_an_attack_on_each_class_finds_what_the_likeliest_class_hides():
    """Class 1 is the likeliest wrong one and 2 away; class 2 looks hopeless and is 0.8 away."""
    model = lambda x: jnp.stack([0 * x[:, 0], 0.5 * x[:, 0] - 1, 10 * x[:, 1] - 8], -1)
    x, y = jnp.zeros((1, 2)), jnp.array([0])
    attack = partial(attacks.pgd, random_start=False, bounds=FAR)
    found = [margin(model(attack(KEY, model, x, y, 0.9, targets=t)), y)[0] for t in (0, 1, 2)]
    assert max(found[:2]) < 0 < found[2]


def test_the_most_misclassified_point_is_kept_and_not_the_last():
    """Steps of 0.25 go from 0.2 over the hill of the margin at 0.44 to 0.45, and back again."""
    model = lambda x: jnp.concatenate([0 * x, 0.01 - (x - 0.44) ** 2], -1)
    attack = partial(attacks.pgd, norm=LINF, step_size=0.5, random_start=False)
    for steps in (1, 2, 3):
        x_adv = attack(KEY, model, jnp.array([[0.2]]), jnp.array([0]), 0.5, steps=steps)
        np.testing.assert_allclose(x_adv, [[0.45]], atol=1e-6)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "ddn", "fmn", "deepfool", "square"])
def test_a_point_at_which_logits_are_no_numbers_is_found(name):
    """It is misclassified, and the margin on the way there never changes its sign."""

    def model(x):
        falls = jnp.where(x[:, :1] > 0.7, jnp.nan, 1 - x[:, :1])
        return jnp.concatenate([falls, 0 * falls], 1)

    attack, x, y = getattr(attacks, name), jnp.array([[0.5, 0.5]]), jnp.array([0])
    eps = {"eps": 0.3} if "eps" in inspect.signature(attack).parameters else {}
    norm = L2 if name == "ddn" else LINF
    assert misclassified(model, attack(KEY, model, x, y, norm=norm, **eps), y)


# What users get wrong.


OF_ALL = [
    ({"bounds": (1.0, 0.0)}, r"bounds = \(1.0, 0.0\): the first must be less than the second"),
    ({"x": (255 * X).astype(jnp.uint8)}, r"x has dtype uint8;.*floating-point.*\(0.0, 1.0\)"),
    ({"x": 255 * X}, r"x has values from [\d.]+ to 2\d\d[\d.]*, outside bounds \(0.0, 1.0\)"),
    ({"x": X.at[0].set(jnp.nan)}, "x has values of nan"),
    ({"y": Y[:4]}, r"y has shape \[4\], dtype int32; want classes \[8\]"),
    ({"y": jax.nn.one_hot(Y, 3)}, r"y has shape \[8, 3\], dtype float32; want classes \[8\]"),
    ({"y": Y.at[0].set(-1)}, "y has values from -1 to 2; logits_fn has 0 to 2"),
    ({"y": Y + 1}, "y has values from 1 to 3; logits_fn has 0 to 2"),
    ({"logits_fn": lambda x: x}, r"must return \[8, K\]; it returned \[8, 4, 4, 1\]"),
    ({"logits_fn": lambda x: net(x)[:1]}, r"must return \[8, K\]; it returned \[1, 3\]"),
    ({"logits_fn": lambda x: (net(x), {})}, r"must return \[8, K\]; it returned tuple"),
    ({"logits_fn": lambda x: net(x)[:, :1]}, r"returned one logit per image, \[8, 1\].*two_logits"),
]
OF_PGD = [
    ({"steps": 0}, "steps = 0; it must be at least 1"),
    ({"step_size": -0.1}, "pgd: step_size = -0.1; it must be 0 or more, and finite"),
    ({"restarts": 0}, "restarts = 0; it must be at least 1"),
    ({"targets": 3}, "targets = 3 of 3 classes; choose 0 to 2"),
    ({"targets": -1}, "targets = -1 of 3 classes; choose 0 to 2"),
    ({"key": jax.random.PRNGKey(0)}, r"dtype uint32; make it with jax.random.key\(seed\)"),
]
WRONG = [(name, *row) for name in FIXED for row in OF_ALL] + [("pgd", *row) for row in OF_PGD]


@pytest.mark.parametrize(("name", "given", "said"), WRONG)
def test_what_is_wrong_is_named_with_the_choices(name, given, said):
    inputs = {"key": KEY, "logits_fn": net, "x": X, "y": Y, "eps": 0.1, **given}
    with pytest.raises(ValueError, match=said):
        getattr(attacks, name)(**inputs)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("carlini_wagner", {"c": 0.0}),
        ("ead", {"learning_rate": -1.0}),
        ("ddn", {"gamma": jnp.nan}),
        ("fmn", {"gamma": jnp.inf}),
        ("basic_iterative", {"radius": 0.0}),
        ("log_barrier", {"step": -0.01}),
    ],
)
def test_sizes_are_greater_than_0(name, given):
    ((option, value),) = given.items()
    with pytest.raises(ValueError, match=f"{name}: {option} = {value}; it must be greater than 0"):
        getattr(attacks, name)(KEY, net, X, Y, **given)


@pytest.mark.parametrize(
    ("attack", "norm"), [("fab", L1), ("deepfool", L2), ("fab", LINF)], ids=label
)
def test_a_box_without_an_end_is_one_that_is_never_met(attack, norm):
    """Entries without a slope among them."""
    logits = lambda x: x @ jnp.array([[3.0, -1.0], [0.5, 0.5], [-1.0, 2.0], [0.0, 0.0]])
    x, y = jnp.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.9, 0.6, 0.5]]), jnp.array([0, 1])
    attack, eps = getattr(attacks, attack), (10.0,) if attack == "fab" else ()
    run = lambda bounds: attack(KEY, logits, x, y, *eps, norm=norm, bounds=bounds)
    found = run((-jnp.inf, jnp.inf))
    assert (logits(found).argmax(1) != y).all()
    np.testing.assert_allclose(found, run((-50.0, 50.0)), atol=1e-3)


def test_the_checkpoints_of_apgd_are_those_of_its_paper():
    """Of 100 steps: `p_1 = 0.22`, then `p_j + max(p_j - p_{j-1} - 0.03, 0.06)` (2003.01690)."""
    lengths = _checkpoints(100, sparse=False)
    np.testing.assert_array_equal(np.flatnonzero(lengths) + 1, [22, 41, 57, 70, 80, 87, 93, 99])


def test_the_steps_of_apgd_shrink_until_it_stands_on_a_maximum_inside_of_the_ball():
    """Of `-|x' - c|^2`, where steps of `2 eps` in every entry jump to and fro."""
    c = 0.5 + 0.1 * jax.random.uniform(KEY, (8, 3), minval=-0.7, maxval=0.7)
    x, y = jnp.full((8, 3), 0.5), jnp.zeros(8, int)

    def logits_fn(x):
        margin = 1 + 50 * jnp.square(x - c).sum(1)
        return jnp.stack([margin, 0 * margin], 1)

    for norm in (LINF, L2):
        x_adv = attacks.apgd(KEY, logits_fn, x, y, 0.1 if norm is LINF else 0.2, norm=norm)
        assert jnp.abs(x_adv - c).max() < 0.002


@pytest.mark.parametrize("norm", [L1, L2, LINF], ids=lambda norm: norm.name)
def test_fab_is_as_near_to_black_and_white_images_as_the_box_allows(norm):
    """The nearest point is `box(x + t d)`: d is w in l_2, its signs in l_inf; in l_1 the entries of
    the largest weights go to the box's end one by one."""
    x = jnp.round(jax.random.uniform(jax.random.fold_in(KEY, 3), (8, 16)))
    w = jax.random.normal(jax.random.fold_in(KEY, 4), (16,))
    level = 0.7 * (x @ w).max() + 0.3 * jnp.maximum(w, 0).sum()
    logits_fn = lambda x: jnp.stack([0 * x[:, 0], x @ w - level], 1)
    slopes = np.asarray(w, float)

    def exact(image):
        gap = float(level) - image @ slopes
        if norm is L1:
            room = np.where(slopes > 0, 1 - image, image)
            order = np.argsort(-np.abs(slopes) * (room > 0))
            gains = np.abs(slopes[order]) * room[order]
            whole = int((np.cumsum(gains) < gap).sum())
            return whole + (gap - gains[:whole].sum()) / np.abs(slopes[order][whole])
        d = slopes if norm is L2 else np.sign(slopes)
        moved = lambda t: np.clip(t * d, -image, 1 - image)
        t = brentq(lambda t: moved(t) @ slopes - gap, 0, 1e3)
        return np.linalg.norm(moved(t), 2 if norm is L2 else np.inf)

    x_adv = attacks.fab(KEY, logits_fn, x, jnp.zeros(8, int), 100.0, norm=norm)
    assert (logits_fn(x_adv).argmax(1) == 1).all()
    ratios = np.asarray(norm.size(x_adv - x)) / [exact(image) for image in np.asarray(x, float)]
    assert ratios.min() > 1 - 1e-4
    assert ratios.max() < 1.02

"""One contract for every attack that looks for the smallest perturbation, and exact distances."""

import functools
import inspect
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lipreg import attacks, curves
from lipreg.norms import L1, L2, LINF

KEY = jax.random.key(0)
NORMS = [L1, L2, LINF]
BATCH, PIXELS, CLASSES = 8, (4, 4, 1), 3
X = jax.random.uniform(jax.random.fold_in(KEY, 1), (BATCH, *PIXELS))
label = lambda value: getattr(value, "name", None)
# A step follows or not by the answer at a point near the boundary, so rounding grows on the way;
# another random number would move a point by a tenth.
assert_close = partial(chex.assert_trees_all_close, rtol=5e-3, atol=1e-3)


def normal(i, *shape):
    return jax.random.normal(jax.random.fold_in(KEY, 10 + i), shape)


MLP = {"w1": 0.5 * normal(0, 16, 6), "b1": 0.1 * normal(1, 1, 6), "w2": normal(2, 6, CLASSES)}
MLP |= {"b2": jnp.zeros((1, CLASSES))}


def mlp(params, x):
    hidden = jnp.tanh(x.reshape(x.shape[0], -1) @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


# The first six images are classified right, the last two wrong.
Y = (mlp(MLP, X).argmax(-1) + (jnp.arange(BATCH) >= 6).astype(jnp.int32)) % CLASSES
WRONG = np.arange(BATCH) >= 6


def takes(name):
    return inspect.signature(getattr(attacks, name)).parameters


def serves(name, norm):
    try:
        jax.eval_shape(partial(getattr(attacks, name), KEY, partial(mlp, MLP), norm=norm), X, Y)
    except ValueError as e:
        if "no form for the norm" not in str(e):
            raise
        return False
    return True


NAMES = [name for name in attacks.__all__ if "eps" not in takes(name)]
TABLE = [(name, norm) for name in NAMES for norm in NORMS if serves(name, norm)]
every_member = pytest.mark.parametrize(("name", "norm"), TABLE, ids=label)
few_members = pytest.mark.parametrize("name", NAMES)
# Contracts need no strength: fewer steps than an attack's own number.
SHORT = {
    "basic_iterative": {"growths": 4, "bisections": 4},
    "boundary": {"steps": 100},
    "carlini_wagner": {"steps": 100, "searches": 5, "c": 0.1},
    "ddn": {"steps": 30},
    "deepfool": {"steps": 10},
    "ead": {"steps": 50, "searches": 5, "c": 0.1},
    "fmn": {"steps": 60},
    "hopskipjump": {"steps": 4, "evaluations": 20},
    "log_barrier": {"outer": 4, "inner": 20},
}


def short(name):
    return partial(getattr(attacks, name), **SHORT.get(name, {}))


def evaluate(name, norm):
    """`(params, key, x, y) -> x_adv, distances`."""

    def run(params, key, x, y):
        model = partial(mlp, params)
        x_adv = short(name)(key, model, x, y, norm=norm)
        return x_adv, curves.distance(model, x, y, x_adv, norm=norm)

    return run


@functools.cache
def compiled(name, norm):
    """`evaluate` with one key for all: one trace for all the tests together."""
    return jax.jit(evaluate(name, norm))


def one_norm(name):
    return next(norm for norm in (L2, L1) if serves(name, norm))


def test_the_table_holds_every_attack_without_a_radius():
    served = {n: " ".join(norm.name for name, norm in TABLE if name == n) for n in NAMES}
    assert served == {
        "basic_iterative": "l2 linf",
        "boundary": "l2",
        "carlini_wagner": "l2",
        "ddn": "l2",
        "deepfool": "l1 l2 linf",
        "ead": "l1",
        "fmn": "l1 l2 linf",
        "hopskipjump": "l2 linf",
        "log_barrier": "l2 linf",
    }
    for name in NAMES:
        assert list(takes(name))[:4] == ["key", "logits_fn", "x", "y"]
        assert takes(name)["bounds"].default == (0.0, 1.0)


@every_member
def test_a_smallest_perturbation_fools_inside_the_box_and_what_is_wrong_stays(name, norm):
    x_adv, found = compiled(name, norm)(MLP, KEY, X, Y)
    chex.assert_trees_all_equal_shapes_and_dtypes(x_adv, X)
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    np.testing.assert_array_equal(x_adv[WRONG], X[WRONG])
    assert (found[WRONG] == 0).all()
    assert ((found > 0) & (found < jnp.inf))[~WRONG].all()


@every_member
def test_a_model_that_cannot_be_fooled_gives_x_back(name, norm):
    flat = MLP | {"w2": 0 * MLP["w2"], "b2": jnp.eye(CLASSES)[:1]}
    x_adv, found = compiled(name, norm)(flat, KEY, X, jnp.zeros(BATCH, jnp.int32))
    np.testing.assert_array_equal(x_adv, X)
    assert (found == jnp.inf).all()


@few_members
def test_a_smallest_perturbation_is_the_same_however_it_is_run(name):
    """Eager, vmapped over models, a batch sharded over four devices: as jitted."""
    norm = one_norm(name)
    run, jitted = evaluate(name, norm), compiled(name, norm)
    expected = jitted(MLP, KEY, X, Y)
    assert_close(run(MLP, KEY, X, Y), expected)  # eager

    stacked = jax.tree.map(lambda a: jnp.stack([0.9 * a, a, 1.1 * a, 1.2 * a]), MLP)
    each = [jitted(jax.tree.map(lambda a, i=i: a[i], stacked), KEY, X, Y) for i in range(4)]
    results = jax.tree.map(lambda *a: jnp.stack(a), *each)
    over = (0, None, None, None)
    assert_close(jax.jit(jax.vmap(run, over))(stacked, KEY, X, Y), results)

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x, y = jax.device_put((X, Y), NamedSharding(mesh, PartitionSpec("data")))
    params = jax.device_put(MLP, NamedSharding(mesh, PartitionSpec()))
    assert_close(jitted(params, KEY, x, y), expected)


@few_members
def test_a_model_in_half_precision_is_fooled_by_points_in_single(name):
    half = lambda x: mlp(
        jax.tree.map(lambda a: a.astype(jnp.bfloat16), MLP), x.astype(jnp.bfloat16)
    )
    y = half(X).argmax(-1).astype(jnp.int32)
    x_adv = jax.jit(lambda: short(name)(KEY, half, X, y, norm=one_norm(name)))()
    assert x_adv.dtype == X.dtype
    # Two logits that are equal in one program are not in another, which rounds less often.
    assert (half(x_adv).argmax(-1) != y).mean() >= 0.5


@few_members
def test_a_batch_of_integers_is_refused_in_one_line(name):
    with pytest.raises(ValueError, match="x has dtype uint8"):
        short(name)(KEY, partial(mlp, MLP), (255 * X).astype(jnp.uint8), Y)


# Linear models, where the distance is known: `min_j (z_y - z_j) / ||w_j - w_y||_*`.

# How much farther than the exact distance an attack may find, and what it needs for that.
STRONG = {
    "basic_iterative": (1.02, {}),
    "carlini_wagner": (1.02, {"steps": 500}),
    "ddn": (1.02, {"steps": 300}),
    "deepfool": (1.01, {}),
    "ead": (1.05, {"steps": 500}),
    "fmn": (1.01, {"steps": 500}),
    "hopskipjump": (1.15, {"steps": 30, "evaluations": 200}),
    "boundary": (1.15, {"steps": 2000}),
    "log_barrier": (1.05, {}),
}


# Of ten classes only the attacks on the margin know which boundary is nearest.
ON_THE_MARGIN = ("carlini_wagner", "deepfool", "ead", "log_barrier")
LINEAR = [(10 if row[0] in ON_THE_MARGIN else 2, *row) for row in TABLE]


@pytest.mark.parametrize(("classes", "name", "norm"), LINEAR, ids=label)
def test_the_exact_distance_of_a_linear_model_is_reached_and_never_undercut(classes, name, norm):
    weights = normal(3, 8, classes)
    model = lambda x: x @ weights
    x = jax.random.uniform(KEY, (BATCH, 8), minval=-0.2, maxval=0.2)
    y = model(x).argmax(-1)
    gaps = model(x)[jnp.arange(BATCH), y][:, None] - model(x)
    slopes = jax.vmap(norm.dual)(weights.T[None] - weights.T[y][:, None])
    exact = jnp.where(jax.nn.one_hot(y, classes) > 0, jnp.inf, gaps / slopes).min(1)
    most, options = STRONG[name]
    attack = partial(getattr(attacks, name), norm=norm, bounds=(-1.0, 1.0), **options)
    x_adv = jax.jit(lambda key: attack(key, model, x, y))(KEY)
    found = curves.distance(model, x, y, x_adv, norm=norm, bounds=(-1.0, 1.0))
    assert (found >= exact * (1 - 1e-3)).all()
    assert jnp.median(found / exact) < most


@pytest.mark.parametrize("norm", NORMS, ids=label)
def test_deepfool_takes_the_box_into_account(norm):
    """`z = 3 a + b - c` at a = 1: `a` cannot grow, so the step is the exact one in b alone."""
    model = lambda x: jnp.stack([0 * x[:, 0], 3 * x[:, 0] + x[:, 1] - 3.2], -1)
    x, y = jnp.array([[1.0, 0.1]]), jnp.array([0])
    x_adv = attacks.deepfool(KEY, model, x, y, norm=norm)
    np.testing.assert_allclose(x_adv, [[1.0, 0.2]], atol=1e-3)


def test_fmn_comes_through_where_the_box_cuts_every_step():
    """Images of 0 and 1, half of whose pixels cannot follow the slope in the box."""
    x = jnp.round(jax.random.uniform(KEY, (100, 20)))
    slopes = normal(9, 20)
    level = x @ slopes - jax.random.uniform(jax.random.fold_in(KEY, 9), (100,), minval=0.2)
    model = lambda x: jnp.stack([x @ slopes - level, 0 * x[:, 0]], 1)
    y = jnp.zeros(100, int)
    x_adv = jax.jit(lambda x: attacks.fmn(KEY, model, x, y, norm=LINF))(x)
    assert (curves.distance(model, x, y, x_adv, norm=LINF) < jnp.inf).all()


@pytest.mark.parametrize("norm", NORMS, ids=label)
def test_fmn_comes_through_where_the_boundary_it_sees_is_next_to_nothing_ahead(norm):
    """Linear models, and points that the box separates from the boundary, most often in l_1."""
    weights = normal(8, 5, 3)
    model = lambda x: 10 * (x - 0.5) @ weights
    x = 0.5 + 0.3 * jax.random.uniform(KEY, (200, 5), minval=-1.0, maxval=1.0)
    y = model(x).argmax(-1)
    x_adv = jax.jit(lambda x: attacks.fmn(KEY, model, x, y, norm=norm))(x)
    assert (curves.distance(model, x, y, x_adv, norm=norm) < jnp.inf).all()


STEPPING = ("deepfool", "fmn", "ddn", "carlini_wagner", "ead")
AT_THE_BOUNDARY = [(name, norm) for name, norm in TABLE if name in STEPPING]
AT_THE_BOUNDARY += [("fab", norm) for norm in NORMS]


@pytest.mark.parametrize(("name", "norm"), AT_THE_BOUNDARY, ids=label)
def test_an_image_on_the_boundary_itself_is_not_stood_still_at(name, norm):
    """Its margin is 0 and argmax returns the true class, so the linearised model gives no step."""
    attack = partial(getattr(attacks, name), norm=norm)
    options = {"eps": 0.1} if "eps" in takes(name) else SHORT.get(name, {})
    x, y = jnp.array([[0.5, 0.5]]), jnp.array([0])
    x_adv = attack(KEY, lambda x: x, x, y, **options)
    assert x_adv.argmax(1)[0] == 1


def test_ddn_goes_on_where_the_cross_entropy_is_saturated():
    model, x, y = lambda x: 1e4 * x, jnp.array([[0.6, 0.4]]), jnp.array([0])
    x_adv = attacks.ddn(KEY, model, x, y)
    np.testing.assert_allclose(x_adv, [[0.5, 0.5]], atol=1e-2)
    assert x_adv.argmax(1)[0] == 1


# Piecewise affine models in the plane, where brute force is exact enough.


@pytest.mark.parametrize("norm", NORMS, ids=label)
def test_no_attack_finds_less_than_brute_force_in_the_plane_and_together_they_find_it(norm):
    """The maximum of affine pieces: the boundary is a broken line, with local minima."""
    pieces, offsets = normal(4, 2, 6), 0.3 * normal(5, 1, 6)

    def model(x):
        z = (x - 0.5) @ pieces + offsets
        return jnp.stack([z[:, :3].max(1), z[:, 3:].max(1)], -1)

    points = jnp.stack(jnp.meshgrid(*[jnp.linspace(0, 1, 401)] * 2), -1).reshape(-1, 2)
    x = jax.random.uniform(jax.random.fold_in(KEY, 7), (BATCH, 2))
    y = model(x).argmax(-1)
    answers = model(points).argmax(-1)
    gaps = jax.vmap(lambda a: norm.size(points - a[None]))(x)
    brute = jnp.where(answers[None] != y[:, None], gaps, jnp.inf).min(1)
    names = [name for name in ("basic_iterative", *STEPPING) if (name, norm) in TABLE]

    @jax.jit
    def run(key):
        points = [short(name)(key, model, x, y, norm=norm) for name in names]
        return [curves.distance(model, x, y, point, norm=norm) for point in points]

    found = jnp.stack(run(KEY))
    assert (found >= brute[None] - 2 * norm.size(jnp.full((1, 2), 1 / 400))[0]).all()
    assert (found.min(0) <= 1.05 * brute + 0.005).mean() >= 0.75

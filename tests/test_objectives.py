"""Exact values on linear models, one contract for every objective, and agreement between forms."""

import functools
import inspect
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lipreg import objectives
from lipreg.lipschitz.functions import gradient_norms
from lipreg.losses import cross_entropy
from lipreg.norms import L1, L2, LINF, lp

KEY = jax.random.key(0)
NORMS = [L1, L2, LINF, lp(1.5), lp(3)]
each_norm = pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
BATCH, PIXELS, CLASSES = 8, (4, 4, 1), 3
X = jax.random.uniform(jax.random.fold_in(KEY, 1), (BATCH, *PIXELS))
Y = jax.random.randint(jax.random.fold_in(KEY, 2), (BATCH,), 0, CLASSES)


def normal(i, *shape):
    return jax.random.normal(jax.random.fold_in(KEY, 10 + i), shape)


# A smooth MLP and a smooth convolution: on smooth nets every form agrees to first order.
MLP = {"w1": 0.5 * normal(0, 16, 6), "b1": 0.1 * normal(1, 1, 6), "w2": normal(2, 6, CLASSES)}
CONV = {"k": 0.7 * normal(3, 3, 3, 1, 2), "w": normal(4, 2, CLASSES)}


def mlp(params, x):
    hidden = jnp.tanh(x.reshape(x.shape[0], -1) @ params["w1"] + params["b1"])
    return hidden @ params["w2"]


def conv(params, x):
    kind = ("NHWC", "HWIO", "NHWC")
    hidden = jax.lax.conv_general_dilated(x, params["k"], (1, 1), "SAME", dimension_numbers=kind)
    return jax.nn.softplus(3 * hidden).mean((1, 2)) @ params["w"]


def linear(params, x):
    return x.reshape(x.shape[0], -1) @ params["w"]


def bind(apply, params):
    """The network as objectives take it."""
    return lambda x: apply(params, x)


def losses(apply, params):
    """The loss of images, [B]."""
    return lambda x, y: cross_entropy(apply(params, x), y)


def boosted(logits, y):
    """The loss of mart, which has a margin's term beside the cross entropy."""
    p = jax.nn.softmax(logits)
    other = jnp.where(jax.nn.one_hot(y, CLASSES, dtype=bool), 0.0, p).max(1)
    return cross_entropy(logits, y) - jnp.log(1.0001 - other)


# A loss of images: the network is the identity. And the one number that a network returns.
same = lambda x: x
first = lambda logits, y: logits[:, 0]
NONE = jnp.zeros(2, jnp.int32)  # classes that a loss does not look at


NETS = {"mlp": (mlp, MLP), "conv": (conv, CONV)}


def drawn(objective):
    """The key, for an objective that declares one."""
    return {"key": KEY} if "key" in inspect.signature(objective).parameters else {}


def methods(objective):
    """The methods that an objective serves: it refuses the others with a ValueError."""
    given = {name: 0.1 for name in objectives.strengths(objective)} | drawn(objective)
    served = []
    for method in ("attack", "penalty", "difference", "gradient", "pairs"):
        value = objectives.method(method)
        try:
            jax.eval_shape(lambda m=value: objective(bind(mlp, MLP), X, Y, **given, method=m))
        except ValueError:
            continue
        except TypeError:  # it has no methods
            return [None]
        served.append(method)
    return served


def member(name, method=None, **options):
    """`(params, strengths, x, y, apply) -> scalar, parts` for one objective and method."""
    objective = getattr(objectives, name)
    if method is not None:
        options["method"] = objectives.method(method)
    options |= drawn(objective)

    def evaluate(params, strengths, x, y, apply=mlp):
        return objective(bind(apply, params), x, y, **strengths, **options)

    return evaluate


def value_and_grad(evaluate, apply=mlp):
    return jax.value_and_grad(partial(evaluate, apply=apply), has_aux=True)


def contract(name, method):
    """Value, parts and parameter gradient of a member."""
    # A difference divides rounding errors by h: at 0.1 the tolerance of the other methods is right.
    return value_and_grad(member(name, "difference(h=0.1)" if method == "difference" else method))


@functools.cache
def compiled(name, method):
    """`contract` with float32 weights and images: one trace for all the tests together."""
    chex.clear_trace_counter()
    run = contract(name, method)
    return jax.jit(chex.assert_max_traces(lambda *inputs: run(*inputs), 1))


TABLE = [
    (name, method) for name in objectives.__all__ for method in methods(getattr(objectives, name))
]
every_member = pytest.mark.parametrize(("name", "method"), TABLE)


def some_strengths(name, scale=1.0):
    """A different positive number for each strength, so that exchanged ones are seen."""
    names = objectives.strengths(getattr(objectives, name))
    return {n: jnp.float32(scale * 0.2 / (i + 1)) for i, n in enumerate(names)}


def mean_loss(parts):
    """The loss at the clean images or, of an objective that does not look there, the attacked."""
    return parts["loss"] if "loss" in parts else parts["loss_adv"]


def assert_close(a, b, rtol=2e-5, atol=2e-6):
    chex.assert_trees_all_close(a, b, rtol=rtol, atol=atol)


# The contract, for every name in objectives.__all__.


def test_the_table_holds_every_objective_and_every_method_it_documents():
    served = {name: [m for n, m in TABLE if n == name] for name in objectives.__all__}
    assert served.keys() == set(objectives.__all__)
    known = {
        "j0": [None],
        "j1": ["attack", "penalty", "difference"],
        "j2": ["attack", "penalty", "difference"],
        "j2_lip": ["attack", "penalty", "difference"],
        "tikhonov": ["penalty", "difference"],
        "grad_lp": ["penalty", "difference"],
        "lip_excess": ["gradient", "pairs"],
    }
    assert {name: served[name] for name in known} == known
    assert objectives.strengths(objectives.j2_lip) == ("eps", "lam")
    assert objectives.strengths(objectives.j0) == ()


@every_member
def test_a_member_is_the_same_however_it_is_run(name, method):
    """Eager, jit, vmap over strengths, a batch sharded over four devices: value, parts and
    parameter gradient; and one trace serves all strengths."""
    run = contract(name, method)
    sweep = [some_strengths(name, scale) for scale in (0.5, 1.0, 1.5, 2.0)]
    expected = [compiled(name, method)(MLP, strengths, X, Y) for strengths in sweep]
    (value, parts), _ = expected[1]
    assert value.shape == ()
    assert jnp.isfinite(value)
    assert jnp.isfinite(mean_loss(parts))
    for part_name, part in parts.items():
        assert part.shape == (X.shape if part_name == "carried" else ())
        assert jnp.isfinite(part).all()
    assert_close(run(MLP, sweep[1], X, Y), expected[1])  # eager

    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *sweep)
    results = jax.tree.map(lambda *rows: jnp.stack(rows), *expected)
    if stacked:
        assert_close(jax.jit(jax.vmap(run, (None, 0, None, None)))(MLP, stacked, X, Y), results)
    if (name, method) == ("j2_lip", "attack"):
        assert_close(jax.pmap(run, in_axes=(None, 0, None, None))(MLP, stacked, X, Y), results)

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x, y = jax.device_put((X, Y), NamedSharding(mesh, PartitionSpec("data")))
    params = jax.device_put(MLP, NamedSharding(mesh, PartitionSpec()))
    assert_close(jax.jit(run)(params, sweep[1], x, y), expected[1])


@every_member
def test_without_strength_a_member_is_j0_in_value_and_gradient(name, method):
    (value, _), slope = compiled(name, method)(MLP, some_strengths(name, 0.0), X, Y)
    plain = value_and_grad(member("j0", loss=boosted)) if name == "mart" else compiled("j0", None)
    (expected, _), expected_slope = plain(MLP, {}, X, Y)
    assert_close((value, slope), (expected, expected_slope))


RAISED = [row for row in TABLE if some_strengths(row[0]) and row[0] != "free_at"]  # a step later


@pytest.mark.parametrize(("name", "method"), RAISED)
def test_a_strength_raises_the_value_of_a_member(name, method):
    run = compiled(name, method)
    values = [run(MLP, some_strengths(name, scale), X, Y)[0][0] for scale in (0.0, 0.1, 1.0)]
    assert values[0] < values[1] < values[2]


@every_member
def test_a_model_that_ignores_its_input_has_finite_parameter_gradients(name, method):
    """The gradient in x is 0 everywhere; its norm must not poison the second derivative."""
    flat, strengths = MLP | {"w1": jnp.zeros_like(MLP["w1"])}, some_strengths(name)
    results = [compiled(name, method)(flat, strengths, X, Y)]
    if name == "j2_lip":  # the other norms with every method
        forms = [value_and_grad(member(name, method, norm=norm)) for norm in NORMS if norm != L2]
        results += jax.jit(lambda: [form(flat, strengths, X, Y) for form in forms])()
    chex.assert_tree_all_finite(results)
    for (_, parts), slope in results:
        np.testing.assert_allclose(mean_loss(parts), losses(mlp, flat)(X, Y).mean(), rtol=1e-6)
        assert jnp.abs(slope["w2"]).max() > 0


@every_member
def test_what_the_network_returns_beside_its_logits_comes_back(name, method):
    logits_fn = lambda x: (mlp(MLP, x), {"mean": x.mean(), "examples": x.shape[0]})
    objective = getattr(objectives, name)
    options = {} if method is None else {"method": objectives.method(method)}
    options |= drawn(objective)

    @jax.jit
    def run(strengths):
        return (
            objective(logits_fn, X, Y, **strengths, **options),
            member(name, method)(MLP, strengths, X, Y),
        )

    (value, parts), (plain, plain_parts) = run(some_strengths(name))
    assert parts["aux"]["examples"] == BATCH
    # The training pass runs on x, or on x_adv where the method is the attack.
    assert abs(parts["aux"]["mean"] - X.mean()) < 0.2
    assert "aux" not in plain_parts
    np.testing.assert_allclose(value, plain, rtol=1e-6)


@pytest.mark.parametrize("name", objectives.__all__)
def test_a_loss_that_reduces_its_batch_is_refused(name):
    mean = lambda logits, y: cross_entropy(logits, y).mean()
    objective = getattr(objectives, name)
    with pytest.raises(ValueError, match=r"one value per example, \[8\].*shape \[\]"):
        objective(bind(mlp, MLP), X, Y, **some_strengths(name), **drawn(objective), loss=mean)


# Linear models, where everything is known.

W = {"w": normal(5, 16, CLASSES)}


def exact_grad(params, x, y):
    """`W'(p - e_y)`, the gradient in x of the cross entropy of a linear softmax."""
    rest = jax.nn.softmax(linear(params, x)) - jax.nn.one_hot(y, CLASSES)
    return (rest @ params["w"].T).reshape(x.shape)


def test_the_gradient_of_a_linear_softmax_is_known():
    values, grad, aux = objectives.value_and_input_grad(bind(linear, W), X, Y)
    np.testing.assert_allclose(grad, exact_grad(W, X, Y), atol=1e-6)
    np.testing.assert_allclose(values, losses(linear, W)(X, Y), rtol=1e-6)
    assert aux is None


@each_norm
def test_the_penalties_of_a_linear_softmax_are_known(norm):
    sizes = norm.dual(exact_grad(W, X, Y))
    logits_fn = bind(linear, W)
    plain = losses(linear, W)(X, Y)
    exponents = (1.0, 2.0, 4.0)

    @jax.jit
    def run():
        return (
            objectives.j2(logits_fn, X, Y, eps=0.3, norm=norm, method="penalty"),
            objectives.j2_lip(logits_fn, X, Y, eps=0.3, lam=2.0, norm=norm, method="penalty"),
            objectives.tikhonov(logits_fn, X, Y, lam=0.7, norm=norm)[0],
            [objectives.grad_lp(logits_fn, X, Y, lam=0.7, p=p, norm=norm)[0] for p in exponents],
        )

    (j2, parts), (lip, lip_parts), squared, powers = run()
    np.testing.assert_allclose(j2, (plain + 0.3 * sizes).mean(), rtol=1e-5)
    np.testing.assert_allclose(parts["grad_norm"], sizes.mean(), rtol=1e-5)
    np.testing.assert_allclose(parts["max_grad_norm"], sizes.max(), rtol=1e-5)
    np.testing.assert_allclose(parts["loss"], plain.mean(), rtol=1e-6)

    np.testing.assert_allclose(lip, j2 + 2 * sizes.max(), rtol=1e-5)
    np.testing.assert_allclose(lip_parts["lip"], sizes.max(), rtol=1e-5)
    np.testing.assert_allclose(squared, plain.mean() + 0.35 * (sizes**2).mean(), rtol=1e-5)
    for p, value in zip(exponents, powers, strict=True):
        expected = plain.mean() + 0.7 * (sizes**p).mean() ** (1 / p)
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_j1_takes_the_linf_attack_and_j2_the_l2_attack_by_default():
    logits_fn = bind(linear, W)
    grad = exact_grad(W, X, Y).reshape(BATCH, -1)
    for objective, p in ((objectives.j1, 1), (objectives.j2, 2), (objectives.j2_lip, 2)):
        given = dict.fromkeys(objectives.strengths(objective), 0.1)
        _, parts = objective(logits_fn, X, Y, **given)
        expected = np.linalg.norm(grad, ord=p, axis=1)
        np.testing.assert_allclose(parts["grad_norm"], expected.mean(), rtol=1e-5)


# Binary logistic regression, `l = phi(m) = log(1 + e^-m)` with m = (2y - 1) w.x.
V = normal(6, 16)
SIGNS = jnp.where(Y % 2 == 1, 1.0, -1.0)
POINTS = (X - 0.5).reshape(BATCH, -1)


def logistic(v):
    return lambda x, s: jax.nn.softplus(-s * (x @ v))


def logistic_pieces(norm, v=V):
    m = SIGNS * (POINTS @ v)
    return m, jax.nn.sigmoid(-m), norm.dual(v[None])[0]


@each_norm
def test_training_on_one_step_is_the_exact_robust_loss_of_a_linear_model(norm):
    """`max {phi over the ball} = phi(m - eps ||w||_*)`, in value and in the gradient in w."""

    def robust(v, eps):
        m, _, size = logistic_pieces(norm, v)
        return jax.nn.softplus(-(m - eps * size)).mean()

    trained = lambda v, eps: objectives.j2(
        same, POINTS, SIGNS, eps=eps, norm=norm, loss=logistic(v)
    )[0]
    both = jax.jit(lambda v, eps: [jax.value_and_grad(f)(v, eps) for f in (trained, robust)])
    for eps in (0.05, 0.5):
        assert_close(*both(V, eps))


@each_norm
def test_the_penalty_is_known_and_just_below_the_exact_robust_loss(norm):
    """`0 <= phi(m - eps ||w||_*) - (phi + eps s ||w||_*) <= eps^2 ||w||_*^2 / 8`."""
    m, s, size = logistic_pieces(norm)
    penalised = partial(
        objectives.j2, same, POINTS, SIGNS, norm=norm, method="penalty", loss=logistic(V)
    )
    run = jax.jit(lambda eps: penalised(eps=eps)[0])
    for eps in (0.01, 0.1, 1.0):
        value = run(eps)
        expected = (jax.nn.softplus(-m) + eps * s * size).mean()
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        excess = jax.nn.softplus(-(m - eps * size)).mean() - value
        assert -1e-6 <= excess <= eps**2 * size**2 / 8 + 1e-6


@pytest.mark.parametrize("method", ["attack", "penalty", "difference"])
def test_j1_and_j2_differ_by_their_default_norm_alone(method):
    @jax.jit
    def run(eps):
        return [
            [value_and_grad(member(n, method, norm=norm))(MLP, {"eps": eps}, X, Y) for n in both]
            for norm in (L2, LINF)
        ]

    both = ("j1", "j2")
    for one, other in run(0.1):
        assert_close(one, other)


@each_norm
def test_a_first_difference_errs_by_h_and_a_central_one_by_h_squared(norm):
    """Order 1: `h s (1 - s) ||w||_*^2 / 2` too much. Order 2: `O(h^2)`."""
    _, s, size = logistic_pieces(norm)
    penalised = partial(objectives.j2, same, POINTS, SIGNS, eps=1.0, norm=norm, loss=logistic(V))
    steps = 0.1 / size * jnp.array([1.0, 2.0, 4.0, 8.0])

    @jax.jit
    def errors():
        exact, _ = penalised(method="penalty")
        of = lambda h, order: penalised(method=objectives.difference(h, order))[0] - exact
        return [jax.vmap(partial(of, order=order))(steps) for order in (1, 2)]

    first, second = errors()
    expected = (steps[:2, None] * s[None] * (1 - s[None]) * size**2 / 2).mean(1)
    np.testing.assert_allclose(first[:2], expected, rtol=0.1)
    np.testing.assert_allclose(first[1] / first[0], 2.0, rtol=0.1)
    assert abs(second[1]) < 0.1 * abs(first[1])
    np.testing.assert_allclose(second[3] / second[2], 4.0, rtol=0.2)


def test_differences_of_an_affine_loss_are_exact():
    affine = lambda x, y: x @ V + 1.0
    for order in (1, 2):
        run = partial(objectives.tikhonov, same, POINTS, SIGNS, lam=1.0, loss=affine)
        value, _ = run(method=objectives.difference(0.5, order))
        np.testing.assert_allclose(value, run()[0], rtol=1e-5)


# Units.


def test_the_gradient_of_the_batch_mean_is_smaller_by_the_batch():
    """The authors differentiate the mean: their weight on the largest gradient is lam / B here."""
    mean_loss = lambda x: losses(mlp, MLP)(x, Y).mean()
    largest = L2.dual(jax.grad(mean_loss)(X)).max()
    _, parts = objectives.j2_lip(bind(mlp, MLP), X, Y, eps=0.0, lam=1.0)
    np.testing.assert_allclose(parts["lip"], BATCH * largest, rtol=1e-5)


@each_norm
def test_inputs_in_other_units_have_gradients_in_other_units(norm):
    """The same model on 255 x has 1/255 of the gradient; eps in the new unit makes up for it."""
    scaled = lambda x: mlp(MLP, x / 255)

    @partial(jax.jit, static_argnums=0)
    def run(method):
        form = partial(objectives.j2, norm=norm, method=method)
        return form(bind(mlp, MLP), X, Y, eps=0.1), form(scaled, 255 * X, Y, eps=25.5)

    for method in ("attack", "penalty"):
        (value, parts), (value_255, parts_255) = run(method)
        np.testing.assert_allclose(value_255, value, rtol=1e-5)
        np.testing.assert_allclose(255 * parts_255["grad_norm"], parts["grad_norm"], rtol=1e-4)


# Agreement between the forms.


@pytest.mark.parametrize(
    ("net", "norm"),
    [("mlp", norm) for norm in NORMS] + [("conv", L2)],
    ids=lambda value: getattr(value, "name", value),
)
def test_attack_penalty_and_difference_agree_to_first_order(net, norm):
    """Halving eps quarters the distance between two forms, in value and parameter gradient."""
    apply, params = NETS[net]
    run = lambda method: value_and_grad(member("j2", method, norm=norm), apply)

    @jax.jit
    def apart(eps):
        """The distance of attack and difference from the penalty: in value, in gradient."""
        (value, _), slope = run("penalty")(params, {"eps": eps}, X, Y)
        results = []
        for method in ("attack", "difference(order=2)"):
            (other, _), other_slope = run(method)(params, {"eps": eps}, X, Y)
            away = jax.tree.map(lambda a, b: ((a - b) ** 2).sum(), slope, other_slope)
            results.append((abs(value - other), jnp.sqrt(sum(jax.tree.leaves(away)))))
        return results

    # Steps of comparable l2 length in every norm.
    eps = 0.1 / L2.size(norm.direction(normal(7, 1, 16)))[0]
    (attack, difference), (attack_half, _) = apart(eps), apart(eps / 2)
    for whole, half in zip(attack, attack_half, strict=True):
        assert 3.0 < whole / half < 5.0
    # The difference does not attack: it is the penalty up to h^2, at any eps.
    assert difference[0] < 1e-3
    assert difference[1] < 1e-2


@pytest.mark.parametrize(
    ("net", "norm", "method"),
    [
        ("mlp", L2, "attack"),
        ("mlp", LINF, "penalty"),
        ("conv", LINF, "attack"),
        ("conv", L2, "penalty"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_largest_gradient_alone_gives_the_maximum_in_value_and_gradient(net, norm, method):
    apply, params = NETS[net]
    strengths = {"eps": jnp.float32(0.1), "lam": jnp.float32(1.0)}

    @jax.jit
    def run():
        forms = (member("j2_lip", method, norm=norm, top_k=k) for k in (1, 0))
        return [value_and_grad(form, apply)(params, strengths, X, Y) for form in forms]

    assert_close(*run())


@pytest.mark.parametrize("top_k", [1, 0])
def test_the_maximum_at_the_attacked_images_is_that_of_the_formula(top_k):
    """`max_i ||grad l(x_i + eps d_i)||_2`, the attacked images not differentiated."""
    _, grad, _ = objectives.value_and_input_grad(bind(mlp, MLP), X, Y)
    x_adv = X + 0.5 * L2.direction(grad)

    def formula(params):
        _, grad, _ = objectives.value_and_input_grad(bind(mlp, params), x_adv, Y)
        return losses(mlp, params)(x_adv, Y).mean() + 2.0 * L2.dual(grad).max()

    run = partial(member("j2_lip", "attack", top_k=top_k, points="attacked"))
    strengths = {"eps": jnp.float32(0.5), "lam": jnp.float32(2.0)}
    (value, parts), slope = jax.jit(value_and_grad(run))(MLP, strengths, X, Y)
    assert_close((value, slope), jax.jit(jax.value_and_grad(formula))(MLP))
    assert abs(parts["lip"] - parts["max_grad_norm"]) > 1e-2  # it is another point


def test_all_the_largest_gradients_give_the_mean():
    strengths = {"eps": jnp.float32(0.0), "lam": jnp.float32(0.7)}
    everyone = jax.jit(value_and_grad(member("j2_lip", "penalty", top_k=BATCH)))(
        MLP, strengths, X, Y
    )
    mean = jax.jit(value_and_grad(member("j2", "penalty")))(MLP, {"eps": jnp.float32(0.7)}, X, Y)
    assert_close((everyone[0][0], everyone[1]), (mean[0][0], mean[1]))


def test_the_k_largest_gradients_are_averaged():
    _, grad, _ = objectives.value_and_input_grad(bind(mlp, MLP), X, Y)
    ranked = jnp.sort(L2.dual(grad))[::-1]
    for k in (1, 3):
        _, parts = objectives.j2_lip(bind(mlp, MLP), X, Y, eps=0.1, lam=1.0, top_k=k)
        np.testing.assert_allclose(parts["lip"], ranked[:k].mean(), rtol=1e-5)


def test_the_gradients_l1_is_the_j2_penalty_and_its_linf_the_maximum():
    j2 = jax.jit(value_and_grad(member("j2", "penalty")))(MLP, {"eps": jnp.float32(0.3)}, X, Y)
    lip = jax.jit(value_and_grad(member("j2_lip", "penalty", top_k=0)))(
        MLP, {"eps": jnp.float32(0.0), "lam": jnp.float32(0.3)}, X, Y
    )
    for p, expected in ((1.0, j2), (np.inf, lip)):
        got = jax.jit(value_and_grad(member("grad_lp", p=p)))(MLP, {"lam": jnp.float32(0.3)}, X, Y)
        assert_close((got[0][0], got[1]), (expected[0][0], expected[1]))


def test_the_gradients_lp_norm_rises_from_the_mean_to_the_maximum():
    run = lambda p: objectives.grad_lp(bind(mlp, MLP), X, Y, lam=1.0, p=p)[0]
    values = jax.jit(lambda: [run(p) for p in (1.0, 2.0, 8.0, 64.0, np.inf)])()
    assert (np.diff(values) > 0).all()
    _, parts = objectives.j2(bind(mlp, MLP), X, Y, eps=0.1)
    # p = 64 over eight examples: within a factor 8^(1/64) of the maximum.
    assert values[-2] - parts["loss"] > parts["max_grad_norm"] * BATCH ** (-1 / 64) * (1 - 1e-4)


@each_norm
def test_tikhonov_is_the_formula_in_value_and_gradient(norm):
    def formula(params):
        one = lambda x, y: losses(mlp, params)(x[None], y[None])[0]
        grads = jax.vmap(jax.grad(one))(X, Y)
        return (losses(mlp, params)(X, Y) + 0.15 * norm.dual(grads) ** 2).mean()

    run = lambda params: objectives.tikhonov(bind(mlp, params), X, Y, lam=0.3, norm=norm)[0]
    assert_close(*jax.jit(lambda: [jax.value_and_grad(f)(MLP) for f in (run, formula)])())


# The two views of a model.


@pytest.mark.parametrize(("name", "method"), [m for m in TABLE if m[1] in ("attack", "difference")])
def test_directions_come_from_the_frozen_view(name, method):
    """The loss falls along x[0], the frozen view sees only x[1]: the step goes along x[1]."""
    steps = []

    def logits_fn(x):
        jax.debug.callback(lambda x: steps.append(np.asarray(x)), x)
        return -3.0 * x[:, :1] + x[:, 1:2]

    frozen = lambda x: 5.0 * x[:, 1:2]
    x = jnp.full((2, 3), 0.5)
    given = dict.fromkeys(objectives.strengths(getattr(objectives, name)), 0.25)
    given |= {"method": objectives.method(method), "norm": L2, "frozen": frozen, "loss": first}
    getattr(objectives, name)(logits_fn, x, NONE, **given)
    jax.effects_barrier()
    moved = np.concatenate([step - np.asarray(x) for step in steps])
    assert np.abs(moved[:, 1]).max() > 0
    np.testing.assert_array_equal(moved[:, [0, 2]], 0.0)


def test_the_largest_gradient_is_that_of_the_frozen_view_and_the_full_form_that_of_the_loss():
    logits_fn, frozen = (lambda x: 2.0 * x[:, :1]), (lambda x: 5.0 * x[:, :1])
    for top_k, expected in ((1, 5.0), (0, 2.0)):
        _, parts = objectives.j2_lip(
            logits_fn,
            X.reshape(BATCH, -1),
            Y,
            eps=0.1,
            lam=1.0,
            top_k=top_k,
            frozen=frozen,
            loss=first,
        )
        np.testing.assert_allclose(parts["lip"], expected, rtol=1e-6)


@pytest.mark.parametrize("method", ["attack", "penalty", "difference(h=0.1)"])
def test_the_example_of_the_largest_gradient_is_chosen_by_what_is_taken_there(method):
    """In the trained view, and over a step of 0.1, another example has the largest."""
    x = jnp.array([[1.0], [2.0]])
    trained = lambda x: jnp.where(x < 1.05, x**2 / 2, x**2 / 2 + 50 * (x - 1.05))
    frozen = lambda x: jnp.where(x < 1.5, x**2, x)  # slopes 2 and 1
    given = {"lam": 1.0, "loss": first, "frozen": frozen, "method": objectives.method(method)}
    _, parts = objectives.j2_lip(trained, x, NONE[:2], eps=0.0, **given)
    assert parts["lip"] == 2.0
    kink = lambda x: jnp.where(x > 1.5, 2 * x, jnp.where(x < 1.05, x, 50 * x))
    lips = [
        objectives.j2_lip(kink, x, NONE[:2], eps=0.0, **given | {"frozen": None}, top_k=k)[1]["lip"]
        for k in (1, 0)
    ]
    assert lips == [2.0, 2.0]


def test_attack_directions_are_not_differentiated_in_the_parameters():
    """`l = a x0 + b x1`: along the fixed unit direction the slope in a is its first entry."""
    a = jnp.array([3.0, 4.0])
    logits_fn = lambda a: lambda x: x @ a[:, None]
    value = lambda a: objectives.j2(logits_fn(a), jnp.zeros((1, 2)), NONE[:1], eps=0.5, loss=first)[
        0
    ]
    np.testing.assert_allclose(jax.grad(value)(a), [0.3, 0.4], rtol=1e-6)


@pytest.mark.parametrize("method", ["attack", "penalty", "difference"])
def test_a_radius_per_example_is_a_radius_per_example(method):
    form = partial(objectives.j2, bind(mlp, MLP), method=objectives.method(method))
    eps = jnp.linspace(0.0, 0.5, BATCH)
    run = jax.jit(lambda x, y, eps: form(x, y, eps=eps)[0])
    alone = [run(X[i : i + 1], Y[i : i + 1], eps[i]) for i in range(BATCH)]
    np.testing.assert_allclose(run(X, Y, eps), jnp.stack(alone).mean(), rtol=1e-5)


# The Lipschitz constant of the network, and the part of it that is in excess.

MAP = jnp.array([[3.0, 0.0], [4.0, 1.0]])  # x @ MAP: gradients (3, 4) and (0, 1)
two = lambda w: lambda x: x.reshape(x.shape[0], -1)[:, :2] @ w
each_search = pytest.mark.parametrize("method", ["gradient", "pairs"])


@each_search
def test_only_what_exceeds_the_constant_of_the_data_is_penalised(method):
    """Of a linear map the constant is the largest norm of a row, 5, and its gradient row / 5."""

    def value(w, L0):
        form = objectives.pairs(steps=40) if method == "pairs" else method
        run = partial(objectives.lip_excess, two(w), X, Y, lam=2.0, L0=L0, method=form)
        return run(loss=lambda logits, y: 0.0 * logits[:, 0], output=same)

    evaluate = jax.jit(jax.value_and_grad(value, has_aux=True))
    (excess, parts), slope = evaluate(MAP, 1.5)
    tolerance = 1e-5 if method == "gradient" else 2e-2
    np.testing.assert_allclose(excess, 2 * 3.5, rtol=tolerance)
    np.testing.assert_allclose(parts["lip"], 5.0, rtol=tolerance)
    np.testing.assert_allclose(slope, 2 * jnp.array([[0.6, 0.0], [0.8, 0.0]]), atol=20 * tolerance)
    (excess, parts), slope = evaluate(MAP, 5.5)
    assert excess == 0
    np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.parametrize(
    ("method", "norm", "constant"),
    [
        *(("gradient", norm, constant) for norm, constant in ((LINF, 7.0), (L2, 5.0), (L1, 4.0))),
        ("pairs", LINF, 7.0),
        ("pairs", L2, 5.0),
    ],
)
def test_the_excess_is_that_of_the_norm_of_the_inputs(method, norm, constant):
    """The largest dual norm of a row: (3, 4) has 7, 5 and 4."""
    form = objectives.pairs(steps=40) if method == "pairs" else method
    options = {"loss": lambda logits, y: 0.0 * logits[:, 0], "output": same, "method": form}
    found, _ = objectives.lip_excess(two(MAP), X, Y, lam=1.0, L0=0.5, norm=norm, **options)
    np.testing.assert_allclose(found, constant - 0.5, rtol=2e-2)


def test_the_derivative_of_the_largest_gradient_is_that_of_all_of_them():
    probabilities = lambda params: lambda x: jax.nn.softmax(mlp(params, x))
    short = lambda params: objectives.lip_excess(bind(mlp, params), X, Y, lam=1.0, L0=0.0)[0]
    full = lambda params: (
        losses(mlp, params)(X, Y).mean() + gradient_norms(probabilities(params), X).max()
    )
    found, expected = (jax.jit(jax.value_and_grad(form))(MLP) for form in (short, full))
    assert_close(found, expected)


@each_search
def test_the_constant_is_that_of_the_frozen_view_and_of_what_is_handed_in(method):
    logits_fn, frozen = (lambda x: (2.0 * x[:, 0, 0], "aux")), (lambda x: 5.0 * x[:, 0, 0])
    run = partial(objectives.lip_excess, logits_fn, X, Y, lam=1.0, L0=0.0, loss=first)
    for output, view, expected in (
        (same, {}, 2.0),
        (lambda logits: 3 * logits, {"frozen": frozen}, 15.0),
    ):
        _, parts = run(output=output, method=objectives.method(method), **view)
        np.testing.assert_allclose(parts["lip"], expected, rtol=1e-4)
        assert parts["aux"] == "aux"


def test_pairs_stay_in_the_box_of_the_data():
    """The square is steeper farther out: in a box of standardised pixels more than in [0, 1]."""
    x = 4 * X - 2
    f = lambda x: jnp.square(x).sum((1, 2), keepdims=True)[:, 0, 0]  # up to 2 |x|
    run = partial(objectives.lip_excess, f, lam=1.0, L0=0.0, loss=first, output=same)
    lip = lambda x, **box: run(x, Y, method=objectives.pairs(40, **box))[1]["lip"]
    assert 2 * L2.size(x).max() < lip(x, bounds=(-2.0, 2.0)) < 16
    assert lip(X) < 8
    with pytest.raises(ValueError, match=r"outside bounds \(0.0, 1.0\)"):
        lip(x)


# Images and losses in other types than float32, and gradients with an entry that is not finite.


@every_member
def test_a_batch_in_half_precision_is_trained_on_in_single(name, method):
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), MLP)
    run = jax.jit(contract(name, method))
    (value, parts), grad = run(half, some_strengths(name), X.astype(jnp.bfloat16), Y)
    (expected, _), slope = compiled(name, method)(MLP, some_strengths(name), X, Y)
    assert value.dtype == mean_loss(parts).dtype == jnp.float32
    # A finite difference divides the rounding error of the loss by h.
    close = {"rtol": 0.05} if method != "difference" else {"rtol": 0.1}
    np.testing.assert_allclose(value, expected, **close)
    assert grad["w1"].dtype == jnp.bfloat16
    if method not in ("difference", "pairs"):
        assert jnp.abs(grad["w1"].astype(jnp.float32) - slope["w1"]).max() < 0.1


@pytest.mark.parametrize("name", ["j1", "j2"])
def test_an_attack_leaves_out_an_entry_without_a_slope_and_a_penalty_tells_of_it(name):
    logits_fn = lambda x: x[:, :1] + jnp.sqrt(jnp.square(x[:, 1:]))
    x = jnp.array([[0.5, 0.0]])
    run = partial(getattr(objectives, name), logits_fn, x, NONE[:1], eps=0.1, loss=first)
    value, parts = run()
    np.testing.assert_allclose(value, 0.6, rtol=1e-5)
    assert jnp.isnan(parts["grad_norm"])
    assert jnp.isnan(run(method="penalty")[0])


# Methods by their names.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("attack", "attack"),
        ("difference", objectives.difference()),
        ("difference(h=0.1, order=2)", objectives.difference(0.1, 2)),
        ("pairs(steps=7, bounds=(-1.0, 1.0))", objectives.pairs(7, (-1.0, 1.0))),
    ],
)
def test_a_text_names_a_method_with_its_options(text, expected):
    assert objectives.method(text) == expected


@pytest.mark.parametrize("text", ["difference(step=1)", "difference(0.1)", "pairs(steps=n)"])
def test_a_text_that_names_no_method_is_refused(text):
    with pytest.raises(ValueError, match=r"No option 'step'|plain values"):
        objectives.method(text)


# What users get wrong.


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("j1", {"method": "fgsm"}, "No method 'fgsm'; choose one of attack, penalty, difference"),
        ("j2", {"method": None}, "No method None; choose one of attack, penalty, difference"),
        ("j2_lip", {"method": "exact"}, "No method 'exact'; choose one of attack"),
        (
            "tikhonov",
            {"method": "attack"},
            "No method 'attack' here; choose penalty or difference",
        ),
        (
            "grad_lp",
            {"method": "attack"},
            "No method 'attack' here; choose penalty or difference",
        ),
        ("tikhonov", {"method": objectives.difference(order=3)}, "order 3; choose 1 or 2"),
        ("j2", {"method": "difference"}, r"No method 'difference'; .* difference\(h, order\)"),
        ("j2_lip", {"points": "x_adv"}, "No points 'x_adv'; choose clean or attacked"),
        ("j2_lip", {"top_k": 9}, r"top_k = 9 in a batch of 8; choose 0 \(all\) to 8"),
        ("j2_lip", {"top_k": -1}, "top_k = -1 in a batch of 8"),
        ("grad_lp", {"p": 0.5}, "p = 0.5"),
        ("lip_excess", {"method": "attack"}, "No method 'attack' here; choose gradient or pairs"),
    ],
)
def test_what_is_wrong_is_named_with_the_choices(name, options, said):
    with pytest.raises(ValueError, match=said):
        getattr(objectives, name)(bind(mlp, MLP), X, Y, **some_strengths(name), **options)

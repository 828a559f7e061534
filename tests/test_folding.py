"""Networks that make their weights of parameters: made once, they are the same functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

from lipreg import models
from lipreg.certificates import smoothing
from lipreg.evaluation.cascade import Stage, cascade
from lipreg.evaluation.subject import admitted
from lipreg.folding import HEAVY, folded
from lipreg.models import lipschitz
from lipreg.models.adapters import network
from lipreg.tracing import primitives, trace

KEY = jax.random.key(0)
X = jax.random.uniform(KEY, (5, 8, 8, 3))
Y = jnp.arange(5) % 3
X4 = jax.random.uniform(KEY, (6, 4))


def constructed(layer, **settings):
    """A network of a layer with drawn biases, and its raw parameters as leaves."""
    given = {"channels": (4, 6), "hidden": 8, "layer": layer} | settings
    net = network(models.build("LipschitzCNN", classes=3, **given))
    params, state = net.init(KEY, X)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(KEY, p.shape), params)
    return Partial(lambda params, x: net.apply(params, state, x, False)[0], params)


def work(f, x):
    """How often f does what is heavy."""
    closed, _ = trace(lambda f, x: f(x), f, x)
    return sum(bool(HEAVY & primitives(eqn)) for eqn in closed.jaxpr.eqns)


@jax.jit
def slope(f, x, y):
    return jax.grad(lambda x: jnp.take_along_axis(f(x), y[:, None], 1).sum())(x)


@pytest.mark.parametrize("layer", lipschitz.LAYERS)
def test_a_constructed_network_keeps_its_logits_and_gradients_and_loses_its_constructions(layer):
    f = constructed(layer)
    g = folded(f, X[:1])
    assert folded(g, X) is g  # whatever is left depends on x
    for x, y in ((X, Y), (X[:1], Y[:1])):
        np.testing.assert_allclose(g(x), f(x), atol=2e-6)
        np.testing.assert_allclose(slope(g, x, y), slope(f, x, y), atol=2e-6)
        assert work(g, x) < work(f, x)


def test_each_network_has_its_own_weights():
    v = jax.random.normal(KEY, (2, 4, 3))
    made = [folded(Partial(lambda v, x: x @ lipschitz.cayley(v), w), jnp.ones((1, 4))) for w in v]
    one, other = (g(jnp.eye(4)) for g in made)
    np.testing.assert_allclose(one.T @ one, jnp.eye(3), atol=1e-6)
    np.testing.assert_allclose(other, lipschitz.cayley(v[1]), atol=1e-6)


def test_a_network_that_makes_no_weights_stays_as_it_is():
    net = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    net.eval()
    x = jnp.ones((2, 3))
    g = folded(net, x)
    np.testing.assert_array_equal(g(x), net(x))
    assert folded(g, x) is g


def test_what_depends_on_the_number_of_images_is_made_for_each_number():
    w = jnp.arange(4.0).reshape(2, 2)

    def f(x):
        return (w @ w) * jnp.float32(len(x)) @ x.T @ (jnp.eye(len(x)) @ jnp.ones((len(x), 1)))

    g = folded(f, jnp.ones((1, 2)))
    for n in (1, 2, 5):
        x = jax.random.uniform(KEY, (n, 2))
        np.testing.assert_allclose(g(x), f(x), rtol=1e-6)


W = jax.random.normal(KEY, (4, 4))
KEYS = jax.random.split(KEY, 2)


@pytest.mark.parametrize(
    "weights",
    [
        lambda n: W @ np.full((4, 4), n, np.float32),
        lambda n: (W if n == 1 else 2 * W) @ jnp.eye(4),
        lambda n: W @ jnp.asarray(np.eye(4, dtype=np.float32) * (-1) ** n),
        lambda n: W @ jax.random.normal(KEYS[n % 2], (4, 4)),
    ],
)
def test_weights_of_other_constants_for_another_number_are_not_taken_for_those_made(weights):
    f = lambda x: x @ weights(len(x))
    g = folded(f, X4[:1])
    for n in (1, 2, 5):
        np.testing.assert_allclose(g(X4[:n]), f(X4[:n]), rtol=1e-5)


@pytest.mark.parametrize(
    "net",
    [
        jax.jit(lambda w, x: x @ (w @ w.T)),
        lambda w, x: x @ jnp.linalg.qr(w)[0],
        lambda w, x: x @ jax.scipy.linalg.solve_triangular(jnp.triu(w) + 4 * jnp.eye(4), w),
        lambda w, x: x @ jnp.linalg.cholesky(w @ w.T + jnp.eye(4)),
    ],
)
def test_weights_of_jitted_networks_and_by_every_decomposition_are_made_once(net):
    f = Partial(net, W)
    g = folded(f, X4[:1])
    np.testing.assert_allclose(g(X4), f(X4), rtol=1e-5, atol=1e-6)
    assert work(g, X4) == 1


def test_a_network_for_even_batches_is_attacked_and_smoothed():
    def f(x):
        assert len(x) % 2 == 0
        return x @ (W @ W.T)

    y = f(X4).argmax(1)
    nothing = Stage("nothing", lambda key, f, x, y, eps, round: x)
    found = cascade(KEY, f, X4, y, 0.1, [nothing], norm="l2", batch_size=6)
    assert found.error == 0
    assert (smoothing.predict(KEY, f, X4, sigma=0.01, n=50) == y).all()


def test_it_may_be_jitted_and_mapped_over_weights():
    v = jax.random.normal(KEY, (2, 4, 3))
    x = jax.random.normal(KEY, (6, 4))
    f = lambda v, x: x @ lipschitz.newton_schulz(v)
    each = jax.jit(jax.vmap(lambda v: folded(Partial(f, v), x[:1])(x)))
    np.testing.assert_allclose(each(v), jax.vmap(f, (0, None))(v, x), atol=1e-6)


def test_weights_after_a_change_are_made_anew():
    class Changing:
        v = jnp.array([[2.0, 0.0], [0.0, 1.0]])

        def __call__(self, x):
            return x @ lipschitz.newton_schulz(self.v)

    f, x = Changing(), jnp.eye(2)
    np.testing.assert_allclose(folded(f, x)(x), jnp.eye(2), atol=1e-6)
    f.v = jnp.array([[0.0, 2.0], [1.0, 0.0]])
    np.testing.assert_allclose(folded(f, x)(x), jnp.eye(2)[::-1], atol=1e-6)


def test_evaluations_attack_it():
    f = constructed("cayley")
    assert folded(model := admitted(KEY, f, X, Y).model, X) is model
    assert work(model, X) < work(f, X)

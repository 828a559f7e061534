"""`make dist` runs this where lipreg is installed from its wheel alone, outside of the checkout."""

import sys
from importlib import metadata, resources

import jax
import jax.numpy as jnp
import optax

import lipreg
from lipreg import attacks, curves, datasets, lipschitz, models, objectives, training
from lipreg.norms import L2

assert lipreg.__file__.startswith(sys.prefix), lipreg.__file__  # and not from a checkout
assert metadata.version("lipreg") == lipreg.__version__
assert resources.files("lipreg").joinpath("py.typed").is_file()

data = datasets.load("digits", "train")
x, y = datasets.to_unit(data.x[:64]), jnp.asarray(data.y[:64])
net = models.network(models.build("MLP", classes=data.classes, widths=(16,)))
params, statistics = net.init(jax.random.key(0), x[:1])
tx = optax.sgd(0.1)
step = jax.jit(training.make_step(net.apply, objectives.j2_lip, tx))
state = training.init(jax.random.key(1), params, statistics, tx)
values = []
for _ in range(20):
    state, parts = step(state, {"eps": 0.1, "lam": 0.01}, (data.x[:64], data.y[:64]))
    values.append(float(parts["objective"]))
assert values[-1] < values[0], values

model = training.logits_fn(net.apply, state)
x_adv = attacks.pgd(jax.random.key(2), model, x, y, 0.5, norm=L2)
assert curves.error(model, x, y) < curves.error(model, x_adv, y)
measured = lipreg.evaluate(model, x[:16], y[:16], protocol="pgd", radii={"l2": (0.5,)})
print(lipreg.evaluation.to_markdown(measured))
proved = lipschitz.bounds.lipschitz(model, x[:16]).output
apart = jnp.linalg.norm(model(x[:16]) - model(x_adv[:16]), axis=1)
assert (apart <= proved * L2.size(x[:16] - x_adv[:16])).all()
print(f"lipreg {lipreg.__version__} in {sys.prefix}: trained, attacked, evaluated and bounded.")

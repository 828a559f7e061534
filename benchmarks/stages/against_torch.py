"""Training steps and attacks against PyTorch's on the same card, with the same weights and batch.

Torch runs eagerly in channels_last and by `torch.compile` of the network, in TF32 and under
autocast to bfloat16, with cuDNN's autotuning; ours is the same program as in `price.py`. All take
turns in one process. First, loss and gradients are compared on a smooth network in float32.
"""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import steps
from timing import all_at_once, behind_a_queue, ratio, table

from lipreg import attacks, training
from lipreg.norms import L2, LINF
from stages import price
from stages.clock import Clock, toy
from stages.sound import distance, flat, reason

OBJECTIVES = ("j0", "j2 by attack", "j2_lip", "j2 by penalty", "j2_lip of all")
FIRST_ORDER = ("j0", "j2 by attack")  # torch compiles no second derivatives of a network
EPS = 8 / 255


def run(clock: Clock, folder: Path) -> Iterator[str]:
    """The tables after each line."""
    del folder
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        yield "# Against PyTorch\n\nNo torch here.\n"
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    rows: dict[str, list[dict[str, str]]] = {}
    failures: list[str] = []
    network, batch = ("CNN", 4) if toy() else ("ResNeXt34_2x32", 128)
    names = objectives()
    work = [
        *(partial(trained, network, batch, name, "bf16", "eager") for name in names),
        *(partial(trained, network, batch, name, "bf16", "compile") for name in FIRST_ORDER),
        *(partial(trained, network, batch, name, "default", "eager") for name in names),
        *(partial(attacking, network, batch, name) for name in ("pgd", "apgd")),
        *(partial(agreeing, network, name) for name in names),
        *(partial(trained, network, batch, name, "default", "compile") for name in FIRST_ORDER),
    ]
    for line in work:
        if clock.left < 0:
            break
        title = TITLES[line.func]
        try:
            row = line()
            rows.setdefault(title, []).append(row)
        except Exception as error:
            failures.append(f"{title} {line.args}: {reason(error)}")
        yield report(rows, failures, torch.__version__)


def objectives() -> tuple[str, ...]:
    return OBJECTIVES[:2] if toy() else OBJECTIVES


def place() -> str:
    import torch  # pyright: ignore[reportMissingImports]

    return "cuda" if torch.cuda.is_available() and not toy() else "cpu"


def modules(network: str, state: training.State, **fields: Any) -> tuple[Any, Any]:
    """A network in torch, channels_last on the card, and its frozen view."""
    import torch  # pyright: ignore[reportMissingImports]
    import torch_networks
    import torch_training

    module = torch_networks.moved(network, state.params, state.model_state, **fields)
    module = module.to(place(), memory_format=torch.channels_last)
    return module, torch_training.frozen_view(module)


def tensors(inputs: tuple[Any, Any]) -> tuple[Any, Any]:
    """A batch in torch."""
    import torch  # pyright: ignore[reportMissingImports]

    x, y = map(np.array, inputs)
    images = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    images = images.to(place(), memory_format=torch.channels_last)
    return images, torch.from_numpy(y.astype(np.int64)).to(place())


def trained(network: str, batch: int, name: str, precision: str, form: str) -> dict[str, str]:
    """A line of the table of steps: ours beside one form of torch."""
    import torch  # pyright: ignore[reportMissingImports]
    import torch_training

    _, state, inputs = steps.start(network, batch)
    objective = torch_training.OBJECTIVES[name]
    module, frozen = modules(network, state)
    if form == "compile":
        module.forward = torch.compile(module.forward)
        frozen.forward = torch.compile(frozen.forward)
    x, y = tensors(inputs)
    step = torch_training.step(objective, module, frozen, x.requires_grad_(), y)

    def theirs(calls: int) -> None:
        with torch.autocast(place(), torch.bfloat16, enabled=precision == "bf16"):
            for _ in range(calls):
                step()
        wait()

    theirs(1)  # first: what torch cannot do is then known before ours is compiled
    ours = built(network, batch, precision)[name]
    if isinstance(ours, Exception):
        raise ours
    seconds = behind_a_queue({"lipreg": ours.run, "torch": theirs}, 5, turn_s=0.15)
    return {
        "network/batch": f"{network}/{batch}",
        "precision": precision,
        "objective": name,
        "torch's form": form,
        "lipreg ms": f"{1e3 * np.median(seconds['lipreg']):.2f}",
        "torch ms": f"{1e3 * np.median(seconds['torch']):.2f}",
        "lipreg / torch": ratio(seconds["lipreg"], seconds["torch"]),
    }


@cache
def built(network: str, batch: int, precision: str) -> dict[str, Any]:
    """Our steps, compiled side by side; an exception for one that does not."""
    case = price.Case(network, batch, precision)
    return all_at_once({name: partial(price.build, case, name) for name in objectives()})


def wait() -> None:
    import torch  # pyright: ignore[reportMissingImports]

    if place() == "cuda":
        torch.cuda.synchronize()


def agreeing(network: str, name: str) -> dict[str, str]:
    """The relative difference of all gradients on a smooth network, both in full float32."""
    import torch  # pyright: ignore[reportMissingImports]
    import torch_networks
    import torch_training

    fields: dict[str, Any] = {"activation": "softplus"}
    apply, state, inputs = steps.start(network, 8, **fields)
    step, strengths = steps.step(apply, name)
    with jax.default_matmul_precision("highest"):
        after, _ = jax.jit(step)(state, strengths, inputs)
    velocity = optax.tree.get(after.opt_state, "trace")
    grads = jax.tree.map(lambda v, w: v - steps.DECAY * w, velocity, state.params)
    like = torch_networks.moved(network, grads, state.model_state, **fields)
    module, frozen = modules(network, state, **fields)
    x, y = tensors(inputs)
    usual = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        _, torch_grads = torch_training.OBJECTIVES[name](module, frozen, x.requires_grad_(), y)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = usual
    a = flat([p.detach().numpy() for p in like.parameters()])
    b = flat([g.detach().cpu().numpy() for g in torch_grads])
    return {"objective": name, "apart": f"{distance(a, b):.0e}"}


def attacking(network: str, batch: int, name: str) -> dict[str, str]:
    """A line of the table of attacks: 20 steps of PGD, or of APGD, on all images."""
    apply, state, inputs = steps.start(network, batch)
    logits_fn = training.logits_fn(apply, state)
    inputs = inputs[0], jnp.argmax(logits_fn(inputs[0]), -1)  # APGD leaves wrong images alone
    norm = LINF if name == "pgd" else L2
    attack = partial(getattr(attacks, name), norm=norm, steps=20)
    eps = EPS if name == "pgd" else 0.5
    compiled = jax.jit(attack).lower(jax.random.key(0), logits_fn, *inputs, eps).compile()

    def ours(calls: int) -> None:
        for _ in range(calls):
            x_adv = compiled(jax.random.key(0), logits_fn, *inputs, eps)
        jax.block_until_ready(x_adv)

    _, frozen = modules(network, state)
    frozen.requires_grad_(False)
    x, y = tensors(inputs)
    try:
        import torchattacks  # pyright: ignore[reportMissingImports]

        options = {"eps": eps, "steps": 20}
        if name == "pgd":
            peer = torchattacks.PGD(frozen, alpha=eps / 10, **options)
        else:
            peer = torchattacks.APGD(frozen, norm="L2", **options)
        theirs, toolbox = (lambda: peer(x, y)), "torchattacks"
    except ImportError:
        if name != "pgd":
            return {"attack": name, **dict.fromkeys(ATTACKS, "no torchattacks here")}
        theirs, toolbox = partial(plain_pgd, frozen, x, y, eps), "plain torch"

    def run(calls: int) -> None:
        for _ in range(calls):
            theirs()
        wait()

    seconds = behind_a_queue({"lipreg": ours, "torch": run}, 3)
    values = (
        f"{network}/{batch}",
        norm.name,
        toolbox,
        f"{1e3 * np.median(seconds['lipreg']):.1f}",
        f"{1e3 * np.median(seconds['torch']):.1f}",
        ratio(seconds["lipreg"], seconds["torch"]),
    )
    return {"attack": f"{name}-20", **dict(zip(ATTACKS, values, strict=True))}


ATTACKS = ("network/batch", "norm", "toolbox", "lipreg ms", "torch ms", "lipreg / torch")


def plain_pgd(network: Any, x: Any, y: Any, eps: float, steps_: int = 20) -> Any:
    """PGD in l_inf as one writes it in torch."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

    x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps_):
        x_adv.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(network(x_adv), y), x_adv)
        x_adv = x_adv.detach() + eps / 10 * grad.sign()
        x_adv = (x + (x_adv - x).clamp(-eps, eps)).clamp(0, 1)
    return x_adv


TITLES = {trained: "Steps", attacking: "Attacks", agreeing: "The same gradients"}


def report(rows: dict[str, list[dict[str, str]]], failures: list[str], version: str) -> str:
    """The tables, and what failed."""
    text = f"""\
# Against PyTorch

torch {version}, the same weights, batch, objective and SGD. "default" is TF32 in both, bf16 is
autocast there. Eager is channels_last; "compile" is torch.compile of the network, which has first
derivatives only. Medians of 5 turns; ratios within a turn. "The same gradients": relative, on a
softplus network of the same form with full float32 in both.
"""
    for title, lines in rows.items():
        text += f"\n## {title}\n\n{table(lines)}\n"
    return text + "".join(f"\n{failure}\n" for failure in failures)

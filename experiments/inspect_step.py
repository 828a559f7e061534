"""What a training step costs, and how it would scale to many devices; nothing is trained.

    python experiments/inspect_step.py --config=experiments/configs/cifar10.py:j2_lip --devices=8

Compiles the config's step for one device and for `--devices` (on CPU they are emulated), and reads
off the programs: floating-point operations, memory, the collectives and the bytes that they move.
Operations of a loop's body, the steps of an attack in `pgd_at` for one, count once.
From these follows the efficiency to expect on 1, 8, 64 and 512 devices with the batch per device
kept, under a model (cost.scaling) and rates that you give: the defaults are a third of an
H100's dense TF32 peak, links of 400 Gbit/s and 5 us a message.
"""

import jax
import numpy as np
from absl import flags

import cli
from lipreg import curves, parallel, runs
from lipreg.training import cost

_CONFIG = cli.config_file()
_DEVICES = flags.DEFINE_integer("devices", 8, "that share the batch", lower_bound=2)
_FLOPS = flags.DEFINE_float("flops_per_s", 1.6e14, "of one device, as achieved", 1)
_BYTES = flags.DEFINE_float("bytes_per_s", 5e10, "of the slowest link", 1)
_LATENCY = flags.DEFINE_float("latency_s", 5e-6, "of one message", 0)
cli.finite("flops_per_s", "bytes_per_s", "latency_s")


def _cost(prepared: runs.Experiment, devices: int) -> cost.Cost:
    config = prepared.config
    x = np.zeros((config.train.batch_size, *prepared.validation.x.shape[1:]), np.uint8)
    with parallel.over(jax.devices()[:devices]):
        state = parallel.replicate(prepared.state)
        batch = parallel.shard((x, np.zeros(len(x), np.int32)))
        strengths = parallel.replicate(config.strengths.to_dict())

        def step(state, strengths, batch):
            state, parts = prepared.program.step(state, strengths, batch)
            return parallel.keep_replicated(state), parts

        step = jax.jit(step, donate_argnums=0)
        return cost.analyse(step.lower(state, strengths, batch).compile())


def main(_: list[str]) -> None:
    parallel.emulate(_DEVICES.value)
    prepared = runs.prepare(_CONFIG.value)
    batch, most = prepared.config.train.batch_size, _DEVICES.value
    if most > jax.device_count():
        raise ValueError(
            f"--devices={most}; there are {jax.device_count()}. JAX_PLATFORMS=cpu emulates them."
        )
    if batch % most:
        raise ValueError(f"--devices={most}; config.train.batch_size = {batch} is no multiple.")
    costs = {n: _cost(prepared, n) for n in sorted({1, most})}
    mib = 2**20
    rows = {
        f"{n} device{'s' if n > 1 else ''}": {
            "batch per device": batch / n,
            "GFLOP": c.flops / 1e9,
            "inputs, MiB": c.arguments / mib,
            "temporary, MiB": c.temporary / mib,
            **{
                f"{kind}: number, MiB": "{}, {:.4g}".format(*_collective(c, kind, mib))
                for kind in sorted({k for c in costs.values() for k in c.collectives}) or ["none"]
            },
        }
        for n, c in costs.items()
    }
    print("One step, each device; the body of a loop is counted once:\n")
    print(f"{curves.to_markdown(rows)}\n")
    last = costs[most]
    messages, moved = _collective(last, "all-reduce", 1)
    flops = last.flops  # of one device and its share of the batch
    lines = cost.scaling(
        flops,
        moved,
        messages,
        flops_per_s=_FLOPS.value,
        bytes_per_s=_BYTES.value,
        latency_s=_LATENCY.value,
    )
    print(
        f"The model, {batch // most} images a device, {_FLOPS.value:.3g} FLOP/s, "
        f"{_BYTES.value:.3g} byte/s, {_LATENCY.value:.3g} s a message:\n"
    )
    table = {
        f"{line.devices}": {
            "compute, ms": 1e3 * line.compute_s,
            "moved per device, MiB": line.moved / mib,
            "communicate, ms": 1e3 * line.communicate_s,
            "efficiency, %": 100 * line.efficiency,
        }
        for line in lines
    }
    print(curves.to_markdown(table))


def _collective(c: cost.Cost, kind: str, unit: int) -> tuple[int, float]:
    number, size = c.collectives.get(kind, (0, 0))
    return number, size / unit


if __name__ == "__main__":
    cli.run(main, resumes=False)

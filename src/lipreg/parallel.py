"""One program on many devices and hosts.

Inside `with over(): ...` every compiled program runs on all devices: `replicate` the weights and
`shard` the rows of a batch. Maxima and means over the batch, those of batch normalisation included,
then cover the rows of all devices with no further code: XLA inserts the collectives. `gather`
brings rows back. Outside of such a block these functions return their arguments unchanged.

The mesh is jax's own ambient one (`jax.set_mesh`), with automatic axes.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

__all__ = [
    "assemble",
    "emulate",
    "from_main",
    "gather",
    "is_main",
    "keep_replicated",
    "multiple",
    "over",
    "replicate",
    "shard",
    "start",
]

AXIS = "batch"


def start(processes: str) -> None:
    """Join the other processes of a run; to be called before any other use of jax.

    `processes` is "" for a single one, "auto" where a scheduler says who is who (SLURM, Open MPI,
    TPU pods, Kubernetes), or `HOST:PORT,COUNT,NUMBER`, the address being that of process 0.

    Raises: ValueError for any other text, and where nothing says who is who.
    """
    if not processes:
        return
    if processes == "auto":
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise ValueError(
                f"processes = auto finds no scheduler ({error}); write HOST:PORT,COUNT,NUMBER."
            ) from None
        return
    address, *numbers = processes.split(",")
    if len(numbers) != 2 or not all(n.isdecimal() for n in numbers) or ":" not in address:
        raise ValueError(f"processes = {processes}; write auto or HOST:PORT,COUNT,NUMBER.")
    port = address.rpartition(":")[2]
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(f"processes = {processes}; PORT is from 1 to 65535.")
    count, number = map(int, numbers)
    if not number < count:
        raise ValueError(f"processes = {processes}; NUMBER is from 0 to COUNT - 1.")
    jax.distributed.initialize(address, count, number)


def emulate(devices: int) -> None:
    """Make the CPU appear as this many devices; to be called before any other use of jax."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", devices)


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


@contextmanager
def over(devices: Sequence[Any] | None = None) -> Iterator[None]:
    """Run the block on these devices, by default on the devices of all processes."""
    devices = jax.devices() if devices is None else devices
    if len(devices) == 1:
        yield
        return
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        yield


def multiple(rows: int) -> int:
    """`rows`, rounded up to a multiple of the number of devices, as `shard` needs it.

    >>> multiple(10)
    10
    """
    mesh = jax.sharding.get_abstract_mesh()
    return rows if mesh.empty else -(-rows // mesh.size) * mesh.size


def replicate(tree: Any) -> Any:
    """Arrays with a copy on every device."""
    return _put(tree, PartitionSpec())


def keep_replicated(tree: Any) -> Any:
    """`replicate` for the results of a compiled program, called inside it."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())


def shard(tree: Any, axis: int = 0) -> Any:
    """Arrays with equally many of their rows, along `axis`, on every device.

    Raises: ValueError where the number of rows is no multiple of the number of devices.
    """
    return _put(tree, PartitionSpec(*(None,) * axis, AXIS))


def assemble(tree: Any) -> Any:
    """Each process's own rows as one global array, sharded over the devices of all processes."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    sharding = NamedSharding(jax.sharding.get_mesh(), PartitionSpec(AXIS))
    return jax.tree.map(partial(jax.make_array_from_process_local_data, sharding), tree)


def _put(tree: Any, spec: PartitionSpec) -> Any:
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    sharding = NamedSharding(jax.sharding.get_mesh(), spec)

    def put(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.jit(_same, out_shardings=sharding)(leaf)  # device_put stays in a process
        return jax.device_put(leaf, sharding)

    return jax.tree.map(put, tree)


def _same(leaf: Any) -> Any:
    return leaf


def gather(tree: Any) -> Any:
    """Arrays with the rows of all devices, as numpy, in every process."""

    def fetch(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return jax.device_get(leaf)

    return jax.tree.map(fetch, tree)


def from_main(data: bytes) -> bytes:
    """The first process's bytes, in every process; those of the others are ignored.

    Processes need not share a disk, and where they do, may not see each other's files at once.
    """
    if jax.process_count() == 1:
        return data

    def first(rows: np.ndarray) -> np.ndarray:
        # As many copies as a process has devices: the first row of all is the first process's.
        return gather(assemble(np.repeat(rows[None], jax.local_device_count(), 0)))[0]

    size = int(first(np.array(len(data), np.int32)))
    buffer = np.zeros(size, np.uint8)
    if is_main():
        buffer[:] = np.frombuffer(data, np.uint8)
    return first(buffer).tobytes() if size else b""

"""lipreg.training.cpu: what `tune` changes is a process, so each case runs in one of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lipreg.training import cpu

CONVOLUTIONS = """
import os
from lipreg import convolution
from lipreg.training import cpu
cpu.tune()
cpu.tune()
import jax, jax.numpy as jnp, numpy as np
from lipreg.models.layers import pooled
x = jnp.linspace(-1, 1, 32 * 16 * 16 * 32).reshape(32, 16, 16, 32)
w = jnp.linspace(1, -1, 3 * 3 * 32 * 32).reshape(3, 3, 32, 32)
loss = lambda x, w: jnp.square(convolution._forward(x, w, ((1, 1), (1, 1)), None)).sum()
program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(x, w).compile()
own = " convolution(" in program.as_text().split("ENTRY")[1]  # in the other case inside of fusions
relu = lambda x, w: jax.nn.relu(convolution._forward(x, w, ((1, 1), (1, 1)), None))
stage = lambda x, w: pooled(relu(x, w), train=False)
stages = jax.jit(lambda x, w: stage(stage(x, w), w)).lower(x, w).compile().as_text()
own = own and stages.split("ENTRY")[1].count(" convolution(") == 2
print(os.environ["XLA_FLAGS"].count("fusion_type"), own)
value, gradients = program(x, w)
print(float(value), *(float(jnp.abs(g).sum()) for g in gradients))
"""

FAULTS = """
import resource, sys
from lipreg.training import cpu
if sys.argv[1:] == ["tuned"]:
    cpu.tune()
import jax, jax.numpy as jnp
def sums(x):  # two temporaries of 64 MiB, between which a loop goes to and fro
    products = jnp.outer(x, x[:256])
    return jax.lax.fori_loop(0, 2, lambda _, products: products[::-1] * x[1], products).sum(1)
x = jnp.linspace(0, 1, 2**16)
program = jax.jit(sums).lower(x).compile()
assert program.memory_analysis().temp_size_in_bytes >= 2**26
for _ in range(6):  # the heap has its size after two or three
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def said(program, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_tune_takes_convolutions_from_ynnpack_and_leaves_what_the_user_set():
    ours, numbers = said(CONVOLUTIONS, XLA_FLAGS="")
    assert ours == "1 True"
    flag = "--xla_cpu_experimental_ynn_fusion_type=+individual_convolution"
    theirs, others = said(CONVOLUTIONS, XLA_FLAGS=flag)
    assert theirs == "1 False"
    one, other = (np.array(line.split(), float) for line in (numbers, others))
    np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize(
    "unknown", [{"_FUSIONS": "xla_cpu_fusions"}, {"_CONVOLUTIONS": "convolutions"}]
)
def test_tune_sets_no_flag_that_jaxlib_does_not_know(unknown, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_mine=1")
    monkeypatch.setenv("JAX_CPU_ENABLE_ASYNC_DISPATCH", "1")  # this process stays as it is
    for name, value in unknown.items():
        monkeypatch.setattr(cpu, name, value)
    cpu.tune()
    assert os.environ["XLA_FLAGS"] == "--xla_mine=1"


def pages_are_small():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return sys.platform == "linux" and "[always]" not in setting.read_text()


@pytest.mark.skipif(not pages_are_small(), reason="counts the faults of glibc's pages of 4 KiB")
def test_after_tune_a_program_finds_its_memory_mapped():
    untuned, tuned, refused = (
        int(said(FAULTS, *arguments, **environment)[0])
        for arguments, environment in (
            ((), {}),
            (("tuned",), {}),
            (("tuned",), {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "1"}),
        )
    )
    pages = 2**26 // os.sysconf("SC_PAGE_SIZE")
    assert untuned > pages  # when this fails, XLA has mended it, and `tune` has less to do
    assert refused > pages
    assert tuned < pages / 10

"""How a process computes fast on CPU: whose convolutions XLA takes, and that memory stays mapped.

Nothing here changes a program, and results agree to rounding.
"""

import ctypes
import mmap
import os
import platform
from importlib.util import find_spec
from pathlib import Path

import jax

__all__ = ["tune"]

_FUSIONS = "xla_cpu_experimental_ynn_fusion_type"
_CONVOLUTIONS = "individual_convolution"
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1  # a threshold that no size reaches; 2^31 - 1 is one that large steps do


def tune() -> None:
    """Set this process up for fast programs on CPU. Call it before JAX computes, once or often.

    The launchers call it. On two cores a training step of the small CNN on 32 x 32 images takes
    0.35 to 0.65 of the time (`benchmarks/tuned.py`):

    - Convolutions outside of loops by XLA's own code (Eigen), not YNNPACK's: 0.5 to 0.6. It adds a
      flag to the environment's XLA_FLAGS, which a process reads once; not where that flag is set,
      nor with a jaxlib that does not know the flag: XLA would end the process.
    - The memory of a program stays with the process: 0.6 to 0.8 where its temporaries exceed
      32 MiB. XLA takes them in one piece, and glibc returns a piece of that size to the system
      after each step, which clears it page by page for the next. So nothing is returned, however
      large, and a step runs in the thread that calls it, since other threads' heaps end at 64 MiB:
      a call returns when its step is done. Elsewhere than with glibc, or where
      JAX_CPU_ENABLE_ASYNC_DISPATCH is set, nothing is changed.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    words = f"{_FUSIONS}\0", f"FUSION_TYPE_{_CONVOLUTIONS.upper()}"
    if _FUSIONS not in flags and _known(*words):
        os.environ["XLA_FLAGS"] = f"{flags} --{_FUSIONS}=-{_CONVOLUTIONS}".strip()
    if platform.libc_ver()[0] == "glibc" and "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def _known(*words: str) -> bool:
    """Whether jaxlib's binary contains all these words: a flag as a C string, and a value's name.

    XLA has no function that lists its flags, and jaxlib's options read the environment when they
    are created. To find a word takes 10 to 20 ms, to find that it is absent 0.5 s.
    """
    spec = find_spec("jaxlib")
    if not spec or not spec.origin:
        return False
    library = max(Path(spec.origin).parent.iterdir(), key=lambda path: path.stat().st_size)
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return all(text.find(word.encode()) >= 0 for word in words)

"""What makes a process fast on CPU: XLA's own convolutions, and memory that stays mapped.

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
_NEVER = -1  # a threshold that no size reaches, as large steps reach 2^31 - 1


def tune() -> None:
    """Set this process up for fast programs on CPU. Call it before JAX computes, once or often.

    The launchers call it. On two cores a training step of the small CNN on 32 x 32 images takes
    0.35 to 0.65 of the time (`benchmarks/tuned.py`):

    - Convolutions outside of loops by XLA's own code (Eigen), not YNNPACK's: 0.5 to 0.6. It adds a
      flag to the environment's XLA_FLAGS, which a process reads once; but not where that flag is
      set already, nor where jaxlib does not know it, since XLA would then end the process.
    - The memory of a program stays with the process: 0.6 to 0.8 where its temporaries exceed
      32 MiB. XLA takes them in one piece, and glibc returns a piece of that size to the system
      after each step, which clears it page by page for the next. So nothing is returned, however
      large, and a step runs in the thread that calls it, since other threads' heaps end at 64 MiB:
      a call returns when its step is done. Without glibc, or where
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
    are created. Finding a word takes 10 to 20 ms, finding that it is absent 0.5 s.
    """
    spec = find_spec("jaxlib")
    if not spec or not spec.origin:
        return False
    library = max(Path(spec.origin).parent.iterdir(), key=lambda path: path.stat().st_size)
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return all(text.find(word.encode()) >= 0 for word in words)

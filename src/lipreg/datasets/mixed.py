"""Batches of real examples and of others, such as images that a model has generated."""

import dataclasses

import numpy as np

from lipreg.datasets.memory import Dataset

__all__ = ["Mixture", "mixture"]


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Two sets of which each training batch has a part; see `mixture`. Its len is that of `real`.

    Attributes:
      real: what an epoch counts.
      synthetic: of the same shape, type and classes.
      share: of each batch that is synthetic.
    """

    real: Dataset
    synthetic: Dataset
    share: float

    def __len__(self) -> int:
        return len(self.real.y)

    @property
    def x(self) -> np.ndarray:
        """Both, the real ones first."""
        return np.concatenate([self.real.x, self.synthetic.x])

    @property
    def y(self) -> np.ndarray:
        return np.concatenate([self.real.y, self.synthetic.y])


def mixture(real: Dataset, synthetic: Dataset, share: float = 0.7) -> Mixture:
    """Batches of which `share` is synthetic (Gowal et al. 2110.09468; 0.7 in 2302.04638).

    `training.fit` draws the synthetic part of a batch with replacement, `batching.mixed_batches`.
    An epoch has the steps that it has with the real examples alone.

    Raises: ValueError for a share that is not in (0, 1), for examples of another shape or type,
    and for classes that the real set does not have.

    >>> digits = Dataset(np.zeros((10, 8, 8, 1), np.uint8), np.arange(10, dtype=np.int32), 10)
    >>> len(mixture(digits, digits))
    10
    """
    if not 0 < share < 1:
        raise ValueError(f"share = {share}; of a batch, it must be greater than 0, less than 1.")
    forms = [f"{d.x.dtype}[{', '.join(map(str, d.x.shape[1:]))}]" for d in (real, synthetic)]
    if forms[0] != forms[1]:
        raise ValueError(f"The synthetic inputs are {forms[1]}, and the real ones {forms[0]}.")
    if synthetic.y.max() >= real.classes:
        raise ValueError(
            f"The synthetic set has a class {synthetic.y.max()}, and the real one {real.classes} "
            "classes, from 0 on."
        )
    return Mixture(real, synthetic, share)

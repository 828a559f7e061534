"""Layers and networks that are 1-Lipschitz by construction, as functions of a raw weight.

    rescaled       w divided by a bound of its norm: AOL, SLL, spectral normalisation
    orthogonal     Newton-Schulz (Björck), Cayley, block reflectors
    fourier        circular convolutions as one matrix for each frequency
    products       of stacks of matrices in full precision
    maps           x w, the residual and the sandwich form
    activations    MaxMin, GroupSort, abs; pooling by the l2 norm
    normalisation  of a batch, of an example, of the last layer
    constructions  all layers by name
    linen, nnx     modules of a few lines on these
    networks       LipschitzCNN, LipschitzMLP

All bounds are for exact arithmetic on the weight that float32 has made, whose norm is at most
1 + 1e-5. In bfloat16 a network rounds each layer by up to 1/256: take its bound in float32.
"""

from lipreg.models.lipschitz import linen, nnx
from lipreg.models.lipschitz.activations import group_sort, l2_pooled, maxmin
from lipreg.models.lipschitz.constructions import LAYERS, apply, draws
from lipreg.models.lipschitz.fourier import circular, transform
from lipreg.models.lipschitz.maps import linear, residual, sandwich
from lipreg.models.lipschitz.networks import LipschitzCNN, LipschitzMLP
from lipreg.models.lipschitz.normalisation import batch_normalised, centred, unit_columns
from lipreg.models.lipschitz.orthogonal import bro, cayley, newton_schulz
from lipreg.models.lipschitz.rescaled import adjoint, aol, norm_bound, sll, spectral

__all__ = [
    "LAYERS",
    "LipschitzCNN",
    "LipschitzMLP",
    "adjoint",
    "aol",
    "apply",
    "batch_normalised",
    "bro",
    "cayley",
    "centred",
    "circular",
    "draws",
    "group_sort",
    "l2_pooled",
    "linear",
    "linen",
    "maxmin",
    "newton_schulz",
    "nnx",
    "norm_bound",
    "residual",
    "sandwich",
    "sll",
    "spectral",
    "transform",
    "unit_columns",
]

"""Proved bounds of any function of images, read off its jaxpr: intervals and Lipschitz constants.

No list of layers is needed: a linen, nnx or plain function is traced, and its primitives are
walked in two domains at once, for all inputs of a box or ball:
- interval: `low <= v <= high`, entry by entry (interval bound propagation, 1810.12715);
- Lipschitz: `||dv||_2 <= lip ||dx||_2`, and `|dv_i| <= rows_i ||dx||_2` for each entry.

A value is a root, which is the result of the last operation that mixed entries, and the elementwise
expression built on it since. The slopes of the expression are bounded when the next mixing
operation asks for them. So a normalisation joins the weights before it, relu units that are off
drop out of the weights after it, and an activation written in several operations, `x sigmoid(x)`
or a soft threshold, is bounded cell by cell as one function, with an edge at each number that it
compares with. Loops of a known length are unrolled (`forms`).

Norms multiply from layer to layer only where nothing better is known:
- `joint`: pieces of one value, and pairs `max(a, b)`, `min(a, b)`, count once (MaxMin, sort);
- `residuals`: `x - A^T D A x` and the sandwich `B D A x` count as one map, by the weights;
- `normalised`, `exponentials`: so do RMS and layer normalisation, softmax and its logarithm;
- `ellipsoids`: what one dense layer stretches most is not what the next does (ECLipsE-Fast);
- `convolutions`: a torus and the phases of strides are exact in Fourier space;
- `declared`: a constant that you state, and answer for.
So networks that are 1-Lipschitz by construction have a bound of at most 1.01, mostly 1 + 1e-5.

What "proved" means: the bounds hold for the function of one example in exact arithmetic, with its
parameters and constants as they are stored. The walk is in float64. Boxes and slopes are rounded
outwards at each step, sums by the largest error in any order of summation (Higham 2002, section
3.1), XLA's functions by twice the largest error measured. Norms and ellipsoids are accurate to
MARGIN, by which results are widened. Two cases of a `where` count as meeting if float64 cannot tell
them apart. Sizes below 1e-150 may be lost to an underflow where operations mix entries, and are
then 0.

The network's own rounding errors are not bounded. In float32 they are about 1e-7 of the largest
intermediate values, and points whose outputs are as close as that can seem to contradict a
constant. Coarser rounding is refused: casts to integers, booleans and 16 bits, and arithmetic in
those. So are random and complex numbers, and, by name, every primitive without a rule.
"""

from lipreg.lipschitz.bounds.proved import LipschitzBound, bounder, interval, lipschitz

__all__ = ["LipschitzBound", "bounder", "interval", "lipschitz"]

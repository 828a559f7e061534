"""The convolutions and matrix products of a lowered program, read from its text."""

import math
import re
from typing import Any, NamedTuple

_PRODUCT = re.compile(r"stablehlo\.(convolution|dot_general)\b(.*) : \((.*), (.*)\) -> (.*)")


class Product(NamedTuple):
    """A convolution or a product of matrices.

    Attributes:
      name: convolution or dot_general.
      shapes: those of the two operands.
      dtype: that of the result.
      precision: DEFAULT or HIGHEST.
      flops: two for each multiplication, padding included.
    """

    name: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtype: str
    precision: str
    flops: int


def products(text: str) -> list[Product]:
    """All products in a StableHLO module; those in a loop's body, or in a function, count once."""
    return [_product(*found.groups()) for found in map(_PRODUCT.search, text.splitlines()) if found]


def _product(name: str, how: str, *tensors: str) -> Product:
    (a, _), (b, _), (out, dtype) = map(_tensor, tensors)
    if name == "convolution":
        kernel = _group(r"\]x\[(.*?)\]->", how).split(", ")
        summed = math.prod(b) // b[kernel.index("o")]
    else:
        axes = re.findall(r"\d+", _group(r"contracting_dims = \[(.*?)\]", how))
        summed = math.prod(a[int(axis)] for axis in axes)
    precision = "HIGHEST" if "HIGHEST" in how else "DEFAULT"
    return Product(name, (a, b), dtype, precision, 2 * math.prod(out) * summed)


def _tensor(text: str) -> tuple[tuple[int, ...], str]:
    *sides, dtype = _group(r"tensor<(\w+)>", text).split("x")
    return tuple(map(int, sides)), dtype


def _group(pattern: str, text: str) -> Any:
    found = re.search(pattern, text)
    assert found, text
    return found[1]

"""The primitives that have a rule, by the kind of it."""

from lipreg.lipschitz.bounds.elementwise import ELEMENTWISE, KINKED

__all__ = [
    "CALLS",
    "CHOICES",
    "EXTREMES",
    "JOINS",
    "MOVES",
    "RANDOM",
    "ROUNDED",
    "RULES",
    "SAME",
    "SUMS",
    "WEIGHTED",
]

MOVES = {"broadcast_in_dim", "copy", "copy_p", "dynamic_slice", "gather", "name", "pad", "reshape"}
MOVES |= {"rev", "slice", "split", "squeeze", "tile", "transpose"}
JOINS = {"concatenate": "dimension", "stack": "axis"}
SUMS = {"reduce_sum", "reduce_window_sum"}
EXTREMES = {"reduce_max": 1, "reduce_window_max": 1, "reduce_min": -1, "reduce_window_min": -1}
WEIGHTED = {"dot_general", "conv_general_dilated"}
SAME = {"convert_element_type", "stop_gradient"}  # once steps have been refused
CALLS = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2"}
RANDOM = {"random_bits", "random_gamma", "rng_bit_generator", "rng_uniform", "threefry2x32"}
RULES = {*ELEMENTWISE, *MOVES, *JOINS, *SUMS, *EXTREMES, *WEIGHTED, *SAME, "sort"}
# These return some of the numbers that they are given, so do not round.
CHOICES = {*KINKED, *EXTREMES, "neg", "sort"}
ROUNDED = RULES - {*CHOICES, *MOVES, *JOINS, *SAME}

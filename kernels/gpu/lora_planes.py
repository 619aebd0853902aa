"""What the shrink kernel hands to the expand kernel: partial sums over K, a plane a program."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def split_items(live, K_STEPS: tl.constexpr, PROGRAMS: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """How many programs share each of ``live`` items, and how many steps over K each of them does.

    No program is without a step. It depends on the live items and not on how many there is room
    for, so padding changes no bit.
    """
    wanted = tl.minimum(tl.maximum(PROGRAMS // tl.maximum(live, 1), 1), MAX_SPLITS)
    steps = (K_STEPS + wanted - 1) // wanted
    return (K_STEPS + steps - 1) // steps, steps

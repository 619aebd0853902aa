"""Two pieces of device work that need nothing of each other, side by side in a captured graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch

Main = TypeVar("Main")
Side = TypeVar("Side")


def beside(
    device: torch.device, main: Callable[[], Main], side: Callable[[], Side]
) -> tuple[Main, Side]:
    """What both calls return; ``side`` runs on a second stream while a CUDA graph is captured.

    Its nodes are then free to run beside those of ``main``. Outside a capture the events that
    fork and join would cost the host more than that wins, and the calls run one after the other.
    """
    if device.type != "cuda":
        return main(), side()
    there = _side_stream(device)  # made by the first step, which none captures
    if not torch.cuda.is_current_stream_capturing():
        return main(), side()
    here = torch.cuda.current_stream(device)
    there.wait_stream(here)
    with torch.cuda.stream(there):
        side_result = side()
    main_result = main()
    # What ``side`` allocated is handed out again on its own stream only, behind the next fork.
    here.wait_stream(there)
    return main_result, side_result


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

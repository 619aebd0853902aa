"""beside(): both results, in line or captured."""

from __future__ import annotations

import pytest
import torch

from branchline.kernels import ops


def test_in_line_outside_a_capture() -> None:
    order: list[str] = []

    def step(name: str) -> str:
        order.append(name)
        return name

    got = ops.beside(torch.device("cpu"), lambda: step("main"), lambda: step("side"))
    assert got == ("main", "side")
    assert order == ["main", "side"]


@pytest.mark.gpu
def test_a_captured_graph_runs_both_and_joins_them() -> None:
    device = torch.device("cuda", 0)
    x = torch.zeros(1 << 20, device=device)

    def step() -> torch.Tensor:
        total = x
        for _ in range(8):  # each fork takes the memory that the one before gave back
            one, two = ops.beside(device, lambda t=total: t * 2, lambda t=total: t + 1)
            total = one + two
        return total

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    for value in (0.0, 1.0, -3.0):
        x.fill_(value)
        graph.replay()
        assert torch.equal(result, step())

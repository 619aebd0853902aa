"""Captured graphs for an engine that is to have them."""

from __future__ import annotations

import torch

from ..lora.bank import AdapterBank
from .config import EngineConfig
from .errors import EngineStartError
from .graph_check import check_graphs
from .graph_recorder import CudaRecorder, Recorder
from .progress import OnProgress, Progress, tell_nobody
from .runner import ModelRunner
from .step_graphs import StepGraphs


def open_graphs(
    config: EngineConfig,
    runner: ModelRunner,
    bank: AdapterBank | None,
    max_num_seqs: int,
    on_progress: OnProgress = tell_nobody,
    recorder: Recorder | None = None,
) -> StepGraphs | None:
    """Capture and check them, before the first step and with no adapter on its way.

    None with ``enforce_eager``, and on a CPU unless a recorder is given. Raises EngineStartError
    for what can't be captured or computes something else than an eager step.
    """
    device = runner.decoder.device
    if config.enforce_eager or (recorder is None and device.type != "cuda"):
        return None
    graphs = StepGraphs(runner, bank, max_num_seqs)
    try:
        graphs.capture(recorder or CudaRecorder(device), on_progress)
    except Exception as error:  # of CUDA, and of kernels that do not compile
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EngineStartError(
            f"CUDA graphs: can't be captured: {reason}; --enforce-eager does without them"
        ) from error
    on_progress(Progress("checking graphs"))
    check_graphs(graphs, runner, bank)
    if device.type == "cuda":  # what the runs before each recording left cached for their stream
        torch.cuda.empty_cache()
    return graphs

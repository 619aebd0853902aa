"""The flags of ``branchline serve`` that are fields of ``EngineConfig``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option("--max-model-len", type=int, help="Tokens of prompt and answer together."),
    click.option("--max-num-seqs", type=int, default=256, show_default=True),
    click.option(
        "--max-num-batched-tokens",
        type=int,
        help="Tokens in one step; longer prompts go in chunks.  [default: 2048, CPU: 512]",
    ),
    click.option(
        "--block-size", type=int, default=16, show_default=True, help="Tokens a KV block."
    ),
    click.option("--gpu-memory-utilization", type=float, default=0.9, show_default=True),
    click.option(
        "--cpu-memory-utilization",
        type=float,
        default=0.25,
        show_default=True,
        help="On a CPU: the share of the machine's memory that the KV cache may take.",
    ),
    click.option("--kv-cache-gb", type=float, help="KV cache size in GiB, on a CPU or a GPU."),
    click.option(
        "--kv-cache-dtype",
        type=click.Choice(["auto", "fp8"]),
        default="auto",
        show_default=True,
        help="fp8: keys and values in 8 bits with scales, nearly twice the tokens.",
    ),
    click.option(
        "--dtype",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    ),
    click.option(
        "--quantization",
        type=click.Choice(["fp8"]),
        help="Weights of the layers' linears in 8 bits: half the memory.",
    ),
    click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
    ),
    click.option("--num-threads", type=int, help="CPU threads of the engine."),
    click.option(
        "--enable-prefix-caching/--no-enable-prefix-caching",
        default=True,
        show_default=True,
        help="Keep KV blocks of prompts and answers for later requests.",
    ),
    click.option(
        "--kv-offload-gb",
        type=float,
        default=0.0,
        show_default=True,
        help="Host memory, in GiB, for KV blocks that leave the pool.",
    ),
    click.option(
        "--share-prefixes",
        is_flag=True,
        help="Tenants share cached prefixes: faster, but one can time what others have sent.",
    ),
    click.option("--max-loras", type=int, help="Adapters on the device at once.  [default: 256]"),
    click.option(
        "--adapter-dtype",
        type=click.Choice(["auto", "fp8"]),
        default="auto",
        show_default=True,
        help="fp8: ranks of adapters in 8 bits with scales, twice the adapters.",
    ),
    click.option(
        "--adapter-memory-gb",
        type=float,
        help="Device memory, in GiB, for the ranks of adapters.  [default: by machine]",
    ),
    click.option(
        "--adapter-dense-gb",
        type=float,
        help="Device memory, in GiB, for what else adapters bring.  [default: by machine]",
    ),
    click.option(
        "--adapter-host-gb",
        type=float,
        help="Host memory, in GiB, for adapters near the device.  [default: by machine]",
    ),
    click.option("--max-step-rank", type=int, help="Most ranks of adapters, summed, in one step."),
    click.option(
        "--scheduling-policy",
        type=click.Choice(["fair", "fcfs"]),
        default="fair",
        show_default=True,
        help="fair: by tenants' weights; fcfs: by arrival.",
    ),
    click.option(
        "--async-scheduling/--no-async-scheduling",
        default=None,
        help="Plan the next step while the last one runs.  [default: on a GPU, not on a CPU]",
    ),
    click.option(
        "--enforce-eager",
        is_flag=True,
        help="Without CUDA graphs: starts sooner and takes less memory, but steps are slower.",
    ),
    click.option(
        "--max-queued-requests",
        type=int,
        default=2048,
        show_default=True,
        help="Choices that may wait; beyond, who has most of the queue hears 429.",
    ),
    click.option(
        "--max-overtake-cost",
        type=int,
        default=65536,
        show_default=True,
        help="Cost units, about tokens, that others may get before a request whose turn it was.",
    ),
    click.option(
        "--tenant-kv-share",
        type=float,
        default=0.5,
        show_default=True,
        help="Share of the KV pool that one tenant keeps while others need it.",
    ),
)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command`` these flags; ``--help`` lists them in this order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command

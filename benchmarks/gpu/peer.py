"""transformers with PEFT on the same card in the same run: the same shape, random weights."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from .checkpoints import Shape, shape_of, write_config
from .decode import build_model, open_harness, repeats_of, run_part
from .device import device_of, release, timed
from .harness import Room, fill_bank, random_bytes
from .sections import Run

RANK = 16


def time_peer(run: Run) -> None:
    """Decode steps of theirs and ours, of the base model and with one adapter for all rows."""
    missing = [name for name in ("transformers", "peft") if find_spec(name) is None]
    if missing:
        run.note(f"not installed: {', '.join(missing)}")
        return
    is_gpu = run.options.device == "cuda"
    batch, context, num_tokens = (16, 512, 32) if is_gpu else (2, 16, 2)
    ours: dict[str, float] = {}
    run_part(run, "peer, ours", lambda: _ours(run, batch, context, ours))
    run_part(run, "peer, theirs", lambda: _theirs(run, batch, context, num_tokens, ours))


def _ours(run: Run, batch: int, context: int, found: dict[str, float]) -> None:
    model = build_model(run)
    room = Room(batch, context + 1, 1, random_bytes(model.decoder, RANK))
    with open_harness(run, model.decoder, room) as harness:
        fill_bank(harness.bank)
        (slot,) = harness.load(1, RANK)
        rows: dict[str, list[int | None]] = {"base": [None] * batch, "1 x r16": [slot] * batch}
        for kind, slots in rows.items():
            seconds = harness.time(harness.decode(context, slots), repeats_of(run, 40)).median
            found[kind] = seconds
            run.figure(f"peer B={batch} L={context}, {kind}, ours", seconds * 1000, "ms")


def _theirs(run: Run, batch: int, context: int, num_tokens: int, ours: dict[str, float]) -> None:
    shape = shape_of(run.options.shape)
    model = _transformers_model(run, shape)
    device = device_of(run.options.device)
    prompt = torch.randint(0, shape.vocab_size, (batch, context), device=device)
    for kind in ("base", "1 x r16"):
        if kind != "base":
            model = _with_adapter(model, shape)
        if not run.has_time():
            run.note(f"out of time before transformers, {kind}")
            return
        long, short = (_seconds(model, prompt, n) for n in (num_tokens + 1, 1))
        seconds = (long - short) / num_tokens
        name = f"peer B={batch} L={context}, {kind}, transformers"
        run.figure(name, seconds * 1000, "ms")
        if kind in ours:
            run.figure(f"{name}: ours is faster by", seconds / ours[kind], "times")
    del model
    release(device)


def _transformers_model(run: Run, shape: Shape) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = torch.bfloat16 if run.options.device == "cuda" else torch.float32
    with tempfile.TemporaryDirectory() as name:
        config = AutoConfig.from_pretrained(write_config(shape, Path(name), dtype))
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device_of(run.options.device):
            make: Any = AutoModelForCausalLM.from_config  # it has no types
            model = make(config, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(previous)
    return model.eval()


def _with_adapter(model: Any, shape: Shape) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = sorted({name.rpartition(".")[2] for name in shape.linears})
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets, init_lora_weights=False)
    adapted = get_peft_model(model, config)
    return adapted.to(model.dtype).eval()


@torch.inference_mode()
def _seconds(model: Any, prompt: torch.Tensor, num_tokens: int) -> float:
    """Of a whole greedy generation; two of them are subtracted."""

    def generate() -> None:
        model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            pad_token_id=0,
        )

    return timed(prompt.device, generate, 2, 1).median

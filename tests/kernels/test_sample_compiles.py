"""Sampling's kernels compile for Hopper, at the vocabularies of Llama 3.1 and Qwen 2.5."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

import triton
from triton_compile import Compiled, compile_kernel

from branchline.kernels.gpu import sample, sample_edits, sample_filters, sample_mask, sample_report

GROUP = 128
VOCAB_SIZES = [128256, 151936]
FILTERS = {"top_ks": "*i64", "top_ps": "*fp64", "min_ps": "*fp64"}


def fits(compiled: Compiled) -> bool:
    """Whether many programs fit a multiprocessor side by side, and none spills its registers."""
    return compiled.shared_bytes <= 24 * 1024 and ".local" not in compiled.ptx


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_the_choice_of_the_largest(vocab_size: int) -> None:
    signature = {"logits": "*fp32", "pairs": "*i64", "vocab_size": "i32"}
    assert fits(compile_kernel(sample.top_kernel, signature, {"GROUPS": sample.GROUPS}))
    width = triton.next_power_of_2(triton.cdiv(vocab_size, sample.GROUPS * GROUP))
    signature = {"pairs": "*i64", "ids": "*i64", "num_chunks": "i32"}
    greedy = {"fallback_ids": None, "CHUNKS": width}
    with_values = {**signature, "values": "*fp32"}
    assert fits(compile_kernel(sample.best_kernel, with_values, greedy, num_warps=1))
    drawn = {"values": None, "CHUNKS": width}
    with_fallback = {**signature, "fallback_ids": "*i64"}
    assert fits(compile_kernel(sample.best_kernel, with_fallback, drawn, num_warps=1))


@pytest.mark.parametrize("has_floors", [False, True])
def test_the_race(has_floors: bool) -> None:
    signature = {
        "logits": "*fp32",
        "top_ids": "*i64",
        "temperatures": "*fp64",
        "streams": "*i64",
        "all_firsts": "*fp32",
        "all_winners": "*i32",
        "pairs": "*i64",
        "num_rows": "i32",
        "vocab_size": "i32",
        "num_groups": "i32",
    }
    constants: dict[str, object] = {"GROUPS": sample.GROUPS}
    if has_floors:
        signature["floors"] = "*fp64"
    else:
        constants["floors"] = None
    compiled = compile_kernel(sample.race_kernel, signature, constants)
    assert fits(compiled)
    # The fast logarithm is wrong by percents near 1, which is where the winners' noise comes from.
    assert "lg2.approx" not in compiled.ptx
    assert "mul.hi.u32" in compiled.ptx
    assert "mul.hi.s32" not in compiled.ptx


def test_the_first_arrivals() -> None:
    signature = {"temperatures": "*fp64", "streams": "*i64", "firsts": "*fp32"}
    signature |= {"winners": "*i32", "num_rows": "i32", "num_groups": "i32"}
    compiled = compile_kernel(sample.firsts_kernel, signature, {"BLOCK": sample.FIRSTS})
    assert fits(compiled)
    assert "lg2.approx" not in compiled.ptx


def test_the_peaks_of_groups() -> None:
    signature = {"logits": "*fp32", **FILTERS, "peaks": "*i32"}
    signature |= {"vocab_size": "i32", "num_groups": "i32"}
    constants = {"GROUPS": sample_filters.GROUPS}
    assert fits(compile_kernel(sample_filters.peaks_kernel, signature, constants))


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_the_floors(vocab_size: int) -> None:
    signature = {"logits": "*fp32", "temperatures": "*fp64", **FILTERS, "all_peaks": "*i32"}
    signature |= {"all_active": "*i32", "floors": "*fp64", "vocab_size": "i32", "num_groups": "i32"}
    width = triton.next_power_of_2(triton.cdiv(vocab_size, GROUP))
    constants = {"GROUPS": sample_filters.GROUPS, "WIDTH": width}
    num_warps = sample_filters.NUM_WARPS
    assert fits(compile_kernel(sample_filters.floors_kernel, signature, constants, num_warps))


def test_edits() -> None:
    signature = {"logits": "*fp32", "where": "*i64", "changes": "*fp32"}
    signature |= {"num_edits": "i32", "row_stride": "i32"}
    constants = {"BLOCK": sample_edits.BLOCK}
    assert fits(compile_kernel(sample_edits.edit_kernel, signature, constants))


def test_token_masks() -> None:
    signature = {"logits": "*fp32", "rows": "*i64", "bits": "*i32"}
    signature |= {"vocab_size": "i32", "num_words": "i32", "row_stride": "i32"}
    constants = {"BLOCK": sample_mask.BLOCK}
    assert fits(compile_kernel(sample_mask.mask_kernel, signature, constants))


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_the_report(vocab_size: int) -> None:
    read = {"logits": "*fp32", "token_ids": "*i64", "num_rows": "i32", "vocab_size": "i32"}
    signature = {**read, "pairs": "*i64", "parts": "*fp32"}
    constants = {"BLOCK": sample_report.BLOCK}
    assert fits(compile_kernel(sample_report.sums_kernel, signature, constants))
    signature = {**read, "parts": "*fp32", "log_sums": "*fp32", "logprobs": "*fp32"}
    signature |= {"ranks": "*fp32", "num_chunks": "i32"}
    constants = {"CHUNKS": triton.next_power_of_2(triton.cdiv(vocab_size, sample_report.BLOCK))}
    assert fits(compile_kernel(sample_report.report_kernel, signature, constants, num_warps=1))
    signature = {"pairs": "*i64", "log_sums": "*fp32", "rows": "*i64", "ids": "*i64"}
    signature |= {"logprobs": "*fp32", "width": "i32"}
    constants = {"BLOCK": sample_report.BEST_BLOCK}
    assert fits(compile_kernel(sample_report.unpack_kernel, signature, constants, num_warps=1))

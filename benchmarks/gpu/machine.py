"""What the figures depend on besides the code: versions, the card, and its two ceilings."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from .device import device_of, free_bytes, timed
from .sections import Run

PACKAGES = ("torch", "triton", "numpy", "safetensors", "transformers", "peft")
COPY_BYTES = 8 << 30
GEMM_SIZE = 8192
SMI_FIELDS = (
    *("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm"),
    *("power.limit", "temperature.gpu", "memory.total"),
)

BANDWIDTH = "memory bandwidth, read and written"
GEMM_RATE = "bf16 matrix product"


def measure_machine(run: Run) -> None:
    """Versions, card and clocks; then memory bandwidth and the rate of matrix products."""
    device = device_of(run.options.device)
    for name, value in facts(device).items():
        run.fact(name, value)
    run.figure(BANDWIDTH, bandwidth(device) / 1e12, "TB/s")
    run.figure(GEMM_RATE, gemm_rate(device) / 1e12, "TFLOP/s")
    for name, value in smi().items():
        run.fact(f"{name} after load", value)


def facts(device: torch.device) -> dict[str, object]:
    """All that is known without measuring."""
    found: dict[str, object] = {"python": platform.python_version()}
    for package in PACKAGES:
        found[package] = package_version(package)
    found |= {"cuda": torch.version.cuda, "system": platform.platform(), "card": card(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["compute capability"] = f"{properties.major}.{properties.minor}"
        found["multiprocessors"] = properties.multi_processor_count
        found["memory GiB"] = round(properties.total_memory / (1 << 30), 1)
    return found | smi()


def package_version(name: str) -> str | None:
    """None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def card(device: torch.device) -> str:
    """The name of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def smi() -> dict[str, str]:
    """What nvidia-smi reads of the first card; nothing where it can't be asked."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    query = [program, "-i", "0", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(SMI_FIELDS, done.stdout.strip().split(", "), strict=False))


def bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy within the device's memory, those read and those written."""
    size = min(COPY_BYTES, free_bytes(device) // 8)
    source = torch.empty(size, dtype=torch.uint8, device=device).random_(256)
    target = torch.empty_like(source)
    return 2 * size / timed(device, lambda: target.copy_(source), 10).median


def gemm_rate(device: torch.device) -> float:
    """Operations a second of a large bfloat16 matrix product of random numbers."""
    size = GEMM_SIZE if device.type == "cuda" else 128
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return 2 * size**3 / timed(device, lambda: a @ b, 10).median

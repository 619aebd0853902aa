"""Each peer as a command: how it is started, and when it is ready."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

START_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to measure; ``models`` are the names its clients may ask for."""

    name: str
    version: str
    command: tuple[str, ...]
    port: int
    models: tuple[str, ...]
    environment: dict[str, str]

    @property
    def url(self) -> str:
        """The address that a load client is given."""
        return f"http://127.0.0.1:{self.port}/v1"


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def branchline(paths: dict[str, Path], version: str) -> Peer:
    """This project, by its own command."""
    port = free_port()
    command = [sys.executable, "-m", "branchline", "serve", str(paths["base"]), "--port", str(port)]
    command += ["--served-model-name", "base", "--dtype", "float32", *_loras(paths)]
    return Peer("branchline", version, tuple(command), port, tuple(paths), {})


def peft(paths: dict[str, Path], version: str) -> Peer:
    """transformers + peft behind the small server beside this file."""
    port = free_port()
    script = Path(__file__).with_name("peft_server.py")
    command = [sys.executable, str(script), str(paths["base"]), "--port", str(port), *_loras(paths)]
    return Peer("transformers+peft", version, tuple(command), port, tuple(paths), {})


def vllm(paths: dict[str, Path], python: Path, with_lora: bool) -> Peer:
    """vLLM's CPU build from an environment of its own; ``with_lora`` False: base only."""
    port = free_port()
    command = [str(python.with_name("vllm")), "serve", str(paths["base"]), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--served-model-name", "base", "--dtype", "float32"]
    command += ["--max-model-len", "1024"]
    names = ["base"]
    if with_lora:
        adapters = {name: path for name, path in paths.items() if name != "base"}
        count = str(len(adapters))
        command += ["--enable-lora", "--max-loras", count, "--max-cpu-loras", "16"]
        command += ["--max-lora-rank", "16", "--lora-modules"]
        command += [f"{name}={path}" for name, path in adapters.items()]
        names += adapters
    environment = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}
    name = "vllm" if with_lora else "vllm (LoRA off)"
    return Peer(name, vllm_version(python), tuple(command), port, tuple(names), environment)


def vllm_version(python: Path) -> str:
    """The version of vLLM in the environment of ``python``."""
    code = "import importlib.metadata as m; print(m.version('vllm'))"
    done = subprocess.run([str(python), "-P", "-c", code], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _loras(paths: dict[str, Path]) -> list[str]:
    pairs = [f"{name}={path}" for name, path in paths.items() if name != "base"]
    return [part for pair in pairs for part in ("--lora", pair)]


@contextmanager
def serving(peer: Peer, log: Path) -> Iterator[Peer]:
    """Run the peer until the block ends; raises RuntimeError with its last words otherwise."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"} | peer.environment
    with log.open("wb") as out:
        process = subprocess.Popen(
            peer.command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_ready(peer, process, log)
        yield peer
    finally:
        # The group: a peer's workers must not outlive it.
        _end(process, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            _end(process, signal.SIGKILL)
            process.wait()


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # gone already
        os.killpg(process.pid, number)


def _wait_until_ready(peer: Peer, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            status = httpx.get(f"{peer.url}/models", timeout=5).status_code
            # One that asks for keys is there, too.
            if status in (httpx.codes.OK, httpx.codes.UNAUTHORIZED):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    words = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise RuntimeError(f"{peer.name} did not come up:\n{words}")

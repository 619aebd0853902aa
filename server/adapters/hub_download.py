"""One download from the hub, in a process: ``python -m branchline.server.adapters.hub_download``.

A thread that downloads can't be ended; a process can, at its time limit or with the server.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass

import msgspec

from .hub import NotFoundError, find_cached, first_line


@dataclass(frozen=True, slots=True)
class HubDownload:
    """What to bring into the hub's cache: at most ``max_bytes`` of files that match."""

    hub_id: str
    revision: str | None
    patterns: tuple[str, ...]
    max_bytes: int


class _Answer(msgspec.Struct):
    """What the process says at its end."""

    path: str | None = None
    error: str | None = None


async def download_snapshot(download: HubDownload) -> str:
    """The snapshot's directory in the cache; raises NotFoundError. Cancelling ends the process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "branchline.server.adapters.hub_download"),
        msgspec.json.encode(asdict(download)).decode(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    assert process.stdout is not None, "it is a pipe"
    try:
        output = await process.stdout.read()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    try:
        answer = msgspec.json.decode(output, type=_Answer)
    except msgspec.MsgspecError:
        raise NotFoundError(f"{download.hub_id}: its download broke off") from None
    if answer.path is None:
        raise NotFoundError(answer.error or f"{download.hub_id} can't be downloaded")
    return answer.path


def run(download: HubDownload) -> str:
    """Look up the sizes, then download; what is in the cache where the hub can't be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    hub_id, revision, patterns = download.hub_id, download.revision, list(download.patterns)
    try:
        files = snapshot_download(
            hub_id, revision=revision, allow_patterns=patterns, dry_run=True, max_workers=2
        )
    except DryRunError as error:
        try:
            return find_cached(hub_id, revision, patterns)
        except NotFoundError:
            reason = first_line(error.__cause__ or error)
            raise NotFoundError(f"{hub_id} is not in the hub's cache; the hub: {reason}") from None
    if not files:
        raise NotFoundError(f"{hub_id} holds no adapter")
    num_bytes = sum(file.file_size or 0 for file in files)
    if num_bytes > download.max_bytes:
        raise NotFoundError(
            f"{hub_id} has {num_bytes} bytes of adapter files, at most {download.max_bytes} are "
            "fetched"
        )
    path = snapshot_download(
        hub_id, revision=revision, allow_patterns=patterns, etag_timeout=30, max_workers=2
    )
    if os.path.basename(path) != files[0].commit_hash:
        raise NotFoundError(f"{hub_id} changed while it was downloaded")
    return str(path)


def main(argument: str) -> None:
    """Write one JSON object to standard output; end at once when standard input does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    download = msgspec.json.decode(argument, type=HubDownload)
    try:
        answer = _Answer(path=run(download))
    except NotFoundError as error:
        answer = _Answer(error=str(error))
    except Exception as error:
        answer = _Answer(error=f"{download.hub_id}: {first_line(error)}")
    sys.stdout.buffer.write(msgspec.json.encode(answer))


def _leave_with_parent() -> None:
    # Not by sys.stdin: its lock, held here for ever, would stop the interpreter's own end.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])

"""Uploads as they come in: forms and bare archives, bounded, with nothing left of bad ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
from evil_archives import ADAPTER, COMPRESSIONS, files_below, tar_of, zip_of
from fastapi import Request

from branchline.lora.errors import AdapterError
from branchline.server.adapters.sources import SourcePolicy
from branchline.server.adapters.upload import UploadedAdapter, receive_upload
from branchline.server.errors import ApiError

POLICY = SourcePolicy(max_bytes=1 << 20, timeout=30.0)
FORM = "multipart/form-data; boundary=xx"


def request(
    pieces: Iterable[bytes], headers: dict[str, str], ends: str = "whole"
) -> tuple[Request, list[bytes]]:
    """A request whose body comes in ``pieces``, and the pieces that nobody has asked for yet.

    Then it is ``whole``, the client has ``left``, or nothing more ever comes: ``hangs``.
    """
    left = list(pieces)

    async def receive() -> dict[str, Any]:
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": True}
        if ends == "left":
            return {"type": "http.disconnect"}
        if ends == "hangs":
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "PUT", "headers": raw}, receive), left


async def upload(
    body: bytes, content_type: str, staging: Path, size: int = 1000, **options: Any
) -> UploadedAdapter:
    """Receive ``body`` in pieces of ``size`` bytes."""
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    policy = options.pop("policy", POLICY)
    idle_timeout = options.pop("idle_timeout", 30.0)
    made, _ = request(pieces, {"content-type": content_type}, **options)
    return await receive_upload(made, policy, staging, idle_timeout)


def form(files: list[tuple[str, Any]], **fields: str) -> tuple[bytes, str]:
    """What httpx makes of a form."""
    sent = httpx.Request("PUT", "http://x/", files=files, data=fields)
    return sent.read(), sent.headers["content-type"]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/zip", zip_of()),
        ("Application/X-Tar; charset=binary", tar_of()),
        ("application/gzip", COMPRESSIONS["gzip"](tar_of())),
        ("application/octet-stream", zip_of()),
        ("application/zip", tar_of()),
    ],
)
async def test_a_bare_archive(content_type: str, body: bytes, tmp_path: Path) -> None:
    uploaded = await upload(body, content_type, tmp_path)
    assert contents(uploaded.path) == ADAPTER
    assert uploaded.fields == {}
    assert files_below(tmp_path) == {"adapter", *(f"adapter/{name}" for name in ADAPTER)}


@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
async def test_a_form_with_an_archive(size: int, tmp_path: Path) -> None:
    body, content_type = form([("archive", ("a.zip", zip_of()))], pin="device", note="größer")
    uploaded = await upload(body, content_type, tmp_path, size)
    assert contents(uploaded.path) == ADAPTER
    assert uploaded.fields == {"pin": "device", "note": "größer"}
    assert files_below(tmp_path) == {"adapter", *(f"adapter/{name}" for name in ADAPTER)}


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
async def test_a_form_with_the_files(size: int, tmp_path: Path) -> None:
    files = {**ADAPTER, "tokenizer.json": b"\r\n--xx\r\n" * 9, "README.md": b"# not kept"}
    body, content_type = form([("files", (name, body)) for name, body in files.items()])
    uploaded = await upload(body, content_type, tmp_path, size)
    del files["README.md"]
    assert contents(uploaded.path) == files
    assert uploaded.path == tmp_path / "adapter"


async def test_a_large_file_is_on_disk_as_it_came(tmp_path: Path) -> None:
    weights = bytes(range(251)) * (3 << 12)
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": weights}
    body, content_type = form([("files", (name, body)) for name, body in files.items()])
    policy = SourcePolicy(max_bytes=len(body))
    uploaded = await upload(body, content_type, tmp_path, 65536, policy=policy)
    assert contents(uploaded.path) == files


CONFIG = ("files", ("adapter_config.json", b"{}"))
ARCHIVE = ("archive", ("a.zip", zip_of()))

BAD_FORMS: dict[str, tuple[list[tuple[str, Any]], str]] = {
    "nothing": ([("note", (None, b"hi"))], "archive: is required"),
    "no config": ([("files", ("adapter_model.safetensors", b"x"))], "files: has no adapter_config"),
    "archive twice": ([ARCHIVE, ARCHIVE], "archive: is there twice"),
    "file twice": ([CONFIG, CONFIG], "files: 'adapter_config.json' is there twice"),
    "both": ([ARCHIVE, CONFIG], "files: can't come beside an archive"),
    "other file": ([("weights", ("a.zip", b"x"))], "weights: can't be a file"),
    "archive as text": ([("archive", (None, b"x"))], "archive: must be a file"),
    "field twice": ([("pin", (None, b"x")), ("pin", (None, b"y"))], "pin: is there twice"),
    "long field": ([("pin", (None, b"x" * 2000))], "pin: is longer than 1024 bytes"),
    "many fields": ([(f"f{i}", (None, b"x")) for i in range(17)], "more than 16 fields"),
    "many files": (
        [("files", (f"n{i}", b"")) for i in range(1001)],
        "files: are more than 1000",
    ),
    "folder": ([("files", ("a/b.json", b"x"))], "files: 'a/b.json' must be a name"),
    "no file name": ([("files", ("", b"x"))], "files: must (be a file|each have a filename)"),
}


@pytest.mark.parametrize("kind", BAD_FORMS)
async def test_bad_forms(kind: str, tmp_path: Path) -> None:
    parts, message = BAD_FORMS[kind]
    body, content_type = form(parts)
    with pytest.raises(ApiError, match=message) as refused:
        await upload(body, content_type, tmp_path)
    assert refused.value.status == 400
    assert files_below(tmp_path) == set()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../etc/x", "leads out"),
        ("/etc/passwd", "leads out"),
        ("adapter_model.bin", "is a pickle"),
        ("a\\b", "not a plain file name"),
    ],
)
async def test_file_names_that_are_refused(name: str, message: str, tmp_path: Path) -> None:
    body, content_type = form([CONFIG, ("files", (name, b"x"))])
    with pytest.raises(AdapterError, match=message):
        await upload(body, content_type, tmp_path)
    assert files_below(tmp_path) == set()


BROKEN: dict[str, tuple[bytes, str]] = {
    "no boundary": (b"", "multipart/form-data"),
    "long boundary": (b"", "multipart/form-data; boundary=" + "x" * 300),
    "not a form": (b"hello", FORM),
    "empty": (b"", FORM),
    "no name": (b"--xx\r\ncontent-disposition: form-data\r\n\r\nx\r\n--xx--\r\n", FORM),
    "no headers": (b"--xx\r\n\r\nx\r\n--xx--\r\n", FORM),
    "cut off": (
        b'--xx\r\ncontent-disposition: form-data; name="archive"; filename="a.zip"\r\n\r\nPK',
        FORM,
    ),
    "long header": (b"--xx\r\nx: " + b"y" * 100_000, FORM),
    "many headers": (b"--xx\r\n" + b"x: y\r\n" * 1000, FORM),
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_bodies_that_are_no_form(kind: str, tmp_path: Path) -> None:
    body, content_type = BROKEN[kind]
    with pytest.raises(ApiError, match=r"The body is not valid multipart/form-data: .") as refused:
        await upload(body, content_type, tmp_path)
    assert refused.value.status == 400
    assert files_below(tmp_path) == set()


@pytest.mark.parametrize("content_type", ["", "application/json", "text/plain", "multipart/mixed"])
async def test_other_content_types(content_type: str, tmp_path: Path) -> None:
    with pytest.raises(ApiError, match=r"may be multipart/form-data, application/zip") as refused:
        await upload(zip_of(), content_type, tmp_path)
    assert refused.value.status == 415


@pytest.mark.parametrize("kind", ["application/zip", FORM])
async def test_too_large_is_refused_before_it_is_read(kind: str, tmp_path: Path) -> None:
    headers = {"content-type": kind, "content-length": str((1 << 20) + 1)}
    made, left = request([b"x" * 1000], headers)
    with pytest.raises(ApiError, match="larger than 1048576 bytes") as refused:
        await receive_upload(made, POLICY, tmp_path)
    assert refused.value.status == 413
    assert len(left) == 1
    assert files_below(tmp_path) == set()


async def test_too_large_is_refused_as_it_comes(tmp_path: Path) -> None:
    """Whatever it said before, also in a part that is passed by."""
    head = b'--xx\r\ncontent-disposition: form-data; name="files"; filename="README"\r\n\r\n'
    for kind, begin in (("application/zip", b""), (FORM, head)):
        pieces = [begin, *[b"x" * 65536] * 100]
        made, left = request(pieces, {"content-type": kind, "content-length": "10"})
        with pytest.raises(ApiError) as refused:
            await receive_upload(made, POLICY, tmp_path)
        assert refused.value.status == 413
        assert len(left) >= 80
        assert files_below(tmp_path) == set()


@pytest.mark.parametrize("kind", ["application/zip", FORM])
async def test_a_body_that_stops_coming(kind: str, tmp_path: Path) -> None:
    begin = b'--xx\r\ncontent-disposition: form-data; name="archive"; filename="a"\r\n\r\nPK'
    with pytest.raises(ApiError, match=r"Nothing of the body came for 0\.05 s") as refused:
        await upload(begin, kind, tmp_path, ends="hangs", idle_timeout=0.05)
    assert refused.value.status == 408
    assert refused.value.headers == {"connection": "close"}
    policy = SourcePolicy(timeout=0.05)
    with pytest.raises(ApiError, match=r"not here within 0\.05 s") as refused:
        await upload(begin, kind, tmp_path, ends="hangs", policy=policy)
    assert refused.value.status == 408
    assert files_below(tmp_path) == set()


@pytest.mark.parametrize("kind", ["application/zip", FORM])
async def test_a_client_that_leaves(kind: str, tmp_path: Path) -> None:
    begin = b'--xx\r\ncontent-disposition: form-data; name="archive"; filename="a"\r\n\r\nPK'
    with pytest.raises(ApiError, match="left before its upload was complete"):
        await upload(begin, kind, tmp_path, ends="left")
    assert files_below(tmp_path) == set()


async def test_a_bad_archive_in_a_form(tmp_path: Path) -> None:
    body, content_type = form([("archive", ("a.zip", zip_of({"../x": b""})))])
    with pytest.raises(AdapterError, match="leads out"):
        await upload(body, content_type, tmp_path)
    assert files_below(tmp_path) == set()


async def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_space(self: object, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("branchline.server.adapters.files.StagedFile.write", no_space)
    with pytest.raises(AdapterError, match="can't be stored: No space left on device"):
        await upload(zip_of(), "application/zip", tmp_path)
    assert files_below(tmp_path) == set()

"""Compressed streams from strangers."""

from __future__ import annotations

import io

import pytest
from evil_archives import COMPRESSIONS

from branchline.lora.errors import AdapterError
from branchline.server.adapters.archive_stream import Decompressed, decompressor_for


def read_all(data: bytes) -> bytes:
    make = decompressor_for(data)
    assert make is not None
    stream, content = Decompressed(io.BytesIO(data), make), b""
    while chunk := stream.read(1 << 16):
        content += chunk
    return content


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
def test_many_streams_are_one_and_many_empty_ones_are_refused(kind: str) -> None:
    compress = COMPRESSIONS[kind]
    empty, full = compress(b""), compress(b"some")
    assert read_all(empty + full * 100 + empty) == b"some" * 100
    with pytest.raises(AdapterError, match="too many empty compressed streams"):
        read_all(full + empty * 100 + full)

"""The public-domain texts, from the Debian packages that hold them or from a file."""

import gzip
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

DEVIL_PATH: Final = Path("/usr/share/dictd/devil.dict.dz")
AUSTEN_PATH: Final = Path("/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
# R's serialisation, big-endian: the header with the native encoding, then type 16 (strings).
_R_STRINGS_HEADER: Final = b"X\n\0\0\0\x03\0\x04\x02\x01\0\x03\x05\0\0\0\0\x05UTF-8\0\0\0\x10"


class TextMissingError(Exception):
    """A text isn't on this machine; the message says how to get it."""


def king_james(file: Path | None) -> str:
    """One verse a line, `Ge1:1 In the beginning ...`, as the command `bible -f` prints it."""
    if file is not None:
        return file.read_text()
    command = shutil.which("bible")
    if command is None:
        raise TextMissingError("no command 'bible'; install it with: apt-get install bible-kjv")
    printed = subprocess.run(
        [command, "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True, timeout=60
    )
    return printed.stdout


def devils_dictionary(file: Path | None) -> str:
    """Ambrose Bierce's entries, a blank line between paragraphs; a file may be gzipped."""
    path = file or DEVIL_PATH
    if not path.is_file():
        raise TextMissingError(f"no {path}; install it with: apt-get install dict-devil")
    content = path.read_bytes()
    return (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()


def austen(file: Path | None) -> str:
    """Jane Austen's six novels, a blank line between paragraphs; a file may be plain text."""
    path = file or AUSTEN_PATH
    if not path.is_file():
        raise TextMissingError(
            f"no {path}; install it with: "
            "apt-get install --no-install-recommends r-cran-janeaustenr"
        )
    if path.suffix != ".rdb":
        return path.read_text()
    return "\n\n".join(r_database_texts(path.read_bytes()))


def r_database_texts(database: bytes) -> Iterator[str]:
    """The character vectors of an R lazy-load database, each joined to one text.

    The file is a row of chunks: the inflated size in four bytes, then a zlib stream.
    """
    while database:
        (size,) = struct.unpack_from(">I", database)
        stream = zlib.decompressobj()
        content = stream.decompress(database[4:])
        if len(content) != size:
            raise ValueError(f"an R database chunk has {len(content)} bytes, it says {size}")
        if content.startswith(_R_STRINGS_HEADER):
            yield "\n".join(r_strings(content[len(_R_STRINGS_HEADER) :]))
        database = stream.unused_data


def r_strings(content: bytes) -> Iterator[str]:
    """The elements of a serialised character vector: flags, length, bytes each."""
    (count,) = struct.unpack_from(">i", content)
    offset = 4
    for _ in range(count):
        _, length = struct.unpack_from(">2i", content, offset)
        yield content[offset + 8 : offset + 8 + length].decode()
        offset += 8 + length

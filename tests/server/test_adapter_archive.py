"""Archives from strangers: what comes out of good ones, and that nothing comes out of bad ones."""

from __future__ import annotations

import contextlib
import stat
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from evil_archives import (
    ADAPTER,
    COMPRESSIONS,
    CONFIG,
    WEIGHTS,
    files_below,
    greedy_xz,
    member,
    tar_gz_of_zeros,
    tar_of,
    tar_with,
    zip_of,
)

from branchline.lora.errors import AdapterError
from branchline.server.adapters.archive import unpack

MAX_BYTES = 1 << 20

TEXT = {"tokenizer.json": b"{}", "chat_template.jinja": b"{{ messages }}"}
SKIPPED = {"README.md": b"# hi", "notes.txt": b"", "other.zip": zip_of(), "training_args.json": b""}


def unpack_bytes(
    content: bytes, directory: Path, max_bytes: int = MAX_BYTES, **options: int
) -> Path:
    archive = directory / "anything.bin"
    archive.write_bytes(content)
    try:
        return unpack(archive, directory / "adapter", max_bytes, **options)
    finally:
        archive.unlink()


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("folder", ["", "my-adapter/", "./", "./my-adapter/"])
@pytest.mark.parametrize("kind", ["zip", "stored", *COMPRESSIONS])
def test_an_adapter_comes_out_flat(kind: str, folder: str, tmp_path: Path) -> None:
    files = {folder + name: body for name, body in {**SKIPPED, **ADAPTER, **TEXT}.items()}
    match kind:
        case "zip":
            content = zip_of(files)
        case "stored":
            content = zip_of(files, compression=zipfile.ZIP_STORED)
        case _:
            content = COMPRESSIONS[kind](tar_of(files))
    directory = unpack_bytes(content, tmp_path)
    assert directory == tmp_path / "adapter"
    assert contents(directory) == {**ADAPTER, **TEXT}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar_with_long_names(format: int, tmp_path: Path) -> None:
    files = {"a" * 90 + "/" + name: body for name, body in ADAPTER.items()}
    deep = {"a" * 90 + "/" + "b" * 60 + "/adapter_config.json": b"another's"}
    assert contents(unpack_bytes(tar_of({**deep, **files}, format), tmp_path)) == ADAPTER


def test_several_compressed_streams_are_one(tmp_path: Path) -> None:
    content = tar_of()
    for compress in (COMPRESSIONS["gzip"], COMPRESSIONS["bzip2"], COMPRESSIONS["xz"]):
        parts = compress(content[:5000]) + compress(content[5000:])
        assert contents(unpack_bytes(parts, tmp_path)) == ADAPTER
        (tmp_path / "adapter").rename(tmp_path / compress.__module__)


def test_shards_and_their_index(tmp_path: Path) -> None:
    files = {
        "adapter_config.json": CONFIG,
        "adapter_model-00001-of-00002.safetensors": b"1",
        "adapter_model-00002-of-00002.safetensors": b"2",
        "adapter_model.safetensors.index.json": b"{}",
    }
    assert contents(unpack_bytes(zip_of(files), tmp_path)) == files


def with_file(name: str, content: bytes = b"x") -> list[tuple[str, bytes]]:
    return [(name, content), *ADAPTER.items()]


BAD_NAMES = [
    ("/etc/adapter_config.json", "leads out"),
    ("../adapter_config.json", "leads out"),
    ("a/../../x", "leads out"),
    ("..", "leads out"),
    ("a\\..\\x", "not a plain"),
    ("C:x", "not a plain"),
    ("a//x", "not a plain"),
    ("a/./x", "not a plain"),
    ("line\nbreak", "not a plain"),
    ("\x1b[31mred", "not a plain"),
    ("n" * 1100, "not a plain"),
]


@pytest.mark.parametrize(("name", "message"), BAD_NAMES)
@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_names_that_lead_elsewhere(
    make: Callable[..., bytes], name: str, message: str, tmp_path: Path
) -> None:
    refuse(make(with_file(name)), message, tmp_path)


PICKLES = [
    "adapter_model.bin",
    "adapter_model-00001-of-00002.bin",
    "pytorch_model.bin",
    "a/optimizer.pt",
    "x.PTH",
    "deep/er/data.pkl",
    "y.ckpt",
]


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_pickles(make: Callable[..., bytes], name: str, tmp_path: Path) -> None:
    error = refuse(make(with_file(name)), "is a pickle, which can run any code", tmp_path)
    assert error.field == name


def tar_named(name: bytes) -> bytes:
    """A tar whose first name is bytes that are no UTF-8."""
    header = bytearray(member("x").tobuf())
    header[: len(name)] = name
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + tar_of()


def zip_with_zero_name() -> bytes:
    return zip_of(with_file("adapterXconfig")).replace(b"adapterXconfig", b"adapter\0config")


def encrypted_zip() -> bytes:
    """The flag is set in the local header and in the directory."""
    content = bytearray(zip_of())
    for start, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(start) + offset] |= 1
    return bytes(content)


def wrong_checksum() -> bytes:
    content = zip_of(compression=zipfile.ZIP_STORED)
    return content.replace(WEIGHTS[:100], WEIGHTS[1:101], 1)


def sparse_pax() -> bytes:
    info = member("adapter_model.safetensors", 512)
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    return info.tobuf(tarfile.PAX_FORMAT) + b"1\n0\n1\n".ljust(512, b"\0") + tar_of()


def many_pax_headers() -> bytes:
    header = tarfile.TarInfo.create_pax_global_header({"comment": "x" * 900})
    return header * 3000 + tar_of()


def long_pax_header() -> bytes:
    header = bytearray(tarfile.TarInfo.create_pax_global_header({"comment": "x" * (3 << 20)}))
    return COMPRESSIONS["gzip"](bytes(header) + tar_of())


BAD_ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "archive: is empty"),
    "text": (lambda: b"hello" * 100, "archive: is neither a zip nor a tar"),
    "safetensors": (lambda: b"\x02\0\0\0\0\0\0\0{}", "archive: is neither a zip nor a tar"),
    "zip of nothing": (lambda: zip_of({}), "adapter_config.json: is missing"),
    "tar of nothing": (lambda: tar_of({}), "is neither a zip nor a tar"),
    "too deep": (
        lambda: zip_of({f"a/b/{name}": body for name, body in ADAPTER.items()}),
        "adapter_config.json: is missing",
    ),
    "archive in an archive": (
        lambda: tar_of({"adapter.zip": zip_of()}),
        "adapter_config.json: is missing",
    ),
    "two adapters": (
        lambda: tar_of({f"{d}/{name}": body for d in "ab" for name, body in ADAPTER.items()}),
        "archive: holds an adapter's files in more than one folder",
    ),
    "zip: cut off": (lambda: zip_of()[:-30], "archive: can't be read"),
    "zip: checksum": (wrong_checksum, "archive: can't be read: Bad CRC-32"),
    "zip: link": (
        lambda: zip_of(with_file("link", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777),
        "link: is a link",
    ),
    "zip: pipe": (
        lambda: zip_of(with_file("pipe"), mode=stat.S_IFIFO | 0o644),
        "pipe: is a device or pipe",
    ),
    "zip: zero byte": (zip_with_zero_name, "name holds a zero byte"),
    "zip: encrypted": (encrypted_zip, "adapter_config.json: is encrypted"),
    "zip: LZMA": (
        lambda: zip_of(compression=zipfile.ZIP_LZMA),
        "adapter_config.json: must be stored or deflated",
    ),
    "zip: bomb": (
        lambda: zip_of({**ADAPTER, "tokenizer.json": bytes(4 << 20)}),
        "archive: unpacks to more than 1048576 bytes",
    ),
    "zip: many names": (
        lambda: zip_of([*ADAPTER.items(), *((f"{i}", b"") for i in range(1001))]),
        "archive: holds more than 1000 files",
    ),
    "zip: very many names": (
        lambda: zip_of((f"{i:09}", b"") for i in range(30_000)),
        "archive: lists too many files",
    ),
    "tar: cut off": (lambda: tar_of()[:5000], "archive: can't be read: unexpected end of data"),
    "tar: gzip cut off": (lambda: COMPRESSIONS["gzip"](tar_of())[:-20], "is cut off"),
    "tar: bzip2 cut off": (lambda: COMPRESSIONS["bzip2"](tar_of())[:-20], "is cut off"),
    "tar: xz cut off": (lambda: COMPRESSIONS["xz"](tar_of())[:-60], "is cut off"),
    "tar: gzip of rubbish": (lambda: b"\x1f\x8b\x08" + b"x" * 500, "archive: can't be read"),
    "tar: gzip of text": (lambda: COMPRESSIONS["gzip"](b"x" * 5000), "archive: can't be read"),
    "tar: symbolic link": (
        lambda: tar_with(member("tokenizer.json", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        "tokenizer.json: is a link",
    ),
    "tar: link of an odd name": (
        lambda: tar_with(member("a\nb", type=tarfile.SYMTYPE, linkname="x")),
        r"a\\nb: is not a plain file name",
    ),
    "tar: hard link": (
        lambda: tar_with(member("x", type=tarfile.LNKTYPE, linkname="adapter_config.json")),
        "x: is a link",
    ),
    "tar: linked folder": (
        lambda: tar_with(member("a", type=tarfile.SYMTYPE, linkname="/tmp")),
        "a: is a link",
    ),
    "tar: device": (lambda: tar_with(member("x", type=tarfile.CHRTYPE)), "x: is a device or pipe"),
    "tar: pipe": (lambda: tar_with(member("x", type=tarfile.FIFOTYPE)), "x: is a device or pipe"),
    "tar: unknown type": (lambda: tar_with(member("x", type=b"Z")), "x: is a device or pipe"),
    "tar: sparse": (
        lambda: tar_with(member("adapter_model.safetensors", type=tarfile.GNUTYPE_SPARSE)),
        "adapter_model.safetensors: is a sparse file",
    ),
    "tar: sparse (pax)": (sparse_pax, "adapter_model.safetensors: is a sparse file"),
    "tar: name of bytes": (lambda: tar_named(b"\xff\xfe"), "is not a plain file name"),
    "tar: many names": (
        lambda: tar_of((f"{i}", b"") for i in range(1001)),
        "archive: holds more than 1000 files",
    ),
    "tar: bomb": (
        lambda: tar_gz_of_zeros("adapter_model.safetensors", 64 << 20),
        "archive: unpacks to more than 1048576 bytes",
    ),
    "tar: bomb that is passed by": (
        lambda: tar_gz_of_zeros("README.md", 64 << 20),
        "archive: unpacks to more than 1048576 bytes",
    ),
    "tar: chain of headers": (
        many_pax_headers,
        "header that is too long|can't be read: .* recursion",
    ),
    "tar: long header": (long_pax_header, "archive: has a header that is too long"),
    "tar: xz that wants memory": (lambda: greedy_xz(tar_of()), "Memory usage limit"),
}


@pytest.mark.parametrize("kind", BAD_ARCHIVES)
def test_bad_archives(kind: str, tmp_path: Path) -> None:
    make, message = BAD_ARCHIVES[kind]
    refuse(make(), message, tmp_path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make", [zip_of, tar_of])
@pytest.mark.parametrize("name", ["adapter_config.json", "./adapter_config.json"])
def test_names_that_come_twice(make: Callable[..., bytes], name: str, tmp_path: Path) -> None:
    refuse(make(with_file(name)), f"{name}: is in the archive twice|in the archive twice", tmp_path)


def refuse(content: bytes, message: str, directory: Path) -> AdapterError:
    """Unpack and be refused, with nothing left."""
    with pytest.raises(AdapterError, match=message) as refused:
        unpack_bytes(content, directory)
    assert files_below(directory) == set()
    assert "\n" not in str(refused.value)
    return refused.value


def test_what_a_header_says_is_not_what_is_written(tmp_path: Path) -> None:
    """A zip that claims a size in its directory is cut there; a lie is a fault."""
    content = zip_of({"adapter_config.json": CONFIG, "tokenizer.json": bytes(4 << 20)})
    size = (4 << 20).to_bytes(4, "little")
    refuse(
        content.replace(size, (100).to_bytes(4, "little")), "can't be read: Bad CRC-32", tmp_path
    )


def test_exactly_as_many_bytes_as_allowed(tmp_path: Path) -> None:
    num_bytes = len(CONFIG) + len(WEIGHTS)
    assert unpack_bytes(zip_of(), tmp_path, max_bytes=num_bytes)
    (tmp_path / "adapter").rename(tmp_path / "first")
    with pytest.raises(AdapterError, match=f"more than {num_bytes - 1} bytes"):
        unpack_bytes(zip_of(), tmp_path, max_bytes=num_bytes - 1)
    with pytest.raises(AdapterError, match=f"more than {num_bytes - 1} bytes"):
        unpack_bytes(tar_of(), tmp_path, max_bytes=num_bytes - 1)


@pytest.mark.parametrize("name", ["README.md", "adapter_model.safetensors"])
def test_a_large_file_takes_no_memory(name: str, tmp_path: Path) -> None:
    content = tar_gz_of_zeros(name, 64 << 20)
    tracemalloc.start()
    try:
        with contextlib.suppress(AdapterError):
            unpack_bytes(content, tmp_path, max_bytes=1 << 30)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_it_can_be_stopped(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    for content in (zip_of(), tar_of()):
        (tmp_path / "archive").write_bytes(content)
        with pytest.raises(AdapterError, match="was stopped"):
            unpack(tmp_path / "archive", tmp_path / "adapter", MAX_BYTES, stop=stop)
        assert files_below(tmp_path) == {"archive"}


def test_a_directory_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "mine").write_text("")
    with pytest.raises(OSError, match="exists"):
        unpack_bytes(zip_of(), tmp_path)
    assert files_below(tmp_path) == {"adapter", "adapter/mine"}

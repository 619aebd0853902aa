"""Puts that must be refused for what is sent: archives, sources, names, bodies."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from bad_puts import CONFIG, WEIGHTS, BadPut, Put, Workshop
from evil_archives import member, tar_gz_of_zeros, tar_of, tar_with, zip_of

MAX_MIB = 2
"""What the server has to be started with (``--max-adapter-mb``) for these to be too large."""

ZIP, TAR, GZIP = "application/zip", "application/x-tar", "application/gzip"
_TOO_LARGE = (MAX_MIB << 20) + 1


def archive(content: bytes, content_type: str) -> Callable[[Workshop], Put]:
    """An upload of these bytes."""
    return lambda workshop: Put(body=content, content_type=content_type)


def _good_files(workshop: Workshop) -> dict[str, bytes]:
    return {name: (workshop.good / name).read_bytes() for name in (CONFIG, WEIGHTS)}


def _zip_with(name: str, content: bytes = b"x", **options: int) -> Callable[[Workshop], Put]:
    """The good adapter, and one file more."""

    def make(workshop: Workshop) -> Put:
        files = zip_of({**_good_files(workshop), name: content}, **options)
        return Put(body=files, content_type=ZIP)

    return make


def _tar_with(info: tarfile.TarInfo) -> Callable[[Workshop], Put]:
    return archive(tar_with(info), TAR)


def _cut_off(workshop: Workshop) -> Put:
    whole = zip_of(_good_files(workshop))
    return Put(body=whole[: len(whole) // 2], content_type=ZIP)


def _in_two_folders(workshop: Workshop) -> Put:
    files = _good_files(workshop)
    return Put(
        body=zip_of({f"a/{CONFIG}": files[CONFIG], f"b/{WEIGHTS}": files[WEIGHTS]}),
        content_type=ZIP,
    )


def _bad_inside(workshop: Workshop) -> Put:
    """A sound archive of an adapter without its weights."""
    return Put(body=zip_of({CONFIG: _good_files(workshop)[CONFIG]}), content_type=ZIP)


def _zip_bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as files:
        files.writestr(CONFIG, b"{}")
        files.writestr(WEIGHTS, bytes(64 << 20))
    return out.getvalue()


def form(*parts: tuple[str, str | None, bytes]) -> Callable[[Workshop], Put]:
    """A multipart form of (field, file name, content)."""
    body = b""
    for name, file_name, content in parts:
        shown = "" if file_name is None else f'; filename="{file_name}"'
        head = f'--cut\r\nContent-Disposition: form-data; name="{name}"{shown}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return lambda workshop: Put(
        body=body + b"--cut--\r\n", content_type="multipart/form-data; boundary=cut"
    )


BAD_ARCHIVES: dict[str, BadPut] = {
    "a zip bomb": BadPut(archive(_zip_bomb(), ZIP), "archive", "unpacks to more than"),
    "a tar bomb": BadPut(
        archive(tar_gz_of_zeros(WEIGHTS, 64 << 20), GZIP), "archive", "unpacks to more than"
    ),
    "a bomb beside the adapter": BadPut(
        archive(tar_gz_of_zeros("notes.txt", 64 << 20), GZIP), "archive", "unpacks to more than"
    ),
    "too large": BadPut(
        archive(bytes(_TOO_LARGE), TAR), None, "larger than 2097152", "body_too_large", 413
    ),
    "a path out of a zip": BadPut(
        _zip_with("../../etc/passwd"), "../../etc/passwd", "leads out of the archive"
    ),
    "a path out of a tar": BadPut(
        _tar_with(member("../../etc/passwd")), "../../etc/passwd", "leads out of the archive"
    ),
    "an absolute path": BadPut(
        _tar_with(member("/etc/cron.d/x")), "/etc/cron.d/x", "names must be relative"
    ),
    "a backslash": BadPut(_zip_with("..\\x"), "..\\\\x", "not a plain file name"),
    "a symlink": BadPut(
        _tar_with(member(WEIGHTS, type=tarfile.SYMTYPE, linkname="/etc/passwd")), WEIGHTS, "a link"
    ),
    "a symlink in a zip": BadPut(_zip_with("x", b"/etc/passwd", mode=0o120777), CONFIG, "a link"),
    "a hard link": BadPut(
        _tar_with(member(WEIGHTS, type=tarfile.LNKTYPE, linkname="/etc/passwd")), WEIGHTS, "a link"
    ),
    "a device": BadPut(_tar_with(member("null", type=tarfile.CHRTYPE)), "null", "a device"),
    "a pickle in it": BadPut(
        _zip_with("adapter_model.bin", b"\x80\x04."), "adapter_model.bin", "a pickle"
    ),
    "a file twice": BadPut(
        archive(tar_of([(CONFIG, b"{}"), (CONFIG, b"{}")]), TAR), CONFIG, "twice"
    ),
    "two folders": BadPut(_in_two_folders, "archive", "more than one folder"),
    "no adapter in it": BadPut(archive(zip_of({"readme.md": b"x"}), ZIP), CONFIG, "missing"),
    "nothing in it": BadPut(archive(zip_of({}), ZIP), CONFIG, "missing"),
    "no bytes": BadPut(archive(b"", TAR), "archive", "is empty"),
    "no archive": BadPut(archive(b"hello" * 99, TAR), "archive", "neither a zip nor a tar"),
    "half an archive": BadPut(_cut_off, "archive", "can't be read"),
    "a bad adapter in it": BadPut(_bad_inside, WEIGHTS, "missing"),
    "another type": BadPut(
        archive(b"x", "image/png"), None, "'image/png'", "unsupported_content_type", 415
    ),
    "a form without files": BadPut(form(("pin", None, b"host")), "archive", "required", None),
    "a form with a path": BadPut(
        form(("files", "../adapter_config.json", b"{}")), "../adapter_config.json", "leads out"
    ),
    "a form without config": BadPut(
        form(("files", WEIGHTS, b"x")), "files", "adapter_config.json", None
    ),
    "a form with a bad pin": BadPut(
        form(("files", CONFIG, b"{}"), ("pin", None, b"disk")),
        "pin",
        "'host' or 'device'",
        None,
    ),
}


def source(text: str) -> Callable[[Workshop], Put]:
    """A body that names this source."""
    return lambda workshop: Put(text)


def path(of: Callable[[Workshop], Path]) -> Callable[[Workshop], Put]:
    """A body that names this path."""
    return lambda workshop: Put(str(of(workshop)))


def _link_out(workshop: Workshop) -> Path:
    link = workshop.root / "link"
    if not link.is_symlink():
        link.symlink_to(workshop.outside)
    return link


BAD_SOURCES: dict[str, BadPut] = {
    "outside the roots": BadPut(
        path(lambda workshop: workshop.outside), "source", "under no allowed directory"
    ),
    "a link out of the root": BadPut(path(_link_out), "source", "under no allowed directory"),
    "dots out of the root": BadPut(
        lambda workshop: Put(f"{workshop.root}/../outside"), "source", "must not hold '..'"
    ),
    "file:// outside": BadPut(
        lambda workshop: Put(f"file://{workshop.outside}"), "source", "under no allowed directory"
    ),
    "file:// of another machine": BadPut(
        source("file://somewhere/adapter"), "source", "file:///absolute/path"
    ),
    "a directory that is not there": BadPut(
        path(lambda workshop: workshop.root / "nowhere"), "source", "not a directory"
    ),
    "a file": BadPut(path(lambda workshop: workshop.good / WEIGHTS), "source", "not a directory"),
    "a URL that is not allowed": BadPut(
        source("http://127.0.0.1:9/adapter.zip"), "source", "is not allowed; allowed: https://"
    ),
    "a URL of the cloud": BadPut(
        source("http://169.254.169.254/latest/meta-data"), "source", "is not allowed"
    ),
    "a URL out of what is allowed": BadPut(
        source("https://adapters.example/public/../private.zip"), "source", "must hold no '..'"
    ),
    "a URL beside what is allowed": BadPut(
        source("https://adapters.example/publicly.zip"), "source", "is not allowed"
    ),
    "a URL with a password": BadPut(
        source("https://me:secret@adapters.example/public/x.zip"), "source", "user name"
    ),
    "a hub id": BadPut(source("acme/legal"), "source", "the server has no --adapter-source hf://"),
    "another scheme": BadPut(source("ftp://adapters.example/x.zip"), "source", "ftp:// is not"),
    "a relative path": BadPut(source("adapters"), "source", "not org/name"),
    "an empty source": BadPut(source(""), "source", "at least 1 character", None),
    "a source with a line break": BadPut(source("/a\nb"), "source", "an absolute path"),
}


def named(name: str) -> Callable[[Workshop], Put]:
    """A good adapter under a name, as it is sent."""
    return lambda workshop: Put(str(workshop.good), name=name)


def sent(body: bytes) -> Callable[[Workshop], Put]:
    """A body as it is sent."""
    return lambda workshop: Put(body=body)


ALIAS = "canary"
"""An alias that has to be there."""

BAD_NAMES: dict[str, BadPut] = {
    "dots": BadPut(named("../../etc"), "name", "'../../etc' is not a name"),
    "escaped dots": BadPut(named("%2e%2e%2f%2e%2e%2fetc"), "name", "'../../etc' is not a name"),
    "dots within": BadPut(named("a/../b"), "name", "'a/../b' is not a name"),
    "two slashes": BadPut(named("a//b"), "name", "'a//b' is not a name"),
    "a space": BadPut(named("a%20b"), "name", "'a b' is not a name"),
    "a zero byte": BadPut(named("a%00b"), None, "nothing at this path", "not_found", 404),
    "too long": BadPut(named("a" * 129), "name", "is not a name: 1 to 128"),
    "a verb": BadPut(named("a/pin"), "name", "must not end in /pin"),
    "the base's": BadPut(named("base"), "name", "the name of the base model", "name_taken", 409),
    "an alias's": BadPut(named(ALIAS), "name", "the name of an alias", "name_taken", 409),
}

BAD_BODIES: dict[str, BadPut] = {
    "an unknown key": BadPut(
        lambda workshop: Put(str(workshop.good), {"sauce": 1}),
        "sauce",
        "not a known field",
        "unknown_parameter",
    ),
    "no source": BadPut(sent(b"{}"), "source", "is required", "missing_required_parameter"),
    "a source that is no text": BadPut(
        sent(b'{"source": ["a"]}'), "source", "a valid string", None
    ),
    "a pin to nowhere": BadPut(
        lambda workshop: Put(str(workshop.good), {"pin": "disk"}),
        "pin",
        "'host' or 'device'",
        None,
    ),
    "no JSON": BadPut(sent(b"{source}"), None, "not valid JSON", None),
    "a list": BadPut(sent(b"[]"), None, "must be a JSON object", None),
}

"""Where an adapter may come from: what an admin writes, held against what the operator allows.

The allow-list is the guard against a server that is made to read or call what it should not
(SSRF, path traversal). An address is compared as httpx reads it, since httpx then calls it.
Which machine an allowed host name leads to is for that host's owner to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import httpx

from ...lora.errors import AdapterError

SourceKind = Literal["directory", "upload", "http", "hub", "blob"]
OnProgress = Callable[[int, int | None], None]
"""Called with the bytes that are here, and with how many there will be where that is known."""

HUB_SCHEME = "hf://"
MAX_LOCATION_LENGTH = 4096

# The hub's own rule: https://huggingface.co/docs/huggingface_hub (validate_repo_id).
_HUB_WORD = re.compile(r"(?!.*(?:--|\.\.))\w(?:[\w.-]{0,94}\w)?", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)\w[\w./-]{0,199}", re.ASCII)
_FORMS = "an absolute path, file://, http(s)://, hf://org/name[@revision] or org/name"


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """Where an adapter was had from: a path, a URL, ``hf://org/name[@revision]``, a file's name.

    A ``blob`` is an archive of the fleet's store, by its sha256; no admin can name one.
    """

    kind: SourceKind
    location: str


@dataclass(frozen=True, slots=True)
class SourcePolicy:
    """What an admin may name as a source, and how much of it and how long (seconds) is taken.

    ``roots`` are directories, ``prefixes`` begin URLs (``https://host/path``) and hub ids
    (``hf://``, ``hf://org``, ``hf://org/name``). ``blobs`` is where archives of the fleet lie.
    Raises ValueError for one that can't be meant.
    """

    roots: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    max_bytes: int = 16 << 30
    timeout: float = 600.0
    blobs: str | None = None

    def __post_init__(self) -> None:
        for root in self.roots:
            if not Path(root).is_absolute():
                raise ValueError(f"adapter root {root!r} is not an absolute path")
        for prefix in self.prefixes:
            _check_prefix(prefix)

    def for_operator(self, source: AdapterSource) -> SourcePolicy:
        """The policy under which ``source`` is fetched where the operator named it."""
        if source.kind == "directory":
            return replace(self, roots=("/",))
        if source.kind == "hub":
            return replace(self, prefixes=(source.location.partition("@")[0],))
        return self


@dataclass(frozen=True, slots=True)
class HubId:
    """A repository of the hub; ``revision`` None is its main branch."""

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubId:
        """Parse ``[hf://]org/name[@revision]``; raises ValueError."""
        name, at, revision = text.removeprefix(HUB_SCHEME).partition("@")
        words = name.split("/")
        if len(words) != 2 or not all(_HUB_WORD.fullmatch(word) for word in words):
            raise ValueError("is not org/name, a hub id")
        if at and not _REVISION.fullmatch(revision):
            raise ValueError("does not name a branch, tag or commit after @")
        return cls(name, revision if at else None)

    def __str__(self) -> str:
        return f"{HUB_SCHEME}{self.name}" + (f"@{self.revision}" if self.revision else "")


def parse_source(text: str, policy: SourcePolicy) -> AdapterSource:
    """What an admin wrote as a source; raises AdapterError that says what is allowed.

    Looks at the file system, to resolve links.
    """
    if not text or len(text) > MAX_LOCATION_LENGTH or not text.isprintable():
        raise AdapterError("source", f"must be {_FORMS}, in {MAX_LOCATION_LENGTH} characters")
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    if text.startswith("/") or scheme == "file":
        path = text if text.startswith("/") else _path_of(text)
        check_directory(path, policy)
        return AdapterSource("directory", path)
    if scheme in ("http", "https"):
        return AdapterSource("http", str(parse_url(text, policy)))
    if scheme not in ("", "hf"):
        raise AdapterError("source", f"{scheme}:// is not read; it may be {_FORMS}")
    return AdapterSource("hub", str(parse_hub_id(text, policy)))


def operator_source(path_or_id: str) -> AdapterSource:
    """A source from the command line: a directory anywhere, or a hub id; raises AdapterError."""
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return AdapterSource("directory", str(path.absolute()))
    if path.exists():
        raise AdapterError("path", f"{path_or_id} is a file; a directory is needed")
    try:
        return AdapterSource("hub", str(HubId.parse(path_or_id)))
    except ValueError:
        raise AdapterError("path", f"there is no directory {path_or_id}") from None


def check_directory(path: str, policy: SourcePolicy) -> Path:
    """The directory, its links resolved, if it lies under one of the roots; raises AdapterError."""
    if ".." in path.split("/"):
        raise AdapterError("source", f"{path} must not hold '..'")
    try:
        real = Path(path).resolve()
        inside = any(real.is_relative_to(Path(root).resolve()) for root in policy.roots)
    except (OSError, RuntimeError, ValueError) as error:
        raise AdapterError("source", f"{path} can't be resolved: {error}") from None
    if not inside:
        allowed = _listed(policy.roots) or "none, as the server has no --adapter-root"
        raise AdapterError("source", f"{path} is under no allowed directory; allowed: {allowed}")
    if not real.is_dir():
        raise AdapterError("source", f"{path} is not a directory")
    return real


def parse_url(text: str | httpx.URL, policy: SourcePolicy) -> httpx.URL:
    """The URL if one of the prefixes allows it; raises AdapterError."""
    try:
        url = _read_url(text)
    except ValueError as error:
        raise AdapterError("source", f"{shown_url(text)} {error}") from None
    prefixes = [prefix for prefix in policy.prefixes if not prefix.startswith(HUB_SCHEME)]
    if not any(_is_under(url, _read_url(prefix)) for prefix in prefixes):
        allowed = _listed(prefixes) or "none, as the server has no --adapter-source for it"
        raise AdapterError("source", f"{shown_url(url)} is not allowed; allowed: {allowed}")
    return url


def parse_hub_id(text: str, policy: SourcePolicy) -> HubId:
    """The hub id if one of the prefixes allows it; raises AdapterError."""
    try:
        hub_id = HubId.parse(text)
    except ValueError as error:
        raise AdapterError("source", f"{text} {error}; it may be {_FORMS}") from None
    prefixes = [prefix for prefix in policy.prefixes if prefix.startswith(HUB_SCHEME)]
    words = hub_id.name.split("/")
    if not any(words[: len(allowed)] == allowed for allowed in map(_hub_words, prefixes)):
        allowed = _listed(prefixes) or "none, as the server has no --adapter-source hf://…"
        raise AdapterError("source", f"{hub_id} is not allowed; allowed: {allowed}")
    return hub_id


def shown_url(url: str | httpx.URL) -> str:
    """A URL for messages and logs: without its query, which may hold a signature, or user info."""
    return re.sub(r"//[^/@]*@", "//", str(url).partition("?")[0].partition("#")[0])


def shown_location(location: str) -> str:
    """A source for everyone's eyes: a URL goes without its query, which may hold a signature."""
    return shown_url(location) if location.startswith(("http://", "https://")) else location


def _read_url(text: str | httpx.URL) -> httpx.URL:
    """Parse a URL as httpx will call it; raises ValueError for what could be read in two ways."""
    if "\\" in str(text) or not str(text).isprintable() or " " in str(text):
        raise ValueError("must hold no spaces and no backslashes")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("is not http(s)://host/path")
    if url.userinfo or "@" in _authority(str(text)):
        raise ValueError("must hold no user name or password")
    if url.fragment or "#" in str(text):
        raise ValueError("must hold no fragment (#)")
    # httpx resolves dots, and a server decodes once more: neither is to change the path.
    for segment in str(text).partition("?")[0].split("/")[3:]:
        plain = unquote(segment)
        if plain in (".", "..") or "/" in plain or "\\" in plain or not plain.isprintable():
            raise ValueError("must hold no '..' and no encoded slash in its path")
    return url


def _authority(text: str) -> str:
    return re.split(r"[/?#]", text.partition("://")[2], maxsplit=1)[0]


def _is_under(url: httpx.URL, prefix: httpx.URL) -> bool:
    """Whether scheme, host and port are equal and the path goes on from the prefix's segments."""
    if (url.scheme, url.raw_host, url.port) != (prefix.scheme, prefix.raw_host, prefix.port):
        return False
    allowed = _segments(prefix)
    return _segments(url)[: len(allowed)] == allowed


def _segments(url: httpx.URL) -> list[str]:
    """A path's segments, decoded; the slash at the end is none."""
    path = url.raw_path.decode("ascii").partition("?")[0].removesuffix("/")
    return [unquote(segment) for segment in path.split("/")]


def _hub_words(prefix: str) -> list[str]:
    rest = prefix.removeprefix(HUB_SCHEME).rstrip("/")
    return rest.split("/") if rest else []


def _check_prefix(prefix: str) -> None:
    if prefix.startswith(HUB_SCHEME):
        words = _hub_words(prefix)
        if len(words) > 2 or not all(_HUB_WORD.fullmatch(word) for word in words):
            raise ValueError(f"adapter source {prefix!r} is not hf://, hf://org or hf://org/name")
        return
    try:
        url = _read_url(prefix)
    except ValueError as error:
        raise ValueError(f"adapter source {prefix!r} {error}") from None
    if url.query or "?" in prefix:
        raise ValueError(f"adapter source {prefix!r} must hold no query (?)")


def _path_of(url: str) -> str:
    """The path of a ``file://`` URL."""
    host, slash, path = url[len("file://") :].partition("/")
    path = unquote(slash + path)
    if host not in ("", "localhost") or not slash or not path.isprintable():
        raise AdapterError("source", "a file:// URL must be file:///absolute/path")
    return path


def _listed(allowed: Iterable[str]) -> str:
    return ", ".join(allowed)

"""The state directory: one owner, one good registry at any moment, nothing left lying about."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from branchline.engine.adapter_format import AdapterFacts
from branchline.server.adapters import state as adapter_state
from branchline.server.adapters.registry import AdapterRecord, AliasRecord, Registry
from branchline.server.adapters.sources import AdapterSource
from branchline.server.adapters.state import StateDirectory, StateError, open_state
from branchline.server.aliases import AliasTarget
from branchline.server.catalog import AdapterVersion

ONE, TWO, TEXT = "1" * 64, "2" * 64, "e" * 64


def version(number: int, digest: str, text_digest: str | None = None) -> AdapterVersion:
    facts = AdapterFacts(
        digest=digest, rank=8, modules=("q_proj",), device_bytes=2, file_bytes=1, vocab_size=99
    )
    source = AdapterSource("http", "https://host/a?signature=x")
    return AdapterVersion(number, digest, text_digest, source, 1.5, facts)


OLD = Registry().with_adapter("a", AdapterRecord.empty().with_version(version(1, ONE)))
NEW = (
    OLD.with_adapter(
        "a",
        AdapterRecord(
            versions=(version(1, ONE), version(2, TWO, TEXT)),
            history=(1, 2),
            next_number=3,
            pin="device",
        ),
    )
    .with_adapter("org/b", AdapterRecord.empty().with_version(version(1, ONE)))
    .with_alias(
        "live",
        AliasRecord(
            targets=(AliasTarget("a", 1, 10), AliasTarget("a", None, 90)),
            created=2.0,
            previous=(AliasTarget("org/b"),),
        ),
    )
)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    directory = StateDirectory(tmp_path / "state")
    yield directory
    directory.close()


def files(state: StateDirectory) -> set[str]:
    return {str(p.relative_to(state.path)) for p in state.path.rglob("*") if p.is_file()}


def test_a_registry_comes_back_as_it_was(state: StateDirectory) -> None:
    assert state.read() == Registry()
    for registry in (OLD, NEW, Registry()):
        state.write(registry)
        assert state.read() == registry
    assert files(state) == {"lock", "registry.json"}
    assert (state.path / "registry.json").stat().st_mode & 0o077 == 0, "it may hold signatures"


def test_two_servers_cannot_share_one(state: StateDirectory) -> None:
    with pytest.raises(StateError, match="another server is using it") as caught:
        StateDirectory(state.path)
    assert "\n" not in str(caught.value)
    assert str(state.path) in str(caught.value)
    state.close()
    StateDirectory(state.path).close()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match=r"state directory .*/file/state"):
        StateDirectory(tmp_path / "file" / "state")


def test_without_a_path_it_is_gone_at_the_end(tmp_path: Path) -> None:
    with open_state(None) as state:
        state.write(OLD)
        assert not state.keeps_uploads
    assert not state.path.exists()
    with open_state(str(tmp_path / "kept")) as state:
        state.write(OLD)
    with open_state(str(tmp_path / "kept")) as state:
        assert state.read() == OLD


def edited(change: Callable[[dict[str, Any]], object]) -> bytes:
    """A good registry, changed."""
    document = json.loads(json.dumps({"format": 1, "adapters": {}, "aliases": {}}))
    facts = {"digest": ONE, "rank": 8, "modules": [], "device_bytes": 2, "file_bytes": 1}
    source = {"kind": "directory", "location": "/x"}
    entry = {"number": 1, "digest": ONE, "text_digest": None, "source": source, "created": 1}
    entry["facts"] = facts
    document["adapters"]["a"] = {"versions": [entry], "history": [1], "next_number": 2}
    document["aliases"]["live"] = {"targets": [{"adapter": "a"}], "created": 1}
    change(document)
    return json.dumps(document).encode()


def test_an_edited_registry_is_good_before_the_edit(state: StateDirectory) -> None:
    (state.path / "registry.json").write_bytes(edited(lambda document: None))
    assert state.read().adapters["a"].current.digest == ONE


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"[]", "object"),
        (b"\xff\xfe", "malformed"),
        (edited(lambda d: d.update(format=2)), "format 2; this server reads format 1"),
        (edited(lambda d: d.update(extra=1)), "extra"),
        (edited(lambda d: d["adapters"]["a"].update(history=[])), "no current version"),
        (edited(lambda d: d["adapters"]["a"].update(history=[2])), "no current version"),
        (edited(lambda d: d["adapters"]["a"].update(versions=[])), "no current version"),
        (edited(lambda d: d["adapters"]["a"].update(next_number=1)), "bad version numbers"),
        (edited(lambda d: d["adapters"]["a"].update(pin="moon")), "moon"),
        (edited(lambda d: d["adapters"]["a"]["versions"][0].update(digest="../../x")), "regex"),
        (edited(lambda d: d["adapters"]["a"]["versions"][0].update(digest=TWO)), "two digests"),
        (edited(lambda d: d["adapters"]["a"]["versions"][0].update(text_digest="..")), "regex"),
        (edited(lambda d: d["adapters"].update({"../x": d["adapters"]["a"]})), "not a name"),
        (edited(lambda d: d["aliases"].update({"a": d["aliases"]["live"]})), "both"),
        (edited(lambda d: d["adapters"].pop("a")), "points at 'a', which is not there"),
        (
            edited(lambda d: d["aliases"]["live"]["targets"][0].update(version=7)),
            "points at 'a', which is not there",
        ),
        (edited(lambda d: d["aliases"]["live"].update(targets=[])), "targets"),
    ],
)
def test_a_registry_that_is_no_good_is_one_line(
    state: StateDirectory, content: bytes, words: str
) -> None:
    (state.path / "registry.json").write_bytes(content)
    with pytest.raises(StateError) as caught:
        state.read()
    message = str(caught.value)
    assert message.startswith(f"{state.path}/registry.json is no good: ")
    assert words in message
    assert "\n" not in message


STEPS = ("open", "fsync", "replace", "fsync")


@pytest.mark.parametrize("step", range(1, len(STEPS) + 1))
def test_a_write_that_fails_leaves_a_whole_registry(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    state.write(OLD)
    calls: list[str] = []

    def failing(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) == step:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("open", "fsync", "replace"):
            patch.setattr(adapter_state.os, name, failing(name))
        if step == len(STEPS):
            state.write(NEW)
        else:
            with pytest.raises(StateError, match=r"registry\.json can't be written: No space left"):
                state.write(NEW)
    assert state.read() == (NEW if step == len(STEPS) else OLD), "as it says"
    assert files(state) == {"lock", "registry.json"}, "and nothing else"
    state.write(NEW)
    assert state.read() == NEW


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_kill_at_any_step_of_a_write_leaves_a_whole_registry(tmp_path: Path, step: int) -> None:
    with open_state(str(tmp_path)) as state:
        state.write(OLD)
    if (child := os.fork()) == 0:
        _write_and_die(tmp_path, step)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    with open_state(str(tmp_path)) as state:
        found = state.read()
        assert found == (OLD if step <= 2 else NEW), "replaced in one step"
        state.tidy(found)
        assert files(state) == {"lock", "registry.json"}


def _write_and_die(path: Path, step: int) -> None:
    """In a process of its own: write a registry, and be gone before that step.

    They are: the bytes are on the disk, the file is in its place, its place is on the disk, done.
    """
    num_calls = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal num_calls
            num_calls += 1
            if num_calls == step:
                os._exit(9)
            return real(*arguments, **options)

        return call

    try:
        state = StateDirectory(path)
        adapter_state.os.fsync = dying(os.fsync)
        adapter_state.os.replace = dying(os.replace)
        state.write(NEW)
    finally:
        os._exit(9)


def test_what_the_registry_does_not_name_is_dropped(state: StateDirectory) -> None:
    def put(path: Path, *names: str) -> None:
        path.mkdir(parents=True, exist_ok=True)
        for name in names:
            (path / name).write_text("x")

    put(state.adapters, f"{ONE}.adapter", f"{TWO}.adapter", f"{TEXT}.adapter", "x.tmp")
    for digest in (ONE, TEXT):
        put(state.text(digest), "tokenizer.json")
        put(state.upload(digest), "adapter_config.json")
    put(state.new_work(), "half")
    outside = state.path.parent / "outside"
    put(outside, "precious")
    (state.path / "uploads" / "link").symlink_to(outside)
    state.tidy(NEW)
    assert files(state) == {
        "lock",
        f"adapters/{ONE}.adapter",
        f"adapters/{TWO}.adapter",
        f"texts/{TEXT}/tokenizer.json",
        f"uploads/{ONE}/adapter_config.json",
    }
    assert (outside / "precious").exists()

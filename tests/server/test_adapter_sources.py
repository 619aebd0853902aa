"""What an admin may write as a source, and what is refused with a word on what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from branchline.lora.errors import AdapterError
from branchline.server.adapters.sources import (
    AdapterSource,
    SourcePolicy,
    operator_source,
    parse_source,
    shown_url,
)

POLICY = SourcePolicy(
    prefixes=(
        "https://good.example/adapters",
        "http://other.example:8080/",
        "hf://org",
        "hf://lone/repo",
    )
)


@pytest.mark.parametrize(
    ("text", "kind", "location"),
    [
        ("https://good.example/adapters/a.zip", "http", "https://good.example/adapters/a.zip"),
        ("https://GOOD.example:443/adapters/a/", "http", "https://good.example/adapters/a/"),
        ("https://good.example/adapters?sig=1", "http", "https://good.example/adapters?sig=1"),
        ("http://other.example:8080/x", "http", "http://other.example:8080/x"),
        ("org/name", "hub", "hf://org/name"),
        ("hf://org/name@v1.0", "hub", "hf://org/name@v1.0"),
        ("hf://lone/repo", "hub", "hf://lone/repo"),
    ],
)
def test_what_is_allowed(text: str, kind: str, location: str) -> None:
    source = parse_source(text, POLICY)
    assert (source.kind, source.location) == (kind, location)


@pytest.mark.parametrize(
    "text",
    [
        "http://good.example/adapters/a.zip",
        "https://good.example/a.zip",
        "https://good.example/adapters2/a.zip",
        "https://good.example/Adapters/a.zip",
        "https://good.example:8443/adapters/a.zip",
        "https://good.example.evil.com/adapters/a.zip",
        "https://good.example@evil.com/adapters/a.zip",
        "https://user:word@good.example/adapters/a.zip",
        "https://@good.example/adapters/a.zip",
        "https://good.example\\@evil.com/adapters/a.zip",
        "https://good.example/adapters/../secret.zip",
        "https://good.example/adapters/%2e%2e/secret.zip",
        "https://good.example/adapters/%2E%2e%2Fsecret.zip",
        "https://good.example/adapters/a.zip#x",
        "https://good.example/adapters/a b.zip",
        "https:///adapters/a.zip",
        "https://[::1/adapters/a.zip",
        "http://169.254.169.254/latest/meta-data",
        "http://other.example/x",
        "http://other.example:0x1f90/x",
        "ftp://good.example/adapters/a.zip",
        "hf://org2/name",
        "hf://lone/other",
        "hf://lone/repo2",
        "hf://org/na..me",
        "hf://org/../name",
        "hf://org/name@../../x",
        "hf://org/name@",
        "org/name/more",
        "org",
        "./adapter",
        "~/adapter",
        "",
        "https://good.example/adapters/\n",
        "https://good.example/adapters/" + "a" * 5000,
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(AdapterError) as refused:
        parse_source(text, POLICY)
    assert refused.value.field == "source"
    assert refused.value.message


def test_a_refusal_says_what_is_allowed() -> None:
    with pytest.raises(AdapterError, match=r"allowed: https://good\.example/adapters, http://oth"):
        parse_source("https://evil.example/a.zip?key=secret", POLICY)
    with pytest.raises(AdapterError, match="allowed: hf://org, hf://lone/repo"):
        parse_source("evil/name", POLICY)
    with pytest.raises(AdapterError, match="has no --adapter-root"):
        parse_source("/etc", POLICY)
    with pytest.raises(AdapterError, match="has no --adapter-source"):
        parse_source("https://good.example/a.zip", SourcePolicy())


def test_signatures_stay_out_of_messages() -> None:
    assert shown_url("https://user:pw@host/a?sig=1#x") == "https://host/a"
    with pytest.raises(AdapterError) as refused:
        parse_source("https://user:pw@good.example/adapters?sig=1", POLICY)
    assert "pw" not in str(refused.value)
    assert "sig" not in str(refused.value)


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    (tmp_path / "root" / "adapter").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "root2").mkdir()
    (tmp_path / "root" / "inner").symlink_to("adapter")
    (tmp_path / "root" / "escape").symlink_to("../outside")
    (tmp_path / "root" / "loop").symlink_to("loop")
    (tmp_path / "root" / "file").write_text("")
    (tmp_path / "alias").symlink_to("root")
    return tmp_path


@pytest.mark.parametrize("name", ["root/adapter", "root/inner", "root", "alias/adapter"])
def test_directories_under_a_root(roots: Path, name: str) -> None:
    policy = SourcePolicy(roots=(f"{roots}/root",))
    for text in (f"{roots}/{name}", f"file://{roots}/{name}", f"file://localhost{roots}/{name}"):
        assert parse_source(text, policy) == AdapterSource("directory", f"{roots}/{name}")


def test_a_root_may_itself_be_a_link(roots: Path) -> None:
    policy = SourcePolicy(roots=(f"{roots}/alias",))
    assert parse_source(f"{roots}/root/adapter", policy).kind == "directory"


@pytest.mark.parametrize(
    "name",
    [
        "outside",
        "root2",
        "root/escape",
        "root/../outside",
        "root/adapter/../../root/adapter",
        "root/loop",
        "root/file",
        "root/absent",
        "",
    ],
)
def test_directories_that_are_refused(roots: Path, name: str) -> None:
    policy = SourcePolicy(roots=(f"{roots}/root",))
    for text in (f"{roots}/{name}", f"file://{roots}/{name}"):
        with pytest.raises(AdapterError) as refused:
            parse_source(text, policy)
        assert refused.value.field == "source"


@pytest.mark.parametrize("url", ["file://evil/root", "file://", "file:///root/%00", "file:root"])
def test_file_urls_of_no_path_here(url: str) -> None:
    with pytest.raises(AdapterError):
        parse_source(url, SourcePolicy(roots=("/",)))


@pytest.mark.parametrize(
    "prefix",
    [
        "good.example/adapters",
        "ftp://good.example/",
        "https://",
        "https://user@good.example/",
        "https://good.example/?x=1",
        "https://good.example/#x",
        "https://good.example/a/../b",
        "hf://a/b/c",
        "hf://a/b@main",
        "",
    ],
)
def test_a_prefix_that_can_not_be_meant(prefix: str) -> None:
    with pytest.raises(ValueError, match="adapter source"):
        SourcePolicy(prefixes=(prefix,))


def test_a_root_must_be_absolute() -> None:
    with pytest.raises(ValueError, match="not an absolute path"):
        SourcePolicy(roots=("adapters",))


@pytest.mark.parametrize("prefix", ["hf://", "hf://org", "hf://org/", "hf://org/name"])
def test_hub_prefixes(prefix: str) -> None:
    assert parse_source("org/name", SourcePolicy(prefixes=(prefix,))).kind == "hub"


def test_the_operator_may_name_what_an_admin_may_not(
    roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(roots)
    source = operator_source("outside")
    assert source == AdapterSource("directory", f"{roots}/outside")
    with pytest.raises(AdapterError):
        parse_source(source.location, POLICY)
    assert parse_source(source.location, POLICY.for_operator(source)) == source
    hub = operator_source("any/name@main")
    assert (
        parse_source(hub.location, POLICY.for_operator(hub))
        == hub
        == AdapterSource("hub", "hf://any/name@main")
    )


@pytest.mark.parametrize("text", ["root/file", "absent", "/absent", "a/b/c", "https://x.example/a"])
def test_what_the_operator_can_not_mean(
    roots: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(roots)
    with pytest.raises(AdapterError) as refused:
        operator_source(text)
    assert refused.value.field == "path"

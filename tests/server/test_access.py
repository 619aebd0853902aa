"""Flags of access: tenants, weights and secrets, in and never out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from branchline.server.access import Tenant, digest_key

from .conftest import access
from .test_config import branchline, parse, refuse

SECRET = "sk-very-secret"
VARIABLES = ("BRANCHLINE_API_KEY", "BRANCHLINE_ADMIN_KEY", "BRANCHLINE_FLEET_SECRET")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_keys_lead_to_tenants() -> None:
    who = access(
        tenant=("acme=k1", "acme=k=2", "beta co=k3"),
        tenant_weight=("acme=2.5", "key-2=0.5"),
        api_key=("k4", "k5", "k4"),
    )
    owners = {key: who.tenant_of(key.encode()) for key in ("k1", "k=2", "k3", "k4", "k5")}
    assert owners == {
        "k1": Tenant("acme", 2.5),
        "k=2": Tenant("acme", 2.5),
        "k3": Tenant("beta co"),
        "k4": Tenant("key-1"),
        "k5": Tenant("key-2", 0.5),
    }
    assert who.tenant_of(b"k6") is None
    assert who.tenant_names == ("acme", "beta co", "key-1", "key-2")
    assert who.asks_for_keys


def test_without_keys_there_is_one_tenant() -> None:
    who = access(tenant_weight=("default=3",))
    assert not who.asks_for_keys
    assert who.tenant_names == ("default",)
    assert who.tenant("default").weight == 3


def test_variables_stand_beside_and_behind_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRANCHLINE_API_KEY", "k2, k3,k1")
    monkeypatch.setenv("BRANCHLINE_ADMIN_KEY", "a2")
    monkeypatch.setenv("BRANCHLINE_FLEET_SECRET", "s2")
    who = access(api_key=("k1",), admin_key=("a1",))
    assert [key.digest for key in who.keys] == [digest_key(k) for k in ("k1", "k2", "k3")]
    assert who.admin_keys == (digest_key("a1"), digest_key("a2"))
    assert who.fleet_secret == digest_key("s2")
    assert access(fleet_secret="s1").fleet_secret == digest_key("s1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tenant": (SECRET,)}, ("--tenant", "NAME=KEY")),
        ({"tenant": (f"={SECRET}",)}, ("--tenant", "NAME=KEY")),
        ({"tenant": (f"{SECRET}=",)}, ("--tenant", "NAME=KEY")),
        ({"tenant": (f"né={SECRET}",)}, ("--tenant", "printable ASCII")),
        ({"tenant": ("x" * 129 + f"={SECRET}",)}, ("--tenant", "128")),
        ({"tenant": (f"a={SECRET}", f"b={SECRET}")}, ("--tenant", "'a'", "'b'")),
        ({"tenant": (f"a={SECRET}",), "api_key": (SECRET,)}, ("--api-key", "'a'")),
        ({"tenant": ("key-1=x",), "api_key": (SECRET,)}, ("--tenant", "key-1", "--api-key")),
        ({"api_key": (SECRET, " ")}, ("--api-key", "empty")),
        ({"admin_key": ("",)}, ("--admin-key", "empty")),
        ({"fleet_secret": " "}, ("--fleet-secret", "empty")),
        ({"api_key": (SECRET,), "admin_key": (SECRET,)}, ("--admin-key", "--api-key")),
        ({"tenant": (f"a={SECRET}",), "fleet_secret": SECRET}, ("--fleet-secret", "--tenant")),
        ({"admin_key": (SECRET,), "fleet_secret": SECRET}, ("--admin-key", "--fleet-secret")),
        ({"tenant_weight": (SECRET,)}, ("--tenant-weight", "NAME=WEIGHT")),
        ({"tenant_weight": ("a=1",)}, ("--tenant-weight", "'a'", "default")),
        ({"tenant_weight": ("default=1", "default=1")}, ("--tenant-weight", "two weights")),
        *(
            ({"tenant_weight": (f"default={value}",)}, ("--tenant-weight", "0.001", "1000"))
            for value in ("0", "-1", "nan", "inf", "1e-9", "1001", "", SECRET)
        ),
    ],
)
def test_mistakes_are_named_and_secrets_are_not(
    options: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match="--") as caught:
        access(**options)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert SECRET not in message


def test_what_is_kept_shows_no_secret_nor_its_digest() -> None:
    who = access(tenant=(f"a={SECRET}",), admin_key=("a" + SECRET,), fleet_secret="f" + SECRET)
    assert SECRET not in repr(who)
    assert str(digest_key(SECRET)) not in repr(who)
    assert str(digest_key("f" + SECRET)) not in repr(who)


@pytest.mark.parametrize(
    "arguments",
    [
        ("m", "--tenant", "acme", SECRET),
        ("m", SECRET),
        ("m", "--tenant", SECRET),
        ("m", "--tennant", f"acme={SECRET}"),
        ("m", f"--tennant=acme={SECRET}"),
        ("m", "--tenant-weight", f"acme={SECRET}"),
        ("m", "--tenant", f"acme={SECRET}", "--port", "x"),
    ],
)
def test_the_command_line_repeats_no_secret(arguments: tuple[str, ...]) -> None:
    done = branchline("serve", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("branchline: error: ")
    assert SECRET not in done.stdout + done.stderr


def test_the_flags_reach_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse(
        monkeypatch,
        *("m", "--tenant", "a=k1", "--tenant", "a=k2", "--tenant-weight", "a=4"),
        *("--fleet-secret", "s", "--admin-key", "k3", "--admin-key", "k4"),
    )
    assert config.access == access(
        tenant=("a=k1", "a=k2"), tenant_weight=("a=4",), fleet_secret="s", admin_key=("k3", "k4")
    )


def test_a_file_gives_tenants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "model: m\ntenant: {acme: [k1, k2], beta: k3}\ntenant-weight: {acme: 2, beta: 0.5}\n"
        "fleet-secret: s\nadmin-key: [k4, k5]\n"
    )
    config = parse(monkeypatch, "--config", str(file))
    assert config.access == access(
        tenant=("acme=k1", "acme=k2", "beta=k3"),
        tenant_weight=("acme=2", "beta=0.5"),
        fleet_secret="s",
        admin_key=("k4", "k5"),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"tenant: {{acme: *{SECRET}}}", ("YAML", "line 1")),
        (f"tenant: {{acme: '{SECRET}", ("YAML", "line 1")),
        ("tenant: {acme: 0123}", ("tenant", "strings")),
        (f"tenant: {{acme: {{x: {SECRET}}}}}", ("tenant", "strings")),
        (f"tenant: [{SECRET}]", ("--tenant", "NAME=KEY")),
        ("tenant: {acme: []}", ("tenant", "'acme'", "empty")),
        ("tenant: {}", ("tenant", "empty")),
        ("tenant: []", ("tenant", "empty")),
        ("api-key: []", ("api-key", "empty")),
        ("admin-key: []", ("admin-key", "empty")),
        ("tenant-weight: {default: true}", ("tenant-weight", "numbers")),
        ("fleet-secret: 0123", ("fleet-secret", "quote")),
        ("fleet-secret:", ("fleet-secret", "quote")),
    ],
)
def test_mistakes_of_a_file_are_named_and_secrets_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    message = refuse(monkeypatch, "m", "--config", str(file))
    assert all(word in message for word in words), message
    assert SECRET not in message

"""The admin API of adapters over HTTP: its answers, its refusals, its description."""

from __future__ import annotations

import io
import tarfile
from typing import Any
from urllib.parse import quote

import pytest
from fake_manager import CREATED

from branchline.engine.errors import EngineDeadError
from branchline.lora.errors import AdapterError
from branchline.server.text.tokenizer import Tokenizer

from .adapter_house import ADMIN, USER, adapter_house

NAMES = ("legal", "acme/legal", "a/b/c", "v1.2:x@y-z_1", "pin", "versions")


async def test_an_adapter_is_put_replaced_and_found(tokenizer: Tokenizer) -> None:
    async with adapter_house(tokenizer) as house:
        made = await house.put("legal", "one", pin="host")
        assert made.status_code == 201, made.text
        assert made.json()["changed"] is True
        entry = made.json()["adapter"]
        assert entry == {
            "name": "legal",
            "version": 1,
            "versions": [1],
            "digest": entry["digest"],
            "rank": 8,
            "modules": ["q_proj", "v_proj"],
            "bytes": {"device": 2_000_000, "host": 1_500_000, "disk": 1_500_000},
            "tier": "disk",
            "is_loading": False,
            "pin": "host",
            "leases": 0,
            "last_used": None,
            "loads": 3,
            "evictions": 0,
            "error": None,
            "source": {"kind": "directory", "location": str(house.root / "one")},
            "created": CREATED + 1,
            "aliases": [],
        }
        assert (await house.client.get("/admin/adapters/legal")).json() == entry
        same = await house.put("legal", "one")
        assert (same.status_code, same.json()["changed"]) == (200, False)
        other = await house.put("legal", "two")
        assert (other.status_code, other.json()["changed"]) == (200, True)
        assert other.json()["adapter"]["version"] == 2
        chat = await house.client.get("/v1/models/legal", headers=USER)
        assert chat.json()["root"] == str(house.root / "two")


@pytest.mark.parametrize("name", NAMES)
async def test_names_with_slashes_and_odd_characters(tokenizer: Tokenizer, name: str) -> None:
    """A verb at the end of a path is one for POST only, so a name may end like one."""
    async with adapter_house(tokenizer) as house:
        path = f"/admin/adapters/{quote(name)}"
        assert (await house.client.put(path, json={"source": house.source("one")})).is_success
        assert (await house.client.get(path)).json()["name"] == name
        pinned = await house.client.post(f"{path}/pin", json={"tier": "host"})
        assert (pinned.json()["name"], pinned.json()["pin"]) == (name, "host")
        versions = (await house.client.get(f"{path}/versions")).json()
        assert (versions["name"], len(versions["versions"])) == (name, 1)
        assert (await house.client.delete(path)).json()["name"] == name
        assert (await house.client.get(path)).status_code == 404


async def test_the_list_is_paged_by_name(tokenizer: Tokenizer, errors_of: Any) -> None:
    async with adapter_house(tokenizer) as house:
        for name in ("c", "a", "e", "b", "d"):
            await house.put(name, "one")
        whole = (await house.client.get("/admin/adapters")).json()
        assert [entry["name"] for entry in whole["adapters"]] == ["a", "b", "c", "d", "e"]
        assert (whole["has_more"], whole["last"]) == (False, "e")

        first = (await house.client.get("/admin/adapters?limit=2")).json()
        assert ([e["name"] for e in first["adapters"]], first["last"]) == (["a", "b"], "b")
        assert first["has_more"]
        await house.client.delete("/admin/adapters/b")
        second = (await house.client.get("/admin/adapters?limit=2&after=b")).json()
        assert [entry["name"] for entry in second["adapters"]] == ["c", "d"], "b is gone, no matter"
        last = (await house.client.get("/admin/adapters?limit=2&after=d")).json()
        assert ([e["name"] for e in last["adapters"]], last["has_more"]) == (["e"], False)
        past = (await house.client.get("/admin/adapters?after=z")).json()
        assert past == {"adapters": [], "has_more": False, "last": None}
        for query in ("limit=0", "limit=1001", "limit=x"):
            error = errors_of(await house.client.get(f"/admin/adapters?{query}"), 400)
            assert error["param"] == "limit"


async def test_tiers(tokenizer: Tokenizer, errors_of: Any) -> None:
    async with adapter_house(tokenizer) as house:
        await house.put("legal", "one")
        loaded = await house.post("legal/load", {"tier": "host"})
        assert loaded.json()["tier"] == "host"
        assert (await house.client.post("/admin/adapters/legal/load")).json()["tier"] == "device"
        assert (await house.post("legal/evict", {"tier": "device"})).json()["tier"] == "host"
        assert (await house.post("legal/pin", {})).json()["pin"] == "device"
        error = errors_of(await house.post("legal/evict", {"tier": "host"}), 409)
        assert error["code"] == "adapter_pinned"
        assert (await house.post("legal/unpin", {})).json()["pin"] is None
        for verb in ("pin", "load", "evict"):
            bad = errors_of(await house.post(f"legal/{verb}", {"tier": "disk"}), 400)
            assert bad["param"] == "tier"
            unknown = errors_of(await house.post(f"legal/{verb}", {"tear": "host"}), 400)
            assert (unknown["param"], unknown["code"]) == ("tear", "unknown_parameter")


async def test_a_removal_says_what_it_freed_and_who_holds_it(
    tokenizer: Tokenizer, errors_of: Any
) -> None:
    async with adapter_house(tokenizer) as house:
        await house.put("legal", "one")
        await house.put("held", "two")
        house.adapters.num_requests["held"] = 3
        done = await house.client.delete("/admin/adapters/legal?wait=2.5")
        assert done.status_code == 200
        assert done.json() == {
            "name": "legal",
            "removed": True,
            "done": True,
            "requests": 0,
            "freed": {"device": 2_000_000, "host": 1_500_000},
        }
        held = await house.client.delete("/admin/adapters/held")
        assert held.status_code == 202
        assert (held.json()["done"], held.json()["requests"]) == (False, 3)
        assert held.json()["freed"] is None
        assert house.adapters.waits == [2.5, 0]
        for wait in ("-1", "601", "nan", "inf", "soon"):
            error = errors_of(await house.client.delete(f"/admin/adapters/x?wait={wait}"), 400)
            assert error["param"] == "wait"


async def test_versions_and_the_way_back(tokenizer: Tokenizer, errors_of: Any) -> None:
    async with adapter_house(tokenizer) as house:
        for source in ("one", "two", "three"):
            await house.put("legal", source)
        back = await house.post("legal/rollback", {})
        assert (back.status_code, back.json()["adapter"]["version"]) == (200, 2)
        to_first = await house.post("legal/rollback", {"version": 1})
        assert to_first.json()["adapter"]["version"] == 1
        again = await house.post("legal/rollback", {"version": 1})
        assert again.json()["changed"] is False
        versions = (await house.client.get("/admin/adapters/legal/versions")).json()["versions"]
        assert [(v["version"], v["is_current"]) for v in versions] == [
            (1, True),
            (2, False),
            (3, False),
        ]
        assert versions[1]["source"]["location"] == str(house.root / "two")
        assert len({version["digest"] for version in versions}) == 3
        errors_of(await house.post("legal/rollback", {"version": 9}), 404)
        assert errors_of(await house.post("legal/rollback", {"version": "1"}), 400)["param"] == (
            "version"
        )


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"source": "/etc"}, "source", "adapter_refused"),
        ({"source": "https://example.org/x"}, "source", "adapter_refused"),
        ({}, "source", "missing_required_parameter"),
        ({"source": ""}, "source", None),
        ({"source": 5}, "source", None),
        ({"source": "/x", "pin": "disk"}, "pin", None),
        ({"source": "/x", "pim": "host"}, "pim", "unknown_parameter"),
    ],
)
async def test_what_is_no_source(
    tokenizer: Tokenizer, errors_of: Any, body: dict[str, Any], param: str, code: str | None
) -> None:
    async with adapter_house(tokenizer) as house:
        response = await house.client.put("/admin/adapters/legal", json=body)
        error = errors_of(response, 400)
        assert (error["param"], error["code"]) == (param, code)
        assert (await house.client.get("/admin/adapters")).json()["adapters"] == []


async def test_a_refused_adapter_names_its_field(tokenizer: Tokenizer, errors_of: Any) -> None:
    async with adapter_house(tokenizer) as house:
        house.adapters.refuse[house.source("one")] = AdapterError("r", "0 is no rank")
        error = errors_of(await house.put("legal", "one"), 400)
    assert error == {
        "message": "r: 0 is no rank",
        "type": "invalid_request_error",
        "param": "r",
        "code": "adapter_refused",
    }


async def test_unknown_names_are_404(tokenizer: Tokenizer, errors_of: Any) -> None:
    async with adapter_house(tokenizer) as house:
        for response in (
            await house.client.get("/admin/adapters/gone"),
            await house.client.get("/admin/adapters/gone/versions"),
            await house.client.get("/admin/adapters/"),
            await house.client.delete("/admin/adapters/gone"),
            *[
                await house.post(f"gone/{verb}", {})
                for verb in ("pin", "unpin", "load", "evict", "rollback")
            ],
        ):
            assert errors_of(response, 404)["code"] == "adapter_not_found"
        frobnicate = await house.client.post("/admin/adapters/gone/frobnicate")
        assert errors_of(frobnicate, 405)["code"] == "method_not_allowed"


async def test_an_engine_that_is_slow_or_dead_is_a_503(
    tokenizer: Tokenizer, errors_of: Any
) -> None:
    async with adapter_house(tokenizer) as house:
        await house.put("legal", "one")
        for failure, code in (
            (TimeoutError(), "engine_busy"),
            (EngineDeadError("x"), "engine_dead"),
        ):
            house.adapters.failure = failure
            assert errors_of(await house.post("legal/load", {}), 503)["code"] == code


async def test_only_the_admin_key_opens_it(tokenizer: Tokenizer, errors_of: Any) -> None:
    async with adapter_house(tokenizer) as house:
        requests = [
            ("GET", "/admin/adapters"),
            ("GET", "/admin/adapters/x"),
            ("PUT", "/admin/adapters/x"),
            ("DELETE", "/admin/adapters/x"),
            ("POST", "/admin/adapters/x/pin"),
            ("GET", "/admin/aliases"),
            ("PUT", "/admin/aliases/x"),
            ("POST", "/v1/load_lora_adapter"),
            ("POST", "/v1/unload_lora_adapter"),
        ]
        for method, path in requests:
            response = await house.client.request(method, path, headers=USER)
            assert errors_of(response, 401)["code"] == "invalid_admin_key", path
        models = await house.client.get("/v1/models", headers=ADMIN)
        assert errors_of(models, 401)["code"] == "invalid_api_key"


async def test_a_server_that_shuts_down_takes_no_new_adapters(
    tokenizer: Tokenizer, errors_of: Any
) -> None:
    async with adapter_house(tokenizer) as house:
        house.services.gate.close()
        assert errors_of(await house.put("legal", "one"), 503)["code"] == "draining"
        assert (await house.client.get("/admin/adapters")).status_code == 200


FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}


def tar_of(files: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return archive.getvalue()


async def test_an_archive_is_an_adapter(tokenizer: Tokenizer, errors_of: Any) -> None:
    async with adapter_house(tokenizer) as house:
        path = "/admin/adapters/legal"
        for content_type in ("application/gzip", "application/octet-stream"):
            headers = {"content-type": content_type}
            made = await house.client.put(
                f"{path}?pin=host", content=tar_of(FILES), headers=headers
            )
            assert made.is_success, made.text
            assert made.json()["adapter"]["pin"] == "host"
            assert made.json()["adapter"]["source"]["kind"] == "upload"
        assert house.adapters.uploads == [FILES, FILES]
        assert made.json()["changed"] is False, "the same bytes"
        assert not house.adapters.directory.exists()
        bad = await house.client.put(f"{path}?pin=disk", content=tar_of(FILES), headers=headers)
        assert errors_of(bad, 400)["param"] == "pin"


async def test_a_form_is_an_adapter(tokenizer: Tokenizer, errors_of: Any) -> None:
    async with adapter_house(tokenizer) as house:
        path = "/admin/adapters/legal"
        archive = {"archive": ("a.tgz", tar_of(FILES))}
        made = await house.client.put(path, files=archive, data={"pin": "device"})
        assert (made.status_code, made.json()["adapter"]["pin"]) == (201, "device")
        one_by_one = [("files", (name, content)) for name, content in FILES.items()]
        again = await house.client.put(path, files=one_by_one)
        assert (again.status_code, again.json()["changed"]) == (200, False)
        assert house.adapters.uploads == [FILES, FILES]
        unknown = await house.client.put(path, files=archive, data={"pim": "device"})
        assert errors_of(unknown, 400)["param"] == "pim"
        assert not house.adapters.directory.exists()


async def test_what_is_no_upload(tokenizer: Tokenizer, errors_of: Any) -> None:
    async with adapter_house(tokenizer) as house:
        path, headers = "/admin/adapters/legal", {"content-type": "application/x-tar"}
        assert errors_of(await house.client.put(path, content=b"no tar", headers=headers), 400)
        pickle = tar_of({**FILES, "adapter_model.bin": b"x"})
        error = errors_of(await house.client.put(path, content=pickle, headers=headers), 400)
        assert error["code"] == "adapter_refused"
        other = {"content-type": "video/mp4"}
        errors_of(await house.client.put(path, content=b"x", headers=other), 415)
        for name in ("%2e%2e/%2e%2e/etc", "a//b", "base", "x/pin", "x/versions"):
            response = await house.client.put(
                f"/admin/adapters/{name}", content=tar_of(FILES), headers=headers
            )
            refused = errors_of(response, 409 if name == "base" else 400)
            assert refused["param"] == "name", "before the upload is read"
        assert house.adapters.uploads == []
        assert not house.adapters.directory.exists()

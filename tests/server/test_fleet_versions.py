"""The fleet's versions at a replica: put once by content, pulled from peers, taken away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from file_server import Answer, serve_files
from fleet_versions_house import SECRET, TAR, FleetHouse, adapter_tar, fleet_house

from branchline.gateway.fleet.versions import version_id_of, wire_name
from branchline.lora.errors import AdapterError
from branchline.server.adapters.names import check_new_name
from branchline.server.fleet.places import adapter_places
from branchline.server.text.tokenizer import Tokenizer


@pytest.fixture
async def house(tmp_path: Path, tokenizer: Tokenizer) -> AsyncIterator[FleetHouse]:
    async with fleet_house(tmp_path, tokenizer) as house:
        yield house


async def test_what_a_gateway_brings_is_served_under_the_name_of_its_content(
    house: FleetHouse,
) -> None:
    sha256 = await house.blob(adapter_tar("one"))
    answer = (await house.put(blob=sha256)).json()
    assert answer["version_id"] == version_id_of(answer["digest"], None)
    assert answer["blob"] == sha256
    assert answer["rank"] == 8
    assert answer["modules"] == ["q_proj"]
    assert house.manager.content(wire_name(answer["version_id"])) == "one"
    assert (await house.client.get("/fleet/versions")).json()["versions"] == [
        (await house.client.get(f"/fleet/versions/{answer['version_id']}")).json()
    ]


async def test_the_same_content_again_changes_nothing(house: FleetHouse) -> None:
    first = (await house.put(blob=await house.blob(adapter_tar("one")))).json()
    other = await house.blob(adapter_tar("one", comment=b"another archive"))
    again = (await house.put(blob=other)).json()
    assert again["version_id"] == first["version_id"]
    assert again["blob"] == first["blob"]
    assert house.manager.loader.num_formatted == 2
    known = await house.put(version_id=first["version_id"], blob="0" * 64)
    assert known.status_code == 200
    assert house.manager.loader.num_formatted == 2


async def test_text_files_make_another_version(house: FleetHouse) -> None:
    plain = (await house.put(blob=await house.blob(adapter_tar("one")))).json()
    template = adapter_tar("one", template="{{ messages[0].content }}")
    other = (await house.put(blob=await house.blob(template))).json()
    assert plain["digest"] == other["digest"]
    assert plain["version_id"] != other["version_id"]
    assert other["text_digest"] is not None


async def test_a_source_becomes_an_archive_that_peers_can_pull(house: FleetHouse) -> None:
    source = house.manager.source("one").location
    answer = (await house.put(source=source)).json()
    assert (answer["source_kind"], answer["source"]) == ("directory", source)
    archive = await house.client.get(f"/fleet/versions/{answer['version_id']}/archive")
    blob = await house.client.get(f"/fleet/blobs/{answer['blob']}")
    assert archive.content == blob.content
    assert len(blob.content) > 512
    head = await house.client.head(f"/fleet/blobs/{answer['blob']}")
    assert head.headers["content-length"] == str(len(blob.content))
    assert not head.content


async def test_a_version_comes_from_the_first_peer_that_has_it(house: FleetHouse) -> None:
    archive = adapter_tar("one")
    wanted = (await house.put(blob=await house.blob(archive))).json()["version_id"]
    await house.client.delete(f"/fleet/versions/{wanted}")
    assert house.adapters.blobs.num_bytes == 0
    path = f"/fleet/versions/{wanted}/archive"
    with serve_files() as empty, serve_files() as peer:
        peer.answers[path] = Answer(archive)
        peers = ["http://127.0.0.1:9", empty.url, peer.url]
        answer = await house.put(version_id=wanted, peers=peers)
        assert answer.json()["version_id"] == wanted
        assert peer.requests[0][1]["x-branchline-fleet-secret"] == SECRET
    assert house.manager.content(wire_name(wanted)) == "one"


async def test_other_bytes_than_asked_for_are_refused_and_leave_nothing(
    house: FleetHouse,
) -> None:
    before = house.manager.files()
    wanted = version_id_of("0" * 64, None)
    with serve_files() as peer:
        peer.answers[f"/fleet/versions/{wanted}/archive"] = Answer(adapter_tar("evil"))
        answer = await house.put(version_id=wanted, peers=[peer.url])
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "source_changed")
        peer.answers[f"/fleet/blobs/{'0' * 64}"] = Answer(adapter_tar("evil"))
        answer = await house.put(blob="0" * 64, peers=[peer.url])
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "blob_not_found")
    assert house.manager.files() == before
    assert not house.manager.loaded


async def test_what_the_check_refuses_leaves_nothing(house: FleetHouse) -> None:
    for data in (adapter_tar("bad"), b"no archive", b""):
        answer = await house.put(blob=await house.blob(data))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "adapter_refused")
    assert house.adapters.blobs.num_bytes == 0
    assert not house.manager.loaded
    assert (await house.put(source="/etc")).json()["error"]["param"] == "source"


async def test_uploads_are_of_known_types_and_bounded(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async with fleet_house(tmp_path, tokenizer, max_bytes=20_000) as house:
        post = house.client.post
        large = await post("/fleet/blobs", content=bytes(20_001), headers=TAR)
        assert large.status_code == 413
        odd = await post("/fleet/blobs", content=b"x", headers={"content-type": "text/html"})
        assert odd.status_code == 415
        files = [("files", (name, b"{}")) for name in ("adapter_config.json", "odd.txt")]
        form = await post("/fleet/blobs", files=files, data={"pin": "host"})
        assert form.json()["fields"] == {"pin": "host"}
        assert form.json()["size"] > 0


async def test_bad_bodies_are_refused(house: FleetHouse) -> None:
    for body in ({}, {"blob": "../../etc"}, {"version_id": "x"}, {"source": 3}):
        assert (await house.put(**body)).status_code == 400, body
    assert (await house.put(blob="0" * 64, peers=["file:///etc/passwd"])).status_code == 400
    assert (await house.client.get("/fleet/blobs/..%2f..%2fregistry.json")).status_code == 404
    assert (await house.client.get(f"/fleet/blobs/{'0' * 64}")).status_code == 404
    assert (await house.client.delete(f"/fleet/versions/{'0' * 32}")).status_code == 404


async def test_a_version_that_was_put_only_now_is_not_removed_behind_its_back(
    house: FleetHouse,
) -> None:
    version_id = (await house.put(blob=await house.blob(adapter_tar("one")))).json()["version_id"]
    path = f"/fleet/versions/{version_id}"
    young = await house.client.delete(path, params={"min_age": 60})
    assert (young.status_code, young.json()["error"]["code"]) == (409, "version_put_recently")
    gone = await house.client.delete(path, params={"wait": 5})
    assert gone.json()["done"] is True
    assert not house.manager.loaded
    assert house.adapters.blobs.num_bytes == 0


async def test_versions_and_archives_outlive_a_restart(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async with fleet_house(tmp_path, tokenizer) as house:
        answer = (await house.put(blob=await house.blob(adapter_tar("one")))).json()
    for formatted in (tmp_path / "state" / "adapters").iterdir():
        formatted.write_text("of another base")
    (tmp_path / "state" / "blobs" / "incoming-left").write_text("half")
    async with fleet_house(tmp_path, tokenizer) as house:
        assert house.manager.content(wire_name(answer["version_id"])) == "one"
        assert house.adapters.blobs.get(answer["blob"]) is not None


async def test_an_admin_can_take_no_name_of_the_fleet(house: FleetHouse) -> None:
    with pytest.raises(AdapterError, match="must not begin with fleet/"):
        check_new_name(wire_name("0" * 32), house.manager.catalog)
    with pytest.raises(AdapterError):
        await house.manager.put(wire_name("0" * 32), "one")


async def test_places_say_what_can_be_served_and_from_where(house: FleetHouse) -> None:
    version = (await house.put(blob=await house.blob(adapter_tar("one")))).json()
    await house.manager.put("legal", "two")
    places = {place.name: place for place in await _places(house)}
    assert places[wire_name(version["version_id"])].digest == version["digest"]
    assert places["legal"].error is None
    with pytest.raises(AdapterError):
        await house.manager.put("legal", "bad")
    assert all(place.error is None for place in await _places(house)), "the old one answers on"


async def _places(house: FleetHouse) -> list:
    return await adapter_places(house.manager.manager, house.manager.catalog)

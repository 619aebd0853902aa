"""``/openapi.json`` has every route of adapters, aliases and models, with its schemas."""

from __future__ import annotations

from typing import Any

from branchline.server.text.tokenizer import Tokenizer

from .adapter_house import adapter_house

ROUTES = {
    ("get", "/admin/adapters"): "AdapterList",
    ("get", "/admin/adapters/{name}"): "AdapterEntry",
    ("put", "/admin/adapters/{name}"): "PutAnswer",
    ("delete", "/admin/adapters/{name}"): "RemovalAnswer",
    ("get", "/admin/adapters/{name}/versions"): "VersionList",
    ("post", "/admin/adapters/{name}/pin"): "AdapterEntry",
    ("post", "/admin/adapters/{name}/unpin"): "AdapterEntry",
    ("post", "/admin/adapters/{name}/load"): "AdapterEntry",
    ("post", "/admin/adapters/{name}/evict"): "AdapterEntry",
    ("post", "/admin/adapters/{name}/rollback"): "PutAnswer",
    ("get", "/admin/aliases"): "AliasList",
    ("put", "/admin/aliases/{alias}"): "AliasEntry",
    ("delete", "/admin/aliases/{alias}"): "AliasRemoval",
    ("post", "/admin/aliases/{alias}/rollback"): "AliasEntry",
    ("post", "/v1/load_lora_adapter"): "LoraAnswer",
    ("post", "/v1/unload_lora_adapter"): "LoraAnswer",
    ("get", "/v1/models"): "ModelList",
    ("get", "/v1/models/{model}"): "ModelCard",
}
BODIES = {
    ("put", "/admin/adapters/{name}"): "PutAdapter",  # or a form, with UploadFields
    ("post", "/admin/adapters/{name}/pin"): "TierRequest",
    ("post", "/admin/adapters/{name}/load"): "TierRequest",
    ("post", "/admin/adapters/{name}/evict"): "TierRequest",
    ("post", "/admin/adapters/{name}/rollback"): "RollbackRequest",
    ("put", "/admin/aliases/{alias}"): "PutAlias",
    ("post", "/v1/load_lora_adapter"): "LoadLora",
    ("post", "/v1/unload_lora_adapter"): "UnloadLora",
}


async def test_the_description_has_every_route_with_its_schemas(tokenizer: Tokenizer) -> None:
    async with adapter_house(tokenizer) as house:
        described = (await house.client.get("/openapi.json")).json()
    answers = {key: references(operation["responses"]) for key, operation in operations(described)}
    bodies = {
        key: references(operation["requestBody"])
        for key, operation in operations(described)
        if "requestBody" in operation
    }
    for key, name in ROUTES.items():
        assert name in answers[key], key
    taken = {key: names - {"UploadFields"} for key, names in bodies.items() if key in ROUTES}
    assert taken == {key: {name} for key, name in BODIES.items()}
    assert "UploadFields" in bodies["put", "/admin/adapters/{name}"]
    added = {key for key in answers if key[1].startswith(("/admin/ada", "/admin/ali"))}
    assert added <= ROUTES.keys()
    assert "422" not in str(described["paths"])
    known = described["components"]["schemas"].keys()
    assert references(described) <= known, "no reference leads nowhere"
    assert set(ROUTES.values()) | set(BODIES.values()) <= known


def operations(described: dict[str, Any]) -> list[tuple[tuple[str, str], dict[str, Any]]]:
    return [
        ((method, path), operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]


def references(part: object) -> set[str]:
    """The names of all schemas that a part of a description refers to."""
    if isinstance(part, dict):
        found = {part["$ref"].rpartition("/")[2]} if isinstance(part.get("$ref"), str) else set()
        return found.union(*map(references, part.values()))
    if isinstance(part, list):
        return set().union(*map(references, part))
    return set()

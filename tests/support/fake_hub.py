"""A model hub: its API on loopback, and its cache laid out by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from file_server import Answer, FileServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def lay_out_cache(
    cache: Path, hub_id: str, files: Mapping[str, bytes], commit: str = COMMIT, ref: str = "main"
) -> Path:
    """A repository in a hub cache; its snapshot's directory, where files are links to blobs."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for directory in (repository / "refs", repository / "blobs", snapshot):
        directory.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / ref).write_text(commit)
    for name, content in files.items():
        blob = hashlib.sha1(content).hexdigest()
        (repository / "blobs" / blob).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    return snapshot


def serve_repository(
    server: FileServer, hub_id: str, files: Mapping[str, bytes], sizes: Mapping[str, int] = {}
) -> None:
    """Let ``server`` answer for one repository; ``sizes`` are what it says where that differs."""
    entries = [
        {
            "type": "file",
            "path": name,
            "size": sizes.get(name, len(content)),
            "oid": hashlib.sha1(content).hexdigest(),
        }
        for name, content in files.items()
    ]
    info = {
        "id": hub_id,
        "sha": COMMIT,
        "siblings": [{"rfilename": name, "size": sizes.get(name)} for name in files],
    }
    api = f"/api/models/{hub_id}"
    as_json = {"content-type": "application/json"}
    for path in (api, f"{api}/revision/main"):
        server.answers[path] = Answer(json.dumps(info).encode(), headers=as_json)
    tree = Answer(json.dumps(entries).encode(), headers=as_json)
    for query in ("?recursive=True&expand=False", "?recursive=true&expand=false"):
        server.answers[f"{api}/tree/{COMMIT}{query}"] = tree
    for name, content in files.items():
        headers = {"etag": f'"{hashlib.sha1(content).hexdigest()}"', "x-repo-commit": COMMIT}
        if name in sizes:
            headers["content-length"] = str(sizes[name])
        server.answers[f"/{hub_id}/resolve/{COMMIT}/{name}"] = Answer(content, headers=headers)

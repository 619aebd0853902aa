"""An admin who changes names as fast as the server lets him, until it is gone; and what of it
has to be there afterwards."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from evil_archives import zip_of

ACTIONS = ("put", "put", "put", "upload", "upload", "delete", "pin", "unpin", "alias", "unalias")


@dataclass
class Names:
    """What is to be served: source and pin by name, and the names that aliases point at."""

    sources: dict[str, str] = field(default_factory=dict)
    pins: dict[str, str | None] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One request, and what it changes if it is taken."""

    method: str
    path: str
    change: Callable[[Names], None]
    json: object = None
    archive: bytes | None = None

    def send(self, client: httpx.Client) -> httpx.Response:
        """Send it; raises httpx.TransportError where the server is gone."""
        if self.archive is None:
            return client.request(self.method, self.path, json=self.json)
        headers = {"content-type": "application/zip"}
        return client.request(self.method, self.path, content=self.archive, headers=headers)


class AdminChurn(threading.Thread):
    """One admin with names of his own, which begin with ``prefix``.

    ``names`` is what was acknowledged, ``pending`` what it is with the call that got no answer.
    """

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        prefix: str,
        sources: Mapping[str, Path],
        names: Names,
        rng: random.Random,
    ) -> None:
        super().__init__(daemon=True)
        self.names = names
        self.pending = deepcopy(names)
        self.errors: list[str] = []
        self.num_acknowledged = 0
        self._client = httpx.Client(base_url=base_url, headers=dict(headers), timeout=60)
        self._own = [f"{prefix}-{number}" for number in range(3)]
        self._aliases = [f"{prefix}-alias"]
        self._sources = dict(sources)
        self._archives = {name: _archive(path) for name, path in sources.items()}
        self._rng = rng
        self.start()

    def run(self) -> None:
        with self._client:
            while not self.errors and self._one_call():
                pass

    def _one_call(self) -> bool:
        """Whether it was answered."""
        call = self._choose()
        self.pending = deepcopy(self.names)
        call.change(self.pending)
        try:
            response = call.send(self._client)
        except httpx.TransportError:
            return False
        if response.is_success:
            self.names = self.pending
            self.num_acknowledged += 1
        elif not _is_conflict(response):
            self.errors.append(f"{call.method} {call.path}: {response.status_code} {response.text}")
        self.pending = self.names
        return True

    def _choose(self) -> Call:
        rng, action = self._rng, self._rng.choice(ACTIONS)
        name, alias = rng.choice(self._own), rng.choice(self._aliases)
        source = rng.choice(sorted(self._sources))
        path = f"/admin/adapters/{name}"
        if action in ("put", "upload"):
            pin = rng.choice([None, None, "host", "device"])
            if action == "upload":
                return Call("PUT", path, _put(name, source, None), archive=self._archives[source])
            body = {"source": str(self._sources[source]), "pin": pin}
            return Call("PUT", path, _put(name, source, pin), body)
        if action == "delete":
            return Call("DELETE", path, _delete(name))
        if action in ("pin", "unpin"):
            tier = "device" if action == "pin" else None
            return Call(
                "POST", f"{path}/{action}", _pin(name, tier), {"tier": tier} if tier else {}
            )
        path = f"/admin/aliases/{alias}"
        if action == "alias":
            return Call("PUT", path, _alias(alias, name), {"adapter": name})
        return Call("DELETE", path, _unalias(alias))


def _is_conflict(response: httpx.Response) -> bool:
    """Whether it was turned down for how the names stand."""
    if response.status_code == 400:
        return bool(response.json()["error"]["code"] == "adapter_not_found")
    return response.status_code in (404, 409)


def _put(name: str, source: str, pin: str | None) -> Callable[[Names], None]:
    def change(names: Names) -> None:
        names.sources[name] = source
        names.pins[name] = pin or names.pins.get(name)

    return change


def _delete(name: str) -> Callable[[Names], None]:
    def change(names: Names) -> None:
        names.sources.pop(name, None)
        names.pins.pop(name, None)

    return change


def _pin(name: str, tier: str | None) -> Callable[[Names], None]:
    def change(names: Names) -> None:
        if name in names.sources:
            names.pins[name] = tier

    return change


def _alias(alias: str, name: str) -> Callable[[Names], None]:
    def change(names: Names) -> None:
        names.aliases[alias] = name

    return change


def _unalias(alias: str) -> Callable[[Names], None]:
    def change(names: Names) -> None:
        names.aliases.pop(alias, None)

    return change


def _archive(directory: Path) -> bytes:
    return zip_of({path.name: path.read_bytes() for path in sorted(directory.iterdir())})

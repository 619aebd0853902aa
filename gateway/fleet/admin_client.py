"""A client of the admin API for the command line: one HTTP answer, or one line of what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import click
import httpx

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AdminClient:
    """Speaks to one server. ``timeout`` is how many seconds it may be silent."""

    url: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 600.0

    def call(self, method: str, path: str, **options: Any) -> Fields:
        """The JSON object that the server answers; raises ClickException otherwise."""
        with self._client() as client:
            response = client.request(method, path, **options)
        return _read(response)

    @contextmanager
    def _client(self) -> Iterator[httpx.Client]:
        headers = {} if self.key is None else {b"authorization": _bearer(self.key)}
        timeout = httpx.Timeout(self.timeout, connect=10.0)
        try:
            with httpx.Client(base_url=self.url, headers=headers, timeout=timeout) as client:
                yield client
        except httpx.ConnectError as error:
            raise click.ClickException(f"no server at {self._shown_url()}: {error}") from None
        except httpx.TimeoutException:
            raise click.ClickException(f"{self._shown_url()} has not answered in time") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise click.ClickException(f"{self._shown_url()}: {error}") from None

    def _shown_url(self) -> str:
        """The address without the password that it may hold."""
        try:
            return str(httpx.URL(self.url).copy_with(userinfo=b"", query=None))
        except httpx.InvalidURL:
            return "--url"


def name_path(name: str, what: str = "an adapter") -> str:
    """A name as part of a path; slashes are its own."""
    if not name or any(part in {".", ".."} for part in name.split("/")):
        raise click.ClickException(f"{name!r} is no name of {what}")
    return quote(name)


def _bearer(key: str) -> bytes:
    """The header's bytes; refused here, because an HTTP library would show the key it refuses."""
    if not key.isprintable() or not key.strip():
        raise click.ClickException("--admin-key: is empty or has characters no key can have")
    return b"Bearer " + key.strip().encode()


def _read(response: httpx.Response) -> Fields:
    try:
        body = response.json()
    except ValueError:
        body = None
    if response.is_success and isinstance(body, dict):
        return body
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        raise click.ClickException(error["message"])
    raise click.ClickException(
        f"HTTP {response.status_code} without a word of why: is this a Branchline server?"
    )

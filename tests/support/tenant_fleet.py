"""Tenants of a real fleet, made as an operator makes them: with ``branchline tenant``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
from gateway_process import Fleet

Fields = dict[str, Any]


def tenant_cli(url: str, *words: str, admin_key: str = "") -> subprocess.CompletedProcess[str]:
    """``branchline tenant WORDS`` against a gateway."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "branchline", "tenant", *words],
        env={**os.environ, "BRANCHLINE_URL": url, "BRANCHLINE_ADMIN_KEY": admin_key},
        capture_output=True,
        text=True,
        timeout=60,
    )


@dataclass
class TenantFleet:
    """A fleet of two gateways, and the keys of tenants by name."""

    fleet: Fleet
    keys: dict[str, str] = field(default_factory=dict)

    def run(self, *words: str, gateway: int = 0) -> str:
        """What a command printed; raises if it failed."""
        done = tenant_cli(self.fleet.gateways[gateway].base_url, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tenant(self, name: str, *options: str) -> str:
        """Make a tenant with a key, and give the key."""
        self.run("put", name, *options)
        self.keys[name] = self.run("key", "create", name).strip()
        return self.keys[name]

    def connect(self, name: str, gateway: int = 0) -> openai.OpenAI:
        """A client with the tenant's key."""
        url = self.fleet.gateways[gateway].api_url
        return openai.OpenAI(base_url=url, api_key=self.keys[name], max_retries=0, timeout=60)

    def usage(self, name: str) -> dict[str, Fields]:
        """What the fleet counted of a tenant today, by label."""
        report = json.loads(self.run("usage", name, "--json", gateway=1))
        assert report["scope"] == "fleet"
        return {row["label"]: row for row in report["rows"]}

    def status(self, key: str, gateway: int) -> int:
        """What a gateway says to a key."""
        url = f"{self.fleet.gateways[gateway].api_url}/models"
        return httpx.get(url, headers={"authorization": f"Bearer {key}"}, timeout=10).status_code


def cached(answer: Any) -> int:
    """Tokens of an answer's prompt that were in the cache."""
    return int(answer.usage.prompt_tokens_details.cached_tokens)


def refusal(error: openai.APIStatusError) -> Fields:
    """The error that the client was told."""
    return dict(error.response.json()["error"])

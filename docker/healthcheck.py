"""A container's health check: exit status 0 only if a token comes out.

``python healthcheck.py URL``: a completion of one token by the first model that is listed, with
the key in ``BRANCHLINE_HEALTH_KEY`` or the fleet's secret in ``BRANCHLINE_FLEET_SECRET``. A
gateway that knows neither, since only tenants' keys open it, is asked ``/ready``.
Only the standard library: it runs every few seconds.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 8


def main(url: str) -> int:
    """0 when a token came, 1 otherwise; says why in one line."""
    try:
        model = first_model(url)
        body = {"model": model, "prompt": "ok", "max_tokens": 1, "temperature": 0}
        answer = call(f"{url}/v1/completions", json.dumps(body).encode())
        tokens = answer["usage"]["completion_tokens"]
        print(f"{model} gave {tokens} token")
        return 0 if tokens == 1 else 1
    except urllib.error.HTTPError as error:
        if error.code == 401 and not os.environ.get("BRANCHLINE_HEALTH_KEY"):
            return ready(url)
        print(f"{error.url} answered {error.code}")
    except (OSError, ValueError, LookupError) as error:
        print(f"no token: {error}")
    return 1


def first_model(url: str) -> str:
    """The base model's name: it is listed first."""
    return str(call(f"{url}/v1/models")["data"][0]["id"])


def ready(url: str) -> int:
    """What ``/ready`` says, as an exit status."""
    try:
        print(call(f"{url}/ready"))
        return 0
    except (OSError, ValueError) as error:
        print(f"not ready: {error}")
        return 1


def call(url: str, body: bytes | None = None) -> dict:
    """One JSON answer; raises HTTPError for any status but a 2xx, OSError without an answer."""
    headers = {"content-type": "application/json"}
    if key := os.environ.get("BRANCHLINE_HEALTH_KEY"):
        headers["authorization"] = f"Bearer {key}"
    elif secret := os.environ.get("BRANCHLINE_FLEET_SECRET"):
        headers["x-branchline-fleet-secret"] = secret
    request = urllib.request.Request(url, body, headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        return json.load(answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1].rstrip("/")))

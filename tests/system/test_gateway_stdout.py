"""A gateway whose output nobody reads any more: it serves on, and it ends."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys

import httpx
import pytest

pytestmark = pytest.mark.timeout(90)

COMMAND = (
    *("gateway", "--port", "0", "--replica", "http://127.0.0.1:9", "--fleet-secret", "a-secret"),
    "--allow-anonymous",
)
NUM_REQUESTS = 60


def test_a_full_pipe_stops_neither_requests_nor_the_end() -> None:
    command = [sys.executable, "-P", "-m", "branchline", *COMMAND]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ)
    assert process.stdout is not None
    try:
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        found = re.search(rb"serving on (\S+)", process.stdout.readline())
        assert found is not None
        url = f"{found[1].decode()}/v1/completions"
        with httpx.Client(timeout=10) as client:
            for _ in range(NUM_REQUESTS):  # each with a line of some 300 bytes
                body = {"model": "m", "prompt": "x"}
                assert client.post(url, json=body).status_code in (404, 503)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()

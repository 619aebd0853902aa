"""The images and the compose file: checked without a Docker engine, by schema and by linter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from branchline.gateway.up.plan import UpConfig, gateway_child, replica_children

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
IMAGES = sorted(DOCKER.glob("*.Dockerfile"))


def compose() -> dict[str, Any]:
    loaded = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True)


def test_the_compose_file_fits_its_schema(tmp_path: Path) -> None:
    check = (BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    done = run(*check, DOCKER / "compose.yaml")
    assert done.returncode == 0, done.stdout
    broken = tmp_path / "compose.yaml"
    broken.write_text(yaml.safe_dump(compose() | {"services": {"redis": {"comand": ["x"]}}}))
    assert run(*check, broken).returncode != 0


@pytest.mark.skipif(not (BIN / "hadolint").exists(), reason="hadolint is not made for this system")
@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_images_pass_the_linter(image: Path) -> None:
    done = run(BIN / "hadolint", image)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_images_run_as_nobody_and_are_asked_for_a_token(image: Path) -> None:
    text = image.read_text()
    stages = [stage for stage in text.split("\nFROM ")[1:] if "ENTRYPOINT" in stage]
    assert stages
    for stage in stages:
        assert "\nUSER 10001\n" in stage
        assert "/opt/branchline/healthcheck.py" in stage.split("HEALTHCHECK")[1]


def test_what_images_copy_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for image in IMAGES:
        for line in image.read_text().splitlines():
            if line.startswith("COPY ") and "--from" not in line:
                for source in line.split()[1:-1]:
                    assert (ROOT / source).exists()
                    assert source not in ignored
    needed = ("server", "engine", "lora", "kernels", "gateway", "pyproject.toml", "README.md")
    assert not set(needed) & set(ignored)


def flags(words: list[str] | tuple[str, ...]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def test_compose_runs_the_commands_of_up(tmp_path: Path) -> None:
    config = UpConfig(model="m", directory=tmp_path, state_dir="/data", tenants="t.yaml")
    services = compose()["services"]
    replicas = replica_children(config)
    assert {"redis", "gateway", *(child.name for child in replicas)} == set(services)
    for child in replicas:
        command = services[child.name]["command"]
        assert command[0] == child.words[4] == "serve"
        # Beside these: a container is told by its name, and has a GPU for itself.
        of_cpus = {"--num-threads", "--cpu-memory-utilization"}
        assert flags(command) - {"--advertise-url"} == flags(child.words) - of_cpus
        assert f"--replica-id={child.name}" in command
        assert set(child.environment) - {"PYTHONUNBUFFERED"} == set(
            services[child.name]["environment"]
        )
    gateway = gateway_child(config)
    assert flags(services["gateway"]["command"]) == flags(gateway.words) - {"--tenants"}


def test_no_secret_has_a_default() -> None:
    for name, service in compose()["services"].items():
        for variable, value in service.get("environment", {}).items():
            if variable in ("BRANCHLINE_FLEET_SECRET", "BRANCHLINE_ADMIN_KEY"):
                assert value.startswith(f"${{{variable}:?"), name


class Answers(BaseHTTPRequestHandler):
    """A server whose completions have as many tokens as the test says."""

    num_tokens = 1
    status = 200
    seen: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "base"}], "status": "ok"}, 200)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.seen.append({key.lower(): value for key, value in self.headers.items()})
        self._answer({"usage": {"completion_tokens": self.num_tokens}}, self.status)

    def _answer(self, body: dict[str, Any], status: int) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def answering(status: int = 200, num_tokens: int = 1) -> Iterator[tuple[str, type[Answers]]]:
    handler = type("Told", (Answers,), {"status": status, "num_tokens": num_tokens, "seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
    finally:
        server.shutdown()
        server.server_close()


def check(url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", str(DOCKER / "healthcheck.py"), url],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("status", "num_tokens", "expected"), [(200, 1, 0), (200, 0, 1), (500, 1, 1), (503, 1, 1)]
)
def test_the_health_check_wants_a_token(status: int, num_tokens: int, expected: int) -> None:
    with answering(status, num_tokens) as (url, _):
        assert check(url).returncode == expected


def test_the_health_check_without_a_server() -> None:
    done = check("http://127.0.0.1:1")
    assert done.returncode == 1
    assert "no token" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_health_check_sends_what_opens_the_door() -> None:
    with answering() as (url, handler):
        assert check(url, BRANCHLINE_HEALTH_KEY="k").returncode == 0
        assert check(url, BRANCHLINE_FLEET_SECRET="s").returncode == 0
    assert handler.seen[0]["authorization"] == "Bearer k"
    assert handler.seen[1]["x-branchline-fleet-secret"] == "s"


def test_without_a_key_of_its_own_a_gateway_is_asked_whether_it_is_ready() -> None:
    with answering(401) as (url, _):
        assert check(url).returncode == 0
        assert check(url, BRANCHLINE_HEALTH_KEY="wrong").returncode == 1

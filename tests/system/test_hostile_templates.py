"""A chat template that would hang the server: it does not get in, or costs its own requests."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import psutil
import pytest
from adapter_server import AdapterServer, Background, parsed, refusal, serve_adapters
from server_process import wait_for
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model

pytestmark = pytest.mark.timeout(120)

FUNCTION = "branchline.server.text.template_worker:render"
POWER = "{{ 9 ** (messages[0].content | int) }}"
HANGING, SMALL = "999999999", "2"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Below it a model and an adapter."""
    directory = tmp_path_factory.mktemp("hostile").resolve()
    make_tiny_model(directory / "model", "llama")
    make_adapter(directory / "model", directory / "adapter", 4, seed=4)
    return directory


def serving(root: Path, state: Path) -> Any:
    return serve_adapters(root / "model", "--state-dir", str(state), roots=[root])


def with_template(root: Path, name: str, template: str) -> Path:
    target = copytree(root / "adapter", root / name, dirs_exist_ok=True)
    (target / "chat_template.jinja").write_text(template)
    return target


def chat(server: AdapterServer, model: str, content: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 2}
    extra = {"return_token_ids": True}
    return server.http.post("/v1/chat/completions", json=body | extra)


def prompt_of(response: httpx.Response) -> bytes:
    return bytes(parsed(response)["prompt_token_ids"])


def workers(server: AdapterServer) -> list[psutil.Process]:
    """The processes that render; the server's children."""
    children = psutil.Process(server.server.process.pid).children()
    return [child for child in children if FUNCTION in child.cmdline()]


def is_quick(server: AdapterServer) -> None:
    since = time.monotonic()
    assert server.http.get("/health").status_code == 200
    assert chat(server, "base", "hi").status_code == 200
    assert time.monotonic() - since < 1.5, "whoever waits for a template waits alone"


def test_it_does_not_get_in(root: Path, tmp_path: Path) -> None:
    with serving(root, tmp_path) as server:
        assert not workers(server), "none before there is a template"
        for template in ("{% set x = 9**(9**9) %}", "{{ 'a' * 10**10 }}"):
            body = {"source": str(with_template(root, "bad", template))}
            put = Background(partial(server.http.put, "/admin/adapters/bad", json=body))
            is_quick(server)
            error = refusal(put.result())
            assert (error["code"], error["param"]) == ("adapter_refused", "chat_template.jinja")
        assert server.names() == []
        server.put("good", with_template(root, "good", "{{ messages[0].content }}"))
        assert prompt_of(chat(server, "good", "x")) == b"x"


def test_what_a_client_sends_costs_its_own_request(root: Path, tmp_path: Path) -> None:
    with serving(root, tmp_path) as server:
        server.put("power", with_template(root, "power", POWER))
        server.put("other", with_template(root, "other", "{{ messages[0].content }}"))
        bomb = Background(lambda: chat(server, "power", HANGING))
        is_quick(server)
        assert prompt_of(chat(server, "other", "x")) == b"x"
        assert refusal(bomb.result())["code"] == "chat_template_error"
        assert prompt_of(chat(server, "power", SMALL)) == b"81"
        wait_for(lambda: busy(server) == [], 30)
        killed = Background(lambda: chat(server, "power", HANGING))
        wait_for(lambda: busy(server) != [], 30)
        for pid in busy(server):
            os.kill(pid, signal.SIGKILL)
        assert refusal(killed.result())["code"] == "chat_template_error"
        assert prompt_of(chat(server, "power", SMALL)) == b"81"
        wait_for(lambda: busy(server) == [], 30)
        leaving = Background(lambda: chat(server, "power", HANGING))
        wait_for(lambda: busy(server) != [], 30)
        left = workers(server)
        server.server.terminate()
        assert leaving.result().status_code in (400, 503)
        assert server.server.wait(15) == 0
        assert not psutil.wait_procs(left, 5)[1]
    with serving(root, tmp_path) as server:
        assert workers(server), "its template was read as it was when it was put"
        assert prompt_of(chat(server, "power", SMALL)) == b"81"
        assert refusal(chat(server, "power", HANGING))["code"] == "chat_template_error"


def busy(server: AdapterServer) -> list[int]:
    """Processes that compute."""
    return [worker.pid for worker in workers(server) if worker.cpu_percent(0.1) > 5]

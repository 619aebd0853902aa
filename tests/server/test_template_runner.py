"""Templates that hang, eat memory, say too much or go wrong: never in the server's process."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from asgi_client import until

from branchline.server.errors import ApiError
from branchline.server.text import template_runner
from branchline.server.text.template_runner import InlineTemplates, TemplateJob, TemplateProcesses
from branchline.server.text.template_worker import MAX_CHARACTERS
from branchline.server.text.tokenizer import BrokenTemplateError, ChatTemplateError, Tokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT: list[dict[str, Any]] = [
    {"role": "developer", "content": "short"},
    {"role": "user", "content": "hé \N{GRINNING FACE}", "name": None},
    {"role": "assistant", "content": "so "},
]
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ m.name is defined }}\n"
    "{% endfor %}{{ eos_token }}{{ bos_token is defined }}{{ tools is none }}{{ mood }}\n"
    "{% if add_generation_prompt %}[go]{% endif %}"
)
POWER = "{% set x = 9**(9**9) %}x"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
RECURSIVE = "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}"


def job_of(template: str, *messages: str) -> TemplateJob:
    chat = [{"role": "user", "content": text} for text in messages or ("hi",)]
    return TemplateJob(template, {}, chat)


def workers() -> list[psutil.Process]:
    """The processes that render, of this one."""
    ours = psutil.Process().children()
    return [child for child in ours if template_runner.FUNCTION in child.cmdline()]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def templates() -> AsyncIterator[TemplateProcesses]:
    made = TemplateProcesses()
    assert not workers(), "they start with the first template"
    yield made
    await made.close()
    assert not workers()


async def both_ready(templates: TemplateProcesses) -> None:
    """Those that were killed before have been replaced."""
    await templates.render("a", job_of("x"))
    await until(lambda: templates._pool._idle.qsize() == 2, 30)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_runner, "MAX_SECONDS", 0.3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_generation_prompt": False},
        {"add_generation_prompt": False, "continue_final_message": True},
        {"variables": {"mood": ["sad", 1.5], "eos_token": "<end>"}},
    ],
)
@pytest.mark.parametrize("template", [TEMPLATE, f"{TEMPLATE}{{# developer #}}"])
async def test_the_text_is_what_transformers_gives(
    templates: TemplateProcesses,
    tokenizer: Tokenizer,
    template: str,
    options: dict[str, Any],
) -> None:
    job = TemplateJob(template, tokenizer.special_tokens, CHAT, options)
    expected = tokenizer.render_chat(CHAT, chat_template=template, **options)
    assert await templates.render("a", job) == expected
    assert await InlineTemplates().render("a", job) == expected


@pytest.mark.parametrize("template", [POWER, ENDLESS, RECURSIVE])
async def test_a_template_without_end_is_killed(
    templates: TemplateProcesses, impatient: None, template: str
) -> None:
    with pytest.raises(BrokenTemplateError, match=r"took longer than 0\.3 s"):
        await templates.render("a", job_of(template))
    assert await templates.render("a", job_of("x")) == "x"


async def test_what_a_client_sends_can_not_hang_it_either(
    templates: TemplateProcesses, impatient: None
) -> None:
    template = "{{ 9 ** (messages[0].content | int) }}"
    assert await templates.render("a", job_of(template, "2")) == "81"
    with pytest.raises(BrokenTemplateError, match="took longer"):
        await templates.render("a", job_of(template, "999999999"))


async def test_others_go_on_meanwhile(templates: TemplateProcesses) -> None:
    """One key waits for itself only, and the event loop for nobody."""
    await both_ready(templates)
    bombs = [asyncio.create_task(templates.render("a", job_of(POWER))) for _ in range(2)]
    await asyncio.sleep(0)
    assert await templates.render("b", job_of("x")) == "x"
    assert not any(bomb.done() for bomb in bombs)
    bombs[1].cancel()
    with pytest.raises(BrokenTemplateError, match="took longer than 2 s"):
        await bombs[0]


@pytest.mark.parametrize(
    "template", ["{{ 'a' * 10**10 }}", "{{ [0] * 10**9 }}", "{{ 'a' | center(10**10) }}"]
)
async def test_memory_is_bounded(templates: TemplateProcesses, template: str) -> None:
    with pytest.raises(BrokenTemplateError, match="more memory than it may"):
        await templates.render("a", job_of(template))


async def test_output_is_bounded(templates: TemplateProcesses) -> None:
    with pytest.raises(BrokenTemplateError, match=f"gave {MAX_CHARACTERS + 1} characters, the mo"):
        await templates.render("a", job_of(f"{{{{ 'x' * {MAX_CHARACTERS + 1} }}}}"))
    with pytest.raises(ChatTemplateError, match="says: xxx") as caught:
        await templates.render("a", job_of("{{ raise_exception('x' * 10**7) }}"))
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no system here') }}", "says: no system here"),
        ("{{ messages[5].content }}", "says"),
        ("{{ 1 / 0 }}", "failed"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "failed"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{% for m in messages %}", "endfor"),
    ],
)
async def test_what_goes_wrong_is_said(
    templates: TemplateProcesses, template: str, reason: str
) -> None:
    with pytest.raises(ChatTemplateError, match=reason) as caught:
        await templates.render("a", job_of(template))
    assert isinstance(caught.value, BrokenTemplateError) == (reason == "endfor")


async def test_a_process_that_is_killed_in_the_midst_is_replaced(
    templates: TemplateProcesses,
) -> None:
    await both_ready(templates)
    before = {worker.pid for worker in workers()}
    rendering = asyncio.create_task(templates.render("a", job_of(POWER)))
    busy = await _busy_worker()
    os.kill(busy, signal.SIGKILL)
    with pytest.raises(BrokenTemplateError, match="ended with status -9"):
        await rendering
    assert await templates.render("a", job_of("x")) == "x"
    await until(lambda: {worker.pid for worker in workers()} != before, 30)
    assert busy not in {worker.pid for worker in workers()}


async def _busy_worker() -> int:
    """The process that computes; all of them have started."""
    spent = {worker.pid: worker.cpu_times().user for worker in workers()}
    found: list[int] = []

    def is_busy() -> bool:
        found[:] = [w.pid for w in workers() if w.cpu_times().user > spent.get(w.pid, 1e9) + 0.1]
        return bool(found)

    await until(is_busy, 30)
    return found[0]


async def test_from_a_thread(templates: TemplateProcesses) -> None:
    job = job_of("{{ messages[0].content }}", "yes")
    assert await asyncio.to_thread(templates.render_from_thread, "a", job) == "yes"


async def test_only_so_many_wait(
    templates: TemplateProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_runner, "MAX_WAITING", 2)
    some = [asyncio.create_task(templates.render("a", job_of("x"))) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(ApiError, match="already wait") as refused:
        await templates.render("a", job_of("x"))
    assert (refused.value.status, refused.value.code) == (503, "chat_templates_queue_full")
    assert await templates.render("b", job_of("y")) == "y"
    assert await asyncio.gather(*some) == ["x"] * 3


async def test_a_rendering_that_is_left_ends(templates: TemplateProcesses) -> None:
    left = asyncio.create_task(templates.render("a", job_of(POWER)))
    await asyncio.sleep(0)
    next_one = asyncio.create_task(templates.render("a", job_of("x")))
    await asyncio.sleep(0)
    left.cancel()
    assert await next_one == "x"
    assert left.cancelled()


async def test_a_process_that_keeps_memory_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path(tmp_path, "hoarder.py").write_text(
        "import os\nkept = []\n"
        "def render(job):\n    kept.append(bytes(job * 2**20))\n    return str(os.getpid())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(template_runner, "NUM_PROCESSES", 1)
    hoard = TemplateProcesses("hoarder:render")
    render: Callable[[str, Any], Any] = hoard.render
    small = [await render("a", 1) for _ in range(3)]
    assert small == [await render("a", 600)] * 3
    assert await render("a", 600) != small[0], "it has room again"
    with pytest.raises(ChatTemplateError, match="failed: MemoryError"):
        await render("a", 2000)
    await hoard.close()


async def test_close_is_quick() -> None:
    templates = TemplateProcesses()
    assert await templates.render("a", job_of("x")) == "x"
    rendering = asyncio.create_task(templates.render("a", job_of(POWER)))
    await asyncio.sleep(0)
    start = time.monotonic()
    await templates.close()
    assert time.monotonic() - start < 1
    for call in (rendering, templates.render("a", job_of("x"))):
        with pytest.raises(ApiError, match="shutting down") as refused:
            await call
        assert refused.value.status == 503

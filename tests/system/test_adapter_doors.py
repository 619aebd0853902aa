"""Every way in: uploads, URLs, the hub's cache, the command line, vLLM's endpoints; and text of
an adapter's own. Over real HTTP, with answers as peft's."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from adapter_kinds import ADAPTER_TEMPLATE, KINDS
from adapter_server import ADMIN_KEY, Answer, parsed, refusal
from evil_archives import zip_of
from fake_hub import lay_out_cache
from file_server import Answer as FileAnswer
from file_server import FileServer, serve_files
from oracle import Reference, check_generation
from transformers import AutoTokenizer
from versions_house import TO_THE_END, VersionsHouse, versions_house

pytestmark = pytest.mark.timeout(120)

MESSAGES: list[Any] = [{"role": "user", "content": "hello there"}]
HUB_ID = "acme/legal"


@dataclass(frozen=True)
class Doors:
    """A server that may be given adapters in every way; ``files`` answers for URLs."""

    house: VersionsHouse
    files: FileServer
    hub_cache: Path


@pytest.fixture(scope="module")
def all_doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    directory = tmp_path_factory.mktemp("house")
    hub_cache = directory / "hub"
    env = {"HF_HUB_CACHE": str(hub_cache), "HF_HUB_OFFLINE": "1"}
    with serve_files() as files:
        allowed = ("--adapter-source", f"{files.url}/public", "--adapter-source", "hf://acme")
        with versions_house(directory, *allowed, env=env) as house:
            yield Doors(house, files, hub_cache)


@pytest.fixture
def doors(all_doors: Doors) -> Iterator[Doors]:
    yield all_doors
    all_doors.house.clear()


@pytest.fixture
def house(doors: Doors) -> VersionsHouse:
    return doors.house


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def tar_gz_of(directory: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        archive.add(directory, "legal")
    return out.getvalue()


def upload(house: VersionsHouse, name: str, **options: Any) -> dict[str, Any]:
    response = house.server.http.put(f"/admin/adapters/{name}", **options)
    return parsed(response, 200, 201)


def test_uploads_are_as_good_as_directories(house: VersionsHouse) -> None:
    source = house.sources["one"]
    digest = house.put("legal", "one")["adapter"]["digest"]
    files = files_of(source)
    as_tar: dict[str, Any] = {
        "content": tar_gz_of(source),
        "headers": {"content-type": "application/gzip"},
    }
    as_zip = {"content": zip_of(files), "headers": {"content-type": "application/zip"}}
    as_form = {"files": {"archive": ("legal.zip", zip_of(files))}, "data": {"pin": "host"}}
    one_by_one = {"files": [("files", (name, content)) for name, content in files.items()]}
    ways: list[dict[str, Any]] = [as_tar, as_zip, as_form, one_by_one]
    for number, options in enumerate(ways):
        answer = upload(house, f"up-{number}", **options)
        assert answer["changed"]
        assert answer["adapter"]["digest"] == digest
        assert answer["adapter"]["source"]["kind"] == "upload"
        assert answer["adapter"]["pin"] == ("host" if options is as_form else None)
        house.ask(f"up-{number}", "one")
    assert not upload(house, "legal", **as_tar)["changed"]


def test_urls(doors: Doors) -> None:
    house = doors.house
    files = files_of(house.sources["two"])
    doors.files.answers = {
        "/public/legal.zip": FileAnswer(zip_of(files)),
        **{f"/public/legal/{name}": FileAnswer(content) for name, content in files.items()},
        "/public/away": FileAnswer(status=302, headers={"location": "/private/legal.zip"}),
        "/private/legal.zip": FileAnswer(zip_of(files)),
    }
    for name, path in (("zip", "legal.zip"), ("files", "legal/")):
        url = f"{doors.files.url}/public/{path}"
        response = house.server.http.put(f"/admin/adapters/{name}", json={"source": url})
        entry = parsed(response, 201)["adapter"]
        assert entry["source"] == {"kind": "http", "location": url}
        house.ask(name, "two")
    for path in ("away", "nothing.zip"):
        url = f"{doors.files.url}/public/{path}"
        refused = house.server.http.put("/admin/adapters/x", json={"source": url})
        assert refusal(refused)["param"] == "source"
    assert "/private/legal.zip" not in doors.files.paths
    times = house.server.server.metric(
        "branchline:adapter_load_seconds_count", source="http", tier="disk"
    )
    assert times == 2


def test_hub_ids_from_its_cache(doors: Doors) -> None:
    house = doors.house
    lay_out_cache(doors.hub_cache, HUB_ID, files_of(house.sources["three"]))
    for number, source in enumerate((HUB_ID, f"hf://{HUB_ID}", f"{HUB_ID}@main")):
        name = f"hub-{number}"
        response = house.server.http.put(f"/admin/adapters/{name}", json={"source": source})
        assert parsed(response, 201)["adapter"]["source"]["kind"] == "hub"
        house.ask(name, "three")
    for other in ("acme/nowhere", "other/legal"):
        response = house.server.http.put("/admin/adapters/x", json={"source": other})
        assert refusal(response)["param"] == "source"


class CommandLine:
    """``branchline adapter`` against one server, as a user has it."""

    def __init__(self, house: VersionsHouse, key: str = ADMIN_KEY) -> None:
        self._options = ("--url", house.server.server.base_url, "--admin-key", key)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "branchline", "adapter", *words, *self._options]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def json(self, *words: str) -> Any:
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def text(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout


def test_the_command_line(house: VersionsHouse) -> None:
    line = CommandLine(house)
    assert "legal is version 1" in line.text("put", "legal", str(house.sources["one"]))
    put = line.json("put", "legal", str(house.sources["two"]), "--upload", "--pin", "host")
    assert (put["changed"], put["adapter"]["version"], put["adapter"]["pin"]) == (True, 2, "host")
    house.ask("legal", "two")
    [entry] = line.json("list")["adapters"]
    assert entry["name"] == "legal"
    assert "legal" in line.text("list")
    assert entry["digest"][:8] in line.text("get", "legal")
    line.text("alias", "set", "counsel", "legal,1=25", "legal,2=75")
    assert line.json("alias", "list")["aliases"][0]["split"][0]["percent"] == 25
    line.text("alias", "set", "counsel", "legal,1")
    house.ask("counsel", "one")
    line.text("alias", "delete", "counsel")
    assert "version 1" in line.text("rollback", "legal")
    house.ask("legal", "one")
    assert len(line.json("versions", "legal")["versions"]) == 2
    assert "pin none" in line.text("unpin", "legal")
    assert "tier disk" in line.text("evict", "legal", "--tier", "host")
    assert "tier device" in line.text("load", "legal")
    assert "free again" in line.text("delete", "legal", "--wait", "30")


def test_the_command_line_says_what_is_wrong(house: VersionsHouse) -> None:
    line, stranger = CommandLine(house), CommandLine(house, key="wrong")
    for done, says in (
        (line.run("get", "nobody"), "nobody"),
        (line.run("put", "legal", "/nowhere"), "under no allowed directory"),
        (stranger.run("put", "legal", str(house.sources["one"])), "key"),
    ):
        assert done.returncode == 1
        assert says in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, "one line, and no traceback"
    assert house.server.names() == []


def load_as_vllm(house: VersionsHouse, name: str, source: str, **fields: Any) -> httpx.Response:
    body = {"lora_name": name, "lora_path": str(house.sources[source]), **fields}
    return house.server.http.post("/v1/load_lora_adapter", json=body)


def test_vllms_endpoints(house: VersionsHouse) -> None:
    loaded = load_as_vllm(house, "sql", "one")
    assert (loaded.status_code, loaded.text) == (
        200,
        "Success: LoRA adapter 'sql' added successfully.",
    )
    house.ask("sql", "one")
    assert refusal(load_as_vllm(house, "sql", "two"))["param"] == "lora_name"
    house.ask("sql", "one")
    assert load_as_vllm(house, "sql", "two", load_inplace=True).status_code == 200
    house.ask("sql", "two")
    gone = house.server.http.post(
        "/v1/unload_lora_adapter", json={"lora_name": "sql"}, params={"wait": 30}
    )
    assert (gone.status_code, gone.text) == (
        200,
        "Success: LoRA adapter 'sql' removed successfully.",
    )
    with pytest.raises(openai.NotFoundError):
        house.server.complete("sql", "no more")
    again = house.server.http.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})
    assert (again.status_code, refusal(again)["param"]) == (404, "lora_name")
    for body in ({"lora_name": "sql"}, {"lora_path": "/x"}, {"lora_name": "", "lora_path": "/x"}):
        response = house.server.http.post("/v1/load_lora_adapter", json=body)
        assert refusal(response)["code"] == "missing_required_parameter"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/admin/adapters"),
        ("PUT", "/admin/adapters/legal"),
        ("DELETE", "/admin/adapters/legal"),
        ("POST", "/admin/adapters/legal/pin"),
        ("GET", "/admin/aliases"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
    ],
)
def test_nothing_goes_without_the_admin_key(house: VersionsHouse, method: str, path: str) -> None:
    for headers in ({}, {"authorization": "Bearer none"}):
        url = house.server.server.base_url + path
        assert httpx.request(method, url, headers=headers, timeout=30).status_code == 401


def test_models_are_listed_by_pages(house: VersionsHouse) -> None:
    for number in range(5):
        house.put(f"legal-{number}", "one")
    house.server.put_alias("counsel", adapter="legal-3")
    listed = {model.id: model for model in house.server.openai.models.list()}
    assert listed["legal-2"].model_dump()["parent"] == "base"
    assert listed["legal-2"].model_dump()["root"] == str(house.sources["one"])
    assert listed["counsel"].model_dump()["parent"] == "base"
    pages = [first_page := models_after(house)]
    while (page := pages[-1])["has_more"]:
        pages.append(models_after(house, after=page["last_id"]))
    assert len(first_page["data"]) == 2
    assert [model["id"] for page in pages for model in page["data"]] == list(listed)


def models_after(house: VersionsHouse, **query: str) -> dict[str, Any]:
    return parsed(house.server.http.get("/v1/models", params={"limit": 2, **query}))


@pytest.fixture(scope="module")
def wordy(all_doors: Doors) -> Path:
    """An adapter that adds three tokens, with its own tokenizer and chat template."""
    house = all_doors.house
    root = house.sources["one"].parent
    return KINDS["added tokens, saved"].make(house.model, root / "wordy", seed=5)


def test_text_of_its_own(house: VersionsHouse, wordy: Path) -> None:
    house.server.put("wordy", wordy)
    house.put("plain", "one")
    reference = Reference(house.model, {"wordy": wordy})
    tokenizer = AutoTokenizer.from_pretrained(wordy)
    expected = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_dict=False
    )
    chat = chat_of(house, "wordy")
    assert chat.prompt == expected
    check_generation(reference, chat.prompt, chat.output, "wordy", TO_THE_END)
    base, plain = chat_of(house, "base"), chat_of(house, "plain")
    assert base.prompt == plain.prompt != chat.prompt
    house.check(plain, "one")
    assert "<|think|>user: hello there" in tokenizer.decode(chat.prompt)
    added = tokenizer.convert_tokens_to_ids("<|tool|>")
    bias = {"logit_bias": {str(added): 100}}
    assert house.server.complete("wordy", "x", max_tokens=2, **bias).output == [added, added]
    with pytest.raises(openai.BadRequestError):
        house.server.complete("plain", "x", max_tokens=2, **bias)
    assert house.server.complete("wordy", "<|think|>x", max_tokens=1).prompt[0] == 260
    assert len(house.server.complete("plain", "<|think|>x", max_tokens=1).prompt) == 10


def chat_of(house: VersionsHouse, model: str) -> Answer:
    extra = {"return_token_ids": True, "ignore_eos": True}
    answer: Any = house.server.openai.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=12, extra_body=extra
    )
    return Answer(list(answer.prompt_token_ids), list(answer.choices[0].token_ids), 0, model)


def test_a_replacement_brings_its_text_at_once(house: VersionsHouse, wordy: Path) -> None:
    house.put("legal", "one")
    before = chat_of(house, "legal")
    house.server.put("legal", wordy)
    assert chat_of(house, "legal").prompt != before.prompt
    house.server.post("legal", "rollback")
    assert chat_of(house, "legal").output == before.output
    assert ADAPTER_TEMPLATE in (wordy / "chat_template.jinja").read_text()


def test_a_template_alone_makes_a_version(house: VersionsHouse, tmp_path: Path) -> None:
    """The weights are the same, but the answers would not be."""
    files = files_of(house.sources["one"])
    house.put("legal", "one")
    template = b"{% for message in messages %}> {{ message['content'] }}\n{% endfor %}"
    named = zip_of({**files, "chat_template.jinja": template})
    headers = {"content-type": "application/zip"}
    answer = upload(house, "legal", content=named, headers=headers)
    assert (answer["changed"], answer["adapter"]["version"]) == (True, 2)
    assert bytes(chat_of(house, "legal").prompt) == b"> hello there\n"
    house.check(chat_of(house, "legal"), "one")

"""langchain-openai, unchanged but for the address: chats, streams, tools, parsed answers, vectors.

Its embeddings split text with OpenAI's own tokenizer unless ``check_embedding_ctx_length`` is off,
and then send token ids; the table of that tokenizer comes with litellm, so nothing is fetched.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Literal

import httpx
import pytest
from pydantic import BaseModel, Field, SecretStr
from server_process import ServerProcess

from .conftest import API_KEY

pytest.importorskip("langchain_openai")
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

QUESTION = [SystemMessage("be brief"), HumanMessage("hello there")]


class Weather(BaseModel):
    """The weather of a place."""

    sky: Literal["clear", "cloudy"]
    degrees: int = Field(ge=-50, le=50)


@pytest.fixture(scope="module")
def chat(openai_server: ServerProcess) -> ChatOpenAI:
    return model_of(openai_server, "base")


def model_of(server: ServerProcess, name: str, **fields: Any) -> ChatOpenAI:
    fields = {"temperature": 0, "max_tokens": 12, **fields}
    return ChatOpenAI(
        model=name, base_url=server.api_url, api_key=SecretStr(API_KEY), max_retries=0, **fields
    )


def test_a_chat_is_invoked(chat: ChatOpenAI, openai_server: ServerProcess) -> None:
    answer = chat.invoke(QUESTION)
    assert isinstance(answer.content, str)
    assert answer.content
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] <= 12
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    other = model_of(openai_server, "tenant-16").invoke(QUESTION)
    assert other.content != answer.content


def test_a_stream_says_the_same(chat: ChatOpenAI) -> None:
    chunks = list(chat.stream(QUESTION, stream_usage=True))
    assert "".join(str(chunk.content) for chunk in chunks) == chat.invoke(QUESTION).content
    assert any(chunk.usage_metadata for chunk in chunks)


async def test_the_async_ways(chat: ChatOpenAI) -> None:
    whole = await chat.ainvoke(QUESTION)
    assert "".join([str(c.content) async for c in chat.astream(QUESTION)]) == whole.content
    batch = await chat.abatch([QUESTION, QUESTION])
    assert [answer.content for answer in batch] == [whole.content] * 2


def test_bound_parameters_are_sent(openai_server: ServerProcess) -> None:
    stopped = model_of(openai_server, "base", logit_bias={65: 100}, max_tokens=8).invoke(QUESTION)
    assert stopped.content == "A" * 8
    cut = model_of(openai_server, "base", logit_bias={65: 100}).invoke(QUESTION, stop=["AAA"])
    assert cut.content == ""


@pytest.mark.parametrize("choice", ["any", "Weather"])
def test_bound_tools_are_called_and_answered(openai_server: ServerProcess, choice: str) -> None:
    model = model_of(openai_server, "base", max_tokens=300, temperature=1, seed=4)
    answer = model.bind_tools([Weather], tool_choice=choice, strict=True).invoke(QUESTION)
    assert isinstance(answer, AIMessage)
    assert answer.tool_calls
    call = answer.tool_calls[0]
    assert call["name"] == "Weather"
    assert Weather(**call["args"]).sky in ("clear", "cloudy")
    result = ToolMessage("noted", tool_call_id=str(call["id"]))
    again = model_of(openai_server, "base").invoke([*QUESTION, answer, result])
    assert isinstance(again.content, str)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_the_class(openai_server: ServerProcess, method: Any) -> None:
    model = model_of(openai_server, "base", max_tokens=300, temperature=1, seed=6)
    parsed = model.with_structured_output(Weather, method=method).invoke(QUESTION)
    assert isinstance(parsed, Weather)


def embeddings_of(server: ServerProcess, **fields: Any) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(
        model="base", base_url=server.api_url, api_key=SecretStr(API_KEY), **fields
    )


def test_embeddings_of_text(openai_server: ServerProcess) -> None:
    embeddings = embeddings_of(openai_server, check_embedding_ctx_length=False)
    one = embeddings.embed_query("first")
    many = embeddings.embed_documents(["first", "second"])
    assert many[0] == pytest.approx(one, abs=1e-4)
    assert many[1] != pytest.approx(one, abs=1e-4)
    assert one == pytest.approx(vector(openai_server, "first"), abs=1e-4)


def test_embeddings_of_token_ids(
    openai_server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it comes: ids of OpenAI's tokenizer, whose first 256 are bytes as the tiny model's."""
    tables = files("litellm") / "litellm_core_utils" / "tokenizers"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tables))
    embeddings = embeddings_of(openai_server)
    assert embeddings.check_embedding_ctx_length
    found = embeddings.embed_documents(["A", "B"])
    assert found[0] == pytest.approx(vector(openai_server, [32]), abs=1e-4)
    assert found[1] == pytest.approx(vector(openai_server, [33]), abs=1e-4)


def vector(server: ServerProcess, text: object) -> list[float]:
    response = httpx.post(
        f"{server.api_url}/embeddings",
        json={"model": "base", "input": text},
        headers={"authorization": f"Bearer {API_KEY}"},
    )
    assert response.status_code == 200, response.text
    return list(response.json()["data"][0]["embedding"])

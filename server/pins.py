"""Pins: a prefix named by text, chat or token ids, computed if need be, and kept on the device."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from ..engine.cache_types import PinReport, PrefixTarget
from ..engine.errors import RequestError
from ..engine.types import DEFAULT_TENANT, GenerationRequest, SamplingParams
from ..gateway.fleet.identity import TENANT_NAME, TENANT_NAME_RULE
from .access import Tenant
from .body_lists import Items, TokenIds
from .catalog import ServedModel
from .errors import ApiError, bad_field, to_api_error
from .generation import raise_for
from .openai import CacheSalt, ChatMessage, ChatRequest, Part
from .prompt import Prompt
from .sampling import fit_max_tokens
from .services import Services

_ONE_TOKEN = SamplingParams(temperature=0.0, max_tokens=1, seed=0, ignore_eos=True)
_PREFIX_FIELDS = ("prompt", "messages", "prompt_token_ids")


class PinRequest(Part):
    """The body of ``POST /admin/cache/pins``; one of the three forms of a prefix."""

    model: str
    prompt: str | None = None
    messages: Annotated[Items[ChatMessage], Field(min_length=1)] | None = None
    prompt_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = None
    ttl_seconds: Annotated[float, Field(ge=1, le=604800)]
    tenant: str | None = None
    cache_group: str | None = None
    cache_salt: CacheSalt | None = None
    warm: bool = True


@dataclass(frozen=True, slots=True)
class _Prefix:
    """A prefix to pin; ``field`` is the body's field that named it."""

    field: str
    token_ids: list[int]
    model: ServedModel


async def pin(services: Services, body: PinRequest) -> PinReport:
    """Pin what ``body`` names, computed first where asked; raises ApiError for what can't be."""
    if not services.config.engine.enable_prefix_caching:
        raise ApiError(
            "The prefix cache is off (--no-enable-prefix-caching): there is nothing to pin.",
            status=409,
            code="prefix_cache_off",
        )
    model = services.catalog.resolve(body.model)
    lease = services.catalog.lease(model)
    try:
        return await _pin(services, body, model)
    finally:
        lease.release()


async def _pin(services: Services, body: PinRequest, model: ServedModel) -> PinReport:
    prefix = await _read_prefix(services, body, model)
    target = PrefixTarget(
        prompt_token_ids=prefix.token_ids,
        adapter=prefix.model.digest,
        tenant=_tenant(services, body),
        cache_group=_group(services, body),
        cache_salt=body.cache_salt,
    )
    with _in_words_of(prefix.field):
        if body.warm:
            await _warm(services, target)
        return await services.supervisor.pin_prefix(target, body.ttl_seconds)


async def _read_prefix(services: Services, body: PinRequest, model: ServedModel) -> _Prefix:
    given = [name for name in _PREFIX_FIELDS if getattr(body, name) is not None]
    if len(given) != 1:
        said = " and ".join(given) or "none"
        raise bad_field(
            given[-1] if given else "prompt",
            f"exactly one of {', '.join(_PREFIX_FIELDS)} is needed, given: {said}",
        )
    field = given[0]
    with _in_words_of(field):
        prompt = await _read_prompt(services, body, model)
    block_size = services.supervisor.info.block_size
    if len(prompt.token_ids) < block_size:
        raise bad_field(
            field,
            f"has {len(prompt.token_ids)} tokens; a pin holds whole blocks, and a block is "
            f"{block_size} tokens (--block-size)",
            code="prefix_too_short",
        )
    fit_max_tokens(
        _ONE_TOKEN,
        len(prompt.token_ids),
        services.sampling.max_model_len,
        prompt_field=field,
    )
    return _Prefix(field, prompt.token_ids, model)


async def _read_prompt(services: Services, body: PinRequest, model: ServedModel) -> Prompt:
    """The prefix as the same words in a request would be tokenized."""
    if body.messages is None:
        entry = body.prompt if body.prompt is not None else body.prompt_token_ids
        [prompt] = await services.prompts.completion(entry, True, model)
        return prompt
    # Without the opening of an answer: another turn may come next instead.
    chat = ChatRequest(messages=body.messages, add_generation_prompt=False)
    return await services.prompts.chat(chat, model)


def _tenant(services: Services, body: PinRequest) -> str | None:
    """Whose prefix it is; None where tenants share theirs."""
    if body.tenant is not None and not TENANT_NAME.fullmatch(body.tenant):
        raise bad_field("tenant", f"must be {TENANT_NAME_RULE}")
    if not services.config.engine.isolate_tenants or body.cache_group is not None:
        return None
    if body.tenant is None and services.config.access.asks_for_keys:
        raise bad_field(
            "tenant",
            "is required: tenants share no prefixes here (--share-prefixes is not set)",
            code="missing_required_parameter",
        )
    tenant = body.tenant or DEFAULT_TENANT
    access = services.config.access
    # A gateway may name any tenant; without one nobody else could ever use the prefix.
    if access.fleet_secret is None and tenant not in access.tenant_names:
        shown = ", ".join(access.tenant_names[:20])
        raise bad_field("tenant", f"there is no tenant {tenant!r}; there are: {shown}")
    return tenant


def _group(services: Services, body: PinRequest) -> str | None:
    """The sharing group whose prefix it is; None where that of a tenant, or of all."""
    if body.cache_group is None or not services.config.engine.isolate_tenants:
        return None
    if not TENANT_NAME.fullmatch(body.cache_group):
        raise bad_field("cache_group", f"must be {TENANT_NAME_RULE}")
    if body.tenant is not None:
        raise bad_field("cache_group", "is given beside tenant; a prefix is of one of the two")
    return body.cache_group


async def _warm(services: Services, target: PrefixTarget) -> None:
    """Have the prefix computed, on the tenant's account, by asking for one token after it."""
    access = services.config.access
    tenant = Tenant() if target.tenant is None else access.tenant(target.tenant)
    request = GenerationRequest(
        request_id=f"pin-{uuid.uuid4().hex}",
        prompt_token_ids=target.prompt_token_ids,
        params=_ONE_TOKEN,
        adapter=target.adapter,
        tenant=tenant.name,
        weight=tenant.weight,
        cache_salt=target.cache_salt,
        cache_group=target.cache_group,
    )
    async with aclosing(services.supervisor.generate(request)) as outputs:
        async for output in outputs:
            raise_for(output)


@contextmanager
def _in_words_of(field: str) -> Iterator[None]:
    """Others say ``prompt`` of any prefix; the body may have said it as messages or token ids."""
    try:
        yield
    except (RequestError, ApiError) as raised:
        error = to_api_error(raised)
        if error.param != "prompt":
            raise
        message = error.message.removeprefix("prompt: ")
        raise bad_field(field, message, error.code) from raised

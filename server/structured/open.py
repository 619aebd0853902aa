"""The one call by which an endpoint honours the fields that ask for a form of the answer."""

from __future__ import annotations

from dataclasses import replace

from ...engine.types import SamplingParams
from ..access import Tenant
from ..openai import SamplingFields
from ..services import Services
from .read import read_grammar


async def with_grammar(
    params: SamplingParams, body: SamplingFields, services: Services, tenant: Tenant
) -> SamplingParams:
    """``params`` with the grammar that ``body`` asks for, checked; raises ApiError."""
    wanted = read_grammar(body, services.sampling.limits)
    return replace(params, grammar=await services.grammars.checked(wanted, tenant.name))

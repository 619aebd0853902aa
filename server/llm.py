"""``LLM``: generate for many prompts at once, in this process, without a server."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from ..engine.config import EngineConfig
from ..engine.errors import RequestError
from ..engine.types import SamplingParams
from .adapters.hub import find_directory
from .adapters.text import TextStore
from .batch_run import BatchRun, Job, RequestOutput
from .catalog import Catalog, ServedModel
from .generation import expand_choices
from .offline_adapters import note_vocabularies, open_adapters
from .offline_params import check_params
from .prompt import split_prompts
from .sampling import fit_max_tokens, read_defaults, with_ends, with_seed
from .text.tokenizer import Message, Tokenizer, read_chat_template

Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class _Prompt:
    text: str | None
    token_ids: list[int]


class LLM:
    """A model and its adapters, ready to generate.

    ``model`` is a directory or a hub id, ``lora`` maps adapter names to the same, and
    ``engine_options`` are the fields of ``EngineConfig`` (``dtype``, ``max_model_len``,
    ``max_num_seqs``, ...). Raises BranchlineError for what can't be loaded. Chat templates of
    adapters run in this process, sandboxed but unbounded: load adapters that you trust.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        lora: Mapping[str, str | os.PathLike[str]] | None = None,
        *,
        chat_template: str | None = None,
        **engine_options: Any,
    ) -> None:
        # Read by OpenMP when torch comes in, which the next import brings.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from ..engine.build import build_engine

        directory = find_directory(os.fspath(model))
        template = None if chat_template is None else read_chat_template(chat_template)
        self._tokenizer = Tokenizer.from_directory(directory, template)
        self._defaults = read_defaults(directory)
        self._catalog = Catalog(directory, [os.fspath(model)])
        paths = {name: os.fspath(path) for name, path in (lora or {}).items()}
        texts = TextStore(directory, self._tokenizer)
        sources = open_adapters(self._catalog, paths, texts)
        self._engine = build_engine(
            EngineConfig(model=directory, adapters=sources, **engine_options)
        )
        sizes = {d: traits.vocab_size for d, traits in self._engine.adapters.traits.items()}
        note_vocabularies(self._catalog, sizes, self._engine.info.vocab_size)

    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Continue each prompt (text or token ids); one output a prompt, in their order.

        ``sampling_params`` and ``adapter`` are one for all or one a prompt; without
        parameters the model's own defaults hold. Raises BranchlineError for what can't run.
        """
        entries = split_prompts(_as_lists(prompts))
        models = self._models(adapter, len(entries))
        encoded = [
            _Prompt(entry, self._tokenizer_of(model).encode(entry, add_special_tokens=True))
            if isinstance(entry, str)
            else _Prompt(None, entry)
            for entry, model in zip(entries, models, strict=True)
        ]
        return self._run(encoded, sampling_params, models, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
        use_tqdm: bool = True,
        **template_variables: Any,
    ) -> list[RequestOutput]:
        """Answer one chat, or each of several, through the adapter's or model's template."""
        chats: list[Any] = list(messages)
        if chats and isinstance(chats[0], Mapping):
            chats = [chats]
        models = self._models(adapter, len(chats))
        encoded: list[_Prompt] = []
        for chat, model in zip(chats, models, strict=True):
            tokenizer = self._tokenizer_of(model)
            template = model.chat_template or self._tokenizer.chat_template
            text = tokenizer.render_chat(chat, chat_template=template, variables=template_variables)
            encoded.append(_Prompt(text, tokenizer.encode(text, add_special_tokens=False)))
        return self._run(encoded, sampling_params, models, use_tqdm)

    def _run(
        self,
        prompts: Sequence[_Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        models: Sequence[ServedModel],
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        params = _one_each(sampling_params, len(prompts))
        jobs = [
            self._job(prompt, one, model)
            for prompt, one, model in zip(prompts, params, models, strict=True)
        ]
        run = BatchRun(self._engine, jobs)
        with tqdm(total=len(jobs), unit="prompt", disable=not use_tqdm) as bar:
            run.complete(bar.update)
        return [job.output() for job in jobs]

    def _job(self, prompt: _Prompt, params: SamplingParams | None, model: ServedModel) -> Job:
        tokenizer = self._tokenizer_of(model)
        vocab_size = model.vocab_size or self._engine.info.vocab_size
        checked = check_params(params or self._defaults, vocab_size)
        fitted = fit_max_tokens(
            with_ends(with_seed(checked), tokenizer.end_token_ids),
            len(prompt.token_ids),
            self._engine.info.max_model_len,
        )
        return Job(
            request_id=uuid.uuid4().hex,
            prompt=prompt.text,
            prompt_token_ids=prompt.token_ids,
            adapter=None if model.digest is None else model.name,
            tokenizer=tokenizer,
            choices=expand_choices([(prompt.token_ids, fitted)], model.digest),
        )

    def _models(
        self, adapter: str | Sequence[str | None] | None, num_prompts: int
    ) -> list[ServedModel]:
        if adapter is None or isinstance(adapter, str):
            adapter = [adapter] * num_prompts
        if len(adapter) != num_prompts:
            raise RequestError("adapter", f"{len(adapter)} of them for {num_prompts} prompts")
        return [self._model(name) for name in adapter]

    def _model(self, name: str | None) -> ServedModel:
        if name is None:
            return self._catalog.base
        known = self._catalog.adapter_names
        if name not in known:
            shown = ", ".join(known) or "none"
            raise RequestError("adapter", f"{name!r} is not loaded; loaded: {shown}")
        return self._catalog.resolve(name)

    def _tokenizer_of(self, model: ServedModel) -> Tokenizer:
        return model.tokenizer or self._tokenizer


def _as_lists(prompts: Prompts) -> object:
    """Tuples and other sequences as the lists that ``split_prompts`` knows."""
    if isinstance(prompts, str):
        return prompts
    return [entry if isinstance(entry, str | int) else list(entry) for entry in prompts]


def _one_each(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> Sequence[SamplingParams | None]:
    """Parameters for each prompt: repeated where they are one for all."""
    if params is None or isinstance(params, SamplingParams):
        return [params] * num_prompts
    if len(params) != num_prompts:
        raise RequestError("sampling_params", f"{len(params)} of them for {num_prompts} prompts")
    return params

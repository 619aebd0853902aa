"""``LLM``: generate and embed for many prompts at once, in this process, without a server."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from ..engine.config import EngineConfig
from ..engine.errors import RequestError
from ..engine.types import Pooling, SamplingParams
from .adapters.hub import find_directory
from .adapters.text import TextStore
from .batch_run import BatchRun, Job, RequestOutput
from .beam import BeamTerms
from .catalog import Catalog, ServedModel
from .generation import ChoiceRequest, expand_choices
from .offline_adapters import note_vocabularies, open_adapters
from .offline_beam import check_beams, run_beams
from .offline_embed import EmbeddingOutput, check_pooling, run_embeddings
from .offline_params import check_params
from .offline_prompts import (
    ChatOptions,
    Chats,
    OfflinePrompt,
    Prompts,
    encode,
    one_each,
    render,
    split_chats,
    split_offline,
)
from .sampling import fit_max_tokens, read_defaults, with_ends, with_seed
from .structured.vocabularies import Vocabularies
from .text.tokenizer import Message, Tokenizer, read_chat_template
from .token_lists import bad_word_ids

Adapters = str | Sequence[str | None] | None
Params = SamplingParams | Sequence[SamplingParams] | None

_PROMPT_ONLY = SamplingParams(temperature=0.0, seed=0, max_tokens=0, prompt_logprobs=0)


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
        self._vocabularies = Vocabularies()
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
        sampling_params: Params = None,
        *,
        adapter: Adapters = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Continue each prompt (text or token ids); one output a prompt, in their order.

        ``sampling_params`` and ``adapter`` are one for all or one a prompt; without
        parameters the model's own defaults hold, up to the context's end. An output that failed
        on the way has ``error``. Raises BranchlineError for what can't run.
        """
        encoded, models = self._encoded(prompts, adapter)
        return self._run(encoded, sampling_params, models, use_tqdm)

    def chat(
        self,
        messages: Chats,
        sampling_params: Params = None,
        *,
        adapter: Adapters = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        use_tqdm: bool = True,
        **template_variables: Any,
    ) -> list[RequestOutput]:
        """Answer one chat, or each of several, through the adapter's or model's template.

        ``tools`` are told to the template; ``continue_final_message`` goes on with the last
        message instead of answering it.
        """
        chats = split_chats(messages)
        models = self._models(adapter, len(chats))
        variables = template_variables if tools is None else {**template_variables, "tools": tools}
        options = ChatOptions(
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )
        encoded = [
            self._rendered(chat, model, options) for chat, model in zip(chats, models, strict=True)
        ]
        return self._run(encoded, sampling_params, models, use_tqdm)

    def embed(
        self,
        prompts: Prompts,
        *,
        pooling: Pooling = "last",
        dimensions: int | None = None,
        adapter: Adapters = None,
        use_tqdm: bool = True,
    ) -> list[EmbeddingOutput]:
        """A vector of unit length for each prompt: of its last token, or the mean over all.

        ``dimensions`` keeps so many of its first values. Raises BranchlineError.
        """
        check_pooling(pooling, dimensions, self._engine.info.hidden_size)
        encoded, models = self._encoded(prompts, adapter)
        jobs = self._jobs(encoded, _PROMPT_ONLY, models)
        with _bar(jobs, use_tqdm) as bar:
            return run_embeddings(self._engine, jobs, pooling, dimensions, bar.update)

    def beam_search(
        self,
        prompts: Prompts,
        sampling_params: Params = None,
        *,
        beam_width: int = 4,
        length_penalty: float = 1.0,
        adapter: Adapters = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """The ``beam_width`` answers to each prompt that a search finds best, best first.

        By logprob / length ** length_penalty. Of ``sampling_params`` the lengths, ends and
        ``logprobs`` count; what a search can't honour is refused. Raises BranchlineError.
        """
        terms = BeamTerms(beam_width, length_penalty)
        encoded, models = self._encoded(prompts, adapter)
        if sampling_params is None:
            sampling_params = SamplingParams(max_tokens=self._defaults.max_tokens)
        jobs = self._jobs(encoded, sampling_params, models)
        for job in jobs:
            check_beams(job, terms)
        with _bar(jobs, use_tqdm) as bar:
            return run_beams(self._engine, jobs, terms, bar.update)

    def bad_word_ids(
        self, words: Sequence[str], *, adapter: str | None = None
    ) -> tuple[tuple[int, ...], ...]:
        """Words as ``SamplingParams.bad_word_ids``, spelled with and without a blank before."""
        model = self._model(adapter)
        vocab_size = model.vocab_size or self._engine.info.vocab_size
        return bad_word_ids(self._tokenizer_of(model), words, vocab_size)

    def _encoded(
        self, prompts: Prompts, adapter: Adapters
    ) -> tuple[list[OfflinePrompt], list[ServedModel]]:
        entries = split_offline(prompts)
        models = self._models(adapter, len(entries))
        pairs = zip(entries, models, strict=True)
        return [encode(self._tokenizer_of(model), entry) for entry, model in pairs], models

    def _rendered(
        self, chat: Sequence[Message], model: ServedModel, options: ChatOptions
    ) -> OfflinePrompt:
        template = model.chat_template or self._tokenizer.chat_template
        return render(self._tokenizer_of(model), template, chat, options)

    def _run(
        self,
        prompts: Sequence[OfflinePrompt],
        sampling_params: Params,
        models: Sequence[ServedModel],
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        jobs = self._jobs(prompts, sampling_params, models)
        run = BatchRun(self._engine, jobs)
        with _bar(jobs, use_tqdm) as bar:
            run.complete(bar.update)
        return [job.output() for job in jobs]

    def _jobs(
        self,
        prompts: Sequence[OfflinePrompt],
        sampling_params: Params,
        models: Sequence[ServedModel],
    ) -> list[Job]:
        params = one_each(sampling_params, len(prompts))
        return [
            self._job(prompt, one, model)
            for prompt, one, model in zip(prompts, params, models, strict=True)
        ]

    def _job(self, prompt: OfflinePrompt, params: SamplingParams | None, model: ServedModel) -> Job:
        tokenizer = self._tokenizer_of(model)
        vocab_size = model.vocab_size or self._engine.info.vocab_size
        checked = check_params(params or self._defaults, vocab_size)
        fitted = fit_max_tokens(
            with_ends(with_seed(checked), tokenizer.end_token_ids),
            len(prompt.token_ids),
            self._engine.info.max_model_len,
        )
        choices = expand_choices([(prompt.token_ids, fitted)], model.digest)
        return Job(
            request_id=uuid.uuid4().hex,
            prompt=prompt.text,
            prompt_token_ids=prompt.token_ids,
            adapter=None if model.digest is None else model.name,
            tokenizer=tokenizer,
            choices=[self._with_vocabulary(choice, tokenizer) for choice in choices],
        )

    def _with_vocabulary(self, choice: ChoiceRequest, tokenizer: Tokenizer) -> ChoiceRequest:
        """What the engine compiles a grammar with."""
        if choice.generation.params.grammar is None:
            return choice
        path = self._vocabularies.path_of(tokenizer)
        return replace(choice, generation=replace(choice.generation, vocabulary=path))

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


def _bar(jobs: Sequence[Job], shown: bool) -> tqdm[Any]:
    return tqdm(total=len(jobs), unit="prompt", disable=not shown)

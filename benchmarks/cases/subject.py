"""What the benchmarks serve: a base model and adapters, and the command that serves them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
from tokenizers import Tokenizer

from branchline import __version__
from branchline.benchmarks.peers import model as random_llama
from branchline.benchmarks.peers import servers
from branchline.engine.config import Dtype
from branchline.engine.machine import choose_device, choose_dtype
from branchline.engine.models.config import ModelConfig

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
GENERATION_PROMPT = "<|im_start|>assistant\n"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + GENERATION_PROMPT + "{% endif %}"
)
FIRST_PLAIN_TOKEN = 300
"""Random prompts hold token ids from here on: those below may be special."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model, and adapters under names of their own; ``chat_template`` replaces the model's."""

    name: str
    path: Path
    adapters: dict[str, Path]
    dtype: Dtype = "auto"
    chat_template: Path | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """The names a client may ask for."""
        return ("base", *self.adapters)

    @property
    def config(self) -> ModelConfig:
        """The decoder's architecture."""
        return ModelConfig.from_directory(self.path)

    @property
    def generation_prompt(self) -> list[int]:
        """The token ids that open an answer in a chat."""
        tokenizer = Tokenizer.from_file(str(self.path / "tokenizer.json"))
        ids: list[int] = tokenizer.encode(GENERATION_PROMPT, add_special_tokens=False).ids
        return ids

    def invocation(self, model: str) -> list[int] | None:
        """The invocation tokens of an activated LoRA; None for the base and any other adapter."""
        if model not in self.adapters:
            return None
        config = json.loads((self.adapters[model] / "adapter_config.json").read_text())
        return config.get("alora_invocation_tokens") or None

    def kv_gib(self, num_tokens: int) -> float:
        """GiB that the KV of ``num_tokens`` tokens takes in the engine's dtype."""
        config = self.config
        itemsize = choose_dtype(self.dtype, config.dtype, choose_device("auto")).itemsize
        values = 2 * config.num_layers * config.num_kv_heads * config.head_dim
        return num_tokens * values * itemsize / 2**30

    def server(self, *flags: str) -> servers.Peer:
        """``branchline serve`` on a free port, with ``flags`` beside its own."""
        port = servers.free_port()
        command = [sys.executable, "-m", "branchline", "serve", str(self.path)]
        command += ["--port", str(port), "--served-model-name", "base", "--dtype", self.dtype]
        command += flags
        if self.chat_template:
            command += ["--chat-template", str(self.chat_template)]
        for name, path in self.adapters.items():
            command += ["--lora", f"{name}={path}"]
        return servers.Peer("branchline", __version__, tuple(command), port, self.models, {})


def default_subject(directory: Path) -> Subject:
    """SmolLM2-135M-Instruct with a voice, and the same voice as an activated LoRA."""
    from branchline.examples.smollm2.prepare import PrepareError, prepare

    try:
        path = prepare()
    except PrepareError as error:
        raise click.ClickException(str(error)) from None
    voice = EXAMPLES / "smollm2" / "voices" / "austen"
    subject = Subject(name="SmolLM2-135M-Instruct", path=path, adapters={"adapter": voice})
    return _with_alora(subject, directory)


def random_subject(directory: Path, num_layers: int) -> Subject:
    """The random Llama of the peers' comparison: no answer means anything, every cost does."""
    paths = random_llama.prepare(directory, num_layers)
    template = directory / "template.jinja"
    template.write_text(CHAT_TEMPLATE)
    subject = Subject(
        name=f"random Llama: hidden 512, {num_layers} layers, vocab 16000",
        path=paths["base"],
        adapters={"adapter": paths["adapter0"]},
        dtype="float32",
        chat_template=template,
    )
    return _with_alora(subject, directory)


def own_subject(model: str, loras: Sequence[str]) -> Subject:
    """The model directory and NAME=PATH adapters named on the command line."""
    pairs = [pair.partition("=") for pair in loras]
    if not all(name and path for name, _, path in pairs):
        raise click.UsageError("--lora takes NAME=PATH")
    adapters = {name: Path(path) for name, _, path in pairs}
    return Subject(name=Path(model).name, path=Path(model), adapters=adapters)


def _with_alora(subject: Subject, directory: Path) -> Subject:
    """The subject's adapter once more, active only from the generation prompt on."""
    target = directory / "alora"
    shutil.copytree(subject.adapters["adapter"], target, dirs_exist_ok=True)
    file = target / "adapter_config.json"
    config = json.loads(file.read_text())
    config |= {"alora_invocation_tokens": subject.generation_prompt, "task_type": "CAUSAL_LM"}
    file.write_text(json.dumps(config))
    return replace(subject, adapters=subject.adapters | {"alora": target})

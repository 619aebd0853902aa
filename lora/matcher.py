"""Which modules of a base a configuration means, and with which rank and scale: as PEFT matches."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .adapter import AdapterConfig, Pattern
from .patterns import BoundedMatcher, key_expression, layer_expression, saved_expression

EMBEDDING_NAMES = ("embed_tokens", "lm_head")
"""The names by which PEFT knows embeddings and output layers."""


class ModuleMatcher:
    """Answers for modules, named by their path in the adapter's base model.

    Raises AdapterError where a pattern takes too long (see ``lora.patterns``).
    """

    def __init__(self, config: AdapterConfig) -> None:
        self._config = config
        self._bounded = BoundedMatcher()
        self._layers = frozenset(config.layers_to_transform)
        self._names = {
            field: frozenset(value)
            for field in ("target_modules", "exclude_modules")
            if not isinstance(value := getattr(config, field), str)
        }

    def rank_of(self, module: str) -> int:
        """Rank of a module."""
        config = self._config
        return int(self._first("rank_pattern", config.rank_pattern, module, config.rank))

    def scale_of(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732)."""
        config = self._config
        alpha = self._first("alpha_pattern", config.alpha_pattern, module, config.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if config.use_rslora else alpha / rank

    def targets(self, module: str) -> bool:
        """Whether PEFT would put LoRA on this linear or embedding."""
        config = self._config
        if self._named("exclude_modules", module):
            return False
        if any(self._saves_below(name, module) for name in config.modules_to_save):
            return False
        if config.targets_all_linear:
            return not module.endswith(EMBEDDING_NAMES)
        if not self._named("target_modules", module):
            return False
        if isinstance(config.target_modules, str) or module in self._names["target_modules"]:
            return True
        return not self._layers or self._layer_of(module) in self._layers

    def saves(self, module: str) -> bool:
        """Whether PEFT would keep a trained copy of this module in the adapter."""
        return any(module.endswith(name) for name in self._config.modules_to_save)

    def names_embedding(self, field: str) -> bool:
        """Whether ``modules_to_save`` or ``target_modules`` names an embedding or output layer."""
        named = getattr(self._config, field)
        if isinstance(named, str):
            return any(self._bounded.fullmatch(field, named, name) for name in EMBEDDING_NAMES)
        return any(name.rpartition(".")[2] in EMBEDDING_NAMES for name in named)

    def _saves_below(self, name: str, module: str) -> bool:
        return self._bounded.match("modules_to_save", saved_expression(name), module) is not None

    def _named(self, field: str, module: str) -> bool:
        names = self._names.get(field)
        if names is not None:
            return any(end in names for end in _ends_of(module))
        expression: str = getattr(self._config, field)
        return bool(expression) and self._bounded.fullmatch(field, expression, module)

    def _first(self, field: str, pattern: Pattern, module: str, default: float) -> float:
        for key, value in pattern:
            if self._bounded.match(field, key_expression(key), module) is not None:
                return value
        return default

    def _layer_of(self, module: str) -> int | None:
        patterns = [layer_expression(pattern) for pattern in self._config.layers_pattern]
        for expression in patterns or [r".*?\.[^.]*\.(?P<idx>\d+)\."]:
            match = self._bounded.match("layers_pattern", expression, module)
            if match is not None:
                return int(match["idx"])
        return None


def _ends_of(module: str) -> Iterator[str]:
    """The module's path and all ends of it that begin after a dot."""
    parts = module.split(".")
    return (".".join(parts[i:]) for i in range(len(parts)))

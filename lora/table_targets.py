"""What an adapter changes of the embedding and of the output layer, and where it is stored.

As PEFT has it: an adapter may bring a table of its own (``modules_to_save``), write one into the
base (where it resized the vocabulary, or beside a pair), replace rows, and add a pair. Where the
base ties its output layer to the embedding, what is written into the base and trained rows of the
embedding are the output layer's too; a table of its own and a pair are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from .adapter import AdapterConfig
from .errors import AdapterError
from .matcher import ModuleMatcher
from .peft_names import (
    BASE_WEIGHT,
    EMBEDDING_A,
    EMBEDDING_B,
    LORA_A,
    LORA_B,
    LORA_BIAS,
    MAGNITUDE,
    ORIGINAL,
    SAVED_COPY,
    TOKEN_BASE,
    TOKEN_ROWS,
    WEIGHT,
    BaseModules,
    tensor_name,
)
from .shapes import ModuleShapes

MAX_ADDED_TOKENS = 65_536
ROWS_FIELD = "trainable_token_indices"


@dataclass(frozen=True, slots=True)
class TablePair:
    """A low-rank pair on a table; ``magnitude`` and ``bias`` are None where it has none."""

    a: str
    b: str
    rank: int
    scale: float
    magnitude: str | None = None
    bias: str | None = None


@dataclass(frozen=True, slots=True)
class TableTarget:
    """Names of the tensors of one table.

    ``own`` is a table for this module alone, ``based`` one that PEFT writes into the base.
    """

    own: str | None = None
    based: str | None = None
    rows: str | None = None
    token_ids: tuple[int, ...] = ()
    pair: TablePair | None = None


@dataclass(frozen=True, slots=True)
class TableTargets:
    """Both tables.

    ``twins`` are tensors of one tied parameter, which must be equal, as PEFT would load the second
    over the first; (first, second, whether one is the other transposed). ``ignored`` are tensors
    that PEFT writes and does not read.
    """

    embedding: TableTarget = TableTarget()
    head: TableTarget = TableTarget()
    vocab_size: int = 0
    tensor_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    twins: tuple[tuple[str, str, bool], ...] = ()
    ignored: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.tensor_shapes)


def plan_tables(
    tensors: Mapping[str, tuple[int, ...]],
    modules: BaseModules,
    config: AdapterConfig,
    matcher: ModuleMatcher,
    shapes: ModuleShapes,
) -> TableTargets:
    """What the adapter does to the tables; raises AdapterError for what PEFT can not load."""
    if not shapes.vocab_size:
        return TableTargets()
    planner = _TablePlanner(tensors, modules, config, matcher, shapes)
    return planner.plan()


class _TablePlanner:
    def __init__(
        self,
        tensors: Mapping[str, tuple[int, ...]],
        modules: BaseModules,
        config: AdapterConfig,
        matcher: ModuleMatcher,
        shapes: ModuleShapes,
    ) -> None:
        self._tensors, self._config = tensors, config
        self._matcher, self._shapes = matcher, shapes
        self._paths = (modules.embedding, modules.head)
        self._ignored: set[str] = set()
        ties = shapes.tied and config.ensure_weight_tying
        self._ties_saved = ties and matcher.names_embedding("modules_to_save")
        self._ties_pairs = (
            ties and not self._ties_saved and matcher.names_embedding("target_modules")
        )

    def plan(self) -> TableTargets:
        ids = self._token_ids()
        embedding, head = (
            self._target(path, ids[path], path == self._paths[1]) for path in self._paths
        )
        twins = tuple(self._twins(embedding, head)) if self._shapes.tied else ()
        if self._shapes.tied:
            based = embedding.based or head.based
            embedding, head = replace(embedding, based=based), replace(head, based=based)
            if embedding.rows and not head.rows:
                head = self._tied_rows(embedding, head)
        vocab_size = self._vocab_size(embedding, head)
        expected = self._expected(embedding, head, vocab_size)
        expected |= {second: expected[first] for first, second, turned in twins if not turned}
        if expected:
            self._check_ids(embedding, head, vocab_size)
        ignored = frozenset(self._ignored)
        return TableTargets(embedding, head, vocab_size, expected, twins, ignored)

    def _twins(self, embedding: TableTarget, head: TableTarget) -> Iterator[tuple[str, str, bool]]:
        if embedding.based and head.based:
            yield embedding.based, head.based, False
        if self._ties_saved and embedding.own and head.own:
            yield embedding.own, head.own, False
        if self._ties_pairs and embedding.pair and head.pair:
            yield embedding.pair.b, head.pair.a, True
            yield embedding.pair.a, head.pair.b, True

    def _token_ids(self) -> dict[str, tuple[int, ...]]:
        """Token ids by path; rows that a tied output layer takes over are the embedding's."""
        found: dict[str, tuple[int, ...]] = dict.fromkeys(self._paths, ())
        for name, ids in self._config.token_rows:
            paths = [path for path in self._paths if path == name or path.endswith(f".{name}")]
            if not paths:
                raise AdapterError(
                    ROWS_FIELD, f"{name!r} is not one of {', '.join(self._paths)} of the base"
                )
            found[paths[0]] = ids
        embedding, head = self._paths
        if self._shapes.tied and found[embedding] and found[head]:
            if found[embedding] == found[head]:
                found[head] = ()
            elif self._config.ensure_weight_tying:
                raise AdapterError(
                    ROWS_FIELD, "has other tokens for the tied output layer than for the embedding"
                )
        return found

    def _target(self, path: str, token_ids: tuple[int, ...], is_head: bool) -> TableTarget:
        saved = self._matcher.saves(path) or (is_head and self._ties_saved)
        targeted = self._matcher.targets(path) or (is_head and self._ties_pairs)
        ways = [("modules_to_save", saved), ("target_modules", targeted), (ROWS_FIELD, token_ids)]
        taken = [name for name, used in ways if used]
        if len(taken) > 1:
            raise AdapterError(taken[-1], f"names {path}, as {taken[0]} does; allowed: one of them")
        if saved:
            self._ignored.add(tensor_name(path, SAVED_COPY))
        return TableTarget(
            own=tensor_name(path, WEIGHT) if saved else None,
            based=self._based(path, saved),
            rows=tensor_name(path, TOKEN_ROWS) if token_ids else None,
            token_ids=token_ids,
            pair=self._pair(path, is_head) if targeted else None,
        )

    def _based(self, path: str, saved: bool) -> str | None:
        """The table that PEFT would write into the base, if there is one."""
        parts = (BASE_WEIGHT, TOKEN_BASE, ORIGINAL) if saved else (BASE_WEIGHT, TOKEN_BASE, WEIGHT)
        names = [tensor_name(path, part) for part in parts]
        found = [name for name in names if name in self._tensors]
        if len(found) > 1:
            raise AdapterError(found[1], f"is for the same table as {found[0]}")
        return found[0] if found else None

    def _pair(self, path: str, is_head: bool) -> TablePair:
        config, matcher = self._config, self._matcher
        if config.invocation_tokens is not None:
            raise AdapterError(
                "target_modules", f"LoRA on {path} is not served with an activated LoRA"
            )
        if config.lora_bias and not is_head:
            raise AdapterError("lora_bias", f"can not go with LoRA on {path}")
        a, b = (LORA_A, LORA_B) if is_head else (EMBEDDING_A, EMBEDDING_B)
        # A tied pair is the embedding's, whatever rank the output layer's scale is made of.
        rank = matcher.rank_of(self._paths[0] if self._ties_pairs else path)
        return TablePair(
            tensor_name(path, a),
            tensor_name(path, b),
            rank,
            matcher.scale_of(path),
            tensor_name(path, MAGNITUDE) if config.use_dora else None,
            tensor_name(path, LORA_BIAS) if config.lora_bias else None,
        )

    def _tied_rows(self, embedding: TableTarget, head: TableTarget) -> TableTarget:
        if head.own:
            raise AdapterError(
                ROWS_FIELD, f"rows of the tied {self._paths[1]} can not go with a saved one"
            )
        # PEFT writes the rows under this name too where it resized the vocabulary.
        self._ignored.add(tensor_name(self._paths[1], TOKEN_ROWS))
        return replace(head, rows=embedding.rows, token_ids=embedding.token_ids)

    def _vocab_size(self, embedding: TableTarget, head: TableTarget) -> int:
        base_size = self._shapes.vocab_size
        sizes = []
        for target in (embedding, head):
            shape = self._tensors.get(target.own or target.based or "", (base_size,))
            sizes.append(shape[0] if shape else 0)
        if sizes[0] != sizes[1]:
            raise AdapterError(
                embedding.own or embedding.based or head.own or head.based or "lm_head",
                f"the embedding has {sizes[0]} tokens and the output layer {sizes[1]}; save both "
                "with the adapter (save_embedding_layers=True)",
            )
        if not 1 <= sizes[0] <= base_size + MAX_ADDED_TOKENS:
            raise AdapterError(
                embedding.own or embedding.based or "embed_tokens",
                f"has {sizes[0]} tokens; allowed: at most {MAX_ADDED_TOKENS} more than the base's "
                f"{base_size}",
            )
        return sizes[0]

    def _expected(
        self, embedding: TableTarget, head: TableTarget, vocab_size: int
    ) -> dict[str, tuple[int, ...]]:
        hidden = self._shapes.hidden_size
        expected: dict[str, tuple[int, ...]] = {}
        for target in (embedding, head):
            for name in (target.own, target.based):
                if name is not None:
                    expected[name] = (vocab_size, hidden)
            if target.rows is not None:
                expected[target.rows] = (len(target.token_ids), hidden)
        if embedding.pair is not None:
            pair = embedding.pair
            expected |= {pair.a: (pair.rank, vocab_size), pair.b: (hidden, pair.rank)}
            if pair.magnitude is not None:
                expected[pair.magnitude] = (hidden,)
        if head.pair is not None:
            pair = head.pair
            expected |= {pair.a: (pair.rank, hidden), pair.b: (vocab_size, pair.rank)}
            for name in (pair.magnitude, pair.bias):
                if name is not None:
                    expected[name] = (vocab_size,)
        return expected

    def _check_ids(self, embedding: TableTarget, head: TableTarget, vocab_size: int) -> None:
        for token in (*embedding.token_ids, *head.token_ids):
            if token >= vocab_size:
                raise AdapterError(
                    ROWS_FIELD, f"token {token} is not in the vocabulary of {vocab_size}"
                )

"""``/v1/models``: every name that may be put in ``model``, and what is behind it."""

from __future__ import annotations

from .adapters.sources import shown_location
from .catalog import ServedModel
from .paging import page_of
from .services import Services
from .wire import ModelCard, ModelList


class ModelCards:
    """What the catalog holds now, the base's names first, then the others by name."""

    def __init__(self, services: Services) -> None:
        self._catalog = services.catalog
        self._created = services.created
        self._max_model_len = services.sampling.max_model_len

    def page(self, limit: int | None, after: str | None) -> ModelList:
        """All names, or a page of them in OpenAI's form where one of the two is given."""
        models = {model.name: model for model in self._catalog.models()}
        bases = [name for name in self._catalog.base_names if name in models]
        names = [*bases, *sorted(models.keys() - set(bases))]
        page = page_of(names, limit, after, num_leading=len(bases))
        cards = [self._card(models[name]) for name in page.names]
        if limit is None and after is None:
            return ModelList(cards)
        return ModelList(cards, first_id=page.first, last_id=page.last, has_more=page.has_more)

    def get(self, name: str) -> ModelCard:
        """One name; raises ApiError 404 for an unknown one."""
        listed = next((model for model in self._catalog.models() if model.name == name), None)
        return self._card(listed or self._catalog.resolve(name))

    def _card(self, model: ServedModel) -> ModelCard:
        return ModelCard(
            id=model.name,
            created=self._created if model.created is None else model.created,
            owned_by="branchline",
            root=shown_location(model.root),
            parent=None if model.digest is None else self._catalog.base.name,
            max_model_len=self._max_model_len,
        )

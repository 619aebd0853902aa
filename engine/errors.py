"""What the engine can refuse or fail at.

BranchlineError (lora.errors)
├── AdapterError            an adapter that can't be served
└── EngineError
    ├── UnsupportedModelError   a model that can't be served (engine.models.config)
    ├── EngineStartError        the engine could not come up
    ├── EngineDeadError         the engine process is gone
    └── RequestError            a request the engine can't take; names the field
"""

from __future__ import annotations

from ..lora.errors import BranchlineError


class EngineError(BranchlineError):
    """Anything the engine refuses or fails at."""


class EngineStartError(EngineError):
    """The engine could not come up; the message is one line for the operator."""


class EngineDeadError(EngineError):
    """The engine process is gone; every request it held has ended."""


class RequestError(EngineError):
    """A request the engine can't take."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message

"""The root of Branchline's errors, and what an adapter can be refused for.

BranchlineError
└── AdapterError        an adapter directory, name or field that is not served
"""

from __future__ import annotations


class BranchlineError(Exception):
    """Any error that Branchline raises on purpose."""


class AdapterError(BranchlineError):
    """An adapter is refused; ``field`` is the config field, file, tensor or module at fault."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message

    def __reduce__(self) -> tuple[type[AdapterError], tuple[str, str]]:
        """Pickle by both arguments, so that it crosses a process boundary."""
        return (AdapterError, (self.field, self.message))

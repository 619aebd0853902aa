"""Why a gateway can't start; a module of its own, since a parent of workers needs little else."""

from __future__ import annotations


class StartError(Exception):
    """Something about this machine, or what it was told, that keeps the gateway from starting."""

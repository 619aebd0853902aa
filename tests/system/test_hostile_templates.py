"""A chat template that would hang the server: it does not get in, or costs its own requests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import psutil
import pytest
from adapter_server import AdapterServer, Background, refusal, serve_adapters
from server_process import wait_for
from versions_house import versions_house, VersionsHouse

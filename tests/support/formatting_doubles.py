"""What a formatting process is given to do in tests: by what a job's directory is called."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

from branchline.engine.adapter_format import AdapterFacts, FormatJob
from branchline.lora.errors import AdapterError


def do(job: FormatJob) -> AdapterFacts:
    """Ends well for any name that is not one of these; leaves the process's id in ``target``."""
    Path(job.target, "pid").write_text(str(os.getpid()))
    match job.directory:
        case "refused":
            raise AdapterError("r", "must be 1 to 512")
        case "fault":
            raise KeyError("a fault\nof ours")
        case "dies":
            os._exit(3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "waits":
            time.sleep(600)
        case "backtracks":
            re.match(r"(a|a)*$", "a" * 60 + "b")
        case "prints":
            print("x" * 100_000)
            os.system("echo from a child")
        case "environment":
            return facts(f"{os.environ['OMP_NUM_THREADS']} {os.nice(0)}")
    return facts(job.directory)


def facts(digest: str) -> AdapterFacts:
    return AdapterFacts(digest=digest, rank=8, modules=("q_proj",), device_bytes=1, file_bytes=2)

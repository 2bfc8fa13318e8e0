"""One vLLM process: its command, start, health and stop.

    vllm = VllmProcess(plan, Address("127.0.0.1", 8000), log)
    vllm.start()
    vllm.wait_ready(on_progress)        StageError with vLLM's own error if it ends
    vllm.stop()                         also stops all processes that it started

It listens on a port, or on a Unix socket that only this user can reach.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import IO

from insource.config.errors import RecipeError, StageError
from insource.config.schema.serving_and_cost import Serve
from insource.system import child_processes, environment

VLLM_MODULE = "vllm.entrypoints.openai.api_server"
HOST_CHECK = "serve.vllm.host_check.HostCheck"
UNREACHABLE_DOMAIN = "none.invalid"
SMALL_CPU_CORES = 4
# The short name "uni" is overridden on a CPU: vLLM then starts separate workers to bind each to its cores.
UNIPROC_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.25
_MAX_LOG_LINES = 12


@dataclass(frozen=True)
class LaunchPlan:
    """The settings of one vLLM process. `serve/artifact_checks.py` has checked its files."""

    model: str
    """A folder, or a name on the hub."""
    name: str
    """The model name in requests."""
    serve: Serve
    use_cpu: bool
    revision: str | None = None
    chat_template: Path | None = None
    tokenizer: Path | None = None
    """Folder with the tokenizer and the generation config of the training, if the model folder has others."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """Adapter folders by their names in requests."""
    max_lora_rank: int = 0
    runtime_adapters: int = 0
    """Maximum number of adapters loaded at runtime at the same time; 0 disables loading."""
    prefix_caching: bool = True

    @property
    def dtype(self) -> str:
        """Data type that vLLM computes in: float32 or bfloat16 for `serve.dtype: auto`."""
        if self.serve.dtype != "auto":
            return self.serve.dtype
        int8 = Path(self.model).parts[-2:] == ("quantized", "int8")
        return "float32" if self.use_cpu and not (int8 and environment.cpu_has_amx()) else "bfloat16"


@dataclass(frozen=True)
class Address:
    """Address that a server listens on: host and port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    socket: Path | None = None

    def __str__(self) -> str:
        return str(self.socket) if self.socket else f"http://{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """True if only this machine can reach the address."""
        return self.socket is not None or self.host == "localhost" or self.host.startswith("127.") or self.host == "::1"

    @property
    def client_host(self) -> str:
        """The host in URLs of clients on this machine: a loopback address if the server listens on all addresses."""
        loopback_hosts = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104
        return loopback_hosts.get(self.host, f"[{self.host}]" if ":" in self.host else self.host)


def vllm_command(plan: LaunchPlan, address: Address, with_key: bool = False) -> list[str]:
    """Return the vLLM command line, as it is run and as `--dry-run` prints it."""
    listen_options = (
        ["--uds", str(address.socket)] if address.socket else ["--host", address.host, "--port", str(address.port)]
    )
    argv = [sys.executable, "-m", VLLM_MODULE, *listen_options, "--model", plan.model, "--served-model-name", plan.name]
    argv += ["--revision", plan.revision] if plan.revision else []
    argv += ["--load-format", "safetensors", "--dtype", plan.dtype, "--max-model-len", str(plan.serve.max_model_len)]
    argv += ["--chat-template", str(plan.chat_template)] if plan.chat_template else []
    argv += ["--tokenizer", str(plan.tokenizer)] if plan.tokenizer else []
    # The default uses Mistral's own tokenizer if the folder has a tekken.json, and its own renderers for some models.
    # Neither uses the chat template.
    argv += ["--tokenizer-mode", "hf"]
    # vLLM stops at the EOS of the tokenizer and at those of the generation config. With both from the training it stops
    # only at the trained token. Without sampling parameters in a request it decodes greedily, whatever the base's
    # config sets.
    generation_config = (
        plan.tokenizer if plan.tokenizer and (plan.tokenizer / "generation_config.json").is_file() else "vllm"
    )
    argv += [
        "--generation-config",
        str(generation_config),
        "--override-generation-config",
        json.dumps({"temperature": 0.0}),
    ]
    argv += ["--structured-outputs-config", json.dumps({"backend": "xgrammar"})]
    # Log-probabilities after the constraint is applied: of the tokens that it allows.
    argv += ["--logprobs-mode", "processed_logprobs"]
    if plan.use_cpu:
        # The default on a CPU is 128 tokens. A prefix is cached in full blocks, and the rest of it is computed for each
        # request.
        argv += ["--kv-cache-memory-bytes", str(int(plan.serve.cpu_cache_gib * 2**30)), "--block-size", "32"]
        if len(os.sched_getaffinity(0)) <= SMALL_CPU_CORES:
            # Saves the start of one Python process and uses all cores; the default executor keeps one core free.
            argv += ["--distributed-executor-backend", UNIPROC_EXECUTOR]
    else:
        argv += ["--gpu-memory-utilization", str(plan.serve.gpu_memory_utilization)]
    if plan.adapters or plan.runtime_adapters:
        max_loras = max(len(plan.adapters), plan.runtime_adapters)
        argv += ["--enable-lora", "--max-lora-rank", str(plan.max_lora_rank), "--max-loras", str(max_loras)]
    if plan.adapters:
        argv += ["--lora-modules", *(f"{name}={folder}" for name, folder in plan.adapters.items())]
    # Tasks are text. No request may make the server fetch a URL.
    argv += ["--allowed-media-domains", UNREACHABLE_DOMAIN]
    if address.socket is None and not with_key:
        argv += ["--middleware", HOST_CHECK]
    argv += ["--enforce-eager"] if plan.serve.enforce_eager else []
    argv += ["--enable-prefix-caching" if plan.prefix_caching else "--no-enable-prefix-caching"]
    return [*argv, "--disable-uvicorn-access-log"]


def vllm_environment(plan: LaunchPlan, api_key: str | None) -> dict[str, str]:
    """Return the environment variables that the command needs in addition to those of this process."""
    env = {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
    if Path(plan.model).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    if plan.use_cpu and plan.serve.enforce_eager:
        # vLLM 0.32 compiles the ranking of log-probabilities even with enforce_eager. That needs a C++ compiler and
        # takes seconds of the first request. It fails under ATEN_CPU_CAPABILITY=default, where torch 2.13 generates
        # invalid C++.
        env["TORCH_COMPILE_DISABLE"] = "1"
    if plan.runtime_adapters:
        env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if api_key:
        # Not on the command line, which every user of the machine can read.
        env["VLLM_API_KEY"] = api_key
    return env


class VllmProcess:
    """A vLLM process started by this process."""

    def __init__(
        self,
        plan: LaunchPlan,
        address: Address,
        log: Path,
        api_key: str | None = None,
        stop_seconds: float = _STOP_SECONDS,
    ) -> None:
        self.plan, self.address, self.log = plan, address, log
        self._api_key, self._stop_seconds = api_key, stop_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._stop_lock = threading.Lock()
        self._started_at = 0.0
        self._dead_children: set[int] = set()

    def start(self) -> None:
        """Start the process.

        Only the main thread may call it, because vLLM is killed when the thread that started it ends.

        Raise RecipeError if the port is taken.
        """
        if self.address.socket is None:
            check_port_free(self.address.host, self.address.port)
        self._started_at, self._dead_children = time.monotonic(), set()
        with self.log.open("wb") as log:
            argv = vllm_command(self.plan, self.address, self._api_key is not None)
            self._process = _spawn(argv, vllm_environment(self.plan, self._api_key), log)

    def wait_ready(self, on_progress: Callable[[float, str], None] = lambda seconds, line: None) -> float:
        """Wait until the server is ready and return the seconds since its start.

        `on_progress` gets the seconds and the last line of the log. Raise StageError with vLLM's own error if the
        process ends or takes longer than `serve.start_seconds`.
        """
        while True:
            seconds = time.monotonic() - self._started_at
            if not self.is_alive():
                raise StageError(f"vLLM ended while it started, {self.failure_message()}", code="INS-E005")
            if is_healthy(self.address):
                return seconds
            if seconds > self.plan.serve.start_seconds:
                raise StageError(
                    f"vLLM was not ready after {seconds:.0f} s (serve.start_seconds), {self.failure_message()}",
                    code="INS-E005",
                )
            on_progress(seconds, last_line(self.log))
            time.sleep(_POLL_SECONDS)

    @property
    def pid(self) -> int:
        """Process id of the server. Raise RuntimeError before `start`."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process.pid

    def is_alive(self) -> bool:
        """Return whether the process runs. Thread-safe, also while another thread stops it."""
        process = self._process
        return process is not None and process.poll() is None

    def find_death(self) -> str | None:
        """Return why the server has to be restarted because a process ended, None if all run. Call it repeatedly."""
        if not self.is_alive():
            return f"died, {self.failure_message()}"
        # A child that ends normally is a zombie until its parent reaps it. Only one seen in two successive calls has
        # died.
        previous, self._dead_children = self._dead_children, find_dead_children(self.pid)
        if previous & self._dead_children:
            return f"died, a process that it started has ended, {self.failure_message()}"
        return None

    def failure_message(self) -> str:
        """Return the errors in the server's log and the path of the log."""
        errors = "\n".join(f"  {line}" for line in extract_errors(_read_tail(self.log)) or ["nothing"])
        return f"and said:\n{errors}\n  The whole log: {os.path.relpath(self.log)}{known_error_hint(errors)}"

    def stop(self) -> None:
        """Stop the server and all processes that it started; kill them after `stop_seconds`. Thread-safe."""
        with self._stop_lock:
            if self._process is None:
                return
            group = self._process.pid
            if self.is_alive():
                self._process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(self._stop_seconds)
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            self._process.wait()
            self._process = None
            if self.address.socket:
                self.address.socket.unlink(missing_ok=True)


def _spawn(argv: list[str], env: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=child_processes.make_parent_death_preexec(signal.SIGTERM),
    )


def find_dead_children(pid: int) -> set[int]:
    """Return the ids of ended child processes of vLLM that it has not reaped.

    vLLM may outlive its engine process and answer 500. A child that ends normally is listed for a moment too.
    """
    pids = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # pid (name) state parent ...; the name may contain any character.
            state, parent = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if parent == str(pid) and state == "Z":
            pids.add(int(stat.parent.name))
    return pids


def check_port_free(host: str, port: int) -> None:
    """Raise RecipeError if the port is in use or the host is not an address of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            hint = f"; {free_port(host)} is free: SET=serve.port={free_port(host)}" if error.errno == 98 else ""
            raise RecipeError(
                f"serve: vLLM cannot use {host}:{port}: {error.strerror}{hint}", code="INS-X009"
            ) from None


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that is free now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


def is_healthy(address: Address) -> bool:
    """Return whether the server answers `GET /health` with 200."""
    if address.socket:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(5)
            try:
                connection.connect(str(address.socket))
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: vllm\r\nConnection: close\r\n\r\n")
                return b" 200 " in connection.recv(64)
            except OSError:
                return False
    try:
        with urllib.request.urlopen(f"http://{address.client_host}:{address.port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def last_line(log: Path) -> str:
    """Return the last non-empty line of a log."""
    lines = (_strip_log_prefix(line) for line in reversed(_read_tail(log, 4096).splitlines()))
    return next((line for line in lines if line), "")


def _read_tail(log: Path, max_bytes: int = 2**20) -> str:
    """Return the end of a log, which may have grown for months."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - max_bytes))
        return file.read().decode(errors="replace")


def extract_errors(log: str) -> list[str]:
    """Return the errors in vLLM's log without tracebacks, or its last lines if it has no errors."""
    lines = [_strip_log_prefix(line) for line in log.splitlines()]
    # A pydantic error has several lines, with the reason on the second.
    errors = [
        f"{line} {next_line}" if re.search(r"error for \w+$", line) else line
        for line, next_line in zip_longest(lines, lines[1:], fillvalue="")
        if re.match(r"(\w+\.)*\w*(Error|Exception)\b", line)
    ]
    # The first error is the cause. The following ones are its consequences in other processes.
    selected = list(dict.fromkeys(errors))[:3] or [line for line in lines if line][-_MAX_LOG_LINES:]
    return [line[:500] for line in selected]


def known_error_hint(text: str) -> str:
    """Return the fix of a known error, after a line break, or an empty string."""
    hints = {
        # Logged before the model is loaded: another process, such as the display, uses part of the GPU.
        r"Free memory on device|less than desired GPU memory utilization|Decrease GPU memory": (
            "Another program uses a part of the GPU (nvidia-smi lists it): end it, or set a lower "
            "serve.gpu_memory_utilization, below the free share in the lines above."
        ),
        # The KV cache gets the part of gpu_memory_utilization that the weights leave.
        r"No available memory|larger than the available KV": (
            "The weights leave too little for the cache: set a smaller serve.max_model_len, "
            "serve.gpu_memory_utilization up to 0.95, serve.model=quantized/int8, or a larger machine."
        ),
        r"out of memory|Cannot allocate": (
            "Not enough memory beside the weights and the cache: take a lower serve.gpu_memory_utilization, a smaller "
            "serve.max_model_len, serve.model=quantized/int8, or a larger machine."
        ),
        r"max_model_len|max_position_embeddings": "serve.max_model_len is more than this model can take.",
        r"PackageNotFoundError|No module named 'vllm'": "vLLM is not installed here: `make setup`.",
    }
    return next((f"\n  {hint}" for pattern, hint in hints.items() if re.search(pattern, text)), "")


def _strip_log_prefix(line: str) -> str:
    """Return a line without the prefix of vLLM's logger: process, level, time, source file."""
    line = re.sub(r"\x1b\[[0-9;]*m", "", line)
    line = re.sub(r"^\(\w+ pid=\d+\)\s*", "", line)
    return re.sub(r"^(INFO|WARNING|ERROR|DEBUG) [\d-]+ [\d:.]+ \[[^\]]*\]\s*", "", line).strip()

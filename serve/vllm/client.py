"""HTTP client of vLLM for everything except answers: token ids, text of token ids, loading of adapters."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.config.errors import StageError
from serve.vllm.server_process import Address

if TYPE_CHECKING:
    from aiohttp import ClientSession

_DEFAULT_CONNECTIONS = 16
# uvicorn closes connections that were idle for 5 s. Closing them earlier here avoids a request on a closing connection.
_IDLE_SECONDS = 2.0


def base_url(address: Address) -> str:
    """Return the base URL of the server's OpenAI API."""
    return f"{client_url(address)}/v1"


def client_url(address: Address) -> str:
    """Return the URL that a client on this machine connects to."""
    if address.socket:
        return "http://vllm"
    return f"http://{address.client_host}:{address.port}"


def open_session(
    address: Address,
    api_key: str | None = None,
    max_connections: int = _DEFAULT_CONNECTIONS,
    read_seconds: float | None = None,
) -> "ClientSession":
    """Return a client session with a server, to be used as a context manager.

    `read_seconds` is the longest time without data from the server; None: no limit.
    """
    return open_url_session(client_url(address), api_key, max_connections, read_seconds, address.socket)


def open_url_session(
    url: str,
    api_key: str | None,
    max_connections: int,
    read_seconds: float | None = None,
    socket: Path | None = None,
) -> "ClientSession":
    """Return a client session with a server on any machine; see `open_session`. `socket` is its Unix socket."""
    from aiohttp import ClientSession, ClientTimeout, TCPConnector, UnixConnector

    pool: Any = {"limit": max_connections, "keepalive_timeout": _IDLE_SECONDS}
    connector: Any = UnixConnector(str(socket), **pool) if socket else TCPConnector(**pool)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = ClientTimeout(total=None, sock_connect=10, sock_read=read_seconds)
    return ClientSession(url, connector=connector, headers=headers, timeout=timeout)


async def post_json(session: "ClientSession", path: str, body: Mapping[str, object]) -> Any:
    """Return the JSON answer to a request. Raise StageError if the server rejects it."""
    async with session.post(path, json=body) as response:
        if response.status != 200:
            raise StageError(f"{path} answers {response.status}: {(await response.text())[:300]}", code="INS-E009")
        return await response.json()


async def fetch_prompt_ids(
    session: "ClientSession", model: str, conversations: Sequence[Sequence[Mapping[str, str]]]
) -> list[list[int]]:
    """Return the token ids that the server reads for each conversation. Raise StageError if it rejects one."""
    bodies = [{"model": model, "messages": list(messages)} for messages in conversations]
    payloads = await asyncio.gather(*(post_json(session, "/tokenize", body) for body in bodies))
    return [payload["tokens"] for payload in payloads]


async def detokenize(session: "ClientSession", model: str, ids: Sequence[int]) -> str:
    """Return the text of token ids by the server's tokenizer. Raise StageError if it rejects them."""
    return str((await post_json(session, "/detokenize", {"model": model, "tokens": list(ids)}))["prompt"])


async def load_adapter(session: "ClientSession", name: str, folder: str) -> None:
    """Load an adapter into a running server under an unused name. Raise StageError if the server rejects it."""
    async with session.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": folder}) as response:
        if response.status != 200:
            raise StageError(
                f"vLLM does not load {name} from {folder}: {(await response.text())[:500]}", code="INS-E009"
            )


async def unload_adapter(session: "ClientSession", name: str) -> None:
    """Unload an adapter from a running server. Raise StageError if the server rejects it."""
    async with session.post("/v1/unload_lora_adapter", json={"lora_name": name}) as response:
        if response.status != 200:
            raise StageError(f"vLLM does not unload {name}: {(await response.text())[:500]}", code="INS-E009")

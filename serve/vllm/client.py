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
    return _open_session(client_url(address), address.socket, api_key, max_connections, read_seconds)


def open_url_session(url: str, api_key: str | None, max_connections: int) -> "ClientSession":
    """Return a client session with a server on any machine, to be closed by the caller."""
    return _open_session(url, None, api_key, max_connections, None)


def _open_session(
    url: str, socket: Path | None, api_key: str | None, max_connections: int, read_seconds: float | None
) -> "ClientSession":
    from aiohttp import ClientSession, ClientTimeout, TCPConnector, UnixConnector

    pool: Any = {"limit": max_connections, "keepalive_timeout": _IDLE_SECONDS}
    connector: Any = UnixConnector(str(socket), **pool) if socket else TCPConnector(**pool)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = ClientTimeout(total=None, sock_connect=10, sock_read=read_seconds)
    return ClientSession(url, connector=connector, headers=headers, timeout=timeout)


async def fetch_prompt_ids(
    address: Address, api_key: str | None, model: str, conversations: Sequence[Sequence[Mapping[str, str]]]
) -> list[list[int]]:
    """Return the token ids that the server reads for each conversation. Raise StageError if it rejects one."""
    async with open_session(address, api_key) as session:

        async def tokenize(messages: Sequence[Mapping[str, str]]) -> list[int]:
            body = {"model": model, "messages": list(messages)}
            async with session.post("/tokenize", json=body) as response:
                if response.status != 200:
                    raise StageError(
                        f"/tokenize answers {response.status}: {(await response.text())[:300]}", code="INS-E009"
                    )
                return (await response.json())["tokens"]  # type: ignore[no-any-return]

        return await asyncio.gather(*map(tokenize, conversations))


async def detokenize(session: "ClientSession", model: str, ids: Sequence[int]) -> str:
    """Return the text of token ids by the server's tokenizer. Raise StageError if it rejects them."""
    async with session.post("/detokenize", json={"model": model, "tokens": list(ids)}) as response:
        if response.status != 200:
            raise StageError(f"/detokenize answers {response.status}: {(await response.text())[:300]}", code="INS-E009")
        return str((await response.json())["prompt"])


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

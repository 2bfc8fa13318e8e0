"""A worker: one process on a node, with a vLLM server of its own or a client of a running one.

It predicts shards and writes nothing but the log of its server. The driver journals the predictions.
"""

import asyncio
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import ClientSession

from insource.config.schema.serving_and_cost import Serve
from predict.engines import clients, local_vllm
from predict.engines.clients import ServedTask, VllmClient
from predict.prediction import Prediction
from predict.rows.inputs import InputRow
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import VllmProcess

OMP_VARIABLE = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class WorkerEngine:
    """The vLLM server that a worker starts on its node."""

    served: ServedModel
    serve: Serve
    log_folder: Path
    omp_num_threads: str | None
    """OMP_NUM_THREADS of the driver. Ray sets that of a worker to its number of CPUs, and vLLM would inherit it."""


@dataclass(frozen=True)
class WorkerSetup:
    """The settings of all workers."""

    task: ServedTask
    labels: Sequence[str]
    """Labels whose probabilities are requested."""
    concurrency: int
    """Requests in flight at a worker's server."""
    engine: WorkerEngine | str
    """The server to start, or the address of a running one as the worker's node reaches it."""


class Worker:
    """The state of a worker: its server, and the client of it. Ray runs it as an actor."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._vllm: VllmProcess | None = None
        self._session: ClientSession | None = None

    async def start(self) -> str:
        """Start the server and return the address of the node.

        Raise RecipeError, StageError and GateError as `local_vllm.start_server` does.
        """
        import ray

        # In a thread of the executor, which lives as long as the worker: vLLM ends with the thread that starts it, and
        # the parity check has an event loop of its own.
        origin = await asyncio.to_thread(self._start_server)
        self._session = clients.open_session(origin, self._setup.concurrency)
        return str(ray.util.get_node_ip_address())

    def _start_server(self) -> str:
        """Start vLLM, unless a server runs already, and return the server's address."""
        engine = self._setup.engine
        if isinstance(engine, str):
            return engine
        os.environ.pop(OMP_VARIABLE, None)
        if engine.omp_num_threads is not None:
            os.environ[OMP_VARIABLE] = engine.omp_num_threads
        log_path = engine.log_folder / f"vllm-{uuid.uuid4().hex[:8]}.log"
        self._vllm = local_vllm.start_server(engine.served, engine.serve, log_path)
        return f"http://{self._vllm.address.host}:{self._vllm.address.port}"

    async def predict_shard(self, rows: Sequence[InputRow]) -> list[Prediction]:
        """Return the prediction of each row. Raise StageError if the server is down."""
        assert self._session is not None, "started"
        setup = self._setup
        client = VllmClient(setup.task, self._session, setup.labels, setup.concurrency)
        return list(await asyncio.gather(*map(client.predict, rows)))

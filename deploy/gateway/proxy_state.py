"""State of the proxy: active versions, the session with vLLM, requests in flight."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import ClientSession

from deploy.answers.engine_pool import EnginePool, EngineSession
from deploy.answers.outcome import Deployment
from deploy.answers.request_errors import RequestError, invalid_request
from deploy.gateway.keys import Keys
from deploy.gateway.paths import chat_request, forwarding
from deploy.monitoring.monitor import Monitor
from insource.config.schema.serving_and_cost import Limits


class ProxyState:
    """Active versions, the session with vLLM, and requests in flight."""

    def __init__(
        self,
        keys: str | Keys | None,
        limits: Limits | None = None,
        deployed_models: tuple[str, ...] = (),
        monitor: Monitor | None = None,
    ) -> None:
        self.keys = keys if isinstance(keys, Keys) else Keys(keys)
        self.limits = limits or Limits()
        self.monitor = monitor or Monitor()
        self.monitor.mirror.track_in_flight = self.track_in_flight
        self.deployed_models = deployed_models
        """Models that are deployed, with or without an active version."""
        self.versions: dict[str, str] = {}
        """{model: version} for new requests."""
        self.tasks: dict[str, Deployment] = {}
        """{model: deployment of that version}."""
        self.engine: ClientSession | None = None
        """The session with vLLM, None while it is down."""
        self.pool: EnginePool | None = None
        """The engines of serve.engines instead of a vLLM of the gateway."""
        self.engine_responds = True
        """False while vLLM runs and sends nothing."""
        self.last_data_at = 0.0
        """Time of the last data from vLLM (time.monotonic)."""
        self.stopping = False
        self.in_flight: Counter[str] = Counter()
        """{model@version: requests in flight}."""
        self.in_flight_by_client: Counter[str] = Counter()
        """{client: requests in flight}."""

    @property
    def is_ready(self) -> bool:
        """True if requests are forwarded."""
        if self.pool is not None:
            names = (f"{name}@{version}" for name, version in self.versions.items())
            return not self.stopping and any(map(self.pool.can_answer, names))
        return self.engine is not None and self.engine_responds and not self.stopping

    @property
    def public_names(self) -> list[str]:
        """Return the model names of clients: each model, and with ":raw" the models of tasks."""
        return sorted([*self.versions, *(f"{name}{chat_request.RAW_SUFFIX}" for name in self.tasks)])

    @contextmanager
    def count_request(self, client: str) -> Iterator[None]:
        """Count a request of a client while it is in flight. Raise RequestError if there are too many."""
        limits = self.limits
        for count, limit, scope in (
            (self.in_flight_by_client[client], limits.requests_per_key, "of this key "),
            (self.in_flight_by_client.total(), limits.requests, ""),
        ):
            if count >= limit:
                message = f"{count} requests {scope}are in flight, and no more are accepted concurrently"
                raise RequestError(429, "rate_limit_error", message, 2)
        self.in_flight_by_client[client] += 1
        try:
            yield
        finally:
            self.in_flight_by_client[client] -= 1

    def require_ready(self) -> None:
        """Raise RequestError while requests are not forwarded."""
        if not self.is_ready:
            problem = "the model is being started" if self.pool is None else "no engine can answer now"
            raise RequestError(503, "overloaded_error", problem, 5)

    def require_engine(self, internal_name: str) -> EngineSession:
        """Return the session with vLLM, or the route to engines that serve a version.

        Raise RequestError while requests are not forwarded.
        """
        self.require_ready()
        if self.pool is not None:
            return self.pool.route(internal_name)
        assert self.engine is not None
        return self.engine

    def split_model_name(self, model: object) -> tuple[object, bool]:
        """Return the model name without ":raw", and whether the request is forwarded unchanged."""
        if isinstance(model, str) and model.endswith(chat_request.RAW_SUFFIX) and model not in self.versions:
            return model.removesuffix(chat_request.RAW_SUFFIX), True
        return model, False

    def find_task(self, names: forwarding.ModelNames) -> Deployment | None:
        """Return the deployment of a version, None if its prompt.json states no task."""
        return self.tasks.get(names.model)

    def require_version(self, model: object) -> str:
        """Return the active version of a model. Raise RequestError if there is none."""
        available = ", ".join(sorted(self.versions)) or "none yet"
        if not isinstance(model, str):
            raise invalid_request(f"model is missing or no text; there are: {available}")
        version = self.versions.get(model)
        if version is None and model in self.deployed_models:
            raise RequestError(503, "overloaded_error", f"no version of {model!r} can be served now", 30)
        if version is None:
            raise RequestError(404, "not_found_error", f"there is no model {model!r}; there are: {available}")
        return version

    @contextmanager
    def track_in_flight(self, internal_name: str) -> Iterator[None]:
        """Count a request to a version while it is in flight, so that the version is not unloaded."""
        self.in_flight[internal_name] += 1
        try:
            yield
        finally:
            self.in_flight[internal_name] -= 1

    def record_data(self) -> None:
        """Record that vLLM sent data."""
        self.last_data_at = time.monotonic()

"""The Ray cluster of a prediction: RAY_ADDRESS, or a local one for the call."""

import importlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from insource.config.errors import RecipeError, StageError
from insource.config.hosts import is_loopback
from insource.config.recipe import Recipe

ADDRESS_VARIABLE = "RAY_ADDRESS"
LOOPBACK = "127.0.0.1"
REPLACED_HOSTS = (LOOPBACK, "localhost", "::1")
CONNECT_SECONDS = 10.0
REQUIREMENT = "ray>=2.60,<2.61"
"""As in the extra `ray` of pyproject.toml; a test compares them."""
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_metrics_collection": "0"}
"""Ray reports its usage to its maintainers by default."""


def import_ray() -> Any:
    """Return the module ray, with its usage statistics off. Raise RecipeError if it is not installed."""
    os.environ.update(ENVIRONMENT)
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise RecipeError(
            f"ENGINE=ray: ray is not installed; run .venv/bin/python -m pip install '{REQUIREMENT}'", code="INS-P014"
        ) from None


@contextmanager
def connect_cluster() -> Iterator[Any]:
    """Connect to the cluster at RAY_ADDRESS, else start a local one that ends with the block; yield the module ray.

    Raise RecipeError if ray is not installed or no cluster answers at RAY_ADDRESS, StageError if none can be started.
    """
    ray = import_ray()
    address = os.environ.get(ADDRESS_VARIABLE) or None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if address is None:
        options |= {"include_dashboard": False, "_node_ip_address": LOOPBACK}
    else:
        check_reachable(address, ray.util.get_node_ip_address())
    try:
        ray.init(address=address or "local", **options)
    except Exception as error:  # noqa: BLE001 (Ray raises Exception itself if a process is not up after 30 s)
        if address is not None:
            raise _no_cluster_error(address, error) from None
        raise StageError(
            f"ENGINE=ray: no local cluster could be started: {type(error).__name__}: {error}; run the command again "
            "when the machine has less load",
            code="INS-P015",
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def check_reachable(address: str, machine_ip: str) -> None:
    """Raise RecipeError if nothing listens at an address `host:port`: ray.init would wait there for minutes.

    Ray 2.60 replaces the host 127.0.0.1 by the machine's own address `machine_ip`, so that one must listen.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((machine_ip if host in REPLACED_HOSTS else host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise _no_cluster_error(address, error) from None


def _no_cluster_error(address: str, error: Exception) -> RecipeError:
    return RecipeError(
        f"{ADDRESS_VARIABLE}: given {address}: no cluster answers there: {type(error).__name__}: {error}; give the "
        "address that `ray start` printed",
        code="INS-P015",
    )


def count_workers(ray: Any, recipe: Recipe) -> int:
    """Return the default number of workers: one for each GPU of the cluster, or each node with a CPU without GPUs.

    Raise RecipeError if there is no place for a worker.
    """
    resource = "CPU" if recipe.accelerate.use_cpu else "GPU"
    amounts = [node["Resources"].get(resource, 0) for node in ray.nodes() if node["Alive"]]
    workers = sum(amount >= 1 for amount in amounts) if resource == "CPU" else int(sum(amounts))
    if not workers:
        raise RecipeError(
            f"ENGINE=ray: no node of the cluster has a {resource}; HARDWARE=cpu and HARDWARE=gpu choose between them",
            code="INS-P015",
        )
    return workers


def check_node_allowed(node_ip: str, driver_ip: str, recipe: Recipe) -> None:
    """Raise RecipeError if inputs may not be sent to a node."""
    privacy = recipe.privacy
    if privacy.data_may_leave or node_ip == driver_ip or is_loopback(node_ip) or node_ip in privacy.trusted_hosts:
        return
    raise RecipeError(
        f"ENGINE=ray: privacy.data_may_leave is false, and the node {node_ip} is neither this machine nor in "
        "privacy.trusted_hosts",
        code="INS-P008",
    )

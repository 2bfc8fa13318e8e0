"""Run `python -m deploy.gateway RECIPE ...`: serve the deployed versions on one address and follow the registry.

    clients -> proxy (key, allow-list, names) -> Unix socket of this user -> vLLM with versioned adapters

A new version is loaded while the old one answers, checked against its reference answers, and then activated. The old
one is unloaded after its last request. A version that fails the check is not activated, and the old one continues to
answer. vLLM is restarted when it dies, loses a process or sends nothing despite a request. Meanwhile the gateway
answers 503 with Retry-After.

With serve.engines the proxy sends the requests to vLLM engines that were started elsewhere (pool_gateway.py).
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from deploy import registry
from deploy.gateway import http_server, keys
from deploy.gateway.control_loop import serve_forever
from deploy.gateway.gateway import Gateway
from deploy.gateway.pool_gateway import ENGINE_KEY_VARIABLE, PoolGateway
from deploy.gateway.proxy_state import ProxyState
from deploy.gateway.versions import plan_backend, require_deployed
from deploy.monitoring.monitor import Monitor
from insource.config import cli
from insource.config.load import describe_precedence, load
from insource.config.schema.serving_and_cost import Serve
from insource.tracking import folder_ownership
from serve.vllm import lifecycle, server_process
from serve.vllm.launch_plan import API_KEY_VARIABLE
from serve.vllm.server_process import Address, VllmProcess

STOP_SECONDS = 3.0
"""Time for vLLM to end before it is killed."""
ALL_ADDRESSES = "0.0.0.0"  # noqa: S104 (other machines reach these engines)


def main() -> int:
    """Parse the command line and run the gateway until it is stopped. Return the exit code."""
    parser = cli.build_parser("deploy.gateway", "Serve what is deployed, on one address, without a gap at a change.")
    parser.add_argument("--registry", help="the folder of deployed versions (default: $REGISTRY, else ./registry)")
    arguments = parser.parse_intermixed_args()
    names = [arguments.recipe, *(word for word in arguments.set if "=" not in word)]
    overrides = [word for word in arguments.set if "=" in word]
    root = registry.registry_root(arguments.registry)
    loaded_recipes = [folder_ownership.resolve_name(load(name, overrides, arguments.hardware), root) for name in names]
    print("\n".join(describe_precedence(loaded_recipes[0])), file=sys.stderr)
    registry_dirs = [root / loaded.name for loaded in loaded_recipes]
    serve = loaded_recipes[0].recipe.serve
    address = Address(serve.host, serve.port)
    if arguments.dry_run:
        print("\n".join(_format_commands(registry_dirs, serve)))
        return cli.OK
    require_deployed(registry_dirs)
    plan = None if serve.engines else plan_backend(registry_dirs, serve)
    client_keys = keys.load_keys(address, serve.loopback_without_key)
    model_names = tuple(registry_dir.name for registry_dir in registry_dirs)
    proxy_state = ProxyState(client_keys, serve.limits, model_names, Monitor(root))
    server_process.check_port_free(serve.host, serve.port)
    recipes = {loaded.name: loaded.recipe for loaded in loaded_recipes}
    if plan is None:
        engine_key = os.environ.get(ENGINE_KEY_VARIABLE) or None
        pool_gateway = PoolGateway(registry_dirs, serve, proxy_state, recipes, engine_key)
        with http_server.open_access_log(root / "access.jsonl") as access_log:
            asyncio.run(serve_forever(pool_gateway, address, access_log))
        return cli.INTERRUPTED
    with tempfile.TemporaryDirectory(prefix="insource-") as private_dir:  # readable only by this user
        vllm = VllmProcess(
            plan, Address(socket=Path(private_dir) / "vllm.sock"), root / "vllm.log", stop_seconds=STOP_SECONDS
        )
        gateway = Gateway(registry_dirs, vllm, proxy_state, serve.parity.same_weights, serve.hang_seconds, recipes)
        try:
            with http_server.open_access_log(root / "access.jsonl") as access_log:
                asyncio.run(serve_forever(gateway, address, access_log))
        finally:
            vllm.stop()
    return cli.INTERRUPTED


def _format_commands(registry_dirs: Sequence[Path], serve: Serve) -> list[str]:
    """Return the command that starts vLLM, or with serve.engines the command for each engine on its machine."""
    plan = plan_backend(registry_dirs, serve)
    if not serve.engines:
        return [lifecycle.shell_command(plan, Address(socket=Path("vllm.sock")), with_key=False)]
    ports = [urlsplit(url).port or 80 for url in serve.engines]
    commands = [lifecycle.shell_command(plan, Address(ALL_ADDRESSES, port), with_key=True) for port in ports]
    return [command.replace(API_KEY_VARIABLE, ENGINE_KEY_VARIABLE) for command in commands]


if __name__ == "__main__":
    cli.run_cli(main)

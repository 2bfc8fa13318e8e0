"""`make predict` from top to bottom: survey the input, start the engine, query every row, join the output.

    python -m predict classifier --input exports/ --output answers.parquet

A repeated call queries only rows without an answer on disk. It resumes a killed call, and reports `unchanged` if the
output is complete. <output>.about.json beside the output contains the engine, the threshold and the row counts.
"""

import argparse
import asyncio
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from deploy import registry
from deploy.routing import Routing
from insource.config import cli
from insource.config.errors import RecipeError, StageError
from insource.config.recipe import Recipe
from insource.tracking import run
from insource.tracking.prompt_spec import PromptSpec
from predict import ENGINES
from predict.cluster import cluster_query
from predict.engines import clients, local_vllm, server_check
from predict.execution.job_execution import JobExecution, log_step
from predict.job import Job, merge_recipes, read_output_info
from predict.rows import inputs, output
from serve import server
from serve.vllm import launch_plan
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import VllmProcess


def main(arguments: argparse.Namespace) -> int:
    """Run the stage and return its exit code. Raise RecipeError and StageError, which `cli.run_cli` reports."""
    job = build_job(arguments)
    log_step("predict", f"{job.survey.rows:,} rows of {len(job.files):,} files, by run {job.run.id}")
    if arguments.dry_run:
        job.requested_labels(job.task("adapter"))
        print(f"would send {job.survey.rows:,} rows to {job.engine}, and write {job.output}")
        return cli.OK
    run_job(job)
    print(job.output)
    return cli.OK


def run_job(job: Job) -> None:
    """Query every row that has no answer on disk, and write the output. Raise RecipeError and StageError."""
    if job.engine == "gateway":
        asyncio.run(_predict_with_gateway(job))
    elif job.base_url is not None:
        asyncio.run(_predict_with_server(job, job.base_url))
    else:
        _predict_with_vllm(job)


def build_job(arguments: argparse.Namespace) -> Job:
    """Return the job of a call after surveying its input. Raise RecipeError and StageError."""
    pattern, output_path = _parse_paths(arguments)
    engine = _parse_engine(arguments)
    loaded, trained_run = run.load_recipe_and_run(arguments)
    PromptSpec.read(trained_run.folder / "adapter").check_without_examples(trained_run.id)
    recipe = merge_recipes(trained_run.recipe(), loaded.recipe)
    base_url = _parse_base_url(engine, arguments.base_url, recipe)
    source = inputs.make_source(recipe, pattern)
    files = inputs.find_input_files(source, pattern)
    inputs.check_output(output_path, pattern, files)
    survey = inputs.survey_input(files, source, recipe, output.output_format(output_path) == "parquet")
    for info in survey.files:
        if names := info.get("columns_not_read"):
            log_step(
                "columns", f"{info['file']}: not in the output, because they hold binary values: {', '.join(names)}"
            )
    return Job(
        run=trained_run,
        name=loaded.name,
        recipe=recipe,
        output=output_path,
        engine=engine,
        base_url=base_url,
        workers=arguments.workers,
        probabilities=arguments.probabilities,
        fresh=arguments.fresh,
        force=arguments.force,
        output_info=read_output_info(output_path),
        source=source,
        files=files,
        survey=survey,
    )


def _predict_with_vllm(job: Job) -> None:
    """Start the server of a variant of the run and predict.

    Fall back to the next variant if serve.model leaves a choice and one cannot be served.
    """
    serve = job.recipe.serve
    variants = launch_plan.rank_variants(job.run, job.run.recipe(), serve)
    if job.output_info and any(_finish_if_written(job, job.served_model(variant)) for variant in variants):
        return
    for index, variant in enumerate(variants):
        served = job.served_model(variant)
        try:
            _predict_with_variant(job, served)
        except _CannotServeError as error:
            has_next = serve.model == "auto" and variant != variants[-1]
            if not has_next or not server.may_fall_back(served, serve, error.reason):
                raise error.reason from None
            server.fall_back(served, variants[index + 1], error.reason)
        else:
            return


class _CannotServeError(Exception):
    """A variant of the run that cannot be served."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


def plan_execution(job: Job, served: ServedModel) -> JobExecution:
    """Return the execution of a job with one variant of the run. Raise _CannotServeError if it cannot be served."""
    try:
        plan = launch_plan.plan_launch([served], job.recipe.serve)
    except RecipeError as error:
        raise _CannotServeError(error) from None
    variant = served.variant
    engine_identity = ["vllm", *local_vllm.identify_engine(served, plan)]
    return JobExecution(job, job.task(variant), engine_identity, f"vLLM with {variant} of run {job.run.id}")


def _finish_if_written(job: Job, served: ServedModel) -> bool:
    """Finish the job if the output exists already, made with this variant; return whether it does.

    A variant that an earlier call replaced by another one is not started to find that out.
    """
    try:
        execution = plan_execution(job, served)
    except _CannotServeError:
        return False
    if not execution.is_written():
        return False
    with execution.lock():
        execution.finish()
    return True


def _predict_with_variant(job: Job, served: ServedModel) -> None:
    """Predict with one variant of the run. Raise _CannotServeError if it cannot be served."""
    execution = plan_execution(job, served)
    with execution.lock():
        execution.log_start()
        if not execution.is_complete():
            _query_variant(execution, served)
        execution.finish()


def _query_variant(execution: JobExecution, served: ServedModel) -> None:
    """Query a server started here, or with ENGINE=ray those of the workers. Raise _CannotServeError."""
    job = execution.job
    if job.engine == "ray":
        asyncio.run(cluster_query.query_rows(execution, cluster_query.make_engine(execution, served)))
        return
    with ExitStack() as stack:
        try:
            log_path = execution.state.folder / "vllm.log"
            vllm = stack.enter_context(local_vllm.vllm_server(served, job.recipe.serve, log_path))
        except (RecipeError, StageError) as error:
            raise _CannotServeError(error) from None
        _query_local_server(execution, vllm)


def _query_local_server(execution: JobExecution, vllm: VllmProcess) -> None:
    try:
        asyncio.run(query_vllm(execution, f"http://{vllm.address.host}:{vllm.address.port}"))
    except StageError as error:
        if vllm.is_alive():
            raise
        raise StageError(
            f"vLLM has ended, {vllm.failure_message()}\n  Finished answers are kept: run the same command to resume",
            code="INS-E005",
        ) from error


async def _predict_with_server(job: Job, base_url: str) -> None:
    """Predict with a running vLLM server.

    Verify it against the run first: it may have been started for another one.
    """
    origin, adapter = clients.server_origin(base_url), job.served_model("adapter")
    async with clients.open_session(origin, job.recipe.compare.concurrency) as session:
        cards = server_check.find_model_cards(await clients.get_json(session, "/v1/models"), job.name)
        verified = await server_check.verify_server(session, adapter, cards, job.recipe.serve)
    engine_identity = ["server", registry.compute_version(adapter.folder), verified.variant, verified.cards]
    variant_name = verified.variant or "a form that it does not name"
    task = job.task(verified.variant or "adapter", verified.routing)
    execution = JobExecution(job, task, engine_identity, f"a server that runs, with {variant_name} of run {job.run.id}")
    with execution.lock():
        execution.log_start()
        if not execution.is_complete() and job.engine == "ray":
            await cluster_query.query_rows(execution, origin)
        elif not execution.is_complete():
            await query_vllm(execution, origin)
        execution.finish()


async def query_vllm(execution: JobExecution, origin: str) -> None:
    """Query the rows that have no answer on disk at a vLLM server."""
    concurrency = execution.job.recipe.compare.concurrency
    async with clients.open_session(origin, concurrency) as session:
        client = clients.VllmClient(clients.as_served(execution.task), session, execution.labels, concurrency)
        await execution.predict_all(client.predict, concurrency)


async def _predict_with_gateway(job: Job) -> None:
    """Predict with the version that a gateway has deployed, which may differ from the newest run."""
    assert job.base_url is not None
    async with clients.open_session(clients.server_origin(job.base_url), job.recipe.compare.concurrency) as session:
        version = await clients.fetch_deployed_version(session, job.name)
        task = job.task("adapter")
        if version != task.version:
            reason = f"the gateway answers with version {version}, and run {job.run.id} is {task.version}"
            task = replace(task, routing=Routing(None, None, reason))
        execution = JobExecution(job, task, ["gateway", version], f"version {version} of a gateway")
        with execution.lock():
            execution.log_start()
            if not execution.is_complete():
                client = clients.GatewayClient(task, session, execution.labels, version)
                await execution.predict_all(client.predict, job.recipe.compare.concurrency)
            execution.finish()


def _parse_paths(arguments: argparse.Namespace) -> tuple[str, Path]:
    for name in ("input", "output"):
        if not getattr(arguments, name):
            raise RecipeError(
                f"{name.upper()} is missing: make predict RECIPE=... INPUT=rows.csv OUTPUT=answers.parquet",
                code="INS-R012",
            )
    output_path = Path(arguments.output).expanduser()
    output.output_format(output_path)
    if output_path.is_dir():
        raise RecipeError(f"OUTPUT: {output_path} is a folder; give the name of a file", code="INS-P001")
    return str(Path(arguments.input).expanduser()), output_path


def _parse_engine(arguments: argparse.Namespace) -> str:
    engine = arguments.engine or ("gateway" if arguments.base_url else "vllm")
    if engine not in ENGINES:
        raise RecipeError(f"ENGINE: given {engine!r}, allowed: {' or '.join(ENGINES)}", code="INS-R011")
    return str(engine)


def _parse_base_url(engine: str, requested: str | None, recipe: Recipe) -> str | None:
    if requested is None and engine != "gateway":
        return None
    base_url = requested or f"http://{recipe.serve.host}:{recipe.serve.port}"
    clients.check_server_allowed(recipe, base_url)
    return base_url

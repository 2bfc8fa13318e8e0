"""`make predict` from top to bottom: look through the input, start the engine, ask every row, join the output.

    python -m predict classifier --input exports/ --output answers.parquet

Called again it asks for nothing that is on disk: it goes on where it was killed, and says `unchanged` where the output
is there. Beside the output lies <output>.about.json: who answered, by which threshold, and what became of the rows.
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
from predict.engines import clients, local_vllm, server_check
from predict.execution.job_execution import JobExecution, log_step
from predict.job import Job, merge_recipes, read_output_info
from predict.rows import inputs, output
from serve import server
from serve.vllm import launch_plan
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import VllmProcess

ENGINES = ("vllm", "gateway")


def main(arguments: argparse.Namespace) -> int:
    """Returns the exit code of the stage. Raises RecipeError and StageError, told by `recipes.command`."""
    job = build_job(arguments)
    log_step("predict", f"{job.survey.rows:,} rows of {len(job.files):,} files, by run {job.here.id}")
    if arguments.dry_run:
        job.labels(job.task("adapter"))
        print(f"would ask {job.engine} {job.survey.rows:,} rows, and write {job.output}")
        return cli.OK
    if job.engine == "gateway":
        asyncio.run(_predict_with_gateway(job))
    elif job.base_url is not None:
        asyncio.run(_predict_with_server(job, job.base_url))
    else:
        _predict_with_vllm(job)
    print(job.output)
    return cli.OK


def build_job(arguments: argparse.Namespace) -> Job:
    """Returns what a call is to predict, once its input was looked through. Raises RecipeError and StageError."""
    given, path = _parse_paths(arguments)
    engine = _parse_engine(arguments)
    loaded, here = run.load_recipe_and_run(arguments)
    recipe = merge_recipes(here.recipe(), loaded.recipe)
    base_url = _parse_base_url(engine, arguments.base_url, recipe)
    source = inputs.make_source(recipe, given)
    found = inputs.find_input_files(source, given)
    inputs.check_output(path, given, found)
    survey = inputs.survey_input(found, source, recipe, output.output_format(path) == "parquet")
    return Job(
        here=here,
        name=loaded.name,
        recipe=recipe,
        output=path,
        engine=engine,
        base_url=base_url,
        probabilities=arguments.probabilities,
        fresh=arguments.fresh,
        force=arguments.force,
        about=read_output_info(path),
        source=source,
        files=found,
        survey=survey,
    )


def _predict_with_vllm(job: Job) -> None:
    """Starts the server of the run's form, the next form where serve.model leaves a choice and one cannot be served."""
    serve = job.recipe.serve
    forms = launch_plan.rank_variants(job.here, job.here.recipe(), serve)
    if job.about and any(_finish_if_written(job, job.served(form)) for form in forms):
        return
    for at, form in enumerate(forms):
        served = job.served(form)
        try:
            _predict_with_variant(job, served)
        except _CannotServeError as error:
            if serve.model != "auto" or form == forms[-1] or not server.may_fall_back(served, serve, error.why):
                raise error.why from None
            server.fall_back(served, forms[at + 1], error.why)
        else:
            return


class _CannotServeError(Exception):
    """A form of the run cannot be served."""

    def __init__(self, why: Exception) -> None:
        super().__init__(str(why))
        self.why = why


def plan_execution(job: Job, served: ServedModel) -> JobExecution:
    """Returns the prediction by one form of the run. Raises _NotServedError where that cannot be served."""
    try:
        planned = launch_plan.plan_launch([served], job.recipe.serve)
    except RecipeError as error:
        raise _CannotServeError(error) from None
    form = served.which
    who = ["vllm", *local_vllm.identify_engine(served, planned)]
    return JobExecution(job, job.task(form), who, f"vLLM with {form} of run {job.here.id}")


def _finish_if_written(job: Job, served: ServedModel) -> bool:
    """Returns whether the output is there by a form of the run, and says so. A form that another one was taken in the
    place of is not started to find that out."""
    try:
        work = plan_execution(job, served)
    except _CannotServeError:
        return False
    if not work.is_written():
        return False
    with work.held():
        work.conclude()
    return True


def _predict_with_variant(job: Job, served: ServedModel) -> None:
    """Predicts by one form of the run. Raises _NotServedError where that cannot be served."""
    work = plan_execution(job, served)
    with work.held():
        if not work.is_asked():
            with ExitStack() as stack:
                try:
                    log = work.state.folder / "vllm.log"
                    vllm = stack.enter_context(local_vllm.vllm_server(served, job.recipe.serve, log))
                except (RecipeError, StageError) as error:
                    raise _CannotServeError(error) from None
                _ask_local_server(work, vllm)
        work.conclude()


def _ask_local_server(work: JobExecution, vllm: VllmProcess) -> None:
    try:
        asyncio.run(_ask_vllm(work, f"http://{vllm.address.host}:{vllm.address.port}"))
    except StageError as error:
        if vllm.alive():
            raise
        raise StageError(f"vLLM has ended, {vllm.why()}\n  What was answered is kept: call again to go on") from error


async def _predict_with_server(job: Job, base_url: str) -> None:
    """Asks a vLLM server that runs, once it is held to the run: it may have been started for another one."""
    origin, adapter = clients.server_origin(base_url), job.served("adapter")
    async with clients.open_session(origin, job.recipe.compare.concurrency) as asking:
        cards = server_check.find_model_cards(await clients.get_json(asking, "/v1/models"), job.name)
        found = await server_check.verify_server(asking, adapter, cards, job.recipe.serve)
    who = ["server", registry.compute_version(adapter.folder), found.form, found.cards]
    form = found.form or "a form that it does not name"
    asked = job.task(found.form or "adapter", found.routing)
    work = JobExecution(job, asked, who, f"a server that runs, with {form} of run {job.here.id}")
    with work.held():
        if not work.is_asked():
            await _ask_vllm(work, origin)
        work.conclude()


async def _ask_vllm(work: JobExecution, origin: str) -> None:
    concurrency = work.job.recipe.compare.concurrency
    async with clients.open_session(origin, concurrency) as asking:
        known = {name: getattr(work.task, name) for name in work.task.__dataclass_fields__}
        server = clients.VllmClient(clients.ServedTask(**known), asking, work.labels, concurrency)
        await work.ask(server.ask)


async def _predict_with_gateway(job: Job) -> None:
    """Asks a gateway for what it has deployed, which may be another run than the newest."""
    assert job.base_url is not None
    async with clients.open_session(clients.server_origin(job.base_url), job.recipe.compare.concurrency) as asking:
        version = await clients.fetch_deployed_version(asking, job.name)
        asked = job.task("adapter")
        if version != asked.version:
            why = f"the gateway answers with version {version}, and run {job.here.id} is {asked.version}"
            asked = replace(asked, routing=Routing(None, None, why))
        work = JobExecution(job, asked, ["gateway", version], f"version {version} of a gateway")
        with work.held():
            if not work.is_asked():
                server = clients.GatewayClient(asked, asking, work.labels, version)
                await work.ask(server.ask)
            work.conclude()


def _parse_paths(arguments: argparse.Namespace) -> tuple[str, Path]:
    for name in ("input", "output"):
        if not getattr(arguments, name):
            raise RecipeError(
                f"{name.upper()} is missing: make predict RECIPE=... INPUT=rows.csv OUTPUT=answers.parquet"
            )
    path = Path(arguments.output).expanduser()
    output.output_format(path)
    if path.is_dir():
        raise RecipeError(f"OUTPUT: {path} is a folder; give the name of a file")
    return str(Path(arguments.input).expanduser()), path


def _parse_engine(arguments: argparse.Namespace) -> str:
    chosen = arguments.engine or ("gateway" if arguments.base_url else "vllm")
    if chosen not in ENGINES:
        raise RecipeError(f"ENGINE: given {chosen!r}, allowed: {' or '.join(ENGINES)}")
    return str(chosen)


def _parse_base_url(engine: str, given: str | None, recipe: Recipe) -> str | None:
    if given is None and engine == "vllm":
        return None
    base_url = given or f"http://{recipe.serve.host}:{recipe.serve.port}"
    clients.check_server_allowed(recipe, base_url)
    return base_url

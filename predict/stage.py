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
from predict.execution.job_execution import Work, say
from predict.job import Job, about, recipe_of
from predict.rows import inputs, output
from serve import server
from serve.vllm import launch_plan
from serve.vllm.launch_plan import Served
from serve.vllm.server_process import Engine

ENGINES = ("vllm", "gateway")


def main(arguments: argparse.Namespace) -> int:
    """Returns the exit code of the stage. Raises RecipeError and StageError, told by `recipes.command`."""
    job = job_of(arguments)
    say("predict", f"{job.survey.rows:,} rows of {len(job.files):,} files, by run {job.here.id}")
    if arguments.dry_run:
        job.labels(job.task("adapter"))
        print(f"would ask {job.engine} {job.survey.rows:,} rows, and write {job.output}")
        return cli.DONE
    if job.engine == "gateway":
        asyncio.run(_by_gateway(job))
    elif job.base_url is not None:
        asyncio.run(_by_server(job, job.base_url))
    else:
        _by_vllm(job)
    print(job.output)
    return cli.DONE


def job_of(arguments: argparse.Namespace) -> Job:
    """Returns what a call is to predict, once its input was looked through. Raises RecipeError and StageError."""
    given, path = _paths(arguments)
    engine = _engine(arguments)
    loaded, here = run.of_call(arguments)
    recipe = recipe_of(here.recipe(), loaded.recipe)
    base_url = _base_url(engine, arguments.base_url, recipe)
    source = inputs.source_of(recipe, given)
    found = inputs.found(source, given)
    inputs.check_output(path, given, found)
    survey = inputs.survey(found, source, recipe, output.kind_of(path) == "parquet")
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
        about=about(path),
        source=source,
        files=found,
        survey=survey,
    )


def _by_vllm(job: Job) -> None:
    """Starts the server of the run's form, the next form where serve.model leaves a choice and one cannot be served."""
    serve = job.recipe.serve
    forms = launch_plan.candidates(job.here, job.here.recipe(), serve)
    if job.about and any(_is_there(job, job.served(form)) for form in forms):
        return
    for at, form in enumerate(forms):
        served = job.served(form)
        try:
            _predicted(job, served)
        except _NotServedError as error:
            if serve.model != "auto" or form == forms[-1] or not server.may_follow(served, serve, error.why):
                raise error.why from None
            server.fall_back(served, forms[at + 1], error.why)
        else:
            return


class _NotServedError(Exception):
    """A form of the run cannot be served."""

    def __init__(self, why: Exception) -> None:
        super().__init__(str(why))
        self.why = why


def work_of(job: Job, served: Served) -> Work:
    """Returns the prediction by one form of the run. Raises _NotServedError where that cannot be served."""
    try:
        planned = launch_plan.of([served], job.recipe.serve)
    except RecipeError as error:
        raise _NotServedError(error) from None
    form = served.which
    who = ["vllm", *local_vllm.identity(served, planned)]
    return Work(job, job.task(form), who, f"vLLM with {form} of run {job.here.id}")


def _is_there(job: Job, served: Served) -> bool:
    """Returns whether the output is there by a form of the run, and says so. A form that another one was taken in the
    place of is not started to find that out."""
    try:
        work = work_of(job, served)
    except _NotServedError:
        return False
    if not work.is_written():
        return False
    with work.held():
        work.conclude()
    return True


def _predicted(job: Job, served: Served) -> None:
    """Predicts by one form of the run. Raises _NotServedError where that cannot be served."""
    work = work_of(job, served)
    with work.held():
        if not work.is_asked():
            with ExitStack() as stack:
                try:
                    log = work.state.folder / "vllm.log"
                    vllm = stack.enter_context(local_vllm.running(served, job.recipe.serve, log))
                except (RecipeError, StageError) as error:
                    raise _NotServedError(error) from None
                _ask_server(work, vllm)
        work.conclude()


def _ask_server(work: Work, vllm: Engine) -> None:
    try:
        asyncio.run(_of_vllm(work, f"http://{vllm.address.host}:{vllm.address.port}"))
    except StageError as error:
        if vllm.alive():
            raise
        raise StageError(f"vLLM has ended, {vllm.why()}\n  What was answered is kept: call again to go on") from error


async def _by_server(job: Job, base_url: str) -> None:
    """Asks a vLLM server that runs, once it is held to the run: it may have been started for another one."""
    origin, adapter = clients.origin_of(base_url), job.served("adapter")
    async with clients.session(origin, job.recipe.compare.concurrency) as asking:
        cards = server_check.cards_of(await clients.got(asking, "/v1/models"), job.name)
        found = await server_check.to_run(asking, adapter, cards, job.recipe.serve)
    who = ["server", registry.version_of(adapter.folder), found.form, found.cards]
    form = found.form or "a form that it does not name"
    asked = job.task(found.form or "adapter", found.routing)
    work = Work(job, asked, who, f"a server that runs, with {form} of run {job.here.id}")
    with work.held():
        if not work.is_asked():
            await _of_vllm(work, origin)
        work.conclude()


async def _of_vllm(work: Work, origin: str) -> None:
    concurrency = work.job.recipe.compare.concurrency
    async with clients.session(origin, concurrency) as asking:
        known = {name: getattr(work.task, name) for name in work.task.__dataclass_fields__}
        server = clients.VllmEngine(clients.ServedTask(**known), asking, work.labels, concurrency)
        await work.ask(server.ask)


async def _by_gateway(job: Job) -> None:
    """Asks a gateway for what it has deployed, which may be another run than the newest."""
    assert job.base_url is not None
    async with clients.session(clients.origin_of(job.base_url), job.recipe.compare.concurrency) as asking:
        version = await clients.version_of(asking, job.name)
        asked = job.task("adapter")
        if version != asked.version:
            why = f"the gateway answers with version {version}, and run {job.here.id} is {asked.version}"
            asked = replace(asked, routing=Routing(None, None, why))
        work = Work(job, asked, ["gateway", version], f"version {version} of a gateway")
        with work.held():
            if not work.is_asked():
                server = clients.GatewayEngine(asked, asking, work.labels, version)
                await work.ask(server.ask)
            work.conclude()


def _paths(arguments: argparse.Namespace) -> tuple[str, Path]:
    for name in ("input", "output"):
        if not getattr(arguments, name):
            raise RecipeError(
                f"{name.upper()} is missing: make predict RECIPE=... INPUT=rows.csv OUTPUT=answers.parquet"
            )
    path = Path(arguments.output).expanduser()
    output.kind_of(path)
    if path.is_dir():
        raise RecipeError(f"OUTPUT: {path} is a folder; give the name of a file")
    return str(Path(arguments.input).expanduser()), path


def _engine(arguments: argparse.Namespace) -> str:
    chosen = arguments.engine or ("gateway" if arguments.base_url else "vllm")
    if chosen not in ENGINES:
        raise RecipeError(f"ENGINE: given {chosen!r}, allowed: {' or '.join(ENGINES)}")
    return str(chosen)


def _base_url(engine: str, given: str | None, recipe: Recipe) -> str | None:
    if given is None and engine == "vllm":
        return None
    base_url = given or f"http://{recipe.serve.host}:{recipe.serve.port}"
    clients.check_may_leave(recipe, base_url)
    return base_url

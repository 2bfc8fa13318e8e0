"""The record of traffic: rows that data preparation reads, without personal data, and none unless the recipe asks."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from data_prep.readers import read, sources
from data_prep.rows import columns, data_row
from data_prep.rows.data_row import Row
from data_prep.rows.row_filter import RowFilter
from deploy.answers.outcome import Deployment, Outcome
from deploy.gateway.paths import feedback
from deploy.monitoring import traffic_record
from deploy.monitoring.monitor import Monitor
from deploy.routing import Routing
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.config.schema.source import Source
from insource.system.timestamps import utc_timestamp
from tests.helpers.errors import raises_error
from tests.helpers.gateway.task_gateway import (
    EXTRACTOR_TASK,
    ROUTER_TASK,
    TASK_NAME,
    gateway_client,
    make_deployed_task,
    make_recipe,
)
from tests.helpers.gateway.traffic import PATH, RECORD_ALL, read_recorded, run, send_bodies

CALLER = """{kind: extraction, instruction: Read who calls., json_schema: {type: object, properties: {
  phone: {type: integer}, who: {type: string, maxLength: 40}}, required: [phone]}}"""
GENERATOR = "{kind: generation, instruction: Write a summary of the message.}"
MULTI = """{kind: classification, labels_per_row: many, instruction: Name the topics of the message.,
  labels: [late, lost, broken]}"""


def prepared(deployment: Deployment, recipe: Recipe) -> list[Row]:
    """The record as data preparation reads it."""
    source = Source(path=str(deployment.registry_dir / traffic_record.FOLDER))
    rows = []
    for file in sources.find_files(source):
        for line in read.read(file, source, recipe.data.columns.texts)[1]:
            columns.check_columns(file.name, "all", line.values, recipe)
            assert RowFilter(recipe.data.where).accepts(line.values)
            row = data_row.make_row(line, recipe)
            assert isinstance(row, Row), row
            rows.append(row)
    return rows


def test_nothing_is_recorded_unless_the_recipe_says_so(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path), Routing())
    send_bodies(deployment, {"input": "says lost"})
    assert not (deployment.registry_dir / traffic_record.FOLDER).exists()


@pytest.mark.parametrize(
    ("task", "columns", "output", "target"),
    [
        (None, "{text: message, label: queue}", "lost", "lost"),
        (None, "{text: [subject, message], label: mail.queue}", "lost", "lost"),
        (None, "{messages: chat}", "lost", "lost"),
        (None, "{text: message, label: queue, id: ticket}", "lost", "lost"),
        (EXTRACTOR_TASK, "{text: message}", '{"number":"17","day":null}', '{"number":"17","day":null}'),
        (EXTRACTOR_TASK, "{text: message, target: record}", '{"number":"17","day":null}', '{"number":"17","day":null}'),
        (GENERATOR, "{text: message, target: summary}", "short", "short"),
        (GENERATOR, "{text: message, targets: summaries}", "short", "short"),
        (GENERATOR, "{text: message, targets: [first, second]}", "short", "short"),
        (
            EXTRACTOR_TASK,
            "{text: message, targets: records}",
            '{"number":"17","day":null}',
            '{"number":"17","day":null}',
        ),
        (None, "{text: message, label: queue}, split: {group: customer}", "lost", "lost"),
        (None, "{text: message, label: queue}, slices: {channel: {by: channel}}", "lost", "lost"),
        (None, "{text: message, label: queue}, where: {language: en, open: true, queue: [lost, late]}", "lost", "lost"),
        (None, "{text: message, label: queue}, split: {time: on}, formats: {dates: {on: '%d.%m.%Y'}}", "lost", "lost"),
        (MULTI, "{text: message, label: topics}", '["late","lost"]', '["late","lost"]'),
        (MULTI, "{text: message, label_columns: [late, lost, broken]}", '["lost"]', '["lost"]'),
    ],
)
def test_what_is_recorded_is_read_by_data_preparation_as_the_recipes_own_rows(
    tmp_path: Path, task: str | None, columns: str, output: str, target: str
) -> None:
    recipe = make_recipe(tmp_path, serve=RECORD_ALL, columns=columns, **({"task": task} if task else {}))
    deployment = make_deployed_task(tmp_path, recipe, Routing())
    text = f"mail ann@example.org or 4111 1111 1111 1111 says {output} p=0.95"
    # The engine reads up to a blank: extraction's JSON comes as a whole.
    send_bodies(deployment, {"input": text})
    (row,) = prepared(deployment, recipe)
    assert row.text == text.replace("ann@example.org", "[EMAIL_1]").replace("4111 1111 1111 1111", "[CARD_1]")
    assert json.loads(row.target) == json.loads(target) if target[0] in "[{" else row.target == target
    (line,) = read_recorded(deployment)
    assert (line["labelled_by"], line["reason"], line["version"]) == ("local", "no_api_model", "v1")
    assert "ann@" not in json.dumps(line) and "4111" not in json.dumps(line), "cards are not in privacy.redact"


def test_what_is_private_or_cannot_be_redacted_is_not_recorded(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path, serve=RECORD_ALL), Routing())
    send_bodies(
        deployment,
        {"input": "a secret says lost", "private": True},
        {"input": "ann (at) example dot org says lost"},
        {"input": "nothing special says lost"},
    )
    assert [line["message"] for line in read_recorded(deployment)] == ["nothing special says lost"]
    send_bodies(deployment, {"input": "by header says lost"}, **{"X-Insource-Private": "true"})
    assert len(read_recorded(deployment)) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_chats_are_recorded_too_whether_or_not_they_would_be_forwarded_unread(tmp_path: Path, stream: bool) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path, serve=RECORD_ALL), Routing())
    chat = {"model": TASK_NAME, "messages": [{"role": "user", "content": "says lost"}], "stream": stream}

    async def scenario() -> None:
        monitor = Monitor(tmp_path / "registry")
        async with gateway_client(deployment, monitor=monitor) as (client, _, _state):
            response = await client.post("/v1/chat/completions", json=chat)
            assert response.status == 200 and "lost" in await response.text()
            await monitor.close()

    run(scenario)
    assert [(line["message"], line["queue"]) for line in read_recorded(deployment)] == [("says lost", "lost")]


def test_a_share_is_recorded(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path, serve="{record: {share: 0.2}}"), Routing())
    send_bodies(deployment, {"inputs": [f"{index} says lost" for index in range(256)]})
    assert 20 <= len(read_recorded(deployment)) <= 90


def test_feedback_puts_a_row_with_the_right_answer_in_the_place_of_the_recorded_one(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, serve=RECORD_ALL)
    deployment = make_deployed_task(tmp_path, recipe, Routing())
    first, second = send_bodies(deployment, {"input": "one says lost"}, {"input": "two says lost"})
    for correct in ("broken", "late", "broken", "broken"):  # what is said last counts
        send_bodies(deployment, {"id": first["id"], "answer": correct}, path=feedback.PATH)
    rows = prepared(deployment, recipe)
    assert [(row.text, row.target) for row in rows] == [("two says lost", "lost"), ("one says lost", "broken")]
    send_bodies(deployment, {"id": second["id"], "answer": "lost"}, path=feedback.PATH)
    assert [(row.text, row.target) for row in prepared(deployment, recipe)] == [
        ("one says lost", "broken"),
        ("two says lost", "lost"),
    ]
    assert {line["labelled_by"] for line in read_recorded(deployment)} == {"feedback"}
    batch = [{"id": first["id"], "answer": "late"}, {"id": second["id"], "answer": "late"}]
    send_bodies(deployment, {"feedback": [*batch, {"id": first["id"], "answer": "lost"}]}, path=feedback.PATH)
    assert {row.text: row.target for row in prepared(deployment, recipe)} == {
        "one says lost": "lost",
        "two says lost": "late",
    }
    assert len({line["id"] for line in read_recorded(deployment)}) == 2


def test_rows_that_persons_labelled_are_told_from_the_models_own_as_the_docs_say(tmp_path: Path) -> None:
    recipe = make_recipe(
        tmp_path, serve=RECORD_ALL, columns="{text: message, label: queue}, where: {labelled_by: [feedback, person]}"
    )
    deployment = make_deployed_task(tmp_path, recipe, Routing())
    first, _ = send_bodies(deployment, {"input": "one says lost"}, {"input": "two says lost"})
    send_bodies(deployment, {"id": first["id"], "answer": "broken"}, path=feedback.PATH)
    own_path = tmp_path / "tickets.csv"
    own_path.write_text("message,queue,labelled_by\nthree,late,person\n", encoding="utf-8")
    source = Source(paths=[str(own_path), str(deployment.registry_dir / traffic_record.FOLDER)])
    lines = [line.values for file in sources.find_files(source) for line in read.read(file, source, ["message"])[1]]
    taken = [(line["message"], line["queue"]) for line in lines if RowFilter(recipe.data.where).accepts(line)]
    assert taken == [("three", "late"), ("one says lost", "broken")] and len(lines) == 3


def test_feedback_from_several_gateways_at_once_leaves_one_row(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path, serve=RECORD_ALL), Routing())
    (payload,) = send_bodies(deployment, {"input": "one says lost"})
    answer_record = deployment.ids.open(payload["id"])
    assert answer_record is not None
    with ThreadPoolExecutor(8) as threads:
        for correct in ("broken", "late") * 20:
            threads.submit(
                traffic_record.correct_rows,
                deployment.task,
                deployment.registry_dir,
                answer_record.day,
                {answer_record.name: correct},
            )
    (line,) = read_recorded(deployment)
    assert line["labelled_by"] == "feedback" and line["queue"] in ("broken", "late")


def test_a_row_that_a_killed_gateway_left_behind_feedback_goes_with_the_next(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path, serve=RECORD_ALL), Routing())
    (payload,) = send_bodies(deployment, {"input": "one says lost"})
    (path,) = (deployment.registry_dir / traffic_record.FOLDER).glob("*.jsonl")
    original = path.read_bytes()
    send_bodies(deployment, {"id": payload["id"], "answer": "broken"}, path=feedback.PATH)
    path.write_bytes(original + path.read_bytes().lstrip())
    send_bodies(deployment, {"id": payload["id"], "answer": "broken"}, path=feedback.PATH)
    assert [(line["queue"], line["labelled_by"]) for line in read_recorded(deployment)] == [("broken", "feedback")]


def test_feedback_on_a_row_that_was_recorded_under_other_columns_counts_and_leaves_the_row(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path, serve=RECORD_ALL), Routing())
    (payload,) = send_bodies(deployment, {"input": "one says lost"})
    for new_columns in ("{text: body, label: queue}", "{text: message, label: topic}", "{messages: chat}"):
        changed = make_deployed_task(tmp_path, make_recipe(tmp_path, serve=RECORD_ALL, columns=new_columns), Routing())
        (result,) = send_bodies(changed, {"id": payload["id"], "answer": "broken"}, path=feedback.PATH)
        assert result == {"recorded": 1, "right": False}
    assert [(line["queue"], line["labelled_by"]) for line in read_recorded(deployment)] == [("lost", "local")]


@pytest.mark.parametrize(
    ("task", "columns", "key"),
    [
        (None, "{text: message, label: reason}", "data.columns.label"),
        (None, "{text: version, label: queue}", "data.columns.text"),
        (None, "{text: id, label: queue}", "data.columns.text"),
        (None, "{text: message, label: queue, id: time}", "data.columns.id"),
        (None, "{text: message, label: queue}, split: {group: confidence}", "data.split.group"),
        (None, "{text: message, label: queue}, split: {time: labelled_by}", "data.split.time"),
        (EXTRACTOR_TASK.replace("day", "time"), "{text: message}", "task.json_schema.properties.time"),
    ],
)
def test_a_column_of_the_recipe_that_the_record_has_for_itself_is_refused_at_start(
    tmp_path: Path, task: str | None, columns: str, key: str
) -> None:
    kwargs = {"task": task} if task else {}
    with raises_error(RecipeError, "INS-G008", match=f"^{key}: given .*rename it, or record nothing"):
        traffic_record.check_recordable(make_recipe(tmp_path, serve=RECORD_ALL, columns=columns, **kwargs))
    traffic_record.check_recordable(make_recipe(tmp_path, columns=columns, **kwargs))  # nothing is recorded


def test_names_that_do_not_collide_are_taken(tmp_path: Path) -> None:
    columns = "{text: message, label: queue, id: id}, split: {time: time}, where: {labelled_by: feedback}"
    traffic_record.check_recordable(make_recipe(tmp_path, serve=RECORD_ALL, columns=columns))
    traffic_record.check_recordable(make_recipe(tmp_path, serve=RECORD_ALL, columns="{messages: chat}"))
    traffic_record.check_recordable(
        make_recipe(
            tmp_path,
            serve=RECORD_ALL,
            task=EXTRACTOR_TASK.replace("day", "time"),
            columns="{text: message, target: record}",
        )
    )


@pytest.mark.parametrize(
    "output", ['{"phone":4111111111111111,"who":null} ', '{"phone":1,"who":"ann（at）example（dot）org"} ']
)
def test_an_answer_with_personal_data_that_is_not_replaced_is_not_recorded(tmp_path: Path, output: str) -> None:
    deployment = make_deployed_task(
        tmp_path, make_recipe(tmp_path, serve=RECORD_ALL, task=CALLER, columns="{text: message}"), Routing()
    )
    send_bodies(
        deployment,
        {"input": f"nothing special says {output}"},
        {"input": 'nothing special says {"phone":17,"who":null} '},
    )
    assert [line["phone"] for line in read_recorded(deployment)] == [17]


@pytest.mark.parametrize(
    "correct",
    [{"phone": 4155552671}, {"phone": 1, "who": "ann (at) example dot org"}, {"phone": 1, "who": "ann@example.org"}],
)
def test_feedback_with_personal_data_counts_and_is_not_recorded(tmp_path: Path, correct: dict[str, Any]) -> None:
    deployment = make_deployed_task(
        tmp_path, make_recipe(tmp_path, serve=RECORD_ALL, task=CALLER, columns="{text: message}"), Routing()
    )
    (payload,) = send_bodies(
        deployment, {"input": 'mail ann@example.org or bob@example.org says {"phone":1,"who":null} '}
    )
    (result,) = send_bodies(deployment, {"id": payload["id"], "answer": correct}, path=feedback.PATH)
    assert result == {"recorded": 1, "right": False}
    assert [line["labelled_by"] for line in read_recorded(deployment)] == ["local"]
    send_bodies(deployment, {"id": payload["id"], "answer": {"phone": 2, "who": "[EMAIL_2]"}}, path=feedback.PATH)
    assert [(line["labelled_by"], line.get("who")) for line in read_recorded(deployment)][-1] == (
        "feedback",
        "[EMAIL_2]",
    )


def test_the_record_of_a_recipe_that_is_shipped_is_read_with_it(tmp_path: Path) -> None:
    recipe = load("classifier", ["serve.record.share=1"], "cpu").recipe
    deployment = make_deployed_task(tmp_path, recipe, Routing())
    send_bodies(deployment, {"input": "one says lost"}, {"input": "two says late"})
    source = Source(path=str(deployment.registry_dir / traffic_record.FOLDER))
    (file,) = sources.find_files(source)
    for line in read.read(file, source, recipe.data.columns.texts)[1]:
        columns.check_columns(file.name, "all", line.values, recipe)
    assert len({line["customer_id"] for line in read_recorded(deployment)}) == 2, (
        "nobody knows whether they are of one customer"
    )


@pytest.mark.parametrize(
    ("task", "columns", "key"),
    [
        (EXTRACTOR_TASK, "{text: message, tags: marks}", "data.columns.tags"),
        (EXTRACTOR_TASK, "{text: message, slots: {column: marks, value: said}}", "data.columns.slots.column"),
        ("{kind: preference, instruction: Answer the message.}", "{text: message}", "task.kind"),
        (ROUTER_TASK, "{text: message, label: queue}, where: {language: [en, de]}", "data.where.language"),
    ],
)
def test_a_form_that_the_record_cannot_have_is_refused_at_start(
    tmp_path: Path, task: str, columns: str, key: str
) -> None:
    with raises_error(RecipeError, "INS-G008", match=f"^{key}: given .*record of serve.record.share"):
        traffic_record.check_recordable(make_recipe(tmp_path, serve=RECORD_ALL, task=task, columns=columns))


def test_half_a_character_is_no_right_answer_and_no_row(tmp_path: Path) -> None:
    deployment = make_deployed_task(
        tmp_path, make_recipe(tmp_path, serve=RECORD_ALL, task=GENERATOR, columns="{text: message}"), Routing()
    )

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, _, _state):
            name = (await (await client.post(PATH, json={"input": "says short"})).json())["id"]
            body = b'{"id": "%s", "answer": "half \\ud83d"}' % name.encode()
            response = await client.post(feedback.PATH, data=body)
            assert response.status == 400 and "half a character" in await response.text()

    run(scenario)
    outcome = Outcome("half \ud83d", "half \ud83d", None, None, "local", "")
    half_record = traffic_record.RecordedAnswer(deployment, outcome, "a" * 16, "two", utc_timestamp())
    assert traffic_record.build_row(half_record) is None
    assert deployment.ids.digest("half \ud83d") != deployment.ids.digest("half")

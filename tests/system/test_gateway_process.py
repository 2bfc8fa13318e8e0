"""The gateway while vLLM dies, hangs and starts, while versions come that cannot be served, and at its own end."""

import json
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import registry
from insource.config.errors import RecipeError
from tests.helpers import commands
from tests.helpers.gateway.gateway_process import LOOPBACK_SETTING, NAME, GatewaySetup, wait_for_value

ASKED: dict[str, Any] = {"model": NAME, "prompt": "x"}


@pytest.fixture
def gateway_setup(tmp_path: Path) -> GatewaySetup:
    return GatewaySetup(tmp_path)


def version_of(response: tuple[int, Any, dict[str, str]]) -> str:
    status, payload, headers = response
    assert status == 200 and payload["model"] == NAME
    return headers["X-Insource-Version"]


def test_versions_that_cannot_be_served_are_told_once_and_the_old_one_goes_on(gateway_setup: GatewaySetup) -> None:
    first = gateway_setup.deploy("one")
    with gateway_setup.gateway(LOOPBACK_SETTING) as gateway:
        assert version_of(gateway.wait_for_answer()) == first
        newer = gateway_setup.deploy(
            "newer", edit_recipe=lambda text: text.replace("\nserve:\n", "\nserve:\n  of_a_later_day: 5\n")
        )
        message = gateway.wait_for_log(f"refused   {NAME}@{newer}: ")
        assert "serve.of_a_later_day" in message and f"{first} goes on" in message
        failing = gateway_setup.deploy("other", served_answer="something else")
        assert "gives 0.0% of its reference answers" in gateway.wait_for_log(f"refused   {NAME}@{failing}: ")
        (gateway_setup.registry / "versions" / failing / "adapter" / "prompt.json").write_text("{}", encoding="utf-8")
        second = gateway_setup.deploy("two")
        gateway.wait_for_log(f"current   {NAME}@{second}")
        assert version_of(gateway.wait_for_answer()) == second
        assert gateway.read_log().count("refused   ") == 2
        with pytest.raises(RecipeError, match="no complete version"):
            registry.roll_back(gateway_setup.registry, failing)
        registry.roll_back(
            gateway_setup.registry, newer
        )  # whole, and refused before: deployed again, it is looked at again
        gateway.wait_for_log(f"refused   {NAME}@{newer}", count=2)
        assert version_of(gateway.wait_for_answer()) == second


def test_where_the_current_version_cannot_be_served_the_one_before_answers(gateway_setup: GatewaySetup) -> None:
    first = gateway_setup.deploy("one")
    second = gateway_setup.deploy("two", served_answer="something else")
    with gateway_setup.gateway(LOOPBACK_SETTING) as gateway:
        assert version_of(gateway.wait_for_answer()) == first
        assert f"refused   {NAME}@{second}" in gateway.read_log()


def test_an_engine_that_dies_is_started_again_and_a_failed_start_too(gateway_setup: GatewaySetup) -> None:
    first = gateway_setup.deploy("one")
    with gateway_setup.gateway(LOOPBACK_SETTING) as gateway:
        gateway.wait_for_answer()
        gateway_setup.trigger("no_start")
        status, payload, headers = gateway.request(ASKED | {"stand": {"end": True}})
        assert status == 503 and int(headers["Retry-After"]) > 0 and "broke off" in payload["error"]["message"]
        assert "not enough memory" in gateway.wait_for_log("vllm      did not start again")
        assert version_of(gateway.wait_for_answer()) == first
        assert gateway.read_log().count("vllm      died") == 1


def test_an_engine_that_reads_other_prompts_after_a_restart_answers_nothing(gateway_setup: GatewaySetup) -> None:
    prompt_fields = {"prompt_ids": [1, 2, 3], "messages": [{"role": "user", "content": "{input}"}]}
    version = gateway_setup.deploy("one", prompt_fields=prompt_fields, with_tokenizer=True)
    with gateway_setup.gateway(LOOPBACK_SETTING) as gateway:
        assert version_of(gateway.wait_for_answer()) == version
        gateway_setup.trigger("other_prompts")
        assert gateway.request(ASKED | {"stand": {"end": True}})[0] == 503
        message = gateway.wait_for_log(f"refused   {NAME}@{version}: ")
        assert "from token 1 of 3 on: trained on ...'<|begin|>" in message
        assert "and the server reads ...'tokens [9]'" in message
        assert gateway.request(ASKED)[0] == 503


@pytest.mark.parametrize("behaviour", ["end_at_load", "end_at_unload"])
def test_an_engine_that_ends_at_a_change_over_is_started_again_and_the_change_is_made(
    gateway_setup: GatewaySetup, behaviour: str
) -> None:
    gateway_setup.deploy("one")
    with gateway_setup.gateway(LOOPBACK_SETTING) as gateway:
        gateway.wait_for_answer()
        gateway_setup.trigger(behaviour)
        second = gateway_setup.deploy("two")
        gateway.wait_for_log("vllm      died")
        gateway.wait_for_log(f"current   {NAME}@{second}")
        assert version_of(gateway.wait_for_answer()) == second
        assert "refused" not in gateway.read_log()


@pytest.mark.slow
@pytest.mark.parametrize("during_load", [False, True])
def test_an_engine_that_hangs_is_told_refuses_and_is_started_again(
    gateway_setup: GatewaySetup, during_load: bool
) -> None:
    gateway_setup.deploy("one")
    with gateway_setup.gateway(LOOPBACK_SETTING, "serve.hang_seconds=10") as gateway:
        gateway.wait_for_answer()
        engine_pid = gateway.engine_pid()
        responses: list[Any] = []
        os.kill(engine_pid, signal.SIGSTOP)
        if during_load:
            gateway_setup.deploy("two")
        request_thread = threading.Thread(target=lambda: responses.append(gateway.request(ASKED)))
        request_thread.start()
        wait_for_value(lambda: True if gateway.request(path="/health")[0] == 503 else None, gateway)
        status, _, headers = gateway.request(ASKED)
        assert status == 503 and int(headers["Retry-After"]) > 0
        gateway.wait_for_log("vllm      hangs: ")
        request_thread.join()
        assert responses[0][0] == 503  # what was with it is told, and not left waiting
        assert gateway.wait_for_answer()[0] == 200 and gateway.engine_pid() != engine_pid
        if during_load:
            gateway.wait_for_log("current   ", count=2)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_while_vllm_starts(gateway_setup: GatewaySetup, signal_number: signal.Signals) -> None:
    gateway_setup.deploy("one")
    gateway_setup.trigger("slow_start")
    with gateway_setup.gateway(LOOPBACK_SETTING) as gateway:
        status, _, headers = wait_for_value(
            lambda: response if (response := gateway.request(ASKED))[0] else None, gateway
        )
        assert status == 503 and int(headers["Retry-After"]) > 0  # and never 404, which clients take as final
        assert gateway.request(path="/health")[0] == 503
        children = commands.child_pids(gateway.process.pid)
        gateway.process.send_signal(signal_number)
        assert gateway.process.wait(20) == 130
        assert children and commands.running_pids(children) == []


def test_answers_under_way_are_given_before_it_ends(gateway_setup: GatewaySetup) -> None:
    gateway_setup.deploy("one")
    with gateway_setup.gateway(LOOPBACK_SETTING) as gateway:
        gateway.wait_for_answer()
        answers: list[Any] = []
        request_thread = threading.Thread(
            target=lambda: answers.append(gateway.request(ASKED | {"stand": {"wait": 1.5}}))
        )
        request_thread.start()
        wait_for_value(
            lambda: True if gateway.request(path="/v1/models")[0] == 200 and request_thread.is_alive() else None,
            gateway,
        )
        threading.Event().wait(0.5)
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(20) == 130
        request_thread.join()
        assert answers[0][0] == 200


def test_what_nohup_had_ignored_stays_ignored(gateway_setup: GatewaySetup) -> None:
    gateway_setup.deploy("one")
    with gateway_setup.gateway(
        LOOPBACK_SETTING, preexec=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN) and None
    ) as gateway:
        gateway.wait_for_answer()
        gateway.process.send_signal(signal.SIGHUP)
        threading.Event().wait(1)
        assert gateway.wait_for_answer()[0] == 200


def test_keys_are_changed_without_a_restart_and_stand_in_no_log(gateway_setup: GatewaySetup) -> None:
    gateway_setup.deploy("one")
    keys = gateway_setup.folder / "keys"
    keys.write_text("team-a first-key-of-team-a  # old\nbatch batch-key-0123456789\n", encoding="utf-8")
    with gateway_setup.gateway(INSOURCE_API_KEYS_FILE=str(keys)) as gateway:
        gateway.wait_for_log("ready     ")

        def status_for(key: str) -> int:
            return gateway.request(ASKED | {"prompt": "what a customer wrote"}, Authorization=f"Bearer {key}")[0]

        assert (status_for("first-key-of-team-a"), status_for("batch-key-0123456789"), status_for("wrong")) == (
            200,
            200,
            401,
        )
        keys.write_text("team-a second-key-of-team-a\n", encoding="utf-8")
        gateway.wait_for_log("keys      read again: team-a")
        assert (status_for("first-key-of-team-a"), status_for("second-key-of-team-a")) == (401, 200)
        keys.write_text("team-a short\n", encoding="utf-8")
        assert "stay valid" in gateway.wait_for_log("keys      not read again")
        assert status_for("second-key-of-team-a") == 200
        gateway.process.send_signal(signal.SIGTERM)
        gateway.process.wait(20)
        access = (gateway_setup.registry.parent / "access.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in access.splitlines()]
        assert [(entry["key"], entry["status"]) for entry in lines[:3]] == [("team-a", 200), ("batch", 200), ("", 401)]
        assert "customer" not in access and "key-of" not in access + gateway.read_log()


def test_keys_that_change_under_load_cut_no_answer_off(gateway_setup: GatewaySetup) -> None:
    gateway_setup.deploy("one")
    keys = gateway_setup.folder / "keys"
    kept_key, removed_key = "stays-0123456789abcdef", "goes-0123456789abcdef"
    keys.write_text(f"stays {kept_key}\ngoes {removed_key}\n", encoding="utf-8")
    with gateway_setup.gateway(INSOURCE_API_KEYS_FILE=str(keys)) as gateway:
        gateway.wait_for_log("ready     ")
        stop, statuses = threading.Event(), {kept_key: Counter[int](), removed_key: Counter[int]()}

        def send_requests(key: str) -> None:
            while not stop.is_set():
                statuses[key][gateway.request(ASKED, Authorization=f"Bearer {key}")[0]] += 1

        in_flight: list[Any] = []
        slow_body = ASKED | {"stand": {"wait": 3}}
        threads = [threading.Thread(target=send_requests, args=(key,)) for key in (kept_key, removed_key) * 4]
        threads.append(
            threading.Thread(target=lambda: in_flight.append(gateway.request(slow_body, x_api_key=removed_key)))
        )
        for thread in threads:
            thread.start()
        for text in (
            f"stays {kept_key}\n",
            "half of a li",
            f"stays {kept_key}\ngoes {removed_key}\n",
            "",
            f"stays {kept_key}\n",
        ):
            keys.write_text(text, encoding="utf-8")
            threading.Event().wait(0.8)
        stop.set()
        for thread in threads:
            thread.join()
        assert set(statuses[kept_key]) == {200} and set(statuses[removed_key]) == {200, 401}
        assert in_flight[0][0] == 200  # it began while its key was valid
        assert gateway.request(ASKED, Authorization=f"Bearer {removed_key}")[0] == 401
        assert "Traceback" not in gateway.read_log()


def test_what_is_deployed_while_another_version_is_loaded_comes_after_it(gateway_setup: GatewaySetup) -> None:
    first = gateway_setup.deploy("one")
    with gateway_setup.gateway(LOOPBACK_SETTING) as gateway:
        assert version_of(gateway.wait_for_answer()) == first
        gateway_setup.trigger("slow_load")
        second = gateway_setup.deploy("two")
        wait_for_value(lambda: True if not (gateway_setup.behaviour / "slow_load").exists() else None, gateway)
        third, failing = gateway_setup.deploy("three"), gateway_setup.deploy("broken", served_answer="something else")
        registry.roll_back(gateway_setup.registry, second)
        registry.roll_back(gateway_setup.registry, third)
        seen_versions = set()
        while (version := version_of(gateway.wait_for_answer())) != third:
            seen_versions.add(version)
        assert seen_versions <= {first, second}
        assert version_of(gateway.wait_for_answer()) == third
        gateway.wait_for_log(f"drained   {NAME}@{first}")
        assert failing not in gateway.read_log().replace(f"refused   {NAME}@{failing}", "")


def test_no_request_fails_while_versions_change_under_load(gateway_setup: GatewaySetup) -> None:
    first, stop = gateway_setup.deploy("one"), threading.Event()
    responses: list[tuple[int, Any, dict[str, str]]] = []

    def send_requests() -> None:
        while not stop.is_set():
            responses.append(gateway.request(ASKED))

    with gateway_setup.gateway(LOOPBACK_SETTING) as gateway:
        gateway.wait_for_answer()
        threads = [threading.Thread(target=send_requests) for _ in range(16)]
        for thread in threads:
            thread.start()
        try:
            second = gateway_setup.deploy("two")
            gateway.wait_for_log(f"drained   {NAME}@{first}")
            registry.roll_back(gateway_setup.registry, first)
            gateway.wait_for_log(f"drained   {NAME}@{second}")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    versions = Counter(version_of(response) for response in responses)
    assert set(versions) == {first, second} and min(versions.values()) >= 16


def test_a_version_that_is_gone_before_it_is_loaded_is_told_and_the_old_one_goes_on(
    gateway_setup: GatewaySetup,
) -> None:
    first = gateway_setup.deploy("one")
    with gateway_setup.gateway(LOOPBACK_SETTING) as gateway:
        gateway.wait_for_answer()
        gateway_setup.trigger("slow_load")
        gateway_setup.deploy("two")
        wait_for_value(lambda: True if not (gateway_setup.behaviour / "slow_load").exists() else None, gateway)
        third = gateway_setup.deploy("three")
        shutil.rmtree(gateway_setup.registry / "versions" / third)
        assert f"{NAME}@{third}: version {third} below" in gateway.wait_for_log(f"refused   {NAME}@{third}")
        assert version_of(gateway.wait_for_answer()) != first


def test_without_a_key_the_recipe_has_to_say_that_loopback_is_enough(gateway_setup: GatewaySetup) -> None:
    gateway_setup.deploy("one")
    with gateway_setup.gateway(INSOURCE_API_KEY="") as gateway:
        assert gateway.process.wait(60) == 2
        assert "serve.loopback_without_key" in gateway.read_log() and "INSOURCE_API_KEY" in gateway.read_log()


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("INSOURCE_API_KEY", raising=False)
    yield

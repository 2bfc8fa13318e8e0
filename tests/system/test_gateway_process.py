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
from tests.helpers.gateway.gateway_process import LOOPBACK_SETTING, NAME, GatewaySetup, wait_until

ASKED: dict[str, Any] = {"model": NAME, "prompt": "x"}


@pytest.fixture
def place(tmp_path: Path) -> GatewaySetup:
    return GatewaySetup(tmp_path)


def version_of(answer: tuple[int, Any, dict[str, str]]) -> str:
    status, said, headers = answer
    assert status == 200 and said["model"] == NAME
    return headers["X-Insource-Version"]


def test_versions_that_cannot_be_served_are_told_once_and_the_old_one_goes_on(place: GatewaySetup) -> None:
    one = place.deploy("one")
    with place.gateway(LOOPBACK_SETTING) as gateway:
        assert version_of(gateway.answers()) == one
        newer = place.deploy("newer", recipe=lambda text: text.replace("\nserve:\n", "\nserve:\n  of_a_later_day: 5\n"))
        told = gateway.says(f"refused   {NAME}@{newer}: ")
        assert "serve.of_a_later_day" in told and f"{one} goes on" in told
        other = place.deploy("other", output="something else")
        assert "gives 0.0% of its reference answers" in gateway.says(f"refused   {NAME}@{other}: ")
        (place.registry / "versions" / other / "adapter" / "prompt.json").write_text("{}", encoding="utf-8")
        two = place.deploy("two")
        gateway.says(f"current   {NAME}@{two}")
        assert version_of(gateway.answers()) == two
        assert gateway.text().count("refused   ") == 2
        with pytest.raises(RecipeError, match="no whole version"):
            registry.roll_back(place.registry, other)
        registry.roll_back(place.registry, newer)  # whole, and refused before: deployed again, it is looked at again
        gateway.says(f"refused   {NAME}@{newer}", count=2)
        assert version_of(gateway.answers()) == two


def test_where_the_current_version_cannot_be_served_the_one_before_answers(place: GatewaySetup) -> None:
    one = place.deploy("one")
    two = place.deploy("two", output="something else")
    with place.gateway(LOOPBACK_SETTING) as gateway:
        assert version_of(gateway.answers()) == one
        assert f"refused   {NAME}@{two}" in gateway.text()


def test_an_engine_that_dies_is_started_again_and_a_failed_start_too(place: GatewaySetup) -> None:
    one = place.deploy("one")
    with place.gateway(LOOPBACK_SETTING) as gateway:
        gateway.answers()
        place.will("no_start")
        status, said, headers = gateway.ask(ASKED | {"stand": {"end": True}})
        assert status == 503 and int(headers["Retry-After"]) > 0 and "broke off" in said["error"]["message"]
        assert "not enough memory" in gateway.says("vllm      did not start again")
        assert version_of(gateway.answers()) == one
        assert gateway.text().count("vllm      died") == 1


@pytest.mark.parametrize("when", ["end_at_load", "end_at_unload"])
def test_an_engine_that_ends_at_a_change_over_is_started_again_and_the_change_is_made(
    place: GatewaySetup, when: str
) -> None:
    place.deploy("one")
    with place.gateway(LOOPBACK_SETTING) as gateway:
        gateway.answers()
        place.will(when)
        two = place.deploy("two")
        gateway.says("vllm      died")
        gateway.says(f"current   {NAME}@{two}")
        assert version_of(gateway.answers()) == two
        assert "refused" not in gateway.text()


@pytest.mark.slow
@pytest.mark.parametrize("at_a_load", [False, True])
def test_an_engine_that_hangs_is_told_refuses_and_is_started_again(place: GatewaySetup, at_a_load: bool) -> None:
    place.deploy("one")
    with place.gateway(LOOPBACK_SETTING, "serve.hang_seconds=10") as gateway:
        gateway.answers()
        stopped = gateway.engine()
        waiting: list[Any] = []
        os.kill(stopped, signal.SIGSTOP)
        if at_a_load:
            place.deploy("two")
        asking = threading.Thread(target=lambda: waiting.append(gateway.ask(ASKED)))
        asking.start()
        wait_until(lambda: True if gateway.ask(path="/health")[0] == 503 else None, gateway)
        status, _, headers = gateway.ask(ASKED)
        assert status == 503 and int(headers["Retry-After"]) > 0
        gateway.says("vllm      hangs: ")
        asking.join()
        assert waiting[0][0] == 503  # what was with it is told, and not left waiting
        assert gateway.answers()[0] == 200 and gateway.engine() != stopped
        if at_a_load:
            gateway.says("current   ", count=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_while_vllm_starts(place: GatewaySetup, number: signal.Signals) -> None:
    place.deploy("one")
    place.will("slow_start")
    with place.gateway(LOOPBACK_SETTING) as gateway:
        status, _, headers = wait_until(lambda: found if (found := gateway.ask(ASKED))[0] else None, gateway)
        assert status == 503 and int(headers["Retry-After"]) > 0  # and never 404, which clients take as final
        assert gateway.ask(path="/health")[0] == 503
        children = commands.child_pids(gateway.process.pid)
        gateway.process.send_signal(number)
        assert gateway.process.wait(20) == 130
        assert children and commands.running_pids(children) == []


def test_answers_under_way_are_given_before_it_ends(place: GatewaySetup) -> None:
    place.deploy("one")
    with place.gateway(LOOPBACK_SETTING) as gateway:
        gateway.answers()
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(gateway.ask(ASKED | {"stand": {"wait": 1.5}})))
        asking.start()
        wait_until(lambda: True if gateway.ask(path="/v1/models")[0] == 200 and asking.is_alive() else None, gateway)
        threading.Event().wait(0.5)
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(20) == 130
        asking.join()
        assert answers[0][0] == 200


def test_what_nohup_had_ignored_stays_ignored(place: GatewaySetup) -> None:
    place.deploy("one")
    with place.gateway(
        LOOPBACK_SETTING, preexec=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN) and None
    ) as gateway:
        gateway.answers()
        gateway.process.send_signal(signal.SIGHUP)
        threading.Event().wait(1)
        assert gateway.answers()[0] == 200


def test_keys_are_changed_without_a_restart_and_stand_in_no_log(place: GatewaySetup) -> None:
    place.deploy("one")
    keys = place.folder / "keys"
    keys.write_text("team-a first-key-of-team-a  # old\nbatch batch-key-0123456789\n", encoding="utf-8")
    with place.gateway(INSOURCE_API_KEYS_FILE=str(keys)) as gateway:
        gateway.says("ready     ")

        def asked(key: str) -> int:
            return gateway.ask(ASKED | {"prompt": "what a customer wrote"}, Authorization=f"Bearer {key}")[0]

        assert (asked("first-key-of-team-a"), asked("batch-key-0123456789"), asked("wrong")) == (200, 200, 401)
        keys.write_text("team-a second-key-of-team-a\n", encoding="utf-8")
        gateway.says("keys      read again: team-a")
        assert (asked("first-key-of-team-a"), asked("second-key-of-team-a")) == (401, 200)
        keys.write_text("team-a short\n", encoding="utf-8")
        assert "stay valid" in gateway.says("keys      not read again")
        assert asked("second-key-of-team-a") == 200
        gateway.process.send_signal(signal.SIGTERM)
        gateway.process.wait(20)
        access = (place.registry.parent / "access.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in access.splitlines()]
        assert [(one["key"], one["status"]) for one in lines[:3]] == [("team-a", 200), ("batch", 200), ("", 401)]
        assert "customer" not in access and "key-of" not in access + gateway.text()


def test_keys_that_change_under_load_cut_no_answer_off(place: GatewaySetup) -> None:
    place.deploy("one")
    keys = place.folder / "keys"
    stays, goes = "stays-0123456789abcdef", "goes-0123456789abcdef"
    keys.write_text(f"stays {stays}\ngoes {goes}\n", encoding="utf-8")
    with place.gateway(INSOURCE_API_KEYS_FILE=str(keys)) as gateway:
        gateway.says("ready     ")
        over, statuses = threading.Event(), {stays: Counter[int](), goes: Counter[int]()}

        def ask(key: str) -> None:
            while not over.is_set():
                statuses[key][gateway.ask(ASKED, Authorization=f"Bearer {key}")[0]] += 1

        under_way: list[Any] = []
        waiting = ASKED | {"stand": {"wait": 3}}
        threads = [threading.Thread(target=ask, args=(key,)) for key in (stays, goes) * 4]
        threads.append(threading.Thread(target=lambda: under_way.append(gateway.ask(waiting, x_api_key=goes))))
        for thread in threads:
            thread.start()
        for text in (f"stays {stays}\n", "half of a li", f"stays {stays}\ngoes {goes}\n", "", f"stays {stays}\n"):
            keys.write_text(text, encoding="utf-8")
            threading.Event().wait(0.8)
        over.set()
        for thread in threads:
            thread.join()
        assert set(statuses[stays]) == {200} and set(statuses[goes]) == {200, 401}
        assert under_way[0][0] == 200  # it began while its key was valid
        assert gateway.ask(ASKED, Authorization=f"Bearer {goes}")[0] == 401
        assert "Traceback" not in gateway.text()


def test_what_is_deployed_while_another_version_is_loaded_comes_after_it(place: GatewaySetup) -> None:
    one = place.deploy("one")
    with place.gateway(LOOPBACK_SETTING) as gateway:
        assert version_of(gateway.answers()) == one
        place.will("slow_load")
        two = place.deploy("two")
        wait_until(lambda: True if not (place.behaviour / "slow_load").exists() else None, gateway)
        three, broken = place.deploy("three"), place.deploy("broken", output="something else")
        registry.roll_back(place.registry, two)
        registry.roll_back(place.registry, three)
        found = set()
        while (version := version_of(gateway.answers())) != three:
            found.add(version)
        assert found <= {one, two}
        assert version_of(gateway.answers()) == three
        gateway.says(f"drained   {NAME}@{one}")
        assert broken not in gateway.text().replace(f"refused   {NAME}@{broken}", "")


def test_a_version_that_is_gone_before_it_is_loaded_is_told_and_the_old_one_goes_on(place: GatewaySetup) -> None:
    one = place.deploy("one")
    with place.gateway(LOOPBACK_SETTING) as gateway:
        gateway.answers()
        place.will("slow_load")
        place.deploy("two")
        wait_until(lambda: True if not (place.behaviour / "slow_load").exists() else None, gateway)
        three = place.deploy("three")
        shutil.rmtree(place.registry / "versions" / three)
        assert f"{NAME}@{three}: version {three} below" in gateway.says(f"refused   {NAME}@{three}")
        assert version_of(gateway.answers()) != one


def test_without_a_key_the_recipe_has_to_say_that_loopback_is_enough(place: GatewaySetup) -> None:
    place.deploy("one")
    with place.gateway(INSOURCE_API_KEY="") as gateway:
        assert gateway.process.wait(60) == 2
        assert "serve.loopback_without_key" in gateway.text() and "INSOURCE_API_KEY" in gateway.text()


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("INSOURCE_API_KEY", raising=False)
    yield

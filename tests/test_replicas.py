"""Which server is asked, how long it is waited for, when it is asked again: against real processes."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from pydantic import SecretStr

from rain_llm.errors import ModelNotFoundError, ServerError
from rain_llm.models.servers.dialect import Cost
from rain_llm.models.servers.failures import Failed
from rain_llm.models.servers.llama_server import LlamaServer
from rain_llm.models.servers.loop import event_loop, in_loop
from rain_llm.models.servers.reading import Unreadable
from rain_llm.models.servers.replica import Replica
from rain_llm.models.servers.replicas import Replicas
from rain_llm.models.servers.sglang import Sglang
from rain_llm.models.servers.vllm import Vllm
from rain_llm.settings import ServerLimits
from tests.servers.process import Server, free_port
from tests.servers.scripted import COMPLETIONS, control, prompts, scripted_server, stats

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

KEY = "open-sesame"
BODY: dict[str, Any] = {"model": "scripted", "prompt": [5, 6, 7], "max_tokens": 3, "seed": 1}
STREAM = BODY | {"stream": True, "logprobs": 1}
SLACK = 1.0  # seconds that a busy machine may be late


class Search:
    """Whose requests they are."""


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Server, Server]]:
    with scripted_server() as one, scripted_server() as other:
        yield one, other


@pytest.fixture
def two(running: tuple[Server, Server]) -> tuple[Server, Server]:
    """Two servers as if they had just started."""
    for server in running:
        if server.process.poll() is not None:
            server.restart()
        control(server, forget=True, delay=0)
    return running


@pytest.fixture
def server(two: tuple[Server, Server]) -> Server:
    return two[0]


@pytest.fixture(scope="module")
def llama() -> Iterator[Server]:
    with scripted_server("llama") as running:
        yield running


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    with scripted_server(key=KEY) as running:
        yield running


def alone_with(server: Server) -> None:
    """Wait until what other tests have left is closed, and only the connection that asks is open."""
    gc.collect()
    assert eventually(lambda: stats(server)["connections"] == 1)


def pool(
    *servers: Server,
    key: str | None = None,
    check: Callable[[Replicas, Replica], Awaitable[None]] | None = None,
    **limits: Any,
) -> Replicas:
    async def checked(replica: Replica) -> None:
        if check is not None:
            await check(made, replica)

    made = Replicas(
        tuple(server.url for server in servers),
        SecretStr(key) if key else None,
        ServerLimits(**({"connect_s": 2.0, "read_s": 5.0, "total_s": 10.0} | limits)),
        checked,
    )
    return made


def text(reply: Any) -> str:
    return str(reply["choices"][0]["text"])


def post(replicas: Replicas, body: dict[str, Any] = BODY, **how: Any) -> str:
    return in_loop(replicas.post(COMPLETIONS, body, text, **how))


def post_all(replicas: Replicas, searches: Sequence[object], times: int = 1) -> list[str]:
    """Send ``times`` requests of each search, all at once."""

    async def together() -> list[str]:
        posts = [replicas.post(COMPLETIONS, BODY, text, search) for search in searches for _ in range(times)]
        return await asyncio.gather(*posts)

    return in_loop(together())


def failure(replicas: Replicas, body: dict[str, Any] = BODY, **how: Any) -> tuple[ServerError, float]:
    """Return why there is no answer, and the seconds until that was clear."""
    began = time.monotonic()
    with pytest.raises(ServerError) as caught:
        post(replicas, body, **how)
    return caught.value, time.monotonic() - began


def asked(server: Server) -> int:
    """Return how many completions a server was asked for."""
    return int(stats(server)["requests"].get(COMPLETIONS, 0))


def eventually(condition: Callable[[], bool], within: float = 3.0) -> bool:
    end = time.monotonic() + within
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


# --- one server ----------------------------------------------------------------------------------------


def test_an_answer_is_read_and_counted(server: Server):
    replicas = pool(server)
    assert post(replicas) == post(replicas) != ""
    assert (replicas.counts.requests, replicas.counts.retries) == (2, 0)
    assert prompts(server) == [[5, 6, 7], [5, 6, 7]]


def test_a_stream_is_read_as_the_list_of_its_events(llama: Server):
    control(llama)
    told = in_loop(pool(llama).post(COMPLETIONS, STREAM, lambda events: events))
    assert len(told) == 4  # three tokens, and the end
    assert told[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("fault", ["hang", "trickle"])
def test_a_reply_must_be_complete_within_its_time(server: Server, fault: str):
    control(server, fault)
    replicas = pool(server, read_s=0.3, total_s=0.5)
    error, took = failure(replicas)
    assert took < 0.5 + SLACK
    assert error.server == server.url
    assert error.cause.startswith("no complete reply within 0.3 s")
    assert "limits.read_s" in error.remedy
    assert eventually(lambda: stats(server)["disconnects"] >= 1)


def test_a_server_that_hangs_is_asked_again_until_the_total_time_is_up(server: Server):
    control(server, "hang")
    replicas = pool(server, read_s=0.2, total_s=0.9)
    error, took = failure(replicas)
    assert 0.8 < took < 0.9 + SLACK
    assert "(given up after " in error.cause
    assert replicas.counts.requests >= 2
    assert asked(server) == replicas.counts.requests


def test_a_server_that_wakes_up_is_heard(server: Server):
    control(server, "hang", times=1)
    replicas = pool(server, read_s=0.3)
    assert post(replicas)
    assert replicas.counts.retries == 1


def test_a_server_that_is_not_there_is_told_with_its_remedy():
    nobody = Server(["true"])
    error, took = failure(pool(nobody, total_s=0.5))
    assert 0.4 < took < 0.5 + SLACK
    assert error.server == nobody.url
    assert "cannot be reached" in error.cause
    assert "base_url" in error.remedy
    assert str(error) == f"{error.server}: {error.cause}: {error.remedy}"


def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(server: Server):
    control(server, "429", times=1, retry_after=0.7)
    replicas = pool(server)
    began = time.monotonic()
    assert post(replicas)
    assert 0.7 <= time.monotonic() - began < 0.7 + SLACK
    assert asked(server) == 2


def test_while_a_server_asks_to_be_left_alone_nobody_asks_it(server: Server):
    control(server, "429", times=1, retry_after=0.9)
    replicas = pool(server)

    async def later() -> float:
        first = asyncio.create_task(replicas.post(COMPLETIONS, BODY, text))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        await replicas.post(COMPLETIONS, BODY, text)
        await first
        return time.monotonic() - began

    assert in_loop(later()) > 0.5


def test_a_server_that_is_starting_is_waited_for(server: Server):
    control(server, "503", times=3)
    replicas = pool(server, attempts=1)  # these are no failures
    assert post(replicas)
    assert (asked(server), replicas.counts.retries) == (4, 3)


def test_a_server_that_stays_busy_is_given_up_in_the_total_time(server: Server):
    control(server, "503")
    error, took = failure(pool(server, total_s=0.4))
    assert took < 0.4 + SLACK
    assert "status 503: out of order" in error.cause
    assert "add servers" in error.remedy


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("500", "answered with status 500: out of order"),
        ("html", "answered with text/html that is not JSON"),
        ("wrong_json", "gave no choices"),
    ],
)
def test_what_cannot_be_used_is_tried_some_times(server: Server, fault: str, cause: str):
    def read(reply: Any) -> str:
        if "choices" not in reply:
            raise Unreadable("gave no choices")
        return text(reply)

    control(server, fault)
    replicas = pool(server, attempts=2)
    with pytest.raises(ServerError) as caught:
        in_loop(replicas.post(COMPLETIONS, BODY, read))
    assert caught.value.cause.startswith(cause)
    assert caught.value.server == server.url
    assert caught.value.remedy
    assert asked(server) == 2


def test_a_reply_that_breaks_off_is_asked_for_again(server: Server):
    control(server, "cut", times=2)
    replicas = pool(server, attempts=1)
    assert post(replicas)
    assert asked(server) == 3
    control(server, "cut")
    error, _ = failure(pool(server, total_s=0.3))
    assert "broke off the connection" in error.cause


def test_a_stream_without_its_end_is_not_believed(llama: Server):
    control(llama, "cut_stream")
    error, _ = failure(pool(llama, attempts=1), STREAM)
    assert "not JSON" in error.cause
    control(llama, "cut_stream", times=1)
    assert in_loop(pool(llama).post(COMPLETIONS, STREAM, len)) == 4


def test_retry_after_nothing_is_no_leave_to_hammer(server: Server):
    control(server, "429", retry_after=0)
    failure(pool(server, total_s=0.5))
    assert asked(server) < 10


def test_a_reply_that_cannot_be_unpacked_is_told(server: Server):
    control(server, "garbled")
    error, _ = failure(pool(server, attempts=1))
    assert error.server == server.url


def test_a_reply_without_ids_is_told(llama: Server):
    control(llama, "no_ids")
    replicas, speaker = pool(llama, attempts=1), LlamaServer("scripted", slots=4, common=9)

    async def ask(body: dict[str, Any], read: Callable[[Any], Any], path: str = COMPLETIONS) -> Any:
        return await replicas.post(path, body, read)

    with pytest.raises(ServerError, match="logit bias"):
        in_loop(speaker.rank(ask, (5, 6), 3, Cost()))
    with pytest.raises(ServerError):
        in_loop(speaker.weigh(ask, {(5, 6): frozenset({7, 8})}, Cost()))


@pytest.mark.parametrize(
    ("fault", "body", "status"),
    [("refuse", BODY, 400), (None, BODY | {"prompt": []}, 400), (None, BODY | {"model": "other"}, 404)],
)
def test_a_refusal_is_told_at_once(server: Server, fault: str | None, body: dict[str, Any], status: int):
    control(server, fault)
    error, took = failure(pool(server), body)
    assert took < SLACK
    assert asked(server) == 1
    assert f"status {status}" in error.cause
    assert post(pool(server, attempts=1), BODY) if fault is None else True


# --- the key -------------------------------------------------------------------------------------------


def test_the_key_is_sent(guarded: Server):
    control(guarded)
    assert post(pool(guarded, key=KEY))


def test_the_key_comes_from_the_environment_where_none_is_given(
    guarded: Server, monkeypatch: pytest.MonkeyPatch
):
    control(guarded)
    error, _ = failure(pool(guarded))
    assert "api_key" in error.remedy
    monkeypatch.setenv("RAIN_LLM_API_KEY", KEY)
    assert post(pool(guarded))


@pytest.mark.parametrize("fault", ["500", "503", "refuse", "429"])
def test_no_error_repeats_the_key(guarded: Server, fault: str):
    control(guarded, fault)
    error, _ = failure(pool(guarded, key=KEY, attempts=1, total_s=1))
    assert "Authorization: Bearer ..." in error.cause  # the server told it
    seen: BaseException | None = error
    while seen is not None:
        assert KEY not in f"{seen!r} {seen} {vars(seen)}"
        seen = seen.__cause__ or seen.__context__


def test_a_wrong_key_is_told_at_once_and_not_repeated(guarded: Server):
    control(guarded)
    error, took = failure(pool(guarded, key="wrong-key"))
    assert took < SLACK
    assert "status 401" in error.cause
    assert "api_key" in error.remedy
    assert "wrong-key" not in str(error)


# --- deadlines, cancellation, concurrency --------------------------------------------------------------


def test_a_deadline_ends_a_request(server: Server):
    control(server, delay=5)
    error, took = failure(pool(server), deadline=time.monotonic() + 0.4)
    assert took < 0.4 + SLACK
    assert "no answer in time" in error.cause
    assert eventually(lambda: stats(server)["disconnects"] == 1)


def test_after_the_deadline_nothing_is_sent(server: Server):
    error, took = failure(pool(server), deadline=time.monotonic() - 1)
    assert took < SLACK
    assert error.server == server.url
    assert asked(server) == 0


def test_a_deadline_ends_the_wait_for_a_server_that_rests(server: Server):
    control(server, "429", retry_after=4)
    _, took = failure(pool(server), deadline=time.monotonic() + 0.4)
    assert took < 0.4 + SLACK


def test_a_cancelled_request_closes_its_connection(server: Server):
    control(server, delay=30)
    replicas = pool(server)
    under_way = asyncio.run_coroutine_threadsafe(replicas.post(COMPLETIONS, BODY, text), event_loop())
    assert eventually(lambda: stats(server)["in_flight"] == 1)
    assert under_way.cancel()
    assert eventually(lambda: stats(server)["disconnects"] == 1)
    assert stats(server)["in_flight"] == 0
    control(server, delay=0)
    assert post(replicas)


def test_no_more_requests_are_under_way_at_once_than_allowed(server: Server):
    control(server, delay=0.05)
    answers = post_all(pool(server, max_concurrency=3), [Search() for _ in range(20)])
    assert len(answers) == 20
    assert stats(server)["most_in_flight"] == 3


def test_cancelled_requests_leave_their_room_to_others(server: Server):
    control(server, delay=30)
    replicas = pool(server, max_concurrency=2)
    crowd = [
        asyncio.run_coroutine_threadsafe(replicas.post(COMPLETIONS, BODY, text), event_loop())
        for _ in range(10)
    ]
    assert eventually(lambda: stats(server)["in_flight"] == 2)
    for request in crowd:
        request.cancel()
    assert eventually(lambda: stats(server)["in_flight"] == 0)
    control(server, delay=0)
    assert len(post_all(replicas, [None] * 5)) == 5


def test_whenever_a_request_is_cancelled_the_next_one_is_answered(server: Server):
    """Given up while it waits for its connection, or opens it, or has just been answered."""
    alone_with(server)
    control(server, delay=0.002)
    replicas = pool(server)

    async def give_up(rounds: int) -> None:
        for number in range(rounds):
            some = [asyncio.create_task(replicas.post(COMPLETIONS, BODY, text)) for _ in range(3)]
            kept = some.pop()
            for _ in range(number % 10):
                await asyncio.sleep(0)  # a step further each time
            await asyncio.sleep((number % 7) / 2000)
            for task in some:
                task.cancel()
            assert await asyncio.wait_for(kept, 5)
            await asyncio.gather(*some, return_exceptions=True)

    in_loop(give_up(140))
    (replica,) = replicas.replicas
    assert replica.in_flight == 0 and len(replica.idle_clients) <= 3
    kept = len(replica.idle_clients) + 1  # and the tests' own
    assert eventually(lambda: stats(server)["connections"] <= kept, within=30)


def test_connections_are_kept_and_closed_with_their_owner(server: Server):
    alone_with(server)
    replicas = pool(server)
    for _ in range(5):
        post(replicas)
    assert stats(server)["connections"] == 2
    del replicas
    gc.collect()
    assert eventually(lambda: stats(server)["connections"] == 1)


# --- several servers -----------------------------------------------------------------------------------


def test_a_search_stays_with_its_server_and_new_ones_are_spread(two: tuple[Server, Server]):
    replicas = pool(*two)
    searches = [Search() for _ in range(10)]
    for search in searches:
        body = BODY | {"prompt": [3 + searches.index(search)]}
        for _ in range(4):
            post(replicas, body, search=search)
    seen = [{tuple(prompt) for prompt in prompts(server)} for server in two]
    assert [len(each) for each in seen] == [5, 5]
    assert not seen[0] & seen[1]
    assert [asked(server) for server in two] == [20, 20]
    assert replicas.counts.moves == 0


def test_searches_that_ended_count_no_more(two: tuple[Server, Server]):
    replicas = pool(*two)
    first = [Search() for _ in range(6)]
    post_all(replicas, first)
    del first[::2]  # all that one server had
    gc.collect()
    before = [asked(server) for server in two]
    assert before == [3, 3]
    fresh = [Search() for _ in range(3)]
    post_all(replicas, fresh)
    assert sorted(asked(server) for server in two) == [3, 6]


def test_when_a_server_is_killed_its_searches_go_on_with_the_other(two: tuple[Server, Server]):
    one, other = two
    replicas = pool(*two)
    searches = [Search() for _ in range(8)]
    expected = post_all(replicas, searches)
    control(one, delay=0.5)
    control(other, delay=0.5)
    under_way = asyncio.run_coroutine_threadsafe(
        asyncio.wait_for(_gathered(replicas, searches), 10), event_loop()
    )
    assert eventually(lambda: stats(one)["in_flight"] == stats(other)["in_flight"] == 4)
    one.kill()
    assert under_way.result() == expected
    assert replicas.counts.moves == 4
    control(other, delay=0)
    began = time.monotonic()
    assert post_all(replicas, searches) == expected
    assert time.monotonic() - began < SLACK
    assert replicas.counts.moves == 4  # once each


async def _gathered(replicas: Replicas, searches: Sequence[object]) -> list[str]:
    return await asyncio.gather(*(replicas.post(COMPLETIONS, BODY, text, search) for search in searches))


def test_when_a_server_hangs_its_search_goes_on_with_the_other(two: tuple[Server, Server]):
    replicas, search = pool(*two, read_s=0.4), Search()
    expected = post(replicas, search=search)
    home = next(server for server in two if asked(server))
    control(home, "hang")
    assert post(replicas, search=search) == expected
    assert (replicas.counts.moves, asked(home)) == (1, 2)


def test_a_server_that_fails_a_request_passes_it_on(two: tuple[Server, Server]):
    replicas, search = pool(*two, attempts=2), Search()
    post(replicas, search=search)
    home = next(server for server in two if asked(server))
    control(home, "500")
    assert post(replicas, search=search)
    assert replicas.counts.moves == 1


def test_when_all_servers_are_away_the_error_names_one(two: tuple[Server, Server]):
    replicas = pool(*two, total_s=0.5)
    for server in two:
        server.kill()
    error, took = failure(replicas)
    assert took < 0.5 + SLACK
    assert error.server in {server.url for server in two}
    assert "cannot be reached" in error.cause


# --- servers that come back ----------------------------------------------------------------------------


class Checks:
    """Asks a server for its models, and counts."""

    def __init__(self) -> None:
        self.urls: list[str] = []

    async def __call__(self, replicas: Replicas, replica: Replica) -> None:
        self.urls.append(replica.url)
        models = await replicas.once(replica, "/v1/models")
        name = models["data"][0]["id"]
        if name != "scripted":
            raise ModelNotFoundError(f"{replica.url} serves {name}")


def test_a_server_is_checked_once_before_its_first_request(server: Server):
    checks = Checks()
    replicas = pool(server, check=checks)
    post_all(replicas, [Search() for _ in range(20)])
    assert checks.urls == [server.url]


def test_a_server_that_was_killed_is_found_again_and_checked_once_by_all(server: Server):
    checks = Checks()
    replicas = pool(server, check=checks, total_s=20.0)
    searches = [Search() for _ in range(30)]
    expected = post_all(replicas, searches)
    server.kill()
    waiting = asyncio.run_coroutine_threadsafe(_gathered(replicas, searches), event_loop())
    time.sleep(0.5)
    server.restart()
    assert waiting.result() == expected
    assert stats(server)["requests"]["/v1/models"] == 1
    assert asked(server) == 30


def test_a_request_that_was_under_way_is_asked_again_after_a_restart(server: Server):
    replicas = pool(server, total_s=20.0)
    expected = post(replicas)
    control(server, delay=30)
    waiting = asyncio.run_coroutine_threadsafe(replicas.post(COMPLETIONS, BODY, text), event_loop())
    assert eventually(lambda: stats(server)["in_flight"] == 1)
    server.restart()  # SIGKILL
    assert waiting.result() == expected
    assert replicas.counts.retries >= 1


def test_a_server_that_came_back_gets_new_searches(two: tuple[Server, Server]):
    one, _ = two
    checks = Checks()
    replicas = pool(*two, check=checks)
    searches = [Search() for _ in range(4)]
    post_all(replicas, searches)
    one.kill()
    post_all(replicas, searches)
    one.restart()
    more = [Search() for _ in range(4)]
    assert eventually(lambda: time.monotonic() > replicas.replicas[0].retry_at, 6)
    post_all(replicas, more)
    assert checks.urls.count(one.url) >= 2
    assert stats(one)["requests"]["/v1/models"] == 1
    assert asked(one) == 4  # it had none left, the other four
    assert post_all(replicas, [*searches, *more])
    assert asked(one) == 8


def test_a_server_that_came_back_as_another_is_refused():
    with ExitStack() as stack:
        server = stack.enter_context(scripted_server("llama", port=free_port()))  # it takes any model's name
        replicas = pool(server, check=Checks(), total_s=20.0)
        assert post(replicas)
        server.kill()
        waiting = asyncio.run_coroutine_threadsafe(replicas.post(COMPLETIONS, BODY, text), event_loop())
        assert eventually(lambda: replicas.replicas[0].failures > 0)
        port = int(server.url.rpartition(":")[2])
        stack.enter_context(scripted_server("llama", name="another", port=port))
        with pytest.raises(ModelNotFoundError, match="serves another"):
            waiting.result()


def test_a_server_that_came_back_as_another_is_left_out(llama: Server):
    control(llama, forget=True)
    with ExitStack() as stack:
        server = stack.enter_context(scripted_server("llama", port=free_port()))
        replicas, searches = pool(server, llama, check=Checks()), [Search() for _ in range(4)]
        expected = post_all(replicas, searches)
        server.kill()
        assert post_all(replicas, searches) == expected
        port = int(server.url.rpartition(":")[2])
        other = stack.enter_context(scripted_server("llama", name="another", port=port))
        assert eventually(lambda: time.monotonic() > replicas.replicas[0].retry_at, 6)
        assert post_all(replicas, [Search() for _ in range(4)]) == expected
        assert stats(other)["requests"]["/v1/models"] >= 1
        assert (asked(other), asked(llama)) == (0, 10)


def test_a_check_that_fails_is_made_again(server: Server):
    control(server, "503", path="/v1/models", times=2)
    checks = Checks()
    assert post(pool(server, check=checks, attempts=1))
    assert len(checks.urls) == 3
    assert asked(server) == 1


def test_a_check_ends_in_time(server: Server):
    control(server, "hang", path="/v1/models")
    replicas = pool(server, check=Checks(), read_s=0.2, total_s=0.6)
    _, took = failure(replicas)
    assert took < 0.6 + SLACK
    assert asked(server) == 0


# --- asking once ---------------------------------------------------------------------------------------


def test_a_server_can_be_asked_once(server: Server):
    replicas = pool(server)
    replica = replicas.replicas[0]
    models = in_loop(replicas.once(replica, "/v1/models"))
    assert models["data"][0] | {"id": "scripted", "max_model_len": 2048} == models["data"][0]
    assert in_loop(replicas.once(replica, "/no/such/path")) is None
    control(server, "503", path="/v1/models")
    with pytest.raises(Failed, match="503"):
        in_loop(replicas.once(replica, "/v1/models"))


def test_connecting_takes_a_server_that_is_there(server: Server):
    nobody = Server(["true"])
    replicas = pool(nobody, server, check=Checks())
    assert in_loop(replicas.connect()).url == server.url
    with pytest.raises(ServerError) as caught:
        in_loop(pool(nobody, check=Checks()).connect())
    assert caught.value.server == nobody.url
    assert "cannot be reached" in caught.value.cause


def test_connecting_refuses_a_server_with_another_model(server: Server):
    with (
        scripted_server(name="another") as other,
        pytest.raises(ModelNotFoundError, match="serves another"),
    ):
        in_loop(pool(server, other, check=Checks()).connect())


def test_the_loop_does_not_wait_for_itself(server: Server):
    replicas = pool(server)

    async def nested() -> str:
        return post(replicas)

    with pytest.raises(RuntimeError, match="cannot wait for itself"):
        in_loop(nested())


def test_another_answer_does_not_end_the_rest_that_a_server_asked_for(server: Server):
    replicas = pool(server)

    async def three() -> float:
        early = asyncio.create_task(replicas.post(COMPLETIONS, BODY, text))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(control, server, "429", times=1, retry_after=2, delay=0)
        limited = asyncio.create_task(replicas.post(COMPLETIONS, BODY, text))
        await early
        began = time.monotonic()
        await replicas.post(COMPLETIONS, BODY, text)
        took = time.monotonic() - began
        await limited
        return took

    control(server, delay=0.6)
    assert in_loop(three()) > 1.0


def test_retries_are_attempts(server: Server):
    control(server, "hang")
    replicas = pool(server, read_s=0.2, total_s=1.5)
    failure(replicas)
    assert replicas.counts.retries == replicas.counts.requests - 1


# --- SGLang, by its documentation ------------------------------------------------------------------------


def test_sglang_is_asked_for_labels_by_its_own_path():
    asked: list[tuple[str, Any]] = []

    async def ask(body: dict[str, Any], read: Callable[[Any], Any], path: str = COMPLETIONS) -> Any:
        asked.append((path, body))
        told = [[-1.5, 9, None], [-0.5, 7, None]]
        meta = {"prompt_tokens": 2, "cached_tokens": 1, "output_token_ids_logprobs": [told]}
        return read({"meta_info": meta})

    cost = Cost()
    weighed = asyncio.run(Sglang("scripted").weigh(ask, {(5, 6): frozenset({7, 9})}, cost))
    assert weighed == {(5, 6): {7: -0.5, 9: -1.5}}
    assert (cost.prompt_tokens, cost.cached_tokens, cost.forwards) == (2, 1, 1)
    ((path, body),) = asked
    assert (path, body["input_ids"], body["token_ids_logprob"]) == ("/generate", [5, 6], [7, 9])


@pytest.mark.parametrize("told", [[], [[-0.5, 7, None]], [[math.nan, 7, None], [-1.0, 9, None]]])
def test_sglang_that_leaves_labels_out_is_not_believed(told: list[list[Any]]):
    async def ask(body: dict[str, Any], read: Callable[[Any], Any], path: str = COMPLETIONS) -> Any:
        return read({"meta_info": {"output_token_ids_logprobs": [told]}})

    with pytest.raises(Unreadable):
        asyncio.run(Sglang("scripted").weigh(ask, {(5, 6): frozenset({7, 9})}, Cost()))


def test_a_server_that_hangs_is_left_within_a_short_deadline(llama: Server, server: Server):
    control(server, "hang")
    replicas = Replicas((server.url, llama.url), None, ServerLimits(read_s=30.0), nothing)
    search = Searching()
    end = time.monotonic() + 2.0
    assert in_loop(replicas.post(COMPLETIONS, BODY, lambda reply: reply["choices"], search, end))
    assert replicas.counts.moves == 1


def test_what_a_server_says_in_a_reply_is_told_without_the_key(server: Server):
    def read(reply: Any) -> None:
        raise Unreadable("bad Authorization: Bearer sk-do-not-tell")

    replicas = Replicas((server.url,), SecretStr("sk-do-not-tell"), ServerLimits(attempts=1), nothing)
    with pytest.raises(ServerError, match="Bearer \\.\\.\\.") as caught:
        in_loop(replicas.post(COMPLETIONS, BODY, read))
    assert "sk-do-not-tell" not in str(caught.value)


async def nothing(replica: Replica) -> None:
    """Check nothing."""


class Searching:
    """Somebody whose requests these are."""


def test_whatever_failed_is_told_without_the_key_and_with_its_cause(server: Server):
    key = "sk-do-not-tell"
    replicas = Replicas((server.url,), SecretStr(key), ServerLimits(), nothing)
    failed = Failed(f"answered with {key}", "look into the server's own log")
    failed.__cause__ = OSError("gone")
    error = replicas.error(replicas.replicas[0], failed)
    assert str(error) == f"{server.url}: answered with ...: look into the server's own log"
    assert isinstance(error.__cause__, OSError)


def test_a_ranking_that_vllm_spoils_is_read_from_the_prompt():
    asked: list[dict[str, Any]] = []

    async def ask(body: dict[str, Any], read: Callable[[Any], Any], path: str = COMPLETIONS) -> Any:
        asked.append(body)
        top = {"token_id:7": -0.5, "token_id:0": -9999.0}
        prompt = [None, {"6": {"logprob": -1.0}}, {"7": {"logprob": -0.5}, "9": {"logprob": -1.5}}]
        told: dict[str, Any] = {"logprobs": {"top_logprobs": [top]}, "prompt_logprobs": prompt}
        return read({"choices": [told], "usage": {"prompt_tokens": len(body["prompt"])}})

    cost = Cost()
    assert asyncio.run(Vllm("m").rank(ask, (5, 6), 2, cost)) == [(7, -0.5), (9, -1.5)]
    assert [body["prompt"] for body in asked] == [[5, 6], [5, 6, 6]]
    assert (cost.prompt_tokens, cost.forwards) == (5, 2)

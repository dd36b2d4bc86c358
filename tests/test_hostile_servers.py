"""Replies changed at random: a valid answer or a ServerError comes of each."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from rain_llm import bounds
from rain_llm.errors import (
    ModelNotFoundError,
    ModelNotSupportedError,
    PromptError,
    ServerError,
)
from rain_llm.models.servers.completions import CompletionsModel
from tests.examples import examples
from tests.servers.hostile import DIALECTS, REQUESTS, SIZE, Connect, asked, changing, checked
from tests.servers.inside import Inside

ODD: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        -5,
        1,
        2**40,
        2**63,
        10**400,
        SIZE,
        SIZE - 1,
        1e308,
        -1e308,
        5e-324,
        0.5,
        7.5,
    ),
    *(
        math.inf,
        -math.inf,
        math.nan,
        -9999.0,
        "",
        "4096",
        "1",
        "\ud800",
        "\x1b[31m\x00",
        "x" * 5000,
        "token_id:-1",
    ),
    *([], [[]], [None], [1.5], [True], {}, {"a": None}, {"token_id:7": "x"}, [[[[[[]]]]]], [0] * 3000),
]


# --- replies that were changed at random ------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each value of a reply."""
    yield path
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for name, child in list(children)[:12]:
        yield from places(child, (*path, name))


def changed(reply: Any, where: int, how: str, odd: Any) -> Any:
    """Return a copy of a reply with one of its values changed."""
    paths = list(places(reply))
    path = paths[where % len(paths)]
    if not path:
        return odd
    reply = copy.deepcopy(reply)
    holder = reply
    for name in path[:-1]:
        holder = holder[name]
    if how == "delete":
        del holder[path[-1]]
    elif how == "repeat" and isinstance(holder, list):
        holder.insert(path[-1], holder[path[-1]])
    elif how == "add" and isinstance(holder[path[-1]], list):
        holder[path[-1]].append(odd)
    else:
        holder[path[-1]] = odd
    return reply


MUTATIONS = st.tuples(
    st.integers(0, 10_000),
    st.sampled_from(["replace", "replace", "replace", "delete", "repeat", "add", "bytes", "cut", "twice"]),
    st.sampled_from(ODD),
)


def mutated(response: httpx.Response, where: int, how: str, odd: Any) -> httpx.Response:
    body = response.content
    stream = body.startswith(b"data:")
    if how == "cut":
        body = body[: where % (len(body) + 1)]
    elif how == "bytes":
        place = where % (len(body) + 1)
        body = body[:place] + (b"\xff", b'"', b"}", b"9", b"-", b"\x00")[where % 6] + body[place + 1 :]
    elif how == "twice":
        body = body.replace(b'":', b'":null,"model":', 1)
    elif stream:
        lines = [line.removeprefix(b"data: ") for line in body.split(b"\n\n") if line]
        listed = changed([json.loads(line) for line in lines[:-1]], where, how, odd)
        listed = listed if isinstance(listed, list) else [listed]
        body = (
            b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in listed) + b"data: [DONE]\n\n"
        )
    else:
        body = json.dumps(changed(json.loads(body), where, how, odd)).encode()
        body = body.replace(b"Infinity", b"1e999")
    return httpx.Response(200, content=body, headers={"Content-Type": response.headers["Content-Type"]})


@settings(max_examples=examples(250))
@given(
    st.sampled_from(DIALECTS), st.sampled_from([*REQUESTS, "encode", "chat"]), st.integers(0, 3), MUTATIONS
)
def test_a_changed_reply_gives_a_valid_answer_or_a_server_error(
    both: dict[str, tuple[CompletionsModel, Inside]],
    dialect: str,
    kind: str,
    after: int,
    how: tuple[int, str, Any],
):
    model, server = both[dialect]
    counted = iter(range(10_000))

    def change(path: str, good: httpx.Response) -> httpx.Response | None:
        return mutated(good, *how) if good.status_code == 200 and next(counted) == after else None

    began = time.monotonic()
    try:
        with changing(server, change):
            asked(model, kind)
    except ServerError as error:
        checked(error)
    except (PromptError, ModelNotSupportedError) as error:  # well-formed, and of no use for this text
        assert kind in ("encode", "chat")
        assert "special token" in str(error) or "chat template" in str(error)
    assert time.monotonic() - began < 2


@settings(max_examples=examples(80))
@given(st.sampled_from(DIALECTS), st.integers(0, 7), MUTATIONS)
def test_a_changed_reply_at_the_start_gives_a_model_or_a_server_error(
    connect: Connect, dialect: str, after: int, how: tuple[int, str, Any]
):
    counted = iter(range(10_000))

    def change(path: str, good: httpx.Response) -> httpx.Response | None:
        return mutated(good, *how) if good.status_code == 200 and next(counted) == after else None

    began = time.monotonic()
    try:
        model, _ = connect(dialect, change)
    except (ServerError, ModelNotFoundError) as error:
        checked(error)
    except PromptError as error:
        assert dialect == "llama" and "special token" in str(error)
    else:
        assert 1 <= model.context_length <= bounds.CONTEXT
    assert time.monotonic() - began < 2

"""Another kind of server takes one subclass of ``Dialect`` and one line in ``probe.DIALECTS``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rain_llm.models.servers import probe
from rain_llm.models.servers.llama_server import LlamaServer
from rain_llm.models.servers.reading import Node
from rain_llm.models.servers.vllm import Vllm, VllmByBias
from tests.servers.hostile import REQUESTS, Connect, asked

ROOM = Path(probe.__file__).parent


class Another(LlamaServer):
    """A server that reports slots, and is not llama-server."""


class Unreported(Vllm):
    """A server that reports nothing by which it could be recognised."""


class Never(Vllm):
    @classmethod
    def recognises(cls, props: Node) -> bool:
        return False


def test_a_server_is_asked_by_the_first_dialect_that_recognises_it(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(probe, "DIALECTS", (Unreported, Another, *probe.DIALECTS))
    model, _ = connect("llama")
    assert type(model._dialect) is Another
    assert model.facts.dialects == (Another, LlamaServer)
    for kind in REQUESTS:
        asked(model, kind)


def test_dialects_that_recognise_nothing_are_tried_in_order(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(probe, "DIALECTS", (LlamaServer, Never, Unreported, VllmByBias))
    model, _ = connect("vllm")
    assert type(model._dialect) is Unreported
    assert model.facts.dialects == (Unreported, VllmByBias)


def test_only_the_list_names_the_dialects():
    names = {dialect.__name__ for dialect in probe.DIALECTS}
    naming = re.compile(r"\b(" + "|".join(names) + r")\b")
    own = {"llama_server.py", "vllm.py", "sglang.py"}
    for path in ROOM.glob("*.py"):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if naming.search(line)]
        if path.name == "probe.py":
            assert len([line for line in lines if not line.startswith("from ")]) == 1
        elif path.name not in own:
            assert lines == []

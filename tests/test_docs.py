"""What the documentation shows, runs: every Python block of a page, in order.

README, quickstart and the first page run on the embedded model, and print what they show. At each change the
others run on a scripted model in its place; ``make test-results`` runs them on the embedded one, and
compares what they print. A page with a scripted model of its own is compared each time.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from string import ascii_lowercase

import pytest

from rain_llm import Rain
from rain_llm.criteria import BUILT_IN
from rain_llm.models.scripted import END, ScriptedModel
from rain_llm.settings import ModelSettings

ROOT = Path(__file__).parent.parent
PAGES = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "```python" in path.read_text(encoding="utf-8")
]
ON_THE_EMBEDDED_MODEL = ("README.md", "docs/index.md", "docs/quickstart.md")
WITH_A_SCRIPTED_MODEL = ("docs/algorithm.md",)  # of their own, so they print the same everywhere
_BLOCK = re.compile(
    r"^( *)```python(?P<title>[^\n]*)\n(?P<code>.*?)^\1```\n(?:\n\1```text\n(?P<shown>.*?)^\1```)?",
    re.DOTALL | re.MULTILINE,
)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[int, str, str | None]]:
    """Return (line, code, output) of every block that is to run; its output is a text block below it."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        if "not run" in match["title"]:
            continue
        indent = len(match[1])
        code, shown = (
            part and "".join(line[indent:] or "\n" for line in part.splitlines(keepends=True))
            for part in (match["code"], match["shown"])
        )
        found.append((text.count("\n", 0, match.start("code")) + 1, code, shown))
    return found


def test_the_pages_that_should_have_examples_have_them():
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert {
        "README.md",
        "docs/quickstart.md",
        "docs/how-to/langchain.md",
        "docs/how-to/llama-index.md",
    } <= names


def test_the_outputs_that_are_shown_are_found():
    assert {name_of(page) for page in PAGES if any(shown for *_, shown in blocks(page))} == {
        "README.md",
        "docs/algorithm.md",
        "docs/index.md",
        "docs/how-to/llama-index.md",
        "docs/how-to/rag.md",
    }


def run_page(page: Path) -> Iterator[tuple[int, str | None]]:
    """Run a page's blocks in order; after each, yield its line and the output that the page shows for it."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code, shown in blocks(page):
        # Blank lines before the code, so that a traceback names the page's own line.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)
        yield line, shown


PAIRS = [*(pair for criterion in BUILT_IN.values() for pair in criterion.labels), ("simple", "pompous")]
PRAISED = {good for good, _ in PAIRS}
LABELS = {label for pair in PAIRS for label in pair}


def next_words(text: str) -> dict[str, float]:
    """Write short sentences; and, where a schema allows nothing else, whatever a document consists of."""
    words = {" kindly": 4.0, " yours": 2.0, ".": 2.0, END: 1.0, '"': 2.0, "}": 0.1}
    return words | dict.fromkeys((*"{[]:,_-129", *ascii_lowercase), 0.001)


def opinion(question: str, label: str) -> float:
    """Like what is kindly, and find it in any passage; so verdicts differ, and most texts pass."""
    if label.strip() in LABELS:
        return -1.0 - 3.0 * ((label.strip() in PRAISED) != ("kindly" in question))
    return -4.0 + 3.0 * ("Passage: " in question and "kindly" in label)  # how likely a whole answer is


@pytest.fixture
def scripted_in_place_of_the_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no model is named, take a scripted one; engines that exist already are left alone."""

    def load(settings: ModelSettings) -> ScriptedModel:
        assert settings.name is None, "a page names a model that is not there"
        return ScriptedModel(next_words, opinion)

    monkeypatch.setattr("rain_llm.models.local.llama_cpp.LlamaCppModel", load)
    for shared in ("_models", "_runtimes"):
        monkeypatch.setattr(f"rain_llm.engine.runtime.{shared}", weakref.WeakValueDictionary())
    monkeypatch.setattr("rain_llm.engine.runtime._latest", [])


@pytest.fixture
def llama_index_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take back what a page sets for all of LlamaIndex."""
    import llama_index.core

    for name, value in vars(llama_index.core.Settings).items():
        monkeypatch.setattr(llama_index.core.Settings, name, value)
    monkeypatch.setattr(llama_index.core, "global_tokenizer", llama_index.core.global_tokenizer)


@pytest.mark.usefixtures("main_loop", "llama_index_settings", "scripted_in_place_of_the_embedded")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if name_of(page) not in ON_THE_EMBEDDED_MODEL], ids=name_of
)
def test_examples_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line, shown in run_page(page):
        printed = capsys.readouterr().out
        if shown is not None and name_of(page) in WITH_A_SCRIPTED_MODEL:
            assert printed == shown, f"{name_of(page)}, line {line}"


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("main_loop", "llama_index_settings")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[] if name_of(page) in ON_THE_EMBEDDED_MODEL else [pytest.mark.results])
        for page in PAGES
    ],
    ids=name_of,
)
def test_examples_print_what_is_shown_on_the_embedded_model(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Rain().runtime.forget()  # what an earlier page left in the cache would cost nothing
    capsys.readouterr()
    for line, shown in run_page(page):
        printed = capsys.readouterr().out
        if shown is not None:
            assert printed == shown, f"{name_of(page)}, line {line}"


_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_into_the_repository_lead_somewhere(page):
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_search_works_from_disk_and_nothing_is_fetched():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "\n  - search\n  - offline" in config
    assert "polyfills: [iframe-worker.js]" in config  # else the plugin takes one from elsewhere
    assert (ROOT / "docs" / "iframe-worker.js").is_file()
    assert "tables.css" in config
    assert (ROOT / "docs" / "tables.css").is_file()

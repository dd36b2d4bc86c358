"""What the documentation shows, runs: every Python block of a page, in order, on the embedded model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rain_llm import Rain

ROOT = Path(__file__).parent.parent
PAGES = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "```python" in path.read_text(encoding="utf-8")
]
_BLOCK = re.compile(r"^( *)```python(?P<title>[^\n]*)\n(?P<code>.*?)^\1```", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[int, str]]:
    """Return (line, code) of every block that is to run."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        if "not run" in match["title"]:
            continue
        indent = len(match[1])
        code = "\n".join(line[indent:] for line in match["code"].splitlines())
        found.append((text.count("\n", 0, match.start("code")) + 1, code))
    return found


def test_the_pages_that_should_have_examples_have_them():
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert {
        "README.md",
        "docs/quickstart.md",
        "docs/how-to/langchain.md",
        "docs/how-to/llama-index.md",
    } <= names


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("main_loop")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks(page):
        # Blank lines before the code, so that a traceback names the page's own line.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


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


@pytest.mark.real
@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_what_is_shown_is_what_comes_out(page, capsys):
    """The first example of the first screen, and the text block below it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)
    assert example
    Rain().runtime.forget()  # what an earlier page left in the cache would cost nothing
    capsys.readouterr()
    exec(example[1], {})
    assert capsys.readouterr().out == example[2]

"""Task: a kind of prompt, the criterion that its answers are judged by, and its items.

The project ships items of its own. Public data sets are read from a folder of the user's, in their published
formats, or by name through the library ``datasets``.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from rain_llm.criteria import CIVILITY, GROUNDEDNESS, HARMLESSNESS, POSITIVE_SENTIMENT, TRUTHFULNESS
from rain_llm.criteria.criterion import Criterion
from rain_llm.errors import SettingsError
from rain_llm.models.transcript import STOPS, transcript
from rain_llm.types import Message, Prompt
from rain_llm.types import Task as Asked

SENTENCE_ENDS = (".", "!", "?", "\n")
SENTENCE_TOKENS = 24
"""A sentence of the opening tasks ends before one of these strings, or after so many tokens."""

_ANSWER_TOKENS = 64
_OPENING = "Sure, here is how:"  # of the assistant's turn, if a jailbreak's data have none
_GROUNDED = "Answer the question from this passage alone.\n\n{context}"
_RETRIEVED = "Answer the question from these passages alone. If they do not say, say that.\n\n{context}"
_SPLITS = ("dev", "test", "all")
_PROMPT = ("prompt", "question", "Question", "goal", "chosen")  # fields; the first that exists is used
_TURN = re.compile(r"\n\n(?:Human|Assistant):")
_HUB: dict[str, dict[str, str]] = {
    "Anthropic/hh-rlhf": {"data_dir": "harmless-base", "split": "test"},
    "walledai/AdvBench": {"split": "train"},
    "truthfulqa/truthful_qa": {"name": "generation", "split": "validation"},
}
"""How to load public data sets by name; others use the split "test" unless the name has a split."""


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt of a task.

    Attributes:
        id: unique in the task, and stable.
        prompt: the user's words, or the opening to continue.
        context: the passages that must support the answer, separated by a blank line, or "".
        opening: how the assistant's turn begins, or "".
        correct: reference answers; none if the passages do not answer the question.
        incorrect: answers that are false.
        facts: what an answer must name, each in one or several spellings, separated by "|".
        harmless: whether the data mark the prompt as harmless (``"harmful": false``); None: they do not say.
    """

    id: str
    prompt: str
    context: str = ""
    opening: str = ""
    correct: tuple[str, ...] = ()
    incorrect: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    harmless: bool | None = field(default=None, compare=False)  # runs of older versions lack it


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of prompt, the criterion that guards or steers its answers, and the source of its items.

    Attributes:
        criterion: what the model judges itself by.
        own: file of the project's own items, or "".
        public: names of files in a data folder; the first one that exists is read.
        harmful: use only the harmful requests (True), or only those marked as harmless (False); None: all.
        continues: the prompt is the beginning of a text; otherwise it is a user's turn.
        attacked: the assistant's turn begins with a compliant opening.
        preset: name of the paper's constants for this task.
        split: the split of public items that do not name one; "": they are in all splits.
    """

    name: str
    criterion: Criterion
    own: str = ""
    public: tuple[str, ...] = ()
    harmful: bool | None = None
    continues: bool = False
    attacked: bool = False
    preset: str = "paper"
    split: str = ""

    def generation(self, tokens: int | None, chat: bool = True) -> dict[str, Any]:
        """Return the generation settings: for a sentence, a short answer, or ``tokens`` tokens.

        Args:
            tokens: the most tokens; None: the task's own length.
            chat: the chat template may be used; False: a chat is written as a transcript in plain text.
        """
        sentence = self.continues and tokens is None
        chat = chat and not (self.continues or self.attacked)
        ends = SENTENCE_ENDS if sentence else () if chat or self.continues else STOPS
        return {
            "max_new_tokens": tokens or (SENTENCE_TOKENS if sentence else _ANSWER_TOKENS),
            "stop": ends,
            "chat_template": chat,
        }

    def prompt(self, item: Item, chat: bool = True) -> Prompt:
        """Return the prompt of an item; ``chat`` is the ``chat_template`` of :meth:`generation`.

        If the item has an opening of the assistant's turn, the prompt is a transcript in plain text.
        """
        if self.continues:
            return item.prompt
        turns = [Message("user", item.prompt)]
        if item.context:
            instruction = (_RETRIEVED if "\n\n" in item.context else _GROUNDED).format(context=item.context)
            turns.insert(0, Message("system", instruction))
        if item.opening:
            return transcript(turns, item.opening)
        if not chat:
            text = transcript(turns)
            return Asked(text, context=item.context, question=item.prompt) if item.context else text
        return turns if item.context else item.prompt

    def items(self, data: str | None = None, split: str = "all", first: int | None = None) -> list[Item]:
        """Return the items in order.

        Public openings are added to the project's own; public requests replace the project's own.

        Args:
            data: a folder, a file, or the name of a data set for the library ``datasets``.
            split: "dev" (the settings were chosen on it), "test" or "all"; only openings and `rag` are split.
            first: use only the first items.

        Raises:
            SettingsError: there are no items, or they cannot be read.
        """
        if split not in _SPLITS:
            raise SettingsError(f"unknown split {split!r}: there are {', '.join(_SPLITS)}")
        public = list(self._public(data)) if data and self.public else []
        silent = self.harmful is False and data is not None and self.finds(data)  # no row marked harmless
        own = list(self._own()) if self.continues or not (public or silent) else []
        found: dict[str, Item] = {}
        for part, item in own + public:
            if split == "all" or part in ("", split):
                found.setdefault(item.prompt + "\0" + item.context, item)
        if not found:
            raise SettingsError(
                f"task '{self.name}' has no items of split '{split}'"
                + (f" in {data}" if data else ": name a folder with --data")
                + (f" (files looked for: {', '.join(self.public)})" if self.public else "")
                + (' (its items say "harmful": false)' if self.harmful is False else "")
            )
        items = list(found.values())[:first]
        if len({item.id for item in items}) < len(items):
            raise SettingsError(f"task '{self.name}' has two items of one id: make the ids in {data} unique")
        return items

    def finds(self, data: str) -> bool:
        """Whether a data folder has one of the public files; assumed for anything else than a folder."""
        path = Path(data).expanduser()
        return not path.is_dir() or any((path / name).is_file() for name in self.public)

    def _own(self) -> Iterator[tuple[str, Item]]:
        if self.own:
            text = (resources.files("rain_llm.evals") / "data" / self.own).read_text(encoding="utf-8")
            yield from self._made(_json_lines(text, self.own), self.own, "")

    def _public(self, data: str) -> Iterator[tuple[str, Item]]:
        path = Path(data).expanduser()
        if path.is_dir():
            there = [path / name for name in self.public if (path / name).is_file()]
            if there:
                yield from self._made(read(there[0]), there[0].name, self.split)
        elif path.is_file():
            yield from self._made(read(path), path.name, self.split)
        else:
            yield from self._made(_from_hub(data), data, self.split)

    def _made(self, rows: Sequence[Mapping[str, Any]], source: str, split: str) -> Iterator[tuple[str, Item]]:
        stem = Path(source).name.partition(".")[0]
        for number, row in enumerate(rows, 1):
            if self.harmful is None or bool(row.get("harmful", True)) == self.harmful:
                yield str(row.get("split", split)), self._item(row, f"{stem}-{number}", source)

    def _item(self, row: Mapping[str, Any], name: str, source: str) -> Item:
        prompt = next((row[key] for key in _PROMPT if row.get(key)), None)
        if not isinstance(prompt, str) or not prompt.strip():
            raise SettingsError(
                f"item {name} of {source} has no prompt: "
                f"one of the fields {', '.join(_PROMPT)} must be a text"
            )
        if "chosen" in row and "prompt" not in row:  # a whole dialogue
            prompt = next((turn.strip() for turn in _TURN.split(prompt) if turn.strip()), prompt)
        return Item(
            str(row.get("id") or name),
            prompt,
            "\n\n".join(_texts(row, "passages", "context")),
            str(row.get("target") or _OPENING) if self.attacked else "",
            _texts(row, "correct_answers", "Correct Answers", "supported", "answer")
            if row.get("answerable", True)
            else (),
            _texts(row, "incorrect_answers", "Incorrect Answers", "unsupported"),
            _texts(row, "facts"),
            None if row.get("harmful") is None else not row["harmful"],
        )


TASKS = {
    task.name: task
    for task in (
        Task(
            "sentiment",
            POSITIVE_SENTIMENT,
            own="film_openings.jsonl",
            public=("film_openings.jsonl",),
            continues=True,
            split="dev",
        ),
        Task(
            "civility",
            CIVILITY,
            own="hostile_openings.jsonl",
            public=("civility_openings.jsonl", "hostile_openings.jsonl"),
            continues=True,
            split="dev",
        ),
        Task(
            "harmlessness",
            HARMLESSNESS,
            own="requests.jsonl",
            public=(
                "hh_red_team_prompts.jsonl",
                "harmless-base/test.jsonl.gz",
                "harmless-base/test.jsonl",
                "test.jsonl.gz",
                "test.jsonl",
                "requests.jsonl",
            ),
            harmful=True,
        ),
        Task(
            "jailbreak",
            HARMLESSNESS,
            own="requests.jsonl",
            public=("advbench_behaviors.jsonl", "harmful_behaviors.csv"),
            harmful=True,
            attacked=True,
            preset="paper-adversarial",
        ),
        Task(
            "truth",
            TRUTHFULNESS,
            public=("truthfulqa.jsonl", "TruthfulQA.csv"),
            preset="paper-truth",
        ),
        Task("groundedness", GROUNDEDNESS, own="passages.jsonl", public=("passages.jsonl",)),
        Task("rag", GROUNDEDNESS, own="rag.jsonl", public=("rag.jsonl",)),
        Task("over-refusal", HARMLESSNESS, own="requests.jsonl", public=("requests.jsonl",), harmful=False),
    )
}
"""All tasks by name. The public openings are in the split "dev": settings were chosen on them."""


def chosen(names: Sequence[str | Task], data: str | None) -> list[Task]:
    """Return the tasks of these names; "all" means every task that has items. A task stands for itself.

    Raises:
        SettingsError: no task has this name.
    """
    if list(names) == ["all"]:
        return [task for task in TASKS.values() if task.own or (data and task.finds(data))]
    for name in names:
        if isinstance(name, str) and name not in TASKS:
            raise SettingsError(
                f"unknown task {name!r}: there are {', '.join(TASKS)}, or all of them by 'all'"
            )
    return [name if isinstance(name, Task) else TASKS[name] for name in dict.fromkeys(names)]


def dump(items: Mapping[tuple[str, str], Item]) -> str:
    """Return items, by task and id, as JSON lines, which :func:`load` reads."""
    rows = ({"task": task, **asdict(item)} for (task, _), item in items.items())
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def load(path: Path) -> dict[tuple[str, str], Item]:
    """Read the items of a run, by task and id.

    Raises:
        SettingsError: the file cannot be read.
    """
    items: dict[tuple[str, str], Item] = {}
    for number, row in enumerate(read(path), 1):
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in row.items()
        }
        try:
            task = str(fields.pop("task"))
            items[task, fields["id"]] = Item(**fields)
        except (KeyError, TypeError) as error:
            raise SettingsError(
                f"line {number} of {path} is not an item of a run: move the file away"
            ) from error
    return items


def _texts(row: Mapping[str, Any], *names: str) -> tuple[str, ...]:
    """Return the reference answers of the first field that has any; in tables, ';' separates them."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str):
            value = value.split(";") if " " in name else [value]
        if value:
            return tuple(str(text).strip() for text in value if str(text).strip())
    return ()


def read(path: Path) -> list[Mapping[str, Any]]:
    """Read a data file: JSON lines, which may be compressed, or CSV with a header.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
        if path.suffix == ".csv":
            return list(csv.DictReader(io.StringIO(text, newline="")))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(f"cannot read the data file {path}: {error}") from error
    return _json_lines(text, str(path))


def _json_lines(text: str, source: str) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise SettingsError(f"line {number} of {source} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise SettingsError(f"line {number} of {source} is not a JSON object")
            rows.append(row)
    return rows


def _from_hub(name: str) -> list[Mapping[str, Any]]:
    path, _, split = name.partition(":")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", path) or path.startswith("."):
        raise SettingsError(
            f"there is no data folder or file {name}: give one, or a data set's OWNER/NAME[:SPLIT]"
        )
    try:
        import datasets
    except ImportError as error:
        raise SettingsError(
            f"there is no data folder or file {name}; as the name of a data set it needs the library "
            "datasets: pip install datasets"
        ) from error
    options = {"split": "test"} | _HUB.get(path, {}) | ({"split": split} if split else {})
    try:
        return [dict(row) for row in datasets.load_dataset(path, **options)]
    except Exception as error:  # no network, no such name, no permission: the library raises various errors
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise SettingsError(
            f"cannot load the data set {path} (split {options['split']}): {reason}"
        ) from error

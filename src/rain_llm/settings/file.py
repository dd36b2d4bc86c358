"""A settings file: every mistake in it with its line; and the schema for editors.

YAML or JSON. A key that stands twice is refused. Texts that are no names of settings may be keys of
servers: no error holds one, and no line that is shown.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import ReaderError

from rain_llm.bounds import MISTAKES, POLICY_BYTES
from rain_llm.criteria import BUILT_IN
from rain_llm.criteria.criterion import Problem
from rain_llm.errors import SettingsError
from rain_llm.redaction import HIDDEN, UNKNOWN, and_more
from rain_llm.settings.yaml_text import TOO_DEEP, TWICE, UNREADABLE, YamlText

_SCHEMA_KEY = "$schema"  # by it a JSON file tells an editor its schema
_KINDS: dict[type, str] = {str: "text", bool: "true or false", int: "a number", float: "a number"}


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake in a file.

    Attributes:
        file: as it was named.
        line: from 1.
        column: from 1.
        place: the key path, dotted; "": the whole file.
        reason: what is wrong, and the remedy.
        source: the line without comments, with asterisks over what may be a key; "": it is not shown.
    """

    file: str
    line: int
    column: int
    place: str
    reason: str
    source: str

    def __str__(self) -> str:
        place = f"{self.place}: " if self.place else ""
        return f"{self.file}:{self.line}:{self.column}: {place}{self.reason}"


class PolicyError(SettingsError):
    """A settings file with mistakes; the message has a line for each.

    Attributes:
        mistakes: all that were found, in the order of the file.
    """

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(sorted(mistakes, key=lambda mistake: (mistake.line, mistake.column)))
        super().__init__("\n".join(map(str, self.mistakes)))


class Policy:
    """What a file holds, and where.

    Args:
        path: of the file.
        words: all names and values that a setting may have.

    Attributes:
        data: its mapping.
        problems: what is wrong with it already: keys that stand twice.

    Raises:
        SettingsError: the file cannot be read.
        PolicyError: it is no YAML or JSON, uses tags, is too large, or holds no mapping.
    """

    def __init__(self, path: str | Path, words: Collection[str]) -> None:
        self._file = str(path)
        text = _text(path)
        # YAML reads 1e3 and halves of emojis otherwise than JSON, and refuses tabs, which stand only
        # between the parts of a JSON file: what it holds JSON tells, YAML where.
        is_json = self._file.endswith(".json")
        self._yaml: YamlText | None = None
        data: object = None
        malformed = None
        try:
            self._yaml = YamlText(text.replace("\t", " ") if is_json else text, words)
            names = self._yaml.masked
            if is_json:
                data = json.loads(text, object_pairs_hook=lambda pairs: {names(k): v for k, v in pairs})
            read = self._yaml.read()
            data = data if is_json else read
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
            malformed = _malformed(error, text)
        if malformed is not None:  # outside, so that the error, which quotes the file, is not chained
            line, column, reason = malformed
            source = self._yaml.shown(line - 1) if self._yaml else ""
            raise PolicyError([Mistake(self._file, line, column, "", f"malformed: {reason}", source)])
        if not isinstance(data, dict):
            reason = f"a settings file must hold a mapping, not {type(data).__name__}"
            raise PolicyError([Mistake(self._file, 1, 1, "", reason, "")])
        data.pop(_SCHEMA_KEY, None)
        assert self._yaml is not None  # it was read
        self.problems: list[Problem] = list(self._yaml.twice)
        self.data: dict[str, Any] = data

    def error(self, problems: Iterable[Problem], more: int = 0) -> PolicyError:
        """Make an error of problems, each at its line or at that of the part that it belongs to.

        Args:
            problems: of which so many are listed and no more.
            more: how many more there are.
        """
        page = self._yaml
        assert page is not None  # it was read
        unique = list(dict.fromkeys(problems))
        mistakes = []
        for place, reason in unique[:MISTAKES]:
            key, value = page.twice.get((place, reason)) or page.find(place)
            while isinstance(value, yaml.ScalarNode) and place[-1] != 0 and page.find(place[:-1])[1] is value:
                place = place[:-1]  # what a text cannot have below it: one of the kinds that it may be of
            of_the_key = reason.startswith((UNKNOWN, TWICE)) or not isinstance(value, yaml.ScalarNode)
            mark = (key if of_the_key else value).start_mark
            if value.tag == "tag:yaml.org,2002:bool" and "valid string" in reason:
                reason += f": {value.value} without quotes is a truth value in YAML, put it into quotes"
            where = ".".join(map(str, place))
            mistakes.append(
                Mistake(self._file, mark.line + 1, mark.column + 1, where, reason, page.shown(mark.line))
            )
        if more := more + len(unique) - len(mistakes):
            mistakes.append(Mistake(self._file, page.last_line + 1, 1, "", and_more(more), ""))
        return PolicyError(mistakes)


def _text(path: str | Path) -> str:
    """Read a file.

    Raises:
        SettingsError: there is none, it is too large, or no text.
    """
    reason = ""
    try:
        with Path(path).open("rb") as file:
            content = file.read(POLICY_BYTES + 1)
        text = content[:POLICY_BYTES].decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError as error:  # not chained: it holds the file
        reason = f"it is not UTF-8 ({error.reason} at byte {error.start:,})"
    else:
        if len(content) <= POLICY_BYTES:
            return text
        reason = f"it has more than {POLICY_BYTES:,} bytes"
    raise SettingsError(f"cannot read the settings file {path}: {reason}")


def _malformed(error: Exception, text: str) -> tuple[int, int, str]:
    """Return line, column and what is wrong, without quoting the file."""
    if isinstance(error, json.JSONDecodeError):
        return error.lineno, error.colno, error.msg
    if isinstance(error, ReaderError):
        before = text[: error.position]
        return before.count("\n") + 1, len(before) - before.rfind("\n"), error.reason
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        said = ", ".join(part for part in (error.context, error.problem) if part)
        # A sign or a kind of token (<scalar>) may be repeated; an alias may be a key.
        said = re.sub(r"('(?:<[a-z ]+>|\\?.)')|'[^']*'", lambda part: part[1] or f"'{HIDDEN}'", said)
        return mark.line + 1, mark.column + 1, said
    return 1, 1, TOO_DEEP if isinstance(error, RecursionError) else UNREADABLE


def converted(given: object, made: object, place: tuple[int | str, ...] = ()) -> Iterator[Problem]:
    """Yield each value that was taken for one of another kind: "3" for 3, or true for 1.

    Args:
        given: what the file holds.
        made: the settings that were made of it, as JSON data.
        place: where both stand.
    """
    if isinstance(made, list) and not isinstance(given, list):
        given = [given]  # one alone stands for a list of one
    if isinstance(given, dict) and isinstance(made, dict):
        for key in given:
            if key in made:
                yield from converted(given[key], made[key], (*place, key))
    elif isinstance(given, list) and isinstance(made, list):
        for index, (one, other) in enumerate(zip(given, made, strict=False)):
            yield from converted(one, other, (*place, index))
    else:
        was, wanted = _KINDS.get(type(given)), _KINDS.get(type(made))
        if was and wanted and was != wanted:
            hint = ": write it without quotes, and 1e3 as 1.0e+3" if was == "text" else ""
            yield place, f"this must be {wanted}, not {was}{hint}"


def file_schema(settings: dict[str, Any], presets: Iterable[str]) -> dict[str, Any]:
    """Make the JSON schema of a settings file.

    Args:
        settings: the JSON schema of all settings. A file may say more: name a preset, name or extend a
            built-in criterion, and write one value where a list may stand.
        presets: the names of the presets.
    """
    schema = copy.deepcopy(settings)
    parts = schema["$defs"]
    for part in (schema, *parts.values()):
        for field in part["properties"].values():
            if isinstance(field.get("default"), dict | list):
                del field["default"]  # pages long, for criteria
    parts["Extension"] = _extension(parts)
    evaluation = parts["EvaluationSettings"]["properties"]
    for name in ("criteria", "actions"):
        models = [{"$ref": f"#/$defs/{model}"} for model in ("Criterion", "Extension")]
        kinds = [{"enum": list(BUILT_IN)}, *models]
        evaluation[name]["items"] = {"anyOf": kinds}
        _or(evaluation, name, evaluation[name]["items"])
    for model, name in (("ModelSettings", "base_url"), ("GenerationSettings", "stop")):
        fields = parts[model]["properties"]
        _or(fields, name, fields[name]["items"])
    fields = schema["properties"]
    _or(fields, "model", {"type": "string", "minLength": 1})
    editors = {"type": "string", "description": "The schema that an editor checks this file by."}
    preset = {"enum": list(presets), "description": "What the settings start from; left out: 'default'."}
    schema["properties"] = {_SCHEMA_KEY: editors, "preset": preset, **fields}
    schema["title"] = "Policy of rain-llm"
    return {_SCHEMA_KEY: "https://json-schema.org/draft/2020-12/schema", **schema}


def _or(fields: dict[str, Any], name: str, other: dict[str, Any]) -> None:
    """Allow something else too for a field; its description stays."""
    field = fields[name]
    said = {key: field.pop(key) for key in ("description", "title") if key in field}
    fields[name] = {**said, "anyOf": [other, field]}


def _extension(parts: dict[str, Any]) -> dict[str, Any]:
    """Describe a built-in criterion with changes: nothing but its name must be there."""
    extension = copy.deepcopy(parts["Criterion"])
    fields = extension["properties"]
    for name, model in (("choice", "Choice"), ("channel", "Channel")):
        part = {key: value for key, value in parts[model].items() if key != "required"}
        fields[name]["anyOf"] = [part, {"type": "null"}]
    about = "The built-in criterion that this one is, but for what stands beside."
    extension["properties"] = {"extends": {"enum": list(BUILT_IN), "description": about}, **fields}
    return {**extension, "title": "Extension", "description": about, "required": ["extends"]}

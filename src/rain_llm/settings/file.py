"""Read a settings file (YAML or JSON), report each mistake with its line, and build the schema for editors.

Duplicate keys are errors. Any text that is not the name of a setting may be an API key: neither errors nor
the lines shown with them contain it.
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

_SCHEMA_KEY = "$schema"  # refers an editor to the schema of a JSON file
_KINDS: dict[type, str] = {str: "text", bool: "true or false", int: "a number", float: "a number"}


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake in a settings file.

    Attributes:
        file: the file's name as it was passed.
        line: line number, from 1.
        column: column number, from 1.
        place: the dotted key path; "": the complete file.
        reason: what is wrong, and the remedy.
        source: the line without comments, with asterisks over possible API keys; "": it is not shown.
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
    """Raised for a settings file with mistakes; the message has a line for each.

    Attributes:
        mistakes: all mistakes that were found, in the order of the file.
    """

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(sorted(mistakes, key=lambda mistake: (mistake.line, mistake.column)))
        super().__init__("\n".join(map(str, self.mistakes)))


class Policy:
    """A parsed settings file that can locate each of its values.

    Args:
        path: path of the file.
        words: all names and values that a setting may have.

    Attributes:
        data: the content, a mapping.
        problems: mistakes found while parsing: duplicate keys.

    Raises:
        SettingsError: the file cannot be read.
        PolicyError: it is not YAML or JSON, uses tags, is too large, or is not a mapping.
    """

    def __init__(self, path: str | Path, words: Collection[str]) -> None:
        self._file = str(path)
        text = _text(path)
        # YAML and JSON differ in 1e3, surrogate pairs and tabs. So the values of a JSON file come from the
        # JSON parser, and their locations from YAML (tabs occur only between the parts of a JSON file).
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
        if malformed is not None:  # outside of the handler: a chained error would quote the file
            line, column, reason = malformed
            source = self._yaml.shown(line - 1) if self._yaml else ""
            raise PolicyError([Mistake(self._file, line, column, "", f"malformed: {reason}", source)])
        if not isinstance(data, dict):
            reason = f"a settings file must hold a mapping, not {type(data).__name__}"
            raise PolicyError([Mistake(self._file, 1, 1, "", reason, "")])
        data.pop(_SCHEMA_KEY, None)
        assert self._yaml is not None  # parsing succeeded
        self.problems: list[Problem] = list(self._yaml.twice)
        self.data: dict[str, Any] = data

    def error(self, problems: Iterable[Problem], more: int = 0) -> PolicyError:
        """Build an error from problems, each located at its line or at that of the part that contains it.

        Args:
            problems: locations and reasons; only the first ``MISTAKES`` are listed.
            more: number of further problems.
        """
        page = self._yaml
        assert page is not None  # parsing succeeded
        unique = list(dict.fromkeys(problems))
        mistakes = []
        for place, reason in unique[:MISTAKES]:
            key, value = page.twice.get((place, reason)) or page.find(place)
            while isinstance(value, yaml.ScalarNode) and place[-1] != 0 and page.find(place[:-1])[1] is value:
                place = place[:-1]  # drop the union member that pydantic appends to a scalar's location
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
    """Read a UTF-8 file of limited size.

    Raises:
        SettingsError: the file does not exist, is too large, or is not UTF-8.
    """
    reason = ""
    try:
        with Path(path).open("rb") as file:
            content = file.read(POLICY_BYTES + 1)
        text = content[:POLICY_BYTES].decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError as error:  # not chained: it contains the file
        reason = f"it is not UTF-8 ({error.reason} at byte {error.start:,})"
    else:
        if len(content) <= POLICY_BYTES:
            return text
        reason = f"it has more than {POLICY_BYTES:,} bytes"
    raise SettingsError(f"cannot read the settings file {path}: {reason}")


def _malformed(error: Exception, text: str) -> tuple[int, int, str]:
    """Return line, column and reason of a parser's error, without quoting the file."""
    if isinstance(error, json.JSONDecodeError):
        return error.lineno, error.colno, error.msg
    if isinstance(error, ReaderError):
        before = text[: error.position]
        return before.count("\n") + 1, len(before) - before.rfind("\n"), error.reason
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        # A single character or a token type (<scalar>) may be quoted; an alias may be an API key.
        reason = re.sub(r"('(?:<[a-z ]+>|\\?.)')|'[^']*'", lambda part: part[1] or f"'{HIDDEN}'", reason)
        return mark.line + 1, mark.column + 1, reason
    return 1, 1, TOO_DEEP if isinstance(error, RecursionError) else UNREADABLE


def converted(given: object, made: object, place: tuple[int | str, ...] = ()) -> Iterator[Problem]:
    """Yield each value that pydantic converted to another type: "3" to 3, or 1 to true.

    Args:
        given: the content of the file.
        made: the settings created from it, as JSON data.
        place: location of both.
    """
    if isinstance(made, list) and not isinstance(given, list):
        given = [given]  # a single value is allowed in place of a list
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
    """Build the JSON schema of a settings file.

    A file may contain more than the settings models: a preset, names and extensions of built-in criteria, and
    a single value in place of a list.

    Args:
        settings: the JSON schema of :class:`RainSettings`.
        presets: the names of the presets.
    """
    schema = copy.deepcopy(settings)
    parts = schema["$defs"]
    for part in (schema, *parts.values()):
        for field in part["properties"].values():
            if isinstance(field.get("default"), dict | list):
                del field["default"]  # the defaults of criteria are pages long
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
    editors = {"type": "string", "description": "The JSON schema that an editor uses to check this file."}
    preset = {"enum": list(presets), "description": "The preset to start from; left out: 'default'."}
    schema["properties"] = {_SCHEMA_KEY: editors, "preset": preset, **fields}
    schema["title"] = "Policy of rain-llm"
    return {_SCHEMA_KEY: "https://json-schema.org/draft/2020-12/schema", **schema}


def _or(fields: dict[str, Any], name: str, other: dict[str, Any]) -> None:
    """Allow an alternative for a field, and keep its title and description."""
    field = fields[name]
    texts = {key: field.pop(key) for key in ("description", "title") if key in field}
    fields[name] = {**texts, "anyOf": [other, field]}


def _extension(parts: dict[str, Any]) -> dict[str, Any]:
    """Build the schema of a built-in criterion with changes, of which only ``extends`` is required."""
    extension = copy.deepcopy(parts["Criterion"])
    fields = extension["properties"]
    for name, model in (("choice", "Choice"), ("channel", "Channel"), ("turn", "Turn")):
        part = {key: value for key, value in parts[model].items() if key != "required"}
        fields[name]["anyOf"] = [part, {"type": "null"}]
    about = "The built-in criterion to start from; the other fields replace its values."
    extension["properties"] = {"extends": {"enum": list(BUILT_IN), "description": about}, **fields}
    return {**extension, "title": "Extension", "description": about, "required": ["extends"]}

"""A settings file, read so that every mistake in it is told with its line; and the schema for editors.

YAML or JSON. Tags are refused, and so is a key that stands twice. What a section about a model holds, and
what an unknown key holds, may be the key of a server: it is told in no error and shown in no line.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from rain_llm.criteria import BUILT_IN, UNKNOWN, Problem
from rain_llm.errors import SettingsError

_ABOUT_MODELS = ("model", "judge")
_SCHEMA_KEY = "$schema"  # by it a JSON file tells an editor its schema
_TWICE = "this key stands twice"
_UNREADABLE = "a number cannot be read"
_KINDS: dict[type, str] = {str: "text", bool: "true or false", int: "a number", float: "a number"}
_Pair: TypeAlias = tuple[yaml.Node, yaml.Node]


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake in a file.

    Attributes:
        file: as it was named.
        line: from 1.
        column: from 1.
        place: the key path, dotted; "": the whole file.
        reason: what is wrong, and the remedy.
        source: the line, with asterisks over what may be a key; "": it is not shown.
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


class _Loader(yaml.SafeLoader):
    """Leaves dates and '=' as the text that they are, and refuses numbers that Python cannot write."""

    def number(self, node: yaml.ScalarNode) -> int:
        try:
            return int(str(self.construct_yaml_int(node)))
        except ValueError:  # the limit on digits, which hexadecimal ones meet only when they are written
            raise ConstructorError(problem=_UNREADABLE, problem_mark=node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.number)

_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if not tag.endswith((":timestamp", ":value"))]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class Policy:
    """What a file holds, and where.

    Attributes:
        data: its mapping.
        problems: what is wrong with it already: keys that stand twice.

    Raises:
        SettingsError: the file cannot be read.
        PolicyError: it is no YAML or JSON, uses tags, or holds no mapping.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = str(path)
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read the settings file {path}: {error}") from error
        self._lines = text.splitlines()
        # YAML reads 1e3 and halves of emojis otherwise than JSON, and refuses tabs, which stand only
        # between the parts of a JSON file: what it holds JSON tells, YAML where.
        is_json = self._file.endswith(".json")
        malformed = None
        try:
            data = json.loads(text) if is_json else None
            self._root, read, self._twice = _read(text.replace("\t", " ") if is_json else text)
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
            malformed = _malformed(error, text)
        if malformed is not None:  # outside, so that the error, which quotes the file, is not chained
            line, column, reason = malformed
            hide = "key" in text.lower()  # which part of the text that is, nobody can say
            source = "" if hide else "".join(self._lines[line - 1 : line])
            raise PolicyError([Mistake(self._file, line, column, "", f"malformed: {reason}", source)])
        data = data if is_json else read
        if not isinstance(data, dict):
            reason = f"a settings file must hold a mapping, not {type(data).__name__}"
            raise PolicyError([Mistake(self._file, 1, 1, "", reason, "")])
        data.pop(_SCHEMA_KEY, None)
        self.problems = list(self._twice)
        self.data: dict[str, Any] = data

    def error(self, problems: Iterable[Problem]) -> PolicyError:
        """Make an error of problems, each at its line or at that of the part that it belongs to."""
        found = [
            (*problem, *(self._twice.get(problem) or self._find(problem[0])))
            for problem in dict.fromkeys(problems)
        ]
        unknown = [value for _, reason, _, value in found if reason.startswith(UNKNOWN)]
        lines = _masked(self._lines, _texts(self._root, unknown))
        mistakes = []
        for place, reason, key, value in found:
            while (
                isinstance(value, yaml.ScalarNode) and place[-1] != 0 and self._find(place[:-1])[1] is value
            ):
                place = place[:-1]  # what a text cannot have below it: one of the kinds that it may be of
            of_the_key = reason.startswith((UNKNOWN, _TWICE)) or not isinstance(value, yaml.ScalarNode)
            mark = (key if of_the_key else value).start_mark
            if value.tag == "tag:yaml.org,2002:bool" and "valid string" in reason:
                reason += f": {value.value} without quotes is a truth value in YAML, put it into quotes"
            where = ".".join(map(str, place))
            mistakes.append(
                Mistake(self._file, mark.line + 1, mark.column + 1, where, reason, lines[mark.line])
            )
        return PolicyError(mistakes)

    def _find(self, place: tuple[int | str, ...]) -> _Pair:
        """Return the key (of an item of a list: the item) and the value, there or nearest above."""
        key = value = self._root
        for part in place:
            below: list[_Pair] = []
            if isinstance(value, yaml.SequenceNode) and isinstance(part, int):
                below = [(item, item) for item in value.value[part : part + 1]]
            elif isinstance(value, yaml.MappingNode):
                below = [pair for pair in value.value if pair[0].value == str(part)]
            if below:
                key, value = below[-1]
            elif part != 0:  # 0 may be what stands alone where a list may stand
                break
        return key, value


def _malformed(error: Exception, text: str) -> tuple[int, int, str]:
    """Return line, column and what is wrong, without quoting the file."""
    if isinstance(error, json.JSONDecodeError):
        return error.lineno, error.colno, error.msg
    if isinstance(error, ReaderError):
        before = text[: error.position]
        return before.count("\n") + 1, len(before) - before.rfind("\n"), error.reason
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        said = ", ".join(part for part in (error.context, error.problem) if part)
        if isinstance(error, ComposerError):
            said = re.sub(r" '.*'", "", said)  # the alias may be a key without quotes
        return mark.line + 1, mark.column + 1, said
    return 1, 1, "too deeply nested" if isinstance(error, RecursionError) else _UNREADABLE


def _read(text: str) -> tuple[yaml.Node, object, dict[Problem, _Pair]]:
    """Return the nodes of a YAML text, what they hold, and the keys that stand twice with their values."""
    for token in yaml.scan(text, Loader=_Loader):
        if isinstance(token, yaml.TagToken):
            raise ComposerError(problem="tags are not allowed: leave it out", problem_mark=token.start_mark)
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return yaml.ScalarNode("", ""), None, {}
        twice = dict(_repeated(root, (), (), set()))
        return root, loader.construct_document(root), twice  # in the nodes, merges are done now
    finally:
        loader.dispose()


def _repeated(
    node: yaml.Node, place: tuple[int | str, ...], above: tuple[yaml.Node, ...], done: set[yaml.Node]
) -> Iterator[tuple[Problem, _Pair]]:
    """Yield the keys that stand twice, of which YAML would take the last; refuse what holds itself."""
    if node in above:
        raise ComposerError(problem="an alias stands within what it names", problem_mark=node.start_mark)
    if node in done or isinstance(node, yaml.ScalarNode):
        return
    done.add(node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _repeated(item, (*place, index), (*above, node), done)
        return
    first: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ComposerError(problem="a key cannot be a list or a mapping", problem_mark=key.start_mark)
        name = key.value
        if name in first:
            problem = (*place, name), f"{_TWICE}, first in line {first[name]}: keep one of them"
            yield problem, (key, value)
        first.setdefault(name, key.start_mark.line + 1)
        yield from _repeated(value, (*place, name), (*above, node), done)


def _texts(root: yaml.Node, inside: Iterable[yaml.Node]) -> list[yaml.Node]:
    """Return all scalars of sections about models; ``inside``: nodes that are part of one."""
    found, done = [], set()
    pending = [(root, False), *((node, True) for node in inside)]
    while pending:
        node, hidden = pending.pop()
        if (node, hidden) in done:
            continue
        done.add((node, hidden))
        if isinstance(node, yaml.MappingNode):
            pending += [(value, hidden or key.value in _ABOUT_MODELS) for key, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            pending += [(item, hidden) for item in node.value]
        elif hidden:
            found.append(node)
    return found


def _masked(lines: Iterable[str], hidden: Iterable[yaml.Node]) -> list[str]:
    """Put asterisks over what is hidden of the lines of a file."""
    lines = [*lines, ""]  # where a file may end
    for node in hidden:
        start, end = node.start_mark, node.end_mark
        for line in range(start.line, end.line + 1):
            text = lines[line]
            first = start.column if start.line == line else 0
            last = end.column if end.line == line else len(text)
            lines[line] = text[:first] + "*" * (last - first) + text[last:]
    return lines


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

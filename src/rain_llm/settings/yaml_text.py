"""Parse YAML text within bounds, and keep the line and column of every value.

Tags are not allowed, and neither are files that are too large, too deeply nested, or that grow through
aliases. A possible API key is never shown: an excerpt contains names and numbers, and asterisks for any other
text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, TypeAlias

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from rain_llm.bounds import POLICY_DEPTH, POLICY_VALUES
from rain_llm.redaction import HIDDEN, SECRETIVE, nearest, shown_name

Place: TypeAlias = tuple[int | str, ...]
Pair: TypeAlias = tuple[yaml.Node, yaml.Node]

TWICE = "duplicate key"
UNREADABLE = "a number cannot be read"
TOO_DEEP = f"too deeply nested: at most {POLICY_DEPTH} levels of lists and mappings"
_OF_MODELS = ("model", "judge", "limits")  # sections with API keys, in which any word may be one
_LONGEST_LINE = 200  # characters; longer lines are not shown
_LONGEST_NUMBER = 500  # characters
_NUMBER = re.compile(
    r"[-+]?[0-9._]{1,6}(?:e[-+]?[0-9]{1,3})?|true|false|yes|no|on|off|null|~|[-+]?\.inf|\.nan", re.IGNORECASE
)
_OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
_CLOSING = yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken
_SIGNS = *_OPENING, *_CLOSING, yaml.KeyToken, yaml.ValueToken, yaml.BlockEntryToken, yaml.FlowEntryToken


class _Loader(yaml.SafeLoader):
    """YAML loader that checks bounds and keeps dates and '=' as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.seen: list[yaml.Token] = []
        self._depth = self._values = 0

    def get_token(self) -> Any:
        """Return the next token; raise an error if it exceeds a bound."""
        token = super().get_token()  # type: ignore[no-untyped-call]
        if token is None:
            return None
        self.seen.append(token)
        self._depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        self._values += isinstance(token, yaml.ScalarToken | yaml.AliasToken)
        problem = ""
        if isinstance(token, yaml.TagToken):
            problem = "tags are not allowed: leave it out"
        elif self._depth > POLICY_DEPTH:
            problem = TOO_DEEP
        elif self._values > POLICY_VALUES:
            problem = f"more than {POLICY_VALUES:,} keys and values: leave some out"
        if problem:
            raise ComposerError(problem=problem, problem_mark=token.start_mark)
        return token

    def number(self, node: yaml.ScalarNode) -> float:
        """Convert a number of limited length: long base-60 numbers would take very long."""
        if len(node.value) > _LONGEST_NUMBER:
            raise ConstructorError(problem=UNREADABLE, problem_mark=node.start_mark)
        is_int = node.tag.endswith(":int")
        try:
            return int(self.construct_yaml_int(node)) if is_int else float(self.construct_yaml_float(node))
        except (ValueError, OverflowError):
            raise ConstructorError(problem=UNREADABLE, problem_mark=node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.number)

_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if not tag.endswith((":timestamp", ":value"))]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class YamlText:
    """A parsed YAML text that can locate each of its values.

    Args:
        text: YAML text.
        words: all names and values that a setting may have. No other text is shown in errors.

    Attributes:
        root: the root node.
        twice: the nodes of duplicate keys, by location and reason.
    """

    def __init__(self, text: str, words: Collection[str]) -> None:
        self._lines = [*text.splitlines(), ""]  # an error may be located after the last line
        self._words = words
        self._masks: dict[str, str] = {}
        self._loader = _Loader(text)
        self.root: yaml.Node = yaml.ScalarNode("", "")
        self.twice: dict[tuple[Place, str], Pair] = {}

    @property
    def last_line(self) -> int:
        """Return the index of the last line, from 0."""
        return max(0, len(self._lines) - 2)

    def read(self) -> object:
        """Return the text's content as Python data.

        Raises:
            yaml.YAMLError, ValueError, OverflowError, RecursionError: the text cannot be parsed.
        """
        try:
            root = self._loader.get_single_node()
            if root is None:
                return None
            self.root = root
            sizes: dict[yaml.Node, int] = {}
            self.twice = dict(self._repeated(root, (), (), sizes))
            if sizes[root] > POLICY_VALUES:
                problem = (
                    f"with its aliases it has more than {POLICY_VALUES:,} keys and values: leave some out"
                )
                raise ComposerError(problem=problem, problem_mark=root.start_mark)
            return self._loader.construct_document(root)  # this also resolves merges in the nodes
        finally:
            self._loader.dispose()

    def masked(self, name: str, above: object = "") -> str:
        """Return a key as errors show it: one that does not resemble a setting is replaced by asterisks.

        Args:
            name: the key.
            above: the key of the mapping that contains it.
        """
        if name in ("<<", "$schema") or re.fullmatch("[0-9]{1,4}", name):
            return name
        if shown_name(name, self._words, near=above in _OF_MODELS) != HIDDEN:
            return name
        number = len(self._masks) + 1
        return self._masks.setdefault(name, f"{HIDDEN}{number if number > 1 else ''}")

    def _repeated(
        self, node: yaml.Node, place: Place, above: tuple[yaml.Node, ...], sizes: dict[yaml.Node, int]
    ) -> Iterator[tuple[tuple[Place, str], Pair]]:
        """Yield duplicate keys, of which YAML would use the last.

        This also masks keys and counts the values of each node, with aliases expanded.

        Raises:
            ComposerError: an alias refers to a value that contains it, or a key is not a scalar.
        """
        if node in above:
            raise ComposerError(
                problem="an alias refers to a value that contains it", problem_mark=node.start_mark
            )
        if node in sizes:
            return
        size = 1
        first: dict[str, int] = {}
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                yield from self._repeated(item, (*place, index), (*above, node), sizes)
                size += sizes[item]
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    problem = "a key cannot be a list or a mapping"
                    raise ComposerError(problem=problem, problem_mark=key.start_mark)
                name = self.masked(key.value, place[-1] if place else "")
                if name != key.value:
                    key.value, key.tag = name, "tag:yaml.org,2002:str"
                if name in first:
                    reason = f"{TWICE}, first in line {first[name]}: keep one of them"
                    yield ((*place, name), reason), (key, value)
                first.setdefault(name, key.start_mark.line + 1)
                yield from self._repeated(value, (*place, name), (*above, node), sizes)
                size += 1 + sizes[value]
        sizes[node] = size

    def find(self, place: Place) -> Pair:
        """Return the nodes of key and value at a location, or else at the nearest one above it.

        For an item of a list, both nodes are the item.
        """
        key = value = self.root
        for part in place:
            below: list[Pair] = []
            if isinstance(value, yaml.SequenceNode) and isinstance(part, int):
                below = [(item, item) for item in value.value[part : part + 1]]
            elif isinstance(value, yaml.MappingNode):
                below = [pair for pair in value.value if pair[0].value == str(part)]
            if below:
                key, value = below[-1]
            elif part != 0:  # a single value may replace a list: it is item 0
                break
        return key, value

    def shown(self, number: int) -> str:
        """Return a line (from 0) as errors show it: names and numbers, no comments; "" if it is too long."""
        line = self._lines[number] if number < len(self._lines) else ""
        if len(line) > _LONGEST_LINE:
            return ""
        secretive = bool(SECRETIVE.search(line))
        signs = [" "] * len(line)
        for token in self._loader.seen:
            start, end = token.start_mark, token.end_mark
            if start.line <= number <= end.line:
                first = start.column if start.line == number else 0
                last = end.column if end.line == number else len(line)
                part = line[first:last]
                harmless = isinstance(token, _SIGNS) or self._is_harmless(token, secretive)
                signs[first:last] = part if harmless else re.sub(r"\S", "*", part)
        return "".join(signs).rstrip()

    def _is_harmless(self, token: yaml.Token, secretive: bool) -> bool:
        if not isinstance(token, yaml.ScalarToken):
            return False
        text = str(token.value)
        if token.plain and _NUMBER.fullmatch(text):
            return not secretive
        return text in self._words or bool(nearest(text, self._words))

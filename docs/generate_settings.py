"""Write ``docs/settings.md`` from the settings models; with ``--check``, only compare.

The page is committed, so that it can be read without a build; the check keeps it fresh.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as at
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rain_llm.settings import RainSettings, SearchSettings

PAGE = Path(__file__).with_name("settings.md")
PRESETS = ("paper", "paper-adversarial", "paper-truth")
INTRODUCTION = """\
# Settings

<!-- Written by docs/generate_settings.py: change the models in src/rain_llm/settings/. -->

Everything that shapes an answer is a setting, and settings are data: frozen, checked when they are
made, and read from Python, YAML or JSON alike. An unknown name is an error, never ignored. The same
settings have the same hash, and that hash travels with every result.

```python
from rain_llm import RainSettings

settings = RainSettings().updated(generation={"seed": 1, "max_new_tokens": 32})
```

`RainSettings.from_file("policy.yaml")` reads the same names from a file ([a policy in a
file](how-to/policy.md)), and `RainSettings.preset("paper")` gives the constants of the paper; [what the
presets change](#presets) stands at the end of this page.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or compare it; the exit status is 1 where it is stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the page is stale")
    check = parser.parse_args(arguments).check
    page = render()
    if not check:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
        return 0
    print(f"{PAGE} is stale: run `make docs` and commit it.", file=sys.stderr)
    return 1


def render() -> str:
    """Render the whole page."""
    found = titles()
    plain = {k: f for k, f in RainSettings.model_fields.items() if not one_model(f.annotation)}
    parts = [INTRODUCTION, section("Top level", plain, found)]
    for model, title in found.items():
        fields = dict(model.model_fields)
        if issubclass(model, SearchSettings) and model is not SearchSettings:
            fields = {
                name: field for name, field in fields.items() if name not in SearchSettings.model_fields
            }
        parts.append(section(f"`{title}`", fields, found, sentence(model.__doc__ or "")))
    parts.append(presets())
    return "\n".join(parts)


def titles() -> dict[type[BaseModel], str]:
    """Name every model below RainSettings: a group by its path, any other by its class."""
    found: dict[type[BaseModel], str] = {}
    pending: list[tuple[type[BaseModel], str | None]] = [(RainSettings, "")]
    while pending:
        parent, path = pending.pop(0)
        for name, field in parent.model_fields.items():
            group = one_model(field.annotation)
            for model in models_in(field.annotation):
                if model not in found:
                    below = f"{path}.{name}".lstrip(".") if group and path is not None else None
                    if issubclass(model, SearchSettings):  # one for each strategy
                        found.setdefault(SearchSettings, name)
                        pending.append((model, name))
                        strategy = model.model_fields["strategy"].default
                        found[model] = f"{name}, strategy {strategy}"
                        continue
                    found[model] = below or model.__name__
                    pending.append((model, below))
    return found


def one_model(annotation: object) -> type[BaseModel] | None:
    """Give the model where a type is a model, or a model or none."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()
    for part in parts or (annotation,):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def section(
    title: str,
    fields: Mapping[str, FieldInfo],
    found: Mapping[type[BaseModel], str],
    about_all: str = "",
) -> str:
    """Render one table with its heading."""
    lines = [f"## {title}", "", *([about_all, ""] if about_all else [])]
    lines += [
        "| setting | type | default | bounds | what it is |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, field in fields.items():
        kind = type_of(field.annotation, found)
        cells = [f"`{name}`", kind, default(field), bounds(field), about(field)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def sentence(docstring: str) -> str:
    """Take the first paragraph of a docstring, as one line."""
    return " ".join(docstring.strip().split("\n\n")[0].replace("``", "`").split())


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the models that a type mentions, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def type_of(annotation: object, found: Mapping[type[BaseModel], str]) -> str:
    """Say a type in words that can stand in a table."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is type(None) or annotation is None:
        return "null"
    if origin is Annotated:
        return type_of(inner[0], found)
    if origin is Literal:
        return " or ".join(value(choice) for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(type_of(part, found) for part in inner)
    if origin in (tuple, list, frozenset, set, Sequence):
        kinds = [type_of(part, found) for part in inner if part is not Ellipsis]
        if origin is tuple and Ellipsis not in inner:
            return f"({', '.join(kinds)})"
        return "list of " + " or ".join(kinds)
    if origin in (dict, Mapping):
        return "map from " + " to ".join(type_of(part, found) for part in inner)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(value(member.value) for member in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        title = found.get(annotation, annotation.__name__)
        return f"[`{title}`](#{title.lower().translate({46: None, 44: None, 32: '-'})})"
    names = {str: "text", bool: "true or false", int: "integer", float: "number", Path: "path"}
    if annotation in names:
        return names[annotation]
    return f"`{getattr(annotation, '__name__', annotation)}`"


def default(field: FieldInfo) -> str:
    """Say what a field is when it is left out."""
    if field.is_required():
        return "required"
    return value(field.get_default(call_default_factory=True, validated_data={}))


def value(thing: object) -> str:
    """Write a value as one would type it."""
    if thing is None:
        return "null"
    if isinstance(thing, bool):
        return f"`{str(thing).lower()}`"
    if isinstance(thing, Enum):
        return value(thing.value)
    if isinstance(thing, str):
        return '`"' + thing.replace("\n", "\\n") + '"`'
    if isinstance(thing, BaseModel):
        name = getattr(thing, "name", None)
        return value(name) if isinstance(name, str) else "its defaults"
    if isinstance(thing, (tuple, list, set, frozenset)):
        return ", ".join(value(part) for part in thing) or "empty"
    if isinstance(thing, Mapping):
        return ", ".join(f"{value(k)}: {value(v)}" for k, v in thing.items()) or "empty"
    return f"`{number(thing)}`"


def number(thing: object) -> str:
    """Write a number; large powers of two as such."""
    if isinstance(thing, int) and thing >= 1 << 20 and thing.bit_count() == 1:
        return f"2**{thing.bit_length() - 1}"
    return str(thing)


def bounds(field: FieldInfo) -> str:
    """Say the bounds of a field, with those inside its type."""
    found = [text for mark in marks(field) for text in bound(mark)]
    return ", ".join(dict.fromkeys(found))


def marks(field: FieldInfo) -> Iterator[object]:
    """Yield every mark of validation on a field or inside its type."""
    yield from field.metadata
    yield from inner_marks(field.annotation)


def inner_marks(annotation: object) -> Iterator[object]:
    """Yield the marks inside a type."""
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        for mark in inner[1:]:
            if isinstance(mark, FieldInfo):
                yield from mark.metadata
            else:
                yield mark
        inner = inner[:1]
    if get_origin(annotation) is not Literal:
        for part in inner:
            yield from inner_marks(part)


def bound(mark: object) -> Iterator[str]:
    """Say what one mark asks for; marks of other kinds say nothing."""
    match mark:
        case at.Ge(ge=limit):
            yield f"≥ `{number(limit)}`"
        case at.Gt(gt=limit):
            yield f"> `{number(limit)}`"
        case at.Le(le=limit):
            yield f"≤ `{number(limit)}`"
        case at.Lt(lt=limit):
            yield f"< `{number(limit)}`"
        case at.MinLen(min_length=length):
            yield f"length ≥ `{number(length)}`"
        case at.MaxLen(max_length=length):
            yield f"length ≤ `{number(length)}`"
        case at.MultipleOf(multiple_of=step):
            yield f"multiple of `{number(step)}`"
        case at.Interval():
            for part in mark:
                yield from bound(part)
        case _ if isinstance(pattern := getattr(mark, "pattern", None), str):
            yield f"matches `{pattern}`"


def about(field: FieldInfo) -> str:
    """Say what a field is: description, unit and source."""
    text = " ".join((field.description or "").replace("``", "`").split())
    extra = field.json_schema_extra
    more: dict[str, Any] = extra if isinstance(extra, dict) else {}
    if unit := more.get("unit"):
        text += f" Unit: {unit}."
    if source := more.get("source"):
        text += f" Source: {source}."
    return text.strip()


def presets() -> str:
    """Render what each preset changes, compared with the defaults."""
    tables = {name: flat(RainSettings.preset(name)) for name in PRESETS}
    usual = flat(RainSettings())
    lines = [
        "## Presets",
        "",
        "`RainSettings.preset(name)` gives the published constants. This is what they change; a",
        "setting that none of them changes is not listed.",
        "",
        "| setting | default | " + " | ".join(f'`"{name}"`' for name in PRESETS) + " |",
        "| --- | --- |" + " --- |" * len(PRESETS),
    ]
    names = list(dict.fromkeys(name for table in [*tables.values(), usual] for name in table))
    for name in names:
        if any(other.startswith(f"{name}.") for other in names):
            continue  # a group that may be null: its own settings are listed
        cells = [shown(table, name) for table in (usual, *tables.values())]
        if any(cell != cells[0] for cell in cells):
            lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def shown(table: Mapping[str, object], name: str) -> str:
    """Write one setting of a flat table; "off" where its group is null, or another strategy has it."""
    return value(table[name]).replace("|", "\\|") if name in table else "off"


def flat(model: BaseModel, prefix: str = "") -> dict[str, object]:
    """Flatten nested settings to dotted names; lists stay whole."""
    found: dict[str, object] = {}
    for name in type(model).model_fields:
        thing = getattr(model, name)
        if isinstance(thing, BaseModel):
            found |= flat(thing, f"{prefix}{name}.")
        else:
            found[prefix + name] = thing
    return found


if __name__ == "__main__":
    sys.exit(main())

"""Run a chat template, an untrusted program that comes with a model, within bounds of time and memory.

Jinja's sandbox prevents access to Python. This one also limits time and memory, on any thread. When a
template is compiled, its syntax tree gets

* a ``tick`` in each loop and macro, which counts steps and checks the time;
* a ``keep`` around each expression that creates or compares data, which counts the value's size.

Operations that can create a large value from small ones (``*``, ``+``, ``**``, ``%``, widths, ``replace``,
``join`` and others) are checked before they run. Methods and filters that are not listed here do not exist.
"""

from __future__ import annotations

import functools
import json
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sized
from datetime import datetime
from typing import Any

from jinja2 import nodes, pass_context, pass_eval_context
from jinja2.compiler import CodeGenerator
from jinja2.environment import Template
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import EscapeFormatter, Markup

from rain_llm.bounds import TEMPLATE_BYTES, TEMPLATE_VALUE
from rain_llm.models.templates.budget import (
    GROWTH,
    WIDTH,
    BoundError,
    Budget,
    budget_now,
    formatted,
    joined,
    narrow,
)

_RANGE = 100_000
_BITS = 1 << 12  # of an integer
_SCOPES = {"_loop_vars", "_block_vars"}  # arguments that Jinja adds to calls
_TICK, _KEEP, _JOIN = " tick", " keep", " join"  # the space keeps templates from using these filters

_FILTERS = (
    *("abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape"),
    *("first", "float", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list"),
    *("lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select"),
    *("selectattr", "slice", "sort", "string", "sum", "title", "trim", "truncate", "unique", "upper"),
    *("urlencode", "wordcount"),
)
_ITERATING = {
    *(
        "batch",
        "groupby",
        "join",
        "list",
        "map",
        "max",
        "min",
        "reject",
        "rejectattr",
        "select",
        "selectattr",
    ),
    *("slice", "sort", "sum", "unique"),
}
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(name for name in dir(str) if name[0] != "_")
    - {"encode", "expandtabs", "format", "format_map", "maketrans", "translate"},  # format is wrapped
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
}


def render(source: str, values: Mapping[str, Any]) -> str:
    """Render a template.

    Args:
        source: source of the template.
        values: its variables, plain data.

    Raises:
        BoundError: it exceeds a bound of ``rain_llm.bounds``.
        Exception: any other error of the template.
    """
    if len(source.encode()) > TEMPLATE_BYTES:
        raise BoundError(f"it has {len(source.encode())} bytes, more than {TEMPLATE_BYTES}")
    token = budget_now.set(Budget())
    try:
        written: list[str] = []
        left = TEMPLATE_VALUE
        for piece in _compiled(source).generate(**values):
            left -= len(piece)
            budget_now.get().expect(TEMPLATE_VALUE - left)
            written.append(piece)
        return "".join(written)
    finally:
        budget_now.reset(token)


@functools.lru_cache(16)
def _compiled(source: str) -> Template:
    return _environment().from_string(source)


@functools.cache
def _environment() -> _Environment:
    # Constant expressions are not evaluated at compile time (optimized=False): they would not be counted.
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
        optimized=False,
        finalize=_written,
    )
    environment.filters = {name: _guarded(name, FILTERS[name]) for name in _FILTERS}
    environment.filters |= {"tojson": _guarded("tojson", _tojson), "join": _guarded("join", _join)}
    environment.filters |= {_TICK: _tick, _KEEP: _keep, _JOIN: _concatenated}
    environment.globals = {
        "range": _range,
        "dict": dict,
        "namespace": _Namespace,
        "cycler": Cycler,
        "joiner": Joiner,
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    return environment


# --- the syntax tree ------------------------------------------------------------------------------


class _Weaver(NodeTransformer):
    """Adds the counting calls to the syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self._begin(node)
        if node.test is not None:
            node.test = nodes.And(_call(_TICK, nodes.Const(0)), node.test)
        return node

    def _begin(self, node: Any) -> nodes.Node:
        """Insert a tick at the beginning of a repeatable body, with the size of the body's text."""
        self.generic_visit(node)
        size = sum(4 * len(text.data) for text in node.find_all(nodes.TemplateData))
        node.body.insert(0, nodes.ExprStmt(_call(_TICK, nodes.Const(size))))
        return node  # type: ignore[no-any-return]

    visit_Macro = visit_CallBlock = visit_Block = visit_FilterBlock = visit_AssignBlock = _begin

    def _keep(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _call(_KEEP, node)

    visit_Compare = visit_List = visit_Dict = _keep

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call(_JOIN, nodes.Tuple(node.nodes, "load"))

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._keep(node) if node.ctx == "load" else self.generic_visit(node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        return self._keep(node) if isinstance(node.arg, nodes.Slice) else self.generic_visit(node)

    def visit_EvalContextModifier(self, node: nodes.Node) -> nodes.Node:
        raise SecurityError("it uses autoescape, which is not allowed")

    visit_ScopedEvalContextModifier = visit_EvalContextModifier


def _call(name: str, value: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None)


class _CodeGenerator(CodeGenerator):
    """Counts steps during compilation, too: nested loops with many names compile slowly."""

    def visit(self, node: nodes.Node, *args: Any, **given: Any) -> Any:
        budget_now.get().tick()
        return super().visit(node, *args, **given)

    def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:
        _Weaver().visit(node)
        node.set_environment(self.environment)
        super().visit_Template(node, frame)


class _Generation(Extension):
    """Supports ``{% generation %}``, which marks an assistant's text for training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


# --- what runs ------------------------------------------------------------------------------------


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def call(self, context: Context, called: Any, /, *args: Any, **given: Any) -> Any:
        if getattr(called, "__name__", "") == "join":
            args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)
        budget_now.get().tick(64 * (len(args) + len(given)))
        self._check_call(called, args, {name: given[name] for name in given.keys() - _SCOPES})
        return budget_now.get().keep(super().call(context, called, *args, **given), fresh=True)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Read an item and count it as created, because filters may copy it."""
        found = super().getitem(obj, argument)
        budget_now.get().tick(budget_now.get().weight(found))
        return found

    def _check_call(self, called: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        """Check that a function is known to be bounded.

        Raises:
            SecurityError: it is not.
        """
        if isinstance(called, Macro | BlockReference | LoopContext | Joiner | Undefined | types.FunctionType):
            return
        if not callable(called) or called in (dict, _Namespace, Cycler, Joiner):
            return
        owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        if isinstance(owner, LoopContext | Cycler | _Generation):
            return
        if any(isinstance(owner, kind) and name in names for kind, names in _METHODS.items()):
            growth = joined if name == "join" else GROWTH.get(name)
            if growth:
                budget_now.get().expect(growth(owner, *args, **given))
            return
        raise SecurityError(f"it calls {type(owner).__name__}.{name}, which is not allowed")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = budget_now.get()
        if operator == "%" and isinstance(left, str):
            budget.expect(formatted(left, right))
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _BITS:
                raise BoundError(f"it creates a number of more than {_BITS} bits")
        elif operator == "*":
            times = right if isinstance(right, int) else left
            sized = left if times is right else right
            if isinstance(times, int) and isinstance(sized, Sized):
                one = len(sized) if isinstance(sized, str) else budget.weight(sized)
                budget.expect(one * max(0, times))
        elif operator == "+":
            budget.expect(budget.weight(left) + budget.weight(right))
        return budget.keep(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        text: str = value.__self__
        is_map = value.__name__ == "format_map"
        escape = {"escape": text.escape} if isinstance(text, Markup) else {}
        formatter = (_EscapeFormatter if escape else _Formatter)(self, **escape)

        def bounded(*args: Any, **given: Any) -> str:
            return type(text)(formatter.vformat(text, () if is_map else args, args[0] if is_map else given))

        return bounded


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        if re.search(r"\d{4}", format_spec):
            raise BoundError(f"it writes a field wider than {WIDTH}")
        return budget_now.get().keep(super().format_field(value, format_spec))


class _EscapeFormatter(_Formatter, EscapeFormatter):
    pass


class _Namespace(Namespace):
    """A namespace whose text form does not include its content."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"it sets the private attribute {name[:40]!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


@pass_context
def _written(context: Context, value: Any) -> str:
    """Convert the value of an expression to text."""
    text: str = budget_now.get().keep(value if isinstance(value, str) else str(value))
    return text


def _tick(size: int) -> bool:
    budget_now.get().tick(size)
    return True


def _keep(value: Any) -> Any:
    return budget_now.get().keep(value)


def _concatenated(values: tuple[Any, ...]) -> str:
    budget_now.get().expect(sum(map(budget_now.get().weight, values)))
    return "".join(map(str, map(_keep, values)))


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter: check its arguments before it runs, and count its result."""
    passed = hasattr(function, "jinja_pass_arg")  # the first argument is the environment or the like
    growth = GROWTH.get(name)

    @functools.wraps(function)
    def guarded(*args: Any, **given: Any) -> Any:
        budget = budget_now.get()
        if growth:
            budget.expect(growth(*args[passed:], **given))
        if name in _ITERATING:
            args = (*args[:passed], budget.counted(args[passed]), *args[passed + 1 :])
        return budget.keep(function(*args, **given), fresh=True)

    return guarded


@pass_eval_context
def _join(context: Any, value: Any, d: str = "", attribute: Any = None) -> Any:
    if attribute is not None:
        value = map(make_attrgetter(context.environment, attribute), value)
    items = list(value)
    budget_now.get().expect(joined(d, items))
    return FILTERS["join"](context, items, d)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    for space in (indent, *(separators or ())):
        narrow(len(space) if isinstance(space, str) else space or 0)
    budget_now.get().expect(budget_now.get().weight(value) * max(map(len, separators or " ")))
    written = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if indent is None:
        return written.encode(value)
    pieces: list[str] = []
    size = 0
    for piece in budget_now.get().counted(written.iterencode(value)):
        size += len(piece)
        budget_now.get().expect(size)
        pieces.append(piece)
    return "".join(pieces)


def _range(*numbers: int) -> range:
    made = range(*numbers)
    if len(made) > _RANGE:
        raise BoundError(f"it uses a range of more than {_RANGE} numbers")
    return made


def _raise_exception(message: str) -> None:
    raise TemplateError(str(message)[:200])


def _strftime_now(format: str) -> str:
    if len(format) > WIDTH or re.search(r"%[^%]*?\d", format):
        raise BoundError("its date format has a width, which is not allowed")
    return datetime.now().strftime(format)

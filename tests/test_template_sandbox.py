"""Chat templates come from model files: each renders as transformers renders it, or ends soon and small."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rain_llm import Message, ModelNotSupportedError
from rain_llm.models.templates.sandbox import render
from rain_llm.models.tokenizer import Tokenizer
from tests.examples import examples

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi\nyou"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1]}}}],
    },
]
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
]

LOOP = "{% for i in range(90000) %}"
GROW = "{% set ns = namespace(a='xx', l=['x'], m=['x']) %}{% for i in range(60) %}"
BIG = "{% set x = 'a' * 3000000 %}{% set l = [x] * 1 %}"
HIDDEN = "{% set n = namespace(x='a' * 3000000) %}{% set l = [n] * 20000 %}"
ATTACKS = {
    "loops": LOOP * 3 + "{% endfor %}" * 3,
    "loops that show nothing": LOOP + "{% for j in range(90000) if false %}{% endfor %}{% endfor %}",
    "loops that go on": LOOP * 2 + "{% continue %}" + "{% endfor %}" * 2,
    "recursive loops": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "many recursive loops": "{% for x in [1, 2] recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}"
    "{% endif %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "deep macros": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "a macro that doubles": "{% macro f(n) %}{% if n %}{% set x %}{{ f(n - 1) }}{% endset %}{{ x }}{{ x }}"
    "{% else %}xxxxxxxxxx{% endif %}{% endmacro %}{{ f(40) }}",
    "lipsum": "{{ lipsum(n=10**7) }}",
    "text times": "{{ 'x' * (2*10**9) }}",
    "times text": "{{ (2*10**9) * 'x' }}",
    "list times": "{{ ['x'] * (2*10**9) }}",
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "power": "{{ 10 ** (10**8) }}",
    "squares": GROW.replace("'xx'", "10") + "{% set ns.a = ns.a * ns.a %}{% endfor %}{{ ns.a }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent, starred": "{{ '%*d' % (1000000000, 1) }}",
    "percent, named": "{{ '%((a))1000000000d' % {'(a)': 1} }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "format, nested": "{{ '{:{}}'.format(1, 1000000000) }}",
    "format, mapped": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "format, a filter": "{{ '%1000000000d' | format(1) }}",
    "format, safe": "{{ ('{:>1000000000}' | safe).format(1) }}",
    "format, often": BIG + "{{ ('{0}' * 100000).format(x) }}",
    "center": "{{ 'x' | center(10**9) }}",
    "ljust": "{{ 'x'.ljust(10**9) }}",
    "zfill": "{{ 'x'.zfill(10**9) }}",
    "tabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent": "{{ ('x\n' * 100) | indent(10**9) }}",
    "indent, text": "{{ ('x\n' * 100000) | indent('y' * 10000) }}",
    "tojson": "{{ [1] | tojson(indent=10**9) }}",
    "tojson, separated": "{{ range(9999) | list | tojson(separators=('x' * 9999, ':')) }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "round": "{{ 5 | round(-10**9) }}",
    "sum": "{{ ([[1] * 1000] * 1000) | sum(start=[]) }}",
    "replace": "{{ ('x' * 100000) | replace('x', 'y' * 1000) }}",
    "replace nothing": "{{ ('x' * 100000).replace('', 'y' * 1000) }}",
    "join": "{{ ('y' * 10000).join(['x'] * 10000) }}",
    "join what is made": BIG + "{{ ''.join((l * 10000) | map('string')) }}",
    "join attributes": BIG + "{% set ns = namespace(x=x) %}{{ ([ns] * 10000) | join(attribute='x') }}",
    "concatenate": GROW + "{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}",
    "concatenate often": BIG + "{{ " + "~".join(["x"] * 999) + " }}",
    "add": GROW + "{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a }}",
    "lists of lists": GROW + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "lists compared": GROW
    + "{% set ns.l = [ns.l, ns.l] %}{% set ns.m = [ns.m, ns.m] %}{% endfor %}{{ ns.l == ns.m }}",
    "namespaces of lists": GROW
    + "{% set n = namespace(v=[ns.a, ns.a]) %}{% set ns.a = n %}{% endfor %}{{ ns.a.v }}",
    "slices": BIG + "{{ [" + "x[1:]," * 999 + "] | length }}",
    "kept": BIG + "{% set ns = namespace(l=[]) %}" + LOOP + "{% set ns.l = [ns.l, x[i:]] %}{% endfor %}",
    "output": BIG + LOOP + "{{ x }}{% endfor %}",
    "output of a macro": BIG + "{% macro m() %}" + LOOP + "{{ x }}{% endfor %}{% endmacro %}{{ m() }}",
    "output of a block": LOOP + "{% filter upper %}" + "z" * 60000 + "{% endfilter %}{% endfor %}",
    "constant output": LOOP + "z" * 60000 + "{% endfor %}",
    "constant output of a macro": "{% macro m() %}"
    + LOOP
    + "z" * 60000
    + "{% endfor %}{% endmacro %}{{ m() }}",
    "escaped": "{% autoescape true %}{{ '&' * 3000000 }}{% endautoescape %}",
    "escaped again": GROW + "{% set ns.a = ns.a | string | e | replace('a', '&') %}{% endfor %}{{ ns.a }}",
    "bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "keys": "{{ {}.fromkeys(range(90000)) }}",
    "a date": "{{ strftime_now('%1000000000d') }}",
    "strip": "{{ ('a' * 2000000).strip('b' * 2000000) }}",
    "trim": "{{ 'a' * 2000000 | trim('b' * 2000000) }}{{ ('a' * 2000000) | trim('b' * 2000000) }}",
    "attributes sorted": HIDDEN + "{{ l | sort(attribute='x') | length }}",
    "attributes compared": HIDDEN + "{{ l | selectattr('x', 'eq', 'a' * 2999999 ~ 'b') | list }}",
    "attributes in groups": HIDDEN + "{{ l | groupby('x') | length }}",
    "the greatest attribute": HIDDEN + "{{ l | max(attribute='x') }}",
    "different attributes": HIDDEN + "{{ l | unique(attribute='x') | list }}",
    "many attributes": "{{ ([1] * 900000) | groupby('real') | length }}",
    "letters sorted": "{{ ('a' * 4000000) | sort | length }}",
    "parts kept": "{% set s = 'a' * 1000000 ~ 'b' ~ 'a' * 1000000 %}{% set ns = namespace(l=0) %}"
    + LOOP
    + "{% set ns.l = namespace(y=s.partition('b'), z=ns.l) %}{% endfor %}",
    "arguments kept": "{% set ns = namespace(l=0) %}"
    + LOOP
    + "{% set ns.l = namespace(y=cycler(*range(9999)), z=ns.l) %}{% endfor %}",
    "carriage returns indented": "{{ ('\\r' * 1000000) | indent('x' * 1000, true, true) }}",
    "vertical tabs indented": "{{ ('\\v' * 1000000) | indent(1000, blank=true) }}",
    "separators": "{{ ([0] * 400000) | tojson(separators=(',' * 999, ':')) }}",
    "words": "{{ ('a ' * 2000000) | title | length }}",
    "loops within each other": "{% for x in y %}" * 90
    + "".join(f"{{{{a{i}}}}}" for i in range(6000))
    + "{% endfor %}" * 90,
    "parentheses": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "a sum": "{{ " + "1+" * 9999 + "1 }}",
    "blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "length": "x" * 70000,
}  # fmt: skip
HARMLESS = {"namespaces of lists", "escaped again"}  # these come to something small

FINE = [
    "{{ messages | tojson }}{{ messages | tojson(indent=2) }}"
    "{{ tools | map(attribute='type') | join('; ') }}",
    "{% for m in messages if m.role != 'system' %}{{ loop.index }}{{ loop.last }}{{ loop.length }}"
    "{{ m['content'].split('\n')[-1].strip().upper() }}{{ loop.nextitem is defined }}{% endfor %}",
    "{% set ns = namespace(n=0, t='') %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.t = ns.t ~ m.role ~ ns.n %}{% break %}{% endfor %}{{ ns.t }} {{ ns.n }}",
    "{% macro show(x, d=2) %}{{ x | indent(d, true) }}{{ caller() if caller }}{% endmacro %}"
    "{{ show('a\nb') }}{% call show('c', d=4) %}z{% endcall %}",
    "{% generation %}{{ messages[1].content | trim }}{% endgeneration %}{{ bos_token }}",
    "{{ '%s and %d' % ('a', 3) }}{{ '{:>4}|{x}'.format(7, x='y') }}{{ '-' * 30 }}"
    "{{ [1] * 3 + [2] }}{{ 2 ** 8 }}",
    "{% for x in [[1, [2]], [3]] recursive %}({{ loop(x) if x is iterable else x }}){% endfor %}",
    "{% for k, v in tools[0].function.items() %}{{ k }}={{ v | string }}"
    "{{ ', ' if not loop.last }}{% endfor %}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ range(3) | list }}{{ (1, 2) }}"
    "{{ {'a': 1} | dictsort }}{{ 'a,b'.split(',') }}{{ 'x' if 'us' in 'user' else 'y' }}"
    "{{ none }}{{ 1 < 2 < 3 }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{% set j = joiner('|') %}{{ j() }}{{ j() }}"
    "{% filter upper %}abc{% endfilter %}{% set x %}in {{ 1 }}{% endset %}{{ x }}"
    "{{ dict(a=1) }}{{ 'a' ~ 1 ~ none }}",
    "{% for m in messages %}{{ m.content.replace('e', 'i') }}{{ ', '.join(['a', 'b']) }}"
    "{{ 'x'.center(9) }}{{ 'x'.zfill(3) }}{% endfor %}"
    "{% block a %}{{ 'aa'.replace('a', 'b', 1) }}{% endblock %}",
    "{{ [1, 2, 3] | batch(linecount=2, fill_with=0) | list }}{{ [1, 2, 3] | slice(slices=2) | list }}"
    "{{ 'a' | center(width=9) }}{{ 'a b' | replace(old='a', new='c') | title }}{{ ' a ' | trim(chars=' ') }}",
    "{{ messages | map(attribute='role') | sort | unique | join(d=',') }}{{ 'ba' | list | sort | last }}"
    "{{ messages | groupby('role') | map('first') | list }}{{ 'cab' | sort | join }}{{ [[2], [1]] | max }}",
    "{{ nothing | list }}{{ nothing | map('upper') | list }}{{ {'b': 1, 'a': 2} | list }}{{ range(3) | sum }}"
    "{{ {'b': 1, 'a': 2} | map('upper') | join }}{{ 'a\rb' | indent }}"
    "{{ [3] | tojson(separators=(',', ':')) }}",
]


def values(**more: Any) -> dict[str, Any]:
    return {"messages": MESSAGES, "tools": TOOLS, "documents": None, "add_generation_prompt": True} | more


@pytest.mark.parametrize("source", FINE)
def test_a_template_renders_as_by_transformers(source: str):
    from transformers.utils.chat_template_utils import _compile_jinja_template

    expected = _compile_jinja_template(source).render(**values(bos_token="<s>"))
    assert render(source, values(bos_token="<s>")) == expected


CHILD = """
import json, resource, time
from rain_llm.models.templates.sandbox import render
from tests.test_template_sandbox import ATTACKS, values

render("{{ 1 }}", {})
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (300 << 20)
resource.setrlimit(resource.RLIMIT_AS, (size, size))
found = {}
for name, source in ATTACKS.items():
    begun = time.thread_time()
    try:
        came = len(render(source, values()))
    except Exception as error:
        came = type(error).__name__
    found[name] = [came, time.thread_time() - begun]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_template_without_an_end_is_ended_and_none_fills_the_memory():
    """One after the other, in a process that may take 300 MB more than it begins with."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-500:]
    found = json.loads(done.stdout)
    for name, (came, seconds) in found.items():
        assert came != "MemoryError", name
        assert seconds < 2, name
        assert (came in range(10_000)) == (name in HARMLESS), name
    assert found.keys() == ATTACKS.keys()


def test_the_bounds_hold_on_any_thread():
    caught: list[Exception] = []

    def work() -> None:
        try:
            render(ATTACKS["loops"], values())
        except Exception as error:
            caught.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [str(error)[:19] for error in caught] == ["it takes more than "] * 2
    assert render("{{ 1 }}", {}) == "1"


def test_a_models_template_that_is_ended_is_an_error_that_says_so(make_tokenizer: Any):
    tokenizer = Tokenizer(make_tokenizer(chat_template=ATTACKS["text times"]), "tiny")
    with pytest.raises(ModelNotSupportedError, match=r"template of tiny .* more than 4194304 characters"):
        tokenizer.render_chat([Message("user", "Hi")])


NUMBERS = st.sampled_from(["0", "3", "-1", "999", "10**6", "2**31", "10**12"])
ATOMS = st.one_of(
    NUMBERS,
    st.sampled_from(
        ["'x'", "'%9999d'", "'{:>99999}'", "messages", "tools", "a", "ns.v", "loop.index", "[1, 'y']", "{}"]
    ),
)


def _more(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    binary = st.builds(
        "({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "**", "%", "~", "==", "in", "and"]), inner
    )
    named = st.sampled_from(
        ["list", "join", "string", "tojson", "length", "sort", "reverse", "sum", "unique", "trim"]
    )
    wide = st.sampled_from(
        ["center", "indent", "batch", "slice", "round", "format", "join", "replace('x', ", "map("]
    )
    filtered = st.builds("({} | {})".format, inner, named)
    wider = st.builds(lambda x, f, y: f"({x} | {f if '(' in f else f + '('}{y}))", inner, wide, inner)
    methods = st.sampled_from(
        ["ljust", "zfill", "join", "format", "split", "get", "count", "items", "append"]
    )
    called = st.builds("({}.{}({}))".format, inner, methods, inner)
    made = st.builds("[{}, {}]".format, inner, inner)
    counted = st.builds("range({})".format, inner)
    return st.one_of(binary, filtered, wider, called, made, counted)


EXPRESSIONS = st.recursive(ATOMS, _more, max_leaves=6)
STATEMENTS = st.recursive(
    st.one_of(
        st.builds("{{{{ {} }}}}".format, EXPRESSIONS),
        st.builds("{{% set a = {} %}}".format, EXPRESSIONS),
        st.builds("{{% set ns.v = {} %}}".format, EXPRESSIONS),
    ),
    lambda inner: st.one_of(
        st.builds("{}{}".format, inner, inner),
        st.builds("{{% for i in {} %}}{}{{% endfor %}}".format, EXPRESSIONS, inner),
        st.builds("{{% for i in range(9999) %}}{}{{% endfor %}}".format, inner),
        st.builds("{{% macro m(a) %}}{}{{% endmacro %}}{{{{ m(1) }}}}{{{{ m('x') }}}}".format, inner),
        st.builds("{{% set a %}}{}{{% endset %}}{{{{ a * 9 }}}}".format, inner),
    ),
    max_leaves=5,
)


@settings(max_examples=examples(100))
@given(STATEMENTS)
def test_any_template_ends_soon(source: str):
    begun = time.thread_time()
    try:
        written = render("{% set ns = namespace(v='x') %}{% set a = 'y' %}" + source, values())
    except MemoryError:
        raise
    except Exception:
        written = ""
    assert len(written) <= 4 << 20
    assert time.thread_time() - begun < 2

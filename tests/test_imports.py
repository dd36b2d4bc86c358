"""Imports point down, torch stays where it belongs, and the public names are these."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rain_llm
import rain_llm.chat
from rain_llm.search.algorithm import RainSearch

PACKAGE = Path(rain_llm.__file__).parent

# From the ground up: a module imports only what stands above it in this list.
ORDER = (
    "bounds",
    "redaction",
    "forks",
    "types",
    "requests",
    "errors",
    "models",
    "models.schema_size",
    "models.validation",
    "schemas",
    "missing",
    "clock",
    "tools",
    "criteria.criterion",
    *(f"criteria.{name}" for name in rain_llm.BUILT_IN),  # a file each, of its name
    "criteria",
    "settings.merging",
    "settings.generation",
    "settings.model",
    "settings.search",
    "settings.old_names",
    "settings.evaluation",
    "settings.presets",
    "settings.yaml_text",
    "settings.file",
    "settings.root",
    "settings",
    "chat.habits",
    "chat.messages",
    "chat.requests",
    "chat.results",
    "chat.parameters",
    "chat",
    "search",
    "search.shortest",
    "search.seeds",
    "search.tree",
    "search.record",
    "search.answer",
    "search.outcome",
    "models.base",
    "models.local",
    "models.local.embedded",
    "models.local.loading",
    "models.described",
    "models.which",
    "models.transcript",
    "models.distinct",
    "models.grammar",
    "models.local.numpy_rows",
    "models.local.watched",
    "models.local.kv_cache",
    "models.scripted",
    "models.templates",
    "models.templates.chat_template",
    "models.templates.budget",
    "models.templates.sandbox",
    "models.tokenizer",
    "models.local.jobs",
    "models.local.llama_cache",
    "models.local.llama_pass",
    "models.local.llama_library",
    "models.local.gguf_text",
    "models.local.gguf_file",
    "models.local.llama_states",
    "models.local.llama_context",
    "models.local.llama_cpp",
    "models.local.torch_rows",
    "models.local.tree_attention",
    "models.local.transformers",
    "models.local.similarity",
    "models.servers",
    "models.servers.reading",
    "models.servers.quoting",
    "models.servers.proxies",
    "models.servers.transport",
    "models.servers.failures",
    "models.servers.loop",
    "models.servers.replica",
    "models.servers.attempt",
    "models.servers.replicas",
    "models.servers.dialect",
    "models.servers.replies",
    "models.servers.llama_tokenizer",
    "models.servers.llama_server",
    "models.servers.vllm",
    "models.servers.sglang",
    "models.servers.probe",
    "models.servers.sampling",
    "models.servers.scoring",
    "models.servers.completions",
    "models.servers.connecting",
    "judging",
    "judging.blindness",
    "judging.evidence",
    "judging.probe",
    "judging.splitting",
    "judging.spelling",
    "judging.vocabulary",
    "judging.quoting",
    "judging.questions",
    "judging.reading",
    "judging.evaluator",
    "search.output",
    "task",
    "search.state",
    "search.requests",
    "search.prefetch",
    "search.strategies",
    "search.rollouts",
    "search.verdicts",
    "search.ending",
    "search.read_and_rewind",
    "search.algorithm",
    "search.plain",
    "search.sentences",
    "ticket",
    "scheduler",
    "engine.runtime",
    "engine.encode",
    "engine.stream",
    "engine.prepare",
    "engine.blind",
    "engine.rain",
    "engine",
    "",  # the public names
    "jsonl",
    "screen",
    "demo",
    "probing",
    "probing.known_data",
    "doctor",
    "doctor.items",
    "doctor.measures",
    "probing.states",
    "probing.ridge",
    "probing.fitting",
    "probing.baselines",
    "probing.findings",
    "probing.examining",
    "doctor.styles",
    "doctor.findings",
    "probing.halves",
    "probing.ranking",
    "probing.report",
    "doctor.interview",
    "doctor.examine",
    "doctor.report",
    "doctor.settings_file",
    "doctor.merging",
    "doctor.command",
    "evals",
    "evals.rows",
    "evals.tasks",
    "evals.methods",
    "evals.best_of",
    "standard",
    "standard.care",
    "evals.answering",
    "evals.runner",
    "evals.wording",
    "evals.statistics",
    "evals.plots",
    "evals.page",
    "evals.judges",
    "evals.judges.applies",
    "evals.judges.by_words",
    "evals.judges.by_similarity",
    "evals.judges.by_classifier",
    "evals.judges.fluency",
    "evals.judges.built_in",
    "evals.judges.own",
    "evals.judging",
    "evals.formatting",
    "evals.study",
    "evals.tables",
    "evals.section",
    "evals.summary",
    "evals.report",
    "standard.suites",
    "standard.refusing",
    "standard.turning",
    "standard.classifier",
    "standard.harm",
    "standard.reading",
    "standard.judging",
    "standard.columns",
    "standard.tables",
    "standard.page",
    "evals.command",
    "distil.drafts",
    "distil.labels",
    "distil.person",
    "distil.fitting",
    "distil",
    "distil.command",
    "generate",
    "check",
    "cli",
    "__main__",
)

HEAVY = {"torch", "transformers", "sentence_transformers", "xllamacpp", "llguidance"}
AT_ONCE = {
    "models.local.transformers": {"torch", "transformers"},
    "models.local.tree_attention": {"torch", "transformers"},
    "models.local.torch_rows": {"torch"},
    "models.local.kv_cache": {"torch"},
}
LATER = {
    "models.grammar": {"llguidance"},
    "models.local.loading": {"transformers"},
    "models.tokenizer": {"transformers"},
    "models.local.similarity": {"sentence_transformers"},
    "evals.judges.own": {"transformers"},
}

PUBLIC = [
    "BUILT_IN",
    "CIVILITY",
    "GROUNDEDNESS",
    "HARMLESSNESS",
    "HARMLESS_ACTIONS",
    "POSITIVE_SENTIMENT",
    "TRUTHFULNESS",
    "BlindJudgeWarning",
    "Calibration",
    "Channel",
    "Choice",
    "Criterion",
    "Example",
    "IncompleteError",
    "LabelError",
    "Message",
    "ModelError",
    "ModelNotFoundError",
    "ModelNotSupportedError",
    "PromptError",
    "PromptTooLongError",
    "Rain",
    "RainError",
    "RainResult",
    "RainSettings",
    "SearchError",
    "SentenceVerdict",
    "ServerError",
    "SettingsError",
    "Step",
    "StopReason",
    "Task",
    "Tool",
    "ToolCall",
    "UnmeasuredJudgeWarning",
    "UnsafeAnswerError",
    "Usage",
    "Verdict",
]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Each imported module, and whether the import runs when the module itself is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for later in ast.walk(tree)
        if isinstance(later, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(later, ast.If) and ast.unparse(later.test) == "TYPE_CHECKING")
        for node in ast.walk(later)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the order"
            names = [str(node.module)]
        for name in names:
            yield name, id(node) not in inside


def test_every_module_has_its_place_in_the_order():
    assert set(MODULES) == set(ORDER), "a new module needs a place in ORDER"


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_down(module: str):
    for name, _ in imports(MODULES[module]):
        if name.partition(".")[0] == "rain_llm":
            below = name.removeprefix("rain_llm").removeprefix(".")
            assert below in ORDER, f"{module} imports {name}: import from the module itself"
            assert ORDER.index(below) < ORDER.index(module), f"{module} imports {name}, which is not below"


@pytest.mark.parametrize("module", ORDER)
def test_heavy_libraries_are_imported_only_where_they_are_used(module: str):
    for name, at_once in imports(MODULES[module]):
        library = name.partition(".")[0]
        if library in HEAVY:
            allowed = AT_ONCE.get(module, set()) | (set() if at_once else LATER.get(module, set()))
            assert library in allowed, f"{module} imports {library}"


@pytest.mark.parametrize(
    "module",
    ["search.tree", "search.answer", "search.algorithm", "search.plain", "scheduler", "judging.evaluator"],
)
def test_the_search_knows_no_model(module: str):
    for name, _ in imports(MODULES[module]):
        assert not name.startswith("rain_llm.models.") or name == "rain_llm.models.base"


def test_the_command_line_does_not_weigh_on_the_library():
    for module, path in MODULES.items():
        if module not in ("cli", "generate", "check", "demo", "screen") and not module.endswith(
            (".command", ".report")
        ):
            assert not {"rich", "typer"} & {name.partition(".")[0] for name, _ in imports(path)}, module


def test_the_public_names_are_these():
    assert rain_llm.__all__ == PUBLIC
    assert [name for name in PUBLIC if not hasattr(rain_llm, name)] == []


INTEGRATIONS = PACKAGE.parents[1] / "integrations"


@pytest.mark.parametrize("integration", ["langchain-rain", "llama-index-llms-rain"])
def test_integrations_import_public_names_only(integration: str):
    public = {"rain_llm": rain_llm.__all__, "rain_llm.chat": rain_llm.chat.__all__}
    files = [*(INTEGRATIONS / integration).rglob("*.py")]
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names if alias.name.partition(".")[0] == "rain_llm"]
                assert not found, f"{path}: write from {found[0]} import ..."
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "rain_llm":
                assert node.module in public, f"{path} imports {node.module}"
                private = {alias.name for alias in node.names} - set(public[node.module])
                assert not private, f"{path} imports {private} from {node.module}"


LAZY = """
import sys
import rain_llm, rain_llm.search.algorithm, rain_llm.scheduler, rain_llm.judging.evaluator
import rain_llm.models.scripted, rain_llm.models.local.jobs
rain = rain_llm.Rain()
rain_llm.Rain(rain_llm.RainSettings(model="/no/such/folder"))
heavy = {"torch", "transformers", "sentence_transformers", "sklearn", "rich", "typer"} & set(sys.modules)
assert not heavy, heavy
"""


def test_making_a_rain_loads_nothing():
    subprocess.run([sys.executable, "-W", "error", "-c", LAZY], check=True, timeout=60)


def lines(*parts: str) -> dict[str, int]:
    """Count the lines of each module; of those in some folder of the package, where one is named."""
    paths = [path.relative_to(PACKAGE) for path in MODULES.values()]
    texts = {path: (PACKAGE / path).read_text(encoding="utf-8") for path in paths}
    return {
        str(path): len(text.splitlines()) for path, text in texts.items() if set(parts) <= set(path.parts)
    }


def test_the_algorithm_is_one_screen_and_its_parts_are_small():
    search = lines("search")
    assert search["search/algorithm.py"] <= 250
    assert max(search.values()) <= 400
    assert len(RainSearch.__slots__) <= 8


def test_the_engine_stays_small():
    assert lines("engine")["engine/rain.py"] <= 300
    assert max(lines("engine").values()) <= 300


def test_no_file_is_longer_than_400_lines():
    assert {path: n for path, n in lines().items() if n > 400} == {}


FROZEN = {"doctor": 1_620, "evals": 4_100, "probing": 1_000, "distil": 780, "standard": 1_350}
"""Folders that measure, and do not grow: what is added takes the place of something."""


@pytest.mark.parametrize("folder", FROZEN)
def test_what_measures_does_not_grow(folder: str):
    assert sum(lines(folder).values()) <= FROZEN[folder]


@pytest.mark.parametrize(
    ("integration", "most"), [("langchain-rain", 1_650), ("llama-index-llms-rain", 1_100)]
)
def test_the_integrations_do_not_grow(integration: str, most: int):
    """Without the kits of standard tests, which other models use, too."""
    kits = ("testing.py", "_recording.py")
    files = [path for path in (INTEGRATIONS / integration).rglob("*.py") if path.name not in kits]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= most


def test_only_the_strategies_know_which_strategy_it_is():
    """And the tree, for the rule by which a node is widened, and the task, which some strategies refuse."""
    allowed = {"search/strategies.py", "search/requests.py", "search/tree.py", "task.py"}
    asked = re.compile(r"KeepDraftsSettings|PaperSettings|strategy *[!=]=")
    found = {
        str(path.relative_to(PACKAGE))
        for path in MODULES.values()
        if asked.search(path.read_text(encoding="utf-8"))
    }
    assert {path for path in found if not path.startswith("settings/")} <= allowed

"""Judge by reading: find the probes of a judge, and ask for what they read."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from rain_llm.criteria import BUILT_IN
from rain_llm.criteria.criterion import Criterion
from rain_llm.errors import ModelError, SettingsError
from rain_llm.judging.probe import REMEDY, Probe
from rain_llm.judging.questions import JudgeInput
from rain_llm.models.base import LanguageModel, Readable
from rain_llm.models.transcript import shows_chats
from rain_llm.requests import Read, Values
from rain_llm.settings import EvaluationSettings
from rain_llm.types import Message, TokenIds

_POLICY = {"threshold", "target", "iterations", "weight", "guide", "turn", "style", "evidence", "examples"}
"""Fields of a criterion that do not change what it asks."""


class Reader:
    """Reads criteria from the hidden states of one judge.

    Args:
        settings: the question style.
        judge: the model that judges.
        criteria: all criteria that it may judge.

    Attributes:
        probes: the probes of those criteria that are read, by the criterion's name.

    Raises:
        SettingsError: a criterion asks for a probe, and there is none for it and this judge.
    """

    def __init__(
        self, settings: EvaluationSettings, judge: LanguageModel, criteria: Sequence[Criterion]
    ) -> None:
        self._judge = judge
        found = {c.name: probe_of(c, c.style or settings.style, judge) for c in criteria}
        self.probes = {name: probe for name, probe in found.items() if probe}
        readings = {name: probe.reading for name, probe in self.probes.items()}
        self._readings = {name: reading.name for name, reading in readings.items()}
        if readings:
            assert isinstance(judge, Readable)  # only such a judge has probes
            judge.watch(list(readings.values()))

    def request(
        self, criteria: Sequence[Criterion], subject: JudgeInput, text: str, written: TokenIds
    ) -> Read:
        """Return the request that reads an answer, for all of these criteria at once.

        Args:
            criteria: criteria with a probe, which all need a context or all need none.
            subject: what the answer belongs to.
            text: the answer.
            written: the answer as the judge itself has written it after ``subject.prompt``; (): it has not.
        """
        needs_context = criteria[0].needs_context
        if written and subject.prompt and not needs_context:
            prefix, tokens = subject.prompt, written
        else:
            prefix = subject.prompt if not needs_context else ()
            prefix, tokens = prefix or prefix_of(self._judge, subject), self._judge.encode(text)
        readings = tuple(dict.fromkeys(self._readings[c.name] for c in criteria))
        return Read(prefix, tokens, readings)

    def log_odds(self, criterion: Criterion, request: Read, reply: Values) -> float:
        """Return the log-odds (nats) that an answer meets a criterion.

        Raises:
            ModelError: the judge computed something that is not a number.
        """
        values = reply.values[request.readings.index(self._readings[criterion.name])]
        odds = self.probes[criterion.name].log_odds(values)
        if not math.isfinite(odds):
            raise ModelError(
                f"the judge {self._judge.name} has hidden states that are not numbers, so "
                f"'{criterion.name}' cannot be read: its file may be damaged"
            )
        return odds

    def limits(self, criterion: Criterion) -> tuple[float, float]:
        """Return the threshold and the target of a criterion that is read.

        They are the probe's, unless the criterion has others than the built-in one or the usual ones.
        """
        usual = BUILT_IN.get(criterion.name) or Criterion.model_fields["threshold"]
        default = usual.threshold if isinstance(usual, Criterion) else float(usual.default)
        probe = self.probes[criterion.name]
        threshold = probe.threshold if criterion.threshold == default else criterion.threshold
        return threshold, max(threshold, criterion.target or threshold)


def prefix_of(judge: LanguageModel, subject: JudgeInput) -> TokenIds:
    """Return the tokens before an answer, as probes are fitted to them.

    A reply stands in the assistant's turn after the query; a continuation follows the text itself.
    """
    query = f"{subject.context}\n\n{subject.query}" if subject.context else subject.query
    if subject.dialogue and shows_chats(judge):
        return judge.render_chat([Message("user", query)])
    return judge.start + judge.encode(query) or judge.encode("\n")


def probe_of(criterion: Criterion, style: str, judge: LanguageModel) -> Probe | None:
    """Return the probe by which a judge reads a criterion; None: it is asked.

    It is the criterion's own probe, one beside the model's file, or one that comes with this package. The
    last two are for the built-in criteria, and are not taken if the criterion's question was changed.

    Raises:
        SettingsError: the style is 'probe', or the criterion names one, and it cannot be used.
    """
    if style not in ("auto", "probe"):
        return None
    if style == "auto" and not criterion.probe and not asks_as_built_in(criterion):
        return None
    if not isinstance(judge, Readable):
        if style == "auto" and not criterion.probe:
            return None
        raise SettingsError(
            f"criterion '{criterion.name}' is read by a probe, but {judge.name} gives no hidden states: "
            "use a GGUF file or a transformers model in this process, or another evaluation.style"
        )
    if criterion.probe:
        probe = Probe.load(Path(criterion.probe).expanduser())
        probe.check(criterion.name, judge)
        return probe
    for path in _known(criterion.name, judge.folder):
        probe = Probe.load(path)
        if probe.model == judge.fingerprint and probe.criterion == criterion.name:
            probe.check(criterion.name, judge)
            return probe
    if style == "probe":
        raise SettingsError(
            f"there is no probe for '{criterion.name}' and {judge.name} ({judge.fingerprint}): {REMEDY}"
        )
    return None


def asks_as_built_in(criterion: Criterion) -> bool:
    """Return whether a criterion is a built-in one, perhaps with another threshold, target or guide."""
    built_in = BUILT_IN.get(criterion.name)
    return built_in is not None and built_in.model_dump(exclude=_POLICY) == criterion.model_dump(
        exclude=_POLICY
    )


def _known(criterion: str, folder: Path | None) -> list[Path]:
    """Return the files that may be the probe of a criterion, the user's own first."""
    ending = f"{criterion}.probe.json"
    beside = sorted(path for path in folder.glob(f"*{ending}") if path.is_file()) if folder else []
    return [*beside, *(path for path in shipped_probes() if path.name.endswith(f".{ending}"))]


@functools.cache
def shipped_probes() -> tuple[Path, ...]:
    """Return the files of the probes that come with this package."""
    folder = Path(str(resources.files("rain_llm.judging").joinpath("probes")))
    return tuple(sorted(folder.glob("*.probe.json")))

"""A probe: a criterion that is read from a model's hidden states, instead of asked in words.

A frozen model computes a hidden state for each token anyway. A probe is a linear classifier of these states:
weights for the outputs of one or a few blocks, averaged over the answer's tokens, and a bias. Their sum is a
logit, and its sigmoid the probability that the answer so far meets the criterion. This is ours, not the
paper's: the paper asks the model, and fits nothing.

A probe is a JSON file (``rain doctor --fit`` writes it) and belongs to one model, whose fingerprint it has.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from rain_llm.criteria.criterion import Frozen
from rain_llm.errors import SettingsError
from rain_llm.models.base import Readable
from rain_llm.requests import Reading

FILE_BYTES = 16 * 1024 * 1024
"""Maximum size of a probe's file."""


class Source(Frozen):
    """Labelled answers that a probe was fitted to."""

    name: str = Field(max_length=200, description="Name of the file.")
    digest: str = Field(max_length=64, description="SHA-256 of the file, hexadecimal.")
    good: int = Field(ge=0, description="Answers that meet the criterion.")
    bad: int = Field(ge=0, description="Answers that do not.")


class Measured(Frozen):
    """One figure about answers that the probe was not fitted to."""

    name: str = Field(max_length=200, description="What was measured, such as 'auc, complete answers'.")
    value: float = Field(description="The figure.")
    low: float | None = Field(default=None, description="Lower end of its 95 % interval.")
    high: float | None = Field(default=None, description="Upper end.")
    n: int = Field(default=0, ge=0, description="Number of answers.")


class Probe(Frozen):
    """A linear classifier of one model's hidden states, for one criterion."""

    format: Literal["rain-llm probe 1"] = "rain-llm probe 1"
    criterion: str = Field(min_length=1, max_length=100, description="Name of the criterion.")
    model: str = Field(min_length=1, max_length=500, description="Fingerprint of the model.")
    layers: tuple[int, ...] = Field(
        min_length=1, max_length=16, description="Blocks whose output is read, counted from 0."
    )
    window: int | None = Field(
        default=None, ge=1, le=4096, description="Tokens to average over: the last k; null: the whole answer."
    )
    weights: tuple[tuple[float, ...], ...] = Field(
        min_length=1, max_length=16, description="A vector for each layer."
    )
    bias: float = Field(ge=-1e6, le=1e6, description="Added to the average.")
    threshold: float = Field(ge=0, lt=1, description="An answer passes if its probability is above this.")
    data: tuple[Source, ...] = Field(default=(), max_length=100, description="What it was fitted to.")
    held_out: tuple[Measured, ...] = Field(
        default=(), max_length=200, description="What it reaches on answers that it was not fitted to."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Probe:
        if len(self.weights) != len(self.layers):
            raise ValueError(f"{len(self.layers)} layers need as many vectors, not {len(self.weights)}")
        if not all(0 <= layer < 1000 for layer in self.layers) or len(set(self.layers)) < len(self.layers):
            raise ValueError("layers must be different numbers from 0 to 999")
        width = len(self.weights[0])
        if not 1 <= width <= 65_536 or any(len(vector) != width for vector in self.weights):
            raise ValueError("the vectors must have one common length, from 1 to 65,536")
        if max(abs(number) for vector in self.weights for number in vector) > 1e6:
            raise ValueError("weights must lie between -1e6 and 1e6")
        return self

    @classmethod
    def load(cls, path: Path) -> Probe:
        """Read a probe's file. Nothing in it is ever executed.

        Raises:
            SettingsError: it cannot be read, or is not a probe; the message names the mistake.
        """
        try:
            with path.open("rb") as file:
                content = file.read(FILE_BYTES + 1)
            if len(content) > FILE_BYTES:
                raise ValueError("too large")
            return cls.model_validate(json.loads(content.decode()))
        except OSError as error:
            raise SettingsError(f"cannot read the probe {path}: {error.strerror or error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            reason = first["msg"].removeprefix("Value error, ")
            raise SettingsError(
                f"{path} is not a valid probe ({place + ': ' if place else ''}{reason}): {REMEDY}"
            ) from error
        except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, numbers without an end
            raise SettingsError(
                f"{path} is not a probe, which is a JSON file of at most {FILE_BYTES:,} bytes: {REMEDY}"
            ) from error

    def save(self, path: Path) -> None:
        """Write the probe's file, numbers with six digits."""
        data = self.model_dump(mode="json")
        data["weights"] = [[float(f"{number:.6g}") for number in vector] for vector in self.weights]
        path.write_text(json.dumps(data, ensure_ascii=False) + "\n", encoding="utf-8")

    def check(self, criterion: str, model: Readable) -> None:
        """Check that the probe belongs to a criterion and a model.

        Raises:
            SettingsError: it belongs to another one.
        """
        if self.criterion != criterion:
            raise SettingsError(
                f"this probe reads '{self.criterion}', not '{criterion}': name the probe of '{criterion}'"
            )
        if self.model != model.fingerprint:
            raise SettingsError(
                f"the probe for '{criterion}' was fitted to another model ({self.model}), not to "
                f"{model.name} ({model.fingerprint}): {REMEDY}"
            )
        if max(self.layers) >= model.depth or len(self.weights[0]) != model.width:
            raise SettingsError(
                f"the probe for '{criterion}' reads layer {max(self.layers)} of width "
                f"{len(self.weights[0])}; {model.name} has {model.depth} layers of width {model.width}: "
                f"{REMEDY}"
            )

    @property
    def reading(self) -> Reading:
        """Return what the model must read for this probe."""
        weights: NDArray[np.float32] = np.array(self.weights, np.float32)
        digest = hashlib.sha256(repr(self.layers).encode() + weights.tobytes()).hexdigest()[:16]
        return Reading(digest, self.layers, weights)

    def log_odds(self, values: Sequence[float]) -> float:
        """Return the log-odds (nats) that the answer meets the criterion.

        Args:
            values: what was read from each of the answer's tokens so far, at least one.
        """
        last = values if self.window is None else values[-self.window :]
        return math.fsum(last) / len(last) + self.bias


REMEDY = "fit one with rain doctor MODEL --criterion NAME --fit DIR"

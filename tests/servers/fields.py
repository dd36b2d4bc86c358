"""Read the fields of a request as a scripted server does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]


def strings(value: str | list[str] | None) -> Sequence[str]:
    return [value] if isinstance(value, str) else value or ()


def number(body: Json, field: str, default: float) -> float:
    value = body.get(field)
    return default if value is None or not math.isfinite(value) else float(value)


def whole(body: Json, field: str, default: int) -> int:
    value = body.get(field)
    return default if value is None else int(value)

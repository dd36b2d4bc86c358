"""Append-only files of JSON objects, one a line, which survive a killed process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from rain_llm.bounds import LINES_BYTES
from rain_llm.errors import SettingsError


class JsonLines:
    """A file of JSON objects that is only appended to; each line is on the disk when ``append`` returns.

    A killed process leaves at most one incomplete line, which is removed when the file is opened again. The
    file is locked until it is closed, or until the process ends in any way.

    Args:
        path: the file; created if it does not exist.

    Attributes:
        lines: the objects, each of which has an "id".

    Raises:
        SettingsError: it cannot be opened, another process writes to it, or it holds something else.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise SettingsError(f"cannot write {path}: {error.strerror}") from error
        try:
            lock(self._file, path)
            self.lines, self._starts, end = _parsed(self._file, path)
            self._file.truncate(end)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, *data: Mapping[str, Any]) -> None:
        """Append objects in one write."""
        encoded = [json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in data]
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(b"".join(encoded))
        self._flush()
        for line, text in zip(data, encoded, strict=True):
            self.lines.append(dict(line))
            self._starts.append(start)
            start += len(text)

    def drop(self) -> None:
        """Remove the last line."""
        self.lines.pop()
        self._file.truncate(self._starts.pop())
        self._flush()

    def _flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


def _parsed(file: BinaryIO, path: Path) -> tuple[list[dict[str, Any]], list[int], int]:
    """Return the objects, the position of each, and the end of the last complete line."""
    file.seek(0)
    content = file.read(LINES_BYTES + 1)
    if len(content) > LINES_BYTES:
        raise SettingsError(f"{path} has more than {LINES_BYTES:,} bytes: move it away")
    *complete, rest = content.split(b"\n")
    lines: list[dict[str, Any]] = []
    starts, end = [], 0
    for number, line in enumerate(complete, 1):
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict) or not isinstance(data.get("id"), str):
            raise SettingsError(
                f'line {number} of {path} is not a JSON object with an "id": correct it, or move it away'
            )
        lines.append(data)
        starts.append(end)
        end += len(line) + 1
    if not rest.startswith(b'{"id": '[: len(rest)]):
        raise SettingsError(f"{path} ends in something else than a line that was cut off: move it away")
    return lines, starts, end


def lock(file: BinaryIO, path: Path) -> None:
    """Lock a file until it is closed, if the system has ``flock``.

    Raises:
        SettingsError: another process has locked it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise SettingsError(
            f"another run is writing to {path}: wait for it, or choose another --out"
        ) from error

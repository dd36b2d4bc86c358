"""A real server in a process group of its own: started, waited for, killed, and always cleaned up."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Self

import httpx


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server of any command line on the loopback interface, which runs while its context is open.

    Args:
        command: the command line; each ``{port}`` in it becomes the port.
        environment: variables set beside those of this process.
        health: the path that answers 200 once requests may come.
        start_s: seconds that the start may take.
        stop_s: seconds after SIGTERM until it is killed.
        port: where it listens; None takes a free port.

    Attributes:
        url: its address, without a slash at the end.
    """

    _log: IO[bytes]

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        health: str = "/health",
        start_s: float = 30.0,
        stop_s: float = 2.0,
        port: int | None = None,
    ) -> None:
        port = free_port() if port is None else port
        self.url = f"http://127.0.0.1:{port}"
        self._command = [word.replace("{port}", str(port)) for word in command]
        self._environment = {**os.environ, **(environment or {})}
        self._health = health
        self._start_s = start_s
        self._stop_s = stop_s
        self._open = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process, or the last one that ran."""
        assert self._process is not None, "the server was never started"
        return self._process

    @property
    def log(self) -> str:
        """The last 4000 bytes that it wrote to standard output and standard error."""
        end = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), 4000, max(0, end - 4000)).decode(errors="replace")

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: it ended or was not ready in time; the message ends with its log.
        """
        assert self._process is None or self._process.poll() is not None, "the server is running"
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # A test run that is itself killed closes this pipe, and the group goes with it.
        self._guard = subprocess.Popen(
            ["sh", "-c", f"read -r _; kill -KILL -{self._process.pid}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._start_s
        with httpx.Client(base_url=self.url, timeout=2.0, trust_env=False) as client:
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    raise RuntimeError(self._failure(f"ended with {self.process.returncode}"))
                with contextlib.suppress(httpx.TransportError):  # it does not listen yet
                    if client.get(self._health).status_code == httpx.codes.OK:
                        return
                time.sleep(0.05)
        raise RuntimeError(self._failure(f"was not ready within {self._start_s:g} s"))

    def _failure(self, what: str) -> str:
        return f"{' '.join(self._command)} {what}:\n{self.log}"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole process group; a group that is gone is no error."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """Kill the whole group at once (SIGKILL), and wait until its leader is gone."""
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None
            self.signal(signal.SIGKILL)
            self.process.wait()

    def terminate(self) -> None:
        """Ask the group to end (SIGTERM); kill what is left of it when its time is up."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(self._stop_s)
        self.kill()  # also workers that outlived their leader

    def restart(self) -> None:
        """Start it again on the same port, after killing what is left of it."""
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opening:
            self._log = opening.enter_context(tempfile.TemporaryFile())
            self.start()
            opening.callback(self.terminate)
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

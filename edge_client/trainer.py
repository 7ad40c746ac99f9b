"""The parent's side of the trainer child: start it, give it one task at a time, kill it.

What the child does with a task is trainer_child.py's; only bytes and messages pass here (I8).
"""

import contextlib
import ctypes
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, cast

import msgspec

from edge_client.config import TrainerSection
from edge_client.trainer_protocol import Answer, Progress, Task, receive_answer, send

COMMAND = (sys.executable, "-m", "edge_client.trainer_child")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Said:
    """The child answered the task submitted under `token`."""

    token: object
    answer: Answer


@dataclass(frozen=True, slots=True)
class Gone:
    """The child ended before it finished the task submitted under `token`."""

    token: object
    reason: str


class Trainer:
    """At most one child, started with the first task and stopped when it has been idle.

    Start it from a thread that lives as long as the program: the child dies with the thread that made it.
    """

    def __init__(
        self,
        settings: TrainerSection,
        put: Callable[[Said | Gone], None],
        command: tuple[str, ...] | None = None,
    ) -> None:
        self._settings = settings
        self._put = put
        self._command = command or COMMAND
        self._child: subprocess.Popen[bytes] | None = None
        self._tasks: queue.SimpleQueue[tuple[object, Task] | None] = queue.SimpleQueue()
        self._token: object = None
        self._idle_at: float | None = None

    @property
    def busy(self) -> bool:
        """True while a task has no result."""
        return self._token is not None

    @property
    def wake(self) -> float | None:
        """When `tick` is due."""
        return self._idle_at

    def submit(self, task: Task) -> object:
        """Start a task; its answers carry the returned token. Not while busy."""
        assert self._token is None
        if self._child is None or self._child.poll() is not None:
            self._spawn()
        self._token, self._idle_at = object(), None
        self._tasks.put((self._token, task))
        return self._token

    def take(self, word: Said | Gone, now: float) -> bool:
        """Note an answer; False when it belongs to a task that was given up."""
        if word.token is not self._token:
            return False
        if isinstance(word, Gone) or not isinstance(word.answer, Progress):
            self._token = None
            self._idle_at = now + self._settings.idle_s
        return True

    def tick(self, now: float) -> None:
        """Stop a child that has been idle for long: it holds memory that the device needs."""
        if self._idle_at is not None and now >= self._idle_at:
            self.kill()

    def kill(self) -> None:
        """End the child at once; nothing more is heard of its task."""
        self._token = self._idle_at = None
        child, self._child = self._child, None
        if child is None:
            return
        self._tasks.put(None)
        child.kill()
        child.wait()

    def _spawn(self) -> None:
        prctl = ctypes.CDLL(None, use_errno=True).prctl  # resolved here: nothing is imported after the fork
        limit = self._settings.memory_max_mb * 1024 * 1024
        nice = self._settings.nice
        parent = os.getpid()

        def prepare() -> None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:  # the parent died before it was asked for
                os._exit(1)
            os.nice(nice)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

        child = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the daemon, which decides
            preexec_fn=prepare,  # noqa: PLW1509 - calls nothing that another thread could hold a lock of
        )
        tasks: queue.SimpleQueue[tuple[object, Task] | None] = queue.SimpleQueue()
        self._child, self._tasks = child, tasks
        threading.Thread(target=_serve, args=(child, tasks, self._put), daemon=True).start()


def _serve(
    child: subprocess.Popen[bytes],
    tasks: "queue.SimpleQueue[tuple[object, Task] | None]",
    put: Callable[[Said | Gone], None],
) -> None:
    """Send tasks and pass answers on, so that a slow child never holds the daemon up."""
    stdin, stdout = cast("BinaryIO", child.stdin), cast("BinaryIO", child.stdout)
    with stdout, contextlib.suppress(BrokenPipeError), stdin:  # unread bytes of a dead child
        while (item := tasks.get()) is not None:
            token, task = item
            try:
                send(stdin, task)
                answer = receive_answer(stdout)
                while isinstance(answer, Progress):
                    put(Said(token, answer))
                    answer = receive_answer(stdout)
            except (OSError, ValueError, msgspec.DecodeError) as error:
                child.kill()
                put(Gone(token, f"trainer: {error}; {_ending(child)}"))
                return
            if answer is None:
                put(Gone(token, _ending(child)))
                return
            put(Said(token, answer))


def _ending(child: subprocess.Popen[bytes]) -> str:
    code = child.wait()
    if code >= 0:
        return f"trainer ended with code {code}"
    name = signal.Signals(-code).name
    hint = " (killed, perhaps for memory)" if name == "SIGKILL" else ""
    return f"trainer ended by {name}{hint}"

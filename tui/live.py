"""The Prompt view's model: a child process that is asked without waiting for it.

`Live` starts `python -m glulens.interp.live` and speaks JSON lines with it, in a thread of its own.
Every question is a `concurrent.futures.Future` (`asyncio.wrap_future` makes it awaitable). A child
that dies, stays silent for too long, or writes what is no answer is killed, and every question then
fails with a `ModelError` of one line; whoever wants to go on makes a new `Live`. Nothing that comes
from the child is run or trusted; its texts are raw and have to be made safe where they are shown.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import DataError, GlulensError, ModelError, visible

LOADING, ANSWERING = 900.0, 120.0
"""Seconds of silence after which the child is given up while it loads, and while it answers."""
LONGEST = 64_000_000
"""Bytes in a line of the child; the largest answers take a tenth."""

Stage = Literal["loading", "idle", "busy", "ended"]


@dataclass(frozen=True)
class Question:
    """What to ask; neurons go by their rows in the run's table.

    Attributes:
        text: at most 1,024 tokens.
        rows: neurons whose activations are wanted, at most 256.
        layer: whose neurons are ranked at every token; None for all.
        top: how many of these are listed, at most 64.
        silence: neurons to silence.
        values: what replaces them, position 0 left alone (their means: `tables.sample_means`); None
            is 0 at every position, as in pruning.
    """

    text: str
    rows: Sequence[int] = ()
    layer: int | None = None
    top: int = 8
    silence: Sequence[int] = ()
    values: Sequence[float] | None = None


@dataclass(frozen=True)
class About:
    """The model: its name and family, neurons, layers, and tokens that a text may have."""

    name: str
    family: str
    neurons: int
    layers: int
    context: int


@dataclass(frozen=True)
class Next:
    """A next token and its probability."""

    token: int
    text: str
    probability: float


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model did with a text of T tokens.

    Attributes:
        ids, tokens: of the text; tokens as raw strings.
        activations: of the rows asked for, float32 [T, rows]; NaN where an expert's neuron did not
            see the token.
        top_rows: the neurons of the largest |activation|, int32 [T, top], the largest first; -1
            where there are fewer.
        top_values: their activations, float32 [T, top].
        layers: root mean square of each layer's activations, float32 [T, layers].
        next: the ten likeliest next tokens, the likeliest first.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    activations: np.ndarray
    top_rows: np.ndarray
    top_values: np.ndarray
    layers: np.ndarray
    next: tuple[Next, ...]


class Live:
    """A model in a child process.

    Args:
        model: a name for `open_model`.
        neurons: how many the run has; a model with another number is refused.
        dtype, device: for `open_model`.
        command: what to start instead.
        loading, answering: seconds of silence that are borne.

    Attributes:
        ready: done when the model is loaded.
        progress: what the child last said of its loading: what, done, total.
    """

    def __init__(
        self,
        model: str,
        *,
        neurons: int | None = None,
        dtype: str = "auto",
        device: str = "auto",
        command: Sequence[str] | None = None,
        loading: float = LOADING,
        answering: float = ANSWERING,
    ) -> None:
        # -P: a folder that one happens to stand in lends no modules.
        own = [sys.executable, "-P", "-m", "glulens.interp.live"]
        options = ["--dtype", dtype, "--device", device, "--", model]
        self._command = list(command) if command is not None else [*own, *options]
        self._model, self._neurons = model, neurons
        self._patience = loading, answering
        self._lock = threading.Lock()
        self._asked: queue.SimpleQueue[tuple[Question, Future[Answer]] | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._over: str | None = None
        self._busy = False
        self._numbers = itertools.count()
        self.ready: Future[About] = Future()
        self.ready.set_running_or_notify_cancel()  # nobody takes it back
        self.progress: tuple[str, int, int] | None = None
        threading.Thread(target=self._work, name=f"live {model}", daemon=True).start()

    @property
    def stage(self) -> Stage:
        """What the child is doing."""
        process = self._process
        if self._over is not None or (process is not None and process.poll() is not None):
            return "ended"
        if not self.ready.done():
            return "loading"
        return "busy" if self._busy else "idle"

    def ask(self, question: Question) -> Future[Answer]:
        """Ask, without waiting; questions are answered in turn. One that is not yet being answered
        can be taken back by the future's `cancel`.

        The future fails with DataError where the question or its text is refused, and with
        ModelError where the child has ended.
        """
        future: Future[Answer] = Future()
        with self._lock:
            if self._over is None:
                self._asked.put((question, future))
            else:
                future.set_exception(ModelError(self._over))
        return future

    def close(self) -> None:
        """End the child, whatever it is doing: every question that is open fails."""
        self._end("the model's process was stopped")
        self._asked.put(None)

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *about: object) -> None:
        self.close()

    def _end(self, why: str) -> None:
        """The first reason stays."""
        with self._lock:
            self._over = self._over or why
            if self._process is not None and self._process.poll() is None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)  # it leads a group of its own

    def _work(self) -> None:
        current: Future[Any] = self.ready
        with tempfile.TemporaryFile() as errors:
            try:
                lines = self._start(errors)
                self.ready.set_result(self._load(lines))
                while (asked := self._asked.get()) is not None:
                    question, current = asked
                    if not current.set_running_or_notify_cancel():
                        continue
                    self._busy = True
                    try:
                        answer = self._exchange(lines, question)
                    except DataError as error:
                        self._busy = False
                        current.set_exception(error)
                    else:
                        self._busy = False
                        current.set_result(answer)
            except Exception as error:  # the thread's last word, whatever it is
                self._end(self._reason(error, errors))
            finally:
                self._end("the model's process was stopped")
                if self._process is not None:
                    self._process.communicate()  # closes the pipes
                self._fail(current)

    def _fail(self, current: Future[Any]) -> None:
        """Every future that is open fails."""
        open_ones = [self.ready, current]
        with suppress(queue.Empty):
            while True:
                asked = self._asked.get_nowait()
                open_ones += [] if asked is None else [asked[1]]
        for future in open_ones:
            with suppress(InvalidStateError):  # it is done, or was taken back
                future.set_exception(ModelError(self._over))

    def _start(self, errors: Any) -> _Lines:
        with self._lock:
            if self._over is not None:
                raise _EndedError
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                start_new_session=True,  # the terminal's signals are not for it
            )
        return _Lines(self._process)

    def _load(self, lines: _Lines) -> About:
        while True:
            said = lines.read(self._patience[0])
            if "progress" in said:
                what, done, total = said["progress"]
                self.progress = visible(str(what)), int(done), int(total)
                continue
            if "error" in said:
                raise ModelError(_line(said["error"]))
            found = said["ready"]
            about = About(
                str(found["name"]),
                str(found["family"]),
                *(_whole(found[key]) for key in ("neurons", "layers", "context")),
            )
            if self._neurons not in (None, about.neurons):
                raise ModelError(
                    f"{visible(self._model)} has {about.neurons:,} neurons, the run "
                    f"{self._neurons:,}: it is not the run's model"
                )
            return about

    def _exchange(self, lines: _Lines, question: Question) -> Answer:
        number = next(self._numbers)
        lines.write(_line_of(question, number), self._patience[1])
        said = lines.read(self._patience[1])
        if said.get("id") != number:
            raise ValueError("an answer to another question")
        if "error" in said:
            raise DataError(_line(said["error"]))
        return _answer(said["answer"], question, self.ready.result())

    def _reason(self, error: Exception, errors: Any) -> str:
        """Why it is over, in one line."""
        name = visible(self._model)
        if isinstance(error, GlulensError):
            return str(error)
        if isinstance(error, TimeoutError):
            return f"the process of {name} was silent for {error.args[0]:.0f} s and was stopped"
        if isinstance(error, _EndedError):
            how = _how_it_ended(self._process)
            errors.seek(0, os.SEEK_END)
            errors.seek(max(0, errors.tell() - 2000))
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
            return f"the process of {name} ended ({how})" + (f": {_line(last[0])}" if last else "")
        if isinstance(error, OSError):
            return f"the process of {name} cannot be run ({error.strerror or error})"
        return f"the process of {name} wrote what is no answer and was stopped ({_line(error)})"


class _EndedError(Exception):
    """The child is gone, or closed its ends."""


class _Lines:
    """JSON lines to and from a child, never waited for longer than borne."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(self._in, False)
        self._room, self._news = select.poll(), select.poll()
        self._room.register(self._in, select.POLLOUT)
        self._news.register(self._out, select.POLLIN)
        self._rest = bytearray()

    def write(self, line: bytes, patience: float) -> None:
        """Raises _EndedError, TimeoutError."""
        left = memoryview(line)
        while left:
            if not self._room.poll(1000 * patience):
                raise TimeoutError(patience)
            try:
                left = left[os.write(self._in, left) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise _EndedError from error

    def read(self, patience: float) -> dict[str, Any]:
        """The next line. Raises _EndedError, TimeoutError; ValueError if it is no JSON object."""
        until = time.monotonic() + patience
        looked = 0
        while (end := self._rest.find(b"\n", looked)) < 0:
            looked = len(self._rest)
            if looked > LONGEST:
                raise ValueError("a line without an end")
            left = until - time.monotonic()
            if left <= 0 or not self._news.poll(1000 * left):
                raise TimeoutError(patience)
            more = os.read(self._out, 1 << 20)
            if not more:
                raise _EndedError
            self._rest += more
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        found = json.loads(line)
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        return found


def _how_it_ended(process: subprocess.Popen[bytes] | None) -> str:
    try:
        code = 0 if process is None else process.wait(2)
    except subprocess.TimeoutExpired:
        return "it closed its output"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _line_of(question: Question, number: int) -> bytes:
    try:
        fields = {
            "id": number,
            "text": question.text,
            "rows": list(map(int, question.rows)),
            "layer": question.layer,
            "top": question.top,
            "silence": list(map(int, question.silence)),
            "values": None if question.values is None else list(map(float, question.values)),
        }
        return json.dumps(fields).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise DataError(f"this cannot be asked ({_line(error)})") from error


def _answer(said: Any, question: Question, about: About) -> Answer:
    """An answer, if it is one. Raises KeyError, TypeError, ValueError, OverflowError otherwise."""
    ids = tuple(_whole(token) for token in said["ids"])
    size = len(ids)
    tokens = tuple(_text(token) for token in said["tokens"])
    if not 0 < size <= about.context or len(tokens) != size:
        raise ValueError("tokens of another number")
    top = _table(said["top"], (size, question.top, 2))
    rows = np.nan_to_num(top[..., 0], nan=-2)
    if ((rows < -1) | (rows >= about.neurons) | (rows % 1 != 0)).any():
        raise ValueError("a neuron that is none")
    return Answer(
        ids,
        tokens,
        _table(said["activations"], (size, len(question.rows))).astype(np.float32),
        rows.astype(np.int32),
        top[..., 1].astype(np.float32),
        _table(said["layers"], (size, about.layers)).astype(np.float32),
        tuple(
            Next(_whole(token), _text(text), float("nan") if chance is None else float(chance))
            for token, text, chance in said["next"]
        ),
    )


def _table(given: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of this shape, None as NaN."""
    found = np.array(given, np.float64)
    if found.shape != shape and (found.size or 0 not in shape):
        raise ValueError(f"numbers of the shape {found.shape}, not {shape}")
    return found.reshape(shape)


def _whole(given: Any) -> int:
    if type(given) is not int or given < 0:
        raise ValueError("no whole number")
    return given


def _text(given: Any) -> str:
    if not isinstance(given, str):
        raise ValueError("no text")
    return given


def _line(given: object) -> str:
    return visible(" ".join(str(given).split()) or type(given).__name__)[:300]

"""Training independent stages at the same time, each in a process of its own.

Processes are forked from a server that has imported torch once. A process reports as JSON messages through a pipe.
When the pipe closes because the parent is gone, the process stops as after SIGTERM: after its current step, with a
checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bevkd_common.engine.interrupt import StopRequest
from bevkd_common.errors import TrainingStoppedError, UserError
from bevkd_common.experiment.capacity import Capacity, available_memory, fits, free_device, resident_memory
from bevkd_common.experiment.graph import Job, ready
from bevkd_common.progress import Bar, Reporter

POLL_S = 0.2
"""Longest time in seconds between two looks at signals and memory."""

END_S = 30.0
"""Seconds that a process may take to end after its last message."""

UPDATE_S = 0.2
"""Shortest time in seconds between two updates of one bar."""

Work = Callable[[Job, Reporter], None]
"""Trains and scores one stage; a function of a module, so that another process can import it."""


def run_side_by_side(
    jobs: Mapping[str, Job],
    work: Work,
    capacity: Capacity,
    reporter: Reporter,
    finished: Callable[[Job], None] = lambda job: None,
) -> None:
    """Do all jobs, each after its parents, as many at the same time as the machine allows.

    Args:
        jobs: By key, parents first.
        work: What a process does with one job.
        capacity: Of the machine.
        reporter: Shows a bar for each stage that runs.
        finished: Called in this process after each job.

    Raises:
        UserError: If a job fails; the others are stopped with their checkpoints kept.
        TrainingStoppedError: If SIGINT or SIGTERM arrives; running stages are stopped with their checkpoints kept.
    """
    start_server(capacity)
    with StopRequest() as stop:
        _Scheduler(jobs, work, capacity, reporter, finished, stop).run()


class _Scheduler:
    """The processes of one call of `run_side_by_side`."""

    def __init__(
        self,
        jobs: Mapping[str, Job],
        work: Work,
        capacity: Capacity,
        reporter: Reporter,
        finished: Callable[[Job], None],
        stop: StopRequest,
    ) -> None:
        self.jobs, self.work, self.capacity = jobs, work, capacity
        self.reporter, self.finished, self.stop = reporter, finished, stop
        self.running: dict[str, _Running] = {}
        self.done: set[str] = set()
        self.failure: str | None = None
        self.stopped: list[str] = []

    def run(self) -> None:
        terminated = False
        try:
            while self.running or (not self._ending and len(self.done) < len(self.jobs)):
                if self._ending and not terminated:
                    terminated = True
                    for running in self.running.values():
                        running.process.terminate()
                if not self._ending:
                    self._start()
                self._listen()
        finally:
            for running in self.running.values():
                running.process.kill()
                running.end()
        if self.failure is not None:
            raise UserError(self.failure)
        if self.stop.signal is not None and len(self.done) < len(self.jobs):
            said = "; ".join(self.stopped) or "stopped between two stages; the same command goes on"
            raise TrainingStoppedError(said, self.stop.signal)

    @property
    def _ending(self) -> bool:
        return self.failure is not None or self.stop.signal is not None

    def _start(self) -> None:
        for job in ready(self.jobs, self.done, self.running):
            held = [(one.job.memory, resident_memory(one.pid)) for one in self.running.values()]
            if len(self.running) >= self.capacity.jobs or not fits(job.memory, available_memory(), held):
                return
            device = free_device(self.capacity.devices, [one.device for one in self.running.values() if one.device])
            self.running[job.key] = _Running.start(job, self.work, self.capacity.threads, device, self.reporter)

    def _listen(self) -> None:
        sources = {one.connection: one for one in self.running.values()}
        for source in wait(list(sources), timeout=POLL_S):
            assert isinstance(source, Connection)
            running = sources[source]
            try:
                running.take(json.loads(source.recv_bytes()))
            except EOFError:
                self._ended(running)

    def _ended(self, running: _Running) -> None:
        del self.running[running.job.key]
        code = running.end()
        outcome, job = running.outcome, running.job
        if "done" in outcome:
            self.done.add(job.key)
            self.finished(job)
        elif "stopped" in outcome or (self._ending and code in (-signal.SIGTERM, -signal.SIGINT)):
            if "stopped" in outcome:
                self.stopped.append(outcome["stopped"])
            if not self._ending:
                # Somebody stopped this process alone.
                self.stop.signal = outcome["signal"]
        else:
            self.failure = self.failure or f"{job.title}: {_reason(outcome, code)}"


def _reason(outcome: Mapping[str, Any], code: int | None) -> str:
    if "error" in outcome:
        return str(outcome["error"])
    if code == -signal.SIGKILL:
        return "the system killed its process, as it does when memory runs out; lower --jobs, or its `micro_batch`"
    return f"its process ended with exit code {code}; see its messages above"


@dataclass
class _Running:
    """One process, with the bars that it shows."""

    job: Job
    device: str | None
    process: BaseProcess
    connection: Connection
    reporter: Reporter
    bars: dict[int, tuple[ExitStack, Bar]] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(cls, job: Job, work: Work, threads: int | None, device: str | None, reporter: Reporter) -> _Running:
        context = get_context("forkserver")
        ours, theirs = context.Pipe()
        arguments = (theirs, job, work, threads, device, Path.cwd())
        process = context.Process(target=_work, args=arguments, name=job.title)
        process.start()
        theirs.close()
        return cls(job, device, process, ours, reporter)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def take(self, message: Mapping[str, Any]) -> None:
        """Act on one message of the process."""
        match message:
            case {"say": text}:
                self.reporter.say(text)
            case {"open": number, "title": title, "total": total}:
                stack = ExitStack()
                self.bars[number] = (stack, stack.enter_context(self.reporter.bar(title, total)))
            case {"bar": number, "done": done, "total": total, "note": note}:
                self.bars[number][1].update(done, total, note)
            case {"close": number}:
                self.bars.pop(number)[0].close()
            case _:
                self.outcome = dict(message)

    def end(self) -> int | None:
        """Close the bars and wait for the process, whose pipe is closed; returns its exit code."""
        for stack, _ in self.bars.values():
            stack.close()
        self.bars.clear()
        self.process.join(timeout=END_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()
        return self.process.exitcode


def _work(
    connection: Connection, job: Job, work: Work, threads: int | None, device: str | None, folder: Path
) -> None:
    """The body of a process, in the working directory of its parent."""
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    os.chdir(folder)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    send = _sender(connection)
    try:
        work(job, PipeReporter(send))
        send({"done": job.key})
    except UserError as error:
        send({"error": str(error)})
    except TrainingStoppedError as stopped:
        send({"stopped": str(stopped), "signal": stopped.signal or int(signal.SIGTERM)})
    except KeyboardInterrupt:
        send({"stopped": f"{job.title}: stopped; the same command goes on", "signal": int(signal.SIGINT)})


def _end_with_parent(connection: Connection) -> None:
    """Wait for the end of the parent, then stop this process as SIGTERM does."""
    with suppress(EOFError, OSError):
        connection.recv_bytes()
    os.kill(os.getpid(), signal.SIGTERM)


def _sender(connection: Connection) -> Callable[[Mapping[str, Any]], None]:
    def send(message: Mapping[str, Any]) -> None:
        # A parent that is gone reads nothing; `_end_with_parent` stops this process.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.send_bytes(json.dumps(message).encode())

    return send


class PipeReporter:
    """Reports to another process as JSON messages.

    Args:
        send: Sends one message.
    """

    def __init__(self, send: Callable[[Mapping[str, Any]], None]) -> None:
        self._send = send
        self._bars = 0

    def say(self, message: str) -> None:
        """Print one line in the other process."""
        self._send({"say": message})

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        """Show a bar in the other process; the last update always arrives."""
        self._bars += 1
        bar = _PipeBar(self._send, self._bars)
        self._send({"open": self._bars, "title": title, "total": total})
        try:
            yield bar
        finally:
            bar.flush()
            self._send({"close": bar.number})


class _PipeBar:
    def __init__(self, send: Callable[[Mapping[str, Any]], None], number: int) -> None:
        self.number = number
        self._send, self._sent = send, 0.0
        self._waiting: dict[str, Any] | None = None

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        self._waiting = {"bar": self.number, "done": done, "total": total, "note": note}
        if time.monotonic() - self._sent >= UPDATE_S:
            self.flush()

    def flush(self) -> None:
        if self._waiting is not None:
            self._send(self._waiting)
            self._waiting, self._sent = None, time.monotonic()


def start_server(capacity: Capacity, modules: Iterable[str] = ()) -> None:
    """Start the process from which all others are forked, unless it runs; it imports while this process goes on.

    Args:
        capacity: Of the machine; the server reads the number of threads when it imports torch.
        modules: What every forked process would import otherwise, torchvision's four seconds among it.
    """
    get_context("forkserver").set_forkserver_preload(["bevkd_common.experiment.run", *modules])
    changes = {} if capacity.threads is None else {"OMP_NUM_THREADS": str(capacity.threads)}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

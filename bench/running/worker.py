"""A process that does tasks for the runner: one JSON line in, JSON lines out.

Started as `python -P -m bench.running.worker`. The first line on standard input is a session;
then a line a task, {"key", "epochs"}. It answers with lines {"event": ...}: `ready`, `advance`,
`note`, `done`, `failed` and `stopped`. It ends when standard input closes, also in the middle of a
task, so that it never outlives the runner.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from bench.crafting import Monitor
from bench.device import configure
from bench.errors import NOT_RUN, NotRunError, Stopped
from bench.running.plan import Job
from bench.running.session import Session
from bench.running.work import Workshop
from bench.store import key_of

TELL_EVERY_SECONDS = 0.5


class Relay(Monitor):
    """Passes work done on to the runner, now and then, and keeps the time limit.

    Args:
        session: knows the limit.
        tell: takes operations.
        note: takes lines.
    """

    def __init__(
        self, session: Session, tell: Callable[[float], None], note: Callable[[str], None]
    ) -> None:
        super().__init__()
        self._session, self._tell, self._note = session, tell, note
        self._flop, self._last = 0.0, time.monotonic()

    def advance(self, flop: float) -> None:
        """Add up, and tell twice a second."""
        self._flop += flop
        if time.monotonic() - self._last > TELL_EVERY_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Tell what has not been told."""
        self._tell(self._flop)
        self._flop, self._last = 0.0, time.monotonic()

    def note(self, text: str) -> None:
        """Pass it on."""
        self._note(f"note: {text}")

    def stopping(self) -> bool:
        """Whether the time limit has been reached."""
        return self._session.time_is_up()


def attempt(workshop: Workshop, job: Job, epochs: Sequence[int]) -> dict[str, Any]:
    """Do a job; whatever goes wrong inside it becomes an event, never an exception.

    Returns:
        {"event": "done", "outcome"}, {"event": "stopped"} or {"event": "failed", "error"}.
    """
    try:
        return {"event": "done", "outcome": workshop.execute(job, epochs)}
    except Stopped:
        return {"event": "stopped"}
    except NotRunError as error:  # nothing is wrong with the code: its place says nothing
        return {"event": "failed", "error": NOT_RUN + " ".join(str(error).split())}
    except (Exception, SystemExit):  # noqa: BLE001 - the one place where anything may go wrong
        return {"event": "failed", "error": traceback.format_exc()}


def main() -> None:
    """Serve until standard input closes."""
    # Libraries may print; the protocol keeps the real standard output to itself.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()

    def say(event: dict[str, Any]) -> None:
        answers.write(json.dumps(event) + "\n")

    session = Session.from_json(lines.get())
    try:
        opened = session.open()
        device = opened.expansion.device
        configure(opened.expansion.precision, session.threads, device, session.memory)
        relay = Relay(
            session,
            lambda flop: say({"event": "advance", "flop": flop}),
            lambda line: say({"event": "note", "line": line}),
        )
        workshop = Workshop(opened, session, device, relay)
        jobs = opened.jobs()
        said = {"event": "ready", "jobs": key_of(sorted(jobs))}
    except Exception:  # noqa: BLE001 - the runner shows it
        say({"event": "broken", "error": traceback.format_exc()})
        return
    say(said)
    while True:
        order = json.loads(lines.get())
        event = attempt(workshop, jobs[order["key"]], order["epochs"])
        relay.flush()
        say(event)


def _listen(lines: queue.Queue[str]) -> None:
    for line in sys.stdin:
        lines.put(line.strip())
    os._exit(0)


if __name__ == "__main__":
    main()

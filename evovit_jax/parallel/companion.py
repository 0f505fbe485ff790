"""The companion of a process of a run: a small program that outlives it and says who died.

No process can report its own sudden death, and collectives abort the survivors (CPU, GPU) or let
them wait (TPU) before Python has a say. So each process of a run starts this program beside itself.
The companion of process 0, the hub, hears from all others; of the first process that dies, fails or
falls silent it tells all companions, which say so in one line and end the process beside them.

It is run by its path, needs the standard library only, and talks JSON, one object a line:
process -> companion (stdin): {"event": "done"} or {"event": "failed", "why": ..., "status": ...};
companion -> process (stdout): the hub's port at first; "end STATUS" when the process should go;
companion -> hub: "here" (once, with the run's token), "alive", "done", "failed", "died";
hub -> companion: "here" (who process 0 is), "alive", and "lost", the verdict.
"""

import abc
import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from typing import Any

Message = dict[str, Any]

# Seconds between signs of life, and of silence after which a host counts as lost.
BEAT, SILENCE = 5.0, 25.0
# Seconds in which what dies right after the first one is gathered, that a process has to go when
# it is told to, and that the hub waits for the others when its own process is done.
GATHER, LEAVE, LINGER = 1.0, 10.0, 60.0
# The status of a process that another one's death ended: try again (EX_TEMPFAIL of sysexits.h).
PEER_DIED = 75


class Line:
    """One end of a connection, or of the pipe from the process.

    Attributes:
      heard: when something last came, seconds.
      who: the member at the other end, once it has said so.
    """

    def __init__(self, file: Any):
        self.file = file
        self.heard = time.monotonic()
        self.who: Message | None = None
        self._rest = b""

    def read(self) -> list[Message] | None:
        """The objects that came; None once the other end is closed, or is none of ours."""
        try:
            data = os.read(self.file.fileno(), 65536)
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.heard = time.monotonic()
            return [json.loads(line) for line in lines] if data else None
        except (OSError, ValueError):
            return None

    def send(self, message: Message) -> None:
        """Best effort: that the other end is gone shows when it is read."""
        try:
            self.file.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.heard = float("-inf")


class Companion(abc.ABC):
    """What the hub and the others have in common: the process beside them.

    Attributes:
      me: {"process", "count", "host", "pid"} of the process.
      over: nothing is left to do.
    """

    def __init__(self, me: Message):
        self.me = me
        self.over = False
        self.done = False
        self.selector = selectors.DefaultSelector()
        self.parent = os.getppid()
        self.process: Line | None = self.watch(sys.stdin.buffer.raw)

    def watch(self, file: Any) -> Line:
        """Reads from `file` from now on."""
        line = Line(file)
        self.selector.register(file, selectors.EVENT_READ, line)
        return line

    def run(self) -> None:
        """Watches until it is over."""
        beaten = time.monotonic()
        while not self.over:
            for key, _ in self.selector.select(0.2):
                self.read(key.data)
            # The pipe may stay open in a child of the process after its death.
            if self.process and os.getppid() != self.parent:
                self.close(self.process)
            if time.monotonic() - beaten > BEAT:
                beaten = time.monotonic()
                self.beat()
            self.look()

    def read(self, line: Line) -> None:
        """Takes what came on a line."""
        messages = line.read()
        for message in messages or ():
            if line is self.process:
                self.done = self.done or message["event"] == "done"
                self.report({**message, **self.me})
            else:
                self.hear(line, message)
        if messages is None:
            self.close(line)

    def close(self, line: Line) -> None:
        """The other end of a line is gone."""
        self.selector.unregister(line.file)
        line.file.close()
        if line is not self.process:
            self.gone(line)
            return
        self.process = None
        if not self.done:
            self.report({"event": "died", **self.me})

    def obey(self, verdict: Message) -> None:
        """Ends the process after another's death, and says whose."""
        self.over = True
        if verdict["process"] != self.me["process"]:
            print(f"error: {verdict['line']}", file=sys.stderr, flush=True)
        if self.process is None or self.done:
            return
        with contextlib.suppress(OSError):
            os.write(1, f"end {verdict['status']}\n".encode())
        deadline = time.monotonic() + LEAVE
        while os.getppid() == self.parent:
            if time.monotonic() > deadline:
                os.kill(self.parent, signal.SIGKILL)
            time.sleep(0.05)

    @abc.abstractmethod
    def report(self, message: Message) -> None:
        """Passes on what became of the process."""

    @abc.abstractmethod
    def hear(self, line: Line, message: Message) -> None:
        """Takes a message of another companion."""

    @abc.abstractmethod
    def gone(self, line: Line) -> None:
        """Another companion has closed its line."""

    @abc.abstractmethod
    def beat(self) -> None:
        """Gives a sign of life."""

    @abc.abstractmethod
    def look(self) -> None:
        """Looks at the clock."""


class Member(Companion):
    """The companion of any process but the first."""

    def __init__(self, me: Message, hub: tuple[str, int], token: str):
        super().__init__(me)
        self.first = {"process": 0, "count": me["count"], "host": hub[0], "pid": "unknown"}
        self.hub = self.watch(socket.create_connection(hub, timeout=SILENCE))
        self.hub.send({"event": "here", "token": token, **me})

    def report(self, message: Message) -> None:
        self.hub.send(message)
        self.over = self.over or message["event"] == "done"

    def hear(self, line: Line, message: Message) -> None:
        if message["event"] == "here":
            self.first = {name: message[name] for name in self.first}
        elif message["event"] == "lost":
            self.obey(message)

    def gone(self, line: Line) -> None:
        if not self.over:
            self.obey(judge([{"event": "died", **self.first}]))

    def beat(self) -> None:
        self.hub.send({"event": "alive"})

    def look(self) -> None:
        if not self.over and time.monotonic() - self.hub.heard > SILENCE:
            self.obey(judge([{"event": "silent", **self.first}]))


class Hub(Companion):
    """The companion of process 0: hears of all, and gives the verdict."""

    def __init__(self, me: Message, token: str):
        super().__init__(me)
        self.token = token
        self.listener = socket.create_server(("", 0), backlog=me["count"])
        self.entry = self.watch(self.listener)
        self.lines: list[Line] = []
        self.waiting = set(range(me["count"]))  # processes that are not done
        self.lost: list[Message] = []
        self.since = 0.0  # when the first was lost, or the process beside it was done
        os.write(1, f"{self.listener.getsockname()[1]}\n".encode())

    def read(self, line: Line) -> None:
        if line is self.entry:
            connection, _ = self.listener.accept()
            connection.settimeout(SILENCE)
            self.lines.append(self.watch(connection))
        else:
            super().read(line)

    def report(self, message: Message) -> None:
        self.take(message)

    def hear(self, line: Line, message: Message) -> None:
        if message["event"] == "here" and message.pop("token", "") == self.token:
            line.who = message
            line.send({"event": "here", **self.me})
        elif message["event"] != "alive" and line.who:
            self.take(message)

    def take(self, message: Message) -> None:
        """Notes the end, good or bad, of a process; only its first one counts."""
        if message["process"] not in self.waiting:
            return
        self.waiting.discard(message["process"])
        if message["event"] != "done":
            self.lost.append(message)
        if len(self.lost) <= 1:
            self.since = time.monotonic()

    def gone(self, line: Line) -> None:
        self.lines.remove(line)
        if line.who:
            self.take({**line.who, "event": "died"})

    def beat(self) -> None:
        for line in self.lines:
            line.send({"event": "alive"})

    def look(self) -> None:
        now = time.monotonic()
        for line in self.lines:
            if line.who and now - line.heard > SILENCE:
                self.take({**line.who, "event": "silent"})
        waited = now - self.since
        if self.lost and (waited > GATHER or not self.waiting):
            verdict = judge(self.lost)
            for line in self.lines:
                if line.who:
                    line.send(verdict)
            self.obey(verdict)
        elif not self.waiting or (self.done and waited > LINGER):
            self.over = True


def judge(lost: list[Message]) -> Message:
    """What all are told: the line to print, the process that it is about, the status to end with.

    Args:
      lost: how the lost processes ended, the first one first.
    """
    first, *others = lost
    what = {
        "died": "died",
        "silent": f"has not answered for {SILENCE:.0f} s",
        "failed": f"failed: {first.get('why')}",
    }[first["event"]]
    line = f"{name(first)} {what}"
    if others:
        line += ", and after it " + ", ".join(map(name, others))
    # What the user has to mend is the same for all; anything else is worth another try.
    status = 2 if first.get("status") == 2 else PEER_DIED
    if status != 2:
        line += "; so this process ends. Started again, all go on from the last checkpoint"
    return {"event": "lost", "process": first["process"], "line": line, "status": status}


def name(member: Message) -> str:
    """A process, for people."""
    return (
        f"process {member['process']} of {member['count']} "
        f"(host {member['host']}, pid {member['pid']})"
    )


def main() -> None:
    """Starts as {"me": ..., "token": ..., "hub": [host, port] or null} says, the only argument."""
    # These are meant for the process; its end is what the companion waits for.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    given = json.loads(sys.argv[1])
    if given["hub"] is None:
        Hub(given["me"], given["token"]).run()
    else:
        Member(given["me"], tuple(given["hub"]), given["token"]).run()


if __name__ == "__main__":
    main()

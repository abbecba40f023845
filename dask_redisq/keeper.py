"""Ties a command to the life of the process that started it, also when that is SIGKILLed.

    owner ──(a socket: the line of life)── keeper ── command

The keeper is this file run by path, with nothing but the standard library: a small process with
one thread that waits for whichever ends first, its owner or its command. `Kept` is the owner's end.

The line is the keeper's stdin. Down it the keeper tells the command's pid, a line, and, when the
command's output was to be kept, the last of it at the end. Up it the owner may send in how many
seconds the command is to stop, a line too. Its end means that the owner is gone.

==================================  ====================================================
the owner closes the line, or dies  SIGTERM to the command, SIGKILL to its group 2 s later
the keeper gets SIGTERM             the same
the command ends                    the keeper exits with its code, or 128 + its signal
the keeper dies                     Linux: the kernel sends SIGKILL to the command.
                                    Elsewhere: the owner does, when it closes
==================================  ====================================================

A temporary directory given by ``--rmdir`` is removed in each case but the last, where the owner's
`Kept.close` removes it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence

if __name__ != "__main__":  # a keeper needs none of these, and they are most of its start
    import shutil
    import socket
    import subprocess

    import psutil

TYPE_CHECKING = False  # typing.TYPE_CHECKING without the 5 ms that importing typing takes
if TYPE_CHECKING:
    from typing import NoReturn, Self

__all__ = ["GRACE", "Kept"]

#: Seconds between SIGTERM and SIGKILL for a command whose owner is gone.
GRACE = 2.0
#: Seconds between two looks at who the keeper's parent is.
PATIENCE = 1.0
#: Bytes of the command's output that are kept. They fit into the buffer of any socket, so that
#: telling them never waits (8 kB on macOS).
TAIL = 4096
#: Whether the kernel ends the command when its keeper dies.
KERNEL_HELPS = sys.platform.startswith("linux")

#: None where no keeper runs: a client on Windows imports this module all the same.
_STOP = (signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else ()
_HANDLED = (*_STOP, signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else ()
_PR_SET_PDEATHSIG = 1


# ---------------------------------------------------------------------------- the keeper's end


class _Keeper:
    """One command, watched from its start to its end."""

    def __init__(self, command: Sequence[str], owner: int, *, keep_output: bool) -> None:
        self.owner = owner
        self.deadline = float("inf")  # when the command is killed; finite once it was told to stop
        self.tail = b""
        self.wake = _signals_as_bytes()
        self.child, self.output = _start(command, keep_output=keep_output)
        self.sources: dict[int, Callable[[], None]] = {0: self.on_line, self.wake: self.on_signal}
        if self.output >= 0:
            self.sources[self.output] = self.on_output
        _tell(b"%d\n" % self.child)

    def run(self) -> int:
        """Watch until the command ended; what the keeper is to exit with."""
        while True:
            left = max(0.01, self.deadline - time.monotonic())
            for source in select.select(list(self.sources), [], [], min(PATIENCE, left))[0]:
                self.sources[source]()
            # The end of the line is not enough. Owner forks F (a process pool, say); F holds the
            # line's other end too; owner is killed: no end of file while F lives. But the kernel
            # gives the keeper another parent at that moment.
            if os.getppid() != self.owner:
                self.stop(GRACE)
            if time.monotonic() >= self.deadline:
                _kill_group(self.child)
            pid, status = os.waitpid(self.child, os.WNOHANG)
            if pid:
                return self.ended(os.waitstatus_to_exitcode(status))

    def on_line(self) -> None:
        """Hear from the owner in how many seconds the command is to stop, or that it is gone."""
        try:
            said = os.read(0, 64).split()
        except OSError:  # ECONNRESET: the owner died with the pid in the line, unread
            said = []
        for seconds in said:
            self.stop(float(seconds))
        if not said:
            del self.sources[0]
            self.stop(GRACE)

    def on_signal(self) -> None:
        """Take note of a signal to stop; any other says that the command may have ended."""
        if any(number in _STOP for number in os.read(self.wake, 64)):
            self.stop(GRACE)

    def on_output(self) -> None:
        """Keep the last of what the command wrote."""
        written = os.read(self.output, 1 << 16)  # what a pipe holds at most
        self.tail = (self.tail + written)[-TAIL:]
        if not written:
            del self.sources[self.output]

    def stop(self, grace: float) -> None:
        """Tell the command to stop, once; a later call can only shorten its time."""
        if self.deadline == float("inf"):
            os.kill(self.child, signal.SIGTERM)  # not reaped yet, so the pid is still its own
        self.deadline = min(self.deadline, time.monotonic() + grace)

    def ended(self, code: int) -> int:
        """Clear away what the command left behind, and tell its last words."""
        # Whatever it started and left in its group would outlive both of us, and holds the output.
        _kill_group(self.child)
        if self.output in self.sources:
            os.set_blocking(self.output, False)
            with contextlib.suppress(BlockingIOError):
                self.on_output()
        _tell(self.tail)
        return code if code >= 0 else 128 - code


def _signals_as_bytes() -> int:
    """Turn the signals that concern us into bytes in a pipe, and give its reading end.

    A signal that comes between two looks at a flag and the wait after them would be slept
    through; a byte in a pipe that the wait watches is not.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _HANDLED:
        signal.signal(number, lambda *_: None)
    # Ctrl-C goes to the whole foreground group of a terminal. We are in a session of our own, so
    # it does not come here; whoever sends SIGINT by hand means the client, which tells us itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return reader


def _start(command: Sequence[str], *, keep_output: bool) -> tuple[int, int]:
    """Start the command; give its pid and the reading end of its output, -1 if not kept."""
    reader, writer = os.pipe() if keep_output else (-1, -1)
    die_with_us = _load_prctl()  # before the fork: the child only calls it
    keeper = os.getpid()
    # Story: the keeper forks, sees that its owner is gone, sends SIGTERM; the child, not yet
    # exec'ed, still has the keeper's handlers, which swallow it. So signals wait until they are
    # the child's own.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    pid = os.fork()
    if pid == 0:
        _become(command, writer, mask, keeper, die_with_us)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if writer >= 0:
        os.close(writer)
    return pid, reader


def _become(
    command: Sequence[str],
    output: int,
    mask: set[int | signal.Signals],
    keeper: int,
    die_with_us: Callable[[], None],
) -> NoReturn:
    """Be the command: what the child does between fork and exec. Does not return."""
    try:
        os.setsid()  # a group of its own, to be killed as one; and no terminal, no Ctrl-C
        # Python ignores SIGPIPE and SIGXFSZ, and we SIGINT; what is ignored stays so over exec.
        for number in (*_HANDLED, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        die_with_us()
        # Story: the keeper is killed after the fork and before the line above. The kernel was
        # asked too late and will never send anything; but our parent is another one then.
        if os.getppid() != keeper:
            os._exit(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the line of life is the keeper's alone
        if output >= 0:
            os.dup2(output, 1)
            os.dup2(output, 2)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execvp(command[0], list(command))  # noqa: S606 - a shell would be killed in its place
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)  # also for errors that we did not think of: never a second keeper


def _load_prctl() -> Callable[[], None]:
    """Give what makes the kernel SIGKILL the calling process when its parent dies.

    SIGKILL for every command: nobody is left who could follow a SIGTERM up. A worker's slots
    end by themselves when their supervisor is gone, and a private server keeps nothing.

    The signal is sent when the parent *thread* ends. That is why the owner cannot ask for it
    itself (it may start us from a thread of a pool), and why a keeper has one thread.
    """
    if not KERNEL_HELPS:
        return lambda: None
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _kill_group(leader: int) -> None:
    """Kill a command, which leads a group, and the group."""
    # Both: a child that was forked a moment ago may not lead its group yet.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(leader, signal.SIGKILL)


def _tell(words: bytes) -> None:
    """Say something to the owner, if it still listens."""
    with contextlib.suppress(OSError):
        os.write(0, words)


def _main(arguments: list[str]) -> int:
    """Run ``keeper.py [--owner PID] [--rmdir DIR] [--keep-output] -- COMMAND...``."""
    split = arguments.index("--")
    options, command = arguments[:split], arguments[split + 1 :]
    values = dict(itertools.pairwise(options))  # by hand: argparse takes 10 ms
    owner = int(values.get("--owner", os.getppid()))
    try:
        return _Keeper(command, owner, keep_output="--keep-output" in options).run()
    finally:
        if "--rmdir" in values:
            import shutil

            shutil.rmtree(values["--rmdir"], ignore_errors=True)


# ----------------------------------------------------------------------------- the owner's end


class Kept:
    """A command that ends with this process at the latest, however this process ends.

    Parameters
    ----------
    command
        The program and its arguments.
    env, cwd
        The command's environment and directory; this process's own by default.
    rmdir
        A directory that is removed once the command has ended.
    output
        A file descriptor for what the command writes to stdout and stderr. By default it is
        silent, and the last 4 kB are kept for `last_words`.

    Attributes
    ----------
    pid : int
        The process id of the command itself.

    Raises
    ------
    OSError
        The keeper did not start.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        rmdir: str | None = None,
        output: int | None = None,
    ) -> None:
        self._owner = os.getpid()
        self._rmdir = rmdir
        self._words = b""
        self._command: psutil.Process | None = None
        options = ["--owner", str(self._owner)]
        options += ["--rmdir", rmdir] if rmdir else []
        options += ["--keep-output"] if output is None else []
        self._line, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo:
            undo.callback(self._line.close)
            with theirs:  # no longer: while we hold it too, a keeper's end does not end the line
                self._keeper: subprocess.Popen[bytes] = subprocess.Popen(
                    [sys.executable, "-I", "-S", __file__, *options, "--", *command],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL if output is None else output,
                    stderr=subprocess.DEVNULL if output is None else output,
                    env=env,
                    cwd=cwd,
                    start_new_session=True,  # away from the terminal: Ctrl-C is for the owner
                )
            undo.callback(self.close, 0)
            self.pid = self._read_pid()
            if not KERNEL_HELPS:
                self._command = psutil.Process(self.pid)
            undo.pop_all()

    def _read_pid(self) -> int:
        self._line.settimeout(10)
        told = b""
        while not told.endswith(b"\n"):  # nothing follows the pid until the command has ended
            more = self._line.recv(64)
            if not more:
                raise OSError(f"the keeper process ended, code {self._keeper.wait()}")
            told += more
            told, newline, self._words = told.partition(b"\n")
            told += newline
        return int(told)

    def poll(self) -> int | None:
        """Give the command's exit code, 128 + its signal, or None while it runs."""
        return self._keeper.poll()

    def stop(self, grace: float = GRACE) -> None:
        """Tell the command to stop, and do not wait; it is killed after `grace` seconds."""
        if self._owner == os.getpid():
            with contextlib.suppress(OSError):  # the keeper has ended, or the line is closed
                self._line.send(b"%f\n" % grace)

    def close(self, grace: float = GRACE) -> None:
        """Stop the command and wait until it is gone. Any number of calls are as good as one.

        In a forked child this lets go of the child's copies alone: the command is the parent's.
        """
        if self._owner != os.getpid():
            self._line.close()
            return
        self.stop(grace)
        self._wait(grace + 3)
        self.last_words()
        self._line.close()
        if self._rmdir is not None:  # when the keeper was killed, nobody else does
            shutil.rmtree(self._rmdir, ignore_errors=True)

    def _wait(self, timeout: float) -> None:
        """Wait until the keeper has ended, and the command too."""
        try:
            code = self._keeper.wait(timeout)
        except subprocess.TimeoutExpired:  # it was stopped (SIGSTOP), or worse
            self._keeper.kill()
            code = self._keeper.wait()
        # The keeper was killed, and nobody killed the command. psutil compares the time of its
        # start too: the pid may be another process's by now.
        if code < 0 and self._command is not None and self._command.is_running():
            _kill_group(self.pid)

    def last_words(self) -> str:
        """Give the last that the command wrote, once it has ended (and `output` was not given)."""
        with contextlib.suppress(OSError):  # nothing there, or closed
            self._line.settimeout(0)
            while more := self._line.recv(TAIL):
                self._words += more
        return self._words.decode(errors="replace").strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        code = self._keeper.poll()
        state = "running" if code is None else f"ended, code {code}"
        return f"<Kept pid={self.pid} {state}>"


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))

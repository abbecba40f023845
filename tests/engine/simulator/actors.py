"""What takes turns: an actor is a generator that yields what it asks of the server, or waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from dask_redisq.keys import Keys

if TYPE_CHECKING:
    from simulator.world import World

__all__ = ["Actor", "Call", "Command", "Killed", "Life", "Op", "Wait", "in_thread"]

T = TypeVar("T")


class Call(NamedTuple):
    """A script with its arguments; `once`: if the connection is lost the answer is None."""

    script: str
    args: dict[str, Any]
    once: bool = False


class Command(NamedTuple):
    """A command and its words."""

    words: tuple[Any, ...]


class Wait(NamedTuple):
    """Until a time in ms, or until a token is in the list `wake`, if that is not empty."""

    until: int
    wake: str = ""
    #: The server said when to look again.
    told: bool = False


Op = Call | Command | Wait
Life = Generator[Op, Any, T]


class Killed(BaseException):
    """Raised in the thread of an actor that was killed."""


class Actor:
    """One process of a world.

    Attributes
    ----------
    op : Call, Command or Wait
        What it waits for.
    over : bool
        It has ended, or was killed.
    frozen : bool
        It is stopped, and goes on later.
    unbroken_since : int or None
        Since when its connection was never lost, in ms; None: it connects at its next call.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.over = self.frozen = False
        self.unbroken_since: int | None = world.server.now
        #: After how many calls of the world it last looked for its token in vain.
        self.looked = -1
        self._life = self.live()
        self.op: Op = Wait(0)
        self.resume(None)

    def __repr__(self) -> str:
        state = "over" if self.over else "frozen" if self.frozen else f"{self.op}"[:80]
        return f"<{self.name} {state}>"

    def live(self) -> Life[None]:
        """Yield what this actor asks for; get the answers."""
        raise NotImplementedError

    def resume(self, answer: Any) -> None:
        """Go on to the next question."""
        self._go(lambda: self._life.send(answer))

    def fail(self, error: Exception) -> None:
        """Go on with an error as the answer."""
        self._go(lambda: self._life.throw(error))

    def _go(self, step: Callable[[], Op]) -> None:
        try:
            self.op = step()
        except StopIteration:
            self.over = True
            self.ended()

    def ended(self) -> None:
        """It came to its end by itself."""

    def kill(self) -> None:
        """End here and now."""
        self.over = True
        self._life.close()

    def nudge(self) -> None:
        """End the wait, if it waits."""
        if isinstance(self.op, Wait):
            self.op = self.op._replace(until=0)


class _Bridge:
    """A link for code that knows no generators: it runs in a thread, one question at a time."""

    def __init__(self, actor: Actor) -> None:
        self.keys = actor.world.server.keys
        self.question: Op | None = None
        self.answer: Any = None
        self.killed = False
        self._actor = actor
        self._sent: list[Op] = []
        self._asked, self._answered = threading.Semaphore(0), threading.Semaphore(0)

    @property
    def unbroken_since(self) -> float | None:
        """As Link has it: in seconds."""
        since = self._actor.unbroken_since
        return None if since is None else since / 1000

    def served_since(self, longest: float) -> float | None:
        """As Link has it: no reply takes long here, or the connection breaks."""
        return self.unbroken_since

    # -- called in the thread ------------------------------------------------------------

    def call(self, script: str, keys: Keys, /, **args: Any) -> Any:
        """Call a script."""
        return self.ask(Call(script, args))

    def call_once(self, script: str, keys: Keys, /, **args: Any) -> Any:
        """Call a script that is not sent again."""
        return self.ask(Call(script, args, once=True))

    def command(self, *words: Any) -> Any:
        """Send a command."""
        return self.ask(Command(words))

    def send(self, *words: Any) -> None:
        """Send a command without waiting."""
        self._sent.append(Command(words))

    def send_call(self, script: str, keys: Keys, /, **args: Any) -> None:
        """Call a script without waiting."""
        self._sent.append(Call(script, args))

    def receive_all(self, but: int = 0) -> list[Any]:
        """Return the answers."""
        sent, self._sent = self._sent, []
        return [self.ask(op) for op in sent]

    def ask(self, op: Op | None) -> Any:
        """Put a question, None for the end, and wait for the answer."""
        self.question = op
        self._asked.release()
        if op is None:
            return None
        self._answered.acquire()
        if self.killed:
            raise Killed
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    # -- called by the world -------------------------------------------------------------

    def next(self) -> Op | None:
        """Wait for the next question."""
        self._asked.acquire()
        return self.question

    def reply(self, answer: Any) -> None:
        """Let the thread go on."""
        self.answer = answer
        self._answered.release()


def in_thread(actor: Actor, function: Callable[[Any], T]) -> Life[T]:
    """Run code of the package that takes a link, for an actor; others act between its calls."""
    bridge = _Bridge(actor)
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(function(bridge))
        except Killed:
            return
        except BaseException as error:
            outcome.append(error)
        bridge.ask(None)

    thread = threading.Thread(target=run, name=actor.name, daemon=True)
    thread.start()
    try:
        while (op := bridge.next()) is not None:
            try:
                answer = yield op
            except Exception as error:
                answer = error
            bridge.reply(answer)
    except GeneratorExit:
        bridge.killed = True
        bridge.reply(None)
        raise
    finally:
        thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    found: T = outcome[0]
    return found

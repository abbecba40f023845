"""What happens to the tasks of a job, read for the callbacks of its client."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from dask.typing import Key

from dask_redisq.callbacks import UNREAD, Observer
from dask_redisq.codec import unpack
from dask_redisq.keys import Keys
from dask_redisq.link import Link

__all__ = ["EventReader", "Events", "JobEvents"]


class Events(Protocol):
    """Whoever reads the events of a job."""

    def read(self, received: Mapping[int, Any], *, anew: bool) -> None:
        """Read what happened since the last call; see `EventReader.read`."""


class JobEvents:
    """The events of one job (lua/lib/events.lua), each read once.

    Parameters
    ----------
    link : Link
        The client's connection.
    keys : Keys
        The queue.
    job : str
        The job's id.
    names : sequence
        What each task is called.
    """

    def __init__(self, link: Link, keys: Keys, job: str, names: Sequence[Any]) -> None:
        self.link = link
        self.keys = keys
        self.job = job
        self.names = names
        self._read = 0
        self._where: dict[bytes, str] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of job {self.job}, {self._read} events>"

    def _news(self) -> list[Any]:
        """Return those since the last call: slot, worker, what, and tasks of each."""
        entries = self.link.command("LRANGE", self.keys("events", self.job), self._read, -1)
        self._read += len(entries)
        return [unpack(entry) for entry in entries]

    def _name_of(self, slot: bytes, worker: bytes) -> str:
        """Return the worker's name and which of its slots: ``lab-3/9f2c``."""
        name = self._where.get(slot)  # one that is gone had a worker
        if name is None:
            info = self.link.command("HGET", self.keys("workers"), worker) if worker else None
            short = slot.decode()[:4]
            name = f"{unpack(info)[b'name'].decode()}/{short}" if info else short
            self._where[slot] = name
        return name


class EventReader(JobEvents):
    """Tells the events of a job to an observer.

    Parameters
    ----------
    link, keys, job, names : Link, Keys, str, sequence of hashable
        See `JobEvents`; the names are graph keys.
    observer : Observer
        Who wants to know.
    outputs : collection of int
        The tasks whose values come here.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        job: str,
        names: Sequence[Key],
        observer: Observer,
        outputs: Collection[int],
    ) -> None:
        super().__init__(link, keys, job, names)
        self.observer = observer
        self.outputs = frozenset(outputs)
        self._done: deque[tuple[int, str]] = deque()

    def read(self, received: Mapping[int, Any], *, anew: bool) -> None:
        """Tell what happened since the last call.

        Parameters
        ----------
        received : Mapping
            Task -> value, of those that are here. An output is told with its own, so when that has
            come, and not before: it may be done just after the answer that it is not in. They come
            in the order in which they were accepted; if values are wanted, all are outputs.
        anew : bool
            The job was rebuilt, perhaps on a server that came back older: begin with the first
            event. The observer knows which tasks it was told.
        """
        if anew:
            self._read = 0
        observer, names = self.observer, self.names
        for slot, worker, done, tasks in self._news():
            if isinstance(done, bytes):
                continue  # it is for `CallLog`
            if done:
                name = self._name_of(slot, worker)
                self._done.extend([(task, name) for task in tasks])
                self._tell(received)
            else:
                for task in tasks:
                    observer.taken(names[task])
        self._tell(received)

    def _tell(self, received: Mapping[int, Any]) -> None:
        waiting, observer = self._done, self.observer
        while waiting:
            task, worker = waiting[0]
            if task not in received and task in self.outputs:
                return
            waiting.popleft()
            observer.done(self.names[task], received.get(task, UNREAD), worker)

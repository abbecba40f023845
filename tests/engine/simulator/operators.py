"""People at a queue as generators: one cancels a job, one suspends the queue and resumes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dask_redisq.suspend import set_suspended
from simulator.actors import Actor, Call, Command, Life, Wait, in_thread
from simulator.jobs import Job

if TYPE_CHECKING:
    from simulator.world import World

__all__ = ["Operator", "Suspender"]


class Operator(Actor):
    """Who cancels a job from elsewhere."""

    def __init__(self, world: World, job: Job) -> None:
        self.job = job
        super().__init__(world, "operator")

    def live(self) -> Life[None]:
        """Cancel; sweep what has no client."""
        self.job.cancelled = True
        yield Call("cancel", {"job": self.job.id, "reason": "enough", "tomb": "1"})
        name = self.world.server.keys("job", self.job.id)
        ended, ttl = yield Command(("HMGET", name, "state", "ttl"))
        if ended == b"cancelled" and int(ttl):
            while (yield Call("sweep", {"job": self.job.id})) == 0:
                pass


class Suspender(Actor):
    """Who suspends the queue, and resumes it after a while; by the package's own code."""

    def __init__(self, world: World, *, only_resume: bool = False) -> None:
        self.only_resume = only_resume
        super().__init__(world, "suspender")

    def live(self) -> Life[None]:
        """Suspend, wait, resume."""
        if not self.only_resume:
            yield from self._set(on=True)
            yield Wait(self.world.server.now + self.world.choices.pick([300, 3000, 30_000]))
        yield from self._set(on=False)

    def _set(self, *, on: bool) -> Life[None]:
        keys = self.world.server.keys
        yield from in_thread(self, lambda link: set_suspended(link, keys, on=on))

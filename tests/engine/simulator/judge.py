"""What must hold in a world: of the whole state, of what clients receive, and at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from invariants import check_state
from state import State, look

from dask_redisq.codec import unpack
from simulator.actors import Wait
from simulator.client import Client
from simulator.jobs import NEED, RESOURCE, Job, check_tree
from simulator.slot import Slot

if TYPE_CHECKING:
    from simulator.world import World

__all__ = ["Judge"]


class Judge:
    """Asserts what a world promises.

    Parameters
    ----------
    world : World
        Knows what went wrong in it, and so what may be.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        #: What was seen last, after which of the world's calls.
        self.state: State | None = None
        self.looked = -1
        #: Constants that were stored too late.
        self._strays: set[str] = set()

    def check(self, seen: bytes = b"") -> State:
        """Assert P1 to P8; `seen` is what the server told of itself, if it was asked already."""
        graphs = {job.id: job.graph for job in self.world.jobs.values()}
        # A slot may tell of a rollback when some of the jobs did not see it.
        doubtful = {
            j.id
            for j in self.world.jobs.values()
            if j.doubtful or j.swept or self.world.rolled_back
        }
        server = self.world.server
        seen = seen or server.command(*look(self.state))
        state = self.state = State(server.link, server.keys, self.state, seen)
        self.looked = self.world.calls
        check_state(state, graphs, doubtful, much_later=self.world.jumps > 0)
        self._check_children(state)
        self._check_constants(state)
        self._check_resources(state)
        return state

    def _check_children(self, state: State) -> None:
        """What a task computes ends with its job."""
        for job in self.world.jobs.values():
            if job.parent and not (self.world.rolled_back or self.world.jumps or job.doubtful):
                own, above = (state.mapping("job", x).get("state") for x in (job.id, job.parent))
                assert own != b"running" or above == b"running", f"{job} runs on, for nobody"

    def _check_constants(self, state: State) -> None:
        """Of a job that runs all constants of its blocks are there."""
        for job in self.world.jobs.values() if not self.world.rolled_back else ():
            if state.mapping("job", job.id).get("state") == b"running" and not job.cancelled:
                for number in map(int, state.mapping("blocks", job.id)):
                    for digest in job.constants(number):
                        there = state.get("const", job.id, digest) is not None
                        assert there, f"constant {digest} of {job} is gone"

    def constant_gone(self, job: Job, digest: str) -> None:
        """Assert that a slot may miss a constant: the job ended, or the lease is of another history."""
        told = job.cancelled or self.world.rolled_back or self._state_of(job) != b"running"
        assert told, f"constant {digest} of {job} is gone"

    def stored(self, name: str) -> None:
        """Note what was stored for a job that did not run any more: nobody sweeps it.

        Nor does anybody know of it if the server forgot that it was announced, and came back
        before it was stored.
        """
        kind, *rest = name.split(":")[4:]
        job, keys = self.world.jobs[name.split(":")[3]], self.world.server.keys
        if kind != "const":
            return
        forgotten = self.world.rolled_back and not self.world.server.command(
            "SISMEMBER", keys("consts", job.id), rest[0]
        )
        if forgotten or self._state_of(job) != b"running":
            self._strays.add(name)

    def _state_of(self, job: Job) -> bytes | None:
        keys = self.world.server.keys
        state: bytes | None = self.world.server.command("HGET", keys("job", job.id), "state")
        return state

    def _check_resources(self, state: State) -> None:
        """Slots hold what their leases need, or have lent it; not more than their worker has."""
        for worker in self.world.workers.values():
            slots = state.members("worker_slots", worker.name)
            holding = [slot for slot in slots if "holds" in state.mapping("slot", slot)]
            assert len(holding) <= int(RESOURCE in worker.tags), f"{holding} hold the same"
            idle = [slot for slot in holding if "job" not in state.mapping("slot", slot)]
            assert not idle, f"{idle} run nothing, and hold what others may wait for"
        for job in self.world.jobs.values():
            needy = {t for t, tags in job.graph.hard.items() if NEED in tags}
            for slot, lease in (state.mapping("leases", job.id) if needy else {}).items():
                seq, tasks, *_ = unpack(lease)
                own = state.mapping("slot", slot)
                held = "holds" in own or own.get("job", b"").decode() != job.id
                assert (
                    held or not needy.intersection(tasks) or (slot, seq) in self.world.oracle.lent
                ), f"{slot} runs {tasks} of {job}, and holds nothing"

    def value(self, job: Job, task: int, token: int) -> int:
        """Assert that a value is one of this task; return it."""
        made = self.world.tokens[token]
        assert (made.family, made.task) == (job.family, job.origin[task]), (
            f"task {task} of {job} has the value of {made}"
        )
        return token

    def answer(self, job: Job, received: dict[int, int]) -> None:
        """P9, P10."""
        check_tree(job, self.world.tokens, received, once=job.once)

    def dropped(self, job: Job) -> None:
        """Assert that there is a reason for a job to be gone."""
        told = self.world.jumps or self.world.rolled_back or job.cancelled or job.lapsed
        assert told, f"{job} is gone, and nobody knows why"

    def end(self, job: Job, state: str, reason: bytes) -> None:
        """Assert that a job ended without its answer for a reason that the world knows."""
        if state == "":
            self.dropped(job)
            return
        kind, task, *_ = unpack(reason) if reason else (b"", -1)
        settings, (tries, deaths) = job.settings, self.world.oracle.charged(job, task)
        ways = {
            b"raised": tries > settings["retries"],
            b"timeout": tries > settings["retries"],
            b"died": deaths >= settings["allowed"],
            b"unseen": self.world.value_gone
            or self.world.rolled_back
            or self.world.jumps > 0
            or self.world.faults["server full"] > 0,
            b"cancelled": job.cancelled or self._is_orphan(job),
            b"damaged": self.world.rolled_back,
            b"client": self.world.jumps > 0 or self.world.rolled_back or job.lapsed,
        }
        assert ways.get(kind, False), f"{job} is {state} by {kind!r} of task {task}, for no reason"

    def _is_orphan(self, job: Job) -> bool:
        """Tell whether the job whose task waited for it ended, at least once."""
        if not job.parent:
            return False
        state = self.world.server.command(
            "HGET", self.world.server.keys("job", job.parent), "state"
        )
        return (
            state != b"running" or self.world.rolled_back or self.world.jobs[job.parent].reruns > 0
        )

    def sleepers(self) -> None:
        """P14: while all sleep there is no ready task, or a slot was told when it will be."""
        if self.world.oracle.suspended or self._is_token_astray():
            return
        waits = [s.op for s in self.world.of(Slot) if s.waits_for is None]
        if any(not isinstance(op, Wait) or op.told or not op.wake for op in waits):
            return
        known = self.world.server.command("SMEMBERS", self.world.server.keys("slots"))
        if sorted(known) != sorted(s.slot.encode() for s in self.world.of(Slot)):
            return  # a token may have gone to one that is dead, and not missed yet
        found = self.world.server.command("ZRANGE", self.world.server.keys("active"), 0, -1)
        active = [job for job in found if self._is_open(job)]
        assert not active, f"all slots sleep; {active} have ready tasks, and were bound to end"

    def _is_token_astray(self) -> bool:
        """Tell whether a slot was woken that does not sleep: the server forgot that it has a lease."""
        busy = [s.slot for s in self.world.of(Slot) if s.waits_for is not None]
        if not busy or not self.world.rolled_back:
            return False
        wake = [self.world.server.keys("wake", slot) for slot in busy]
        return bool(self.world.server.command("EXISTS", *wake))

    def _is_open(self, job: bytes) -> bool:
        """Tell whether tasks of a job may be leased: of one with a policy, once it is sealed."""
        name = self.world.server.keys("job", job.decode())
        asks, sealed = self.world.server.command("HMGET", name, "asks", "sealed")
        return asks is None or sealed is not None

    def is_orphan_there(self) -> bool:
        """Tell whether a constant is missing that nobody sends again: its job ends with its lease.

        A client left its detached job, or died, and the server came back with an older copy of
        that job, unsealed. Until then it may keep the only slot of a kind from others.
        """
        theirs = {client.job.id for client in self.world.of(Client)}
        keys, command = self.world.server.keys, self.world.server.command
        for job in self.world.jobs.values():
            state, sealed = command("HMGET", keys("job", job.id), "state", "sealed")
            if job.id in theirs or state != b"running" or sealed is not None:
                continue
            for number in map(int, command("HKEYS", keys("blocks", job.id))):
                names = [keys("const", job.id, digest) for digest in job.constants(number)]
                if names and command("EXISTS", *names) < len(names):
                    return True
        return False

    def runs(self) -> None:
        """P13: not more tasks ran again than were in the hands of what failed."""
        bound = self.world.oracle.most_made * (sum(self.world.faults.values()) + 1)
        for job in self.world.jobs.values():
            more = job.runs - len(job.graph)
            many = (
                bound
                + job.reruns * self.world.oracle.most_made * len(self.world.slots)
                + (len(job.graph) * sum(self.world.faults.values()) if job.doubtful else 0)
            )
            assert more <= many, f"{more} runs of {job} were in vain"

    def left(self) -> None:
        """P11: nothing stays but the queue's own hash and what expires because nobody saw it."""
        state = State(self.world.server.link, self.world.server.keys)
        prefix = len(self.world.server.keys.prefix)
        names = [name[prefix:] for name in state.content if name not in self._strays]
        fleeting = ("tomb:", "monitor", "queue")
        left = [n for n in names if not n.startswith(fleeting) and not _unseen(n)]
        assert not left, f"keys are left: {left}"


def _unseen(name: str) -> bool:
    """Tell whether a key of a job was never seen by a script, and expires by itself.world."""
    return name.startswith("job:") and name.split(":")[2] in {"value", "built", "new"}

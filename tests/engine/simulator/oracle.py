"""What the world knows better than the server: which lease is whose, what may have run, who is alive.

It looks at each call and its answer, and asserts what no look at the server's state can tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from dask_redisq.annotations import SOFT
from dask_redisq.codec import unpack
from simulator.jobs import Job
from simulator.preference import check_order, check_patience
from simulator.supervisor import EXPIRY

if TYPE_CHECKING:
    from simulator.world import World

__all__ = ["Oracle"]


class Oracle:
    """Follows the calls of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        #: slot -> job, sequence number and tasks of the lease that the server gave it last.
        self._leases: dict[str, tuple[str, int, list[int]]] = {}
        #: slot -> number and answer of its last call that was run.
        self._answered: dict[str, tuple[int, bytes]] = {}
        #: Leases whose resources were lent, by slot and number.
        self.lent: set[tuple[str, int]] = set()
        #: Slots whose end was told; job -> the calls that ran it again, the newest last.
        self._told: set[str] = set()
        self._reruns: dict[str, list[tuple[str, bytes]]] = {}
        #: job -> what its tasks were charged with before it was run again: tries, deaths.
        self._forgiven: dict[str, tuple[Counter[int], Counter[int]]] = {}
        #: Blocks that the server had, by job and number.
        self._blocks: set[tuple[str, int]] = set()
        #: How often the queue was suspended or resumed, and whether it is suspended now.
        self._turns, self.suspended = 0, False
        #: The most tasks that one lease made.
        self.most_made = 1
        self._notes: dict[str, Any] = {
            "step": self._step, "unregister": self._unregister, "register": self._register,
            "recover": self._recover, "renew": self._renew, "give_back": self._give_back,
            "suspend": self._suspend, "rerun": self._rerun, "lend": self._lend, "create": self._create,
            "put_block": self._put_block,
        }  # fmt: skip

    def note(self, script: str, args: dict[str, Any], answer: Any, *, late: bool) -> None:
        """Look at a call and its answer; it is `late` if it is a copy of an older one."""
        found = self._notes.get(script)
        if found is not None:
            found(args, answer, late)

    def forget_all(self) -> None:
        """The server came back with another history."""
        self.world.judge.looked = -1
        self._leases.clear()
        self._answered = self._read_answers(self.world.slots)
        self._turns, self.suspended = self._read_turns()
        self._reruns.clear()
        self._forgiven.clear()
        self._blocks.clear()
        for job in self.world.jobs.values():
            job.careful.clear()
            found = self.world.server.command("HKEYS", self.world.server.keys("blocks", job.id))
            self._blocks |= {(job.id, int(number)) for number in found}

    def _read_answers(self, slots: Collection[str]) -> dict[str, tuple[int, bytes]]:
        """Return what the server answers to copies of calls that it remembers."""
        keys = self.world.server.keys
        found = self.world.server.commands(
            [("HMGET", keys("slot", slot), "seq", "answer") for slot in slots]
        )
        return {
            slot: (int(seq), answer or b"")
            for slot, (seq, answer) in zip(slots, found, strict=True)
            if seq is not None
        }

    # -- steps ---------------------------------------------------------------------------

    def _step(self, args: dict[str, Any], answer: bytes, late: bool) -> None:
        slot, seq = args["slot"], args["seq"]
        status, refused, lease, _ = unpack(answer)
        last, stored = self._answered.get(slot, (0, b""))
        if status == b"unregistered":
            self._leases.pop(slot, None)
            return
        done = status in (b"ok", b"wish")
        assert not done or seq >= last, f"call {seq} is run after call {last} of {slot}"
        if not done:
            return
        if seq == last:
            assert answer == stored, f"call {seq} of {slot} is answered anew"
            return
        self._answered[slot] = (seq, answer)
        self._end_lease(args, refused)
        if lease and status == b"ok":
            self._begin_lease(args, lease)

    def _end_lease(self, args: dict[str, Any], refused: list[int]) -> None:
        """Note what was accepted, and what must run alone from now on."""
        job = self.world.jobs.get(args["job"])
        made: list[int] = []
        if job is not None:
            made = [t for group in unpack(args["batch"])[0] for t in group[1]]
            job.careful.difference_update(set(made) - set(refused))
        self.most_made = max(self.most_made, len(made))
        held = self._leases.pop(args["slot"], None)
        if held is not None and job is not None and held[0] == args["job"]:
            failed = unpack(args["failure"])[:1] if args["failure"] else []
            job.careful.update({*refused, *failed}.intersection(held[2]))

    def _begin_lease(self, args: dict[str, Any], lease: list[Any]) -> None:
        slot, seq = args["slot"], args["seq"]
        name, _, chunk, _, alone, tasks, *_ = lease
        job = self.world.jobs[name.decode()]
        assert not self.suspended, f"a lease of {tasks} while the queue is suspended"
        assert tasks, f"a lease of nothing in {job}"
        assert chunk <= 0 or len(tasks) <= chunk, f"a lease of {tasks} at chunk size {chunk}"
        careful = job.careful.intersection(tasks)
        assert not careful or (alone and len(tasks) == 1), f"{careful} of {tasks} must run alone"
        self._leases[slot] = (job.id, seq, tasks)
        check_order(self.world, job, tasks)
        tags = (*self.world.slots[slot].tags, args["tag"])
        self._check_tags(job, slot, tags, tasks)
        check_patience(self.world, job, slot, tags, tasks)
        self.most_made = max(self.most_made, len(tasks))

    def _check_tags(self, job: Job, slot: str, tags: Collection[str], tasks: list[int]) -> None:
        for task in tasks:
            wanted = [tag.removesuffix("=1") for tag in job.graph.hard.get(task, ())]
            assert not wanted or SOFT in wanted or set(wanted) & set(tags), (
                f"{slot} may not run task {task}"
            )

    # -- leases that end otherwise ---------------------------------------------------------

    def _unregister(self, args: dict[str, Any], answer: bytes, late: bool) -> None:
        if args["slot"] == "":
            self._lose_worker(args["worker"])
            return
        held = self._leases.pop(args["slot"], None)
        if held is not None and held[1] == args["seq"] and not late:
            begun = held[2][: args["position"] + 1]
            self.world.jobs[held[0]].careful.update(begun)
        self._charge(args)
        if args["kind"] == "died":
            self._check_deaths()

    def _charge(self, args: dict[str, Any]) -> None:
        """Count a death or a timeout, once: it is charged to the run of its job that goes on now.

        Not if the task is finished: the reply to that was under way.
        """
        slot, begun = args["slot"], args["begun"]
        if args["kind"] and begun >= 0 and slot not in self._told:
            self._told.add(slot)
            job = self.world.jobs[self.world.slots[slot].page.cursor.job.decode()]
            if not self._is_finished(job.id, begun):
                (job.deaths if args["kind"] == "died" else job.tries)[begun] += 1

    def charged(self, job: Job, task: int) -> tuple[int, int]:
        """Return how often a task failed, and how often its process died, since its job was run again."""
        tries, deaths = self._forgiven.get(job.id, (Counter(), Counter()))
        return job.tries[task] - tries[task], job.deaths[task] - deaths[task]

    def _check_deaths(self) -> None:
        """No task is charged with a death that was not its own."""
        jobs, keys = self.world.jobs.values(), self.world.server.keys
        told = self.world.server.commands([("HGETALL", keys("deaths", job.id)) for job in jobs])
        for job, found in zip(jobs, told, strict=True):
            for task, records in zip(found[::2], found[1::2], strict=True):
                count, right = len(unpack(records)), self.charged(job, int(task))[1]
                assert count <= right, f"task {int(task)} of {job} died {right} times, not {count}"

    def _lose_worker(self, worker: str, *, judged: bool = False) -> None:
        for slot in self.world.workers[worker].ever:
            held = self._leases.pop(slot, None)
            if held is not None and judged:
                self.world.jobs[held[0]].careful.update(held[2])

    def _register(self, args: dict[str, Any], answer: bytes, late: bool) -> None:
        slot, seq = args["slot"], args["seq"]
        if slot and self._answered.get(slot, (0, b""))[0] > seq:
            # It was not registered any more, or stays as it is.
            self._answered |= self._read_answers([slot])
        if not late:
            self.world.workers[args["worker"]].renewed = self.world.server.now

    def _give_back(self, args: dict[str, Any], answer: bytes, late: bool) -> None:
        held = self._leases.get(args["slot"])
        if held is not None and answer == b"given":
            assert held[1] == args["seq"], f"lease {held[1]} is given back for {args['seq']}"
            kept = held[2][: args["position"] + 1]
            self._leases[args["slot"]] = (*held[:2], kept)
            left = self._server_lease(args["slot"], held[0])
            assert set(left) <= set(kept), f"it keeps {left} of {held[2]}, not {kept}"
            begun = held[2][args["position"]] if args["position"] >= 0 else -1
            lost = begun >= 0 and begun not in left
            assert not lost or self._is_finished(held[0], begun), f"task {begun} had begun"

    def _renew(self, args: dict[str, Any], answer: bytes, late: bool) -> None:
        worker = self.world.workers[args["worker"]]
        held = set(unpack(args["held"])[::2])
        for slot in worker.ever:
            if slot.encode() not in held:
                self._leases.pop(slot, None)
        keys, pairs = self.world.server.keys, unpack(args["held"])
        told = zip([slot.decode() for slot in pairs[::2]], pairs[1::2], strict=True)
        running = [slot for slot, seq in told if self._leases.get(slot, ("", -1))[1] == seq]
        known = self.world.server.commands([("HEXISTS", keys("slot", s), "job") for s in running])
        for slot, there in zip(running, known, strict=True):
            assert there, f"{slot} lost its lease"
        if answer == b"ok" and not late:
            worker.renewed = self.world.server.now

    def _server_lease(self, slot: str, job: str) -> list[int]:
        packed = self.world.server.command("HGET", self.world.server.keys("leases", job), slot)
        return [] if packed is None else list(unpack(packed)[1])

    def _is_finished(self, job: str, task: int) -> bool:
        name = self.world.server.keys("finished", job)
        return bool(self.world.server.command("GETBIT", name, task))

    def _lend(self, args: dict[str, Any], answer: bytes, late: bool) -> None:
        self.lent.add((args["slot"], args["seq"]))

    def _create(self, args: dict[str, Any], answer: bytes, late: bool) -> None:
        """Of a job and the one whose task waits for it the first comes first."""
        if not args["parent"] or answer != b"created":
            return
        keys, command = self.world.server.keys, self.world.server.command
        own, above = (command("HGET", keys("job", args[x]), "priority") for x in ("job", "parent"))
        assert above is None or float(own) > float(above), f"{own} is not above {above}"

    def _put_block(self, args: dict[str, Any], answer: bytes, late: bool) -> None:
        """No block is taken without what its tasks need: they would come and go back."""
        block, keys = (args["job"], args["number"]), self.world.server.keys
        there = self.world.server.command("HEXISTS", keys("blocks", block[0]), block[1])
        if there and block not in self._blocks:
            self._blocks.add(block)
            for digest in unpack(args["consts"]):
                name = keys("const", block[0], digest.decode())
                gone = not self.world.server.command("EXISTS", name)
                assert not gone, f"block {block[1]} is taken without {digest!r}"

    def _suspend(self, args: dict[str, Any], answer: bytes, late: bool) -> None:
        """It is as the newest of these calls wants it, and no copy of an older one undoes that."""
        if args["turn"] == self._turns:
            self._turns, self.suspended = self._turns + 1, bool(args["on"])
        found = self._read_turns()
        assert found == (self._turns, self.suspended), f"it was suspended or resumed {found}"

    def _read_turns(self) -> tuple[int, bool]:
        name = self.world.server.keys("queue")
        turns, since = self.world.server.command("HMGET", name, "turns", "suspended")
        return int(turns or 0), since is not None

    def _rerun(self, args: dict[str, Any], answer: bytes, late: bool) -> None:
        """A call lets a job that failed go on once, and a copy of it not when that failed again."""
        if answer != b"rerun":
            return
        job, known = self.world.jobs[args["job"]], self._reruns.setdefault(args["job"], [])
        if args["fresh"] in [fresh for fresh, _ in known]:
            assert known[-1][0] == args["fresh"], f"an old copy of a call runs {job} again"
            return
        old = [epoch for _, epoch in known]
        assert args["epoch"] not in old, f"{job} is run again for who saw it fail before"
        known.append((args["fresh"], args["epoch"]))
        epoch = self.world.server.command("HGET", self.world.server.keys("job", job.id), "epoch")
        assert epoch != args["epoch"], f"what slots run of {job} since before would count"
        job.reruns += 1
        self._forgiven[job.id] = (Counter(job.tries), Counter(job.deaths))

    # -- verdicts ----------------------------------------------------------------------------

    def _recover(self, args: dict[str, Any], answer: bytes, late: bool) -> None:
        """P16: nobody is judged who was here within one expiry of unbroken service."""
        _, dead, *_ = unpack(answer)
        for name in dead:
            worker = self.world.workers[name.decode()]
            self._lose_worker(worker.name, judged=True)
            quiet = self.world.server.now - max(worker.renewed, self.world.back_at)
            assert quiet >= EXPIRY or late, f"{worker.name} was here {quiet} ms ago, and is judged"

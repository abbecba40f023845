"""What goes wrong: each fault is staged by a function that tells whether there was anything to break."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dask_redisq.codec import unpack
from dask_redisq.errors import ServerFull
from dask_redisq.record import read_record
from simulator.actors import Actor, Call, Command, Wait
from simulator.client import Client, Reader
from simulator.jobs import LEASE, Job
from simulator.operators import Operator, Suspender
from simulator.slot import Slot
from simulator.supervisor import EXPIRY, INTERVAL, Supervisor

if TYPE_CHECKING:
    from simulator.world import World

__all__ = ["FAULTS", "LOSSY", "advance_heard"]

#: Times that an outage, a stop or a jump takes, in ms; the longest is longer than any lease.
LONG = 1_500_000


def _some(world: World, *kinds: type[Actor]) -> Any:
    """Choose an actor of these kinds; None without any."""
    found = [a for a in world.actors if isinstance(a, kinds) and not a.over]
    return world.choices.pick(found) if found else None


def _asking(world: World) -> Actor | None:
    """Choose an actor whose question is under way."""
    found = [
        a for a in world.actors if not a.over and not a.frozen and isinstance(a.op, Call | Command)
    ]
    return world.choices.pick(found) if found else None


def reply_lost(world: World) -> bool:
    """The call is run, its answer does not come; it will be sent again."""
    actor = _asking(world)
    if actor is None:
        return False
    _send(world, actor)
    actor.unbroken_since = None
    return True


def request_lost(world: World) -> bool:
    """The connection breaks on the way there."""
    actor = _asking(world)
    if actor is not None:
        actor.unbroken_since = None
    return actor is not None


def sent_twice(world: World) -> bool:
    """Two copies arrive one after the other; the answer to the second is what comes."""
    actor = _asking(world)
    if actor is None:
        return False
    _send(world, actor)
    return True


def _send(world: World, actor: Actor) -> None:
    with contextlib.suppress(ServerFull):
        world._send(actor, actor.op)  # type: ignore[arg-type]


def old_copy(world: World) -> bool:
    """A copy of an older call arrives, of somebody who has moved on, or is gone."""
    if not world.sent:
        return False
    calls = world.sent[world.choices.pick(sorted(world.sent, key="step".__ne__))]
    call = world.choices.pick(list(reversed(calls)))
    if call.script == "register" and _is_unknown(world, call.args["slot"]):
        # Were one of its old steps to come next, too, it would seem that its later ones are
        # forgotten: all jobs are rebuilt, in vain.
        world.ghosts = True
        for job in world.jobs.values():
            job.doubtful = True
    with contextlib.suppress(ServerFull):
        world.call("a late copy", call, late=True)
    return True


def _is_unknown(world: World, slot: str) -> bool:
    known = world.server.command("SISMEMBER", world.server.keys("slots"), slot)
    return bool(slot) and not known


def slot_dies(world: World) -> bool:
    """A slot's process ends; what it had under way may still arrive."""
    slot = _some(world, Slot)
    if slot is None:
        return False
    _note_sent(world, slot)
    slot.die(world.choices.pick(["died", ""]))
    return True


def _note_sent(world: World, actor: Actor) -> None:
    """What somebody had under way may arrive after its end."""
    if isinstance(actor.op, Call):
        world.note_sent(actor.op)


def presumed_dead(world: World) -> bool:
    """A worker misses its beats, and is judged; it lives, and will be late with its results."""
    worker = _some(world, Supervisor)
    if worker is None:
        return False
    worker.renewed = 0
    world.server.command("DEL", world.server.keys("alive", worker.name))
    _look(world)
    return True


def _look(world: World) -> None:
    world.server.command("DEL", world.server.keys("monitor"))
    look = {"who": "somebody", "interval": INTERVAL, "deadline": world.server.now}
    world.call("a monitor", Call("recover", look), late=True)


def lease_runs_out(world: World) -> bool:
    """Nobody heard of a job's client for a whole lease, and a monitor looks."""
    job = world.choices.pick(list(world.jobs.values()))
    sealed = world.server.command("HGET", world.server.keys("job", job.id), "sealed")
    if not (job.detached and sealed):
        job.lapsed = True
    if not world.server.command("DEL", world.server.keys("client", job.id)) and not sealed:
        return False
    _look(world)
    return True


def host_dies(world: World) -> bool:
    """A worker is gone with its slots, and tells nobody; another one starts."""
    worker = _some(world, Supervisor)
    if worker is None:
        return False
    for actor in (worker, *worker.slots):
        _note_sent(world, actor)
    worker.kill_all()
    world.start_worker(worker.tags, worker.count)
    return True


def worker_leaves(world: World) -> bool:
    """A worker is stopped in good order; another one starts."""
    worker = _some(world, Supervisor)
    if worker is None or worker.stopping:
        return False
    worker.stop()
    world.start_worker(worker.tags, worker.count)
    return True


def stopped(world: World) -> bool:
    """A process is stopped (SIGSTOP), or goes on."""
    actor = _some(world, Actor)
    if actor is not None:
        actor.frozen = not actor.frozen
    return actor is not None


def time_passes(world: World) -> bool:
    """It is later; those that are not stopped were heard of meanwhile."""
    advance_heard(world, world.choices.pick([50, 1000, 6000, 20_000]))
    return True


def much_time_passes(world: World) -> bool:
    """It is later than any lease; those that are not stopped were heard of meanwhile."""
    if world.jumps >= 2 or any(client.staging for client in world.of(Client)):
        return False
    advance_heard(world, LONG)
    return True


def advance_heard(world: World, ms: int) -> None:
    """Let time pass in which all that are not stopped renew what they have."""
    keys, there = world.server.keys, [a for a in world.actors if not a.frozen and not a.over]
    workers = [a for a in there if isinstance(a, Supervisor)]
    alive = [keys("alive", w.name) for w in workers]
    clients = [keys("client", a.job.id) for a in there if isinstance(a, Client)]
    found = world.advance(ms, dict.fromkeys(alive, EXPIRY) | dict.fromkeys(clients, LEASE))
    for worker, heard in zip(workers, found, strict=False):
        if heard:
            worker.renewed = world.server.now


def all_stall(world: World) -> bool:
    """Everybody is stopped for a while: a host of virtual machines."""
    ms = world.choices.pick([5000, 20_000])
    world.advance(ms)
    if ms > EXPIRY:  # then nobody may say who is to blame
        world.back_at = world.server.now
    return True


def server_away(world: World) -> bool:
    """The server does not answer for a while; all connections break."""
    world.advance(world.choices.pick([1000, 20_000, 60_000]))
    _cut_all(world)
    return True


def _cut_all(world: World) -> None:
    world.back_at = world.server.now
    for actor in world.actors:
        actor.unbroken_since = None


def client_dies(world: World) -> bool:
    """A client is killed; a reader's place is taken by another."""
    if world.faults["client dies"] >= 2:
        return False
    client = _some(world, Client, Reader)
    if client is None:
        return False
    client.kill()
    if isinstance(client, Reader):
        world.actors.append(Reader(world, client.job, client.name))
    else:
        client.job.cancelled = True
    return True


def job_cancelled(world: World) -> bool:
    """Somebody cancels a job."""
    if world.faults["job cancelled"] >= 1:
        return False
    world.actors.append(Operator(world, world.choices.pick(list(world.jobs.values()))))
    return True


def queue_suspended(world: World) -> bool:
    """Somebody suspends the queue for a while; two may meet."""
    world.actors.append(Suspender(world))
    return True


def unseen_expires(world: World) -> bool:
    """A value stored apart is gone before the call that makes it count."""
    if not world.stored:
        return False
    name, job, task, attempt = world.stored.pop(world.choices.below(len(world.stored)))
    record = world.server.command("HGET", world.server.keys("values", job), task)
    if record is not None and read_record(record)[1] == attempt:
        return False
    world.value_gone = True
    return bool(world.server.command("DEL", name))


def token_lost(world: World) -> bool:
    """A slot pops its token, and the reply is lost."""
    slot = _some(world, Slot)
    if slot is None or not isinstance(slot.op, Wait):
        return False
    return world.server.command("LPOP", world.server.keys("wake", slot.slot)) is not None


def server_full(world: World) -> bool:
    """The server's memory is full, or has room again."""
    world.server.full = not world.server.full
    return True


def client_is_busy(world: World) -> bool:
    """A client holds its GIL for long; its helper renews the lease."""
    client = _some(world, Client)
    if client is None:
        return False
    world.call("a helper", Call("renew_client", {"job": client.job.id}))
    return True


# -- what loses values, or history -----------------------------------------------------------


def value_lost(world: World) -> bool:
    """An accepted value vanishes: it was evicted, or its key deleted by hand."""
    keys, command = world.server.keys, world.server.command
    found = [
        job
        for job in world.jobs.values()
        if command("HGET", keys("job", job.id), "state") in (b"running", b"done")
        and command("EXISTS", keys("values", job.id))
    ]
    if not found:
        return False
    job = world.choices.pick(found)
    values = command("HKEYS", keys("values", job.id))
    return _lose(world, job, int(world.choices.pick(sorted(values, key=int))))


def _lose(world: World, job: Job, task: int) -> bool:
    keys, command = world.server.keys, world.server.command
    record = command("HGET", keys("values", job.id), task)
    if record is None:
        return False
    job.doubtful = True
    data, attempt = read_record(record)
    if data is None:
        return bool(command("DEL", keys("value", job.id, task, attempt)))
    return bool(command("HDEL", keys("values", job.id), task))


def input_lost(world: World) -> bool:
    """A value vanishes that a task was leased for, and its job is rebuilt; the slot may have read it."""
    for job in world.jobs.values():
        leases = world.server.command("HVALS", world.server.keys("leases", job.id))
        tasks = [task for lease in leases for task in unpack(lease)[1]]
        inputs = sorted({i for task in tasks for i in job.graph.inputs[task]})
        if sum(_lose(world, job, i) for i in inputs):
            return _damage(world, job)
    return False


def found_damaged(world: World) -> bool:
    """An audit takes a job for damaged; it is rebuilt, whatever its slots do meanwhile."""
    return _damage(world, world.choices.pick(list(world.jobs.values())))


def _damage(world: World, job: Job) -> bool:
    name = world.server.keys("job", job.id)
    state, sealed = world.server.command("HMGET", name, "state", "sealed")
    if state != b"running" or not sealed or world.server.full:
        return False
    job.doubtful = True
    world.server.command("HSET", name, "damaged", 1)
    return True


def saved(world: World) -> bool:
    """The server writes its snapshot."""
    world.server.save()
    return True


def rolled_back(world: World) -> bool:
    """The server dies, and comes back as it was when it last saved."""
    return _roll_back(world, empty=False)


def emptied(world: World) -> bool:
    """The server dies, and comes back with nothing."""
    return world.faults["emptied"] < 1 and _roll_back(world, empty=True)


def _roll_back(world: World, *, empty: bool) -> bool:
    if not world.server.roll_back(empty=empty):
        return False
    world.run_id = world.new_id(20)
    world.rolled_back = True
    for job in world.jobs.values():
        job.doubtful = True
    world.oracle.forget_all()
    world.advance(world.choices.pick([10, 3000]))
    _cut_all(world)
    return True


Fault = tuple[str, int, Callable[["World"], bool]]
FAULTS: list[Fault] = [
    ("reply lost", 12, reply_lost),
    ("request lost", 3, request_lost),
    ("sent twice", 4, sent_twice),
    ("old copy", 8, old_copy),
    ("presumed dead", 8, presumed_dead),
    ("lease runs out", 2, lease_runs_out),
    ("slot dies", 8, slot_dies),
    ("host dies", 3, host_dies),
    ("worker leaves", 2, worker_leaves),
    ("stopped", 6, stopped),
    ("time passes", 12, time_passes),
    ("much time passes", 1, much_time_passes),
    ("all stall", 3, all_stall),
    ("server away", 3, server_away),
    ("client dies", 1, client_dies),
    ("job cancelled", 1, job_cancelled),
    ("queue suspended", 2, queue_suspended),
    ("unseen expires", 5, unseen_expires),
    ("token lost", 3, token_lost),
    ("server full", 1, server_full),
    ("client is busy", 1, client_is_busy),
]
LOSSY: list[Fault] = [
    ("value lost", 8, value_lost),
    ("input lost", 4, input_lost),
    ("found damaged", 4, found_damaged),
    ("saved", 8, saved),
    ("rolled back", 5, rolled_back),
    ("emptied", 1, emptied),
]

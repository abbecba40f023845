"""The random worlds can fail: with one rule switched off they find what it is there for.

A simulator that stays green with a rule switched off is not looking. Each test patches a copy
of the Lua files; a patch that no longer fits fails too.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from driver import Engine
from redis.exceptions import ResponseError
from world import World

import dask_redisq
from dask_redisq import scripts
from dask_redisq.keys import Keys
from dask_redisq.link import Link

LUA = Path(dask_redisq.__file__).parent / "lua"
#: Worlds to look at, and what happens in each.
SEEDS, EVENTS = 300, 60


class Patch(NamedTuple):
    """One change of one Lua file."""

    file: str
    old: str
    new: str


#: Rules that only matter when values vanish or the server comes back older.
LOSSY = {
    "R4, edges are applied to unfinished tasks only": Patch(
        "lib/edges.lua", "if not finished[task] and not done[task] then ready", "do ready"
    ),
    "R12, a frozen job accepts nothing": Patch("step.lua", "(meta[3] or meta[5])", "meta[5]"),
    "R12, a frozen job makes nothing ready": Patch(
        "lib/ready.lua", "if meta[1] then return end", ""
    ),
    "R12, the older rebuilder is late": Patch(
        "rebuild.lua", "or meta[2] ~= arg.generation then", "then"
    ),
    "R13, another history refuses what was made before": Patch(
        "step.lua", "(meta[3] or meta[5])", "meta[3]"
    ),
    "R16, a rebuilt log is read anew": Patch(
        "gather.lua", "if gen ~= arg.gen then cursor = 0 end", ""
    ),
    "H18, renew drops slots that do not live": Patch(
        "renew.lua", "if not live[slot] then", "if false then"
    ),
}
ABLATIONS = {
    "R1, a component is accepted whole": Patch(
        "lib/finish.lua",
        "if plan.finished[task] or plan.done[task] or named[task] then return false end",
        "if plan.done[task] then return false end",
    ),
    "R2, an accepted task leaves ready sets and leases": Patch(
        "lib/finish.lua", "if not whole then evict(job, plan) end", ""
    ),
    "R3, what may have run before runs alone": Patch(
        "lib/leases.lua", "if begun(task, i) then", "if false then"
    ),
    "R6, the same call has the same answer": Patch(
        "step.lua", "if seq == tonumber(state[1]) then return state[2] end", ""
    ),
    "R6, an older call is refused": Patch(
        "step.lua", "if seq < tonumber(state[1]) then", "if false then"
    ),
    "R6, a new call ends the old lease": Patch(
        "step.lua", "if state[3] and registered then", "if false then"
    ),
    "R6, renew compares the leases": Patch(
        "renew.lua", "if stored[2] and seq > tonumber(stored[1]) then", "if stored[2] then"
    ),
    "R7, a value is true when it was seen": Patch(
        "lib/finish.lua",
        "return type(value) == 'string' or redis.call('EXISTS', key.value(job, task, attempt)) == 1",
        "return true",
    ),
    "R7, a refused value is deleted unless it won": Patch(
        "lib/finish.lua",
        "if not record or string.sub(record, 2, 1 + ATTEMPT) ~= attempt then",
        "do",
    ),
    "R9, nobody is charged for a finished task": Patch(
        "unregister.lua",
        "if read_bits(key.finished(job), {begun})[begun] then charged = false end",
        "",
    ),
    "R11, unregister returns the lease": Patch(
        "lib/leases.lua", "if state[2] then end_lease(", "if false then end_lease("
    ),
    "R11, the unregistered do not lease": Patch(
        "step.lua",
        "local registered = redis.call('SISMEMBER', key.slots(), slot) == 1",
        "local registered = true\n"
        "if not state[4] then state = {0, '', false, cmsgpack.pack({'python'})} end",
    ),
    "R16, sending is not freeing": Patch(
        "gather.lua",
        "local acked = tonumber(meta[3])",
        "local acked, asked = tonumber(meta[3]), cursor\ncursor = redis.call('LLEN', key.log(job))",
    ),
    "R16, one reader does not acknowledge for another": Patch(
        "gather.lua", "if cursor > acked and tonumber(meta[8]) == 0 then", "if cursor > acked then"
    ),
    "R16, a detached job does not need its client": Patch(
        "recover.lua",
        "local kept = tonumber(meta[2] or 0) > 0 and meta[3] and meta[1] ~= 'cancelled'",
        "local kept = false",
    ),
    "R17, a block counts once": Patch(
        "put_block.lua",
        "if redis.call('HSETNX', key.blocks(arg.job), arg.number, arg.payload) == 0 then return state end",
        "redis.call('HSET', key.blocks(arg.job), arg.number, arg.payload)",
    ),
    "R3, a task that failed runs alone": Patch(
        "lib/retry.lua", "  redis.call('SADD', key.alone(job), try.task)\n", ""
    ),
    "R9, a failure with tries left is not the end": Patch(
        "step.lua", "if failed and not again then", "if failed then"
    ),
    "R2, a delayed task is not ready as well": Patch(
        "step.lua", "  if try.delay > 0 then kept[try.task] = true end\n", ""
    ),
    "R2, nor when its slot was killed": Patch(
        "unregister.lua", "local kept = delayed and {[begun] = true} or {}", "local kept = {}"
    ),
    "R2, an accepted task is not delayed": Patch(
        "lib/finish.lua", "    redis.call('ZREM', key.delayed(job), task)\n", ""
    ),
    "R12, what was delayed becomes ready": Patch(
        "lib/take.lua", "  if careful then due = release_due(job) end", ""
    ),
    "R18, a job with delayed tasks is active": Patch(
        "lib/ready.lua", "key.sets(job), key.delayed(job))", "key.sets(job))"
    ),
    "R18, who finds only delayed tasks is told when to look": Patch(
        "lib/take.lua", "  if due then retry = math.min(retry or due, due) end\n", ""
    ),
    "H13, what was given back may be anywhere": Patch(
        "step.lua", "current and not held[3] and", "current and"
    ),
    "H13, only what did not begin is given back": Patch(
        "give_back.lua", "if i <= begun then", "if i < begun then"
    ),
    "R6, only the lease that is meant is given back": Patch(
        "give_back.lua", "if not job or tonumber(stored[1]) ~= seq then return 'over' end", ""
    ),
    "R18, a call leaves the idle sets": Patch("step.lua", "  leave_idle(slot)\n", ""),
    "R18, what becomes ready wakes": Patch(
        "lib/ready.lua", "    wake_for(job, 0, #tasks)\n", ""
    ),
    "R18, only the registered are woken": Patch(
        "lib/leases.lua", "  leave_idle(slot)\n", ""
    ),
    "R18, a job with nothing ready is not active": Patch(
        "lib/ready.lua", "redis.call('ZREM', key.active(), job)", ""
    ),
}  # fmt: skip


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A copy of the Lua files that the loader reads instead of the package's."""
    folder = tmp_path / "lua"
    shutil.copytree(LUA, folder)
    monkeypatch.setattr(scripts, "_folder", lambda: folder)
    _forget()
    yield folder
    _forget()


def _forget() -> None:
    scripts.load.cache_clear()
    scripts._library.cache_clear()


def find_fault(link: Link, keys: Keys, *, rash: bool = False, lossy: bool = False) -> str | None:
    """Return what the first faulty world says, None if all are well."""
    for seed in range(SEEDS):
        link.command("FLUSHALL")
        try:
            World(Engine(link, keys, seed=seed), seed, rash=rash, lossy=lossy).run(EVENTS)
        except (AssertionError, ResponseError) as error:
            return f"seed {seed}: {error}"
    return None


@pytest.mark.parametrize("rule", [*ABLATIONS, *LOSSY])
def test_a_rule_switched_off_is_missed(link: Link, keys: Keys, patched: Path, rule: str) -> None:
    """Without the rule some world goes wrong."""
    file, old, new = (ABLATIONS | LOSSY)[rule]
    text = (patched / file).read_text()
    assert text.count(old) == 1, f"the ablation of {rule!r} does not fit {file} any more"
    (patched / file).write_text(text.replace(old, new))
    assert find_fault(link, keys, lossy=rule in LOSSY) is not None


def test_keeping_a_result_before_its_verdict_is_missed(link: Link, keys: Keys) -> None:
    """R8, H9: the answer then holds two runs of one task."""
    fault = find_fault(link, keys, rash=True)
    assert fault is not None
    assert "two runs" in fault

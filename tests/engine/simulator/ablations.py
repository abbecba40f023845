"""Each rule of the engine, switched off: what is not there then, in a copy of the Lua or in a world's own code.

A simulator that stays green with a rule switched off is not looking. A patch that no longer fits
is an error too.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ABLATIONS", "Ablation", "Patch"]


class Patch(NamedTuple):
    """One change of one Lua file."""

    file: str
    old: str
    new: str


class Ablation(NamedTuple):
    """What is changed: some Lua, and a rule that clients and slots of a world leave out."""

    patches: tuple[Patch, ...] = ()
    off: str = ""
    #: Faults without which it does not matter: they come often.
    often: tuple[str, ...] = ()


def _lua(file: str, old: str, new: str, *often: str) -> Ablation:
    return Ablation((Patch(file, old, new),), often=often)


ABLATIONS = {
    "R4, edges are applied to unfinished tasks only": _lua(
        "lib/edges.lua", "if not finished[task] and not done[task] then ready", "do ready"
    ),
    "R12, a frozen job accepts nothing": _lua("step.lua", "(meta[3] or meta[5] and meta[6])", "(meta[5] and meta[6])"),
    "R12, a frozen job makes nothing ready": _lua(
        "lib/ready.lua", "if meta[1] then return end", ""
    ),
    "R12, the older rebuilder is late": _lua(
        "rebuild.lua", "or meta[2] ~= arg.generation then", "then"
    ),
    "R13, another history refuses what was made before": _lua(
        "step.lua", "(meta[3] or meta[5] and meta[6])", "meta[3]", "saved", "rolled back"
    ),
    "R16, a rebuilt log is read anew": _lua(
        "gather.lua", "if gen ~= arg.gen then cursor = 0 end", ""
    ),
    "H18, renew drops slots that do not live": _lua(
        "renew.lua", "if not live[slot] then", "if false then", "slot dies", "saved", "rolled back"
    ),
    "R1, a component is accepted whole": _lua(
        "lib/finish.lua",
        "if plan.finished[task] or plan.done[task] or named[task] then return false end",
        "if plan.done[task] then return false end",
    ),
    "R2, an accepted task leaves ready sets and leases": _lua(
        "lib/finish.lua", "if not whole then evict(job, plan) end", ""
    ),
    "R3, what may have run before runs alone": _lua(
        "lib/leases.lua", "if begun(task, i) then", "if false then"
    ),
    "R6, the same call has the same answer": _lua(
        "step.lua", "if seq == tonumber(state[1]) then return state[2] end", ""
    ),
    "R6, an older call is refused": _lua(
        "step.lua", "if seq < tonumber(state[1]) then", "if false then"
    ),
    "R6, a new call ends the old lease": _lua(
        "step.lua", "if state[3] and registered then", "if false then"
    ),
    "R6, renew compares the leases": _lua(
        "renew.lua", "if stored[2] and seq > tonumber(stored[1]) then", "if stored[2] then"
    ),
    "R7, a value is true when it was seen": _lua(
        "lib/finish.lua",
        "return type(value) == 'string' or redis.call('EXISTS', key.value(job, task, attempt)) == 1",
        "return true",
    ),
    "R7, a refused value is deleted unless it won": _lua(
        "lib/finish.lua",
        "if not record or string.sub(record, 2, 1 + ATTEMPT) ~= attempt then",
        "do",
    ),
    "R9, nobody is charged for a finished task": _lua(
        "unregister.lua",
        "if read_bits(key.finished(job), {begun})[begun] then charged = false end",
        "",
    ),
    "R11, unregister returns the lease": _lua(
        "lib/leases.lua",
        "end_lease(state[2], slot, kept or {}, begun)",
        "if false then end_lease(state[2], slot, kept or {}, begun) end",
    ),
    "R11, the unregistered do not lease": _lua(
        "step.lua",
        "local registered = state[1] and redis.call('SISMEMBER', key.slots(), slot) == 1",
        "local registered = true\n"
        "if not state[4] then state = {0, '', false, cmsgpack.pack({'python'})} end",
    ),
    "R16, sending is not freeing": _lua(
        "gather.lua",
        "local acked = tonumber(meta[3])",
        "local acked, asked = tonumber(meta[3]), cursor\ncursor = redis.call('LLEN', key.log(job))",
    ),
    "R16, one reader does not acknowledge for another": _lua(
        "gather.lua", "if cursor > acked and tonumber(meta[8]) == 0 and not meta[9] then", "if cursor > acked then"
    ),
    "R16, a detached job does not need its client": _lua(
        "recover.lua",
        "local kept = whole and tonumber(meta[2] or 0) > 0",
        "local kept = false",
    ),
    "R17, a block counts once": _lua(
        "put_block.lua",
        "if redis.call('HSETNX', key.blocks(arg.job), arg.number, arg.payload) == 0 then return state end",
        "redis.call('HSET', key.blocks(arg.job), arg.number, arg.payload)",
    ),
    "R3, a task that failed runs alone": _lua(
        "lib/retry.lua", "  redis.call('SADD', key.alone(job), try.task)\n", ""
    ),
    "R9, a failure with tries left is not the end": _lua(
        "step.lua", "if failed and not again then", "if failed then"
    ),
    "R2, a delayed task is not ready as well": _lua(
        "step.lua", "  if try.delay > 0 then kept[try.task] = true end\n", ""
    ),
    "R2, nor when its slot was killed": _lua(
        "unregister.lua", "local kept = delayed and {[begun] = true} or {}", "local kept = {}"
    ),
    "R2, an accepted task is not delayed": _lua(
        "lib/finish.lua", "    redis.call('ZREM', key.delayed(job), task)\n", ""
    ),
    "R12, what was delayed becomes ready": _lua(
        "lib/take.lua", "  if careful then due = release_due(job) end", ""
    ),
    "R18, a job with delayed tasks is active": _lua(
        "lib/ready.lua", "key.sets(job), key.delayed(job))", "key.sets(job))"
    ),
    "R18, who finds only delayed tasks is told when to look": _lua(
        "lib/take.lua", "  if due then retry = math.min(retry or due, due) end\n", ""
    ),
    "H13, what was given back may be anywhere": _lua(
        "step.lua", "current and not held[3] and", "current and"
    ),
    "H13, only what did not begin is given back": _lua(
        "give_back.lua", "if i <= begun then", "if i < begun then"
    ),
    "R6, only the lease that is meant is given back": _lua(
        "give_back.lua", "if not job or tonumber(stored[1]) ~= seq then return 'over' end", ""
    ),
    "R18, a call leaves the idle sets": _lua(
        "step.lua", "  if state[8] then leave_idle(slot) end\n", ""
    ),
    "R18, what becomes ready wakes": _lua(
        "lib/ready.lua", "    wake_for(job, 0, #tasks - (tag ~= '' and wake_slot(tag) or 0))\n", ""
    ),
    "R18, only the registered are woken": _lua(
        "lib/leases.lua", "  leave_idle(slot)\n", ""
    ),
    "R18, a job with nothing ready is not active": _lua(
        "lib/ready.lua", "redis.call('ZREM', key.active(), job)", ""
    ),
    "R3, who is told to run a task alone does": Ablation(off="R3"),
    "R5, a value that nobody needs is not kept": _lua(
        "lib/finish.lua", "if uses[i] > (inside[task] or 0) then", "if true then", "input lost"
    ),
    "R7, a value is named by its attempt": Ablation(
        (
            Patch(
                "step.lua",
                "local attempt = string.sub(slot, 1, 16) .. string.format('%08x', seq - 1)",
                "local attempt = string.rep('0', 24)",
            ),
        ),
        off="R7 task",
    ),
    "R7, a value is born with an expiry": Ablation(off="R7 expiry"),
    "R8, nothing is kept before its verdict": Ablation(off="R8"),
    "R9, a late failure never counts": _lua(
        "step.lua", "local counts = failure and alive and current and", "local counts = failure and alive and"
    ),
    "R9, only the lease that the slot was running is charged": _lua(
        "unregister.lua",
        "local known = tonumber(stored[1]) == tonumber(arg.seq)",
        "local known = true",
        "slot dies",
        "saved",
        "rolled back",
    ),
    "R10, a missing value is a question": Ablation(off="R10"),
    "R10, a task whose input is gone is parked": _lua(
        "lib/leases.lua",
        "if not (parks and redis.call('SISMEMBER', key.parked(job), task) == 1) then",
        "do",
    ),
    "R13, what a slot keeps is of one epoch": Ablation(off="R13", often=("saved", "rolled back")),
    "R13, an unsealed job has another epoch at once": _lua(
        "lib/damage.lua",
        "redis.call('HEXISTS', key.job(job), 'sealed') == 0 then new_epoch(job) end",
        "false then new_epoch(job) end",
        "saved",
        "rolled back",
        "client dies",
    ),
    "R13, no slot waits for a job that nobody rebuilds": _lua(
        "step.lua", "(meta[3] or meta[5] and meta[6])", "(meta[3] or meta[5])", "saved", "rolled back", "client dies"
    ),
    "R14, who was away himself judges nobody": Ablation(off="R14"),
    "R15, nothing is made of a job that ended": _lua(
        "put_block.lua", "if state ~= 'running' then return state end", ""
    ),
    "R15, only create makes a job, and only once": _lua(
        "create.lua", "if redis.call('EXISTS', key.job(arg.job)) == 1 then return 'exists' end", ""
    ),
    "R15, a job that ended settles no edges": _lua(
        "lib/settle.lua", "if meta[1] == 'running' and not meta[2] then settle_edges(job) end", "settle_edges(job)"
    ),
    "R17, a job without its restrictions is not made": _lua(
        "create.lua",
        "    or #hard > 0 and redis.call('EXISTS', key.new_restrict(arg.job)) == 0 then\n"
        "  return 'unstaged'\n"
        "end\n",
        " then\n"
        "  return 'unstaged'\n"
        "end\n"
        "if redis.call('EXISTS', key.new_restrict(arg.job)) == 0 then hard = {} end\n",
        "saved",
        "rolled back",
    ),
    "R19, user code wishes, the engine takes": _lua(
        "lib/wished.lua", "if redis.call('ZREM', set_name(job, set), task) == 1 then", "do redis.call('ZREM', set_name(job, set), task)"
    ),
    "R20, a job with edges to settle is not done": _lua(
        "lib/ending.lua", "and redis.call('EXISTS', key.settle(job)) == 0 then", "then"
    ),
    "R20, a rebuild counts what was to be settled": _lua(
        "rebuild.lua",
        "redis.call('UNLINK', key.sets(job), key.parked(job), key.settle(job))",
        "redis.call('UNLINK', key.sets(job), key.parked(job))",
    ),
    "R21, what finishes after the end is not accepted": _lua(
        "step.lua",
        "local alive = meta[1] == 'running' and meta[2] == arg.epoch",
        "local alive = meta[2] == arg.epoch",
    ),
    "R22, impure tasks are made again with all that came of them": Ablation(off="pure"),
    "Nested, it ends with the job whose task waits for it": _lua(
        "lib/ending.lua", "for _, child in ipairs(redis.call('SMEMBERS', key.children(job))) do",
        "for _, child in ipairs({}) do", "computes"
    ),
    "Nested, it is not begun after that": _lua(
        "create.lua", "    end_job(arg.job, 'cancelled', cmsgpack.pack({'cancelled', -1, ORPHAN, ''}))\n", "", "computes"
    ),
    "Nested, it comes first": _lua(
        "create.lua", "if above then priority = math.max(priority, above + NESTED) end", "", "computes"
    ),
    "Nested, its parent lends what it holds": _lua(
        "lend.lua", "redis.call('HDEL', key.slot(arg.slot), 'holds')", "", "computes", "needs"
    ),
    "Nested, who waits for what is lent is woken": _lua(
        "lend.lua", "pass_on(1)", "", "computes", "needs"
    ),
    "Nested, an old call lends nothing": _lua(
        "lend.lua", "or tonumber(state[1]) ~= tonumber(arg.seq) then", "then", "computes"
    ),
    "Resources, a worker gives no more than it has": _lua(
        "lib/take.lua", "and has_room(slot, wanted) then", "then"
    ),
    "Resources, a lease that ended holds nothing": _lua(
        "step.lua", "  if state[6] then redis.call('HDEL', key.slot(slot), 'holds') end\nend\nif failed", "end\nif failed"
    ),
    "Constants, who sweeps the job knows of them": _lua(
        "announce.lua", "redis.call('SADD', key.consts(arg.job), arg.digest)\n", "", "client dies", "job cancelled"
    ),
    "Constants, they live as long as the job": _lua(
        "put_block.lua", "  redis.call('PEXPIRE', key.const(arg.job, digest), life) -- born with an expiry of minutes\n", "", "much time passes"
    ),
    "Constants, a block without them is not taken": _lua(
        "put_block.lua", "if redis.call('EXISTS', key.const(arg.job, digest)) == 0 then return state end", "", "saved", "rolled back"
    ),
    "Ordered, the lowest number goes first": _lua(
        "step.lua", "meta[11] or meta[12] or meta[13]", "meta[11] or meta[13]"
    ),
    "Tags, what is near to a slot is its own for a while": _lua(
        "lib/take.lua", "    elseif age >= patience or redis.call('SISMEMBER', key.slots(), set) == 0 then\n", "    elseif true then\n"
    ),
    "Tags, who carries a soft one comes first for a while": _lua(
        "lib/take.lua", "        elseif age >= patience then\n", "        elseif true then\n"
    ),
    "Tags, all are woken for what is soft": _lua(
        "lib/ready.lua", "  if wanted.soft then wake(python, python, count) end -- they are told when to look again\n", ""
    ),
    "Run again, it has another epoch": _lua(
        "rerun.lua", "'epoch', fresh, 'damaged', '1'", "'damaged', '1'", "run again"
    ),
    "Run again, it is rebuilt first": _lua(
        "rerun.lua", ", 'damaged', '1', 'frozen', 'nobody', 'frozen_at', 0)", ")"
    ),
    "Run again, tries and deaths begin at none": _lua(
        "rerun.lua", "redis.call('DEL', key.deaths(job), key.tries(job))", "", "run again"
    ),
    "Suspended, a queue gives no lease": _lua(
        "lib/take.lua", "if redis.call('HEXISTS', key.queue(), 'suspended') == 1 then", "if false then", "queue suspended"
    ),
    "Suspended, an old call does not undo a newer one": _lua(
        "suspend.lua", "if since ~= 0 then return 'late' end", "", "queue suspended"
    ),
    "Suspended, who sleeps is woken at the end": _lua(
        "suspend.lua", "for _, slot in ipairs(redis.call('SMEMBERS', key.slots())) do wake_slot(slot) end", "", "queue suspended"
    ),
    "H30, what frees memory works when it is full": _lua(
        "lib/full.lua", "local function write_when_full() redis.call('HDEL', key.queue(), '') end", "local function write_when_full() end"
    ),
}  # fmt: skip

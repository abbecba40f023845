"""When what is hit, and how hard: a function of the seed and the length of the storm."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

#: Seconds without a sign of life after which a worker of the storm counts as dead, and between two
#: looks. Shorter than the defaults, so that there is room for many such deaths in a minute.
ALIVE_EXPIRY, FT_INTERVAL = 2.0, 1.0
#: Faults a second.
RATE = 1.25
#: The first fault, and the calm at the end, in seconds.
CALM = 0.5

#: kind -> (weight, shortest, longest time that it lasts in seconds)
KINDS: dict[str, tuple[int, float, float]] = {
    "slot killed": (16, 0, 0),
    "slot frozen": (6, 0.05, ALIVE_EXPIRY / 2),
    "slot frozen long": (2, ALIVE_EXPIRY, 2 * ALIVE_EXPIRY),
    "worker killed": (5, 0, 2),
    "worker frozen": (4, 0.05, ALIVE_EXPIRY / 2),
    "worker frozen long": (3, 1.5 * ALIVE_EXPIRY + FT_INTERVAL, 3 * ALIVE_EXPIRY),
    "supervisor killed": (3, 0, 2),
    "supervisor frozen long": (3, 1.5 * ALIVE_EXPIRY + FT_INTERVAL, 3 * ALIVE_EXPIRY),
    "worker leaves": (4, 0, 2),
    "worker joins": (4, 0, 0),
    "connection killed": (10, 0, 0),
    "all connections killed": (3, 0, 0),
    "connections cut": (8, 0, 0),
    "request lost": (8, 0, 0),
    "reply lost": (12, 0, 0),
    "reply cut": (6, 0, 0),
    "network held": (4, 0.1, 1.5),
    "scripts flushed": (6, 0, 0),
    "clients paused": (3, 0.1, 1.5 * ALIVE_EXPIRY),
    "server frozen": (3, 0.05, ALIVE_EXPIRY / 2),
    "server frozen long": (1, ALIVE_EXPIRY, 2 * ALIVE_EXPIRY),
    "server killed": (4, 0, 1.5 * ALIVE_EXPIRY),
    "client killed": (3, 0, 0),
}


@dataclass(frozen=True)
class Fault:
    """One thing that happens to the storm's processes.

    Parameters
    ----------
    at
        Seconds after the start.
    kind
        A key of `KINDS`.
    dice
        Chooses who is hit, among those who are there by then: 0 to 1.
    seconds
        How long it lasts; for workers that are gone, until another one comes.
    """

    at: float
    kind: str
    dice: float
    seconds: float


def schedule(
    seed: int, seconds: float, rate: float = RATE, kinds: Sequence[str] = tuple(KINDS)
) -> list[Fault]:
    """Return the faults of a storm, in order: as a Poisson process, `rate` of them a second."""
    rng = random.Random(f"faults of {seed}")
    weights = [KINDS[kind][0] for kind in kinds]
    faults = []
    at = CALM + rng.expovariate(rate)
    while at < seconds - CALM:
        (kind,) = rng.choices(kinds, weights)
        _, least, most = KINDS[kind]
        faults.append(Fault(at, kind, rng.random(), rng.uniform(least, most)))
        at += rng.expovariate(rate)
    return faults

"""What a slot keeps of loops after their blocks are gone, for a while. No I/O.

The functions of a loop stay for its next window of calls, which would have to set them up again.
But they hold what `worker_init` loaded, and files that are open.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

__all__ = ["MOST", "leave", "let_go", "stay"]

#: Loops whose functions stay, and seconds for which an idle slot keeps them; more of them while all
#: are asked for, as those of loops that go on at once. A slot does not know which have ended, and
#: with a model in each those of one loop after the other would fill its memory.
MOST, LONGEST, SHORT = 2, 60.0, 5.0

#: Token of the loop -> its functions, and when they were last asked for.
_staying: OrderedDict[str, tuple[Any, float]] = OrderedDict()


def stay(token: str, thing: Any, now: float) -> None:
    """Keep a loop's functions; those of others go that nobody asked for just now."""
    _staying[token] = thing, now
    _staying.move_to_end(token)
    for other in list(_staying)[:-MOST]:
        if now - _staying[other][1] > SHORT:
            del _staying[other]


def leave(token: str) -> None:
    """Keep a loop's functions no longer: nothing of it is to come."""
    _staying.pop(token, None)


def let_go(now: float = math.inf) -> None:
    """Let go those that nobody asked for lately; without a time all of them."""
    for token in [token for token, (_, asked) in _staying.items() if now - asked > LONGEST]:
        del _staying[token]

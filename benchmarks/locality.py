"""Whether a task runs where its input is: chains of two tasks with a large value between."""

import redis

from benchmarks.graph import Graph
from benchmarks.peers import Get
from benchmarks.report import Figure
from benchmarks.tasks import compare_origin, make_block

BAR_SHARE = 0.95


def locality(get: Get, server: redis.Redis, chains: int, size: int) -> list[Figure]:
    """Measure how many second tasks ran in the process that made their input.

    ``chunk_size=1`` keeps a slot from running a chain in one lease, where the question would
    not come up. Two answers: what the tasks saw, and the bytes that the server sent. The
    second also sees a value that was fetched although it was at hand, but not one that
    went from slot to slot past the server.
    """
    graph = Graph()
    blocks = [graph.add(("block", i), make_block, size) for i in range(chains)]
    graph.ask(graph.add(("same", i), compare_origin, block) for i, block in enumerate(blocks))
    before = bytes_sent(server)
    same = get(graph.dsk, graph.keys, chunk_size=1)
    sent = bytes_sent(server) - before
    return [
        Figure(
            f"share of {chains} second tasks in their input's process",
            sum(same) / chains,
            "",
            BAR_SHARE,
            at_least=True,
        ),
        # All that is sent counts as inputs fetched: the outputs are a byte each, and what
        # the engine's own traffic adds makes the figure worse, never better.
        Figure(
            f"share of their {chains * size / 1e6:g} MB not sent by the server",
            1 - sent / (chains * size),
            "",
            BAR_SHARE,
            at_least=True,
        ),
    ]


def bytes_sent(server: redis.Redis) -> int:
    """Return what the server has sent to all its clients since it started."""
    return int(server.info("stats")["total_net_output_bytes"])

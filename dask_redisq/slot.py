"""A slot: one process with one thread that leases tasks, runs them and reports; see `slot_loop`.

It is started by its supervisor, which registered it. It ends by SIGTERM (after the task in
hand), with its supervisor, or when it is told to.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import os
import signal
import socket
import sys
import threading
from typing import Any

from dask.system import cpu_count

from dask_redisq.allowance import Allowance
from dask_redisq.errors import SecretError
from dask_redisq.files import SlotFiles
from dask_redisq.host import memory
from dask_redisq.labels import Labelled
from dask_redisq.link import Link
from dask_redisq.page import Page
from dask_redisq.preload import preload_all
from dask_redisq.secret import find_secret
from dask_redisq.serving import serve
from dask_redisq.settings import setting
from dask_redisq.slot_loop import Slot
from dask_redisq.tags import SlotTags, carry
from dask_redisq.versions import python_tag

__all__ = ["main"]


def _die_with_parent(life: int) -> None:
    """End this process when its supervisor ends, however that ends.

    The kernel does it on Linux, also while C code holds the GIL; elsewhere a thread sees the
    end of the pipe whose other end only the supervisor holds.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    def watch() -> None:
        # A signal that this thread took would not interrupt the main thread's wait.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        os.read(life, 1)
        os._exit(1)

    threading.Thread(target=watch, name="life", daemon=True).start()


def _first_tag(tags: list[str]) -> str:
    """Return the first tag that the worker's user gave it; empty if there is none.

    Those come before the Python's, behind the host's name.
    """
    given = tags[: tags.index(python_tag())] if python_tag() in tags else tags
    return next((tag for tag in given if tag != socket.gethostname()), "")


def main(argv: list[str] | None = None) -> None:
    """Run one slot as its supervisor starts it; the URL comes by environment."""
    parser = argparse.ArgumentParser(prog="python -m dask_redisq.slot")
    parser.add_argument("--slot", required=True)
    parser.add_argument("--page", type=int, required=True)
    parser.add_argument("--life", type=int, required=True)
    parser.add_argument("--queue", action="append", required=True)
    parser.add_argument("--tag", action="append", default=[])
    parser.add_argument("--where", required=True)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--files", required=True)
    parser.add_argument("--preload", action="append", default=[])
    parser.add_argument("--allowance", type=int)
    options = parser.parse_args(argv)
    _die_with_parent(options.life)
    # What a task printed before it killed this process is told with its death.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    import dask

    # As in Dask's own processes, a compute inside a task takes threads unless it is told otherwise.
    # And one on redisq.get goes to the queue that this slot serves first.
    dask.config.set({"scheduler": "threads", "redisq.queue": options.queue[0]})
    link = Link(os.environ["DASK_REDISQ__URL"], patience=None)
    page = Page(options.page)
    serve(os.environ["DASK_REDISQ__URL"], options.queue, page, options.where, options.slot)
    try:
        signer = find_secret()
    except SecretError as error:  # its supervisor found it: the file can be read once, or is gone
        page.give_up(f"they looked for the secret:\n{error}")
        sys.exit(1)
    tags = SlotTags(options.tag, _first_tag(options.tag))
    carry(tags)
    keep = int(memory() * setting("kept-memory") / options.slots)
    files = SlotFiles(f"{options.files}/{options.slot}", signer)
    allowance = None if options.allowance is None else Allowance(fd=options.allowance)
    slot = Slot(
        link, options.slot, options.queue, tags, page, options.where, signer, keep, files,
        allowance, awake=options.slots <= cpu_count(),
    )  # fmt: skip
    # First: what is preloaded may set logging up, with the streams as they are then.
    labelled: list[Any] = [Labelled(stream, page) for stream in (sys.stdout, sys.stderr)]
    sys.stdout, sys.stderr = labelled
    if why := preload_all(options.preload):
        page.give_up(why)  # its supervisor says so, once for all its slots if need be
        sys.exit(1)
    slot.warnings.open()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, slot.stop)
    slot.run()


if __name__ == "__main__":
    from dask_redisq.slot import main as run_slot  # not as __main__, which pickles would name

    run_slot()

"""A slow host and a fast one share a loop, balanced by pulling: section 3.3 of the vignette.

Two network namespaces with a cable between them stand for the hosts. The server runs on the fast
one, and what comes over the cable is signed with a secret, without which a worker is refused.
Needs Linux, root and the program ip (iproute2). How fast a host is, is played: its tasks sleep for
as long as its variable TASK_SECONDS says.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import click

import dask_redisq as redisq
from dask_redisq.server import find_server

FAST, SLOW = f"fast{os.getpid()}", f"slow{os.getpid()}"
ADDRESS = {FAST: "10.9.7.1", SLOW: "10.9.7.2"}


@click.command(help=__doc__)
@click.option("--tasks", default=200, show_default=True)
def main(tasks):
    """Build two hosts, run a loop on both, and show who did how much."""
    if why := why_not():
        print(f"skipped: {why}")
        return
    os.environ["DASK_REDISQ__SECRET"] = secrets.token_hex(16)  # on each host, by a file say
    with ExitStack() as end:
        hosts(end)
        folder = Path(end.enter_context(tempfile.TemporaryDirectory()))
        start_on(
            end, FAST, find_server(), "--bind", ADDRESS[FAST], "--port", "7000", "--save", "",
            "--protected-mode", "no", "--unixsocket", f"{folder}/s", "--dir", f"{folder}",
        )  # fmt: skip
        while not (folder / "s").exists():
            time.sleep(0.05)
        for host, seconds in ((FAST, "0.02"), (SLOW, "0.08")):
            start_on(
                end, host, sys.executable, "-m", "dask_redisq.cli", "worker", "shared",
                "--url", f"redis://{ADDRESS[FAST]}:7000/0", "--nworkers", "2", "--tag", host[:4],
                TASK_SECONDS=seconds,
            )  # fmt: skip
        with redisq.Queue("shared", f"unix://{folder}/s") as queue:
            queue.wait_for_workers(4)
            begin = time.monotonic()
            done = Counter(queue.times(tasks, work))
            print(f"{tasks} tasks in {time.monotonic() - begin:.1f} s")
            print(f"fast: {done['fast']}, slow: {done['slow']}")
            queue.remove()


def work():
    """Be as fast as the host is, and say which one it is."""
    time.sleep(float(os.environ["TASK_SECONDS"]))
    return redisq.get_tag()


def why_not():
    """Return why there can be no namespaces here, if that is so."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need Linux, and root"
    if shutil.which("ip") is None:
        return "network namespaces need the program ip (iproute2)"
    if ip("netns", "add", FAST, check=False):
        return "no network namespace can be made here"
    ip("netns", "del", FAST)
    return ""


def ip(*words, check=True):
    """Run the program ip; return its exit code."""
    return subprocess.run(["ip", *words], check=check, capture_output=True).returncode


def hosts(end):
    """Make two namespaces, and a cable between them, until `end`."""
    for name in ADDRESS:
        ip("netns", "add", name)
        end.callback(ip, "netns", "del", name)
    ip("-n", FAST, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", SLOW)
    for name, address in ADDRESS.items():
        ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
        ip("-n", name, "link", "set", "cable", "up")
        ip("-n", name, "link", "set", "lo", "up")


def start_on(end, host, *command, **variables):
    """Start a program on a host, until `end`."""
    program = subprocess.Popen(
        ["ip", "netns", "exec", host, *command], env={**os.environ, **variables},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    end.callback(program.wait)
    end.callback(program.terminate)


if __name__ == "__main__":
    main()

"""What a worker takes that has nothing to do."""

import time

import psutil
import redis

from benchmarks.report import Figure

BAR_PERCENT = 1.0

#: Start-up is over after so long.
SETTLE_SECONDS = 3.0


def idle(server: redis.Redis, seconds: float) -> list[Figure]:
    """Measure the processor time of a worker's processes over some idle seconds.

    The worker is all that this process started, its supervisor and slots, but the server.
    """
    time.sleep(SETTLE_SECONDS)
    server_pid = int(server.info("server")["process_id"])
    started = psutil.Process().children(recursive=True)
    worker = [process for process in started if process.pid != server_pid]
    if not worker:
        msg = "no worker process found among this one's children"
        raise RuntimeError(msg)
    watched = {
        "worker": worker,
        "server": [psutil.Process(server_pid)],
        "client": [psutil.Process()],
    }
    before = {name: _cpu_seconds(processes) for name, processes in watched.items()}
    start = time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - start
    return [
        Figure(
            f"idle {name}, {len(processes)} processes",
            (_cpu_seconds(processes) - before[name]) / elapsed * 100,
            "% core",
            BAR_PERCENT if name == "worker" else None,
        )
        for name, processes in watched.items()
    ]


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return float(sum(time.user + time.system for time in times))

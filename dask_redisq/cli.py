"""The commands: ``dask-redisq-worker``, ``dask redisq-worker``, ``dask-redisq``."""

# Every call of Dask's command loads this module to learn what we add to it, so no more than
# click is imported here; what a command needs, its function imports.
from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from dask_redisq.supervisor import WorkerOptions

__all__ = ["main", "worker"]

_NO_URL = (
    "no server to work for: give --url, or set redisq.url (environment variable DASK_REDISQ__URL)"
)
_SEEN_BY_ALL = (
    "warning: a password in --url is visible to every user of this machine; "
    "use DASK_REDISQ__URL or --password-file"
)


@click.command(name="redisq-worker", context_settings={"show_default": True})
@click.argument("queues", metavar="[QUEUE]...", nargs=-1)
@click.option(
    "--url",
    metavar="URL",
    help="The server: redis://HOST:PORT/DB, rediss://..., unix://PATH. A password does not belong "
    "here, where every user of the machine sees it.  [default: redisq.url, DASK_REDISQ__URL]",
)
@click.option(
    "--password-file",
    type=click.File(),
    help="File whose first line is the server's password; - is the standard input.",
)
@click.option(
    "--secret-file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="File of mode 0600 whose first line is the secret that signs payloads, the client's too.  "
    "[default: DASK_REDISQ__SECRET, else the file redisq.secret-file]",
)
@click.option(
    "--allow-unsigned",
    is_flag=True,
    default=False,
    help="Go without a secret on a server that others reach: they can run code here.",
)
@click.option(
    "--nworkers",
    metavar="N",
    type=click.IntRange(min=1),
    help="Number of slots: processes that run tasks, one at a time each.  [default: one per core]",
)
@click.option("--name", help="A name for people to read.  [default: HOST-PID]")
@click.option(
    "--tag",
    "tags",
    metavar="TAG",
    multiple=True,
    help="A word that the slots carry; may repeat. The host's name is always one.",
)
@click.option(
    "--resources",
    metavar="NAME=AMOUNT,...",
    callback=lambda _, __, given: _resources(given),
    help="What the slots share, such as GPU=1: tasks that need it run while there is enough.",
)
@click.option(
    "--preload",
    metavar="MODULE",
    multiple=True,
    help="What each slot imports before its first task: a module, or a file, and after a colon a "
    "function that it calls; may repeat. The worker ends if that raises at the start.",
)
@click.option(
    "--alive-expiry",
    metavar="SECONDS",
    type=float,
    help="How long after its last sign of life the worker counts as dead.  "
    "[default: redisq.alive-expiry]",
)
@click.option(
    "--death-timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=60.0,
    help="How long to look for the server at the start.",
)
@click.option(
    "--max-tasks",
    metavar="N",
    type=click.IntRange(min=1),
    help="End after N tasks, in all slots together.  [default: no limit]",
)
@click.option(
    "--max-idle",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    help="End after so long without a task in any slot.  [default: stay]",
)
@click.option(
    "--burst",
    is_flag=True,
    default=False,
    help="End when no job of the queues is unfinished, at once if there is none.",
)
@click.option(
    "--lifetime",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    help="End after so long, once the tasks in hand are finished.  [default: stay]",
)
@click.option(
    "--lifetime-stagger",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Have up to so much more or less of it, by chance.",
)
@click.option(
    "--linger",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Stay for so long after the last queue was removed.",
)
@click.option(
    "--log-file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Append what the worker and its tasks write to this file.  [default: stdout, stderr]",
)
@click.version_option(package_name="dask-redisq")
def worker(
    queues: tuple[str, ...],
    *,
    url: str | None,
    password_file: TextIO | None,
    secret_file: str | None,
    allow_unsigned: bool,
    nworkers: int | None,
    name: str | None,
    tags: tuple[str, ...],
    resources: dict[str, float],
    preload: tuple[str, ...],
    alive_expiry: float | None,
    death_timeout: float,
    max_tasks: int | None,
    max_idle: float | None,
    burst: bool,
    lifetime: float | None,
    lifetime_stagger: float,
    linger: float,
    log_file: str | None,
) -> None:
    """Run tasks from the QUEUEs (default: the setting redisq.queue) of a Redis server.

    Of several QUEUEs those named first come first.
    The worker runs until it is told to stop: by SIGTERM or Ctrl-C, when it drains, or by the
    removal of its queues; or as long as the options say, and then its exit code is 0, too.
    Settings are Dask's: files in ~/.config/dask, or variables such as DASK_REDISQ__URL.
    """
    from dask_redisq.errors import RedisqError
    from dask_redisq.retirement import Terms
    from dask_redisq.worker import plan_worker

    try:
        options = plan_worker(
            queues,
            _server_url(url, password_file),
            Terms(max_tasks, max_idle, burst, lifetime, lifetime_stagger, linger),
            nworkers=nworkers,
            name=name,
            tags=tags,
            resources=resources,
            preload=preload,
            death_timeout=death_timeout,
            alive_expiry=alive_expiry,
            secret_file=secret_file,
            allow_unsigned=allow_unsigned,
        )
    except (ValueError, RedisqError, OSError) as error:
        raise click.UsageError(str(error)) from None
    _set_up_log(log_file)
    sys.exit(_run(options))


def _resources(given: str | None) -> dict[str, float]:
    """Read ``NAME=AMOUNT``, separated by commas or spaces, as distributed's workers do."""
    from dask_redisq.annotations import check_resources

    pairs = [pair.partition("=") for pair in (given or "").replace(",", " ").split()]
    try:
        return check_resources({name: amount for name, _, amount in pairs})
    except ValueError:
        raise click.BadParameter(f"it is like GPU=1,MEMORY=10e9, not {given!r}") from None


def _server_url(url: str | None, password_file: TextIO | None) -> str:
    """Put the server's URL together, password included."""
    from urllib.parse import urlsplit

    from dask_redisq.passwords import with_password
    from dask_redisq.settings import setting

    if url and urlsplit(url).password:
        click.echo(_SEEN_BY_ALL, err=True)
    url = url or setting("url")
    if not url:
        raise click.UsageError(_NO_URL)
    if password_file is None:
        return url
    password = password_file.readline().rstrip("\r\n")
    if not password:
        raise click.UsageError(f"{password_file.name}: its first line, the password, is empty")
    return with_password(url, password)


def _set_up_log(log_file: str | None) -> None:
    """Send the log to stderr, and all that we and our slots write to the file, if there is one."""
    import logging
    import os

    if log_file is not None:
        # The descriptors, not only the log: a slot's prints and the last words of a crash belong
        # into the file too, and slots inherit descriptors.
        try:
            file = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise click.FileError(log_file, error.strerror) from None
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        force=True,  # a library may have been there first
    )


def _run(options: WorkerOptions) -> int:
    """Run the worker to its end; what the user can mend is said in one line."""
    from dask_redisq.errors import RedisqError
    from dask_redisq.supervisor import supervise

    try:
        return supervise(options)
    except RedisqError as error:
        raise click.ClickException(str(error)) from error


@click.group(name="dask-redisq")
@click.version_option(package_name="dask-redisq")
def main() -> None:
    """Run Dask graphs on workers that share nothing but a Redis server."""


@main.command()
@click.option(
    "--nworkers",
    metavar="N",
    type=click.IntRange(min=1),
    help="Number of worker processes.  [default: one per core]",
)
def demo(nworkers: int | None) -> None:
    """Show that it works: pi by Monte Carlo, an array and a data frame, each checked.

    Everything is started for it, a Redis server too, and nothing is left.
    """
    from dask_redisq.demo import run_demo
    from dask_redisq.errors import RedisqError

    try:
        sys.exit(run_demo(nworkers))
    except RedisqError as error:
        raise click.ClickException(str(error)) from error


main.add_command(worker, "worker")


if __name__ == "__main__":
    main(prog_name="python -m dask_redisq.cli")

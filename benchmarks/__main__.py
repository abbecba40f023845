"""The command line: ``python -m benchmarks COMMAND``."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks import report
from benchmarks.peers import PEERS, Get, Peers, open_peers
from benchmarks.run import Settings
from benchmarks.run import overhead as run_overhead
from benchmarks.shapes import BARRED, SHAPES
from benchmarks.storm.schedule import KINDS

SHAPE_SETS = {"all": tuple(SHAPES), "bars": BARRED}


def _json_file(context: click.Context, _: click.Parameter, given: Path | None) -> Path:
    return given or Path(f"bench-{context.info_name}.json")


json_option = click.option(
    "--json",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_json_file,
    help="Where to write JSON; by default bench-COMMAND.json, in this directory.",
)
repeat_option = click.option("--repeat", type=click.IntRange(1), default=5, show_default=True)


def names_of(
    known: Iterable[str], sets: Mapping[str, tuple[str, ...]]
) -> Callable[[click.Context, click.Parameter, str], tuple[str, ...]]:
    """Return a callback that reads names separated by commas, some of which stand for sets."""
    meaning = {name: (name,) for name in known} | dict(sets)

    def read(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
        words = value.split(",")
        if unknown := [word for word in words if word not in meaning]:
            msg = f"{', '.join(unknown)}: not among {', '.join(meaning)}"
            raise click.BadParameter(msg)
        return tuple(dict.fromkeys(name for word in words for name in meaning[word]))

    return read


def peers_option(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option that chooses peers."""
    return click.option(
        "--peers",
        callback=names_of(PEERS, {}),
        default=default,
        show_default=True,
        help="Which schedulers, separated by commas; one that is not installed is left out.",
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def main(ctx: click.Context) -> None:
    """Measure what running a graph costs. See benchmarks/README.md for what the numbers mean."""
    ctx.obj = report.machine()  # now: the load is to be that of others


@main.command()
@click.option("--quick", is_flag=True, help="Small graphs: a trial, not a measurement.")
@peers_option(",".join(PEERS))
@click.option(
    "--shapes",
    callback=names_of(SHAPES, SHAPE_SETS),
    default="all",
    show_default=True,
    help="Which graphs, separated by commas; 'bars' is those that have a bar.",
)
@repeat_option
@click.option(
    "--budget",
    type=float,
    default=20.0,
    show_default=True,
    help="Seconds a peer may take on a shape before it sits out further rounds.",
)
@json_option
def overhead(
    *,
    quick: bool,
    peers: tuple[str, ...],
    shapes: tuple[str, ...],
    repeat: int,
    budget: float,
    path: Path,
) -> None:
    """Time per empty task on many shapes of graphs, against other schedulers."""
    facts = click.get_current_context().obj
    settings = Settings(quick=quick, repeat=repeat, budget=budget)
    with open_peers(peers) as opened:
        rows = run_overhead(opened.gets, shapes, settings, report.progress)
    report.progress_done()
    report.print_machine(facts, opened.about)
    for peer, why in opened.missing.items():
        click.echo(f"without {peer}: {why}")
    report.print_overhead(rows)
    report.save(
        path,
        machine=facts,
        about=opened.about,
        missing=opened.missing,
        settings=asdict(settings),
        shapes={row.label: row.as_json() for row in rows},
    )
    if any(row.failures for row in rows):
        raise SystemExit(1)


@main.command()
@peers_option("sync,redisq")
@click.option("--repeat", type=click.IntRange(2), default=200, show_default=True)
@json_option
def latency(*, peers: tuple[str, ...], repeat: int, path: Path) -> None:
    """One delayed(inc)(1) on a warm queue, and submit to the first line of the task."""
    from benchmarks.latency import latency as measure

    with _warm_peers("sync", *peers) as opened:
        _finish(measure(opened.gets, repeat), opened.about, path)


@main.command()
@peers_option("redisq")
@repeat_option
@json_option
def sleep(*, peers: tuple[str, ...], repeat: int, path: Path) -> None:
    """400 tasks that sleep 10 ms, against the ideal of two slots."""
    from benchmarks.sleep import sleep as measure

    with _warm_peers(*peers) as opened:
        _finish(measure(opened.gets, tasks=400, seconds=0.01, repeat=repeat), opened.about, path)


@main.command()
@peers_option("sync,redisq")
@repeat_option
@json_option
def callbacks(*, peers: tuple[str, ...], repeat: int, path: Path) -> None:
    """10,000 empty tasks under a progress bar and a profiler, against the same without."""
    from benchmarks.callbacks import callbacks as measure

    with _warm_peers(*peers) as opened:
        _finish(measure(opened.gets, tasks=10_000, repeat=repeat), opened.about, path)


@main.command()
@click.option("--quick", is_flag=True, help="A tenth of the tasks.")
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True)
@json_option
def scale(*, quick: bool, repeat: int, path: Path) -> None:
    """100,000 tasks against 10,000, and the memory that a waiting task takes in Redis."""
    from benchmarks.scale import growth, memory

    many = 10_000 if quick else 100_000
    with _warm_peers("redisq") as opened:
        figures = growth(opened.gets["redisq"], many // 10, many, repeat)
    _finish(figures + memory(many), opened.about, path)


@main.command()
@json_option
def locality(*, path: Path) -> None:
    """200 chains of two tasks with 1 MB between them: how many bytes had to move."""
    from benchmarks.cluster import open_queue, server_version
    from benchmarks.locality import locality as measure

    with open_queue() as (queue, server):
        _warm({"redisq": queue.get})
        figures = measure(queue.get, server, chains=200, size=1_000_000)
        _finish(figures, {"redisq": server_version(server)}, path)


@main.command()
@click.option("--quick", is_flag=True, help="A hundredth of the bytes.")
@json_option
def persist(*, quick: bool, path: Path) -> None:
    """A persisted array of 1 GB, reduced five times: how many bytes had to move."""
    from benchmarks.cluster import open_queue, server_version
    from benchmarks.persist import persist as measure

    with open_queue() as (queue, server):
        _warm({"redisq": queue.get})
        figures = measure(queue, server, chunks=125, size=80_000 if quick else 8_000_000)
        _finish(figures, {"redisq": server_version(server)}, path)


@main.command()
@click.option("--quick", is_flag=True, help="A hundredth of the tasks.")
@repeat_option
@json_option
def client(*, quick: bool, repeat: int, path: Path) -> None:
    """The client's own time for an array of 50,000 tasks."""
    from benchmarks.client import client as measure
    from benchmarks.cluster import open_queue, server_version

    with open_queue() as (queue, server):
        _warm({"redisq": queue.get})
        figures = measure(queue, 12 if quick else 120, repeat)
        _finish(figures, {"redisq": server_version(server)}, path)


@main.command()
@click.option("--quick", is_flag=True, help="A tenth of the work.")
@repeat_option
@json_option
def loops(*, quick: bool, repeat: int, path: Path) -> None:
    """Foreach and joblib against their peers; a pool that grows; the client's memory."""
    from benchmarks.cluster import open_queue, server_version
    from benchmarks.loops import elastic, foreach, joblib_calls, memory

    less = 10 if quick else 1
    with open_queue() as (queue, server):
        _warm({"redisq": queue.get})
        figures = foreach(queue, 10_000 // less, repeat)
        figures += joblib_calls(queue, 10_000 // less, repeat)
        figures += memory(queue, 1_000_000 // less)
        about = {"redisq": server_version(server)}
    _finish(figures + elastic(2000), about, path)


@main.command()
@click.option("--seconds", type=float, default=20.0, show_default=True)
@json_option
def idle(*, seconds: float, path: Path) -> None:
    """The processor time of a worker that has nothing to do."""
    from benchmarks.cluster import open_queue, server_version
    from benchmarks.idle import idle as measure

    with open_queue() as (queue, server):
        _warm({"redisq": queue.get})
        _finish(measure(server, seconds), {"redisq": server_version(server)}, path)


@main.command()
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Which storm.")
@click.option("--workers", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--patience",
    type=float,
    default=60.0,
    show_default=True,
    help="Seconds after the last fault at which a job that has not ended hangs.",
)
@click.option(
    "--kinds",
    callback=names_of(KINDS, {"all": tuple(KINDS)}),
    default="all",
    show_default=True,
    help="Which faults, separated by commas.",
)
@json_option
def storm(
    *,
    minutes: float,
    seed: int,
    workers: int,
    patience: float,
    kinds: tuple[str, ...],
    path: Path,
) -> None:
    """Random graphs, while slots, workers, connections and the server are killed and frozen."""
    from benchmarks.storm.storm import Settings as Storm
    from benchmarks.storm.storm import storm as run

    settings = Storm(minutes, seed, workers=workers, patience=patience, kinds=kinds)
    outcome, kept = run(settings, report.progress)
    report.progress_done()
    facts = click.get_current_context().obj
    report.print_machine(facts, {})
    for kind, count in outcome.faults.most_common():
        click.echo(f"    {count:>4} x {kind}")
    report.print_figures(outcome.figures())
    for line in outcome.troubles():
        click.echo(line, err=True)
    report.save(path, machine=facts, settings=asdict(settings), **outcome.as_json())
    if kept is not None:
        click.echo(f"NOT HELD: data, logs and runs are in {kept}", err=True)
    if not outcome.held:
        raise SystemExit(1)


@main.command()
@click.option("--alive-expiry", type=click.FloatRange(0.5), default=2.0, show_default=True)
@click.option("--ft-interval", type=click.FloatRange(1), default=1.0, show_default=True)
@repeat_option
@json_option
def recovery(*, alive_expiry: float, ft_interval: float, repeat: int, path: Path) -> None:
    """How soon tasks run again when a slot, a host or the server is killed."""
    from benchmarks.recovery import recovery as measure
    from benchmarks.storm.workers import Waits

    figures = measure(Waits(alive_expiry, ft_interval), repeat, report.progress)
    report.progress_done()
    _finish(figures, {}, path)
    if any(figure.met is False for figure in figures):
        raise SystemExit(1)


@contextmanager
def _warm_peers(*names: str) -> Iterator[Peers]:
    """Open and warm up the named peers, or say which one is missing and end."""
    with open_peers(names) as opened:
        if opened.missing:
            raise click.ClickException(str(opened.missing))
        _warm(opened.gets)
        yield opened


def _warm(gets: Mapping[str, Get]) -> None:
    graph = SHAPES["random"].graph(quick=True)
    for get in gets.values():
        get(graph.dsk, graph.keys)


def _finish(figures: Sequence[report.Figure], about: Mapping[str, str], path: Path) -> None:
    facts = click.get_current_context().obj
    report.print_machine(facts, about)
    report.print_figures(figures)
    report.save(path, machine=facts, about=about, figures=report.figures_as_json(figures))


if __name__ == "__main__":  # a spawned process imports this module again
    main(prog_name="python -m benchmarks")

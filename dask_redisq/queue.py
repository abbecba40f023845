"""A queue as its users see it: compute on it, look at it, remove it, close it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from dask.delayed import Delayed

from dask_redisq import client_lease
from dask_redisq.amounts import seconds
from dask_redisq.compute import compute_graph, persist_graphs, scatter, submit
from dask_redisq.frames import ShortTraceback
from dask_redisq.future import Future, attach, job_id
from dask_redisq.jobs import Jobs
from dask_redisq.keys import Keys, check_queue_name
from dask_redisq.loops import Loops
from dask_redisq.managed import Managed
from dask_redisq.passwords import redact
from dask_redisq.pool import Pool
from dask_redisq.serving import served_url
from dask_redisq.settings import setting
from dask_redisq.unnamed import server_url

__all__ = ["Queue"]


class Queue(Loops, Jobs, Managed):
    """A named family of Redis keys that workers listen on.

    Parameters
    ----------
    name : str, optional
        Text without braces; by default the setting ``redisq.queue``.
    url : str, optional
        ``redis://``, ``rediss://`` or ``unix://PATH``, with options of redis-py such as
        ``?ssl_ca_certs=/PATH/ca.crt``; by default the setting ``redisq.url``, and
        without that the private server of this process, started at the first use.

    Raises
    ------
    ValueError
        For a name that is empty or has braces.

    Examples
    --------
    >>> import dask
    >>> import dask_redisq as redisq
    >>> with redisq.Queue("jobs") as queue:  # doctest: +SKIP
    ...     dask.compute(dask.delayed(sum)([1, 2]), scheduler=queue.get)
    (3,)

    Without the ``with`` block its connections are closed by `close`, or when it is garbage.

    It can be pickled, in the body of a loop say: a slot that unpickles it has the queue of this
    name on the slot's own server, any other process the one of its settings. No URL travels, and
    none of the defaults (`set_chunk_size` and so on).
    """

    def __init__(self, name: str | None = None, url: str | None = None) -> None:
        self.name = check_queue_name(setting("queue") if name is None else name)
        self.keys = Keys(self.name)
        self._url = url
        self.defaults: dict[str, Any] = {}
        name = self.name  # not self, which would then be garbage only when somebody looks for it
        #: Its connections.
        self.pool = Pool(lambda: url or server_url(name))

    def __repr__(self) -> str:
        where = redact(self._url or setting("url") or "the private server")
        return f"<Queue {self.name} on {where}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _queue_here, (type(self), self.name)

    def __copy__(self) -> Self:
        return self  # and not what `__reduce__` gives, which may be on another server

    def __deepcopy__(self, _: object) -> Self:
        return self

    def __dask_tokenize__(self) -> tuple[str, str, str | None]:
        return ("redisq-queue", self.name, self._url)

    @property
    def url(self) -> str:
        """URL of its server; starts the private one if there is no other."""
        return self._url or server_url(self.name)

    # -- compute -----------------------------------------------------------------------

    def get(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        """Compute `keys` of the graph `dsk` on the workers of this queue: a Dask scheduler.

        Inside a task of this queue another slot works in its place while it waits.

        Parameters
        ----------
        dsk : Expr, HighLevelGraph or dict
            Whatever Dask passes.
        keys : hashable, or nested list of hashable
            What to return.
        chunk_size, chunksize : int, optional
            Tasks per lease at most; -1 spreads them evenly; by default by their duration.
        allowed_failures : int, default 3
            Deaths of its process at which a task fails the job.
        timeout : float, optional
            Seconds that a task may run; then its process is killed.
        retries : int, default 0
            How often a task that raises or takes too long runs again. Annotations of these two
            names go before them.
        locality_wait, retry_delay, ft_interval, alive_expiry, no_workers_timeout : float, optional
            Seconds; see ``redisq.yaml``.
        pure : bool, default True
            Whether a task that runs again gives the same value. If it does not, and a value is
            lost with its server, all that was made from it is made again as well.
        priority : int, default 0
            Jobs of a higher one come first; -4096 to 4096.
        workers : str or list of str, optional
            Names, hosts or tags: only such workers run the tasks, unless `allow_other_workers`.
        get_task : str, optional
            Lua that wishes which ready tasks a slot is given; see `dask_redisq.policies`.
        callbacks : iterable of Callback, optional
            Instead of those that are active; see ``callback-values`` in ``redisq.yaml``.
        cache : MutableMapping, optional
            Key -> value that is not computed again; constants of the graph are entered.
        rerun_exceptions_locally : bool, default False
            A task that raises runs again in this process, for a debugger.
        allow_disk_shuffle : bool, default False
            All workers see one temporary directory.
        **kwargs
            Keywords of other schedulers are ignored, as Dask's own do; one that none of them
            knows is warned about, once.

        Returns
        -------
        object
            The value of a single key; for a list a tuple, recursively.

        Raises
        ------
        KeyError, ValueError, RuntimeError
            For a key that is not in the graph, a missing dependency, a cycle, a `get_task` that
            does not compile or does not end; nothing was sent.
        BaseException
            What a task raised, as its own type, with the remote traceback.
        RedisqError
            What went wrong otherwise: see `dask_redisq.errors`.
        """
        with ShortTraceback():
            return compute_graph(self.pool, self.keys, dsk, keys, self.with_defaults(kwargs))

    def compute(
        self,
        *collections: Any,
        detach: bool = False,
        result_ttl: float = 86400.0,
        traverse: bool = True,
        optimize_graph: bool = True,
        **kwargs: Any,
    ) -> Future:
        """Submit Dask collections, and return a future without waiting.

        But for persisted values that they use: those are to be there first.

        Parameters
        ----------
        *collections : object
            Any number of them, also inside of lists, dicts and the like, as `dask.compute`
            takes them.
        detach : bool, default False
            Leave the job to the server and its workers: it does not need the future, nor this
            process, and any other one can `attach`. It is as durable as the server is: kept over
            a restart if that writes an append-only file, but for what it had not yet written.
        result_ttl : float, default 86400
            Seconds, counted from the end of a detached job, for which its results are kept.
        traverse, optimize_graph : bool, default True
            As for `dask.compute`.
        **kwargs
            Keywords of `get`, but for those of who waits: callbacks, cache and
            rerun_exceptions_locally.

        Returns
        -------
        Future
            Its result is what `dask.compute` returns, for one collection the value alone.

        Raises
        ------
        TypeError
            If there is no collection to compute; for a keyword of who waits.
        ValueError
            If `result_ttl` of a detached job is no number of seconds, or below one.

        Examples
        --------
        >>> future = queue.compute(x.sum())  # doctest: +SKIP
        >>> future.result()  # doctest: +SKIP
        1000000.0
        """
        options = {"traverse": traverse, "optimize_graph": optimize_graph}
        ttl = seconds("result_ttl", result_ttl, 1) if detach else None
        job, kept, answer, again = submit(self.pool, self.keys, collections, ttl, options, kwargs)
        return Future(self.pool, self.keys, job, answer, kept, None if detach else again)

    def persist(self, collections: Any, *, optimize_graph: bool = True, **kwargs: Any) -> Any:
        """Compute collections, and leave the values on the workers and the server.

        ``x.persist(scheduler=queue.get)`` and `dask.persist` come here. It does not wait, but
        for persisted values that the graph uses. Graphs that use the new collections read the
        values where they are. They are freed, all of one call together, when no collection or
        future in this process, and no job, needs them; a detached job does while its results stay.

        Parameters
        ----------
        collections : collection, or list of such
            What to compute.
        optimize_graph : bool, default True
            As for `dask.persist`.
        **kwargs
            Keywords of `get`, as for `compute`.

        Returns
        -------
        collection, or list of such
            As `collections`. `dask_redisq.futures_of` gives what to wait for.

        Examples
        --------
        >>> x = queue.persist(x)  # doctest: +SKIP
        >>> x.sum().compute(scheduler=queue.get), x.max().compute(scheduler=queue.get)
        ... # doctest: +SKIP
        """
        several = isinstance(collections, list | tuple)
        done = persist_graphs(
            self.pool,
            self.keys,
            collections if several else [collections],
            kwargs,
            optimize_graph=optimize_graph,
        )
        return done if several else done[0]

    def scatter(self, thing: Any, **kwargs: Any) -> Delayed:
        """Send an object to the workers once, for any number of later loops and graphs.

        It goes to the first slot that is free, and to the server; further slots read it when they
        first need it, and keep it in their memory (`redisq.kept-memory`).

        Parameters
        ----------
        thing : object
            What can be pickled.
        **kwargs
            Keywords of `get`: ``workers`` says where it is to be.

        Returns
        -------
        Delayed
            What stands for it in Dask graphs, ``dask.delayed(fn)(table)``, and among the
            arguments of `foreach` or an `Executor`. It is freed when nobody holds one any more.

        Examples
        --------
        >>> table = queue.scatter(table)  # doctest: +SKIP
        >>> queue.foreach(look_up, words, itertools.repeat(table))  # doctest: +SKIP
        """
        return scatter(self.pool, self.keys, thing, kwargs)

    def attach(self, job: str | Mapping[str, Any] | Future) -> Future:
        """Return the future of a detached job, in whatever process; its id is in `jobs`.

        Parameters
        ----------
        job : str, row or Future
            The id of the future that `compute` returned, or what `cancel` takes as well.

        Raises
        ------
        JobLost
            If there is no such job: the server lost it, or its results expired.
        JobCancelled
            If somebody cancelled it.
        RedisqError
            If it is not detached, or its upload is not complete.

        Examples
        --------
        >>> redisq.Queue("jobs").attach(job).result()  # doctest: +SKIP
        1000000.0
        """
        return attach(self.pool, self.keys, job_id(job))

    # -- close ---------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connections that this object holds for its next calls.

        The queue itself stays, with its workers and jobs: see `remove`. A call that is under way
        in another thread goes on, and its connection is closed when it ends. Any number of
        closes are as good as one, and a later call connects again.

        Examples
        --------
        >>> import dask_redisq as redisq
        >>> queue = redisq.Queue("jobs")
        >>> queue.stats()["workers"]  # doctest: +SKIP
        4
        >>> queue.close()
        """
        self.pool.close()
        client_lease.settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _queue_here(kind: type[Queue], name: str) -> Queue:
    """Return a queue as the process that unpickles it has it."""
    return kind(name, served_url() or None)

"""The loops of a `Queue`, and their defaults: the doors of doRedis that are not of Dask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from inspect import signature
from typing import Any

from dask_redisq.amounts import whole
from dask_redisq.calls import call_settings
from dask_redisq.combine import NOTHING, Combiner
from dask_redisq.foreach import run_loop
from dask_redisq.frames import ShortTraceback
from dask_redisq.keys import Keys
from dask_redisq.loop import Loop, check_callable, named, names
from dask_redisq.options import job_options, refuse_keywords
from dask_redisq.pool import Pool
from dask_redisq.serving import in_slot, job_in_hand

__all__ = ["Loops"]


class Loops:
    """What `Queue` has of doRedis's foreach.

    Attributes
    ----------
    defaults : dict
        Keywords of `get`, `compute` and `foreach` that hold where a call has none: see the `set_`
        methods.
    """

    pool: Pool
    keys: Keys
    defaults: dict[str, Any]

    def foreach(
        self, fn: Callable[..., Any], *iterables: Any,
        combine: Callable[..., Any] | None = None, multicombine: bool = False,
        maxcombine: int = 100, inorder: bool = True, init: Any = NOTHING,
        final: Callable[[Any], Any] | None = None, errorhandling: str = "stop",
        when: Callable[..., Any] | None = None, packages: Iterable[str] | None = None,
        export: Mapping[str, Any] | None = None, noexport: Iterable[str] = (),
        seed: int | None = None, seed_worker: Callable[[int], object] | None = None,
        worker_init: Callable[[], object] | None = None, progress: bool | None = None,
        verbose: bool = False, reduce: Callable[[list[Any]], Any] | None = NOTHING, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Call `fn` on the workers, once for each item of some iterables; combine the results.

        doRedis's ``foreach(...) %dopar%``. Generators are drawn as there is room, and results
        combined as they come, so neither need fit into memory. Loops are nested as generators,
        ``foreach(fn, ((i, j) for i in a for j in b))``, or by a foreach inside of `fn`.

        Parameters
        ----------
        fn : callable
            The body.
        *iterables : iterable or int
            It is called with one item of each, until the shortest ends; an int n is ``range(n)``.
        combine, multicombine, maxcombine, inorder, init, final
            How results become the value: see `dask_redisq.combine.Combiner`.
        errorhandling, when, packages, export, noexport, seed, seed_worker, worker_init, progress,
        verbose, reduce
            See `dask_redisq.loop.Loop`. `chunk_size` iterations are reduced together.
        **kwargs
            Keywords of `get` that are of a job: `chunk_size`, `ft_interval`, `allowed_failures`,
            `timeout`, `retries`, `workers`, `get_task` and so on.

        Returns
        -------
        object
            The list of the results, or what `combine` and `final` made of them; else [] for none.

        Raises
        ------
        TypeError, ValueError
            For an argument that is none, or a keyword that loops do not have; nothing was sent.
        BaseException
            What an iteration, `combine` or an iterable raised; `RedisqError` for the rest.

        Examples
        --------
        >>> queue.foreach(pow, range(5), [2] * 5, combine=sum)  # doctest: +SKIP
        30
        """
        with ShortTraceback():
            combiner = Combiner(
                combine, multicombine=multicombine, maxcombine=maxcombine, inorder=inorder,
                init=init, final=final,
            )  # fmt: skip
            reduce = self.defaults.get("reduce") if reduce is NOTHING else reduce
            return self._run(Loop(
                fn, iterables, combiner, when, errorhandling, packages, export, noexport,
                worker_init, seed, seed_worker, progress, verbose, reduce,
            ), kwargs)  # fmt: skip

    def times(self, n: int, fn: Callable[[], Any], **kwargs: Any) -> Any:
        """Call `fn` n times, without arguments, and combine the results: R's ``times(n) %dopar%``.

        Parameters
        ----------
        n : int
            How often.
        fn : callable
            The body.
        **kwargs
            As for `foreach`.

        Examples
        --------
        >>> queue.times(3, list)  # doctest: +SKIP
        [[], [], []]
        """
        with ShortTraceback():
            check_callable("the body of a loop", fn)
            n = whole("times, how often the body is called,", n, 0)
            return self.foreach(_Times(fn), n, **kwargs)

    def _run(self, loop: Loop, kwargs: dict[str, Any]) -> Any:
        refuse_keywords(
            "a loop", kwargs, lambda: signature(self.foreach).parameters,
            "items come without a name, foreach(f, xs)",
        )  # fmt: skip
        loop.fill_in(self.defaults)
        words, options = call_settings(self.with_defaults(kwargs))
        if loop.reduce is not None and options.chunk_size > 0:
            # What is reduced together is one task; how many of those a lease has is another matter.
            loop.together = options.chunk_size
            options = replace(options, chunk_size=0)
        if in_slot():
            options = replace(options, parent=job_in_hand(self.pool.url, self.keys))
        return run_loop(self.pool, self.keys, loop, options, words)

    # -- defaults ----------------------------------------------------------------------------

    def with_defaults(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return keywords of a job, with those that were set for this object."""
        words = dict(kwargs)
        if "chunksize" in words:
            words.setdefault("chunk_size", words["chunksize"])
        for name in ("chunk_size", "ft_interval"):
            if name in self.defaults:
                words.setdefault(name, self.defaults[name])
        return words

    def set_chunk_size(self, value: int | None = 1) -> None:
        """Set the tasks per lease of this object's jobs, None for as many as their duration allows.

        doRedis's ``setChunkSize``; see `get`.
        """
        self._set("chunk_size", value, lambda: job_options({"chunk_size": value}))

    def set_ft_interval(self, value: float | None = 30.0) -> None:
        """Set the seconds between two looks for dead workers, at least 1: ``setFtinterval``."""
        self._set("ft_interval", value, lambda: job_options({"ft_interval": value}))

    def set_progress(self, value: bool = True) -> None:  # noqa: FBT001, FBT002 - as doRedis has it
        """Set whether loops draw a bar: doRedis's ``setProgress``."""
        self._set("progress", bool(value))

    def set_packages(self, packages: Iterable[str] | None = ()) -> None:
        """Set the modules that workers import before the iterations of a loop: ``setPackages``."""
        self._set("packages", None if packages is None else names("packages", packages))

    def set_export(self, names: Mapping[str, Any] | None = None) -> None:
        """Set further global names of the functions of loops, name -> value: ``setExport``."""
        self._set("export", None if names is None else named("export", names))

    def set_reduce(self, reduce: Callable[[list[Any]], Any] | None = None) -> None:
        """Set what reduces the results of a chunk where they are made: ``setReduce``.

        A loop with ``reduce=None`` goes without.
        """
        self._set("reduce", reduce, lambda: check_callable("reduce", reduce))

    def _set(self, name: str, value: Any, check: Callable[[], object] = lambda: None) -> None:
        if value is None:
            self.defaults.pop(name, None)
        else:
            check()
            self.defaults[name] = value


class _Times:
    """A body that is called without arguments, whatever the loop has for it."""

    def __init__(self, fn: Callable[[], Any]) -> None:
        self.fn = fn

    def __repr__(self) -> str:
        return repr(self.fn)

    def __call__(self, _: int) -> Any:
        return self.fn()

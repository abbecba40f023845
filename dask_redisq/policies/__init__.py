"""Policies that come with the package, for ``get_task=``: each is a Lua text, the file of its name.

Attributes
----------
by_tag : str
    First what belongs to the slot: tasks whose tag (of ``workers=``), or key (in a loop: the number
    of the iteration), is one of the slot's tags. The vignette's Listing 10.
largest_first : str
    First the tasks with the largest inputs, so that the last to end is a small one.

Examples
--------
>>> import dask_redisq as redisq
>>> queue = redisq.Queue("jobs")
>>> queue.foreach(abs, 3, get_task=redisq.policies.by_tag)  # doctest: +SKIP
[0, 1, 2]
"""

from importlib.resources import files

__all__ = ["by_tag", "largest_first"]

by_tag = files(__name__).joinpath("by_tag.lua").read_text()
largest_first = files(__name__).joinpath("largest_first.lua").read_text()

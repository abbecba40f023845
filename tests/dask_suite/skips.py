"""Tests of Dask that cannot apply to workers in other processes, each with its reason."""

from __future__ import annotations

# ruff: noqa: E501 - names that Dask gave

MEMORY = "its tasks change an object of the test's own process, and workers have a copy"
THREADS = "it looks at threads, pools or context variables of the test's own process"
POOL = "it sets up a pool of processes: a worker has --preload, its environment, its own Python"
COUNTS = (
    "it counts calls in the test's own process, and not those on the workers; with a file: "
    "test_nested_iterators_of_a_bag_are_read_as_often_as_dask_reads_them"
)
IDENTITY = "it asks whether a value is the very same object, and it came through a pickle"

CONFIG = (
    "it sets what the code of a task reads, on the worker, which has a configuration of its own"
)

#: Test, each by itself -> why; 44 at most, as section 2.3 of the contract counts them.
SKIPS: dict[str, str] = {
    "tests/test_cache.py::test_cache": MEMORY,
    "tests/test_callbacks.py::test_nested_schedulers": MEMORY,
    "tests/test_delayed.py::test_traverse_false": IDENTITY,
    "tests/test_graph_manipulation.py::test_checkpoint[False]": MEMORY,
    "tests/test_graph_manipulation.py::test_checkpoint[True]": MEMORY,
    "tests/test_graph_manipulation.py::test_checkpoint_collections": MEMORY,
    "tests/test_graph_manipulation.py::test_wait_on_one[False]": MEMORY,
    "tests/test_graph_manipulation.py::test_wait_on_one[True]": MEMORY,
    "tests/test_graph_manipulation.py::test_wait_on_many[False]": MEMORY,
    "tests/test_graph_manipulation.py::test_wait_on_many[True]": MEMORY,
    "tests/test_graph_manipulation.py::test_bind[False]": MEMORY,
    "tests/test_graph_manipulation.py::test_bind[True]": MEMORY,
    "tests/test_multiprocessing.py::test_process_initializer[threading-None-expected_results0]": POOL,
    "tests/test_multiprocessing.py::test_process_initializer[processes-proc_init-expected_results2]": POOL,
    "tests/test_multiprocessing.py::test_custom_context_used_python3_posix": POOL,
    "tests/test_threaded.py::test_pool_kwarg[ThreadPool]": THREADS,
    "tests/test_threaded.py::test_pool_kwarg[ThreadPoolExecutor]": THREADS,
    "tests/test_threaded.py::test_interrupt[True]": THREADS,
    "tests/test_threaded.py::test_interrupt[False]": THREADS,
    "tests/test_threaded.py::test_contextvars[None]": THREADS,
    "tests/test_threaded.py::test_contextvars[1]": THREADS,
    "tests/test_threaded.py::test_context_aware_warnings[None]": THREADS,
    "tests/test_threaded.py::test_context_aware_warnings[1]": THREADS,
    "bag/tests/test_bag.py::test_to_delayed_optimize_graph": COUNTS,
    "bag/tests/test_bag.py::test_repartition_partition_size_complex_dtypes": IDENTITY,
    "bag/tests/test_bag.py::test_bag_with_single_callable": IDENTITY,
    "bag/tests/test_bag.py::test_reductions_are_lazy": MEMORY,
    "array/tests/test_array_core.py::test_store_delayed_target": MEMORY,
    "array/tests/test_array_core.py::test_store": MEMORY,
    "array/tests/test_array_core.py::test_store_regions": MEMORY,
    "array/tests/test_array_core.py::test_store_compute_false": MEMORY,
    "array/tests/test_array_core.py::test_store_locks_failure_lock_released": MEMORY,
    "array/tests/test_array_core.py::test_store_locks_one_lock_two_stores": MEMORY,
    "array/tests/test_array_core.py::test_store_locks_dont_assume_threadsafe": MEMORY,
    "array/tests/test_array_core.py::test_store_locks_no_lock": MEMORY,
    "array/tests/test_array_core.py::test_store_locks_count_calls[False]": MEMORY,
    "array/tests/test_array_core.py::test_store_locks_count_calls[True]": MEMORY,
    "array/tests/test_array_core.py::test_from_array_with_lock[True]": MEMORY,
    "array/tests/test_array_core.py::test_from_array_with_lock[False]": MEMORY,
    "array/tests/test_array_core.py::test_from_array_getitem[True-True]": MEMORY,
    "array/tests/test_array_core.py::test_from_array_getitem[False-True]": MEMORY,
    "array/tests/test_array_core.py::test_memmap": MEMORY,
    "array/tests/test_array_core.py::test_store_sources_unoptimized_nocompute": MEMORY,
    "dataframe/tests/test_shuffle.py::test_disk_shuffle_with_unknown_compression": CONFIG,
}

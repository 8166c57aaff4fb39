"""The cost of work items beside a bare lock, in one thread and in several, and beside what executors do anyway.

The goal is three microseconds per work item beyond a lock that is taken and released as often. Rounds of both take
turns, and the script prints the median of each::

    python benchmarks/work.py [--items N] [--rounds N]
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from flask_lifecycle import Lifecycle

THREADS = 4


def take_locks(count: int) -> None:
    lock = threading.Lock()
    for _ in range(count):
        with lock:
            pass


def open_items(lifecycle: Lifecycle, count: int) -> None:
    work = lifecycle.work
    for _ in range(count):
        with work("job"):
            pass


def call_decorated(lifecycle: Lifecycle, count: int) -> None:
    @lifecycle.work("job")
    def job() -> None:
        pass

    for _ in range(count):
        job()


def in_threads(function: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=function, args=(count // THREADS,)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def submit_all(submit: Callable[[Callable[[], None]], object], count: int) -> None:
    for _ in range(count):
        submit(lambda: None)


def timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def report(title: str, bare: Callable[[], object], ours: Callable[[], object], count: int, rounds: int) -> None:
    pairs = [(timed(bare), timed(ours)) for _ in range(rounds)]
    base, cost = (statistics.median(pair[i] for pair in pairs) / count * 1e6 for i in (0, 1))
    print(f"{title:44}{base:10.2f}{cost:10.2f}{cost - base:12.2f}{cost / base:9.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    count, rounds = options.items, options.rounds
    lifecycle = Lifecycle()
    print(f"{'microseconds each, median of rounds':44}{'bare':>10}{'ours':>10}{'difference':>12}{'ratio':>9}")
    report("a lock / a work item", lambda: take_locks(count), lambda: open_items(lifecycle, count), count, rounds)
    report(
        "a lock / a decorated call", lambda: take_locks(count), lambda: call_decorated(lifecycle, count), count, rounds
    )
    report(
        f"the same in {THREADS} threads",
        lambda: in_threads(take_locks, count),
        lambda: in_threads(lambda number: open_items(lifecycle, number), count),
        count,
        rounds,
    )
    with ThreadPoolExecutor(1) as pool:
        report(
            "executor.submit / lifecycle.submit",
            lambda: submit_all(pool.submit, count),
            lambda: submit_all(lambda function: lifecycle.submit(pool, function), count),
            count,
            rounds,
        )
    assert lifecycle.work_items() == ()


if __name__ == "__main__":
    main()

from __future__ import annotations

import pytest

from data_registry.worker_pool import WorkerPool

CRASH = "__import__('os')._exit(3)"


class TestWorkerPool:
    """Tasks are expressions for `eval`, which every process can import."""

    @pytest.mark.parametrize("jobs", [1, 2])
    def test_every_task_has_its_result(self, jobs: int) -> None:
        tasks = [f"{i} * {i}" for i in range(20)]
        with WorkerPool(jobs) as pool:
            results = dict(pool.each(eval, tasks))
        assert results == {f"{i} * {i}": i * i for i in range(20)}

    def test_results_come_in_the_order_of_the_tasks(self) -> None:
        tasks = [f"__import__('time').sleep({0.2 if i % 3 == 0 else 0}) or {i}" for i in range(9)]
        with WorkerPool(2) as pool:
            assert [result for _, result in pool.each(eval, tasks)] == list(range(9))

    def test_tasks_are_drawn_as_workers_become_free(self) -> None:
        drawn = []

        def tasks():
            for i in range(20):
                drawn.append(i)
                yield str(i)

        with WorkerPool(2) as pool:
            next(pool.each(eval, tasks()))
            assert len(drawn) <= 5

    def test_an_error_reaches_the_caller(self) -> None:
        with WorkerPool(2) as pool, pytest.raises(ZeroDivisionError):
            list(pool.each(eval, ["1 / 0"]))

    def test_a_crash_costs_one_task(self) -> None:
        tasks = ["1", "2", CRASH, "3", "4", "5"]
        with WorkerPool(2) as pool:
            results = list(pool.each(eval, tasks))
        expected = [("1", 1), ("2", 2), (CRASH, None), ("3", 3), ("4", 4), ("5", 5)]
        assert results == expected

    def test_a_crash_costs_one_part_of_a_task(self) -> None:
        with WorkerPool(2) as pool:
            results = dict(pool.each(eval, [f"1, {CRASH}, 2"], lambda task: task.split(", ")))
        assert results == {"1": 1, CRASH: None, "2": 2}

"""The clock: everybody takes turns, and turns are turned round."""

from __future__ import annotations

from collections.abc import Callable

from advcli.training.turns import by_turns


def test_everybody_takes_turns_and_the_order_turns_round() -> None:
    calls: list[str] = []

    def runner(name: str, value: float) -> Callable[[], float]:
        def run() -> float:
            calls.append(name)
            return value + len(calls)

        return run

    said: list[str] = []
    seconds, values = by_turns({"a": runner("a", 0.0), "b": runner("b", 10.0)}, 3, said.append)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert values == {"a": [1.0, 4.0, 5.0], "b": [12.0, 13.0, 16.0]}
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert all(value >= 0 for times in seconds.values() for value in times)
    assert said[:3] == ["round 1 of 3: a", "round 1 of 3: b", "round 2 of 3: b"]

"""What is said of the machine is measured on it."""

from __future__ import annotations

import math

import pytest
import torch

from advcli.training import machine

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_peak_is_a_rate_and_leaves_no_setting_behind(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machine._SIDE, "cpu", 64)
    rate = machine.peak(CPU, precision, seconds=0.0)
    assert math.isfinite(rate)
    assert rate > 1e6
    assert not torch.is_autocast_enabled("cpu")


def test_a_peak_counts_two_operations_a_multiply_add(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that ticks a second a look: four products of 8 x 8 matrices a second."""
    ticks = iter(range(100))
    monkeypatch.setitem(machine._SIDE, "cpu", 8)
    monkeypatch.setattr(machine.time, "perf_counter", lambda: float(next(ticks)))
    assert machine.peak(CPU, "fp32", seconds=0.0) == 4 * 2 * 8**3


def test_bfloat16_convolutions_are_timed_and_compared() -> None:
    gain, cosine = machine.low_convolutions(CPU)
    assert gain > 0
    assert 0.99 < cosine <= 1.0 + 1e-9


def test_a_machine_without_proc_is_named_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.Path, "is_file", lambda self: False)
    monkeypatch.setattr(machine.platform, "processor", lambda: "a riscv")
    assert machine.processor() == "a riscv"
    facts = machine.hardware(CPU)
    assert (facts["device"], facts["name"], facts["threads"]) == ("cpu", "a riscv", torch.get_num_threads())


def test_memory_is_bytes_or_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = machine.peak_memory(CPU)
    assert taken is not None
    assert taken > 50e6  # torch alone takes that
    monkeypatch.setattr(machine.util, "find_spec", lambda name: None)
    assert machine.peak_memory(CPU) is None

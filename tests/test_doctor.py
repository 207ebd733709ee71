"""The doctor on machines that are not well: every fault is named with a way out, and none stops it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from advcli import doctor
from advcli.recipe import load


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADVCLI_DATA", str(tmp_path))
    monkeypatch.setattr("advcli.training.machine.low_convolutions", lambda device: (1.5, 1.0))


def examine(**changes: Any) -> dict[str, Any]:
    found = doctor.examine(None, "cpu", None, lambda text: None, **changes)
    assert json.loads(json.dumps(found)) == found
    return found


def problems(found: dict[str, Any]) -> str:
    assert all(problem["what"] and problem["next"] for problem in found["problems"])
    return " ".join(problem["what"] for problem in found["problems"])


def test_a_machine_that_is_well() -> None:
    found = examine()
    assert found["problems"] == []
    assert found["versions"]["torch"] == torch.__version__
    assert found["devices"][0]["threads"] == torch.get_num_threads()
    assert found["bf16"] == {"device": "cpu", "gain": 1.5, "cosine": 1.0}
    assert found["disk"]["free_bytes"] > 0


@pytest.mark.parametrize(
    ("version", "said"),
    [("2.13.0+cpu", "many times slower"), ("2.10.1", "older than"), ("1.13.1", "older than"), ("2.14.0a0+git", ""), ("3.0.0", "")],
)
def test_versions_of_torch(version: str, said: str) -> None:
    seen = doctor.Examination()
    doctor._check_torch(version, seen)
    assert len(seen.problems) == (1 if said else 0)
    assert said in problems({"problems": seen.problems})


def test_a_broken_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    found = examine()
    assert "torchvision cannot be imported" in problems(found)
    assert "torchvision" in found["problems"][0]["next"]
    assert found["versions"]["torchvision"] is None


def test_kernels_that_fail_at_import_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel for another torch fails with whatever its registration raises."""

    def broken(name: str) -> Any:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nmore")
        return torch

    monkeypatch.setattr(doctor, "import_module", broken)
    assert problems(examine()) == "torchvision cannot be imported: operator torchvision::nms does not exist"


def test_without_torch_the_rest_is_still_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError("libtorch.so: cannot open shared object file")

    monkeypatch.setattr(doctor, "import_module", broken)
    found = examine()
    assert problems(found) == "torch cannot be imported: libtorch.so: cannot open shared object file"
    assert (found["devices"], found["bf16"], found["versions"]["torch"]) == ([], None, None)
    assert found["compile"]["triton"] is False


def test_a_driver_without_a_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "there is a driver for GPUs" in problems(examine())


def test_a_device_that_cannot_be_asked_is_named_and_the_others_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def card(number: int) -> Any:
        if number == 0:
            raise RuntimeError("CUDA error: an illegal instruction was encountered")
        return SimpleNamespace(name="a card", major=9, minor=0, total_memory=10**11)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", card)
    found = examine()
    assert problems(found).startswith("cuda:0 cannot be asked: CUDA error")
    assert found["devices"][1] == {"device": "cuda:1", "name": "a card", "capability": "9.0", "memory_bytes": 10**11}


def test_low_precision_that_fails_or_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advcli.training.machine.low_convolutions", lambda device: (2.0, 0.4))
    assert "compute something else here (cosine 0.400" in problems(examine())

    def fails(device: torch.device) -> Any:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr("advcli.training.machine.low_convolutions", fails)
    found = examine()
    assert "bfloat16 convolutions fail: could not create a primitive" in problems(found)
    assert found["bf16"] is None


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=5e8))
    assert "0.5 GB are free here" in problems(examine())


def test_a_folder_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> Path:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(doctor.Path, "cwd", gone)
    found = examine()
    assert "the disk cannot be asked: [Errno 2]" in problems(found)
    assert found["disk"] is None


def test_a_data_root_that_may_not_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(data_root: str | None) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor, "_data", unreadable)
    found = examine()
    assert problems(found) == "data sets cannot be looked for: [Errno 13] Permission denied"
    assert found["data"] is None
    assert found["disk"]["free_bytes"] > 0


def test_a_gpu_that_fails_is_named_and_the_processor_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from advcli.errors import UsageError
    from advcli.training import device

    kept = device.pick_device

    def pick(name: str) -> torch.device:
        if name == "auto":
            raise UsageError("device 'cuda' cannot be used: CUDA error: out of memory")
        return kept(name)

    monkeypatch.setattr(device, "pick_device", pick)
    found = doctor.examine(None, "auto", None, lambda text: None)
    assert problems(found) == "device 'cuda' cannot be used: CUDA error: out of memory"
    assert found["bf16"]["device"] == "cpu"


def test_a_refusal_keeps_its_own_way_out() -> None:
    from advcli.errors import CheckpointError

    def refuse(next: str) -> None:
        raise CheckpointError("there is no file", where="x", next=next)

    seen = doctor.Examination()
    for next in ("convert it", ""):
        assert seen.attempt("the recipe's steps fail", lambda next=next: refuse(next), "a general way out") is None
    assert seen.problems == [{"what": "x: there is no file", "next": next} for next in ("convert it", "a general way out")]


def test_data_sets_are_found_where_they_lie(tmp_path: Path) -> None:
    for mark in ("cifar-10-batches-py/data_batch_1", "tiny-imagenet-200/wnids.txt"):
        (tmp_path / mark).parent.mkdir()
        (tmp_path / mark).touch()
    found = examine()["data"]
    assert found == {
        "root": str(tmp_path),
        "found": {"digits": True, "cifar10": True, "cifar100": False, "svhn": False, "tiny-imagenet": True},
    }


def test_extras_without_a_distribution_do_not_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.util, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor.metadata, "version", missing)
    assert {extra["version"] for extra in examine()["extras"]} == {"?"}


def test_a_recipe_that_cannot_run_here_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate\nmuch")

    monkeypatch.setattr("advcli.training.throughput.run", fails)
    found = doctor.examine(load("quickstart"), "cpu", None, lambda text: None)
    assert found["recipe"] is None
    assert problems(found) == "the recipe's steps fail: CUDA out of memory. Tried to allocate"


def test_the_screen_of_a_sick_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from advcli.report import health, terminal

    monkeypatch.setattr(doctor, "import_module", lambda name: (_ for _ in ()).throw(ImportError("no [torch] here")))
    with terminal.OUT.capture() as capture:
        health.show_doctor(examine())
    lines = capture.get().splitlines()
    assert "torch broken" in lines[0]
    assert any("torch cannot be imported: no [torch] here" in line for line in lines)
    assert lines[-1] == "1 problem"

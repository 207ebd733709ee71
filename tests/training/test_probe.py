"""What `auto` comes to: the quicker way that agrees, measured without moving anything, written down, and kept on resume."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from advcli.errors import ResumeError, UsageError
from advcli.recipe import Recipe
from advcli.runs import folder as folders
from advcli.training import probe, session
from advcli.training.probe import settle
from advcli.training.settled import Settled, Trial
from advcli.training.setup import Assembly, assemble

CPU = torch.device("cpu")
BIG = ("model.width=0.5",)  # whatever FLOOR says


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even networks this small are worth a look, and the clock is the probe's own: every bfloat16 way takes half the time."""
    monkeypatch.setattr(probe, "FLOOR", 0.0)


def slower(monkeypatch: pytest.MonkeyPatch, times: dict[str, float]) -> None:
    """The clock of the probe: (plain, candidate) seconds of a part, in the order craft, train, compile."""
    order = itertools.cycle(times.values())
    monkeypatch.setattr(probe._Probe, "_seconds", lambda self, *ways: [1.0, next(order)])


def parts(recipe: Recipe) -> Assembly:
    made = assemble(recipe, CPU)
    made.model.train()
    return made


def everything(made: Assembly) -> dict[str, torch.Tensor]:
    whole = {f"model.{name}": value for name, value in made.model.state_dict().items()}
    whole |= {f"objective.{name}": value for name, value in made.objective.state_dict().items()}
    return {name: value.clone() for name, value in whole.items()}


def test_a_trial_is_taken_where_it_is_quicker_and_agrees() -> None:
    good = Trial("craft", "bf16", "fp32", 0.5, 1.0, 0.97)
    assert good.taken
    assert not Trial("craft", "bf16", "fp32", 0.95, 1.0, 0.97).taken  # the clock's noise
    assert not Trial("craft", "bf16", "fp32", 0.5, 1.0, 0.6).taken  # wrong arithmetic
    assert "2.00 x" in str(good)
    assert "not taken" in str(Trial("craft", "bf16", "fp32", 2.0, 1.0, 0.97))


def test_a_network_that_is_all_overhead_is_not_probed(tiny: Callable[..., Recipe]) -> None:
    settled = settle(parts(tiny()))
    assert (settled.recipe.train.precision, settled.recipe.train.compile) == ("fp32", False)
    assert settled.recipe.craft is not None
    assert settled.recipe.craft.precision == "fp32"
    assert settled.trials == ()
    assert "overhead" in settled.notes[0]


@pytest.mark.parametrize(("craft", "train"), [(0.5, 0.5), (0.5, 2.0), (2.0, 0.5), (2.0, 2.0)])
def test_each_part_is_settled_by_its_own_clock(
    tiny: Callable[..., Recipe], looks: None, monkeypatch: pytest.MonkeyPatch, craft: float, train: float
) -> None:
    slower(monkeypatch, {"craft": craft, "train": train})
    settled = settle(parts(tiny(*BIG)))
    assert settled.recipe.craft is not None
    assert settled.recipe.craft.precision == ("bf16" if craft < 1 else "fp32")
    assert settled.recipe.train.precision == ("bf16" if train < 1 else "fp32")
    assert [trial.part for trial in settled.trials] == ["craft", "train"]
    assert all(0.8 <= trial.agreement <= 1.0 for trial in settled.trials)  # sound arithmetic does agree here


@pytest.mark.parametrize("objective", ["trades", "pgd-at"])
def test_nothing_moves(tiny: Callable[..., Recipe], looks: None, objective: str) -> None:
    """Weights, statistics, state, flags and gradients are those of before, whatever was tried."""
    recipe = tiny(*BIG, f"objective.name={objective}", "objective.terms=[{name: masked-view, patch: 2}]", "objective.wrapper.name=awp")
    made = parts(recipe)
    before, modes = everything(made), [module.training for module in made.model.modules()]
    settle(made)
    after = everything(made)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert modes == [module.training for module in made.model.modules()]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in made.model.parameters())


def test_wrong_arithmetic_is_refused(tiny: Callable[..., Recipe], looks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise for bfloat16 gradients, as some builds of some releases give: however quick, they are not taken."""
    slower(monkeypatch, {"craft": 0.1, "train": 0.1})
    real = probe._Probe._gradient_of

    def broken(self: Any, precision: str, network: Any) -> Any:
        gradient = real(self, precision, network)
        return (lambda: [torch.randn_like(value) for value in gradient()]) if precision == "bf16" else gradient

    monkeypatch.setattr(probe._Probe, "_gradient_of", broken)
    settled = settle(parts(tiny(*BIG)))
    assert settled.recipe.craft is not None
    assert settled.recipe.craft.precision == "fp32"
    assert settled.trials[0].agreement < 0.6


def test_one_wrong_layer_is_enough(tiny: Callable[..., Recipe], looks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small among all weights: here the stem's, whose gradient is turned round."""
    slower(monkeypatch, {"craft": 0.1, "train": 0.1})
    real = probe._Probe._scored

    def broken(self: Any, precision: str, crafted: Any) -> Any:
        gradient = real(self, precision, crafted)
        return (lambda: [-gradient()[0], *gradient()[1:]]) if precision == "bf16" else gradient

    monkeypatch.setattr(probe._Probe, "_scored", broken)
    settled = settle(parts(tiny(*BIG)))
    assert settled.recipe.train.precision == "fp32"
    assert settled.trials[1].agreement < -0.5


def test_what_the_recipe_says_is_not_probed(tiny: Callable[..., Recipe], looks: None) -> None:
    said = tiny(*BIG, "train.precision=bf16", "craft.precision=fp32", "train.compile=false")
    assert settle(parts(said)) == Settled(said)


def test_crafting_in_train_mode_has_no_precision_of_its_own(tiny: Callable[..., Recipe], looks: None) -> None:
    settled = settle(parts(tiny(*BIG, "craft.batch_norm=train")))
    assert [trial.part for trial in settled.trials] == ["train"]
    assert settled.recipe.craft is not None
    assert settled.recipe.craft.precision == "auto"


def short_of_memory(monkeypatch: pytest.MonkeyPatch, holds: int) -> list[int]:
    """A device whose memory holds scoring in float32 of so many images; what was asked of it."""
    asked: list[int] = []
    real = probe._Probe._scored

    def scored(self: Any, precision: str, crafted: Any) -> Any:
        gradient = real(self, precision, crafted)

        def tried() -> list[torch.Tensor]:
            asked.append(len(self.batch.labels))
            if precision == "fp32" and asked[-1] > holds:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return gradient()

        return tried

    monkeypatch.setattr(probe._Probe, "_scored", scored)
    return asked


def test_a_batch_too_large_for_plain_precision_is_probed_in_part(
    tiny: Callable[..., Recipe], looks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch of 30 in halves, until float32 fits; a part that was settled before is asked again, of as many images."""
    asked = short_of_memory(monkeypatch, holds=10)
    slower(monkeypatch, {"craft": 0.5, "train": 0.5})
    made = parts(tiny(*BIG))
    before = everything(made)
    settled = settle(made)
    assert list(dict.fromkeys(asked)) == [30, 15, 8]
    assert settled.recipe.train.precision == "bf16"
    assert [trial.part for trial in settled.trials] == ["craft", "train"]
    assert settled.notes == ("probed on 8 images: memory does not hold 30 in every precision",)
    assert all(torch.equal(before[name], value) for name, value in everything(made).items())


def test_a_device_without_memory_for_a_few_images_is_refused(
    tiny: Callable[..., Recipe], looks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, holds=7)
    with pytest.raises(UsageError, match="a step on 8 images is more than the memory of cpu holds"):
        settle(parts(tiny(*BIG)))


def test_a_compiler_that_fails_is_told_and_done_without(tiny: Callable[..., Recipe], looks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_blocks(network: Any, *, undo: bool = False) -> None:
        if not undo:
            raise RuntimeError("no C++ compiler\nlong trace")

    monkeypatch.setattr(probe, "compile_blocks", compile_blocks)
    settled = settle(parts(tiny(*BIG, "train.compile=true")))
    assert settled.recipe.train.compile is False
    assert "blocks are not compiled: no C++ compiler" in settled.notes


def test_a_run_that_could_not_compile_goes_on_by_the_same_command(
    tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "compile_blocks", lambda network, undo=False: undo or 1 / 0)
    out, recipe = tmp_path / "run", tiny("train.compile=true")
    first = session.run(recipe, silent, out=out, resume=False, device="cpu")
    assert session.run(recipe, silent, out=out, resume=True, device="cpu").best_epoch == first.best_epoch
    with pytest.raises(ResumeError, match=r"train\.compile"):
        folders.check_same(tiny("train.compile=true"), tiny("train.compile=false"), out)


def test_a_kill_before_the_receipt_of_the_probe_loses_nothing_else(
    tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders, "store_probe", killed)
        with pytest.raises(KeyboardInterrupt):
            session.run(tiny(), silent, out=tmp_path / "run", resume=False, device="cpu")
    session.run(tiny(), silent, out=tmp_path / "run", resume=True, device="cpu")


def test_crafting_of_a_run_from_before_it_had_a_precision_computes_as_scoring_did(tiny: Callable[..., Recipe]) -> None:
    decided = folders.as_decided(tiny(), tiny("train.precision=bf16"))
    assert decided.craft is not None
    assert (decided.train.precision, decided.craft.precision) == ("bf16", "bf16")


def test_decisions_are_stored_and_kept_on_resume(
    tmp_path: Path, tiny: Callable[..., Recipe], looks: None, silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second session on a machine that would settle otherwise goes on as the first one did."""
    slower(monkeypatch, {"craft": 0.5, "train": 2.0})
    out, recipe = tmp_path / "run", tiny(*BIG, "schedule.epochs=1")
    session.run(recipe, silent, out=out, resume=False, device="cpu")
    stored = folders.stored_recipe(out)
    assert stored is not None
    assert stored.craft is not None
    assert (stored.craft.precision, stored.train.precision, stored.train.compile) == ("bf16", "fp32", False)
    assert folders.as_asked(out, stored) == recipe
    receipt = json.loads((out / "probe.json").read_text())
    assert [(trial["part"], trial["taken"]) for trial in receipt["trials"]] == [("craft", True), ("train", False)]
    before = (out / "model.safetensors").read_bytes()
    slower(monkeypatch, {"craft": 2.0, "train": 0.5})
    monkeypatch.setattr(session, "settle", lambda parts: pytest.fail("settled again"))
    session.run(recipe, silent, out=out, resume=True, device="cpu")
    assert (out / "model.safetensors").read_bytes() == before
    with pytest.raises(ResumeError, match=r"craft\.precision: 'bf16' in the run, 'fp32' now"):
        session.run(tiny(*BIG, "schedule.epochs=1", "craft.precision=fp32"), silent, out=out, resume=True, device="cpu")

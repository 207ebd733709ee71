"""Controls of gated networks: other heads judged, gates put on afterwards, what a report then says."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from advcli.attacks import Judge, Pgd, Surrogate, Threat
from advcli.attacks.losses import attack_loss
from advcli.data import load_test, to_float
from advcli.draws import Draws
from advcli.errors import UsageError
from advcli.evaluation import session, verify
from advcli.evaluation.session import Options
from advcli.gates import open_gate
from advcli.models import Architecture, build, frozen, head_of, with_gate
from advcli.recipe.schema import ChannelSuppression, Data, ReverseAttention
from advcli.runs.checkpoint import load_network
from advcli.runs.ledger import Ledger
from advcli.training import session as training

GATES = (
    ChannelSuppression(name="channel-suppression", at=("layer2",)),
    ReverseAttention(name="reverse-attention"),
)


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network trained for two epochs with two gates: its heads disagree on some images."""

    from advcli.recipe import load

    gates = "model.gates=[{name: channel-suppression, at: [layer2]}, {name: reverse-attention}]"
    recipe = load("quickstart", [gates, "model.width=0.25", "schedule.epochs=6", "optim.lr=0.1", "craft.steps=2", "select.metric=last"])
    return training.run(recipe, MagicMock(), out=tmp_path_factory.mktemp("gated") / "run", resume=False, device="cpu").folder


def images(n: int = 5) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_view_is_the_head_it_names() -> None:
    network = build(Architecture("small-cnn", 0.25, 10, 1, 8, gates=GATES)).eval()
    whole = network.trace(images())
    assert torch.equal(head_of(network, "final")(images()), whole.logits)
    assert torch.equal(head_of(network, "aux:0")(images()), whole.aux_logits[0])
    assert torch.equal(head_of(network, "aux:1").trace(images()).logits, whole.aux_logits[1])
    opened = head_of(network, "open").trace(images())
    assert torch.equal(opened.logits, network.trace(images(), open_gate).logits)
    assert opened.aux_logits == ()


@pytest.mark.parametrize("head", ["aux:2", "aux:-1", "aux", "label", ""])
def test_heads_that_are_not_there(head: str) -> None:
    network = build(Architecture("small-cnn", 0.25, 10, 1, 8, gates=GATES))
    with pytest.raises(UsageError, match="there is no head"):
        head_of(network, head)
    with pytest.raises(UsageError, match="no gates"):
        head_of(build(Architecture("small-cnn", 0.25, 10, 1, 8)), "open")


def test_each_head_has_an_evaluation_of_its_own(gated: Path, silent: Any, tmp_path: Path) -> None:
    seen = {}
    for head in ("final", "open", "aux:0"):
        folder, report = session.run(Options(gated, "quick", n=60, head=head, out=tmp_path / head.replace(":", "")), silent)
        seen[head] = report
        assert report["head"] == head
        evidence = verify.gather(folder, checkpoint=None, data_root=None)
        assert verify.check(evidence, device=torch.device("cpu"), quantize=False)["failures"] == []
    assert len({report["identity"] for report in seen.values()}) == 3
    assert "pgd-20-joint" in seen["final"]["attacks"]
    assert "pgd-20-joint" not in seen["open"]["attacks"]
    assert any("hides the gradient" in note for note in seen["final"]["reasons"])
    assert any("head open was judged" in note for note in seen["open"]["notes"])


def test_autoattack_through_a_gate_is_an_upper_bound(gated: Path, silent: Any, tmp_path: Path) -> None:
    """Nothing in suite aa knows the gate, so its number is never called trustworthy; with the gates open it may be."""
    _, report = session.run(Options(gated, "aa", n=8, out=tmp_path / "aa"), silent)
    assert report["verdict"] in ("upper bound", "masked")
    _, opened = session.run(Options(gated, "aa", n=12, head="open", out=tmp_path / "open"), silent)
    assert opened["verdict"] == "trustworthy"


def test_a_gate_put_on_afterwards(checkpoint: Path, silent: Any, tmp_path: Path) -> None:
    """Reverse attention on a network that was trained without: nearly the same decisions, other gradients; the receipt holds."""
    plain_folder, plain = session.run(Options(checkpoint, "quick", n=90, out=tmp_path / "plain"), silent)
    folder, put_on = session.run(Options(checkpoint, "quick", n=90, gate="reverse-attention", out=tmp_path / "gate"), silent)
    assert put_on["identity"] != plain["identity"]
    assert put_on["attacks"]["pgd-20"]["accuracy"] > plain["attacks"]["pgd-20"]["accuracy"]
    evidence = verify.gather(folder, checkpoint=None, data_root=None)
    assert evidence.loaded.network.gate_sites == ("features",)
    assert verify.check(evidence, device=torch.device("cpu"), quantize=False)["failures"] == []
    assert Ledger(plain_folder / "ledger").complete


@pytest.mark.parametrize(("gate", "says"), [("channel-suppression", "weights of its own"), ("sesame", "there is no gate")])
def test_gates_that_cannot_be_put_on(checkpoint: Path, gate: str, says: str, silent: Any) -> None:
    with pytest.raises(UsageError, match=says):
        session.run(Options(checkpoint, "quick", gate=gate), silent)


def test_a_second_gate_is_refused(gated: Path, silent: Any) -> None:
    with pytest.raises(UsageError, match="gates already"):
        session.run(Options(gated, "quick", gate="reverse-attention"), silent)


def test_what_heads_say_is_logged(gated: Path) -> None:
    import json

    event = json.loads((gated / "metrics.jsonl").read_text().splitlines()[-1])
    for part in ("validation", "train"):
        assert {"clean", "robust", "aux0", "aux1", "agree0", "agree1"} <= event[part].keys()
    assert {"ce_adv", "ce_adv.aux0", "ce_adv.aux1"} <= event.keys()


def test_an_argmax_gate_hides_the_gradient_and_changes_next_to_no_decision(trained_run: Path) -> None:
    """Put on a trained network, it makes PGD look harmless, while examples found without it break the gated network."""
    loaded = load_network(trained_run / "model.safetensors")
    network, _ = with_gate(loaded.network, loaded.architecture, GATES[1])
    test, _ = load_test(Data(name="digits"))
    x, y = to_float(test.images[:120]), test.labels[:120]
    with frozen(network):
        judge = Judge(network, chunk=120)
        right = ~judge.decide(x, y)
        assert float((network(x).argmax(1) == network.trace(x, open_gate).logits.argmax(1)).float().mean()) > 0.97
        x, y = x[right], y[right]
        judge, attack = Judge(network, chunk=len(y)), Pgd(Threat("linf", 0.15), attack_loss("ce"), steps=20, step_size=0.0375)
        through, around = (
            attack(Surrogate(trace), judge, x, y, Draws(0, torch.arange(len(y)), "toy"), {}).broken.float().mean()
            for trace in (network.trace, partial(network.trace, select=open_gate))
        )
    assert around > through + 0.1


@pytest.mark.slow
def test_adaptive_on_a_network_without_gates_is_autoattack_and_more(checkpoint: Path, silent: Any, tmp_path: Path) -> None:
    _, aa = session.run(Options(checkpoint, "aa", n=12, out=tmp_path / "aa"), silent)
    _, adaptive = session.run(Options(checkpoint, "adaptive", n=12, out=tmp_path / "adaptive"), silent)
    assert list(adaptive["attacks"]) == [*aa["attacks"], "apgd-t-again"]
    assert adaptive["robust"] <= aa["robust"]
    assert adaptive["verdict"] == aa["verdict"] == "trustworthy"


@pytest.mark.slow
def test_adaptive_sees_through_a_gate_that_autoattack_does_not(checkpoint: Path, silent: Any, tmp_path: Path) -> None:
    """A gate put on afterwards flatters AutoAttack; suite adaptive finds the same network as without it, to an image."""
    options = {"n": 60, "batch_size": 60}
    _, plain = session.run(Options(checkpoint, "aa", **options, out=tmp_path / "plain"), silent)
    _, gated = session.run(Options(checkpoint, "aa", **options, gate="reverse-attention", out=tmp_path / "gated"), silent)
    folder, adaptive = session.run(Options(checkpoint, "adaptive", **options, gate="reverse-attention", out=tmp_path / "knows"), silent)
    assert gated["robust"] >= plain["robust"] + 0.03
    assert gated["verdict"] != "trustworthy"
    assert adaptive["robust"] <= plain["robust"] + 0.02
    assert adaptive["verdict"] == "upper bound", "attacks that know a gate are the tightest bound, and no proof"
    evidence = verify.gather(folder, checkpoint=None, data_root=None)
    assert verify.check(evidence, device=torch.device("cpu"), quantize=False)["failures"] == []

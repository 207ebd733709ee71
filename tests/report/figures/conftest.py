"""Two runs on the digits: one trained, and the same with its weights stirred."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from advcli.runs.checkpoint import load_network, write_network


@pytest.fixture(scope="session")
def two_runs(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """[trained, stirred]; read only."""
    loaded = load_network(trained_run / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.network.parameters():
            parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("stirred") / "other"
    folder.mkdir()
    header = {key: loaded.header[key] for key in ("classes", "threat", "data")}
    write_network(folder / "model.safetensors", loaded.network, loaded.architecture, header)
    return [trained_run, folder]

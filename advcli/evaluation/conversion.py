"""From a checkpoint of others to one of ours, with a header that says where it is from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advcli.errors import UsageError
from advcli.evaluation import session
from advcli.evaluation.job import Watcher
from advcli.evaluation.session import Options
from advcli.runs.checkpoint import write_network
from advcli.runs.folder import new_model_file


def convert(options: Options, out: Path | None, watcher: Watcher) -> dict[str, Any]:
    """Write the checkpoint and return {checkpoint, architecture, foreign, tensors_sha256}; UsageError for one that is ours already."""
    loaded = session.open_checkpoint(options, watcher)
    if "kind" in loaded.header:
        raise UsageError("this checkpoint is advcli's already", where=str(loaded.path), next=f"advcli attack {loaded.path}")
    path = new_model_file(loaded.header["name"], out)
    write_network(path, loaded.network, loaded.architecture, loaded.header)
    facts = {key: loaded.header[key] for key in ("foreign", "tensors_sha256")}
    return {"checkpoint": str(path), "architecture": loaded.architecture.to_json(), **facts}

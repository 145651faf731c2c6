"""Sharded checkpoints: what is read back is what was written, and no pickle of anybody's is run."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata

from layerroute.errors import UserError
from layerroute.training import sharding
from layerroute.training.disk import only_tensors
from layerroute.training.sharding import check_table, load_optimizer, load_weights, save_optimizer

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Bomb:
    """What a pickle can do: run any command when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def trained(rate: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_optimizer(*trained(1e-2), tmp_path, sharded=True)
    return tmp_path


def table_of(checkpoint: Path) -> tuple[Path, Metadata]:
    path = checkpoint / "shards" / ".metadata"
    return path, pickle.loads(path.read_bytes())


def test_weights_and_optimizer_come_back(checkpoint: Path) -> None:
    model, optimizer = trained(0.5)
    load_weights(model, checkpoint)
    load_optimizer(model, optimizer, checkpoint)
    other, expected = trained(1e-2)
    assert torch.equal(model.weight, other.weight)  # type: ignore[arg-type]
    assert optimizer.state_dict()["param_groups"] == expected.state_dict()["param_groups"]
    for ours, theirs in zip(optimizer.state.values(), expected.state.values(), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_a_table_of_contents_is_read_only_if_it_is_one(checkpoint: Path) -> None:
    path, _ = table_of(checkpoint)
    check_table(path)
    mark = checkpoint / "mark"
    # A class of torch's own that no table needs is no more welcome than a shell.
    foreign = pickle.dumps(dcp.FileSystemWriter)
    bombs = [pickle.dumps(Bomb(mark), protocol=protocol) for protocol in (0, 2, 4)]
    for data in (*bombs, foreign, pickle.dumps({"storage_data": {}}), b"\x80\x04garbage", b""):
        path.write_bytes(data)
        with pytest.raises(UserError, match="was not loaded"):
            check_table(path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd"])
def test_a_table_of_contents_names_files_of_its_own_folder_only(checkpoint: Path, name: str) -> None:
    path, table = table_of(checkpoint)
    for stored in table.storage_data.values():
        stored.relative_path = name
    path.write_bytes(pickle.dumps(table))
    with pytest.raises(UserError, match="outside of it; nothing was read"):
        load_weights(trained(0.5)[0], checkpoint)


def test_a_pickle_in_the_place_of_a_plain_value_does_not_go_off(checkpoint: Path) -> None:
    """torch's own planner loads what is no tensor with ``weights_only=False``."""
    mark = checkpoint / "mark"
    model, optimizer = trained(0.5)
    state = {"optimizer": dict(sharding.get_optimizer_state_dict(model, optimizer))}
    state["optimizer"]["param_groups"][0]["lr"] = Bomb(mark)
    shutil.rmtree(checkpoint / "shards")
    dcp.save(state, storage_writer=dcp.FileSystemWriter(checkpoint / "shards"))
    with pytest.raises(UserError, match="more than tensors") as caught, only_tensors(str(checkpoint)):
        load_optimizer(model, optimizer, checkpoint)
    assert "will likely succeed" not in str(caught.value), "torch's advice to run it is not passed on"
    assert not mark.exists()
    dcp.load(state, storage_reader=dcp.FileSystemReader(checkpoint / "shards"))
    assert mark.exists(), "the bomb is none"


def test_a_disk_that_fails_is_told_as_such(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device", "shards")

    shutil.rmtree(checkpoint / "shards")
    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", full)
    with pytest.raises(OSError, match="No space left"):
        save_optimizer(*trained(1e-2), checkpoint, sharded=True)

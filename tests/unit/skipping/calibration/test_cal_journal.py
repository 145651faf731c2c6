"""What a calibration has found stays where it is cut off, and nothing is lost for want of notes."""

import logging
import os
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from layerroute.skipping.calibration import Journal, fit_arms, journal_of
from layerroute.skipping.calibration import journal as journals
from layerroute.skipping.calibration.controls import Ranking
from layerroute.skipping.calibration.transfer import transfer_cell
from layerroute.skipping.calibration.windows import Windows
from tests.parity.skipping_models import plain
from tests.unit.skipping.calibration.tiny_calibration import Cut, config, cut_at_fit, ids


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERROUTE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unfinished"


@pytest.mark.parametrize("content", [Fraction(1, 3), {"site": Path("somewhere")}])
def test_a_note_of_classes_that_are_not_kept_is_forgotten(content, tmp_path):
    torch.save(content, tmp_path / "step-1.pt")
    assert Journal(tmp_path).step().recall() is None


def test_a_damaged_note_is_forgotten(tmp_path):
    journal = Journal(tmp_path)
    journal.step().note({"a": torch.ones(3)}, done=True)
    assert torch.equal(Journal(tmp_path).step().recall()["a"], torch.ones(3))
    (tmp_path / "step-1.pt").write_bytes(b"PK half of it")
    assert Journal(tmp_path).step().recall() is None
    journal.discard()
    assert not tmp_path.exists()


def test_the_same_calibration_twice_at_once(tmp_path):
    one, two = Journal(tmp_path / "notes"), Journal(tmp_path / "notes")
    assert one.once(lambda: torch.ones(2)) is not None
    step = two.step()
    one.discard()
    step.note(torch.zeros(2), done=True)
    assert torch.equal(Journal(tmp_path / "notes").step().recall(), torch.zeros(2))


def test_states_of_unfinished_steps_are_kept_only_where_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(journals, "EVERY", 0.0)
    for states in (True, False):
        journal = Journal(tmp_path / str(states), states=states)
        first, second = journal.step(), journal.step()
        first.note(torch.ones(2), states=True)
        second.note(torch.ones(2))
        assert (first.recall() is not None, second.recall() is not None) == (states, True)
        assert (journal.scratch is not None) == states and journal.begun
    assert not Journal(tmp_path / "never", states=False).begun and not (tmp_path / "never").exists()


def test_a_folder_that_cannot_be_written_is_told_once_and_ends_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    journal = Journal(tmp_path / "file" / "notes", states=False)
    with caplog.at_level(logging.WARNING):
        assert [journal.once(lambda: 1), journal.once(lambda: 2)] == [1, 2]
    (warning,) = caplog.messages
    assert "no notes can be kept" in warning and "begins anew" in warning
    journal.discard()


def test_a_full_disk_leaves_no_half_of_a_note(tmp_path, monkeypatch, caplog):
    def full(value, file):
        file.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file\nand a trace")

    monkeypatch.setattr(journals.torch, "save", full)
    journal = Journal(tmp_path / "notes", states=False)
    assert journal.once(lambda: 1) == 1
    assert not list((tmp_path / "notes").iterdir()) and "trace" not in caplog.text


def test_journals_that_nobody_came_back_to_go_after_a_month(cache):
    model = plain()
    for name, days in (("old", 31), ("young", 29)):
        (cache / name).mkdir(parents=True)
        then = time.time() - days * 86400
        os.utime(cache / name, (then, then))
    journal_of(model, config())
    assert [one.name for one in cache.iterdir()] == ["young"]


def test_a_journal_is_of_one_model_its_dtype_settings_and_tokens():
    asked, few, more = config(), ids(4), ids(8)
    other = plain()
    with torch.no_grad():
        other.get_input_embeddings().weight.add_(1.0)
    journals_ = [
        journal_of(plain(), asked, few),
        journal_of(plain().to(torch.bfloat16), asked, few),
        journal_of(other, asked, few),
        journal_of(plain(), config(budget=0.4), few),
        journal_of(plain(), asked, more),
        journal_of(plain(), asked, few, also="random"),
    ]
    assert len({one.folder for one in journals_}) == len(journals_)
    assert journal_of(plain(), asked, few).folder == journals_[0].folder


def windows(count, seed):
    return Windows(ids=ids(count, seed=seed))


def test_a_cell_of_transfer_goes_on(cache, monkeypatch):
    def cell():
        return transfer_cell(
            plain(),
            config(),
            statistics=windows(16, 0),
            selection=windows(4, 3),
            texts={"away": (windows(12, 4), False)},
        )[0]

    whole = cell()
    with monkeypatch.context() as patch:
        cut_at_fit(patch, 9)
        with pytest.raises(Cut):
            cell()
    with monkeypatch.context() as patch:
        fitted = cut_at_fit(patch, None)
        assert cell() == whole
    assert fitted and len(fitted) < 9
    assert not list(cache.iterdir())


def test_a_cell_that_is_cut_off_goes_on_beside_what_it_has_found_for_later_cells(cache, monkeypatch):
    """A choice of layers that is known is no step of the journal: what comes after it is not taken for one before."""

    def cell(budget, rankings):
        return transfer_cell(
            plain(),
            config(budget=budget, own_text=0.0),
            statistics=windows(8, 0),
            selection=windows(4, 3),
            texts={"away": (windows(4, 4), False)},
            rankings=rankings,
        )[0]

    expected, rankings = cell(0.5, {}), dict[str, Ranking]()
    cell(0.3, rankings)
    with monkeypatch.context() as patch:
        cut_at_fit(patch, 8)
        with pytest.raises(Cut):
            cell(0.5, rankings)
    assert 2 in rankings["mlp"].taken
    assert cell(0.5, rankings) == expected


def test_a_ranking_that_calibrations_share_writes_to_the_journal_of_each(tmp_path):
    """The first one's journal is gone when the second runs."""
    rankings: dict[str, Ranking] = {}
    for budget in (0.25, 0.5):
        journal = Journal(tmp_path / str(budget), states=False)
        fit_arms(
            plain(),
            config(budget=budget),
            statistics=ids(48),
            selection=ids(8, seed=3),
            controls=["static_greedy", "static_block_greedy"],
            rankings=rankings,
            journal=journal,
        )
        assert all(one.stack.journal is journal for one in rankings.values())
        journal.discard()
    assert not list(tmp_path.iterdir())

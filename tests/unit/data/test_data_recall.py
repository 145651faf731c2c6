"""Recall sequences: every answer stands earlier in its row, and the same text of a seed gives the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerroute.data.configuration import DataConfig
from layerroute.data.recall.configuration import FIRST_KEY, MARK, CurriculumConfig, RecallConfig
from layerroute.data.recall.prepared import RecallData
from layerroute.data.recall.tasks import generate
from layerroute.errors import UserError
from layerroute.evaluation.recall import distances

ROWS, LENGTH = 64, 48


def make(length: int = LENGTH, **settings: Any) -> tuple[RecallConfig, np.ndarray, np.ndarray]:
    config = RecallConfig(**{"pairs": 6, "keys": 10, "values": 20, "fillers": 5, **settings})
    ids, answers = generate(config, ROWS, length, seed="test")
    assert ids.shape == answers.shape == (ROWS, length)
    assert ids.min() >= 0 and ids.max() < config.vocabulary_size
    return config, ids, answers


def kind(config: RecallConfig, ids: np.ndarray) -> np.ndarray:
    edges = np.cumsum([FIRST_KEY, config.keys, config.values])
    return np.searchsorted(edges, ids, side="right")  # 1 key, 2 value, 3 filler


def test_mqar_asks_for_every_pair_once() -> None:
    config, ids, answers = make()
    for row, mask in zip(ids, answers, strict=True):
        pairs = dict(zip(row[0:12:2].tolist(), row[1:12:2].tolist(), strict=True))
        assert len(pairs) == 6
        asked = [(int(row[place - 1]), int(row[place])) for place in np.flatnonzero(mask)]
        assert sorted(asked) == sorted(pairs.items())
        assert np.flatnonzero(mask).min() > 12
    kinds = kind(config, ids)
    assert (kinds[answers] == 2).all()
    assert (kinds == 1).sum() == (kinds == 2).sum() == 2 * 6 * ROWS
    assert len({tuple(row[0:12:2]) for row in ids}) > ROWS // 2, "rows differ"


def test_questions_are_at_odd_and_at_even_places() -> None:
    _, _, answers = make()
    places = np.nonzero(answers)[1]
    assert 0.4 < (places % 2).mean() < 0.6


@st.composite
def hard_tasks(draw: st.DrawFn) -> RecallData:
    """Tasks with noise between pairs and queries, at all sizes that fit."""
    pairs, writes = draw(st.integers(2, 12)), draw(st.integers(1, 3))
    noise = draw(st.floats(0.4, 0.8))
    least = int(2 * (pairs * writes + 1) / (1 - noise)) + 4
    length = draw(st.integers(least, 4 * least))
    recall = RecallConfig(
        pairs=pairs,
        keys=draw(st.integers(pairs, 20)),
        values=draw(st.integers(2, 20)),
        noise=noise,
        writes=writes,
        curriculum=draw(
            st.sampled_from(
                [
                    None,
                    CurriculumConfig(start=2),
                    CurriculumConfig(start=2, begin=0.2, shortest=12),
                ]
            )
        ),
    )
    split_seed = draw(st.integers(0, 5))
    return RecallData(
        DataConfig(source="recall", recall=recall, sequence_length=length, split_seed=split_seed)
    )


@settings(deadline=None, max_examples=60)
@given(hard_tasks(), st.integers(1, 3))
def test_with_noise_answers_are_right_and_as_much_is_filler_as_was_asked(
    data: RecallData, multiple: int
) -> None:
    task, length = data.task, data.config.sequence_length
    batches = [data.training_batch(0, 4, rows=3, seed=7), data.validation(3, length=multiple * length)]
    for ids, answers in [*batches, data.held_out(3)]:
        asked = task.asked(length)
        if ids is batches[0][0]:  # by the curriculum
            asked = max(1, task.room(ids.shape[1], task.pairs_at(0, 4)))
        assert (answers.sum(axis=1) == asked).all()
        for row, mask in zip(ids.tolist(), answers, strict=True):
            known: dict[int, int] = {}
            told: dict[int, list[int]] = {}
            place, asking = 0, False
            while place < len(row):
                if not FIRST_KEY <= row[place] < FIRST_KEY + task.keys:
                    assert row[place] >= FIRST_KEY + task.keys + task.values, "what is no pair is filler"
                    place += 1
                    continue
                key, value = row[place : place + 2]
                asking = asking or bool(mask[place + 1])
                assert mask[place + 1] == asking, "all is told before anything is asked for"
                if asking:
                    assert known[key] == value
                else:
                    assert known.get(key) != value, "each time another value"
                    known[key] = value
                    told.setdefault(key, []).append(value)
                place += 2
            assert {len(values) for values in told.values()} == {task.writes}
    ids = data.validation(3)[0]
    filler = (ids >= FIRST_KEY + task.keys + task.values).mean()
    assert filler == pytest.approx(task.noise, abs=2.01 / length)


def test_with_noise_questions_come_from_all_distances() -> None:
    """Half as far as the sequence is long is the usual; next to it and across all of it are met too."""
    recall = RecallConfig(pairs=32, keys=64, values=64, noise=0.5)
    data = RecallData(DataConfig(source="recall", recall=recall, sequence_length=256))
    ids, answers = data.validation(200)
    far = distances(ids, answers)[answers]
    assert far.min() <= 4 and far.max() >= 240
    shares = np.histogram(far, bins=8, range=(0, 256))[0] / far.size
    assert shares.min() > 0.02 and shares.max() < 0.3
    assert np.histogram(np.nonzero(answers)[1] % 2, bins=2)[0].min() > 0.45 * far.size


def test_seeds_and_splits_draw_sequences_of_their_own() -> None:
    """What tunes, what trains and what is reported have no sequence in common."""
    recall = RecallConfig(pairs=4, noise=0.5)
    rows: list[tuple[int, ...]] = []
    for split_seed in (0, 1):
        config = DataConfig(source="recall", recall=recall, sequence_length=32, split_seed=split_seed)
        data = RecallData(config)
        found = [data.training_batch(n, 3, rows=8, seed=seed)[0] for n in range(3) for seed in (1, 2, 11)]
        found += [data.validation(8)[0], data.validation(8, length=64)[0][:, :32], data.held_out(8)[0]]
        rows += [tuple(row) for batch in found for row in batch.tolist()]
    assert len(set(rows)) == len(rows) == 2 * 12 * 8


def test_sequences_grow_with_their_pairs_and_hold_as_much_noise() -> None:
    plan = CurriculumConfig(start=2, finish=0.5, shortest=64)
    recall = RecallConfig(pairs=64, noise=0.5, curriculum=plan)
    data = RecallData(DataConfig(source="recall", recall=recall, sequence_length=512))
    lengths = []
    for batch in range(0, 100, 2):
        ids, answers = data.training_batch(batch, 100, rows=2, seed=1)
        lengths.append(ids.shape[1])
        assert len(ids) == 2 * (512 // ids.shape[1]), "as many tokens in a batch as ever"
        told = recall.pairs_at(batch, 100)
        assert answers.sum() == len(ids) * (ids.shape[1] // 4 - told)
        filler = (ids >= FIRST_KEY + recall.keys + recall.values).mean()
        assert filler == pytest.approx(0.5, abs=0.01)
    assert lengths[0] == 64 and lengths == sorted(lengths) and len(set(lengths)) > 8
    assert set(lengths[25:]) == {512}
    assert data.validation(2)[0].shape == (2, 512), "evaluation is always on the task itself"


@pytest.mark.parametrize("writes", [1, 2])
@pytest.mark.parametrize("noise", [0.01, 0.05, 0.5])
def test_no_number_of_pairs_ends_a_run_whose_whole_task_fits(noise: float, writes: int) -> None:
    pairs = (round(33 * (1 - noise)) // 2 - 1) // writes
    plan = CurriculumConfig(start=1, finish=0.8, shortest=1)
    recall = RecallConfig(pairs=pairs, noise=noise, writes=writes, curriculum=plan)
    data = RecallData(DataConfig(source="recall", recall=recall, sequence_length=33))
    seen = set()
    for batch in range(60):
        ids, answers = data.training_batch(batch, 60, rows=1, seed=1)
        assert answers.any(axis=1).all() and ids.size <= 33
        seen.add(recall.pairs_at(batch, 60))
    assert seen >= {1, 2, pairs}


def test_pairs_stay_few_until_they_are_to_grow() -> None:
    recall = RecallConfig(pairs=64, curriculum=CurriculumConfig(start=2, begin=0.25, finish=0.5))
    most = [recall.pairs_at(batch, 100) for batch in range(0, 100, 2)]
    assert most[:13] == [2] * 13 and most[25:] == [64] * 25
    assert most == sorted(most) and len(set(most)) > 8
    assert most[19] == 2 * 32 ** ((38 - 25) / 25) // 1


def test_records_of_earlier_versions_keep_their_fingerprint() -> None:
    config = DataConfig(source="recall", recall=RecallConfig(pairs=4), sequence_length=32)
    assert RecallData(config).fingerprint.startswith("2439d3e58185")
    grown = RecallConfig(pairs=4, curriculum=CurriculumConfig(start=2))
    config = DataConfig(source="recall", recall=grown, sequence_length=32)
    assert RecallData(config).fingerprint.startswith("31c0af5015e9")
    harder = [{"noise": 0.5}, {"writes": 2}]
    found = {
        RecallData(
            DataConfig(source="recall", recall=RecallConfig(pairs=4, **more), sequence_length=32)
        ).fingerprint
        for more in ({}, *harder)
    }
    assert len(found) == 3


def test_fewer_pairs_are_asked_for_as_often() -> None:
    config = RecallConfig(pairs=6, keys=10, values=20)
    ids, answers = generate(config, ROWS, LENGTH, seed="test", pairs=2)
    assert (answers.sum(axis=1) == 6).all()
    for row, mask in zip(ids, answers, strict=True):
        assert {int(row[place - 1]) for place in np.flatnonzero(mask)} == set(row[0:4:2].tolist())


def test_gaps_follow_their_power() -> None:
    places = {}
    for power in (0.01, 1.0):
        _, _, answers = make(256, gap_power=power)
        places[power] = np.nonzero(answers)[1].mean()
    assert places[0.01] < 100 < 120 < places[1.0] < 150


@pytest.mark.parametrize("pairs", [1, 4])
def test_a_needle_is_asked_for_at_the_end(pairs: int) -> None:
    config, ids, answers = make(task="needle", pairs=pairs)
    assert (answers.sum(axis=1) == 1).all() and answers[:, -1].all()
    depths = []
    for row in ids:
        assert row[-3] == MARK
        (place,) = np.flatnonzero(row[:-3] == row[-2])
        assert row[place + 1] == row[-1]
        depths.append(place)
    assert (kind(config, ids[:, :-3]) == 1).sum() == pairs * ROWS
    assert len(set(depths)) > 8, "needles lie at many depths"


def test_copying_repeats() -> None:
    config, ids, answers = make(task="copying")
    assert (ids[:, -6:] == ids[:, -13:-7]).all() and (ids[:, -7] == MARK).all()
    assert answers[:, -6:].all() and answers.sum() == 6 * ROWS
    assert (kind(config, ids[:, :-13]) == 3).all()


def test_induction_completes_what_it_saw_once() -> None:
    config, ids, answers = make(task="induction")
    assert answers[:, -1].all() and answers.sum() == ROWS
    for row in ids:
        first, last = np.flatnonzero(kind(config, row) == 1)
        assert last == LENGTH - 2 and row[first] == row[last] and row[first + 1] == row[-1]


@pytest.mark.parametrize("task", ["mqar", "needle", "copying", "induction"])
def test_the_shortest_sequence_holds_the_task_and_one_token_less_does_not(task: Any) -> None:
    least = RecallConfig(task=task, pairs=6, keys=10).least_length()
    make(least, task=task)
    with pytest.raises(UserError, match=f"needs {least} tokens"):
        make(least - 1, task=task)


def test_the_same_seed_gives_the_same_rows_for_ever() -> None:
    config = RecallConfig(pairs=2, keys=4, values=4, fillers=2)
    ids, _ = generate(config, 2, 10, seed="fixed")
    # On every machine and in every version of numpy: a record's fingerprint stands for these.
    assert ids.tolist() == [[3, 6, 5, 6, 11, 3, 6, 5, 6, 10], [4, 9, 5, 8, 11, 4, 9, 11, 5, 8]]
    assert ids.tolist() == generate(config, 2, 10, seed="fixed")[0].tolist()
    assert ids.tolist() != generate(config, 2, 10, seed="other")[0].tolist()


def test_training_rows_are_new_and_validation_rows_are_their_own() -> None:
    recall = RecallConfig(pairs=4, curriculum=CurriculumConfig(start=2, finish=0.5))
    data = RecallData(DataConfig(source="recall", recall=recall, sequence_length=32))
    first = data.training_batch(0, 10, rows=4, seed=1)[0]
    assert (first != data.training_batch(1, 10, rows=4, seed=1)[0]).any()
    assert (first != data.training_batch(0, 10, rows=4, seed=2)[0]).any()
    assert (data.validation(4)[0] == data.validation(4)[0]).all()
    assert data.validation(4, length=64)[0].shape == (4, 64)
    text = " ".join(recall.names()[token] for token in first[0])
    assert data.tokenizer(text)["input_ids"] == first[0].tolist()
    assert data.tokenizer.decode(first[0].tolist()) == text


def test_the_curriculum_ends_with_all_pairs() -> None:
    config = RecallConfig(pairs=16, curriculum=CurriculumConfig(start=2, finish=0.5))
    counts = [config.pairs_at(batch, 100) for batch in range(100)]
    assert counts[:2] == [2, 2] and set(counts[50::2]) == {16}
    assert min(counts[51::2]) < 6 < 12 < max(counts[51::2]) < 16
    assert {RecallConfig(pairs=16).pairs_at(batch, 100) for batch in range(100)} == {16}


def test_a_record_is_read_back_as_the_configuration_that_it_came_from() -> None:
    from dataclasses import asdict

    recall = RecallConfig(pairs=4, curriculum=CurriculumConfig(start=2))
    config = DataConfig(source="recall", recall=recall, sequence_length=32)
    again = DataConfig(**asdict(config))
    assert again == config
    assert RecallData(again).fingerprint == RecallData(config).fingerprint
    longer = DataConfig(**{**asdict(config), "sequence_length": 64})
    assert RecallData(longer).fingerprint != RecallData(config).fingerprint


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pairs": 65}, "every key comes once"),
        ({"queries": 9}, "from 1 to data.recall.pairs"),
        ({"task": "copying", "queries": 2}, "it is for mqar"),
        ({"values": 1}, "nothing to recall"),
        ({"gap_power": 0.0}, "(0, 1]"),
        ({"curriculum": CurriculumConfig(start=9)}, "above data.recall.pairs"),
        ({"evaluation_multiples": [0]}, "1 or more"),
        ({"noise": 1.0}, "(0, 1)"),
        ({"noise": 0.5, "queries": 4}, "leave data.recall.queries"),
        ({"task": "copying", "noise": 0.5}, "is for mqar"),
        ({"task": "needle", "writes": 2}, "is for mqar"),
        ({"task": "needle", "gap_power": 0.5}, "is for mqar"),
        ({"task": "induction", "curriculum": CurriculumConfig()}, "induction has one key"),
        ({"writes": 0}, "1 or more"),
        ({"curriculum": CurriculumConfig(shortest=9)}, "needs data.recall.noise"),
    ],
    ids=str,
)
def test_settings_that_make_no_task_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        RecallConfig(**settings)
    assert words in str(error.value)


def test_noise_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(UserError, match="leaves 20 tokens, and 10 pairs and a query need 22"):
        RecallConfig(pairs=5, writes=2, noise=0.6).asked(50)


def test_first_sequences_that_would_be_longer_than_all_others_are_refused() -> None:
    plan = RecallConfig(noise=0.5, curriculum=CurriculumConfig(shortest=65))
    with pytest.raises(
        UserError, match=r"curriculum\.shortest is 65, more than data\.sequence_length \(64\)"
    ):
        DataConfig(source="recall", recall=plan, sequence_length=64)
    assert DataConfig(source="recall", recall=plan, sequence_length=65).recall == plan


def test_the_source_and_its_section_go_together() -> None:
    with pytest.raises(UserError, match=r"data.recall is empty; set data\.recall"):
        DataConfig(source="recall")
    with pytest.raises(UserError, match=r"data\.recall is set but data.source is 'python-stdlib'"):
        DataConfig(recall=RecallConfig())

import numpy as np
import pytest

from layerroute.lab.runs import TokenFacts, TokenRoutes
from layerroute.lab.tokens import arms_table, groups_table, token_groups, token_kind


def routes(*, planted: bool, sentences: int = 12, seed: int = 0) -> TokenRoutes:
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(sentences):
        tokens = tuple(generator.choice(["word", " word", ",", "(", " 12"], size=20).tolist())
        wanted = [0.9 if token in (",", "(") else 0.2 for token in tokens] if planted else [0.5] * 20
        choice = tuple((int(generator.random() < p), int(generator.random() < p)) for p in wanted)
        made.append((tokens, choice, tuple((0.5, 0.5) for _ in tokens)))
    return TokenRoutes(
        sites=("layer1.mixer", "layer2.mixer"), paths=("gdn", "softmax"), sentences=tuple(made)
    )


@pytest.mark.parametrize(
    ("token", "starts", "kind"),
    [
        (" the", False, "stop word"),
        ("The", True, "stop word"),
        (" cat", False, "word start"),
        ("ing", False, "word continuation"),
        (" 42", False, "number"),
        ("):", False, "punctuation"),
        ("_", False, "punctuation"),
        ("\n    ", False, "white space"),
        ("", False, "white space"),
        ("Σ", False, "word continuation"),
    ],
)
def test_kind(token: str, starts: bool, kind: str) -> None:
    assert token_kind(token, starts=starts) == kind


def test_planted_difference_is_found() -> None:
    found = token_groups(routes(planted=True))["kind"]
    assert found.differ
    assert found.kinds[0].kind == "punctuation"
    assert found.kinds[0].rate == pytest.approx(0.9, abs=0.06)
    low, high = found.kinds[0].low, found.kinds[0].high
    assert low is not None
    assert high is not None
    assert low < found.kinds[0].rate < high


def test_no_difference_is_not_claimed() -> None:
    claims = [
        found.differ for seed in range(8) if (found := token_groups(routes(planted=False, seed=seed))["kind"])
    ]
    assert len(claims) == 8
    assert sum(claims) <= 2


def test_same_routes_same_numbers() -> None:
    assert token_groups(routes(planted=True))["kind"] == token_groups(routes(planted=True))["kind"]


def test_too_few_sentences_for_a_test() -> None:
    found = token_groups(routes(planted=True, sentences=2))["kind"]
    assert found.p_value is None
    assert not found.differ
    assert {kind.low for kind in found.kinds} == {None}
    table = groups_table(token_groups(routes(planted=True, sentences=2)), "softmax")
    assert table is not None and "kind: not tested" in table.notes[0]


def test_no_tokens() -> None:
    assert token_groups(TokenRoutes(sites=("layer1.mixer",), paths=("gdn", "softmax"), sentences=())) == {}
    assert groups_table({}, "softmax") is None


def noted(*, by: str, sentences: int = 12, seed: int = 0) -> TokenRoutes:
    """Routes that follow one fact about each token, and nothing else; every second sentence stands late."""
    generator = np.random.default_rng(seed)
    made, facts = [], []
    for number in range(sentences):
        loss, seen = generator.gamma(2.0, 1.5, 30), generator.integers(1, 1000, 30)
        start = 0 if number % 2 else 200
        wanted = {
            "loss": loss > 5.0,
            "corpus frequency": seen < 150,
            "place in context": np.full(30, start == 200),
            "nothing": np.zeros(30, dtype=bool),
        }[by]
        choice = tuple((int(generator.random() < (0.9 if is_so else 0.2)),) for is_so in wanted)
        made.append((tuple(" word" for _ in range(30)), choice, tuple((0.5,) for _ in range(30))))
        first = None if start == 0 else float(loss[0])
        facts.append(
            TokenFacts(start=start, losses=(first, *map(float, loss[1:])), seen=tuple(map(int, seen)))
        )
    return TokenRoutes(
        sites=("layer1.mixer",), paths=("gdn", "softmax"), sentences=tuple(made), facts=tuple(facts)
    )


@pytest.mark.parametrize(
    ("by", "first"),
    [("loss", "high loss"), ("corpus frequency", "rare"), ("place in context", "128 to 511")],
)
def test_each_cut_finds_what_was_planted_in_it(by: str, first: str) -> None:
    groups = token_groups(noted(by=by))
    assert list(groups) == ["kind", "corpus frequency", "loss", "place in context"]
    assert groups[by].kinds[0].kind == first
    assert groups[by].kinds[0].rate > groups[by].kinds[-1].rate + 0.3
    for name, group in groups.items():
        if name != by and name != "place in context":
            assert not group.differ, name
    assert groups[by].differ == (by != "place in context"), (
        "a place is shared by a sentence, and is not tested"
    )
    table = groups_table(groups, "softmax")
    assert table is not None
    assert {row.cells[0].text for row in table.rows} == set(groups)


def test_cuts_of_nothing_claim_nothing() -> None:
    claims = [
        group.differ for seed in range(4) for group in token_groups(noted(by="nothing", seed=seed)).values()
    ]
    assert sum(claims) <= 2


def test_words_split_into_pieces_are_no_stop_words() -> None:
    sentences = tuple(((" the", "sis", " the", " end"), ((0,),) * 4, ((0.5,),) * 4) for _ in range(3))
    found = token_groups(TokenRoutes(sites=("a",), paths=("gdn", "softmax"), sentences=sentences))["kind"]
    assert {kind.kind: kind.tokens for kind in found.kinds} == {
        "word start": 6,
        "word continuation": 3,
        "stop word": 3,
    }


def test_tokens_of_a_recall_task_are_keys_values_and_fillers() -> None:
    tokens = ("k1", "v7", "k2", "v9", "f3", "?", "k2", "<|endoftext|>")
    recall = TokenRoutes(
        sites=("a",), paths=("gdn", "softmax"), sentences=((tokens, ((0,),) * 8, ((0.5,),) * 8),)
    )
    found = {kind.kind: kind.tokens for kind in token_groups(recall)["kind"].kinds}
    assert found == {"key, told": 2, "key, asked": 1, "value": 2, "filler": 1, "mark": 2}
    text = TokenRoutes(
        sites=("a",),
        paths=("gdn", "softmax"),
        sentences=((("k1", " cat"), ((0,),) * 2, ((0.5,),) * 2),),
    )
    assert {kind.kind for kind in token_groups(text)["kind"].kinds} == {"word start"}


def test_every_arm_stands_beside_the_others() -> None:
    groups = {"one": token_groups(routes(planted=True)), "other": token_groups(routes(planted=False))}
    table = arms_table(groups, "softmax")
    assert table is not None and [column.label for column in table.columns][2:] == ["one", "other"]
    rows = {row.cells[1].text: row for row in table.rows}
    assert rows["punctuation"].cells[2].value == pytest.approx(0.9, abs=0.06)
    assert rows["punctuation"].cells[3].value == pytest.approx(0.5, abs=0.06)
    found, chance = (cell.value for cell in rows["p"].cells[2:])
    assert rows["p"].kind == "reference" and found is not None and found < 0.01 < (chance or 1)
    assert arms_table({"one": groups["one"]}, "softmax") is None

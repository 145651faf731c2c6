import numpy as np
import pytest

from layerroute.analysis.runs import TokenRoutes
from layerroute.analysis.tokens import token_kind, token_kinds


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
        (" the", False, "word start"),
        ("The", True, "word start"),
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
    found = token_kinds(routes(planted=True))
    assert found is not None
    assert found.differ
    assert found.kinds[0].kind == "punctuation"
    assert found.kinds[0].rate == pytest.approx(0.9, abs=0.06)
    low, high = found.kinds[0].low, found.kinds[0].high
    assert low is not None
    assert high is not None
    assert low < found.kinds[0].rate < high


def test_no_difference_is_not_claimed() -> None:
    claims = [found.differ for seed in range(8) if (found := token_kinds(routes(planted=False, seed=seed)))]
    assert len(claims) == 8
    assert sum(claims) <= 2


def test_same_routes_same_numbers() -> None:
    assert token_kinds(routes(planted=True)) == token_kinds(routes(planted=True))


def test_too_few_sentences_for_a_test() -> None:
    found = token_kinds(routes(planted=True, sentences=2))
    assert found is not None
    assert found.p_value is None
    assert not found.differ
    assert {kind.low for kind in found.kinds} == {None}
    assert "too few sentences" in found.table("softmax").notes[0]


def test_no_tokens() -> None:
    assert token_kinds(TokenRoutes(sites=("layer1.mixer",), paths=("gdn", "softmax"), sentences=())) is None

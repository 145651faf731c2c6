"""Sentences of a report that depend on the numbers. Each says no more than the seeds and controls carry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerroute.lab.arms import Arm
from layerroute.lab.compare import Comparison
from layerroute.lab.fairness import machine, unequal
from layerroute.lab.format import count, duration, listing, path_name, percent, plural
from layerroute.lab.pairs import ENOUGH_SEEDS
from layerroute.lab.runs import Run
from layerroute.lab.tokens import TokenKinds


@dataclass(frozen=True, kw_only=True)
class Said:
    """What an outcome of the comparison comes to.

    Attributes:
        heading: of the discussion.
        conclusion: the conclusion's sentence.
        reasons: explanations that are open, told in the discussion.
        more: further paragraphs of the discussion.
    """

    heading: str
    conclusion: str
    reasons: Sequence[str] = ()
    more: Sequence[str] = ()

    def paragraphs(self) -> list[str]:
        """The discussion's paragraphs but for the verdict itself."""
        if not self.reasons:
            return list(self.more)
        amount = {
            1: "One explanation is open",
            2: "Two explanations are open",
            3: "Three explanations are open",
        }
        text = f"{amount[len(self.reasons)]}, and these runs do not separate them: {'; '.join(self.reasons)}."
        return [text, *self.more]


@dataclass(frozen=True, kw_only=True)
class Words:
    """All sentences of a report.

    Attributes:
        answer: the sentences at the head, the first the most important; ``also`` what is told below them.
        abstract: the result as the abstract gives it.
        discussion: (heading, paragraphs) each.
        settings: what the paper's template asks for besides.
    """

    title: str
    question: str
    answer: Sequence[str]
    abstract: str
    discussion: Sequence[tuple[str, Sequence[str]]]
    limitations: Sequence[str]
    conclusion: str
    takeaways: Sequence[str]
    also: Sequence[str] = ()
    cost: str = ""
    settings: Mapping[str, Any]


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """The facts at the head of the report, as (name, value)."""
    completed = [run for run in comparison.runs if run.completed]
    runs = completed or list(comparison.runs)
    found = []
    models = _distinct(runs, "recipe", "model", "name")
    if models:
        found.append(("Model", listing(models)))
    found.append(("Arms", listing([_named(arm, str(arm.kind)) for arm in comparison.arms])))
    found.append(("Seeds", listing([str(seed) for seed in comparison.seeds]) or "none completed"))
    tokens = sorted({run.value("tokens_seen") for run in runs if run.value("tokens_seen") is not None})
    if tokens:
        steps = sorted({run.value("metrics", "steps") for run in completed if run.value("metrics", "steps")})
        in_steps = f" in {listing([f'{step:,}' for step in steps])} steps" if steps else ""
        found.append(("Training", f"{listing([count(value) for value in tokens])} tokens a run{in_steps}"))
    data = sorted({_data(run) for run in runs if run.value("data", "source") is not None})
    if data:
        found.append(("Data", "; ".join(data)))
    found.append(("Hardware", "; ".join(sorted({machine(run) for run in runs}))))
    commands = list(dict.fromkeys(str(run.value("command")) for run in runs))
    found.append(("Command" if len(commands) == 1 else "First command", commands[0]))
    if comparison.subject is not None and len(commands) > 1:
        found.append(("Command of the routed arm", str(comparison.subject.example.value("command"))))
    seconds = sum(run.value("timing", "train_seconds") or 0 for run in runs)
    if seconds:
        found.append(("Training time", f"{duration(seconds)} in all, {plural(len(runs), 'run')}"))
    return found


def _distinct(runs: Sequence[Run], *keys: str) -> list[str]:
    return list(dict.fromkeys(str(value) for run in runs if (value := run.value(*keys)) is not None))


def _data(run: Run) -> str:
    train, validation = (run.value("data", f"{split}_tokens") for split in ("train", "validation"))
    amount = f": {count(train)} training and {count(validation)} validation tokens"
    if not train and not validation:
        amount = "" if run.value("recipe", "model", "name") else ": made again for every batch"
    size = run.value("data", "vocabulary_size")
    with_tokenizer = (
        f", tokenizer {run.value('data', 'tokenizer')} with {size:,} entries" if size is not None else ""
    )
    return f"{run.value('data', 'source')}{amount}{with_tokenizer}"


def _named(arm: Arm, kind: str) -> str:
    return arm.label if kind.lower() in arm.label.lower().replace("_", "-") else f"{arm.label} ({kind})"


def limitations(
    comparison: Comparison, *, context: str = "", measure: str = "", more: Sequence[str] = ()
) -> list[str]:
    """What limits the results, from the records.

    Args:
        context: what the capability says of the length of the context, after its number.
        measure: what the measure does not see.
        more: further limits of the capability.
    """
    found = []
    example = next((run for run in comparison.runs if run.completed), comparison.runs[0])
    if not comparison.same_data:
        found.append("Data differ between the runs: losses are not comparable.")
    fewest = min((len(arm.seeds) for arm in comparison.arms), default=0)
    if fewest < ENOUGH_SEEDS:
        found.append(
            f"Seeds: {plural(fewest, 'completed seed')} in the arm with the fewest; {ENOUGH_SEEDS} are the "
            "least for a claim."
        )
    if comparison.missing:
        verb = "is" if len(comparison.missing) == 1 else "are"
        found.append(f"Controls: {listing(comparison.missing)} {verb} missing.")
    if comparison.unfinished:
        found.append(
            f"Runs that did not complete, and are in no mean: {listing(comparison.unfinished_names)}."
        )
    scale = _scale(comparison)
    if scale:
        found.append(scale)
    length = example.value("flops", "context_length") or example.value("recipe", "data", "sequence_length")
    if length:
        found.append(f"Context: {length:,} tokens. {context}".rstrip())
    sources = sorted(_distinct(comparison.runs, "data", "source"))
    if sources:
        found.append(f"Data: {listing(sources)} only; other texts may route differently.")
    sequences = example.value("recipe", "train", "evaluation_sequences")
    window = example.value("recipe", "data", "sequence_length")
    if sequences and window:
        found.append(
            f"Evaluation: at most {sequences * window:,} validation tokens, the same for every run of an arm."
        )
    if measure:
        found.append(measure)
    if len(comparison.arms) > 1:
        rates = {arm.learning_rate for arm in comparison.arms if arm.learning_rate is not None}
        one = (
            "one learning rate for all arms"
            if len(rates) == 1
            else "learning rates fixed by recipe, not the same for all"
        )
        studied = any(str(run.value("command")).startswith("layerroute study") for run in comparison.runs)
        search = (
            "the trials by which a study chose them (its folder search/) are not in these records"
            if studied
            else "the records show no search over a common grid"
        )
        found.append(f"Tuning: {one}; {search}.")
    if any(arm.mean("flops", "executed_per_token") is None for arm in comparison.arms if arm.completed):
        found.append(
            "Compute: executed FLOPs were not counted for every arm; on such arms there is no verdict."
        )
    found += more
    not_causal = [arm.label for arm in comparison.arms if not arm.causal]
    if not_causal:
        found.append(f"Causality: decisions of {listing(not_causal)} may depend on later tokens.")
    if any(run.value("dirty") for run in comparison.runs):
        found.append("Code: some runs were made with changes that no commit holds.")
    if len({run.value("revision") for run in comparison.runs}) > 1:
        found.append("Code: the runs were made with different revisions.")
    return found


def _scale(comparison: Comparison) -> str:
    parameters = [arm.parameters for arm in comparison.arms if arm.parameters is not None]
    if not parameters:
        return ""
    low, high = count(min(parameters)), count(max(parameters))
    layers = sorted({len(arm.layer_pattern) for arm in comparison.arms if arm.layer_pattern})
    size = low if low == high else f"{low} to {high}"
    depth = f", {listing([str(n) for n in layers], 'or')} layers" if layers else ""
    return f"Scale: {size} parameters{depth}; larger models may behave differently."


def patterns(subject: Arm, kinds: TokenKinds | None) -> list[str]:
    """Whether sites and kinds of tokens differ in where their tokens go."""
    paragraphs = []
    rates = {
        site: rate for site in subject.sites if (rate := subject.mean("routing", "rate", site)) is not None
    }
    expensive = path_name(subject.paths[1])
    if rates:
        most, least = max(rates, key=lambda site: rates[site]), min(rates, key=lambda site: rates[site])
        if rates[most] - rates[least] > 0.05:
            paragraphs.append(
                f"Sites differ: {most} sends {percent(rates[most])} of its tokens to {expensive}, {least} "
                f"{percent(rates[least])}."
            )
    if kinds is None:
        paragraphs.append(
            "No record holds the decisions of single tokens, so nothing can be said about which tokens go "
            "where."
        )
    elif kinds.p_value is None:
        paragraphs.append(
            "The stored sentences are too few to test whether kinds of tokens take different paths."
        )
    elif kinds.differ:
        first, last = kinds.kinds[0], kinds.kinds[-1]
        paragraphs.append(
            f"Kinds of tokens take different paths (permutation test, {kinds.p_text}; {kinds.tokens} tokens "
            f"of {plural(kinds.sentences, 'sentence')}, one run): {expensive} takes {percent(first.rate)} of "
            f"the decisions on tokens of the kind “{first.kind}” and {percent(last.rate)} on “{last.kind}”. "
            "This describes these sentences; it does not say that such tokens need that path."
        )
    else:
        paragraphs.append(
            "Whether a token is punctuation, a number or part of a word is not seen to decide its path "
            f"(permutation test, {kinds.p_text}; {kinds.tokens} tokens of "
            f"{plural(kinds.sentences, 'sentence')}, one run)."
        )
    return paragraphs


def not_equal(subject: Arm, rival: Arm) -> str:
    """What two arms of a verdict were given, besides, that is not the same."""
    differs = unequal(subject, rival)
    if not differs:
        return f"{subject.label} and {rival.label} are equal in parameters, compute, learning rate and data."
    return (
        f"The two arms also differ in what they were given: {subject.label} has {listing(differs)}. Any "
        "of these can move the loss by itself."
    )


def needed_next(comparison: Comparison, more: Sequence[str]) -> str:
    """What would settle the question."""
    steps = []
    if min((len(arm.seeds) for arm in comparison.arms), default=0) < ENOUGH_SEEDS:
        steps.append(f"at least {ENOUGH_SEEDS} seeds of every arm")
    if comparison.missing:
        steps.append(f"the missing controls ({listing(comparison.missing)})")
    return f"Needed next: {listing([*steps, *more]) or 'nothing that the records tell of'}."


def general_words(comparison: Comparison, kinds: TokenKinds | None) -> Words:
    """What any report can say, from the comparison alone."""
    discussion: list[tuple[str, Sequence[str]]] = [("What these runs can say", [comparison.verdict])]
    if comparison.subject is not None:
        discussion.append(("Patterns", patterns(comparison.subject, kinds)))
    answer = [comparison.answer, *comparison.answers_beside]
    return Words(
        title=comparison.question.title,
        question=comparison.question.text,
        answer=answer,
        also=comparison.caveats,
        abstract=comparison.verdict,
        discussion=[*discussion, ("What would settle it", [needed_next(comparison, [])])],
        limitations=limitations(comparison),
        conclusion=comparison.answer,
        takeaways=answer,
        settings={},
    )

"""The sentences of the report that depend on the numbers. Each says no more than the seeds and controls carry."""

from layerroute.capabilities.attention.tables import training_spread
from layerroute.lab.arms import Arm
from layerroute.lab.compare import Comparison
from layerroute.lab.fairness import NOISY, machine
from layerroute.lab.format import count, duration, listing, plural, signed_percent
from layerroute.lab.pairs import ENOUGH_SEEDS
from layerroute.lab.question import Outcome
from layerroute.lab.report.old import bigram, recall, routing_sentences
from layerroute.lab.runs import Run

QUESTION = (
    "Can a language model choose, token by token and layer by layer, between linear attention (Gated "
    "DeltaNet, O(n)) and softmax attention (O(n²)), and predict text better than one whose layers are "
    "assigned statically?"
)


def what_was_run(comparison: Comparison) -> list[tuple[str, str]]:
    """The facts at the head of the report, as (name, value)."""
    completed = [run for run in comparison.runs if run.completed]
    runs = completed or list(comparison.runs)
    arms = listing([_named(arm) for arm in comparison.arms])
    seeds = listing([str(seed) for seed in comparison.seeds]) or "none completed"
    facts = [("Arms", arms), ("Seeds", seeds)]
    tokens = sorted({run.value("tokens_seen") for run in runs if run.value("tokens_seen") is not None})
    if tokens:
        steps = sorted({run.value("metrics", "steps") for run in completed if run.value("metrics", "steps")})
        in_steps = f" in {listing([f'{step:,}' for step in steps])} steps" if steps else ""
        facts.append(("Training", f"{listing([count(value) for value in tokens])} tokens a run{in_steps}"))
    data = sorted(
        {
            f"{run.value('data', 'source')}: {_amount(run)}, tokenizer {run.value('data', 'tokenizer')} with "
            f"{run.value('data', 'vocabulary_size'):,} entries"
            for run in runs
            if run.value("data", "vocabulary_size") is not None
        }
    )
    if data:
        facts.append(("Data", "; ".join(data)))
    facts.append(("Hardware", "; ".join(sorted({machine(run) for run in runs}))))
    commands = list(dict.fromkeys(str(run.value("command")) for run in runs))
    facts.append(("Command" if len(commands) == 1 else "First command", commands[0]))
    seconds = sum(run.value("timing", "train_seconds") or 0 for run in runs)
    if seconds:
        facts.append(("Training time", f"{duration(seconds)} in all, {plural(len(runs), 'run')}"))
    return facts


def _amount(run: Run) -> str:
    train, validation = (run.value("data", f"{split}_tokens") for split in ("train", "validation"))
    if not train and not validation:
        return "made anew for every batch"
    return f"{count(train)} training and {count(validation)} validation tokens"


def _named(arm: Arm) -> str:
    kind = str(arm.kind)
    return arm.label if kind.lower() in arm.label.lower().replace("_", "-") else f"{arm.label} ({kind})"


def abstract_result(comparison: Comparison) -> str:
    """The result as the abstract gives it."""
    parts = [comparison.answer, recall(comparison)] if recall(comparison) else [comparison.answer]
    parts += routing_sentences(comparison)[:1]
    parts += comparison.caveats
    return " ".join(parts)


def limitations(comparison: Comparison) -> list[str]:
    """What limits the results, from the records."""
    found = []
    example = next((run for run in comparison.runs if run.completed), comparison.runs[0])
    fewest = min((len(arm.seeds) for arm in comparison.arms), default=0)
    if fewest < ENOUGH_SEEDS:
        found.append(
            f"Seeds: {plural(fewest, 'completed seed')} in the arm with the fewest; {ENOUGH_SEEDS} are the "
            "least for a claim."
        )
    if comparison.missing:
        found.append(
            f"Controls: {listing(comparison.missing)} {'is' if len(comparison.missing) == 1 else 'are'} "
            "missing."
        )
    if comparison.unfinished:
        runs = listing(comparison.unfinished_names)
        found.append(f"Runs that did not complete, and are in no mean: {runs}.")
    scale = _scale(comparison)
    if scale:
        found.append(scale)
    context = example.value("flops", "context_length") or example.value("recipe", "data", "sequence_length")
    if context:
        found.append(
            f"Context: {context:,} tokens. What O(n) saves over O(n²) grows with the context, and is small "
            "here."
        )
    sources = sorted(
        {str(run.value("data", "source")) for run in comparison.runs if run.value("data", "source")}
    )
    if sources:
        found.append(f"Data: {listing(sources)} only; other texts may route differently.")
    sequences, length = (
        example.value("recipe", "train", "evaluation_sequences"),
        example.value("recipe", "data", "sequence_length"),
    )
    if sequences and length:
        found.append(
            f"Evaluation: at most {sequences * length:,} validation tokens, the same for every run of an arm."
        )
    found.append(_measure(comparison))
    rates = sorted({arm.learning_rate for arm in comparison.arms if arm.learning_rate is not None})
    if len(comparison.arms) > 1:
        one = (
            "one learning rate for all arms"
            if len(rates) == 1
            else "learning rates fixed by recipe, not the same for all"
        )
        studied = any(str(run.value("command")).startswith("layerroute study") for run in comparison.runs)
        search = (
            "trials by which a study chose them (its folder search/) are no part of these records"
            if studied
            else "the records show no search over a common grid"
        )
        found.append(f"Tuning: {one}; {search}.")
    if any(arm.mean("flops", "executed_per_token") is None for arm in comparison.arms if arm.completed):
        found.append(
            "Compute: executed FLOPs were not counted for every arm; on such arms there is no verdict."
        )
    if any(arm.kind.routed for arm in comparison.arms):
        found.append(
            "Speed: training computes what its estimator needs, for straight-through estimators both paths. "
            "The FLOPs at the measured rate are those of an ideal sparse execution, not a measured saving."
        )
    not_causal = [arm.label for arm in comparison.arms if not arm.causal]
    if not_causal:
        found.append(f"Causality: decisions of {listing(not_causal)} may depend on later tokens.")
    if any(run.value("dirty") for run in comparison.runs):
        found.append("Code: some runs were made with changes that no commit holds.")
    if len({run.value("revision") for run in comparison.runs}) > 1:
        found.append("Code: the runs were made with different revisions.")
    if not comparison.same_data:
        found.insert(0, "Data differ between the runs: losses are not comparable.")
    return found


def _measure(comparison: Comparison) -> str:
    tasks = {
        f"{task} of {run.value('recall', 'pairs')}"
        for run in comparison.runs
        if (task := run.value("recall", "task")) is not None
    }
    if not tasks:
        return (
            "Measure: language-model loss alone separates such models poorly. Recall, retrieval and length "
            "beyond training are not measured here."
        )
    beyond = (
        "" if "recall_lengths" in comparison.tables else "; lengths beyond that of training are not measured"
    )
    made_up = f"Measure: recall of made-up sequences ({listing(sorted(tasks))}){beyond}"
    return f"{made_up}. What it says of natural text is open."


def _scale(comparison: Comparison) -> str:
    parameters = [arm.parameters for arm in comparison.arms if arm.parameters is not None]
    if not parameters:
        return ""
    low, high = count(min(parameters)), count(max(parameters))
    layers = sorted({len(arm.layer_pattern) for arm in comparison.arms if arm.layer_pattern})
    size = low if low == high else f"{low} to {high}"
    depth = f", {listing([str(n) for n in layers], 'or')} layers" if layers else ""
    return f"Scale: {size} parameters{depth}; larger models may behave differently."


def conclusion(comparison: Comparison) -> str:
    """The conclusion's sentence on what was achieved."""
    outcome = comparison.outcome
    if outcome is Outcome.WINS:
        assert comparison.primary is not None
        ours, theirs = comparison.primary.subject.label, comparison.primary.rival.label
        missing = (
            f", but {plural(len(comparison.missing), 'control')} "
            f"{'is' if len(comparison.missing) == 1 else 'are'} missing, so that this cannot yet be credited "
            "to routing"
            if comparison.missing
            else ""
        )
        return f"In these runs {ours} achieved a lower validation loss than {theirs} at equal executed FLOPs{missing}."
    if outcome is Outcome.LOSES:
        return (
            "In these runs routing by token did not achieve what static layer assignment achieves: its loss "
            "is higher."
        )
    if outcome is Outcome.NO_DIFFERENCE:
        return (
            "In these runs routing by token achieved no improvement over static layer assignment that "
            "exceeds the noise."
        )
    if outcome is Outcome.ONE_SEED:
        return (
            "Whether routing by token improves on static layer assignment is not decided by these runs: one "
            "seed cannot tell."
        )
    if outcome in (Outcome.UNALIKE, Outcome.UNEQUAL_COST):
        return (
            "These runs do not compare routing by token with static layer assignment of equal cost and treatment, so "
            "nothing is concluded."
        )
    return "These runs do not compare routing by token with static layer assignment."


def takeaways(comparison: Comparison) -> list[str]:
    """Key points of the conclusion."""
    found = [comparison.answer, *routing_sentences(comparison)]
    if recall(comparison):
        found.insert(1, recall(comparison))
    if bigram(comparison):
        found.append(bigram(comparison))
    if comparison.missing:
        found.append(f"Missing controls: {listing(comparison.missing)}.")
    return found


def cost_sentence(comparison: Comparison) -> str:
    """How the routed arm's compute and time stand against the baseline, in one sentence; empty without both."""
    subject, baseline = comparison.subject, comparison.baseline
    if subject is None or baseline is None or not (subject.completed and baseline.completed):
        return ""
    parts = []
    ours, theirs = subject.mean("timing", "train_seconds"), baseline.mean("timing", "train_seconds")
    apart = training_spread(comparison.arms)
    if ours and theirs and (apart is None or apart <= NOISY):
        parts.append(f"{ours / theirs:.2f} times the training time")
    if subject.parameters and baseline.parameters:
        parts.append(f"{signed_percent(subject.parameters / baseline.parameters - 1)} parameters")
    every, used, base = (subject.mean("flops", "forward_per_token"), subject.flops, baseline.flops)
    if every and used and base:
        parts.append(
            f"{signed_percent(every / base - 1)} forward FLOPs per token with every path computed, "
            f"{signed_percent(used / base - 1)} at the measured rate"
        )
    return f"Against {baseline.label}, {subject.label} has {listing(parts)}." if parts else ""

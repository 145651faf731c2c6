"""The rate is held sequence by sequence, on any margins, and exactly as a plain loop over tokens says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from layerroute.errors import UserError
from layerroute.hybrid import HybridConfig
from layerroute.routing import Routing, RoutingConfig, set_serve
from layerroute.routing.held_out import calibrate_spreads, calibrate_thresholds
from layerroute.routing.serving import Served
from layerroute.skipping import SkipConfig


def reference(modules, valid, begins=None, always=None, within=0.01):
    """Choices by plain loops over numbers: token by token, module by module.

    Args:
        modules: (margin (B, T, R), threshold, spread, rate, cost) of each, in order.
    """
    choices = [torch.zeros(margin.shape, dtype=torch.bool) for margin, *_ in modules]
    whole = float(modules[0][4].mean()) * sum(len(each[4]) for each in modules)
    for row in range(valid.shape[0]):
        errors, count = [0.0] * len(modules), 0
        for token in range(valid.shape[1]):
            if begins is not None and begins[row, token]:
                errors, count = [0.0] * len(modules), 0
            saved = asked = spent = 0.0
            for index, (margin, threshold, spread, rate, cost) in enumerate(modules):
                x = 0.0
                if valid[row, token]:
                    below = sum(float(each[4].sum()) for each in modules[: index + 1])
                    x = errors[index] * below / max(below, whole)
                    x /= max(1.28, 0.853 + count / 300) * within / 0.01
                shift = x**3 * (1 + (x / 1.2) ** 8)
                for site in range(len(cost)):
                    moved = 0.0 if rate[site] in (0, 1) else shift * float(spread[site])
                    runs = float(margin[row, token, site]) + moved > float(threshold[site])
                    runs = runs or (always is not None and bool(always[row, token]))
                    choices[index][row, token, site] = runs
                    saved += 0.0 if runs else float(cost[site])
                    asked += float(cost[site] * (1 - rate[site]))
                    spent += float(cost[site])
                errors[index] += (saved - asked) / spent if valid[row, token] else 0.0
            count += int(valid[row, token])
    return choices


def served(modules, valid, **options) -> list[Tensor]:
    call = Served(**options)
    sites = sum(len(cost) for *_, cost in modules)
    return [
        call.choose(
            f"served{index}",
            margin,
            valid,
            threshold=threshold,
            spread=spread,
            rate=rate,
            cost=cost,
            sites=sites,
        )
        for index, (margin, threshold, spread, rate, cost) in enumerate(modules)
    ]


def part(modules, tokens: slice):
    return [(margin[:, tokens], *rest) for margin, *rest in modules]


@st.composite
def calls(draw):
    """Modules with sites of unlike costs and rates, rows with padding on the left."""
    seed, rows, time = draw(st.integers(0, 999)), draw(st.integers(1, 3)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(seed)
    modules = []
    for _ in range(draw(st.integers(1, 3))):
        sites = draw(st.integers(1, 4))
        margin = torch.randn(rows, time, sites, generator=generator)
        threshold, spread = torch.randn(2, sites, generator=generator)
        rate = torch.tensor(
            draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]), min_size=sites, max_size=sites))
        )
        modules.append(
            (margin, threshold, spread.abs() + 0.1, rate, torch.rand(sites, generator=generator) + 0.5)
        )
    valid = torch.arange(time)[None, :] >= torch.randint(0, time, (rows, 1), generator=generator)
    always = torch.rand(rows, time, generator=generator) < 0.1
    return modules, valid, always


@settings(max_examples=60, deadline=None)
@given(call=calls(), cuts=st.sets(st.integers(1, 39), max_size=4), within=st.sampled_from([0.01, 0.02, 0.05]))
def test_it_is_the_plain_loop_in_any_chunking(call, cuts, within):
    modules, valid, always = call
    expected = reference(modules, valid, always=always, within=within)
    for found, wanted in zip(served(modules, valid, always=always, within=within), expected, strict=True):
        assert torch.equal(found, wanted)
    memory: dict[str, Tensor] = {}
    time, start, pieces = valid.shape[1], 0, []
    for stop in sorted({cut for cut in cuts if cut < time} | {time}):
        here = slice(start, stop)
        options = {"always": always[:, here], "memory": memory, "past": start, "within": within}
        pieces.append(served(part(modules, here), valid[:, here], **options))
        start = stop
    for found, wanted in zip(zip(*pieces, strict=True), expected, strict=True):
        assert torch.equal(torch.cat(found, dim=1), wanted)


@settings(max_examples=30, deadline=None)
@given(call=calls(), data=st.data())
def test_documents_begin_anew_and_rows_stand_alone(call, data):
    modules, valid, _ = call
    valid = torch.ones_like(valid)
    time = valid.shape[1]
    begins = torch.zeros_like(valid)
    cut = data.draw(st.integers(0, time - 1))
    begins[:, cut] = True
    packed = served(modules, valid, begins=begins)
    assert all(torch.equal(a, b) for a, b in zip(packed, reference(modules, valid, begins), strict=True))
    for here in (slice(0, cut), slice(cut, time)):
        for row in range(valid.shape[0]):
            alone = served(
                [(margin[row : row + 1], *rest) for margin, *rest in part(modules, here)],
                valid[row : row + 1, here],
            )
            for found, wanted in zip(packed, alone, strict=True):
                assert torch.equal(found[row : row + 1, here], wanted)


def test_a_cropped_record_goes_on_as_if_nothing_had_followed():
    torch.manual_seed(0)
    modules = [(torch.randn(2, 60, 3), torch.zeros(3), torch.ones(3), torch.full((3,), 0.5), torch.ones(3))]
    valid = torch.ones(2, 60, dtype=torch.bool)
    expected = served(modules, valid)[0]
    memory: dict[str, Tensor] = {}
    served(part(modules, slice(0, 20)), valid[:, :20], memory=memory)
    draft = [(torch.full((2, 15, 3), 9.0), *modules[0][1:])]
    served(draft, valid[:, :15], memory=memory, past=20)  # 15 tokens that are then taken back
    rest = served(part(modules, slice(20, 60)), valid[:, 20:], memory=memory, past=20)[0]
    assert torch.equal(rest, expected[:, 20:])
    assert memory["served0"].shape == (2, 60, 2)


def test_tokens_that_passed_undecided_do_not_count():
    torch.manual_seed(0)
    modules = [(torch.randn(1, 50, 1), torch.zeros(1), torch.ones(1), torch.full((1,), 0.3), torch.ones(1))]
    valid = torch.ones(1, 50, dtype=torch.bool)
    memory: dict[str, Tensor] = {}
    first = served(part(modules, slice(0, 30)), valid[:, :30], memory=memory)[0]
    after = served(part(modules, slice(30, 50)), valid[:, 30:], memory=memory, past=42)[0]
    assert torch.equal(torch.cat([first, after], dim=1), served(modules, valid)[0])


# Within two points at 128 tokens and one at 512, whatever the margins

ROWS = 10
KINDS = (
    "calibrated",
    "shifted up",
    "shifted down",
    "far off",
    "drifting",
    "bursts",
    "clustered",
    "all equal",
    "wider",
)


def text(kind: str, rows: int, time: int, sites: int, alike: float) -> Tensor:
    """Margins (rows, time, sites) whose standard deviation was 1 and whose mean 0 at calibration."""
    generator = torch.Generator().manual_seed(KINDS.index(kind))
    common = torch.randn(rows, time, 1, generator=generator)
    if kind == "clustered":
        for token in range(1, time):
            common[:, token] = 0.9 * common[:, token - 1] + (1 - 0.81) ** 0.5 * common[:, token]
    margin = alike**0.5 * common + (1 - alike) ** 0.5 * torch.randn(rows, time, sites, generator=generator)
    index = torch.arange(time, dtype=torch.float32)[None, :, None]
    return {
        "shifted up": margin + 1.0,
        "shifted down": margin - 1.0,
        "far off": margin - 5.0,
        "drifting": margin + 1.5 * torch.sin(index / 40),
        "bursts": margin + 3.0 * ((index % 100) >= 75),
        "all equal": torch.full_like(margin, 0.3),
        "wider": margin * 2,
    }.get(kind, margin)


@pytest.mark.parametrize("within", [0.01, 0.05])
@pytest.mark.parametrize("sites", [1, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_is_held_from_a_cold_start(kind, sites, within):
    margin = text(kind, rows=ROWS, time=512, sites=sites, alike=1.0 if sites == 1 else 0.5)
    valid = torch.ones(ROWS, 512, dtype=torch.bool)
    sinks = (torch.arange(512) < 4).expand(ROWS, 512)
    worst_free = 0.0
    for skip in (0.1, 0.25, 0.5, 0.9):
        threshold = torch.full((sites,), float(torch.distributions.Normal(0, 1).icdf(torch.tensor(skip))))
        rate = torch.full((sites,), 1 - skip)
        site = (margin, threshold, torch.ones(sites), rate, torch.ones(sites))
        runs = served([site], valid, always=sinks, within=within)[0]
        skipped = (~runs).float().mean(dim=-1)
        for length, times in ((128, 2), (512, 1)):
            error = (skipped[:, :length].mean(dim=1) - skip).abs().max()
            assert error <= times * within, (
                f"{skip:.0%} asked, {length} tokens: off by {100 * error:.2f} points"
            )
        free = (margin <= threshold) & ~sinks.unsqueeze(-1)
        worst_free = max(worst_free, float((free.float().mean(dim=(1, 2)) - skip).abs().max()))
    assert worst_free > 0.01, "thresholds alone would have held it too"


@pytest.mark.parametrize("spread", [0.05, 20.0])
def test_spreads_that_are_far_from_the_truth_do_no_harm_to_the_rate(spread):
    """Folders from before there were spreads have 1, whatever their logits."""
    margin = text("shifted up", rows=ROWS, time=512, sites=12, alike=0.5)
    valid = torch.ones(ROWS, 512, dtype=torch.bool)
    for skip in (0.1, 0.25, 0.5):
        threshold = torch.full((12,), float(torch.distributions.Normal(0, 1).icdf(torch.tensor(skip))))
        site = (margin, threshold, torch.full((12,), spread), torch.full((12,), 1 - skip), torch.ones(12))
        skipped = (~served([site], valid)[0]).float().mean(dim=-1)
        assert (skipped[:, :128].mean(dim=1) - skip).abs().max() <= 0.02
        assert (skipped.mean(dim=1) - skip).abs().max() <= 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_modules_one_above_the_other_hold_their_joint_rate(kind):
    """Sites at rates of their own, each decided when those below it have been."""
    margin = text(kind, rows=ROWS, time=512, sites=10, alike=0.5)
    valid = torch.ones(ROWS, 512, dtype=torch.bool)
    skip = torch.tensor([0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.35, 1.0])
    threshold = torch.distributions.Normal(0, 1).icdf(skip.clamp(1e-6, 1 - 1e-6))
    modules = [
        (
            margin[..., at : at + 1],
            threshold[at : at + 1],
            torch.ones(1),
            1 - skip[at : at + 1],
            torch.ones(1),
        )
        for at in range(10)
    ]
    sinks = (torch.arange(512) < 4).expand(ROWS, 512)
    skipped = (~torch.cat(served(modules, valid, always=sinks), dim=-1)).float().mean(dim=-1)
    for length, tolerance in ((128, 0.02), (512, 0.01)):
        error = (skipped[:, :length].mean(dim=1) - skip.mean()).abs().max()
        assert error <= tolerance, f"{length} tokens: off by {100 * error:.2f} points"


def test_within_the_slack_decisions_are_those_of_the_threshold():
    """Holding the rate costs little where the threshold would have held it."""
    margin = text("calibrated", rows=ROWS, time=512, sites=12, alike=0.5)
    threshold = torch.full((12,), -0.6745)
    valid = torch.ones(ROWS, 512, dtype=torch.bool)
    site = (margin, threshold, torch.ones(12), torch.full((12,), 0.75), torch.ones(12))
    alike = [
        float((served([site], valid, within=within)[0] == (margin > threshold)).float().mean())
        for within in (0.01, 0.02, 0.05)
    ]
    assert 0.93 < alike[0] < alike[1] < alike[2] > 0.99


# The module


def module(**settings) -> Routing:
    torch.manual_seed(0)
    built = Routing(
        RoutingConfig(router="linear", **settings), 8, sites=["a", "b"], paths=["skip", "run"]
    ).eval()
    if built.router is not None:
        torch.nn.init.normal_(built.router.layers[-1].weight)
    return built


def inputs(time: int = 128) -> dict[str, Tensor]:
    hidden = torch.randn(2, time, 8, generator=torch.Generator().manual_seed(1))
    return {
        "hidden": hidden,
        "valid": torch.ones(2, time, dtype=torch.bool),
        "positions": torch.arange(time).expand(2, -1),
    }


def test_only_inference_is_served():
    routing = module(rate=0.2)
    plain = routing(**inputs())
    held = routing(**inputs(), served=Served())
    assert not torch.equal(held.choice, plain.choice)
    assert torch.equal(held.choice, held.gate.argmax(dim=-1)) and torch.equal(
        held.probabilities, plain.probabilities
    )
    assert float(held.mean_rate()) == pytest.approx(0.2, abs=0.02)
    routing.cutting = True
    cut = routing(**inputs())
    assert torch.equal(routing(**inputs(), served=Served()).choice, cut.choice)
    routing.cutting = False
    routing.train()
    torch.manual_seed(2)
    trained = routing(**inputs())
    torch.manual_seed(2)
    assert torch.equal(routing(**inputs(), served=Served()).choice, trained.choice)


def test_spreads_are_measured_and_old_files_have_none():
    routing = module(rate=0.5)
    before = routing.thresholds.value.clone()

    def forward() -> None:
        routing(**inputs(2000))

    calibrate_spreads([routing], forward)
    decided = routing(**inputs(2000))
    assert torch.equal(routing.thresholds.value, before)
    logits = routing.router(inputs(2000)["hidden"])
    expected = (logits[..., 1] - logits[..., 0]).flatten(0, 1).std(dim=0)
    assert torch.allclose(routing.thresholds.spread, expected, rtol=1e-4)
    assert decided.valid.all()
    routing.thresholds.spread.fill_(5.0)
    calibrate_thresholds([routing], forward)
    assert torch.allclose(routing.thresholds.spread, expected, rtol=1e-4)
    old = {name: value for name, value in routing.state_dict().items() if not name.endswith("spread")}
    fresh = module()
    fresh.load_state_dict(old)
    assert fresh.thresholds.spread.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SkipConfig(serve="rat"), "skip.serve: 'rat' is not known. Did you mean 'rate'"),
        (
            lambda: SkipConfig(serve="rate", granularity="sequence"),
            "skip.serve: rate is not possible.*sequence",
        ),
        (lambda: SkipConfig(serve="rate", granularity="batch"), "rate is not possible.*batch"),
        (
            lambda: SkipConfig(serve="rate", granularity="sequence_mean"),
            "rate is not possible.*sequence_mean",
        ),
        (lambda: SkipConfig(serve="rate", routing=RoutingConfig(control="random")), "control: random"),
        (
            lambda: SkipConfig(serve="rate:0.05", granularity="sequence"),
            "rate:0.05 is not possible.*sequence",
        ),
        *[
            (
                lambda serve=serve: SkipConfig(serve=serve),
                f"skip.serve: '{serve}' is no share from 0.01 to 0.5",
            )
            for serve in ("rate:", "rate:much", "rate:0", "rate:0.009", "rate:nan", "rate:-1", "rate:2")
        ],
        (lambda: HybridConfig(serve="threshold:0.1"), "model.serve: 'threshold:0.1' is not known"),
        (lambda: HybridConfig(serve="rats"), "model.serve: 'rats' is not known. Did you mean 'rate'"),
        (lambda: HybridConfig(serve="rate", routing={"control": "periodic"}), "control: periodic"),
        (lambda: set_serve(torch.nn.Linear(2, 2), "rate"), "routes nothing"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(UserError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)

import pytest
import torch

from layerroute.skipping.calibration.fits import PredictorFit, SkipFit, influence, lowest
from layerroute.skipping.calibration.moments import Moments, reduced_rank, regular, ridge


def data(rows=900, size=12, out=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-1, 1, size)
    x = 3 + torch.randn(rows, size, generator=generator) * scales
    w = torch.randn(size, out, generator=generator)
    y = x @ w + 0.5 * torch.randn(rows, out, generator=generator) - 2
    return x, y, w


def test_moments_do_not_depend_on_how_rows_arrive():
    x, y, _ = data(5000)
    weight = torch.rand(5000)
    whole = Moments().add(x, y, weight)
    parts = Moments().add(x[:7], y[:7], weight[:7]).add(x[7:], y[7:], weight[7:])
    for a, b in zip(whole.covariance(), parts.covariance(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.x_mean, parts.x_mean, rtol=1e-6, atol=1e-6)
    expected = (x.double() * weight.double()[:, None]).sum(0) / weight.double().sum()
    torch.testing.assert_close(whole.x_mean, expected, rtol=1e-6, atol=1e-6)


def test_a_weight_of_two_is_a_row_given_twice():
    x, y, _ = data(300)
    weight = torch.where(torch.arange(300) < 100, 2.0, 1.0)
    weighted = ridge(Moments().add(x, y, weight), 1e-9)
    doubled = ridge(Moments().add(torch.cat([x, x[:100]]), torch.cat([y, y[:100]])), 1e-9)
    torch.testing.assert_close(weighted, doubled, rtol=1e-4, atol=1e-4)


def test_ridge_is_least_squares_where_it_does_not_shrink_and_shrinks_where_it_does():
    x, y, _ = data()
    moments = Moments().add(x, y)
    design = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
    expected = torch.linalg.lstsq(design, y.double()).solution[:-1]
    torch.testing.assert_close(ridge(moments, 1e-10), expected, rtol=1e-3, atol=1e-4)
    assert ridge(moments, 10.0).norm() < 0.5 * expected.norm()


def test_reduced_rank_is_the_best_map_of_its_rank():
    x, y, _ = data()
    inputs, outputs = x.double() - x.double().mean(0), y.double() - y.double().mean(0)

    def explained(slopes):
        return float(1 - (outputs - inputs @ slopes).square().sum() / outputs.square().sum())

    moments = Moments().add(x, y)
    slopes = ridge(moments, 1e-9)
    for rank in (1, 3):
        down, up = reduced_rank(moments, 1e-9, rank)
        assert down.shape == (12, rank) and up.shape == (rank, 7)
        best = explained(down @ up)
        u, s, v = torch.linalg.svd(slopes, full_matrices=False)
        plain = explained((u[:, :rank] * s[:rank]) @ v[:rank])
        assert best > plain + 1e-4, "a plain SVD ignores how much the data use each direction"
        for _ in range(20):
            nudged = (down + 0.01 * torch.randn_like(down)) @ (up + 0.01 * torch.randn_like(up))
            assert explained(nudged) <= best + 1e-9
    down, up = reduced_rank(moments, 1e-9, 7)
    torch.testing.assert_close(down @ up, slopes, rtol=1e-6, atol=1e-6)


def test_outlier_rows_are_seen():
    x = torch.randn(50, 8)
    x[3] *= 100
    assert regular(x).tolist() == [index != 3 for index in range(50)]


def test_a_skip_path_finds_a_planted_low_rank_update():
    torch.manual_seed(0)
    states = torch.randn(500, 16) * 2 + 5
    update = (states - 4) @ (torch.randn(16, 2) @ torch.randn(2, 16)) * 0.1 + 1
    skip = SkipFit(states, states + update, rank=2, strength=1e-9)()
    torch.testing.assert_close(skip(states), states + update, rtol=1e-3, atol=1e-3)
    assert influence(states, states + update, skip).max() < -8
    poor = SkipFit(states, states + update, rank=1, strength=1e-9)()
    assert influence(states, states + update, poor).mean() > -8


def test_a_non_linear_skip_path_finds_what_no_line_does_and_follows_the_tokens_that_are_chosen():
    torch.manual_seed(0)
    states = torch.randn(3000, 12) * 2 + 5
    update = torch.nn.functional.silu((states - 5) @ torch.randn(12, 8)) @ torch.randn(8, 12) + 1
    first = torch.arange(3000) < 1500
    target = states + torch.where(first[:, None], update, -update)
    fits = {kind: SkipFit(states, target, rank=8, strength=1e-9, non_linear=kind) for kind in (False, True)}
    with torch.inference_mode():  # as calibration runs
        missed = {
            kind: (fit(first, background=1e-3)(states[first]) - target[first]).square().mean()
            for kind, fit in fits.items()
        }
    assert missed[True] < 0.5 * missed[False]
    again = SkipFit(states, target, rank=8, strength=1e-9, non_linear=True)(first, background=1e-3)
    assert torch.equal(again.down, fits[True](first, background=1e-3).down), "the same rows are drawn again"


def test_a_non_linear_skip_path_bears_a_layer_that_adds_nothing():
    states = torch.randn(600, 6)
    skip = SkipFit(states, states.clone(), rank=4, strength=1e-3, non_linear=True)()
    torch.testing.assert_close(skip(states), states, rtol=1e-4, atol=1e-4)


def test_a_skip_path_follows_the_tokens_that_are_chosen():
    torch.manual_seed(0)
    states = torch.randn(400, 6)
    first = torch.arange(400) < 200
    target = torch.where(first[:, None], states * 1.5, states * 0.2)
    fit = SkipFit(states, target, rank=6, strength=1e-9)
    for chosen, factor in ((first, 1.5), (~first, 0.2)):  # the second choice knows nothing of the first
        skip = fit(chosen, background=1e-6)
        torch.testing.assert_close(skip(states[chosen]), states[chosen] * factor, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("background", [0.1, 1.0, 2.5])
def test_sums_that_are_made_once_give_what_weights_for_each_row_give(share, background):
    states, target, _ = data(5000, size=9, out=9)
    chosen = torch.rand(5000, generator=torch.Generator().manual_seed(1)) < share
    found = SkipFit(states, target, rank=4, strength=1e-3)(chosen, background=background)
    slow = Moments().add(states, target - states, torch.where(chosen, 1.0, background))
    down, up = reduced_rank(slow, 1e-3, 4)
    torch.testing.assert_close(found.down @ found.up, (down @ up).float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.mean, slow.x_mean.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.bias, slow.y_mean.float(), rtol=1e-5, atol=1e-5)


def test_a_predictor_finds_a_planted_influence():
    torch.manual_seed(0)
    states = torch.randn(600, 10) * torch.logspace(-1, 2, 10)
    slope = torch.randn(10) / torch.logspace(-1, 2, 10)
    predictor = PredictorFit(states, 1e-12)(states @ slope - 3)
    assert predictor.r2 > 0.999
    torch.testing.assert_close(predictor(states), states @ slope - 3, rtol=1e-2, atol=1e-2)
    noise = PredictorFit(states, 1e-3)(torch.randn(600))
    assert noise.r2 < 0.1


def test_lowest_takes_the_share_of_all_and_only_who_may():
    score = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 0.0, 9.0, 8.0, 7.0, 6.0])
    may = torch.arange(10) != 5
    taken, cut = lowest(score, may, 0.3)
    assert taken.nonzero().flatten().tolist() == [1, 3, 4] and 3.0 < cut < 4.0
    assert lowest(score, may, 0.0)[0].sum() == 0
    everyone, cut = lowest(score, may, 1.0)
    assert everyone.sum() == 9 and cut == float("inf")

"Fewer models for the same answer: rotated and chosen designs, control variate, adaptive stop."
import numpy as np
import pytest
import torch

from noisymem import ensemble as E
from noisymem.data import load_dataset, sample
from noisymem.noise import add_noise
from noisymem.scores.efficient import choose_pool, control_variate, run_until, standard_error
from noisymem.scores.heldout import soft_estimates


@pytest.mark.parametrize('ratio, turns, out', [(.7, 10, 3), (.5, 2, 1), (.8, 5, 1), (.75, 4, 1), (.9, 10, 1), (.25, 4, 3)])
@pytest.mark.parametrize('n', [40, 97, 203])
def test_rotation_leaves_everyone_out_equally_often(ratio, turns, out, n):
    design = E.make_design(None, 'uniform', ratio, n=n, draw='rotated')
    for block in (0, 3):
        included = torch.stack([E.draw_included(design, block*turns + t) for t in range(turns)])
        assert (included.sum(1) == design.n_included).all() and design.n_included == int(ratio*n)
        left_out = (~included).sum(0)
        assert abs(left_out.float().mean() - out) < turns/n + 1e-6 and left_out.min() >= out - 1 and left_out.max() <= out + 1
        if n % turns == 0: assert (left_out == out).all()


def test_rotation_within_strata_and_between_blocks():
    wrong = np.r_[np.ones(30, bool), np.zeros(90, bool)]
    design = E.make_design(wrong, 'stratified', .7, draw='rotated')
    for seed in range(20): assert E.draw_included(design, seed)[:30].sum() == 21
    assert not torch.equal(E.draw_included(design, 0), E.draw_included(design, 10))
    assert torch.equal(E.draw_included(design, 7), E.draw_included(design, 7))


def test_independent_draws_are_the_published_ones():
    design = E.make_design(None, 'uniform', .7, n=50)
    want = np.zeros(50, bool)
    want[np.random.RandomState(12).choice(np.arange(50), size=35, replace=False)] = True
    np.testing.assert_array_equal(E.draw_included(design, 12), want)


def test_designs_of_different_draw_do_not_mix(tmp_path):
    data = add_noise(sample(load_dataset('digits'), 150, seed=0), 'symmetric-0.2', seed=0)
    quick = dict(model='mlp', width=.1, recipe={'name': 'digits', 'epochs': 1}, device='cpu')
    E.run_ensemble(data, E.make_design(data.is_noisy), 2, tmp_path, **quick)
    with pytest.raises(ValueError, match='holds another run'): E.run_ensemble(data, E.make_design(data.is_noisy, draw='rotated'), 2, tmp_path, **quick)


@pytest.mark.parametrize('pool', [[0, 0], [-1, 2], [3, 150], [[1, 2]], [.5, 1.5], []])
def test_a_bad_pool_is_refused(pool):
    with pytest.raises(ValueError, match='pool'): E.make_design(None, 'chosen', .5, n=150, pool=pool)


def slow_control_variate(values, included):
    "The definition, one number at a time."
    out = values.copy()
    for side in (included, ~included):
        R, P = side.shape
        mean = [np.mean([values[r, i] for r in range(R) if side[r, i]] or [0]) for i in range(P)]
        c = np.array([np.mean([values[r, i] - mean[i] for i in range(P) if side[r, i]] or [0]) for r in range(R)])
        c = c - c.mean()
        top = bottom = 0.
        for i in range(P):
            rows = [r for r in range(R) if side[r, i]]
            for r in rows:
                d = c[r] - np.mean(c[rows])
                top += (values[r, i] - mean[i])*d
                bottom += d*d
        for r in range(R):
            for i in range(P):
                if side[r, i]: out[r, i] -= top/max(bottom, 1e-12)*c[r]
    return out


def test_control_variate_against_its_definition():
    rng = np.random.default_rng(0)
    for R, P in ((6, 5), (12, 9), (1, 4), (2, 1)):
        values, included = rng.normal(size=(R, P)) + rng.normal(size=(R, 1)), rng.random((R, P)) < .7
        np.testing.assert_allclose(control_variate(values, included), slow_control_variate(values, included), atol=1e-9)


def test_control_variate_helps_where_models_differ_and_is_centred():
    rng, errors = np.random.default_rng(1), []
    for _ in range(100):
        values, included = rng.normal(size=(30, 60)) + 2*rng.normal(size=(30, 1)), rng.random((30, 60)) < .7
        errors.append([soft_estimates(v, included)['memorization'] for v in (values, control_variate(values, included))])
    plain, adjusted = np.array(errors).transpose(1, 0, 2)
    assert adjusted.var() < .5*plain.var() and abs(adjusted.mean()) < .02


def test_choose_pool_against_sorting():
    rng = np.random.default_rng(2)
    for _ in range(30):
        score = rng.integers(0, 5, 40).astype(float)
        score[rng.random(40) < .2] = np.nan
        n = int(rng.integers(2, 20))
        pool = choose_pool(score, n)
        assert len(set(pool)) == n and not np.isnan(score[pool]).any() and np.nanmin(score[pool]) >= np.nanmax(np.delete(score, pool), initial=-np.inf)
        more = choose_pool(score, n, n_random=7, seed=3)
        assert set(pool) < set(more) and len(more) == n + 7


def test_run_until_reaches_what_it_promises(tmp_path):
    data = add_noise(sample(load_dataset('digits'), 200, seed=0), 'symmetric-0.2', seed=0)
    design = E.make_design(data.is_noisy, draw='rotated')
    settings = dict(folder=tmp_path, model='mlp', width=.2, recipe={'name': 'digits', 'epochs': 4}, device='cpu')
    first = standard_error(E.run_ensemble(data, design, 10, **settings))
    rec = run_until(first*.6, data, design, first=10, most=200, **settings)
    assert 10 < len(rec) < 200 and standard_error(rec) <= first*.6
    assert len(run_until(1e-9, data, design, first=10, most=len(rec), **settings)) == len(rec)
    with pytest.raises(ValueError, match='first must be in'): run_until(.1, data, design, first=20, most=10, **settings)

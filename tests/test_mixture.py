"Mixtures against SciPy, scikit-learn and the original; simulated losses of one and of two groups; the cases in which the original fails."
import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.mixture import GaussianMixture

from noisymem.metrics import auroc
from noisymem.scores import mixture as mx
from noisymem.scores.mixture import fit_mixture, log_odds, mixture_density, mixture_posterior, score_mixture

KINDS = ['beta', 'gaussian']
CASES = ['sep', 'overlap', 'knnce', 'unimodal', 'lowfat']


def ce(rng, mean, sd, n): return np.logaddexp(0, -rng.normal(mean, sd, n))


ONE = {
    'normal': lambda r, n: r.normal(size=n), 'uniform': lambda r, n: r.random(n), 'triangular': lambda r, n: r.triangular(0, 1, 1, n), 'laplace': lambda r, n: r.laplace(size=n),
    'Student 3': lambda r, n: r.standard_t(3, n), 'Cauchy': lambda r, n: r.standard_cauchy(n), 'exponential': lambda r, n: r.exponential(size=n), 'gamma 2': lambda r, n: r.gamma(2, size=n),
    'gamma .5': lambda r, n: r.gamma(.5, size=n), 'gamma .1': lambda r, n: r.gamma(.1, size=n), 'lognormal 1': lambda r, n: r.lognormal(0, 1, n), 'lognormal 2': lambda r, n: r.lognormal(0, 2, n),
    'lognormal 3': lambda r, n: r.lognormal(0, 3, n), 'Weibull .5': lambda r, n: r.weibull(.5, n), 'Weibull .3': lambda r, n: r.weibull(.3, n), 'Pareto 1': lambda r, n: r.pareto(1, n),
    'beta 2 5': lambda r, n: r.beta(2, 5, n), 'beta .5 3': lambda r, n: r.beta(.5, 3, n), 'beta .2 3': lambda r, n: r.beta(.2, 3, n), 'beta 3 .3': lambda r, n: r.beta(3, .3, n),
    'clean, early': lambda r, n: ce(r, 1, 1, n), 'clean, middle': lambda r, n: ce(r, 4, 2, n), 'clean, late': lambda r, n: ce(r, 8, 2, n), 'wide margins': lambda r, n: ce(r, 2, 4, n)}


def two(low, high, share):
    def draw(r, n):
        wrong = r.random(n) < share
        return np.where(wrong, high(r, n), low(r, n)), wrong
    return draw


TWO = {
    'normal 5 apart': two(lambda r, n: r.normal(size=n), lambda r, n: r.normal(5, 1, n), .4), 'exponential and normal': two(lambda r, n: r.exponential(.3, n), lambda r, n: r.normal(5, 1.5, n), .4),
    'margins 3, -3': two(lambda r, n: ce(r, 3, 1, n), lambda r, n: ce(r, -3, 1, n), .4), 'margins 5, -4': two(lambda r, n: ce(r, 5, 2, n), lambda r, n: ce(r, -4, 2, n), .4),
    '15 % wrong': two(lambda r, n: ce(r, 5, 1.5, n), lambda r, n: ce(r, -4, 1, n), .15), 'zeros and flat': two(lambda r, n: .001*r.random(n), lambda r, n: r.random(n), .4),
    'beta': two(lambda r, n: r.beta(1, 9, n), lambda r, n: r.beta(9, 2, n), .4)}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('n', [400, 4000])
def test_one_hump_is_not_split(kind, n):
    "Of 24 families, at most 1 in 50 vectors; none of the families that are not piled up at an end."
    found = {name: fit_mixture(np.stack([draw(np.random.default_rng(s), n) for s in range(6)]), kind).separable.double().mean().item() for name, draw in ONE.items()}
    assert np.mean(list(found.values())) <= .02, found
    assert not any(found[name] for name in ('normal', 'uniform', 'exponential', 'gamma 2', 'lognormal 1', 'beta 2 5', 'clean, early', 'clean, middle', 'clean, late')), found


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('n', [400, 2030, 4000])
@pytest.mark.parametrize('name', TWO)
def test_two_humps_are_found(kind, n, name):
    "And the probability tells the groups apart almost as well as the best threshold."
    draws = [TWO[name](np.random.default_rng(s), n) for s in range(4)]
    loss, wrong = (np.stack(a) for a in zip(*draws))
    fit = fit_mixture(loss, kind)
    assert fit.separable.all() and fit.converged.all()
    posterior = mixture_posterior(fit, loss).cpu().numpy()
    for x, w, p in zip(loss, wrong, posterior):
        order = np.sort(x)
        best = max(((x > t) == w).mean() for t in order[::max(1, n//200)])
        assert ((p > .5) == w).mean() > best - .06


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', CASES)
def test_where_the_original_fails(oracle, kind, name):
    a = oracle('forgetting/bmm.npz')
    loss, wrong = a[f'{name}_metric'], a[f'{name}_is_noisy']
    fit = fit_mixture(loss, kind)
    assert bool(fit.separable) == (name in ('sep', 'knnce', 'lowfat'))
    p = mixture_posterior(fit, loss).cpu().numpy()
    assert (np.diff(p[np.argsort(loss)]) >= 0).all(), 'never falls with the loss'
    score = score_mixture(loss, kind)
    assert bool(score.isnan().all()) != bool(fit.separable)
    if name == 'sep': assert wrong[p > .5].mean() > .94 and wrong[p < .05].mean() == 0 and (p < .05).sum() > 1000
    if name == 'knnce': assert wrong[p < .5].mean() < .13 and wrong[p > .5].mean() > .99
    if name == 'lowfat': assert ((p > .5) == (loss > .5)).all()
    if name == 'overlap' and kind == 'beta': assert p[loss.argmin()] < .2 < a['overlap_lookup'][0], 'the smallest loss is not suspicious'


@pytest.mark.parametrize('name', CASES)
def test_oracle_bmm(oracle, name):
    a = oracle('forgetting/bmm.npz')
    np.testing.assert_allclose(mx._original_posterior(a[f'{name}_metric']), a[f'{name}_prob'], atol=1e-6 if name == 'knnce' else 1e-9, rtol=0)
    np.testing.assert_allclose(score_mixture(a[f'{name}_metric'], compat='original').cpu(), a[f'{name}_prob'].astype(np.float32), atol=1e-6)


@pytest.mark.parametrize('n', [2, 7, 49, 101, 149, 150, 250, 2030, 2060, 5050])
@pytest.mark.parametrize('compat', [None, 'original'])
def test_every_number_of_examples(n, compat):
    if n == 2 and compat: pytest.skip('moments of components without examples')
    rng = np.random.default_rng(n)
    loss = np.where(rng.random(n) < .6, rng.exponential(.2, n), rng.normal(4, .5, n))
    score = score_mixture(loss, compat=compat)
    assert score.shape == (n,) and score.dtype == torch.float32
    if n > 40: assert score.isfinite().all() and auroc(score, loss > 2) > .99


@pytest.mark.parametrize('seed', range(3))
def test_gaussians_against_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(3000) < .3, rng.normal(5, 1, 3000), rng.normal(0, .7, 3000))
    theirs, ours = GaussianMixture(2, tol=1e-8, max_iter=1000, random_state=0).fit(x[:, None]), fit_mixture(x, 'gaussian', device='cpu')
    order = theirs.means_[:, 0].argsort()
    np.testing.assert_allclose(ours.mean, theirs.means_[order, 0], atol=.02)
    np.testing.assert_allclose(ours.sd, np.sqrt(theirs.covariances_[order, 0, 0]), atol=.02)
    np.testing.assert_allclose(ours.weight, theirs.weights_[order], atol=.003)
    middle = np.linspace(0, 5, 50)
    np.testing.assert_allclose(mixture_posterior(ours, middle), theirs.predict_proba(middle[:, None])[:, order[1]], atol=.03)


def test_betas_against_scipy():
    "Density of the parameters; each component as good as the maximum-likelihood fit of its own examples."
    rng = np.random.default_rng(0)
    x = np.where(rng.random(4000) < .35, rng.beta(12, 3, 4000), rng.beta(2, 14, 4000))
    fit = fit_mixture(x, 'beta', device='cpu')
    low, length = float(fit.low), float(fit.high - fit.low)
    grid = np.linspace(low + 1e-6, low + length - 1e-6, 200)
    scaled = mx.EDGE + (1 - 2*mx.EDGE)*(grid - low)/length
    want = [w*stats.beta.pdf(scaled, *eta)*(1 - 2*mx.EDGE)/length for w, eta in zip(fit.weight.tolist(), fit.eta.tolist())]
    np.testing.assert_allclose(mixture_density(fit, grid), want, rtol=1e-9)
    p = mixture_posterior(fit, x).numpy()
    clipped = mx.EDGE + (1 - 2*mx.EDGE)*np.clip((x - low)/length, 0, 1)
    for own, eta in ((p < .5, fit.eta[0].numpy()), (p > .5, fit.eta[1].numpy())):
        a, b, *_ = stats.beta.fit(clipped[own], floc=0, fscale=1)
        np.testing.assert_allclose(eta/eta.sum(), [a/(a + b), b/(a + b)], atol=.02)
        assert eta.sum() == pytest.approx(a + b, rel=.2)
    np.testing.assert_allclose([fit.mean[0], fit.mean[1]], [x[p < .5].mean(), x[p > .5].mean()], atol=.02)


@pytest.mark.parametrize('kind', KINDS)
def test_the_density_adds_up(kind):
    x, _ = TWO['normal 5 apart'](np.random.default_rng(1), 4000)
    fit = fit_mixture(x, kind, device='cpu')
    grid = torch.linspace(float(fit.low), float(fit.high), 20001, dtype=torch.float64)
    mass = torch.trapezoid(mixture_density(fit, grid), grid).sum()
    assert mass == pytest.approx(1, abs=.03), 'but for what lies beyond the scale'
    assert (mixture_density(fit, [-99., 99]) == 0).all()


@pytest.mark.parametrize('kind', KINDS)
def test_every_round_gains(kind):
    draws = [ONE['lognormal 1'](np.random.default_rng(0), 700), TWO['margins 3, -3'](np.random.default_rng(1), 700)[0], ONE['beta 3 .3'](np.random.default_rng(2), 700)]
    _, _, count = mx._histogram(torch.as_tensor(np.stack(draws)))
    x = (torch.arange(mx.CELLS, dtype=torch.float64) + .5)/mx.CELLS
    likelihood = torch.stack([mx._fit_two(count, x, kind, rounds, 0.)[2] for rounds in (2, 5, 10, 30, 100)])
    assert (likelihood.diff(dim=0) > -1e-6).all()


@pytest.mark.parametrize('kind', KINDS)
def test_many_vectors_as_one_by_one(kind):
    rng = np.random.default_rng(2)
    loss = np.stack([TWO['margins 5, -4'](rng, 500)[0], ONE['normal'](rng, 500), np.full(500, .3), np.full(500, np.nan), TWO['beta'](rng, 500)[0]])
    loss[0, ::7] = np.nan
    many = score_mixture(loss, kind, block=2)
    for row, x in zip(many, loss): torch.testing.assert_close(row, score_mixture(x, kind), equal_nan=True, atol=1e-6, rtol=0)
    assert many[0].isnan().tolist() == np.isnan(loss[0]).tolist() and many[1:4].isnan().all() and many[4].isfinite().all()
    assert fit_mixture(loss, kind).eta.shape == (5, 2, 2) and fit_mixture(loss[0], kind).separable.shape == ()


@pytest.mark.parametrize('kind', KINDS)
def test_unit_and_order_do_not_matter(kind):
    rng = np.random.default_rng(3)
    loss, _ = TWO['exponential and normal'](rng, 900)
    score, order = score_mixture(loss, kind), rng.permutation(900)
    torch.testing.assert_close(score_mixture(loss[order], kind), score[order], atol=1e-6, rtol=0)
    torch.testing.assert_close(score_mixture(1e-7*loss + 3, kind), score, atol=1e-3, rtol=0)
    assert torch.equal(score_mixture(np.r_[loss, [np.nan]*3], kind)[:900], score)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('loss', [[1.], [0., 1], [2.]*50, [0.]*999 + [1.], [0.]*95 + [1.] , [np.nan]*3, [np.nan, 1.], [1e-300]*9, [0., 0, 1, 1], [1e300, -1e300, 0.]])
def test_too_little_for_two_groups(kind, loss):
    fit = fit_mixture(loss, kind)
    assert not fit.separable and score_mixture(loss, kind).isnan().all()


@pytest.mark.parametrize('kind', KINDS)
def test_one_diverged_example(kind):
    loss, wrong = TWO['exponential and normal'](np.random.default_rng(4), 1000)
    loss[0], loss[1] = 1e9, -1e9
    score = score_mixture(loss, kind)
    assert auroc(score, wrong) > .99 and score[0] > .5 > score[1]


@pytest.mark.parametrize('call,match', [
    (lambda: fit_mixture([]), 'loss must have shape .* got \\(0,\\)'), (lambda: fit_mixture(np.zeros((2, 2, 2))), 'loss must have shape'), (lambda: fit_mixture([1., np.inf]), 'got 1 infinite values'), (lambda: fit_mixture(3.), 'loss must have shape'),
    (lambda: score_mixture([1., 2], 'gmm'), "kind must be one of 'beta', 'gaussian', got 'gmm'"), (lambda: score_mixture([1., 2], compat='paper'), 'compat must be one of'),
    (lambda: score_mixture([1., 2], 'gaussian', compat='original'), "kind with compat='original' must be one of 'beta'"), (lambda: score_mixture([1., np.nan], compat='original'), 'loss must hold no NaN'), (lambda: fit_mixture([1., 2], device='nowhere'), 'device must be')])
def test_bad_arguments(call, match):
    with pytest.raises(ValueError, match=match): call()


@pytest.mark.gpu
@pytest.mark.parametrize('kind', KINDS)
def test_same_on_gpu(kind):
    rng = np.random.default_rng(5)
    loss = np.stack([draw(rng, 3000)[0] for draw in TWO.values()] + [ONE['normal'](rng, 3000)])
    gpu, cpu = (fit_mixture(loss, kind, device=d) for d in ('cuda', 'cpu'))
    assert torch.equal(gpu.separable.cpu(), cpu.separable)
    torch.testing.assert_close(score_mixture(loss, kind, device='cuda').cpu(), score_mixture(loss, kind, device='cpu'), atol=1e-5, rtol=0, equal_nan=True)


# ---- the scale, and losses of real trainings

def test_log_odds_are_minus_the_margin_of_two_classes():
    z = torch.randn(500, generator=torch.Generator().manual_seed(0)).double()*5
    torch.testing.assert_close(log_odds(torch.nn.functional.softplus(-z), floor=1e-30), -z, atol=1e-6, rtol=1e-6)
    rng = np.random.default_rng(0)
    loss = rng.exponential(2, 300)
    np.testing.assert_array_equal(log_odds(loss).numpy().argsort(), loss.argsort())
    assert log_odds(np.float16([0, 6e-8, 60000.])).isfinite().all()


@pytest.mark.parametrize('name,mean,share', [('margins 3, -3', 3, .4), ('margins 5, -4', 5, .4), ('15 % wrong', 5, .15)])
def test_normal_margins_are_fitted_as_they_were_drawn(name, mean, share):
    loss, wrong = TWO[name](np.random.default_rng(7), 6000)
    fit = fit_mixture(log_odds(loss), 'gaussian', device='cpu')
    assert bool(fit.separable) and float(fit.mean[0]) == pytest.approx(-mean, abs=.15) and float(fit.weight[1]) == pytest.approx(share, abs=.02)
    p = mixture_posterior(fit, log_odds(loss)).numpy()
    assert wrong[p < .05].mean() < .01 and (p < .05).mean() > .9*(1 - share)


@pytest.fixture(scope='module')
def trained():
    "Areas under the margin and losses of the fourth epoch, of digits with known noise: kind -> (aum, loss, is it wrong)."
    from noisymem.data import load_dataset
    from noisymem.models import make_model
    from noisymem.noise import add_noise
    from noisymem.scores.dynamics import FullDynamics, aum
    from noisymem.train import train
    found = {}
    for kind in ('clean', 'random_in-0.2', 'random_in-0.4'):
        data, watch = add_noise(load_dataset('digits'), kind, seed=42), FullDynamics()
        train(make_model('mlp', 10, (1, 8, 8), seed=0), data, {'name': 'digits', 'epochs': 12}, observers=[watch, lambda state: setattr(state, 'stop', state.epoch == 4)], device='cpu')
        rec = watch.records(data)
        found[kind] = aum(rec['margin']), rec['loss'][-1], data.is_noisy.numpy()
    return found


@pytest.mark.parametrize('kind,share', [('random_in-0.2', .2), ('random_in-0.4', .4)])
@pytest.mark.parametrize('scale', ['aum', 'log odds'])
def test_wrong_labels_of_a_real_training(trained, kind, share, scale):
    area, loss, wrong = trained[kind]
    x = -area if scale == 'aum' else log_odds(loss)
    fit = fit_mixture(x, 'gaussian')
    assert bool(fit.separable) and float(fit.weight[1]) == pytest.approx(share, abs=.03)
    p = mixture_posterior(fit, x).cpu().numpy()
    assert wrong[p < .05].mean() < .03 and (p < .05).mean() > .8*(1 - share) and ((p > .5) == wrong).mean() > .94


@pytest.mark.parametrize('kind', KINDS)
def test_a_clean_training_is_not_split(trained, kind):
    area, loss, _ = trained['clean']
    assert not fit_mixture(-area, kind).separable and not fit_mixture(loss, kind).separable

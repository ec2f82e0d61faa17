"Scores of training dynamics against slow loops, cleanlab and the original's loss curves; gaps, one epoch, never learned; the observer."
import math

import numpy as np
import pytest
import torch

from noisymem.data import load_dataset, sample
from noisymem.metrics import auroc
from noisymem.models import make_model
from noisymem.noise import add_noise
from noisymem.records import Records, load_records, save_records
from noisymem.scores import dynamics as dy
from noisymem.scores.dynamics import (SCORES, FullDynamics, aum, cartography, cumulative_loss, el2n, error_norm, first_learned, forgetting_events, learning_time, score_dynamics,
                                      second_split_forgetting_time)
from noisymem.train import Dynamics, train


def slow_events(c):
    n, learned = 0, False
    for before, now in zip(c[:-1], c[1:]): n += bool(before) and not now
    for now in c: learned = learned or now
    return n if learned else len(c)


def slow_first(c):
    for t, now in enumerate(c, 1):
        if now: return t
    return len(c) + 1


def slow_time(c, wanted=True):
    for t in range(1, len(c) + 2):
        if all(bool(x) == wanted for x in c[t - 1:]): return t


SHAPES = [(1, 1), (1, 30), (2, 50), (7, 200), (40, 33)]


@pytest.mark.parametrize('e,n', SHAPES)
@pytest.mark.parametrize('share', [0, .1, .5, .9, 1])
def test_events_and_times_against_loops(e, n, share):
    c = np.random.default_rng(e*n).random((e, n)) < share
    for ours, slow in ((forgetting_events, slow_events), (first_learned, slow_first), (learning_time, slow_time), (second_split_forgetting_time, lambda c: slow_time(c, False))):
        np.testing.assert_array_equal(ours(c), [slow(c[:, i]) for i in range(n)])


@pytest.mark.parametrize('e,n', SHAPES)
@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
@pytest.mark.parametrize('gaps', [False, True])
def test_means_against_loops(e, n, dtype, gaps):
    rng = np.random.default_rng(e + n)
    loss, margin = rng.exponential(2, (e, n)).astype(dtype), rng.normal(0, 5, (e, n)).astype(dtype)
    if gaps: loss[rng.random((e, n)) < .4], margin[rng.random((e, n)) < .4] = np.nan, np.nan
    c = rng.random((e, n)) < .5
    place = cartography(loss, c)
    for i in range(n):
        known, m = [float(v) for v in loss[:, i] if not np.isnan(v)], [float(v) for v in margin[:, i] if not np.isnan(v)]
        p = [math.exp(-v) for v in known]
        mean = lambda v: sum(v)/len(v) if v else math.nan
        spread = math.sqrt(mean([(v - mean(p))**2 for v in p])) if p else math.nan
        want = dict(aum=mean(m), loss=e*mean(known), confidence=mean(p), variability=spread, correctness=mean([float(v) for v in c[:, i]]))
        ours = dict(aum=aum(margin)[i], loss=cumulative_loss(loss)[i], **{k: v[i] for k, v in place.items()})
        for k in want: assert ours[k] == pytest.approx(want[k], rel=1e-9, abs=1e-12, nan_ok=True), k


@pytest.mark.parametrize('k', [2, 3, 10])
def test_error_norm_against_a_loop(k):
    logits, labels = 3*torch.randn(50, k, generator=torch.Generator().manual_seed(k)), torch.arange(50) % k
    for z, y, ours in zip(logits.double().tolist(), labels.tolist(), error_norm(logits, labels).tolist()):
        p = [math.exp(v)/sum(map(math.exp, z)) for v in z]
        p[y] -= 1
        assert ours == pytest.approx(math.sqrt(sum(v*v for v in p)), abs=1e-6)


def test_one_epoch_is_self_confidence():
    "With one epoch, confidence, the loss and the margin rank as cleanlab's self-confidence and, of two classes, its normalized margin."
    rank = pytest.importorskip('cleanlab.rank')
    z = 2*torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    y = torch.randint(2, (300,), generator=torch.Generator().manual_seed(1))
    p = z.double().softmax(1).numpy()
    loss, margin = -np.log(p[np.arange(300), y])[None], (z.gather(1, y[:, None]) - z.gather(1, 1 - y[:, None])).numpy().T
    table = score_dynamics(dict(correct=margin > 0, loss=loss, margin=margin, el2n=error_norm(z, y).numpy()[None]))
    theirs = rank.get_label_quality_scores(y.numpy(), p, method='self_confidence')
    np.testing.assert_allclose(1 - table.confidence, theirs, atol=1e-6)
    np.testing.assert_allclose(table.cumulative_loss, -np.log(theirs), rtol=1e-5)
    np.testing.assert_allclose(table.el2n, math.sqrt(2)*(1 - theirs), atol=1e-5)
    margins = rank.get_label_quality_scores(y.numpy(), p, method='normalized_margin')
    np.testing.assert_array_equal(np.argsort(-table.aum), np.argsort(margins))


def test_every_score_points_the_same_way():
    "An example that is learned at once is less suspicious than one learned late, and that less than one never learned."
    e = 10
    start = np.array([0, 4, e])
    c = np.arange(e)[:, None] >= start
    z = np.where(c, 3., -3.)
    loss = np.logaddexp(0, -z)
    table = score_dynamics(dict(correct=c, loss=loss, margin=z, el2n=1 - np.exp(-loss)), second=dict(correct=~c[::-1]))
    for name in set(SCORES) - {'variability', 'forgetting_events', 'final_loss', 'el2n'}: assert (np.diff(table[name]) > 0).all(), name
    for name in ('forgetting_events', 'final_loss', 'el2n', 'aum'): assert table[name][2] > table[name][0]
    assert (table.dtypes == np.float32).all()
    assert score_dynamics(dict(correct=c), [], dict(correct=np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0]], bool))).ssft.tolist() == [0, 2, 3], 'gone soon is suspicious'


@pytest.mark.parametrize('seed', range(5))
def test_gaps_make_no_events(seed):
    "Leaving epochs out gives the events and times of the epochs that are left, on the whole's calendar."
    rng = np.random.default_rng(seed)
    c, known = rng.random((12, 60)) < .6, rng.random((12, 60)) < .7
    known[:, 0] = False
    loss = np.where(known, 1., np.nan)
    table = score_dynamics(dict(correct=c & known, loss=loss), ['forgetting_events', 'first_learned', 'learning_time'])
    for i in range(60):
        kept = c[known[:, i], i]
        if not len(kept): assert table.iloc[i].isna().all(); continue
        events = sum(a and not b for a, b in zip(kept[:-1], kept[1:])) if kept.any() else 12
        epochs = np.flatnonzero(known[:, i]) + 1
        first = epochs[kept.argmax()] if kept.any() else 13
        last = slow_time(kept)
        assert table.iloc[i].tolist() == [events, first, epochs[last - 1] if last <= len(kept) else 13]


def test_order_of_examples_does_not_matter():
    rng = np.random.default_rng(0)
    rows = dict(correct=rng.random((6, 40)) < .5, loss=rng.random((6, 40)), margin=rng.normal(size=(6, 40)), el2n=rng.random((6, 40)))
    order = rng.permutation(40)
    a, b = score_dynamics(rows), score_dynamics({k: v[:, order] for k, v in rows.items()})
    np.testing.assert_array_equal(a.iloc[order], b)


@pytest.mark.parametrize('value', [np.inf, 1e30])
def test_a_diverged_example_stays_comparable(value):
    loss = np.array([[1., value], [1, value]])
    table = score_dynamics(dict(correct=np.zeros((2, 2), bool), loss=loss, margin=-loss))
    assert np.isfinite(table).all(axis=None) and table.cumulative_loss[1] > table.cumulative_loss[0] and table.confidence[1] == 1
    auroc(table.cumulative_loss, [False, True])


@pytest.mark.parametrize('call,match', [
    (lambda: forgetting_events(np.zeros((0, 3), bool)), r'correct must have shape \(E, N\), both at least 1, got \(0, 3\)'), (lambda: learning_time([True, False]), r'got \(2,\)'), (lambda: first_learned([[1, 0]]), 'correct must be bool, got int64'),
    (lambda: aum([['a']]), 'margin must be numbers'), (lambda: el2n([[1.]], 0), r'epoch must be in \[1, 1\], got 0'), (lambda: cartography([[1.]], [[1.]]), 'correct must be bool'),
    (lambda: score_dynamics({}), r'rec must hold correct, got \[\]'), (lambda: score_dynamics(dict(correct=[[True]]), ['el2n']), "rec must hold el2n for el2n, got"), (lambda: score_dynamics(dict(correct=[[True]]), ['AUM']), "names must be one of 'forgetting_events'"),
    (lambda: score_dynamics(dict(correct=[[True]]), second=dict(correct=[[True, False]])), 'second must hold 1 examples as rec does, got 2'), (lambda: score_dynamics(dict(correct=[[True]], loss=[[1., 2.]])), 'must have the shape')])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match): call()


# ---- the observer

@pytest.fixture(scope='module')
def watched():
    data = sample(add_noise(load_dataset('digits'), 'random_in-0.4', seed=42), 500, 0)
    seen, watch = [], FullDynamics()
    def look(state): seen.append(state.evaluation.logits.clone())
    net = train(make_model('mlp', 10, (1, 8, 8), seed=0), data, {'name': 'digits', 'epochs': 12}, observers=[watch, look], device='cpu').model
    return data, watch, torch.stack(seen), net


def test_record_holds_what_the_logits_say(watched):
    data, watch, logits, _ = watched
    rec = watch.records(data)
    y = data.given_label.expand(len(logits), -1)
    np.testing.assert_array_equal(rec['correct'], logits.argmax(2) == y)
    np.testing.assert_allclose(rec['el2n'], torch.stack([error_norm(z, data.given_label) for z in logits]), atol=1e-3)
    table = score_dynamics(rec)
    own, rest = logits.gather(2, y[..., None])[..., 0], logits.scatter(2, y[..., None], -torch.inf).amax(2)
    np.testing.assert_allclose(table.aum, -(own - rest).mean(0), atol=2e-2)
    np.testing.assert_allclose(1 - table.confidence, logits.softmax(2).gather(2, y[..., None])[..., 0].mean(0), atol=1e-3)
    assert sum(v.nbytes for v in rec.rows.values()) <= 9*12*500, 'nine bytes for an example and epoch'


def test_scores_find_wrong_labels(watched):
    data, watch, _, _ = watched
    table = score_dynamics(watch.records(data))
    assert auroc(table.aum, data.is_noisy) > .95
    for name in ('first_learned', 'learning_time', 'el2n', 'confidence', 'correctness', 'cumulative_loss'): assert auroc(table[name], data.is_noisy) > .8, name


def test_watching_does_not_change_the_training(watched):
    data, _, _, net = watched
    plain = train(make_model('mlp', 10, (1, 8, 8), seed=0), data, {'name': 'digits', 'epochs': 12}, device='cpu').model
    for a, b in zip(net.parameters(), plain.parameters()): assert torch.equal(a, b)


def test_record_survives_disk_and_resume(watched, tmp_path):
    data, watch, _, _ = watched
    save_records(tmp_path/'r.npz', watch.records(data))
    np.testing.assert_array_equal(score_dynamics(load_records(tmp_path/'r.npz')), score_dynamics(watch.records(data)))

    def stop_after(state): state.stop = state.epoch == 5
    recipe, kept = {'name': 'digits', 'epochs': 12}, FullDynamics()
    train(make_model('mlp', 10, (1, 8, 8), seed=0), data, recipe, observers=[kept, stop_after], device='cpu', checkpoint=tmp_path/'c.safetensors')
    again = FullDynamics()
    again.load(kept.save())
    assert len(again.rows) == 5 and set(again.rows[0]) == {'loss', 'margin', 'prediction', 'el2n'}
    for k, v in watch.save().items(): assert torch.equal(again.save()[k], v[:5]), k


def test_plain_dynamics_have_all_but_el2n(watched):
    data, *_ = watched
    watch = Dynamics()
    train(make_model('linear', 10, (1, 8, 8), seed=0), data, {'name': 'digits', 'epochs': 2}, observers=[watch], device='cpu')
    assert score_dynamics(watch.records(data)).columns.tolist() == ['index', 'given_label', *(n for n in SCORES if n != 'el2n')]


# ---- the original's toy

def test_the_two_stage_toy(oracle):
    "Loss curves of the original: memorised labels tell little, forgetting tells much; a curve of losses alone is a record too."
    a = oracle('forgetting/two_stage_toy.npz')
    wrong = a['is_noisy1'].astype(bool)
    first, second = a['stage1_tracked_losses'], a['nofreeze_losses']
    assert auroc(score_dynamics(dict(correct=first < math.log(2), loss=first), ['final_loss']).final_loss, wrong) == pytest.approx(.75, abs=.01)
    table = score_dynamics(dict(correct=second < math.log(5), loss=second), second=dict(correct=second < math.log(5)))
    assert auroc(table.final_loss, wrong) > .99 and auroc(table.cumulative_loss, wrong) > .97
    assert auroc(table.ssft, wrong) == pytest.approx(.85, abs=.005), 'where the loss passes log C for good'

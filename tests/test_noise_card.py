"Noise cards: against loops, scikit-learn and the numbers of the original's label sets."
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score, roc_auc_score

from noisymem import noise as nz
from noisymem.data import load_dataset
from noisymem.noise_card import compare_noise, mutual_information, noise_card


def labels(n=500, k=5, seed=0):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, k, n)
    return true, np.where(rng.random(n) < .4, rng.integers(0, k, n), true)


@pytest.mark.parametrize('k', [2, 3, 10])
def test_against_loops_and_scikit_learn(k):
    true, given = labels(k=k, seed=k)
    card = noise_card(true, given, k)
    assert mutual_information(true, given, k) == pytest.approx(mutual_info_score(true, given))
    assert card.rate == (true != given).mean() and card.kept == k*min(np.bincount(given, minlength=k))
    for c in range(k):
        assert card.purity[c] == pytest.approx(np.mean(true[given == c] == c)) and card.count[c] == (given == c).sum()
        p = np.array([((true == c) & (given == j)).sum() for j in range(k) if j != c], float)
        p = p[p > 0]/p.sum()
        if k > 2: assert card.flip_entropy[c] == pytest.approx(-(p*np.log(p)).sum()/math.log(k - 1))
    assert 0 < card.information < 1 and (k > 2 or np.isnan(card.flip_entropy).all())


def test_balancing_by_hand_gives_the_expected_rate():
    true, given = labels(4000, seed=3)
    given[given == 1] = np.where(np.random.default_rng(0).random((given == 1).sum()) < .7, 0, 1)
    card, rng = noise_card(true, given, 5), np.random.default_rng(1)
    rates = []
    for _ in range(50):
        keep = np.concatenate([rng.choice(np.flatnonzero(given == c), card.kept//5, replace=False) for c in range(5)])
        rates.append((true[keep] != given[keep]).mean())
    assert np.mean(rates) == pytest.approx(card.kept_rate, abs=.01)


def test_difficulty():
    true, given = labels()
    hard = np.random.default_rng(2).random(500) + (true != given)
    assert noise_card(true, given, 5, hard).difficulty_auroc == pytest.approx(roc_auc_score(true != given, hard))
    assert math.isnan(noise_card(true, true, 5, hard).difficulty_auroc) and math.isnan(noise_card(true, given, 5).difficulty_auroc)


def test_ends():
    y = np.arange(30) % 3
    clean, one, moved = noise_card(y, y, 3), noise_card(y, y*0, 3), noise_card(y, (y + 1) % 3, 3)
    assert (clean.rate, clean.information, clean.kept, clean.kept_rate, clean.warnings) == (0, 1, 30, 0, [])
    assert one.information == pytest.approx(0) and one.kept == 0 and math.isnan(one.kept_rate) and np.isnan(one.purity[1]) and one.warnings == ['no example is given class 1']
    assert moved.rate == 1 and moved.information == pytest.approx(1) and (moved.purity == 0).all()
    assert noise_card([1], [0], 2).rate == 1 and math.isnan(noise_card([1, 1], [0, 1], 2).information)
    assert len(compare_noise({'a': clean, 'b': one, 'c': noise_card([1], [0], 2)})) == 3


@pytest.mark.parametrize('true, given, k, word', [([], [], 2, 'at least one'), ([0, 1], [0], 2, 'given'), ([0, 2], [0, 1], 2, r'true must be in \[0, 2\)'), ([0, 1], [0, -1], 2, 'given must be in'), ([0], [0], 1, '2')])
def test_bad_input(true, given, k, word):
    with pytest.raises(ValueError, match=word): noise_card(true, given, k)


@pytest.mark.parametrize('dataset', ['cifar10', 'cifar100'])
def test_every_label_set_of_the_representation_oracle(real_data, oracle, dataset):
    "Labels to the last one, and the numbers of their cards; instance noise of CIFAR-100 nearly, as the pixels at hand went through JPEG once."
    from hashlib import md5
    ds = load_dataset(dataset, real_data, download=False)
    for name, want in oracle('representation/noise_real_cifar.json').items():
        classes, kind, rate = name.split('_')
        if classes[1:] != dataset[5:]: continue
        options = dict(layout='chw', scale=255.) if kind == 'instance' else {}
        noisy = nz.add_noise(ds, {'pairflip': 'pair'}.get(kind, kind), float(rate), **options)
        exact = classes == 'C10' or kind != 'instance'
        if exact: assert md5(noisy.given_label.numpy().astype('<i8').tobytes()).hexdigest() == want['md5_int64'], name
        card = noise_card(ds.true_label, noisy.given_label, ds.n_classes)
        assert card.rate == pytest.approx(want['noise'], abs=1e-4 if exact else 1e-3) and card.count.argmax() == want['argmax']
        assert (card.count.min(), card.count.max()) == pytest.approx((want['min_class'], want['max_class']), rel=1e-9 if exact else .05)
        if 'purity' in want:
            np.testing.assert_allclose(card.purity, want['purity'], atol=5e-4)
            assert card.kept == want['ds_kept'] and card.kept_rate == pytest.approx(want['ds_noise'], abs=.01)
            assert bool(card.warnings) == (kind == 'instance')

"Neighbours against a slow search, scikit-learn and the original's scores; ties, copies, clusters, bad input."
import resource

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from noisymem.scores import neighbours as nb
from noisymem.scores.neighbours import consensus_counts, label_agreement, nearest, neighbour_shares, score_neighbours, score_shares, soft_neighbour_labels, vote_counts, whiten


def slow(queries, keys, k, metric, exclude_self=False):
    d = cdist(np.asarray(queries, float), np.asarray(keys, float), metric)
    if exclude_self: np.fill_diagonal(d, np.inf)
    index = np.argsort(d, axis=1, kind='stable')[:, :k]
    return np.take_along_axis(d, index, 1), index


@pytest.mark.parametrize('metric', ['euclidean', 'cosine'])
@pytest.mark.parametrize('n,q,d,k', [(200, 50, 5, 7), (64, 64, 1, 64), (3, 1, 40, 2), (1, 4, 2, 1), (500, 90, 33, 20)])
def test_against_a_slow_search(n, q, d, k, metric):
    rng = np.random.default_rng(n)
    x, z = rng.normal(size=(n, d)), rng.normal(size=(q, d))
    if d == 1 and metric == 'cosine': pytest.skip('all directions are equal')
    distance, index = nearest(z, x, k, metric)
    want, rows = slow(z, x, k, metric)
    np.testing.assert_array_equal(index.cpu(), rows)
    np.testing.assert_allclose(distance.cpu(), want, rtol=1e-12, atol=1e-14)


def test_against_scikit_learn():
    x = np.random.default_rng(1).normal(size=(600, 64)).astype(np.float32)
    want, rows = NearestNeighbors(algorithm='brute').fit(x.astype(float)).kneighbors(x.astype(float), 11)
    distance, index = nearest(x, x, 10, exclude_self=True)
    np.testing.assert_array_equal(index.cpu(), rows[:, 1:])
    np.testing.assert_allclose(distance.cpu(), want[:, 1:], rtol=1e-9)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('exclude_self', [False, True])
def test_ties_by_the_lower_row_on_a_lattice(seed, exclude_self):
    "Whole coordinates: every distance is exact, most are tied."
    x = np.random.default_rng(seed).integers(-2, 3, (150, 3)).astype(np.float32)
    want, rows = slow(x, x, 12, 'sqeuclidean', exclude_self)
    for block in (None, 1, 37):
        distance, index = nearest(x, x, 12, exclude_self=exclude_self, block=block)
        np.testing.assert_array_equal(index.cpu(), rows)
        np.testing.assert_array_equal(distance.cpu(), np.sqrt(want))


@pytest.mark.parametrize('offset,spread', [(1e6, 1.), (0, 1e-30), (0, 1e200), (0, 1e-300), (1e3, 1e-6)])
def test_digits_that_a_product_loses(offset, spread):
    x = offset + spread*np.random.default_rng(2).normal(size=(120, 6))
    _, index = nearest(x, x, 5, exclude_self=True)
    y = (x - offset)/spread
    np.testing.assert_array_equal(index.cpu(), slow(y, y, 5, 'euclidean', True)[1])


def test_tight_clusters_far_apart():
    "Collapsed features: within a cluster float32 products say nothing."
    rng = np.random.default_rng(3)
    x = 100*rng.normal(size=(8, 32))[rng.integers(0, 8, 800)] + 1e-4*rng.normal(size=(800, 32))
    np.testing.assert_array_equal(nearest(x, x, 6, exclude_self=True)[1].cpu(), slow(x, x, 6, 'euclidean', True)[1])


def test_one_key_far_away_and_copies():
    x = np.random.default_rng(4).normal(size=(100, 8))
    x[50], x[60:] = 1e8, x[60]
    np.testing.assert_array_equal(nearest(x, x, 45)[1].cpu(), slow(x, x, 45, 'euclidean')[1])
    distance, index = nearest(x[60:], x[60:], 3, exclude_self=True)
    assert (distance == 0).all() and index[0].tolist() == [1, 2, 3] and index[2].tolist() == [0, 1, 3]


def test_the_product_only_rules_out():
    "No neighbour is missing among the pairs, even where every distance is rounded: the bound holds."
    g = torch.Generator().manual_seed(0)
    for scale in (1e-4, 1., 1e4):
        x = (torch.randn(300, 20, generator=g)*scale + torch.randn(20, generator=g)).double()
        row, column = nb._pairs(x, nb._product_side(x, torch.float32), 5, None)
        found = torch.zeros(300, 300, dtype=torch.bool)
        found[row, column] = True
        _, index = slow(x, x, 5, 'euclidean')
        assert found[torch.arange(300)[:, None], torch.as_tensor(index)].all()


def test_reduced_precision_types():
    x = torch.randn(80, 9, generator=torch.Generator().manual_seed(1)).bfloat16()
    np.testing.assert_array_equal(nearest(x, x, 4)[1].cpu(), slow(x.double(), x.double(), 4, 'euclidean')[1])
    u = torch.randint(0, 256, (80, 9), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    np.testing.assert_array_equal(nearest(u, u, 4)[1].cpu(), slow(u, u, 4, 'euclidean')[1])


def test_bounded_memory():
    x = np.random.default_rng(0).normal(size=(20_000, 4)).astype(np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    nearest(x[:2000], x, 5, block=100, device='cpu')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100*2**10, 'ru_maxrss is in KiB; all products at once would be 160 MB and more'


@pytest.mark.parametrize('arguments,options,match', [
    (([[1.]], [[1.]], 0), {}, r'k must be in \[1, 1\], got 0'), (([[1.]], [[1.]], 2), {}, r'k must be in \[1, 1\], got 2'),
    (([[1.]], [[1.]], 1), dict(exclude_self=True), r'k must be in \[1, 0\], got 1'), (([[1.]], [[1.]], 1.), {}, 'k must be an integer'),
    (([[1.]], [[1.], [2]], 1), dict(exclude_self=True), 'exclude_self needs queries and keys of the same examples, got 1 and 2 rows'),
    (([[1.]], [[1., 2]], 1), {}, 'one number of columns, got 1 and 2'), (([1.], [[1.]], 1), {}, r'queries must have shape \(N, D\), both at least 1, got \(1,\)'),
    (([[1.]], np.zeros((0, 1)), 1), {}, r'keys must have shape .*, got \(0, 1\)'), (([[1.]], np.zeros((3, 0)), 1), {}, 'keys must have shape'),
    (([[np.inf]], [[1.]], 1), {}, 'queries must be finite, got NaN or infinity in 1 of 1 rows, the first is row 0'), (([[1.]], [[1.], [np.nan]], 1), {}, 'keys must be finite.*row 1'),
    (([[1.]], [[1.], [0.]], 1), dict(metric='cosine'), 'keys must have no row of zeros.* the first is row 1'), (([[1.]], [[1.]], 1), dict(metric='l1'), "metric must be one of 'euclidean', 'cosine', got 'l1'"),
    (([[1.]], [[1.]], 1), dict(block=0), 'block must be in'), (([[1.]], [[1.]], 1), dict(device='nowhere'), "device must be 'auto'")])
def test_bad_searches(arguments, options, match):
    with pytest.raises(ValueError, match=match): nearest(*arguments, **options)


@pytest.mark.parametrize('seed', range(3))
def test_votes_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    labels, index, given = rng.integers(0, 4, 30), rng.integers(0, 30, (12, 5)), rng.integers(0, 6, 12)
    votes = np.array([[sum(labels[j] == c for j in row) for c in range(6)] for row in index])
    np.testing.assert_array_equal(vote_counts(labels, index, 6), votes)
    np.testing.assert_allclose(soft_neighbour_labels(labels, index, 6), votes/5)
    np.testing.assert_allclose(label_agreement(labels, index, given), votes[np.arange(12), given]/5)


def test_consensus_against_a_loop():
    rng = np.random.default_rng(0)
    labels, index = rng.integers(0, 3, 40), rng.integers(0, 40, (40, 2))
    table = np.zeros((3, 3, 3))
    for y, (i, j) in zip(labels, index): table[y, labels[i], labels[j]] += 1/40
    first, second, third = consensus_counts(labels, index)
    for ours, want in ((first, table.sum((1, 2))), (second, table.sum(2)), (third, table)): np.testing.assert_allclose(ours, want)


def test_wrong_labels_stand_out():
    from noisymem.metrics import auroc
    rng = np.random.default_rng(5)
    true = rng.integers(0, 5, 600)
    x, wrong = 3*rng.normal(size=(5, 20))[true] + rng.normal(size=(600, 20)), rng.random(600) < .3
    given = np.where(wrong, (true + rng.integers(1, 5, 600)) % 5, true)
    score = score_neighbours(given, x, k=15)
    assert score.dtype == torch.float32 and auroc(score, wrong) > .97
    order = rng.permutation(600)
    torch.testing.assert_close(score_neighbours(given[order], x[order], k=15), score[order])


def test_whitening_is_principal_components():
    x = np.random.default_rng(6).normal(size=(100, 6)) @ np.random.default_rng(7).normal(size=(6, 6))
    unit = lambda a: a/np.linalg.norm(a, axis=1, keepdims=True)
    want = unit(PCA(whiten=True).fit_transform(unit(x)))
    ours = whiten(x).cpu().numpy()
    np.testing.assert_allclose(ours @ ours.T, want @ want.T, atol=1e-9)
    assert whiten(np.c_[x, x[:, :2]]).shape == (100, 6), 'repeated columns add no direction'


def test_oracle_knn_ce(oracle):
    a = oracle('forgetting/knn_ce.npz')
    spaces, y, k = (a['logits'], a['features']), a['given_labels'], int(a['k'])
    for x, n, counts in zip(spaces, (k + 1, k), ('knn_counts_logits_k11', 'knn_counts_features_k10')):
        w = whiten(x)
        np.testing.assert_array_equal(vote_counts(y, nearest(w, w, n)[1], 6).cpu(), a[counts])
    shares = 0
    for call in (1, 2, 3):
        shares = neighbour_shares(y, *spaces, k=k, compat='original', carry=shares)
        if call < 3: np.testing.assert_allclose(shares.cpu(), a[f'neighbour_prob_call{call}'], atol=1e-12)
        np.testing.assert_allclose(score_shares(shares, y, 'original').cpu(), a[f'ce_call{call}'], atol=1e-6)
    torch.testing.assert_close(score_neighbours(y, *spaces, k=k, compat='original').cpu(), torch.as_tensor(a['ce_call1'], dtype=torch.float32))


def test_corrected_score_against_the_originals(oracle):
    from noisymem.metrics import auroc
    a = oracle('forgetting/knn_ce.npz')
    ours = score_neighbours(a['given_labels'], whiten(a['logits']), whiten(a['features']), k=10)
    assert auroc(ours, a['is_noisy']) >= auroc(a['ce_call1'], a['is_noisy']) - .01


@pytest.mark.parametrize('call,match', [
    (lambda: score_neighbours([0, 1]), 'spaces must hold at least one'), (lambda: score_neighbours([0, 1], [[1.], [2.]]), r'k must be in \[1, 1\], got 100'),
    (lambda: score_neighbours([0, 1, 1], [[1.], [2.]], k=1), 'spaces must have 3 rows, one per given label, got 2'), (lambda: score_neighbours([0, 7], [[1.], [2.]], k=1, n_classes=2), r'labels must be in \[0, 2\)'),
    (lambda: score_neighbours([0, 1], [[1.], [2.]], k=1, compat='paper'), "compat must be one of None, 'original', got 'paper'"),
    (lambda: vote_counts([0, 1], [[2]]), r'index must be integers in \[0, 2\), the rows of labels, got values from 2 to 2'), (lambda: vote_counts([0, 1], [[-1]]), 'index must be integers in'), (lambda: vote_counts([0, 1], [0]), r'index must have shape \(Q, k\)'),
    (lambda: label_agreement([0, 1], [[0]], [0, 1]), 'given_label must have 1 entries'), (lambda: consensus_counts([0, 1], [[1], [0]]), r'index must have shape \(2, 2 or more\), got \(2, 1\)'),
    (lambda: vote_counts([0, 1], [[.5]]), 'index must be integers'), (lambda: consensus_counts([0, 1], [[1, -1], [0, 0]]), r'index must be integers in \[0, 2\)'), (lambda: whiten([[1., 2], [2, 4]]), 'features must differ in direction between examples, got 2 equal ones')])
def test_bad_scores(call, match):
    with pytest.raises(ValueError, match=match): call()


def test_stored_features_of_a_training():
    "Features kept while a network learned wrong labels: their neighbours still know most of them, better than the network's own loss."
    from noisymem.data import load_dataset, sample
    from noisymem.losses import cross_entropy
    from noisymem.metrics import auroc
    from noisymem.models import make_model
    from noisymem.noise import add_noise
    from noisymem.train import predict, train
    data = sample(add_noise(load_dataset('digits'), 'random_in-0.4', seed=42), 800, 0)
    net = train(make_model('mlp', 10, (1, 8, 8), seed=0), data, {'name': 'digits', 'epochs': 25}, device='cpu').model
    seen = predict(net, data.x, data.mean, data.std, layers=('backbone',))
    agreement = auroc(score_neighbours(data.given_label, seen.captured['backbone'], k=20, device='cpu'), data.is_noisy)
    assert agreement > .9 and agreement > auroc(cross_entropy(seen.logits, data.given_label, 'none'), data.is_noisy)
    for block in (1, 333): torch.testing.assert_close(score_neighbours(data.given_label, seen.captured['backbone'], seen.logits, k=20, block=block, device='cpu'), score_neighbours(data.given_label, seen.captured['backbone'], seen.logits, k=20, device='cpu'))


@pytest.mark.gpu
@pytest.mark.parametrize('metric', ['euclidean', 'cosine'])
def test_same_on_gpu(metric):
    rng = np.random.default_rng(0)
    for x in (rng.normal(size=(3000, 64)), rng.integers(-2, 3, (1000, 3)) + 10.):
        (a, i), (b, j) = (nearest(x, x, 20, metric, True, device=d) for d in ('cuda', 'cpu'))
        torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-12)
        if metric == 'euclidean': assert torch.equal(i.cpu(), j)
    y = rng.integers(0, 5, 1000)
    torch.testing.assert_close(score_neighbours(y, x, k=9, metric='euclidean', device='cuda').cpu(), score_neighbours(y, x, k=9, metric='euclidean', device='cpu'))

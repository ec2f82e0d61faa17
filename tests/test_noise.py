"Noise against slow loops, oracles and the published label vectors."
import hashlib

import numpy as np
import pandas as pd
import pytest
import torch
from threadpoolctl import threadpool_limits

from noisymem import noise as nz
from noisymem.label_files import load_label_file, save_label_file
from noisymem.data import from_arrays, load_cifar_n, load_dataset, sample, take, with_labels

KINDS = ['symmetric', 'symmetric_exact', 'uniform', 'pair']
TWINS = {  # set: wrong labels, MD5 of the little-endian int64 labels
    'aggre': (4513, '05657ec0caf27eb88c76820dc3c9f4f8'), 'rand1': (8651, '86cbcdfbc5d6dc3671dc423405fcdecc'),
    'rand2': (9073, '5160bb4ec79c1b28fcc088b168dc7c30'), 'rand3': (8822, 'c96a2e4c648645c25f30e452a3d71962'),
    'worst': (20228, '8e5314c65e1001242d73cb617e4c4550'), 'noisy100': (20108, 'fb4ea652f88d23782ee549d73d085895')}
EXTRA = {'cifar10_cluster_0.35': .34944, 'cifar10_cluster_0.70': .70164, 'cifar10_pmd_0.35': .34874, 'cifar10_pmd_0.70': .70136,
         'cifar100_cluster_0.35': .35368, 'cifar100_cluster_0.70': .70134, 'cifar100_pmd_0.35': .34896, 'cifar100_pmd_0.70': .69908}


def md5(y): return hashlib.md5(y.numpy().astype('<i8').tobytes()).hexdigest()


def slow_class_conditional(y, t, seed):
    rng = np.random.RandomState(seed)
    return [int(np.flatnonzero(rng.multinomial(1, t[c], 1)[0])[0]) for c in y]


def slow_instance(x, y, rate, k, seed):
    "x: (N, H, W, C) or (N, D); one example at a time."
    rng = np.random.RandomState(seed)
    q = [v for v in rng.normal(rate, .1, 1_000_000) if 0 < v < 1][:len(y)]
    w = rng.normal(0, 1, (x[0].size, k))
    out = []
    for i, row in enumerate(x):
        a = row.flatten().astype(float) @ w
        a[y[i]] = -1e6
        p = np.exp(a - a.max())
        p = q[i]*p/p.sum()
        p[y[i]] = 1 - q[i]
        out.append(rng.choice(np.arange(k), p=p/p.sum()))
    return out


def slow_cbn(e, y, k, n, r, seed):
    rng, out = np.random.RandomState(seed), y.copy()
    cent = [e[y == c].mean(0) if (y == c).any() else None for c in range(k)]
    for c in range(k):
        members = np.flatnonzero(y == c)
        if not len(members): continue
        centres = rng.choice(members, n, replace=False)
        for i in members:
            if min(np.linalg.norm(e[i] - e[j]) for j in centres) < r:
                out[i] = min((o for o in range(k) if o != c and cent[o] is not None), key=lambda o: np.linalg.norm(e[i] - cent[o]))
    return out


def toy(n=300, k=4, d=3, seed=0):
    rng = np.random.RandomState(seed)
    y = rng.randint(0, k, n)
    return rng.randn(n, d) + 3*np.eye(max(k, d))[y][:, :d], torch.from_numpy(y)


# ---- rate, transition matrix, class-conditional draws

@pytest.mark.parametrize('seed', range(8))
def test_transition_matrix_is_the_slow_count(seed):
    rng = np.random.RandomState(seed)
    k, n = rng.randint(2, 7), rng.choice([1, 2, 50])
    t, g = rng.randint(0, k, n), rng.randint(0, k, n)
    slow = np.zeros((k, k))
    for a, b in zip(t, g): slow[a, b] += 1
    assert (nz.transition_matrix(t, g, k, 'counts').numpy() == slow).all()
    rows = nz.transition_matrix(t, g, k).numpy()
    np.testing.assert_allclose(rows.sum(1), 1)
    for c in range(k): assert (rows[c] == (slow[c]/slow[c].sum() if slow[c].sum() else np.eye(k)[c])).all()
    assert nz.noise_rate(t, g) == np.mean(t != g)
    with np.errstate(all='ignore'): quirk = slow/slow.sum(1)
    np.testing.assert_array_equal(nz.transition_matrix(t, g, k, 'columns').numpy(), quirk)


@pytest.mark.parametrize('seed', range(10))
def test_class_conditional_keeps_the_legacy_stream(seed):
    rng = np.random.RandomState(seed + 100)
    k, n = rng.randint(2, 12), rng.choice([1, 7, 400])
    t = rng.dirichlet(np.full(k, .3), k)
    t[0] = np.eye(k)[k - 1]
    y = rng.randint(0, k, n)
    assert nz.class_conditional(y, t, seed).tolist() == slow_class_conditional(y, t, seed)


def test_legacy_multinomial_takes_one_row_only():
    with pytest.raises((ValueError, TypeError)): np.random.RandomState(0).multinomial(1, [[.5, .5], [.2, .8]])


def test_float32_rows_are_accepted():
    t = nz.symmetric_transition(100, .4).float()
    assert nz.noise_rate(torch.arange(1000) % 100, nz.class_conditional(torch.arange(1000) % 100, t)) > .3


@pytest.mark.parametrize('t, says', [([[.5, .6], [0, 1]], 'rows that sum to 1'), ([[1.5, -.5], [0, 1]], 'entries >= 0'),
    ([[1, 0]], 'square'), ([[1.]], 'square'), ([[float('nan'), 1], [0, 1]], 'entries >= 0')])
def test_bad_transitions(t, says):
    with pytest.raises(ValueError, match=says): nz.class_conditional([0, 1], t)


def test_noisify_oracle(oracle):
    o = oracle('memorization/noisify_small.npz')
    for s in (0, 1):
        assert (nz.class_conditional(o['y'], o['P'], s).numpy() == o[f'multiclass_seed{s}']).all()
        for r in (.2, .45):
            assert (nz.flip_labels(o['y'], r, 5, 'pair', s)[0].numpy() == o[f'pairflip_{r}_seed{s}']).all()
            assert (nz.flip_labels(o['y'], r, 5, 'symmetric', s)[0].numpy() == o[f'symmetric_{r}_seed{s}']).all()


def test_uniform_is_the_susceptibility_stream(oracle):
    o = oracle('susceptibility/corrupt_labels_frozen_clock.npz')
    for p in (.1, .25, .5, .9, 1.):
        assert (nz.flip_labels(o['clean'], p, 10, 'uniform', int(o['time_seed']))[0].numpy() == o[f'labels_p{p}']).all()


# ---- flips

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('k', [2, 3, 100])
def test_flips(kind, k):
    y = torch.from_numpy(np.random.RandomState(k).randint(0, k, 5000))
    before = y.clone()
    given, is_noisy = nz.flip_labels(y, .3, k, kind, seed=5)
    assert torch.equal(y, before) and given.dtype == torch.int64 and is_noisy.dtype == torch.bool
    assert torch.equal(is_noisy, given != y) and given.min() >= 0 and given.max() < k
    expected = .3*(1 - 1/k) if kind == 'uniform' else .3
    assert abs(is_noisy.double().mean() - expected) < 4*(expected*(1 - expected)/5000)**.5
    assert torch.equal(given, nz.flip_labels(y.numpy(), .3, k, kind, seed=5)[0])
    assert not torch.equal(given, nz.flip_labels(y, .3, k, kind, seed=6)[0])
    if kind == 'pair' or k == 2 and kind != 'uniform': assert torch.equal(given[is_noisy], (y[is_noisy] + 1) % k)


@pytest.mark.parametrize('kind', KINDS)
def test_flip_extremes(kind):
    for n in (0, 1, 2):
        y = torch.zeros(n, dtype=torch.int64)
        assert torch.equal(nz.flip_labels(y, 0, 2, kind)[0], y)
        assert len(nz.flip_labels(y, .999, 2, kind)[0]) == n
    with pytest.raises(ValueError, match='rate must be in'): nz.flip_labels([0, 1], float('nan'), 2, kind)
    with pytest.raises(ValueError, match='rate must be in'): nz.flip_labels([0, 1], -.1, 2, kind)
    with pytest.raises(ValueError, match='rate must be in'): nz.flip_labels([0, 1], 1.01, 2, kind)
    with pytest.raises(ValueError, match='n_classes'): nz.flip_labels([0, 0], .1, 1, kind)
    with pytest.raises(ValueError, match='labels must be'): nz.flip_labels([0, 2], .1, 2, kind)
    with pytest.raises(ValueError, match='labels must be'): nz.flip_labels([0., 1.], .1, 2, kind)
    with pytest.raises(ValueError, match='seed must be'): nz.flip_labels([0, 1], .1, 2, kind, seed=2**32)
    with pytest.raises(ValueError, match='seed must be'): nz.flip_labels([0, 1], .1, 2, kind, seed=.5)


@pytest.mark.parametrize('n, rate', [(1, .4), (1, .6), (7, .5), (1000, .123), (1000, .999)])
def test_symmetric_exact_is_exact_and_even(n, rate):
    y = torch.zeros(n, dtype=torch.int64)
    given, is_noisy = nz.flip_labels(y, rate, 5, 'symmetric_exact')
    assert is_noisy.sum() == round(rate*n)
    if rate == .999: assert (torch.bincount(given, minlength=5)[1:] - 250).abs().max() < 60


def test_flips_do_not_touch_global_generators():
    np.random.seed(1); torch.manual_seed(1)
    e, y = toy()
    a, b = np.random.get_state()[1].copy(), torch.get_rng_state()
    for kind in KINDS: nz.flip_labels(y, .3, 4, kind)
    nz.cluster_noise(e, y, 4, rate=.3); nz.simulated_human(e, y, .3, 4); nz.instance_noise(e, y, .3, 4); nz.clusteredness(e, y, (y + 1) % 4)
    assert (np.random.get_state()[1] == a).all() and torch.equal(torch.get_rng_state(), b)


def test_asymmetric_leaves_other_classes():
    y = torch.arange(10000) % 10
    given, is_noisy = nz.flip_labels(y, .4, 10, 'asymmetric', mapping=nz.LOOK_ALIKE['cifar10'])
    touched = torch.isin(y, torch.tensor(list(nz.LOOK_ALIKE['cifar10'])))
    assert not is_noisy[~touched].any() and abs(is_noisy.double().mean() - .2) < .02
    assert set(zip(y[is_noisy].tolist(), given[is_noisy].tolist())) == set(nz.LOOK_ALIKE['cifar10'].items())


# ---- instance noise

@pytest.mark.parametrize('rate', [.02, .2, .4, .95])
def test_instance_noise_is_the_slow_loop(rate):
    x = np.random.RandomState(7).randint(0, 256, (60, 32, 32, 3), np.uint8)
    y = np.random.RandomState(8).randint(0, 10, 60)
    got = nz.instance_noise(torch.from_numpy(x).permute(0, 3, 1, 2), y, rate, 10)
    assert got.tolist() == slow_instance(x, y, rate, 10, 0)


@pytest.mark.parametrize('seed', range(4))
def test_instance_noise_on_small_features(seed):
    rng = np.random.RandomState(seed)
    x, y = rng.rand(80, 5).astype(np.float32), rng.randint(0, 3, 80)
    assert nz.instance_noise(x, y, .4, 3, seed).tolist() == slow_instance(x, y, .4, 3, seed)


def test_instance_noise_conventions_and_edges():
    x = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (50, 3, 8, 8), np.uint8))
    y = torch.arange(50) % 10
    chw = nz.instance_noise(x, y, .4, 10, layout='chw', scale=255.)
    assert chw.tolist() == slow_instance(x.numpy()/255., y.numpy(), .4, 10, 0)
    assert not torch.equal(chw, nz.instance_noise(x, y, .4, 10))
    assert nz.instance_noise(x[:0], y[:0], .4, 10).tolist() == []
    assert nz.instance_noise(x[:1], y[:1], .4, 10).shape == (1,)


def test_instance_noise_with_a_projection_for_each_class():
    rng = np.random.RandomState(5)
    x, y = rng.rand(300, 6).astype(np.float32), rng.randint(0, 3, 300)
    got = nz.instance_noise(x, y, .5, 3, seed=2, projection='per_class', temperature=.5).numpy()
    rng = np.random.RandomState(2)
    q = [v for v in rng.normal(.5, .1, 1_000_000) if 0 < v < 1][:300]
    w = [rng.normal(0, 1, (6, 3)) for _ in range(3)]
    u = rng.random_sample(300)
    for i in range(300):
        a = x[i].astype(float) @ w[y[i]]/.5
        p = np.exp(a)*(np.arange(3) != y[i])
        p = q[i]*p/p.sum()
        p[y[i]] = 1 - q[i]
        assert got[i] == (np.cumsum(p)/p.sum() <= u[i]).sum()
    for bad in (dict(projection='own'), dict(temperature=0)):
        with pytest.raises(ValueError, match='must be'): nz.instance_noise(x, y, .5, 3, **bad)


def test_a_projection_for_each_class_spreads_the_wrong_labels():
    x, y = torch.rand(3000, 3, 8, 8, generator=torch.Generator().manual_seed(0))*255, torch.arange(3000) % 10
    largest = {p: nz.instance_noise(x, y, .6, 10, projection=p).bincount(minlength=10).max().item() for p in ('shared', 'per_class')}
    assert largest['shared'] > 2*largest['per_class'], largest


@pytest.mark.parametrize('x', [np.full((4, 2), np.nan), [[np.inf, 0.]]*4, np.full((4, 2), 1.7e308), [[np.nan, 0], [1, 1], [1, 1], [1, 1]], np.zeros(4), [['a']]*4, None, [[1], [1, 2], [1], [1]]])
def test_instance_noise_refuses_what_it_cannot_project(x):
    with np.errstate(all='ignore'), pytest.raises(ValueError, match='^x must be'): nz.instance_noise(x, [0, 1, 1, 0], .5, 2)


@pytest.mark.parametrize('scale', [0, 0., -1., float('nan'), float('inf'), 'a', None])
def test_instance_noise_refuses_scales(scale):
    for rate in (0, .5):
        with pytest.raises(ValueError, match='scale must be'): nz.instance_noise(np.ones((4, 2)), [0, 1, 1, 0], rate, 2, scale=scale)


def test_instance_noise_of_huge_features_never_counts_the_own_class():
    x, y = np.random.RandomState(0).randn(2000, 3)*1e9, torch.arange(2000) % 3
    assert abs(nz.noise_rate(y, nz.instance_noise(x, y, .5, 3)) - .5) < .04


def test_instance_rate_counts_n():
    x, y = torch.rand(3000, 4), torch.zeros(3000, dtype=torch.int64)
    assert abs(nz.noise_rate(y, nz.instance_noise(x, y, .3, 2)) - .3) < .04


# ---- cluster noise

def test_cbn_oracle(oracle):
    o = oracle('memorization/cbn_small.npz')
    for key in [k for k in o if k.startswith('noisy_')]:
        n, r, s = (p[len(a):] for p, a in zip(key.split('_')[1:], ('n', 'r', 'seed')))
        given, info = nz.cluster_noise(o['embedding2d'], o['labels'], 6, n_centres=int(n), radius=float(r), seed=int(s))
        assert (given.numpy() == o[key]).all()
        assert info['rate'] == o[key.replace('noisy', 'rate')]


@pytest.mark.parametrize('seed', range(6))
def test_cbn_is_the_slow_loop(seed):
    k = 2 + seed
    e, y = toy(120, k, 2, seed)
    if seed == 5: k += 1  # a class without examples
    n = int(min(5, torch.bincount(y)[torch.bincount(y) > 0].min()))
    given, _ = nz.cluster_noise(e, y, k, n_centres=n, radius=.7, seed=seed)
    assert (given.numpy() == slow_cbn(e, y.numpy(), k, n, .7, seed)).all()


@pytest.mark.parametrize('rate', [0, .05, .1, .35, .7, .99, 1])
def test_cbn_meets_the_rate(rate):
    e, y = toy(1000, 4)
    given, info = nz.cluster_noise(e, y, 4, rate=rate, seed=2)
    assert info['rate'] == nz.noise_rate(y, given) == pytest.approx(rate, abs=1e-9)
    again, _ = nz.cluster_noise(e, y, 4, n_centres=info['n_centres'], radius=info['radius'], seed=2)
    assert torch.equal(again, given)


def test_cbn_solves_the_number_of_centres():
    e, y = toy(1000, 4)
    given, info = nz.cluster_noise(e, y, 4, rate=.35, radius=.4)
    rates = [nz.cluster_noise(e, y, 4, n_centres=n, radius=.4)[1]['rate'] for n in range(1, 120)]
    assert rates == sorted(rates) and abs(info['rate'] - .35) == min(abs(r - .35) for r in rates)


def test_cbn_ties_and_unbalanced_classes():
    y = torch.tensor([0]*50 + [1]*3)
    with pytest.raises(ValueError, match='1 centres per class give 0 or 1 and nothing between, got 0.3'): nz.cluster_noise(np.zeros((53, 2)), y, 2, rate=.3)  # all distances are equal
    e = np.random.RandomState(0).randn(53, 2)
    assert nz.cluster_noise(e, y, 2, rate=.3)[1]['rate'] == 16/53
    with pytest.raises(ValueError, match='smallest class'): nz.cluster_noise(e, y, 2, n_centres=4, radius=1.)
    with pytest.raises(ValueError, match='finite'): nz.cluster_noise(np.full((53, 2), np.nan), y, 2, rate=.3)
    with pytest.raises(ValueError, match='give rate'): nz.cluster_noise(e, y, 2, n_centres=3)
    with pytest.raises(ValueError, match='give rate'): nz.cluster_noise(e, y, 2, rate=.2, n_centres=3, radius=1.)
    with pytest.raises(ValueError, match='rate must be in'): nz.cluster_noise(e, y, 2, rate=1.5)


@pytest.mark.parametrize('rate, options, says', [(.5, dict(radius=0.), 'radius=0.0 gives 0 with 1 centre per class to 0 with .*, nearest 0, got 0.5'),
    (.1, dict(radius=100.), 'radius=100.0 gives 1 with 1 centre'), (.05, dict(n_centres=50), '50 centres per class give 0 or 0.2 and nothing between')])
def test_cbn_refuses_rates_out_of_reach(rate, options, says):
    e, y = toy(1000, 4)
    with pytest.raises(ValueError, match=f'rate must be within 0.02 of one that can be reached: {says}'): nz.cluster_noise(e, y, 4, rate=rate, **options)


@pytest.mark.parametrize('n', [2.5, 0, -1, float('nan'), float('inf'), '2', True])
def test_cbn_refuses_broken_numbers_of_centres(n):
    e, y = toy()
    with pytest.raises(ValueError, match='n_centres must be'): nz.cluster_noise(e, y, 4, n_centres=n, radius=1.)
    with pytest.raises(ValueError, match='n_centres must be'): nz.add_noise(small(), 'cbn', .3, n_centres=n)


def test_cbn_keeps_what_it_solved():
    ds = small()
    noisy = nz.add_noise(ds, 'cbn', .3, seed=2)
    info = noisy.noise_info
    assert info['rate'] == noisy.noise_rate and noisy.noise == 'cbn-0.3-s2'
    assert torch.equal(nz.add_noise(ds, 'cbn', n_centres=info['n_centres'], radius=info['radius'], seed=2).given_label, noisy.given_label)
    twin = nz.add_noise(ds, 'synthetic:cbn', .3, seed=2)
    assert twin.noise_info == info | dict(effective_rate=twin.noise_rate) and set(nz.add_noise(noisy, 'pair', .3).noise_info) == {'nominal_rate', 'effective_rate'}


@pytest.mark.parametrize('kind', ['cbn-0.35', 'simulated_human-0.35', 'synthetic:cbn-0.35'])
def test_embedding_from_arrays_and_files(tmp_path, kind):
    ds, e = small(), np.random.RandomState(1).randn(200, 3).astype(np.float32)
    want = nz.add_noise(ds, kind, embedding=e)
    folder = tmp_path/'with space'
    folder.mkdir()
    np.save(folder/'e.npy', e); np.savez(folder/'one.npz', features=e); np.savez(folder/'two.npz', embedding=e, other=e[:5]); np.savez(folder/'bad.npz', a=e, b=e)
    np.save(folder/'short.npy', e[:5]); np.save(folder/'nan.npy', e*np.nan); np.save(folder/'object.npy', e.astype(object), allow_pickle=True); (folder/'broken.npy').write_bytes(b'x')
    for same in (e.tolist(), e.astype(object).astype(float).astype(np.float32), folder/'e.npy', str(folder/'one.npz'), folder/'two.npz'):
        got = nz.add_noise(ds, kind, embedding=same)
        assert torch.equal(got.given_label, want.given_label) and len(got.noise) == len(want.noise) and (isinstance(same, list) or got.noise == want.noise)
    for bad, says in ((e[:5], r'shape \(200, D\)'), (e*np.nan, 'finite'), (e[:, 0], 'embedding must be'), (e[:, :0], 'at least one column'), ([['a']]*200, 'numbers'), (e.astype(object), 'numbers'),
                      (folder/'short.npy', r'shape \(200, D\)'), (folder/'nan.npy', 'finite'), (folder/'bad.npz', 'must hold one array'), (folder/'object.npy', 'cannot be read'),
                      (folder/'broken.npy', 'cannot be read'), (folder/'none.npy', 'is not there'), ('e.txt', "suffix of an embedding file must be one of '.npy', '.npz'")):
        with pytest.raises(ValueError, match=says): nz.add_noise(ds, kind, embedding=bad)


# ---- clusteredness

@pytest.mark.parametrize('seed', range(3))
def test_clusteredness_is_the_slow_loop(seed):
    e, y = toy(150, 3, 2, seed)
    given, _ = nz.flip_labels(y, .4, 3, seed=seed)
    shares = []
    for i in range(150):
        if given[i] == y[i]: continue
        near = sorted((j for j in range(150) if j != i), key=lambda j: np.linalg.norm(e[i] - e[j]))[:7]
        shares.append(np.mean([bool(given[j] == given[i] and given[j] != y[j]) for j in near]))
    assert nz.clusteredness(e, y, given, 7)['observed'] == pytest.approx(np.mean(shares))


def test_clusteredness_ranks_generators():
    e, y = toy(2000, 4, 2)
    ratio = lambda given: nz.clusteredness(e, y, given)['ratio']
    flat = nz.flip_labels(y, .2, 4, 'symmetric_exact')[0]
    assert .8 < ratio(flat) < 1.2 and ratio(nz.cluster_noise(e, y, 4, rate=.2)[0]) > 2 and ratio(nz.simulated_human(e, y, .2, 4, temperature=0.)) > 1.5
    all_wrong = nz.clusteredness(e, y*0, y*0 + 1)
    assert all_wrong['observed'] == all_wrong['expected'] == 1


# ---- simulated annotator

def slow_gaps(e, y, k, m):
    d = np.full((len(y), k), np.inf)
    for i in range(len(y)):
        for c in range(k):
            dist = sorted(np.linalg.norm(e[i] - e[j]) for j in range(len(y)) if y[j] == c and j != i)[:m]
            if dist: d[i, c] = np.mean(dist)
    return d


@pytest.mark.parametrize('seed', range(3))
def test_class_distances_are_the_slow_loop(seed):
    e, y = toy(60, 3, 2, seed)
    y[y == 2], y[0] = 1, 2  # a class of one
    got = nz._class_distances(e, y.numpy(), 4, 5, 500)
    np.testing.assert_allclose(got, slow_gaps(e, y.numpy(), 4, 5))


@pytest.mark.parametrize('rate', [0, .001, .17, .4, .9])
@pytest.mark.parametrize('temperature', [0, .3, 50.])
def test_simulated_human_rate_is_exact(rate, temperature):
    e, y = toy(500, 5, 5)
    given = nz.simulated_human(e, y, rate, 5, temperature=temperature)
    assert nz.noise_rate(y, given) == round(rate*500)/500 and torch.equal(given, nz.simulated_human(e, y, rate, 5, temperature=temperature))


def test_simulated_human_limits():
    e, y = toy(3000, 4, 2)
    a, b = (nz.simulated_human(e, y, .2, 4, seed=s, temperature=0.) for s in (0, 1))
    assert torch.equal(a, b)  # no personal error, no annotator
    t = nz.transition_matrix(y, nz.simulated_human(e, y, .2, 4, temperature=1e4), 4)
    assert (t - nz.symmetric_transition(4, .2)).abs().max() < .04
    gap = nz._gaps(nz._class_distances(e, y.numpy(), 4, 5, 500), y.numpy()).min(1)
    assert gap[a != y].max() <= gap[a == y].min()  # the 600 examples nearest to another class


def test_simulated_human_edges():
    assert nz.simulated_human(np.zeros((1, 2)), [0], .2, 2).tolist() == [0]
    assert nz.noise_rate([0, 0, 1, 1], nz.simulated_human(np.zeros((4, 2)), [0, 0, 1, 1], .5, 2)) == .5  # all alike
    assert nz.simulated_human([[0.], [1], [5]], [0, 0, 1], .34, 2, temperature=0.).tolist().count(1) in (0, 2)  # a class of one
    with pytest.raises(ValueError, match=r'1 class\(es\)'): nz.simulated_human(np.zeros((9, 2)), [0]*9, .5, 2)
    with pytest.raises(ValueError, match='temperature'): nz.simulated_human(np.zeros((9, 2)), [0]*9, .5, 2, temperature=-1)


def test_simulated_human_on_digits_looks_human():
    ds = load_dataset('digits')
    y, k = ds.true_label, 10
    sets = [nz.simulated_human(ds.x, y, .17, k, seed=s) for s in range(8)]
    pairs = list(zip(sets[::2], sets[1::2]))
    same = np.mean([float((a == b)[a != y].double().mean()) for a, b in pairs])
    twins = np.mean([float((a == b)[a != y].double().mean()) for a, b in ((nz.synthetic_twin(y, a, k, 0), nz.synthetic_twin(y, b, k, 1)) for a, b in pairs)])
    assert .07 < same < .18 and same > 1.6*twins


# ---- files

def write(path, given, true, extra=None):
    if path.suffix == '.npy': np.save(path, given)
    elif path.suffix == '.npz': np.savez(path, clean_label=true, noisy_label=given)
    elif path.suffix == '.pt': torch.save(dict(clean_label=np.asarray(true), noisy_label=list(map(int, given))), path)
    else: pd.DataFrame(dict(extra or {}, given_label=true, noisy_label=given)).to_csv(path, index=path.stem == 'indexed')
    return path


@pytest.fixture
def labels():
    y = torch.from_numpy(np.random.RandomState(0).randint(0, 5, 600))
    return y, nz.flip_labels(y, .3, 5)[0]


FILES = ['a.npy', 'a.npz', 'a.pt', 'a.csv', 'indexed.csv']


@pytest.mark.parametrize('name', FILES)
def test_label_files(tmp_path, labels, name):
    y, given = labels
    extra = dict(sample_id=range(600), filename=[f'{i}.png' for i in range(600)])
    path = write(tmp_path/name, given.numpy(), y.numpy(), extra)
    assert torch.equal(load_label_file(path, y, 5), given)
    part = torch.arange(7, 300, 2)
    assert torch.equal(load_label_file(path, y[part], 5, index=part), given[part])
    with pytest.raises(ValueError, match='must have 599 entries, got 600'): load_label_file(path, y[1:], 5)
    with pytest.raises(ValueError, match=r'must be in \[0, 4\)'): load_label_file(path, y, 4)
    order = np.random.RandomState(1).permutation(600)
    shuffled = write(tmp_path/f'indexed{path.suffix}', given.numpy()[order], y.numpy()[order])
    with pytest.raises(ValueError, match='order'): load_label_file(shuffled, y, 5)
    assert torch.equal(load_label_file(shuffled, y, 5, image_order=order), given)
    np.save(tmp_path/'order.npy', order)
    assert torch.equal(load_label_file(shuffled, y, 5, image_order=tmp_path/'order.npy'), given)
    with pytest.raises(ValueError, match='permutation'): load_label_file(shuffled, y, 5, image_order=np.zeros(600, int))


@pytest.mark.parametrize('name', FILES)
def test_damaged_label_files(tmp_path, labels, name):
    y, given = labels
    path = write(tmp_path/name, given.numpy(), y.numpy())
    whole = path.read_bytes()
    for content in (whole[:len(whole)//2], b'', b'\x00'*50):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=path.name): load_label_file(path, y, 5)


def test_two_swapped_labels_are_noticed(tmp_path, labels):
    y, given = labels
    i, j = 3, int((y != y[3]).nonzero()[0])
    t = y.clone()
    t[[i, j]] = t[[j, i]]
    path = write(tmp_path/'a.csv', given.numpy(), t.numpy())
    with pytest.raises(ValueError, match='differs at 2 of 600'): load_label_file(path, y, 5)


def test_other_label_files(tmp_path, labels):
    y, given = labels
    np.save(tmp_path/'ordered.npy', dict(clean_label=[np.int64(v) for v in y], noise_label=[np.int64(v) for v in given]), allow_pickle=True)
    assert torch.equal(load_label_file(tmp_path/'ordered.npy', y, 5), given)
    np.savez(tmp_path/'many.npz', a=given, b=y)
    assert torch.equal(load_label_file(tmp_path/'many.npz', y, 5, key='a'), given)
    with pytest.raises(ValueError, match="key must name one of"): load_label_file(tmp_path/'many.npz', y, 5)
    with pytest.raises(ValueError, match="key of many.npz must be one of 'a', 'b', got 'c'"): load_label_file(tmp_path/'many.npz', y, 5, key='c')
    np.save(tmp_path/'float.npy', given.numpy().astype(float))
    with pytest.raises(ValueError, match='integers'): load_label_file(tmp_path/'float.npy', y, 5)
    (tmp_path/'holes.csv').write_text('given_label,noisy_label\n0,1\n1,\n')
    with pytest.raises(ValueError, match='integers'): load_label_file(tmp_path/'holes.csv')
    (tmp_path/'other.csv').write_text('a,b\n0,1\n')
    with pytest.raises(ValueError, match='no column noisy_label'): load_label_file(tmp_path/'other.csv')


class Bad:
    def __reduce__(self): return (print, ('this code must not run',))


@pytest.mark.parametrize('suffix', ['.npy', '.pt'])
def test_label_files_run_no_code(tmp_path, capsys, suffix):
    path = tmp_path/f'bad{suffix}'
    if suffix == '.npy': np.save(path, np.array(dict(noisy_label=Bad()), dtype=object), allow_pickle=True)
    else: torch.save(dict(noisy_label=Bad()), path)
    with pytest.raises(ValueError, match='bad'): load_label_file(path)
    assert 'must not run' not in capsys.readouterr().out


@pytest.mark.parametrize('rate', [.3, .7, .95])
def test_unordered_check_accepts_strong_noise(tmp_path, rate):
    y = torch.from_numpy(np.random.RandomState(0).randint(0, 10, 20000))
    given, _ = nz.flip_labels(y, rate, 10, 'symmetric_exact')
    save_label_file(tmp_path/'a.npy', given)
    assert torch.equal(load_label_file(tmp_path/'a.npy', y, 10), given)
    save_label_file(tmp_path/'b.npy', given.flip(0))
    with pytest.raises(ValueError, match='better than chance'): load_label_file(tmp_path/'b.npy', y, 10)
    assert torch.equal(load_label_file(tmp_path/'b.npy', y, 10, check_order=False), given.flip(0))


def noisy_of(kind, n=5000, k=10):
    y = torch.from_numpy(np.random.RandomState(3).randint(0, k, n))
    return y, y if kind == 'clean' else nz.flip_labels(y, float(kind.split('-')[1]), k, kind.split('-')[0], seed=1)[0]


@pytest.mark.parametrize('kind', ['clean', 'symmetric-0.1', 'symmetric-0.4', 'symmetric-0.6', 'pair-0.4'])
@pytest.mark.parametrize('rows', [(2500, 5000), (0, 2500), (1300, 3900), (0, 4600)])
def test_partly_shuffled_file_is_noticed(tmp_path, kind, rows):
    y, given = noisy_of(kind)
    save_label_file(tmp_path/'good.npy', given)
    assert torch.equal(load_label_file(tmp_path/'good.npy', y, 10), given)
    mixed, part = given.clone(), torch.arange(*rows)
    mixed[part] = given[part[torch.from_numpy(np.random.RandomState(0).permutation(len(part)))]]
    save_label_file(tmp_path/'bad.npy', mixed)
    with pytest.raises(ValueError, match='labels of bad.npy must agree .*in another order') as e: load_label_file(tmp_path/'bad.npy', y, 10)
    if len(part) < 4000:
        first, last = map(int, str(e.value).split(' in rows ')[1].split(' against')[0].split(' to '))
        assert first < rows[1] and last >= rows[0]
    assert torch.equal(load_label_file(tmp_path/'bad.npy', y, 10, check_order=False), mixed)


def test_partly_shuffled_file_is_noticed_in_its_own_order(tmp_path):
    "With a foreign order or for a part of the data the rows of the file are what is in blocks."
    y, given = noisy_of('symmetric-0.3')
    order, mixed = torch.from_numpy(np.random.RandomState(5).permutation(5000)), given.clone()
    mixed[3000:4000] = given[3000:4000][torch.from_numpy(np.random.RandomState(0).permutation(1000))]
    save_label_file(tmp_path/'good.npy', given)
    save_label_file(tmp_path/'bad.npy', mixed)
    theirs = torch.empty_like(y).scatter_(0, order, y)  # file row i belongs to example order[i]
    assert len(load_label_file(tmp_path/'good.npy', theirs, 10, image_order=order)) == 5000
    with pytest.raises(ValueError, match='in rows 3'): load_label_file(tmp_path/'bad.npy', theirs, 10, image_order=order)
    part = order[:4000]
    assert torch.equal(load_label_file(tmp_path/'good.npy', y[part], 10, index=part), given[part])
    with pytest.raises(ValueError, match='in rows'): load_label_file(tmp_path/'bad.npy', y[part], 10, index=part)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('k', [2, 3, 10, 100])
def test_block_test_spares_genuine_noise(tmp_path, k, seed):
    "Unequal classes, unequal rates, shuffled or sorted by class."
    rng = np.random.RandomState(seed)
    y = rng.choice(k, 6000, p=rng.dirichlet(np.full(k, 2.)))
    for rate in (.1, .4, .6):
        t = np.stack([(1 - r)*np.eye(k)[c] + r*rng.dirichlet(np.full(k, .3)) for c, r in enumerate(rng.uniform(0, 2*rate, k).clip(0, .9))])
        given = nz.class_conditional(y, t, seed).numpy()
        if (given == y).mean() < 1.5/k: continue
        for order in (np.arange(6000), np.argsort(y, kind='stable')):
            np.save(tmp_path/'a.npy', given[order])
            try: load_label_file(tmp_path/'a.npy', y[order], k)
            except ValueError as e: assert 'in every block' not in str(e), (rate, str(e))


def test_sorted_data_half_shuffled_is_noticed(tmp_path):
    y = torch.arange(5000)//500
    given = nz.flip_labels(y, .2, 10)[0]
    np.save(tmp_path/'a.npy', given)
    load_label_file(tmp_path/'a.npy', y, 10)
    given[2500:] = given[2500:][torch.from_numpy(np.random.RandomState(0).permutation(2500))]
    np.save(tmp_path/'a.npy', given)
    with pytest.raises(ValueError, match='in rows 2500 to 4999|in rows'): load_label_file(tmp_path/'a.npy', y, 10)


@pytest.mark.parametrize('column', ['sample_id', 'index'])
def test_csv_is_put_in_the_order_of_its_column(tmp_path, labels, column):
    y, given = labels
    order = np.random.RandomState(1).permutation(600)
    table = pd.DataFrame({column: order, 'given_label': y.numpy()[order], 'noisy_label': given.numpy()[order]})
    path = tmp_path/'with a space.csv'
    table.to_csv(path, index=False)
    assert torch.equal(load_label_file(path, y, 5), given)
    table.drop(columns='given_label').to_csv(path, index=False)
    assert torch.equal(load_label_file(path, y, 5), given)
    part = torch.arange(7, 300, 2)
    assert torch.equal(load_label_file(path, y[part], 5, index=part), given[part])
    for bad in (order + 1, order*0, np.where(order == 5, 6, order), order - 1, order + .5, [f'img{i}' for i in order]):
        table.assign(**{column: bad}).to_csv(path, index=False)
        with pytest.raises(ValueError, match=f'with a space.csv cannot be read: column {column} must be'): load_label_file(path, y, 5)


def test_csv_from_other_systems(tmp_path, labels):
    y, given = labels
    text = 'sample_id, given_label ,noisy_label\r\n' + ''.join(f'{i},{a},{b}\r\n' for i, (a, b) in enumerate(zip(y.tolist(), given.tolist())))
    for blob in (text.encode(), b'\xef\xbb\xbf' + text.encode(), (text + '\r\n\r\n').encode()):
        (tmp_path/'a.csv').write_bytes(blob)
        assert torch.equal(load_label_file(tmp_path/'a.csv', y, 5), given)
    (tmp_path/'a.csv').write_text('given_label,noisy_label\ncat,dog\ndog,dog\n')
    with pytest.raises(ValueError, match="given_label of a.csv must be integers, got 'cat'"): load_label_file(tmp_path/'a.csv')
    (tmp_path/'a.csv').write_text('given_label,noisy_label\n')
    assert len(load_label_file(tmp_path/'a.csv')) == 0
    with pytest.raises(ValueError, match='must have 600 entries, got 0'): load_label_file(tmp_path/'a.csv', y)
    (tmp_path/'one.csv').write_text('noise_label\n1\n')
    assert load_label_file(tmp_path/'one.csv', [1], 2).tolist() == [1]
    for path in (None, 3, ['a.npy']):
        with pytest.raises(ValueError, match='path must be'): load_label_file(path, y)


# ---- one entry point

def small(name='arrays', n=200, k=5):
    rng = np.random.RandomState(0)
    y = rng.randint(0, k, n)
    return from_arrays(rng.randint(0, 256, (n, 1, 6, 6), np.uint8), y, y, name=name, class_names=list(map(str, range(k))))


@pytest.mark.parametrize('kind, rate', [('clean', None), ('symmetric', .3), ('symmetric_exact', .3), ('uniform', .3), ('pair', .3), ('instance', .3),
                                        ('cbn', .3), ('simulated_human', .3), ('synthetic:simulated_human', .3), ('synthetic:cbn', .3)])
def test_add_noise(kind, rate):
    ds = small()
    noisy = nz.add_noise(ds, kind, rate, seed=1)
    assert torch.equal(noisy.true_label, ds.true_label) and torch.equal(noisy.x, ds.x) and torch.equal(ds.given_label, ds.true_label)
    assert noisy.noise == ('clean' if kind == 'clean' else f'{kind}-0.3-s1')
    assert noisy.fingerprint == nz.add_noise(nz.add_noise(ds, 'pair', .9), kind, rate, seed=1).fingerprint
    assert (noisy.noise_rate > 0) == (kind != 'clean')


def test_add_noise_options_are_in_the_name():
    ds = small()
    e = np.random.RandomState(1).randn(200, 3).astype(np.float32)
    names = {nz.add_noise(ds, 'cbn', .3, **o).noise for o in ({}, dict(embedding=e), dict(embedding=e + 1), dict(n_centres=3), dict(radius=2.), dict(n_centres=2))}
    names |= {nz.add_noise(ds, 'simulated_human', .3, temperature=t).noise for t in (0., .3)}
    names |= {nz.add_noise(ds, 'instance', .3, **o).noise for o in ({}, dict(layout='chw'), dict(scale=255.))}
    names |= {nz.add_noise(ds, 'asymmetric', .3, mapping=m).noise for m in ({0: 1}, {1: 0})}
    assert len(names) == 13
    assert nz.add_noise(ds, 'cbn', .3).noise == 'cbn-0.3-s0' and nz.add_noise(ds, 'cbn', n_centres=3, radius=9.).noise == 'cbn-s0-n_centres=3-radius=9.0'


def test_cbn_after_tsne():
    few = take(small(), torch.arange(40))
    with threadpool_limits(1): a, b = (nz.add_noise(few, 'cbn', .3, tsne=True) for _ in range(2))  # idle threads make 40 points slow
    assert a.noise_rate == pytest.approx(.3) and a.noise == 'cbn-0.3-s0-tsne=True' and torch.equal(a.given_label, b.given_label)


def test_add_noise_takes_given_labels_where_the_truth_is_unknown():
    ds = small()
    unknown = from_arrays(ds.x, ds.given_label, class_names=ds.class_names)
    noisy = nz.add_noise(unknown, 'symmetric', .3)
    assert torch.equal(noisy.true_label, ds.given_label) and noisy.noise_rate > .2


@pytest.mark.parametrize('name, kind, rate, says', [
    ('cifar10', 'noisy100', None, "noise 'noisy100' belongs to data set 'cifar100', got 'cifar10'"), ('cifar100', 'rand1', None, "belongs to data set 'cifar10'"),
    ('cifar100', 'synthetic:worst', None, "belongs to data set 'cifar10'"), ('cifar10', 'clean100', None, "belongs to data set 'cifar100'"),
    ('cifar10', 'rand1', .2, 'rate must be None'), ('cifar10', 'synthetic:rand1', .2, 'rate must be None'), ('x', 'clean', .2, 'rate must be None or 0'),
    ('x', 'symmetric', None, 'rate must be given'), ('x', 'pair', 1., 'rate must be in'), ('x', 'Symmetric', .2, 'noise kind must be one of'),
    ('x', 'synthetic:nothing', .2, 'noise kind must be one of'), ('x', 'magic:worst', .2, 'noise kind must be one of'), ('x', '', .2, 'noise kind must be one of'),
    ('x', 'file:nowhere.npy', None, 'is not there'), ('x', 'file:a.npy', .2, 'rate must be None'), ('x', 'asymmetric', .2, 'look-alike'),
    ('x', 'cbn', None, 'give rate')])
def test_add_noise_says_what_is_wrong(name, kind, rate, says):
    with pytest.raises(ValueError, match=says): nz.add_noise(small(name), kind, rate)


@pytest.mark.parametrize('call', [lambda f, y: nz.clusteredness(f, y, (y + 1) % 4, 2.5), lambda f, y: nz.clusteredness(f, y, (y + 1) % 4, 3, 2.5), lambda f, y: nz.simulated_human(f, y, .3, 4, n_neighbors=2.5),
    lambda f, y: nz.simulated_human(f, y, .3, 4, n_neighbors=0), lambda f, y: nz.simulated_human(f, y, .3, 4, max_per_class=0), lambda f, y: nz.simulated_human(None, y, .3, 4), lambda f, y: nz.thumbnail(np.zeros(3)),
    lambda f, y: nz.flip_labels(y, .3, 4, 'asymmetric', mapping=[1]), lambda f, y: nz.flip_labels(y, .3, 4, 'asymmetric', mapping={'a': 1}), lambda f, y: nz.flip_labels(y, .3, 4, 'asymmetric', mapping={0: 1.5}),
    lambda f, y: nz.add_noise(small(), None), lambda f, y: nz.add_noise(small(), ['clean']), lambda f, y: nz.class_conditional(y, 'a'), lambda f, y: nz.flip_labels(y, .3, float('inf'))])
def test_broken_arguments_are_named(call):
    with pytest.raises(ValueError, match='must be|must lead'): call(*toy())


def test_file_names_with_odd_characters(tmp_path):
    ds, noisy = small(), nz.add_noise(small(), 'symmetric', .3)
    folder = tmp_path/'run #3 a-0.4'
    folder.mkdir()
    save_label_file(folder/'a.npy', noisy.given_label)
    np.savez(folder/'a.npz', **{'cbn-0.4': noisy.given_label.numpy(), 'b': ds.true_label.numpy()})
    for kind in (f'file:{folder}/a.npy', f'file:{folder}/a.npz#cbn-0.4'): assert torch.equal(nz.add_noise(ds, kind).given_label, noisy.given_label)
    assert nz.add_noise(ds, f'synthetic:file:{folder}/a.npz#cbn-0.4').noise.startswith('synthetic:file:a.npz#cbn-0.4-')


def test_files_by_position_and_by_index(tmp_path):
    ds = small()
    noisy = nz.add_noise(ds, 'symmetric', .3)
    save_label_file(tmp_path/'a.csv', noisy.given_label, noisy.true_label)
    read = nz.add_noise(ds, f'file:{tmp_path}/a.csv')
    assert torch.equal(read.given_label, noisy.given_label) and read.noise.startswith('file:a.csv-') and str(tmp_path) not in read.noise
    part = sample(ds, 50, seed=1)
    assert torch.equal(nz.add_noise(part, f'file:{tmp_path}/a.csv').given_label, noisy.given_label[part.index])
    again = from_arrays(part.x, part.true_label, part.true_label, class_names=part.class_names)
    with pytest.raises(ValueError, match='must have 50 entries, got 200'): nz.add_noise(again, f'file:{tmp_path}/a.csv')
    save_label_file(tmp_path/'part.csv', noisy.given_label[part.index], part.true_label)
    assert torch.equal(nz.add_noise(part, f'file:{tmp_path}/part.csv').given_label, noisy.given_label[part.index])


def test_tokens_need_an_embedding():
    ds = from_arrays(np.random.RandomState(0).randint(0, 9, (60, 4)), np.arange(60) % 3)
    for kind in ('cbn', 'simulated_human', 'instance'):
        with pytest.raises(ValueError, match='embedding must be given'): nz.add_noise(ds, kind, .2)
    assert nz.add_noise(ds, 'simulated_human', .2, embedding=np.random.RandomState(0).randn(60, 3)).noise_rate == .2


def test_later_chapters_can_add_a_kind(monkeypatch):
    monkeypatch.setitem(nz.KINDS, 'all_zero', lambda labels, rate, n_classes, seed: labels*0)
    assert nz.flip_labels([1, 2], .5, 3, 'all_zero')[0].tolist() == [0, 0]


# ---- the published label sets

@pytest.fixture(scope='module')
def human(real_data):
    return {'cifar10': load_cifar_n(real_data, 'cifar10'), 'cifar100': load_cifar_n(real_data, 'cifar100')}


def test_cifar_n_structure(human):
    s = human['cifar10']
    clean, wrong = s['clean'], {k: s[k] != s['clean'] for k in s}
    votes = torch.stack([s['rand1'], s['rand2'], s['rand3']])
    assert {k: int(w.sum()) for k, w in wrong.items()} == dict(clean=0, aggre=4505, worst=20104, rand1=8617, rand2=9061, rand3=8820)
    assert (torch.bincount(clean) == 5000).all()
    assert torch.equal(wrong['worst'], wrong['rand1'] | wrong['rand2'] | wrong['rand3']) and (votes == s['worst']).any(0).all()
    differ = (votes[0] != votes[1]) & (votes[0] != votes[2]) & (votes[1] != votes[2])
    assert differ.sum() == 3041 and torch.equal(votes.mode(0)[0][~differ], s['aggre'][~differ]) and (votes == s['aggre']).any(0)[differ].all()
    assert (~wrong['aggre'])[differ].double().mean().item() == pytest.approx(.270, abs=5e-4)
    assert ((votes == votes[0]).all(0)).double().mean().item() == pytest.approx(.6036, abs=5e-5)
    assert (votes != clean).all(0).double().mean().item() == pytest.approx(.0213, abs=5e-5)
    t = nz.transition_matrix(clean, s['rand1'], 10, 'counts')
    assert [int(t[a, b]) for a, b in ((9, 1), (3, 5), (1, 9), (5, 3), (4, 7))] == [629, 542, 485, 409, 385]


def test_cifar_100n_structure(human):
    s = human['cifar100']
    t = nz.transition_matrix(s['clean'], s['noisy100'], 100)
    wrong = 1 - t.diagonal()
    assert (s['clean'] != s['noisy100']).sum() == 20100 and (torch.bincount(s['clean']) == 500).all()
    assert (wrong.argmin(), wrong.argmax()) == (82, 4) and wrong[82].item() == pytest.approx(.080) and wrong[4].item() == pytest.approx(.874)


@pytest.mark.parametrize('kind', TWINS)
def test_synthetic_twins_are_the_published_ones(human, shared, kind):
    name, clean = nz.HUMAN[kind]
    s, k = human[name], 100 if name == 'cifar100' else 10
    for normalize in ('rows', 'columns'):
        twin = nz.synthetic_twin(s[clean], s[kind], k, 0, normalize)
        assert (int((twin != s[clean]).sum()), md5(twin)) == TWINS[kind]
    if kind == 'rand1':
        with np.load(shared/'data'/'cifar_extra_noise.npz') as z: assert (twin.numpy() == z['cifar10_rand1_syn']).sum() == 50000


@pytest.mark.parametrize('k', [10, 100])
@pytest.mark.parametrize('rate', [.2, .4, .6, .8])
def test_representation_oracle(oracle, k, rate):
    o = oracle('representation/noise_class_conditional.npz')
    for theirs, ours in (('symmetric', 'symmetric'), ('pairflip', 'pair')):
        assert (nz.flip_labels(o[f'y_C{k}'].astype(np.int64), rate, k, ours)[0].numpy() == o[f'{theirs}_C{k}_r{rate}'].ravel()).all()


def test_rand1_transition_oracle(human, oracle):
    o, s = oracle('memorization/heldout_split_rand1.npz'), human['cifar10']
    assert (nz.transition_matrix(s['clean'], s['rand1'], 10, 'counts').numpy() == o['rand1_counts']).all()
    np.testing.assert_array_equal(nz.transition_matrix(s['clean'], s['rand1'], 10).numpy(), o['rand1_T'])
    assert (nz.synthetic_twin(s['clean'], s['rand1'], 10).numpy() == o['rand1_syn_labels']).all()


def test_human_noise_follows_index(human, real_data, tmp_path):
    s = human['cifar10']
    ds = from_arrays(np.zeros((50000, 1), np.float32), s['clean'], s['clean'], name='cifar10')
    whole, twin = nz.add_noise(ds, 'rand1', root=real_data), nz.add_noise(ds, 'synthetic:rand1', root=real_data)
    assert torch.equal(whole.given_label, s['rand1']) and (whole.noise, twin.noise) == ('rand1', 'synthetic:rand1') and whole.noise_rate == .17234
    part = sample(ds, 1000, seed=3)
    assert torch.equal(nz.add_noise(part, 'rand1', root=real_data).given_label, s['rand1'][part.index])
    assert torch.equal(nz.add_noise(part, 'synthetic:rand1', root=real_data).given_label, twin.given_label[part.index])
    assert nz.add_noise(part, 'synthetic:rand1', seed=1, root=real_data).noise == 'synthetic:rand1-s1'
    order = torch.from_numpy(np.random.RandomState(0).permutation(50000))
    shuffled = with_labels(ds, ds.given_label[order], 'clean', ds.true_label[order])
    with pytest.raises(ValueError): nz.add_noise(shuffled, 'rand1', root=real_data)
    save_label_file(tmp_path/'w.npy', s['worst'])
    assert torch.equal(nz.add_noise(take(ds, torch.arange(100)), f'file:{tmp_path}/w.npy').given_label, s['worst'][:100])
    with pytest.raises(ValueError): nz.add_noise(shuffled, f'file:{tmp_path}/w.npy')


@pytest.mark.parametrize('key', EXTRA)
def test_published_cbn_and_pmd_files(human, shared, key):
    name = key.split('_')[0]
    true = human[name]['clean']
    given = load_label_file(shared/'data'/'cifar_extra_noise.npz', true, 10 if name == 'cifar10' else 100, key=key)
    assert nz.noise_rate(true, given) == EXTRA[key]
    with pytest.raises(ValueError, match='better than chance'): load_label_file(shared/'data'/'cifar_extra_noise.npz', true.flip(0), key=key)


@pytest.mark.parametrize('key', EXTRA)
def test_published_label_sets_by_name(human, shared, tmp_path, key):
    "Also of a part of the data set; where the file is not there, it says which."
    name, kind, rate = key.split('_')
    true, k = human[name]['clean'], 10 if name == 'cifar10' else 100
    ds = from_arrays(np.zeros((50000, 1), np.float32), true, true, name=name)
    with pytest.raises(ValueError, match=f'label_noise.*{name}-{kind}-{rate}.npy'): nz.add_noise(ds, f'{kind}-{rate}', root=tmp_path)
    (tmp_path/'label_noise').mkdir()
    with np.load(shared/'data'/'cifar_extra_noise.npz') as z: np.save(tmp_path/'label_noise'/f'{name}-{kind}-{rate}.npy', z[key].astype(np.int64))
    whole = nz.add_noise(ds, f'{kind}-{rate}', root=tmp_path)
    assert whole.noise == f'{kind}-{float(rate)}' and whole.noise_rate == pytest.approx(EXTRA[key])
    part = sample(ds, 2000, seed=1)
    assert torch.equal(nz.add_noise(part, kind, float(rate), root=tmp_path).given_label, whole.given_label[part.index])
    for bad, why in ((f'{kind}-0.2', '0.35'), (kind, 'rate')):
        with pytest.raises(ValueError, match=why): nz.add_noise(ds, bad, root=tmp_path)
    with pytest.raises(ValueError, match='cifar10'): nz.add_noise(from_arrays(np.zeros((4, 1), np.float32), [0, 1, 2, 3], name='digits'), f'{kind}-{rate}', root=tmp_path)


def test_human_and_strong_noise_pass_the_block_test(human, tmp_path):
    "Also in the order of the classes; half of the file shuffled is refused."
    for name, k in (('cifar10', 10), ('cifar100', 100)):
        true = human[name]['clean']
        sets = {s: human[name][s] for s in (('aggre', 'rand3', 'worst') if k == 10 else ('noisy100',))} | {'symmetric': nz.flip_labels(true, .6, k)[0]}
        for given in sets.values():
            for order in (torch.arange(50000), true.argsort(stable=True)):
                np.save(tmp_path/'a.npy', given[order])
                assert torch.equal(load_label_file(tmp_path/'a.npy', true[order], k), given[order])
            mixed = torch.cat([given[:25000], given[25000:].flip(0)])
            np.save(tmp_path/'a.npy', mixed)
            with pytest.raises(ValueError, match='in another order'): load_label_file(tmp_path/'a.npy', true, k)


def test_a_rate_of_one_in_the_name_is_read_as_it_is_written():
    "The name that a label set of rate 1 bears is understood; a kind that has no such rate says which it has."
    ds = load_dataset('digits')
    one = nz.add_noise(ds, 'uniform-1.0')
    assert one.noise == 'uniform-1.0-s0' and torch.equal(one.given_label, nz.add_noise(ds, 'uniform', 1.).given_label)
    with pytest.raises(ValueError, match=r'rate must be in \[0, 1\), got 1.0'): nz.add_noise(ds, 'symmetric-1.0')

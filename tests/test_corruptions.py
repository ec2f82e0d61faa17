"Corruptions against the originals' outputs and slow restatements of their streams; class subsets; foreign images; bad input."
from dataclasses import fields

import numpy as np
import pytest
import torch

from noisymem import corruptions as co
from noisymem.corruptions import (MISTAKEN, OpenSet, SUPERCLASSES, foreign_counts, load_classes, load_pool, mistaken_for, photo_tiles, random_in, random_out, real_in, real_in_confusion, svhn_symmetric, swap_images,
                                  real_out, replace_images, replace_images_original, split_classes, take_classes)
from noisymem.data import from_arrays, load_dataset, sample, take, with_labels


def choice(rng, p): return rng.choice(len(p), p=p)


def slow_random_in(y, rate, k, seed):
    rng, given = np.random.RandomState(seed), np.array(y)
    order, m = rng.permutation(len(y)), int(len(y)*rate)
    for i in order[:m]:
        g = y[i]
        while g == y[i]: g = rng.randint(k, dtype=np.int32)
        given[i] = g
    return given, order[:m], order[m:]


def slow_real_in(y, rate, k, mapping, seed):
    rng, given = np.random.RandomState(seed), np.array(y)
    t = np.eye(k)
    for a, b in mapping.items(): t[a, a], t[a, b] = 1 - rate, rate
    order = rng.permutation(len(y))
    if int(len(y)*rate):
        for i in order: given[i] = choice(rng, t[y[i]])
    wrong = np.array([given[i] != y[i] for i in order], bool)
    return given, order[wrong], order[~wrong]


def slow_confusion(y, rate, counts, seed):
    rng, given, k = np.random.RandomState(seed), np.array(y), len(counts)
    table = (counts + 1e-5)/(counts + 1e-5).sum(1, keepdims=True)
    order, m = rng.permutation(len(y)), int(len(y)*rate)
    for i in order[:m]:
        others = [c for c in range(k) if c != y[i]]
        p = table[y[i], others]
        given[i] = others[choice(rng, p/p.sum())]
    return given, order[:m], order[m:]


def slow_real_out(y, rate, pool, counts, seed):
    rng = np.random.RandomState(seed)
    order, m = rng.permutation(len(y)), int(len(y)*rate)
    table = (counts + 1e-5)/(counts + 1e-5).sum(0)
    lists = []
    for c in range(len(counts)):
        members = [i for i in range(len(pool)) if pool[i] == c]
        rng.shuffle(members)
        lists.append(members)
    turn, rows = [0]*len(counts), []
    for i in order[:m]:
        c = choice(rng, table[:, y[i]])
        rows.append(lists[c][turn[c] % len(lists[c])])
        turn[c] += 1
    return order[:m], rows


def same(found, want):
    for a, b in zip(found, want): np.testing.assert_array_equal(a, b)


CASES = [(seed, n, k, rate) for seed in (0, 42) for n, k, rate in ((1, 2, 1.), (7, 2, .5), (200, 3, .29), (500, 10, .4), (300, 100, .8), (150, 10, 1.), (90, 4, 0.), (2, 3, .4))]


@pytest.mark.parametrize('seed,n,k,rate', CASES)
def test_streams_against_slow_loops(seed, n, k, rate):
    rng = np.random.default_rng(seed + n)
    y, counts = rng.integers(0, k, n), rng.integers(0, 9, (k, k))*rng.integers(0, 2, (k, k))
    same(random_in(y, rate, k, seed), slow_random_in(y, rate, k, seed))
    mapping = {a: (a + 1 + a % (k - 1)) % k for a in range(0, k, 2) if (a + 1 + a % (k - 1)) % k != a}
    same(real_in(y, rate, k, mapping, seed), slow_real_in(y, rate, k, mapping, seed))
    same(real_in_confusion(y, rate, counts, seed), slow_confusion(y, rate, counts, seed))
    pool = np.r_[np.arange(5), rng.integers(0, 5, n)]
    table = rng.integers(0, 9, (5, k))
    same(real_out(y, rate, pool, table, seed), slow_real_out(y, rate, pool, table, seed))


@pytest.mark.parametrize('case', ['s42_r40', 's42_r20', 's7_r80', 's42_r0'])
def test_oracle_random_in(oracle, case):
    a = oracle('forgetting/noise_random_in_c10.npz')
    seed, rate = (int(p[1:]) for p in case.split('_'))
    same(random_in(a['clean_labels'], rate/100, 10, seed), [a[f'{case}_{part}'] for part in ('noisy_labels', 'noisy_idx', 'clean_idx')])


@pytest.mark.parametrize('case', ['s42_r40', 's7_r20'])
@pytest.mark.parametrize('k', [10, 100])
def test_oracle_real_in(oracle, case, k):
    a = oracle(f'forgetting/noise_real_in_c{k}.npz')
    seed, rate = (int(p[1:]) for p in case.split('_'))
    found = real_in(a['clean_labels'], rate/100, k, MISTAKEN[f'cifar{k}'], seed)
    same(found, [a[f'{case}_{part}'] for part in ('noisy_labels', 'noisy_idx', 'clean_idx')])
    if k == 100: assert {int(c): int(n) for c, n in enumerate(a['fine_to_next'])} == MISTAKEN['cifar100']


def test_superclasses(oracle):
    a = oracle('forgetting/noise_real_in_c100.npz')
    coarse = [set(a['fine_to_coarse'][list(s)].tolist()) for s in SUPERCLASSES]
    assert all(len(c) == 1 for c in coarse) and len(set.union(*coarse)) == 20 and sorted(sum(SUPERCLASSES, ())) == list(range(100))


def test_oracle_random_out(oracle):
    "The original's ImageNet form: an image is its number."
    a = oracle('forgetting/noise_imagenet_random_out.npz')
    parts = split_classes(a['raw_labels'], 100, 1000, seed=42)
    place = parts.classes.argsort()
    y = torch.as_tensor(a['raw_labels'])
    same([parts.classes, parts.inside, parts.outside, place[y[parts.inside]], place[y[parts.outside]] - 100], [a[k] for k in ('class_permutation', 'in_image_ids', 'out_image_ids', 'in_labels_mapped', 'out_labels_mapped')])
    drawn = random_out(600, .5, 5400, seed=42)
    images = parts.inside.clone()
    images[drawn.position] = parts.outside[drawn.row]
    same([drawn.position, images], [a['noisy_idx'], a['image_ids_after']])
    ds = from_arrays(np.arange(6000)[:, None].astype(np.float32), a['raw_labels'], class_names=[str(c) for c in range(1000)])
    open_set = replace_images_original(ds, 'random_out', .5, 100, seed=42)
    same([open_set.x[:, 0].long(), open_set.given_label, open_set.is_ood.nonzero()[:, 0]], [a['image_ids_after'], a['labels_after'], np.sort(a['noisy_idx'])])


def test_no_trace_on_the_global_generator():
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    y = np.arange(100) % 10
    random_in(y, .4, 10), real_in(y, .4, 10, {0: 1}), random_out(100, .4, 100), real_out(y, .4, y, np.ones((10, 10)))
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    same(random_in(y, .4, 10, 3), random_in(y, .4, 10, 3))


def test_what_the_rates_mean():
    y = np.arange(50_000) % 10
    found = random_in(y, .4, 10, 42)
    assert len(found.noisy) == 20_000 == (found.given != torch.as_tensor(y)).sum()
    t = np.zeros((10, 10))
    np.add.at(t, (y, found.given.numpy()), 1/5000)
    np.testing.assert_allclose(t, np.where(np.eye(10), .6, .4/9), atol=.03)
    assert len(real_in(y, .4, 10, MISTAKEN['cifar10'], 42).noisy)/50_000 == pytest.approx(.2, abs=.005)
    assert len(real_in(np.arange(50_000) % 100, .4, 100, MISTAKEN['cifar100'], 42).noisy)/50_000 == pytest.approx(.4, abs=.01)


# ---- classes

@pytest.fixture(scope='module')
def letters():
    "Five classes, 40 examples; a class's pixels say its number."
    y = np.arange(40) % 5
    return from_arrays((y*50).astype(np.uint8)[:, None, None], y, true_label=y, class_names='abcde', name='letters', x_test=np.array([0, 50, 100, 150, 200], np.uint8)[:, None, None], y_test=np.arange(5))


@pytest.mark.parametrize('classes', [[0, 1], [4, 2], ['e', 'a', 'c'], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize('seed', [None, 42])
def test_subsets_are_renumbered_to_ranks(letters, classes, seed):
    part = take_classes(letters, classes, seed)
    numbers = sorted('abcde'.index(c) if isinstance(c, str) else c for c in classes)
    np.testing.assert_array_equal(part.x.flatten()//50, np.array(numbers)[part.given_label])
    np.testing.assert_array_equal(part.x_test.flatten()//50, np.array(numbers)[part.y_test])
    assert part.class_names == tuple('abcde'[c] for c in numbers) and part.name == f"letters[{','.join(map(str, numbers))}]"
    np.testing.assert_array_equal(part.index % 5, np.array(numbers)[part.given_label])
    if seed is None: assert (part.index.diff() > 0).all()
    else:
        listed = [i for c in classes for i in range(40) if i % 5 == ('abcde'.index(c) if isinstance(c, str) else c)]
        assert part.index.tolist() == [listed[i] for i in np.random.RandomState(42).permutation(len(listed))]


def test_the_originals_subset_of_the_last_classes():
    "{5..9}, seed 42 before the subset and again before the noise: order, labels and noise as a restatement makes them."
    y = np.random.RandomState(1).randint(0, 10, 2000)
    ds = take_classes(from_arrays(np.zeros((2000, 1), np.float32), y, class_names='0123456789'), [5, 6, 7, 8, 9], seed=42)
    listed = np.concatenate([np.flatnonzero(y == c) for c in range(5, 10)])
    order = listed[np.random.RandomState(42).permutation(len(listed))]
    np.testing.assert_array_equal(ds.index, order)
    np.testing.assert_array_equal(ds.given_label, y[order] - 5)
    same(random_in(ds.given_label, .4, 5, 42), slow_random_in(y[order] - 5, .4, 5, 42))


def test_mistakes_in_a_part_of_the_classes(letters):
    fake = lambda classes: type('D', (), dict(name=f"cifar10[{','.join(map(str, classes))}]", n_classes=len(classes)))()
    assert mistaken_for(fake([0, 2, 3, 5, 6, 8])) == {1: 0, 2: 3, 3: 2}
    assert mistaken_for(fake([1, 4, 7, 9])) == {3: 0, 1: 2}
    assert mistaken_for(fake([1, 3, 8])) == {}, 'one original makes a fourth class here'
    y = np.arange(30) % 3
    assert torch.equal(real_in(y, .9, 3, {}, 0).given, torch.as_tensor(y))


@pytest.mark.parametrize('classes,match', [
    ([0], 'at least 2 different ones'), ([], 'at least 2 different ones'), ([0, 0], 'at least 2 different ones'), ([0, 9], 'classes must be one of 0, 1, 2, 3, 4, got 9'), ([0, -1], 'got -1'),
    (['a', 'z'], "got 'z'"), ('ab', 'classes must be a list'), (3, 'classes must be a list'), ([0, 1.5], 'got 1.5')])
def test_bad_classes(letters, classes, match):
    with pytest.raises(ValueError, match=match): take_classes(letters, classes)


def test_classes_without_examples(letters):
    with pytest.raises(ValueError, match=r'classes must have examples, got none of class 3 \(d\)'): take_classes(take(letters, letters.true_label != 3), [2, 3])
    with pytest.raises(ValueError, match='classes must be taken before noise is added'): take_classes(with_labels(letters, (letters.true_label + 1) % 5, 'shifted'), [0, 1])


@pytest.mark.parametrize('name', ['digits[', 'digits[]', 'digits[1;2]', 'digits[1,2', 'digits[1]x'])
def test_bad_names(name):
    with pytest.raises(ValueError, match='name must be that of a data set, with class numbers'): load_classes(name)


# ---- foreign images

@pytest.fixture(scope='module')
def all_digits(): return load_dataset('digits')


@pytest.mark.parametrize('kind', ['random_out', 'real_out'])
@pytest.mark.parametrize('rate', [0, .1, .4, 1])
def test_flags_of_foreign_images(all_digits, kind, rate):
    open_set, m = replace_images(all_digits, kind, rate, seed=42), int(all_digits.n*rate)
    assert open_set.is_ood.sum() == open_set.is_noisy.sum() == m and open_set.noise_rate == pytest.approx(m/all_digits.n)
    assert (open_set.true_label[open_set.is_ood] == -1).all() and torch.equal(open_set.given_label, all_digits.true_label)
    own = ~open_set.is_ood
    assert torch.equal(open_set.true_label[own], all_digits.true_label[own]) and torch.equal(open_set.x[own], all_digits.x[own])
    tiles = {t.numpy().tobytes() for t in photo_tiles().x}
    assert all(t.numpy().tobytes() in tiles for t in open_set.x[open_set.is_ood])
    assert all_digits.fingerprint == load_dataset('digits').fingerprint, 'the source is as it was'


def test_parts_of_an_open_set(all_digits):
    open_set = replace_images(all_digits, 'random_out', .4)
    part = sample(open_set, 200, 0)
    assert isinstance(part, OpenSet) and torch.equal(part.is_ood, open_set.is_ood[part.index])
    assert torch.equal(with_labels(part, part.given_label, 'same').is_ood, part.is_ood)
    few = take_classes(open_set, [3, 8])
    assert torch.equal(few.is_ood, open_set.is_ood[few.index]) and few.is_noisy.sum() == few.is_ood.sum()
    other = dict(true_label=torch.where(open_set.true_label == 0, -2, open_set.true_label))
    with pytest.raises(ValueError, match='true_label must be -1 where'): OpenSet(**{f.name: getattr(open_set, f.name) for f in fields(open_set)} | other)
    assert OpenSet(**{f.name: getattr(open_set, f.name) for f in fields(open_set)} | dict(true_label=None)).true_label is None


def test_the_key_of_plain_data_is_as_it_was(all_digits):
    assert all_digits.fingerprint == 'a676108ec96480b2'
    as_open = OpenSet(**{f.name: getattr(all_digits, f.name) for f in fields(all_digits)})
    assert as_open.fingerprint == all_digits.fingerprint


def test_an_open_set_trains(all_digits):
    from noisymem.models import make_model
    from noisymem.train import Dynamics, train
    open_set = sample(replace_images(all_digits, 'random_out', .3), 150, 0)
    watch = Dynamics()
    train(make_model('mlp', 10, (1, 8, 8)), open_set, {'name': 'digits', 'epochs': 2}, observers=[watch], device='cpu')
    assert watch.records(open_set)['correct'].shape == (2, 150)


@pytest.mark.parametrize('pool', ['digits[0,1]', 'array', 'data'])
def test_pools(all_digits, pool):
    x = np.full((900, 8, 8), 7, np.uint8)
    source = dict(array=x, data=from_arrays(x, np.arange(900) % 3, class_names='abc', name='sevens')).get(pool, pool)
    rate = .1 if isinstance(source, str) else .5
    for kind in ('random_out', 'real_out'):
        open_set = replace_images(all_digits, kind, rate, pool=source)
        if not isinstance(source, str): assert (open_set.x[open_set.is_ood] == 7).all()
        else: assert {all_digits.x[i].numpy().tobytes() for i in (all_digits.true_label < 2).nonzero()[:, 0]} >= {t.numpy().tobytes() for t in open_set.x[open_set.is_ood]}
        assert '-pool=' in open_set.noise


@pytest.mark.parametrize('call,match', [
    (lambda d: replace_images(d, 'random_in', .4), "kind must be one of 'random_out', 'real_out', got 'random_in'"), (lambda d: replace_images(d, 'random_out', 1.1), r'rate must be in \[0, 1\], got 1.1'),
    (lambda d: replace_images(d, 'random_out', .9, pool=np.zeros((3, 8, 8), np.uint8)), r'pool must have at least floor\(rate N\) = 1293 images, got 3'),
    (lambda d: replace_images(d, 'random_out', .1, pool=np.zeros((500, 16, 16), np.uint8)), r"pool must hold images like those of 'digits', \(1, 8, 8\).*got \(1, 16, 16\)"),
    (lambda d: replace_images(d, 'random_out', .1, pool=np.zeros((500, 8), np.float32)), 'pool must hold images like'), (lambda d: replace_images(d, 'random_out', .1, pool='imagenet'), "must be one of 'digits'"),
    (lambda d: replace_images(d, 'real_out', .1, counts=np.ones((3, 3))), r'counts must have shape \(10, 10\), got \(3, 3\)'), (lambda d: replace_images(d, 'real_out', .1, counts=np.full((10, 10), np.nan)), 'counts must be finite'),
    (lambda d: replace_images(d, 'random_out', .1, drop=['zebra']), "drop must be one of .* got 'zebra'"), (lambda d: replace_images(d, 'random_out', .1, seed=-1), 'seed must be in'),
    (lambda d: replace_images(d, 'random_out', .1, seed=.5), 'seed must be an integer'), (lambda d: replace_images(replace_images(d, 'random_out', .1), 'random_out', .1), 'ds must have no foreign images yet'),
    (lambda d: replace_images(from_arrays(d.x, d.given_label), 'random_out', .1), r'\(or pass pool\) must be one of'), (lambda d: replace_images_original(d, 'random_out', .1, 1), r'n_in must be in \[2, 8\], got 1'),
    (lambda d: random_in(d.given_label, float('nan'), 10), 'rate must be'), (lambda d: real_in(d.given_label, .1, 10, {1: 1}), 'mapping must lead from a class'),
    (lambda d: real_in_confusion(d.given_label, .1, np.ones((9, 9))), r'labels must be in \[0, 9\)'), (lambda d: split_classes(d.given_label, 0, 10), r'n_in must be in \[1, 10\), got 0')])
def test_bad_input(all_digits, call, match):
    with pytest.raises(ValueError, match=match): call(all_digits)


def test_a_class_of_the_pool_is_begun_again():
    y, pool = np.zeros(60, int), np.array([0, 0, 1])
    drawn = real_out(y, 1, pool, [[1, 1], [0, 0]], seed=3)
    assert np.bincount(drawn.row, minlength=3).tolist() == [30, 30, 0]
    with pytest.raises(ValueError, match='class 0 has 2'): real_out(y, 1, pool, [[1, 1], [0, 0]], seed=3, again=False)


def test_cifar(real_data):
    a, b = (load_dataset(name, real_data) for name in ('cifar10', 'cifar100'))
    for ds, other, gone in ((a, b, ('bus', 'pickup_truck')), (b, a, ('automobile', 'truck'))):
        pool = load_pool(ds, root=real_data)
        assert set(other.class_names) - set(pool.class_names) == set(gone)
        counts = foreign_counts(ds, pool)
        assert counts.shape == (pool.n_classes, ds.n_classes) and (counts.sum(1) == 50_000/other.n_classes).all()
        open_set = replace_images(sample(ds, 2000, 0), 'real_out', .4, seed=42, root=real_data)
        assert open_set.is_ood.sum() == 800
    rows, cols = b.class_names, a.class_names
    says = lambda foreign: cols[co.LOOKS_LIKE['cifar10', 'cifar100'][rows.index(foreign)].argmax()]
    assert [says(c) for c in ('wolf', 'pickup_truck', 'tractor', 'cattle', 'rocket')] == ['cat', 'truck', 'truck', 'deer', 'ship'], 'the table is of the classes it says'
    says = lambda foreign: rows[co.LOOKS_LIKE['cifar100', 'cifar10'][cols.index(foreign)].argmax()]
    assert [says(c) for c in ('automobile', 'truck', 'horse', 'cat')] == ['pickup_truck', 'bus', 'cattle', 'rabbit']
    part = load_classes('cifar10[0,1,2,3,4]', real_data)
    assert foreign_counts(part, load_pool(part, 'cifar10[5,6,7,8,9]', root=real_data)).shape == (5, 5)
    assert mistaken_for(b) == MISTAKEN['cifar100'] and b.class_names[8] == 'bicycle'


# ---- by name

@pytest.mark.parametrize('kind', ['random_in', 'real_in', 'random_out', 'real_out'])
@pytest.mark.parametrize('rate', [0, .4, 1])
def test_by_name(all_digits, kind, rate):
    from noisymem.noise import add_noise
    for ds in (all_digits, load_dataset('digits[1,5,6,7]')):
        noisy = add_noise(ds, f'{kind}-{rate}', seed=42)
        assert noisy.noise == add_noise(ds, kind, rate, seed=42).noise == f'{kind}-{float(rate)}-s42'
        assert noisy.noise_info['nominal_rate'] == rate and noisy.noise_info['effective_rate'] == pytest.approx(noisy.noise_rate)
        assert noisy.n_classes == ds.n_classes and noisy.is_ood.sum() == (int(rate*ds.n) if kind.endswith('out') else 0)
        if kind != 'real_in': assert noisy.is_noisy.sum() == int(rate*ds.n)
        own = ~noisy.is_ood
        assert torch.equal(noisy.true_label[own], ds.true_label[own])
        assert torch.equal(add_noise(noisy, 'given').is_noisy, noisy.is_noisy)
        if kind.endswith('in'): assert torch.equal(add_noise(noisy, 'clean').given_label, ds.true_label)


@pytest.mark.parametrize('call,match', [
    (lambda a, d: a(d, 'random_in'), "rate must be given for 'random_in'"), (lambda a, d: a(d, 'random_out'), "rate must be given for 'random_out'"), (lambda a, d: a(d, 'random_in', 1.2), r'rate must be in \[0, 1\], got 1.2'),
    (lambda a, d: a(load_dataset('digits[0,4,9]'), 'real_in-0.4'), r"mapping must be given for 'digits\[0,4,9\]', none of whose classes"), (lambda a, d: a(d, 'synthetic:random_out-0.4'), "noise 'random_out' replaces images"),
    (lambda a, d: a(d, 'random_out-0.4', n_in=5), "n_in must be given with compat='original' and not without"), (lambda a, d: a(d, 'random_out-0.4', compat='original'), 'n_in must be given'),
    (lambda a, d: a(d, 'random_out-0.4', compat='paper'), "compat must be one of None, 'original', got 'paper'"), (lambda a, d: a(d, 'random_out-0.4', radius=3), "options must be those of noise 'random_out-0.4'"),
    (lambda a, d: a(a(d, 'random_out-0.4'), 'symmetric-0.2'), 'ds must have its own images, got 574 foreign ones'), (lambda a, d: a(d, 'real_in-0.4', mapping={0: 1}, counts=np.ones((10, 10))), 'must not both be given'),
    (lambda a, d: a(d, 'real_in-0.4', counts=np.ones((5, 5))), 'counts must have 10 rows, got 5'), (lambda a, d: a(from_arrays(d.x, d.given_label), 'real_in-0.4'), 'table of look-alike classes'),
    (lambda a, d: a(d, 'random_out:nowhere-0.4'), "must be one of 'digits'"), (lambda a, d: load_dataset('digits[3]'), 'at least 2 different ones'), (lambda a, d: load_dataset('nodigits[3,4]'), 'name must be one of')])
def test_bad_input_by_name(all_digits, call, match):
    from noisymem.noise import add_noise
    with pytest.raises(ValueError, match=match): call(add_noise, all_digits)


def test_pools_and_the_original_by_name(all_digits):
    from noisymem.noise import add_noise
    noisy = add_noise(all_digits, 'random_out:digits[0,1]-0.05')
    assert noisy.noise == 'random_out-0.05-s0-pool=digits[0,1]' and noisy.is_ood.sum() == 71
    old = add_noise(all_digits, 'random_out-0.5', seed=42, compat='original', n_in=4)
    assert old.n_classes == 4 and old.is_ood.sum() == old.n//2


def test_every_figure_can_use_them(monkeypatch, tmp_path):
    "A whole configuration by name: classes, foreign images, an ensemble of two."
    from noisymem.runs import RunConfig, load_or_run
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    data, rec = load_or_run(RunConfig(dataset='digits[1,5,7]', noise='random_out-0.3', n_examples=120, model='linear', recipe={'name': 'digits', 'epochs': 2}, design='uniform', n_models=2), 'cpu', workers=0)
    assert isinstance(data, OpenSet) and len(rec) == 2 and set(data.true_label.tolist()) == {-1, 0, 1, 2} and (rec['true_label'] == data.true_label.numpy()).all()


@pytest.mark.parametrize('seed', [0, 42])
@pytest.mark.parametrize('n, k, rate', [(500, 10, .3), (37, 3, .5), (40, 4, 1.), (20, 5, 0.), (12, 2, .05)])
def test_svhn_symmetric_is_the_slow_stream(seed, n, k, rate):
    "Shuffle all, seed again, then class by class: shuffle its places, draw a label for each of the first."
    y = np.random.default_rng(n).integers(0, k, n)
    rng = np.random.RandomState(seed)
    order = list(range(n))
    rng.shuffle(order)
    rng, given, flagged = np.random.RandomState(seed), y.copy(), []
    for c in range(k):
        places = np.array([p for p in range(n) if y[order[p]] == c], np.int64)
        rng.shuffle(places)
        for p in places[:int(n*rate)//k]:
            given[order[p]] = rng.randint(k)
            flagged.append(order[p])
    found = svhn_symmetric(y, rate, k, seed)
    assert found.given.tolist() == given.tolist() and found.noisy.tolist() == flagged
    assert sorted(flagged + found.clean.tolist()) == list(range(n))


def test_swapped_images_come_from_flagged_examples_of_classes_mistaken_for_the_label():
    y = np.arange(900) % 3
    ds = from_arrays(np.arange(900, dtype=np.float32)[:, None], y, y, name='numbers')
    counts = np.array([[50, 9, 0], [0, 50, 0], [0, 1, 50]])  # only class 0, and now and then 2, are taken for 1; nothing is taken for 0 or 2
    out = swap_images(ds, .4, counts, seed=1)
    source = out.x[:, 0].long()
    changed = source != torch.arange(900)
    assert torch.equal(out.given_label, ds.given_label) and torch.equal(out.true_label, ds.true_label[source]) and torch.equal(out.is_noisy, changed)
    assert [int(changed[y == c].sum()) for c in range(3)] == [120]*3 and set(source[changed].tolist()) <= set(changed.nonzero().flatten().tolist())
    from_zero = (out.true_label[changed & (out.given_label == 1)] == 0).float().mean()
    assert abs(from_zero - .9) < .1
    assert torch.equal(swap_images(ds, .4, counts, seed=1).x, out.x) and not torch.equal(swap_images(ds, .4, counts, seed=2).x, out.x)
    assert torch.equal(swap_images(ds, 0, counts).x, ds.x) and swap_images(ds, 1, counts).noise_rate == 1


def test_swapping_needs_two_classes_and_the_truth():
    one = from_arrays(np.zeros((4, 1), np.float32), [0]*4, [0]*4, class_names=('a', 'b'))
    with pytest.raises(ValueError, match='at least two classes'): swap_images(one, .5, np.ones((2, 2)))
    with pytest.raises(ValueError, match='true labels'): swap_images(from_arrays(np.zeros((4, 1), np.float32), [0, 1, 0, 1]), .5, np.ones((2, 2)))
    with pytest.raises(ValueError, match='rate must be'): swap_images(one, 1.5, np.ones((2, 2)))
    with pytest.raises(ValueError, match='counts must'): swap_images(one, .5, -np.ones((2, 2)))

"Loaders against miniature files in the official formats, damaged ones, a local server, and genuine data."
import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from noisymem import data
from noisymem.data import Dataset, Source, from_arrays, from_folder, load_cifar_n, load_dataset, sample, take, with_labels

NAMES10 = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']


def md5(blob): return hashlib.md5(blob).hexdigest()


def write_cifar10(root, per_batch=7, seed=0):
    "A miniature CIFAR-10; returns pixels and labels of both parts."
    rng, folder = np.random.default_rng(seed), Path(root)/'cifar-10-batches-py'
    folder.mkdir(parents=True)
    xs, ys = [], []
    for i, name in enumerate([f'data_batch_{k}' for k in range(1, 6)] + ['test_batch']):
        x, y = rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8), rng.integers(0, 10, per_batch).tolist()
        label = f'training batch {i + 1} of 5' if i < 5 else 'testing batch 1 of 1'
        content = {'batch_label': label, 'labels': y, 'data': x, 'filenames': [f'a_s_{j}.png' for j in range(per_batch)]}
        (folder/name).write_bytes(pickle.dumps(content, protocol=2))
        xs.append(x), ys.append(y)
    (folder/'batches.meta').write_bytes(pickle.dumps({'num_cases_per_batch': per_batch, 'label_names': NAMES10, 'num_vis': 3072}, protocol=2))
    return np.concatenate(xs[:5]).reshape(-1, 3, 32, 32), sum(ys[:5], []), xs[5].reshape(-1, 3, 32, 32), ys[5]


def write_cifar100(root, n=40, seed=0):
    rng, folder = np.random.default_rng(seed), Path(root)/'cifar-100-python'
    folder.mkdir(parents=True)
    out = []
    for name in ('train', 'test'):
        fine = rng.integers(0, 100, n).tolist()
        coarse = list(range(20))*(n//20)
        x = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        (folder/name).write_bytes(pickle.dumps({'filenames': ['x.png']*n, 'batch_label': f'{name}ing batch 1 of 1', 'fine_labels': fine, 'coarse_labels': coarse, 'data': x}, protocol=2))
        out.append((x.reshape(-1, 3, 32, 32), fine, coarse))
    meta = {'fine_label_names': [f'f{i:02d}' for i in range(100)], 'coarse_label_names': [f'c{i:02d}' for i in range(20)]}
    (folder/'meta').write_bytes(pickle.dumps(meta, protocol=2))
    return out


def idx(a): return struct.pack('>BBBB', 0, 0, 8, a.ndim) + struct.pack(f'>{a.ndim}I', *a.shape) + a.tobytes()


def write_mnist(folder, zipped=True, n=12, seed=0, first=None):
    rng = np.random.default_rng(seed)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for part in ('train', 't10k'):
        x, y = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), rng.integers(0, 10, n).astype(np.uint8)
        if first: y[:10] = first
        for kind, a in (('images-idx3', x), ('labels-idx1', y)):
            blob = idx(a)
            (folder/(f'{part}-{kind}-ubyte' + '.gz'*zipped)).write_bytes(gzip.compress(blob) if zipped else blob)
        out.append((x, y))
    return out


def write_svhn(root, n=12, seed=0):
    rng, out = np.random.default_rng(seed), []
    for part in ('train', 'test'):
        x, y = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8), rng.integers(1, 11, (n, 1)).astype(np.uint8)
        y[0] = 10
        savemat(Path(root)/f'{part}_32x32.mat', {'X': x, 'y': y}, do_compression=True)
        out.append((x, y))
    return out


def write_cifar_n(root, clean, **other):
    keys = ['clean_label', 'aggre_label', 'worse_label', 'random_label1', 'random_label2', 'random_label3']
    torch.save({k: np.asarray(other.get(k, clean), np.int64) for k in keys}, Path(root)/'CIFAR-10_human.pt')


def write_cifar100_n(root, fine, coarse, noisy_coarse=None):
    content = {'clean_label': np.asarray(fine, np.int64), 'noisy_label': np.asarray(fine, np.int64), 'clean_coarse_label': list(coarse), 'noisy_coarse_label': list(noisy_coarse or coarse)}
    torch.save(content, Path(root)/'CIFAR-100_human.pt')


class Bomb:
    "Pickles to a call of os.system that would leave a file behind."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.system, (f'touch {self.path}',)


# ---------------------------------------------------------------- the type

def tiny(n=6, k=3, **change):
    y = torch.arange(n)%k
    base = dict(name='t', x=torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), given_label=y, true_label=y, index=torch.arange(n),
                x_test=torch.zeros(2, 3, 4, 4, dtype=torch.uint8), y_test=torch.tensor([0, 1]), class_names=tuple('abc'[:k]), mean=(0.,)*3, std=(1.,)*3)
    return Dataset(**{**base, **change})


@pytest.mark.parametrize('change, message', [
    (dict(given_label=torch.tensor([0, 1, 2, 0, 1, 3])), r'given_label must be in \[0, 3\)'),
    (dict(given_label=torch.tensor([0, 1, 2, 0, 1, -1])), r'given_label must be in \[0, 3\)'),
    (dict(given_label=torch.arange(5)%3), 'given_label must have 6 entries, got 5'),
    (dict(true_label=torch.arange(7)%3), 'true_label must have 6 entries, got 7'),
    (dict(y_test=torch.tensor([0])), 'y_test must have 2 entries'),
    (dict(given_label=torch.zeros(6, dtype=torch.int32)), 'given_label must be an int64 tensor'),
    (dict(given_label=[0]*6), 'given_label must be an int64 tensor'),
    (dict(index=torch.tensor([5, 4, 3, 2, 1, 1])), 'index must not repeat'),
    (dict(x=torch.zeros(6, 3, 4, 4)), 'x must be uint8 images'),
    (dict(x=np.zeros((6, 3, 4, 4), np.uint8)), 'x must be uint8 images'),
    (dict(x=torch.zeros(0, 3, 4, 4, dtype=torch.uint8)), 'at least one example'),
    (dict(x_test=torch.zeros(2, 3, 5, 4, dtype=torch.uint8)), 'x_test must look like x'),
    (dict(mean=(0.,)), 'mean must have one entry per channel'),
    (dict(std=(1., 0., 1.)), 'std must be finite and above 0'), (dict(std=(1., float('nan'), 1.)), 'std must be finite'), (dict(mean=(1., float('inf'), 1.)), 'mean must be finite'),
    (dict(x=torch.zeros(6, 3, 0, 4, dtype=torch.uint8)), 'x must be uint8 images'),
    (dict(paths=('a',)), 'paths must have 6 entries'),
    (dict(class_names=('a',)), 'class_names must have at least 2'),
])
def test_dataset_refuses_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message): tiny(**change)


def test_dataset_takes_features_and_tokens():
    for x in (torch.randn(6, 5), torch.zeros(6, 9, dtype=torch.int64)):
        ds = tiny(x=x, x_test=x[:2], mean=(), std=())
        assert take(ds, [1]).x.dtype == x.dtype


def test_fingerprint_sees_every_part_and_no_name():
    ds = tiny()
    other = [replace(ds, x=ds.x.flip(0)), replace(ds, given_label=ds.given_label.flip(0)), replace(ds, true_label=None), replace(ds, index=ds.index + 1),
             replace(ds, x_test=ds.x_test + 1), replace(ds, y_test=ds.y_test.flip(0))]
    assert len({d.fingerprint for d in [ds, *other]}) == 7
    assert replace(ds, name='u', noise='v', licence='w').fingerprint == ds.fingerprint


@pytest.mark.parametrize('seed', range(5))
def test_take_composes_and_keeps_rows_together(seed):
    g = torch.Generator().manual_seed(seed)
    ds = replace(tiny(60), paths=tuple(map(str, range(60))))
    a = torch.randperm(60, generator=g)[:30]
    b = torch.randperm(30, generator=g)[:9]
    twice, once = take(take(ds, a), b), take(ds, a[b])
    assert twice.fingerprint == once.fingerprint and twice.paths == once.paths
    assert torch.equal(once.x, ds.x[once.index]) and torch.equal(once.given_label, ds.given_label[once.index])
    assert once.paths == tuple(map(str, once.index.tolist()))


@pytest.mark.parametrize('bad', [[6], [-1], [0, 0], [], [[0]], [0.5], torch.ones(5, dtype=torch.bool), [True, False], [False]*6, None, 'abc', ['a'], [None], {1}, [[0], [1, 2]], 3])
def test_take_refuses(bad):
    with pytest.raises(ValueError, match='positions'): take(tiny(), bad)


def test_sample_is_nested_sorted_seeded_and_leaves_the_global_generator_alone():
    ds = take(tiny(200), torch.randperm(200, generator=torch.Generator().manual_seed(1)))
    state = torch.get_rng_state()
    small, large = sample(ds, 20, 3), sample(ds, 90, 3)
    assert torch.equal(state, torch.get_rng_state())
    assert set(small.index.tolist()) < set(large.index.tolist())
    assert small.index.tolist() == sorted(small.index.tolist())
    assert sample(ds, 20, 3).fingerprint == small.fingerprint != sample(ds, 20, 4).fingerprint
    assert sample(ds, 0, 3).index.tolist() == list(range(200))
    for n in (201, -1, 2.0, True):
        with pytest.raises(ValueError, match='n must be an integer'): sample(ds, n, 0)


def test_take_reads_positions_of_every_kind():
    for p in ([2, 1], (2, 1), np.array([1, 2])[::-1], np.array([2, 1], '>u2'), torch.tensor([2, 1], dtype=torch.int32), range(2, 0, -1)): assert take(tiny(), p).index.tolist() == [2, 1]
    assert take(tiny(), [False, True]*3).index.tolist() == [1, 3, 5]


def test_noise_info_goes_with_its_labels_only():
    ds = with_labels(tiny(), [0]*6, 'x', noise_info=dict(rate=.5))
    assert take(ds, [1, 2]).noise_info == dict(rate=.5) and tiny().noise_info is None and with_labels(ds, [0]*6, 'y').noise_info is None
    assert ds.fingerprint == with_labels(ds, [0]*6, 'y').fingerprint


def test_with_labels_keeps_or_sets_the_truth():
    ds = tiny()
    noisy = with_labels(ds, (ds.given_label + 1)%3, 'shift')
    assert noisy.noise_rate == 1. and torch.equal(noisy.true_label, ds.true_label)
    assert with_labels(noisy, noisy.given_label, 'x', true_label=noisy.given_label).noise_rate == 0.
    with pytest.raises(ValueError, match='given_label must be in'): with_labels(ds, [0, 1, 2, 3, 0, 0], 'x')


# ---------------------------------------------------------------- arrays

@pytest.mark.parametrize('shape, layout, want', [
    ((5, 8, 9, 3), None, (5, 3, 8, 9)), ((5, 3, 8, 9), None, (5, 3, 8, 9)), ((5, 8, 9), None, (5, 1, 8, 9)), ((5, 8, 9, 1), None, (5, 1, 8, 9)),
    ((5, 3, 8, 3), 'NHWC', (5, 3, 3, 8)), ((5, 3, 8, 3), 'NCHW', (5, 3, 8, 3)), ((5, 4, 8, 8), 'NCHW', (5, 4, 8, 8)), ((5, 8, 8, 4), 'NHWC', (5, 4, 8, 8))])
def test_layouts(shape, layout, want):
    a = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    ds = from_arrays(a, [0, 1, 0, 1, 1], layout=layout)
    assert tuple(ds.x.shape) == want and ds.x.is_contiguous()
    last = layout == 'NHWC' or (layout is None and a.ndim == 4 and shape[3] in (1, 3))
    assert np.array_equal(ds.x.numpy(), a.transpose(0, 3, 1, 2) if last else a.reshape(want))


@pytest.mark.parametrize('shape', [(5, 3, 8, 3), (5, 1, 1, 3), (5, 4, 8, 8), (5, 8, 8, 8)])
def test_ambiguous_layout_is_asked_for(shape):
    with pytest.raises(ValueError, match='needs layout='): from_arrays(np.zeros(shape, np.uint8), [0, 1, 0, 1, 1])


def test_arrays_are_copied_also_views_and_read_only_ones():
    a = np.arange(5*16, dtype=np.uint8).reshape(5, 4, 4)
    ds = from_arrays(a[::-1], [0, 1, 0, 1, 1])
    a[:] = 0
    assert ds.x[0, 0, 0, 0] == 64
    a.setflags(write=False)
    from_arrays(a, [0, 1, 0, 1, 1])


def test_statistics_equal_numpy():
    a = np.random.default_rng(0).integers(0, 256, (50, 3, 6, 5), dtype=np.uint8)
    ds = from_arrays(a, [0, 1]*25)
    assert np.allclose(ds.mean, (a/255).mean((0, 2, 3)), rtol=1e-12) and np.allclose(ds.std, (a/255).std((0, 2, 3)), rtol=1e-12)
    f = np.random.default_rng(0).normal(size=(50, 4))
    ds = from_arrays(f, [0, 1]*25)
    assert ds.x.dtype == torch.float32 and np.allclose(ds.std, f.std(0), rtol=1e-5)


@pytest.mark.parametrize('labels', [['b', 'a', 'c', 'a'], np.array(['b', 'a', 'c', 'a']), np.array(['b', 'a', 'c', 'a'], object), ('b', 'a', 'c', 'a')])
def test_string_labels(labels):
    ds = from_arrays(np.zeros((4, 2)), labels, true_label=['d', 'a', 'c', 'a'])
    assert ds.class_names == ('a', 'b', 'c', 'd') and ds.given_label.tolist() == [1, 0, 2, 0] and ds.noise_rate == .25


@pytest.mark.parametrize('labels', [[1, 0, 2, 0], np.array([1, 0, 2, 0], np.uint8), np.array([1, 0, 2, 0], object), torch.tensor([1, 0, 2, 0], dtype=torch.int16)])
def test_integer_labels(labels):
    ds = from_arrays(np.zeros((4, 2)), labels)
    assert ds.class_names == ('0', '1', '2') and ds.given_label.tolist() == [1, 0, 2, 0] and ds.given_label.dtype == torch.int64


@pytest.mark.parametrize('labels, kw, message', [
    ([0, 1, 1], {}, 'labels must have 4 entries, got 3'), ([0, 0, 0, 0], {}, 'at least 2'), ([0, -1, 1, 1], {}, 'labels must be in'), ([.5, 0, 1, 1], {}, 'all integers or all strings'),
    (['a', 'b', 'a', None], {}, 'all integers or all strings'), (['a', 'b', 'a', 'z'], dict(class_names=['a', 'b']), "got 'z' at position 3"), ([0, 1, 2, 0], dict(class_names=['a', 'b']), r'labels must be in \[0, 2\)'),
    ([0, 1, 1, 0], dict(class_names=['a', 'a']), 'differ'), ([0, 1, 1, 10**12], {}, 'class numbers from 0 on'), ([0, 1, 1, 0], dict(x_test=np.zeros((1, 2))), 'given together'),
    ([0, 1, 1, 0], dict(test_fraction=1.), 'test_fraction must be in'), ([0, 1, 1, 0], dict(layout='CHW'), 'layout must be one of'), ([True, False, True, True], {}, 'labels must be integers')])
def test_arrays_refuse(labels, kw, message):
    with pytest.raises(ValueError, match=message): from_arrays(np.zeros((4, 2)), labels, **kw)


@pytest.mark.parametrize('x', [None, 'abc', [['a'], ['b']], [[1, 2], [3]], [[None], [1]], np.zeros((2, 0)), np.zeros((2, 3), bool), np.zeros((2, 3), complex), np.zeros((2, 4, 4), np.uint16), [[1e39], [0.]]])
def test_arrays_refuse_inputs_that_are_no_numbers(x):
    with pytest.raises(ValueError, match='^x must be'): from_arrays(x, [0, 1])


def test_arrays_refuse_by_name():
    for kw, message in ((dict(class_names=3), 'class_names must be'), (dict(test_fraction=.5, seed='x'), 'seed must be'), (dict(true_label=[0, None, 0, 1]), 'true_label|labels')):
        with pytest.raises(ValueError, match=message): from_arrays(np.zeros((4, 2)), [0, 1, 1, 0], **kw)
    with pytest.raises(ValueError, match='labels must be integers, got None'): from_arrays(np.zeros((4, 2)), None, class_names='ab')
    assert from_arrays(np.eye(2, dtype='>f4'), np.array([0, 1], '>i4')).x.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize('size', [None, float('nan'), 2.5, (3, 'a'), (3,), True, 'ab', 0])
def test_folder_refuses_sizes(size, tmp_path):
    with pytest.raises(ValueError, match='size must be'): from_folder(tmp_path, size=size)


@pytest.mark.parametrize('seed', range(4))
def test_split_is_stratified_disjoint_and_keeps_rows(seed):
    rng = np.random.default_rng(seed)
    y = np.concatenate([rng.choice(4, 100, p=[.5, .3, .15, .05]), [0, 1, 2, 3, 4]])
    ds = from_arrays(np.arange(105.)[:, None], y, true_label=y[::-1].copy(), test_fraction=.2, seed=seed, class_names='abcde')
    assert torch.equal(ds.x[:, 0], ds.index.float()) and ds.given_label.tolist() == y[ds.index].tolist()
    rows = set(ds.x_test[:, 0].int().tolist())
    assert rows | set(ds.index.tolist()) == set(range(105)) and not rows & set(ds.index.tolist())
    assert ds.y_test.tolist() == y[::-1][ds.x_test[:, 0].long()].tolist()
    share = np.bincount(ds.y_test, minlength=5)/np.bincount(y, minlength=5)
    assert (abs(share*np.bincount(y, minlength=5) - .2*np.bincount(y, minlength=5)) <= 1).all() and (np.bincount(ds.true_label, minlength=5) > 0).all()


# ---------------------------------------------------------------- image folder

def test_folder_of_mixed_images(tmp_path):
    root = tmp_path/'my photos'
    for c in ('b two', 'a one'): (root/c).mkdir(parents=True)
    (root/'.hidden').mkdir(), (root/'__MACOSX').mkdir()
    rgb = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(root/'a one'/'1 x.png')
    Image.fromarray(rgb[:, :, 0]).save(root/'a one'/'2.PNG')
    Image.fromarray(np.full((7, 9), 256*200 + 7, np.uint16)).save(root/'a one'/'3.png')
    Image.fromarray(np.full((7, 9), 9, np.uint16)).save(root/'a one'/'4 dark.png')
    Image.fromarray(np.dstack([rgb, np.zeros((7, 9), np.uint8)])).save(root/'b two'/'alpha.png')
    Image.fromarray(rgb).convert('P').save(root/'b two'/'p.gif')
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb.transpose(1, 0, 2).copy()).save(root/'b two'/'turned.png', exif=exif)
    (root/'b two'/'notes.txt').write_text('no image'), (root/'b two'/'.DS_Store').write_bytes(b'x'), (root/'b two'/'._p.png').write_bytes(b'x')
    ds = from_folder(root, size=(7, 9))
    assert ds.class_names == ('a one', 'b two') and ds.name == 'my photos' and ds.true_label is None and len(ds.x_test) == 0
    assert [Path(p).name for p in ds.paths] == ['1 x.png', '2.PNG', '3.png', '4 dark.png', 'alpha.png', 'p.gif', 'turned.png']
    assert np.array_equal(ds.x[0].numpy(), rgb.transpose(2, 0, 1))
    assert np.array_equal(ds.x[1].numpy(), np.stack([rgb[:, :, 0]]*3))
    assert (ds.x[2] == 200).all() and (ds.x[3] == 0).all() and (ds.x[4] == 255).all()
    assert np.array_equal(ds.x[6].numpy(), np.rot90(rgb.transpose(1, 0, 2), -1).transpose(2, 0, 1))
    assert from_folder(root, size=4).x.shape == (7, 3, 4, 4)


@pytest.fixture
def album(tmp_path):
    for c in ('cat', 'dog'):
        (tmp_path/'train'/c).mkdir(parents=True), (tmp_path/'test'/c).mkdir(parents=True)
        for i in range(8): Image.new('RGB', (5, 5), (i, 0, 0)).save(tmp_path/'train'/c/f'{i}.png')
        Image.new('RGB', (5, 5), (99, 0, 0)).save(tmp_path/'test'/c/'t.png')
    return tmp_path


def test_folder_with_test_folder_or_fraction(album):
    ds = from_folder(album/'train', size=5, test_path=album/'test')
    assert (ds.n, ds.y_test.tolist(), ds.x_test[:, 0, 0, 0].tolist()) == (16, [0, 1], [99, 99])
    part = from_folder(album/'train', size=5, test_fraction=.25)
    assert (part.n, part.y_test.bincount().tolist()) == (12, [2, 2])
    whole = from_folder(album/'train', size=5)
    assert torch.equal(part.x, whole.x[part.index]) and part.paths == tuple(whole.paths[i] for i in part.index)


def test_folder_names_what_is_wrong(album):
    with pytest.raises(ValueError, match=r'class folder .*test must hold images itself, got only sub-folders'): from_folder(album)
    with pytest.raises(FileNotFoundError, match='is not a folder'): from_folder(album/'none')
    with pytest.raises(ValueError, match='test_fraction must be 0'): from_folder(album/'train', test_path=album/'test', test_fraction=.1)
    with pytest.raises(ValueError, match='size'): from_folder(album/'train', size=(3, 3, 3))
    (album/'test'/'cow').mkdir()
    with pytest.raises(ValueError, match='cow is no class of the training folder, which has cat, dog'): from_folder(album/'train', size=5, test_path=album/'test')
    blob = (album/'train'/'cat'/'3.png').read_bytes()
    (album/'train'/'cat'/'3.png').write_bytes(blob[:len(blob)//2])
    (album/'train'/'dog'/'0.png').write_bytes(b'')
    with pytest.raises(ValueError, match=r'2 of 16 images cannot be read.*3\.png.*0\.png'): from_folder(album/'train', size=5)


def test_folder_skips_on_request_and_keeps_ranks(album, capsys):
    (album/'train'/'cat'/'3.png').write_bytes(b'junk')
    ds = from_folder(album/'train', size=5, unreadable='skip')
    assert 'left out 1 of 16' in capsys.readouterr().out
    assert ds.index.tolist() == [i for i in range(16) if i != 3] and ds.x[:, 0, 0, 0].tolist() == [0, 1, 2, 4, 5, 6, 7, *range(8)]


# ---------------------------------------------------------------- official formats

def test_digits_hold_the_images_of_scikit_learn():
    from sklearn.datasets import load_digits
    ds, raw = load_dataset('digits'), load_digits()
    ours = sorted([*zip(ds.x.flatten(1).tolist(), ds.given_label.tolist()), *zip(ds.x_test.flatten(1).tolist(), ds.y_test.tolist())])
    assert ours == sorted((np.floor(i*255/16 + .5).astype(int).ravel().tolist(), int(t)) for i, t in zip(raw.images, raw.target))
    assert (ds.n, len(ds.x_test), ds.noise, ds.n_classes, ds.x.max().item()) == (1437, 360, 'clean', 10, 255)


def test_mini_cifar10(tmp_path):
    x, y, xt, yt = write_cifar10(tmp_path)
    ds = load_dataset('cifar10', tmp_path, download=False)
    assert np.array_equal(ds.x.numpy(), x) and ds.given_label.tolist() == y == ds.true_label.tolist() and ds.index.tolist() == list(range(35))
    assert np.array_equal(ds.x_test.numpy(), xt) and ds.y_test.tolist() == yt and list(ds.class_names) == NAMES10 and ds.verified is False
    assert load_dataset('cifar10', tmp_path/'cifar-10-batches-py', download=False).fingerprint == ds.fingerprint
    assert load_dataset('cifar10', str(tmp_path), download=False).fingerprint == ds.fingerprint


def test_root_from_the_environment(tmp_path, monkeypatch):
    write_cifar10(tmp_path)
    monkeypatch.setenv('NOISYMEM_DATA', str(tmp_path))
    assert load_dataset('cifar10', download=False).n == 35


def test_mini_cifar100(tmp_path):
    (x, fine, coarse), (xt, ft, ct) = write_cifar100(tmp_path)
    a, b = (load_dataset(k, tmp_path, download=False) for k in ('cifar100', 'cifar100_coarse'))
    assert np.array_equal(a.x.numpy(), x) and a.given_label.tolist() == fine and a.y_test.tolist() == ft and a.n_classes == 100
    assert np.array_equal(b.x_test.numpy(), xt) and b.given_label.tolist() == coarse and b.y_test.tolist() == ct and b.n_classes == 20


@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist'])
@pytest.mark.parametrize('where', ['{}/raw', '{}', '.'])
@pytest.mark.parametrize('zipped', [True, False])
def test_mini_mnist(tmp_path, name, where, zipped):
    sub = {'mnist': ('MNIST', 'mnist'), 'fashion_mnist': ('FashionMNIST', 'fashion_mnist')}[name]
    (x, y), (xt, yt) = write_mnist(tmp_path/where.format(sub[0] if 'raw' in where else sub[1]), zipped)
    ds = load_dataset(name, tmp_path, download=False)
    assert np.array_equal(ds.x.numpy(), x[:, None]) and ds.given_label.tolist() == y.tolist() and ds.y_test.tolist() == yt.tolist() and np.array_equal(ds.x_test[:, 0], xt)
    assert ds.verified is (False if zipped else None)


def test_mnist_is_not_taken_for_fashion(tmp_path):
    write_mnist(tmp_path, first=data._FIRST_TEN['mnist'])
    load_dataset('mnist', tmp_path, download=False)
    with pytest.raises(ValueError, match='belongs to mnist, not to fashion_mnist'): load_dataset('fashion_mnist', tmp_path, download=False)


def test_mini_svhn(tmp_path):
    (x, y), (xt, yt) = write_svhn(tmp_path)
    ds = load_dataset('svhn', tmp_path, download=False)
    assert ds.given_label[0] == 0 and all(ds.x[i].permute(1, 2, 0).numpy().tobytes() == x[..., i].tobytes() for i in range(12))
    assert ds.given_label.tolist() == [v%10 for v in y[:, 0].tolist()] and ds.y_test.tolist() == [v%10 for v in yt[:, 0].tolist()]
    savemat(tmp_path/'test_32x32.mat', {'X': xt, 'y': yt - 1})
    with pytest.raises(ValueError, match=r'y must be in \[1, 10\]'): load_dataset('svhn', tmp_path, download=False)
    savemat(tmp_path/'test_32x32.mat', {'X': xt.transpose(3, 0, 1, 2), 'y': yt})
    with pytest.raises(ValueError, match=r'X must be uint8 \(32, 32, 3, N\)'): load_dataset('svhn', tmp_path, download=False)


# ---------------------------------------------------------------- damage

def damage(path, how):
    blob = bytearray(path.read_bytes())
    if how == 'truncated': blob = blob[:len(blob)*2//3]
    elif how == 'empty': blob = b''
    elif how == 'flipped': blob[len(blob)//2] ^= 0x40
    path.write_bytes(bytes(blob))


@pytest.mark.parametrize('how', ['truncated', 'empty', 'flipped'])
@pytest.mark.parametrize('file', ['train-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz'])
def test_damaged_gz(tmp_path, how, file):
    write_mnist(tmp_path)
    damage(tmp_path/file, how)
    with pytest.raises(ValueError, match=f'{file} is damaged'): load_dataset('mnist', tmp_path, download=False)


def test_damaged_idx_says_expected_and_found(tmp_path):
    write_mnist(tmp_path, zipped=False)
    p = tmp_path/'train-images-idx3-ubyte'
    p.write_bytes(p.read_bytes()[:-1])
    with pytest.raises(ValueError, match='asks for 9,424 bytes, found 9,423'): load_dataset('mnist', tmp_path, download=False)
    write_mnist(tmp_path, zipped=False)
    (tmp_path/'train-labels-idx1-ubyte').write_bytes(idx(np.zeros(11, np.uint8)))
    with pytest.raises(ValueError, match=r'\(12, 28, 28\) for labels of shape \(11,\)'): load_dataset('mnist', tmp_path, download=False)
    (tmp_path/'train-labels-idx1-ubyte').write_bytes(idx(np.full(12, 10, np.uint8)))
    with pytest.raises(ValueError, match=r'labels of mnist must be in \[0, 10\)'): load_dataset('mnist', tmp_path, download=False)


@pytest.mark.parametrize('how', ['truncated', 'empty', 'flipped'])
def test_damaged_mat(tmp_path, how):
    write_svhn(tmp_path)
    damage(tmp_path/'train_32x32.mat', how)
    with pytest.raises(ValueError, match='train_32x32.mat is damaged.*expected MD5 e26d'): load_dataset('svhn', tmp_path, download=False)


@pytest.mark.parametrize('how', ['truncated', 'empty'])
def test_damaged_batch(tmp_path, how):
    write_cifar10(tmp_path)
    damage(tmp_path/'cifar-10-batches-py'/'data_batch_3', how)
    with pytest.raises(ValueError, match='data_batch_3 is damaged.*expected MD5 54ebc0.*found [0-9a-f]{32} and [0-9,]+ bytes'): load_dataset('cifar10', tmp_path, download=False)


def test_batch_of_the_published_size_must_be_the_published_one(tmp_path, monkeypatch):
    write_cifar10(tmp_path)
    folder = tmp_path/'cifar-10-batches-py'
    table = {f: (md5((folder/f).read_bytes()), (folder/f).stat().st_size) for f in data._CIFAR_FILES['cifar10']}
    monkeypatch.setitem(data._CIFAR_FILES, 'cifar10', table)
    assert load_dataset('cifar10', tmp_path, download=False).verified is True
    whole = (folder/'data_batch_2').read_bytes()
    for at in (len(whole)//2, len(whole) - 60):
        blob = bytearray(whole)
        blob[at] ^= 1
        (folder/'data_batch_2').write_bytes(blob)
        with pytest.raises(ValueError, match=f'data_batch_2 is damaged.*expected MD5 {md5(whole)}, found {md5(bytes(blob))}'): load_dataset('cifar10', tmp_path, download=False)
    (folder/'data_batch_2').write_bytes((folder/'data_batch_4').read_bytes())
    with pytest.raises(ValueError, match='data_batch_2 is damaged.*it is data_batch_4 under another name'): load_dataset('cifar10', tmp_path, download=False)


@pytest.mark.parametrize('change, message', [
    (dict(labels=[0]*6), r'data must be uint8 \(6, 3072\)'), (dict(data=np.zeros((7, 3071), np.uint8)), r'data must be uint8 \(7, 3072\)'), (dict(data=np.zeros((7, 3072))), 'data must be uint8'),
    (dict(data=[1, 2]), 'data must be uint8'), (dict(labels=[0, 1, 2, 3, 4, 5, 10]), r'must be in \[0, 10\), got values from 0 to 10'), (dict(labels=[-1]*7), r'must be in \[0, 10\)')])
def test_wrong_content_of_a_batch(tmp_path, change, message):
    write_cifar10(tmp_path)
    p = tmp_path/'cifar-10-batches-py'/'data_batch_1'
    p.write_bytes(pickle.dumps({**pickle.loads(p.read_bytes()), **change}, protocol=2))
    with pytest.raises(ValueError, match=message): load_dataset('cifar10', tmp_path, download=False)


def test_malicious_pickles_are_refused_and_not_run(tmp_path):
    write_cifar10(tmp_path)
    p, trace = tmp_path/'cifar-10-batches-py'/'test_batch', tmp_path/'trace'
    for content in (Bomb(trace), {'data': Bomb(trace), 'labels': [0]}):
        p.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(ValueError, match='test_batch is damaged.*system'): load_dataset('cifar10', tmp_path, download=False)
    torch.save({'clean_label': Bomb(trace)}, tmp_path/'CIFAR-10_human.pt')
    with pytest.raises(ValueError, match='CIFAR-10_human.pt cannot be read safely'): load_cifar_n(tmp_path, 'cifar10', download=False)
    assert not trace.exists()


def test_missing_data_in_one_sentence(tmp_path):
    for name, what in (('cifar10', 'cifar-10-python.tar.gz'), ('cifar100', 'cifar-100-python'), ('mnist', 'train-images-idx3-ubyte.gz'), ('fashion_mnist', 'FashionMNIST'), ('svhn', 'train_32x32.mat')):
        with pytest.raises(FileNotFoundError, match=what) as e: load_dataset(name, tmp_path/'none', download=False)
        assert str(tmp_path) in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(FileNotFoundError, match='CIFAR-10_human.pt'): load_cifar_n(tmp_path, 'cifar10', download=False)
    assert not (tmp_path/'none').exists()
    write_cifar10(tmp_path)
    (tmp_path/'cifar-10-batches-py'/'data_batch_2').unlink()
    with pytest.raises(FileNotFoundError, match='data_batch_2 into cifar-10-batches-py'): load_dataset('cifar10', tmp_path, download=False)
    with pytest.raises(ValueError, match="name must be one of 'digits'"): load_dataset('cifar11')


# ---------------------------------------------------------------- archives and downloads

def make_tar(path, folder):
    with tarfile.open(path, 'w:gz') as t: t.add(folder, arcname=folder.name)
    return path.read_bytes()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    "A miniature cifar-10-python.tar.gz and its true content; the address table knows its checksum."
    truth = write_cifar10(tmp_path/'src')
    blob = make_tar(tmp_path/'cifar.tgz', tmp_path/'src'/'cifar-10-batches-py')
    monkeypatch.setitem(data.SOURCES, 'cifar10', (Source('cifar-10-python.tar.gz', md5(blob), ('http://127.0.0.1:9/none',)),))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    return blob, truth


def put(root, blob):
    root.mkdir(exist_ok=True)
    (root/'cifar-10-python.tar.gz').write_bytes(blob)
    return root


def test_archive_is_unpacked(archive, tmp_path):
    blob, (x, y, *_) = archive
    root = put(tmp_path/'root', blob)
    ds = load_dataset('cifar10', root, download=False)
    assert np.array_equal(ds.x.numpy(), x) and ds.given_label.tolist() == y
    (root/'cifar-10-batches-py'/'data_batch_2').unlink()
    assert load_dataset('cifar10', root, download=False).fingerprint == ds.fingerprint
    (root/'cifar-10-python.tar.gz').unlink()
    assert load_dataset('cifar10', root, download=False).fingerprint == ds.fingerprint
    assert not [p for p in root.iterdir() if p.name.startswith('.unpack')]


@pytest.mark.parametrize('how', ['truncated', 'empty', 'flipped'])
def test_tampered_archive(archive, tmp_path, how):
    root = put(tmp_path/'root', archive[0])
    damage(root/'cifar-10-python.tar.gz', how)
    bad = (root/'cifar-10-python.tar.gz').read_bytes()
    with pytest.raises(ValueError, match=f'cifar-10-python.tar.gz is damaged.*expected MD5 {md5(archive[0])}, found {md5(bad)} and {len(bad):,} bytes'): load_dataset('cifar10', root)
    assert not (root/'cifar-10-batches-py').exists()


def test_archive_cannot_write_outside(archive, tmp_path, monkeypatch):
    evil = io.BytesIO()
    with tarfile.open(fileobj=evil, mode='w:gz') as t:
        member = tarfile.TarInfo('../../escaped')
        member.size = 4
        t.addfile(member, io.BytesIO(b'evil'))
    root = put(tmp_path/'root', evil.getvalue())
    monkeypatch.setitem(data.SOURCES, 'cifar10', (Source('cifar-10-python.tar.gz', md5(evil.getvalue()), ()),))
    with pytest.raises(ValueError, match='cannot be unpacked'): load_dataset('cifar10', root)
    assert not list(tmp_path.rglob('escaped'))


class Handler(http.server.BaseHTTPRequestHandler):
    files, asked = {}, []

    def do_GET(self):
        self.asked.append(self.path)
        blob, sent = self.files.get(self.path, (None, 0))
        if blob is None: return self.send_error(404)
        self.send_response(200)
        self.send_header('Content-Length', str(len(blob)))
        self.end_headers()
        self.wfile.write(blob[:sent])

    def log_message(self, *a): pass


@pytest.fixture
def server(archive, monkeypatch):
    "Serves `Handler.files`: path -> (content, how many of its bytes are sent before the line breaks)."
    http_server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    base = f'http://127.0.0.1:{http_server.server_port}'
    (source,) = data.SOURCES['cifar10']
    monkeypatch.setitem(data.SOURCES, 'cifar10', (source._replace(urls=(f'{base}/a', f'{base}/b')),))
    Handler.files, Handler.asked = {}, []
    yield Handler
    http_server.shutdown()
    http_server.server_close()


def left(root): return sorted(p.name for p in root.iterdir() if not p.name.endswith('.lock'))


def test_download(server, archive, tmp_path):
    blob, (x, *_) = archive
    server.files['/a'] = (blob, len(blob))
    ds = load_dataset('cifar10', tmp_path/'deep'/'root')
    assert np.array_equal(ds.x.numpy(), x) and server.asked == ['/a']
    assert left(tmp_path/'deep'/'root') == ['cifar-10-batches-py', 'cifar-10-python.tar.gz']
    load_dataset('cifar10', tmp_path/'deep'/'root')
    assert server.asked == ['/a']


def test_second_address_after_not_found_or_wrong_file(server, archive, tmp_path):
    blob, _ = archive
    server.files['/b'] = (blob, len(blob))
    load_dataset('cifar10', tmp_path/'r1')
    server.files['/a'] = (b'<html>please log in</html>', 26)
    load_dataset('cifar10', tmp_path/'r2')
    assert server.asked == ['/a', '/b']*2


def test_wrong_checksum(server, archive, tmp_path):
    blob = bytearray(archive[0])
    blob[100] ^= 1
    server.files['/a'] = (bytes(blob), len(blob))
    with pytest.raises(ValueError, match=f'/a gave another file.*expected MD5 {md5(archive[0])}, found {md5(bytes(blob))}'): load_dataset('cifar10', tmp_path/'root')
    assert left(tmp_path/'root') == []


def test_interrupted_transfer_then_from_scratch(server, archive, tmp_path):
    blob, (x, *_) = archive
    server.files['/a'] = (blob, len(blob)//2)
    with pytest.raises(FileNotFoundError, match=f'put the folder cifar-10-batches-py or the archive cifar-10-python.tar.gz there .*of {len(blob):,} bytes.*404') as e: load_dataset('cifar10', tmp_path/'root')
    assert '\n' not in str(e.value) and left(tmp_path/'root') == []
    (tmp_path/'root'/'cifar-10-python.tar.gz.part').write_bytes(b'left by a killed process')
    server.files['/a'] = (blob, len(blob))
    assert np.array_equal(load_dataset('cifar10', tmp_path/'root').x.numpy(), x)
    assert left(tmp_path/'root') == ['cifar-10-batches-py', 'cifar-10-python.tar.gz']


def test_no_network(archive, tmp_path):
    with pytest.raises(FileNotFoundError, match='the download failed: http://127.0.0.1:9/none') as e: load_dataset('cifar10', tmp_path/'root')
    assert '\n' not in str(e.value)


def test_only_missing_files_are_downloaded(server, tmp_path, monkeypatch):
    write_mnist(tmp_path/'src')
    write_mnist(tmp_path/'root'/'MNIST'/'raw')
    base = data.SOURCES['cifar10'][0].urls[0][:-1]
    blobs = {s.file: (tmp_path/'src'/s.file).read_bytes() for s in data.SOURCES['mnist']}
    monkeypatch.setitem(data.SOURCES, 'mnist', tuple(Source(f, md5(b), (base + f,)) for f, b in blobs.items()))
    server.files = {'/' + f: (b, len(b)) for f, b in blobs.items()}
    (tmp_path/'root'/'MNIST'/'raw'/'t10k-labels-idx1-ubyte.gz').unlink()
    ds = load_dataset('mnist', tmp_path/'root')
    assert server.asked == ['/t10k-labels-idx1-ubyte.gz'] and ds.n == 12


def test_two_threads_download_once(server, archive, tmp_path):
    blob, _ = archive
    server.files['/a'] = (blob, len(blob))
    made, threads = [], [threading.Thread(target=lambda: made.append(load_dataset('cifar10', tmp_path/'root').fingerprint)) for _ in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(made) == 3 and len(set(made)) == 1 and server.asked == ['/a']


# ---------------------------------------------------------------- CIFAR-N

@pytest.fixture
def mini_n(tmp_path):
    _, y, *_ = write_cifar10(tmp_path, per_batch=20)
    return tmp_path, np.array(y)


def test_mini_cifar_n(mini_n):
    root, y = mini_n
    write_cifar_n(root, y, worse_label=(y + 1)%10)
    sets = load_cifar_n(root, 'cifar10', download=False, verify=False)
    assert list(sets) == ['clean', 'aggre', 'worst', 'rand1', 'rand2', 'rand3'] and all(v.dtype == torch.int64 and v.shape == (100,) for v in sets.values())
    assert (sets['worst'].numpy() == (y + 1)%10).all() and (sets['clean'].numpy() == y).all()
    with pytest.raises(ValueError, match='clean_label is not the published one'): load_cifar_n(root, 'cifar10', download=False)


@pytest.mark.parametrize('where', ['.', 'data', 'cifar-10-100n/data'])
def test_label_file_places(mini_n, where):
    root, y = mini_n
    (root/where).mkdir(parents=True, exist_ok=True)
    write_cifar_n(root/where, y)
    assert load_cifar_n(root, 'cifar10', download=False, verify=False)['rand1'].tolist() == y.tolist()


def test_label_file_in_another_order_or_length(mini_n):
    root, y = mini_n
    load = functools.partial(load_cifar_n, root, 'cifar10', download=False, verify=False)
    write_cifar_n(root, np.random.default_rng(0).permutation(y))
    with pytest.raises(ValueError, match='another order'): load()
    one = y.copy()
    i, j = 0, int(np.flatnonzero(y != y[0])[0])
    one[[i, j]] = one[[j, i]]
    write_cifar_n(root, one)
    with pytest.raises(ValueError, match='in 2 of 100 places, first at index 0: the same labels in another order'): load()
    write_cifar_n(root, (y + 1)%10)
    with pytest.raises(ValueError, match='in 100 of 100 places.*labels of other data'): load()
    for n in (99, 101):
        write_cifar_n(root, np.resize(y, n))
        with pytest.raises(ValueError, match=f'clean_label of .* must have 100 entries, got {n}'): load()
    write_cifar_n(root, y, random_label2=y[:-1])
    with pytest.raises(ValueError, match='random_label2 of .* must have 100 entries, got 99'): load()
    write_cifar_n(root, y, random_label2=np.where(np.arange(100) == 5, 10, y))
    with pytest.raises(ValueError, match=r'random_label2 of .* must be in \[0, 10\), got values from 0 to 10'): load()
    torch.save({'clean_label': y}, root/'CIFAR-10_human.pt')
    with pytest.raises(ValueError, match='must hold aggre_label, worse_label'): load()
    torch.save([1, 2], root/'CIFAR-10_human.pt')
    with pytest.raises(ValueError, match='must hold clean_label'): load()


@pytest.mark.parametrize('how', ['truncated', 'empty'])
def test_damaged_label_file(mini_n, how):
    root, y = mini_n
    write_cifar_n(root, y)
    damage(root/'CIFAR-10_human.pt', how)
    with pytest.raises(ValueError, match='CIFAR-10_human.pt cannot be read safely.*MD5'): load_cifar_n(root, 'cifar10', download=False, verify=False)


def test_labels_against_a_part_of_the_data(mini_n):
    root, y = mini_n
    write_cifar_n(root, y)
    ds = sample(load_dataset('cifar10', root, download=False), 30, seed=1)
    assert len(load_cifar_n(root, ds, verify=False)['rand1']) == 100
    bad = with_labels(ds, ds.given_label, 'x', true_label=ds.true_label.roll(1))
    with pytest.raises(ValueError, match='another order'): load_cifar_n(root, bad, verify=False)
    with pytest.raises(ValueError, match='true_label'): load_cifar_n(root, replace(ds, true_label=None), verify=False)
    with pytest.raises(ValueError, match="dataset must be one of 'cifar10', 'cifar100', got 'digits'"): load_cifar_n(root, load_dataset('digits'))


def test_coarse_labels_of_old_files(tmp_path):
    (_, fine, coarse), _ = write_cifar100(tmp_path, n=60)
    load = functools.partial(load_cifar_n, tmp_path, 'cifar100', download=False, verify=False)
    write_cifar100_n(tmp_path, fine, coarse)
    assert list(load()) == ['clean', 'noisy100', 'clean_coarse', 'noisy_coarse'] and load()['clean_coarse'].tolist() == coarse
    write_cifar100_n(tmp_path, fine, [c%12 for c in coarse])
    with pytest.raises(ValueError, match='clean_coarse_label must have 20 distinct values, got 12'): load()
    write_cifar100_n(tmp_path, fine, coarse, [c%12 for c in coarse])
    with pytest.raises(ValueError, match='noisy_coarse_label must have 20 distinct values, got 12'): load()
    write_cifar100_n(tmp_path, fine, coarse[::-1], coarse)
    with pytest.raises(ValueError, match='clean_coarse_label of .* another order'): load()


# ---------------------------------------------------------------- genuine data

def test_genuine_cifar10_equals_torchvision(real_data):
    from torchvision.datasets import CIFAR10
    ds = load_dataset('cifar10', real_data, download=False)
    for train, x, y in ((True, ds.x, ds.given_label), (False, ds.x_test, ds.y_test)):
        tv = CIFAR10(real_data, train=train)
        assert np.array_equal(tv.data.transpose(0, 3, 1, 2), x.numpy()) and tv.targets == y.tolist()
    assert list(ds.class_names) == tv.classes and ds.verified is True and ds.given_label[:12].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3, 4, 7]
    assert np.allclose(data._input_stats(ds.x)[0], ds.mean, atol=1e-3)


def test_genuine_cifar100(real_data):
    ds, coarse = load_dataset('cifar100', real_data, download=False), load_dataset('cifar100_coarse', real_data, download=False)
    assert (ds.n, ds.given_label.bincount().tolist(), ds.class_names[:2]) == (50000, [500]*100, ('apple', 'aquarium_fish'))
    assert ds.given_label[:3].tolist() == [19, 29, 0] and coarse.given_label.bincount().tolist() == [2500]*20
    pairs = {(f, c) for f, c in zip(ds.given_label.tolist(), coarse.given_label.tolist())}
    assert len(pairs) == 100 and ds.verified in (True, False)


WRONG = {'cifar10': {'clean': 0, 'aggre': 4505, 'worst': 20104, 'rand1': 8617, 'rand2': 9061, 'rand3': 8820}, 'cifar100': {'clean': 0, 'noisy100': 20100}}
SUMS = {'aggre': '7ecf9ffabaa79f2ab33a43859cccf355', 'worst': 'e8e1ca656c5172396a5824cc450dd035', 'rand1': '4552cf5ec3cda62bb938fd5b498f19be', 'rand2': '54c39bc498ddafb31e753ce95ebf3aed',
        'rand3': 'ad639b52312b5b6d616fea4689ca4b54', 'noisy100': '53374a351a1055aad320aef2fff6a160', 'clean_coarse': 'dd66a5bfeca203b51e9a7163b4e217a2', 'noisy_coarse': 'ae7fe4e4c04a1179d577f282bb7e9cbb'}


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_genuine_label_sets(real_data, name):
    sets = load_cifar_n(real_data, name, download=False)
    assert {k: int((sets[k] != sets['clean']).sum()) for k in WRONG[name]} == WRONG[name]
    for k in set(SUMS) & set(sets): assert md5(sets[k].numpy().astype('<i8').tobytes()) == SUMS[k]
    if name == 'cifar10':
        r = torch.stack([sets[f'rand{i}'] for i in (1, 2, 3)])
        assert torch.equal(sets['worst'] != sets['clean'], (r != sets['clean']).any(0)) and bool((r == sets['worst']).any(0).all())
    else: assert int((sets['noisy_coarse'] != sets['clean_coarse']).sum()) == 13202


def test_genuine_noisy_labels_in_another_order_are_noticed(real_data, tmp_path):
    "Also where the clean labels are right, by the published checksum."
    ds = load_dataset('cifar10', real_data, download=False)
    content = data._torch_load(real_data/'CIFAR-10_human.pt')
    content['random_label1'] = content['random_label1'][np.random.default_rng(0).permutation(50000)]
    torch.save(content, tmp_path/'CIFAR-10_human.pt')
    with pytest.raises(ValueError, match='random_label1 is not the published one'): load_cifar_n(tmp_path, ds)
    content['clean_label'] = content['clean_label'][::-1].copy()
    torch.save(content, tmp_path/'CIFAR-10_human.pt')
    with pytest.raises(ValueError, match='another order'): load_cifar_n(tmp_path, ds)

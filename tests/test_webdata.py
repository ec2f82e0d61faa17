"Web data: the loaders against slow references, the genuine Tiny-ImageNet part, and everything that can be wrong with a folder."
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from noisymem import noise as nz
from noisymem import web_data as wd
from noisymem.data import load_dataset, take
from noisymem.runs import RunConfig, load_or_make, prepare


@pytest.fixture(scope='session')
def shared_results(tmp_path_factory): return tmp_path_factory.mktemp('web results')


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch, shared_results):
    "A folder of its own for every test, but for the miniatures that names stand for."
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path/'results'))
    monkeypatch.setenv('NOISYMEM_DATA', str(tmp_path/'data'))
    (tmp_path/'results').mkdir()
    (shared_results/'miniatures').mkdir(exist_ok=True)
    (tmp_path/'results'/'miniatures').symlink_to(shared_results/'miniatures')
    return tmp_path/'results'


@pytest.fixture(scope='session')
def drawn(tmp_path_factory):
    "One miniature of each kind; a test that changes one makes a copy."
    root = tmp_path_factory.mktemp('drawn')
    for kind in wd.MINIATURES: wd.make_miniature(root/kind, kind, seed=3, per_class=6)
    return root


@pytest.fixture
def clothes(drawn, tmp_path): return Path(shutil.copytree(drawn/'clothing1m', tmp_path/'clothes'))


def lines(path): return path.read_text().split('\n')


# ---------------------------------------------------------------- lists

@pytest.mark.parametrize('blob', [b'a.jpg\nb,c.jpg\n', b'a.jpg\r\nb,c.jpg\r\n', b'\xef\xbb\xbfa.jpg\nb,c.jpg', b'\n\na.jpg\n\n \nb,c.jpg\n\n', b'a.jpg\rb,c.jpg'])
def test_keys_whatever_the_line_ends(tmp_path, blob):
    (tmp_path/'k.txt').write_bytes(blob)
    assert wd.read_keys(tmp_path/'k.txt') == ['a.jpg', 'b,c.jpg']


@pytest.mark.parametrize('text, expected', [('a b.jpg 3', {'a b.jpg': 3}), ('a.jpg\t3', {'a.jpg': 3}), ('a.jpg   03', {'a.jpg': 3}), ('a.jpg 3\na.jpg 3', {'a.jpg': 3}), ('1,2.jpg 0', {'1,2.jpg': 0})])
def test_labels_are_split_at_the_last_space(tmp_path, text, expected):
    (tmp_path/'kv.txt').write_text(text)
    assert wd.read_labels(tmp_path/'kv.txt', 14) == expected


@pytest.mark.parametrize('key', ['../a.jpg', 'images/../../a.jpg', '/etc/passwd', 'images/..', 'a\\b.jpg', 'C:/a.jpg', 'c:a.jpg', '..', 'a\0b'])
def test_keys_that_lead_out_are_refused(tmp_path, key):
    for text, read in ((key, wd.read_keys), (f'{key} 1', lambda p: wd.read_labels(p, 14))):
        (tmp_path/'k.txt').write_text('fine.jpg 0\n' + text if read is not wd.read_keys else 'fine.jpg\n' + text)
        with pytest.raises(ValueError, match=r'k.txt, line 2: a path must lead into the folder'): read(tmp_path/'k.txt')


@pytest.mark.parametrize('key', ['a..b.jpg', 'images/...jpg', '..a/b.jpg'])
def test_dots_inside_a_name_are_fine(tmp_path, key):
    (tmp_path/'k.txt').write_text(key)
    assert wd.read_keys(tmp_path/'k.txt') == [key]


@pytest.mark.parametrize('text, message', [
    ('a.jpg', 'line 1: must be a path and a class number'), ('a.jpg 1\nb.jpg x', 'line 2: must be a path and a class number'), ('a.jpg 1.0', 'class number'), ('a.jpg -1', 'class number'),
    ('a.jpg 14', r'line 1: class must be in \[0, 14\), got 14'), ('a.jpg 99999999999999999999', r'class must be in \[0, 14\)'), ('3', 'class number'),
    ('a.jpg 1\nb.jpg 2\na.jpg 2', r"line 3: 'a.jpg' has class 1 already, got 2"), ('', 'at least one line'), ('\r\n \r\n', 'at least one line')])
def test_broken_label_lists(tmp_path, text, message):
    (tmp_path/'kv.txt').write_text(text)
    with pytest.raises(ValueError, match=message) as e: wd.read_labels(tmp_path/'kv.txt', 14)
    assert 'kv.txt' in str(e.value) and '\n' not in str(e.value)


def test_lists_that_are_no_text(tmp_path):
    (tmp_path/'k.txt').write_bytes('T恤'.encode('gb18030'))
    with pytest.raises(ValueError, match='k.txt must be UTF-8 text'): wd.read_keys(tmp_path/'k.txt')
    with pytest.raises(FileNotFoundError, match='gone.txt is not there'): wd.read_keys(tmp_path/'gone.txt')
    with pytest.raises(FileNotFoundError, match='is not there'): wd.read_keys(tmp_path)


# ---------------------------------------------------------------- pictures

def slow_square(im, size, fit):
    "Slice, then average over all source pixels by torch."
    x = torch.from_numpy(np.asarray(im.convert('RGB')).transpose(2, 0, 1).copy())
    h, w = x.shape[1:]
    if fit == 'crop': x = x[:, :, (w - h)//2:(w - h)//2 + h] if w > h else x[:, (h - w)//2:(h - w)//2 + w]
    return torch.nn.functional.interpolate(x[None].float(), (size, size), mode='bilinear', antialias=True, align_corners=False)[0].numpy()


@pytest.mark.parametrize('shape', [(64, 64), (40, 90), (91, 40), (7, 200), (1, 33), (300, 211)])
@pytest.mark.parametrize('fit', wd.FITS)
@pytest.mark.parametrize('size', [1, 16, 64])
def test_square_against_two_steps(tmp_path, shape, fit, size):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (max(shape[0]//6, 1), max(shape[1]//6, 1), 3), dtype=np.uint8)
    im = Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC)
    im.save(tmp_path/'a.png')
    got, slow = wd.read_square(tmp_path/'a.png', size, fit), slow_square(im, size, fit)
    assert got.shape == (3, size, size) and got.dtype == np.uint8
    assert np.abs(got - slow).max() <= 1.1, 'Pillow rounds between its two passes'
    im.save(tmp_path/'a.jpg', quality=97, subsampling=0)
    assert np.abs(wd.read_square(tmp_path/'a.jpg', size, fit).astype(int) - got).mean() < 6, 'a JPEG decoded at a fraction looks the same'


def test_every_mode_becomes_rgb(tmp_path):
    grey = np.tile(np.linspace(10, 240, 16).astype(np.uint8), (16, 1))
    rgb = np.stack([grey]*3, 2)
    pictures = {'l.png': Image.fromarray(grey), 'la.png': Image.fromarray(grey).convert('LA'), 'p.gif': Image.fromarray(rgb).quantize(256), 'i16.png': Image.fromarray(grey.astype(np.uint16)*257), 'cmyk.jpg': Image.fromarray(rgb).convert('CMYK'), '1.png': Image.fromarray(grey).convert('1')}
    for name, im in pictures.items():
        im.save(tmp_path/name, **(dict(quality=100) if name.endswith('jpg') else {}))
        got = wd.read_square(tmp_path/name, 16)
        assert got.shape == (3, 16, 16), name
        if name != '1.png': assert np.abs(got.astype(int) - rgb.transpose(2, 0, 1)).max() <= 4, name
    half = np.dstack([rgb, np.zeros((16, 16), np.uint8)])
    Image.fromarray(half).save(tmp_path/'clear.png')
    assert (wd.read_square(tmp_path/'clear.png', 16) == 255).all(), 'transparent is white'


def test_rotation_of_the_camera(tmp_path):
    a = np.zeros((20, 40, 3), np.uint8)
    a[:, :20, 0] = 250
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(a).save(tmp_path/'a.jpg', quality=100, exif=exif, subsampling=0)
    got = wd.read_square(tmp_path/'a.jpg', 10, 'stretch')
    assert got[0, 1].min() > 200 and got[0, -2].max() < 50, 'left became top'


# ---------------------------------------------------------------- decoding once

def pictures(folder, n=9, size=12, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng, files = np.random.default_rng(seed), [folder/f'{i}.png' for i in range(n)]
    x = rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    for f, a in zip(files, x): Image.fromarray(a).save(f)
    return files, torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def count_reads(monkeypatch):
    "Count how often a picture is opened."
    seen, real = [], wd.read_square
    monkeypatch.setattr(wd, '_try_read', lambda path, size, fit: (seen.append(str(path)), real(path, size, fit))[1])
    return seen


def test_decoded_once_and_mapped(tmp_path, monkeypatch, results):
    files, x = pictures(tmp_path/'a')
    seen = count_reads(monkeypatch)
    first, ok = wd.load_images(files, 12)
    assert torch.equal(first, x) and ok.all() and len(seen) == 9
    again, _ = wd.load_images(files, 12)
    assert torch.equal(again, x) and len(seen) == 9
    again[0] = 0
    assert torch.equal(wd.load_images(files, 12)[0], x), 'writing into a mapped tensor does not change the file'
    assert sorted(p.suffix for p in (results/'images').iterdir()) == ['.bin', '.json', '.lock']


def test_a_part_and_another_order_are_other_results(tmp_path):
    files, x = pictures(tmp_path/'a')
    wd.load_images(files, 12)
    assert torch.equal(wd.load_images(files[::-1], 12)[0], x.flip(0))
    assert torch.equal(wd.load_images(files[2:5], 12)[0], x[2:5])
    assert wd.load_images(files, 6)[0].shape == (9, 3, 6, 6) and not torch.equal(wd.load_images(files, 6, 'stretch')[0], x[:, :, :6, :6])


def test_a_changed_picture_is_seen_even_at_the_same_length(tmp_path):
    files, x = pictures(tmp_path/'a')
    wd.load_images(files, 12)
    blob = files[3].read_bytes()
    other = Image.fromarray(np.zeros((12, 12, 3), np.uint8))
    other.save(files[3])
    short = files[3].read_bytes()
    files[3].write_bytes(short + b'\0'*(len(blob) - len(short)) if len(short) < len(blob) else short)
    os.utime(files[3], ns=(1, 1))
    assert files[3].stat().st_size == len(blob)
    assert (wd.load_images(files, 12)[0][3] == 0).all()


@pytest.mark.parametrize('how', ['cut', 'no json', 'broken json', 'longer'])
def test_a_damaged_cache_is_made_again(tmp_path, results, how):
    files, x = pictures(tmp_path/'a')
    wd.load_images(files, 12)
    (bin_,) = (results/'images').glob('*.bin')
    if how == 'cut': os.truncate(bin_, 100)
    if how == 'longer': bin_.write_bytes(bin_.read_bytes() + b'x')
    if how == 'no json': bin_.with_suffix('.json').unlink()
    if how == 'broken json': bin_.with_suffix('.json').write_text('{"n": ')
    assert torch.equal(wd.load_images(files, 12)[0], x)


def test_unreadable_pictures_are_named_or_left_out(tmp_path, capsys):
    files, x = pictures(tmp_path/'a')
    files[1].write_bytes(b'')
    files[4].write_bytes(files[4].read_bytes()[:60])
    files[7].write_text('no picture')
    for _ in range(2):
        with pytest.raises(ValueError, match=r"3 of 9 images cannot be read \(unreadable='skip' leaves them out\)") as e: wd.load_images(files, 12)
        assert all(f'{i}.png (' in str(e.value) for i in (1, 4, 7)) and '\n' not in str(e.value)
    got, ok = wd.load_images(files, 12, unreadable='skip')
    assert ok.tolist() == [i not in (1, 4, 7) for i in range(9)] and torch.equal(got, x[ok])
    assert 'left out 3 of 9 images' in capsys.readouterr().out
    Image.fromarray(x[1].permute(1, 2, 0).numpy()).save(files[1])
    with pytest.raises(ValueError, match='2 of 9 images'): wd.load_images(files, 12)


def test_truncated_jpegs_are_unreadable(tmp_path):
    im = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    im.save(tmp_path/'a.jpg')
    im.save(tmp_path/'b.jpg')
    (tmp_path/'a.jpg').write_bytes((tmp_path/'a.jpg').read_bytes()[:700])
    with pytest.raises(ValueError, match=r'a.jpg \(OSError\)'): wd.load_images([tmp_path/'a.jpg', tmp_path/'b.jpg'], 8)


def test_nothing_readable_nothing_there_nothing_asked(tmp_path):
    (tmp_path/'a.jpg').touch()
    with pytest.raises(ValueError, match='1 of 1 images cannot be read'): wd.load_images([tmp_path/'a.jpg'], 8, unreadable='skip')
    with pytest.raises(FileNotFoundError, match='2 of 3 images are not there: .*b.jpg, .*c.jpg$'): wd.load_images([tmp_path/f'{c}.jpg' for c in 'abc'], 8)
    with pytest.raises(ValueError, match='files must name at least one image'): wd.load_images([], 8)
    os.mkfifo(tmp_path/'pipe.jpg')
    with pytest.raises(FileNotFoundError, match='2 of 3 images are not there'): wd.load_images([tmp_path/'a.jpg', tmp_path, tmp_path/'pipe.jpg'], 8)


@pytest.mark.parametrize('size', [0, -3, 2.5, True, '8', None, (8, 8)])
def test_sizes_that_are_none(tmp_path, size, drawn):
    with pytest.raises(ValueError, match='size must be a positive integer'): wd.load_images(pictures(tmp_path/'a')[0], size)
    with pytest.raises(ValueError, match='size must be a positive integer'): wd.load_animal10n(drawn/'animal10n_binary', size)


def test_a_full_disk_is_told_before_work_starts(tmp_path, monkeypatch):
    files, _ = pictures(tmp_path/'a')
    monkeypatch.setattr(wd.shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ValueError, match=r'decoding 9 images at 12 pixels takes 0.0 GB in .* set NOISYMEM_RESULTS'): wd.load_images(files, 12)


def test_kill_and_go_on(tmp_path, results, monkeypatch):
    "Killed with half the pictures done, a second process decodes the rest only, and the result is that of an undisturbed one."
    files, x = pictures(tmp_path/'a', n=1200, size=8)
    script = f'''
import time
from noisymem import web_data as wd
real = wd.read_square
def slow(*a): time.sleep(.004); return real(*a)
wd._try_read = slow
wd.load_images({[str(f) for f in files]!r}, 8)
'''
    child = subprocess.Popen([sys.executable, '-c', script], env=os.environ | dict(OMP_NUM_THREADS='1'))
    end = time.time() + 60
    while time.time() < end and not any(p.stat().st_size >= 512 for p in (results/'images').glob('*.flags')): time.sleep(.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (flags,) = (results/'images').glob('*.flags')
    done = flags.stat().st_size
    assert 512 <= done < 1200 and not list((results/'images').glob('*.bin'))
    with open(flags.with_suffix('.part'), 'ab') as f: f.write(b'a chunk that was written by half')
    seen = count_reads(monkeypatch)
    assert torch.equal(wd.load_images(files, 8)[0], x) and len(seen) == 1200 - done


def test_resume_when_the_pixels_are_behind_the_flags(tmp_path):
    part, flags, row = tmp_path/'a.part', tmp_path/'a.flags', 10
    part.write_bytes(bytes(25))
    flags.write_bytes(bytes([1, 0, 1, 1, 1]))
    assert wd._resume(part, flags, row) == 3 and part.stat().st_size == 20 and flags.read_bytes() == bytes([1, 0, 1])
    part.unlink()
    assert wd._resume(part, flags, row) == 0 and flags.stat().st_size == 0


def test_two_processes_at_once(tmp_path):
    files, x = pictures(tmp_path/'a', n=300, size=8)
    script = f'from noisymem.web_data import load_images\nprint(int(load_images({[str(f) for f in files]!r}, 8)[0].long().sum()))'
    children = [subprocess.Popen([sys.executable, '-c', script], env=os.environ | dict(OMP_NUM_THREADS='1'), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [c.communicate(timeout=400)[0].strip() for c in children] == [str(int(x.long().sum()))]*2


# ---------------------------------------------------------------- parts

@pytest.mark.parametrize('seed', range(5))
def test_parts(seed):
    rng = np.random.default_rng(seed)
    k, n = int(rng.integers(2, 9)), int(rng.integers(20, 200))
    y = torch.from_numpy(np.concatenate([np.repeat(np.arange(k), 5), rng.integers(0, k, n)]))
    m = int(rng.integers(1, 5*k))
    p = wd.choose_part(y, m, k, balanced=True, seed=seed)
    assert len(p) == m == len(p.unique()) and (p[1:] > p[:-1]).all()
    counts = y[p].bincount(minlength=k)
    assert counts.max() - counts.min() <= 1 and (counts[:-1] >= counts[1:]).all()
    assert torch.equal(p, wd.choose_part(y, m, k, balanced=True, seed=seed))
    q = wd.choose_part(y, m, k, seed=seed)
    assert len(q.unique()) == m and (q[1:] > q[:-1]).all()


def test_balanced_part_that_cannot_be():
    y = torch.tensor([0]*10 + [1]*2)
    with pytest.raises(ValueError, match='got 6: class 1 has 2 of 3'): wd.choose_part(y, 6, 2, balanced=True)
    assert wd.choose_part(y, 0, 2, balanced=True).tolist()[-2:] == [10, 11]
    with pytest.raises(ValueError, match='class 2 has 0 of 1'): wd.choose_part(y, 3, 3, balanced=True)
    with pytest.raises(ValueError, match='class 2 has 0 of 1'): wd.choose_part(y, 0, 3, balanced=True)


@pytest.mark.parametrize('n', [-1, 13, 2.5, True, '3', None])
def test_part_sizes_that_are_none(n):
    with pytest.raises(ValueError, match=r'n_examples must be an integer in \[0, 12\]'): wd.choose_part(torch.zeros(12, dtype=torch.int64), n, 2)


# ---------------------------------------------------------------- Clothing1M

def reference(folder, subset):
    "Keys with given and true classes, by dictionaries read in the plainest way."
    kv = {n: dict((l[:l.rindex(' ')], int(l[l.rindex(' ') + 1:])) for l in lines(folder/f'{n}_label_kv.txt') if l) for n in ('clean', 'noisy')}
    keys = lines(folder/f'{"noisy" if subset == "noisy" else "clean"}_train_key_list.txt')
    rows = [(i, k, kv['clean' if subset == 'clean' else 'noisy'].get(k), kv['clean'].get(k)) for i, k in enumerate(keys)]
    return [r for r in rows if r[2] is not None], kv


@pytest.mark.parametrize('subset', ['noisy', 'both', 'clean'])
@pytest.mark.parametrize('test', ['test', 'val'])
def test_clothing1m_against_the_lists(clothes, subset, test):
    rows, kv = reference(clothes, subset)
    ds = wd.load_clothing1m(clothes, subset, size=24, test=test)
    assert ds.index.tolist() == [r[0] for r in rows] and ds.given_label.tolist() == [r[2] for r in rows]
    if subset == 'noisy': assert ds.true_label is None
    else: assert ds.true_label.tolist() == [r[3] for r in rows]
    assert ds.noise == ('clean' if subset == 'clean' else 'given') and ds.class_names == wd.CLOTHES and ds.verified is False
    assert ds.paths == tuple(str(clothes/r[1]) for r in rows)
    for i in range(0, ds.n, 7): assert np.array_equal(ds.x[i], wd.read_square(ds.paths[i], 24))
    held = lines(clothes/f'clean_{test}_key_list.txt')
    assert ds.y_test.tolist() == [kv['clean'][k] for k in held] and np.array_equal(ds.x_test[1], wd.read_square(clothes/held[1], 24))


def test_clothing1m_both_is_wrong_as_often_as_drawn(clothes):
    true, given = wd.clothing1m_overlap(clothes)
    both = wd.load_clothing1m(clothes, 'both', size=8)
    assert torch.equal(both.true_label, true) and torch.equal(both.given_label, given) and .2 < both.noise_rate < .6


def test_clothing1m_where_every_noisy_image_has_a_clean_label(clothes):
    "All or nothing: then the truth is known."
    shutil.copy(clothes/'clean_train_key_list.txt', clothes/'noisy_train_key_list.txt')
    rows, kv = reference(clothes, 'clean')
    with open(clothes/'noisy_label_kv.txt', 'a') as f: f.write(''.join(f'{k} 0\n' for _, k, *_ in rows if k not in kv['noisy']))
    ds = wd.load_clothing1m(clothes, size=8)
    assert ds.true_label.tolist() == [r[3] for r in rows]


@pytest.mark.parametrize('where', ['root', 'below', 'annotations', 'data folder'])
def test_clothing1m_wherever_it_lies(clothes, tmp_path, where):
    whole = wd.load_clothing1m(clothes, size=8)
    root = clothes
    if where == 'below': shutil.move(clothes, (root := tmp_path/'sets')/'Clothing1M')
    if where == 'data folder':
        shutil.move(clothes, tmp_path/'data'/'clothing1m')
        root = None
    if where == 'annotations':
        (clothes/'annotations').mkdir()
        for f in clothes.glob('*.txt'): shutil.move(f, clothes/'annotations')
    assert wd.load_clothing1m(root, size=8).fingerprint == whole.fingerprint


def test_windows_lists_give_the_same(clothes):
    whole = wd.load_clothing1m(clothes, 'both', size=8)
    for f in clothes.glob('*.txt'): f.write_bytes(b'\xef\xbb\xbf' + f.read_bytes().replace(b'\n', b'\r\n'))
    assert wd.load_clothing1m(clothes, 'both', size=8).fingerprint == whole.fingerprint


def test_only_the_part_is_decoded(clothes, monkeypatch):
    seen = count_reads(monkeypatch)
    whole = reference(clothes, 'noisy')[0]
    ds = wd.load_clothing1m(clothes, size=8, n_examples=28, balanced=True, seed=5)
    assert len(seen) == 28 + 14 and ds.given_label.bincount().tolist() == [2]*14
    assert [whole[i][2] for i in ds.index] == ds.given_label.tolist()
    assert not torch.equal(ds.index, wd.load_clothing1m(clothes, size=8, n_examples=28, balanced=True, seed=6).index)


def test_skipped_images_keep_everything_in_step(clothes, capsys):
    whole = wd.load_clothing1m(clothes, 'both', size=8)
    bad = [3, 10]
    for i in bad: Path(whole.paths[i]).write_bytes(b'')
    held = lines(clothes/'clean_test_key_list.txt')
    (clothes/held[0]).write_bytes(b'\xff\xd8\xff')
    with pytest.raises(ValueError, match='2 of 21 images cannot be read'): wd.load_clothing1m(clothes, 'both', size=8)
    ds = wd.load_clothing1m(clothes, 'both', size=8, unreadable='skip')
    rest = take(whole, [i for i in range(whole.n) if i not in bad])
    for k in ('x', 'given_label', 'true_label', 'index'): assert torch.equal(getattr(ds, k), getattr(rest, k)), k
    assert ds.paths == rest.paths and torch.equal(ds.y_test, whole.y_test[1:]) and torch.equal(ds.x_test, whole.x_test[1:])


@pytest.mark.parametrize('file', ['category_names_eng.txt', 'clean_label_kv.txt', 'noisy_label_kv.txt', 'noisy_train_key_list.txt', 'clean_test_key_list.txt'])
def test_a_missing_list_is_named(clothes, file):
    (clothes/file).unlink()
    with pytest.raises(FileNotFoundError, match=f'{file} is not there'): wd.load_clothing1m(clothes, size=8)


def test_lists_not_asked_for_need_not_be_there(clothes):
    for f in ('noisy_label_kv.txt', 'noisy_train_key_list.txt', 'clean_val_key_list.txt'): (clothes/f).unlink()
    assert wd.load_clothing1m(clothes, 'clean', size=8).n == 42


def test_images_that_are_not_there(clothes):
    shutil.rmtree(clothes/'images')
    with pytest.raises(FileNotFoundError, match=r'84 of 84 images are not there: .*images/'): wd.load_clothing1m(clothes, size=8)


def test_labels_that_do_not_fit(clothes):
    keys = lines(clothes/'noisy_train_key_list.txt')
    kv = (clothes/'noisy_label_kv.txt').read_text()
    (clothes/'noisy_label_kv.txt').write_text('\n'.join(l for l in kv.split('\n') if l and not l.startswith(keys[5])))
    with pytest.raises(ValueError, match=f"noisy_train_key_list.txt: 1 of 84 paths have no class in noisy_label_kv.txt, first '{keys[5]}'"): wd.load_clothing1m(clothes, size=8)
    (clothes/'noisy_label_kv.txt').write_text(kv.replace('jpg 13', 'jpg 14', 1))
    with pytest.raises(ValueError, match=r'noisy_label_kv.txt, line \d+: class must be in \[0, 14\), got 14'): wd.load_clothing1m(clothes, size=8)
    (clothes/'noisy_label_kv.txt').write_text(kv)
    (clothes/'category_names_eng.txt').write_text('\n'.join(wd.CLOTHES[:13]))
    with pytest.raises(ValueError, match=r'class must be in \[0, 13\), got 13'): wd.load_clothing1m(clothes, size=8)
    (clothes/'category_names_eng.txt').write_text('Shirt\nShirt')
    with pytest.raises(ValueError, match='category_names_eng.txt must hold at least 2 different names'): wd.load_clothing1m(clothes, size=8)


def test_training_on_the_test_set_is_refused(clothes):
    held = lines(clothes/'clean_test_key_list.txt')
    with open(clothes/'noisy_train_key_list.txt', 'a') as f: f.write('\n' + held[2])
    with open(clothes/'noisy_label_kv.txt', 'a') as f: f.write(f'{held[2]} 1\n')
    with pytest.raises(ValueError, match='1 of its paths are in clean_test_key_list.txt too'): wd.load_clothing1m(clothes, size=8)
    assert wd.load_clothing1m(clothes, size=8, test='val').n == 85


def test_no_overlap(clothes):
    rows, kv = reference(clothes, 'noisy')
    (clothes/'noisy_label_kv.txt').write_text(''.join(f'{k} {g}\n' for _, k, g, _ in rows))
    with pytest.raises(ValueError, match='none of its 42 paths has a class in noisy_label_kv.txt'): wd.load_clothing1m(clothes, 'both', size=8)
    with pytest.raises(ValueError, match='no path is in both'): wd.clothing1m_overlap(clothes)


def test_published_lengths_are_verified(clothes, monkeypatch, capsys):
    monkeypatch.setattr(wd, '_LISTS', {k: (f, len(lines(clothes/f))) for k, (f, _) in wd._LISTS.items()})
    assert wd.load_clothing1m(clothes, size=8).verified is None
    keys = lines(clothes/'noisy_train_key_list.txt')
    (clothes/'noisy_train_key_list.txt').write_text('\n'.join(keys[:-1]))
    assert wd.load_clothing1m(clothes, size=8).verified is False, 'a list that was cut on the way'
    assert 'paths in noisy_train_key_list.txt: 83, published are 84' in capsys.readouterr().out


@pytest.mark.parametrize('key', ['../../outside.jpg', '/etc/hostname'])
def test_no_picture_from_outside(clothes, key):
    with open(clothes/'noisy_train_key_list.txt', 'a') as f: f.write(f'\n{key}')
    with pytest.raises(ValueError, match='line 85: a path must lead into the folder'): wd.load_clothing1m(clothes, size=8)


# ---------------------------------------------------------------- Animal-10N

def test_animal10n_raw(drawn, tmp_path):
    root = Path(shutil.copytree(drawn/'animal10n', tmp_path/'a'))
    (root/'training'/'.DS_Store').touch()
    ds = wd.load_animal10n(root)
    files = sorted((root/'training').glob('*.jpg'))
    assert ds.given_label.tolist() == [int(f.name.split('_')[0]) for f in files] and ds.paths == tuple(map(str, files)) and ds.index.tolist() == list(range(60))
    assert all(np.array_equal(ds.x[i], np.asarray(Image.open(files[i]).convert('RGB')).transpose(2, 0, 1)) for i in range(0, 60, 11)), 'at their own size pixels are untouched'
    assert ds.true_label is None and ds.class_names == wd.ANIMALS and ds.verified is False and len(ds.x_test) == 10
    assert ds.y_test.bincount(minlength=10).tolist() == [1]*10


def test_animal10n_binary_with_shuffled_numbers(drawn, tmp_path):
    raw = (drawn/'animal10n_binary'/'data_batch_1.bin').read_bytes()
    records = [raw[i:i + 12296] for i in range(0, len(raw), 12296)]
    order = np.random.default_rng(0).permutation(len(records))
    for b, part in enumerate(np.array_split(order, 12), 1): (tmp_path/f'data_batch_{b}.bin').write_bytes(b''.join(records[i] for i in part))
    shutil.copy(drawn/'animal10n_binary'/'test_batch.bin', tmp_path)
    ds = wd.load_animal10n(tmp_path)
    assert ds.index.tolist() == list(range(60)) == [int.from_bytes(r[:4], 'big') for r in records]
    assert ds.given_label.tolist() == [int.from_bytes(r[4:8], 'big') for r in records]
    for i in (0, 17, 59): assert bytes(ds.x[i].numpy().tobytes()) == records[i][8:]
    small = wd.load_animal10n(tmp_path, size=16)
    assert np.allclose(small.x[3], slow_square(Image.fromarray(ds.x[3].permute(1, 2, 0).numpy()), 16, 'crop'), atol=1.1)


def test_animal10n_that_is_broken(drawn, tmp_path):
    root = Path(shutil.copytree(drawn/'animal10n', tmp_path/'a'))
    shutil.rmtree(root/'testing')
    with pytest.raises(FileNotFoundError, match='testing is not there'): wd.load_animal10n(root)
    for name in ('10_a.jpg', 'cat_a.jpg', '_a.jpg', '5.jpg'):
        (root/'training'/name).touch()
        with pytest.raises(ValueError, match=f'{name} must begin with its class'): wd.load_animal10n(root)
        (root/'training'/name).unlink()
    (root/'testing').mkdir()
    with pytest.raises(ValueError, match='testing must hold images, got none'): wd.load_animal10n(root)
    binary = Path(shutil.copytree(drawn/'animal10n_binary', tmp_path/'b'))
    blob = (binary/'data_batch_1.bin').read_bytes()
    for bad, message in ((b'', r'got 0 bytes'), (blob[:-5], r'records of 12,296 bytes'), (blob + blob[:12296], 'no two records'), (blob[:4] + bytes([0, 0, 0, 10]) + blob[8:], r'classes in .*data_batch_1.bin must be in \[0, 10\)')):
        (binary/'data_batch_1.bin').write_bytes(bad)
        with pytest.raises(ValueError, match=message): wd.load_animal10n(binary)
    (binary/'data_batch_1.bin').write_bytes(blob)
    (binary/'test_batch.bin').unlink()
    with pytest.raises(FileNotFoundError, match='test_batch.bin is not there'): wd.load_animal10n(binary)
    with pytest.raises(FileNotFoundError, match='animal10n is not in .*: put the folders training and testing'): wd.load_animal10n(tmp_path/'nothing')


# ---------------------------------------------------------------- Tiny-ImageNet

@pytest.fixture(scope='session')
def genuine(shared, tmp_path_factory):
    "The twenty genuine classes."
    ready = Path(os.environ.get('NOISYMEM_TEST_DATA', '-'))/'tiny-imagenet-200'
    if ready.is_dir(): return ready
    dest = tmp_path_factory.mktemp('tiny')
    subprocess.run([sys.executable, shared/'data'/'unpack.py', dest, 'tiny'], check=True, capture_output=True)
    return dest/'tiny-imagenet-200'


def test_genuine_tiny_imagenet_as_torchvision_has_it(genuine, shared_results, monkeypatch):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(shared_results))
    from torchvision.datasets import ImageFolder
    theirs, ours = ImageFolder(genuine/'train'), wd.load_tiny_imagenet(genuine, order='sorted')
    assert ours.n == 10_000 and [p for p, _ in theirs.samples] == list(ours.paths) and theirs.targets == ours.given_label.tolist() and ours.index.tolist() == list(range(10_000))
    for i in (0, 500, 7777): assert np.array_equal(np.asarray(theirs[i][0]).transpose(2, 0, 1), ours.x[i])
    ids, notes = sorted(lines(genuine/'wnids.txt'))[1:], dict(l.split('\t')[:2] for l in lines(genuine/'val'/'val_annotations.txt') if l)
    assert len(ours.x_test) == 1000 and ours.y_test.tolist() == [ids.index(w) for w in notes.values()] and ours.y_test.bincount().tolist() == [50]*20
    modes = {Image.open(p).mode for p in ours.paths[:2000]}
    assert modes == {'L', 'RGB'}, 'grey ones are among them'


def test_genuine_tiny_imagenet_in_both_orders(genuine, shared_results, monkeypatch):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(shared_results))
    a, b = wd.load_tiny_imagenet(genuine), wd.load_tiny_imagenet(genuine, order='sorted')
    wnids = [w for w in lines(genuine/'wnids.txt') if w]
    assert wnids != sorted(wnids) and torch.equal(a.x, b.x) and torch.equal(a.index, b.index) and torch.equal(a.x_test, b.x_test)
    assert [Path(p).name.split('_')[0] for p in a.paths] == [wnids[y] for y in a.given_label]
    assert [a.class_names[y] for y in a.y_test] == [b.class_names[y] for y in b.y_test] and not torch.equal(a.y_test, b.y_test)
    five = wd.load_tiny_imagenet(genuine, classes=5)
    assert five.class_names == a.class_names[:5] and five.n == 2500 and torch.equal(five.x, a.x[torch.isin(a.index, five.index)]) and len(five.x_test) == 250
    named = wd.load_tiny_imagenet(genuine, classes=[wnids[3], wnids[1]], order='sorted')
    assert [Path(named.paths[0]).name.split('_')[0], Path(named.paths[-1]).name.split('_')[0]] == sorted([wnids[3], wnids[1]])
    assert a.class_names[0] == 'Egyptian cat' and a.verified is False


def tiny(drawn, tmp_path): return Path(shutil.copytree(drawn/'tiny_imagenet', tmp_path/'tiny'))


def test_broken_tiny_imagenet(drawn, tmp_path):
    root = tiny(drawn, tmp_path)
    wnids, notes = lines(root/'wnids.txt')[:-1], (root/'val'/'val_annotations.txt').read_text()
    first = root/'train'/wnids[0]/'images'
    def refused(message, error=ValueError):
        with pytest.raises(error, match=message) as e: wd.load_tiny_imagenet(root)
        assert '\n' not in str(e.value)
    for bad in ('x.JPEG', f'{wnids[1]}_3.JPEG', f'{wnids[0]}_500.JPEG', f'{wnids[0]}_03.JPEG', f'{wnids[0]}_3.jpg'):
        (first/bad).touch()
        refused(f'{bad} must be named {wnids[0]}_0.JPEG')
        (first/bad).unlink()
    (root/'val'/'val_annotations.txt').write_text(notes + 'val_99.JPEG\tn99999999\t0\t0\t1\t1\n')
    refused('line 11: must be a file and a class of wnids.txt')
    (root/'val'/'val_annotations.txt').write_text(notes + f'../x.JPEG\t{wnids[0]}\n')
    refused('line 11: a path must lead into')
    (root/'val'/'val_annotations.txt').write_text(notes + notes.split('\n')[0])
    refused("line 11: 'val_0.JPEG' stands there already")
    (root/'val'/'val_annotations.txt').write_text('nonsense')
    refused('line 1: must be a file and a class')
    (root/'val'/'val_annotations.txt').write_text(notes.replace('\n', '\r\n'))
    assert len(wd.load_tiny_imagenet(root).y_test) == 10
    shutil.move(root/'val'/'images', root/'val'/'other')
    refused('10 of 10 images are not there', FileNotFoundError)
    shutil.move(root/'val'/'other', root/'val'/'images')
    (root/'words.txt').write_text('n00000001\tentity\n')
    refused(f'words.txt must have a line for {wnids[0]}')
    (root/'wnids.txt').write_text('\n'.join([*wnids, wnids[0]]))
    refused('wnids.txt must hold WordNet numbers')
    (root/'wnids.txt').write_text('\n'.join([*wnids, 'n00000001']))
    refused('n00000001/images is not there', FileNotFoundError)
    (root/'val'/'val_annotations.txt').unlink()
    (root/'wnids.txt').write_text('\n'.join(wnids))
    refused('val_annotations.txt is not there', FileNotFoundError)


def test_order_of_wnids_decides_numbers_and_nothing_else(drawn, tmp_path):
    "The official list is in no order; another order gives other numbers, unless order='sorted'."
    root = tiny(drawn, tmp_path)
    wnids = lines(root/'wnids.txt')[:-1]
    assert wnids != sorted(wnids)
    before, by_id = wd.load_tiny_imagenet(root, size=16), wd.load_tiny_imagenet(root, order='sorted', size=16)
    (root/'wnids.txt').write_text('\n'.join(wnids[::-1]) + '\n')
    after = wd.load_tiny_imagenet(root, size=16)
    assert after.class_names == before.class_names[::-1] and torch.equal(after.given_label, 9 - before.given_label) and torch.equal(after.index, before.index) and torch.equal(after.x, before.x)
    assert wd.load_tiny_imagenet(root, order='sorted', size=16).fingerprint == by_id.fingerprint and torch.equal(by_id.index, before.index)
    (root/'wnids.txt').write_text('\n'.join(sorted(wnids)) + '\n')
    assert wd.load_tiny_imagenet(root, size=16).fingerprint == by_id.fingerprint


@pytest.mark.parametrize('classes', [1, 11, -1, 2.5, True, 'n1', None, [], ['nope']])
def test_classes_that_are_none(drawn, classes):
    with pytest.raises(ValueError, match='class'): wd.load_tiny_imagenet(drawn/'tiny_imagenet', classes)


def test_class_names_that_coincide(drawn, tmp_path):
    root = tiny(drawn, tmp_path)
    wnids = lines(root/'wnids.txt')[:-1]
    (root/'words.txt').write_text(''.join(f'{w}\t{"crane, bird" if i < 2 else f"thing {i}"}\n' for i, w in enumerate(wnids)))
    assert wd.load_tiny_imagenet(root).class_names[:3] == (f'crane ({wnids[0]})', f'crane ({wnids[1]})', 'thing 2')


# ---------------------------------------------------------------- miniatures and names

@pytest.mark.parametrize('kind', wd.MINIATURES)
def test_miniatures_are_reproducible_and_differ_by_seed(tmp_path, kind):
    tree = lambda root: {str(p.relative_to(root)): p.read_bytes() for p in root.rglob('*') if p.is_file()}
    a, b, c = (tree(wd.make_miniature(tmp_path/n, kind, seed=s, per_class=2)) for n, s in (('a', 1), ('b', 1), ('c', 2)))
    assert a == b and a != c and 'MINIATURE.txt' in a


def test_miniatures_overwrite_nothing(tmp_path):
    (tmp_path/'x').mkdir()
    wd.make_miniature(tmp_path/'x', 'animal10n', per_class=1)
    with pytest.raises(ValueError, match='folder must be empty or not there yet'): wd.make_miniature(tmp_path/'x', 'animal10n')
    (tmp_path/'file').touch()
    with pytest.raises(ValueError, match='folder must be empty'): wd.make_miniature(tmp_path/'file', 'animal10n')
    for n in (0, 501, 'many'):
        with pytest.raises(ValueError, match=r'per_class must be in \[1, 500\]'): wd.make_miniature(tmp_path/'y', 'animal10n', per_class=n)
    assert not (tmp_path/'y').exists()


def test_the_clothing_miniature_has_the_official_traps(drawn):
    folder = drawn/'clothing1m'
    assert {Image.open(p).mode for p in (folder/'images').rglob('*.jpg')} == {'RGB', 'L', 'CMYK'}
    assert not (folder/'clean_test_key_list.txt').read_text().endswith('\n') and lines(folder/'category_names_eng.txt')[:2] == ['T-Shirt', 'Shirt']
    assert all(re.fullmatch(r'images/(\d)/(\d\d)/\d+,\d+\1\2\.jpg', k) for k in lines(folder/'noisy_train_key_list.txt')), 'the folders are the last three digits, as in images/7/88/339645240,2782721788.jpg'


def test_a_network_learns_something_from_a_miniature(drawn):
    "Nearest class mean of the thumbnails is above chance on the clean test set, trained on clean labels."
    ds = load_dataset('clothing1m_mini:subset=clean,size=16')
    grey = lambda x: (lambda g: (g - g.median(1, keepdim=True)[0]).abs())(x.float().mean(1).flatten(1))
    a, b = grey(ds.x), grey(ds.x_test)
    a, b = a/a.norm(dim=1, keepdim=True), b/b.norm(dim=1, keepdim=True)
    centre = torch.stack([a[ds.given_label == c].mean(0) for c in range(14)])
    assert ((b@centre.T).argmax(1) == ds.y_test).float().mean() > 2/14


def test_names(drawn, tmp_path, results):
    commas = Path(shutil.copytree(drawn/'animal10n', tmp_path/'a, b=c'))
    ds = load_dataset(f'animal10n:size=16,fit=stretch,folder={commas}')
    assert ds.name == 'animal10n:size=16,fit=stretch' and str(commas) not in ds.name
    assert load_dataset('animal10n:fit=stretch', commas, size=16).name == ds.name
    assert load_dataset('animal10n', commas).name == load_dataset('animal10n:size=64', commas).name == 'animal10n'
    mini = load_dataset('clothing1m_mini:size=8,subset=both')
    assert mini.name == 'clothing1m_mini:subset=both,size=8' and load_dataset(mini.name).fingerprint == mini.fingerprint
    wnids = lines(drawn/'tiny_imagenet'/'wnids.txt')
    chosen = load_dataset('tiny_imagenet', drawn/'tiny_imagenet', classes=[wnids[4], wnids[2]], size=8)
    assert chosen.name == f'tiny_imagenet:classes={wnids[4]}+{wnids[2]},size=8' and load_dataset(chosen.name, drawn/'tiny_imagenet').fingerprint == chosen.fingerprint
    assert load_dataset('clothing1m_mini', tmp_path/'nowhere', size=8).n == 560


@pytest.mark.parametrize('name, message', [
    ('clothing1m:', 'not in'), ('clothing1m:size', 'NAME:OPTION=VALUE'), ('clothing1m:size=', 'NAME:OPTION=VALUE'), ('clothing1m:size=8,size=9', 'each option once'),
    ('clothing1m:colour=red', "option of clothing1m must be one of 'subset'"), ('clothing1m:root=x', 'option of clothing1m'), ('clothing1m_mini:folder=x', 'option of clothing1m_mini'), ('clothing1m:folder=', 'folder must be a path'),
    ('clothing1m_mini:size=1.5', 'size must be a positive integer'), ('clothing1m_mini:balanced=yes', 'balanced must be True or False'), ('clothing2m', "name must be one of 'digits'"), ('cifar10:size=3', 'name must be one of'),
    ('clothing1m_mini:n_examples=561', r'n_examples must be an integer in \[0, 560\]'), ('clothing1m_mini:seed=x', "seed must be an integer, got 'x'"), ('_mini', 'name must be one of'), (3, 'name must be one of')])
def test_names_that_are_none(name, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message): load_dataset(name)


def test_an_option_twice(drawn):
    with pytest.raises(ValueError, match='size must be given once'): load_dataset('animal10n:size=8', drawn/'animal10n', size=8)


# ---------------------------------------------------------------- runs, noise

def test_a_run_in_words(results):
    cfg = RunConfig(dataset='clothing1m_mini:size=8,n_examples=140,balanced=True', noise='given', model='mlp', recipe='digits', design='uniform', n_models=1)
    data, design = prepare(cfg)
    assert data.true_label is None and data.n == 140 and design.n == 140 and data.noise == 'given'
    again, _ = prepare(cfg)
    assert again.fingerprint == data.fingerprint
    both, design = prepare(RunConfig(dataset='clothing1m_mini:size=8,subset=both', noise='given', model='mlp', recipe='digits', n_models=1))
    assert both.noise_rate == both.noise_info['effective_rate'] > .2 and len(design.pool) == 2*int(both.is_noisy.sum())


def test_labels_as_they_came_and_as_truth(drawn):
    ds = load_dataset('animal10n', drawn/'animal10n', size=8)
    given = nz.add_noise(ds, 'given', seed=9)
    assert given.true_label is None and torch.equal(given.given_label, ds.given_label) and given.noise_info == dict(nominal_rate=None, effective_rate=None)
    assert nz.add_noise(ds, 'clean').noise_rate == 0, 'asked for, the given labels are taken as true'
    for bad in (dict(rate=.2), dict(radius=3)):
        with pytest.raises(ValueError): nz.add_noise(ds, 'given', **bad)


@pytest.mark.parametrize('kind, expected', [('uniform-0.5', .45), ('uniform-1', .9), ('symmetric-0.4', .4), ('pair-0.3', .3), ('symmetric_exact-0.25', .25), ('simulated_human-0.2', .2), ('synthetic:pair-.3', .3), ('cbn-0.3', .3)])
def test_nominal_and_effective_rate(kind, expected):
    ds = nz.add_noise(load_dataset('digits'), kind, seed=1)
    nominal = float(re.search(r'-([\d.]+)$', kind)[1])
    assert ds.noise_info['nominal_rate'] == nominal and ds.noise_info['effective_rate'] == ds.noise_rate == nz.noise_rate(ds.true_label, ds.given_label)
    assert abs(ds.noise_rate - expected) < .04
    part = take(ds, torch.arange(50))
    assert part.noise_info == ds.noise_info and part.noise_rate == part.is_noisy.double().mean().item(), 'of the whole set as drawn, and of the part'
    kept = nz.add_noise(ds, 'given')
    assert kept.noise_info == ds.noise_info and kept.noise == ds.noise and torch.equal(kept.true_label, ds.true_label)
    json.dumps(ds.noise_info)


def test_rates_of_labels_nobody_drew():
    clean = nz.add_noise(load_dataset('digits'), 'clean')
    assert clean.noise_info == dict(nominal_rate=None, effective_rate=0.)
    twin = nz.add_noise(nz.add_noise(load_dataset('digits'), 'pair', .3), 'synthetic:random', seed=2)
    assert twin.noise_info['effective_rate'] == twin.noise_rate and twin.noise_info['nominal_rate'] == 1


def test_random_twins_share_no_stream():
    "Against noise with the same seed, other twins and the truth a twin agrees as often as chance has it."
    ds = load_dataset('digits')
    n, k = ds.n, 10
    sets = {f'{kind} {seed}': nz.add_noise(ds, kind, rate, seed).given_label for kind, rate in (('uniform', 1.), ('uniform', .5), ('symmetric', .9)) for seed in range(3)}
    twins = {f'twin {s}': nz.random_twin(ds, s).given_label for s in range(4)}
    for a, x in twins.items():
        counts = x.bincount(minlength=k).double()
        assert ((counts - n/k)**2/(n/k)).sum() < 30, 'even over the classes (chi-square, 9 degrees of freedom)'
        for b, y in (sets | twins | dict(truth=ds.true_label)).items():
            if a != b: assert abs((x == y).double().mean() - 1/k) < 5*(.09/n)**.5, (a, b)
            for lag in (1, 2): assert abs((x[lag:] == y[:-lag]).double().mean() - 1/k) < 5*(.09/n)**.5, (a, b, lag)


def test_random_twins_repeat_and_keep_everything_else(drawn):
    state = torch.get_rng_state()
    ds = load_dataset('clothing1m', drawn/'clothing1m', size=8)
    a, b, c = (nz.random_twin(ds, s) for s in (5, 5, 6))
    assert torch.equal(a.given_label, b.given_label) and not torch.equal(a.given_label, c.given_label)
    assert a.true_label is None and a.x is ds.x and a.noise == 'random-s5' and a.noise_info == dict(nominal_rate=1., effective_rate=None)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match='rate must be None'): nz.add_noise(ds, 'random', .5)


def test_memory_of_a_large_set_stays_on_the_disk(tmp_path):
    "Twelve thousand pictures of 64 pixels are 147 MB on the disk; a part of them is taken without reading the rest."
    files, _ = pictures(tmp_path/'a', n=12, size=64)
    script = f'''
import resource, torch
from noisymem import web_data as wd
x, ok = wd.load_images({[str(f) for f in files]!r}*1000, 64)
del x
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
x, ok = wd.load_images({[str(f) for f in files]!r}*1000, 64)
part = x[:500].clone()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)/1024)
'''
    out = subprocess.run([sys.executable, '-c', script], env=os.environ | dict(OMP_NUM_THREADS='1'), capture_output=True, text=True, check=True).stdout
    assert float(out) < 60


# ---------------------------------------------------------------- the figure

@pytest.mark.parametrize('real', [False, True])
def test_the_figure_runs_on_a_folder_of_the_user(clothes, tmp_path, monkeypatch, real):
    "Cell by cell, from a folder with commas and Windows lists; claims of the paper bind only where the lists have their published lengths."
    import pandas as pd
    from noisymem.core import repo_root
    if real: monkeypatch.setattr(wd, '_LISTS', {k: (f, len(lines(clothes/f))) for k, (f, _) in wd._LISTS.items()})
    for f in clothes.glob('*.txt'): f.write_bytes(f.read_bytes().replace(b'\n', b'\r\n'))
    folder = shutil.move(clothes, tmp_path/'my photos, all of them')
    monkeypatch.setenv('NOISYMEM_FIGURE', str(tmp_path/'figure'))
    cells = [c for c in json.loads((repo_root()/'nbs'/'figs'/'fig_clothing1m.ipynb').read_text())['cells'] if c['cell_type'] == 'code']
    space, values = {}, dict(folder=str(folder), size=8, n_examples=42, contenders=[dict(model='mlp', width=.3), dict(model='linear')], rates=[.1, .01], schedules=['cosine'], recipe='digits', epochs=12)
    for c in cells[:-1]:
        exec(''.join(c['source']), space)
        if 'parameters' in c['metadata'].get('tags', []): space |= values
    data, drawn = space['data'], pd.read_csv(tmp_path/'figure'/'fig_clothing1m.csv')
    assert data.n == 42 and data.name == 'clothing1m:size=8,n_examples=42,balanced=True' and data.paths[0].startswith(str(folder))
    assert len(drawn) == 4 and drawn.zeta.notna().all() and set(drawn.region) <= {1, 2, 3, 4}
    assert pd.read_csv(tmp_path/'figure'/'fig_clothing1m_regions.csv').paper.tolist() == [.61799, .57893, .5125, .51415]
    bound = [c['claim'] for c in space['fig'].claims if c['tells']]
    assert ('share of wrong labels among images with both labels' in bound) == real

"Sources as people have them: everything odd is named in one sentence, everything good is kept."
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from noisymem.own_data import from_own_arrays, read_labels, read_own, sort_classes


def picture(path, mode='RGB', size=(12, 12), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for c in ('ant', 'bee'):
        for i in range(6): picture(tmp_path/'data'/c/f'{i}.png', seed=i)
    return tmp_path/'data'


def said(own, text): return [p for p in own.problems if text in p]


def test_a_plain_folder_has_nothing_to_tell(folder):
    own = read_own(folder)
    assert own.problems == () and own.data.n == 12 and own.data.x.shape[1:] == (3, 12, 12) and own.data.true_label is None
    assert own.data.paths[0] == os.path.join('ant', '0.png') and own.data.class_names == ('ant', 'bee')


def test_one_class_is_refused(folder):
    (folder/'bee').rename(folder.parent/'elsewhere')
    with pytest.raises(ValueError, match='at least 2 class folders.*got 1: with one class no label can be called wrong'): read_own(folder)


def test_a_class_of_which_nothing_is_readable_is_no_class(folder):
    for p in (folder/'bee').iterdir(): p.write_bytes(b'')
    with pytest.raises(ValueError, match="at least 2 classes, got 1"): read_own(folder)


def test_empty_and_damaged_files_are_named_and_the_others_kept(folder):
    (folder/'ant'/'zero.png').touch()
    (folder/'ant'/'text.jpg').write_text('hello')
    whole = picture(folder/'bee'/'cut.png', size=(64, 64)).read_bytes()
    (folder/'bee'/'cut.png').write_bytes(whole[:len(whole)//2])
    own = read_own(folder)
    assert own.data.n == 12
    for text in ('1 file is empty', '1 file is no picture', '1 file is damaged'): assert len(said(own, text)) == 1, own.problems
    assert said(own, 'zero.png') and said(own, 'text.jpg') and said(own, 'cut.png')
    assert own.data.index.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]


def test_mixed_modes_and_sizes(folder):
    for i, mode in enumerate(('L', 'P', 'CMYK', '1')): picture(folder/'ant'/f'm{i}.{"jpg" if mode == "CMYK" else "png"}', mode, (20 + i, 30))
    Image.new('RGBA', (9, 40), (0, 0, 0, 0)).save(folder/'bee'/'clear.png')
    Image.fromarray(np.full((15, 15), 40000, np.uint16)).save(folder/'bee'/'deep.png')
    own = read_own(folder)
    assert own.data.n == 18 and own.data.x.shape[1:] == (3, 32, 32)
    assert len(said(own, '7 sizes, from 12 x 12 to 23 x 30')) == 1 and len(said(own, 'modes (1, CMYK, I;16, L, P, RGB, RGBA)')) == 1
    clear, deep = (own.data.x[own.data.paths.index(os.path.join('bee', f'{n}.png'))] for n in ('clear', 'deep'))
    assert (clear == 255).all() and (deep == 40000 >> 8).all()


def test_three_images_in_a_class(folder):
    for i in range(3): picture(folder/'cat'/f'{i}.png', seed=20 + i)
    own = read_own(folder)
    assert own.data.n == 15 and said(own, 'fewer than 5 examples (cat: 3)')


def test_splits_deep_folders_loose_files_hidden_and_empty_ones(folder):
    picture(folder/'ant'/'deeper'/'x.png'), picture(folder/'loose.png'), picture(folder/'.trash'/'y.png'), (folder/'nothing').mkdir()
    own = read_own(folder)
    assert own.data.n == 13 and said(own, '1 picture lies in no class folder') and said(own, '1 class folder holds no picture: nothing')
    for s in ('train', 'val'): picture(folder.parent/'splits'/s/'ant'/'0.png')
    with pytest.raises(ValueError, match='holds the splits train, val, not classes'): read_own(folder.parent/'splits')


def test_paths_with_spaces_and_commas_in_a_table(folder):
    odd = folder/'a, "b" c'
    files = [picture(odd/f'{i}, x y.png', seed=i) for i in range(12)]
    pd.DataFrame(dict(path=[os.path.relpath(f, folder.parent) for f in files], label=['x, 1', 'y "2"']*6)).to_csv(folder.parent/'my table.csv', index=False)
    own = read_own(folder.parent/'my table.csv')
    assert own.problems == () and own.data.n == 12 and own.data.class_names == ('x, 1', 'y "2"') and (folder.parent/own.data.paths[3]).exists()


def test_a_table_names_what_is_missing(folder):
    rows = [(f'data/ant/{i}.png', 'a') for i in range(6)] + [(f'data/bee/{i}.png', 'b') for i in range(6)]
    rows += [('data/gone.png', 'a'), ('data/ant/0.png', 'b'), ('data/ant/1.png', '')]
    pd.DataFrame(rows, columns=['File', ' Label']).to_csv(folder.parent/'t.csv', index=False)
    own = read_own(folder.parent/'t.csv')
    assert own.data.n == 13 and said(own, "1 file is not there, so not scored: 'data/gone.png'") and said(own, '1 label is missing') and said(own, '2 rows repeat a file')
    assert own.data.index.tolist() == [*range(12), 13]


@pytest.mark.parametrize('text, message', [('', 'cannot be read as a CSV'), ('a,b\n1,2\n', 'must have a column label'), ('label\nx\ny\n', 'must have a column path, or numbers'), ('label,v\nx,red\ny,2\n', 'must have a column path, or numbers')])
def test_bad_tables(tmp_path, text, message):
    (tmp_path/'t.csv').write_text(text)
    with pytest.raises(ValueError, match=message): read_own(tmp_path/'t.csv')


def test_a_table_of_numbers(tmp_path):
    rng = np.random.default_rng(0)
    t = pd.DataFrame(rng.normal(size=(20, 3)), columns=list('abc')).assign(label=[1., 2.]*10)
    t.loc[3, 'b'] = np.nan
    t.to_csv(tmp_path/'t.csv', index=False)
    own = read_own(tmp_path/'t.csv')
    assert own.data.x.shape == (19, 3) and own.data.class_names == ('1', '2') and said(own, 'labels are floats (1.0)') and said(own, 'rows 3')


@pytest.mark.parametrize('labels, names', [(['b', 'a']*6, ('a', 'b')), ([1., 0.]*6, ('0', '1')), ([10, 9]*6, ('9', '10')), ([True, False]*6, ('False', 'True')), (['2.0', '1.0']*6, ('1', '2')), (['01', '2']*6, ('01', '2'))])
def test_labels_of_any_kind(labels, names): assert from_own_arrays(np.eye(12), np.array(labels)).data.class_names == names


@pytest.mark.parametrize('labels, message', [([.5, 1.]*6, 'a measurement has no wrong class'), ([np.inf, 1.]*6, 'a measurement'), (list(range(12)), 'must come several times each'), ([0]*12, 'with one class'), ([0, 1], 'one label for each of the 12')])
def test_labels_without_meaning(labels, message):
    with pytest.raises(ValueError, match=message): from_own_arrays(np.eye(12), labels)


def test_missing_labels_are_left_out():
    assert read_labels(np.array(['a', None, float('nan'), ' '], object))[0] == ['a', None, None, None]
    own = from_own_arrays(np.eye(14), np.array([0, 1]*6 + [np.nan]*2))
    assert own.data.n == 12 and said(own, '2 labels are missing') and own.data.class_names == ('0', '1')


def test_rows_with_nan_are_named_and_the_others_kept():
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float64)
    x[[3, 7]], x[9, 0] = np.nan, 1e300
    own = from_own_arrays(x, np.arange(30) % 3)
    assert own.data.n == 27 and own.data.index.tolist() == [i for i in range(30) if i not in (3, 7, 9)] and said(own, '3 rows hold NaN or infinity, so not scored: rows 3, 7, 9')
    with pytest.raises(ValueError, match='no example that can be scored'): from_own_arrays(np.full((12, 2), np.nan), [0, 1]*6)


@pytest.mark.parametrize('shape, kept', [((12, 8, 8), (1, 8, 8)), ((12, 40, 40, 3), (3, 32, 32)), ((12, 3, 28, 28), (3, 28, 28))])
def test_pictures_as_arrays(shape, kept):
    x = np.random.default_rng(0).random(shape)
    for own in (from_own_arrays(x, [0, 1]*6), from_own_arrays((x*255).round().astype(np.uint8), [0, 1]*6)): assert own.data.x.shape[1:] == kept
    with pytest.raises(ValueError, match='pictures .* must be uint8'): from_own_arrays(x - 1, [0, 1]*6)


def test_arrays_that_cannot_be_read(tmp_path):
    np.savez(tmp_path/'keys.npz', a=np.eye(12)), np.savez(tmp_path/'objects.npz', x=np.eye(12), y=np.array([{}]*12)), np.save(tmp_path/'x.npy', np.eye(3))
    (tmp_path/'no.npz').write_bytes(b'nothing')
    for name, message in (('keys.npz', 'must hold inputs under'), ('objects.npz', 'of plain arrays'), ('no.npz', 'of plain arrays'), ('x.npy', 'puts inputs and labels into one'), ('gone', 'is not there')):
        with pytest.raises((ValueError, FileNotFoundError), match=message): read_own(tmp_path/name)


def test_classes_are_sorted_as_others_sort_them():
    assert sort_classes(['10', '9', '-1']) == ('-1', '9', '10') and sort_classes(['b', 'B', 'a']) == tuple(sorted(['b', 'B', 'a']))
    for values in (['10', '9'], [10, 9]): assert list(sort_classes(map(str, values))) == [str(v) for v in np.unique([int(v) for v in values])]


def test_reading_changes_nothing(folder):
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob('*') if p.is_file()}
    read_own(folder)
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob('*') if p.is_file()}


@pytest.mark.parametrize('sides, side', [([16], 16), ([16, 20], 32), ([16, 40], 32), ([40], 32), ([5], 32)])
def test_every_file_is_opened_once_and_scaled_as_pillow_does(tmp_path, monkeypatch, sides, side):
    rng, opened, want = np.random.default_rng(0), [], {}
    for i in range(12):
        path, s = tmp_path/'ab'[i % 2]/f'{i}.png', sides[i % len(sides)]
        path.parent.mkdir(exist_ok=True)
        im = Image.fromarray(rng.integers(0, 256, (s, s, 3), np.uint8))
        im.save(path)
        want[str(path.relative_to(tmp_path))] = np.asarray(im.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    plain = Image.open
    monkeypatch.setattr(Image, 'open', lambda path, *a, **k: (opened.append(str(path)), plain(path, *a, **k))[1])
    data = read_own(tmp_path).data
    assert len(opened) == len(set(opened)) == 12 and data.x.shape[2:] == (side, side)
    assert all((data.x[i].numpy() == want[p]).all() for i, p in enumerate(data.paths))

"Records: files, damage, merging."
import numpy as np
import pytest

from noisymem.records import Records, load_records, merge_records, save_records, take_rows


def random_record(seed, rows=3, n=7, key='k', start=0):
    rng = np.random.default_rng(seed)
    return Records(
        dict(seed=np.arange(start, start + rows), included=rng.random((rows, n)) < .5, prob=rng.random((rows, n, 2)).astype(np.float16), prediction=rng.integers(0, 9, (rows, n)).astype(np.uint8)),
        dict(given_label=np.arange(n), index=np.arange(n)[::-1].copy()), dict(key=key, name='test', config=dict(lr=.1)))


def assert_same(a, b):
    assert a.meta == b.meta and a.axis == b.axis and a.rows.keys() == b.rows.keys() and a.shared.keys() == b.shared.keys()
    for k in [*a.rows, *a.shared]:
        assert a[k].dtype == b[k].dtype
        np.testing.assert_array_equal(a[k], b[k])


@pytest.mark.parametrize('rows,n', [(3, 7), (1, 1), (0, 5), (2, 8), (5, 0)])
def test_round_trip(tmp_path, rows, n):
    rec = random_record(0, rows, n)
    save_records(tmp_path/'a b'/'r.npz', rec)
    assert_same(load_records(tmp_path/'a b'/'r.npz'), rec)


def test_any_numpy_opens_it(tmp_path):
    rec = random_record(0)
    save_records(tmp_path/'r.npz', rec)
    with np.load(tmp_path/'r.npz', allow_pickle=False) as z:
        np.testing.assert_array_equal(z['rows.prediction'], rec['prediction'])
        np.testing.assert_array_equal(z['rows.included'], np.packbits(rec['included']))


def test_equal_records_give_equal_bytes(tmp_path):
    for name in 'ab': save_records(tmp_path/name, random_record(1))
    assert (tmp_path/'a').read_bytes() == (tmp_path/'b').read_bytes()


def test_every_flipped_byte_and_every_truncation_is_noticed_or_harmless(tmp_path):
    rec, path = random_record(2), tmp_path/'r.npz'
    save_records(path, rec)
    raw, rng, noticed = path.read_bytes(), np.random.default_rng(0), 0
    for position in rng.choice(len(raw), 150, replace=False):
        bad = bytearray(raw); bad[position] ^= 1 << rng.integers(8)
        path.write_bytes(bad)
        try: assert_same(load_records(path), rec)   # a time stamp or an attribute of the archive
        except ValueError as e: noticed += 1; assert 'r.npz' in str(e)
    assert noticed > 75
    for cut in rng.choice(len(raw), 40, replace=False):
        path.write_bytes(raw[:cut])
        with pytest.raises(ValueError, match='r.npz'): load_records(path)


def test_wrong_files_are_named(tmp_path):
    np.savez(tmp_path/'other.npz', a=np.arange(3))
    (tmp_path/'text.npz').write_text('hello')
    for name in ('other.npz', 'text.npz'):
        with pytest.raises(ValueError, match=name): load_records(tmp_path/name)
    with pytest.raises(FileNotFoundError): load_records(tmp_path/'absent.npz')


def test_objects_cannot_be_stored(tmp_path):
    with pytest.raises(ValueError): save_records(tmp_path/'r.npz', Records(dict(a=np.array([{}], object))))


def test_merge_any_order_any_overlap():
    parts = [random_record(0, 3, start=0), random_record(1, 2, start=3)]
    whole = merge_records(parts)
    assert_same(merge_records(parts[::-1] + [take_rows(whole, [1, 4])]), whole)
    assert whole['seed'].tolist() == [0, 1, 2, 3, 4]


def test_merge_ignores_time_but_nothing_else():
    a, b = random_record(0, 2), random_record(0, 2)
    a.rows['seconds'], b.rows['seconds'] = np.array([1., 2.]), np.array([3., 4.])
    assert len(merge_records([a, b])) == 2
    b.rows['prediction'][1, 0] ^= 1
    with pytest.raises(ValueError, match='seed 1 comes twice with different prediction'): merge_records([a, b])


def test_merge_refuses_other_keys_and_other_labels():
    a, b, c = random_record(0), random_record(0, key='other', start=9), random_record(0, start=9)
    c.shared['given_label'] = c.shared['given_label'][::-1].copy()
    for other in (b, c):
        with pytest.raises(ValueError, match='cannot be merged'): merge_records([a, other])

"Paths, checks, seeds, hashes, files, the restricted unpickler."
import json
import os
import pickle
import platform
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from noisymem import core as C


@pytest.mark.parametrize('value', [float('nan'), 1, -1e-9, '0.5', None, True])
def test_range_refuses(value):
    with pytest.raises(ValueError, match='rate must be in'): C.check_range('rate', value, 0, 1, '[)')


@pytest.mark.parametrize('labels, says', [
    ([[1]], 'one-dimensional'), (np.array(1), 'one-dimensional'), (np.zeros((0, 2), int), 'one-dimensional'), ([[1], [1, 2]], 'integers in one dimension'),
    ([.5], 'integers, got torch.float64'), ([True, False], 'integers, got torch.bool'), ([float('nan')], 'integers'), (np.array([1 + 0j]), 'integers'),
    ([-1, 0], r'in \[0, 3\), got values from -1 to 0'), ([0, 3], r'in \[0, 3\), got values from 0 to 3'), (np.array([2**64 - 1], np.uint64), r'in \[0, 3\)'),
    (['a'], "integers, got 'a'"), (['0', '1'], "integers, got '0'"), (np.array(['a', None], object), "integers, got 'a'"), ([0, None], 'integers, got None'),
    (None, 'integers, got None'), ('cat', "integers, got 'cat'"), ([2**70], 'integers, got'), (np.array([b'x']), "integers, got b'x'"), ({1, 2}, 'integers'),
    (np.array(['2020-01-01'], 'M8[D]'), 'integers')])
def test_labels_refuses(labels, says):
    with pytest.raises(ValueError, match=f'^truth must be {says}'): C.check_labels('truth', labels, n_classes=3)


@pytest.mark.parametrize('labels', [[], (), np.zeros(0), np.zeros(0, int), np.array([], object), torch.tensor([]), range(0)])
def test_empty_labels_pass(labels):
    y = C.check_labels('labels', labels, 3)
    assert y.shape == (0,) and y.dtype == torch.int64 and len(C.check_labels('labels', labels, 3, 0)) == 0
    with pytest.raises(ValueError, match='labels must have 2 entries, got 0'): C.check_labels('labels', labels, 3, 2)


@pytest.mark.parametrize('labels', [np.array([2, 1, 0])[::-1], np.array([0, 1, 2], '>i4'), np.array([0, 1, 2], np.uint64), range(3), (0, 1, 2), torch.tensor([0, 1, 2], dtype=torch.uint8)])
def test_labels_of_every_integer_kind_pass(labels): assert C.check_labels('labels', labels, 3).tolist() == [0, 1, 2]


def test_derived_seeds_are_fixed_forever():
    assert C.derive_seed(0, "order", 1) == 8677279991123922410
    assert len({C.derive_seed(s, p, e) for s in range(10) for p in ('order', 'augment') for e in range(10)}) == 200


def test_generators_leave_the_global_state_alone():
    before = torch.random.get_rng_state()
    torch.rand(3, generator=C.make_generator(0, 'x'))
    assert torch.equal(before, torch.random.get_rng_state())


def test_hash_is_the_same_in_another_process():
    code = "from noisymem.core import config_hash, array_hash; import numpy as np; print(config_hash({'a': {1, }.__len__(), 'b': .1}), array_hash(np.arange(5)))"
    seen = {subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ | {'PYTHONHASHSEED': str(s)}, check=True).stdout for s in (1, 2)}
    assert len(seen) == 1


def test_config_hash_sees_dataclass_defaults():
    @dataclass
    class A: x:int = 1
    @dataclass
    class B: x:int = 1; y:int = 0
    assert C.config_hash(A()) != C.config_hash(B())
    assert C.config_hash(A()) == C.config_hash({'x': 1})


def test_nan_in_a_configuration_is_refused():
    with pytest.raises(ValueError): C.canonical_json({'lr': float('nan')})


def test_array_hash_of_views_and_empty():
    a = np.arange(12).reshape(3, 4)
    assert C.array_hash(a.T) == C.array_hash(np.ascontiguousarray(a.T)) != C.array_hash(a)
    assert C.array_hash(np.zeros((0, 3))) != C.array_hash(np.zeros((3, 0)))
    assert C.array_hash(np.array(['a', 'b'])) != C.array_hash(np.array(['a', 'c']))
    assert C.array_hash(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)) == C.array_hash(torch.zeros(2, 3, 4, 4))


class Evil:
    def __reduce__(self): return os.system, ('echo owned',)


@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_unpickler_refuses_programs(protocol, capfd):
    with pytest.raises(ValueError, match='only NumPy arrays'): C.restricted_unpickle(pickle.dumps({'data': Evil()}, protocol))
    assert 'owned' not in capfd.readouterr().out


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_unpickler_reads_arrays_of_every_kind(protocol):
    obj = {'a': np.arange(6, dtype=np.uint8).reshape(2, 3), 'f': np.float32(2.5), 's': ['x', 'é'], 'o': np.asfortranarray(np.eye(3))}
    back = C.restricted_unpickle(pickle.dumps(obj, protocol))
    np.testing.assert_array_equal(back['a'], obj['a']); np.testing.assert_array_equal(back['o'], obj['o'])
    assert back['f'] == 2.5 and back['s'] == obj['s']


def test_unpickler_names_a_damaged_file(tmp_path):
    path = tmp_path/'data batch'
    path.write_bytes(b'\x80\x02}q\x00')
    with pytest.raises(ValueError, match='data batch is not a readable pickle'): C.restricted_unpickle(path)


def test_results_and_data_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path/'r s')); monkeypatch.setenv('NOISYMEM_DATA', str(tmp_path))
    assert C.results_dir() == tmp_path/'r s' and C.data_dir() == tmp_path


def test_save_atomic_keeps_the_old_file_when_writing_fails(tmp_path):
    C.save_json(tmp_path/'x.json', [1])
    with pytest.raises(TypeError): C.save_json(tmp_path/'x.json', {'x': object()})
    assert json.loads((tmp_path/'x.json').read_text()) == [1]
    assert [p.name for p in tmp_path.iterdir()] == ['x.json']


def test_damaged_json_is_named(tmp_path):
    (tmp_path/'x.json').write_bytes(b'{"a": \xff')
    with pytest.raises(ValueError, match='x.json is not valid JSON'): C.load_json(tmp_path/'x.json')


def test_provenance_is_plain_json(): json.dumps(C.provenance())


FAULTS = '''
import resource, sys, torch
from noisymem.core import keep_memory
kept = keep_memory() if sys.argv[1] == 'keep' else None
def work():
    for _ in range(20): blocks = [torch.empty(16*2**20, dtype=torch.uint8).fill_(1) for _ in range(6)]; del blocks
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, kept)
'''


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another C library than glibc')
def test_kept_memory_is_not_faulted_in_again():
    faults = {how: subprocess.run([sys.executable, '-c', FAULTS, how], capture_output=True, text=True, check=True).stdout.split() for how in ('keep', 'give back')}
    assert faults['keep'][1] == 'True'
    if int(faults['give back'][0]) < 1000: pytest.skip('this machine keeps freed memory by itself')
    assert int(faults['keep'][0]) < 100

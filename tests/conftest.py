"Fixtures: the developers' shared folder and genuine data, where they are at hand."
import os
import subprocess
import sys
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'  # before torch: equal to the bit only with equal threads, and two workers of one thread are faster than one of two

import matplotlib
import numpy as np
import pytest
import torch
from filelock import FileLock

from noisymem.data import from_arrays, load_dataset, sample

matplotlib.use('Agg')
ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get('NOISYMEM_SHARED', ROOT.parent/'shared'))


@pytest.fixture(scope='session')
def root(): return ROOT


@pytest.fixture(scope='session')
def shared():
    if not (SHARED/'oracles').is_dir(): pytest.skip('the developers\' shared folder (oracles, data) is not beside this checkout')
    return SHARED


@pytest.fixture(scope='session')
def oracle(shared):
    "Load `oracles/<name>`: an npz as a dict of arrays, a json as Python."
    def load(name):
        import json
        path = shared/'oracles'/name
        if not path.exists(): pytest.skip(f'oracle {name} is not in the shared folder')
        if path.suffix == '.json': return json.loads(path.read_text())
        with np.load(path, allow_pickle=False) as z: return {k: z[k] for k in z.files}
    return load


@pytest.fixture(scope='session')
def real_data(shared, tmp_path_factory):
    "Folder with genuine CIFAR-10, CIFAR-100 and CIFAR-N in their official layouts."
    ready = os.environ.get('NOISYMEM_TEST_DATA')
    if ready: return Path(ready)
    dest = tmp_path_factory.getbasetemp()/'real'
    if 'PYTEST_XDIST_WORKER' in os.environ: dest = dest.parent.parent/'real'  # one for all workers
    with FileLock(f'{dest}.lock'):
        if not dest.exists():
            subprocess.run([sys.executable, shared/'data'/'unpack.py', f'{dest}.part', 'cifar10', 'cifar100', 'cifarn'], check=True, capture_output=True)
            os.rename(f'{dest}.part', dest)
    return dest


@pytest.fixture(scope='session')
def digits():
    "A small part of the digits; a file that wants another part defines its own."
    return sample(load_dataset('digits'), 150, seed=0)


@pytest.fixture(scope='session')
def images():
    "Sixty colour images of noise in three classes."
    rng = np.random.default_rng(0)
    return from_arrays(rng.integers(0, 256, (60, 12, 12, 3), dtype=np.uint8), rng.integers(0, 3, 60), layout='NHWC', x_test=rng.integers(0, 256, (10, 12, 12, 3), dtype=np.uint8), y_test=rng.integers(0, 3, 10), class_names=('a', 'b', 'c'))


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker('gpu') and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason='needs a CUDA GPU'))

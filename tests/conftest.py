"Fixtures: the developers' shared folder and genuine data, where they are at hand."
import importlib
import os
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'  # before torch: equal to the bit only with equal threads, and two workers of one thread are faster than one of two

import matplotlib
import numpy as np
import pytest
import torch
from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
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


def shared_folder(tmp_path_factory, name):
    "A folder of this run of the tests, one for all workers."
    base = tmp_path_factory.getbasetemp()
    return (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base)/name


@pytest.fixture(scope='session')
def real_data(shared, tmp_path_factory):
    "Folder with genuine CIFAR-10, CIFAR-100 and CIFAR-N in their official layouts."
    ready = os.environ.get('NOISYMEM_TEST_DATA')
    if ready: return Path(ready)
    dest = shared_folder(tmp_path_factory, 'real')
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


def in_a_copy(work, *args):
    "What a function of a module returns in a copy of this process, which has imported everything: seconds faster than a new one."
    with ProcessPoolExecutor(1, mp_context=get_context('fork')) as pool: return pool.submit(work, *args).result(600)


def run_notebook(
    path,
    out,            # the executed notebook
    parameters={},  # written behind those of the tagged cell
    env={},
    cwd=None,       # default: the folder of the notebook
):                  # what it failed of, '' where it did not
    "Run a notebook as a kernel does, but in a copy of this process."
    return in_a_copy(_run_notebook, path, out, parameters, env, cwd or path.parent)


def _run_notebook(path, out, parameters, env, cwd):
    os.chdir(cwd)
    os.environ.update(env)
    importlib.reload(warnings)  # pytest keeps them to itself
    nb, error = read_nb(path), ''
    for cell in nb.cells:
        if 'parameters' in cell.metadata.get('tags', ()): cell.source += ''.join(f'\n{k} = {v!r}' for k, v in parameters.items())
    try: CaptureShell(mpl_format='png').run_all(nb, exc_stop=True)
    except Exception as e: error = f'{type(e).__name__}: {e}'
    write_nb(nb, out)
    return error

"The estimator: scikit-learn's own checks, any input, any network."
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator
from torch import nn
from torch.utils.data import Dataset as TorchDataset, TensorDataset

from noisymem.detector import MemorizationDetector, _to_range, read_torch

QUICK = dict(n_models=4, width=.05, recipe=dict(name='digits', epochs=1))


def blobs(n=90, k=3, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    x = rng.normal(size=(n, 4)) + 5*np.eye(4)[y]
    given = y.copy()
    given[:4] = (given[:4] + 1) % k
    return x, given


@pytest.mark.filterwarnings('ignore')
def test_scikit_learns_checks():
    found = check_estimator(MemorizationDetector(**QUICK), on_fail=None, on_skip=None)
    assert len(found) > 30 and not [f['check_name'] for f in found if f['status'] not in ('passed', 'skipped')]


def test_wrong_labels_first_whatever_the_labels_are_called():
    x, y = blobs()
    for names in ([0, 1, 2], ['b', 'a', 'c'], [2., 0., 7.], [10, 9, 100]):
        d = MemorizationDetector(n_models=8, width=.5).fit(x, np.array(names)[y])
        assert set(np.argsort(-d.suspicion_)[:4]) == {0, 1, 2, 3} and d.classes_.tolist() == sorted(names)
        best = d.classes_[d.pred_probs_.argmax(1)]
        assert (best[4:] == np.array(names)[y][4:]).mean() > .95 and np.allclose(d.pred_probs_.sum(1), 1)


def test_pandas_in_and_out():
    x, y = blobs()
    X, y = pd.DataFrame(x, columns=list('abcd'), index=[f'r{i}' for i in range(90)]), pd.Series(y).astype(object)
    X.iloc[7, 2], y[9] = np.nan, None
    d = MemorizationDetector(**QUICK).fit(X, y)
    assert d.feature_names_in_.tolist() == list('abcd') and d.n_features_in_ == 4 and len(d.table_) == 88 and 'r7' not in d.table_.index and 'r8' in d.table_.index
    assert np.flatnonzero(np.isnan(d.suspicion_)).tolist() == [7, 9] and np.isnan(d.pred_probs_[7]).all() and len(d.problems_) == 2
    assert d.most_suspicious(3).shape[0] == 3 and d.table_.loc['r8', 'rank'] >= 1


def test_the_same_state_gives_the_same_another_another():
    x, y = blobs()
    a, b, c = (MemorizationDetector(**QUICK, random_state=s).fit(x, y).suspicion_ for s in (1, 1, 2))
    assert (a == b).all() and (a != c).any()
    d = clone(MemorizationDetector(**QUICK, random_state=5))
    assert d.random_state == 5 and not hasattr(d, 'table_')


class Pictures(TorchDataset):
    def __init__(self, kind, n=24): self.kind, self.n = kind, n

    def __len__(self): return self.n

    def __getitem__(self, i):
        a = np.random.default_rng(i).integers(0, 80, (9, 9, 3)) + 150*(i % 2)
        if self.kind == 'pil': return Image.fromarray(a.astype(np.uint8)), i % 2
        if self.kind == 'unit': return torch.tensor(a.transpose(2, 0, 1)/255, dtype=torch.float32), torch.tensor(i % 2)
        return torch.tensor(a.transpose(2, 0, 1)/60. - 2, dtype=torch.float32), i % 2


@pytest.mark.parametrize('kind', ['pil', 'unit', 'normalised'])
def test_torch_data_sets_of_pictures(kind):
    d = MemorizationDetector(n_models=4, width=.125, recipe=dict(name='cpu', epochs=1)).fit(Pictures(kind))
    assert d.table_.shape[0] == 24 and d.classes_.tolist() == [0, 1] and not np.isnan(d.suspicion_).any()


def test_any_network_is_copied_never_changed():
    x, y = blobs()
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    d = MemorizationDetector(net, n_models=8, recipe=dict(name='digits', epochs=8)).fit(TensorDataset(torch.tensor(x, dtype=torch.float32), torch.tensor(y)))
    assert all((before[k] == v).all() for k, v in net.state_dict().items()) and set(np.argsort(-d.suspicion_)[:4]) == {0, 1, 2, 3}

    def make(seed):
        torch.manual_seed(seed)
        return nn.Linear(4, 3)
    assert MemorizationDetector(make, n_models=4, recipe=dict(name='digits', epochs=2)).fit(x, y).suspicion_.shape == (90,)


def test_a_convolution_on_pictures():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert len(MemorizationDetector(net, n_models=4, recipe=dict(name='cpu', epochs=1)).fit(Pictures('unit')).table_) == 24


def test_paths_in_a_table(tmp_path):
    for i in range(12): Image.new('RGB', (8, 8), (20*i, 0, 0)).save(tmp_path/f'{i}, x.png')
    (tmp_path/'3, x.png').write_bytes(b'')
    table = pd.DataFrame(dict(path=[str(tmp_path/f'{i}, x.png') for i in range(12)], label=['a', 'b']*6), index=range(100, 112))
    d = MemorizationDetector(n_models=4, width=.125, recipe=dict(name='cpu', epochs=1)).fit(table[['path']], table.label)
    assert 103 not in d.table_.index and len(d.table_) == 11 and 'empty' in d.problems_[0] and d.table_.path[100].endswith('0, x.png')


@pytest.mark.parametrize('fit, message', [
    (lambda d: d.fit(np.eye(12)), 'requires y to be passed'), (lambda d: d.fit(np.eye(12), [0, 1]), 'one length'), (lambda d: d.fit(np.eye(12), np.zeros(12)), 'with one class'),
    (lambda d: d.fit(np.eye(12), np.linspace(0, 1, 12)), 'a measurement has no wrong class'), (lambda d: d.fit(Pictures('unit'), [0]*24), 'y must be None'),
    (lambda d: d.set_params(n_models=3).fit(np.eye(12), [0, 1]*6), 'n_models'), (lambda d: d.set_params(model='nothing').fit(np.eye(12), [0, 1]*6), 'name must be one of'),
    (lambda d: d.fit([(torch.zeros(2), 0)] and TensorDataset(torch.zeros(3, 2))), 'must give \\(input, label\\)')])
def test_bad_input(fit, message):
    with pytest.raises(ValueError, match=message): fit(MemorizationDetector(**QUICK))


def test_pictures_of_two_sizes_are_refused():
    class Two(Pictures):
        def __getitem__(self, i): return torch.zeros(3, 8 + i % 2, 8), i % 2
    with pytest.raises(ValueError, match='of one shape, got 2'): read_torch(Two('unit'))


def test_ranges():
    x = np.random.default_rng(0).normal(size=(5, 3, 6, 6))
    assert _to_range(x).min() == 0 and _to_range(x).max() == 1 and _to_range(x).reshape(5, 3, -1).max((0, 2)).tolist() == [1, 1, 1]
    assert (_to_range(np.clip(x, 0, 1)) == np.clip(x, 0, 1)).all() and _to_range(np.ones((2, 3), np.float32)).max() == 1

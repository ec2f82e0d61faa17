"How many processes train: measured at the same time, each with its share of the machine."
import math

import pytest
import torch

from noisymem import processes as P

SMALL = ('fast', .1, {'name': 'cpu', 'batch_size': 8}, (3, 8, 8), 4)


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_threads_are_shared_and_gpus_dealt_out(four_threads, monkeypatch):
    assert P.splits(torch.device('cpu')) == [1, 2, 4] and P.splits(torch.device('cuda:1')) == [1]
    assert [P.share_of_machine(i, n, torch.device('cpu'))['OMP_NUM_THREADS'] for i, n in ((0, 1), (0, 2), (1, 2), (3, 4), (6, 7))] == ['4', '2', '2', '1', '1']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,5')
    assert [P.share_of_machine(i, 4, torch.device('cuda'))['CUDA_VISIBLE_DEVICES'] for i in range(4)] == ['3', '5', '3', '5']


def test_two_workers_are_measured_together():
    speed, memory = P.measure_split(2, *SMALL, 'cpu', seconds=.5)
    assert speed > 0 and 1e7 < memory < 1e10


def test_a_worker_that_cannot_train_counts_nothing():
    assert P.measure_split(1, 'fast', 1., 'cpu', (64,), 4, 'cpu', seconds=.1) == (0., math.inf)


@pytest.mark.parametrize('speed, cpu, gpu', [([10, 19, 18], 4, 2), ([10, 9, 5], 2, 1), ([10, 5, 4], 1, 1), ([10, 10.2, 10.4], 4, 1), ([10, 12, 0], 2, 2)])
def test_near_the_best_a_cpu_prefers_many_and_a_gpu_few(monkeypatch, speed, cpu, gpu):
    monkeypatch.setattr(P, 'splits', lambda device: [1, 2, 4])
    monkeypatch.setattr(P, 'pick_device', lambda device: torch.device(device))
    monkeypatch.setattr(P, 'measure_split', lambda n, *args: (float(speed[[1, 2, 4].index(n)]), 1.))
    assert P.best_split(*SMALL, 'cpu')['best'] == cpu and P.best_split(*SMALL, 'cuda')['best'] == gpu


def test_a_network_that_fits_nowhere_is_refused(monkeypatch):
    monkeypatch.setattr(P, 'measure_split', lambda n, *args: (0., math.inf))
    with pytest.raises(ValueError, match='does not train on cpu'): P.best_split(*SMALL, 'cpu')

"Kept robust trainings: what they start from, that it is made once, that a run that died goes on, bad input."
import numpy as np
import pytest
import torch

from noisymem import robust_runs as R
from noisymem.core import results_dir
from noisymem.data import load_dataset, sample
from noisymem.methods.simclr import make_encoder, save_encoder
from noisymem.noise import add_noise
from noisymem.robust_runs import PATHS, load_or_run_path, load_or_run_robust

RECIPE = dict(name='digits', epochs=2, batch_size=50, lr=.05)
SMALL = ('mlp', RECIPE, .1)


@pytest.fixture
def calls(monkeypatch, tmp_path):
    "Settings of every training that is really made."
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    made, real = [], R.train_robust

    def watched(data, *args, **options):
        made.append(options)
        return real(data, *args, **options)
    watched.__wrapped__ = real
    monkeypatch.setattr(R, 'train_robust', watched)
    return made


@pytest.fixture(scope='module')
def data(): return add_noise(sample(load_dataset('digits'), 150, seed=0), 'symmetric', .4)


def test_the_training_before_is_run_when_it_is_missing(calls, data):
    "Once for all that go on from it; with the regulariser for what has it; from its last or its best epoch."
    load_or_run_robust(data, *SMALL, loss='peer', after='last')
    assert [c.get('loss', 'ce') for c in calls] == ['ce', 'peer']
    load_or_run_robust(data, *SMALL, loss='forward', after='best', transition='anchor')
    load_or_run_robust(data, *SMALL)
    assert [c.get('loss', 'ce') for c in calls] == ['ce', 'peer', 'forward']
    load_or_run_robust(data, *SMALL, loss='peer', after='last', regulariser='distance', view=dict(jitter=0.))
    assert [(c.get('loss', 'ce'), c.get('regulariser')) for c in calls[3:]] == [('ce', 'distance'), ('peer', 'distance')]
    plain = load_or_run_robust(data, *SMALL)
    for c, which in ((calls[1], 'last'), (calls[2], 'best')):
        for k, v in c['start'].state_dict().items():
            if k.startswith(('backbone.', 'head.')): np.testing.assert_array_equal(v, plain[f'{which}.{k}'])
    assert not list((results_dir()/'robust').glob('*.safetensors')), 'nothing unfinished is left'


def test_it_goes_on_where_cross_entropy_ended(calls, data):
    plain = load_or_run_robust(data, *SMALL)
    still = load_or_run_robust(data, 'mlp', RECIPE | dict(epochs=1, lr=1e-8), .1, loss='peer', after='last', first=RECIPE)
    assert (still['prediction'][0] == plain['prediction'][-1]).all() and len(calls) == 2


def test_the_original_way_reads_the_matrix_in_training_mode(calls, data):
    small = ('fast', RECIPE | dict(epochs=1), .1)
    ours, old = (load_or_run_robust(data, *small, loss='forward', transition='anchor', after='last', compat=c)['transition'] for c in (None, 'original'))
    assert not np.array_equal(ours, old)
    np.testing.assert_allclose(old.sum(1), 1)


def test_what_nothing_reads_changes_nothing(calls, data):
    for options in ({}, dict(view=dict(jitter=0.)), dict(reg=dict(lam=2.)), dict(plain_until=3, alpha=.5, contrast=.1)): load_or_run_robust(data, *SMALL, **options)
    assert len(calls) == 1
    for options in (dict(held_out=.1), dict(warmup=1, loss='gce'), dict(extra_views=True)): load_or_run_robust(data, 'fast', RECIPE | dict(epochs=1), .1, **options)
    assert len(calls) == 4


def test_an_encoder_is_where_it_starts(calls, data):
    ssl = dict(recipe=dict(name='paper', epochs=1, batch_size=50, lr=1e-3, schedule='constant', optimizer='adam', weight_decay=0., augment=()), jitter=0.)
    run = load_or_run_robust(data, *SMALL, encoder=ssl)
    assert calls[0]['encoder'] is not None and not np.array_equal(run['prediction'], load_or_run_robust(data, *SMALL)['prediction'])
    assert len(load_or_run_robust(data, *SMALL, encoder=ssl)['base']) == 2 and len(calls) == 2


def test_an_encoder_of_a_file_is_where_it_starts(calls, data, tmp_path):
    "By its path, or as settings: the same training as from the network itself."
    net = make_encoder('mlp', 10, (1, 8, 8), .1, seed=7)
    save_encoder(tmp_path/'encoder.safetensors', net)
    runs = [load_or_run_robust(data, *SMALL, encoder=e) for e in (net, str(tmp_path/'encoder.safetensors'), tmp_path/'encoder.safetensors', dict(file=str(tmp_path/'encoder.safetensors')))]
    for run in runs[1:]: np.testing.assert_array_equal(run['prediction'], runs[0]['prediction'])
    for k, v in net.state_dict().items():
        for c in calls:
            if k.startswith('backbone.'): assert torch.equal(c['encoder'].state_dict()[k], v)


def test_instance_noise_of_the_cards():
    "One projection for all classes only where the study's own noise is asked for."
    shared = {name: 'projection' not in card['wrong_labels'] for name, card in PATHS.items() if card['wrong_labels']['kind'] == 'instance'}
    assert shared == {'fixed instance-0.6 balanced': True, 'all instance-0.6': False, 'all instance-0.6, original': True}


@pytest.mark.parametrize('options', [dict(regulariser='distance'), dict(loss='gce', alpha=.5), dict(loss='ce', warmup=3)])
def test_every_option_of_a_frozen_encoder_is_looked_at(data, options):
    with pytest.raises(ValueError, match="option of a frozen encoder must be one of 'loss'"): load_or_run_path(data, make_encoder('mlp', 10, (1, 8, 8), .1), *SMALL, start='frozen', **options)


def test_a_run_that_died_goes_on(calls, data, monkeypatch):
    whole = load_or_run_robust(data, *SMALL, loss='elr')
    next(p for p in (results_dir()/'robust').glob('*.npz')).unlink()
    from noisymem.methods import robust as M
    real, epochs = M.RobustObjective.before_epoch, []

    def dies(self, state):
        epochs.append(state.epoch + 1)
        if epochs == [1, 2]: raise KeyboardInterrupt
        return real(self, state)
    monkeypatch.setattr(M.RobustObjective, 'before_epoch', dies)
    with pytest.raises(KeyboardInterrupt): load_or_run_robust(data, *SMALL, loss='elr')
    again = load_or_run_robust(data, *SMALL, loss='elr')
    assert epochs == [1, 2, 2]
    for k in whole: np.testing.assert_array_equal(again[k], whole[k], err_msg=k)


@pytest.mark.parametrize('options, word', [(dict(after='first'), 'after must be one of'), (dict(loss='forward', transition='dual'), 'transition must be one of'), (dict(loss='forward'), 'transition must be'), (dict(loss='nce'), 'loss must be one of'), (dict(encoder=dict(model='mlp', width=.3, recipe=RECIPE | dict(epochs=1), jitter=0.)), 'must hold the whole backbone')])
def test_bad_settings(calls, data, options, word):
    with pytest.raises(ValueError, match=word): load_or_run_robust(data, *SMALL, **options)

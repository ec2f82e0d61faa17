"Ensembles: published splits, kill and resume, two processes, damage, mixtures, size."
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import in_a_copy

from noisymem import ensemble as E
from noisymem.core import config_hash
from noisymem.data import load_dataset, sample
from noisymem.noise import add_noise
from noisymem.scores.heldout import heldout_pred_probs, score_exclusion, score_heldout

QUICK = {'name': 'digits', 'epochs': 2}


@pytest.fixture(scope='module')
def data(): return add_noise(sample(load_dataset('digits'), 200, seed=0), 'symmetric', rate=.2, seed=0)


def go(data, folder=None, seeds=4, kind='balanced', recipe=QUICK, **kwargs):
    return E.run_ensemble(data, E.make_design(data.is_noisy, kind), seeds, folder, model='mlp', recipe=recipe, device='cpu', **kwargs)


def assert_same(a, b):
    for k in a.rows:
        if k != 'seconds': np.testing.assert_array_equal(a[k], b[k], err_msg=k)
    for k in a.shared: np.testing.assert_array_equal(a[k], b[k], err_msg=k)


# --- the published split -------------------------------------------------------------------------------------------

def test_oracle_pool_and_masks(oracle, real_data):
    o = oracle('memorization/heldout_split_rand1.npz')
    ds = add_noise(load_dataset('cifar10', root=real_data, download=False), 'rand1', root=real_data)
    design = E.make_design(ds.is_noisy)
    n = int(ds.is_noisy.sum())
    assert n == 8617 and len(design.pool) == 17_234 and design.n_included == 12_063
    np.testing.assert_array_equal(design.pool[:n], o['rand1_human_noisy_idx'])
    np.testing.assert_array_equal(design.pool[n:], o['rand1_human_clean_idx'])
    masks = np.stack([E.subset_mask(design, s) for s in (0, 1, 2)])
    assert masks.sum(1).tolist() == [44_829]*3
    np.testing.assert_array_equal(np.packbits(masks, axis=1), o['rand1_human_masks_seed0_1_2_packbits'])


def test_oracle_synthetic_pool(oracle, real_data):
    o = oracle('memorization/heldout_split_rand1.npz')
    ds = add_noise(load_dataset('cifar10', root=real_data, download=False), 'synthetic:rand1', root=real_data)
    np.testing.assert_array_equal(ds.given_label.numpy(), o['rand1_syn_labels'])
    design = E.make_design(ds.is_noisy)
    n = int(ds.is_noisy.sum())
    np.testing.assert_array_equal(design.pool[:20], o['rand1_syn_noisy_idx_first20'])
    np.testing.assert_array_equal(design.pool[n:n + 20], o['rand1_syn_clean_idx_first20'])


def test_size_of_a_subset_follows_the_floating_rule():
    wrong = np.zeros(200, bool); wrong[:45] = True
    assert E.make_design(wrong, subset_ratio=.7).n_included == int(.7*90) == 62


# --- designs --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', ['balanced', 'uniform', 'stratified'])
@pytest.mark.parametrize('seed', [0, 7, 2**32 - 1])
def test_subset_is_the_rest_and_a_share_of_the_pool(data, kind, seed):
    design = E.make_design(data.is_noisy, kind)
    mask = E.subset_mask(design, seed)
    outside = np.setdiff1d(np.arange(data.n), design.pool)
    assert mask[outside].all() and int(mask.sum()) == len(outside) + design.n_included
    assert torch.equal(mask, E.subset_mask(design, seed)) and not torch.equal(mask, E.subset_mask(design, seed - 1 if seed else 1))


def test_stratified_keeps_the_noise_rate(data):
    design = E.make_design(data.is_noisy, 'stratified')
    rates = {float(data.is_noisy[E.subset_mask(design, s)].float().mean()) for s in range(6)}
    assert len(rates) == 1


def test_a_part_keeps_the_pool_of_the_whole(data):
    whole = E.make_design(data.is_noisy)
    part = torch.arange(0, data.n, 3)
    design = E.make_design(data.is_noisy, within=part)
    assert design.n == len(part)
    assert set(part[design.pool].tolist()) == set(whole.pool.tolist()) & set(part.tolist())


# --- running --------------------------------------------------------------------------------------------------------

def test_same_seed_same_bits(data): assert_same(go(data), go(data))


def test_folder_memory_and_order_agree(data, tmp_path):
    memory = go(data)
    assert_same(memory, go(data, tmp_path/'a b'))
    go(data, tmp_path/'c', '2-3'); go(data, tmp_path/'c', '0-0')
    assert_same(memory, go(data, tmp_path/'c'))


def test_rows_mean_what_they_say(data):
    design, rec = E.make_design(data.is_noisy), go(data)
    for r, seed in enumerate(rec['seed']):
        np.testing.assert_array_equal(rec['included'][r], E.draw_included(design, int(seed)))
    assert rec['prediction'].shape == (4, data.n) and rec['heldout_prob'].shape == (4, len(design.pool) - design.n_included, 10)
    p = heldout_pred_probs(rec)
    known = ~np.isnan(p).any(1)
    np.testing.assert_allclose(p[known].sum(1), 1, atol=1e-5)
    assert (known == (~rec['included']).any(0)).all()
    score = score_exclusion(rec, soft=False)
    table = score_heldout(rec)
    np.testing.assert_allclose(score[table.position], 1 - table.exclusion, atol=1e-6)
    assert np.isnan(np.delete(score, design.pool)).all()


def test_quantized_values_against_the_model(data):
    design = E.make_design(data.is_noisy)
    quick = QUICK | {'precision': 'fp32'}
    row, = E.train_members(data, design, 'mlp', 1., quick, [3], torch.device('cpu'), 'fp32')
    from noisymem.models import make_model
    from noisymem.train import predict, train
    net = train(make_model('mlp', 10, (1, 8, 8), seed=3), data, quick, seed=3, positions=E.subset_mask(design, 3), device='cpu').model
    z = predict(net, data.x, data.mean, data.std).logits[design.pool]
    y = data.given_label[design.pool]
    np.testing.assert_allclose(row['given_prob'][0]/255, z.softmax(1).gather(1, y[:, None])[:, 0], atol=.5/255 + 1e-6)
    other = z.scatter(1, y[:, None], -torch.inf).max(1).values
    np.testing.assert_allclose(row['margin'][0]/4, (z.gather(1, y[:, None])[:, 0] - other).clamp(-31.75, 31.75), atol=.125 + 1e-5)


def test_augmented_view_is_another_key_and_another_look(data, tmp_path):
    recipe = QUICK | {'augment': (('crop', 2),)}
    plain, seen = go(data, recipe=recipe), go(data, recipe=recipe, eval_view='augmented')
    assert plain.meta['key'] != seen.meta['key'] and (plain['given_prob'] != seen['given_prob']).any()
    with pytest.raises(ValueError, match='eval_view must be one of'): go(data, eval_view='train')


SCRIPT = '''
import sys
from noisymem.data import load_dataset, sample
from noisymem.ensemble import make_design, run_ensemble
from noisymem.noise import add_noise
data = add_noise(sample(load_dataset('digits'), 200, seed=0), 'symmetric', rate=.2, seed=0)
run_ensemble(data, make_design(data.is_noisy), int(sys.argv[2]), sys.argv[1], model='mlp', recipe={'name': 'digits', 'epochs': 2}, device='cpu')
'''


def start(folder, n): return subprocess.Popen([sys.executable, '-c', SCRIPT, str(folder), str(n)], env=os.environ | {'OMP_NUM_THREADS': str(torch.get_num_threads())}, stderr=subprocess.PIPE)


def shards(folder): return sorted((Path(folder)/'shards').glob('seed-*.npz'))


def test_sigkill_in_the_middle_then_resume_equals_uninterrupted(data, tmp_path):
    n, rng = 700, np.random.default_rng(0)  # stacked in groups of 64 per thread; each kill comes while shards of a group are written or the next group trains
    for attempt in range(4):
        p, before = start(tmp_path, n), len(shards(tmp_path))
        deadline = time.monotonic() + 120
        while len(shards(tmp_path)) < before + 3 and p.poll() is None and time.monotonic() < deadline: time.sleep(.01)
        time.sleep(rng.random()*.1)
        p.send_signal(signal.SIGKILL); p.wait()
    done = len(shards(tmp_path))
    assert 0 < done < n, 'killed too late to mean anything'
    assert_same(go(data, seeds=done + 20), go(data, tmp_path, done + 20))


def test_two_processes_on_one_folder(data, tmp_path):
    both = [start(tmp_path, 12) for _ in range(2)]
    for p in both: assert p.wait(240) == 0, p.stderr.read().decode()[-2000:]
    assert len(shards(tmp_path)) == 12 and not list((tmp_path/'locks').iterdir())
    assert_same(go(data, seeds=12), E.load_ensemble(tmp_path))


def test_seeds_held_by_a_process_that_dies_are_taken_over(data, tmp_path):
    p = start(tmp_path, 400)
    while not shards(tmp_path) and p.poll() is None: time.sleep(.02)
    p.send_signal(signal.SIGKILL); p.wait()
    assert len(go(data, tmp_path, len(shards(tmp_path)) + 2)) >= 3


def test_damaged_shards_are_named_and_made_again(data, tmp_path, capsys):
    want = go(data, tmp_path)
    a, b, c = shards(tmp_path)[:3]
    a.write_bytes(a.read_bytes()[:200]); b.write_bytes(b''); raw = bytearray(c.read_bytes()); raw[len(raw)//2] ^= 255; c.write_bytes(raw)
    (tmp_path/'shared.npz').write_bytes(b'junk')
    assert_same(want, go(data, tmp_path))
    out = capsys.readouterr().out
    assert all(p.name in out for p in (a, b, c, tmp_path/'shared.npz'))


def test_load_refuses_a_damaged_shard(data, tmp_path):
    go(data, tmp_path)
    shards(tmp_path)[1].write_bytes(b'PK')
    with pytest.raises(ValueError, match='seed-000001.npz is damaged'): E.load_ensemble(tmp_path)


def test_mixed_label_sets_in_one_folder(data, tmp_path):
    other = add_noise(sample(load_dataset('digits'), 200, seed=0), 'symmetric', rate=.2, seed=1)
    go(data, tmp_path/'a', 2); go(other, tmp_path/'b', 3)
    with pytest.raises(ValueError, match='holds another run'): go(other, tmp_path/'a')
    shards(tmp_path/'b')[2].rename(tmp_path/'a'/'shards'/'seed-000002.npz')
    with pytest.raises(ValueError, match='cannot be merged'): E.load_ensemble(tmp_path/'a')
    with pytest.raises(ValueError, match='seed-000002.npz belongs to another run'): go(data, tmp_path/'a', 3)


def test_a_copied_file_is_not_counted_twice(data, tmp_path):
    go(data, tmp_path)
    (tmp_path/'shards'/'seed-000000 copy.npz').write_bytes(shards(tmp_path)[0].read_bytes())
    assert len(E.load_ensemble(tmp_path)) == 4


def test_bad_input_before_work_and_nothing_lost(data, tmp_path):
    rec = go(data, tmp_path)
    design = E.make_design(data.is_noisy)
    for kwargs, match in [(dict(model='resnet35'), 'must be one of'), (dict(recipe='papre'), 'recipe must be one of'), (dict(seeds='0-4,2-5'), 'must not overlap'), (dict(seeds=0), 'at least one'), (dict(width=0.), 'width')]:
        with pytest.raises(ValueError, match=match): E.run_ensemble(data, design, **dict(dict(seeds=4, folder=tmp_path, model='mlp', recipe=QUICK, device='cpu') | kwargs))
    with pytest.raises(ValueError, match='pool of wrong labels is empty'): E.make_design(torch.zeros(50, dtype=torch.bool))
    with pytest.raises(ValueError, match='200 examples, the data set has 150'): E.run_ensemble(sample(data, 150, 0), design, 2, model='mlp', recipe=QUICK)
    assert_same(rec, E.load_ensemble(tmp_path))


def test_unknown_truth_needs_the_uniform_design(data):
    with pytest.raises(ValueError, match='need the true labels'): E.make_design(None)
    assert len(E.make_design(None, 'uniform', n=7).pool) == 7
    with pytest.raises(ValueError, match='some examples in and some out'): E.make_design(None, 'uniform', n=1)


@pytest.mark.slow
def test_a_record_of_a_hundred_models_on_cifar_takes_at_most_8_megabytes(tmp_path, real_data):
    "Two real models on all of CIFAR-10N, at a moment of training when they are least sure, hence hardest to compress."
    ds = add_noise(load_dataset('cifar10', root=real_data, download=False), 'rand1', root=real_data)
    E.run_ensemble(ds, E.make_design(ds.is_noisy), 2, tmp_path, model='fast', recipe={'name': 'cpu', 'epochs': 1}, device='cpu')
    per_model, once = np.mean([p.stat().st_size for p in shards(tmp_path)]), (tmp_path/'shared.npz').stat().st_size
    assert 100*per_model + once < 8e6, (per_model, once)


# defects found by review

@pytest.mark.parametrize('seeds, match', [('9-3,1', 'smaller first'), ('1-2-5', 'must look like'), ('', 'must look like'), ('a', 'must look like'), ([.2, 1.7], 'must be integers'), ([True], 'must be integers'),
                                          ([-1], r'must be in \[0'), ([2**32], r'must be in \[0'), (0, 'at least one'), (-3, 'at least one'), ('0-4,4-6', 'must not overlap')])
def test_bad_seeds_are_refused_before_a_folder_is_made(data, tmp_path, seeds, match):
    with pytest.raises(ValueError, match=match): E.parse_seeds(seeds)
    with pytest.raises(ValueError, match=match): go(data, tmp_path/'new', seeds)
    assert not (tmp_path/'new').exists()


def test_good_seeds():
    assert E.parse_seeds(np.int64(3)) == [0, 1, 2] and E.parse_seeds('7, 0-1') == [0, 1, 7] and E.parse_seeds(np.array([4, 2])) == [2, 4]


@pytest.mark.parametrize('within', [[9, 8, 5, 4, 1], [1, 1, 2], [0, 1, 40], [-1, 3], [.5, 1.]])
def test_a_part_must_be_ascending_positions(within):
    with pytest.raises(ValueError, match='within must hold ascending positions'): E.make_design(np.arange(40) < 10, within=np.array(within))


def test_another_normalisation_is_another_key(data):
    from dataclasses import replace
    design = E.make_design(data.is_noisy)
    def key(d): return config_hash(E.ensemble_config(d, design, 'mlp', 1., QUICK, 'fp32', 'plain'))
    assert key(data) == key(replace(data)) and key(data) != key(replace(data, std=(.5,))) and key(data) != key(replace(data, mean=(.5,)))


def test_every_setting_of_a_recipe_and_the_library_version_are_in_the_key(data, monkeypatch):
    from dataclasses import asdict
    design = E.make_design(data.is_noisy)
    def key(recipe): return config_hash(E.ensemble_config(data, design, 'mlp', 1., recipe, 'fp32', 'plain'))
    other = dict(schedule='cosine', optimizer='adam', augment=(('flip', True),), milestones=(3,), nesterov=False, precision='auto')
    for name, value in asdict(E.get_recipe('cpu')).items():
        if name == 'precision': continue
        changed = other.get(name, value*2 or .1 if isinstance(value, (int, float)) and name not in ('warmup', 'label_smoothing') else .3)
        assert key({'name': 'cpu', name: changed}) != key('cpu') or changed == value, name
    before = key('cpu')
    monkeypatch.setattr(E, '__version__', '9.9')
    assert key('cpu') != before


def keys_of(folder):
    "Keys that a copy of the library gives, in a process that has not read it yet."
    for module in [m for m in sys.modules if m.split('.')[0] == 'noisymem']: del sys.modules[module]
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    from noisymem import ensemble
    assert ensemble.__file__.startswith(str(folder))
    return [ensemble._training_code('fast'), ensemble._training_code('mlp', True), ensemble._training_code('resnet34')]


def test_a_changed_constant_of_the_training_code_is_another_key(tmp_path, root):
    "In a copy of the library: a constant of the loss, a comment, a network."
    import shutil
    shutil.copytree(root/'noisymem', tmp_path/'noisymem', ignore=shutil.ignore_patterns('__pycache__'))
    def keys(): return in_a_copy(keys_of, tmp_path)
    def change(module, old, new):
        path = tmp_path/'noisymem'/f'{module}.py'
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    before = keys()
    change('losses', 'def cross_entropy(', '# a remark\ndef cross_entropy(')
    change('plots', "'figure.dpi': 100", "'figure.dpi': 101")
    assert keys() == before
    change('models', 'nn.MaxPool2d(2, ceil_mode=True))] if j == 1', 'nn.AvgPool2d(2, ceil_mode=True))] if j == 1')
    pooled = keys()
    assert pooled[0] != before[0] and pooled[1:] == before[1:], 'only the networks that have this layer'
    change('models', '34: ((3, 4, 6, 3), False)', '34: ((1, 1, 1, 1), False)')
    shallow = keys()
    assert shallow[2] != pooled[2] and shallow[:2] == pooled[:2], 'a table of numbers'
    change('stacked', '.sum(1)\n', '.sum(1)*1.01\n')
    stacked = keys()
    assert stacked[1] != shallow[1] and stacked[::2] == shallow[::2], 'only what trains in a stack'
    change('ensemble', 'np.float32([loss])', 'np.float32([loss + 1])')
    assert all(a != b for a, b in zip(keys(), stacked))

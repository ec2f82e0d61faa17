"Stacked training against the ordinary loop, and its independence of company and threads."
import numpy as np
import pytest
import torch

from noisymem import ensemble as E
from noisymem import stacked
from noisymem.data import load_dataset, sample
from noisymem.models import make_model
from noisymem.noise import add_noise
from noisymem.stacked import _blocks, stack_models, train_stacked, unstack
from noisymem.train import train

QUICK = {'name': 'digits', 'epochs': 3, 'batch_size': 64}


@pytest.fixture(scope='module')
def digits(): return sample(load_dataset('digits'), 349, seed=1)  # a last batch of odd size


def nets(data, seeds, model='mlp', width=.1): return [make_model(model, data.n_classes, tuple(data.x.shape[1:]), width=width, seed=s) for s in seeds]


def go(data, seeds, threads=1, recipe=QUICK, **kwargs):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try: return {r.seed: r for r in train_stacked(nets(data, seeds, **kwargs), data, recipe, seeds, device='cpu')}
    finally: torch.set_num_threads(before)


@pytest.mark.parametrize('model', ['mlp', 'linear'])
@pytest.mark.parametrize('change', [{}, {'label_smoothing': .2}, {'optimizer': 'adam', 'lr': .002}, {'schedule': 'cosine', 'nesterov': False}, {'batch_size': 348}])
def test_a_stacked_model_is_the_one_trained_alone(digits, model, change):
    recipe = QUICK | {'precision': 'fp32'} | change
    runs = go(digits, [0, 7], recipe=recipe, model=model)
    for s in (0, 7):
        alone = train(nets(digits, [s], model)[0], digits, recipe, seed=s, device='cpu')
        torch.testing.assert_close(runs[s].logits, alone.evaluation.logits, atol=2e-3, rtol=1e-3)
        assert runs[s].train_loss == pytest.approx(alone.train_loss, abs=1e-4)
        for p, q in zip(runs[s].model.parameters(), alone.model.parameters()): torch.testing.assert_close(p, q, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('width', [.1, .13])
def test_bits_do_not_depend_on_company_or_threads(digits, precision, width):
    recipe = QUICK | {'precision': precision}
    full = go(digits, list(range(37)), recipe=recipe, width=width)
    for seeds, threads in (([3], 1), ([0, 3, 5], 2), ([36, 3, 20], 1), ([3, 19], 2), (list(range(37)), 2)):
        part = go(digits, seeds, threads, recipe=recipe, width=width)
        for s in seeds:
            assert torch.equal(part[s].logits, full[s].logits) and torch.equal(part[s].test_logits, full[s].test_logits) and part[s].train_loss == full[s].train_loss
            assert all(torch.equal(p, q) for p, q in zip(part[s].model.parameters(), full[s].model.parameters()))


def test_bf16_learns_what_fp32_learns(digits):
    accuracy = {p: np.mean([(r.test_logits.argmax(1) == digits.y_test).float().mean() for r in go(digits, list(range(16)), recipe=QUICK | {'precision': p, 'epochs': 10}).values()]) for p in ('fp32', 'bf16')}
    assert accuracy['fp32'] > .8 and abs(accuracy['fp32'] - accuracy['bf16']) < .02


def test_blocks_hold_every_model_once_at_its_place():
    rng = np.random.RandomState(0)
    for _ in range(20):
        seeds = rng.choice(200, rng.randint(1, 60), replace=False).tolist()
        blocks = _blocks(seeds)
        assert sorted(i for b in blocks for i in b if i is not None) == list(range(len(seeds)))
        assert all(seeds[i] % 16 == place for b in blocks for place, i in enumerate(b) if i is not None)


def test_unstack_leaves_out_what_is_none(digits):
    a, b = nets(digits, [0, 1])
    kept = [p.clone() for p in a.parameters()]
    unstack(stack_models([b, b]), [None, a])
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters())) and not torch.equal(kept[0], a.backbone.fc1.weight)


def test_subsets_are_each_models_own(digits):
    data = add_noise(digits, 'symmetric-0.3', seed=0)
    design = E.make_design(data.is_noisy)
    rec = E.run_ensemble(data, design, 5, model='mlp', width=.2, recipe=QUICK | {'precision': 'fp32'}, device='cpu')
    for i, s in enumerate(rec['seed']):
        alone = train(nets(data, [s], width=.2)[0], data, QUICK | {'precision': 'fp32'}, seed=int(s), positions=E.subset_mask(design, int(s)), device='cpu')
        same = rec['prediction'][i] == alone.evaluation.logits.argmax(1).numpy()
        assert same.mean() > .99


def test_no_test_set_and_one_model(digits):
    from dataclasses import replace
    bare = replace(digits, x_test=digits.x_test[:0], y_test=digits.y_test[:0])
    run, = train_stacked(nets(bare, [4]), bare, QUICK, [4], device='cpu')
    assert run.test_logits.shape == (0, 10) and run.logits.shape == (bare.n, 10)


def test_bad_input_before_work(digits):
    two = nets(digits, [0, 1])
    for match, kwargs in (('one per model', dict(seeds=[0])), ('at least one example', dict(positions=torch.zeros(2, 0, dtype=torch.long))), ('must not augment', dict(recipe='cpu')),
                          (r'in \[0, 349\)', dict(positions=torch.full((2, 5), -1)))):
        with pytest.raises(ValueError, match=match): train_stacked(two, digits, **dict(dict(recipe=QUICK, device='cpu') | kwargs))
    with pytest.raises(ValueError, match='one shape'): list(train_stacked([two[0], *nets(digits, [1], width=.2)], digits, QUICK, device='cpu'))


@pytest.mark.gpu
def test_cuda_agrees_with_cpu(digits):
    recipe = QUICK | {'precision': 'fp32'}
    cpu = go(digits, [0, 1], recipe=recipe)
    for r in train_stacked(nets(digits, [0, 1]), digits, recipe, [0, 1], device='cuda'): torch.testing.assert_close(r.logits.cpu(), cpu[r.seed].logits, atol=5e-3, rtol=1e-2)


@pytest.mark.parametrize('how', ['an error', 'a reader that stops'])
def test_groups_in_the_queue_are_not_trained_in_vain(digits, monkeypatch, how):
    trained, real = [], stacked._train_group
    def count(*args):
        trained.append(1)
        if how == 'an error': raise ValueError('boom')
        return real(*args)
    monkeypatch.setattr(stacked, '_train_group', count)
    seeds = list(range(16*40))  # ten groups of 64
    runs = train_stacked(nets(digits, seeds, width=.01), digits, QUICK | {'epochs': 1}, seeds, device='cpu')
    if how == 'an error':
        with pytest.raises(ValueError, match='boom'): next(runs)
    else: next(runs); runs.close()
    assert len(trained) <= 1 + 2*torch.get_num_threads()

"What a profile will cost, told before it runs."

import json

import pytest
import torch

from noisymem import plan as P, runs as R
from noisymem.batch import Job, load_profile, make_job
from noisymem.data import load_dataset
from noisymem.plan import cost_of, find_configs, format_plan, plan_jobs
from noisymem.runs import RunConfig, ensemble_folder, load_or_run, prepare, training_flop
from noisymem.train import get_recipe


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    "An empty folder; and no other process is started to measure."
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    monkeypatch.setattr(P, '_measure_in_workers', lambda n, nets, device: P._measure_here(nets, device))
    monkeypatch.setattr(P, '_import_seconds', lambda: 2.)


def _agrees(k, value, cfgs):
    "All runs have the value; of a recipe the name, of which a notebook may change settings."
    name = lambda v: v['name'] if isinstance(v, dict) else v
    return k == 'recipe' and isinstance(value, dict) or all(name(getattr(c, k)) == name(value) for c in cfgs)


def test_every_notebook_of_every_profile_says_what_it_needs(tmp_path):
    for profile in ('demo', 'laptop', 'gpu', 'paper'):
        for job in load_profile(profile):
            cfgs = find_configs(job) + find_configs(job, single=True)
            assert (cfgs or 'single_runs = []' in job.notebook.read_text()) and all(isinstance(c, RunConfig) for c in cfgs), job.name
            for k in ('dataset', 'model', 'recipe'): assert k not in job.parameters or _agrees(k, job.parameters[k], cfgs)
    assert not list(tmp_path.iterdir()), 'planning must leave nothing behind'


def test_what_is_there_costs_nothing_and_what_is_shared_costs_once():
    cfg = RunConfig(dataset='digits', noise='symmetric-0.2', n_examples=150, model='mlp', width=.1, recipe='digits', n_models=6)
    cost = cost_of(cfg, 'cpu')
    assert cost.models == 6 and cost.seconds > 0
    load_or_run(cfg, 'cpu')
    assert cost_of(cfg, 'cpu').models == 0
    from dataclasses import replace
    assert cost_of(replace(cfg, n_models=10), 'cpu').models == 4
    taken = {8, 9}
    assert cost_of(replace(cfg, n_models=10), 'cpu', taken).models == 2 and taken == {6, 7, 8, 9}


def test_operations_are_counted_as_defined():
    cfg = RunConfig(dataset='digits', noise='symmetric-0.2', n_examples=100, model='linear', recipe='digits', design='uniform', subset_ratio=.5, n_models=3)
    macs, n_test = 64*10, 360
    assert cost_of(cfg, 'cpu').flop == 3*2*macs*(3*50*30 + 100 + n_test)


def test_disk_within_a_factor_of_two(tmp_path):
    cfg = RunConfig(dataset='digits', noise='symmetric-0.2', model='mlp', width=.1, recipe='digits', n_models=4)
    told = cost_of(cfg, 'cpu').disk
    load_or_run(cfg, 'cpu')
    there = sum(p.stat().st_size for p in tmp_path.rglob('seed-*.npz'))
    assert .5 < told/there < 2


def test_a_plan_adds_up():
    settings = dict(dataset='digits', noise='symmetric-0.2', n_examples=150, n_models=4, model='mlp', recipe='digits')
    table = plan_jobs([make_job('tab_detection', settings), make_job('fig_how_many_models', settings)], 'cpu')
    assert list(table.models) == [4, 0]
    text = format_plan(table)
    assert 'total' in text and len(text.splitlines()) == 4


def test_nothing_to_plan():
    with pytest.raises(ValueError, match='jobs must hold at least one job, got none'): plan_jobs([])


def test_single_runs_are_no_ensembles():
    "A cluster trains ensembles for a notebook; what a notebook trains itself must not be among them."
    job = make_job('fig_regions', dict(dataset='digits', noise='symmetric-0.3', n_examples=100, epochs=4, recipe='digits', contenders=[dict(model='mlp', width=.1)], rates=[.1, .01], schedules=['constant']))
    assert find_configs(job) == [] and [c.recipe['lr'] for c in find_configs(job, single=True)] == [.1, .01]
    row = plan_jobs([job], 'cpu').iloc[0]
    assert row.models == 2 and row.disk == 0


def _job(tmp_path, name, settings):
    "A figure notebook of one settings cell."
    cell = dict(cell_type='code', metadata={}, source=f'from noisymem.runs import RunConfig\n{settings}')
    (tmp_path/f'{name}.ipynb').write_text(json.dumps(dict(cells=[cell])))
    return Job(name, tmp_path/f'{name}.ipynb', {})


def _counted(monkeypatch):
    "Nothing is measured: what is asked for is counted."
    read, measured = [], []
    load = load_dataset
    for module in (P, R): monkeypatch.setattr(module, 'load_dataset', lambda name, **options: read.append(name) or load(name, **options))
    monkeypatch.setattr(P, 'measure_speed', lambda model, width, recipe, *a, **options: measured.append((model, recipe.batch_size)) or 1e3)
    monkeypatch.setattr(P, '_measure_stack', lambda net, device: measured.append((net.model, net.stack)) or (1e-3, 1e-6))
    monkeypatch.setattr(P, '_import_seconds', lambda: measured.append('import') or 2.)
    return read, measured


SMALL = "dict(dataset='digits', n_examples=150, model='fast', width=.05)"


def test_data_are_read_once_and_networks_measured_once(tmp_path, monkeypatch):
    "Rate, schedule, epochs, noise and design change neither; the next plan reads and measures nothing."
    read, measured = _counted(monkeypatch)
    jobs = [_job(tmp_path, f'fig_{i}', f"cfgs = [RunConfig(noise=noise, design=design, n_models={i}, recipe=dict(name='digits', epochs={i}, lr=.{i}, schedule='cosine'), **{SMALL}) for noise in ('symmetric-0.2', 'pair-0.3') for design in ('balanced', 'uniform')]") for i in (2, 3)]
    jobs.append(_job(tmp_path, 'fig_s', f"single_runs = [RunConfig(noise='pair-0.3', recipe='digits', **{SMALL})]"))
    first = plan_jobs(jobs, 'cpu')
    assert read == ['digits'] and measured == [('fast', 8), ('fast', 64), 'import']
    del read[:], measured[:]
    assert plan_jobs(jobs, 'cpu').equals(first) and not read and not measured


def test_an_outline_leads_to_the_results_of_the_data(monkeypatch):
    read, _ = _counted(monkeypatch)
    cfgs = [RunConfig(dataset='digits', noise='simulated_human-0.2', n_examples=n, design=design, draw=draw, model='linear', recipe='digits') for n in (0, 300) for design in ('balanced', 'uniform', 'stratified') for draw in ('independent', 'rotated')]
    outlines, absent = P.outline_data(cfgs + cfgs)
    assert read == ['digits'] and not absent
    for cfg, known in zip(cfgs, outlines):
        real = prepare(cfg)
        assert ensemble_folder(cfg, *known, torch.device('cpu')) == ensemble_folder(cfg, *real, torch.device('cpu'))
        assert training_flop(cfg, *known) == training_flop(cfg, *real) and P._shard_bytes(*known) == P._shard_bytes(*real)
        assert known[0].x.nbytes == real[0].x.nbytes and known[0].x.untyped_storage().nbytes() == 1


def test_a_file_that_changed_is_read_again(tmp_path, monkeypatch):
    read, _ = _counted(monkeypatch)
    monkeypatch.setenv('NOISYMEM_DATA', str(tmp_path/'data'))
    cfg = RunConfig(dataset='digits', noise='clean', design='uniform', model='linear', recipe='digits')
    for n in (1, 1, 2):
        (tmp_path/'data').mkdir(exist_ok=True)
        if n == 2: (tmp_path/'data'/'new').write_text('1')
        P.outline_data([cfg])
        assert len(read) == n


def test_absent_data_are_planned_from_their_published_size(tmp_path, monkeypatch):
    _counted(monkeypatch)
    monkeypatch.setenv('NOISYMEM_DATA', str(tmp_path/'nothing'))
    monkeypatch.setattr('urllib.request.urlopen', lambda *a, **k: pytest.fail('a plan must download nothing'))
    jobs = [_job(tmp_path, 'fig_a', "cfgs = [RunConfig(dataset='cifar10', noise='rand1', model='linear', recipe='cpu', n_models=3), RunConfig(dataset='cifar10', noise='worst', n_examples=500, model='linear', recipe='cpu', n_models=1)]"),
            _job(tmp_path, 'fig_b', "single_runs = [RunConfig(dataset='tiny_imagenet:classes=20,size=32', noise='symmetric-0.4', model='linear', recipe='cpu', n_models=1)]")]
    table = plan_jobs(jobs, 'cpu')
    assert list(table.models) == [4, 1] and (table.flop > 0).all()
    text = format_plan(table)
    assert f'cifar10 is not in {tmp_path}/nothing: put the folder cifar-10-batches-py or the archive cifar-10-python.tar.gz there; planned from its published size' in text
    assert text.count('planned from its published size') == 2 and not (tmp_path/'nothing').exists()
    (data, design), = P.outline_data([RunConfig(dataset='cifar10', noise='rand1')])[0]
    assert (data.n, len(design.pool), len(data.x_test)) == (50_000, 17_000, 10_000)


@pytest.mark.parametrize('name, size', [('svhn', (73_257, 26_032, (3, 32, 32), 10)), ('cifar100[1,5]', (1000, 200, (3, 32, 32), 2)), ('clothing1m:size=32,n_examples=700', (700, 10_526, (3, 32, 32), 14)), ('news:classes=20', (11_314, 7_532, (1000,), 20)), ('clothing1m_mini', None)])
def test_published_sizes(name, size): assert P._published_size(name) == size


def test_a_run_named_k_times_is_k_trainings_and_shared_where_named_as_often(tmp_path, monkeypatch):
    _counted(monkeypatch)
    run = f"RunConfig(noise='pair-0.3', recipe='digits', **{SMALL})"
    jobs = [_job(tmp_path, f'fig_{i}', f'single_runs = [{run}]*{n}') for i, n in enumerate((3, 3, 2, 1, 1))]
    table = plan_jobs(jobs, 'cpu')
    assert list(table.models) == [3, 0, 2, 1, 0] and table.own.all()
    assert table.flop[0]/table.flop[3] == 3 and '3*' in format_plan(table) and 'kept or not' in format_plan(table)


def test_what_is_done_costs_nothing_and_says_so(tmp_path, monkeypatch):
    read, measured = _counted(monkeypatch)
    monkeypatch.setattr(P, 'job_state', lambda profile, job: dict(status='done' if job.name == 'fig_0' else 'stale'))
    jobs = [_job(tmp_path, f'fig_{i}', f"single_runs = [RunConfig(noise='pair-0.3', recipe='digits', **{SMALL})]") for i in range(2)]
    table = plan_jobs(jobs, 'cpu', 'mine')
    assert list(table.models) == [0, 0] and list(table.cached) == [True, False] and table.seconds[0] == 0 < table.seconds[1]
    assert 'total of 2, 1 cached' in format_plan(table)


def test_the_time_is_shared_and_spent_on_what_costs_most(monkeypatch):
    nets = [P.Network('linear', w, get_recipe('digits'), (1, 8, 8), 10) for w in (1., 2., 3., 4.)]
    told = {}
    monkeypatch.setattr(P, '_measure_in_workers', lambda n, timed, device: told.update(timed) or [{} for _ in timed])
    P._measure_all(dict(zip(nets, (1., 1., 1., 97.))), torch.device('cpu'))
    assert sum(told.values()) == pytest.approx(P.BUDGET) and told[nets[3]] == pytest.approx(P.BUDGET*(.125 + .485))


def test_a_step_that_takes_too_long_is_extrapolated_or_guessed(monkeypatch):
    seen = []
    step = lambda b: .01 + .002*b
    monkeypatch.setattr(P, 'measure_speed', lambda model, width, recipe, *a, **options: seen.append(recipe.batch_size) or 1/step(recipe.batch_size))
    net = lambda size, model='linear': P.Network(model, 1., get_recipe(dict(name='cpu', batch_size=size)), (3, 32, 32), 10)
    for size, seconds in ((128, 10.), (128, .2), (1024, .2), (4, .01)):
        del seen[:]
        found, largest = P._time_step(net(size), seconds, torch.device('cpu'))
        assert found == pytest.approx(step(size) if len(seen) > 1 else step(largest)*size/largest)
        assert seen == sorted(seen) and max(seen) == largest <= size and 2*step(largest) < max(seconds, .1)
    del seen[:]
    small, large = P._measure_here([(net(64), 1.), (net(64, 'resnet34'), 1e-3)], torch.device('cpu'))
    assert 64 in seen and not small['guessed'] and large['guessed']
    assert large['step']/small['step'] == pytest.approx(P._macs_of(net(64, 'resnet34'))/P._macs_of(net(64)))


def test_processes_that_measure_side_by_side_agree(monkeypatch):
    monkeypatch.undo()
    net = P.Network('linear', 1., get_recipe('digits'), (1, 8, 8), 10, 2)
    found, = P._measure_in_workers(2, [(net, .05)], torch.device('cpu'))
    assert 0 < found['step'] < 1 and found['look'] == pytest.approx(found['step']/64/3) and found['memory'] > 1e7 and not found['guessed']


def test_a_damaged_table_of_speeds_is_measured_again(tmp_path, monkeypatch):
    _, measured = _counted(monkeypatch)
    net, device = P.Network('linear', 1., get_recipe('digits'), (1, 8, 8), 10), torch.device('cpu')
    found = P.measure_networks({net: 1.}, device)
    path, = (tmp_path/'speeds').glob('*.json')
    path.write_text(path.read_text()[:20])
    del measured[:]
    assert P.measure_networks({net: 1.}, device)[net]['step'] == found[net]['step'] and measured

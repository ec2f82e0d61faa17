"What a profile will cost, told before it runs."

import pytest

from noisymem.batch import load_profile, make_job
from noisymem.plan import cost_of, find_configs, format_plan, plan_jobs
from noisymem.runs import RunConfig, load_or_run


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch): monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))


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

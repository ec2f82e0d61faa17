"Jobs on a cluster: options, the order of jobs, processes of this machine, and a real SLURM whose jobs are killed."
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import yaml

from test_batch import notebook, run_here

from noisymem import batch as B
from noisymem import cli
from noisymem import cluster as C
from noisymem.batch import job_state, load_profile, make_job
from noisymem.core import config_hash
from noisymem.ensemble import _shard, load_ensemble, parse_seeds, run_ensemble
from noisymem.runs import RunConfig, ensemble_folder, prepare

TINY = dict(dataset='digits', noise='symmetric-0.3', n_examples=120)
QUICK = dict(models_per_task=2, time=5, mem_gb=1)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path/'results'))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    return tmp_path/'results'


def figure(folder, cfgs, name='fig_tiny'):
    "A notebook that needs ensembles."
    nb = nbformat.v4.new_notebook(metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
    cells = ["import matplotlib; matplotlib.use('Agg')\nimport matplotlib.pyplot as plt, pandas as pd\nfrom noisymem.figures import Figure\nfrom noisymem.runs import RunConfig, load_or_run",
             'seed_noise: int = 0  # of the flips', f'cfgs = [RunConfig(seed_noise=seed_noise, **c) for c in {cfgs!r}]',
             'recs = [load_or_run(c)[1] for c in cfgs]',
             f"fig = Figure('{name}', {{}})\nax = plt.figure().add_subplot(); ax.plot([1, 2])\nfig.save(ax, pd.DataFrame(dict(x=[1])))\nfig.claim('models', sum(len(r['seed']) for r in recs), '>', 0, n=1)\nfig.finish()"]
    nb.cells = [nbformat.v4.new_markdown_cell(f'# {name}\n\n> tiny'), *map(nbformat.v4.new_code_cell, cells)]
    nb.cells[2].metadata['tags'] = ['parameters']
    nbformat.write(nb, folder/f'{name}.ipynb')
    return make_job(str(folder/f'{name}.ipynb'), {})


def alone(cfg):
    "The record of one process that writes nothing, on one thread as the tasks are: sums over other threads round otherwise."
    data, design = prepare(cfg)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: return run_ensemble(data, design, cfg.n_models, None, cfg.model, cfg.width, cfg.recipe, 'cpu')
    finally: torch.set_num_threads(threads)


def folder_of(cfg):
    data, design = prepare(cfg)
    return ensemble_folder(cfg, data, design, C.pick_device('cpu'))[0]


def assert_same(merged, single):
    "All rows and all shared arrays, seconds apart."
    assert set(merged.rows) == set(single.rows) and set(merged.shared) == set(single.shared) and len(merged['seed'])
    for k in set(single.rows) - {'seconds'}: np.testing.assert_array_equal(merged[k], single[k], strict=True, err_msg=k)
    for k in single.shared: np.testing.assert_array_equal(merged.shared[k], single.shared[k], err_msg=k)


# ---- options

@pytest.mark.parametrize('options, says', [
    (dict(partitions='x'), "option in the overrides must be one of 'partition', 'account', 'time'"),
    (dict(slurm_partitionn='x'), "'slurm_qos'"), (dict(slurm_dependency='afterok:1'), 'option in the overrides'), (dict(slurm_nodes=2), 'option in the overrides'),
    (dict(time=0), r'time in the overrides must be in \[1, inf\), got 0'), (dict(time=1.5), 'time in the overrides must be an integer, got 1.5'), (dict(time=True), 'got True'),
    (dict(mem_gb=0), 'mem_gb'), (dict(mem_gb='64G'), "mem_gb in the overrides must be in .* got '64G'"), (dict(gpus_per_node=-1), 'gpus_per_node'), (dict(models_per_task=0), 'models_per_task'),
    (dict(partition=3), 'partition in the overrides must be text, got 3'), (dict(setup='module load x'), 'setup in the overrides must be a list of shell commands'), (dict(setup=[1]), 'setup')])
def test_what_no_cluster_takes_is_refused(options, says):
    with pytest.raises(ValueError, match=says): C.load_options(overrides=options)


@pytest.mark.parametrize('text, says', [
    ('time: [', 'is not valid YAML, line 1'), ('time: 3\nmem_gb: 2\ntime: 4', "line 3: 'time' stands twice in one mapping, first in line 1"), ('- time', 'must hold a mapping of options'), ('tme: 3', 'option in .*o.yaml must be one of'), ('datasets: [cifar10]', 'datasets in .* must hold a mapping'),
    ('datasets: {cifar01: {time: 3}}', "data set in .* must be one of 'digits'"), ('datasets: {cifar10: {tme: 3}}', 'option in cifar10 of .*o.yaml must be one of'), ('datasets: {cifar10: 3}', 'cifar10 of .* must hold a mapping')])
def test_a_bad_file_of_options_is_refused(tmp_path, text, says):
    (tmp_path/'o.yaml').write_text(text)
    with pytest.raises(ValueError, match=says): C.load_options(tmp_path/'o.yaml')


def test_the_command_line_comes_last_and_a_data_set_before_the_rest(tmp_path):
    (tmp_path/'o.yaml').write_text('time: 30\nslurm_qos: long\ndatasets: {cifar100: {time: 90, mem_gb: 32}, clothing1m: {time: 8}}')
    o = C.load_options(tmp_path/'o.yaml', dict(mem_gb=2))
    assert C.options_for(o, 'cifar100') == C.OPTIONS | dict(time=90, mem_gb=2, slurm_qos='long')
    assert C.options_for(o, 'clothing1m:size=64') == C.OPTIONS | dict(time=8, mem_gb=2, slurm_qos='long')
    assert C.options_for(o) == C.OPTIONS | dict(time=30, mem_gb=2, slurm_qos='long')
    (tmp_path/'empty.yaml').write_text('')
    assert C.options_for(C.load_options(tmp_path/'empty.yaml')) == C.OPTIONS


def test_the_documented_file_is_read_and_asks_for_an_a100(root):
    path = root/'papermill_runs'/'cluster'/'slurm.yaml'
    o = C.load_options(path)
    assert (o['gpus_per_node'], o['slurm_constraint'], C._device(C.options_for(o, 'cifar10')), C._device(C.options_for(o, 'digits'))) == (1, 'a100', 'cuda', 'cpu')
    assert any('activate' in line for line in o['setup'])
    assert set(C.OPTIONS) - {'account'} <= set(yaml.safe_load(path.read_text())), 'every option is shown'


# ---- which jobs, in which order

def test_an_ensemble_is_trained_once_whoever_needs_it(results, tmp_path):
    mlp = TINY | dict(model='mlp', recipe=dict(name='digits', epochs=2))
    jobs = [figure(tmp_path, [mlp | dict(n_models=5)], 'fig_a'), figure(tmp_path, [mlp | dict(recipe=dict(epochs=2, name='digits'), n_models='3-8'), mlp | dict(model='fast', width=.25, n_models=3)], 'fig_b')]
    found = C.find_ensembles(jobs, C.load_options())
    assert [(e.cfg.model, e.missing, e.jobs) for e in found[:1]] == [('mlp', list(range(9)), ['fig_a', 'fig_b'])]
    steps = {s.name: s for s in C.plan_steps('p', jobs, C.load_options(overrides=dict(models_per_task=4, time=7, figure_time=3)))}
    assert {n: s.after for n, s in steps.items()} == {'train-1': (), 'merge-1': ('train-1',), 'train-2': (), 'merge-2': ('train-2',), 'figure-fig_a': ('merge-1',), 'figure-fig_b': ('merge-1', 'merge-2'), 'gallery': ('figure-fig_a', 'figure-fig_b')}
    assert [call[1][0].n_models for call in steps['train-1'].calls] == ['0-3', '4-7', '8'] and len(steps['train-2'].calls) == 1
    assert [s.name for s in steps.values() if s.even_if_failed] == ['gallery'] and steps['train-1'].options['time'] == 7 and steps['figure-fig_a'].options['time'] == 3


def test_only_what_is_missing_or_damaged_is_trained(results, tmp_path):
    cfg = RunConfig(**TINY, model='mlp', recipe=dict(name='digits', epochs=2), n_models=4)
    data, design = prepare(cfg)
    run_ensemble(data, design, 4, folder_of(cfg), 'mlp', 1., cfg.recipe, 'cpu')
    job = figure(tmp_path, [TINY | dict(model='mlp', recipe=cfg.recipe, n_models=6)])
    assert C.find_ensembles([job], C.load_options())[0].missing == [4, 5]
    _shard(folder_of(cfg), 1).write_bytes(b'not a shard')
    _shard(folder_of(cfg), 2).unlink()
    assert C.find_ensembles([job], C.load_options())[0].missing == [1, 2, 4, 5]
    steps = C.plan_steps('p', [figure(tmp_path, [TINY | dict(model='mlp', recipe=cfg.recipe, n_models='0,3')])], C.load_options())
    assert [(s.name, s.after) for s in steps[:1]] == [('merge-1', ())]


def test_every_profile_of_the_checkout_can_be_laid_out(results):
    "The demo, whose data are at hand; ensembles whose pool a notebook chooses are left to it."
    jobs = load_profile('demo')
    steps = C.plan_steps('demo', jobs, C.load_options())
    assert [s.name for s in steps if s.name.startswith('figure')] == [f'figure-{j.name}' for j in jobs] and steps[-1].name == 'gallery'
    assert C._describe(steps[-1]) == f'gallery: 1 task, after {len(jobs)} others'
    assert all(call[1][0].design != 'chosen' for s in steps if s.name.startswith('train') for call in s.calls)
    folders = [s.shards[0].parent for s in steps if s.shards]
    assert len(set(folders)) == len(folders)


def test_a_gpu_that_this_machine_cannot_see_computes_in_bfloat16(results, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    cfg = RunConfig(**TINY, model='mlp', recipe='digits', n_models=2)
    folder, config = C._expected_folder(cfg, 'cuda')
    assert config['recipe']['precision'] == 'bf16' and folder.name.endswith(config_hash(config))
    fixed, config = C._expected_folder(replace(cfg, recipe=dict(name='digits', precision='fp32')), 'cuda')
    assert config['recipe']['precision'] == 'fp32' and fixed.name.endswith(config_hash(config))


def test_a_job_that_waited_until_the_code_was_another_ends(results):
    cfg = RunConfig(**TINY, model='mlp', recipe='digits', n_models=1)
    config = ensemble_folder(cfg, *prepare(cfg), C.pick_device('cpu'))[1]
    with pytest.raises(ValueError, match=r"no longer the ensemble that was asked for \(library 'older' -> .*submit again"): C._train(cfg, 'cpu', config | dict(library='older'))
    assert not folder_of(cfg).exists()


def test_a_figure_that_fails_fails_its_job(monkeypatch, tmp_path):
    job = figure(tmp_path, [TINY | dict(model='mlp', n_models=2)])
    monkeypatch.setattr(C, '_run_one', lambda profile, job, *rest: dict(status='claims fail', error='Traceback\nAssertionError: models > 9'))
    with pytest.raises(RuntimeError, match='fig_tiny: claims fail: AssertionError: models > 9'): C._figure('p', job, C._again(False))


def test_a_figure_that_is_done_when_its_turn_comes_is_not_run_again(results, monkeypatch, tmp_path):
    "Another runner did it, or its job was queued again after its last word."
    job, ran = make_job(notebook(tmp_path, 'fig_t', '1'), {}), []
    monkeypatch.setattr(B, '_start', lambda *a: (ran.append(1), run_here(*a))[1])
    monkeypatch.setattr(B, '_stop', lambda process: None)
    for force, times in ((False, 1), (False, 1), (True, 2)):
        C._figure('p', job, C._again(force))
        assert len(ran) == times


def test_a_figure_that_trains_itself_gets_the_time_of_a_training_task(results, tmp_path):
    job = next(j for j in load_profile('demo') if j.name == 'fig_relabel')
    plan = {s.name: s for s in C.plan_steps('p', [job], C.load_options(overrides=dict(time=50, figure_time=2)))}
    assert plan['figure-fig_relabel'].options['time'] == 50 and plan['figure-fig_relabel'].about == 'trains 2 networks on digits itself' and plan['gallery'].options['time'] == 2


def sweep(folder, name, rates):
    "A notebook that draws a sweep."
    code = f"""from noisymem.sweep import list_runs, load_or_sweep
single_runs = list_runs([dict(model='mlp', width=.1)], rates={rates}, epochs=2, dataset='digits', noise='symmetric-0.3', n_examples=60)"""
    return make_job(notebook(folder, name, code, more='runs = load_or_sweep(single_runs)[0]'), {})


def test_a_run_of_a_sweep_is_trained_once_whoever_draws_it(results, tmp_path, capfd):
    jobs = [sweep(tmp_path, 'fig_a', [.1, .01]), sweep(tmp_path, 'fig_b', [.01, .001]), sweep(tmp_path, 'fig_c', [.1])]
    plan = lambda: {s.name: (len(s.calls), s.after) for s in C.plan_steps('p', jobs, C.load_options(overrides=dict(time=9, figure_time=2)))}
    assert plan() == {'sweep-1': (2, ()), 'sweep-2': (1, ()), 'figure-fig_a': (1, ('sweep-1',)), 'figure-fig_b': (1, ('sweep-1', 'sweep-2')), 'figure-fig_c': (1, ('sweep-1',)), 'gallery': (1, ('figure-fig_a', 'figure-fig_b', 'figure-fig_c'))}
    steps = C.plan_steps('p', jobs[:1], C.load_options(overrides=dict(time=9, figure_time=2)))
    assert [s.options['time'] for s in steps] == [9, 2, 2] and steps[0].about == '2 runs on digits symmetric-0.3 on cpu'
    C._sweep(*steps[0].calls[0][1])
    assert '1 runs, 1 of them new' in capfd.readouterr().out and steps[0].shards[0].exists()
    assert {n: p for n, p in plan().items() if n.startswith('sweep')} == {'sweep-1': (1, ()), 'sweep-2': (1, ())}
    assert C.run_on_cluster('p', jobs[1:2], 'local', overrides=QUICK) == 0
    assert 'sweep-1: done' in capfd.readouterr().out and '2 runs, 0 of them new' in (results/'figures'/'p'/'fig_b'/'fig_b.ipynb').read_text()


def test_which_figures_belong_to_a_profile_is_known_on_a_cluster_too(results, tmp_path, monkeypatch, capsys):
    (tmp_path/'mine.yaml').write_text(f'figures: {{{figure(tmp_path, [], "fig_a").notebook}: {{}}, {figure(tmp_path, [], "fig_b").notebook}: {{}}}}')
    monkeypatch.setattr(cli, 'run_on_cluster', lambda profile, jobs, *rest: len(jobs) - 1)
    words = ['run', str(tmp_path/'mine.yaml'), '--cluster', 'local', '--only', 'fig_b']
    assert cli.main([*words, '--dry-run']) == 0 and not results.exists()
    assert cli.main(words) == 0 and B.profile_jobs('mine') == ['fig_a', 'fig_b']


def test_a_dry_run_says_what_is_cached_and_why_the_rest_would_run(results, tmp_path, capsys):
    assert C.run_on_cluster('p', [figure(tmp_path, [TINY | dict(model='mlp', n_models=2)])], dry_run=True) == 0
    assert capsys.readouterr().out.startswith('[1/1] fig_tiny: would run (new)\ntrain-1: 1 task, 2 models')


def test_no_slurm_here(results, monkeypatch):
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    with pytest.raises(ValueError, match="cluster 'slurm' needs sbatch and srun on this machine"): C.submit('p', [])
    with pytest.raises(ValueError, match="cluster must be one of 'slurm', 'local', got 'sge'"): C.submit('p', [], 'sge')


# ---- processes of this machine

def test_local_gives_what_one_process_gives(results, tmp_path, capfd):
    cfgs = [TINY | dict(model='mlp', recipe=dict(name='digits', epochs=2), n_models=3), TINY | dict(model='fast', width=.25, recipe=dict(name='digits', epochs=2), n_models=2)]
    job = figure(tmp_path, cfgs)
    assert C.run_on_cluster('tiny', [job], 'local', overrides=QUICK) == 0
    said = capfd.readouterr().out
    for c in cfgs: assert_same(load_ensemble(folder_of(RunConfig(**c))), alone(RunConfig(**c)))
    assert job_state('tiny', job)['status'] == 'done' and (results/'gallery'/'tiny'/'index.html').exists()
    assert 'train-1: 2 tasks, 3 models of digits symmetric-0.3 mlp on cpu' in said and 'gallery: done' in said
    log = (results/'figures'/'tiny'/'fig_tiny'/'fig_tiny.ipynb').read_text()
    assert log.count('cached: ') == 2, 'a figure found everything trained'
    assert C.run_on_cluster('tiny', [job], 'local', overrides=QUICK) == 0
    assert 'fig_tiny: cached\nnothing to submit' in capfd.readouterr().out


def test_local_does_not_start_what_waits_for_a_failure(results, tmp_path, capfd, monkeypatch):
    job = figure(tmp_path, [TINY | dict(model='mlp', recipe=dict(name='digits', epochs=2), n_models=2)])
    steps = C.plan_steps('tiny', [job], C.load_options(overrides=QUICK))
    steps[0].calls = [(C._merge, (RunConfig(**TINY, model='mlp', recipe='digits', n_models=2), 'cpu'))]  # nothing is there
    monkeypatch.setattr(C, 'plan_steps', lambda *a: steps[:3])
    assert C.run_on_cluster('tiny', [job], 'local', overrides=QUICK) == 3
    said = capfd.readouterr().out
    assert 'train-1: 1 of 1 tasks failed' in said and 'merge-1: 1 of 1 tasks failed\n      not started, as train-1 did not end well' in said and 'figure-fig_tiny: 1 of 1 tasks failed\n      not started, as merge-1' in said


# ---- a real SLURM

@pytest.fixture(scope='module')
def slurm(request):
    "One node, started for these tests and stopped after them."
    shared = request.getfixturevalue('shared')
    script = shared/'slurm'/'single_node.sh'
    missing = next((what for what, there in [('the script that starts it', script.exists()), ('root', os.geteuid() == 0), ('SLURM, or apt to install it', shutil.which('sbatch') or shutil.which('apt-get'))] if not there), None)
    if missing and os.environ.get('CI'): pytest.fail(f'a real SLURM needs {missing}')
    if missing: pytest.skip(f'a real SLURM needs {missing}')
    started = subprocess.run(['bash', script, 'start', '2', '4000'], capture_output=True, text=True)
    if started.returncode and os.environ.get('CI'): pytest.fail(started.stderr[-500:])
    if started.returncode: pytest.skip(f'SLURM did not start: {started.stderr.strip()[-200:]}')
    yield
    subprocess.run(['scancel', '--user', str(os.getuid())])
    until(lambda: not C._queued(), 60)  # SLURM remembers what is left over when it starts again
    subprocess.run(['bash', script, 'stop'], capture_output=True)


def until(what, seconds=90):
    "Wait for something to be true."
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, 'it did not happen'
        time.sleep(.02)
    return found


def worker(job_id):
    "The Python process of a task."
    array, _, task = job_id.partition('_')
    for p in Path('/proc').glob('[0-9]*'):
        try:
            about = (p/'environ').read_bytes().split(b'\0')
            if f'SLURM_ARRAY_JOB_ID={array}'.encode() in about and f'SLURM_ARRAY_TASK_ID={task}'.encode() in about and b'submitit.core._submit' in (p/'cmdline').read_bytes().split(b'\0') and b'python' in (p/'cmdline').read_bytes().split(b'\0')[0]: return int(p.name)
        except OSError: pass


def state(job_id): return dict(f.split('=', 1) for f in subprocess.run(['scontrol', 'show', 'job', job_id], capture_output=True, text=True).stdout.split() if '=' in f)


def requeued(job_id):
    "Whether SLURM took a job back; it would start it again after two minutes, we ask for now."
    return state(job_id)['JobState'] == 'PENDING' and subprocess.run(['scontrol', 'update', f'jobid={job_id}', 'starttime=now']).returncode == 0


@pytest.mark.xdist_group('slurm')
def test_slurm_jobs_are_killed_requeued_and_submitted_again(results, tmp_path, slurm, capfd, monkeypatch):
    "Four tasks: one is killed by the system, one by scancel, one requeued by hand, one told that it will be preempted."
    cfg = RunConfig(**TINY, model='fast', width=.25, recipe=dict(name='digits', epochs=200), n_models=12)  # some seconds a model on an idle machine, so that a task is met at work
    job, folder = figure(tmp_path, [{k: getattr(cfg, k) for k in ('dataset', 'noise', 'n_examples', 'model', 'width', 'recipe', 'n_models')}]), folder_of(cfg)
    there = lambda *seeds: [s for s in seeds if _shard(folder, s).exists()]
    sub = C.submit('tiny', [job], 'slurm', C.load_options(overrides=QUICK | dict(models_per_task=3)))
    tasks = [j.job_id for j in sub.steps[0].jobs]
    seen = C._find_running('tiny')
    assert seen.folder == sub.folder and [j.job_id for s in seen.steps for j in s.jobs] == [j.job_id for s in sub.steps for j in s.jobs]
    ends = {0: lambda i: os.kill(worker(i), signal.SIGKILL), 1: lambda i: subprocess.run(['scancel', '--signal=INT', i]),  # plain scancel lets a task go on for half a minute; a task that is quick to go is not there any more when scancel tries again
            2: lambda i: subprocess.run(['scontrol', 'requeue', i], check=True), 3: lambda i: subprocess.run(['scancel', '--signal=USR2', i], check=True)}
    began, back = {}, set()
    def meddle():
        for k in ends:
            if k not in began and (done := there(*range(3*k, 3*k + 3))):
                ends[k](tasks[k])
                began[k] = {s: _shard(folder, s).stat().st_mtime_ns for s in done}
        back.update(k for k in (2, 3) if k in began and k not in back and requeued(tasks[k]))
        return len(began) == 4 and len(back) == 2
    until(meddle, 300)
    assert C.wait(sub, .5) == 5  # two tasks, the merge, the figure, the gallery
    said = capfd.readouterr().out
    assert 'train-1: 2 of 4 tasks failed' in said and str(sub.steps[0].jobs[0].paths.stderr) in said and 'not started, as merge-1 did not end well' in said and 'no results yet' in said
    assert [state(tasks[k])['Restarts'] for k in (2, 3)] == ['1', '1'] and there(*range(6, 12)) == [*range(6, 12)]
    assert all(_shard(folder, s).stat().st_mtime_ns == at for k in (2, 3) for s, at in began[k].items()), 'a task that starts again keeps what it had'
    missing = sorted({*range(12)} - {*there(*range(12))})
    assert 2 <= len(missing) <= 4
    again = C.submit('tiny', [job], 'slurm', C.load_options(overrides=QUICK | dict(models_per_task=4)))
    assert [s for call in again.steps[0].calls for s in parse_seeds(call[1][0].n_models)] == missing
    wait = C.wait
    monkeypatch.setattr(C, 'wait', lambda sub, every: wait(sub, every/20))
    assert C.run_on_cluster('tiny', [job], wait_for_end=True) == 0, 'what is in the queue is watched'
    assert f'logs: {again.folder}' in capfd.readouterr().out and job_state('tiny', job)['status'] == 'done' and (results/'gallery'/'tiny'/'index.html').exists()
    assert_same(load_ensemble(folder), alone(cfg))
    assert 'cached: 12 models' in (results/'figures'/'tiny'/'fig_tiny'/'fig_tiny.ipynb').read_text()


@pytest.mark.xdist_group('slurm')
def test_slurm_refuses_and_what_was_submitted_is_taken_back(results, slurm, tmp_path):
    job = figure(tmp_path, [TINY | dict(model='mlp', recipe='digits', n_models=2)])
    with pytest.raises(ValueError, match='SLURM refused train-1: .*invalid partition'): C.submit('tiny', [job], options=C.load_options(overrides=QUICK | dict(partition='elsewhere')))
    assert C._queued() == set()

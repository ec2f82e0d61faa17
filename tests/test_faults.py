"Faults, injected: SIGKILL at any moment, damaged files, full and read-only disks, two runners, a wrong clock, notebooks that misbehave."
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from test_batch import FIGURE, HERE, notebook, quick, results  # noqa: F401, two of them are fixtures

from noisymem import batch as B
from noisymem import cli
from noisymem import ensemble as E
from noisymem.core import load_json, save_json
from noisymem.data import load_dataset, sample
from noisymem.gallery import write_gallery
from noisymem.noise import add_noise
from noisymem.records import load_records
from noisymem.runs import load_or_make

SMALL = dict(mlp=dict(seeds=6, model='mlp', recipe={'name': 'digits', 'epochs': 1}), fast=dict(seeds=4, model='fast', width=.25, recipe={'name': 'cpu', 'epochs': 1}))


@pytest.fixture(autouse=True)
def exported(monkeypatch): monkeypatch.setattr(B, '_stale_modules', list)  # tested elsewhere; here a notebook under the pen fails nothing


def digits(): return add_noise(sample(load_dataset('digits'), 100, seed=0), 'symmetric', rate=.2, seed=0)


@pytest.fixture(scope='module')
def data(): return digits()


def fill(data, folder, kind='mlp', **kwargs): return E.run_ensemble(data, E.make_design(data.is_noisy), **SMALL[kind] | dict(folder=folder, device='cpu') | kwargs)


def assert_same(a, b):
    assert set(a.rows) == set(b.rows) and set(a.shared) == set(b.shared)
    for k in set(a.rows) - {'seconds'}: np.testing.assert_array_equal(a[k], b[k], err_msg=k)
    for k in a.shared: np.testing.assert_array_equal(a[k], b[k], err_msg=k)


def shards(folder): return sorted((Path(folder)/'shards').glob('seed-*.npz'))


def assert_shards_are_right(folder, want):
    "Whatever carries the name of a result is whole, and what an uninterrupted run wrote."
    for path in shards(folder): assert_same(load_records(path), load_records(Path(want)/'shards'/path.name))


# --- SIGKILL at random moments: run in a process of its own, which forks ----------------------------------------------

def forked(work):
    "Start `work` in a copy of this process; its pid."
    pid = os.fork()
    if pid: return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally: os._exit(status)


def unfinished(folder): return set(folder.rglob('.tmp-*'))


def moment(folder, older):
    "What a killed run was at; `older` unfinished files are of runs killed before."
    if unfinished(folder) - older: return 'writing'
    if not (folder/'config.json').exists(): return 'before the configuration'
    if not (folder/'shared.npz').exists(): return 'before what models share'
    return 'before the first model' if not shards(folder) else 'between models'


def wait_for_a_moment(folder, pid, span, rng):
    "Return at a random moment of a run: some time after it began, or while it writes its next file."
    writes, n, end, older = rng.random() < .3, rng.randint(0, 3), time.monotonic() + rng.uniform(0, span), unfinished(folder)
    while time.monotonic() < end or writes:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT): return
        if writes and len(shards(folder)) >= n and unfinished(folder) - older: return
        if not writes: time.sleep(.001)


def kill_trials(folder, kind, n):
    "Kill `n` runs, each at a random moment, some of them again while they resume; how often each moment was hit."
    torch.set_num_threads(1)
    data, want, there, hit, rng, span = digits(), folder/'want', folder/'run', Counter(), random.Random(0), 1.
    fill(data, folder/'warm', kind)  # imports what is imported late
    assert os.waitpid(forked(lambda: fill(data, want, kind)), 0)[1] == 0
    want_rec = E.load_ensemble(want)
    while hit.total() < n:
        status = signal.SIGKILL
        while status and rng.random() < .7:
            older, pid = unfinished(there), forked(lambda: fill(data, there, kind))
            wait_for_a_moment(there, pid, span, rng)
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            assert status in (0, signal.SIGKILL), status
            hit.update([moment(there, older)] if status else [])
            span *= 1.05 if status else .7  # about as long as a run takes, however busy the machine is
            assert_shards_are_right(there, want)
        assert os.waitpid(forked(lambda: fill(data, there, kind)), 0)[1] == 0
        assert len(shards(there)) == SMALL[kind]['seeds']
        assert_same(E.load_ensemble(there), want_rec)
        shutil.rmtree(there)
    return hit


def profile(folder):
    "Run two figures in this process and write their gallery."
    jobs = [B.make_job(notebook(folder, name, FIGURE.format(name=name)), dict(n=4)) for name in ('fig_a', 'fig_b')]
    vars(B).update(HERE, _stale_modules=list)
    return jobs, lambda: (B.run_jobs('p', jobs), write_gallery('p'))


def whole(jobs):
    "Which jobs count as done, each with what it left; `AssertionError` where that is not whole."
    found = {}
    for job in jobs:
        if B.job_state('p', job)['status'] != 'done': continue
        folder = B.job_folder('p', job)
        found[job.name] = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in ('.png', '.pdf', '.csv')}
        assert json.loads((folder/f'{job.name}.ipynb').read_text())['cells'] and set(found[job.name]) == {'claims.csv', *(f'{job.name}.{k}' for k in ('png', 'pdf', 'csv'))}
    return found


def figure_trials(folder, n):
    "Kill `n` runs of a profile, each at a random moment; how often which number of figures had been finished."
    (jobs, work), rng, span, hit, there = profile(folder), random.Random(0), 1., Counter(), folder/'run'
    os.environ['NOISYMEM_RESULTS'] = str(folder/'want')
    with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere):
        work()
        want = whole(jobs)
        os.environ['NOISYMEM_RESULTS'] = str(there)
        while hit.total() < n:
            status = signal.SIGKILL
            while status and rng.random() < .7:
                pid = forked(work)
                time.sleep(rng.uniform(0, span))
                os.kill(pid, signal.SIGKILL)
                status = os.waitpid(pid, 0)[1]
                assert status in (0, signal.SIGKILL), status
                span *= 1.05 if status else .7
                found = whole(jobs)
                hit.update([len(found)] if status else [])
                assert found.items() <= want.items()
                if (page := there/'gallery'/'p'/'index.html').exists(): assert page.read_text().endswith('</html>\n')
            assert os.waitpid(forked(work), 0)[1] == 0
            assert whole(jobs) == want and not [p for p in there.rglob('.running*')]
            shutil.rmtree(there)
    return hit


def test_sigkill_of_a_profile_at_random_moments(tmp_path):
    p = subprocess.run([sys.executable, __file__, tmp_path, 'figures', '25'], env=os.environ | dict(OMP_NUM_THREADS='1', MPLBACKEND='agg'), capture_output=True, text=True, timeout=600)
    assert p.returncode == 0, p.stderr[-3000:]
    hit = json.loads(p.stdout)
    print(hit)
    assert sum(hit.values()) >= 25 and len(hit) >= 2, hit


@pytest.mark.parametrize('kind, n', [('mlp', 35), ('fast', 17)])
def test_sigkill_at_random_moments(tmp_path, kind, n):
    p = subprocess.run([sys.executable, __file__, tmp_path, kind, str(n)], env=os.environ | dict(OMP_NUM_THREADS='1'), capture_output=True, text=True, timeout=1200)
    assert p.returncode == 0, p.stderr[-3000:]
    hit = json.loads(p.stdout)
    print(hit)
    assert sum(hit.values()) >= n and len(hit) >= 3 and 'writing' in hit, hit


# --- damaged files ----------------------------------------------------------------------------------------------------

def regions(path):
    "Parts of a record's file: name -> (start, end)."
    raw = path.read_bytes()
    central, end = raw.index(b'PK\x01\x02'), raw.rindex(b'PK\x05\x06')
    return {'first header': (0, 30), 'head': (30, raw.index(b'PK\x03\x04', 4)), 'arrays': (raw.index(b'PK\x03\x04', 4), central), 'central directory': (central, end), 'end of file': (end, len(raw))}


def flip(raw, i, rng): return raw[:i] + bytes([raw[i] ^ 1 << rng.randrange(8)]) + raw[i + 1:]


@pytest.mark.parametrize('name', ['shards/seed-000001.npz', 'shared.npz'])
def test_a_flipped_bit_or_a_cut_anywhere_in_a_record_is_noticed_or_harmless(data, tmp_path, name):
    fill(data, tmp_path)
    path, rng = tmp_path/name, random.Random(0)
    raw, want, noticed = path.read_bytes(), load_records(path), Counter()
    for part, (start, end) in regions(path).items():
        for i in sorted(rng.sample(range(start, end), min(end - start, 300))):
            path.write_bytes(flip(raw, i, rng))
            try: found = load_records(path)
            except ValueError as e:
                assert str(path) in str(e) and 'damaged' in str(e)
                noticed[part] += 1
            else:
                assert_same(found, want)  # such as the time of day in a zip header
                assert found.meta == want.meta
    assert len(noticed) == 5, noticed
    for n in {*range(0, 60), *rng.sample(range(len(raw)), 100), len(raw) - 1}:
        path.write_bytes(raw[:n])
        with pytest.raises(ValueError, match=path.name): load_records(path)


@pytest.mark.parametrize('part', ['first header', 'head', 'arrays', 'central directory', 'end of file'])
def test_a_rerun_mends_damage_in_every_part(data, tmp_path, part, capsys):
    want = fill(data, tmp_path)
    for path in (shards(tmp_path)[2], tmp_path/'shared.npz'):
        start, end = regions(path)[part]
        raw = bytearray(path.read_bytes())
        raw[start:end] = bytes(255 - b for b in raw[start:end])
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=f'{path.name} is damaged'): E.load_ensemble(tmp_path)
        assert_same(fill(data, tmp_path), want)
        assert f'{path} is damaged' in capsys.readouterr().out
    assert_same(E.load_ensemble(tmp_path), want)


def test_a_shard_under_the_name_of_another_is_not_taken_for_it(data, tmp_path, capsys):
    want = fill(data, tmp_path)
    shutil.copyfile(shards(tmp_path)[0], shards(tmp_path)[3])
    with pytest.raises(ValueError, match='seed-000003.npz'): E.load_ensemble(tmp_path)
    assert_same(fill(data, tmp_path), want)
    assert 'seed-000003.npz' in capsys.readouterr().out


def test_a_damaged_configuration_is_refused_in_one_sentence_and_nothing_is_lost(data, tmp_path):
    want, path, rng = fill(data, tmp_path), tmp_path/'config.json', random.Random(1)
    raw, before = path.read_bytes(), {p: p.read_bytes() for p in shards(tmp_path)}
    head = raw.index(b'"config"')
    damaged = [raw[:n] for n in (0, 1, 40, len(raw)//2, len(raw) - 3)] + [flip(raw, i, rng) for i in [head + 1, head + 3, *rng.sample(range(len(raw)), 60)]] + [b'[]', b'3', b'null', b'\0'*len(raw), b'{"config": 3}']
    refused = 0
    for wrong in damaged:
        path.write_bytes(wrong)
        try: assert_same(fill(data, tmp_path), want)
        except ValueError as e:
            assert str(path) in str(e) or f'{tmp_path} holds another run' in str(e), e
            refused += 1
        assert {p: p.read_bytes() for p in shards(tmp_path)} == before
    assert refused >= 15
    path.unlink()
    assert_same(fill(data, tmp_path), want)
    assert load_json(path)['config'] == json.loads(raw)['config']


def test_the_damaged_configuration_of_another_run_stops_nothing(tmp_path, monkeypatch, capsys):
    from noisymem.runs import RunConfig, load_or_run
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    for i, wrong in enumerate((b'', b'[]', b'{"config": 3}', b'{"konfig": {}}')):
        (tmp_path/'ensembles'/f'other-{i}').mkdir(parents=True)
        (tmp_path/'ensembles'/f'other-{i}'/'config.json').write_bytes(wrong)
    load_or_run(RunConfig('digits', 'symmetric-0.2', n_examples=100, model='mlp', recipe=SMALL['mlp']['recipe'], n_models=2), 'cpu')
    assert capsys.readouterr().out.startswith('new: 2 models')


def test_a_damaged_result_of_a_step_is_named_and_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    def make(): return load_or_make('steps', dict(a=1), lambda: dict(x=np.arange(5)))
    make()
    path, = (tmp_path/'steps').glob('*.npz')
    for wrong in (b'', path.read_bytes()[:-30], b'PK'):
        path.write_bytes(wrong)
        np.testing.assert_array_equal(make()['x'], np.arange(5))
        assert str(path) in capsys.readouterr().out
    assert len(load_records(path).shared) == 1


def figure(tmp_path, name, before='', **parameters): return B.make_job(notebook(tmp_path, name, before + FIGURE.format(name=name)), parameters or dict(n=4))


def one_sentence(capsys, path):
    "What the command line says of a fault: one line on the error stream, with the file in it."
    err = capsys.readouterr().err
    assert err.startswith('noisymem: ') and err.count('\n') == 1 and str(path) in err, err


def damage(raw, rng): return [b'', raw[:1], raw[:len(raw)//2], raw[:-3], b'[]', b'3', bytes(len(raw))] + [flip(raw, i, rng) for i in rng.sample(range(len(raw)), 8)]


def test_a_damaged_state_of_a_job_does_not_count(tmp_path, results, quick, capsys):
    jobs, rng = [figure(tmp_path, name) for name in ('fig_a', 'fig_b')], random.Random(0)
    assert B.run_jobs('p', jobs) == 0
    path = B.job_folder('p', jobs[0])/'job.json'
    raw, noticed = path.read_bytes(), 0
    for wrong in damage(raw, rng) + [raw.replace(b'"stamp"', b'"stamb"'), raw.replace(b'"status"', b'"statuz"')]:
        path.write_bytes(wrong)
        capsys.readouterr()
        assert cli.main(['status', 'p']) == 0, wrong
        assert B.run_jobs('p', jobs) == 0, wrong
        out = capsys.readouterr().out
        assert 'fig_b: cached' in out
        if 'fig_a: cached' not in out:
            noticed += 1
            assert json.loads(path.read_bytes()) | dict(seconds=0) == json.loads(raw) | dict(seconds=0)
    assert noticed >= 9


def test_damaged_claims_are_named_and_made_again(tmp_path, results, quick, capsys):
    job, rng = figure(tmp_path, 'fig_a'), random.Random(0)
    assert B.run_jobs('p', [job]) == 0
    path = B.job_folder('p', job)/'claims.csv'
    raw = path.read_bytes()
    for wrong in damage(raw, rng):
        path.write_bytes(wrong)
        capsys.readouterr()
        if cli.main(['claims', 'p']) == 2: one_sentence(capsys, path)
        assert B.run_jobs('p', [job]) == 0
        assert path.read_bytes() == raw, wrong
    path.with_name('fig_a.png').unlink()
    assert B.run_jobs('p', [job]) == 0 and path.with_name('fig_a.png').exists(), 'a picture that is gone is made again'


# --- disks that are full, or read-only --------------------------------------------------------------------------------

@pytest.fixture
def disk(tmp_path):
    "A disk of one megabyte."
    where = tmp_path/'disk'
    where.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', where], capture_output=True).returncode: pytest.skip('mounting a small disk needs root')
    yield where
    subprocess.run(['umount', '-l', where], check=True)


def leave(disk, free):
    "Fill a disk up to `free` bytes."
    room = os.statvfs(disk)
    (disk/'filler').write_bytes(bytes(room.f_bavail*room.f_frsize - free))


def test_a_full_disk_loses_no_model(data, tmp_path, disk):
    want = fill(data, tmp_path/'want')
    pages = lambda *paths: sum(-(-p.stat().st_size//4096)*4096 for p in paths)
    room = pages(tmp_path/'want'/'config.json', tmp_path/'want'/'shared.npz', *shards(tmp_path/'want')[:3])
    for free in (0, 4096, room):
        leave(disk, free)
        with pytest.raises(OSError, match='No space left on device') as e: fill(data, disk/'run')
        assert str(e.value.filename).startswith(str(disk/'run')) and '.tmp' not in str(e.value)
        assert_shards_are_right(disk/'run', tmp_path/'want')
        assert not unfinished(disk/'run')
        (disk/'filler').unlink()
    done = {p: p.stat().st_mtime_ns for p in shards(disk/'run')}
    assert 0 < len(done) < 6
    assert_same(fill(data, disk/'run'), want)
    assert done.items() <= {p: p.stat().st_mtime_ns for p in shards(disk/'run')}.items(), 'what was finished is kept'


@pytest.mark.parametrize('free', [0, 4096, 12288, 20480, 40960, 61440])
def test_a_full_disk_loses_no_figure(tmp_path, disk, monkeypatch, capsys, free):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(disk))
    well, job = figure(tmp_path, 'fig_a'), figure(tmp_path, 'fig_b')
    (tmp_path/'p.yaml').write_text(f'figures: {{{job.notebook}: {{n: 4}}}}')
    B.job_folder('p', well).mkdir(parents=True)
    (B.job_folder('p', well)/'fig_a.csv').write_text('x\n1\n')
    save_json(B.job_folder('p', well)/'job.json', dict(status='done', notebook='fig_a', path=str(well.notebook), parameters=well.parameters, stamp=B._stamp(well), seconds=1.))
    before = {p: p.read_bytes() for p in B.job_folder('p', well).iterdir()}
    leave(disk, free)
    status = cli.main(['run', str(tmp_path/'p.yaml')])
    said = capsys.readouterr()
    assert status == 2 and said.err.count('\n') == 1 and str(disk) in said.err or status == 1 and 'No space left on device' in said.out, said
    assert B.job_state('p', job)['status'] in ('not run', 'failed')
    assert before == {p: p.read_bytes() for p in B.job_folder('p', well).iterdir()}
    (disk/'filler').unlink()
    for name, put in HERE.items(): monkeypatch.setattr(B, name, put)
    assert B.run_jobs('p', [job]) == 0 and B.job_state('p', job)['status'] == 'done'


def read_only(disk): subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)


def test_a_read_only_folder_can_be_read_and_says_so_when_it_is_written(data, disk):
    want = fill(data, disk/'run')
    read_only(disk)
    assert_same(fill(data, disk/'run'), want)
    assert len(E.load_ensemble(disk/'run', '2-3')) == 2
    for folder, seeds in (('run', 8), ('new', 2)):
        with pytest.raises(OSError, match='Read-only file system') as e: fill(data, disk/folder, seeds=seeds)
        assert str(e.value.filename).startswith(str(disk/folder)) and '.tmp' not in str(e.value)


def test_read_only_results(tmp_path, disk, monkeypatch, quick, capsys):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(disk))
    path = figure(tmp_path, 'fig_a').notebook
    assert cli.main(['run', str(path), '-p', 'n=4']) == 0
    read_only(disk)
    capsys.readouterr()
    assert cli.main(['status', 'manual']) == 0 and cli.main(['claims']) == 0 and cli.main(['run', str(path), '-p', 'n=4', '--dry-run']) == 0
    assert 'cached' in capsys.readouterr().out
    assert cli.main(['gallery', 'manual', '--to', str(tmp_path/'gallery')]) == 0
    capsys.readouterr()
    for command in (['run', str(path), '-p', 'n=5'], ['gallery', 'manual']):
        assert cli.main(command) == 2
        one_sentence(capsys, disk)


# --- two runners --------------------------------------------------------------------------------------------------------

def race_trials(folder, n):
    "Three runs on one folder with a damaged shard in it, one of them killed; how many had something to do."
    torch.set_num_threads(1)
    data, want, rng, worked = digits(), folder/'want', random.Random(0), 0
    want_rec = fill(data, want)
    for t in range(n):
        there = folder/str(t)
        if t % 2:
            fill(data, there, seeds=2)
            for path in (*shards(there), there/'shared.npz'): path.write_bytes(path.read_bytes()[:-1])
        runs = [forked(lambda: fill(data, there, seeds=s)) for s in (6, '1-5', 6)]
        time.sleep(rng.uniform(0, .3))
        os.kill(runs[2], signal.SIGKILL)
        ends = [os.waitpid(pid, 0)[1] for pid in runs]
        assert ends[:2] == [0, 0] and ends[2] in (0, signal.SIGKILL), ends
        worked += bool(ends[2])
        assert_shards_are_right(there, want)
        assert_same(E.load_ensemble(there), want_rec)
    return dict(killed=worked, rounds=n)


def test_three_runs_on_one_folder_and_one_of_them_dies(tmp_path):
    p = subprocess.run([sys.executable, __file__, tmp_path, 'race', '4'], env=os.environ | dict(OMP_NUM_THREADS='1'), capture_output=True, text=True, timeout=1200)
    assert p.returncode == 0, p.stderr[-3000:]
    assert json.loads(p.stdout.splitlines()[-1])['killed'] >= 1


def test_two_runners_on_one_profile(tmp_path, results):
    "The second waits for the first and takes what that made."
    job = figure(tmp_path, 'fig_a', f'import time; open(r"{tmp_path}/ran", "a").write("x"); time.sleep(1)\n')
    (tmp_path/'p.yaml').write_text(f'figures: {{{job.notebook}: {{n: 4}}}}')
    code = f'from noisymem import batch, cli; batch._stale_modules = list; raise SystemExit(cli.main(["run", r"{tmp_path}/p.yaml"]))'
    both = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [p.communicate(timeout=240)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert (tmp_path/'ran').read_text() == 'x' and sorted('cached' in s for s in said) == [False, True]
    folder = B.job_folder('p', job)
    assert B.job_state('p', job)['status'] == 'done' and {'fig_a.png', 'fig_a.pdf', 'fig_a.csv', 'fig_a.ipynb', 'claims.csv'} <= {p.name for p in folder.iterdir()}
    assert not list(folder.glob('.running-*')) and not list(folder.glob('.tmp-*'))


# --- a clock that goes backwards ------------------------------------------------------------------------------------------

@pytest.mark.parametrize('year', [1980, 2099])
def test_no_result_depends_on_the_date_of_a_file(data, tmp_path, results, quick, year, capsys):
    want, job = fill(data, results/'e'), figure(tmp_path, 'fig_a')
    B.run_jobs('p', [job])
    load_or_make('steps', dict(a=1), lambda: dict(x=[1]))
    then = (year - 1970)*365.25*86400
    for path in (*results.rglob('*'), job.notebook): os.utime(path, (then, then))
    before = {p: p.read_bytes() for p in results.rglob('*') if p.is_file()}
    capsys.readouterr()
    assert_same(fill(data, results/'e'), want)
    assert B.run_jobs('p', [job]) == 0 and 'cached' in capsys.readouterr().out
    assert load_or_make('steps', dict(a=1), lambda: 1/0)['x'] == [1]
    assert before.items() <= {p: p.read_bytes() for p in results.rglob('*') if p.is_file()}.items()


def test_a_clock_that_jumps_back_while_models_train(data, tmp_path, monkeypatch):
    from itertools import count
    hours, progress = count(), tmp_path/'progress'
    monkeypatch.setattr(time, 'time', lambda: 2e9 - 3600*next(hours))
    monkeypatch.setenv('NOISYMEM_PROGRESS', str(progress))
    rec = fill(data, tmp_path/'e', 'fast')
    assert (rec['seconds'] >= 0).all() and json.loads(progress.read_text())['n'] == 4
    monkeypatch.delenv('NOISYMEM_PROGRESS')
    from tqdm import tqdm
    assert list(tqdm(range(5), file=open(os.devnull, 'w'))) == list(range(5))


@pytest.mark.parametrize('desc, says', [('d', 'd: 1 of 4 models'), ('d, epochs', 'd: 1 of 4 epochs'), ('d, steps', 'd: 1 of 4 steps')])
def test_time_left_is_never_negative_and_says_of_what(tmp_path, monkeypatch, capsys, desc, says):
    "The job began in the future, and 2 of its 4 models came in while we watched."
    from types import SimpleNamespace
    clock, ends, models = iter(range(0, 10**6, 40)), iter([None]*8), iter([0, 0, 0, 1, 1, 2, 3, 3])
    write = lambda n: (tmp_path/'progress').write_text(json.dumps(dict(desc=desc, n=n, total=4, start=time.time() + 9e5)))
    monkeypatch.setattr(B, 'time', SimpleNamespace(monotonic=lambda: next(clock), time=time.time, sleep=lambda s: None))
    stop = SimpleNamespace(wait=lambda s: write(next(models)) and False)
    assert B._watch(SimpleNamespace(poll=lambda: next(ends, 0)), tmp_path/'progress', None, stop)
    out = capsys.readouterr().out
    assert 'min left' in out and '-' not in out and says in out


def test_the_gallery_keeps_the_order_of_the_profile(tmp_path, results, quick):
    jobs = [figure(tmp_path, name) for name in ('fig_c', 'fig_a', 'fig_b')]
    B.run_jobs('p', jobs)
    for i, job in enumerate(jobs): os.utime(B.job_folder('p', job)/'job.json', (1e9 - i, 1e9 - i))
    B.run_jobs('p', jobs, only='fig_c', force=True)
    page = write_gallery('p', tmp_path/'g').read_text()
    assert page.index('id="fig_c"') < page.index('id="fig_a"') < page.index('id="fig_b"')


# --- who is killed takes along what was started for it --------------------------------------------------------------------

DEAF = """import os, pathlib, signal, subprocess, sys, time
for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(s, signal.SIG_IGN)
subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'], start_new_session=True)
pathlib.Path(os.environ['NOISYMEM_FIGURE'], 'begun').write_text('')
while True: time.sleep(.1)
"""


def running(processes): return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def wait_until(what, seconds=240):
    "Wait, long enough for a machine that is busy with something else."
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline: time.sleep(.1)
    return what()


@pytest.fixture
def runner(tmp_path, results):
    "Start `noisymem run` on notebooks that hear no signal; returns it, all processes that were started for it, and their jobs."
    started = []

    def start(workers):
        jobs = [figure(tmp_path, f'deaf_{i}', DEAF) for i in range(workers)]
        (tmp_path/'p.yaml').write_text('figures:\n' + ''.join(f'  {j.notebook}: {{n: 4}}\n' for j in jobs))
        code = f'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); signal.signal(signal.SIGHUP, signal.SIG_DFL); from noisymem import batch, cli; batch._stale_modules = list; raise SystemExit(cli.main(["run", r"{tmp_path}/p.yaml", "--workers", "{workers}"]))'
        process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(psutil.Process(process.pid))
        assert wait_until(lambda: all((B.job_folder('p', j)/'begun').exists() for j in jobs) or process.poll()) and process.poll() is None
        started.extend(started[0].children(recursive=True))
        assert len(started) == 1 + 3*workers, 'papermill, a kernel, and what that started'
        return process, started[1:], jobs
    yield start
    for p in running(started): p.kill()


@pytest.mark.parametrize('workers, number', [(1, signal.SIGKILL), (2, signal.SIGKILL), (1, signal.SIGTERM), (1, signal.SIGHUP), (2, signal.SIGINT)])
def test_nothing_outlives_a_runner_that_is_killed(runner, workers, number):
    process, started, jobs = runner(workers)
    process.send_signal(number)
    said = process.communicate(timeout=240)
    assert process.returncode == (130 if number == signal.SIGINT else -number), said
    assert wait_until(lambda: not running(started)), running(started)
    for job in jobs:
        assert B.job_state('p', job)['status'] == 'not run'
        if number == signal.SIGINT: assert not list(B.job_folder('p', job).glob('*.ipynb'))


def test_a_papermill_that_is_killed_is_told_from_one_that_failed_and_leaves_no_kernel(runner):
    process, started, jobs = runner(1)
    papermill, = psutil.Process(process.pid).children()
    kernel, = papermill.children()
    papermill.kill()
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 1 and 'ended by signal 9' in out and B.job_state('p', jobs[0])['status'] == 'failed'
    assert wait_until(lambda: not running([kernel])), 'it looks for its parent once a second'


# --- notebooks that misbehave ---------------------------------------------------------------------------------------------

def test_a_kernel_that_is_killed_and_an_error_of_a_megabyte(tmp_path, results):
    dies, shouts = figure(tmp_path, 'dies', 'import os; os.kill(os.getpid(), 9)\n'), figure(tmp_path, 'shouts', 'raise ValueError("x"*10**6)\n')
    for job, word in ((dies, 'Kernel died'), (shouts, 'ValueError')):
        state = B.run_job('p', job)
        assert state['status'] == 'failed' and word in state['error'] and len(state['error']) < 2000
        assert (B.job_folder('p', job)/f'{job.name}.failed.ipynb').exists() and not list(B.job_folder('p', job).glob('.running-*'))


def test_a_notebook_that_hangs_and_hears_no_signal(tmp_path, results):
    class Begun(float):
        "A time limit that is over once the notebook has begun."
        def __lt__(self, spent): return (tmp_path/'pids').exists()
    code = f"""import os, pathlib, signal, subprocess, time
for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(s, signal.SIG_IGN)
pathlib.Path(r"{tmp_path}/pids.new").write_text(str(os.getpid())); os.rename(r"{tmp_path}/pids.new", r"{tmp_path}/pids")
while True: time.sleep(1)
"""
    job = figure(tmp_path, 'hangs', code)
    state = B.run_job('p', job, Begun(9))
    assert state['status'] == 'failed' and 'no end after 9' in state['error']
    pid, deadline = int((tmp_path/'pids').read_text()), time.monotonic() + 30
    running = lambda: os.path.exists(f'/proc/{pid}') and 'Z' not in Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
    while running() and time.monotonic() < deadline: time.sleep(.2)
    assert not running(), 'the kernel outlived its time'


def test_a_notebook_that_prints_100_megabytes(tmp_path, results, monkeypatch):
    import threading
    job, start, most = figure(tmp_path, 'loud', 'for i in range(1000): print("x"*99_999)\n'), B._start, [0]

    def watched(*args):
        process = start(*args)

        def look():
            while process.poll() is None:
                try: most[0] = max(most[0], *(int(l.split()[1]) for l in Path(f'/proc/{process.pid}/status').read_text().splitlines() if l.startswith('VmHWM')), 0)
                except (OSError, TypeError): return
                time.sleep(.1)
        threading.Thread(target=look, daemon=True).start()
        return process
    monkeypatch.setattr(B, '_start', watched)
    state, folder = B.run_job('p', job, 300), B.job_folder('p', job)
    assert state['status'] == 'done' and most[0] < 2**20, f'{most[0]/1024:.0f} MB of memory'
    assert (folder/'log.txt').stat().st_size < 10**5
    page = write_gallery('p', tmp_path/'g')
    for path in (folder/'loud.ipynb', page, tmp_path/'g'/'loud.ipynb'): assert path.stat().st_size < 10**6, path
    assert 'left out' in (folder/'loud.ipynb').read_text()


def kernel(folder, program):
    (folder/'kernels'/'python3').mkdir(parents=True)
    (folder/'kernels'/'python3'/'kernel.json').write_text(json.dumps(dict(argv=[program, '-f', '{connection_file}'], display_name='x', language='python')))


def test_a_kernel_whose_program_is_gone_is_noticed_before_anything_runs(tmp_path, results, monkeypatch, capsys):
    kernel(tmp_path/'jupyter', '/nowhere/bin/python')
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path/'jupyter'))
    assert cli.main(['run', str(figure(tmp_path, 'fig_a').notebook)]) == 2 and not (results/'figures').exists()
    one_sentence(capsys, '/nowhere/bin/python')


def test_a_kernel_that_ends_at_once(tmp_path, results, monkeypatch):
    kernel(tmp_path/'jupyter', '/bin/false')
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path/'jupyter'))
    state = B.run_job('p', figure(tmp_path, 'fig_a'))
    assert state['status'] == 'failed' and 'Kernel died before replying' in state['error'].splitlines()[-1]


@pytest.mark.parametrize('last, match', [('tag', "must have exactly one cell tagged 'parameters', got 0"), ('name', "bad.ipynb in p.yaml must be one of 'n', got 'm'"), ('json', 'bad.ipynb')])
def test_the_last_notebook_of_a_profile_is_checked_before_the_first_runs(tmp_path, results, capsys, last, match):
    well, bad = notebook(tmp_path, 'well', '1'), notebook(tmp_path, 'bad', '1', tags=() if last == 'tag' else ('parameters',))
    if last == 'json': Path(bad).write_bytes(Path(bad).read_bytes()[:200])
    (tmp_path/'p.yaml').write_text(f'figures: {{{well}: {{}}, {bad}: {{{"m: 4" if last == "name" else ""}}}}}')
    for command in (['run', str(tmp_path/'p.yaml')], ['run', str(tmp_path/'p.yaml'), '--dry-run'], ['status', str(tmp_path/'p.yaml')]):
        assert cli.main(command) == 2
        one_sentence(capsys, match)
    assert not results.exists()


if __name__ == '__main__':
    where, kind, n = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    print(json.dumps(dict(race=race_trials, figures=figure_trials)[kind](where, n) if kind in ('race', 'figures') else kill_trials(where, kind, n)))

"The whole job: scaling with images, epochs, models and processes, models per hour, memory, seconds to an accuracy."
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path

import numpy as np
import torch

from common import write
from engine import DEVICE, images
from noisymem.batch import Job, check_kernel, run_jobs
from noisymem.data import load_dataset
from noisymem.models import count_macs, make_model
from noisymem.processes import best_split
from noisymem.train import get_recipe, predict, to_device, train

WORKER = '''
import sys, torch
sys.path.insert(0, {here!r})
torch.set_num_threads(1)
from engine import images
from noisymem.ensemble import make_design, run_ensemble
data = images(1500)
run_ensemble(data, make_design(None, 'uniform', n=data.n), {seeds!r}, {folder!r}, model='fast', recipe={{'name': 'cpu', 'epochs': 2}})
'''


def run_workers(n_workers, n_models=8):
    "Seconds in which processes of one thread each train an ensemble on one folder."
    with tempfile.TemporaryDirectory() as folder:
        code = WORKER.format(here=str(Path(__file__).parent), seeds=n_models, folder=folder)
        start = time.perf_counter()
        workers = [subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL) for _ in range(n_workers)]
        if any(w.wait() for w in workers): raise RuntimeError('a worker failed')
        return time.perf_counter() - start


def run_notebooks(workers, n=4, seconds=15):
    "Seconds in which n notebooks that keep one thread busy run, `workers` at a time."
    busy = f'import time\nstart = time.process_time()\nwhile time.process_time() - start < {seconds}: sum(range(10000))'
    cells = [dict(cell_type='code', id=f'c{i}', metadata=dict(tags=tags), execution_count=None, outputs=[], source=source) for i, (tags, source) in enumerate(((['parameters'], 'n: int = 0  # number'), ([], busy)))]
    before = os.environ.get('NOISYMEM_RESULTS')
    with tempfile.TemporaryDirectory() as folder:
        os.environ['NOISYMEM_RESULTS'] = folder
        path = Path(folder)/'busy.ipynb'
        path.write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')), nbformat=4, nbformat_minor=5)))
        check_kernel()  # once in a process, whichever run comes first
        start = time.perf_counter()
        try: failed = run_jobs('busy', [Job(f'busy-{i}', path, dict(n=i)) for i in range(n)], workers=workers)
        finally: os.environ.pop('NOISYMEM_RESULTS') if before is None else os.environ.update(NOISYMEM_RESULTS=before)
        if failed: raise RuntimeError('a notebook failed')
        return time.perf_counter() - start


def measure_scaling():
    "Seconds against images, epochs, models, and processes; ratio = seconds per unit of work relative to the first row of its kind."
    rows, base = [], {}

    def add(kind, size, seconds, units):
        each = seconds/units
        rows.append(dict(kind=kind, size=size, seconds=seconds, seconds_per_unit=each, ratio=each/base.setdefault(kind, each)))

    def once(n, epochs):
        data, net = images(n), make_model('fast', 10, (3, 32, 32))
        start = time.perf_counter()
        train(net, data, {'name': 'cpu', 'epochs': epochs}, device=DEVICE)
        return time.perf_counter() - start
    once(1000, 1)
    for n in (1000, 2000, 4000, 8000): add('images', n, once(n, 1), n)
    for e in (1, 2, 4): add('epochs', e, once(2000, e), e)
    if DEVICE.type == 'cpu':
        for m in (2, 4, 8): add('models (one process, start-up included)', m, run_workers(1, m), m)
        for w in (1, 2): add('processes (8 models)', w, run_workers(w), 1/w)
        for w in (1, 2): add('notebooks (4 of one thread)', w, run_notebooks(w), 1/w)
    write('scaling', rows)


def measure_jobs():
    "Models per hour of the memorization job on CIFAR-10N, training and judging included, by as many processes as `load_or_run` starts; from measured steps."
    rows = []
    for model, name, n in (('fast', 'cpu', 20000), ('fast', 'cpu', 50000), ('fast_large', 'cpu', 50000), ('whitened', 'fast', 50000), ('resnet34', 'paper', 50000)):
        recipe, split = get_recipe(name), best_split(model, 1., name, (3, 32, 32), 10, DEVICE)
        steps = (recipe.epochs*.9*n + (n + 10000)/3)/recipe.batch_size  # rand1: a pool of 17,000, 30 % of it left out
        rate = split['steps_per_second'][split['splits'].index(split['best'])]/steps
        rows.append(dict(network=model, recipe=name, images=n, epochs=recipe.epochs, processes=split['best'], models_per_hour=3600*rate, hours_for_60=60/3600/rate, hours_for_1500=1500/3600/rate))
    write('jobs', rows)


def measure_memory():
    "Peak memory of a process while it trains one network on 50,000 images; what making the images took is left out."
    rows = []
    for model in ('fast', 'fast_large', 'resnet18'):
        code = f"""
import os, re, resource, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from engine import DEVICE, images
from noisymem.models import make_model
from noisymem.train import train
data, on_linux = images(50000), os.path.exists('/proc/self/clear_refs')
if on_linux: open('/proc/self/clear_refs', 'w').write('5')  # the peak starts again
train(make_model({model!r}, 10, (3, 32, 32)), data, {{'name': 'cpu', 'epochs': 1}}, positions=torch.arange(512), device=DEVICE)
peak = int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) if on_linux else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(torch.cuda.max_memory_allocated() if DEVICE.type == 'cuda' else peak*1024)
"""
        peak = int(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()[-1])
        rows.append(dict(network=model, images=50000, batch=128, peak_mib=peak/2**20))
    write('memory', rows)


def race(make, judge, runs=3):
    "Seconds of a whole training and its accuracy, some runs; the first, which compiles or chooses kernels, is left out."
    seconds, accuracy = [], []
    for seed in range(runs + 1):
        start = time.perf_counter()
        model = make(seed)
        if DEVICE.type == 'cuda': torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        accuracy.append(judge(model))
    return dict(seconds=np.median(seconds[1:]), seconds_low=min(seconds[1:]), seconds_high=max(seconds[1:]), accuracy=np.mean(accuracy[1:]), accuracy_low=min(accuracy[1:]), runs=runs)


def race_airbench(data):
    "The PyPI package `airbench`, its 94 % recipe, with and without its averaging over test views. It looks for its data in ./cifar10: a copy of ours is put there, so that nothing is downloaded; its loaders are made before the clock starts."
    import airbench
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path('cifar10').mkdir()
        for part, x, y in (('train', data.x, data.given_label), ('test', data.x_test, data.y_test)):
            torch.save(dict(images=x.permute(0, 2, 3, 1).contiguous().cpu(), labels=y.cpu(), classes=list(data.class_names)), f'cifar10/{part}.pt')
        test = airbench.CifarLoader('cifar10', train=False, batch_size=2000)
        for views in (2, 0):
            loaders = [airbench.CifarLoader('cifar10', train=True, batch_size=1024, aug=dict(flip=True, translate=2), altflip=True) for _ in range(4)]
            yield dict(way=f'airbench94, {"six test views" if views else "one test view"}') | race(lambda seed: airbench.train94(loaders[seed], tta_level=views, verbose=False), lambda net: float(airbench.evaluate(net, test, tta_level=views)))


def measure_accuracy():
    "Seconds and operations of the recipe `fast` to its test accuracy on clean CIFAR-10, beside the package airbench on the same card."
    if DEVICE.type != 'cuda': return print('needs a CUDA GPU; nothing was measured')
    data = load_dataset('cifar10')
    resident, recipe = to_device(data, DEVICE), get_recipe('fast')
    judge = lambda state: float((predict(state.model, resident.x_test, data.mean, data.std, precision=state.precision).logits.argmax(1) == resident.y_test).float().mean())
    flop = 6*count_macs(make_model('whitened', 10, (3, 32, 32)), (3, 32, 32))*data.n*recipe.epochs
    rows = [dict(way=f'noisymem fast, {mode or "eager"}', flop=flop) | race(lambda seed: train(make_model('whitened', 10, (3, 32, 32), seed=seed), resident, recipe, seed=seed, compiled=mode), judge) for mode in ('', 'default', 'reduce-overhead')]
    try: rows += list(race_airbench(data))
    except Exception as e: print(f'airbench could not run ({type(e).__name__}: {e}); it is installed by pip install airbench==0.1.8')
    write('accuracy', rows)

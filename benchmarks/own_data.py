"`noisymem score` on a plain folder of real pictures with some labels flipped: what it finds, in which time."
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from common import write
from noisymem.data import load_dataset, sample
from noisymem.metrics import auroc, bootstrap_interval
from noisymem.scores.heldout import wilson_interval

N, RATE, MINUTES = 5000, .05, 10


def write_pictures(folder, seed, n=N, rate=RATE):
    "Write CIFAR-10 pictures as files in class folders, exactly `rate` of them in the folder of another class; which ones, by the number in the file's name."
    data, rng = sample(load_dataset('cifar10'), n, seed), np.random.default_rng(seed)
    label, flipped = data.true_label.numpy().copy(), rng.choice(n, round(rate*n), replace=False)
    label[flipped] = (label[flipped] + rng.integers(1, 10, len(flipped))) % 10
    for i, (x, y) in enumerate(zip(data.x.numpy(), label)):
        path = folder/data.class_names[y]/f'{i:05d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x.transpose(1, 2, 0)).save(path)
    return np.sort(flipped)


def found(table, flipped):
    "Share of the flipped labels among the first tenth, and areas under the curve."
    wrong = table.path.str.extract(r'(\d+)\.png$')[0].astype(int).isin(flipped).to_numpy()
    top = table['rank'].to_numpy() <= len(table)//10
    low, high = wilson_interval(np.array([wrong[top].sum()]), np.array([wrong.sum()]))
    area = lambda s: dict(zip(('auroc', 'auroc_low', 'auroc_high'), (auroc(s, wrong), *bootstrap_interval(auroc, s, wrong, n_resamples=200))))
    return dict(in_top_tenth=wrong[top].mean()*top.sum()/wrong.sum(), low=low[0], high=high[0], **area(table.suspicion.to_numpy()), auroc_self_confidence=auroc(-table.self_confidence.to_numpy(), wrong), auroc_cumulative_loss=auroc(table.cumulative_loss.to_numpy(), wrong))


def measure_own_data(seeds=(0,)):
    "5,000 CIFAR-10 pictures as PNG files in class folders, 5 % of them in a wrong one: how many are in the first tenth of the list, after how many minutes."
    rows = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as d:
            flipped, start = write_pictures(Path(d)/'pictures', seed), time.perf_counter()
            subprocess.run([sys.executable, '-c', 'from noisymem.cli import main; raise SystemExit(main())', 'score', f'{d}/pictures', '--out', f'{d}/report', '--budget', str(MINUTES)], check=True)
            seconds, about = time.perf_counter() - start, json.loads(Path(f'{d}/report/noisymem.json').read_text())
            rows.append(dict(seed=seed, pictures=N, flipped=len(flipped), minutes=seconds/60, networks=about['n_models'], width=about['plan']['width'], epochs=about['epochs'], **found(pd.read_csv(f'{d}/report/scores.csv'), flipped)))
    write('own_data', rows)

"What every benchmark shares: timing side by side, the machine, the table."
import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from noisymem.core import provenance

RESULTS = Path(__file__).parent/'results'


def wait():
    "Until the device has done what it was asked."
    if torch.cuda.is_available(): torch.cuda.synchronize()


def side_by_side(ways, rounds=5, clock=time.perf_counter, warm=True):
    """Seconds of each way, {name: function without arguments}, taken in turns.

    A machine is never equally fast for a whole minute; ways that take turns share its moods, so the ratio within a round is worth more than the seconds.
    Each way runs once before the clock starts, unless `warm` is False. With `time.process_time` the seconds are those of the processor, which other work on a CPU hardly changes."""
    for way in ways.values() if warm else (): way()
    wait()
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = clock()
            way()
            wait()
            seconds[name].append(clock() - start)
    return {name: np.array(s) for name, s in seconds.items()}


def compare(seconds, work, unit, **about):
    "Rows of a table: rate of each way (median), and its ratio to the first way in the same round (median, smallest, largest)."
    first = next(iter(seconds.values()))
    return [about | dict(way=name, rate=work/np.median(s), unit=f'{unit}/s', ratio=np.median(first/s), ratio_low=(first/s).min(), ratio_high=(first/s).max(), rounds=len(s)) for name, s in seconds.items()]


def write(name, rows):
    "Save a table with the machine it was measured on, and print it."
    RESULTS.mkdir(exist_ok=True)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    table = pd.DataFrame(rows)
    table.to_csv(RESULTS/f'{name}-{device}.csv', index=False, float_format='%.4g')
    about = provenance() | dict(threads=torch.get_num_threads(), command=f'python benchmarks/run.py {name.partition("-")[0]}', load=os.getloadavg()[0] if hasattr(os, 'getloadavg') else None)
    (RESULTS/f'{name}-{device}.json').write_text(json.dumps(about, indent=1) + '\n')
    print(table.to_string(index=False, float_format=lambda v: f'{v:.4g}'), flush=True)
    return table

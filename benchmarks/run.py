"""Measure the engine, side by side in one run: `python benchmarks/run.py [NAME ...]`.

Without names everything that this machine can measure is measured. Tables go to benchmarks/results/NAME-cpu.csv or NAME-cuda.csv, each with a .json that names hardware, versions and the load of the machine."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


from engine import measure_compiled, measure_loop, measure_peak
from heads import measure_heads, measure_transition, measure_views
from jobs import measure_accuracy, measure_jobs, measure_memory, measure_scaling
from looks import measure_looks
from own_data import measure_own_data
from probe import measure_probe
from scoring import measure_influence, measure_neighbours
from signals import measure_divergence, measure_signals
from small import measure_stacked
from tracking import measure_tracking


BENCHMARKS = dict(loop=measure_loop, peak=measure_peak, compiled=measure_compiled, accuracy=measure_accuracy, stacked=measure_stacked, influence=measure_influence, neighbours=measure_neighbours, probe=measure_probe, scaling=measure_scaling, jobs=measure_jobs, memory=measure_memory, tracking=measure_tracking, views=measure_views, heads=measure_heads, transition=measure_transition, divergence=measure_divergence, signals=measure_signals, looks=measure_looks, own_data=measure_own_data)


def main(names):
    unknown = [n for n in names if n not in BENCHMARKS]
    if unknown: raise SystemExit(f"benchmark must be one of {', '.join(BENCHMARKS)}, got {unknown[0]}")
    failed = []
    for name in names or BENCHMARKS:
        print(f'\n== {name}: {BENCHMARKS[name].__doc__}', flush=True)
        try: BENCHMARKS[name]()
        except Exception as e: failed.append(name); print(f'{name} could not be measured: {type(e).__name__}: {e}', flush=True)
    return len(failed)


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))

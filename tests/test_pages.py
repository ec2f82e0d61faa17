"The pages beside the figures: every command in them can be run, every notebook and name is there, the tables are those of the tree."
import inspect
import json
import re
import shlex
from functools import cache
from importlib import import_module
from itertools import dropwhile

import pandas as pd
import pytest
from conftest import ROOT

from noisymem import batch, cli, noise
from noisymem.gallery import claims_markdown
from noisymem.encoders import load_or_run_simclr
from noisymem.methods.crosstracking import cross_track
from noisymem.methods.forgetting import Tracker, forget
from noisymem.methods.linear_probe import HEADS
from noisymem.methods.representation import rep_reg
from noisymem.methods.robust import WITH_STATE, RobustObjective
from noisymem.methods.semisupervised import PseudoLabels, select_trusted, train_semisupervised
from noisymem.methods.simclr import Contrast, pretrain
from noisymem.losses import LOSSES
from noisymem.recorder import MEASURES, Recorder
from noisymem.robust_runs import load_or_run_robust
from noisymem.runs import RunConfig
from noisymem.stopping_runs import STUDY_LOSSES, hold_out, load_or_run_history
from noisymem.views import draw_strong

PAGES = sorted((ROOT/'nbs'/'pages').glob('*.ipynb'))
FIGURES = {p.stem for p in (ROOT/'nbs'/'figs').glob('*.ipynb')}
AGAIN = 'run the cells of nbs/pages/{}: jupyter nbconvert --to notebook --inplace --execute, then nbdev_clean'


@cache
def texts(name):
    "Markdown of a page, and what its code cells show."
    cells = json.loads((ROOT/'nbs'/'pages'/f'{name}.ipynb').read_text(encoding='utf-8'))['cells']
    shown = [''.join(o['data']['text/markdown']) for c in cells if c['cell_type'] == 'code' for o in c['outputs'] if 'text/markdown' in o.get('data', {})]
    return '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown'), '\n'.join(shown)


def spans(text): return [s.replace(r'\|', '|') for s in re.findall(r'`([^`\n]+)`', text)]


def commands(name):
    "Words of every command of ours in a page, the variables before it left out."
    found = dict.fromkeys(s for s in spans(texts(name)[0]) if re.match(r'(\w+=\S+ )*(noisymem|papermill) [a-z]', s) and not re.search(r'\bNAME\b', s))
    return [list(dropwhile(lambda w: '=' in w, shlex.split(s))) for s in found]


def arguments(*functions): return {n for f in functions for n in inspect.signature(f).parameters}


TAKES = {  # settings that a notebook hands on, which its own cells before the data do not look at
    ('fig_cross_tracking', 'options'): arguments(cross_track), ('fig_semisupervised', 'options'): arguments(select_trusted, PseudoLabels, train_semisupervised) | {'second_cut'},
    ('fig_forgetting', 'stage'): arguments(forget, Tracker), ('fig_false_negatives', 'stage'): arguments(forget, Tracker) | {'second'},
    ('tab_fixed_encoder', 'encoder'): arguments(load_or_run_simclr, pretrain, Contrast, draw_strong), ('tab_fixed_encoder', 'head'): {*HEADS, 'hidden', 'losses', 'seeds'}}


def run_settings(job):
    "Run the cells before the data: imports, parameters, settings."
    space = {}
    for cell in [c for c in json.loads(job.notebook.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code'][:3]:
        exec(''.join(cell['source']), space)
        if 'parameters' in cell['metadata'].get('tags', []): space |= job.parameters


def check_settings(job):
    "Look at the settings that a notebook hands on."
    for key, value in job.parameters.items():
        known = TAKES.get((job.name, key))
        assert known is None or set(value) <= known, f'{key}: {set(value) - known}'
    for study in job.parameters.get('studies', []): assert study.get('loss', 'ce') in STUDY_LOSSES, study
    if 'studies' in batch.notebook_parameters(job.notebook):
        given = job.parameters.get('options', {})
        assert set(given) <= arguments(load_or_run_history, Recorder) and set(given.get('parts', {})) <= arguments(hold_out), given
        assert set(job.parameters.get('signals', [])) <= {*MEASURES, 'susceptibility'}, job.parameters['signals']
    for m in job.parameters.get('methods', {}).values():
        assert set(m) <= arguments(load_or_run_robust, RobustObjective) and set(m.get('reg', {})) <= arguments(rep_reg), m
        assert m.get('loss', 'ce') in [*LOSSES, *WITH_STATE] and m.get('regulariser') in (None, 'distance', 'angle'), m
    noises = job.parameters.get('noises', [])
    for n in noises.values() if isinstance(noises, dict) else noises:
        if isinstance(n, str): RunConfig(noise=n)
        else: assert set(n) <= arguments(noise.NOISES[n['kind'].partition('-')[0]]) | {'kind', 'seed'}, n


@cache
def profile(what): return batch.load_profile(what)


def check_run(args):
    "A run of a profile chooses something; the settings of a single notebook are understood by its own cells, without data or training."
    if cli._is_profile(args.what): return batch.choose_jobs(profile(args.what), args.only) if args.only else [args.what]  # every profile is read as a whole by other tests
    job = batch.make_job(args.what, cli._parameters(args.parameter, '-p', [k for k, (kind, _) in batch._declared(batch.find_notebook(args.what)).items() if kind == 'str']))
    run_settings(job)
    check_settings(job)
    return [job]


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    "A figure's cells write nowhere but here."
    for name in ('NOISYMEM_RESULTS', 'NOISYMEM_FIGURE'): monkeypatch.setenv(name, str(tmp_path/name))


@pytest.mark.parametrize('name', [p.stem for p in PAGES])
def test_every_command_can_be_run(name):
    failed = []
    for words in commands(name):
        try:
            if words[0] == 'papermill':
                assert (ROOT/words[1]).is_file()
                given = dict(zip(words[4::3], words[5::3]))
                assert words[3::3] == ['-p']*len(given) and set(given) <= set(batch.notebook_parameters(ROOT/words[1]))
            elif words[1:2] != ['run']: cli._parser().parse_args(words[1:])
            else: assert check_run(cli._parser().parse_args(words[1:]))
        except (Exception, SystemExit) as e: failed.append(f'{shlex.join(words)}: {e!r:.300}')
    assert not failed, '\n'.join(failed)


@pytest.mark.parametrize('wrong', ['fig_forgetting -p "card=cifar10 svnh"', 'fig_forgetting -p "stage={evry: 1}"', 'fig_robust_losses -p "methods={a: {loss: gcee}}"', 'fig_robust_losses -p noises=[symetric-0.6]',
                                   'tab_detection -p noise=wurst', 'tab_detection -p noises=[worst]', 'fig_noise_card -p "noises={a: {kind: cbn, centres: 3}}"', 'paper --only fig_none'])
def test_a_wrong_command_would_be_noticed(wrong):
    with pytest.raises((ValueError, KeyError, AssertionError)): check_run(cli._parser().parse_args(['run', *shlex.split(wrong)]))


def test_a_command_is_a_dry_run_away(capsys, tmp_path):
    words = next(w for w in commands('originals') if '-p' in w and w[1] == 'run')
    assert cli.main([*words[1:], '--dry-run']) == 0 and 'would run (new)' in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_every_figure_is_named_and_every_name_is_one():
    text, shown = texts('originals')
    assert not FIGURES - set(re.findall(r'(?:fig|tab)_\w+', text + shown)), AGAIN.format('originals.ipynb')
    assert not set(re.findall(r'figs/(\w+)\.ipynb', shown)) - FIGURES
    for p in PAGES: assert not set(re.findall(r'\b(?:fig|tab)_\w+', texts(p.stem)[0])) - FIGURES, p.stem


@pytest.mark.parametrize('name', [p.stem for p in PAGES])
def test_links_lead_somewhere(name):
    for link in re.findall(r'\]\(([^)#:]+)\)', ''.join(texts(name))): assert (ROOT/'nbs'/'pages'/link).exists(), link


@pytest.mark.parametrize('name', [p.stem for p in PAGES])
def test_names_of_the_library_are_there(name):
    "`noisymem.part.name`, and the argument of it that is named before: `argument` of `noisymem.part.name`."
    def find(dotted):
        try: return import_module(dotted)
        except ImportError: return getattr(import_module(dotted.rpartition('.')[0]), dotted.rpartition('.')[2])
    for s in spans(texts(name)[0]):
        if re.fullmatch(r'noisymem(\.\w+)+', s): find(s)
        elif re.match(r'nbs/\S+\.ipynb$', s): assert (ROOT/s).exists(), s
    for listed, dotted in re.findall(r"((?:`\w+(?:='?[\w-]*'?)?`(?:, | and )?)+) of `(noisymem[\w.]+)`", texts(name)[0]):
        known = inspect.signature(find(dotted)).parameters
        for argument in re.findall(r'`(\w+)', listed): assert argument in known or any(p.kind == p.VAR_KEYWORD for p in known.values()), f'{argument} of {dotted}'


def test_no_lines_in_tables_are_broken():
    for p in PAGES:
        for line in ''.join(texts(p.stem)[0]).splitlines():
            if line.startswith('|'): assert line.endswith('|'), line[:100]
        for block in re.findall(r'(?:^\|.*\n?)+', texts(p.stem)[0] + '\n', re.M): assert len({len(re.findall(r'(?<!\\)\|', l)) for l in block.strip().splitlines()}) == 1, block[:300]


def test_every_failing_claim_is_told_and_explained():
    claims = pd.read_csv(ROOT/'papermill_runs'/'gallery'/'laptop'/'claims.csv')
    failing, (text, shown) = claims[~claims.holds], texts('not_reproduced')
    assert claims_markdown(failing.assign(claim=failing.figure + ': ' + failing.claim)) in shown, AGAIN.format('not_reproduced.ipynb')
    told = set(re.findall(r'^\*\*\[((?:fig|tab)_\w+)', text, re.M)) | set(re.findall(r'(?:fig|tab)_\w+', ''.join(re.findall('Nothing is said below yet.*', shown))))
    assert not {re.sub(r'-\d+$', '', f) for f in failing.figure} - told, 'a paragraph is missing in nbs/pages/not_reproduced.ipynb'

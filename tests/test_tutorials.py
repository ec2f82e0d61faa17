"Every tutorial runs from top to bottom, from its own folder."
import nbformat
import pytest
from conftest import ROOT, run_notebook

TUTORIALS = sorted((ROOT/'nbs'/'tutorials').glob('*.ipynb'))


@pytest.mark.parametrize('path', TUTORIALS, ids=lambda p: p.stem)
def test_a_tutorial_runs(path, tmp_path):
    assert not run_notebook(path, tmp_path/'out.ipynb', env=dict(NOISYMEM_RESULTS=str(tmp_path)))
    shown = [o for c in nbformat.read(tmp_path/'out.ipynb', 4).cells if c.cell_type == 'code' for o in c.outputs]
    assert not [o.text for o in shown if o.output_type == 'stream' and o.name == 'stderr' and 'Warning' in o.text]
    assert any('image/png' in o.get('data', {}) for o in shown), 'a tutorial shows a picture'

"Every tutorial runs from top to bottom, from its own folder."
import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

TUTORIALS = sorted((ROOT/'nbs'/'tutorials').glob('*.ipynb'))


@pytest.mark.parametrize('path', TUTORIALS, ids=lambda p: p.stem)
def test_a_tutorial_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    nb = nbformat.read(path, 4)
    NotebookClient(nb, timeout=300, resources={'metadata': {'path': str(path.parent)}}).execute()
    shown = [o for c in nb.cells if c.cell_type == 'code' for o in c.outputs]
    assert not [o.text for o in shown if o.output_type == 'stream' and o.name == 'stderr' and 'Warning' in o.text]
    assert any('image/png' in o.get('data', {}) for o in shown), 'a tutorial shows a picture'

"Write README.md from nbs/index.ipynb; `--check` only compares. No quarto."
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parent.parent


def render():
    "The README's text: cells marked `#| hide` are left out."
    nb = nbformat.read(root/'nbs'/'index.ipynb', as_version=4)
    nb.cells = [c for c in nb.cells if not re.match(r'#\|\s*(hide|default_exp)\b', c.source)]
    nb.metadata['language_info'] = {'name': 'python'}
    body, resources = MarkdownExporter().from_notebook_node(nb)
    if resources.get('outputs'): raise SystemExit('index.ipynb must be text only: a picture would have to be stored beside README.md')
    return '<!-- generated from nbs/index.ipynb by tools/make_readme.py -->\n\n' + body.strip() + '\n'


if __name__ == '__main__':
    text, path = render(), root/'README.md'
    if '--check' not in sys.argv: path.write_text(text, encoding='utf-8')
    elif path.read_text(encoding='utf-8') != text: sys.exit('README.md is not current; run tools/make_readme.py')

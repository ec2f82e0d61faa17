"What objects look like in a notebook; nothing trained depends on it."
import inspect
import re

import numpy as np
import pytest
import torch

from noisymem.data import Dataset, from_arrays, load_dataset
from noisymem.display import config_html
from noisymem.noise import add_noise
from noisymem.records import Records
from noisymem.runs import RunConfig


def whole(page): return page.count('<') == page.count('>') and page.count('<div') == page.count('</div>') and page.count('<tr') == page.count('</tr>')


def test_a_data_set_tells_its_sizes_classes_and_noise():
    data = add_noise(load_dataset('digits'), 'symmetric', .2, seed=0)
    page = data._repr_html_()
    assert whole(page) and f'{data.noise_rate:.1%}' in page and '1,437 of 1 x 8 x 8' in page and page.count('data:image/png') == 10


@pytest.mark.parametrize('data', [from_arrays(np.eye(6, dtype=np.float32), ['<script>', 'b', 'b']*2), from_arrays(torch.zeros(4, 3, dtype=torch.int64), [0, 1, 0, 1]), from_arrays(np.zeros((3, 4, 4, 3), np.uint8), [0, 1, 1])])
def test_any_kind_of_data(data):
    page = data._repr_html_()
    assert whole(page) and '<script>' not in page and 'unknown' in page


def test_records_name_their_arrays_and_do_not_print_them():
    rec = Records(dict(seed=np.arange(2), loss=np.zeros((2, 50000), np.float16)), {}, dict(name='<x>', config={}), 'epoch')
    assert whole(rec._repr_html_()) and 'float16 2 x 50000' in rec._repr_html_() and '&lt;x&gt;' in rec._repr_html_() and repr(rec) == 'Records(2 epochs; loss, seed)'
    assert whole(Records({})._repr_html_())


def test_a_configuration_puts_what_was_changed_first():
    page = RunConfig(noise='worst', n_models=3)._repr_html_()
    assert whole(page) and page.index('worst') < page.index('cifar10') and len(re.findall('<td[^>]*><b>', page)) == 2 and page == config_html(RunConfig(noise='worst', n_models=3))


def test_no_result_depends_on_it():
    for cls in (Dataset, Records, RunConfig): assert '_repr_html_' not in inspect.getsource(cls)

"What is drawn, and where there are too few values for a line."
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from noisymem.plots import make_panels, plot_lines


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')


def table(n, index=None): return pd.DataFrame(dict(x=[1, 2, 3, 4], y=[.1, .2, .3, .4], sd=.05, n=n, method='m'), index=index)


def drawn(ax): return [(l.get_linestyle(), l.get_marker(), list(l.get_xdata())) for l in ax.get_lines()]


def test_five_values_make_a_line_with_a_band():
    ax = plot_lines(table(5), 'x', 'y', 'method', '', '')
    assert drawn(ax) == [('-', 'o', [1, 2, 3, 4])] and len(ax.collections) == 1


def test_four_values_make_points_even_without_markers():
    for markers in (True, False):
        ax = plot_lines(table(4), 'x', 'y', 'method', '', '', markers=markers)
        assert drawn(ax) == [('None', 'o', [1, 2, 3, 4])] and not ax.collections
        assert ax.get_legend_handles_labels()[1] == ['m']


def test_both_in_one_method():
    ax = plot_lines(table([9, 9, 4, 1], index=[0, 0, 0, 0]), 'x', 'y', 'method', '', '')
    assert drawn(ax) == [('-', 'o', [1, 2]), ('None', 'o', [3, 4])]
    assert ax.get_legend_handles_labels()[1] == ['m']
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 0].max() == 2


def test_points_keep_the_marker_of_their_method():
    t = pd.concat([table(5), table(1).assign(method='k'), table(np.nan).assign(method='l')])
    assert [d[:2] for d in drawn(plot_lines(t, 'x', 'y', 'method', '', ''))] == [('-', 'o'), ('None', 's'), ('None', '^')]


def test_without_n_there_is_a_line(): assert drawn(plot_lines(table(1).drop(columns='n'), 'x', 'y', 'method', '', ''))[0][0] == '-'


def test_width(): assert make_panels()[0].figure.get_figwidth() == 5.5 and make_panels(1, 3, width=7)[0].figure.get_figwidth() == 7

"""Pictures of labels in a script that matplotlib's own font lacks."""

import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager

from mecap_jax.evaluation import plot_style
from mecap_jax.evaluation.plots import plot_confusion

LABELS = ["愤怒", "高兴"]


def _draw(path) -> np.ndarray:
    plot_confusion({"sft": {"anchor": LABELS}}, LABELS, LABELS, path)
    return matplotlib.image.imread(path)


def test_characters_without_a_font_are_named_once(tmp_path, monkeypatch, caplog, recwarn):
    monkeypatch.setitem(plot_style.STYLE, "font.family", ["DejaVu Sans"])
    _draw(tmp_path / "confusion.png")
    (said,) = caplog.messages
    assert said.startswith("confusion.png: no font for '") and set("愤怒高兴") < set(said)
    assert not recwarn


def test_an_installed_font_is_found_though_matplotlib_has_not_seen_it(tmp_path, monkeypatch):
    # Under the name of a Chinese one, as nothing else is sure to be installed.
    font = shutil.copy(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSerif.ttf"), tmp_path / "new.ttf")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    monkeypatch.setattr(plot_style, "findSystemFonts", lambda: [str(font), str(tmp_path / "gone.ttf")])
    monkeypatch.setattr(plot_style, "_CHINESE", ("Not Installed", "DejaVu Serif"))
    assert plot_style._families() == ["DejaVu Sans", "DejaVu Serif"]
    assert str(font) in [entry.fname for entry in font_manager.fontManager.ttflist]


@pytest.mark.skipif(len(plot_style.STYLE["font.family"]) < 2, reason="no Chinese font is installed")
def test_chinese_labels_are_drawn(tmp_path, caplog):
    _draw(tmp_path / "confusion.png")
    assert not caplog.messages

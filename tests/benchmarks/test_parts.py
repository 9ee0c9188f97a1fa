"""Both sides of a part's row do the same work: the same sentences, the same patches and frames of the same clips."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import pytest

from benchmarks.throughput import parts, parts_torch
from benchmarks.throughput.prepare import prepare
from benchmarks.throughput.tables import table
from benchmarks.throughput.work import Work


@pytest.fixture(params=["encoder", "media"])
def both(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work = Work(request.param, prompts=2, batches=1)
    work.save(tmp_path)
    prepare(tmp_path)
    return request.param, [next(getattr(side, work.row)(work)) for side in (parts, parts_torch)]


def test_sides_do_the_same_work(both):
    row, (ours, theirs) = both
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours["items"] == 2 and min(ours.values()) > 0

    def side(facts, seconds):
        return {"steps": [{"seconds": seconds, "facts": facts | {"core_seconds": 2 * seconds}, "phases": {}}]}

    sides = {row: side(ours, 0.5), f"{row}_torch": side(theirs, 2.0)}
    machine = {"cores": 2, "processor": "one", "family": "", "model": "", "instructions": []}
    result = {"row": row, "sides": sides, "ratios": {f"{row}_torch": {"step": 4.0}}, "machine": machine, "date": ""}
    assert "| this project | 0.500 | 4.00 | 2.00 | 1 |" in table(result)
    assert " | 2.00 | 1.00 | 0.50 | **4.0** |" in table(result)

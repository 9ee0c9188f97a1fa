"""What the tests of whole runs share: shards, and a sentence encoder that costs little."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from safetensors.numpy import load_file, save_file

from mecap_jax.data.importers import prepare
from mecap_jax.experiment import scoring, story
from mecap_jax.models.sentence_encoder import packaged_directory
from tests.experiment.test_story import small


@pytest.fixture(scope="session")
def shared(common) -> tuple[str, ...]:
    """Overrides that make every run here take the same shards and the same encoder."""
    shards, encoder = common / "shards", common / "encoder"
    with FileLock(common / "shards.lock"):
        prepare("synthetic", None, shards, small().data.synthetic, progress=False)
        if not encoder.exists():
            first_layer_of_encoder(encoder)
    return (f"data.path={shards}", f"encoder.path={encoder}")


def first_layer_of_encoder(directory: Path):
    """The packaged sentence encoder without its other five layers: of the same kind, for a sixth of the work."""
    shutil.copytree(packaged_directory(), directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    weights = load_file(directory / "model.safetensors")
    kept = {name: x for name, x in weights.items() if ".layer." not in name or ".layer.0." in name}
    save_file(kept, directory / "model.safetensors", {"format": "pt"})


@pytest.fixture
def one_meteor(request, monkeypatch):
    """Runs take the session's METEOR, where there can be one, instead of starting their own."""
    if shutil.which("java"):
        meteor = request.getfixturevalue("meteor")
        for module in (story, scoring):
            monkeypatch.setattr(module, "Meteor", lambda **_: contextlib.nullcontext(meteor))

"""The page over directories in the Hugging Face layout, of every family, with small random weights."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import dataclasses
import re

import numpy as np
import pytest

from mecap_jax.app.captions import Sampling
from mecap_jax.app.site import Site
from mecap_jax.config import ConfigError
from mecap_jax.emotions import EMOTIONS
from mecap_jax.model_config import FeatureProjectorConfig
from mecap_jax.models.checkpoints.hub import save_model
from mecap_jax.sharding import single_device
from mecap_jax.train_state import init_params
from tests.data.clips import audio_file, video_file
from tests.published_family import open_family

SHORT = Sampling(samples=2, temperature=1.0, max_new_tokens=4)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    directory = tmp_path_factory.mktemp("clips")
    (directory / "film.mp4").write_bytes(video_file())
    (directory / "voice.wav").write_bytes(audio_file())
    return directory


def shown(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r'"data:[^"]*"', "", page)))


@pytest.mark.parametrize("name, alone", [("qwen2_5_omni", True), ("qwen2_5_vl", False)])
def test_a_model_that_hears_or_sees(name, alone, clips, tmp_path):
    open_family(name, tmp_path)
    site = Site({name: tmp_path})
    assert site.models[name].reads_media
    page = site.caption([name], str(clips / "film.mp4"), "I said no.", SHORT)
    text = shown(page)
    assert page.count('<blockquote class="said">') == 2 and 'class="error"' not in page
    assert ("sound only" in text) == ("picture only" in text) == alone
    assert page.count("<dt>") == len(EMOTIONS) and re.search(r"\d+ frames", text) and "<video" in page
    page = site.caption([name], str(clips / "voice.wav"), "", SHORT)
    assert ('class="error"' in page) != alone and "reads nothing else" in shown(page)  # who only sees says so


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_a_model_behind_precomputed_features(name, tmp_path):
    family = open_family(name, tmp_path / "model")
    model = dataclasses.replace(family.config, features=FeatureProjectorConfig(("face-UTT", "voice-FRA"), (3, 2), 8))
    _, drawn = init_params(model, 1, single_device())
    (family.directory / "model.safetensors").unlink()
    save_model(family.directory, model, family.params | {"feature_projector": drawn["feature_projector"]})
    for feature, shape in (("face-UTT", (3,)), ("voice-FRA", (5, 2))):
        (tmp_path / "features" / feature).mkdir(parents=True)
        np.save(tmp_path / "features" / feature / "G1.npy", np.ones(shape, np.float32))
    site = Site({name: tmp_path / "model"}, features=tmp_path)
    assert not site.models[name].reads_media
    page = site.caption([name], "G1", "", SHORT, is_id=True)
    assert page.count('<blockquote class="said">') == 2 and 'class="error"' not in page
    assert "has no features" in shown(site.caption([name], "G2", "", SHORT, is_id=True))
    with pytest.raises(ConfigError, match="reads ids of precomputed features, no clips"):
        site.caption([name], "G1", "", SHORT)

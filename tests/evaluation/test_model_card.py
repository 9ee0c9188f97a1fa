"""Model cards: what they say follows from configuration and report, and foreign text stays text."""

import ast
import dataclasses
import re

import pytest
import yaml

from mecap_jax.config import LossConfig, RewardSpec, load
from mecap_jax.evaluation.model_card import About, Export, base_name, render_card
from mecap_jax.model_config import LoraConfig

HOSTILE = "x\"\n---\nlicense: mit\n```\n# Heading\n<script>alert(1)</script> | [a](http://b) {{ c }} ' \\ \u2028 ${d}"


def export(recipe="configs/grpo.py", stage="grpo", **changes):
    about = About("does things", ("It has limits.",))
    defaults = dict(
        instruction="Say it.", about=about, steps=7, dtype="float32", adapters=False, report={}, data={}, base=""
    )
    return Export(config=changes.pop("config", load(recipe)), stage=stage, **defaults | changes)


def front(card):
    text = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL).group(1)
    return yaml.safe_load(text)


def code(card):
    return re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("family", ["tiny", "qwen2_5_omni_3b", "qwen2_5_vl_3b", "features_qwen2_5_0_5b"])
@pytest.mark.parametrize("stage", ["sft", "grpo", "text_only", "sft_control", "grpo_semantic", "another"])
def test_every_family_and_stage_has_a_card_with_code_that_parses(family, stage):
    card = render_card(export(f"configs/grpo.py:{family}", stage))
    assert front(card)["library_name"] == "transformers" and front(card)["license"] == "other"
    assert len(code(card)) == 2 and all(ast.parse(text) for text in code(card))
    assert "Not evaluated." in card and "no record of its data" in card
    assert "\n- It has limits." in card
    if stage == "text_only":
        assert "waveform" not in card and front(card)["pipeline_tag"] == "text-generation"
    if stage == "grpo_semantic":
        assert "fluency 3" in card or "semantic 0.5" in card
        assert "emotion 1" not in card and "emotion 2" not in card


def test_foreign_text_stays_text():
    config = load("configs/grpo.py:qwen2_5_omni_3b,lora")
    replace = dataclasses.replace
    loss = replace(config.grpo.loss, name=HOSTILE)
    config = replace(
        config,
        name=HOSTILE,
        trainable=(HOSTILE,),
        model=replace(config.model, name=HOSTILE, lora=LoraConfig(targets=(HOSTILE,))),
        grpo=replace(config.grpo, loss=loss, reward=replace(config.grpo.reward, terms=(RewardSpec(HOSTILE),))),
    )
    report = {"eval": {"grpo": {HOSTILE: 0.5}}, "confidence": {"grpo": {HOSTILE: None}}, "test": {"clips": HOSTILE}}
    data = {"source": HOSTILE, "splits": {HOSTILE: {"records": HOSTILE}}, "licences": {HOSTILE: 3}, "quarantined": []}
    card = render_card(
        export(
            config=config,
            instruction=HOSTILE,
            report=report,
            data=data,
            base=f"/home/me/secret/{HOSTILE}",
            adapters=True,
        )
    )
    assert front(card)["license"] == "other" and front(card)["base_model"].startswith("b)")
    blocks = code(card)
    assert len(blocks) == 1
    assigned = [node for node in ast.parse(blocks[0]).body if isinstance(node, ast.Assign)]
    instruction = next(node.value for node in assigned if ast.unparse(node.targets[0]) == "instruction")
    assert ast.literal_eval(instruction) == HOSTILE
    prose = card.replace(blocks[0], "")
    prose = prose[prose.index("---\n", 4) :]
    for broken in ("<script>", "\nlicense:", "[a](", "\n# Heading", "\u2028"):
        assert broken not in prose, broken
    assert prose.count("```") == 2
    assert "secret" not in card and "/home" not in card


def test_the_licence_is_one_that_all_parts_have(tmp_path):
    base = tmp_path / "Qwen2.5-VL-7B-Instruct"
    base.mkdir()

    def licence(data, text=None, base=str(base)):
        if text is not None:
            (tmp_path / "Qwen2.5-VL-7B-Instruct" / "README.md").write_text(text)
        return front(render_card(export(data={"licences": data}, base=base)))["license"]

    assert licence({"CC0-1.0": 3}) == "other"  # the backbone's is not known
    assert licence({"CC0-1.0": 3}, "---\nlicense: apache-2.0\nlanguage: en\n---\nlicense: mit\n") == "apache-2.0"
    assert licence({"Apache-2.0": 3, "CC0-1.0": 1}) == "apache-2.0"
    assert licence({"CC-BY-NC-SA-4.0": 3, "CC0-1.0": 1}) == "other"
    assert licence({"": 3}) == "other" and licence({"CC-BY-4.0": 1}, base="") == "cc-by-4.0"
    assert licence({"CC0-1.0": 3}, base="") == "cc0-1.0"


def test_synthetic_data_are_called_so_and_paths_are_not_shown():
    for data in ({"source": {"importer": "synthetic", "input": "/home/me/clips"}, "synthetic": True},):
        card = render_card(export(data=data))
        assert "data are synthetic" in card and "synthesised speech" in card and "/home" not in card
    for data in ({"source": {"importer": "folder"}, "synthetic": False}, {"source": "ravdess"}, {}):
        assert "data are synthetic" not in render_card(export(data=data))


def test_names_of_backbones():
    assert base_name("checkpoints/Qwen2.5-Omni-3B") == "Qwen/Qwen2.5-Omni-3B"
    assert base_name("/home/me/models/mine/") == "mine"


def test_the_recipe_names_rewards_steps_and_seed():
    config = load("configs/grpo.py", ["seed=5"])
    config = dataclasses.replace(config, grpo=dataclasses.replace(config.grpo, loss=LossConfig(beta=0.25)))
    card = render_card(export(config=config))
    for words in (
        "| seed | 5 |",
        r"emotion 2 (over mean), distinctiveness 2 (among emotion), fluency 3, cider\_d 0.4",
        "KL weight 0.25",
        "1. SFT: 450 steps",
        "2. GRPO: 50 steps",
    ):
        assert words in card, words

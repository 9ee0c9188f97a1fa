"""A wrong configuration gets one clear error that names the key, before any data or model work."""

import dataclasses
import types
import typing
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from mecap_jax.config import (
    Bucket,
    Config,
    ConfigError,
    RewardSpec,
    chosen_rows,
    from_json,
    load,
    row_config,
    to_json,
    validate,
    validate_devices,
)

RECIPE = "configs/grpo.py"


def test_recipes_are_valid():
    for recipe in ("configs/grpo.py", "configs/sft.py"):
        load(recipe)


def test_overrides_reach_nested_fields_with_the_right_type():
    config = load(
        RECIPE,
        [
            "seed=3",
            "grpo.group_size=4",
            "grpo.optimizer.learning_rate=1",
            "data.modalities=audio",
            "data.instruction=7",
            "evaluation.rows=text_only",
            "grpo.reward.terms=semantic=0.25,a.py:f=1",
            "grpo.reward.terms.a.py:f.gate=semantic",
            "grpo.reward.terms.semantic.options.over=mean",
            "grpo.reward.terms.a.py:f.options={'seen': 1}",
            "grpo.reward.terms.a.py:f.options.shuffled=True",
        ],
    )
    assert (config.seed, config.grpo.group_size, config.data.instruction) == (3, 4, "7")
    assert config.grpo.optimizer.learning_rate == 1.0 and isinstance(config.grpo.optimizer.learning_rate, float)
    assert config.data.modalities == ("audio",)
    assert config.evaluation.rows == ("text_only",)
    assert config.grpo.reward.terms == (
        RewardSpec("semantic", 0.25, options={"over": "mean"}),
        RewardSpec("a.py:f", 1.0, gate="semantic", options={"seen": 1, "shuffled": True}),
    )
    assert load(RECIPE, ["grpo=None"]).grpo is None


@pytest.mark.parametrize(
    "override, words",
    [
        ("grpo.group_sise=8", ("grpo.group_sise", "did you mean 'group_size'")),
        ("nonsense=1", ("nonsense", "known keys")),
        ("seed.x=1", ("seed.x", "no fields")),
        ("model.features.hidden_size=3", ("model.features.hidden_size", "not set in this recipe")),
        ("grpo.group_size", ("grpo.group_size", "key.path=value")),
        ("grpo.group_size=eight", ("grpo.group_size", "valid integer", "'eight'")),
        ("grpo.group_size=8.5", ("grpo.group_size", "valid integer")),
        ("grpo.group_size=True", ("grpo.group_size", "valid integer")),
        ("grpo.mask_truncated=1", ("grpo.mask_truncated", "valid boolean")),
        ("data.modalities=3", ("data.modalities", "valid array")),
        ("data.buckets=({'tokens':3},)", ("data.buckets[0].tokens", "unknown")),
        ("data.buckets=({'frames':3},)", ("data.buckets[0].prompt_tokens", "required")),
        ("grpo.group_size=1", ("grpo.group_size", "greater than or equal to 2")),
        ("grpo.loss.name=ppo", ("grpo.loss.name", "must be 'grpo', 'dr_grpo'")),
        ("grpo.temperature=0", ("grpo.temperature", "greater than 0")),
        ("grpo.loss.beta=-1", ("grpo.loss.beta", "greater than or equal to 0")),
        ("data.max_bad_fraction=2", ("data.max_bad_fraction", "less than or equal to 1")),
        ("grpo.loss.kl=k1", ("grpo.loss.kl", "must be 'k2', 'k3' or 'k3_corrected'")),
        ("grpo.loss.clip_dual=1", ("grpo.loss.clip_dual", "above 1")),
        ("grpo.reward.terms.emotion.weight=1e308", ("grpo.reward.terms[0].weight", "less than or equal to 1000000")),
        ("grpo.reward.terms.joy.weight=1", ("no reward term 'joy'", "emotion, distinctiveness, fluency")),
        ("grpo.reward.terms=emotion=much", ("'emotion=much'", "the weight 'much' is no number")),
        ("grpo.reward.terms=emotion,emotion", ("'grpo.reward.terms'", "'emotion' is there twice")),
        ("grpo.reward.terms.emotion.gate=emotion", ("'grpo.reward.terms'", "the gate 'emotion' of 'emotion'")),
        ("grpo.reward.terms.emotion.gate=joy", ("'grpo.reward.terms'", "the gate 'joy' of 'emotion' is no other term")),
        ("grpo.reward.terms.emotion.schedule=((5,1.0),(5,2.0))", ("'grpo.reward.terms'", "later and later steps")),
        ("grpo.reward.terms.emotion.schedule_over=semantic", ("'grpo.reward.terms'", "'emotion' has no schedule")),
        ("rows=({'name': 'No', 'stage': 'sft'},)", ("rows[0].name", "pattern")),
        ("rows=({'name': 'sft', 'stage': 'sft'},)", ("'rows'", "a name of its own")),
        ("sft.optimizer.clip_norm=nan", ("sft.optimizer.clip_norm", "valid number", "'nan'")),
        ("sft.optimizer.clip_norm=1e999", ("sft.optimizer.clip_norm", "finite")),
        ("name=", ("'name'", "the name of a directory")),
        ("name=..", ("'name'", "the name of a directory")),
        ("name=../../elsewhere", ("'name'", "and no path")),
        ("grpo.reward.timeout_s=1e30", ("grpo.reward.timeout_s", "less than or equal to 1000000")),
        ("grpo.optimizer.beta2=1", ("grpo.optimizer.beta2", "less than 1")),
        ("seed={1, 2}", ("seed", "valid integer", "{1, 2}")),
        ("trainable=()", ("trainable", "nothing would train")),
        ("trainable=('(',)", ("trainable", "'('", "no regular expression")),
        ("model.lora={'targets': ('*',)}", ("model.lora.targets", "'*'", "no regular expression")),
        ("model.lora={'rank': 0}", ("model.lora.rank", "greater than 0")),
        ("model.lora={'dropout': 1}", ("model.lora.dropout", "less than 1")),
        ("data.modalities=smell", ("data.modalities[0]", "must be 'audio', 'video' or 'features'")),
        ("data.modalities=audio,audio", ("data.modalities", "twice")),
        ("data.modalities=features", ("data.modalities", "no part for 'features'")),
        (
            "model.features={'names': ('x',), 'dims': (5,), 'hidden_size': 2, 'layers': (2,)}",
            ("model.features", "a width of 5 does not divide into 2 layers"),
        ),
        ("data.min_pixels=60000", ("data.min_pixels", "must not exceed data.max_pixels")),
        ("grpo.clips=held_out", ("grpo.clips", "data.sft_share")),
        ("evaluation.rows=sft_contol", ("'evaluation.rows'", "no row 'sft_contol'; it has text_only, sft_control")),
        ("model.decoder.mrope_section=(1,1,1)", ("model.decoder.mrope_section", "head_dim")),
        ("model.decoder.num_key_value_heads=3", ("num_key_value_heads", "divide")),
        ("data.input=clips", ("data.input", "data.source")),
    ],
)
def test_errors_name_the_key(override, words):
    with pytest.raises(ConfigError) as caught:
        load(RECIPE, [override])
    for word in words:
        assert word in str(caught.value)


def fields_of(hint, key=""):
    """(dotted key, type) of every leaf under a dataclass, constraints included."""
    if dataclasses.is_dataclass(hint):
        for name, child in typing.get_type_hints(hint, include_extras=True).items():
            yield from fields_of(child, f"{key}.{name}".lstrip("."))
    elif typing.get_origin(hint) in (tuple, typing.Union, types.UnionType):
        for child in typing.get_args(hint):
            yield from fields_of(child, key)
    else:
        yield key, hint


def test_every_number_has_a_range():
    numbers = {key: hint for key, hint in fields_of(Config) if typing.get_args(hint)[:1] in ((int,), (float,))}
    assert {"grpo.optimizer.clip_norm", "sft.steps", "model.lora.dropout", "data.buckets.frames"} < set(numbers)
    assert [key for key, hint in fields_of(Config) if hint in (int, float)] == []
    bounds = {key: TypeAdapter(hint).json_schema() for key, hint in numbers.items()}
    ends = {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"}
    assert [key for key, schema in bounds.items() if not ends & set(schema)] == []


def test_all_that_is_wrong_is_named_at_once():
    config = load(RECIPE)
    wrong = dataclasses.replace(config, seed=-1, grpo=dataclasses.replace(config.grpo, top_p=0))
    with pytest.raises(ConfigError, match=r"'seed': .*\(got -1\); config key 'grpo.top_p': .*\(got 0\)"):
        validate(wrong)


@pytest.mark.parametrize(
    "settings",
    [
        ["loss.name=dapo", "loss.clip_low=0.2", "loss.clip_high=0.28", "draws=4", "mask_truncated=True"],
        ["loss.name=dr_grpo", "advantage=mean"],
        ["loss.name=gspo", "loss.clip_low=3e-4", "loss.clip_high=4e-4"],
        ["loss.name=cispo", "loss.clip_high=4.0"],
        ["loss.name=sapo", "loss.sapo_positive=1.0", "loss.sapo_negative=1.05"],
        ["advantage=leave_one_out", "loss.kl=k2"],
        ["advantage=per_reward", "updates=2", "minibatches=3", "loss.kl=k3_corrected"],
        ["reference_sync_steps=64", "reference_mix=0.6", "loss.beta_schedule=((0, 1.0), (500, 0.25))"],
        ["reward.combine=product", "reward.terms.fluency.schedule=((0, 0.0), (50, 1.0))"],
        ["reward.terms.fluency.gate=emotion", "reward.terms.fluency.gate_above=0.4"],
        ["reward.terms.fluency.schedule=((0.3, 0.0), (0.6, 1.0))", "reward.terms.fluency.schedule_over=emotion"],
    ],
    ids=" ".join,
)
def test_every_algorithm_is_a_matter_of_settings(settings):
    load(RECIPE, [f"grpo.{setting}" for setting in settings])


def test_combinations_of_stages():
    with pytest.raises(ConfigError, match="'sft'.*SFT stage, a GRPO stage or both"):
        load(RECIPE, ["sft=None", "grpo=None"])
    with pytest.raises(ConfigError, match="'evaluation.rows'.*grpo_semantic needs grpo, which this run leaves out"):
        load(RECIPE, ["grpo=None", "evaluation.rows=grpo_semantic"])
    with pytest.raises(ConfigError, match="'evaluation.rows'.*sft_control needs sft, which this run leaves out"):
        load(RECIPE, ["sft=None", "init_from=run/checkpoints/sft", "evaluation.rows=sft_control"])
    # Its twin goes on from where the branch does.
    load(RECIPE, ["sft=None", "init_from=run/checkpoints/sft", "evaluation.rows=reward_off"])
    with pytest.raises(ConfigError, match="'grpo.reward.terms'.*nothing would be learnt"):
        load(RECIPE, ["grpo.reward.terms=emotion=0,semantic=0"])
    terms, late = ("emotion", "semantic"), "((10, 0.0), (20, 1.0))"
    schedules = ["grpo.reward.terms=emotion,semantic", *(f"grpo.reward.terms.{name}.schedule={late}" for name in terms)]
    load(RECIPE, schedules[:2])
    with pytest.raises(ConfigError, match="'grpo.reward.terms'.*at step 0 every weight is 0"):
        load(RECIPE, schedules)
    with pytest.raises(ConfigError, match="'grpo.advantage'.*grpo.reward.combine must be sum"):
        load(RECIPE, ["grpo.advantage=per_reward", "grpo.reward.combine=product"])
    with pytest.raises(ConfigError, match="smallest first"):
        recipe = load(RECIPE)
        buckets = (Bucket(200, 2, 4, 1), Bucket(100, 2, 4, 1))
        validate(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, buckets=buckets)))


def test_the_control_costs_as_much_as_reinforcement_learning():
    """Counted in tokens through the decoder, a gradient as three passes (docs/protocol.md)."""
    config = load(RECIPE, ["evaluation.rows=sft_control"])
    (control,) = chosen_rows(config)
    prompt, grpo, sft = 104, config.grpo, config.sft  # tokens of the synthetic corpus's prompts
    sampled = prompt + grpo.group_size * grpo.max_new_tokens  # by the policy, and scored by the reference policy
    learnt = sampled + grpo.loss.references * sft.max_target_tokens
    of_grpo = grpo.prompts * (2 * sampled + 3 * learnt)
    of_sft = sft.batch_clips * 3 * (prompt + sft.references * sft.max_target_tokens)
    assert of_grpo / of_sft == pytest.approx(control.steps_each, rel=0.05)


def test_a_row_of_comparison_is_the_run_with_small_changes():
    config = load(RECIPE, ["sft.steps=7", "grpo.steps=11", "evaluation.rows=sft_control,text_only"])
    again, blind = chosen_rows(config)
    assert (again.after, again.steps_of, blind.after) == ("sft", "grpo", "")
    changed = row_config(config, again)
    assert (changed.sft.steps, changed.sft.references, changed.sft.optimizer.learning_rate) == (22, 2, 1e-3)
    expected = dataclasses.replace(config.data, modalities=(), tower_cache=False)
    assert row_config(config, blind).data == expected and row_config(config, blind).grpo == config.grpo


@pytest.mark.parametrize("recipe", sorted(str(path) for path in Path("configs").glob("*.py")))
def test_every_row_of_every_recipe_can_be_asked_for(recipe):
    config = load(recipe)
    for row in config.rows:
        assert chosen_rows(load(recipe, [f"evaluation.rows={row.name}"])) == [row]
        assert row_config(config, row) != config


@pytest.mark.parametrize("key", ["sft.max_target_tokens", "grpo.max_new_tokens"])
@pytest.mark.parametrize("row, most", [("gpt2_sft", 511), ("bart_sft", 510)])
def test_answers_have_room_among_learned_positions(row, most, key):
    """Behind a prompt, or behind the tokens that BART's decoder begins with."""
    load(RECIPE, [f"evaluation.rows={row}", f"{key}={most}"])
    with pytest.raises(ConfigError, match=f"row '{row}': config key '{key}': leaves no room for a prompt: .* is 512"):
        load(RECIPE, [f"evaluation.rows={row}", f"{key}={most + 1}"])


@pytest.mark.parametrize(
    "change, message",
    [
        ("sft.stps=1", "row 'odd': unknown config key 'sft.stps'"),
        ("sft.steps=0", "row 'odd': config key 'sft.steps'"),
        ("model.lora={}", "row 'odd': .* changes more than task, data, sft, grpo or model.decoder"),
        ("model.decoder={}", "row 'odd': .* changes more than task, data, sft, grpo or model.decoder"),
        (
            "model.decoder.max_position_embeddings=9",
            "row 'odd': .*num_key_value_heads': GPT-2 and BART have one a head, 4",
        ),
        ("task.name=recognition", "row 'odd': .* changes what all rows must share: task.name, data.path"),
        ("data.synthetic.clips=7", "row 'odd': .* changes what all rows must share"),
        ("data.tower_cache=True", "row 'odd': .*'data.tower_cache': all rows read media as the run does"),
        ("data={}", "row 'odd': .* changes what all rows must share"),
        ("grpo.reward.terms.joy.weight=0", "row 'odd': .*no reward term 'joy'"),
    ],
)
def test_a_row_that_cannot_be_is_refused_where_it_is_asked_for(change, message):
    rows = f"rows=({{'name': 'odd', 'stage': 'sft', 'changes': ({change!r},)}},)"
    load(RECIPE, [rows])
    with pytest.raises(ConfigError, match=message):
        load(RECIPE, [rows, "evaluation.rows=odd"])


def test_a_row_with_another_decoder_is_the_run_with_another_network():
    for recipe in (RECIPE, RECIPE.replace("grpo", "sft")):
        config = load(recipe, ["evaluation.rows=qwen2_sft,gpt2_sft,bart_sft"])
        qwen2, gpt2, bart = (row_config(config, row) for row in chosen_rows(config))
        assert qwen2.model.decoder == dataclasses.replace(config.model.decoder, mrope_section=None)
        assert gpt2.model.decoder.max_position_embeddings and not config.model.decoder.max_position_embeddings
        assert bart.model.decoder.encoder and not gpt2.model.decoder.encoder
        for changed in (qwen2, gpt2, bart):
            decoder = config.model.decoder
            assert dataclasses.replace(changed.model, decoder=decoder) == config.model
            assert (changed.sft, changed.data, changed.seed) == (config.sft, config.data, config.seed)
            assert changed.model.decoder.hidden_size == decoder.hidden_size


@pytest.mark.parametrize(
    "after, changes, message",
    [
        ("sft", [], "row 'odd': config key 'model.decoder': another network cannot go on from 'sft'"),
        ("", ["init_from=run/checkpoints/sft"], "'model.decoder': another network begins at random.*'init_from'"),
        ("", ["backbone=DIR"], "'model.decoder': another network begins at random.*'backbone'"),
        ("", ["data.tower_cache=True", "data.augment={}"], "'data.tower_cache': its tokens come from .* the run's own"),
    ],
)
def test_a_row_with_another_decoder_has_nothing_to_begin_with(after, changes, message):
    row = {"name": "odd", "stage": "sft", "after": after, "changes": ("model.decoder.mrope_section=None",)}
    with pytest.raises(ConfigError, match=message):
        load(RECIPE, [f"rows=({row},)", "evaluation.rows=odd", *changes])


@pytest.mark.parametrize(
    "overrides, devices, words",
    [
        (("mesh.fsdp=2",), 3, ("'mesh'", "3 devices")),
        (("mesh.data=4",), 8, ("'mesh'", "8 devices")),
        (("mesh.tensor=4",), 8, ("'mesh.tensor'", "4 does not divide model.decoder.num_key_value_heads = 2")),
        (("mesh.tensor=2", "model.audio.encoder_attention_heads=5"), 2, ("model.audio.encoder_attention_heads = 5",)),
        (("mesh.tensor=2", "model.vision.intermediate_size=255"), 2, ("model.vision.intermediate_size = 255",)),
    ],
)
def test_meshes_must_fit_devices_and_model(overrides, devices, words):
    config = load(RECIPE, overrides)
    with pytest.raises(ConfigError) as caught:
        validate_devices(config, devices)
    assert all(word in str(caught.value) for word in words)


def test_what_json_does_not_have_is_refused_by_name():
    config = load(RECIPE)
    for value, said in ((Path("x"), "PosixPath"), ({1}, "{1}"), (float("nan"), "finite number")):
        with pytest.raises(ConfigError, match="'grpo.temperature'") as caught:
            validate(dataclasses.replace(config, grpo=dataclasses.replace(config.grpo, temperature=value)))
        assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", b"\xff\xfe{}", "{} {}"])
def test_what_is_no_json_object_is_one_line(text):
    with pytest.raises(ConfigError) as caught:
        from_json(text)
    assert "\n" not in str(caught.value) and "key ''" not in str(caught.value)


def test_json_round_trip():
    config = load(RECIPE, ["seed=5", "grpo=None", "evaluation.rows=text_only"])
    assert from_json(to_json(config)) == config
    with pytest.raises(ConfigError, match="sead"):
        from_json(to_json(config).replace('"seed"', '"sead"'))
    with pytest.raises(ConfigError, match="'seed': must be a valid integer"):
        from_json(to_json(config).replace('"seed": 5', '"seed": "five"'))


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "no such file"),
        ("x = 1", "defines no get_config"),
        ("def get_config(arg):\n    return 3", "returned int"),
        ("def get_config(arg)", "recipe.py raised SyntaxError: expected ':'"),
        ("import no_such_module", "raised ModuleNotFoundError: .*no_such_module"),
        ("def get_config(arg):\n    return arg.sft", "raised AttributeError: .*'sft'"),
    ],
)
def test_recipe_files(tmp_path, text, message):
    path = tmp_path / "recipe.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(str(path))

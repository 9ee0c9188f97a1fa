"""Every family equals `transformers` end to end: from raw media and text to logits, greedy text and gradients."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from mecap_jax.batch import Completions
from mecap_jax.generation.sampler import generate
from mecap_jax.generation.scoring import completion_logprobs
from mecap_jax.models.checkpoints.families import LAYOUTS
from mecap_jax.models.checkpoints.table import by_key, flatten
from mecap_jax.models.multimodal_lm import MultimodalLM
from mecap_jax.training.sft import negative_log_likelihood
from tests import hub_models
from tests.data.test_processor import audio, published, text, user, video
from tests.published_family import conversations, load, open_family, their_inputs

NEVER_ENDS = (100_000,)  # an id that no model says: generation goes on to the last token


@pytest.fixture(scope="module", params=hub_models.DECODERS)
def family(request, tmp_path_factory):
    return open_family(request.param, tmp_path_factory.mktemp(request.param))


@functools.partial(jax.jit, static_argnames="graphdef")
def prompt_logits(graphdef, params, prompt):
    """float32 [B, P, V]: logits at every position of the prompts."""
    model = nnx.merge(graphdef, params)
    mask = jnp.arange(prompt.tokens.shape[1]) < prompt.length[:, None]
    hidden, _ = model.language_model.prefill(model.embed_prompt(prompt), prompt.positions, mask, prompt.next_position)
    return model.language_model.logits(hidden)


def check_logits(family, params, graphdef, rows, tolerance, **options):
    batch = family.ours(rows, use_audio_in_video=bool(options))
    ours = np.asarray(prompt_logits(graphdef, params, batch))
    worst = 0.0
    for b, row in enumerate(rows):
        with torch.no_grad():
            expected = family.reference(**their_inputs(family, row, **options)).logits[0].numpy()
        assert expected.std() > 0.3, "logits are not of unit scale"
        np.testing.assert_allclose(ours[b, : len(expected)], expected, atol=tolerance, rtol=0)
        worst = max(worst, np.abs(ours[b, : len(expected)] - expected).max())
    return worst


def test_logits_at_every_position_of_a_mixed_batch(family):
    """Rows padded on the right to one bucket, against each row alone."""
    worst = check_logits(family, family.params, family.graphdef, conversations(family.name), 1e-4)
    print(f"{family.name}: largest difference of a logit {worst:.1e}")


def test_our_right_padding_equals_their_left_padding(family):
    rows = conversations(family.name)[-2:] if family.name != "qwen2_5_omni" else conversations(family.name)[3:5]
    inputs = [their_inputs(family, row) for row in rows]
    longest = max(x["input_ids"].shape[1] for x in inputs)
    joined = {
        key: torch.cat([torch.nn.functional.pad(x[key], (longest - x[key].shape[1], 0)) for x in inputs])
        for key in ("input_ids", "attention_mask")
    }
    if family.name == "qwen2_5_vl":
        joined["mm_token_type_ids"] = torch.zeros_like(joined["input_ids"])
    if family.name == "gpt2":  # its forward pass counts padding, as its `generate` does not
        joined["position_ids"] = (joined["attention_mask"].cumsum(1) - 1).clamp(min=0)
    for key in ("input_features", "feature_attention_mask"):
        parts = [x[key] for x in inputs if key in x]
        if parts:
            joined[key] = torch.cat(parts)
    ours = np.asarray(prompt_logits(family.graphdef, family.params, batch := family.ours(rows)))
    with torch.no_grad():
        expected = family.reference(**joined).logits.numpy()
    for b, n in enumerate(batch.length):
        np.testing.assert_allclose(ours[b, :n], expected[b, -n:], atol=1e-4, rtol=0)


def test_hidden_states_of_every_decoder_layer(family):
    row = conversations(family.name)[0]
    inputs = their_inputs(family, row)
    with torch.no_grad():
        expected = family.reference(**inputs, output_hidden_states=True).hidden_states
    batch = jax.tree.map(jnp.asarray, family.ours([row]))
    layers = family.config.decoder.num_hidden_layers
    assert len(expected) == layers + 1
    embedded = jax.jit(lambda p: nnx.merge(family.graphdef, family.params).embed_prompt(p))(batch)
    n = int(batch.length[0])
    if family.name != "gpt2":  # its first state has positions in it
        np.testing.assert_allclose(np.asarray(embedded)[0, :n], expected[0][0], atol=1e-4, rtol=0)
    mask = jnp.arange(batch.tokens.shape[1]) < batch.length[:, None]

    @functools.partial(jax.jit, static_argnums=1)
    def after(params, count):
        model = nnx.merge(family.graphdef, params)
        model.language_model.layers = nnx.List(list(model.language_model.layers)[:count])
        return model.language_model.prefill(embedded, batch.positions, mask, batch.next_position)[0]

    for count in range(1, layers):  # what their last entry holds has passed the final norm, as logits have
        hidden = after(family.params, count)
        with torch.no_grad():
            norm = family.reference.transformer.ln_f if family.name == "gpt2" else inner(family.reference).norm
            normed = norm(expected[count])[0]
        np.testing.assert_allclose(np.asarray(hidden)[0, :n], normed, atol=1e-4, rtol=0)


def inner(reference):
    return reference.model.language_model if hasattr(reference.model, "language_model") else reference.model


def greedy(family, rows, new_tokens):
    batch = family.ours(rows)
    return batch, generate(
        family.graphdef,
        family.params,
        batch,
        np.zeros(2, np.uint32),
        np.arange(len(rows), dtype=np.int32),
        group_size=1,
        max_new_tokens=new_tokens,
        temperature=0.0,
        end_ids=NEVER_ENDS,
    )


def test_greedy_text_is_the_same_over_64_tokens_and_decoding_equals_the_whole_pass(family):
    """The cache at every step against their generation, and against one pass over prompt and completion."""
    rows = conversations(family.name)
    rows = rows if family.name != "qwen2_5_omni" else [rows[0], rows[2], rows[6]]
    batch, generation = greedy(family, rows, 64)
    for b, row in enumerate(rows):
        inputs = their_inputs(family, row)
        with torch.no_grad():
            expected = family.reference.generate(**inputs, max_new_tokens=64, do_sample=False)
        np.testing.assert_array_equal(generation.tokens[b, 0], expected[0, inputs["input_ids"].shape[1] :])
    whole = completion_logprobs(
        family.graphdef,
        family.params,
        batch,
        Completions(generation.tokens, jnp.ones(generation.tokens.shape, bool)),
        temperature=1.0,
    )
    np.testing.assert_allclose(generation.logprobs, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("remat", [False, True])
def test_gradients_of_every_parameter(family, remat):
    """The summed negative log-likelihood of a target behind prompts with all media."""
    rows = conversations(family.name)
    row = rows[2] if family.name == "qwen2_5_vl" else rows[-1]
    target = [7, 300, 11, 12, 60]
    inputs = their_inputs(family, row)
    n = inputs["input_ids"].shape[1]
    wanted = torch.tensor([target])
    extended = {**inputs, "input_ids": torch.cat([inputs["input_ids"], wanted], 1)}
    extended["attention_mask"] = torch.ones_like(extended["input_ids"])
    if "mm_token_type_ids" in inputs:
        extended["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(wanted)], 1)
    family.reference.zero_grad()
    logits = family.reference(**extended).logits[0, n - 1 : -1]
    loss = torch.nn.functional.cross_entropy(logits, wanted[0], reduction="sum")
    loss.backward()
    expected = {}
    table = LAYOUTS[family.name].table
    for name, parameter in family.reference.named_parameters():
        match = by_key(table.key(name), table.rules)
        if match is None:
            assert "audio_bos_eos_token" in name
            continue
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        expected |= dict(match.to_params(gradient.numpy()))

    config = dataclasses.replace(family.config, remat=remat)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: MultimodalLM(config, nnx.Rngs(0))))
    tokens = np.array(target, np.int32)[None, None]
    sft = jax.tree.map(jnp.asarray, (family.ours([row]), Completions(tokens, np.ones_like(tokens, bool))))

    def value(params):
        return negative_log_likelihood(nnx.merge(graphdef, params), *sft, "token")[0]

    ours_loss, gradients = jax.jit(jax.value_and_grad(value))(family.params)
    assert float(ours_loss) == pytest.approx(loss.item(), rel=1e-5)
    gradients = flatten(gradients)
    assert gradients.keys() == expected.keys()
    worst = {}
    for path, gradient in gradients.items():
        scale = np.abs(expected[path]).max()
        worst[path] = np.abs(np.asarray(gradient) - expected[path]).max() / max(scale, 1e-6)
    # A bias on keys shifts all logits of a query alike: its gradient is zero but for rounding.
    relevant = {path: x for path, x in worst.items() if not path.endswith(("k_proj.bias", "attn.k.bias"))}
    assert max(relevant.values()) < 1e-4, sorted(relevant.items(), key=lambda item: -item[1])[:5]
    for path in worst.keys() - relevant.keys():
        np.testing.assert_allclose(gradients[path], expected[path], atol=1e-4)


def test_bfloat16_differs_no_more_than_theirs_does(family):
    """Two roundings of the same numbers: the root mean square differs by chance, more rows make chance smaller."""
    rows = conversations(family.name)[:4]
    config = dataclasses.replace(family.config, param_dtype="bfloat16", dtype="bfloat16")
    graphdef, params = load(family.directory, config)
    batch = family.ours(rows)
    logits = np.asarray(prompt_logits(graphdef, params, batch))
    half = type(family.reference).from_pretrained(family.directory, dtype=torch.bfloat16).eval()
    if family.name == "qwen2_5_omni":
        half.model.config.vision_start_token_id = family.reference.config.vision_start_token_id
    errors = []
    for b, row in enumerate(rows):
        inputs = their_inputs(family, row)
        rounded = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
        with torch.no_grad():
            exact = family.reference(**inputs).logits[0].numpy()
            theirs = half(**rounded).logits[0].float().numpy()
        errors.append((logits[b, : len(exact)] - exact, theirs - exact))
    ours, theirs = (np.sqrt(np.mean(np.concatenate(x) ** 2)) for x in zip(*errors))
    print(f"{family.name}: bfloat16 against float32, root mean square: ours {ours:.1e}, theirs {theirs:.1e}")
    assert ours <= 1.15 * theirs


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_audio_inside_video_is_interleaved_as_in_the_published_code(tmp_path):
    family = open_family("qwen2_5_omni", tmp_path)
    movie, sound = video(14, 56, 84, fps=2.0), audio(6.3)
    expected_row = user({**movie}, text())
    expected = published(
        family.theirs,
        expected_row,
        videos_kwargs={"fps": 2.0},
        audio=[sound["audio"]],
        audio_from_video_indices=[0],
        load_audio_from_video=True,
    )
    batch = family.ours([user({**movie, "audio": sound["audio"]}, text())], use_audio_in_video=True)
    with torch.no_grad():
        logits = family.reference(**expected, use_audio_in_video=True).logits[0].numpy()
    ours = np.asarray(prompt_logits(family.graphdef, family.params, batch))[0, : len(logits)]
    np.testing.assert_allclose(ours, logits, atol=1e-4, rtol=0)

"""A published-like directory of each family, with the model in it: theirs in torch, ours in JAX."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import dataclasses
from types import SimpleNamespace

import jax
from flax import nnx
from transformers import AutoProcessor, AutoTokenizer

from mecap_jax.data.chat_template import default_template
from mecap_jax.data.processor import Processor
from mecap_jax.models.checkpoints.hub import load_weights, published_part
from mecap_jax.models.checkpoints.hub_config import read_config
from mecap_jax.models.multimodal_lm import MultimodalLM
from tests import hub_models
from tests.data.test_processor import FRAMES, PIXELS, audio, image, published, text, user, video
from tests.hub_layout import special_ids, write_processor

VISION = ("qwen2_5_omni", "qwen2_5_vl")


def open_family(name, directory):
    """A published-like directory, and the model in it, theirs and ours."""
    write_processor(directory, name, **PIXELS)
    tokens = AutoTokenizer.from_pretrained(directory)
    reference = hub_models.make(name, special_ids=special_ids(directory, name))
    if name == "qwen2_5_omni":
        start = tokens.convert_tokens_to_ids("<|vision_bos|>")
        reference.config.vision_start_token_id = reference.model.config.vision_start_token_id = start
    reference.save_pretrained(directory)
    config = read_config(directory)
    processor = Processor.from_directory(directory, config)
    if name in VISION:
        low, high = FRAMES.values()
        processor.settings = dataclasses.replace(processor.settings, video_min_pixels=low, video_max_pixels=high)
    theirs = (AutoProcessor if name in VISION else AutoTokenizer).from_pretrained(directory)
    graphdef, params = load(directory, config)
    return SimpleNamespace(
        name=name, directory=directory, config=config, ours=processor, theirs=theirs, reference=reference,
        graphdef=graphdef, params=params,
    )  # fmt: skip


def load(directory, config):
    graphdef, state = nnx.split(nnx.eval_shape(lambda: MultimodalLM(config, nnx.Rngs(0))))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.to_pure_dict(state))
    return graphdef, load_weights(directory, config, published_part(shapes))


def conversations(name):
    """Rows of very different length and make-up."""
    words = user(text("Only words, naïve 😀 ones."))
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First"},
        {"role": "assistant", "content": "sad"},
        {"role": "user", "content": "  Then?"},
    ]
    if name not in VISION:
        return [words, history]
    seen = [
        user(image(84, 112), text()),
        user(video(4, 56, 84), text("他 is 24\n\n years old?")),
        user(image(90, 200), image(56, 56), video(5, 100, 60), text("And now?"), video(1, 28, 56)),
    ]
    if name == "qwen2_5_vl":
        return [*seen, words, history]
    heard = [
        user(audio(0.1), text()),
        user(audio(30), audio(0.55), text()),
        user(audio(1.234), video(3, 56, 84), image(70, 56), audio(4.01), text("He said so."), audio(0.03)),
    ]
    return [*seen, words, *heard]


def their_inputs(family, conversation, **options):
    if family.name in VISION:
        inputs = dict(published(family.theirs, conversation, **options))
        if options.get("load_audio_from_video"):
            inputs["use_audio_in_video"] = True
        return inputs
    flat = [
        {**m, "content": m["content"] if isinstance(m["content"], str) else m["content"][0]["text"]}
        for m in conversation
    ]
    template = None if family.theirs.chat_template else default_template(family.name)
    prompt = family.theirs.apply_chat_template(flat, chat_template=template, tokenize=False, add_generation_prompt=True)
    return dict(family.theirs([prompt], return_tensors="pt", add_special_tokens=False))

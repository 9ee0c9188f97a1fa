"""The Python of a model card: from a clip's arrays to a caption with `transformers`, with the prompt that was trained.

Whatever comes from a configuration stands in the code as a Python literal.
"""

from __future__ import annotations

from mecap_jax.config import DataConfig
from mecap_jax.families import FAMILIES
from mecap_jax.model_config import ModelConfig


def transformers_usage(
    model: ModelConfig, data: DataConfig, seen: tuple[str, ...], max_new_tokens: int, base: str
) -> str:
    """Python that captions one clip with an exported directory.

    Args:
      model, data: of the run.
      seen: the modalities in the trained prompt.
      max_new_tokens: longest caption that was trained.
      base: the model that adapters are put onto; "" for whole weights.
    """
    parts = [_load(model, base, bool(seen)), _request(data, seen)]
    if "features" in seen:
        parts.append(_features(model, max_new_tokens))
    elif model.vision is None:
        parts.append(_words(model, max_new_tokens))
    else:
        parts.append(_media(model, data, seen, max_new_tokens))
    return "\n\n".join(parts)


def _load(model: ModelConfig, base: str, media: bool) -> str:
    multimodal = model.vision is not None
    words = "AutoModelForSeq2SeqLM" if model.decoder.encoder else "AutoModelForCausalLM"
    architecture = FAMILIES[model.family].architecture if multimodal else words
    reader, name = ("AutoProcessor", "processor") if multimodal else ("AutoTokenizer", "tokenizer")
    imports = ["import torch"]
    imports += ["from peft import PeftModel"] if base else []
    imports += ["from safetensors.torch import load_file"] if model.features and media else []
    imports.append(f"from transformers import {', '.join(sorted((architecture, reader)))}")
    if FAMILIES[model.family].wants_metadata and media:
        imports.append("from transformers.video_utils import VideoMetadata")
    lines = [*imports, "", 'directory = "."  # this directory', f"{name} = {reader}.from_pretrained(directory)"]
    if base:
        lines.append(f'base = {architecture}.from_pretrained({base!r}, dtype="auto")')
        lines.append("model = PeftModel.from_pretrained(base, directory).eval()")
    else:
        lines.append(f'model = {architecture}.from_pretrained(directory, dtype="auto").eval()')
    return "\n".join(lines)


def _request(data: DataConfig, seen: tuple[str, ...]) -> str:
    lines = []
    if "audio" in seen:
        lines.append("# waveform: float32 [S], one channel at 16 kHz")
    if "video" in seen:
        count = (
            f"{data.fps:g} a second, at least 4 and at most {data.max_frames}, an even number"
            if data.fps
            else f"up to {data.max_frames}, evenly spaced"
        )
        lines.append(f"# frames: uint8 [F, height, width, 3], RGB, {count}; seconds: how long the video lasts")
    if "features" in seen:
        lines.append("# features: float32 [N, width], the precomputed features side by side")
    if data.include_transcript:
        lines.append("# transcript: what is said")
    lines.append(f"instruction = {data.instruction!r}")
    lines.append("text = f'\"{transcript}\" {instruction}'" if data.include_transcript else "text = instruction")
    return "\n".join(lines)


def _media(model: ModelConfig, data: DataConfig, seen: tuple[str, ...], max_new_tokens: int) -> str:
    items = "".join(f'{{"type": "{kind}"}}, ' for kind in ("audio", "video") if kind in seen)
    arguments = ["text=[prompt]"]
    arguments += ["audio=[waveform]"] if "audio" in seen else []
    before = ""
    if "video" in seen:
        rates = ['"fps": len(frames) / seconds']
        if FAMILIES[model.family].wants_metadata:
            before = (
                "metadata = VideoMetadata(\n"
                "    total_num_frames=len(frames), fps=len(frames) / seconds, frames_indices=list(range(len(frames)))\n"
                ")\n"
            )
            rates.append('"video_metadata": [metadata]')  # what transformers 5 reads instead
        size = f'"size": {{"shortest_edge": {data.min_pixels}, "longest_edge": {data.max_pixels}}}'
        options = [size, *rates, '"do_sample_frames": False', '"cap_pixels_per_frame": False']
        lines = "".join(f"        {option},\n" for option in options)
        arguments += ["videos=[frames]", f"videos_kwargs={{\n{lines}    }}"]
    # Whole batches are not cast: the times between frames would be rounded, too.
    names = {"audio": "input_features", "video": "pixel_values_videos"}
    casts = "".join(f'inputs["{names[kind]}"] = inputs["{names[kind]}"].to(model.dtype)\n' for kind in seen)
    call = "".join(f"    {argument},\n" for argument in [*arguments, 'return_tensors="pt"'])
    return (
        f'messages = [{{"role": "user", "content": [{items}{{"type": "text", "text": text}}]}}]\n'
        "prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)\n"
        f"{before}inputs = processor(\n{call}).to(model.device)\n"
        f"{casts}with torch.inference_mode():\n"
        f"    tokens = model.generate(**inputs, max_new_tokens={max_new_tokens}, do_sample=False)\n"
        'caption = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)'
    )


def _words(model: ModelConfig, max_new_tokens: int) -> str:
    new = "tokens[0]" if model.decoder.encoder else 'tokens[0, inputs["input_ids"].shape[1] :]'
    return (
        'messages = [{"role": "user", "content": text}]\n'
        "prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)\n"
        f"inputs = tokenizer([prompt], {_tokenizing(model)}).to(model.device)\n"
        "with torch.inference_mode():\n"
        f"    tokens = model.generate(**inputs, max_new_tokens={_most(model, max_new_tokens)}, do_sample=False)\n"
        f"caption = tokenizer.decode({new}, skip_special_tokens=True)"
    )


def _tokenizing(model: ModelConfig) -> str:
    """Options of a call to the tokenizer; what begins and ends plain text stands in the prompt already."""
    return 'return_tensors="pt"' + (", add_special_tokens=False" if FAMILIES[model.family].plain else "")


def _most(model: ModelConfig, max_new_tokens: int) -> int:
    """`generate` counts what a decoder behind an encoder begins with, but for the first of it."""
    return max_new_tokens + (len(model.decoder.encoder.start_ids) - 1 if model.decoder.encoder else 0)


def _features(model: ModelConfig, max_new_tokens: int) -> str:
    return (
        f"# Columns of features, in this order: {dict(zip(model.features.names, model.features.dims))!r}\n"
        "# What has one row for the whole clip is repeated beside every row of the rest.\n"
        "def embed(words):\n"
        f'    ids = tokenizer([words], {_tokenizing(model)})["input_ids"].to(model.device)\n'
        "    return model.get_input_embeddings()(ids)\n"
        "\n"
        'weights = load_file(f"{directory}/feature_projector.safetensors", device=str(model.device))\n'
        "x = torch.as_tensor(features).to(model.device, model.dtype)\n"
        f"{_mix(model) if model.features.layers else ''}"
        'x = torch.nn.functional.layer_norm(x, x.shape[-1:], weights["norm.weight"], weights["norm.bias"])\n'
        'x = torch.nn.functional.gelu(torch.nn.functional.linear(x, weights["fc1.weight"], weights["fc1.bias"]))\n'
        'x = torch.nn.functional.linear(x, weights["fc2.weight"], weights["fc2.bias"])\n'
        'messages = [{"role": "user", "content": "<|FEATURES|>" + text}]\n'
        "prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)\n"
        'before, after = prompt.split("<|FEATURES|>", 1)\n'
        "with torch.inference_mode():\n"
        "    prompt_states = torch.cat([embed(before), x[None], embed(after)], dim=1)\n"
        f"    tokens = model.generate(inputs_embeds=prompt_states, max_new_tokens={_most(model, max_new_tokens)}, "
        "do_sample=False)\n"
        "caption = tokenizer.decode(tokens[0], skip_special_tokens=True)"
    )


def _mix(model: ModelConfig) -> str:
    return (
        "# Columns that hold several layers of an encoder become the mix of them that was learned.\n"
        'parts, mix = [], weights.get("mix")\n'
        f"for part, count in zip(x.split({list(model.features.dims)}, -1), {list(model.features.layers)}):\n"
        "    if count > 1:\n"
        "        share, mix = mix[:count].float().softmax(0).to(x.dtype), mix[count:]\n"
        "        part = (part.unflatten(-1, (count, -1)) * share[:, None]).sum(-2)\n"
        "    parts.append(part)\n"
        "x = torch.cat(parts, -1)\n"
    )

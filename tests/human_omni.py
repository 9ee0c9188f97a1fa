"""HumanOmni-0.5B in torch, tiny and random, and the directory in which it is published.

The network is written from the description of its architecture; names of modules are those of the published tensors.
"""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import json

import torch
import torch.nn.functional as F
import transformers
from safetensors.numpy import load_file, save_file
from torch import nn

from tests.hub_layout import write_processor
from tests.models.text_models import save_tokenizer

VISION, AUDIO, TEXT = "siglip-base-patch16-224", "whisper-large-v3", "bert-base-uncased"
WIDTH, SEEN, HEARD, READ = 24, 16, 12, 18  # of decoder, vision, audio and text
FRAMES = 3
_DECODER = dict(
    hidden_size=WIDTH, intermediate_size=32, max_position_embeddings=512, num_attention_heads=3,
    num_hidden_layers=2, num_key_value_heads=1, rms_norm_eps=1e-6, tie_word_embeddings=True, vocab_size=420,
)  # fmt: skip
# Fields and values that have nothing to do with size are those of the published file.
CONFIG = _DECODER | {
    "architectures": ["HumanOmniQwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "audio_hidden_size": HEARD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "freeze_mm_mlp_adapter": False,
    "hidden_act": "silu",
    "hyper_layers": [15, 22],
    "image_aspect_ratio": "pad",
    "initializer_range": 0.02,
    "max_window_layers": 21,
    "mm_audio_projector_type": "mlp2x_gelu",
    "mm_audio_tower": f"/mnt/somewhere/else/{AUDIO}",
    "mm_hidden_size": SEEN,
    "mm_projector_lr": None,
    "mm_projector_type": "all_in_one_small",
    "mm_tunable_parts": "mm_mlp_adapter,audio_projector,mm_language_model",
    "mm_use_x_start_end": True,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": f"google/{VISION}",
    "model_type": "HumanOmni_qwen2",
    "num_frames": FRAMES,
    "rope_scaling": None,
    "rope_theta": 1_000_000.0,
    "sliding_window": None,
    "tokenizer_model_max_length": 2048,
    "tokenizer_padding_side": "right",
    "torch_dtype": "float32",
    "transformers_version": "4.49.0",
    "tune_mm_mlp_adapter": False,
    "use_cache": True,
    "use_mm_proj": True,
    "use_sliding_window": False,
}


class ConvNorm(nn.Module):
    def __init__(self, in_dim, dim, width=1, groups=1):
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, width, padding=width // 2, groups=groups, bias=False)
        self.bn = nn.LayerNorm(dim)

    def forward(self, x):
        return self.bn(self.conv(x).movedim(1, -1)).movedim(-1, 1)


class SqueezeExcite(nn.Module):
    def __init__(self, dim, squeezed):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(dim, squeezed, 1), nn.Conv2d(squeezed, dim, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    def __init__(self, in_dim, dim):
        super().__init__()
        self.conv1, self.conv2 = ConvNorm(in_dim, dim), ConvNorm(dim, dim, 3, groups=dim)
        self.se, self.conv3 = SqueezeExcite(dim, round(0.25 * in_dim)), ConvNorm(dim, dim)
        self.downsample = nn.Identity() if in_dim == dim else ConvNorm(in_dim, dim)

    def forward(self, x):
        y = self.se(F.silu(self.conv2(F.silu(self.conv1(x)))))
        return F.silu(self.conv3(y) + self.downsample(x))


class Stage(nn.Sequential):
    def __init__(self, in_dim, dim):
        super().__init__()
        for n in (1, 2):
            self.add_module(f"b{n}", Block(in_dim if n == 1 else dim, dim))


def mlp(in_dim, hidden, out_dim):
    return nn.Sequential(nn.Linear(in_dim, hidden), nn.GELU(), nn.Linear(hidden, out_dim))


class Projector(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("video", "body"):
            self.add_module(f"s1_{name}", Stage(SEEN, WIDTH))
            sampler = nn.Conv3d(WIDTH, WIDTH, (2, 2, 2), stride=(1, 2, 2), padding=(1, 0, 0))
            self.add_module(f"sampler_{name}", nn.Sequential(sampler, nn.SiLU()))
            self.add_module(f"s2_{name}", Stage(WIDTH, WIDTH))
            self.add_module(f"readout_{name}", mlp(WIDTH, WIDTH, WIDTH))
        self.mlp_2xgelu_face = mlp(SEEN, WIDTH, WIDTH)

    def branch(self, name, x):
        """[B, T, H, W, E] to [B, T, h, w, D]."""
        batch, time = x.shape[:2]
        x = getattr(self, f"s1_{name}")(x.movedim(-1, 2).flatten(0, 1))
        x = getattr(self, f"sampler_{name}")(x.unflatten(0, (batch, time)).movedim(1, 2))[:, :, :time]
        x = getattr(self, f"s2_{name}")(x.movedim(2, 1).flatten(0, 1))
        return getattr(self, f"readout_{name}")(x.unflatten(0, (batch, time)).movedim(2, -1))

    def forward(self, states, weights):
        side = int(states.shape[2] ** 0.5)
        x = states.unflatten(2, (side, side))
        face = self.mlp_2xgelu_face(x).flatten(0, 1).movedim(-1, 1)
        face = F.interpolate(face, size=(-(-side // 2), -(-side // 2)), mode="bilinear")
        branches = (self.branch("video", x), self.branch("body", x), face.movedim(1, -1).unflatten(0, states.shape[:2]))
        return sum(weights[:, n, None, None, None, None] * branch for n, branch in enumerate(branches)).flatten(1, 3)


class Reference(nn.Module):
    """Decoder and connectors as they are published together, and the three public models."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        rope = dict(rope_type="default", rope_theta=1e6)
        config = transformers.Qwen2Config(**_DECODER, rope_parameters=rope, pad_token_id=0, bos_token_id=1)
        self.language = transformers.Qwen2ForCausalLM(config)
        model = self.language.model
        model.mm_projector, model.bert_gate = Projector(), mlp(READ, 3584, 3)
        model.audio_projector = mlp(HEARD, WIDTH, WIDTH)
        self.vision = transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(hidden_size=SEEN, intermediate_size=20, num_hidden_layers=3,
                                            num_attention_heads=2, image_size=32, patch_size=8)
        )  # fmt: skip
        self.audio = transformers.WhisperForConditionalGeneration(
            transformers.WhisperConfig(d_model=HEARD, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=16,
                                       decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, vocab_size=32,
                                       num_mel_bins=8, pad_token_id=0, bos_token_id=1,
                                       eos_token_id=2, decoder_start_token_id=1)
        )  # fmt: skip
        self.text = transformers.BertForPreTraining(
            transformers.BertConfig(vocab_size=330, hidden_size=READ, num_hidden_layers=2, num_attention_heads=3,
                                    intermediate_size=20, max_position_embeddings=24)
        )  # fmt: skip
        for name, parameter in self.named_parameters():
            noise = torch.randn_like(parameter)
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.data = (
                1 + 0.1 * noise if norm else noise * (parameter[0].numel() ** -0.5 if noise.ndim > 1 else 0.1)
            )
        self.eval()

    def encode_video(self, frames, tokens, mask):
        """frames [B, T, H, W, 3], BERT's tokens and mask [B, L]."""
        pixels = frames.flatten(0, 1).movedim(-1, 1)
        states = self.vision(pixels, output_hidden_states=True).hidden_states[-2].unflatten(0, frames.shape[:2])
        first = self.text.bert(tokens, attention_mask=mask).last_hidden_state[:, 0]
        return self.language.model.mm_projector(states, self.language.model.bert_gate(first).softmax(dim=-1))

    def encode_audio(self, mel):
        """mel [B, F, M]."""
        states = self.audio.get_encoder()(mel.movedim(1, 2)).last_hidden_state
        return self.language.model.audio_projector(F.avg_pool1d(states.movedim(1, 2), 3, 3).movedim(1, 2))

    def tensors(self):
        """What is published in HumanOmni's own files: copies of the towers, with heads that nothing reads, included."""
        found = {key: value for key, value in self.language.state_dict().items() if key != "lm_head.weight"}
        found |= {f"model.vision_tower.vision_tower.{key}": value for key, value in self.vision.state_dict().items()}
        encoder = self.audio.get_encoder().state_dict()
        found |= {f"model.audio_tower.audio_tower.encoder.{key}": value for key, value in encoder.items()}
        found["model.audio_tower.audio_tower.classifier.bias"] = torch.zeros(2)
        found["model.feature_compressor.vlm_query_projector.bias"] = torch.zeros(256)
        found |= {f"model.bert_model.{key}": value for key, value in self.text.bert.state_dict().items()}
        return {key: value.detach().numpy().copy() for key, value in found.items()}

    def save(self, directory):
        """Writes the directory as it is published, with the public models within."""
        (directory / "config.json").write_text(json.dumps(CONFIG))
        save_file(self.tensors(), directory / "model.safetensors", {"format": "pt"})
        for name, model in ((VISION, self.vision), (AUDIO, self.audio), (TEXT, self.text)):
            model.save_pretrained(directory / name)
        write_processor(directory, "qwen2")
        save_tokenizer(directory / TEXT, "bert", 24)
        transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(directory / VISION)
        transformers.WhisperFeatureExtractor(feature_size=8).save_pretrained(directory / AUDIO)
        # bert-base-uncased still has the names of 2018.
        path = directory / TEXT / "model.safetensors"
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        renamed = {}
        for key, value in load_file(path).items():
            for new, name in old.items():
                key = key.replace(new, name)
            renamed[key] = value
        save_file(renamed, path, {"format": "pt"})

"""Small random BERT, RoBERTa and XLM-R models with tokenizers of their kind, trained on the test captions."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import functools

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.rewards.captions import CAPTIONS

FAMILIES = ("bert", "roberta", "xlm-roberta")
_WORDS_OF_CAPTIONS = {word for group in CAPTIONS.values() for caption in group for word in caption.split()}
WORDS = sorted(word for word in _WORDS_OF_CAPTIONS if word.isalpha() and len(word) < 8)
BERT_SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
ROBERTA_SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def random_texts(longest: int) -> list[str]:
    """Returns the empty text, texts of 1 to 30 words, a few long ones and some that are hard to tokenise."""
    rng = np.random.default_rng(1)
    lengths = [*range(1, 31), longest // 2, longest, 3 * longest]
    odd = [
        "",
        " \t\n",
        "😀 sehr fröhlich",
        "悲伤的声音",
        "UPPER case",
        "a <pad> in <pad><pad> a text",
        "[PAD] [SEP] </s>",
    ]
    return odd + [" ".join(rng.choice(WORDS, n)) for n in lengths]


@functools.cache
def tokenizer(family: str) -> Tokenizer:
    """Returns a WordPiece (BERT), byte-level BPE (RoBERTa) or Unigram (XLM-R) tokenizer of about 300 tokens."""
    captions = [caption for group in CAPTIONS.values() for caption in group]
    if family == "bert":
        special = list(BERT_SPECIAL.values())
        result = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        result.normalizer = normalizers.BertNormalizer()
        result.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
        ends = {"single": "[CLS] $A [SEP]", "special_tokens": [("[CLS]", 2), ("[SEP]", 3)]}
    else:
        special = list(ROBERTA_SPECIAL.values())
        ends = {"single": "<s> $A </s>", "special_tokens": [("<s>", 0), ("</s>", 2)]}
        if family == "roberta":
            result = Tokenizer(models.BPE())
            result.pre_tokenizer, result.decoder = (
                pre_tokenizers.ByteLevel(add_prefix_space=False),
                decoders.ByteLevel(),
            )
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(
                vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
            )
        else:
            result = Tokenizer(models.Unigram())
            result.pre_tokenizer = pre_tokenizers.Metaspace()
            trainer = trainers.UnigramTrainer(
                vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
            )
    result.train_from_iterator(captions, trainer)
    result.post_processor = processors.TemplateProcessing(**ends)
    return result


def save_tokenizer(directory, family: str, max_tokens: int, **settings) -> None:
    """Saves `tokenizer.json` and `tokenizer_config.json`."""
    special = BERT_SPECIAL if family == "bert" else ROBERTA_SPECIAL
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(family), model_max_length=max_tokens, **special, **settings
    ).save_pretrained(directory)


def random_model(model_class, **overrides) -> torch.nn.Module:
    """Returns a model in which every parameter is random, biases and norms included."""
    family = model_class.config_class.model_type
    shape = dict(
        vocab_size=330,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=70,
        type_vocab_size=2 if family == "bert" else 1,
        initializer_range=0.4,
        layer_norm_eps=1e-6,
    )
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**(shape | overrides))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model

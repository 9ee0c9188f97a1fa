"""Runs a card's Python in an interpreter with another version of transformers: `run_card.py CODE ARRAYS OUTPUT`.

CODE is run on the arrays in ARRAYS (npz); into OUTPUT (npz) go its model's logits, and those of the tokens ids alone.
"""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import sys
from pathlib import Path

import numpy as np
import torch
import transformers


def main(code: str, arrays: str, output: str) -> None:
    with np.load(arrays) as file:
        names = {name: value if value.ndim else value.item() for name, value in file.items()}
    exec(compile(Path(code).read_text(), "card", "exec"), names)
    inputs = names["inputs"] if "prompt_states" not in names else {"inputs_embeds": names["prompt_states"]}
    with torch.inference_mode():
        logits = names["model"](**inputs).logits[0].float().numpy()
        words = names["model"](input_ids=torch.tensor(names["ids"])).logits[0].float().numpy()
    np.savez(output, logits=logits, words=words, version=transformers.__version__)


if __name__ == "__main__":
    main(*sys.argv[1:])

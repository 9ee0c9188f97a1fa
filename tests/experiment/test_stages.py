"""What a stage says before its first step."""

from types import SimpleNamespace

from mecap_jax.data.prompts import encode_target
from mecap_jax.experiment.stages import _tell_of_cut_references

TEXTS = ("a b c", "a b c d", "a b c d e")


def test_references_that_are_cut_are_counted():
    said, tokenizer = [], SimpleNamespace(encode=str.split, end_ids=("end",))
    dataset = SimpleNamespace(targets=lambda row: TEXTS)
    bench = SimpleNamespace(dataset=dataset, tokenizer=tokenizer, logger=SimpleNamespace(say=said.append))
    for longest in (6, 4):
        without_end = sum("end" not in encode_target(tokenizer, text, longest) for text in TEXTS)
        _tell_of_cut_references(bench, "sft", [0, 7], longest)
        assert without_end == {6: 0, 4: 2}[longest]
    assert said == ["sft: 4 of 6 references are cut after 4 tokens and teach no ending"]

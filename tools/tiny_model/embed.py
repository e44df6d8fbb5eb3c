"""Make `cortex/tiny-embed`: `python tools/tiny_model/embed.py OUT` writes a model folder.

Its weights are random: equal texts have equal vectors and other texts have others, which is all
that tests of a serving path need. Nearness in meaning is not to be had from it.
"""

import argparse
import json
from pathlib import Path

import corpus
import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

SEED = 0
VOCABULARY_TOKENS = 1024
CONTEXT_TOKENS = 512
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    tokenizer = train_tokenizer()
    build(len(tokenizer)).to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    _write_pooling(out)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer that puts a text between `[CLS]` and `[SEP]`."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_TOKENS,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    lines = corpus.CORPUS.read_text("utf-8").splitlines()
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def build(vocabulary_tokens: int) -> BertModel:
    """Return the model."""
    torch.manual_seed(SEED)
    config = BertConfig(
        vocab_size=vocabulary_tokens,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=CONTEXT_TOKENS,
        # Larger than the usual 0.02, so that texts differ by more than rounding.
        initializer_range=0.3,
    )
    return BertModel(config, add_pooling_layer=False)


def _write_pooling(out: Path) -> None:
    """Say how a vector is made of the last layer, as sentence-transformers does; vLLM reads it."""
    modules = [
        ("", "sentence_transformers.models.Transformer"),
        ("1_Pooling", "sentence_transformers.models.Pooling"),
        ("2_Normalize", "sentence_transformers.models.Normalize"),
    ]
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": kind}
        for index, (path, kind) in enumerate(modules)
    ]
    pooling = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}
    _write_json(out / "modules.json", entries)
    _write_json(out / "1_Pooling" / "config.json", pooling)


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()

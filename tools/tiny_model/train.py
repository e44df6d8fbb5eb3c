"""Make `cortex/tiny`: `python tools/tiny_model/train.py OUT` writes a model folder.

Equal seeds give equal dialogues and an equal start; the weights may still differ in their last
bits between machines and numbers of threads, because sums are taken in another order.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import corpus
import dialogues
import torch
import vocabulary
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SEED = 0
STEPS = 800
TOKENS_PER_BATCH = 5000
MATRIX_RATE = 0.02
OTHER_RATE = 4e-3
WARM_UP_STEPS = 40
THINKING_RATIO = 0.12
"""Share of the dialogues that are learned with thinking on."""

END = "<|im_end|>"
IGNORED = -100

Sample = tuple[list[int], int]
"""Tokens of prompt and answer, and how many of them are the prompt."""


def main() -> None:
    """Train and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    tokenizer = vocabulary.train()
    model = build(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    fit(model, tokenizer, options.steps)
    save(model, tokenizer, options.out)


def build(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Return a fresh model."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=vocabulary.CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def encode(
    tokenizer: PreTrainedTokenizerFast, dialogue: corpus.Dialogue, *, thinks: bool
) -> Sample:
    """Return a dialogue as the engine would see it, with the answer behind it."""
    prompt = tokenizer.apply_chat_template(
        list(dialogue.messages),
        tools=list(dialogue.tools) or None,
        add_generation_prompt=True,
        tokenize=False,
        enable_thinking=thinks,
    )
    thought = f"<think>\n{dialogue.thought}\n</think>\n\n" if thinks else ""
    head = tokenizer.encode(prompt, add_special_tokens=False)
    tail = tokenizer.encode(f"{thought}{dialogue.answer}{END}", add_special_tokens=False)
    return head + tail, len(head)


def fit(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int) -> None:
    """Train in place."""
    optimizers = _optimizers(model)
    batches = _batches(tokenizer, steps)
    started = time.monotonic()
    recent = 0.0
    for step, batch in enumerate(batches):
        loss = _loss(model, batch, tokenizer.pad_token_id)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * _share(step, steps)
            optimizer.step()
        recent = loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
        if step % 25 == 0 or step == steps - 1:
            print(f"{step} {recent:.4f} {time.monotonic() - started:.0f} s", flush=True)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the folder that engines load."""
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    generation = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "do_sample": False,
        # vLLM takes its sampling defaults from here, and knows no `do_sample`.
        "temperature": 0.0,
    }
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def _optimizers(model: Qwen3ForCausalLM) -> list[tuple[torch.optim.Optimizer, float]]:
    """Return the optimizers, each with its highest rate."""
    # Muon learns the matrices in about half the steps that AdamW needs; it is made for them only.
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.02, momentum=0.95)
    adam = torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    return [(muon, MATRIX_RATE), (adam, OTHER_RATE)]


def _share(step: int, steps: int) -> float:
    """Share of the highest rate: up in a line, then down in half a cosine."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _batches(tokenizer: PreTrainedTokenizerFast, steps: int) -> list[list[Sample]]:
    """Draw dialogues and lay those of like length together."""
    rng = random.Random(SEED)
    writer = dialogues.Writer(corpus.load(), SEED)
    batches: list[list[Sample]] = []
    while len(batches) < steps:
        pool = [
            encode(tokenizer, writer.draw(), thinks=rng.random() < THINKING_RATIO)
            for _ in range(2000)
        ]
        pool.sort(key=lambda sample: len(sample[0]))
        cut: list[list[Sample]] = [[]]
        for sample in pool:
            if (len(cut[-1]) + 1) * len(sample[0]) > TOKENS_PER_BATCH:
                cut.append([])
            cut[-1].append(sample)
        rng.shuffle(cut)
        batches += cut
    return batches[:steps]


def _loss(model: Qwen3ForCausalLM, batch: list[Sample], pad: int) -> torch.Tensor:
    width = max(len(tokens) for tokens, _ in batch)
    ids = torch.tensor([tokens + [pad] * (width - len(tokens)) for tokens, _ in batch])
    labels = torch.full_like(ids, IGNORED)
    for row, (tokens, start) in enumerate(batch):
        labels[row, start - 1 : len(tokens) - 1] = ids[row, start : len(tokens)]
    with torch.autocast("cpu", torch.bfloat16):
        # Padding is on the right, so causal attention never sees it and needs no mask.
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        chosen = labels != IGNORED
        logits = model.lm_head(hidden[chosen])
    return functional.cross_entropy(logits.float(), labels[chosen])


if __name__ == "__main__":
    main()

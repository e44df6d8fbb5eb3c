"""Make `cortex/tiny`: `python tools/tiny_model/train.py OUT` writes a model folder.

Equal seeds give equal dialogues and an equal start; the weights may still differ in their last
bits between machines, because sums are taken in another order.
"""

import argparse
import itertools
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import corpus
import dialogues
import msgspec
import torch
import vocabulary
from torch import distributed
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SEED = 0
STEPS = 2600
PROCESSES = 2
"""Each has one thread and batches of its own. They meet once in a step, where two threads would
meet at every operation, which costs most when other programs run beside."""

TOKENS_PER_BATCH = 2500
POOL_DIALOGUES = 2000
MATRIX_RATE = 0.02
OTHER_RATE = 4e-3
WARM_UP_STEPS = 30
THINKING_RATIO = 0.18
"""Share of the dialogues that are learned with thinking on."""

END = "<|im_end|>"
IGNORED = -100

Sample = tuple[list[int], int]
"""Tokens of prompt and answer, and how many of them are the prompt."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One training."""

    steps: int
    seed: int
    start: Path | None
    """Folder of weights to go on from; `None` starts from nothing."""
    out: Path


def main() -> None:
    """Train and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--start", type=Path, help="go on from the weights of this folder")
    options = parser.parse_args()
    plan = Plan(steps=options.steps, seed=options.seed, start=options.start, out=options.out)
    # The processes meet on the loopback, whatever the machine's name resolves to.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        torch.multiprocessing.spawn(run, args=(store, plan), nprocs=PROCESSES)


def run(rank: int, store: str, plan: Plan) -> None:
    """Train in one of the processes; the first one writes the folder."""
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
    torch.set_num_threads(1)
    torch.manual_seed(plan.seed)
    if plan.start is None:
        tokenizer = vocabulary.train()
        model = build(tokenizer)
    else:
        # A corpus that has changed since would give other tokens, and the weights would mean
        # nothing for them.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(plan.start)
        model = build(tokenizer)
        trained = Qwen3ForCausalLM.from_pretrained(plan.start, dtype=torch.float32)
        model.load_state_dict(trained.state_dict())
    fit(model, tokenizer, plan, rank)
    if rank == 0:
        print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
        save(model, tokenizer, plan.out)
    distributed.destroy_process_group()


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
    model = Qwen3ForCausalLM(config)
    # On short rows and a CPU this is a third faster than PyTorch's fused attention.
    model.set_attn_implementation("eager")
    return model


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


def fit(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, plan: Plan, rank: int) -> None:
    """Train in place, with the other processes."""
    optimizers = _optimizers(model)
    steps = plan.steps
    # Every process draws all batches, and takes its share of them.
    drawn = _batches(tokenizer, plan.seed)
    batches = itertools.islice(drawn, rank, steps * PROCESSES, PROCESSES)
    started = time.monotonic()
    recent = 0.0
    for step, batch in enumerate(batches):
        loss = _loss(model, batch, tokenizer.pad_token_id)
        model.zero_grad()
        loss.backward()
        _share_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * _share(step, steps)
            optimizer.step()
        recent = loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
        if rank == 0 and (step % 25 == 0 or step == steps - 1):
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


def _share_gradients(model: Qwen3ForCausalLM) -> None:
    """Give every process the mean of all gradients, in one exchange."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= PROCESSES
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


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


def _batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[list[Sample]]:
    """Draw dialogues without end and lay those of like length together."""
    rng = random.Random(seed)
    writer = dialogues.Writer(corpus.load(), seed)
    while True:
        pool = [
            encode(tokenizer, writer.draw(), thinks=rng.random() < THINKING_RATIO)
            for _ in range(POOL_DIALOGUES)
        ]
        pool.sort(key=lambda sample: len(sample[0]))
        cut: list[list[Sample]] = [[]]
        for sample in pool:
            if (len(cut[-1]) + 1) * len(sample[0]) > TOKENS_PER_BATCH:
                cut.append([])
            cut[-1].append(sample)
        rng.shuffle(cut)
        yield from cut


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

"""A tiny model that ranks: a cross-encoder made of the built-in embedding model's parts."""

import json
import pathlib
import shutil

from neuron.models import BUILTIN


def make_cross_encoder(folder: pathlib.Path) -> pathlib.Path:
    """Make a model with one label, whose weights are drawn from a fixed seed, and return it."""
    import torch
    from safetensors.torch import load_file, save_file

    (source,) = [model.path for name, model in BUILTIN.items() if name.endswith("-embed")]
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)
    config = json.loads((source / "config.json").read_bytes())
    config |= {"architectures": ["BertForSequenceClassification"], "num_labels": 1}
    config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {
        f"bert.{name}": value for name, value in load_file(source / "model.safetensors").items()
    }
    size = config["hidden_size"]
    draw = torch.Generator().manual_seed(7)
    for name, shape in {
        "bert.pooler.dense.weight": (size, size),
        "bert.pooler.dense.bias": (size,),
        "classifier.weight": (1, size),
        "classifier.bias": (1,),
    }.items():
        weights[name] = (torch.randn(shape, generator=draw) * 0.3).to(torch.bfloat16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder

"""What `llm` lets the model call."""

from pathlib import Path


def write_file(path: str, content: str) -> str:
    """Write a file."""
    Path(path).write_text(content)
    return "ok"

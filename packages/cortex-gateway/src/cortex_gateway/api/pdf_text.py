"""The process that gets the text out of one PDF, which a stranger wrote.

Started as `python -m cortex_gateway.api.pdf_text MEMORY_BYTES CPU_S`, with the PDF as its input. It
prints the text, and ends with 0; or why there is none, and ends with 1. What takes more memory or
CPU time than it may ends in other ways.
"""

import io
import resource
import sys

_MOST_TEXT = 16 << 20
"""Characters: more than any model reads."""


def main(memory_bytes: int, cpu_s: int) -> int:
    """Read a PDF from the input, and return the exit status."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    # Ends it also where the gateway, which would have, is gone.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    try:
        said, status = _text(sys.stdin.buffer.read()), 0
    except MemoryError:
        said, status = "it takes too much memory", 1
    except Exception as error:  # noqa: BLE001 - a parser of strangers' files
        # The library raises whatever its parser stumbles over, KeyErrors included.
        said, status = str(error) or type(error).__name__, 1
    sys.stdout.buffer.write(said.encode(errors="replace"))
    return status


def _text(data: bytes) -> str:
    # Optional, and no other process needs it.
    import pypdf

    texts: list[str] = []
    size = 0
    for page in pypdf.PdfReader(io.BytesIO(data)).pages:
        text = page.extract_text().strip()
        size += len(text)
        if size > _MOST_TEXT:
            raise ValueError("it has more text than any model reads")
        if text:
            texts.append(text)
    return "\n\n".join(texts)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))

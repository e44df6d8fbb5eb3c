"""The text of PDFs, where the extra `pdf` is installed."""

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable

from cortex_core.errors import OverloadedError
from cortex_core.translate.target import PdfReader
from cortex_gateway.proxy.aside import Threads

_READING_S = 50.0
"""For one PDF: less than its caller waits at most, who is told what took so long."""

_MEMORY_BYTES = 2 << 30


class RememberedPdfs:
    """Reads each PDF once.

    Args:
        read_pdf: gets the text out of a PDF.
    """

    def __init__(self, read_pdf: PdfReader) -> None:
        self._read_pdf = read_pdf
        self._texts: dict[bytes, str] = {}
        self._is_over = False

    def __call__(self, pdf: bytes) -> str:
        """Return the text of `pdf`.

        Raises:
            ValueError: it cannot be read, or whoever foresaw it waits no longer.
        """
        if pdf not in self._texts:
            if self._is_over:
                raise ValueError("nobody waits for it any more")
            self._texts[pdf] = self._read_pdf(pdf)
        return self._texts[pdf]

    async def foresee(
        self, threads: Threads, translate: Callable[..., object], *request: object
    ) -> None:
        """Read what `translate` will want, off the loop: a long document takes seconds.

        Raises:
            RequestError: the request cannot be translated, or too many documents are being read.
        """
        try:
            await threads.run(1, translate, *request, read_pdf=self)
        finally:
            # Whose caller has left ends its thread with the PDF that is being read.
            self._is_over = True


def find_pdf_reader() -> PdfReader | None:
    """Return what gets the text out of a PDF; `None` without the extra `pdf`."""
    return None if importlib.util.find_spec("pypdf") is None else read_pdf


def read_pdf(
    data: bytes, *, memory_bytes: int = _MEMORY_BYTES, reading_s: float = _READING_S
) -> str:
    """Return the text of a PDF, pages apart by blank lines; empty without a text layer.

    A process of its own reads it: one that can be killed, and whose work takes the interpreter from
    nobody.

    Args:
        data: the PDF.
        memory_bytes: how much memory the process may have.
        reading_s: how long it may take.

    Raises:
        OverloadedError: the system has no room for a process.
        ValueError: it cannot be read.
    """
    bounds = str(memory_bytes), str(math.ceil(reading_s))
    try:
        reader = subprocess.run(  # noqa: S603 - the PDF is its input and nothing else
            # `-P`: what lies in the working folder is not to be imported.
            (sys.executable, "-P", "-m", "cortex_gateway.api.pdf_text", *bounds),
            input=data,
            stdout=subprocess.PIPE,
            # Warnings about what strangers wrote are nobody's.
            stderr=subprocess.DEVNULL,
            timeout=reading_s,
            check=False,
            env=_environment(),
            # None of ours is handed on anyway, and thousands would be looked through.
            close_fds=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"it takes over {reading_s:g} s") from None
    except OSError as error:
        raise OverloadedError(f"no process to read a PDF: {error.strerror}; try again") from None
    said = reader.stdout.decode()
    if reader.returncode == 1 and said:
        raise ValueError(said)
    if reader.returncode:
        raise ValueError("its reader ran out of memory or time")
    return said


def _environment() -> dict[str, str]:
    """Return what Python needs to start as here: keys may be in any other variable."""
    return {name: text for name, text in os.environ.items() if name.startswith(("LD_", "PYTHON"))}

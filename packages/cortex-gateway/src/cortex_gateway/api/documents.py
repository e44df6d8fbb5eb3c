"""The text of PDFs, where the extra `pdf` is installed."""

import importlib.util
import io
from collections.abc import Callable

from cortex_core.translate.target import PdfReader
from cortex_gateway.proxy.aside import Threads


class RememberedPdfs:
    """Reads each PDF once.

    Args:
        read_pdf: gets the text out of a PDF.
    """

    def __init__(self, read_pdf: PdfReader) -> None:
        self._read_pdf = read_pdf
        self._texts: dict[bytes, str] = {}

    def __call__(self, pdf: bytes) -> str:
        """Return the text of `pdf`."""
        if pdf not in self._texts:
            self._texts[pdf] = self._read_pdf(pdf)
        return self._texts[pdf]

    async def foresee(
        self, threads: Threads, translate: Callable[..., object], *request: object
    ) -> None:
        """Read what `translate` will want, off the loop: a long document takes seconds.

        Raises:
            RequestError: the request cannot be translated, or too many documents are being read.
        """
        await threads.run(1, translate, *request, read_pdf=self)


def find_pdf_reader() -> PdfReader | None:
    """Return what gets the text out of a PDF; `None` without the extra `pdf`."""
    return None if importlib.util.find_spec("pypdf") is None else read_pdf


def read_pdf(data: bytes) -> str:
    """Return the text of a PDF, pages apart by blank lines; empty without a text layer.

    Raises:
        ValueError: it cannot be read.
    """
    # Optional, so that it is looked for when a PDF comes and not before.
    import pypdf

    try:
        pages = pypdf.PdfReader(io.BytesIO(data)).pages
        texts = [page.extract_text().strip() for page in pages]
    except Exception as error:  # noqa: BLE001 - a parser of strangers' files
        # The library raises whatever its parser stumbles over, KeyErrors included.
        raise ValueError(f"the PDF cannot be read: {error}") from None
    return "\n\n".join(text for text in texts if text)

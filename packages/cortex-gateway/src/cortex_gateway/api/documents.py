"""The text of PDFs, where the extra `pdf` is installed."""

import importlib.util
import io

from cortex_core.translate.target import PdfReader


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

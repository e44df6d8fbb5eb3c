"""The pages on translation list every field and every block, with what becomes of it."""

from typing import get_args

import msgspec
import pytest

from cortex_core.wire.anthropic.blocks import Block
from cortex_core.wire.anthropic.request import MessagesRequest
from cortex_core.wire.responses.request import ResponsesRequest
from tests.docs.tables import rows_of

FATES = {"exact", "approximated", "ignored", "refused"}


@pytest.mark.parametrize(
    ("page", "struct"),
    [("translation-messages", MessagesRequest), ("responses", ResponsesRequest)],
)
def test_page_has_every_field(page: str, struct: type[msgspec.Struct]) -> None:
    """Issue: a table says field by field what is exact, approximated, refused."""
    rows = {row[0]: row[1] for row in rows_of(page, "Fields")}

    assert set(rows) == {field.encode_name for field in msgspec.structs.fields(struct)}
    assert set(rows.values()) <= FATES


def test_page_has_every_block() -> None:
    """Ours: as above."""
    rows = {row[0]: row[1] for row in rows_of("translation-messages", "Blocks")}

    tags = {block.__struct_config__.tag for block in get_args(Block)}
    assert set(rows) == tags
    assert set(rows.values()) <= FATES

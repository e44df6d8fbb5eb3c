"""The pieces of an answer of the simulated engine, all known before the first token is due."""

import enum

import msgspec


class Kind(enum.Enum):
    """What a piece of an answer is."""

    REASONING = enum.auto()
    TEXT = enum.auto()
    CALL = enum.auto()


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one kind that follow each other."""

    kind: Kind
    tokens: tuple[str, ...]
    """Of a call: its arguments."""
    tool: str = ""
    """Of a call: what is called."""

    @property
    def text(self) -> str:
        """The tokens as text."""
        return "".join(self.tokens)


class PlannedChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One answer."""

    pieces: tuple[Piece, ...]
    """Reasoning, if there is any, then one text or calls; at least one."""
    finish_reason: str
    stop_reason: str | None = None
    """The stop string that ended it."""
    prompt_tokens: int
    """Tokens that are read before the first of these; 0 when another choice reads them."""
    echo: str = ""
    """The prompt, when it is wanted back in front of the answer."""

    @property
    def made_tokens(self) -> int:
        """Tokens of all pieces together."""
        return sum(len(piece.tokens) for piece in self.pieces)

    @property
    def calls(self) -> tuple[Piece, ...]:
        """The calls alone."""
        return tuple(piece for piece in self.pieces if piece.kind is Kind.CALL)

    def text_of(self, kind: Kind) -> str | None:
        """Return the text of a kind, or `None` when there is no such piece."""
        found = [piece.text for piece in self.pieces if piece.kind is kind]
        return "".join(found) if found else None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is answered to one request."""

    choices: tuple[PlannedChoice, ...]
    """In index order, at least one."""
    prompt_tokens: int
    is_chat: bool
    has_usage: bool = False
    """Whether a stream ends with its usage."""
    has_continuous_usage: bool = False
    """Whether every chunk of a stream has the usage so far."""

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of reasoning in all choices."""
        return sum(
            len(piece.tokens)
            for choice in self.choices
            for piece in choice.pieces
            if piece.kind is Kind.REASONING
        )

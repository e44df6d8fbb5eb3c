"""One output item of a response as it grows, and the events that tell of it."""

import msgspec

from cortex_core.translate.parts import PartKind
from cortex_core.translate.responses_tools import CUSTOM_ARGUMENT, ToolName
from cortex_core.translate.sealed import seal
from cortex_core.wire.openai.chat import TokenLogprob
from cortex_core.wire.responses.answer import (
    CustomCallOutput,
    FunctionCallOutput,
    MessageOutput,
    OutputItem,
    OutputText,
    ReasoningOutput,
    ReasoningText,
    Refusal,
    SummaryText,
)
from cortex_core.wire.responses.events import (
    ArgumentsEvent,
    Event,
    ItemEvent,
    PartEvent,
    SummaryPartEvent,
    SummaryTextEvent,
    TextEvent,
)

_TEXT_TYPES = {
    PartKind.TEXT: "response.output_text",
    PartKind.REFUSAL: "response.refusal",
    PartKind.REASONING: "response.reasoning_text",
}

_PREFIXES = {
    PartKind.TEXT: "msg",
    PartKind.REFUSAL: "msg",
    PartKind.REASONING: "rs",
    PartKind.TOOL_CALL: "fc",
}


class GrowingItem:
    """One item; its events are numbered by whoever sends them, and carry 0 until then.

    Args:
        kind: what the part holds.
        index: place in the response's output.
        salt: makes the item's id unique, together with the index.
        call_id: of a call.
        tool: what the caller calls the tool of a call.
        has_summary: whether thoughts are shown as their own summary.
        is_sealed: whether thoughts come in their opaque form too.
    """

    def __init__(
        self,
        kind: PartKind,
        index: int,
        salt: str,
        *,
        call_id: str = "",
        tool: ToolName | None = None,
        has_summary: bool = False,
        is_sealed: bool = False,
    ) -> None:
        self.kind = kind
        self._index = index
        self._call_id = call_id
        self._tool = tool or ToolName(name="")
        self._has_summary = has_summary and kind is PartKind.REASONING
        self._is_sealed = is_sealed
        prefix = "ctc" if self._tool.is_custom else _PREFIXES[kind]
        self._id = f"{prefix}_{salt}{index:02}"
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []

    def opened(self) -> list[Event]:
        """Return the events of the item's beginning."""
        added: list[Event] = [
            ItemEvent(
                type="response.output_item.added",
                sequence_number=0,
                output_index=self._index,
                item=self._item("in_progress", is_empty=True),
            )
        ]
        if self.kind in (PartKind.TEXT, PartKind.REFUSAL):
            added.append(self._part("added", is_empty=True))
        elif self._has_summary:
            added.append(self._summary_part("added", ""))
        return added

    def delta(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> Event | None:
        """Return the event of more text; none for a custom tool, whose input comes in JSON."""
        self._texts.append(text)
        self._logprobs += logprobs
        if self.kind is PartKind.TOOL_CALL:
            if self._tool.is_custom:
                return None
            return self._arguments("response.function_call_arguments.delta", delta=text)
        if self._has_summary:
            return self._summary("delta", delta=text)
        told = logprobs if self.kind is PartKind.TEXT else msgspec.UNSET
        return self._text("delta", delta=text, logprobs=told)

    def closed(self, status: str) -> list[Event]:
        """Return the events of the item's end.

        Args:
            status: `completed`, or `incomplete` when it was cut off.
        """
        text = "".join(self._texts)
        done: list[Event] = []
        match self.kind:
            case PartKind.TOOL_CALL if self._tool.is_custom:
                given = self._custom_input()
                kind = "response.custom_tool_call_input"
                if given:
                    done.append(self._arguments(f"{kind}.delta", delta=given))
                done.append(self._arguments(f"{kind}.done", input=given))
            case PartKind.TOOL_CALL:
                done.append(
                    self._arguments(
                        "response.function_call_arguments.done",
                        arguments=text or "{}",
                        name=self._tool.name,
                    )
                )
            case PartKind.REASONING if self._has_summary:
                done.append(self._summary("done", text=text))
                done.append(self._summary_part("done", text))
            case PartKind.REASONING:
                done.append(self._text("done", text=text))
            case PartKind.REFUSAL:
                done.append(self._text("done", refusal=text))
                done.append(self._part("done"))
            case PartKind.TEXT:
                done.append(self._text("done", text=text, logprobs=tuple(self._logprobs)))
                done.append(self._part("done"))
        done.append(
            ItemEvent(
                type="response.output_item.done",
                sequence_number=0,
                output_index=self._index,
                item=self.item(status),
            )
        )
        return done

    def item(self, status: str) -> OutputItem:
        """Return the item as it is."""
        return self._item(status, is_empty=False)

    def _item(self, status: str, *, is_empty: bool) -> OutputItem:
        text = "" if is_empty else "".join(self._texts)
        if self.kind is PartKind.TOOL_CALL:
            return self._call(status, text, is_empty=is_empty)
        if self.kind is PartKind.REASONING:
            sealed = seal(text) if self._is_sealed and not is_empty else None
            summary, content = self._thoughts(text)
            return ReasoningOutput(
                id=self._id,
                status=status,
                summary=summary,
                content=content,
                encrypted_content=sealed,
            )
        content_parts = () if is_empty else (self._content(),)
        return MessageOutput(id=self._id, status=status, content=content_parts)

    def _thoughts(self, text: str) -> tuple[tuple[SummaryText, ...], tuple[ReasoningText, ...]]:
        if not text:
            return (), ()
        if self._has_summary:
            return (SummaryText(text=text),), ()
        return (), (ReasoningText(text=text),)

    def _call(
        self, status: str, text: str, *, is_empty: bool
    ) -> FunctionCallOutput | CustomCallOutput:
        namespace = self._tool.namespace or msgspec.UNSET
        if self._tool.is_custom:
            return CustomCallOutput(
                id=self._id,
                status=status,
                call_id=self._call_id,
                name=self._tool.name,
                input="" if is_empty else self._custom_input(),
                namespace=namespace,
            )
        return FunctionCallOutput(
            id=self._id,
            status=status,
            call_id=self._call_id,
            name=self._tool.name,
            arguments=text if is_empty else text or "{}",
            namespace=namespace,
        )

    def _custom_input(self) -> str:
        """Return the text for a custom tool, out of the JSON that it was generated as."""
        text = "".join(self._texts)
        try:
            given = msgspec.json.decode(text, type=dict[str, object])
        except (msgspec.DecodeError, RecursionError):
            return text
        found = given.get(CUSTOM_ARGUMENT)
        return found if isinstance(found, str) else text

    def _content(self, *, is_empty: bool = False) -> OutputText | Refusal:
        text = "" if is_empty else "".join(self._texts)
        if self.kind is PartKind.REFUSAL:
            return Refusal(refusal=text)
        return OutputText(text=text, logprobs=() if is_empty else tuple(self._logprobs))

    def _part(self, end: str, *, is_empty: bool = False) -> Event:
        return PartEvent(
            type=f"response.content_part.{end}",
            sequence_number=0,
            item_id=self._id,
            output_index=self._index,
            content_index=0,
            part=self._content(is_empty=is_empty),
        )

    def _summary_part(self, end: str, text: str) -> Event:
        return SummaryPartEvent(
            type=f"response.reasoning_summary_part.{end}",
            sequence_number=0,
            item_id=self._id,
            output_index=self._index,
            summary_index=0,
            part=SummaryText(text=text),
        )

    def _text(
        self,
        end: str,
        *,
        delta: str | msgspec.UnsetType = msgspec.UNSET,
        text: str | msgspec.UnsetType = msgspec.UNSET,
        refusal: str | msgspec.UnsetType = msgspec.UNSET,
        logprobs: tuple[TokenLogprob, ...] | msgspec.UnsetType = msgspec.UNSET,
    ) -> Event:
        return TextEvent(
            type=f"{_TEXT_TYPES[self.kind]}.{end}",
            sequence_number=0,
            item_id=self._id,
            output_index=self._index,
            content_index=0,
            delta=delta,
            text=text,
            refusal=refusal,
            logprobs=logprobs,
        )

    def _summary(
        self,
        end: str,
        *,
        delta: str | msgspec.UnsetType = msgspec.UNSET,
        text: str | msgspec.UnsetType = msgspec.UNSET,
    ) -> Event:
        return SummaryTextEvent(
            type=f"response.reasoning_summary_text.{end}",
            sequence_number=0,
            item_id=self._id,
            output_index=self._index,
            summary_index=0,
            delta=delta,
            text=text,
        )

    def _arguments(
        self,
        kind: str,
        *,
        delta: str | msgspec.UnsetType = msgspec.UNSET,
        arguments: str | msgspec.UnsetType = msgspec.UNSET,
        name: str | msgspec.UnsetType = msgspec.UNSET,
        input: str | msgspec.UnsetType = msgspec.UNSET,  # noqa: A002 - the wire's own name
    ) -> Event:
        return ArgumentsEvent(
            type=kind,
            sequence_number=0,
            item_id=self._id,
            output_index=self._index,
            delta=delta,
            arguments=arguments,
            name=name,
            input=input,
        )

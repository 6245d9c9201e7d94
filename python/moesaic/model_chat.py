"""Conversations with a model, in the form that its own template gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Unpack, overload

from moesaic.errors import ArgumentError
from moesaic.generation import GenerateOptions
from moesaic.inputs import flag
from moesaic.messages import text_of
from moesaic.model_text import TextMethods
from moesaic.results import Chunk, Generation
from moesaic.vocabulary import tokenizer_or_none


class ChatMethods(TextMethods):
    """The methods of :class:`moesaic.Model` that hold a conversation."""

    @overload
    def chat(
        self,
        messages: Sequence[Any],
        *,
        tools: Sequence[Any] | None = None,
        stream: Literal[False] = False,
        continue_final_message: bool = False,
        parse_special: bool = False,
        template_vars: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation: ...
    @overload
    def chat(
        self,
        messages: Sequence[Any],
        *,
        tools: Sequence[Any] | None = None,
        stream: Literal[True],
        continue_final_message: bool = False,
        parse_special: bool = False,
        template_vars: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[Chunk]: ...
    def chat(
        self,
        messages: Sequence[Any],
        *,
        tools: Sequence[Any] | None = None,
        stream: bool = False,
        continue_final_message: bool = False,
        parse_special: bool = False,
        template_vars: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation | Iterator[Chunk]:
        """Answer the last message of a conversation, in the form the model was trained on.

        Parameters
        ----------
        messages : sequence of mapping
            ``{"role": "user", "content": "..."}`` and so on; also objects of pydantic, and
            dataclasses. Null fields count as absent. Content is text or a list of text parts,
            arguments of tool calls are objects or JSON text: the template gets what it takes.
            Images, audio and files are refused.
        tools : sequence of mapping, optional
            Tool declarations in OpenAI's form, for the template; a warning where it shows none.
        stream : bool
            Yield :class:`Chunk` as :meth:`stream` does.
        continue_final_message : bool
            Continue the last message, an assistant's, in place of a new turn. ``.message`` of the
            Generation then takes its place.
        parse_special : bool
            Let control tokens that messages and tools spell count as tokens. Off, they are plain
            text, unless the template itself looks for them (it cuts earlier answers at
            ``</think>``, say).
        template_vars : mapping, optional
            Further variables of the template, for example ``{"enable_thinking": False}``.
        **options
            As for :meth:`generate`.

        Returns
        -------
        Generation or iterator of Chunk
            The Generation has ``.message``, ready to be appended to ``messages``.

        Raises
        ------
        FormatError
            The file has no chat template, or a broken one.
        ArgumentError
            Messages that the template refuses, a bad option, or more tokens than ``n_ctx``.
        DeadlineError
            The template took longer than it may.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> messages = [{"role": "user", "content": "Who made the heaven?"}]
        >>> reply = m.chat(messages, max_tokens=8, temperature=0)
        >>> messages.append(reply.message)
        >>> messages[-1]["role"]
        'assistant'
        """
        where = "Model.chat"
        checked = self._check(options, where)
        flag(stream, "stream", where)
        text = self.render_chat(
            messages,
            tools=tools,
            continue_final_message=continue_final_message,
            parse_special=parse_special,
            template_vars=template_vars,
        )
        ids = self._ids(text, where, "messages")
        if stream:
            return self._stream(ids, checked, where)
        begun = text_of(messages[-1]) if continue_final_message else ""
        return self._finish(ids, checked, where, begun=begun)

    def render_chat(
        self,
        messages: Sequence[Any],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        parse_special: bool = False,
        template_vars: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text that :meth:`chat` lets the model continue.

        Parameters
        ----------
        messages, tools, continue_final_message, parse_special, template_vars
            As for :meth:`chat`.
        add_generation_prompt : bool
            End with the beginning of the assistant's turn.

        Returns
        -------
        str
            With the template's control tokens written out. It remembers which of them messages
            only spell, so that ``generate(render_chat(messages))`` sees the tokens that
            ``chat(messages)`` does; a copy made by slicing or joining does not.

        Raises
        ------
        FormatError
            The file has no chat template, or a broken one.
        ArgumentError
            Messages that the template refuses.
        DeadlineError
            The template took longer than it may.

        Examples
        --------
        >>> import moesaic
        >>> moesaic.Model.demo().render_chat([{"role": "user", "content": "Hello"}])
        '<|begin|><|user|>Hello<|end|><|reply|>'
        """
        with self._lock:
            if self._template is None:
                from moesaic.chat import ChatTemplate

                self._template = ChatTemplate.from_metadata(self.metadata)
            template = self._template
        if template_vars is not None and not isinstance(template_vars, Mapping):
            raise ArgumentError(
                f"[Model.chat] template_vars: got {type(template_vars).__name__}, need a mapping"
            )
        flag(add_generation_prompt, "add_generation_prompt", "Model.chat")
        flag(continue_final_message, "continue_final_message", "Model.chat")
        plain = not flag(parse_special, "parse_special", "Model.chat")
        tokenizer = tokenizer_or_none(self.metadata, lambda: self.tokenizer)
        return template._render(
            messages,
            tools,
            add_generation_prompt,
            continue_final_message,
            template_vars or {},
            tokenizer.find_control if plain and tokenizer is not None else None,
        )

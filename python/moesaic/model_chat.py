"""Conversations with a model, in the form that its own template gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Unpack, overload

from moesaic.errors import ArgumentError
from moesaic.generation import GenerateOptions
from moesaic.inputs import Tokens, flag
from moesaic.model_text import TextMethods
from moesaic.results import Chunk, Generation


class ChatMethods(TextMethods):
    """The methods of :class:`moesaic.Model` that hold a conversation."""

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stream: Literal[False] = False,
        template_vars: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation: ...
    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stream: Literal[True],
        template_vars: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[Chunk]: ...
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stream: bool = False,
        template_vars: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation | Iterator[Chunk]:
        """Answer the last message of a conversation, in the form the model was trained on.

        Parameters
        ----------
        messages : sequence of mapping
            ``{"role": "user", "content": "..."}`` and so on.
        tools : sequence of mapping, optional
            Tool declarations in OpenAI's form, for the template.
        stream : bool
            Yield :class:`Chunk` as :meth:`stream` does.
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
        text = self.render_chat(messages, tools=tools, template_vars=template_vars)
        ids = self._chat_ids(text, where)
        if stream:
            return self._stream(ids, checked, where)
        return self._finish(ids, checked, where, chat=True)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_vars: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text that :meth:`chat` lets the model continue.

        Parameters
        ----------
        messages, tools, template_vars
            As for :meth:`chat`.
        add_generation_prompt : bool
            End with the beginning of the assistant's turn.

        Returns
        -------
        str
            With the template's control tokens written out.

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
        return template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            **(template_vars or {}),
        )

    def _chat_ids(self, text: str, where: str) -> Tokens:
        """Tokens of a rendered chat. Many templates write the begin-of-text token themselves."""
        ids = self._ids(text, where, "messages")
        bos = self.tokenizer.bos_id
        return ids[1:] if len(ids) > 1 and ids[0] == ids[1] == bos else ids

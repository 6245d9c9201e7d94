"""Text to token ids and back, from the vocabulary inside a GGUF file.

The public class is :class:`Tokenizer`; :class:`StreamDecoder` and :class:`StopMatcher` turn a
stream of tokens into text. Chat templates are next door, in ``moesaic.chat``.
"""

from moesaic.tokenizer.stream import StopMatcher, StreamDecoder
from moesaic.tokenizer.tokenizer import Tokenizer

__all__ = ["StopMatcher", "StreamDecoder", "Tokenizer"]

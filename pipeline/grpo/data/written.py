"""Written responses as token ids: what supervised training teaches a policy to answer."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.errors import UserError
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.rollout.rewards import encoded
from pipeline.task.reward import response_bytes
from pipeline.task.thinking import Thinking


class ResponseWriter:
    """Writes right responses of one policy: a thought, its end, the target in a box, and the end of the response."""

    def __init__(self, tokens: CorpusTokenizer, thinking: Thinking, end: int) -> None:
        """Prepare the lookup of tokens by their bytes.

        Args:
            tokens: the policy's tokenizer.
            thinking: the form of responses.
            end: the id that ends a response (`ResponseEnds.of_response`).
        """
        self._tokens, self._thinking, self._end = tokens, thinking, end
        self._token_of = {content: id for id, content in reversed(list(enumerate(tokens.token_bytes)))}

    def ids(self, thought: str, target: bytes) -> list[int]:
        """Return the ids of `written_response`, then the end.

        Marks are the policy's own tokens where it has them; the target is one token if one has its bytes.

        Raises:
            UserError: the policy has no tokens for the target's bytes.
        """
        return self.ids_after(self._tokens.encode(thought).tolist(), target)

    def ids_after(self, thought: Sequence[int], target: bytes) -> list[int]:
        """Return the same for a thought that is given as ids."""
        ids = list(thought) if self._thinking.takes_thought else []
        for literal in self._thinking.to_box(response_bytes(ids, self._tokens.token_bytes)):
            ids += encoded(self._tokens, literal)
        return [*ids, *self.exact(target), *self.exact(b"}"), self._end]

    def exact(self, text: bytes) -> list[int]:
        """Return ids whose bytes are exactly the text; tokenizers that put a space before a text need a detour."""
        if text in self._token_of:
            return [self._token_of[text]]
        ids: list[int] = self._tokens.encode(text.decode("utf-8", errors="replace")).tolist()
        if b"".join(self._tokens.token_bytes[id] for id in ids) == text:
            return ids
        single = [text[i : i + 1] for i in range(len(text))]
        if missing := [byte for byte in single if byte not in self._token_of]:
            raise UserError(
                f"the policy has no tokens to write {text!r:.60} with", hint=f"it has none for the byte {missing[0]!r}"
            )
        return [self._token_of[byte] for byte in single]

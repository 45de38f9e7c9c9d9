"""Prompts as token ids: the chat template's text around the context's own tokens.

The template is rendered once and cut at its slot. A prompt is then `prefix + encode(context) + suffix`: a context that
holds `<think>` or an end-of-turn mark cannot break out of the user's message, for its text is never parsed for special
tokens.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from pipeline.scoring.tokens import CorpusTokenizer
from pipeline.task.templates import SLOT, Template

THINK = "<think>"


class PromptBuilder:
    """Builds the prompt of a context for one policy and one prompt template.

    The template is one user message of the policy's chat template, generation prompt added. Where that does not open
    a thought and the tokenizer has the token `<think>`, `<think>` and a newline are appended. A policy without a chat
    template gets the plain text, after the token its model expects at a start, if any.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, corpus_tokenizer: CorpusTokenizer, template: Template
    ) -> None:
        text = template.text
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": text}]
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        if not text.rstrip().endswith(THINK) and corpus_tokenizer.id_of(THINK) is not None:
            text += f"{THINK}\n"
        before, slot, after = text.partition(SLOT)
        if not slot:
            raise ValueError(f"the chat template lost the slot {SLOT} of prompt template {template.name!r}")
        bos = [] if tokenizer.chat_template or corpus_tokenizer.bos_id is None else [corpus_tokenizer.bos_id]
        self.prefix_ids: list[int] = bos + tokenizer.encode(before, add_special_tokens=False)
        self.suffix_ids: list[int] = tokenizer.encode(after, add_special_tokens=False)
        self._corpus_tokenizer = corpus_tokenizer

    def ids(self, context: bytes) -> list[int]:
        """Token ids of the prompt for a context (UTF-8; a character cut at its start becomes U+FFFD)."""
        text = context.decode("utf-8", errors="replace")
        return [*self.prefix_ids, *self._corpus_tokenizer.encode(text).tolist(), *self.suffix_ids]

    def longest(self, context_tokens: int, room: int) -> int:
        """Most tokens of a prompt, whose context was cut to `context_tokens`, and of a response of up to `room`.

        A context that was cut at its front may take a few tokens more when it is encoded again.
        """
        return len(self.prefix_ids) + context_tokens + 64 + len(self.suffix_ids) + room

    def bare_ids(self, text: str) -> list[int]:
        """Token ids of a text as such, after the token that the tokenizer declares for a beginning, if any."""
        beginning = [] if self._corpus_tokenizer.bos_id is None else [self._corpus_tokenizer.bos_id]
        return [*beginning, *self._corpus_tokenizer.encode(text).tolist()]

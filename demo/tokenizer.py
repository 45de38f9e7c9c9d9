"""The tokenizer of both demo models: byte-level BPE, lossless on any UTF-8 text, every digit a token of its own.

No normaliser and no prefix space, so token bytes always concatenate to the text. Single capitals (the labels of the
moves) and CJK characters are isolated too; everything else follows from BPE on a sample of what the models will read.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

BOS, END, PAD, USER, ASSISTANT = "<|bos|>", "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"
THINK, END_THINK = "<think>", "</think>"

PIECES = Regex(
    r"\\boxed\{"  # the start of every final answer
    r"| ?\p{Lu}?\p{Ll}+"  # a word; a capital in front of a label's digit is not one
    r"| ?\p{Lu}| ?\p{Lo}| ?\p{So}"  # single capitals, CJK characters, emoji
    r"|\p{N}"
    r"|[^\s\p{L}\p{N}]|\s"
)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% else %}<|assistant|>{{ message['content'] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)
"""The generation prompt opens the thought, as that of DeepSeek-R1 does."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Fit the tokenizer to the texts."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # all 256 bytes, whatever the sample holds
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([THINK, END_THINK])  # not special: decoding keeps them, as for DeepSeek-R1
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )

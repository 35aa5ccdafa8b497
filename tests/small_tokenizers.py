"""Small tokenizers in the ways of real ones, and chat templates in their shapes, for tests."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
LLAMA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
HARMONY = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>assistant<|message|>{{ m['content'] }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|im_end|>{% endif %}"
    "{% else %}<|im_start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|return|>", "<|message|>"]
TEXTS = [
    "Tom has 3 bags.\nHe buys 4 more bags.\nThe answer is 7.",
    "2 + 3 = 5\n\nSo: 5 apples\n",
    "A. x\n(B) y, naïve ☃\n",
] * 4


def made(style: str, template: str | None = None, *, bos: bool = False, eos: str = "</s>") -> Any:
    """A small tokenizer: `sentencepiece` puts a space before whatever it is given, `bytes` does not."""
    inner = Tokenizer(models.BPE(byte_fallback=style == "sentencepiece", unk_token="<unk>"))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if style == "sentencepiece":
        lines = pre_tokenizers.Split("\n", "isolated")
        inner.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)])
        inner.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = [f"<0x{i:02X}>" for i in range(256)]
    else:
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
    special = ["<unk>", *SPECIAL]
    if style == "sentencepiece":
        special += alphabet
        alphabet = list("▁\n.,:()+=0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(TEXTS, trainer)
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", inner.token_to_id("<s>"))]
        )
    written = json.loads(inner.to_str())  # the trainer makes the bytes special tokens, which no decoder would show
    written["added_tokens"] = [token for token in written["added_tokens"] if not token["content"].startswith("<0x")]
    inner = Tokenizer.from_str(json.dumps(written))
    found = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token=eos, unk_token="<unk>", clean_up_tokenization_spaces=False
    )
    found.chat_template = template
    return found

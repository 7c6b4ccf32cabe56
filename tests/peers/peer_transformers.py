#!/usr/bin/env python3
"""Hugging Face's RecurrentGemma with random weights: `peer_transformers.py MANIFEST.toml f32|bf16`."""

import sys
import tomllib

import torch
import transformers
from transformers.initialization import no_init_weights

import turns


def load(path, dtype):
    """A model of the extents in a bundle's manifest."""
    with open(path, "rb") as file:
        extents = tomllib.load(file)["model"]
    config = transformers.RecurrentGemmaConfig(
        vocab_size=extents["vocab"],
        hidden_size=extents["width"],
        lru_width=extents["recurrence_width"],
        intermediate_size=2 * extents["mlp_width"],
        num_hidden_layers=extents["layers"],
        num_attention_heads=extents["heads"],
        num_key_value_heads=1,
        head_dim=extents["head_dim"],
        # It counts the token itself, which a window in a manifest does not.
        attention_window_size=extents["window"] + 1,
    )
    torch.set_default_dtype(dtype)
    with no_init_weights():
        model = transformers.RecurrentGemmaForCausalLM(config)
    model.tie_weights()
    # Drawing billions of numbers takes minutes: a few are repeated.
    torch.manual_seed(1)
    drawn = 0.02 * torch.randn(1 << 20)
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            for begin in range(0, len(flat), len(drawn)):
                part = flat[begin : begin + len(drawn)]
                part.copy_(drawn[: len(part)])
    return model.eval()


class Transformers:
    def __init__(self, model):
        torch.set_num_threads(turns.threads())
        self.model = model

    def bytes(self):
        return sum(it.numel() * it.element_size() for it in self.model.parameters())

    def run(self, tokens, cache):
        with torch.inference_mode():
            return self.model(tokens, use_cache=True, cache=cache, logits_to_keep=1)

    def tokens(self, *shape):
        return torch.randint(1, self.model.config.vocab_size, shape)

    def decode(self, sessions):
        cache = transformers.DynamicCache(config=self.model.config)
        self.run(self.tokens(sessions, turns.POSITION), cache)
        tokens = self.tokens(sessions, 1)
        return lambda: self.run(tokens, cache)

    def prompt(self, tokens):
        tokens = self.tokens(1, tokens)
        return lambda: self.run(tokens, transformers.DynamicCache(config=self.model.config))


if __name__ == "__main__":
    types = {"f32": torch.float32, "bf16": torch.bfloat16}
    turns.serve(Transformers(load(sys.argv[1], types[sys.argv[2]])))

#!/usr/bin/env python3
"""llama.cpp, through the functions of its C library: `peer_llama_cpp.py MODEL.gguf [SESSIONS_MAX]`."""

import sys

import llama_cpp as llama

import turns

# Longest prompt that an order asks for.
PROMPT_MAX = 1024
# Sessions that decode stay at one position, so that a small cache of keys will do.
CONTEXT = 256


class LlamaCpp:
    def __init__(self, path, sessions_max):
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(
            path.encode(), llama.llama_model_default_params()
        )
        assert self.model, path
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.batch = llama.llama_batch_init(PROMPT_MAX, 0, 1)
        self.prompts = self.context(1, PROMPT_MAX)
        self.sessions = self.context(sessions_max, CONTEXT)

    def context(self, sessions, tokens):
        params = llama.llama_context_default_params()
        params.n_ctx = sessions * tokens
        params.n_seq_max = sessions
        params.n_batch = params.n_ubatch = PROMPT_MAX
        params.n_threads = params.n_threads_batch = turns.threads()
        params.no_perf = True
        context = llama.llama_init_from_model(self.model, params)
        assert context, "the context does not fit"
        return context

    def run(self, context, tokens):
        """Takes in `tokens`, each a pair of session and position; logits of each session's last."""
        last = {session: at for at, (session, _) in enumerate(tokens)}
        batch = self.batch
        batch.n_tokens = len(tokens)
        for at, (session, position) in enumerate(tokens):
            batch.token[at] = (7 * at + 1) % self.vocab
            batch.pos[at] = position
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = session
            batch.logits[at] = last[session] == at
        code = llama.llama_decode(context, batch)
        assert code == 0, f"llama_decode gave {code}"
        llama.llama_synchronize(context)

    def decode(self, sessions):
        memory = llama.llama_get_memory(self.sessions)
        llama.llama_memory_clear(memory, True)
        for session in range(sessions):
            self.run(self.sessions, [(session, position) for position in range(turns.POSITION)])
        tokens = [(session, turns.POSITION) for session in range(sessions)]

        def step():
            self.run(self.sessions, tokens)
            for session in range(sessions):
                llama.llama_memory_seq_rm(memory, session, turns.POSITION, -1)

        return step

    def prompt(self, tokens):
        memory = llama.llama_get_memory(self.prompts)
        tokens = [(0, position) for position in range(tokens)]

        def step():
            llama.llama_memory_clear(memory, False)
            self.run(self.prompts, tokens)

        return step


if __name__ == "__main__":
    sessions_max = int(sys.argv[2]) if 2 < len(sys.argv) else 32
    turns.serve(LlamaCpp(sys.argv[1], sessions_max))

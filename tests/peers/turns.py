"""What every peer written in Python has in common: it takes orders on standard input, a line of JSON each,
and answers them on standard output as `aerie-export bench turns` does.

A peer has `decode(sessions)` and `prompt(tokens)`. Each gives a function that does one step, over and over,
or none where the system has no such thing; what comes before the first step is not timed. A peer whose weights
lie in no file has `bytes()`, which tells how large they are.
"""

import json
import os
import statistics
import sys
import time

# What the steps of a turn take at least.
SECONDS = 0.5
# Tokens that sessions have read before they decode.
POSITION = 8


def threads():
    """As many as there are cores, unless the environment says otherwise."""
    return int(os.environ.get("PEER_THREADS", os.cpu_count()))


def seconds(step):
    """Median of the seconds of a step."""
    step()
    taken = []
    while sum(taken) < SECONDS:
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def serve(peer):
    """Answers orders until they end."""
    # Libraries print what they like; answers have the real standard output to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        if order == "bytes":
            answer = {"bytes": peer.bytes()}
        else:
            [(kind, size)] = order.items()
            [size] = size.values()
            step = peer.decode(size) if kind == "decode" else peer.prompt(size)
            answer = {"seconds": step and seconds(step)}
        print(json.dumps(answer), file=answers, flush=True)

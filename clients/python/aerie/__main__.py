"""Streams text from an Aerie server: one prompt in, text out as it comes."""

import argparse
import os
import signal
import sys

from . import Accepted, Client, Delta, Error, Finished, Rejected, Sampling, Unreachable, v1

DESCRIPTION = """\
Streams text that follows a prompt. The text comes on stdout, all else on stderr. A connection that is lost is
found again, and each token comes once; ctrl-c ends the generation after the current step."""

EXAMPLES = """\
examples:
  python -m aerie 'Once upon a time'
  python -m aerie 'Once upon a time' --tokens 64 --seed 7    the same text every time
  python -m aerie 'Once upon a time' --keep                  prints the id of its session
  python -m aerie ' and then' --session ID                   goes on with it, also after a restart
  python -m aerie ' and then' --fork ID                      begins another where it stands
  python -m aerie 'Once' --server grpcs://server.example:7447 --certificate certificate.pem

Sessions are listed, named, carried away and removed by the library, and by `aerie sessions` of the Rust client."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m aerie",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("prompt", help="text to go on from; - reads stdin")
    add("--tokens", type=int, default=128, metavar="N", help="most tokens to generate (128)")
    add("--model", default="", metavar="NAME", help="the server's first by default")
    stop = "end before this text; may be repeated"
    add("--stop", action="append", default=[], metavar="TEXT", help=stop)

    sessions = parser.add_argument_group("sessions")
    keep = "have the server keep the session, and tell its id"
    sessions.add_argument("--keep", action="store_true", help=keep)
    add = sessions.add_mutually_exclusive_group().add_argument
    add("--session", default="", metavar="ID", help="go on with this session")
    add("--fork", default="", metavar="ID", help="begin as a fork of this one, by its id or its name")

    add = parser.add_argument_group("sampling").add_argument
    temperature = "0 takes the most probable token; higher is more varied (0.8)"
    add("--temperature", type=float, default=0.8, metavar="T", help=temperature)
    top_p = "draw from the smallest set with this probability; 1 for all (1)"
    add("--top-p", type=float, default=1.0, metavar="P", help=top_p)
    seed = "makes the draws repeatable; the server chooses one otherwise"
    add("--seed", type=int, metavar="N", help=seed)

    add_server(parser.add_argument_group("server"))
    return parser.parse_args()


def add_server(group: argparse._ArgumentGroup) -> None:
    """Where the server is, whom to trust, what to show: from flags, or from the environment."""
    add, environment = group.add_argument, os.environ.get
    address = "grpc://127.0.0.1:7447"
    server = f"grpc://HOST:PORT, or grpcs://HOST:PORT with TLS (AERIE_SERVER, or {address})"
    add("--server", default=environment("AERIE_SERVER", address), metavar="ADDRESS", help=server)
    trust = "trust the certificates in this PEM file (AERIE_CERTIFICATE)"
    add("--certificate", default=environment("AERIE_CERTIFICATE"), metavar="FILE", help=trust)
    show = "certificate and key to show in PEM, where the server asks for one"
    add("--client-certificate", nargs=2, metavar=("FILE", "KEY"), help=show)
    token = "to show, where the server asks for one; AERIE_TOKEN is a better place for it"
    add("--token", default=environment("AERIE_TOKEN"), help=token)


def run(args: argparse.Namespace) -> None:
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    sampling = Sampling(temperature=args.temperature, top_p=args.top_p, seed=args.seed)
    # It may be in the environment for other servers.
    certificate = args.certificate if args.server.startswith(("grpcs:", "https:")) else None
    client = Client(
        args.server,
        certificate=certificate,
        client_certificate=args.client_certificate,
        token=args.token,
    )
    session = ""
    with client:
        generation = client.generate(
            prompt,
            model=args.model,
            session_id=args.session,
            fork_of=args.fork,
            keep=args.keep,
            max_tokens=args.tokens,
            stop=args.stop,
            sampling=sampling,
        )
        signal.signal(signal.SIGINT, lambda *_: generation.cancel())
        for event in generation:
            match event:
                case Accepted():
                    session = event.session_id
                case Delta():
                    print(event.text, end="", flush=True)
                case Finished(reason=v1.FINISH_REASON_SHUTDOWN | v1.FINISH_REASON_INTERRUPTED):
                    print("\nthe server stopped", file=sys.stderr)
    print()
    if args.keep:
        print(f"session {session}", file=sys.stderr)


def hint(error: Exception) -> str | None:
    """What a user can do about an error."""
    if isinstance(error, Unreachable) and "grpcs://" in str(error):
        return "is it running, and its certificate one you trust? It may want to see one of yours"
    if isinstance(error, Unreachable):
        return "is it running? start one with: aerie-serve --model models/bundles/tales"
    if isinstance(error, Rejected) and error.code.name == "UNAUTHENTICATED":
        words = "pass --token, or set AERIE_TOKEN; whoever runs the server makes one with"
        return f"{words}: aerie-serve token NAME"
    if isinstance(error, Rejected) and error.reason == "STALE_POSITION":
        return f"the session stands at {error.position}"
    return None


def main() -> None:
    args = parse_args()
    try:
        run(args)
    except BrokenPipeError:
        # A reader that has had enough, as `head` does, is no error; nor is what is left of its pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Error, OSError, ValueError) as error:
        said = hint(error)
        sys.exit(f"error: {error}" + (f"\nhint: {said}" if said else ""))


if __name__ == "__main__":
    main()

"""The program `python` of forked_python.py: it has the server run its command, and ends as the command does.

Command line: the real interpreter, the server's socket, and then what an interpreter takes. It imports little, because
its own start is what every command waits for.
"""

import marshal
import os
import signal
import socket
import sys

REAL = b"real"  # the server's answer to a command that a real interpreter must run


def answer(server: str, arguments: list[str]) -> bytes:
    """What the server says: the exit status, or minus a signal's number; REAL; or nothing if the server has ended."""
    first, *rest = arguments[1:] if arguments[:1] == ["-u"] else arguments or ["-"]
    if first.startswith("-") and (first not in ("-m", "-c") or not rest):
        return REAL
    message = marshal.dumps(([os.fsencode(each) for each in arguments], os.getcwdb(), dict(os.environb)))
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(server)
        socket.send_fds(client, [len(message).to_bytes(4, "big")], [0, 1, 2])
        client.sendall(message)
    except OSError:  # there is no server any more, or one of the three is closed
        return REAL
    return client.recv(16)


def main(real: str, server: str, *arguments: str) -> None:
    """Have the command run, and end as it does."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # end without a traceback
    said = answer(server, list(arguments))
    if said == REAL:
        os.execv(real, [real, *arguments])
    if not said:
        sys.exit("forked_python: the server has ended")
    status = int(said)
    if status < 0:
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])

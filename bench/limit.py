"""The least that moving bytes to another process and back can cost: plain loopback TCP, without any protocol on it."""

import socket
import statistics
import threading
import time


def loopback_seconds(there: int, back: int, repeats: int = 50) -> float:
    """Median time of sending `there` bytes over loopback TCP to a thread and receiving `back` bytes from it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    answering = threading.Thread(target=_answer, args=(server, there, back, repeats))
    answering.start()
    question, times = bytes(there), []
    with client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(repeats):
            begin = time.perf_counter()
            client.sendall(question)
            _receive(client, back)
            times.append(time.perf_counter() - begin)
    answering.join()
    return statistics.median(times)


def _answer(server: socket.socket, there: int, back: int, repeats: int) -> None:
    answer = bytes(back)
    with server:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(repeats):
            _receive(server, there)
            server.sendall(answer)


def _receive(connection: socket.socket, count: int) -> None:
    buffer = memoryview(bytearray(count))
    while len(buffer) > 0:
        received = connection.recv_into(buffer)
        if received == 0:
            raise ConnectionError("the other side ended early")
        buffer = buffer[received:]

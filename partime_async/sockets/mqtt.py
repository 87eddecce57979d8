"""MQTT, by aiomqtt: each topic is a client, whose messages a broker passes on.

A broker cannot be pushed back: what is not taken in time is dropped here, and counted. Results for the senders go to
their topic with ``/result`` behind it.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress

from partime_async.client import UntrustedError
from partime_async.errors import MissingDependencyError
from partime_async.offload import to_the_end
from partime_async.sockets.address import Address
from partime_async.sockets.backoff import Backoff
from partime_async.sockets.datagram import QueueLink
from partime_async.sockets.doorway import Guests
from partime_async.sockets.limits import Limits
from partime_async.sockets.tls import Credentials, opened

try:
    import aiomqtt
except ImportError as error:
    raise MissingDependencyError("aiomqtt", "mqtt") from error

RESULTS = "/result"
"""Behind the topic of a frame: the topic of its result."""

_WAITING = 256
"""Messages that may wait for the task that sorts them by topic, and at most so many on their way out."""


class MqttDoor:
    """A subscription: topics come in as clients do."""

    failed_handshakes = 0

    def __init__(self, address: Address, limits: Limits, guests: Guests, tls: Credentials | None = None) -> None:
        self._address, self._limits, self._guests = address, limits, guests
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._links: dict[str, TopicLink] = {}
        self._client: aiomqtt.Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[None] | None = None

    async def open(self) -> Address:
        """Subscribe; later it is done again whenever the broker is lost. See `Door`."""
        self._context = await opened(self._tls, is_server=False)
        self._opened = asyncio.get_running_loop().create_future()
        self._task = asyncio.get_running_loop().create_task(self._run(self._opened), name="partime mqtt")
        try:
            await asyncio.shield(self._opened)
        except BaseException:
            await self.aclose()
            raise
        return self._address

    async def _run(self, subscribed: asyncio.Future[None]) -> None:
        backoff = Backoff()
        while True:
            try:
                async with _client(self._address, self._limits, self._context) as self._client:
                    await self._client.subscribe(self._address.path, qos=self._address.qos)
                    if not subscribed.done():
                        subscribed.set_result(None)
                    async for message in self._client.messages:
                        backoff.reset()
                        self._sort(str(message.topic), message.payload)
            except aiomqtt.MqttError as error:
                if not subscribed.done():
                    subscribed.set_exception(_refusal(self._address, error))
                    return
            finally:
                self._client = None
            await asyncio.sleep(backoff.next_s())

    def _sort(self, topic: str, payload: object) -> None:
        # Under a wildcard the results that go out here come back; who asks for results by name gets them.
        is_own = topic.endswith(RESULTS) and not self._address.path.endswith(RESULTS)
        if is_own or not isinstance(payload, bytes | bytearray):
            return
        link = self._links.get(topic)
        if link is None:
            if self._guests.is_goodbye(bytes(payload)) or self._guests.is_full():
                return
            link = self._links[topic] = TopicLink(topic, self._limits, self)
            link.on_close = lambda: self._forget(topic)
            self._guests.enter(link)
        link.deliver(bytes(payload))

    def _forget(self, topic: str) -> None:
        self._links.pop(topic, None)

    async def publish(self, topic: str, data: bytes) -> None:
        """Send something back, if the broker is there."""
        if self._client is None:
            raise ConnectionResetError("the broker is away.")
        try:
            await self._client.publish(topic, data, qos=self._address.qos, timeout=self._limits.stalled_s)
        except aiomqtt.MqttError as error:
            raise ConnectionResetError(str(error)) from error

    def kernel_drops(self) -> None:
        """Return nothing: there are no datagrams."""

    def shut(self) -> None:
        """Take no more messages."""
        if self._task is not None:
            self._task.cancel()
        for link in self._links.values():
            link.end()

    async def aclose(self) -> None:
        """Leave the broker."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


class TopicLink(QueueLink):
    """What is published on one topic."""

    def __init__(self, topic: str, limits: Limits, door: MqttDoor) -> None:
        super().__init__(topic, limits)
        self._door = door

    async def send(self, data: bytes) -> None:
        """Publish a result; it is lost while the broker is away, and the topic stays."""
        with suppress(ConnectionResetError):
            await self._door.publish(self.peer + RESULTS, data)


class PublishLink(QueueLink):
    """A topic to send to."""

    def __init__(self, client: aiomqtt.Client, address: Address, limits: Limits) -> None:
        super().__init__(str(address), limits)
        self._client, self._address = client, address

    async def send(self, data: bytes) -> None:
        """Publish; see `Link`."""
        try:
            await self._client.publish(self._address.path, data, qos=self._address.qos, timeout=self._limits.stalled_s)
        except aiomqtt.MqttError as error:
            raise ConnectionResetError(str(error)) from error

    async def aclose(self, timeout_s: float) -> None:
        """Leave the broker."""
        await super().aclose(timeout_s)
        await to_the_end(_leave(self._client, timeout_s), name="partime mqtt closing")


async def connect_mqtt(address: Address, limits: Limits, context: ssl.SSLContext | None = None) -> PublishLink:
    """Connect to a broker, to publish.

    Raises:
        UntrustedError: Its certificate is not trusted.
        OSError: It cannot be reached, or does not want us.
    """
    client = _client(address, limits, context)
    try:
        await client.__aenter__()
    except aiomqtt.MqttError as error:
        raise _refusal(address, error) from error
    return PublishLink(client, address, limits)


async def _leave(client: aiomqtt.Client, timeout_s: float) -> None:
    with suppress(aiomqtt.MqttError, TimeoutError):
        async with asyncio.timeout(timeout_s):
            await client.__aexit__(None, None, None)


def _refusal(address: Address, error: aiomqtt.MqttError) -> ConnectionError:
    """Return why a broker cannot be had; aiomqtt keeps what happened below it to itself."""
    if isinstance(error.__context__, ssl.SSLCertVerificationError):
        return UntrustedError(address.host, error.__context__)
    return ConnectionRefusedError(str(error))


class _TidySocket(ssl.SSLSocket):
    """Closes when its handshake fails: paho then forgets it, open."""

    def do_handshake(self, block: bool = False) -> None:
        """Make the handshake."""
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _client(address: Address, limits: Limits, context: ssl.SSLContext | None) -> aiomqtt.Client:
    if context is not None:
        context.sslsocket_class = _TidySocket
    return aiomqtt.Client(
        address.host,
        address.port,
        username=address.username,
        password=address.password,
        timeout=limits.connect_s,
        keepalive=max(5, round(limits.probe_s)),
        max_queued_incoming_messages=_WAITING,
        max_queued_outgoing_messages=_WAITING,
        tls_context=context,
    )

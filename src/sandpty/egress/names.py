"""Answers what sandboxes ask the DNS, over UDP and TCP: their allowed names, and nothing else.

Whatever server a sandbox asks, the firewall brings the question here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import cast

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from sandpty import config
from sandpty.egress.guests import Guest, Guests
from sandpty.egress.resolver import Found, ResolveError, Resolver

log = logging.getLogger(__name__)
_UDP_BYTES_MIN, _UDP_BYTES_MAX = 512, 1232
_QUESTION_BYTES_MAX = 4096
# Passed on as they are. Not AAAA (sandboxes have no IPv6), not HTTPS and SVCB (they lead to hidden server names).
_PASSED = {
    dns.rdatatype.A,
    dns.rdatatype.CAA,
    dns.rdatatype.CNAME,
    dns.rdatatype.MX,
    dns.rdatatype.NS,
    dns.rdatatype.SOA,
    dns.rdatatype.SRV,
    dns.rdatatype.TXT,
}


class Names(asyncio.DatagramProtocol):
    """Use `open` once; closing the loop ends it."""

    def __init__(self, guests: Guests, resolver: Resolver) -> None:
        self._guests = guests
        self._resolver = resolver
        self._transport: asyncio.DatagramTransport | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, udp: socket.socket, tcp: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self, sock=udp)
        self._server = await asyncio.start_server(self._accepted, sock=tcp)

    # --- UDP ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        guest = self._guests.get(address[0])
        if guest is None or guest.pending >= config.NAMES_PENDING_PER_GUEST or len(data) > _QUESTION_BYTES_MAX:
            return
        guest.pending += 1
        task = asyncio.get_running_loop().create_task(self._reply(data, address, guest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply(self, data: bytes, address: tuple[str, int], guest: Guest) -> None:
        try:
            answer = await self.answer(data, guest, udp=True)
            if answer is not None and self._transport is not None:
                self._transport.sendto(answer, address)
        finally:
            guest.pending -= 1

    # --- TCP ---

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        guest = self._guests.get(writer.get_extra_info("peername")[0])
        if guest is None or guest.connections.full:
            writer.transport.abort()
            return
        with guest.opening(writer.transport.abort), contextlib.suppress(OSError, EOFError, TimeoutError):
            while True:
                async with asyncio.timeout(config.NAMES_TCP_IDLE_S):
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    question = await reader.readexactly(min(size, _QUESTION_BYTES_MAX))
                if size > _QUESTION_BYTES_MAX:
                    break
                answer = await self.answer(question, guest, udp=False)
                if answer is None:
                    break
                async with asyncio.timeout(config.NAMES_TCP_IDLE_S):
                    writer.write(len(answer).to_bytes(2, "big") + answer)
                    await writer.drain()
        writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    # --- both ---

    async def answer(self, data: bytes, guest: Guest, *, udp: bool) -> bytes | None:
        """None: what came is no question, and gets no answer."""
        try:
            question = dns.message.from_wire(data, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError):
            return None
        if question.flags & dns.flags.QR:
            return None
        try:
            return await self._answer(question, guest, udp=udp)
        except (dns.exception.DNSException, ValueError) as error:
            log.debug("a question is not answered: %s", error)
            return None

    async def _answer(self, question: dns.message.Message, guest: Guest, *, udp: bool) -> bytes:
        reply = dns.message.make_response(question, recursion_available=True)
        reply.set_rcode(dns.rcode.NOERROR)
        if question.opcode() != dns.opcode.QUERY or len(question.question) != 1:
            reply.set_rcode(dns.rcode.NOTIMP)
        elif question.question[0].rdclass != dns.rdataclass.IN:
            reply.set_rcode(dns.rcode.REFUSED)
        else:
            asked = question.question[0]
            await self._fill(reply, asked.name.to_text(omit_final_dot=True), asked.rdtype, guest)
        if udp:
            room = max(_UDP_BYTES_MIN, min(question.payload, _UDP_BYTES_MAX)) if question.edns >= 0 else _UDP_BYTES_MIN
        else:
            room = 65535
        try:
            return reply.to_wire(max_size=room)
        except dns.exception.TooBig:
            reply.answer = []
            reply.flags |= dns.flags.TC
            return reply.to_wire(max_size=room)

    async def _fill(self, reply: dns.message.Message, text: str, kind: dns.rdatatype.RdataType, guest: Guest) -> None:
        name = text.lower()
        if not guest.allows(name):
            # Not REFUSED: resolvers in programs would go on asking, and tell their users of a passing trouble.
            _refuse(reply)
            return
        if kind not in _PASSED:
            return  # the name exists, and has nothing of this kind
        try:
            found = await self._resolver.find(name, kind, guest.servers)
        except ResolveError:
            reply.set_rcode(dns.rcode.SERVFAIL)
            return
        if not guest.allows(name):  # the rules have changed meanwhile
            _refuse(reply)
            return
        guest.reach(name, list(found.addresses), found.ttl_s)
        _copy(reply, found)


def _refuse(reply: dns.message.Message) -> None:
    reply.set_rcode(dns.rcode.NXDOMAIN)
    if reply.edns >= 0:
        reply.use_edns(options=[dns.edns.EDEOption(dns.edns.EDECode.BLOCKED, "not in this sandbox's allow_out")])


def _copy(reply: dns.message.Message, found: Found) -> None:
    reply.set_rcode(dns.rcode.Rcode(found.rcode))
    for records in found.records:
        answer = dns.rrset.from_rdata_list(records.name, min(records.ttl, config.NAMES_TTL_MAX_S), list(records))
        reply.answer.append(answer)
    if found.hidden and reply.edns >= 0:
        reply.use_edns(options=[dns.edns.EDEOption(dns.edns.EDECode.FILTERED, "addresses that are never reached")])

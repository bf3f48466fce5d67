"""Asks the resolvers that a sandbox's names are to be asked of; keeps answers; bounded in every way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

import dns.asyncbackend
import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from sandpty import config
from sandpty.wire.network_rules import is_open

_PAYLOAD_BYTES = 1232  # what passes every network unfragmented
_Key = tuple[str, int, tuple[str, ...]]


class ResolveError(Exception):
    """No resolver answered, or too many questions wait already."""


@dataclass(frozen=True, slots=True)
class Found:
    """An answer. `records`: the aliases from the name on, then what was asked for; addresses that are never open are
    not among them. `hidden`: there were some."""

    rcode: int
    records: tuple[dns.rrset.RRset, ...]
    addresses: tuple[str, ...]
    ttl_s: float
    hidden: bool = False


class Resolver:
    """Questions that are the same are asked once. Its caller has checked that the name may be asked for."""

    def __init__(self, port: int = 53) -> None:
        self._port = port
        self._backend = dns.asyncbackend.get_backend("asyncio")
        self._cache: dict[_Key, tuple[float, Found]] = {}
        self._asking: dict[_Key, asyncio.Task[Found]] = {}

    async def find(self, name: str, kind: int, servers: Sequence[str]) -> Found:
        """`name` in normal form. Raises ResolveError."""
        key = (name, kind, tuple(servers))
        until, found = self._cache.get(key, (0.0, None))
        if found is not None and until > time.monotonic():
            return found
        task = self._asking.get(key)
        if task is None:
            if len(self._asking) >= config.NAMES_PENDING_MAX:
                raise ResolveError("too many questions wait")
            task = self._asking[key] = asyncio.create_task(self._ask(key), name=f"resolve {name}")
            task.add_done_callback(lambda done: self._asked(key, done))
        # The question is everybody's who asks the same: whoever leaves does not end it.
        return await asyncio.shield(task)

    def _asked(self, key: _Key, task: asyncio.Task[Found]) -> None:
        self._asking.pop(key, None)
        if task.cancelled() or task.exception() is not None:
            return
        found = task.result()
        self._cache.pop(key, None)
        self._cache[key] = (time.monotonic() + found.ttl_s, found)
        if len(self._cache) > config.NAMES_CACHED_MAX:
            del self._cache[next(iter(self._cache))]

    async def _ask(self, key: _Key) -> Found:
        name, kind, servers = key
        question = dns.message.make_query(name, dns.rdatatype.RdataType(kind), use_edns=0, payload=_PAYLOAD_BYTES)
        for server in servers * config.NAMES_ROUNDS:
            try:
                answer, _ = await dns.asyncquery.udp_with_fallback(
                    question,
                    server,
                    timeout=config.NAMES_SERVER_TIMEOUT_S,
                    port=self._port,
                    ignore_unexpected=True,
                    ignore_errors=True,
                    backend=self._backend,
                )
            except (dns.exception.DNSException, OSError, EOFError, ValueError):
                continue
            if answer.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                return found_in(answer, name, kind)
        raise ResolveError("no resolver answers")


def found_in(answer: dns.message.Message, name: str, kind: int) -> Found:
    """What of an answer belongs to the question: nothing but the chain of aliases from the name, and its end."""
    owner = dns.name.from_text(name)
    sets = {
        (each.name, each.rdtype): each for each in answer.answer if each.rdclass == dns.rdataclass.IN
    }  # names compare without case
    records: list[dns.rrset.RRset] = []
    for _ in range(config.NAMES_ALIASES_MAX):
        alias = sets.get((owner, dns.rdatatype.CNAME))
        if alias is None or kind == dns.rdatatype.CNAME:
            break
        records.append(alias)
        owner = alias[0].target
    last = sets.get((owner, dns.rdatatype.RdataType(kind)))
    addresses: tuple[str, ...] = ()
    hidden = False
    if last is not None and kind == dns.rdatatype.A:
        listed = list(last)[: config.NAMES_RECORDS_MAX]
        opened = [rdata for rdata in listed if is_open(IPv4Address(rdata.address))]
        hidden = len(opened) < len(listed)
        addresses = tuple(rdata.address for rdata in opened)
        last = dns.rrset.from_rdata_list(last.name, last.ttl, opened) if opened else None
    if last is not None:
        records.append(last)
    found = last is not None
    ttl_s = min((each.ttl for each in records), default=0) if found else config.NAMES_NEGATIVE_TTL_S
    return Found(int(answer.rcode()), tuple(records), addresses, min(ttl_s, config.NAMES_TTL_MAX_S), hidden)

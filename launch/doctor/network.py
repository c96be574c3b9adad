"""What the nodes' words about each other come to: ports that are open, and links that are fast enough."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from launch.doctor.finding import Finding

SLOW_LATENCY = 0.002
"""Seconds of a round trip from which nodes are hardly in the same room."""

SLOW_BANDWIDTH = 125e6
"""Bytes in a second, 1 Gbit/s, below which exchanges take longer than computing."""

FAR_BELOW = 0.5
"""A link of less than this share of the median one is slower than it should be."""

Peers = Mapping[str, Mapping[str, Any]]
Told = Mapping[str, Mapping[str, float | str]]
"""What each host found for each other one: a number, or why there is no way."""


def others(host: str, peers: Peers) -> Peers:
    """All peers but the host itself, or itself where it is alone."""
    return {name: peer for name, peer in peers.items() if name != host or len(peers) == 1}


def next_in_ring(host: str, peers: Peers) -> Peers:
    """The peer behind the host, in a ring of all."""
    names = list(peers)
    following = names[(names.index(host) + 1) % len(names)]
    return {following: peers[following]}


def judge_ports(peers: Peers, trips: Told) -> Iterator[Finding]:
    """For each host that listens, whether all others have reached it."""
    for host, peer in peers.items():
        told = {source: found[host] for source, found in trips.items() if host in found}
        shut = [f"{source} ({why})" for source, why in told.items() if isinstance(why, str)]
        where = f"port {peer['port']} of {peer['address']}"
        if shut:
            advice = "let TCP through between these hosts, on all ports of net.ipv4.ip_local_port_range"
            yield Finding("ports", "failed", f"{where} is not reached from {', '.join(shut)}", advice, host=host)
        elif told:
            reached = "itself" if list(told) == [host] else ", ".join(told)
            yield Finding("ports", "ok", f"{where} is reached from {reached}", host=host)


def judge_links(trips: Told, rates: Told, gradients: int) -> Iterator[Finding]:
    """For each host, how soon and how much it can say to the next; the latency to the farthest.

    gradients is how many bytes a step has to exchange.
    """
    numbers = [rate for found in rates.values() for rate in found.values() if isinstance(rate, float)]
    usual = statistics.median(numbers) if numbers else 0.0
    for host, found in rates.items():
        ((following, rate),) = found.items()
        if isinstance(rate, str):
            advice = "see the line of ports"
            yield Finding("network", "failed", f"nothing can be sent to {following}: {rate}", advice, host=host)
            continue
        told_of = trips.get(host, {})
        times = {name: trip for name, trip in told_of.items() if name in rates and isinstance(trip, float)}
        farthest = max(times, key=lambda name: times[name], default=following)
        latency = times.get(farthest, 0.0)
        told = f"{rate * 8 / 1e9:.2f} Gbit/s to {following}; {1e3 * latency:.2f} ms there and back"
        if len(times) > 1:
            told += f" to {farthest}, the farthest"
        values = {"to": following, "bytes_per_second": rate, "latency": times}
        if advice := "; ".join(_slow(rate, usual, latency, gradients)):
            yield Finding("network", "warning", told, advice, values, host)
        else:
            yield Finding("network", "ok", told, values=values, host=host)


def _slow(rate: float, usual: float, latency: float, gradients: int) -> Iterator[str]:
    if rate < SLOW_BANDWIDTH:
        size = f"{gradients / 1e6:.2g} MB" if gradients < 1e8 else f"{gradients / 1e9:.1f} GB"
        yield f"use a faster network: a step's gradients of {size} take {gradients / rate:.2g} s"
    elif rate < FAR_BELOW * usual:
        yield "see why this link is slower than half of the others: cable, port of the switch, other jobs"
    if latency > SLOW_LATENCY:
        yield "use nodes that are near each other: every step waits for several round trips"

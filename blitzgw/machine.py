"""What a node's machine has for the data plane: memory that is free, and networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from blitzgw.config import TransferConfig
from blitzgw.configfile.cluster import is_wildcard
from blitzgw.core.clock import Clock
from blitzgw.core.transfer import DataNetwork, TrafficReport
from blitzgw.core.view import HostFacts, NetworkFacts
from blitzgw.worker.discovery import available_memory_bytes
from blitzgw.worker.interfaces import payload_rate

LOOK_S = 5.0
"""Between two looks at the memory that is free."""

STEPS = 8
"""Steps of free memory to a doubling: what changes by less than about a tenth is not news."""

Reserved = Mapping[str, tuple[float, float]]
"""What operations have been promised of each network, sent and received, in bytes per second."""


class Machine:
    """Facts about the machine of this process."""

    def __init__(
        self,
        config: TransferConfig,
        clock: Clock,
        available_bytes: Callable[[], int] = available_memory_bytes,
    ) -> None:
        self._config, self._clock, self._available_bytes = config, clock, available_bytes
        self._networks = [_network("", config.host, config.rate)]
        self._networks += [_network(n.name, n.host, n.rate) for n in config.networks]
        self._free_bytes, self._look_s = 0, float("-inf")
        self._rates: dict[str, float] = {}
        """Of advertised addresses: interfaces are looked at once, facts are asked for often."""

    def networks(self) -> tuple[DataNetwork, ...]:
        """Return where workers listen."""
        return tuple(self._networks)

    def facts(
        self, advertised: str, traffic: Sequence[TrafficReport], reserved: Reserved
    ) -> HostFacts:
        """Return what other nodes are told. `advertised` is where peers find this node.

        Requests' traffic is counted to the first network, which is the one that all nodes share.
        """
        now = self._clock.now()
        if now >= self._look_s:
            self._look_s = now + LOOK_S
            self._free_bytes = coarse(self._available_bytes())
        serving = sum(report.kv + report.activations for report in traffic)
        networks = []
        for network in self._networks:
            host = advertised if is_wildcard(network.host) else network.host
            rate = network.rate_bytes_per_s
            if network.host != host:
                rate = self._rate_of(host)
            tx, rx = reserved.get(network.name, (0.0, 0.0))
            busy = 0.0 if network.name else float(f"{serving:.1g}")
            most = self._config.max_weight_rate
            networks.append(NetworkFacts(network.name, host, rate, tx, rx, busy, most))
        read = float(f"{max([report.disk for report in traffic], default=0.0):.2g}")
        return HostFacts(
            self._free_bytes,
            self._config.zone,
            tuple(networks),
            disk_bytes_per_s=read or self._config.max_disk_rate,
            host_bytes_per_s=self._config.max_host_rate,
        )

    def _rate_of(self, host: str) -> float:
        if host not in self._rates:
            self._rates[host] = payload_rate(host, self._config.rate)
        return self._rates[host]


def _network(name: str, host: str, line_bytes_per_s: float) -> DataNetwork:
    return DataNetwork(name, host, payload_rate(host, line_bytes_per_s))


def coarse(size_bytes: int) -> int:
    """Return a size rounded down to one of STEPS values between two powers of two."""
    step = 1 << max(0, size_bytes.bit_length() - STEPS.bit_length())
    return size_bytes // step * step

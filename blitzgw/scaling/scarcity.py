"""Why there are fewer devices for a model than somebody wants, in words for an operator."""

from __future__ import annotations

from collections import Counter

from blitzgw.core.instance import DeviceKind
from blitzgw.core.view import ClusterView, DeviceFacts, NodeView
from blitzgw.scaling.ownership import draining
from blitzgw.scaling.survey import ModelDefinition, members, speaks
from blitzgw.scaling.vacancies import FREE


def shortage(definition: ModelDefinition, wanted: int, found: int, view: ClusterView) -> str:
    """Return a sentence: how many instances are lacking, and what the other devices do."""
    free = "1 device is free" if found == 1 else f"{found or 'no'} devices are free"
    return f"wants {wanted} more, {free}: {_others(definition, view)}"


def _others(definition: ModelDefinition, view: ClusterView) -> str:
    """Return why the devices that are not free cannot be had, the most frequent reason first."""
    reasons: Counter[str] = Counter()
    for node in members(view).values():
        for device in node.devices.values():
            why = _why_not(definition, node, device)
            if why:
                reasons[why] += 1
    strangers = sum(1 for _ in view.living()) - len(members(view))
    told = [f"{count} {why}" for why, count in reasons.most_common()]
    if strangers:
        told.append(f"nothing is known of {strangers} nodes")
    return ", ".join(told) or "there are no others"


def _why_not(definition: ModelDefinition, node: NodeView, device: DeviceFacts) -> str:
    """Return why a device cannot take a model, empty where it could."""
    taken = any(
        facts.device == device.id and facts.state not in FREE for facts in node.instances.values()
    )
    if device.kind is DeviceKind.HOST:
        return ""  # computes nothing, and nobody expects it to
    if taken:
        return "busy with an instance"
    if draining(node):
        return "on a draining node"
    if not speaks(device):
        return "not up, or of another version"
    if device.memory_bytes < definition.size_bytes:
        return "too small"
    return ""

"""Mistakes of our own: a node says so and ends, or goes on, but never hangs in silence."""

import pytest

from tests.support.nodes import completion, paced, start, until

PATCH = """
import blitzgw.{module} as module
def fail(*arguments):
    raise RuntimeError("made to fail")
module.{name} = fail
"""


@pytest.fixture
def faulty(tmp_path):
    """Start a node one of whose functions raises."""
    nodes = []

    def begin(module, name):
        file = tmp_path / "node.toml"
        file.write_text(paced())
        before = PATCH.format(module=module, name=name)
        nodes.append(start(tmp_path, "--config", str(file), before=before))
        return nodes[-1].listen()

    yield begin
    for node in nodes:
        node.process.kill()
        node.process.wait()


def test_a_listener_that_raises_ends_the_node(faulty):
    node = faulty("device", "DeviceRunner.worker_lost").ready()
    node.kill_worker()
    assert node.end() == 1
    assert "made to fail" in node.log()
    assert node.log().endswith("blitzgw: an internal error; see the log\n")


def test_a_tick_that_raises_is_told_and_does_not_end_the_ticking(faulty):
    node = faulty("router.router", "Router.tick").ready()
    until(lambda: node.log().count("tick_failed") >= 2, "the next tick")
    assert node.complete("Hello", 4)


def test_a_result_that_cannot_be_taken_costs_a_worker_and_an_attempt(faulty):
    """The connection breaks, the worker starts again, and the request is answered in the end."""
    node = faulty("device", "DeviceRunner.step_done").ready()
    reply = node.post("/v1/completions", completion("Hello"))
    assert reply.status == 500
    assert reply.headers["x-blitzgw-error-code"] == "generation_failed"
    assert node.log().count("worker_lost") == 3
    assert "made to fail" in node.log()

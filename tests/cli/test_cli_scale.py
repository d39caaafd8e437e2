"""`blitzgw scale` and `blitzgw inspect plan|events`, against a node's real HTTP side."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from blitzgw.cli import follow, happenings, scale, timeline
from blitzgw.cli.main import main
from blitzgw.core.live import LivePolicy
from blitzgw.core.operation import OperationEvent
from blitzgw.errors import Unavailable
from blitzgw.scaling import livechoice
from tests.api.why_kit import ExplainingScaling, decision, why
from tests.cli.inspect_kit import serving
from tests.support.scalenode import ADMIN_KEY, scale_node_beside
from tests.support.scaling import chain

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "blitzgw.cli.main"]


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in ("BLITZGW_URL", "BLITZGW_API_KEY", "BLITZGW_ADMIN_KEY", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BLITZGW_CACHE", str(tmp_path / "cache"))
    for module in (scale, happenings, timeline):
        monkeypatch.setattr(module, "POLL_S", 0.01)


@pytest.fixture
def scaling():
    return ExplainingScaling()


@pytest.fixture
def url(scaling, monkeypatch):
    with scale_node_beside(scaling, api_keys=["api-key"]) as url:
        monkeypatch.setenv("BLITZGW_URL", url)
        monkeypatch.setenv("BLITZGW_ADMIN_KEY", ADMIN_KEY)
        monkeypatch.setenv("BLITZGW_API_KEY", "api-key")
        yield url


def said(capsys, *command, code=0):
    """Run a command; return what it wrote to its output and to its errors."""
    assert main(command) == code
    return capsys.readouterr()


class Progressing(ExplainingScaling):
    """An operation that has got on whenever one looks, and then ends as told."""

    def __init__(self, end="done", reason="", *, short=False):
        super().__init__()
        self.looks = 0
        self.end = end, reason
        self.short = short

    async def operations(self):
        self.looks += 1
        for id_, facts in self.known.items():
            now = chain(at_s=self.looks * 1.9, number=int(id_[3:]))
            if now.state == "done":
                state, reason = self.end
                targets = now.targets[:-1] if self.short else now.targets
                now = replace(now, state=state, reason=reason, targets=targets)
            self.known[id_] = now if facts.state != "cancelled" else facts
        return tuple(self.known.values())

    async def operation(self, operation):
        await self.operations()
        return self.known.get(operation)


# -- scaling ---------------------------------------------------------------------------------------


def test_a_scale_prints_the_id_and_says_how_to_look_at_it(url, scaling, capsys):
    out, err = said(capsys, "scale", "m", "4")
    assert out == "op-1\n"
    assert scaling.asked == [("m", 4, False, "")]
    assert "m: 1 → 4 instances, by chain, transferring" in err
    assert "`blitzgw inspect plan op-1` shows it" in err
    assert "`blitzgw scale m --cancel` gives it up" in err


def test_a_dry_run_shows_the_plan_and_does_nothing(url, scaling, capsys):
    out, err = said(capsys, "scale", "m", "3", "--dry-run", "--strategy", "chain")
    assert scaling.asked == [("m", 3, True, "chain")]
    assert scaling.known == {}
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == "m: 1 → 3 instances, by chain, planned only"
    assert lines[1] == "predicted: first blob 1.35 s, each blob somewhere 5.39 s, complete 5.41 s"
    assert [line.split()[:3] for line in lines[4:7]] == [
        ["node-1/cpu0"],
        ["└→", "node-2/cpu0", "fast"],
        ["└→", "node-3/cpu0", "fast"],
    ]
    assert lines[-1] == "instead: binomial 10.78 s, star 16.17 s"


def test_a_live_policy_is_asked_for_by_name(url, scaling, capsys):
    said(capsys, "scale", "m", "4", "--live", "best-effort")
    said(capsys, "scale", "m", "4")
    assert scaling.policies == ["best-effort", ""]
    _, err = said(capsys, "scale", "m", "4", "--live", "zagzig", code=2)
    assert "zigzag" in err
    _, err = said(capsys, "scale", "m", "--cancel", "--live", "stop", code=2)
    assert "--cancel goes with MODEL alone" in err


def test_the_policies_are_those_of_nodes():
    assert scale.POLICIES == livechoice.POLICIES == ("auto", *LivePolicy)


@pytest.mark.parametrize("options", [["--dry-run"], [], ["--wait"]])
def test_json_is_the_operation(url, capsys, options):
    out, err = said(capsys, "scale", "m", "1" if "--wait" in options else "4", "--format", "json",
                    *options)  # fmt: skip
    told = json.loads(out)
    assert told["state"] == {"--dry-run": "planned", "--wait": "done"}.get(
        "".join(options), "transferring"
    )
    assert err == ""


def test_as_many_as_there_are_is_nothing_to_do(url, capsys):
    _, err = said(capsys, "scale", "m", "1")
    assert err == "m: 1 instance, as before\n"


def test_names_with_slashes_arrive(url, scaling, capsys):
    said(capsys, "scale", "org/Model-1B", "2")
    assert scaling.asked[0][0] == "org/Model-1B"


@pytest.mark.parametrize(("end", "code"), [("done", 0), ("failed", 1), ("cancelled", 1)])
def test_waiting_ends_as_the_operation_does(monkeypatch, capsys, end, code):
    with scale_node_beside(Progressing(end, "" if end == "done" else "no way")) as url:
        monkeypatch.setenv("BLITZGW_ADMIN_KEY", ADMIN_KEY)
        out, err = said(capsys, "scale", "m", "4", "--wait", "--url", url, code=code)
    assert out == "op-1\n"
    lines = err.splitlines()
    assert sum("node-2/cpu0 loading" in line for line in lines) == 1, "each state is told once"
    assert any("node-4/cpu0 ready" in line for line in lines)
    assert f", {end} after 5.43 s" in lines[-1]
    assert lines[-1].endswith("no way") == (code == 1)


def test_waiting_for_more_than_came_is_a_failure(monkeypatch, capsys):
    with scale_node_beside(Progressing("done", "3 of 4 instances: no answer", short=True)) as url:
        monkeypatch.setenv("BLITZGW_ADMIN_KEY", ADMIN_KEY)
        _, err = said(capsys, "scale", "m", "4", "--wait", "--url", url, code=1)
    assert err.splitlines()[-1].endswith("3 of 4 instances: no answer")


def test_waiting_for_json_prints_how_it_ended(monkeypatch, capsys):
    with scale_node_beside(Progressing()) as url:
        monkeypatch.setenv("BLITZGW_ADMIN_KEY", ADMIN_KEY)
        out, err = said(capsys, "scale", "m", "4", "--wait", "--format", "json", "--url", url)
    assert (json.loads(out)["state"], err) == ("done", "")


def terminal(command, until, url, seconds=60.0):
    """Run a command on a terminal until a text is there; return the process and the text."""
    ours, theirs = pty.openpty()
    environment = os.environ | {
        "TERM": "xterm", "COLUMNS": "80", "LINES": "30", "BLITZGW_URL": url,
        "BLITZGW_ADMIN_KEY": ADMIN_KEY,
    }  # fmt: skip
    process = subprocess.Popen(
        [*COMMAND, *command], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    text, deadline = "", time.monotonic() + seconds
    try:
        while until not in text and time.monotonic() < deadline:
            text += os.read(ours, 65536).decode(errors="replace")
    except OSError:  # it has ended
        pass
    return process, text, ours


def drained(fd):
    text = b""
    try:
        while chunk := os.read(fd, 65536):
            text += chunk
    except OSError:
        pass
    os.close(fd)
    return text.decode(errors="replace")


def test_an_interrupt_leaves_the_operation_and_says_so(scaling):
    with scale_node_beside(scaling) as url:
        process, text, fd = terminal(["scale", "m", "4", "--wait"], "node-4/cpu0", url)
        process.send_signal(signal.SIGINT)
        text += drained(fd)
        assert process.wait(60) == 130
    assert "█" in text or "░" in text
    assert "interrupted; the operation goes on: `blitzgw inspect plan op-1`" in text
    assert "Traceback" not in text
    assert scaling.known["op-1"].state == "transferring"


def test_bars_grow_on_a_terminal():
    with scale_node_beside(Progressing()) as url:
        process, text, fd = terminal(["scale", "m", "4", "--wait"], "never", url)
        text += drained(fd)
        assert process.wait(60) == 0
    assert "MiB/s" in text
    assert "100%" in text
    assert "\x1b[1A" in text or "\x1b[2K" in text, "the same lines are drawn again"


def test_what_is_under_way_can_be_given_up(url, scaling, capsys):
    scaling.known = {f"op-{i}": chain(number=i) for i in (1, 2)}
    scaling.known["op-3"] = chain("other", number=3)
    scaling.known["op-4"] = chain(at_s=99.0, number=4)
    out, _ = said(capsys, "scale", "m", "--cancel")
    assert out == "op-2 cancelled\nop-1 cancelled\n"
    assert [facts.state for facts in scaling.known.values()] == [
        "cancelled", "cancelled", "transferring", "done",
    ]  # fmt: skip
    out, _ = said(capsys, "scale", "op-3", "--cancel", "--format", "json")
    assert json.loads(out)["operations"][0]["id"] == "op-3"
    _, err = said(capsys, "scale", "m", "--cancel", code=1)
    assert "nothing is under way for m" in err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["m"], "how many instances? blitzgw scale MODEL N, or auto"),
        ([], "Missing argument"),
        (["m", "-1"], "-1"),
        (["m", "4097"], "4097"),
        (["m", "four"], "'four' is neither a number nor auto"),
        (["m", "AUTO"], "'AUTO' is neither a number nor auto"),
        (["m", "auto", "--dry-run"], "`blitzgw inspect why MODEL` shows what would be decided"),
        (["m", "auto", "--wait"], "`blitzgw inspect events --follow` shows what comes"),
        (["m", "auto", "--strategy", "chain"], "go with N"),
        (["m", "auto", "--live", "stop"], "go with N"),
        (["m", "auto", "--cancel"], "--cancel goes with MODEL alone"),
        (["m", "4", "--cancel"], "--cancel goes with MODEL alone"),
        (["m", "--cancel", "--wait"], "--cancel goes with MODEL alone"),
        (["m", "4", "--dry-run", "--wait"], "--dry-run does nothing"),
        (["m", "4", "--admin-key", "schlüssel"], "printable ASCII"),
    ],
)
def test_commands_that_cannot_be_meant_are_mistakes_of_usage(url, scaling, capsys, command, says):
    _, err = said(capsys, "scale", *command, code=2)
    assert says in err
    assert scaling.asked == []


# -- leaving it to the owner -----------------------------------------------------------------------


def test_a_model_is_left_to_its_owner(url, scaling, capsys):
    out, err = said(capsys, "scale", "m", "auto")
    assert (out, scaling.asked) == ("m: automatic from now on\n", [("m", -1, False, "")])
    assert "`blitzgw inspect why m` shows more" in err
    grown = decision(present=1, wanted=3, reason="a queue\x1b of 8 s")
    scaling.told["m"] = why(now=grown)
    out, _ = said(capsys, "scale", "m", "auto")
    assert out == "m: automatic from now on; 1 instance, 3 wanted: a queue? of 8 s\n"
    told = json.loads(said(capsys, "scale", "m", "auto", "--format", "json").out)
    assert (told["instances"], told["why"]["now"]["wanted"]) == ("auto", 3)
    scaling.refusal = Unavailable("its owner does not answer")
    _, err = said(capsys, "scale", "m", "auto", code=1)
    assert "answered 503: its owner does not answer" in err


# -- keys ------------------------------------------------------------------------------------------


def test_the_key_is_that_of_this_machines_file(url, scaling, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("BLITZGW_ADMIN_KEY")
    _, err = said(capsys, "scale", "m", "2", code=1)
    assert "wants an admin key: give one with --admin-key or $BLITZGW_ADMIN_KEY" in err
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/admin.key").write_text(f"{ADMIN_KEY}\n")
    assert said(capsys, "scale", "m", "2").out == "op-1\n"
    (tmp_path / "cache/admin.key").write_text("short")
    _, err = said(capsys, "scale", "m", "2", code=2)
    assert "does not hold one or two keys" in err


def test_a_wrong_key_is_told_apart_from_none(url, scaling, capsys):
    _, err = said(capsys, "scale", "m", "2", "--admin-key", "w" * 32, code=1)
    assert "does not know this admin key" in err
    assert "www" not in err
    assert scaling.asked == []


def test_what_the_node_refuses_is_said_in_its_words(url, scaling, capsys):
    _, err = said(capsys, "scale", "nope", "2", code=1)
    assert "answered 404: the model does not exist" in err
    scaling.refusal = Unavailable("no device is free\x1b[31m")
    _, err = said(capsys, "scale", "m", "2", code=1)
    assert "answered 503: no device is free?[31m" in err


def test_no_node_is_told_with_a_remedy(capsys):
    _, err = said(capsys, "scale", "m", "2", "--url", "http://127.0.0.1:9", code=1)
    assert "cannot reach http://127.0.0.1:9" in err
    assert "--url or $BLITZGW_URL" in err


@pytest.mark.parametrize("answer", [{}, {"ended": False}, {"state": "planned", "ended": True}])
@pytest.mark.parametrize("options", [["--wait"], ["--dry-run"], []])
def test_an_answer_of_another_form_is_told(capsys, answer, options):
    with serving(lambda *_: (200, answer)) as url:
        _, err = said(capsys, "scale", "m", "2", "--url", url, *options, code=1)
    assert "as new as this command" in err


# -- following -------------------------------------------------------------------------------------


def test_a_node_that_is_away_for_a_while_is_waited_for():
    operation = {"ended": False, "id": "op-1", "owner": "node-1"}
    answers = iter([follow.Unreachable("away"), operation, follow.Unreachable("away"),
                    {**operation, "ended": True}])  # fmt: skip

    def again():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    ended = [news["ended"] for news in follow.followed(again, operation, 0.0, 60.0)]
    assert ended[-1] is True
    assert ended.count(True) == 1


def test_a_node_that_stays_away_is_given_up():
    def again():
        raise follow.Unreachable("cannot reach it")

    with pytest.raises(follow.Unreachable):
        list(follow.followed(again, {"ended": False}, 0.001, 0.01))


def test_an_operation_that_nobody_knows_any_more_is_told(url, scaling, capsys, monkeypatch):
    timer = threading.Timer(0.2, scaling.known.clear)
    timer.start()
    _, err = said(capsys, "scale", "m", "2", "--wait", code=1)
    timer.join()
    assert "nobody knows operation op-1 any more: its owner, node-1, has died" in err


# -- looking ---------------------------------------------------------------------------------------


def test_a_plan_is_that_of_the_operation_under_way_or_the_last(url, scaling, capsys):
    _, err = said(capsys, "inspect", "plan", code=1)
    assert "no operation is known: begin one with `blitzgw scale MODEL N`" in err
    scaling.known["op-1"] = chain(at_s=99.0, number=1)
    scaling.known["op-2"] = chain(wanted=2, at_s=1.0, number=2)
    scaling.known["op-3"] = chain(wanted=3, at_s=99.0, number=3)
    assert json.loads(said(capsys, "inspect", "plan", "--format", "json").out)["id"] == "op-2"
    assert "1 → 4 instances" in said(capsys, "inspect", "plan", "op-1").out
    del scaling.known["op-2"]
    assert "1 → 3 instances" in said(capsys, "inspect", "plan").out
    copy = replace(chain(number=5), instances_before=0, instances_wanted=0)
    scaling.known["op-5"] = copy  # made unasked, so that it is not what one asks for
    assert "1 → 3 instances" in said(capsys, "inspect", "plan").out
    assert "m: a host copy" in said(capsys, "inspect", "plan", "op-5").out
    _, err = said(capsys, "scale", "m", "--cancel", code=1)
    assert "nothing is under way for m" in err
    _, err = said(capsys, "inspect", "plan", "op-9", code=1)
    assert "no living node knows this operation" in err


def test_a_plan_shows_how_fast_its_edges_are(url, scaling, capsys):
    scaling.known["op-1"] = chain(at_s=2.5)
    out = said(capsys, "inspect", "plan").out
    assert "47.68 MiB/s" in out
    assert "46%" in out
    assert "flowing" in out


def test_events_are_lines_off_a_terminal(url, scaling, capsys):
    scaling.known["op-1"] = chain(wanted=2, at_s=99.0)
    lines = said(capsys, "inspect", "events", "--blobs").out.splitlines()
    assert lines[0].startswith("m: 1 → 2 instances, by chain, done")
    assert lines[1] == "    0.000 s  decided  by hand"
    assert lines[3] == "    0.100 s  claimed  node-2/cpu0"
    assert sum("  blob  " in line for line in lines) == 4
    assert lines[-1] == "    5.390 s  ready  node-2/cpu0"
    short = said(capsys, "inspect", "events").out.splitlines()
    assert [line for line in short if "  blobs  " not in line] == [
        line for line in lines if "  blob  " not in line
    ]
    [together] = [line for line in short if "  blobs  " in line]
    assert "node-2/cpu0  4 of them since " in together
    assert together.split()[0] == [line for line in lines if "  blob  " in line][-1].split()[0]
    told = json.loads(said(capsys, "inspect", "events", "op-1", "--format", "json").out)
    assert [event["what"] for event in told["events"]][:2] == ["decided", "planned"]


@pytest.mark.parametrize("layout", ["table", "json"])
def test_followed_events_come_once_each_and_end_with_the_operation(monkeypatch, capsys, layout):
    scaling = Progressing()
    scaling.known["op-1"] = chain()
    options = ["--blobs"] if layout == "table" else []
    layout = "json" if layout == "json" else "table"
    with scale_node_beside(scaling) as url:
        command = ["inspect", "events", "--last", "--follow", "--format", layout, "--url", url]
        out, _ = said(capsys, *command, *options)
    lines = out.splitlines()
    if layout == "json":
        lines = [" ".join(str(v) for v in json.loads(line).values()) for line in lines]
    assert len(lines) == len(set(lines)) == len(chain(at_s=99.0).events)
    assert "ready" in lines[-1]


def test_followed_blobs_are_a_line_for_each_target(monkeypatch, capsys):
    scaling = Progressing()
    scaling.known["op-1"] = chain()
    with scale_node_beside(scaling) as url:
        out, _ = said(capsys, "inspect", "events", "op-1", "--follow", "--url", url)
    lines, events = out.splitlines(), chain(at_s=99.0).events
    workers = {event.about for event in events if event.what == "blob"}
    assert not any("  blob  " in line for line in lines)
    together = [line for line in lines if "  blobs  " in line]
    assert sorted(line.split()[3] for line in together) == sorted(workers)
    assert len(lines) - len(together) == sum(event.what != "blob" for event in events)


def test_followed_events_are_a_picture_on_a_terminal():
    scaling = Progressing()
    scaling.known["op-1"] = chain()
    with scale_node_beside(scaling) as url:
        process, text, fd = terminal(["inspect", "events", "--last", "--follow"], "never", url)
        text += drained(fd)
        assert process.wait(60) == 0
    assert "◆" in text
    assert "· decided - claimed" in text


def test_what_operations_say_cannot_command_the_terminal(url, scaling, capsys):
    facts = chain(model="m\x1b[31m", at_s=2.0)
    event = OperationEvent(1.0, "lost\x1b", "\x1b]0;x\x07", "\r\n")
    target = replace(facts.targets[0], worker="n\x1b/x", state="\x1b", reason="\x07")
    scaling.known["op-1"] = replace(
        facts, reason="\x1b", events=(event,), targets=(target,), strategy="\x1b",
        alternatives={"\x1b": 1.0},
    )  # fmt: skip
    for command in (["plan"], ["events"], ["plan", "--format", "json"]):
        out, _ = said(capsys, "inspect", *command)
        assert "\x1b" not in out
        assert "\x07" not in out

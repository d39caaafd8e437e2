"""`blitzgw run`: a configuration file, and vLLM's spellings of the options that people know."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from blitzgw.config import Config
    from blitzgw.configfile.load import Option

EXAMPLES = """\b
Examples:
  blitzgw run
  blitzgw run smollm2-135m --port 9000
  blitzgw run ./Qwen3-0.6B --served-model-name qwen --dtype bf16
  blitzgw run --config blitzgw.toml --host 0.0.0.0
  blitzgw run --local-nodes 3
  blitzgw run --cluster-key-file cluster.key --cluster-host 0.0.0.0 --join 10.0.0.5:7946

Every other knob is explained in config.example.toml.
"""

# parameter → key of the configuration file
KEYS = {
    "host": "http.host",
    "port": "http.port",
    "api_key": "http.api_keys",
    "max_model_len": "models[0].max_model_len",
    "max_num_seqs": "models[0].max_num_seqs",
    "max_num_batched_tokens": "models[0].max_batched_tokens",
    "dtype": "models[0].dtype",
    "log_level": "node.log_level",
    "name": "node.name",
    "join": "cluster.join",
    "cluster_key_file": "cluster.key_file",
    "cluster_host": "cluster.host",
    "cluster_advertise": "cluster.advertise",
    "cluster_port": "cluster.port",
}

MAX_LOCAL_NODES = 64
"""Each is two processes with a model of its own; more would be a slip."""


@click.command(epilog=EXAMPLES)
@click.argument("model", required=False)
@click.option("--model", "model_option", metavar="MODEL", help="The same as the argument MODEL.")
@click.option("--config", "config_file", metavar="FILE", type=Path, help="A configuration in TOML.")
@click.option("--host", metavar="ADDRESS", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on; 0: any free one.  [default: 8000]")
@click.option(
    "--api-key",
    metavar="KEY",
    multiple=True,
    envvar="BLITZGW_API_KEY",
    help="Key that clients must send; repeatable. Better in $BLITZGW_API_KEY or in a key file:"
    " a command line can be seen by every user of the machine.",
)
@click.option(
    "--served-model-name",
    metavar="NAME",
    multiple=True,
    help="Name that clients use; repeat it for aliases.",
)
@click.option("--max-model-len", type=int, metavar="TOKENS", help="Prompt and completion together.")
@click.option("--max-num-seqs", type=int, metavar="N", help="Sequences that compute at once.")
@click.option("--max-num-batched-tokens", type=int, metavar="TOKENS", help="Tokens of one step.")
@click.option("--dtype", help="auto, bfloat16, float16 or float32.")
@click.option("--device", help="auto, cpu, cuda or paced, instead of the file's devices.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
@click.option("--name", metavar="NAME", help="What to call this node.  [default: the host's name]")
@click.option(
    "--join",
    metavar="ADDRESS",
    multiple=True,
    help="HOST:PORT of a node that runs, to form one service with it; repeatable. Needs a key.",
)
@click.option(
    "--cluster-key-file",
    metavar="FILE",
    help="The key that all nodes share; or put it into $BLITZGW_CLUSTER_KEY. Make one with:"
    " openssl rand -hex 32",
)
@click.option(
    "--cluster-host",
    metavar="ADDRESS",
    help="Address to listen on for other nodes.  [default: 127.0.0.1]",
)
@click.option(
    "--cluster-advertise",
    metavar="ADDRESS",
    help="Address that other nodes are told to connect to.  [default: automatic]",
)
@click.option(
    "--cluster-port",
    type=int,
    metavar="PORT",
    help="Port for other nodes, UDP and TCP.  [default: any free one]",
)
@click.option(
    "--local-nodes",
    type=click.IntRange(1, MAX_LOCAL_NODES),
    metavar="N",
    help="Start N nodes on this machine that form one service, on --port and the ports after it.",
)
@click.option("--part-of", type=int, nargs=2, hidden=True)  # parent, number of local nodes
@click.pass_context
def run(context: click.Context, /, **parameters: Any) -> None:
    """Serve models until ^C or SIGTERM.

    MODEL is a folder, a .gguf file, a hub id or a name from `blitzgw models list`. Without MODEL
    and --config it is smollm2-135m, which is fetched where it is missing. Options override the
    file.
    """
    if parameters["part_of"]:
        from blitzgw.cli.local import follow_parent  # noqa: PLC0415  keeps --help quick

        follow_parent(parameters["part_of"][0])
    config = read_configuration(parameters)
    if parameters["local_nodes"] and not config.cluster_keys:
        from blitzgw.cli.local import fresh_key  # noqa: PLC0415

        config = read_configuration(parameters, fresh_key())
    os.environ["BLITZGW_CACHE"] = config.node.cache_dir  # for workers, too
    if not parameters["part_of"]:  # whose parent has done both
        for warning in config.warnings:
            click.echo(f"warning: {warning}", err=True)
        _fetch_missing(config)
    context.exit(_run_all(context, config) if parameters["local_nodes"] else _run_one(config))


def _run_all(context: click.Context, config: Config) -> int:
    from blitzgw.cli.local import run_nodes  # noqa: PLC0415

    return run_nodes(context, config)


def _run_one(config: Config) -> int:
    os.environ.pop("BLITZGW_CLUSTER_KEY", None)  # workers have no use for it
    gc.disable()  # a start makes much and drops little; `node` switches it on again
    from blitzgw import node  # noqa: PLC0415  serving takes much that --help does not need

    return node.run(config)


def read_configuration(
    parameters: dict[str, Any], environment: Mapping[str, str] = os.environ
) -> Config:
    """Return what the parameters of `run` come to; raises `ConfigError`."""
    from blitzgw.configfile.load import load  # noqa: PLC0415  keeps --help quick
    from blitzgw.worker.discovery import discover  # noqa: PLC0415

    config = load(parameters["config_file"], list(_options(parameters)), discover, environment)
    if not parameters["part_of"]:
        return config
    from blitzgw.cli.local import with_share  # noqa: PLC0415

    return with_share(config, parameters["part_of"][1])


def _fetch_missing(config: Config) -> None:
    """Fetch the models that come with blitzgw and are not here; raises `CheckpointError`."""
    from blitzgw.cli.output import ProgressLine  # noqa: PLC0415  keeps --help quick
    from blitzgw.weights.cache import add_bundled  # noqa: PLC0415

    with ProgressLine(sys.stderr) as progress:
        for model in config.models:
            add_bundled(model.path, progress)


def _options(parameters: dict[str, Any]) -> Iterator[Option]:
    """Yield what was given on the command line, replacements of whole sections first."""
    from blitzgw.configfile.load import Option  # noqa: PLC0415

    model, named = parameters["model"], parameters["model_option"]
    if model and named and model != named:
        raise click.UsageError(f"two models, {model} and {named}: more than one needs --config")
    if model or named:
        yield Option("--model" if named else "MODEL", "models", [{"path": _path(named or model)}])
    if parameters["device"]:
        yield Option("--device", "devices", [{"kind": parameters["device"]}])
    for parameter, key in KEYS.items():
        value = parameters[parameter]
        if value not in (None, ()):
            value = str(Path(value).absolute()) if parameter == "cluster_key_file" else value
            value = list(value) if isinstance(value, tuple) else value
            yield Option(f"--{parameter.replace('_', '-')}", key, value)
    if names := parameters["served_model_name"]:
        yield Option("--served-model-name", "models[0].name", names[0])
        yield Option("--served-model-name", "models[0].aliases", list(names[1:]))


def _path(model: str) -> str:
    """Make a path absolute: in a file it would count from the file's folder."""
    path = Path(model)
    is_path = model.startswith(("./", "../")) or model.endswith(".gguf")
    return str(path.absolute()) if is_path or ("/" in model and os.path.exists(model)) else model

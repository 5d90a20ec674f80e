"""`oxidize deploy`, `oxidize rollback` and `oxidize releases`.

The rule: `oxidize.deploy` does the work; this module gives it a server and a screen, and prints the outcome. A
deployment that has switched ends with a release that serves, even if it is interrupted; a terminal that hangs up does
not interrupt it.
"""

import gc
import math
import os
import pwd
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from oxidize.cli.common import SERVER_CONFIG, config_option, json_option, print_json, rooted
from oxidize.cli.completion import release_names
from oxidize.cli.lines import echo, fail
from oxidize.cli.releases_page import describe, render
from oxidize.cli.running_server import RunningServer
from oxidize.deploy import SETTLE_SECS
from oxidize.deploy.commands import Commands
from oxidize.deploy.deployment import Deployer, DeployOptions
from oxidize.deploy.history import DEPLOY, LOST, SUCCESS, Deployment, History
from oxidize.deploy.interrupts import Interrupts
from oxidize.deploy.lock import locked
from oxidize.deploy.progress import Progress
from oxidize.deploy.releases import Releases, is_started_from
from oxidize.deploy.rollback import repair
from oxidize.deploy.screen import open_screen
from oxidize.deploy.server import Clock
from oxidize.errors import OxidizeError
from oxidize.service_manager import systemctl
from oxidize.text import counted, printable

_Function = TypeVar("_Function", bound=Callable[..., Any])

PREFIX = Path("/opt/oxidize")
STATE_FOLDER = Path("/var/lib/oxidize")
CLIENT_SERVICE = "oxidize-client.service"
SETTLE_TIMEOUT_SECS = 3600.0
DEPLOYMENTS_SHOWN = 10
FOLDER_PATH = click.Path(path_type=Path, file_okay=False)

_prefix_option = click.option(
    "--prefix", type=FOLDER_PATH, default=PREFIX, show_default=True, help="Folder of the installation."
)
_state_option = click.option(
    "--state-dir",
    "state_folder",
    type=FOLDER_PATH,
    default=STATE_FOLDER,
    show_default=True,
    help="Folder of the deployment log.",
)


def _finite(_context: click.Context, _option: click.Parameter, value: float) -> float:
    if not math.isfinite(value):  # a range does not exclude nan
        raise click.BadParameter(f"{value}: expected a number of seconds")
    return value


def _deploying_options(function: _Function) -> _Function:
    """Add the options that `deploy` and `rollback` have in common."""
    options = (
        config_option(SERVER_CONFIG),
        click.option(
            "--settle",
            "settle_secs",
            type=click.FloatRange(0, SETTLE_TIMEOUT_SECS),
            default=SETTLE_SECS,
            callback=_finite,
            show_default=True,
            metavar="SECS",
            help="How long to watch the release, and roll it back if it is bad.",
        ),
        click.option("--force", "forced", is_flag=True, help="Continue even if sessions would be lost."),
        click.option("--ignore-traffic", is_flag=True, help="Do not roll back because packets stopped flowing."),
        _prefix_option,
        _state_option,
        json_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.command(short_help="Deploy a release under traffic; roll back if it is bad.")
@click.option("--source", type=FOLDER_PATH, help="The checkout to build.  [default: the current folder]")
@click.option(
    "--release",
    "name",
    metavar="NAME",
    shell_complete=release_names,
    help="Deploy an installed release instead of building one.",
)
@click.option(
    "--package",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Deploy the release in a package that `make deb` has built, also where there is no dpkg.",
)
@_deploying_options
def deploy(source: Path | None, name: str | None, package: Path | None, **options: Any) -> None:
    """Deploy a release under traffic: build, rehearse, switch, watch, and roll back automatically if it is bad.

    Before the switch the new release checks the configuration and restores a copy of the live sessions. Exit status 1,
    with the reason, if the release was refused or rolled back; then the previous release serves.
    """
    if len([given for given in (source, name, package) if given is not None]) > 1:
        raise click.UsageError(
            "--source builds a release, --release names an installed one, --package has one: give only one of them"
        )
    if package is not None:
        file = rooted(package)
        _run(None, lambda deployer: deployer.deploy_package(file), **options)
    source = None if name is not None else _checkout(rooted(source or Path()))
    _run(source, lambda deployer: deployer.deploy(name), **options)


@click.command(short_help="Roll back to the previous release under traffic.")
@_deploying_options
def rollback(**options: Any) -> None:
    """Roll back to the release that served before the running one; a second rollback goes one further back.

    It is a takeover: sessions are kept, and the older release is rehearsed and watched like a new one.
    """
    _run(None, lambda deployer: deployer.rollback(), **options)


@click.command(short_help="List the releases and the last deployments.")
@config_option(SERVER_CONFIG)
@_prefix_option
@_state_option
@json_option
def releases(config_path: Path, prefix: Path, state_folder: Path, as_json: bool) -> None:
    """List the installed releases and the last deployments.

    Marks: "running" serves, "current" is started next, "rollback" is the target of a rollback, and "left" was rolled
    back and is no longer a target.
    """
    folder, problem = _running_folder(config_path)
    found = describe(Releases(prefix), History(state_folder), folder, problem)
    if as_json:
        print_json(found)
    else:
        render(found, DEPLOYMENTS_SHOWN)


def _running_folder(config_path: Path) -> tuple[str | None, str]:
    """Return the folder that the server runs from, None if none is running; and why it is unknown, else ""."""
    try:
        server = RunningServer(config_path)
        serving = server.serving()
        return (serving.folder, "") if serving is not None else (None, server.unreached())
    except OxidizeError as error:
        return None, str(error)


def _checkout(folder: Path) -> Path:
    if not (folder / "systemd/install.sh").is_file():
        fail(
            2,
            f"{folder.absolute()}: expected a checkout of Oxidize; name one with --source, or a release with --release",
        )
    return folder.absolute()


def _run(
    source: Path | None,
    act: Callable[[Deployer], Deployment],
    *,
    config_path: Path,
    settle_secs: float,
    forced: bool,
    ignore_traffic: bool,
    prefix: Path,
    state_folder: Path,
    as_json: bool,
) -> NoReturn:
    gc.enable()  # which the command line leaves to what runs for long
    who, installed, past, clock = _operator(), Releases(prefix), History(state_folder), Clock()
    options = DeployOptions(who=who, settle_secs=settle_secs, forced=forced, check_traffic=not ignore_traffic)
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    interrupts = Interrupts()
    with interrupts.listening():
        with locked(prefix, f"pid {os.getpid()}, {who}, since {since}") as lock_fd:
            past.prepare()
            server = RunningServer(config_path, lock_fd)
            commands = Commands(installed, config_path, source, lock_fd)
            with open_screen(sys.stderr if as_json else sys.stdout, server.vitals_or_none) as progress:
                repair(installed, past, server, clock, progress)
                deployer = Deployer(installed, past, server, commands, progress, options, clock, interrupts)
                entry = act(deployer)
                for line in _reminders(commands, installed, server):
                    progress.note(line)
        try:
            _print_outcome(entry, progress, as_json=as_json)
        except OSError:  # the reader is gone; the rest of the output must not fail at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(0 if entry.result == SUCCESS else 1)


def _reminders(commands: Commands, installed: Releases, server: RunningServer) -> Iterator[str]:
    """Yield what the operator still has to do."""
    try:
        units = commands.changed_units() if server.main_pid() is not None else []
    except OxidizeError as error:
        yield f"the units cannot be compared with the installed ones: {error}"
        units = []
    if units:
        differ = f"{', '.join(units)} of the checkout {'differs' if len(units) == 1 else 'differ'}"
        yield f"{differ} from what is installed: run `sudo make units`"
    pid, current = systemctl.property_of(CLIENT_SERVICE, "MainPID") or "0", installed.current()
    if pid.isdecimal() and int(pid) and current is not None and not is_started_from(int(pid), current.folder):
        yield f"{CLIENT_SERVICE} runs another release: run `systemctl reload oxidize-client`"


def _print_outcome(entry: Deployment, progress: Progress, *, as_json: bool) -> None:
    if as_json:
        steps = [asdict(result) | {"step": result.step.value} for result in progress.results]
        print_json({**asdict(entry), "steps": steps, "notes": progress.notes})
        return
    if entry.result == SUCCESS and entry.source == entry.target:
        echo(entry.reason)
        return
    if entry.result == SUCCESS:
        facts = [f"{entry.target} serves"] if entry.sessions is not None else [f"current -> {entry.target}"]
        facts += [counted(entry.sessions, "session")] if entry.sessions is not None else []
        facts += [f"blackout {entry.blackout_ms:.1f} ms"] if entry.blackout_ms is not None else []
        echo(f"{', '.join(facts)}, {entry.seconds:.1f} s in all")
        return
    what = "deployed" if entry.action == DEPLOY else "rolled back"
    for line in printable(entry.reason).splitlines() or ["no reason given"]:
        echo(f"oxidize: {line}", err=True)
    serves = "" if entry.result == LOST else f": {entry.source} serves" if entry.source else ""
    echo(f"oxidize: not {what} ({entry.result}){serves}", err=True)


def _operator() -> str:
    """Return the operator's name: the user who called sudo, else this user."""
    name = os.environ.get("SUDO_USER")
    try:
        return name or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"

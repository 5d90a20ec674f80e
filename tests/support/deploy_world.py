"""A deployment without a machine: releases in a folder, a simulated server and a simulated clock."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oxidize.deploy.commands import Commands, Owner, Rehearsed
from oxidize.deploy.deployment import Deployer, DeployOptions
from oxidize.deploy.history import History
from oxidize.deploy.interrupts import Interrupts
from oxidize.deploy.progress import Progress
from oxidize.deploy.releases import DESCRIPTION, Release, Releases
from oxidize.deploy.server import Clock, Serving
from oxidize.deploy.vitals import PeerVitals, Takeover, Vitals
from oxidize.errors import DeployError, Phase, TakeoverError

UNIX = 1_800_000_000.0


def add_release(prefix: Path, name: str, built_unix: float) -> Release:
    """Add a release whose program does nothing."""
    folder = prefix / "releases" / name
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/oxidize").write_text("#!/bin/sh\n")
    described = {"version": "0.1.0", "built_unix": built_unix, "revision": "abc1234"}
    (folder / DESCRIPTION).write_text(json.dumps(described))
    return Release(folder, "0.1.0", built_unix, "abc1234")


@dataclass
class Behaviour:
    """The behaviour of a release that serves."""

    refuses: str = ""  # its reload fails, with this reason
    ends_after_secs: float | None = None  # it crashes, and is started again from `current`
    packets_per_sec: float = 1000.0
    drops_per_sec: float = 0.0
    rubbish_per_sec: float = 0.0
    kernel_drops_per_sec: float = 0.0
    errors: int = 0
    unready: str = ""
    lost_peers: Sequence[str] = ()
    silent: Sequence[str] = ()
    is_mute: bool = False  # and crashes after `ends_after_secs` by the watchdog, if at all
    answers: Exception | None = None  # to every question
    logs_per_sec: float = 0.0  # lines, as errors
    on_reload: Callable[[], None] = lambda: None


@dataclass
class World:
    """The installation and its server: implements `oxidize.deploy.server.Server`."""

    prefix: Path
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    time: float = 100.0
    running: Release | None = None
    generation: int = 1
    pid: int = 1000
    began: float = 0.0
    main_pid_is_wrong: bool = False
    reloads: list[str] = field(default_factory=list)
    reloading_until: float = 0.0
    peers_of: list[str] = field(default_factory=lambda: ["alice", "bob"])
    way: str = "taken over"
    is_starting: bool = False
    cannot_be_reached: str = ""
    received_of: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.releases = Releases(self.prefix)
        self.history = History(self.prefix / "state")
        self.history.prepare()
        self.progress = Progress()
        self.totals = {"received_packets": 0.0, "sent_packets": 0.0, "received_datagrams": 0.0, "errors_logged": 0.0}
        self.drops = {"malformed": 0.0, "network_write_failed": 0.0}
        self.errors_before = 0.0
        self.kernel_drops = 0.0
        self.clock = Clock(lambda: self.time, lambda: UNIX + self.time, self.sleep)
        self.commands = SimulatedCommands(self)

    def deployer(self, **options: Any) -> Deployer:
        chosen = DeployOptions(who="alice", **options)
        return Deployer(
            self.releases,
            self.history,
            self,
            self.commands,
            self.progress,
            chosen,
            self.clock,
            Interrupts(),
        )

    def serve(self, release: Release) -> None:
        """Make a release serve, as after a start."""
        self.releases.point_current_at(release)
        self._become(release)

    def behaviour(self) -> Behaviour:
        return self.behaviours.get(self.running.name, Behaviour()) if self.running is not None else Behaviour()

    def sleep(self, seconds: float) -> None:
        behaviour = self.behaviour()
        self.time += seconds
        if self.running is not None:
            for name in ("received_packets", "sent_packets", "received_datagrams"):
                self.totals[name] += behaviour.packets_per_sec * seconds
            self.drops["network_write_failed"] += behaviour.drops_per_sec * seconds
            self.drops["malformed"] += behaviour.rubbish_per_sec * seconds
            self.totals["errors_logged"] += behaviour.logs_per_sec * seconds
            self.kernel_drops += behaviour.kernel_drops_per_sec * seconds
        if behaviour.ends_after_secs is not None and self.time - self.began >= behaviour.ends_after_secs:
            current = self.releases.current()
            assert current is not None
            self.way = "restored from the store"
            self._become(current)

    def _become(self, release: Release) -> None:
        self.running = release
        self.generation += 1
        self.pid += 1
        self.began = self.time
        self.errors_before = self.totals["errors_logged"]
        self.totals["errors_logged"] += self.behaviour().errors

    # --- oxidize.deploy.server.Server ---

    def serving(self) -> Serving | None:
        return Serving(self.pid, str(self.running.folder)) if self.running is not None else None

    def unreached(self) -> str:
        return self.cannot_be_reached

    def is_expected(self) -> bool:
        return self.running is not None or self.is_starting

    def _answer(self) -> None:
        behaviour = self.behaviour()
        if behaviour.is_mute:
            raise TakeoverError(Phase.QUERYING, f"pid {self.pid} gives no answer: does it hang?")
        if behaviour.answers is not None:
            raise behaviour.answers

    def vitals(self) -> Vitals | None:
        self._answer()
        if self.running is None:
            return None
        return Vitals(
            at=self.time,
            state="healthy",
            generation=self.generation,
            release=self.running.version,
            release_folder=str(self.running.folder),
            pid=self.pid,
            uptime_secs=self.time - self.began,
            sessions=len(self.peers_of) - len(self.behaviour().lost_peers),
            peers=len(self.peers_of),
            totals={name: int(value) for name, value in self.totals.items()},
            drops={name: int(value) for name, value in self.drops.items()},
            kernel_drops=int(self.kernel_drops),
            takeovers=(Takeover(result="success", generation=self.generation, blackout_ms=1.5, way=self.way),),
            metrics_listen="127.0.0.1:9090",
            errors_before=int(self.errors_before),
        )

    def peers(self) -> Sequence[PeerVitals]:
        self._answer()
        behaviour = self.behaviour()
        lost, received = behaviour.lost_peers, int(self.totals["received_packets"])
        self.received_of |= {name: received for name in self.peers_of if name not in behaviour.silent}
        return [
            PeerVitals(
                name=name,
                public_key=name,
                has_session=name not in lost,
                last_handshake_unix=UNIX + self.time - 60,
                session_ends_unix=UNIX + self.time + 120,
                received_packets=self.received_of.get(name, 0),
            )
            for name in self.peers_of
        ]

    def unready(self, vitals: Vitals) -> str:
        return self.behaviour().unready

    def main_pid(self) -> int | None:
        return None if self.running is None else self.pid + (1 if self.main_pid_is_wrong else 0)

    def reload(self, program: Path) -> None:
        current = self.releases.current()
        assert current is not None
        self.reloads.append(current.name)
        behaviour = self.behaviours.get(current.name, Behaviour())
        behaviour.on_reload()
        if behaviour.refuses:
            raise TakeoverError(Phase.PREPARING, behaviour.refuses)
        self.way = "taken over"
        self._become(current)

    def is_reloading(self) -> bool:
        return self.time < self.reloading_until

    def owner(self) -> Owner:
        return None


class SimulatedCommands(Commands):
    """Simulated commands of a release. to_build: names of the releases that `build` makes, one after the other."""

    def __init__(self, world: World) -> None:
        super().__init__(world.releases, Path("server.toml"), None, -1)
        self.world = world
        self.to_build: list[str] = []
        self.on_build: Callable[[], None] = lambda: None
        self.problem = ""
        self.rehearsed = Rehearsed(2, 2, {})
        self.rehearsal_problem = ""

    def build(self) -> Release:
        self.on_build()
        return add_release(self.world.prefix, self.to_build.pop(0), UNIX + self.world.time)

    def check(self, release: Release, owner: Owner) -> str:
        if self.problem:
            raise DeployError(self.problem)
        return "server.toml: good: 2 peers"

    def rehearse(self, release: Release, owner: Owner) -> Rehearsed:
        if self.rehearsal_problem:
            raise DeployError(self.rehearsal_problem)
        return self.rehearsed
